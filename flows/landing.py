"""Intake: what Kafka has becomes rows of `landing`. Two threads with a short queue between them.

    read     poll → judge: duplicates are told apart here, so what is in flight counts as landed
    commit   seal → one Delta commit with the offsets in it; most of its time is spent outside Python

What can't be committed now is held and tried again, and reading stops when the queue is full. When somebody else has written
what this keeper was about to (Stale), all that is in flight is dropped and reading goes on at the places that the lake now
tells. A commit is as large as the backlog allows, and leaves after `ingest.linger_ms` when there is none.
"""

from __future__ import annotations

import gc
import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from truing.infra.broker import connection
from truing.infra.settings import Settings
from truing.infra.watermark import Mark
from truing.tasks.errors import Unavailable
from truing.tasks.events.glance import Glance
from truing.tasks.events.intake import Batch, app_of, land, places, recall
from truing.tasks.events.redaction import Redactor
from truing.tasks.events.schema import Proofs
from truing.tasks.events.stream import Chunk, Reader
from truing.tasks.problem import Problem, load_problem
from truing.tasks.tables.lake import Vault
from truing.tasks.tables.store import Stale
from truing.tasks.tables.subjects import commits
from truing.tasks.validation import checks as row_checks

RETRY_S = 0.5  # before something that was away is tried again
FEW = 500  # records: fewer are waited for a moment
TRIM = 500  # records that are worth a word to the broker
AHEAD = 2  # batches that may wait while one is committed
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
        split_salt: bytes,
        stop: threading.Event,
        log: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.share = share
        self.problems = problems
        self.proofs, self.split_salt = proofs, split_salt
        self.glance = Glance(proofs, split_salt=split_salt)
        self.stop = stop
        self.log = log
        self.changed = threading.Event()  # something landed that is not joined yet
        self.tally: Counter[str] = Counter()  # by disposition, type, reason; since this keeper began
        self._read_at = self._committed_at = time.monotonic()  # last signs of life
        self._waiting: queue.Queue[Batch] = queue.Queue(AHEAD)
        self._turn = threading.Lock()  # judging and sealing at once wait for Python's lock: no faster, 8 % more CPU
        self._stale = threading.Event()  # what is in flight must not land
        self._read_all = threading.Event()  # nothing more will be put into the queue
        self._said = ""
        self._token = secrets.token_hex(4)  # tells this keeper's marks from an earlier one's
        self._suites: dict[str, object] = {}
        self._aged: dict[str, int] = {}  # by application, what had landed when `trim` was called last
        self._trimmed: dict[str, int] = {}
        self.refresh_checks()
        self.vault = Vault(settings.vault, sync=settings.ingest.sync)  # of intake alone: every loop has handles of its own
        self._resume()

    def _resume(self) -> None:
        """Places, fences and memory from what is in the lake."""
        kafka = self.settings.kafka
        found = places(self.vault, kafka.group, kafka.topic)
        self.recent = recall(self.vault, self.glance.mark)
        self.reader = Reader(
            connection(self.settings), kafka.topic, found, share=self.share, batched=self.settings.ingest.batches
        )
        self._epochs = {partition: place.epoch for partition, place in self.reader.places.items()}  # as committed
        self._judged = dict(self._epochs)  # as read
        # What the places were read from, and nothing newer: another owner's commit since then must fail our first one.
        self._recorded: dict[str, int | None] = {}
        for partition, place in self.reader.places.items():
            app = app_of(kafka.group, kafka.topic, partition, place.epoch)
            self._recorded[app] = None if self.vault.transaction("landing", app) is None else place.offset

    def refresh_checks(self) -> None:
        """Compile the row checks of every problem whose suite, or `[redaction]`, is new or changed."""
        for name, problem in self.problems.items():
            suite = row_checks.load(problem, folder=self.settings.problems / name, kept=self.settings.lake / "expectations")
            redaction = load_problem(self.settings.problems / name).redaction
            if name not in self._suites or (suite, redaction) != self._suites[name]:
                self._suites[name] = suite, redaction
                redactor = Redactor.of(msgspec.structs.replace(problem, redaction=redaction))
                self.glance.refresh(name, suite, row_checks.compile(suite, problem), redactor)

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

    def judge(self, chunks: list[Chunk]) -> Batch:
        """The rows that one commit will add. They count as landed from now on. Raises Unavailable, and then nothing counts."""
        epochs = {chunk.partition: chunk.epoch for chunk in chunks}
        if any(epoch > self._judged.get(partition, 0) for partition, epoch in epochs.items()):
            self._settle()  # a log read again from its start: all of it may have landed
            self.recent = recall(self.vault, self.glance.mark, EVERYTHING)
        with self._turn:
            batch = land(chunks, topic=self.settings.kafka.topic, glance=self.glance, recent=self.recent, now=time.time())
        self._judged.update(epochs)
        return batch

    def commit(self, batch: Batch) -> int:
        """Land a batch in one Delta commit that carries the next offset of each partition. Raises Stale, Unavailable."""
        kafka = self.settings.kafka
        apps = {app_of(kafka.group, kafka.topic, *where): offset for where, offset in batch.positions.items()}
        expected = {app: self._recorded.get(app) for app in apps}  # None: the first commit of a new epoch
        for partition, epoch in batch.positions:  # nor has another owner gone on to an epoch that this one has not noticed
            expected[app_of(kafka.group, kafka.topic, partition, epoch + 1)] = None
        with commits(self.settings.vault):  # nobody's key is destroyed between sealing and commit
            with self._turn:
                frame = batch.sealed(self.vault.sealing())
            self.vault.append("landing", frame, app=list(apps.items()), expect=expected)
        self._recorded.update(apps)
        self._epochs.update(batch.positions.keys())
        self.tally.update(batch.counts)
        self.changed.set()
        return frame.height

    @property
    def ticked(self) -> float:
        """The last sign of life: of reading, and of committing while there is something to commit."""
        return min(self._read_at, self._committed_at) if self._waiting.unfinished_tasks else self._read_at

    def run(self) -> None:
        """Land until `stop`. Raises what either thread died of."""
        gc.collect()
        gc.freeze()  # what has been imported stays: not to be looked through again and again
        gc.set_threshold(200_000, 20, 20)  # judging makes thousands of objects and hardly a cycle: look less often
        failed: list[BaseException] = []
        committer = threading.Thread(target=self._commits, args=(failed,), name="commits", daemon=True)
        committer.start()
        try:
            while not self.stop.is_set():
                self._read()
        finally:
            self._read_all.set()
            committer.join()
            self.reader.close()
        if failed:
            raise failed[0]

    def _read(self) -> None:
        """One round: gather, judge, hand over. What can't be judged now is tried again; nothing new is read meanwhile."""
        self._read_at = time.monotonic()
        try:
            if self._stale.is_set():
                self._settle()
                self.reader.close()
                self._resume()
                self._stale.clear()
            chunks = self.gather()
            self._say("")
        except Unavailable as error:
            self._say(str(error))
            self.stop.wait(RETRY_S)
            chunks = []
        while chunks and not (self.stop.is_set() or self._stale.is_set()):
            self._read_at = time.monotonic()
            try:
                self._hand_over(self.judge(chunks))
                break
            except Unavailable as error:
                self._say(str(error))
                self.stop.wait(RETRY_S)
        while self.reader.notes:
            self.log(self.reader.notes.pop(0))

    def _hand_over(self, batch: Batch) -> None:
        """Into the queue as soon as there is room. Not if it has become pointless meanwhile: then it is read again."""
        while not self._stale.is_set():
            self._read_at = time.monotonic()
            try:
                return self._waiting.put(batch, timeout=0.5)
            except queue.Full:
                if self.stop.is_set():  # what waits may never land; this was not recorded and is read again some day
                    return None

    def _settle(self) -> None:
        """Wait until nothing is in flight."""
        while self._waiting.unfinished_tasks and not (self.stop.is_set() or self._read_all.is_set()):
            self._read_at = time.monotonic()
            time.sleep(0.005)

    def _commits(self, failed: list[BaseException]) -> None:
        """The other thread: batch by batch, in order, until all that was read is done."""
        try:
            while True:
                self._committed_at = time.monotonic()
                try:
                    batch = self._waiting.get(timeout=0.05)
                except queue.Empty:
                    if self._read_all.is_set():
                        return
                    continue
                try:
                    self._land(batch)
                finally:
                    self._waiting.task_done()
        except BaseException as error:
            failed.append(error)
            self.stop.set()
            raise

    def _land(self, batch: Batch) -> None:
        """Commit, trying again while it can't be written. On Stale it is dropped with all behind it: nothing is skipped."""
        said = ""
        while not self._stale.is_set():
            self._committed_at = time.monotonic()
            try:
                self.commit(batch)
                if said:
                    self.log("intake goes on")
                return
            except Stale as error:
                self.log(f"{error}")
                self._stale.set()
            except Unavailable as error:
                if str(error) != said:
                    said = str(error)
                    self.log(said)
                if self.stop.wait(RETRY_S):  # nor may what stands behind it land: this would be skipped
                    self._stale.set()

    def _say(self, text: str) -> None:
        """A trouble of reading, once; and that it is over."""
        if text and text != self._said:
            self.log(text)
        elif self._said and not text:
            self.log("intake goes on")
        self._said = text

    def drain(self) -> None:
        """Land all that is there now, on this thread. Raises Stale, Unavailable."""
        while (chunks := self.gather()) or self.reader.lag():
            if chunks:
                self.commit(self.judge(chunks))

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

    def trim(self, keep_s: float = 0.0) -> None:
        """Let the broker forget what had landed by the last call of this, but for the last record of it.

        With `keep_s` what the broker took within so many seconds stays too. Call it every few seconds. What stands last tells
        this log from another; and a broker that lost its tail lost what is younger than the last call, so nothing is deleted
        that its next life wrote at the same place and nobody has read.
        """
        landed = {app: offset for app, offset in dict(self._recorded).items() if offset}
        aged, self._aged = self._aged, landed
        upto: dict[int, int] = {}
        for app, offset in aged.items():
            partition, epoch = (int(part) for part in app.rsplit(":", 2)[1:])
            place = self.reader.places.get(partition)
            worth = keep_s or offset > self._trimmed.get(app, 0) + TRIM
            if place and epoch == place.epoch == self._epochs.get(partition) and worth:
                upto[partition] = offset - 1
                self._trimmed[app] = offset
        if upto:
            self.reader.trim(upto, before=time.time() - keep_s if keep_s else None)
