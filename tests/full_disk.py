"""A stack on a disk of 250 MB that fills up: run by test_survival.py in a mount namespace, prints what happened as JSON.

unshare --mount --propagation private python tests/full_disk.py FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from truing.infra.client import Client
from truing.infra.keys import Keyring
from truing.infra.logins import registry_as
from truing.infra.processes import living
from truing.infra.settings import Settings, current
from truing.infra.stack import Stack
from truing.infra.status import status
from truing.tasks.errors import TruingError

SENT = 300


def told(act: Callable[[], object]) -> str:
    """What an act says: nothing when it works, its error's words when it does not."""
    try:
        act()
    except (TruingError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def until(true: Callable[[], object], seconds: float = 90.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.2)
    return bool(true())


def health(settings: Settings) -> dict[str, bool]:
    return {part["part"]: part["healthy"] for part in status(settings, light=True)["parts"]}


def send(settings: Settings) -> None:
    with Client.of(settings, "adult", source="history") as client:
        for number in range(SENT):
            client.backfill_prediction(f"row-{number}", {"age": 30 + number % 40, "workclass": "Private"})
        client.flush(timeout_s=20.0)


def fill_up(path: Path) -> None:
    """A file of all that is left of the disk, whoever else writes meanwhile."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 65536):
            continue


def play(settings: Settings) -> dict[str, Any]:
    fill, stack, ring = settings.data.parent / "fill", Stack(settings), Keyring(settings.keys)
    stack.up()
    pids = {name: state["pid"] for name, state in stack.states().items()}
    fill_up(fill)
    found: dict[str, Any] = {
        "sent": told(lambda: send(settings)),
        "rotated": told(lambda: ring.rotate("release", now=time.time())),
        "judged": told(lambda: registry_as(settings, "approver").freeze("adult", "full")),
    }
    until(lambda: not health(settings)["ingest"], 30.0)
    found["full"] = health(settings)
    found["broken keys"] = [
        str(path) for path in settings.keys.rglob("*") if path.is_file() and (path.name[0] == "." or not path.stat().st_size)
    ]
    fill.unlink()
    found["recovered"] = until(lambda: all(health(settings).values()))
    found["restarted"] = [name for name, state in stack.states().items() if state["pid"] != pids[name]]
    found["landed"] = until(lambda: (status(settings)["lag"] or {}).get("landed") == SENT)
    found["rotated then"] = told(lambda: ring.rotate("release", now=time.time()))
    fill_up(fill)
    found["down"] = stack.down()
    found["left"] = len(living(settings.data)) + len(list((settings.data / "run").iterdir()))
    found["up again"] = told(stack.up)
    found["left then"] = len(living(settings.data))
    fill.unlink()
    found["up at last"] = told(stack.up)
    stack.down()
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=250m", "full", str(folder)], check=True)
    print(json.dumps(play(current())))
