"""Results of several runs in one table. Figures that cannot be compared (another protocol, data set, split or
judge) are refused.

    python -m scripts.compare_evaluations checkpoints/t2m/*/eval/evaluation_MARDM_essential.json
"""


from utils.errors import run
from utils.evaluation.protocols import compare_results
from utils.options import make_parser
from utils.report import format_table


def main():
    parser = make_parser(__doc__)
    parser.add_argument("results", nargs="+", metavar="FILE", help="evaluation_*.json files")
    rows = compare_results(parser.parse_args().results)
    metrics = list(dict.fromkeys(name for _, name, _, _ in rows))
    cells = {(file, name): f"{mean:.4f} +- {interval:.4f}" for file, name, mean, interval in rows}
    files = list(dict.fromkeys(file for file, *_ in rows))
    print(format_table([(file, *(cells.get((file, name), "-") for name in metrics)) for file in files],
                       ("result", *metrics)))


if __name__ == "__main__":
    run(main)
