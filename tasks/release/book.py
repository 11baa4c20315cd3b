"""The steward's own book: every verdict, release and head that it signed, in the order in which it signed them.

What serves, what served and what was judged is read from here and nowhere else: MLflow's tags only show it. A statement is in
the book, on the disk, before anybody else sees it; so whatever carries a signature of the steward's is in the book, or the book
is not the newest one. Then `adopt` takes such statements back in, from the audit and from MLflow's tags, checked by signature,
and `raise_floor` keeps the sequence above every number that was ever seen.

A book that is lost is made anew that way, with the last verdict on each version as the audit holds it. What is lost with it:
descriptions and how far a candidate drifts (a standing approval then covers it no more), verdicts that were not shown yet (they
are made again), how far the audit was countersigned (a cut of its tail before that moment shows no more), and announcements
still due. Nothing that was replaced comes back by that, and no sequence is given twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from truing.tasks.records import Cause, Envelope, Head, Record, Refusal, Release, Verdict
from truing.tasks.release.audit import Line, Mark, follow
from truing.tasks.release.chain import Chain, whole_lines
from truing.tasks.seal import HEAD_TYPE, RELEASE_TYPE, VERDICT_TYPE, Keys, canonical, digest, open_envelope

R = TypeVar("R", bound=Record)

HIGHEST = 2**31  # a number above this is no sequence of ours: the lake, where trainers write, is asked too


class Judged(Record, frozen=True):
    """A verdict with what people see of it, and what a standing approval asks about its candidate. `run` is "" if that is lost.

    `drift` is the share (0..1) of holdout rows answered differently from the anchor `anchor` (a payload digest), None without
    one. `heads_only`: fast learner, on the very base of the champion it was judged against.
    """

    verdict: Verdict
    envelope: str
    version: str
    description: str
    indicators: str
    run: str
    candidate: str  # digest of the tag `candidate` as it was
    drift: float | None
    anchor: str | None
    heads_only: bool
    n: int


class Issued(Record, frozen=True):
    """A release with its envelope. `audit` is how far the audit went when it was signed."""

    release: Release
    envelope: str
    audit: int
    n: int


class Book:
    """What the book says. Made by `open_book` (the steward, who alone writes) or `read_book` (everybody else).

    Safe between threads: the steward judges in one and releases in another. `keys` may be replaced when they rotate. `fresh`:
    there was nothing in it when it was opened.
    """

    def __init__(self, keys: Keys, chain: Chain | None = None) -> None:
        self.keys, self._chain = keys, chain
        self._turn = threading.RLock()
        self._judged: dict[tuple[str, str], Judged] = {}
        self._issued: dict[str, dict[int, Issued]] = {}
        self._heads: dict[str, Head] = {}
        self._floors: dict[str, int] = {}
        self._marks: dict[int, str] = {}
        self._done: set[int] = set()
        self._given: set[str] = set()  # digests of all verdicts that were ever booked
        self.last_at = 0.0
        self.fresh = chain is not None and not chain.mark.n
        for line in chain.take() if chain else ():
            self.apply(line)

    # --- reading
    def verdict(self, problem: str, payload: str) -> Judged | None:
        """The verdict that counts on these bytes: the last one."""
        return self._judged.get((problem, payload))

    def issued(self, problem: str) -> list[Issued]:
        """Every release by rising sequence."""
        with self._turn:
            known = self._issued.get(problem, {})
            return [known[sequence] for sequence in sorted(known)]

    def releases(self, problem: str) -> list[Release]:
        return [one.release for one in self.issued(problem)]

    def last(self, problem: str) -> Issued | None:
        issued = self.issued(problem)
        return issued[-1] if issued else None

    def champion(self, problem: str) -> Release | None:
        """What serves: the last release, or None when there was none or it was a withdrawal."""
        last = self.last(problem)
        return None if last is None or last.release.cause is Cause.WITHDRAW else last.release

    def floor(self, problem: str) -> int:
        """The highest sequence ever known; the next release gets a higher one. 0 = there never was a release."""
        return max(self._floors.get(problem, 0), max(self._issued.get(problem, {}), default=0))

    def head(self, problem: str) -> Head | None:
        return self._heads.get(problem)

    @property
    def marks(self) -> list[Mark]:
        """Audit records that were countersigned, by rising number."""
        return [Mark(n=n, digest=self._marks[n]) for n in sorted(self._marks)]

    def unfinished(self, problem: str) -> list[Judged | Issued]:
        """What was signed but perhaps not shown to everybody, oldest first."""
        with self._turn:
            signed: list[Judged | Issued] = [one for (name, _), one in self._judged.items() if name == problem]
            signed += self.issued(problem)
        return sorted((one for one in signed if one.n not in self._done), key=lambda one: one.n)

    # --- writing
    def add_verdict(self, envelope: Envelope, *, at: float, **facts: str) -> Judged:
        """`facts`: version, description, indicators, run, candidate; drift, anchor, heads_only where known."""
        verdict = _opened(open_envelope(envelope, Verdict, VERDICT_TYPE, self.keys.gate))
        self._add("verdict", f"{verdict.problem}/{facts['version']}", envelope, at, **facts)
        return self._judged[verdict.problem, verdict.candidate]

    def add_release(self, envelope: Envelope | str, *, audit: int, at: float) -> Issued:
        """Raises ValueError when its number is taken: whatever planned it did not look."""
        release = _opened(open_envelope(envelope, Release, RELEASE_TYPE, self.keys.release))
        if release.sequence in self._issued.get(release.problem, {}):
            raise ValueError(f"expected a sequence of {release.problem} that is free, got {release.sequence}; plan it again")
        self._add("release", release.name, envelope, at, audit=str(audit))
        return self._issued[release.problem][release.sequence]

    def add_head(self, envelope: Envelope, *, at: float) -> None:
        head = _opened(open_envelope(envelope, Head, HEAD_TYPE, self.keys.release))
        self._add("head", f"{head.problem}/{head.audit}", envelope, at)

    def finish(self, one: Judged | Issued, *, at: float) -> None:
        """It was attached, shown and announced."""
        self._write("finish", str(one.n), {"of": str(one.n)}, at)

    def adopt(self, envelope: str, *, problem: str, audit: int, at: float) -> bool:
        """Take in a statement of ours that is not in the book. False if it is there already, or not signed by us."""
        release = open_envelope(envelope, Release, RELEASE_TYPE, self.keys.release)
        if isinstance(release, Refusal) or release.problem != problem:
            return False
        if release.sequence in self._issued.get(problem, {}):
            return False
        self._add("release", release.name, envelope, at, audit=str(audit))
        self.finish(self._issued[problem][release.sequence], at=at)
        return True

    def adopt_verdict(self, envelope: str, *, problem: str, version: str, at: float) -> bool:
        """Take in the verdict that the audit holds as the last one. False if it was booked before, or is not signed by us."""
        verdict = open_envelope(envelope, Verdict, VERDICT_TYPE, self.keys.gate)
        if isinstance(verdict, Refusal) or verdict.problem != problem or digest(verdict) in self._given:
            return False
        self._add("verdict", f"{problem}/{version}", envelope, at, version=version)
        self.finish(self._judged[problem, verdict.candidate], at=at)
        return True

    def raise_floor(self, problem: str, sequence: int, *, at: float) -> None:
        """No release of the problem gets this number or a lower one."""
        if self.floor(problem) < sequence < HIGHEST:
            self._write("floor", problem, {"problem": problem, "sequence": str(sequence)}, at)

    def close(self) -> None:
        if self._chain:
            self._chain.close()

    # --- the fold
    def apply(self, line: Line) -> None:
        """Take in one line, checked, in order. An envelope whose key counts no more says nothing."""
        entry, facts = line.entry, line.entry.facts
        self.last_at = max(self.last_at, entry.at)
        match entry.act:
            case "verdict":
                verdict = open_envelope(facts["envelope"], Verdict, VERDICT_TYPE, self.keys.gate)
                if not isinstance(verdict, Refusal):
                    self._judged[verdict.problem, verdict.candidate] = _judged(verdict, line)
                    self._given.add(digest(verdict))
            case "release":
                release = open_envelope(facts["envelope"], Release, RELEASE_TYPE, self.keys.release)
                if not isinstance(release, Refusal):
                    issued = Issued(release=release, envelope=facts["envelope"], audit=int(facts["audit"]), n=entry.n)
                    self._issued.setdefault(release.problem, {})[release.sequence] = issued
            case "head":
                head = open_envelope(facts["envelope"], Head, HEAD_TYPE, self.keys.release)
                if not isinstance(head, Refusal):
                    self._heads[head.problem] = head
                    if head.audit:
                        self._marks[head.audit] = head.audit_digest
                    self._floors[head.problem] = max(head.sequence, self._floors.get(head.problem, 0))
            case "floor":
                self._floors[facts["problem"]] = int(facts["sequence"])
            case "finish":
                self._done.add(int(facts["of"]))

    def _add(self, act: str, target: str, envelope: Envelope | str, at: float, **facts: str) -> None:
        text = envelope if isinstance(envelope, str) else canonical(envelope).decode()
        self._write(act, target, {"envelope": text, **facts}, at)

    def _write(self, act: str, target: str, facts: dict[str, str], at: float) -> None:
        if self._chain is None:
            raise ValueError("expected the steward's own open book, got one that was only read; use open_book")
        with self._turn:
            self.apply(self._chain.add(act, target, facts, at=at))


def open_book(path: Path, *, key: Callable[[], bytes], keys: Keys) -> Book:
    """The steward's open book; a torn last line is cut. Raises Unavailable (held by another, not writable) and Broken."""
    return Book(keys, Chain(path, user="steward", key=key, keys=keys.release))


