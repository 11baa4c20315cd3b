"""Small data files in memory: every join looks into the newest few of each table, and files never change.

What is sealed stays sealed here. A file that a table holds no more is forgotten with the next look (`only`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

import polars as pl

SMALL = 2 << 20  # bytes of a file that may be kept
MOST = 24 << 20  # bytes in memory, of one table


class Kept:
    """Files of one table. `read` gives all of one file."""

    def __init__(self, read: Callable[[str], pl.DataFrame], *, most: int = MOST) -> None:
        self._read = read
        self._most = most
        self._frames: dict[str, pl.DataFrame] = {}  # the one asked for last comes last
        self._bytes = 0.0

    def frame(self, file: str, *, small: int = SMALL) -> pl.DataFrame | None:
        """The whole file; None if it is larger than `small` and not here. Raises OSError."""
        found = self._frames.pop(file, None)
        if found is None:
            if os.path.getsize(file) > small:
                return None
            found = self._read(file)
            self._bytes += found.estimated_size()
        self._frames[file] = found
        while self._bytes > self._most and len(self._frames) > 1:
            self._drop(next(iter(self._frames)))
        return found

    def only(self, files: Collection[str]) -> None:
        """Forget all but these."""
        for file in [file for file in self._frames if file not in files]:
            self._drop(file)

    def _drop(self, file: str) -> None:
        self._bytes -= self._frames.pop(file).estimated_size()
