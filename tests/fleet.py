"""A broker and some keepers on one data folder, each a process of its own that can be killed and is started again.

Beside the real supervisor's (tests/test_crashes.py) this restarts at once, so that a hundred kills take minutes. With
`targets`, the keepers carry the injector of `tests/crash/sitecustomize.py` and die where `armed` says.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from truing.infra import broker
from truing.infra.settings import Settings, child_environment

CRASH = Path(__file__).resolve().parent / "crash"
Process = subprocess.Popen[bytes]


class Fleet:
    """Keepers 0 to n-1 under a watch that starts again whatever ended. `restarts` counts by keeper."""

    def __init__(self, settings: Settings, *, targets: Sequence[str] = (), **environment: str) -> None:
        self.settings = settings
        self.folder = settings.data / "fleet"
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "targets").write_text("\n".join(targets))
        self.environment = child_environment(settings, PREFECT_API_URL=settings.prefect_url, **environment)
        if targets:
            path = os.pathsep.join(filter(None, (str(CRASH), os.environ.get("PYTHONPATH"))))
            self.environment |= {"CRASH": str(self.folder), "PYTHONPATH": path}
        self.keepers: dict[int, Process] = {}
        self.restarts: Counter[int] = Counter()
        self.faults: list[str] = []  # keepers that ended otherwise than by SIGKILL
        self._wanted: set[int] = set()
        self._broker: Process | None = None
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._arms = itertools.count()
        self._watch = threading.Thread(target=self._run, daemon=True)
        self._watch.start()

    # --- broker
    def start_broker(self) -> None:
        """Up, and with its topics."""
        given = child_environment(self.settings)
        with (self.folder / "broker.log").open("ab") as log:
            self._broker = subprocess.Popen(broker.command(self.settings), env=given, stdout=log, stderr=log)
        broker.wait_for(self.settings, 90)
        broker.ensure_topics(self.settings)

    def kill_broker(self) -> None:
        assert self._broker is not None
        self._broker.kill()
        self._broker.wait()

    # --- keepers
    def start(self, *numbers: int) -> None:
        with self._guard:
            for number in numbers:
                self._wanted.add(number)
                self._spawn(number)

    def spawn(self, number: int, **environment: str) -> Process:
        """A keeper's process that nobody watches; `environment` over the fleet's."""
        with self.log(number).open("ab") as log:
            command = [sys.executable, "-m", "truing.flows.always", str(number)]
            return subprocess.Popen(command, env=self.environment | environment, stdout=log, stderr=log)

    def log(self, number: int) -> Path:
        return self.folder / f"keeper-{number}.log"

    def kill(self, number: int) -> None:
        """SIGKILL; the watch starts it again."""
        self.keepers[number].kill()

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Nothing that ends is started again before this is left."""
        with self._guard:
            yield

    def stop(self, *numbers: int) -> list[int]:
        """SIGTERM; their exit codes."""
        with self._guard:
            ending = [self.keepers.pop(number) for number in numbers]
            self._wanted -= set(numbers)
        for one in ending:
            one.terminate()
        return [one.wait(60) for one in ending]

    def close(self) -> None:
        """Nothing of it runs on."""
        self._over.set()
        self._watch.join()
        for one in (*self.keepers.values(), *filter(None, [self._broker])):
            one.kill()
            one.wait()

    def _spawn(self, number: int) -> None:
        self.keepers[number] = self.spawn(number)

    def _run(self) -> None:
        while not self._over.wait(0.02):
            with self._guard:
                for number in self._wanted:
                    code = self.keepers[number].poll()
                    if code is not None:
                        if code != -9:
                            self.faults.append(f"keeper {number} ended with {code}: {self.last_words(number)}")
                        self.restarts[number] += 1
                        self._spawn(number)

    def last_words(self, number: int) -> str:
        lines = self.log(number).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing in its log"

    # --- injected points
    @contextmanager
    def armed(self, target: str, when: str, about: str = "", call: int = 1) -> Iterator[Callable[[], bool]]:
        """Whoever comes to the `call`-th call of `target` (with `about` in its arguments) dies; yields "was it reached?"."""
        name = f"point {next(self._arms)}"
        draft = self.folder / "draft"
        given = {"name": name, "target": target, "when": when, "about": about, "call": call, "part": ""}
        draft.write_text(json.dumps(given))
        draft.rename(self.folder / "armed")
        try:
            yield (self.folder / f"{name}.reached").exists
        finally:
            with suppress(FileNotFoundError):
                (self.folder / "armed").unlink()


def until(what: str, true: Callable[[], Any], patience_s: float = 60.0) -> Any:
    """What `true` finds, as soon as it finds something. Raises TimeoutError."""
    end = time.monotonic() + patience_s
    while not (found := true()):
        if time.monotonic() > end:
            raise TimeoutError(f"expected {what} within {patience_s:g} s")
        time.sleep(0.02)
    return found
