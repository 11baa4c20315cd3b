"""Intake: what Kafka has becomes rows of `landing`. The loop that must not wait.

    poll → judge → one Delta commit with the offsets in it        (10 to 20 ms a commit; nothing else on this thread)

What can't be committed now is held and tried again, and nothing new is read meanwhile. When somebody else has written what this
keeper was about to (Stale), what was read is dropped and reading goes on at the places that the lake now tells.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from truing.infra.broker import connection
from truing.infra.settings import Settings
from truing.infra.watermark import Mark
from truing.tasks.errors import Unavailable
from truing.tasks.events import checks as row_checks
from truing.tasks.events.intake import Check, app_of, land, places, recall
from truing.tasks.events.lake import Stale, Vault
from truing.tasks.events.schema import Proofs
from truing.tasks.events.sealing import seal_landing
from truing.tasks.events.stream import Chunk, Reader
from truing.tasks.events.subjects import commits
from truing.tasks.problem import Problem

RETRY_S = 0.5  # before something that was away is tried again
FEW = 500  # records: fewer are waited for a moment
TRIM = 500  # records that are worth a word to the broker
EVERYTHING = 5_000_000  # identities remembered while a new epoch is read from its start


class Landing:
    """Reader, memory and fences of one keeper. `run` returns when `stop` is set and the commit in flight is done.

    `share` = (k, n): of n keepers this is number k; it lands the partitions p with p % n == k.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        share: tuple[int, int] = (0, 1),
        problems: Mapping[str, Problem],
        proofs: Proofs,
        stop: threading.Event,
        log: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.share = share
        self.problems = problems
        self.proofs = proofs
        self.stop = stop
        self.log = log
        self.changed = threading.Event()  # something landed that is not joined yet
        self.tally: Counter[str] = Counter()  # by disposition, type, reason; since this keeper began
        self.ticked = time.monotonic()  # last sign of life
        self._token = secrets.token_hex(4)  # tells this keeper's marks from an earlier one's
        self.checks: dict[str, Check] = {}
        self._suites: dict[str, object] = {}
        self._aged: dict[str, int] = {}  # by application, what had landed when `trim` was called last
        self._trimmed: dict[str, int] = {}
        self.refresh_checks()
        self.vault = Vault(settings.vault)  # of intake alone: every loop has handles of its own
        self._resume()

    def _resume(self) -> None:
        """Places, fences and memory from what is in the lake."""
        kafka = self.settings.kafka
        found = places(self.vault, kafka.group, kafka.topic)
        self.recent = recall(self.vault)
        self.reader = Reader(
            connection(self.settings), kafka.topic, found, share=self.share, batched=self.settings.ingest.batches
        )
        self._epochs = {partition: place.epoch for partition, place in self.reader.places.items()}
        # What the places were read from, and nothing newer: another owner's commit since then must fail our first one.
        self._recorded: dict[str, int | None] = {}
        for partition, place in self.reader.places.items():
            app = app_of(kafka.group, kafka.topic, partition, place.epoch)
            self._recorded[app] = None if self.vault.transaction("landing", app) is None else place.offset

    def refresh_checks(self) -> None:
        """Compile the row checks of every problem whose suite is new or changed."""
        for name, problem in self.problems.items():
            suite = row_checks.load(problem, folder=self.settings.problems / name, kept=self.settings.lake / "expectations")
            if name not in self.checks or suite != self._suites[name]:
                self._suites[name] = suite
                self.checks[name] = row_checks.compile(suite, problem)

    def gather(self) -> list[Chunk]:
        """Records for one commit: up to `ingest.batch`; after the first few, what comes within `ingest.linger_ms`."""
        most = self.settings.ingest.batch
        chunks = more = self.reader.poll(100, most)
        count = sum(len(chunk.records) for chunk in chunks)
        if 0 < count < FEW:
            self.stop.wait(self.settings.ingest.linger_ms / 1000)
        while more and count < most:
            try:
                more = self.reader.poll(1, most - count)
            except Unavailable:  # what was read lands first: the reader stands behind it; the next poll says it again
                break
            count += sum(len(chunk.records) for chunk in more)
            chunks = chunks + more
        return chunks

    def commit(self, chunks: list[Chunk]) -> int:
        """Land the chunks in one Delta commit that carries the next offset of each partition. Raises Stale, Unavailable."""
        kafka = self.settings.kafka
        if any(chunk.epoch > self._epochs.get(chunk.partition, 0) for chunk in chunks):
            self.recent = recall(self.vault, EVERYTHING)  # a log read again from its start: all of it may have landed
        landing = land(chunks, topic=kafka.topic, proofs=self.proofs, recent=self.recent, checks=self.checks, now=time.time())
        apps = {app_of(kafka.group, kafka.topic, *where): offset for where, offset in landing.positions.items()}
        expected = {app: self._recorded.get(app) for app in apps}  # None: the first commit of a new epoch
        with commits(self.settings.vault):  # nobody's key is destroyed between sealing and commit
            frame = seal_landing(landing.frame, self.vault.sealing(), self.problems, salt=self.proofs.salt)
            self.vault.append("landing", frame, app=list(apps.items()), expect=expected)
        self._recorded.update(apps)
        self._epochs.update(landing.positions.keys())
        self.recent.add(landing.fresh)
        self.tally.update(landing.counts)
        for column in ("type", "reason"):
            self.tally.update(
                {f"{column} {value}": n for value, n in landing.frame[column].value_counts().iter_rows() if value}
            )
        self.changed.set()
        return landing.frame.height

    def run(self) -> None:
        """Land until `stop`."""
        held: list[Chunk] = []
        said = ""
        while not self.stop.is_set():
            self.ticked = time.monotonic()
            try:
                held = held or self.gather()
                if held:
                    self.commit(held)
                    held = []
                if said:
                    said = ""
                    self.log("intake goes on")
            except Stale as error:
                self.log(f"{error}")
                held = []
                self.reader.close()
                self._resume()
            except Unavailable as error:
                if str(error) != said:
                    said = str(error)
                    self.log(said)
                self.stop.wait(RETRY_S)
            while self.reader.notes:
                self.log(self.reader.notes.pop(0))
        self.reader.close()

    def drain(self) -> None:
        """Land all that is there now, on this thread. Raises Stale, Unavailable."""
        while (chunks := self.gather()) or self.reader.lag():
            if chunks:
                self.commit(chunks)

    def marks(self) -> dict[int, Mark]:
        """Up to where each partition has landed, in the log as it was settled last; nothing while that may be another one."""
        kafka, reader = self.settings.kafka, self.reader
        session, places, recorded = reader.session, dict(reader.places), dict(self._recorded)
        apps = {partition: app_of(kafka.group, kafka.topic, partition, place.epoch) for partition, place in places.items()}
        found = {
            partition: Mark(places[partition].epoch, offset, f"{self._token}.{session}")
            for partition, app in apps.items()
            if (offset := recorded.get(app)) is not None
        }
        return found if session and session == reader.session else {}

    def trim(self) -> None:
        """Let the broker forget what had landed by the last call of this, but for the last record of it.

        Call it every few seconds. What stands last tells this log from another; and a broker that lost its tail lost what is
        younger than the last call, so nothing is deleted that its next life wrote at the same place and nobody has read.
        """
        landed = {app: offset for app, offset in dict(self._recorded).items() if offset}
        aged, self._aged = self._aged, landed
        upto: dict[int, int] = {}
        for app, offset in aged.items():
            partition, epoch = (int(part) for part in app.rsplit(":", 2)[1:])
            place = self.reader.places.get(partition)
            if place and epoch == place.epoch == self._epochs.get(partition) and offset > self._trimmed.get(app, 0) + TRIM:
                upto[partition] = offset - 1
                self._trimmed[app] = offset
        if upto:
            self.reader.trim(upto)
