"""The ledger of looks: how often the sealed rows were asked about each candidate. Every look is a chance to pass by luck."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from truing.tasks.errors import DataError
from truing.tasks.records import Record
from truing.tasks.seal import canonical


class Look(Record, frozen=True):
    """One look: a candidate's payload digest, the digest of the rows that judged (`comparison.rows_digest`), and when."""

    problem: str
    candidate: str
    rows: str
    at: float


def look_at(ledger: Sequence[Look], candidate: str, rows: str) -> int:
    """Which look, from 1, judging `candidate` on `rows` is. The same rows again are the same look: they say the same."""
    seen = list(dict.fromkeys(look.rows for look in ledger if look.candidate == candidate))
    return seen.index(rows) + 1 if rows in seen else len(seen) + 1


def read_ledger(path: Path) -> tuple[Look, ...]:
    """All looks noted in a ledger file, one JSON line each; none where there is no file yet. Raises DataError."""
    if not path.exists():
        return ()
    try:
        return tuple(msgspec.json.decode(line, type=Look) for line in path.read_bytes().splitlines() if line.strip())
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: expected one look a line, got {error}; restore the ledger from a backup") from None


def note_look(path: Path, look: Look) -> None:
    """Append a look, once: noting the same candidate on the same rows again changes nothing."""
    if any(old.candidate == look.candidate and old.rows == look.rows for old in read_ledger(path)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(canonical(look) + b"\n")
