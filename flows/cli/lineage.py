"""`truing lineage`: where each version came from, what became of it and for whom; and two questions about it.

truing lineage --actor X         which released versions learned from X?
truing lineage --between 7 9     what changed between v7 and v9, for whom?
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from truing.flows.cli.output import result, table

if TYPE_CHECKING:
    from truing.infra.past import Past
    from truing.infra.settings import Settings
    from truing.tasks.policy import Policy
    from truing.tasks.problem import Problem
    from truing.tasks.release.lineage import Family, Member

DAY = "%Y-%m-%d %H:%M"


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    lineage = verbs.add_parser("lineage", parents=[common], help="every version: parent, gap between groups, verdict, release")
    lineage.add_argument("--problem", help="which problem (default: the only one)")
    lineage.add_argument("--gap", metavar="GROUP:METRIC", help="which gap is shown, as sex:tpr (default: the policy's first)")
    lineage.add_argument("--svg", type=Path, metavar="FILE", help="write the picture there")
    lineage.add_argument("--html", type=Path, metavar="FILE", help="write a page there")
    asked = lineage.add_mutually_exclusive_group()
    asked.add_argument("--actor", metavar="WHO", help="which versions learned from this person (plain id or keyed hash)?")
    asked.add_argument("--between", nargs=2, metavar=("OLD", "NEW"), help="what changed between two versions, for whom?")
    lineage.add_argument("--as", dest="user", metavar="NAME", help="your login, where files can't be read (default: yours)")
    lineage.set_defaults(do=do_lineage)


def do_lineage(args: argparse.Namespace, settings: Settings) -> int:
    from truing.flows.cli.lineage_questions import actor, between
    from truing.infra.catalog import chosen
    from truing.infra.past import past

    problem, policy = chosen(settings.problems, args.problem)
    known = past(settings, problem.name, user=args.user)
    found = read_family(settings, problem, policy, known, wanted=_wanted(args.gap, problem))
    if args.actor is not None:
        return actor(args, settings, problem, found)
    if args.between is not None:
        return between(args, settings, found, known)
    written = _written(args, found)
    text = "\n".join([_text(found), *(f"written: {path}" for path in written)])
    result(msgspec.to_builtins(found), text, as_json=args.json)
    return 0


def read_family(
    settings: Settings, problem: Problem, policy: Policy, known: Past, *, wanted: tuple[str, str] | None = None
) -> Family:
    """The family as audit, book, verdicts and lake tell it."""
    from truing.tasks.errors import TruingError
    from truing.tasks.records import DatasetVersion
    from truing.tasks.release.lineage import family
    from truing.tasks.tables.lake import Lake

    notes = list(known.notes)
    datasets: dict[str, DatasetVersion] = {}
    try:
        lake = Lake(settings.lake)
        datasets = {one.digest: one for one in lake.records("datasets", DatasetVersion, problem=problem.name)}
    except TruingError as error:
        notes.append(f"What each version learned from does not read here: {error}")
    return family(
        problem, policy, known.docket, known.releases,
        verdicts=known.verdicts, evaluations=known.evaluations, candidates=known.candidates, vouched=known.vouched,
        datasets=datasets, asked=known.asked, wanted=wanted, notes=notes,
    )  # fmt: skip


def _wanted(given: str | None, problem: Problem) -> tuple[str, str] | None:
    from truing.tasks.errors import UsageError
    from truing.tasks.evaluation.gaps import GAP_METRICS

    if given is None:
        return None
    group, _, metric = given.partition(":")
    if group not in problem.groups or metric not in GAP_METRICS:
        raise UsageError(
            f"--gap: expected a group of {', '.join(problem.groups)} and a metric of {', '.join(GAP_METRICS)} as "
            f"{next(iter(problem.groups), 'group')}:tpr, got {given!r}; name one"
        )
    return group, metric


def _written(args: argparse.Namespace, found: Family) -> list[Path]:
    from truing.tasks.errors import Unavailable
    from truing.tasks.release.lineage_page import family_html, picture_file

    written = []
    for path, page in ((args.svg, False), (args.html, True)):
        if path is None:
            continue
        text = family_html(found, now=time.time()) if page else picture_file(found)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise Unavailable(f"{path}: expected to write it, got: {error.strerror}; name another file") from None
        written.append(path)
    return written


# --- text ---------------------------------------------------------------------------------------------------------------------


def _text(found: Family) -> str:
    from truing.tasks.evaluation.wording import SPOKEN
    from truing.tasks.release.lineage import BLOCKED

    if not found.members:
        return f"{found.problem}: no version yet"
    gap = next((known for one in reversed(found.members) if (known := one.gap(found.wanted))), None)
    group, metric = found.wanted
    named = f"{SPOKEN[metric]} by {group}" + (f", {gap.over} over {gap.under}" if gap else "") + ", in points"
    head = (
        "version",
        "from",
        "learner",
        "rows",
        "verdict",
        "gap",
        "parent",
        "anchor",
        "importance",
        "decision",
        "releases",
        "",
    )
    lines = [
        f"{found.problem}: {len(found.members)} versions, {len(found.served)} releases" + (", frozen" if found.frozen else ""),
        table(head, [_row(one, found) for one in found.members]),
        f"gap: {named}, with its 95 % interval; parent, anchor: how this version changes it against them on the same rows.",
    ]
    blocked = [one for one in found.members if one.state == BLOCKED]
    if blocked:
        lines += ["", "Blocked:", *(f"  v{one.version}: {one.reason}" for one in blocked)]
    if found.served:
        shown = [
            (
                one.sequence,
                f"v{one.version}",
                one.cause,
                time.strftime(DAY, time.gmtime(one.at)),
                " and ".join(one.by),
                one.reason,
            )
            for one in found.served
        ]
        lines += ["", table(("release", "version", "cause", "since (UTC)", "by", "why"), shown)]
    return "\n".join([*lines, *found.notes])


def _learner(one: Member) -> str | None:
    """`?` marks the trainer's own word that nobody has judged yet."""
    word = f"repairs v{one.repairs}" if one.repairs else one.origin
    return (word if one.vouched else f"{word}?") if word else None


def _row(one: Member, found: Family) -> tuple[Any, ...]:
    from truing.tasks.evaluation.wording import amount
    from truing.tasks.release.lineage import SERVES
    from truing.tasks.release.lineage_axis import interval

    gap = one.gap(found.wanted)
    changes = (gap.against_parent.value, gap.against_anchor.value) if gap else (None, None)
    last = one.words[-1] if one.words else None
    marks = [name for name, holds in (("serves", one.state == SERVES), ("anchor", one.anchor)) if holds]
    return (
        f"v{one.version}",
        f"v{one.parent}" if one.parent else None,
        _learner(one),
        f"{one.rows:,}" if one.rows else None,
        one.outcome,
        interval(gap.gap) if gap else None,
        None if changes[0] is None or one.parent is None else amount(changes[0], "tpr", signed=True),
        None if changes[1] is None or one.anchor else amount(changes[1], "tpr", signed=True),
        None if one.importance_shift is None else f"{one.importance_shift:.1%}",
        f"{last.decision} by {' and '.join(last.by)}" if last else None,
        ", ".join(str(each.sequence) for each in one.served) or None,
        ", ".join(marks),
    )
