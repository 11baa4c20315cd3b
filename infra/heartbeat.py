"""Signs of life of parts that open no port: one small JSON file each below `<data>/run/<part>`, replaced in one move.

Its age is told by the machine's count of seconds since it was started: a clock that is set, by hand or by NTP, makes no living
part look dead and no dead one alive.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import Any

from truing.infra.settings import Settings


def uptime() -> float:
    """Seconds since this machine was started, sleep included where the system counts it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def beat(settings: Settings, part: str, *, now: float, steady: float | None = None, **facts: Any) -> bool:
    """Say that `part` is alive at `now` (Unix seconds, for people), with facts that JSON can carry; every few seconds at most.

    `steady` is `uptime()`. False = it could not be written (a full disk): the part itself goes on.
    """
    path = settings.place(part) / "beat.json"
    draft = path.with_name(f".beat.{os.getpid()}")
    said = {"pid": os.getpid(), "at": now, "up": uptime() if steady is None else steady, **facts}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(said))
        draft.chmod(0o644)  # anybody may see that a part lives; only its account may say so
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        return False
    return True


def last_beat(settings: Settings, part: str) -> dict[str, Any] | None:
    """The last sign of life, or None when there never was one or it does not read."""
    try:  # the folder is its account's: neither a link nor a pipe that it lays there may lead root astray
        handle = os.open(settings.place(part) / "beat.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle) as file:
            found = json.loads(file.read(65_536))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def age(beat: dict[str, Any] | None, *, steady: float | None = None) -> float | None:
    """Seconds since that sign of life; None if there is none, or it is from before the machine was last started."""
    try:
        since = (uptime() if steady is None else steady) - float((beat or {})["up"])
    except (KeyError, TypeError, ValueError):
        return None
    return since if since >= 0 else None
