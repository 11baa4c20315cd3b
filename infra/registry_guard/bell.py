"""Who waits for the next write: any number of coroutines, woken from MLflow's threads."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

LONGEST_S = 30.0
MOST = 1000  # who comes after them is answered at once


class Bell:
    """`word` gives the present state; a waiter is answered as soon as it differs from the one that he has."""

    def __init__(self, word: Callable[[], str]) -> None:
        self.word = word
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next = asyncio.Event()
        self._waiting = 0
        self._closed = False

    def start(self) -> None:
        """Called on the event loop. A server that is told to end answers its waiters first: it would wait for them."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if callable(before):
                signal.signal(number, self._ending(before))

    def ring(self) -> None:
        """From any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    async def wait(self, since: str, seconds: float, gone: Callable[[], Any]) -> str:
        """The word, once it differs from `since`, or after `seconds`. `gone` awaits the client's leaving."""
        if not since or self.word() != since or seconds <= 0 or self._waiting >= MOST:
            return self.word()
        loop = asyncio.get_running_loop()
        end = loop.time() + min(seconds, LONGEST_S)
        left = asyncio.ensure_future(gone())
        self._waiting += 1
        try:
            while not self._closed and not left.done():
                step = asyncio.ensure_future(self._next.wait())
                if self.word() != since or loop.time() >= end:
                    step.cancel()
                    break
                await asyncio.wait({step, left}, timeout=end - loop.time(), return_when=asyncio.FIRST_COMPLETED)
                step.cancel()
        finally:
            self._waiting -= 1
            left.cancel()
        return self.word()

    def _wake(self) -> None:
        rung, self._next = self._next, asyncio.Event()
        rung.set()

    def _ending(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def end(number: int, frame: Any) -> None:
            self._closed = True
            self.ring()
            before(number, frame)

        return end
