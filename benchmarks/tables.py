"""A table of a benchmark as a file: results/tables/NAME.json holds the figures of every run in it.

A benchmark with the option --record NAME writes it, and `python benchmarks/scores.py tables` puts
it below <!-- benchmarks/scores.py NAME --> in a page of docs/, so that no figure is copied by hand.
Machine and date in the file are those of its writing: give --record with an --out that is empty, or
has only runs of the same machine, scripts and options.
"""

import argparse
import datetime
import json
import re
import shlex
import sys

import torch
from speedrun import ROOT, numerics_of
from throughput import describe_machine, print_cells, show

FOLDER = ROOT / "results" / "tables"


def table_name(text: str) -> str:
    """A name for a file and for a line of a page. Raises ArgumentTypeError for any other."""
    if not re.fullmatch(r"\w+", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} has other characters than letters, digits and _"
        )
    return text


def add_record_option(parser: argparse.ArgumentParser) -> None:
    text = "write the figures of each run to results/tables/NAME.json"
    parser.add_argument("--record", type=table_name, metavar="NAME", help=text)


def to_cells(runs: list[dict[str, float]], columns: dict[str, int]) -> list[str]:
    """Mean and range of each column over the runs, with so many digits; - if no run has it."""
    texts = []
    for column, digits in columns.items():
        values = [run[column] for run in runs if column in run]
        texts.append(show(values, digits) if values else "-")
    return texts


class Table:
    """A table that is printed row by row.

    columns: the names of the figures, with how many digits each has. head: the rows' own column.
    """

    def __init__(self, columns: dict[str, int], head: str = "") -> None:
        self.columns = columns
        self.head = head
        self.scripts = set()
        self.rows = []
        print_cells(head, *columns)
        print_cells(*["---"] * (len(columns) + 1))

    def add(self, name: str, script: str | None, runs: list[dict[str, float]]) -> None:
        """A row: the mean of each column over these runs of a script (None: no script's).

        A run may lack columns. One that has broken has a Frechet distance of inf and no other.
        """
        if script:
            self.scripts.add(script)

        def figures_of(run: dict[str, float]) -> dict[str, float]:
            return {key: float(f"{run[key]:.6g}") for key in self.columns if key in run}

        kept = [figures_of(run) for run in runs]
        self.rows.append({"name": name, "runs": kept})
        print_cells(name, *to_cells(kept, self.columns))

    def record(
        self, name: str | None, program: str, argv: list[str] | None, cuda: bool = False
    ) -> None:
        """Writes the figures of each run, and how and where they were measured.

        name: None writes nothing. program: toys.py, for example; argv: None is sys.argv's.
        """
        if name is None:
            return
        words = sys.argv[1:] if argv is None else argv
        found = {
            "command": shlex.join(["python", f"benchmarks/{program}", *words]),
            "machine": describe_machine(cuda),
            "torch": torch.__version__,
            "date": str(datetime.date.today()),
            "numerics": {script: numerics_of(script) for script in sorted(self.scripts)},
            "head": self.head,
            "columns": self.columns,
            "rows": self.rows,
        }
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def load_table(name: str) -> dict:
    """What --record NAME has written."""
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
