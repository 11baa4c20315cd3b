"""When to look at the registry again: at once when somebody wrote to it, else every few seconds.

The registry holds a question open until something is written (`changes`). An edit behind its guard's back changes no word of
it, so a look in full comes every `FULL_S` all the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from truing.tasks.errors import TruingError

FULL_S = 4.0  # at most this long between two looks
GAP_S = 0.1  # at least this long between two that changes called for: many writes in a row are one reason to look


class Watch:
    """Waits in one thread. `asleep` says that it only waits for the registry, so nobody has to wait for it."""

    def __init__(
        self,
        changes: Callable[[str, float], str],
        *,
        poll_s: float,
        stop: threading.Event,
        pause: Callable[[float], object] | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """`changes(word, wait_s)` returns another word after the next write, or the same one after `wait_s` seconds.

        Where it raises a TruingError, or returns at once with nothing new, it is asked each `poll_s` seconds.
        """
        self.asleep = False
        self._changes = changes
        self._poll_s = poll_s
        self._stop = stop
        self._pause = pause or stop.wait
        self._timer = timer
        self._word = ""
        self._looked = timer()

    def wait(self) -> None:
        """Return when it is time to look: something was written, `FULL_S` has passed, or nothing can be heard of the registry.

        What is written while the caller looks is not missed: the word is older than the look.
        """
        self.asleep = True
        try:
            self._listen()
        finally:
            self.asleep = False
        self._looked = self._timer()

    def _listen(self) -> None:
        end = self._timer() + FULL_S
        while not self._stop.is_set() and (left := end - self._timer()) > 0:
            asked = self._timer()
            try:
                word = self._changes(self._word, left)
            except TruingError:
                self._pause(self._poll_s)
                return
            if word != self._word:
                self._word = word
                if (early := self._looked + GAP_S - self._timer()) > 0:
                    self._pause(early)
                return
            if self._timer() - asked < left / 2:  # it does not hold the question open
                self._pause(self._poll_s)
