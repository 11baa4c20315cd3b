"""The steward's rounds: every few seconds what MLflow shows is held against audit and book, and put right where it is ours.

An edit in the database or the artifact folder is found here, written down and told; it never gets anything served. Files are
hashed each time for what serves and for what waits to be decided, and one other version's in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from truing.flows.patience import Patience
from truing.tasks.errors import DataError, Refused, Unavailable
from truing.tasks.release.reconcile import OURS, Finding, View, reconcile
from truing.tasks.release.rest import NotFound
from truing.tasks.seal import tree_digest

if TYPE_CHECKING:
    from truing.tasks.release.acts import Docket
    from truing.tasks.release.book import Book
    from truing.tasks.release.findings import Findings
    from truing.tasks.release.registry import Registry

OPEN = 3  # of the versions that wait for a decision, so many of the newest are hashed each time


@dataclass
class Rounds:
    """What the steward goes round with. `tell` takes each finding that was opened or closed: (finding, is it open?)."""

    registry: Registry
    book: Book
    findings: Findings
    tell: Callable[[Finding, bool], None]
    heads: dict[str, str] = field(default_factory=dict)  # problem → head attached last
    views: dict[str, View] = field(default_factory=dict)
    _turns: dict[str, int] = field(default_factory=dict)
    _patience: Patience = field(default_factory=lambda: Patience(5.0, 600.0))

    def walk(self, problem: str, docket: Docket, *, now: float) -> View:
        """One look at a problem: findings written, told, and healed where the steward may. Raises Unavailable."""
        view = self.views[problem] = self._view(problem, docket)
        found = reconcile(problem, view, docket, self.book, head=self.heads.get(problem), at=now)

        def looked(one: Finding) -> bool:
            return one.problem == problem and (one.part != "bytes" or one.version in view.bytes)

        self._settle(found, looked, now)
        self._heal(problem, docket, view)
        return view

    def audit(self, broken: str | None, *, now: float) -> None:
        """The audit itself: open while it does not hold."""
        found = []
        if broken:
            found = [Finding(problem="", version="", part="audit", what="the audit", expected="whole", got=broken, at=now)]
        self._settle(found, lambda one: one.part == "audit", now, sure=True)

    @property
    def hurried(self) -> bool:
        """Something looked wrong once: look again soon."""
        return bool(self.findings.suspects)

    def _settle(self, found: list[Finding], looked: Callable[[Finding], bool], now: float, *, sure: bool = False) -> None:
        opened, closed = self.findings.settle(found, looked=looked, at=now, sure=sure)
        for one in opened:
            self.tell(one, True)
        for one in closed:
            self.tell(one, False)

    # --- looking
    def _view(self, problem: str, docket: Docket) -> View:
        try:
            model = self.registry.model(problem)
        except (NotFound, Refused):  # MLflow calls an unknown model forbidden
            model = None
        versions = tuple(self.registry.versions(problem))
        hashes = {name: self._hash(problem, name) for name in self._chosen(problem, docket)}
        return View(model=model, versions=versions, bytes=hashes)

    def _chosen(self, problem: str, docket: Docket) -> list[str]:
        """Whose files are hashed in this look: the champion's, the newest open ones', what was wrong before, one in turn."""
        names = sorted(docket.versions, key=lambda name: docket.versions[name].n)
        serving = self.book.champion(problem)
        waiting = [name for name in names if docket.decision(name) is None and (serving is None or name != serving.version)]
        doubted = (*self.findings.open.values(), *self.findings.suspects)
        wrong = [one.version for one in doubted if one.problem == problem and one.part == "bytes"]
        chosen = ([serving.version] if serving else []) + waiting[-OPEN:] + wrong
        rest = [name for name in names if name not in chosen]
        if rest:
            turn = self._turns[problem] = self._turns.get(problem, -1) + 1
            chosen.append(rest[turn % len(rest)])
        return [name for name in dict.fromkeys(chosen) if name in docket.versions]

    def _hash(self, problem: str, version: str) -> str | None:
        """Digest of a version's files, None when there are none or they do not come. Raises Unavailable if nothing comes."""
        try:
            files = self.registry.payload(problem, version)
        except (DataError, Refused):
            return None
        except Unavailable:
            self.registry.changes()  # raises if it is the registry that is away, and not this version's files
            return None
        return tree_digest(files) if files else None

    # --- putting right
    def _heal(self, problem: str, docket: Docket, view: View) -> None:
        """Write again what is ours and says something else. What is refused stays a finding, and is tried ever less often."""
        wrong = [one for one in self.findings.open.values() if one.problem == problem and one.part.split(".")[0] in OURS]
        for name in dict.fromkeys((one.version, _OFFICE.get(one.part, one.part.split(".")[0])) for one in wrong):
            version, part = name
            key = f"{problem}/{version}/{part}"
            if not self._patience.ready(key):
                continue
            try:
                self._write(problem, version, part, docket, view)
                self._patience.done(key)
            except (Refused, DataError):
                self._patience.failed(key)

    def _write(self, problem: str, version: str, part: str, docket: Docket, view: View) -> None:
        last = self.book.last(problem)
        seen = next((known for known in view.versions if known.version == version), None)
        if part == "champion" and last is not None:
            self.registry.move_champion(problem, last.release.version)
        elif part == "head" and problem in self.heads:
            self.registry.attach_head(problem, self.heads[problem])
        elif part == "release" and seen is not None:
            own = [issued for issued in self.book.issued(problem) if issued.release.version == version]
            for issued in own:
                self.registry.attach_release(problem, version, issued.envelope, newest=issued is own[-1], seen=seen)
        elif part == "verdict" and seen is not None:
            judged = self.book.verdict(problem, docket.versions[version].payload)
            if judged is not None and judged.version == version and judged.run:
                self.registry.show_verdict(
                    problem, version, judged.envelope,
                    description=judged.description, indicators=judged.indicators, run=judged.run, seen=seen,
                )  # fmt: skip


_OFFICE = {"description": "verdict"}  # parts that are written together with another
