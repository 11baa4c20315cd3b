"""The status as people read it: parts, what serves, what waits for somebody, and in front of a `!` what can't wait."""

from __future__ import annotations

import time
from typing import Any

from truing.flows.cli.output import ago, ahead, flat, span, table


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
    lines += ["", *(flat(line) for one in found["problems"] for line in _problem(one, now))]
    lines += [flat(f"! finding {one['key']}: expected {one['expected']}, got {one['got']}, since {ago(one['at'], now)}")
              for one in found["findings"] or []]  # fmt: skip
    if found["lag"]:
        lag = found["lag"]
        lines.append(f"{lag['topic']}: {lag['landed']:,} landed, {lag['behind']:,} behind")
    lines += _refused(found.get("refused") or {})
    for problem, reasons in sorted((found.get("parking") or {}).items()):
        waiting, aside = reasons.get("parked", 0), {name: n for name, n in reasons.items() if name != "parked"}
        why = ", ".join(f"{n:,} {name}" for name, n in aside.items())
        more = f", set aside {sum(aside.values()):,} ({why})" if aside else ""
        lines.append(f"{problem}: words that wait for their prediction {waiting:,}{more}; `truing status --parked` lists them")
    if found["runs"]:
        shown = [(one["run"], one["last"], ago(one["at"], now), ahead(one["next"], now)) for one in found["runs"]]
        lines += ["", table(("run", "last", "", "next"), shown)]
    disk = found["disk"]
    lines += ["", f"{found['memory_mb']} MB memory, {disk['used_mb']} MB on disk, {disk['free_mb']} MB free, {found['data']}"]
    lines += [flat(f"note: {one}") for one in found["notes"]]
    lines.append(found["locks"])
    return "\n".join(lines)


def _problem(one: dict[str, Any], now: float) -> list[str]:
    served = one["served"] or {}
    if served.get("release"):
        head = f"{one['problem']}: serves version {served['version']}, release {served['sequence']} ({served['cause']})"
    else:
        head = f"{one['problem']}: serves nothing" + ("" if served.get("floor") else " yet")
    head += f"; champion {one['champion'] or '-'}, anchor {one['anchor'] or '-'}"
    if one["frozen"]:
        head += "; frozen" + (f" by {one['frozen_by']}" if one.get("frozen_by") else "")
    lines = [head, *_loud(one, served, now)]
    if (one.get("policy") or {}).get("pending"):
        lines.append("  its policy waits for an approver: `truing policy accept`")
    for waiting in one["waiting"]:
        lines += _waiting(waiting, now)
    if one.get("standing"):
        given = one["standing"]
        ends = f"ends {ahead(given['expires'], now)}"
        bounds = f"drift at most {given['max_drift']:.1%}, {given['per_day']} releases a day"
        lines.append(f"  standing approval by {' and '.join(given['by'])}, {ends}: {bounds}")
    if one.get("head"):
        newest = one["head"]
        lines.append(f"  head signed {ago(newest['at'], now)}: release {newest['sequence']}, audit {newest['audit']}")
    return lines


def _waiting(one: dict[str, Any], now: float) -> list[str]:
    """A version that waits, why, and how to decide on it."""
    word = f"  version {one['version']} waits since {ago(one['since'], now)}: {one['outcome']}"
    if one["by"]:
        word += f", {len(one['by'])} of {one['wanted']} approvals ({', '.join(one['by'])}): another approver has to"
    if one["reason"]:
        word += f", {one['reason'] if len(one['reason']) <= 100 else one['reason'][:99] + '…'}"
    return [word, f"    {one['act']}   or {one['page']}"] if one["act"] else [word]


def _loud(one: dict[str, Any], served: dict[str, Any], now: float) -> list[str]:
    """What stops, or has stopped, unless a person does something."""
    lines = [f"! refused: {served['refusal']}"] if served.get("refusal") else []
    ending = one.get("expiring")
    if ending and (ending["soon"] or ending["left_s"] <= 0):
        version, at = ending["version"], ending["expires"]
        when = f"ENDED {ago(at, now)}" if at <= now else f"ENDS {ahead(at, now)}"
        day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
        again = f"truing approve {version} --problem {one['problem']} --reason …"
        lines += [
            f"! THE APPROVAL OF VERSION {version} {when} ({day}), and nothing serves then.",
            f"    approve it again (`{again}`), or release another version",
        ]
    if one.get("head") and one["head"]["expires"] < now:
        since = ago(one["head"]["at"], now)
        lines.append(f"! the steward signed its last head {since}: a gateway that starts anew serves nothing; see its log")
    return lines


def _refused(found: dict[str, Any]) -> list[str]:
    """What somebody should look at, and where; nothing while there is nothing."""
    lines = []
    if dead := found.get("dead"):
        said = ", ".join(f"{count:,} {reason}" for reason, count in dead.items())
        lines.append(f"dead letters of the last day: {said}; `truing dlq list`")
    for name, one in found.get("windows", {}).items():
        if one["rejected"] or one["rows"]:
            lines.append(
                f"{name}: {one['rejected']:,} of {one['judged']:,} windows rejected, {one['rows']:,} rows alone; "
                "`truing windows list --rejected`"
            )
    return lines
