"""Tells when a broker died, so that what it acknowledged last can be sent again."""

from __future__ import annotations

import socket
import time


class Sentinel:
    """A silent TCP connection that tells when the other end died. Costs one `recv` a call."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._seen = False
        self._next_try = 0.0

    @property
    def watching(self) -> bool:
        """Is the connection held, as far as the last look knows?"""
        return self._socket is not None

    def unwatched(self) -> None:
        """Something was acknowledged that mattered: if nobody watched, the next connection counts as one after a loss."""
        self._seen = self._seen or self._socket is None

    def broken(self) -> bool:
        """True once after each loss, when the other end answers again."""
        if self._socket is None:
            if time.monotonic() < self._next_try:
                return False
            self._next_try = time.monotonic() + 0.5
            try:
                self._socket = socket.create_connection(self._address, timeout=1.0)
            except OSError:
                return False
            self._socket.setblocking(False)
            again, self._seen = self._seen, True
            return again
        try:
            gone = self._socket.recv(1) == b""
        except BlockingIOError:
            return False
        except OSError:
            gone = True
        if gone:
            self._socket.close()
            self._socket = None
        return False
