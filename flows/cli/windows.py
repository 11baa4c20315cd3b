"""`truing windows list | show | again`: what validation said of the rows that landed, window by window."""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from truing.flows.cli.output import ago, note, result, table
from truing.tasks.errors import DataError, Unavailable, UsageError

if TYPE_CHECKING:
    from truing.infra.settings import Settings
    from truing.tasks.validation.expectations import WindowReport


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    windows = verbs.add_parser("windows", parents=[common], help="what validation said of landed rows, window by window")
    acts = windows.add_subparsers(dest="act", metavar="ACT", title="acts", required=True)
    inner = copy.deepcopy(common)
    for action in inner._actions:  # given before the act, an option counts as well: no default of the act's overwrites it
        action.default = argparse.SUPPRESS
    inner.add_argument("--problem", help="which problem (default: the only one)")

    listed = acts.add_parser("list", parents=[inner], help="the newest windows and why they are in or out")
    listed.add_argument("--rejected", action="store_true", help="only windows that are out, or have rows that are")
    listed.add_argument("--limit", type=int, default=20, metavar="N", help="the newest N (default: 20)")
    listed.set_defaults(do=do_list)

    show = acts.add_parser("show", parents=[inner], help="all judgements of one window; the latest counts")
    show.add_argument("window", help="as `list` shows it")
    show.add_argument("--html", type=Path, metavar="FILE", help="write the latest as a page of its own too")
    show.set_defaults(do=do_show)

    again = acts.add_parser(
        "again", parents=[inner], help="judge windows again under today's suite",
        description="Without a name: those that left rows out under another suite than today's, as `truing curate` does by "
        "itself. Both judgements stay in the record, and the latest counts.",
    )  # fmt: skip
    again.add_argument("windows", nargs="*", metavar="WINDOW", help="as `list` shows it")
    again.set_defaults(do=do_again)


def do_list(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.catalog import chosen
    from truing.tasks.tables.lake import Lake
    from truing.tasks.validation.suite import reports

    problem, _ = chosen(settings.problems, args.problem)
    if args.limit < 1:
        raise UsageError(f"windows list: expected --limit of at least 1, got {args.limit}; give a number of windows")
    known = reports(Lake(settings.lake), problem.name)
    out = [one for one in known if not one.success]
    shown = [one for one in known if not args.rejected or one.failed or not one.success][-args.limit :]
    now = time.time()
    lines = [
        [
            one.id.partition(":")[2],
            "in" if one.success else "out",
            one.rows,
            len(one.failed),
            ago(one.at, now),
            one.reason or None,
        ]
        for one in shown
    ]
    text = (
        f"{problem.name}: {len(known)} windows judged, {len(out)} rejected, {sum(len(one.failed) for one in known)} rows alone"
    )
    if lines:
        text += "\n" + table(["window", "is", "rows", "alone", "judged", "because"], lines)
    found = {"problem": problem.name, "judged": len(known), "rejected": len(out), "windows": [_plain(one) for one in shown]}
    result(found, text, as_json=args.json)
    return 0


def do_show(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.catalog import chosen
    from truing.tasks.tables.lake import Lake
    from truing.tasks.validation.suite import judgements
    from truing.tasks.validation.window_page import page, summary

    problem, _ = chosen(settings.problems, args.problem)
    name = _name(problem.name, args.window)
    found = judgements(Lake(settings.lake), problem.name, name)
    if not found:
        raise DataError(f"expected a judged window of {problem.name}, got {args.window!r}; see `truing windows list`")
    if args.html is not None:
        try:
            args.html.write_text(page(found[-1], found[:-1]))
        except OSError as error:
            raise Unavailable(f"{args.html}: can't be written ({error.strerror}); name another file") from None
        note(f"written: {args.html}")
    text = "\n".join(summary(one) for one in reversed(found))
    result({"window": name, "judgements": [_plain(one) for one in found]}, text, as_json=args.json)
    return 0


def do_again(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.catalog import chosen
    from truing.tasks.tables.lake import Lake
    from truing.tasks.validation.expectations import Validator
    from truing.tasks.validation.suite import judge_again, to_judge_again

    problem, _ = chosen(settings.problems, args.problem)
    lake, folder = Lake(settings.lake), settings.problems / problem.name
    named = [_name(problem.name, one) for one in args.windows]
    names = named or [one.id for one in to_judge_again(lake, problem, folder=folder)]
    validator = Validator() if names else None
    made = [judge_again(lake, problem, one, folder=folder, now=time.time(), validator=validator) for one in names]
    lines = [f"{one.id}: {'in' if one.success else f'out: {one.reason}'}, {len(one.failed)} rows alone" for one in made]
    text = "\n".join(lines) or "no window left rows out under another suite than today's"
    result({"problem": problem.name, "windows": [_plain(one) for one in made]}, text, as_json=args.json)
    return 0


def _name(problem: str, given: str) -> str:
    return given if given.startswith(f"{problem}:") else f"{problem}:{given}"


def _plain(one: WindowReport) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(one)
    return found
