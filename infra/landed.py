"""Does the lake have what was written there? What a sender may conclude from the watermark, and what it may not.

On a broker that keeps what it acknowledged, everything below the watermark has landed. One that may lose its tail when it dies
(`forgetful`) gives the lost offsets to other messages, and its watermark may be from before: then only a keeper's word of a
later session counts, in which it has seen that the log is the one it read. Until then everything is kept, and sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from truing.infra.watermark import Mark

EVERY_S = 1.0


class Landed:
    """One thread. `told` = the watermark has been read at least once."""

    def __init__(self, watermark: Callable[[], Mapping[int, Mark]], *, forgetful: bool) -> None:
        self.told = False
        self._watermark = watermark
        self._forgetful = forgetful
        self._due = 0.0
        self._marks: dict[int, Mark] = {}
        self._before: dict[int, Mark] | None = None  # what was told before we wrote: it may be of another log
        self._strict = False  # the broker died while we looked: a mark must be of another session, not only have moved

    def due(self, now: float) -> bool:
        return now >= self._due

    def look(self, now: float, sure: Callable[[], bool]) -> bool:
        """Ask once. True = a log began anew since the last look: what was written before is to be written again.

        `sure` is asked after the answer came: False = the broker may have died meanwhile, and the answer counts for nothing.
        Raises Unavailable.
        """
        self._due = now + EVERY_S
        marks = dict(self._watermark())
        if not sure():
            return False
        again = any(mark.epoch != self._marks[at].epoch for at, mark in marks.items() if at in self._marks)
        if self._before is None:
            self._before = marks
        self._marks, self.told = marks, self.told or bool(marks)
        return again

    def doubt(self) -> None:
        """The broker may have lost its tail: no mark seen so far says anything about what is written from now on."""
        self._before, self._strict, self._due = dict(self._marks) or None, bool(self._marks), 0.0

    def has(self, places: Mapping[int, int]) -> bool:
        """Has everything before these offsets landed?"""
        return all(self._trusted(partition) >= offset for partition, offset in places.items())

    def _trusted(self, partition: int) -> int:
        mark = self._marks.get(partition)
        if mark is None:
            return -1
        before = (self._before or {}).get(partition)
        if self._forgetful and before is not None and mark.session == before.session:
            return -1 if self._strict or mark.offset == before.offset else mark.offset
        return mark.offset
