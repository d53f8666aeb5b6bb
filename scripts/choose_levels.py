"""FSQ levels for a wanted number of codes: the sets that the FSQ paper recommends (Mentzer et al. 2023, arXiv
2309.15505, table 1), those of the model zoo, and for every number of dimensions the set that comes nearest.

    python -m scripts.choose_levels                       # the recommended sets
    python -m scripts.choose_levels --codes 4096
    python -m scripts.choose_levels --bits 16 --dims 6
    python -m scripts.choose_levels --bits 51 --odd --most 9      # for iFSQ, whose levels are odd
    python -m scripts.choose_levels --dims 6              # six dimensions: known sets, and powers of two

Prints levels, dimensions, the exact number of codes (the product of the levels), bits per token (its binary
logarithm), how far that is from what was asked for, and how to train with the first set. Up to 12 dimensions
a set has at most three different numbers of levels, beyond that at most two.
"""
import math
from bisect import bisect_left
from functools import cache
from itertools import combinations, pairwise
from typing import NamedTuple

from models.AE import FSQ_LEVELS
from utils import options
from utils.errors import UserError, run
from utils.options import positive_float, positive_int
from utils.report import format_table

RECOMMENDED = {8: (8, 6, 5), 10: (8, 5, 5, 5), 12: (7, 5, 5, 5, 5), 14: (8, 8, 8, 6, 5),
               16: (8, 8, 8, 5, 5, 5)}  # of the paper: {bits: levels}
CLOSE = 1.0  # bits: known sets that are farther from the wanted number are left out
DIMS, LEVELS = 256, 33  # most that can be asked for
WIDE = 12  # sets of more dimensions are searched coarsely
LISTED = 12  # dimensions written out in a table


class Choice(NamedTuple):
    """levels, in descending order; source: who recommends them, or the zoo's name; "" = found by search."""

    levels: tuple
    source: str = ""

    @property
    def codes(self):
        return math.prod(self.levels)

    @property
    def bits(self):
        return math.log2(self.codes)


