"""Who lands what: keeper k of `ingest.keepers` reads the partitions p with p % keepers == k. And what holds keepers apart.

On one vault, locks that the kernel drops with their process: one for each number, so that nobody starts a keeper twice, and
*chief*, for what one of them does for all (joins, control topic, triggers, compaction). They lie in the vault because that is
what is shared: containers of one machine each have a run folder of their own. The chief's lock is tried again all the time, so
another keeper is chief within a second of its death.

Locks are a courtesy that saves work; what the promise rests on is the commit. Each carries the next offset of its partitions as
Delta transactions, and is refused unless the ones that its reader started from still stand. So keepers that both believe to own
a partition (another host, another number of keepers, a lake on S3, where no lock reaches) land each message once all the same:
the slower one is refused, reads the places again and goes on behind the faster one. Two chiefs are parted the same way.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from truing.infra.settings import Settings
from truing.tasks.errors import SettingsError, Unavailable

PART = "ingest"
CHIEF = "chief"


class Busy(Unavailable):
    """Another keeper holds this number, or this vault."""


def part(number: int) -> str:
    """The name of keeper `number` among the parts: ingest, ingest-1, ingest-2, …"""
    return PART if number == 0 else f"{PART}-{number}"


def parts(settings: Settings) -> tuple[str, ...]:
    """The names of all keepers of these settings."""
    return tuple(part(number) for number in range(settings.ingest.keepers))


def is_keeper(name: str) -> bool:
    """Is the part of that name a keeper?"""
    return name == PART or (name.startswith(f"{PART}-") and name.removeprefix(f"{PART}-").isdigit())


def share(settings: Settings, number: int) -> tuple[int, int]:
    """(number, keepers). Raises SettingsError when these settings know no keeper of that number."""
    keepers = settings.ingest.keepers
    if not 0 <= number < keepers:
        raise SettingsError(
            f"setting ingest.keepers: expected more than {number} for keeper {number}, got {keepers}; raise it or start fewer"
        )
    return number, keepers


def claim(settings: Settings, name: str) -> int:
    """Take one lock, by a keeper's number or CHIEF: held until the returned handle is closed. Raises Busy, Unavailable."""
    folder = _folder(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / name, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise Unavailable(f"expected a writable folder {folder}, got: {error.strerror}; check its permissions") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        which = "" if name == "0" else f" ({name})"
        raise Busy(f"expected no other keeper on {settings.data}{which}, got one; it goes on, this one is not needed") from None
    return handle


def claim_all(settings: Settings) -> list[int]:
    """Every number's lock and the chief's, also those of an earlier, larger number of keepers: then none runs. Raises Busy."""
    folder = _folder(settings)
    known = [path.name for path in folder.iterdir()] if folder.exists() else []
    held: list[int] = []
    try:
        for name in sorted({*known, *map(str, range(settings.ingest.keepers)), CHIEF}):
            held.append(claim(settings, name))
    except Unavailable:
        release(held)
        raise
    return held


def release(handles: list[int]) -> None:
    """Let go; what was let go already is not closed twice."""
    while handles:
        os.close(handles.pop())


def _folder(settings: Settings) -> Path:
    return settings.vault / ".keepers"
