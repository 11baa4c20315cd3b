"""What MLflow shows, held against what is known: the audit's acts and the steward's book. Each difference is a finding.

MLflow's database and artifact folder are believed by nobody, so an edit there gets nothing served; but people decide by that
page, and somebody wrote there who should not. Pure: the steward looks (`flows.rounds`) and puts right what is its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from truing.tasks.records import Record
from truing.tasks.release.acts import Docket
from truing.tasks.release.book import Book, Issued, Judged
from truing.tasks.release.versions import Model, Version, is_frozen
from truing.tasks.seal import digest_bytes


class View(Record, frozen=True):
    """One problem as MLflow shows it. `bytes`: digest of what lies there now, for the versions looked at; None = unreadable."""

    model: Model | None
    versions: tuple[Version, ...]
    bytes: dict[str, str | None] = msgspec.field(default_factory=dict)


class Finding(Record, frozen=True):
    """`part` of a version (or of the model, with version "") that says `got` where it should say `expected`."""

    problem: str
    version: str
    part: str
    what: str
    expected: str
    got: str
    at: float

    @property
    def key(self) -> str:
        return "/".join(filter(None, (self.problem, self.version, self.part)))


OURS = ("champion", "release", "verdict", "description", "head")  # first words of parts that the steward can put right


@dataclass(frozen=True)
class _Pen:
    """Makes findings of one look."""

    problem: str
    at: float

    def differ(self, version: str, part: str, what: str, expected: str | None, got: str | None) -> Iterator[Finding]:
        if (expected or None) != (got or None):
            yield Finding(
                problem=self.problem,
                version=version,
                part=part,
                what=what,
                expected=_short(expected),
                got=_short(got),
                at=self.at,
            )


def reconcile(problem: str, view: View, docket: Docket, book: Book, *, head: str | None = None, at: float) -> list[Finding]:
    """Every difference of one look. What the steward has signed but not finished showing is left out.

    `head` is the head attached last, as text; None leaves it out. Order: the model, then versions by number.
    """
    pen = _Pen(problem, at)
    known = set(docket.versions)
    if view.model is None and not view.versions:
        return list(pen.differ("", "model", "the registered model", "there", None if known else "there"))
    found = list(_of_model(pen, view.model, docket, book, head)) if view.model else []
    shown = {version.version: version for version in view.versions}
    for name in sorted(known | set(shown), key=lambda each: (len(each), each)):
        version = shown.get(name)
        if version is None:
            found += pen.differ(name, "row", "a registered version", "there", None)
        elif name not in known:
            found += pen.differ(name, "row", "a version that was never registered", None, "there")
        else:
            found += _of_version(pen, version, docket, book)
            found += _of_releases(pen, version, book)
            if name in view.bytes:
                expected = docket.versions[name].payload
                found += pen.differ(name, "bytes", "the files", expected, view.bytes[name])
    return found


def _of_model(pen: _Pen, model: Model, docket: Docket, book: Book, head: str | None) -> Iterator[Finding]:
    tags, last = model.tags, book.last(pen.problem)
    if not any(isinstance(one, Issued) for one in book.unfinished(pen.problem)):
        expected = last.release.version if last else None
        yield from pen.differ("", "champion", "the alias champion", expected, model.champion)
    for alias in sorted(set(model.aliases) - {"champion"}):
        yield from pen.differ("", f"alias.{alias}", f"the alias {alias}, which nobody sets", None, model.aliases[alias])
    yield from pen.differ("", "policy", "the accepted policy", docket.policy, tags.get("policy.accepted"))
    yield from pen.differ("", "anchor", "the anchor", docket.anchor.version if docket.anchor else None, model.anchor)
    yield from pen.differ("", "frozen", "frozen", _yes(docket.frozen), _yes(is_frozen(tags)))
    asked = docket.rollback.version if docket.rollback else None
    yield from pen.differ("", "rollback", "the rollback asked for", asked, tags.get("rollback.to"))
    given = tags.get("standing") not in (None, "", "revoked")
    yield from pen.differ("", "standing", "a standing approval", _yes(docket.standing is not None), _yes(given))
    if head is not None:
        yield from pen.differ("", "head", "the head", head, tags.get("release.head"))


def _of_version(pen: _Pen, version: Version, docket: Docket, book: Book) -> Iterator[Finding]:
    name, tags = version.version, version.tags
    registered, decision = docket.versions[name], docket.decision(name)
    yield from pen.differ(name, "payload", "the tag payload", registered.payload, version.payload)
    yield from pen.differ(name, "trainer", "the tag trainer", registered.trainer, version.trainer)
    said, stamp = (decision.approval.decision, decision.envelope) if decision else (None, None)
    yield from pen.differ(name, "approval", "the decision", said, version.approval)
    yield from pen.differ(name, "stamp", "the stamp of the decision", stamp, version.stamp)
    by, at = (", ".join(decision.approval.by), repr(decision.approval.at)) if decision else (None, None)
    yield from pen.differ(name, "approval.by", "the tag approval.by", by, tags.get("approval.by"))
    yield from pen.differ(name, "approval.at", "the tag approval.at", at, tags.get("approval.at"))
    judged = book.verdict(pen.problem, registered.payload)
    if judged is None:
        yield from pen.differ(name, "verdict", "a verdict that was never given", None, version.verdict or version.outcome)
        return
    if judged in book.unfinished(pen.problem):
        return
    yield from pen.differ(name, "verdict", "the verdict", judged.envelope, version.verdict)
    if not judged.run:  # the book was lost meanwhile, and with it what was shown
        return
    yield from pen.differ(name, "verdict.shown", "the verdict as shown", shown(judged), shown_on(version))
    yield from pen.differ(name, "description", "the description", judged.description, version.description)
    candidate = digest_bytes(tags["candidate"].encode()) if "candidate" in tags else None
    yield from pen.differ(name, "candidate", "the candidate's record", judged.candidate, candidate)


def _of_releases(pen: _Pen, version: Version, book: Book) -> Iterator[Finding]:
    """Statements: each under its number, the newest of this version once more under `release`."""
    own = {one.release.sequence: one for one in book.issued(pen.problem) if one.release.version == version.version}
    waiting = {one.n for one in book.unfinished(pen.problem)}
    for sequence, text in version.statements().items():
        if sequence not in own:
            what = f"a release {sequence} that was never signed"
            yield from pen.differ(version.version, f"release.{sequence}", what, None, text)
    for sequence, one in own.items():
        if one.n not in waiting:
            got = version.tags.get(f"release.{sequence}")
            what = f"the statement of release {sequence}"
            yield from pen.differ(version.version, f"release.{sequence}", what, one.envelope, got)
    newest = own[max(own)] if own else None
    if newest is None or newest.n not in waiting:
        expected = newest.envelope if newest else None
        yield from pen.differ(version.version, "release", "the newest statement", expected, version.release)


def shown(judged: Judged) -> str:
    """What the page says beside the verdict's envelope: the tags that people and scripts read."""
    return f"{judged.verdict.outcome}: {judged.verdict.reason} {judged.indicators}"


def shown_on(version: Version) -> str:
    return f"{version.outcome}: {version.tags.get('verdict.reason', '')} {version.tags.get('verdict.indicators', '')}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _short(text: str | None) -> str:
    """Text that a person can read; what is longer than a line by its digest."""
    if not text:
        return "nothing"
    return text if len(text) <= 80 else f"sha256 {digest_bytes(text.encode())[:16]}"
