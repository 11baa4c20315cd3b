"""A Delta table's log, followed entry by entry: a look costs what was committed since the last one, however long the log is.

delta-rs lists the log's folder several times at every look and every commit: 10 ms with a hundred entries, 280 ms with 20,000,
which is an hour of traffic. An entry appears whole and never changes (Delta's protocol), so those that are new are all there is
to read; and one that is linked under the next free number is a commit. What is not as expected (an entry gone, another table
in its place, a new schema) is not guessed at: the caller starts anew from what delta-rs says.

Local folders only.
"""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import msgspec

from truing.tasks.flush import flush

REMEMBERED = 1_000  # commits: who asks for what was added since an older one is answered by delta-rs
CHECKPOINT = 100  # commits between two checkpoints, as Delta is wont to


class _File(msgspec.Struct):
    path: str
    dataChange: bool = True
    deletionVector: msgspec.Raw | None = None


class _Application(msgspec.Struct):
    appId: str
    version: int


class _Action(msgspec.Struct):
    add: _File | None = None
    remove: _File | None = None
    txn: _Application | None = None
    protocol: msgspec.Raw | None = None
    metaData: msgspec.Raw | None = None


class _Step(NamedTuple):
    added: list[str]
    rewrote: bool  # rows were changed or deleted: what is added holds old ones


_ACTION = msgspec.json.Decoder(_Action)


class Log:
    """What a table holds at `version`. `files` are paths of data files, in the order in which they were added."""

    def __init__(self, folder: Path, version: int, files: Iterable[str], columns: Iterable[str] = ()) -> None:
        self.folder = folder
        self.version = version
        self.columns = frozenset(columns)
        self.files: dict[str, None] = dict.fromkeys(files)
        self.told: dict[str, int | None] = {}  # application → its version here; one that nobody asked for may be missing
        self._mark: tuple[int, int] | None = None
        self._steps: deque[_Step] = deque(maxlen=REMEMBERED)

    def transaction_version(self, app_id: str) -> int | None:
        """As a Delta handle has it; only of those in `told`."""
        return self.told[app_id]

    def follow(self, upto: int | None = None) -> bool:
        """Go on to the newest version, or to `upto`. False: this log can't be followed any more; start anew."""
        try:
            at = self._entry(self.version).stat()
            mark = at.st_ino, at.st_mtime_ns
            if self._mark not in (None, mark):
                return False
            self._mark = mark
            while upto is None or self.version < upto:
                try:
                    with self._entry(self.version + 1).open("rb") as entry:
                        text, at = entry.read(), os.fstat(entry.fileno())
                except FileNotFoundError:
                    break
                if not self._apply([_ACTION.decode(line) for line in text.splitlines()]):
                    return False
                self._mark = at.st_ino, at.st_mtime_ns
        except (OSError, msgspec.DecodeError):
            return False
        return True

    def added(self, version: int) -> list[str] | None:
        """The files whose rows came after `version`, as they were written; None when that can't be told.

        One that was merged with others since stands here and no more in `files`: it lies on the disk until it is vacuumed.
        """
        count = self.version - version
        steps = list(self._steps)[len(self._steps) - count :] if count <= len(self._steps) else None
        if steps is None or any(step.rewrote for step in steps):
            return None
        found = [file for step in steps for file in step.added]
        return found if all(file in self.files or os.path.exists(file) for file in found) else None

    def commit(self, name: str, rows: int, transactions: Sequence[tuple[str, int]], *, sync: bool = True) -> bool:
        """Make the next version: `rows` more in data file `name` ("" = none). False: somebody else was first, or is ahead.

        With `sync` the disk has data and entry before the entry has its name, so a power cut leaves no version of ours that
        does not read, and the name when this returns. Raises OSError when it can't be written, and then it is not: nothing
        behind the link raises. Who is interrupted, or told that somebody else was first, may have committed: `files` knows
        after `follow`.
        """
        entry = self._entry(self.version + 1)
        draft = entry.with_name(f"_commit_{uuid.uuid4()}.json.tmp")
        try:
            if name and sync:
                flush(self.folder / name)
                flush(self.folder)
            self._draft(draft, name, rows, transactions)
            if sync:
                flush(draft)
            try:
                os.link(draft, entry)
            except FileNotFoundError:  # who slept so long that the draft was swept away
                return False
            except OSError as error:
                if draft.stat().st_nlink < 2:  # else it was made, and the answer to it got lost, as a network's may
                    if isinstance(error, FileExistsError):
                        return False
                    raise
        finally:
            with suppress(OSError):
                draft.unlink()
        try:
            self._entry(self.version).stat()
        except FileNotFoundError:  # who slept until the log was trimmed has filled a gap in it, where nobody looks
            with suppress(OSError):
                entry.unlink()
            return False
        except OSError:  # it can't be looked at, which says nothing against the commit
            return True
        if sync:
            with suppress(OSError):
                flush(entry.parent)
        return True

    def _draft(self, draft: Path, name: str, rows: int, transactions: Sequence[tuple[str, int]]) -> None:
        draft.touch()
        now = int(draft.stat().st_mtime * 1000)  # the clock that the log's readers go by
        actions: list[dict[str, object]] = [
            {"commitInfo": {"timestamp": now, "operation": "WRITE", "operationParameters": {"mode": "Append"}}}
        ]
        if name:
            stats = msgspec.json.encode({"numRecords": rows}).decode()
            size = (self.folder / name).stat().st_size
            file = {"path": name, "partitionValues": {}, "size": size, "modificationTime": now, "dataChange": True}
            actions.append({"add": {**file, "stats": stats}})
        actions += [{"txn": {"appId": app, "version": at, "lastUpdated": now}} for app, at in transactions]
        draft.write_bytes(b"\n".join(map(msgspec.json.encode, actions)))

    def _apply(self, actions: list[_Action]) -> bool:
        if any(one.protocol or one.metaData or (one.add and one.add.deletionVector) for one in actions):
            return False
        step = _Step([], any(one.remove is not None and one.remove.dataChange for one in actions))
        for one in actions:
            if one.remove is not None:
                self.files.pop(self._path(one.remove), None)
            if one.txn is not None:
                self.told[one.txn.appId] = one.txn.version
        for one in actions:
            if one.add is not None:
                self.files[self._path(one.add)] = None
                if one.add.dataChange:
                    step.added.append(self._path(one.add))
        self._steps.append(step)
        self.version += 1
        return True

    def _path(self, file: _File) -> str:
        return f"{self.folder}/{unquote(file.path)}"

    def _entry(self, version: int) -> Path:
        return entry(self.folder, version)


