"""Is what the registry shows the newest there is? The steward's signed head says so, for an hour at a time.

A gateway that remembers a floor refuses whatever is older. One that remembers nothing can't tell a registry of last month from
the present one by the release statement alone: both are signed. The head can, because it runs out.
"""

from __future__ import annotations

from collections.abc import Callable

from truing.tasks import seal
from truing.tasks.records import Head, Refusal, Release

EVERY_S = 30.0  # how often what stands is compared with the head
MOVING_S = 10.0  # the head is signed before `champion` moves: so long it may be ahead
SILENT_S = 120.0  # after a start the last head may have run out: so long the steward may take for the next
_RESTORE = "see `truing audit verify`, then restore the registry or release again"


def outdated(head: str, release: Release, *, keys: seal.Keys, now: float) -> Refusal | None:
    """Why this release is not known to be the newest, or None. `head` is the envelope's JSON, "" if none is attached."""
    newest = seal.open_head(head or None, release.problem, keys=keys, now=now)
    if isinstance(newest, Refusal):
        return Refusal(
            code=newest.code,
            reason=f"expected a fresh head signed by the steward, because no floor is remembered here, got: {newest.reason}",
            remedy=newest.remedy,
        )
    if newest.sequence > release.sequence:
        return Refusal(code="head.newer", reason=_behind(release.sequence, newest.sequence), remedy=_RESTORE)
    if newest.sequence == release.sequence and newest.release != seal.digest(release):
        return Refusal(
            code="head.statement",
            reason=f"release {release.sequence} of {release.problem} is another statement than the steward's head names",
            remedy=_RESTORE,
        )
    return None


class Freshness:
    """Compares what stands with the head now and then. It only speaks: whoever remembers a floor goes on serving."""

    def __init__(self) -> None:
        self.said: str | None = None  # what speaks against the registry
        self._due = 0.0
        self._floor = 0
        self._since: float | None = None
        self._seen = False

    def compare(self, floor: int, problem: str, ask: Callable[[], str], *, keys: seal.Keys, now: float) -> bool:
        """True when `said` became another word. `ask` fetches the head's envelope, if it is time to or `floor` is a new one."""
        if now < self._due and floor == self._floor:
            return False
        before, self._floor = self.said, floor
        head = seal.open_head(ask() or None, problem, keys=keys, now=now)
        wrong = self._wrong(floor, head)
        if wrong is None:
            self.said, self._since, self._due = None, None, now + EVERY_S
            return before is not None
        self._since = now if self._since is None else self._since
        self._due = now + MOVING_S / 4
        if now - self._since >= (SILENT_S if isinstance(head, Refusal) else MOVING_S):
            self.said = wrong
        return self.said != before

    def _wrong(self, floor: int, head: Head | Refusal) -> str | None:
        if isinstance(head, Refusal):
            if head.code == "envelope.missing" and not self._seen:
                return None  # before the steward's first
            return f"nothing says that the registry shows the newest release: {head}"
        self._seen = True
        return f"{_behind(floor, head.sequence)}; {_RESTORE}" if head.sequence > floor else None


def _behind(shown: int, newest: int) -> str:
    return f"the registry shows an older release than the steward's head ({shown}, not {newest})"
