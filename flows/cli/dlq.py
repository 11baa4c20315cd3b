"""`truing dlq list | show | replay | drop`: messages that could not be used, why, and their way back.

Lists never show content. To see an original a person says why (`--reveal --reason`); that is noted beside replays and drops.
"""

from __future__ import annotations

import argparse
import copy
import getpass
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from truing.flows.cli.output import ago, result, table
from truing.tasks.errors import DataError, ProblemError, UsageError

if TYPE_CHECKING:
    from truing.infra.settings import Settings
    from truing.tasks.events.dead import Letter
    from truing.tasks.tables.lake import Vault

SHOWN = 50


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    dlq = verbs.add_parser("dlq", parents=[common], help="dead letters: what could not be used, why, and its way back")
    acts = dlq.add_subparsers(dest="act", metavar="ACT", title="acts", required=True)
    inner = copy.deepcopy(common)
    for action in inner._actions:  # given before the act, an option counts as well: no default of the act's overwrites it
        action.default = argparse.SUPPRESS
    chosen = argparse.ArgumentParser(add_help=False, parents=[inner])
    chosen.add_argument("--because", metavar="CODE", help="only of this reason, as `list` shows it: proof.forged, inputs, …")
    chosen.add_argument("--problem", help="only of this problem")
    chosen.add_argument("--since", metavar="TIME", help="only since then: 24h, 7d, or 2026-11-23T03:40:00Z")
    person = argparse.ArgumentParser(add_help=False)
    person.add_argument("--as", dest="user", metavar="NAME", help="who does it (default: this login)")

    show_all = acts.add_parser("list", parents=[chosen], help="what is open, without content")
    show_all.add_argument("--all", action="store_true", help="those replayed and dropped too, with what became of them")
    show_all.add_argument("--limit", type=int, default=SHOWN, metavar="N", help=f"the newest N (default: {SHOWN})")
    show_all.set_defaults(do=do_list)

    show = acts.add_parser("show", parents=[inner, person], help="one letter, and what was done about it")
    show.add_argument("position", help="as `list` shows it")
    show.add_argument("--reveal", action="store_true", help="print the original too; needs --reason, and is noted")
    show.add_argument("--reason", default="", help="why you need to see it")
    show.set_defaults(do=do_show)

    for act, text, do in (
        ("replay", "send originals again through the same door; what landed before lands no second time", do_replay),
        ("drop", "mark letters as done with: they leave the list", do_drop),
    ):
        one = acts.add_parser(act, parents=[chosen, person], help=text)
        one.add_argument("positions", nargs="*", metavar="POSITION", help="these; or choose by --because, --problem, --since")
        one.add_argument("--everything", action="store_true", help="all that are open")
        one.add_argument("--reason", required=True, help="why")
        one.set_defaults(do=do)


def do_list(args: argparse.Namespace, settings: Settings) -> int:
    from truing.tasks.events.dead import counted, letters

    now = time.time()
    if args.limit < 1:
        raise UsageError(f"dlq list: expected --limit of at least 1, got {args.limit}; give a number of letters")
    found = letters(_vault(settings), **_filters(args, now), all=args.all)
    counts, shown = counted(found), found[-args.limit :]
    head = ["position", "reason", "problem", "bytes", "first seen", "detail"]
    lines = [
        [_short(one.position, settings), one.reason, one.problem or None, one.size, ago(one.first_seen, now), one.detail]
        for one in shown
    ]
    if args.all:
        head.insert(1, "state")
        for line, one in zip(lines, shown, strict=True):
            line.insert(1, f"{one.state}{f', {one.became}' if one.became else ''}")
    if not found:
        text = "no dead letters" + ("" if args.all else " are open")
    else:
        summary = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        text = f"{len(found)} dead letters: {summary}\n{table(head, lines)}"
        text += f"\nand {len(found) - len(shown)} older; --limit shows more" if len(found) > len(shown) else ""
    result({"letters": [_plain(one) for one in shown], "count": len(found), "reasons": counts}, text, as_json=args.json)
    return 0


