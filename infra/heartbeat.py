"""Signs of life of parts that open no port: one small JSON file each below `<data>/run/<part>`, replaced in one move."""

from __future__ import annotations

import json
import os
from typing import Any

from truing.infra.settings import Settings


def beat(settings: Settings, part: str, *, now: float, **facts: Any) -> None:
    """Say that `part` is alive at `now` (Unix seconds), with facts that JSON can carry. Call it every few seconds at most."""
    path = settings.place(part) / "beat.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".beat.{os.getpid()}")
    draft.write_text(json.dumps({"pid": os.getpid(), "at": now, **facts}))
    draft.replace(path)


def last_beat(settings: Settings, part: str) -> dict[str, Any] | None:
    """The last sign of life, or None when there never was one or it does not read."""
    try:
        found = json.loads((settings.place(part) / "beat.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
