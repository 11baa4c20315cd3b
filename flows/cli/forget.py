"""`truing forget`: what a person left behind becomes unreadable, goes, and is signed for."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import ahead, note, result, span, table

if TYPE_CHECKING:
    from truing.flows.erase import Act, Erasure
    from truing.infra.settings import Settings


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    forget = verbs.add_parser(
        "forget", parents=[common], help="destroy a person's keys, delete what they left, name the models that learned from it"
    )
    whom = forget.add_mutually_exclusive_group(required=True)
    whom.add_argument(
        "--subject", metavar="NAME", help="all about this person, and all they said (- reads the name from stdin)"
    )
    whom.add_argument("--actor", metavar="NAME", help="what this person said of others (- reads the name from stdin)")
    whom.add_argument("--list", action="store_true", help="what was forgotten, as it was signed")
    forget.add_argument("--problem", help="only there (default: in all problems)")
    forget.add_argument("--reason", default="", help="why: a request, a law, an error")
    forget.add_argument(
        "--as", dest="user", metavar="NAME", help="your login (default: the first approver's that you can read)"
    )
    forget.add_argument("--dry-run", action="store_true", help="say what would go, and change nothing")
    forget.set_defaults(do=do_forget)


def do_forget(args: argparse.Namespace, settings: Settings) -> int:
    """First ends what an earlier call began and could not end."""
    import msgspec

    from truing.flows.erase import Act, finish, step
    from truing.infra.catalog import catalog
    from truing.tasks.errors import UsageError

    if args.list:
        return show(args, settings)
    if not args.dry_run and not args.reason.strip():
        raise UsageError("forget: expected --reason, got none; say why")
    if args.problem and args.problem not in catalog(settings.problems):
        raise UsageError(f"--problem: expected one of {', '.join(catalog(settings.problems))}, got {args.problem!r}; name one")
    name = args.subject or args.actor
    name = sys.stdin.readline().rstrip("\n") if name == "-" else name
    if not name:
        raise UsageError("forget: expected a name, got none; name the person as the applications do")
    by, now = _person(settings, args.user), time.time()
    if not args.dry_run:
        for left in msgspec.json.decode(step(settings, "acts", {"now": now}), type=list[Act]):
            if left.stage != "told":
                finish(settings, left, now=now)
    given = {
        "name": name, "kind": "subject" if args.subject else "actor", "by": by, "reason": args.reason, "now": now,
        "problem": args.problem, "keep": not args.dry_run,
    }  # fmt: skip
    act = msgspec.json.decode(step(settings, "prepare", given), type=Act)
    if args.dry_run:
        result(_found(act), _would(act), as_json=args.json)
        return 0
    said = finish(settings, act, now=now)
    result(msgspec.to_builtins(said), _told(said, now), as_json=args.json)
    return 0


def _person(settings: Settings, user: str | None) -> str:
    """Whose act this is: a login whose password this user can read. Raises Unavailable."""
    from truing.infra.keys import keyring
    from truing.tasks.errors import Unavailable

    first: Unavailable | None = None
    for login in [user] if user else settings.approvers:
        try:
            keyring(settings).password(login)
            return login
        except Unavailable as error:
            first = first or error
    raise first or Unavailable("expected a login, got none; run `truing keys list`")


def _found(act: Act) -> dict[str, Any]:
    return {
        one.problem: {
            "events": len(one.events), "dead_letters": len(one.dead), "rows": len(one.rows), "rejoined": len(one.touched),
            "datasets": one.datasets,
        }
        for one in act.traces
    }  # fmt: skip


def _would(act: Act) -> str:
    lines = [
        (one.problem, len(one.events), len(one.dead), len(one.rows), len(one.touched), len(one.datasets)) for one in act.traces
    ]
    head = ("problem", "events", "dead letters", "rows", "rows of others that lose words", "datasets")
    return table(head, lines) + "\nnothing was changed"


def _told(said: Erasure, now: float) -> str:
    if not said.people:
        return f"nothing is known of this person; signed as {said.id}"
    counts = said.counts
    lines = [
        f"forgotten: {counts.get('landing', 0)} events, {counts.get('dead', 0)} dead letters, "
        f"{counts.get('rows', 0) + counts.get('holdout', 0)} states of rows, {counts.get('samples', 0)} samples; "
        f"{counts.get('rejoined', 0)} rows of others rejoined without the words; keys destroyed",
        f"data files that held them: gone {ahead(said.files_gone_by, now)}",
        "outbox of the gateway: " + ("empty" if said.outbox_gone_by <= now else f"gone {ahead(said.outbox_gone_by, now)}"),
    ]
    for topic, at in said.topics.items():
        when = "unknown: ask the broker" if at is None else "gone" if at <= now else f"last byte gone {ahead(at, now)}"
        lines.append(f"topic {topic}: {when}")
    for one in said.versions:
        state = "serves" if one.serving else "was released" if one.released else "was registered"
        how = f"{one.samples} of their samples" if one.samples else "its parent learned from them"
        lines.append(f"{one.problem} version {one.version} ({state}): {how}; retrain within {span(one.retrain_by - now)}")
    lines += [f"note: {text}" for text in said.notes]
    return "\n".join([*lines, f"signed as {said.id}"])


def show(args: argparse.Namespace, settings: Settings) -> int:
    import msgspec

    from truing.flows.erase import erasures

    found = [one for one in erasures(settings) if not args.problem or args.problem in one.people]
    lines = [
        (
            one.id[:12], time.strftime("%Y-%m-%d %H:%M", time.gmtime(one.at)), one.kind, one.by,
            ", ".join(sorted(one.people)) or "nothing found", one.counts.get("landing", 0),
            ", ".join(f"{held.problem} v{held.version}" for held in one.versions), one.reason,
        )
        for one in found
    ]  # fmt: skip
    head = ("id", "at (UTC)", "kind", "by", "problems", "events", "versions to retrain", "reason")
    result(msgspec.to_builtins(found), table(head, lines), as_json=args.json)
    if not found:
        note("nobody was forgotten here")
    return 0
