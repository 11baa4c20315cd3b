"""The steward's eyes on the registry: the audit followed line by line into acts, and a wait for the next write.

The audit is read over HTTP and believed by its chain, its signatures and the steward's own marks: records that the steward has
countersigned must still be there, the same. Where they are not, nothing is decided any more until they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from truing.tasks.errors import DataError, Unavailable
from truing.tasks.release.acts import Acts
from truing.tasks.release.audit import Broken, Mark, follow
from truing.tasks.seal import Keys

if TYPE_CHECKING:
    from truing.tasks.release.book import Book
    from truing.tasks.release.registry import Registry

STRETCH = 200  # records that are read again in one look, to see whether history is still the same


class Watch:
    """What the steward has read so far. `keys` gives the public keys of the moment."""

    def __init__(self, registry: Registry, book: Book, keys: Callable[[], Keys]) -> None:
        self.registry, self.keys = registry, keys
        self.acts = Acts(keys().registry)
        self.people = 0  # number of the last act with power that was not the steward's own
        self._broken: str | None = None
        self._rewritten: str | None = None
        self._wanted = {mark.n: mark.digest for mark in book.marks}
        self._steps = [Mark()]  # every STRETCH records: from where a piece of history can be read again
        self._turn = 0
        self._word = ""

    @property
    def broken(self) -> str | None:
        """Why the audit does not hold, None while it does."""
        return self._broken or self._rewritten

    def catch_up(self) -> int:
        """Read on to the end of the audit; how many records were new. Raises Unavailable when the registry does not answer.

        On the first call it is read from the start, and every record that was countersigned has to be in it.
        """
        self.acts.keys = self.keys().registry
        before = self.acts.mark
        self._broken = None
        try:
            self._follow(before)
        except Broken as error:
            self._broken = str(error)
        except (LookupError, ValueError) as error:
            self._broken = f"audit record {self.acts.mark.n + 1} does not read: {type(error).__name__} {error}"
        return self.acts.mark.n - before.n

    def _follow(self, before: Mark) -> None:
        lines = self.registry.audit(max(0, before.n - 1))  # the last one known comes again: it must be the same
        if before.n and (not lines or lines[0].entry.n > before.n):
            raise Broken(f"expected audit record {before.n}, which was read before: the tail was cut")
        for line in follow(lines, keys=self.acts.keys, since=before):
            n = line.entry.n
            if self._wanted.get(n, line.digest) != line.digest:
                raise Broken(f"audit record {n} is another one than was countersigned; the audit was rewritten")
            self.acts.apply(line)
            if line.entry.outcome == "done" and line.entry.facts and line.entry.user != self.registry.user:
                self.people = n
            if n % STRETCH == 0:
                self._steps.append(self.acts.mark)
        if self.acts.mark.n < max(self._wanted, default=0):
            raise Broken(f"expected audit record {max(self._wanted)}, which was countersigned: the tail was cut")

    def look_back(self) -> None:
        """Read one earlier stretch of the audit again, each in turn, to see whether it still is what it was."""
        if len(self._steps) < 2:
            return
        turn = (self._turn + 1) % (len(self._steps) - 1)
        begin, end = self._steps[turn], self._steps[turn + 1]
        lines = [line for line in self.registry.audit(begin.n, end.n) if line.entry.n <= end.n]
        try:
            last = None
            for last in follow(lines, keys=self.acts.keys, since=begin):  # noqa: B007 - the last one is what is wanted
                pass
            if last is None or last.digest != end.digest:
                raise Broken(f"audit records {begin.n + 1} to {end.n} are others than were read before")
        except Broken as error:
            self._rewritten = f"{error}; the audit was rewritten"  # and this stretch is the next one again
            return
        self._turn, self._rewritten = turn, None

    def wait(self, seconds: float, *, pause: Callable[[float], object]) -> bool:
        """Return when somebody wrote, or after `seconds`; True if somebody did. `pause` waits where the server does not.

        The word is a hint and nothing more: who lies with it makes the steward late, until its next full look.
        """
        begin = time.monotonic()
        try:
            word = self.registry.changes(self._word, seconds)
        except (Unavailable, DataError):
            pause(min(seconds, 1.0))
            return False
        if word != self._word:
            self._word = word
            return True
        left = min(seconds, 1.0) - (time.monotonic() - begin)
        if left > 0:  # a server that does not hold the answer back
            pause(left)
        return False
