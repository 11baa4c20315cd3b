"""The ledger of looks: how often the sealed rows were asked, and about whom. Every look is a chance to pass by luck.

Two things spend. Asking again about *one* candidate spends from `evidence.max_looks`. Asking about *other* candidates spends
too, since the champion was released, and against the anchor since it was pinned: the k-th candidate has `level_share` of the
level, so that any number of harmful ones together pass with less than twice the chance of the free ones.

That is enough against luck, not against a trainer who learns from the verdicts which rows judge: each shows dozens of
differences in full, and a candidate put together from what two hundred of them said about small parts of the rows can look
harmless at any level. So once the free candidates are spent, verdicts are worked out on the rows of that time only
(`shown_until`), and a pass has to hold on the later ones as well. Of these nothing is told but that bit, and the first pass
ends the game: until then all answers were no, so whatever was submitted could have been written down beforehand, and no
cleverness helps (Blum and Hardt 2015).
"""

from __future__ import annotations

import math
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
    champion: str | None = None  # payload in force, and the anchor's; None where there was none, or in an old ledger
    anchor: str | None = None


def look_at(ledger: Sequence[Look], candidate: str, rows: str) -> int:
    """Which look, from 1, judging `candidate` on `rows` is. The same rows again are the same look: they say the same."""
    seen = list(dict.fromkeys(look.rows for look in ledger if look.candidate == candidate))
    return seen.index(rows) + 1 if rows in seen else len(seen) + 1


def candidates_since(ledger: Sequence[Look], candidate: str, *, champion: str | None = None, anchor: str | None = None) -> int:
    """Which different candidate, from 1, this is since the champion was released, or since the anchor was pinned."""
    seen = _distinct(ledger, champion, anchor)
    return seen.index(candidate) + 1 if candidate in seen else len(seen) + 1


def shown_until(ledger: Sequence[Look], *, champion: str | None, free: int) -> float:
    """The last look at one of the `free` first candidates under this champion: rows matured later were never shown."""
    first = _distinct(ledger, champion, None)[:free]
    return max((look.at for look in ledger if look.candidate in first and look.champion == champion), default=-math.inf)


def level_share(looks: int, free: int) -> float:
    """Share (0..1] of the pass level for the k-th candidate: 1 for the free ones, then (free/k)². Sums to < 2·free."""
    return 1.0 if looks <= free else (free / looks) ** 2


def _distinct(ledger: Sequence[Look], champion: str | None, anchor: str | None) -> list[str]:
    found = [
        look.candidate
        for look in ledger
        if (champion is not None and look.champion == champion) or (anchor is not None and look.anchor == anchor)
    ]
    return list(dict.fromkeys(found))


def read_ledger(path: Path) -> tuple[Look, ...]:
    """All looks noted in a ledger file, one JSON line each; none where there is no file yet. Raises DataError."""
    if not path.exists():
        return ()
    try:
        return tuple(msgspec.json.decode(line, type=Look) for line in path.read_bytes().splitlines() if line.strip())
    except msgspec.DecodeError as error:
        raise DataError(f"{path}: expected one look a line, got {error}; restore the ledger from a backup") from None


def note_look(path: Path, look: Look) -> None:
    """Append a look, once: noting the same candidate on the same rows against the same models again changes nothing."""
    same = ("candidate", "rows", "champion", "anchor")
    if any(all(getattr(old, name) == getattr(look, name) for name in same) for old in read_ledger(path)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(canonical(look) + b"\n")
