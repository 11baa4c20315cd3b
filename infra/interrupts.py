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
    """The first of them ends the block as an exception, so that what was begun is cleaned up; more do not disturb that."""
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) == 1:
            _raise(number)

    with _handled(handle):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """They wait until the block is done, then count."""
    seen: list[int] = []
    try:
        with _handled(lambda number, frame: seen.append(number)):
            yield
    finally:
        if seen:
            _raise(seen[0])


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
