"""What the soaks share: results that outlive an interruption, and their table."""
import shlex
import sys
from pathlib import Path

from utils.errors import UserError
from utils.files import read_json, write_text
from utils.report import format_table, markdown_table, write_json
from utils.training.settings import code_version, machine


def add_results(parser):
    """The flag of a Results' file."""
    parser.add_argument("--results", type=Path, default=None, metavar="FILE.json",
                        help="keep every result there, and the table beside it (.md): the same command then "
                             "goes on where it was stopped")


class Results:
    """{key: dict of plain values} of what has been run, in a file that is written after each.

    Args:
        path: of the JSON file; None: they are kept in memory alone. soak, seed: what the file must be of.
    """

    def __init__(self, path, soak, seed):
        self.path, self.seed, self.kind = path, seed, {"soak": soak, "seed": seed}
        if path is not None and path.suffix != ".json":
            raise UserError(f"--results {path}: pass the name of a .json file")
        self.found = {} if path is None or not path.is_file() else self._read()
        self.version = code_version()

    def _read(self):
        content = read_json(self.path)
        kind, found = content.get("kind"), content.get("results")
        if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
            raise UserError(f"{self.path} is damaged, or no results of a soak; pass another --results")
        if kind != self.kind:
            raise UserError(f"{self.path} has results of {kind}, not {self.kind}; pass another --results")
        return found

    def put(self, key, value):
        self.found[key] = value | {"code": self.version}
        if self.path is not None:
            write_json(self.path, {"kind": self.kind, "results": self.found})

    def publish(self, header, rows, keys):
        """Print a table, and write it beside the file with the command and what made the results ``keys``."""
        print(format_table(rows, header, left=1))
        if self.path is None:
            return
        versions = ", ".join(sorted({self.found[key]["code"] for key in keys}))
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        lines = markdown_table(header, [list(map(str, row)) for row in rows])
        write_text(self.path.with_suffix(".md"), "\n".join([
            f"`{command}`; {machine()}; code {versions}", "", *lines, ""]))
        print(f"wrote {self.path} and {self.path.with_suffix('.md').name}")
