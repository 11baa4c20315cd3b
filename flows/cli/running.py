"""`truing up`, `down`, `status`: the whole system on this machine."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import ago, ahead, note, result, span, table

if TYPE_CHECKING:
    from truing.infra.settings import Settings

Verbs = Any  # argparse's sub-parsers have no public type


def add(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    up = verbs.add_parser("up", parents=[common], help="start everything and wait until it is healthy")
    up.add_argument("--only", metavar="PARTS", help="only these parts, separated by commas (a machine of several)")
    up.set_defaults(do=do_up)
    down = verbs.add_parser("down", parents=[common], help="stop everything; nothing stays behind but the data")
    down.set_defaults(do=do_down)
    status = verbs.add_parser("status", parents=[common], help="health, served release, what waits for a person, lag, runs")
    status.set_defaults(do=do_status)


def do_up(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.keys import keyring
    from truing.infra.stack import Stack
    from truing.infra.status import locks, status

    begun = time.monotonic()
    parts = tuple(name.strip() for name in args.only.split(",")) if args.only else None
    started = Stack(settings, parts=parts).up(lambda part, text: note(f"  {part:<9} {text}"))
    found = status(settings, light=True)
    seconds = time.monotonic() - begun
    said = f"up in {seconds:.0f} s" if started else "up already"
    person = settings.approvers[0]
    where = [
        f"  models, approvals  {settings.registry_url}  login {person}, password in {settings.password_file(person)}",
        f"  runs               {settings.prefect_url.removesuffix('/api')}  login in {keyring(settings).path('prefect-auth')}",
        f"  answers            {settings.gateway_url}",
        f"  events             Kafka at {settings.kafka.bootstrap}",
    ]
    note(locks(settings))
    text = "\n".join([said, *where] if started else [said, told(found)])
    result(found | {"started": started, "seconds": round(seconds, 1)}, text, as_json=args.json)
    return 0


def do_down(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.stack import Stack

    begun = time.monotonic()
    stopped = Stack(settings).down()
    seconds = time.monotonic() - begun
    text = f"down in {seconds:.0f} s" if stopped else f"nothing runs on {settings.data}"
    result({"stopped": stopped, "seconds": round(seconds, 1)}, text, as_json=args.json)
    return 0


def do_status(args: argparse.Namespace, settings: Settings) -> int:
    """Exit 0 if all is healthy, 1 if not."""
    from truing.infra.status import status

    found = status(settings)
    result(found, told(found), as_json=args.json)
    return 0 if found["healthy"] else 1


def told(found: dict[str, Any]) -> str:
    """The status for people."""
    now = time.time()
    lines = [
        table(
            ("part", "state", "pid", "up", "MB", ""),
            [
                (
                    part["part"],
                    part["state"] if part["healthy"] or not part["pid"] else f"{part['state']}, no answer",
                    part["pid"],
                    span(part["up_s"]),
                    part["memory_mb"],
                    part["where"],
                )
                for part in found["parts"]
            ],
        )
    ]
    if not found["up"]:
        more = f"; {found['orphans']} orphans live on (`truing up` or `truing down` ends them)" if found["orphans"] else ""
        return "\n".join([f"down: nothing runs on {found['data']}{more}", *lines])
    lines += ["", *(line for one in found["problems"] for line in _problem(one))]
    if found["lag"]:
        lag = found["lag"]
        lines.append(f"{lag['topic']}: {lag['landed']:,} landed, {lag['behind']:,} behind")
    if found["runs"]:
        shown = [(one["run"], one["last"], ago(one["at"], now), ahead(one["next"], now)) for one in found["runs"]]
        lines += ["", table(("run", "last", "", "next"), shown)]
    disk = found["disk"]
    lines += ["", f"{found['memory_mb']} MB memory, {disk['used_mb']} MB on disk, {disk['free_mb']} MB free, {found['data']}"]
    lines += [f"note: {one}" for one in found["notes"]]
    lines.append(found["locks"])
    return "\n".join(lines)


def _problem(one: dict[str, Any]) -> list[str]:
    served = one["served"] or {}
    if served.get("release"):
        head = f"{one['problem']}: serves version {served['version']}, release {served['sequence']} ({served['cause']})"
    else:
        head = f"{one['problem']}: serves nothing yet"
    head += f"; champion {one['champion'] or '-'}, anchor {one['anchor'] or '-'}"
    if one["frozen"]:
        head += "; frozen"
    lines = [head]
    if served.get("refusal"):
        lines.append(f"  refused: {served['refusal']}")
    if (one.get("policy") or {}).get("pending"):
        lines.append("  its policy waits for an approver: `truing policy accept`")
    for waiting in one["waiting"]:
        why = waiting["reason"] if len(waiting["reason"]) <= 100 else waiting["reason"][:99] + "…"
        lines.append(f"  version {waiting['version']} waits: {waiting['outcome']}" + (f", {why}" if why else ""))
    return lines
