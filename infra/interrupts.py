"""Ctrl-C and SIGTERM while a stack is started or stopped: neither leaves half of it running."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a polite kill, a terminal that was closed


@contextmanager
def raised() -> Iterator[None]:
    """The first of them is raised as an exception, for the block to clean up; more do not disturb that. May be nested."""
    if isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), _First):
        yield
        return
    with _handled(_First().hear):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """They wait until the block is done, then count: for the `raised` block around it too, which hears of the first only."""
    seen: list[int] = []
    try:
        with _handled(lambda number, frame: seen.append(number)):
            yield
    finally:
        if seen:
            around = signal.getsignal(seen[0])
            if callable(around):
                around(seen[0], None)
            else:
                _raise(seen[0])


class _First:
    def __init__(self) -> None:
        self._heard = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        if not self._heard:
            self._heard = True
            _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def _handled(handle: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one may
        yield
        return
    before = {number: signal.signal(number, handle) for number in ENDS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
