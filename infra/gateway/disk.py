"""Waits until the disk has what was written, one fsync for all who wait (group commit, as databases do)."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from truing.tasks.errors import Unavailable

_flush = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class Disk:
    """Counts writes by tickets. `wrote` and `left` are called under the writer's own lock, `wait` outside of it."""

    def __init__(self, folder: Path) -> None:
        self.synced = 0  # tickets up to here are on the disk
        self.fsyncs = 0
        self._folder = folder
        self._turn = threading.Lock()  # one fsync at a time: who waits for it is mostly served by the next one
        self._guard = threading.Lock()
        self._handle = -1
        self._named = -1  # the file whose name the folder has on the disk
        self._leaving: list[int] = []
        self._tickets = 0
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
        if self.synced >= ticket and not self._lost:
            return
        with self._turn:
            if self.synced < ticket and not self._is_lost(ticket):
                self._sync()
            if self._is_lost(ticket):
                raise Unavailable(f"the answer can't be recorded in {self._folder}: the disk failed; check it")

    def close(self) -> None:
        with self._turn:
            self._sync()

    def _is_lost(self, ticket: int) -> bool:
        return any(first <= ticket <= last for first, last in self._lost)

    def _sync(self) -> None:
        with self._guard:
            upto, handle, leaving = self._tickets, self._handle, self._leaving
            self._leaving = []
        try:
            for each in leaving:
                os.fsync(each)
            if handle >= 0 and handle not in leaving:
                _flush(handle)
            if handle != self._named:
                self._sync_folder()
                self._named = handle
        except OSError:
            self._lost.append((self.synced + 1, upto))
        finally:
            for each in leaving:
                with suppress(OSError):
                    os.close(each)
        self.synced = upto
        self.fsyncs += 1

    def _sync_folder(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
