"""The registry's memory: who asked for what, and what came of it. Append-only, hash-chained, each line signed.

One JSON line a record. `digest` is the sha256 of the canonical record with its `previous`, so no line can be changed, moved or
left out in the middle; `seal` is the registry key's signature over it, so nobody without that key can rewrite the chain to its
end. What a chain alone can't show is a cut tail: whoever needs that keeps `head()` elsewhere.
"""

from __future__ import annotations

import base64
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from truing.tasks.errors import Unavailable
from truing.tasks.records import Record
from truing.tasks.seal import digest

START = "0" * 64


class Entry(Record, frozen=True):
    """One line. `outcome`: allowed (it may pass), done (stamped), refused, failed (it passed, then MLflow said no)."""

    n: int
    at: float
    user: str
    act: str
    target: str
    outcome: str
    reason: str
    previous: str


class Line(Record, frozen=True):
    entry: Entry
    digest: str
    seal: str


class Audit:
    """The open log of one server. Holds a file lock: a second server on the same folder is told so and ends."""

    def __init__(self, path: Path, private_key: bytes) -> None:
        self.path = path
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
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

    def add(self, user: str, act: str, target: str, outcome: str, reason: str, at: float) -> None:
        """Append one record and see it on the disk before returning."""
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
            )
            name = digest(entry)
            seal = base64.b64encode(self._key.sign(name.encode())).decode()
            os.write(self._file, msgspec.json.encode(Line(entry=entry, digest=name, seal=seal)) + b"\n")
            os.fsync(self._file)
            self._n, self._head = entry.n, name

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


def read(path: Path) -> Iterator[Line]:
    """The lines as they stand, unchecked. Raises Unavailable at one that does not read."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield msgspec.json.decode(raw, type=Line)
            except msgspec.DecodeError:
                raise Unavailable(
                    f"expected an audit record at line {number} of {path}, got something else; restore it from a backup"
                ) from None


def verify(path: Path, public_key: bytes, *, head: tuple[int, str] | None = None) -> str | None:
    """None if the chain is whole and every seal holds; else one line that says where it breaks.

    With `head` (kept elsewhere), a tail cut off after it is found too.
    """
    key = Ed25519PublicKey.from_public_bytes(public_key)
    previous, count = START, 0
    seen: dict[int, str] = {}
    try:
        for count, line in enumerate(read(path), start=1):
            where = f"audit record {count}"
            if line.entry.n != count or line.entry.previous != previous:
                return f"{where}: expected it to follow record {count - 1}, it does not; a record was removed or moved"
            if digest(line.entry) != line.digest:
                return f"{where}: expected the digest of its own text, got another; it was edited"
            try:
                key.verify(base64.b64decode(line.seal, validate=True), line.digest.encode())
            except (InvalidSignature, ValueError):
                return f"{where}: expected the registry's seal, got another; it was written by somebody else"
            previous = seen[count] = line.digest
    except Unavailable as error:
        return str(error)
    if head is not None and head[0] and seen.get(head[0]) != head[1]:
        return f"audit: expected record {head[0]} to be {head[1][:12]}, it is not; the tail was cut or rewritten"
    return None
