"""Waits until the disk has what was written, one fsync for all who wait (group commit, as databases do)."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from truing.tasks.errors import Unavailable
from truing.tasks.flush import flush

_flush_data = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class Disk:
    """Counts writes by tickets. `wrote` and `left` are called under the writer's own lock, `wait` outside of it."""

    def __init__(self, folder: Path) -> None:
        self.synced = 0  # tickets up to here are on the disk
        self.fsyncs = 0
        self._folder = folder
        self._guard = threading.Condition(threading.Lock())
        self._busy = False  # one of those who wait is at it, for all who came before
        self._handle = -1
        self._named = -1  # the file whose name the folder has on the disk
        self._leaving: list[int] = []
        self._tickets = 0
        self.error: str | None = None
        self._lost: list[tuple[int, int]] = []  # tickets of failed fsyncs: the kernel tells only once, then forgets the pages

    def wrote(self, handle: int) -> int:
        """A write to that file has been made; the ticket to wait with."""
        with self._guard:
            self._handle = handle
            self._tickets += 1
            return self._tickets

    def left(self, handle: int) -> None:
        """Nothing more will be written there: close it with the next fsync."""
        with self._guard:
            self._leaving.append(handle)

    def wait(self, ticket: int) -> None:
        """Return when the write of that ticket is on the disk. Raises Unavailable when the disk fails: it may be, or not."""
        with self._guard:
            self._guard.wait_for(lambda: not self._busy or self._settled(ticket))
            mine = not self._settled(ticket)
            if mine:
                self._busy = True
        if mine:
            self._sync()
        if self._is_lost(ticket):
            raise Unavailable(f"the answer can't be recorded in {self._folder}: the disk failed ({self.error}); check it")

    def close(self) -> None:
        """Sync and close what was left."""
        with self._guard:
            self._guard.wait_for(lambda: not self._busy)
            self._busy = True
        self._sync()

    def _settled(self, ticket: int) -> bool:
        return self.synced >= ticket or self._is_lost(ticket)

    def _is_lost(self, ticket: int) -> bool:
        return any(first <= ticket <= last for first, last in self._lost)

    def _sync(self) -> None:
        """Called by the one who has set `_busy`, so by one thread at a time."""
        with self._guard:
            upto, handle, leaving = self._tickets, self._handle, self._leaving
            self._leaving = []
        failed = True  # until it is through: told to all whose events it held
        try:
            for each in leaving:
                os.fsync(each)
            if handle >= 0 and handle not in leaving:
                _flush_data(handle)
            if handle != self._named:
                flush(self._folder)
                self._named = handle
            failed = False
        except OSError as error:
            self.error = error.strerror
        finally:
            for each in leaving:
                with suppress(OSError):
                    os.close(each)
            with self._guard:
                if failed:
                    first = self._lost.pop()[0] if self._lost and self._lost[-1][1] == self.synced else self.synced + 1
                    self._lost.append((first, upto))
                self.synced = upto
                self.fsyncs += 1
                self._busy = False
                self._guard.notify_all()
