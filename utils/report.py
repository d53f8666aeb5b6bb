"""Results: tables for the screen, JSON for the disk."""
import json
import math
import time
from pathlib import Path

from utils.errors import is_first
from utils.files import write_text


def format_table(rows, header, left=None):
    """A plain aligned table of strings: the first ``left`` columns (None: all) to the left, the others to the
    right."""
    cells = [list(map(str, row)) for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    aligned = [[cell.ljust(width) if left is None or i < left else cell.rjust(width) for i, (cell, width)
                in enumerate(zip(row, widths))] for row in cells]
    lines = ["  ".join(row).rstrip() for row in aligned]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_results(folder, name, results, table):
    """Print a table, append it to eval.log, and write the dict to <name>.json (atomically), both under
    ``folder``; once for all processes."""
    if not is_first():
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    print(table)
    with open(folder / "eval.log", "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {name}\n{table}\n\n")
    write_json(folder / f"{name}.json", results)


def finite_or_none(value):
    """A copy of plain values, nested in any way, with None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path, value):
    """Write JSON, whole or not at all. JSON has no NaN or infinity: they are written as null."""
    write_text(path, json.dumps(finite_or_none(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def markdown_table(header, rows):
    """Lines of a Markdown table of strings."""
    return ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
