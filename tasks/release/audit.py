"""The chain of acts: who asked for what, and what came of it. One JSON line a record, chained, each signed by the registry.

`digest` is the sha256 of the canonical entry with its `previous`, so no line can be changed, moved or left out in the middle;
`seal` is the registry key's signature over it. What a chain alone can't show is a cut tail: the steward countersigns its head
(`records.Head`), and goes on only from where it was. Pure: the registry writes it (`infra.registry_guard.audit`), all others
read it, as a file or over HTTP.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from truing.tasks.errors import Unavailable
from truing.tasks.records import Record
from truing.tasks.seal import digest

START = "0" * 64


class Entry(Record, frozen=True):
    """One line. `outcome`: allowed (it may pass), done (stamped), refused, failed (it passed, then MLflow said no).

    `facts` of a done act with power are what `acts.Acts` reads; values are text.
    """

    n: int
    at: float
    user: str
    act: str
    target: str
    outcome: str
    reason: str
    previous: str
    facts: dict[str, str] = msgspec.field(default_factory=dict)


class Line(Record, frozen=True):
    entry: Entry
    digest: str
    seal: str


class Mark(Record, frozen=True):
    """How far a reader has come: number and digest of the last line it has checked."""

    n: int = 0
    digest: str = START


class Broken(Unavailable):
    """The chain does not hold. What was read before the break stands; nothing after it counts."""


def seal_line(entry: Entry, private_key: bytes) -> Line:
    name = digest(entry)
    seal = Ed25519PrivateKey.from_private_bytes(private_key).sign(name.encode())
    return Line(entry=entry, digest=name, seal=base64.b64encode(seal).decode())


def follow(lines: Iterable[Line], *, keys: Iterable[bytes], since: Mark | None = None) -> Iterator[Line]:
    """The lines after `since`, each checked against the one before it and against the registry's public `keys`.

    Raises Broken at the first that does not continue the chain.
    """
    trusted = [Ed25519PublicKey.from_public_bytes(key) for key in keys]
    mark = since or Mark()
    for line in lines:
        entry = line.entry
        if entry.n <= mark.n:
            if entry.n == mark.n and line.digest != mark.digest:
                raise Broken(f"audit record {entry.n} is another one than was countersigned; the audit was rewritten")
            continue
        if entry.n != mark.n + 1 or entry.previous != mark.digest:
            raise Broken(f"audit record {entry.n}: expected record {mark.n + 1} after {mark.digest[:12]}; records are missing")
        if digest(entry) != line.digest:
            raise Broken(f"audit record {entry.n} was changed: its digest is {digest(entry)[:12]}, it says {line.digest[:12]}")
        if not any(_signed(key, line) for key in trusted):
            raise Broken(f"audit record {entry.n} is not signed by the registry")
        mark = Mark(n=entry.n, digest=line.digest)
        yield line


def read(path: Path) -> Iterator[Line]:
    """The lines as they stand, unchecked; none if there is no file. Raises Broken at one that does not read."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"expected to read the audit {path}, got: {error.strerror}; run as its owner") from None
    with file:
        for number, raw in enumerate(file, start=1):
            try:
                yield msgspec.json.decode(raw, type=Line)
            except msgspec.DecodeError:
                raise Broken(
                    f"expected an audit record at line {number} of {path}, got something else; restore it from a backup"
                ) from None


def verify(path: Path, keys: Iterable[bytes], *, heads: Iterable[Mark] = ()) -> Mark:
    """The mark of a whole, signed chain that holds every one of `heads` (kept elsewhere). Raises Broken where it does not."""
    wanted = {head.n: head.digest for head in heads if head.n}
    last = Mark()
    for line in follow(read(path), keys=keys):
        last = Mark(n=line.entry.n, digest=line.digest)
        if wanted.pop(last.n, last.digest) != last.digest:
            raise Broken(f"audit record {last.n} is another one than was countersigned; the audit was rewritten")
    if wanted:
        raise Broken(f"expected audit record {max(wanted)}, which was countersigned, got {last.n}: the tail was cut")
    return last


def _signed(key: Ed25519PublicKey, line: Line) -> bool:
    try:
        key.verify(base64.b64decode(line.seal, validate=True), line.digest.encode())
    except (InvalidSignature, ValueError):
        return False
    return True