def do_show(args: argparse.Namespace, settings: Settings) -> int:
    """Without --reveal nothing of the content; with it the bytes as they came, base64 where they are no text."""
    import base64

    from truing.tasks.events.dead import acts, reveal

    if args.reveal and not args.reason.strip():
        raise UsageError("dlq show --reveal: expected --reason, got none; say why you need to see what somebody sent")
    vault = _vault(settings)
    one = _one(vault, args.position)
    found: dict[str, Any] = _plain(one)
    lines = [f"{key.replace('_', ' ')}: {value}" for key, value in found.items() if value != ""]
    if args.reveal:
        original = reveal(vault, one, by=_who(args), reason=args.reason, now=time.time())
        if original is None:
            raise DataError(f"{one.position}: expected its original, got none: its lifetime is over; ask the sender")
        try:
            found["original"] = shown = original.decode()
        except UnicodeDecodeError:
            found["original_base64"] = shown = base64.b64encode(original).decode()
        lines.append(f"original: {shown}")
    done = [act for act in acts(vault) if act.letter == one.position]
    found["acts"] = [msgspec.to_builtins(act) for act in done]
    lines += [f"{act.act} by {act.by}, {_when(act.at)}: {act.reason}" for act in done]
    result(found, "\n".join(lines), as_json=args.json)
    return 0


def do_replay(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.broker import connection
    from truing.tasks.events.dead import replay, sender
    from truing.tasks.events.stream import producer

    vault, now = _vault(settings), time.time()
    chosen = _chosen(args, vault, now)
    done = None
    if chosen:
        sending = producer(connection(settings))
        try:
            send = sender(sending, settings.kafka.topic)
            done = replay(vault, chosen, send, by=_who(args), reason=_why(args), now=now)
        finally:
            sending.close(timeout=5)
    sent, gone, empty = (done.sent, done.gone, done.empty) if done else (0, (), ())
    text = f"{sent} dead letters sent again; `truing dlq list --all` shows what becomes of them"
    text += f"; {len(gone)} are past their lifetime" if gone else ""
    text += f"; {len(empty)} never had content" if empty else ""
    result({"sent": sent, "gone": list(gone), "empty": list(empty), "by": _who(args)}, text, as_json=args.json)
    return 0


def do_drop(args: argparse.Namespace, settings: Settings) -> int:
    from truing.tasks.events.dead import drop

    vault, now = _vault(settings), time.time()
    count = drop(vault, _chosen(args, vault, now), by=_who(args), reason=_why(args), now=now)
    result({"dropped": count, "by": _who(args)}, f"{count} dead letters dropped by {_who(args)}", as_json=args.json)
    return 0


# --- what a person means ------------------------------------------------------------------------------------------------------


def _vault(settings: Settings) -> Vault:
    from truing.tasks.tables.lake import Vault

    return Vault(settings.vault)


def _chosen(args: argparse.Namespace, vault: Vault, now: float) -> list[Letter]:
    """Named letters whatever was done to them before; by filter those that are open. Raises UsageError, DataError."""
    from truing.tasks.events.dead import letters

    filters = _filters(args, now)
    if args.positions:
        if any(value is not None for value in filters.values()) or args.everything:
            raise UsageError(f"dlq {args.act}: expected positions, or filters, got both; leave one out")
        return [_one(vault, position) for position in dict.fromkeys(args.positions)]
    if all(value is None for value in filters.values()) and not args.everything:
        raise UsageError(
            f"dlq {args.act}: expected positions, --because, --problem, --since or --everything, got none; name some"
        )
    return letters(vault, **filters)


def _one(vault: Vault, position: str) -> Letter:
    from truing.tasks.events.dead import letters

    found = letters(vault, positions=[position], all=True)
    if len(found) != 1:
        got = "none" if not found else f"{len(found)}, on {' and '.join(one.position.rsplit(':', 3)[0] for one in found)}"
        raise DataError(f"expected one dead letter at {position}, got {got}; see `truing dlq list --all`")
    return found[0]


def _filters(args: argparse.Namespace, now: float) -> dict[str, Any]:
    return {"reason": args.because, "problem": args.problem, "since": None if args.since is None else _since(args.since, now)}


def _since(text: str, now: float) -> float:
    from truing.tasks.problem import seconds

    try:
        return now - seconds(text)
    except ProblemError:
        pass  # then it is a point in time
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise UsageError(f"--since: expected 24h, 7d or 2026-11-23T03:40:00Z, got {text!r}; mend it") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _who(args: argparse.Namespace) -> str:
    return str(args.user or getpass.getuser())


def _why(args: argparse.Namespace) -> str:
    if not args.reason.strip():
        raise UsageError(f"dlq {args.act}: expected --reason, got an empty one; say why")
    return str(args.reason)


def _short(position: str, settings: Settings) -> str:
    return position.removeprefix(f"{settings.kafka.topic}:")


def _plain(one: Letter) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(one)
    return found


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
