"""The registry's open audit: one writer, append-only (`tasks.release.audit` says what a line is and checks the chain)."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import msgspec

from truing.tasks.errors import Unavailable
from truing.tasks.release.audit import START, Entry, Line, read, seal_line

__all__ = ["Audit", "Entry", "Line", "read"]


class Audit:
    """The open log of one server. Holds a file lock: a second server on the same folder is told so and ends."""

    def __init__(self, path: Path, private_key: bytes) -> None:
        self.path = path
        self._key = private_key
        self._lock = threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise Unavailable(f"expected a writable audit at {path}, got {error.strerror}; mend the folder") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise Unavailable(f"expected the audit {path} to be free, another registry holds it; stop that one first") from None
        torn = self._mend()
        last = None
        for last in read(path):  # noqa: B007 - the last one is what is wanted
            pass
        self._n, self._head = (last.entry.n, last.digest) if last else (0, START)
        if torn:
            self.add("registry", "audit.mend", str(path.name), "done", f"a crash left {torn} bytes of a torn last line", 0.0)

    def add(
        self, user: str, act: str, target: str, outcome: str, reason: str, at: float, facts: dict[str, str] | None = None
    ) -> Line:
        """Append one record, see it on the disk, and return it."""
        with self._lock:
            entry = Entry(
                n=self._n + 1,
                at=at,
                user=user,
                act=act,
                target=target,
                outcome=outcome,
                reason=reason[:2000],
                previous=self._head,
                facts=facts or {},
            )
            line = seal_line(entry, self._key)
            os.write(self._file, msgspec.json.encode(line) + b"\n")
            os.fsync(self._file)
            self._n, self._head = entry.n, line.digest
            return line

    def head(self) -> tuple[int, str]:
        """Number and digest of the last record: what to keep elsewhere against a cut tail."""
        return self._n, self._head

    def close(self) -> None:
        os.close(self._file)

    def _mend(self) -> int:
        """Cut a last line without its newline: only a crash in mid-write leaves one, and its act was not answered yet."""
        data = self.path.read_bytes()
        keep = data.rfind(b"\n") + 1
        if keep < len(data):
            os.ftruncate(self._file, keep)
        return len(data) - keep
