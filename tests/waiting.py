"""Waiting for what happens elsewhere, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from truing.infra.settings import Settings
from truing.infra.status import status
from truing.tasks.errors import Unavailable

T = TypeVar("T")


def until(look: Callable[[], T], seconds: float = 60.0) -> T:
    """What `look` finds, as soon as it finds something; no answer of a server is nothing yet. Raises TimeoutError."""
    end, last = time.monotonic() + seconds, ""
    while True:
        try:
            if found := look():
                return found
        except Unavailable as error:
            last = f": {error}"
        if time.monotonic() > end:
            raise TimeoutError(f"it did not come true within {seconds:g} s{last}")
        time.sleep(0.02)


def well(settings: Settings) -> dict[str, Any] | None:
    """A stack's status if all parts are healthy and it has nothing to add. A busy server may answer one look too late."""
    found = status(settings)
    return found if found["healthy"] and not found["notes"] else None
