"""Refused logins, folded: at most one audit line a second, so that nobody fills the disk by knocking."""

from __future__ import annotations

import threading
from collections.abc import Callable

EVERY_S = 1.0


class Knocks:
    """`write` gets how many there were since the line before, and the first of them in words."""

    def __init__(self, write: Callable[[int, str], None], every_s: float = EVERY_S) -> None:
        self._write, self._every_s = write, every_s
        self._lock = threading.Lock()
        self._waiting, self._first = 0, ""
        self._quiet = True  # no line in the last `every_s`

    def knock(self, what: str) -> None:
        with self._lock:
            if not self._quiet:
                self._waiting += 1
                self._first = self._first or what
                return
            self._quiet = False
        self._write(1, what)
        self._later()

    def _later(self) -> None:
        timer = threading.Timer(self._every_s, self._flush)
        timer.daemon = True
        timer.start()

    def _flush(self) -> None:
        with self._lock:
            count, first = self._waiting, self._first
            self._waiting, self._first = 0, ""
            self._quiet = not count
        if count:
            self._write(count, first)
            self._later()