def parse_args():
    parser = options.make_parser(__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--codes", type=positive_int, default=None, help="wanted number of codes")
    size.add_argument("--bits", type=positive_float, default=None,
                      help="wanted bits per token: 2^bits codes")
    add = parser.add_argument
    add("--dims", type=options.number(int, 1, DIMS), default=None,
        help="number of dimensions; default: all with which the number of codes can be had")
    add("--odd", action="store_true", help="odd levels alone, as iFSQ needs")
    add("--least", type=options.number(int, 2, LEVELS), default=5,
        help="fewest levels of a dimension; the paper advises 5 or more")
    add("--most", type=options.number(int, 2, LEVELS), default=8, help="most levels of a dimension")
    add("--show", type=positive_int, default=12, help="most sets found by search to list")
    return parser.parse_args()


def allowed_levels(args):
    """The numbers of levels that a dimension may have, ascending. UserError if there are none."""
    found = tuple(level for level in range(args.least, args.most + 1) if level % 2 or not args.odd)
    if not found:
        raise UserError(f"no {'odd ' * args.odd}number of levels lies in --least {args.least} .. --most "
                        f"{args.most}")
    return found


@cache
def level_sets(dims, allowed):
    """[(bits, values, counts)], ascending, of the sets of ``dims`` levels with few different values (see the
    module's docstring): counts[i] dimensions of values[i] levels. Of sets with equally many codes the one
    with the fewest values comes first."""
    logarithm, found = {level: math.log2(level) for level in allowed}, []
    for kinds in range(1, min(dims, len(allowed), 3 if dims <= WIDE else 2) + 1):
        cuts = [(0, *inner, dims) for inner in combinations(range(1, dims), kinds - 1)]
        counts = [tuple(after - before for before, after in pairwise(cut)) for cut in cuts]
        for values in combinations(reversed(allowed), kinds):
            bits = [sum(logarithm[value] * count for value, count in zip(values, part)) for part in counts]
            found += [(round(total, 9), values, part) for total, part in zip(bits, counts)]
    return sorted(found, key=lambda item: (item[0], len(item[1])))


def nearest_set(dims, bits, allowed):
    """The Choice of ``dims`` dimensions whose bits come nearest; of two equally near that of fewer codes.
    None where even the smallest or the largest set is more than CLOSE away."""
    if not dims * math.log2(allowed[0]) - CLOSE <= bits <= dims * math.log2(allowed[-1]) + CLOSE:
        return None
    sets = level_sets(dims, allowed)
    above = min(bisect_left(sets, (round(bits, 9),)), len(sets) - 1)
    _, values, counts = min(sets[max(0, above - 1) : above + 1], key=lambda item: abs(item[0] - bits))
    return Choice(tuple(value for value, count in zip(values, counts) for _ in range(count)))


def known_sets(fits):
    """The Choices of the paper, then those of the zoo, that ``fits`` accepts; a set is listed once."""
    named = {levels: name for name, levels in FSQ_LEVELS.items()}
    paper = [Choice(levels, "; ".join(filter(None, (f"FSQ paper, 2^{bits}", named.get(levels)))))
             for bits, levels in RECOMMENDED.items()]
    zoo = [Choice(levels, name) for levels, name in named.items() if levels not in RECOMMENDED.values()]
    return [choice for choice in paper + zoo if fits(choice)]


def choose(args):
    """The Choices to list, and the wanted bits (None without a wanted number). UserError where the number
    cannot be had."""
    allowed = allowed_levels(args)
    bits = math.log2(args.codes) if args.codes else args.bits

    def fits(choice):
        return (set(choice.levels) <= set(allowed) and args.dims in (None, len(choice.levels))
                and (bits is None or abs(choice.bits - bits) <= CLOSE))

    known = known_sets(fits)
    if bits is not None:
        known.sort(key=lambda choice: ("paper" not in choice.source, abs(choice.bits - bits)))
        dims = [args.dims] if args.dims else range(1, DIMS + 1)
        found = [nearest_set(count, bits, allowed) for count in dims]
    elif args.dims:
        low, high = (args.dims * math.log2(level) for level in (allowed[0], allowed[-1]))
        found = [nearest_set(args.dims, whole, allowed) for whole in range(math.ceil(low),
                                                                           math.floor(high) + 1)]
    else:
        found = []
    listed = {choice.levels for choice in known}
    found = [choice for choice in dict.fromkeys(found) if choice and choice.levels not in listed]
    if not known and not found:
        raise UserError(why_none(args, allowed, bits))
    return known + found, bits


def why_none(args, allowed, bits):
    """What is wrong with a wanted number that no set comes near."""
    if bits is None and not args.dims:
        return (f"no set of the paper or the zoo has all its levels in {allowed[0]} to {allowed[-1]}; change "
                "--least or --most, or pass --codes, --bits or --dims to search")
    low, high = ((args.dims or 1) * math.log2(allowed[0]), (args.dims or DIMS) * math.log2(allowed[-1]))
    between = f"{args.dims or f'1 to {DIMS}'} dimensions of {allowed[0]} to {allowed[-1]} levels"
    if bits is None:
        return (f"{between} have {low:.2f} to {high:.2f} bits, without a whole number between; change "
                "--least or --most")
    return (f"{between} have {low:.1f} to {high:.1f} bits, and {bits:.1f} are wanted; change --dims, --least "
            "or --most")


def powers(levels):
    """Levels as powers: (8, 8, 5) is "8^2 x 5"."""
    counts = {level: levels.count(level) for level in levels}
    return " x ".join(f"{level}^{count}" if count > 1 else str(level) for level, count in counts.items())


def make_table(choices, bits):
    header = ["levels", "dimensions", "codes", "bits", *(["off"] if bits is not None else []), "source"]
    rows = []
    for levels, source in choices:
        choice = Choice(levels, source)
        written = " ".join(map(str, levels)) if len(levels) <= LISTED else powers(levels)
        off = [percent_off(choice.bits - bits)] if bits is not None else []
        codes = f"{choice.codes:,}" if choice.codes < 1e15 else powers(levels)
        rows.append((written, len(levels), codes, f"{choice.bits:.2f}", *off, source or "search"))
    return format_table(rows, header)


def percent_off(bits):
    """A difference in bits as one of the number of codes, in percent."""
    return f"{100 * (2**bits - 1):+.1f}%"


def usage(choice, odd):
    """How to train with a set: command lines and notes."""
    name = next((name for name, levels in FSQ_LEVELS.items() if levels == choice.levels and not odd), None)
    model = f"--model {name}" if name else (
        f"--model FSQ_AE_Model{' --quantizer ifsq' if odd else ''} --fsq_levels "
        + " ".join(map(str, choice.levels)))
    notes = [f"To train with {'the first set' if len(choice.levels) > LISTED else powers(choice.levels)}:",
             f"    python train_AE.py --name AE {model} --dataset_name demo"]
    if min(choice.levels) < 5:
        notes.append("The paper advises 5 levels or more in every dimension.")
    return "\n".join(notes)


def main():
    args = parse_args()
    choices, bits = choose(args)
    known = [choice for choice in choices if choice.source]
    found = [choice for choice in choices if not choice.source]
    print(make_table(known + found[: args.show], bits))
    if len(found) > args.show:
        upto = "" if args.dims else f", up to {len(found[-1].levels)} dimensions"
        print(f"and {len(found) - args.show} more{upto}: --show {len(found)}")
    print(f"\n{usage(choices[0], args.odd)}")


if __name__ == "__main__":
    run(main)
