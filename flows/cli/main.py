"""`truing VERB …`: one verb per flow or human act. Exit 0 done, 1 broken, 2 usage, 3 refused, 130 interrupted.

Nothing heavy is imported here: `truing --help` answers in a tenth of a second, and a verb imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as installed
from pathlib import Path

from truing.flows.cli import (
    acts,
    contract,
    dlq,
    events,
    forget,
    gate,
    keys,
    lineage,
    proofs,
    repair,
    review,
    running,
    runs,
    starting,
    windows,
)
from truing.flows.cli.output import flat, note
from truing.tasks.errors import TruingError

EPILOG = """Settings come from the command line, TRUING_* variables, truing.toml, then defaults.
Every verb takes --json and --data. Exit: 0 done, 1 broken, 2 usage, 3 refused."""


def parser() -> argparse.ArgumentParser:
    """The whole command line. Each module below adds its verbs with the function that runs them."""
    top = argparse.ArgumentParser(
        prog="truing",
        description="Keep a deployed model true while it spins.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"truing {installed('truing')}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_argument("--data", type=Path, metavar="FOLDER", help="data folder (default: .truing, or TRUING_DATA)")
    common.add_argument("--problems", type=Path, metavar="FOLDER", help="folder of problems (default: problems)")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    data = (events, contract, dlq, windows, forget)
    for group in (starting, running, *data, runs, acts, gate, review, lineage, repair, proofs, keys):
        group.add(verbs, common)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    given = parser()
    args = given.parse_args(argv)
    if args.verb is None:
        given.print_help()
        return 2
    try:
        from truing.infra import settings as face

        face.quiet()
        chosen = {name: value for name in ("data", "problems") if (value := getattr(args, name, None)) is not None}
        settings = face.load(**chosen)
        if args.verb != "up":
            from truing.infra.running import as_running

            settings = as_running(settings)
        return int(args.do(args, settings) or 0)
    except TruingError as error:
        note(flat(f"truing {args.verb}: {error}"))
        return error.exit_code
    except KeyboardInterrupt:
        note(f"truing {args.verb}: interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `truing status | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
