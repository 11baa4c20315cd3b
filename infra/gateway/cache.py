"""What the gateway remembers of one problem: the last admitted release with its payload, and the floor it never goes below.

Two files: `state.json` (floor, envelope), replaced in one move, and `<payload digest>.msgpack` (the payload's files in one
blob, so that no name inside it can become a path). Both are fsynced before the release answers its first request, the blob
first: whenever the process dies, the state that is found names a blob that is whole.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from truing.tasks.errors import Unavailable
from truing.tasks.flush import flush
from truing.tasks.records import Record


class State(Record, frozen=True):
    """`floor` is the highest sequence ever admitted, `statement` the digest of that release's record."""

    floor: int
    statement: str
    version: str
    payload: str
    envelope: str


class Cache:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def state(self) -> State | None:
        """None before the first release. Raises Unavailable when the floor can't be read: without it nothing may be served."""
        path = self.folder / "state.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=State)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise Unavailable(f"expected the floor sequence in {path}, got: {error}; restore that file") from None

    def payload(self, digest: str) -> dict[str, bytes] | None:
        """The files as they lie there, unproven: whoever takes them hashes them. None if they are gone or unreadable."""
        try:
            return msgspec.msgpack.decode((self.folder / f"{digest}.msgpack").read_bytes(), type=dict[str, bytes])
        except (OSError, msgspec.DecodeError):
            return None

    def keep(self, state: State, files: dict[str, bytes] | None) -> None:
        """Persist payload, then state; `files` None = nothing is to be served (a withdrawal).

        Raises Unavailable when the disk does not take it; then the old state still stands.
        """
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                flush(self.folder.parent)
            if files is not None:
                _replace(self.folder / f"{state.payload}.msgpack", msgspec.msgpack.encode(files))
            before = self.state()
            _replace(self.folder / "state.json", msgspec.json.encode(state))
            self._tidy(state.payload, before.payload if before else state.payload)
        except OSError as error:
            raise Unavailable(
                f"the release can't be kept in {self.folder}: {error.strerror}; free space or permissions"
            ) from None

    def _tidy(self, *payloads: str) -> None:
        """Drop what is of no use: the payload before stays (a rollback comes quicker), drafts of a process that died don't."""
        for path in self.folder.iterdir():
            if path.name.startswith(".") or (path.suffix == ".msgpack" and path.stem not in payloads):
                path.unlink(missing_ok=True)


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    flush(path.parent)
