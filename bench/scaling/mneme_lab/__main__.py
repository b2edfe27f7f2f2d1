# SPDX-License-Identifier: Apache-2.0
"""The command line of mneme-lab."""
from __future__ import annotations

import argparse
import os
import pathlib
import sys

from mneme_lab import grid, program, results, runner

ROOT = pathlib.Path(__file__).resolve().parents[3]
DEPS = pathlib.Path(os.environ.get("MNEME_DEPS", ROOT / ".deps"))


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("run", help="measure the cells of a grid that have no result yet")
    command.add_argument("grid", type=pathlib.Path, help="grid file (TOML)")
    command.add_argument("--out", type=pathlib.Path, help="folder of the results; default: build/lab/NAME of the grid")
    command.add_argument("--program", type=pathlib.Path, default=ROOT / "build/release/hosts/llamacpp/mneme-llama")
    command.add_argument("--models", type=pathlib.Path, default=DEPS / "models", help="folder of the models")
    command.add_argument("--texts", type=pathlib.Path, default=DEPS / "text", help="folder of the texts")
    command.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of one mneme-llama")
    command.add_argument("--jobs", type=int, default=1, help="cells measured at the same time")
    command.add_argument("--minutes", type=float, help="begin nothing more after so many minutes; run again to go on")
    command.add_argument("--keep-states", action="store_true", help="keep the stores that the text was taken into")
    command.set_defaults(function=_run)


def _run(arguments: argparse.Namespace) -> int:
    cells = grid.read(arguments.grid)
    out = arguments.out or ROOT / "build/lab" / cells.name
    llama = program.Program(arguments.program, arguments.models, arguments.texts, arguments.threads)
    left = runner.Run(cells, llama, results.Results(out), minutes=arguments.minutes, jobs=arguments.jobs,
                      keep_states=arguments.keep_states).run()
    print(f"{out}: {len(cells.cells) - left} of {len(cells.cells)} cells are measured")
    return 0 if left == 0 else 75  # EX_TEMPFAIL: run again


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("report", help="write report.html and its plots from the results in a folder")
    command.add_argument("folder", type=pathlib.Path, help="folder of the results")
    command.set_defaults(function=_report)


def _report(arguments: argparse.Namespace) -> int:
    from mneme_lab import report  # matplotlib takes a second, which `run` does not need

    print(report.write(results.Results(arguments.folder)))
    return 0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mneme-lab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_report(commands)
    arguments = parser.parse_args(words)
    try:
        return int(arguments.function(arguments))
    except (grid.GridError, program.ProgramError, ValueError, OSError) as error:
        print(f"mneme-lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
