"""The registry's open audit: one writer, append-only (`tasks.release.audit` says what a line is and checks the chain)."""

from __future__ import annotations

import fcntl
import os
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from truing.tasks.errors import Unavailable
from truing.tasks.release.audit import START, Broken, Entry, Line, Mark, follow, read, seal_line
from truing.tasks.seal import digest

__all__ = ["Audit", "Entry", "Line", "Mark", "read"]
PAGE = 1000  # lines in one answer


class Audit:
    """The open log of one server. Holds a file lock: a second server on the same folder is told so and ends.

    `key` and `trusted` give the registry's private key and its public ones, as they are now (they rotate). `taken` is called
    with every line in order: those on the disk before this returns, then each one added. Raises Unavailable if the
    file can't be held or written, Broken where its chain does not hold.
    """

    def __init__(
        self,
        path: Path,
        key: Callable[[], bytes],
        trusted: Callable[[], Iterable[bytes]],
        taken: Callable[[Line], None] = lambda line: None,
    ) -> None:
        self.path = path
        self.heard: Callable[[], None] = lambda: None  # called after each line added
        self._key, self._taken = key, taken
        self._lock, self._settling = threading.Lock(), threading.Lock()
        self._failed = False
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"expected a writable audit at {path}, got {error.strerror}; mend the folder") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise Unavailable(f"expected the audit {path} to be free, another registry holds it; stop that one first") from None
        self._ends = array("Q", [0])  # where line n ends, in bytes
        self._n, self._head, self._settled = 0, START, 0
        try:
            torn = self._mend()
            self._take(trusted())
        except BaseException:
            self.close()
            raise
        if torn:
            self.add("registry", "audit.mend", str(path.name), "done", f"a crash left {torn} bytes of a torn last line", 0.0)

    def add(
        self, user: str, act: str, target: str, outcome: str, reason: str, at: float, facts: dict[str, str] | None = None
    ) -> Line:
        """Append one record, see it on the disk, and return it. Raises OSError when it could not be kept: nothing was added."""
        line = self.put(user, act, target, outcome, reason, at, facts)
        self.settle(line)
        return line

    def put(
        self, user: str, act: str, target: str, outcome: str, reason: str, at: float, facts: dict[str, str] | None = None
    ) -> Line:
        """Append one record. It is told to nobody before `settle`, which many can share."""
        with self._lock:
            if self._failed:
                raise OSError(5, "an audit record could not be seen on the disk; restart the registry")
            entry = Entry(
                n=self._n + 1,
                at=at,
                user=_clean(user),
                act=_clean(act),
                target=_clean(target[:500]),
                outcome=outcome,
                reason=_clean(reason[:2000]),
                previous=self._head,
                facts=facts or {},
            )
            line = seal_line(entry, self._key())
            self._append(msgspec.json.encode(line) + b"\n")
            self._n, self._head = entry.n, line.digest
            self._taken(line)
            return line

    def settle(self, line: Line) -> None:
        """Return when this record and all before it are on the disk."""
        with self._settling:
            if line.entry.n > self._settled:
                written = self._n
                try:
                    os.fdatasync(self._file)
                except OSError:
                    self._failed = True  # what the ledger took in may be lost: nothing more until it is read anew
                    raise
                self._settled = written
        self.heard()

    def head(self) -> Mark:
        """Number and digest of the last record written: what to keep elsewhere against a cut tail."""
        return Mark(n=self._n, digest=self._head)

    @property
    def settled(self) -> int:
        """Number of the last record that is on the disk."""
        return self._settled

    def page(self, after: int) -> bytes:
        """The settled lines above number `after`, at most PAGE of them, as they stand in the file: JSON {"lines": […]}."""
        last = self._settled
        first = min(max(after, 0), last)
        start, end = self._ends[first], self._ends[min(first + PAGE, last)]
        text = os.pread(self._file, end - start, start) if end > start else b""
        return b'{"lines":[' + b",".join(text.splitlines()) + b"]}"

    def close(self) -> None:
        os.close(self._file)

    def _append(self, data: bytes) -> None:
        """All of it or nothing: a full disk leaves no half line behind, which the next one would be glued to."""
        start = self._ends[-1]
        if os.fstat(self._file).st_size != start:
            os.ftruncate(self._file, start)
        try:
            written = os.write(self._file, data)
            if written < len(data):
                raise OSError(28, "the disk took only a part of the audit record")
        except OSError:
            os.ftruncate(self._file, start)
            raise
        self._ends.append(start + len(data))

    def _take(self, keys: Iterable[bytes]) -> None:
        """Fold what stands in the file. Each record names the one before it, so the seal on the last is a seal on them all."""
        before, mark = Mark(), Mark()
        with self.path.open("rb") as file:
            for line in self._lines(file):
                entry = line.entry
                if entry.n != mark.n + 1 or entry.previous != mark.digest or digest(entry) != line.digest:
                    list(follow([line], keys=keys, since=mark))  # says in what way it does not follow
                    raise Broken(f"audit record {entry.n} does not follow; restore the audit from a backup")
                before, mark = mark, Mark(n=entry.n, digest=line.digest)
                self._taken(line)
        if mark.n:
            list(follow([line], keys=keys, since=before))
        self._n, self._head, self._settled = mark.n, mark.digest, mark.n

    def _lines(self, file: BinaryIO) -> Iterator[Line]:
        for number, raw in enumerate(file, start=1):
            try:
                line = msgspec.json.decode(raw, type=Line)
            except msgspec.DecodeError:
                raise Broken(
                    f"expected an audit record at line {number} of {self.path}, got something else; restore it from a backup"
                ) from None
            self._ends.append(self._ends[-1] + len(raw))
            yield line

    def _mend(self) -> int:
        """Cut a last line without its newline: only a crash in mid-write leaves one, and its act was not answered yet."""
        size = os.fstat(self._file).st_size
        keep = size
        while keep and os.pread(self._file, 1, keep - 1) != b"\n":
            begin = max(0, keep - 65_536)
            keep = begin + os.pread(self._file, keep - begin, begin).rfind(b"\n") + 1
        if keep < size:
            os.ftruncate(self._file, keep)
        return size - keep


def _clean(text: str) -> str:
    """Text that JSON can carry: lone surrogates, which a strange request may bring, become question marks."""
    return text.encode("utf-8", "replace").decode()
