"""Which options are worth it? Trains rows of options at an equal budget over seeds, and compares them.

    python scripts/ablate.py FOLDER --table cells --out ablations/cells
    python scripts/ablate.py FOLDER --time 4m --seeds 2 --out ablations/mine \\
        --row gru --row "lstm: model.rnn=lstm" --row "no h0: model.learn_h0=false"

Tables are defined in configs/ablations.yaml, or in a file of your own (--tables). OUT gets ablation.md, .csv
and .png after every run. Interrupted in any way, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from samplernn import signals
from samplernn.cli import Parser
from samplernn.config import UserError, merged
from samplernn.insight.ablation.study import Stopped, Study
from samplernn.insight.ablation.tables import Table, define, parse_assignment, parse_row, read_file

TABLES = Path(__file__).parents[1] / "configs" / "ablations.yaml"


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 1: a run failed; 2: a mistake of the user's; 128 + number of a signal."""
    signals.exit_when_asked()
    try:
        options = _parser().parse_args(argv)
        study = Study(_table(options), options.folder, options.out)
        if options.dry_run:
            print("\n".join(study.plan()))
            return 0
        file = study.run(options.redo)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"stopped by {stopped}; the same command goes on", file=sys.stderr)
        return 128 + stopped.signal_number
    print(file.read_text("utf-8"))
    print(f"table and picture: {file.with_suffix('')}.{{md,csv,png}}", file=sys.stderr)
    return 1 if study.failures() else 0


def _parser() -> Parser:
    parser = Parser(
        prog="ablate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="of audio")
    parser.add_argument(
        "--out", default="ablation", help="folder of the study, made if absent (default: ablation)"
    )
    what = parser.add_argument_group("what")
    what.add_argument("--table", metavar="NAME", help="one of those in --tables")
    what.add_argument(
        "--tables", metavar="FILE", type=Path, default=TABLES, help="default: configs/ablations.yaml"
    )
    what.add_argument(
        "--row", action="append", default=[], metavar="'LABEL: KEY=VALUE …'", help="one more row"
    )
    what.add_argument(
        "--grid", action="append", default=[], metavar="KEY=[VALUE,…]", help="rows for all values, or KEY=all"
    )
    what.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of all rows")
    what.add_argument("--config", help="what rows differ from: a preset or a file (default: small)")
    budget = what.add_mutually_exclusive_group()
    budget.add_argument("--time", help="of training per run, such as 4m or 90s (default: 4m)")
    budget.add_argument("--steps", type=int, help="per run, instead")
    what.add_argument("--seeds", type=int, help="how many (default: 1; more may follow later)")
    how = parser.add_argument_group("how")
    how.add_argument("--dry-run", action="store_true", help="only list the runs")
    how.add_argument(
        "--redo", action="store_true", help="run again what is defined otherwise now, or has failed"
    )
    how.add_argument("--insist", action="store_true", help="compare what does not compare, with a warning")
    return parser


def _table(options: argparse.Namespace) -> Table:
    """The table of a file, with what was typed. Raises UserError."""
    definition: dict[str, Any] = {}
    if options.table is not None or not (options.row or options.grid):
        tables = read_file(options.tables)
        name = options.table or (next(iter(tables)) if len(tables) == 1 else None)
        if name not in tables:
            wanted = "name a --table, or give a --row" if name is None else f"--table {name}: no such table"
            raise UserError(f"{wanted}; {options.tables} has: {', '.join(tables)}")
        definition = tables[name]
    elif options.tables != TABLES:
        raise UserError("--tables: name one of its tables with --table")
    typed: dict[str, Any] = {
        "config": options.config,
        "budget": options.time or (None if options.steps is None else f"{options.steps} steps"),
        "seeds": options.seeds,
        "options": dict(parse_assignment(text, "--set") for text in options.set),
        "rows": {},
        "grid": dict(parse_assignment(text, "--grid") for text in options.grid),
    }
    for text in options.row:
        label, changes = parse_row(text)
        if label in typed["rows"]:
            raise UserError(f"--row {text}: another row is called so, too")
        typed["rows"][label] = changes
    given = {key: value for key, value in typed.items() if value not in (None, {})}
    return define(merged(definition, given), options.insist)


if __name__ == "__main__":
    sys.exit(main())