def read_book(path: Path, keys: Keys) -> Book:
    """The book as it stands, to be read; empty if there is none. Raises Unavailable and Broken."""
    book = Book(keys)
    for line in follow(whole_lines(path), keys=keys.release):
        book.apply(line)
    return book


def marks(path: Path, keys: Keys) -> list[Mark]:
    """Which audit records were countersigned: for `audit.verify(heads=…)`."""
    return read_book(path, keys).marks


def head_of(book: Book, problem: str, mark: Mark, *, now: float, lasts_s: float) -> Head:
    """The steward's word for what is newest, valid for `lasts_s` seconds. Before the first release its sequence is 0."""
    last = book.last(problem)
    return Head(
        problem=problem,
        sequence=last.release.sequence if last else 0,
        release=digest(last.release) if last else "",
        audit=mark.n,
        audit_digest=mark.digest,
        at=now,
        expires=now + lasts_s,
    )


def statements_in(tags: Iterable[dict[str, str]]) -> list[str]:
    """Every text in these versions' tags that may be a release statement of ours."""
    return [value for each in tags for key, value in each.items() if key == "release" or key.startswith("release.")]


def _judged(verdict: Verdict, line: Line) -> Judged:
    facts = line.entry.facts
    return Judged(
        verdict=verdict,
        envelope=facts["envelope"],
        version=facts["version"],
        description=facts.get("description", ""),
        indicators=facts.get("indicators", ""),
        run=facts.get("run", ""),
        candidate=facts.get("candidate", ""),
        drift=float(facts["drift"]) if facts.get("drift") else None,
        anchor=facts.get("anchor") or None,
        heads_only=facts.get("heads_only") == "true",
        n=line.entry.n,
    )


def _opened(opened: R | Refusal) -> R:
    if isinstance(opened, Refusal):
        raise ValueError(f"expected an envelope by the steward's own key, got one that does not open: {opened}")
    return opened
