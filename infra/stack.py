"""The whole system on one machine: `up`, `down` and what both need of the supervisor.

`up` checks everything that can be wrong beforehand (problems, folder, ports, broker), then starts all parts at once: each waits
by itself for what it needs. A second `up` repairs and reports; `up` after a killed supervisor first ends the orphans, which
it knows by the marker in their environment. `down` leaves no process, port, socket or lock.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import psutil

from truing.infra.accounts import prepare
from truing.infra.calls import call
from truing.infra.catalog import catalog
from truing.infra.heartbeat import age, last_beat
from truing.infra.interrupts import deferred, raised
from truing.infra.ports import moved
from truing.infra.preflight import alone, check, reachable
from truing.infra.processes import reap
from truing.infra.programs import Program, configuration, environment, programs, socket_path
from truing.infra.running import FILE, check_same, on_its_ports, remember
from truing.infra.settings import Settings
from truing.infra.supervisor import GONE, supervisor
from truing.tasks.errors import TruingError, Unavailable

PATIENCE_S = 180.0  # Prefect's first start migrates its database
BEAT_S = 15.0  # older signs of life don't count

RESTARTS = 3  # of one part while `up` waits, after which it is given up
_ERROR = re.compile(r"^[\w.]*(Error|Exception|Refused|Unavailable|Exit)\b.*:")

Progress = Callable[[str, str], None]


def silent(part: str, text: str) -> None:
    """A progress that shows nothing."""


class Stack:
    """One data folder's parts. `parts` limits it to some of them, for a machine that runs only those."""

    def __init__(self, settings: Settings, *, parts: tuple[str, ...] | None = None, auto: bool = False) -> None:
        """With `auto`, `up` takes another port for each that is taken; `settings` then holds them."""
        self.run, self.auto = settings.data / "run", auto
        self._use(settings, parts)

    def _use(self, settings: Settings, parts: tuple[str, ...] | None) -> None:
        self.settings, self.only = settings, parts
        everything = programs(settings)
        unknown = sorted(set(parts or ()) - {part.name for part in everything})
        if unknown:
            names = ", ".join(part.name for part in everything)
            raise Unavailable(f"--only: expected parts out of {names}, got {', '.join(unknown)}; correct the name")
        self.parts = tuple(part for part in everything if parts is None or part.name in parts)
        self.names = [part.name for part in self.parts]

    # --- acts
    def up(self, progress: Progress = silent) -> bool:
        """Start what is not running and wait until all is healthy. True = started now, False = was up already."""
        problems = catalog(self.settings.problems)
        fresh = not self.settings.data.exists()
        try:
            with raised(), alone(self.settings.data):
                running = self.states()
                if running:
                    self._use(on_its_ports(self.settings, auto=self.auto), self.only)
                    check_same(self.settings, self.names)
                    started = self._revive(running)
                    self._wait(progress)
                    return started
                reaped = reap(self.settings.data)
                if reaped:
                    progress("stack", f"ended {reaped} orphans of a killed supervisor")
                if self.auto:
                    self._use(moved(self.settings), self.only)
                check(self.settings, self.parts)
                try:
                    prepare(self.settings, self.names, {name: problem for name, (problem, _) in problems.items()})
                    self._start()
                    self._wait(progress)
                except BaseException:
                    with deferred():  # a second Ctrl-C must not end the cleaning
                        self._stop(silent)
                    raise
                return True
        except TruingError:
            if fresh and not self.settings.logs.exists():
                shutil.rmtree(self.settings.data, ignore_errors=True)
            raise

    def down(self, progress: Progress = silent) -> bool:
        """Stop everything of this data folder, orphans too. False = nothing ran."""
        if not self.run.exists():
            return False
        with deferred(), alone(self.settings.data, write=False):
            return self._stop(progress)

    # --- the supervisor
    def states(self) -> dict[str, dict[str, Any]]:
        """Process facts by part (`statename`, `pid`, `start`, `spawnerr`), empty when no supervisor answers."""
        try:
            found = cast(list[dict[str, Any]], self._rpc().getAllProcessInfo())
        except GONE:
            return {}
        return {one["name"]: one for one in found}

    def healthy(self, part: Program, state: dict[str, Any]) -> bool:
        """Does the part answer (servers), or has it lately said that it lives (the others)?"""
        if state.get("statename") != "RUNNING":
            return False
        if part.url is not None:
            try:
                call("GET", part.url, timeout=2.0, ca=self.settings.tls.ca)
            except TruingError:
                return False
            return True
        if part.port is not None:
            return reachable(self.settings.kafka.bootstrap, 1.0)
        beat = last_beat(self.settings, part.name)
        since = age(beat)
        return beat is not None and since is not None and beat["pid"] == state["pid"] and since < BEAT_S

    def _rpc(self) -> Any:
        return supervisor(socket_path(self.settings))

    def _start(self) -> None:
        stale_beats = (self.settings.place(name) / "beat.json" for name in self.names)
        path = self.run / "supervisor.conf"
        try:
            for stale in (socket_path(self.settings), self.run / "supervisor.pid", self.run / FILE, *stale_beats):
                stale.unlink(missing_ok=True)
            path.write_text(configuration(self.settings, self.parts))
            remember(self.settings, self.names, auto=self.auto)
        except OSError as error:
            raise Unavailable(
                f"expected to write {error.filename or self.run}, got: {error.strerror}; free some space or mend its rights"
            ) from None
        with deferred():  # a process that was forked and not yet replaced would carry no marker
            done = subprocess.run(  # noqa: S603 - it goes into the background by itself
                [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(path)],
                env=environment(self.settings),
                cwd=self.settings.data,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                start_new_session=True,  # a Ctrl-C is ours to handle
            )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["nothing"]
            last = next((line for line in lines if line.startswith("Error: ")), lines[-1])
            raise Unavailable(f"expected the supervisor to start, got: {last}; see {self.settings.logs / 'supervisor.log'}")

    def _revive(self, running: dict[str, dict[str, Any]]) -> bool:
        """Start parts that the supervisor has given up on or that were stopped by hand."""
        idle = [name for name, state in running.items() if state["statename"] in ("STOPPED", "EXITED", "FATAL")]
        for name in idle:
            self._rpc().startProcess(name, False)
        return bool(idle)

    def _wait(self, progress: Progress) -> None:
        begun = time.monotonic()
        waiting = list(self.parts)
        seen: dict[str, set[int]] = {part.name: set() for part in waiting}
        topics = self.settings.kafka.broker == "external"
        if topics:  # it is up already
            self._topics()
        while waiting:
            states = self.states()
            if not states:
                raise Unavailable(f"expected the supervisor to stay, it is gone; see {self.settings.logs / 'supervisor.log'}")
            for part in list(waiting):
                state = states.get(part.name, {})
                seen[part.name].add(state.get("pid", 0))
                if state.get("statename") == "FATAL" or len(seen[part.name] - {0}) > RESTARTS:
                    raise Unavailable(f"{part.name}: expected it to stay up, got: {self.last_words(part.name)}")
                if self.healthy(part, state):
                    waiting.remove(part)
                    progress(part.name, f"{part.says} ({time.monotonic() - begun:.1f} s)")
                    if part.name == "broker" and not topics:
                        topics = True
                        self._topics()
            if waiting and time.monotonic() - begun > PATIENCE_S:
                names = ", ".join(part.name for part in waiting)
                words = self.last_words(waiting[0].name)
                raise Unavailable(f"{names}: expected an answer within {PATIENCE_S:.0f} s, got none; last words: {words}")
            time.sleep(0.1 if waiting else 0)

    def last_words(self, part: str) -> str:
        """The last line of a part's log, and where the rest is."""
        path = self.settings.logs / f"{part}.log"
        try:
            lines = path.read_text(errors="replace")[-4000:].strip().splitlines()
        except OSError:
            lines = []
        errors = [line for line in lines if _ERROR.match(line)]
        return f"{(errors or lines or ['nothing in its log'])[-1].strip()}; see {path}"

    def _topics(self) -> None:
        from truing.infra import acl
        from truing.infra.broker import ensure_topics

        ensure_topics(self.settings)
        if self.settings.kafka.broker == "kafka" and self.settings.kafka.security_protocol.startswith("SASL"):
            problems = {name: problem for name, (problem, _) in catalog(self.settings.problems).items()}
            table = [*acl.rights(self.settings, problems), *acl.marks(self.settings, problems)]
            acl.apply(self.settings, table, prune=True)

    def _stop(self, progress: Progress) -> bool:
        states = self.states()
        servers = {part.name for part in programs(self.settings) if part.server}
        if states:
            rpc = self._rpc()
            for wave in ([n for n in states if n not in servers], [n for n in states if n in servers]):
                self._stop_wave(rpc, [n for n in wave if states[n]["statename"] not in ("STOPPED", "EXITED", "FATAL")])
            with suppress(*GONE):  # killed meanwhile: its parts are orphans
                pid = rpc.getPID()
                rpc.shutdown()
                _gone(pid, 10.0)
        orphans = reap(self.settings.data)
        for name in ("supervisor.pid", "supervisor.conf", FILE, f".{FILE}"):
            (self.run / name).unlink(missing_ok=True)
        for part in programs(self.settings):
            shutil.rmtree(self.settings.place(part.name), ignore_errors=True)
        socket_path(self.settings).unlink(missing_ok=True)
        progress("stack", f"{len(states)} parts stopped" + (f", {orphans} orphans ended" if orphans else ""))
        return bool(states or orphans)

    def _stop_wave(self, rpc: Any, names: list[str]) -> None:
        for name in names:
            with suppress(*GONE):  # it stopped by itself meanwhile
                rpc.stopProcess(name, False)
        end = time.monotonic() + 20.0
        while time.monotonic() < end:
            if all(self.states().get(name, {}).get("statename") in ("STOPPED", "EXITED", "FATAL", None) for name in names):
                return
            time.sleep(0.05)


def _gone(pid: int, patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while time.monotonic() < end and psutil.pid_exists(pid):
        time.sleep(0.02)
