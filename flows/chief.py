"""The chief: what one keeper does for all of them. Whoever holds the chief's lock; another takes over when its process ends.

    joins        landed events, whoever landed them → rows and holdout; counts labels
    compaction   small files → larger ones; logs that do not grow
    control      control topic and counts → runs of deployments

Joins come at most every `ingest.join_every_s`, and once more after the last event. Two chiefs at once (on hosts that share no
lock) do no harm: what a join writes carries the landing version that it was derived from, which Delta takes once.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from truing.flows import erase
from truing.flows.errands import Start, Trigger, control_places, decide, remember
from truing.flows.landing import RETRY_S
from truing.infra.broker import connection
from truing.infra.control import Askers
from truing.infra.keepers import CHIEF, Busy, claim, release
from truing.infra.keys import keyring
from truing.infra.settings import Settings
from truing.tasks.errors import TruingError
from truing.tasks.events import join
from truing.tasks.events.intake import app_of
from truing.tasks.events.stream import Reader
from truing.tasks.problem import Problem, seconds
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.tables.subjects import commits

COMPACT_S = 10.0
VACUUM_S = 3600.0  # between two looks for files that nothing needs: they take as long as there are files
ELECT_S = 0.5  # between two tries for the lock
MERGE_S = 120.0  # between two merges of middling files; the ones between rewrite at most `SMALL` bytes and some
SMALL = 1 << 20
LOG_S = 300.0  # entries of a table's log that a checkpoint made superfluous are deleted at this age: writers list them all
LOG_MOST_S = 6 * 3600.0  # `rows`: monitoring asks what came since its last look; older than this it looks at all windows
YIELD_S = 0.5  # at most, after a join that took as long: while there is a backlog intake shares the cores with it
TEND_S = 10.0  # between looks whether something of a forgotten person, or of old dead letters, is due
FILES = 32  # small files of a table before they are merged: each costs every join 0.3 ms


class Chief:
    """One keeper's claim to be chief. Its loops wait until it is, and end with `stop`."""

    def __init__(
        self,
        settings: Settings,
        *,
        problems: Mapping[str, Problem],
        salt: bytes,
        start: Start,
        stop: threading.Event,
        changed: threading.Event,
        tally: Counter[str],
        log: Callable[[str], None],
    ) -> None:
        """`changed` is set when this keeper landed something; `salt` parts subjects into splits; `tally` counts."""
        self.settings = settings
        self.problems = problems
        self.askers = Askers.of(keyring(settings), problems)
        self.start = start
        self.stop = stop
        self.changed = changed
        self.tally = tally
        self.log = log
        self.elected = threading.Event()
        self.triggers: dict[str, Trigger] = {}
        self._salt = salt
        self._locks: list[int] = []
        self._said = ""

    # --- the lock
    def elect(self, *, locked: bool = False) -> None:
        """Become chief now; with `locked` somebody holds the lock for us. Raises Busy, Unavailable."""
        if self.elected.is_set():
            return
        if not locked:
            self._locks.append(claim(self.settings, CHIEF))
        try:
            self.triggers = self._triggers()
        except BaseException:
            release(self._locks)
            raise
        self.elected.set()

    def wait(self) -> bool:
        """Until this keeper is chief, or has to stop; True = it is chief."""
        while not self.stop.is_set() and not self.elected.is_set():
            try:
                self.elect()
                if self.settings.ingest.keepers > 1:
                    self.log("this keeper is chief: it joins for all")
            except Busy:
                self.stop.wait(ELECT_S)
            except TruingError as error:
                self._say_once(str(error))
                self.stop.wait(RETRY_S)
        return self.elected.is_set()

    def close(self) -> None:
        """Let another one be chief. Only after the loops have ended."""
        self.elected.clear()
        release(self._locks)

    # --- joins
    def joins(self) -> None:
        """Rows follow events at most every `join_every_s`, and once more after the last of them."""
        if not self.wait():
            return
        sync = self.settings.ingest.sync
        vault, lake = Vault(self.settings.vault, sync=sync), Lake(self.settings.lake, sync=sync)
        tended = 0.0
        self.changed.set()  # what was landed before and not joined
        # What others land is seen by looking; what this one lands is told.
        patience = 1.0 if self.settings.ingest.keepers == 1 else self.settings.ingest.join_every_s
        while not self.stop.is_set():
            told, begun = self.changed.wait(patience), time.monotonic()
            try:
                if told or self.settings.ingest.keepers > 1:
                    self.changed.clear()
                    self.derive(vault, lake)
                if begun - tended > TEND_S:
                    tended = begun
                    vault.forget_gone()
                    lake.forget_gone()
                    erase.tend(self.settings, self.problems, split_salt=self._salt, now=time.time(), log=self.log)
            except TruingError as error:
                self.log(f"join: {error}")
                self.changed.set()
                self.stop.wait(RETRY_S)
            took = time.monotonic() - begun
            every = self.settings.ingest.join_every_s
            self.stop.wait(max(every - took, min(took, YIELD_S)))  # intake gets its turn, and a slow machine no second wait

    def compaction(self) -> None:
        """Small files are merged beside the joins, which never wait for it."""
        while not self.elected.wait(ELECT_S):
            if self.stop.is_set():
                return
        vault, lake = Vault(self.settings.vault), Lake(self.settings.lake)
        vacuumed, merged = -VACUUM_S, time.monotonic()
        looks = max(seconds(problem.cadence.monitor_every) for problem in self.problems.values()) if self.problems else 0.0
        while not self.stop.is_set():
            due = time.monotonic() - vacuumed > VACUUM_S
            merge = due or time.monotonic() - merged > MERGE_S
            size = {} if merge else {"target_bytes": SMALL}
            try:
                for store in (vault, lake):
                    with commits(self.settings.vault):  # what is erased meanwhile must not come back in a merged file
                        done = store.compact(above=FILES, vacuum=due, **size)
                    if done:
                        self.changed.set()  # a new version of the tables: whoever waits for it to be joined is told
                    if done and due:
                        vacuumed = time.monotonic()
                if merge:
                    merged = time.monotonic()
                    for table in vault.tables:
                        vault.trim_log(table, before=time.time() - LOG_S)
                    lake.trim_log("rows", before=time.time() - max(LOG_S, min(2 * looks, LOG_MOST_S)))
            except TruingError as error:
                self.log(f"compaction: {error}")
            self.stop.wait(COMPACT_S)

    def derive(self, vault: Vault, lake: Lake) -> None:
        """Join once, and count what improve waits for."""
        derived = join.derive(vault, lake, self.problems, salt=self._salt, now=time.time())
        if derived.version is None:  # nothing new
            return
        self.tally.update({"rows": sum(derived.joined.values()), "labelled": sum(derived.labelled.values())})
        self.tally.update({"parked": sum(derived.parked.values())})
        for reasons in derived.unused.values():
            self.tally.update({f"set aside {reason}": count for reason, count in reasons.items()})
        for name, count in derived.labelled.items():
            self.triggers[name].labelled += count

    def _triggers(self) -> dict[str, Trigger]:
        vault, lake = Vault(self.settings.vault), Lake(self.settings.lake)
        labelled = lake.scan("rows").filter(join.taught()).select("problem", "id").unique()
        counts = dict(labelled.group_by("problem").len().collect().iter_rows())
        return {
            name: Trigger(vault, name, after=problem.cadence.improve_after, labelled=counts.get(name, 0))
            for name, problem in self.problems.items()
        }

    # --- control topic
    def control(self) -> None:
        """Requests and triggers become runs of deployments."""
        while not self.elected.wait(ELECT_S):
            if self.stop.is_set():
                return
        kafka = self.settings.kafka
        vault = Vault(self.settings.vault)
        reader = Reader(connection(self.settings), kafka.control, control_places(vault, kafka.group, kafka.control))
        waiting: list[tuple[str, int, bytes | None, tuple[str, int]]] = []
        while not self.stop.is_set():
            try:
                for chunk in reader.poll(200, 100):
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
        reader.close()

    def _pull(self) -> None:
        for trigger in self.triggers.values():
            rows = trigger.waiting
            if trigger.pull(self.start, now=time.monotonic()):
                self.tally["improves started"] += 1
                self.log(f"improve/{trigger.problem} started: {rows} newly labelled rows")

    def _handle(self, vault: Vault, key: str, offset: int, value: bytes | None, app: tuple[str, int]) -> None:
        asked = decide(value, self.problems, askers=self.askers, now=time.time())
        given = (asked.parameters,) if asked.parameters else ()
        run = self.start(asked.deployment, asked.key or key, *given) if asked.deployment else None
        remember(vault, key, asked.problem, offset, {"act": asked.act, "word": asked.word, "run": run}, app)
        if asked.act != "noted":
            self.log(f"{asked.act}: {asked.word}")
        self.tally[f"requests {asked.act}"] += 1

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.log(text)