def added_by(entry: Path) -> list[str]:
    """The data files that an entry adds, below the table's folder. Raises OSError."""
    actions = [_ACTION.decode(line) for line in entry.read_bytes().splitlines()]
    return [unquote(one.add.path) for one in actions if one.add is not None]


def settle(folder: Path) -> int | None:
    """Wait until the disk has the last checkpoint of a table's log; its version, or None while there is none. delta-rs does not
    wait. Raises OSError.
    """
    log = folder / "_delta_log"
    try:
        hint = (log / "_last_checkpoint").read_bytes()
        last = int(msgspec.json.decode(hint)["version"])
        flush(log / f"{last:020}.checkpoint.parquet")
        flush(log / "_last_checkpoint")
        flush(log)
    except (FileNotFoundError, KeyError, ValueError, TypeError, msgspec.DecodeError):
        return None
    return last


def entry(folder: Path, version: int) -> Path:
    """Where the log of a table's folder has what made `version`."""
    return folder / "_delta_log" / f"{version:020}.json"


def trim(folder: Path, *, before: float) -> int:
    """Delete a log's entries older than `before` (Unix seconds) that its last checkpoint makes superfluous; how many went.

    In ascending order, always: `commit` goes by that. Readers and writers that stand behind go on from the checkpoint.
    """
    log, gone = folder / "_delta_log", 0
    try:
        last = settle(folder)
        if last is None:
            return 0
        for name in sorted(os.listdir(log)):
            number, _, kind = name.partition(".")
            old = number.isdigit() and int(number) < last and kind in ("json", "checkpoint.parquet")
            if not old and not name.endswith(".tmp"):
                continue
            path = log / name
            if path.stat().st_mtime < before:
                path.unlink()
                gone += 1
            elif old and kind == "json":
                break
    except OSError:
        return gone  # somebody else trims, or these are not ours to delete
    return gone
