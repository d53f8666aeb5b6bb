"""Results: tables for the screen, JSON for the disk."""
import json
import math
import time
from pathlib import Path

from utils.errors import is_first
from utils.files import write_text


def format_table(rows, header, left=None):
    """A plain-text table; the first ``left`` columns (None: all) are left-aligned, the rest right-aligned."""
    cells = [list(map(str, row)) for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(cell.ljust(width) if left is None or i < left else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(header, rows):
    """Lines of a Markdown table of strings."""
    return ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]


def write_results(folder, name, results, table):
    """Print a table, append it to FOLDER/eval.log, write FOLDER/NAME.json, or NAME_SPLIT.json of another
    split than the test's; in the first process only."""
    if not is_first():
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = of_split(name, results)
    print(table)
    with open(folder / "eval.log", "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {name}\n{table}\n\n")
    write_json(folder / f"{name}.json", results)


def of_split(name, results):
    """The name of a file with results of a split: ``name``, or name_SPLIT of another than the test's."""
    split = results.get("split") or "test"
    return name if split == "test" else f"{name}_{split}"


def write_json(path, value):
    """Write JSON, completely or not at all. JSON has no NaN or infinity: they become null."""
    write_text(path, json.dumps(finite_or_none(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def finite_or_none(value):
    """A copy of nested plain values in which numbers that are not finite are None."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
