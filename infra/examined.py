"""`truing audit verify`: is the record of acts whole, as far as the steward has countersigned it, and what has it found?"""

from __future__ import annotations

from typing import Any

import msgspec

from truing.infra.evidence import closed, read_audit, steward_book
from truing.infra.keys import keyring
from truing.infra.settings import Settings
from truing.tasks.errors import Unavailable
from truing.tasks.records import Record
from truing.tasks.release.audit import Broken
from truing.tasks.release.chain import whole_lines
from truing.tasks.release.findings import open_findings
from truing.tasks.release.proof import DIFFERS, Check
from truing.tasks.release.reconcile import Finding
from truing.tasks.seal import Keys


class Examined(Record, frozen=True):
    """What `truing audit verify` found: `broken` is the first break in one line, or empty."""

    broken: str
    text: str
    data: dict[str, Any]


def examine(settings: Settings, *, user: str | None = None) -> Examined:
    """Chain, signatures, every audit head that the steward countersigned, its book, and its open findings."""
    keys = keyring(settings).public()
    unread: dict[str, str] = {}
    checks: list[Check] = []
    book = steward_book(settings, keys, unread, checks)
    lines = read_audit(settings, keys, user, book, unread, checks)
    if lines is None:
        raise Unavailable(unread["audit"])
    fresh = not settings.desk.exists() and not lines  # nothing has begun yet
    opened, gone = _findings(settings, keys, unread, checks)
    first = next((one for one in checks if one.broken and not fresh), None)
    broken = f"{first.about}'s {first.name}: expected {first.expected}, got {first.got}" if first else ""
    if opened and not broken:
        one = opened[0]
        broken = f"finding {one.key}: expected {one.expected}, got {one.got} ({len(opened)} open; see `truing status`)"
    marks = book.marks if book else []
    data = {
        "whole": not broken,
        "records": len(lines),
        "countersigned": len(marks),
        "until": marks[-1].n if marks else 0,
        "findings": [{**msgspec.structs.asdict(one), "key": one.key} for one in opened],
        "findings_closed": gone,
        "broken": broken,
        "unread": unread,
    }
    text = f"audit whole: {len(lines)} records, chained and signed"
    if book is None:
        text += "; the steward's countersigned heads could not be read: run as root or as its account"
    else:
        text += f"; {len(marks)} heads countersigned by the steward, the last at {marks[-1].n if marks else 0}"
        text += "" if "findings" in unread else f"; no open findings, {gone} put right so far"
    return Examined(broken=broken, text=text, data=data)


def _findings(settings: Settings, keys: Keys, unread: dict[str, str], checks: list[Check]) -> tuple[list[Finding], int]:
    """What the steward found to differ and is still so, oldest first; and how many it found that are gone."""
    path = settings.desk / "findings.jsonl"
    if closed(path):
        unread["findings"] = f"{path}: not readable for this user; run as root or as the steward's account"
        return [], 0
    try:
        return open_findings(path, keys), sum(line.entry.act == "close" for line in whole_lines(path))
    except Broken as error:
        checks.append(Check(about="steward", name="findings", state=DIFFERS, expected="a whole chain", got=str(error)))
        return [], 0
