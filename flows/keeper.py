"""The keeper: lands what Kafka has, joins what landed, starts what is due. Loops in one process, none waits for another.

    intake    this keeper's partitions → landing       (`landing.py`)
    joins     landed events → rows and holdout         (`chief.py`: by one keeper for all)
    control   control topic and counts → runs          (the same)
    errands   trims the topic; checks read again; signs of life
    marks     up to where all has landed, for senders  (`infra/watermark.py`)
    dead      dead letters → a topic of their own      (`dead_topic.py`: by the chief)

Several keepers share the partitions (`ingest.keepers`); `infra/keepers.py` says what holds them apart. Prefect is not needed
here: `ingest.py` shows segments of this work as flow runs, `always.py` is the process around both.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from truing.flows.chief import Chief
from truing.flows.dead_topic import tell
from truing.flows.errands import Start
from truing.flows.landing import Landing
from truing.infra.broker import connection
from truing.infra.catalog import catalog
from truing.infra.heartbeat import beat
from truing.infra.keepers import PART, Busy, claim, claim_all, part, release, share
from truing.infra.keys import keyring
from truing.infra.schema_registry import codec_of
from truing.infra.settings import Settings
from truing.infra.watermark import Announcer
from truing.tasks.errors import TruingError, Unavailable
from truing.tasks.events.schema import Proofs
from truing.tasks.events.stream import Reader
from truing.tasks.problem import Problem, seconds
from truing.tasks.tables.lake import Lake, Vault

__all__ = ["Busy", "Keeper", "drain"]

BEAT_S = 2.0
REFRESH_S = 10.0  # between looks whether a person edited the checks
TRIM_S = 3.0
ANNOUNCE_S = 0.5
HUNG_S = 300.0


class Keeper:
    """Everything the loops share. `run` returns when `stop` is set and the commit in flight is done."""

    def __init__(self, settings: Settings, *, start: Start, log: Callable[[str], None], number: int | None = 0) -> None:
        """Keeper `number` of `ingest.keepers`, or for None all of them. Raises Busy, SettingsError, Unavailable."""
        self.settings = settings
        self.log = log
        self.number = number
        self.stop = threading.Event()
        self.failed: BaseException | None = None
        mine = (0, 1) if number is None else share(settings, number)
        self._locks = claim_all(settings) if number is None else [claim(settings, str(number))]
        try:
            self._build(start, mine)
        except BaseException:
            release(self._locks)
            raise

    def _build(self, start: Start, mine: tuple[int, int]) -> None:
        settings, ring = self.settings, keyring(self.settings)
        self.problems: dict[str, Problem] = {name: problem for name, (problem, _) in catalog(settings.problems).items()}
        proofs = Proofs.of(
            list(self.problems.values()),
            wire=ring.read("wire"),
            salt=ring.read("actor-salt"),
            keys={name: {source: ring.source(name, source) for source in p.sources} for name, p in self.problems.items()},
            avro=codec.read if (codec := codec_of(settings)) else None,
        )
        for root in (settings.vault, settings.lake):
            try:
                root.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise Unavailable(f"expected a writable folder {root}, got: {error.strerror}; check its permissions") from None
        self.landing = Landing(
            settings, share=mine, problems=self.problems, proofs=proofs, split_salt=ring.read("split-salt"),
            stop=self.stop, log=self.log,
        )  # fmt: skip
        self.changed, self.tally = self.landing.changed, self.landing.tally
        self.chief = Chief(
            settings, problems=self.problems, salt=ring.read("split-salt"), start=start,
            stop=self.stop, changed=self.changed, tally=self.tally, log=self.log,
        )  # fmt: skip

    @property
    def reader(self) -> Reader:
        return self.landing.reader

    # --- errands
    def errands(self) -> None:
        """Trimming, checks that a person edited, signs of life."""
        beaten = 0.0
        trimmed = refreshed = time.monotonic()
        kept = (0.0 if self.settings.kafka.broker == "embedded" else seconds(one.retention) for one in self.problems.values())
        keep = max(kept, default=0.0)
        pause = max(TRIM_S, min(keep / 10, 60.0))
        while not self.stop.wait(0.2):
            now = time.monotonic()
            if now - beaten > BEAT_S:
                beaten = now
                if now - self.landing.ticked > HUNG_S:  # a client library that spins is not cured by waiting
                    self.log(f"intake gave no sign for {HUNG_S:.0f} s; ending, to be started again")
                    os._exit(1)
                self._beat()
            if now - refreshed > REFRESH_S:
                refreshed = now
                try:
                    self.landing.refresh_checks()
                except TruingError as error:
                    self.log(f"checks: {error}")
            if self.settings.kafka.trims and now - trimmed > pause:
                trimmed = now
                self.landing.trim(keep)
        self._beat()

    def _beat(self) -> None:
        idle_s = round(time.monotonic() - self.landing.ticked, 1)
        name = PART if self.number is None else part(self.number)
        chief = self.chief.elected.is_set()
        beat(self.settings, name, now=time.time(), counts=dict(self.tally), idle_s=idle_s, chief=chief)

    def announce(self) -> None:
        """Tell senders, through Kafka, up to where all has landed: what stands before that they need not keep."""
        announcer = Announcer(connection(self.settings), self.settings.kafka.group, self.settings.kafka.topic)
        while not self.stop.wait(ANNOUNCE_S):
            announcer.tell(self.landing.marks())
        announcer.close()

    def tell_dead(self) -> None:
        """Dead letters on a topic of their own, while this keeper is chief."""
        tell(self.settings, elected=self.chief.elected, stop=self.stop, log=self.log)

    # --- running
    def run(self) -> None:
        """All loops until `stop`; raises what any of them died of."""
        threads = [
            threading.Thread(target=self._guard, args=(loop,), name=name, daemon=True)
            for name, loop in {
                "intake": self.landing.run,
                "joins": self.chief.joins,
                "control": self.chief.control,
                "compaction": self.chief.compaction,
                "errands": self.errands,
                "marks": self.announce,
                "dead letters": self.tell_dead,
            }.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.close()
        if self.failed is not None:
            raise self.failed

    def close(self) -> None:
        """Let go of broker and locks."""
        self.reader.close()
        self.chief.close()
        release(self._locks)

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:
            self.failed = self.failed or error
            raise
        finally:
            self.stop.set()


def drain(keeper: Keeper) -> dict[str, int]:
    """Land and join all that is there now, on this thread, without the loops. Returns the tally. Raises Busy, Unavailable."""
    keeper.landing.drain()
    keeper.chief.elect(locked=keeper.number is None)
    keeper.chief.derive(Vault(keeper.settings.vault), Lake(keeper.settings.lake))
    return dict(keeper.tally)
