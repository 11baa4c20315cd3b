"""The keeper: lands what Kafka has, joins what landed, starts what is due. Three loops in one process, none waits for another.

    intake   Kafka → landing (`landing.py`)
    joins    landed events → rows and holdout; counts labels; compacts     (at most every `ingest.join_every_s`)
    errands  control topic and counts → runs of deployments; trims the topic; signs of life

Prefect is not needed here: `ingest.py` shows segments of this work as flow runs, `always.py` is the process around both.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable

import polars as pl

from truing.flows.errands import Start, Trigger, control_places, decide, remember
from truing.flows.landing import RETRY_S, Landing
from truing.infra.broker import connection
from truing.infra.catalog import catalog
from truing.infra.heartbeat import beat
from truing.infra.keys import keyring
from truing.infra.settings import Settings
from truing.tasks.errors import TruingError, Unavailable
from truing.tasks.events import join
from truing.tasks.events.intake import app_of
from truing.tasks.events.lake import Lake, Vault
from truing.tasks.events.schema import Proofs
from truing.tasks.events.stream import Reader
from truing.tasks.problem import Problem

BEAT_S = 2.0
COMPACT_S = 10.0
FILES = 32  # small files of a table before they are merged: each costs every join 0.3 ms
TRIM_S = 5.0
HUNG_S = 300.0


class Busy(Unavailable):
    """Another keeper holds this data folder."""


class Keeper:
    """Everything the three loops share. `run` returns when `stop` is set and the commit in flight is done."""

    def __init__(self, settings: Settings, *, start: Start, log: Callable[[str], None]) -> None:
        self.settings = settings
        self.log = log
        self.start = start
        self.stop = threading.Event()
        self.failed: BaseException | None = None
        self._said = ""
        self._lock = _claim(settings)
        ring = keyring(settings)
        self.problems: dict[str, Problem] = {name: problem for name, (problem, _) in catalog(settings.problems).items()}
        proofs = Proofs.of(
            list(self.problems.values()),
            wire=ring.read("wire"),
            salt=ring.read("actor-salt"),
            keys={name: {source: ring.source(name, source) for source in p.sources} for name, p in self.problems.items()},
        )
        self._split_salt = ring.read("split-salt")
        for root in (settings.vault, settings.lake):
            try:
                root.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Unavailable(f"expected a writable folder {root}, got: {error.strerror}; check its permissions") from None
        self.landing = Landing(settings, problems=self.problems, proofs=proofs, stop=self.stop, log=log)
        self.changed, self.tally = self.landing.changed, self.landing.tally
        self.triggers = self._triggers()

    @property
    def reader(self) -> Reader:
        return self.landing.reader

    # --- joins
    def joins(self) -> None:
        """Rows follow events at most every `join_every_s`, and once more after the last of them."""
        vault, lake = Vault(self.settings.vault), Lake(self.settings.lake)
        compacted = time.monotonic()
        self.changed.set()  # what an earlier keeper landed and did not join
        while not self.stop.is_set():
            fresh, begun = self.changed.wait(1.0), time.monotonic()
            try:
                if fresh:
                    self.changed.clear()
                    self.derive(vault, lake)
                if begun - compacted > COMPACT_S:
                    compacted = begun
                    self.landing.refresh_checks()
                    vault.compact(above=FILES)
                    lake.compact(above=FILES)
            except TruingError as error:
                self.log(f"join: {error}")
                self.changed.set()
                self.stop.wait(RETRY_S)
            took = time.monotonic() - begun
            self.stop.wait(max(took, self.settings.ingest.join_every_s - took))  # never more than half of the time

    def derive(self, vault: Vault, lake: Lake) -> None:
        """Join once, and count what improve waits for."""
        derived = join.derive(vault, lake, self.problems, salt=self._split_salt, now=time.time())
        self.tally.update({"rows": sum(derived.joined.values()), "labelled": sum(derived.labelled.values())})
        for name, count in derived.labelled.items():
            self.triggers[name].labelled += count

    def _triggers(self) -> dict[str, Trigger]:
        vault, lake = Vault(self.settings.vault), Lake(self.settings.lake)
        labelled = lake.scan("rows").filter(pl.col("target").is_not_null()).select("problem", "id").unique()
        counts = dict(labelled.group_by("problem").len().collect().iter_rows())
        return {
            name: Trigger(vault, name, after=problem.cadence.improve_after, labelled=counts.get(name, 0))
            for name, problem in self.problems.items()
        }

    def _pull(self) -> None:
        for trigger in self.triggers.values():
            rows = trigger.waiting
            if trigger.pull(self.start, now=time.monotonic()):
                self.tally["improves started"] += 1
                self.log(f"improve/{trigger.problem} started: {rows} newly labelled rows")

    # --- errands
    def errands(self) -> None:
        """Control topic, triggers, trimming, signs of life."""
        kafka = self.settings.kafka
        vault = Vault(self.settings.vault)
        control = Reader(connection(self.settings), kafka.control, control_places(vault, kafka.group, kafka.control))
        waiting: list[tuple[str, int, bytes | None, tuple[str, int]]] = []
        beaten = trimmed = 0.0
        floor: dict[str, int] = {}
        while not self.stop.is_set():
            try:
                for chunk in control.poll(200, 100):
                    for offset, value in chunk.records:
                        app = app_of(kafka.group, kafka.control, chunk.partition, chunk.epoch)
                        key = f"{kafka.control}:{chunk.partition}:{chunk.epoch}:{offset}"
                        waiting.append((key, offset, value, (app, offset + 1)))
                while waiting and not self.stop.is_set():
                    self._handle(vault, *waiting[0])
                    waiting.pop(0)
                self._pull()
                self._said = ""
            except TruingError as error:
                self._say_once(str(error))
                self.stop.wait(RETRY_S)
            now = time.monotonic()
            if now - beaten > BEAT_S:
                beaten = now
                if now - self.landing.ticked > HUNG_S:  # a client library that spins is not cured by waiting
                    self.log(f"intake gave no sign for {HUNG_S:.0f} s; ending, to be started again")
                    os._exit(1)
                self._beat()
            if kafka.trims and now - trimmed > TRIM_S:
                trimmed = now
                floor = self.landing.trim(floor)
        control.close()
        self._beat()

    def _beat(self) -> None:
        idle_s = round(time.monotonic() - self.landing.ticked, 1)
        beat(self.settings, "ingest", now=time.time(), counts=dict(self.tally), idle_s=idle_s)

    def _handle(self, vault: Vault, key: str, offset: int, value: bytes | None, app: tuple[str, int]) -> None:
        asked = decide(value, self.problems, now=time.time())
        given = (asked.parameters,) if asked.parameters else ()
        run = self.start(asked.deployment, key, *given) if asked.deployment else None
        remember(vault, key, asked.problem, offset, {"act": asked.act, "word": asked.word, "run": run}, app)
        if asked.act != "noted":
            self.log(f"{asked.act}: {asked.word}")
        self.tally[f"requests {asked.act}"] += 1

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.log(text)

    # --- running
    def run(self) -> None:
        """All loops until `stop`; raises what any of them died of."""
        threads = [
            threading.Thread(target=self._guard, args=(loop,), name=loop.__name__, daemon=True)
            for loop in (self.landing.run, self.joins, self.errands)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.close()
        if self.failed is not None:
            raise self.failed

    def close(self) -> None:
        """Let go of broker and lock."""
        self.reader.close()
        os.close(self._lock)

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:
            self.failed = self.failed or error
            raise
        finally:
            self.stop.set()


def drain(keeper: Keeper) -> dict[str, int]:
    """Land and join all that is there now, on this thread, without the loops. Returns the tally. Raises Unavailable."""
    keeper.landing.drain()
    vault, lake = Vault(keeper.settings.vault), Lake(keeper.settings.lake)
    keeper.derive(vault, lake)
    return dict(keeper.tally)


def _claim(settings: Settings) -> int:
    """One keeper per data folder: a lock that the kernel drops with the process. Raises Busy, Unavailable."""
    folder = settings.place("ingest")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise Unavailable(f"expected a writable folder {folder}, got: {error.strerror}; check its permissions") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise Busy(f"expected no other keeper on {settings.data}, got one; it goes on, this one is not needed") from None
    return handle
