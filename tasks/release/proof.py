"""Does everything about a version still say the same? Each claim checked against the signatures and digests that carry it.

What is believed: the audit (chained, signed by the registry), the steward's book (chained, signed by the release key) and the
bytes as hashed now. What is compared with it: MLflow's tags and aliases, and what the gateway remembers. Pure: `Evidence` is
what somebody has gathered, from files or over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from truing.tasks.records import Cause, Record, Refusal, Release
from truing.tasks.release.acts import Docket
from truing.tasks.release.book import Book
from truing.tasks.release.versions import Model, Version, is_frozen
from truing.tasks.seal import (
    RELEASE_TYPE,
    Keys,
    digest,
    open_envelope,
    open_head,
)

OK, DIFFERS, MISSING, UNREAD = "ok", "differs", "missing", "unread"


class Check(Record, frozen=True):
    """One claim. `state`: ok; differs; missing (it has to be there); unread (this user can't see it, so nothing is said)."""

    about: str  # "version 3", or the problem's name
    name: str
    state: str
    expected: str = ""
    got: str = ""
    note: str = ""

    @property
    def broken(self) -> bool:
        return self.state in (DIFFERS, MISSING)


class Remembered(Record, frozen=True):
    """What the gateway remembers: the highest sequence it admitted, and the digest of that statement where it is known."""

    floor: int
    statement: str | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything at hand about one problem. What can't be read has its reason in `unread` by name, and is None or empty.

    Names in `unread`: store, audit, book, gateway. `files` gives a version's bytes; it raises ValueError at what is no plain
    file. `standing` are the texts of all standing approvals ever given (`acts.Docket` keeps the last).
    """

    problem: str
    keys: Keys
    model: Model | None
    versions: Sequence[Version]
    files: Callable[[Version], Mapping[str, bytes]]
    docket: Docket | None
    book: Book | None
    standing: Sequence[str] = ()
    gateway: Remembered | None = None
    unread: Mapping[str, str] = field(default_factory=dict)

    def issued(self) -> list[Release]:
        """Every release by rising sequence: from the book, or from the audit where the book can't be read."""
        if self.book is not None:
            return self.book.releases(self.problem)
        if self.docket is None:
            return []
        return statements(self.docket, self.keys)


def statements(docket: Docket, keys: Keys) -> list[Release]:
    """Every release that the audit has seen attached, by rising sequence, if the steward's signature holds."""
    opened = [
        open_envelope(docket.released[sequence].envelope, Release, RELEASE_TYPE, keys.release)
        for sequence in sorted(docket.released)
    ]
    return [one for one in opened if isinstance(one, Release)]


def prove_problem(seen: Evidence, *, now: float) -> list[Check]:
    """What is true of the problem as a whole: sequence, champion, head, gateway, and MLflow's view of people's acts."""
    issued = seen.issued()
    last = issued[-1] if issued else None
    return [
        *(Check(about=seen.problem, name=name, state=UNREAD, note=why) for name, why in seen.unread.items()),
        *_versions(seen),
        *_sequence(seen, last),
        *_champion(seen, last),
        *_head(seen, last, now),
        *_gateway(seen, last),
        *_view(seen),
    ]


def _versions(seen: Evidence) -> list[Check]:
    if seen.docket is None or "store" in seen.unread:
        return []
    there, known = {one.version for one in seen.versions}, set(seen.docket.versions)
    if known - there:
        return [_of(seen, "versions", MISSING, f"versions {_list(known)}", f"no version {_list(known - there)}")]
    if there - known:
        return [_of(seen, "versions", DIFFERS, f"versions {_list(known)}", f"also version {_list(there - known)}")]
    return [_of(seen, "versions", OK, note=f"{len(known)} registered, all there")]


def _sequence(seen: Evidence, last: Release | None) -> list[Check]:
    highest = last.sequence if last else 0
    shown = max((sequence for version in seen.versions for sequence in version.statements()), default=0)
    kept = max(seen.docket.released, default=0) if seen.docket else highest
    if "store" in seen.unread or (seen.book is None and seen.docket is None):
        return []
    if shown != highest:
        return [_of(seen, "sequence", DIFFERS, f"release {highest}, the newest signed", f"release {shown} in MLflow's tags")]
    if seen.book is not None and kept != highest:
        return [_of(seen, "sequence", DIFFERS, f"release {highest} in the steward's book", f"release {kept} in the audit")]
    return [_of(seen, "sequence", OK, note=f"release {highest} is the newest" if last else "nothing was released yet")]


def _champion(seen: Evidence, last: Release | None) -> list[Check]:
    if "store" in seen.unread or (seen.book is None and seen.docket is None):
        return []
    alias = seen.model.champion if seen.model else None
    if last is not None and last.cause is Cause.WITHDRAW:
        return [_of(seen, "champion", OK, note=f"nothing serves: release {last.sequence} withdrew version {last.version}")]
    wanted = last.version if last else None
    if alias != wanted:
        return [_of(seen, "champion", DIFFERS, f"version {wanted or 'none'}", f"version {alias or 'none'}")]
    return [_of(seen, "champion", OK, note=f"version {alias}" if alias else "none yet")]


def _head(seen: Evidence, last: Release | None, now: float) -> list[Check]:
    if "store" in seen.unread:
        return []
    text = seen.model.tags.get("release.head") if seen.model else None
    if last is None and not text:
        return [_of(seen, "head", OK, note="none needed before the first release")]
    head = open_head(text, seen.problem, keys=seen.keys, now=now)
    if isinstance(head, Refusal):
        wanted = "a head that the steward signed within the hour"
        return [_of(seen, "head", MISSING if not text else DIFFERS, wanted, head.reason)]
    if last is not None and (head.sequence, head.release) != (last.sequence, digest(last)):
        return [_of(seen, "head", DIFFERS, f"release {last.sequence} as newest", f"release {head.sequence}")]
    return [_of(seen, "head", OK, note=f"signed {days(head.at, now)}, names release {head.sequence}, audit {head.audit}")]


def _gateway(seen: Evidence, last: Release | None) -> list[Check]:
    known = seen.gateway
    if known is None or (seen.book is None and seen.docket is None):
        return []
    highest = last.sequence if last else 0
    if known.floor != highest:
        return [_of(seen, "gateway", DIFFERS, f"floor {highest}", f"floor {known.floor}")]
    if last is not None and known.statement not in (None, digest(last)):
        return [_of(seen, "gateway", DIFFERS, f"statement {short(digest(last))}", f"statement {short(known.statement)}")]
    return [_of(seen, "gateway", OK, note=f"floor {known.floor}")]


def _view(seen: Evidence) -> list[Check]:
    """What MLflow shows of people's acts against the audit."""
    if seen.docket is None or seen.model is None:
        return []
    tags, docket = seen.model.tags, seen.docket
    pairs = [
        ("accepted policy", docket.policy, tags.get("policy.accepted")),
        ("anchor", docket.anchor.version if docket.anchor else None, seen.model.anchor),
        ("frozen", "frozen" if docket.frozen else None, "frozen" if is_frozen(tags) else None),
    ]
    return [
        _of(seen, name, OK, note=short(wanted) if wanted else "none")
        if wanted == got
        else _of(seen, name, DIFFERS, f"{short(wanted)} (audit)", f"{short(got)} (MLflow's tag)")
        for name, wanted, got in pairs
    ]


def _of(seen: Evidence, name: str, state: str, expected: str = "", got: str = "", note: str = "") -> Check:
    return Check(about=seen.problem, name=name, state=state, expected=expected, got=got, note=note)


def short(text: str | None) -> str:
    return "none" if not text else (text[:12] if len(text) == 64 else text)


def days(at: float, now: float) -> str:
    gap = abs(at - now)
    length = (
        f"{gap:.0f} s"
        if gap < 120
        else f"{gap / 60:.0f} min"
        if gap < 7200
        else f"{gap / 3600:.0f} h"
        if gap < 172_800
        else f"{gap / 86_400:.0f} days"
    )
    return f"in {length}" if at > now else f"{length} ago"


def _list(versions: set[str]) -> str:
    return ", ".join(sorted(versions, key=lambda one: (len(one), one)))
