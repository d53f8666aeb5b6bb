"""Results of several runs in one table; refuses metrics that cannot be compared (of another protocol, data
set, split or evaluator).

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
    files, metrics = (list(dict.fromkeys(row[i] for row in rows)) for i in (0, 1))
    cells = {(file, name): f"{mean:.4f} +- {interval:.4f}" for file, name, mean, interval in rows}
    print(format_table([(file, *(cells.get((file, name), "-") for name in metrics)) for file in files],
                       ("result", *metrics)))


if __name__ == "__main__":
    run(main)
