"""A file of one writer that only grows: records chained and sealed like the audit's, each on the disk before it counts.

The steward's book and its findings are such files. Who reads one checks it with `audit.follow` and the writer's public keys.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from truing.tasks.errors import Unavailable
from truing.tasks.flush import flush
from truing.tasks.release.audit import Broken, Entry, Line, Mark, follow, seal_line


class Chain:
    """The open file. Holds a lock on it: a second writer is told so and ends. Raises Unavailable, Broken.

    `key` gives the private key of the moment (it may be rotated meanwhile), `keys` the public ones that count.
    """

    def __init__(self, path: Path, *, user: str, key: Callable[[], bytes], keys: Iterable[bytes]) -> None:
        self.path, self._user, self._key = path, user, key
        self._file = _claim(path)
        try:
            self._mend()
            self._lines = list(follow(whole_lines(path), keys=keys))
        except (OSError, Broken) as error:
            os.close(self._file)
            if isinstance(error, Broken):
                raise Broken(f"{path}: {error}; restore it from a backup, or move it away to have it made anew") from None
            raise Unavailable(f"expected to read {path}, got: {error.strerror}; mend the folder") from None
        last = self._lines[-1] if self._lines else None
        self.mark = Mark(n=last.entry.n, digest=last.digest) if last else Mark()

    def take(self) -> list[Line]:
        """What stood in the file when it was opened; once, and then it is forgotten here."""
        lines, self._lines = self._lines, []
        return lines

    def add(self, act: str, target: str, facts: dict[str, str], *, at: float, reason: str = "") -> Line:
        """Append one record and see it on the disk. Raises Unavailable when the disk does not take it: nothing was added."""
        entry = Entry(
            n=self.mark.n + 1, at=at, user=self._user, act=act, target=target, outcome="done", reason=reason,
            previous=self.mark.digest, facts=facts,
        )  # fmt: skip
        line = seal_line(entry, self._key())
        data = msgspec.json.encode(line) + b"\n"
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, data) != len(data):
                raise OSError(28, "no space left")
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise Unavailable(f"expected to add to {self.path}, got: {error.strerror}; free space or permissions") from None
        self.mark = Mark(n=entry.n, digest=line.digest)
        return line

    def close(self) -> None:
        os.close(self._file)

    def _mend(self) -> None:
        """Cut a last line without its newline: only a crash in mid-write leaves one, and nothing rested on it yet."""
        data = self.path.read_bytes()
        keep = data.rfind(b"\n") + 1
        if keep < len(data):
            os.ftruncate(self._file, keep)


def whole_lines(path: Path) -> list[Line]:
    """The finished lines of a file as they stand, unchecked; none if there is no file. Raises Broken, Unavailable."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unavailable(f"expected to read {path}, got: {error.strerror}; run as its owner") from None
    found = []
    for number, raw in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            found.append(msgspec.json.decode(raw, type=Line))
        except msgspec.DecodeError:
            raise Broken(f"line {number} does not read") from None
    return found


def _claim(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        flush(path.parent)
    except OSError as error:
        raise Unavailable(f"expected a writable file {path}, got: {error.strerror}; mend the folder") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise Unavailable(f"expected {path} to be free, another steward holds it; stop that one first") from None
    return file
