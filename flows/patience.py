"""When to try again what failed: soon at first, then ever less often. Monotonic seconds: a jump of the clock does nothing."""

from __future__ import annotations

import time
from collections.abc import Callable


class Patience:
    """Waits of `first_s`, doubled at each failure up to `most_s`, kept by name. Names that are not asked for again are few."""

    def __init__(self, first_s: float, most_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.first_s, self.most_s, self._clock = first_s, most_s, clock
        self._waits: dict[str, tuple[float, float]] = {}  # name → not before, the wait after that

    def ready(self, name: str) -> bool:
        return self._clock() >= self._waits.get(name, (0.0, 0.0))[0]

    def failed(self, name: str, *, most_s: float | None = None) -> None:
        """`most_s` bounds this very wait."""
        wait = min(self._waits.get(name, (0.0, self.first_s))[1], most_s or self.most_s)
        self._waits[name] = (self._clock() + wait, min(wait * 2, self.most_s))

    def done(self, name: str) -> None:
        self._waits.pop(name, None)
