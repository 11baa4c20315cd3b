"""Kafka with the settings that keep its promises: a reader whose positions live in the lake, and a publisher.

The reader `assign()`s (no group: a killed member would hold its partitions) and starts where the lake says. It watches three
things that the client library does not: a log that became shorter or other than what was read (a broker that lost its tail) is
read again from its start under the next *epoch*; records deleted before they were read become one dead letter that says so; a
batch with a wrong checksum becomes dead letters, neither a hang nor a silent skip. kafka-python 3.0.12 spins for ever when
`poll()` is called again after it raised, so a consumer that raised is never used again.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from truing.tasks.errors import Unavailable
from truing.tasks.events import salvage
from truing.tasks.events.schema import Reason, claimed_id
from truing.tasks.records import Record

if TYPE_CHECKING:
    from truing.tasks.events.batches import Block

CONSUMER: dict[str, Any] = {
    "group_id": None,
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "isolation_level": "read_committed",
    "max_poll_records": 10_000,
    "max_partition_fetch_bytes": 8 << 20,
    "fetch_max_bytes": 64 << 20,
    "bootstrap_timeout_ms": 3000,
    "allow_auto_create_topics": False,  # it would have the broker's number of partitions, not ours
}
PRODUCER: dict[str, Any] = {
    "acks": "all",
    "enable_idempotence": True,
    "linger_ms": 20,
    "delivery_timeout_ms": 20_000,
    "request_timeout_ms": 10_000,
    "max_block_ms": 5000,
    "bootstrap_timeout_ms": 3000,
    "allow_auto_create_topics": False,
}
_SESSIONS = count(1)
_NAMED = 100  # records looked at for one that claims an id: garbage can't be told from garbage
_NAPS = 5  # looks within one poll: 20 ms apart at 100 ms, 5 % of a core instead of 30 %


class Place(Record, frozen=True):
    """Where to go on in one partition. The anchor is the last record read that claims an id: if another one stands there, the
    log is another one.
    """

    epoch: int
    offset: int
    anchor_offset: int = -1
    anchor_id: str = ""  # what that message claims as its id; "" = can't be compared


class Chunk(NamedTuple):
    """Records of one partition in order. With a `reason` they are dead letters already (corrupt, lost)."""

    partition: int
    epoch: int
    records: Sequence[tuple[int, bytes | None]]  # offset, value; a Block where the reader reads in batches
    reason: str = ""
    detail: str = ""


def producer(connection: Mapping[str, Any], **more: Any) -> Any:
    """A KafkaProducer that acknowledges only what all replicas have. Raises Unavailable when no broker answers."""
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    try:
        return KafkaProducer(**{**PRODUCER, **connection, **more})
    except (KafkaError, OSError) as error:
        raise _unavailable(connection, error) from None


def discard(producer: Any) -> None:
    """Close a producer that may hold what it can't send.

    Closing sends what is left, and when that takes too long it raises and leaves the sending thread on, to write long after
    its owner gave the messages to another producer.
    """
    from kafka.errors import KafkaError

    try:
        producer.close(timeout=1)
    except KafkaError:
        producer._sender.force_close()  # kafka-python 3.0: what close() would have come to


class Publisher:
    """Sends and waits for the acknowledgements. A failed producer is thrown away: its sequence numbers are out of step."""

    def __init__(self, connection: Mapping[str, Any], topic: str, **more: Any) -> None:
        self.topic = topic
        self._connection = dict(connection)
        self._more = more
        self._producer: Any = None

    def publish(self, messages: Sequence[tuple[bytes, bytes]]) -> None:
        """Return when all `(key, value)` are acknowledged; else raise Unavailable, and any part of them may have been written.

        Send the same again then: an event that comes twice lands once.
        """
        from kafka.errors import KafkaError

        if self._producer is None:
            self._producer = producer(self._connection, **self._more)
        try:
            futures = [self._producer.send(self.topic, key=key, value=value) for key, value in messages]
            self._producer.flush(timeout=30)
            for future in futures:
                future.get(timeout=30)
        except (KafkaError, OSError, AssertionError) as error:
            self.close()
            raise _unavailable(self._connection, error) from None

    def close(self) -> None:
        if self._producer is not None:
            discard(self._producer)
            self._producer = None


class Reader:
    """Reads one topic from given places on. One thread only; `places` always says what was handed out so far.

    `share` = (k, n): of n readers this is number k, and it reads the partitions p with p % n == k. `batched`: a fetch stays one
    buffer (`batches`), if the client library is the one that allows it; else a record at a time, which says the same slower.
    """

    def __init__(
        self,
        connection: Mapping[str, Any],
        topic: str,
        places: Mapping[int, Place] | None = None,
        *,
        share: tuple[int, int] = (0, 1),
        batched: bool = False,
    ) -> None:
        self.topic = topic
        self.share = share
        self.batched = batched
        self.places: dict[int, Place] = {number: (places or {})[number] for number in self._mine(places or ())}
        self.notes: list[str] = []  # what a person should know; the caller takes them out
        self.session = 0  # another number each time the log was looked at and settled; 0 = not connected
        self._connection = dict(connection)
        self._consumer: Any = None
        self._sentinel: socket.socket | None = None
        self._ready: list[Chunk] = []
        self._fetched: list[tuple[int, Block]] = []  # partition and what of its fetch was not handed out yet
        self._idle = 0

    def poll(self, timeout_ms: int, most: int = 10_000) -> list[Chunk]:
        """At most `most` records that stand next, waiting `timeout_ms` for the first. Raises Unavailable: try again later."""
        if self._ready:
            ready, self._ready = self._ready, []
            return ready
        if self._fetched:
            return self._hand_out(most)
        if self._consumer is None or self._broken():
            self.close()
            self._open()
            return self.poll(timeout_ms, most) if self._ready else []
        with self._guarded():
            polled = self._consumer.poll(timeout_ms=1, max_records=most)
            for _ in range(_NAPS):  # the embedded broker answers empty fetches at once: one long poll would spin
                if polled or timeout_ms <= 1:
                    break
                time.sleep(timeout_ms / 1000 / _NAPS)
                polled = self._consumer.poll(timeout_ms=1, max_records=most)
            if polled and self._broken():  # what answered may be the broker's next life, with another log at these offsets
                self.close()
                return []
            if self.batched:
                self._fetched = [(tp.partition, block) for tp, blocks in polled.items() for block in blocks]
                chunks = self._hand_out(most)
            else:
                records = {tp.partition: [(one.offset, one.value) for one in found] for tp, found in polled.items()}
                chunks = [self._take(partition, found) for partition, found in records.items()]
            self._idle = 0 if chunks else self._idle + 1
            if self._idle >= 50:  # seconds without a record: is it really quiet?
                self._idle = 0
                self._check()
            return chunks
        return self.poll(timeout_ms, most) if self._ready else []

    def lag(self) -> int:
        """Records not handed out yet. Raises Unavailable."""
        if self._consumer is None:
            self._open()
        with self._guarded():
            ends = self._consumer.end_offsets(self._partitions(self.places))
            return sum(max(0, end - self.places[tp.partition].offset) for tp, end in ends.items())
        return 0

    def trim(self, upto: Mapping[int, int], *, before: float | None = None) -> None:
        """Let the broker forget what lies below these offsets ({partition: offset}); with `before` (Unix seconds), only what it
        took until then. Best effort.
        """
        from kafka import KafkaAdminClient, TopicPartition
        from kafka.errors import KafkaError

        try:
            admin = KafkaAdminClient(**self._connection, bootstrap_timeout_ms=3000, request_timeout_ms=5000)
            try:
                wanted = {TopicPartition(self.topic, p): offset for p, offset in upto.items()}
                if before is not None:
                    first = admin.list_partition_offsets(dict.fromkeys(wanted, int(before * 1000)), timeout_ms=5000)
                    wanted = {tp: min(offset, at) if (at := first[tp].offset) >= 0 else offset for tp, offset in wanted.items()}
                admin.delete_records(wanted, timeout_ms=5000)
            finally:
                admin.close()
        except (KafkaError, OSError) as error:
            self.notes.append(f"could not trim {self.topic}: {salvage.short(error)}")

    def close(self) -> None:
        self._fetched = []  # not handed out: read again
        self.session = 0
        if self._consumer is not None:
            self._consumer.close(timeout_ms=1000)
            self._consumer = None
        if self._sentinel is not None:
            self._sentinel.close()
            self._sentinel = None

    # --- handing out
    def _hand_out(self, most: int) -> list[Chunk]:
        """At most so many records of what was fetched."""
        chunks = []
        while self._fetched and most > 0:
            partition, block = self._fetched.pop(0)
            if len(block) > most:
                self._fetched.insert(0, (partition, block[most:]))
                block = block[:most]
            most -= len(block)
            chunks.append(self._take(partition, block))
        return chunks

    def _take(self, partition: int, records: Sequence[tuple[int, bytes | None]]) -> Chunk:
        place = self.places[partition]
        at, named = place.anchor_offset, place.anchor_id
        for back in range(1, min(len(records), _NAMED) + 1):
            offset, value = records[-back]
            if name := claimed_id(value):
                at, named = offset, name
                break
        following = records[-1][0] + 1
        self.places[partition] = Place(epoch=place.epoch, offset=following, anchor_offset=at, anchor_id=named)
        return Chunk(partition, place.epoch, records)

    def _dead(self, partition: int, records: list[tuple[int, bytes | None]], reason: Reason, detail: str) -> None:
        place = self.places[partition]
        self._ready.append(Chunk(partition, place.epoch, records, reason, detail))
        self.places[partition] = Place(epoch=place.epoch, offset=records[-1][0] + 1)
        self.notes.append(f"{self.topic}/{partition}: {detail}")

    # --- connecting
    def _open(self) -> None:
        """Connect, find out whether the log is still the one that was read, and go to the places."""
        from truing.tasks.events import batches

        try:
            with self._guarded():
                self._sentinel = self._connect()
                self._consumer = self._new()
                if self.batched and not batches.attach(self._consumer):
                    self.batched = False
                    self.notes.append(f"reading record by record, not in batches: {batches.missing()}")
                found = self._consumer.partitions_for_topic(self.topic)
                if not found:
                    raise Unavailable(
                        f"expected the topic {self.topic} on the broker, found none; run `truing up` or create it"
                    )
                partitions = self._partitions(self._mine(found))
                begins = self._consumer.beginning_offsets(partitions)
                ends = self._consumer.end_offsets(partitions)
                for tp in partitions:
                    self._settle(tp, begins[tp], ends[tp])
                self._consumer.assign(partitions)
                for tp in partitions:
                    self._consumer.seek(tp, self.places[tp.partition].offset)
                self.session = next(_SESSIONS)
        except Unavailable:
            self.close()
            raise

    def _settle(self, tp: Any, begin: int, end: int) -> None:
        """The place in one partition after a look at its ends and its anchor."""
        place = self.places.setdefault(tp.partition, Place(epoch=0, offset=begin))
        if place.offset > end:
            why = f"it ends at {end}, read was up to {place.offset}"
        elif place.anchor_id and begin <= place.anchor_offset < end and not self._same(tp, place):
            why = f"another message stands at {place.anchor_offset} than the one read there"
        else:
            if place.offset < begin:
                detail = f"offsets {place.offset} to {begin - 1} were deleted before they were read"
                self._dead(tp.partition, [(begin - 1, None)], Reason.LOST, detail)
            return
        self.places[tp.partition] = Place(epoch=place.epoch + 1, offset=begin)
        self.notes.append(f"{self.topic}/{tp.partition}: the broker lost its tail ({why}); reading epoch {place.epoch + 1}")

    def _same(self, tp: Any, place: Place) -> bool:
        self._consumer.assign([tp])
        self._consumer.seek(tp, place.anchor_offset)
        for found in self._consumer.poll(timeout_ms=2000, max_records=1).values():
            offset, value = found[0][0] if self.batched else (found[0].offset, found[0].value)
            return bool(offset != place.anchor_offset or claimed_id(value) == place.anchor_id)
        raise Unavailable(f"{self.topic}/{tp.partition}: expected the record at {place.anchor_offset} within 2 s, got none")

    def _check(self) -> None:
        """Nothing came for a while: has the log become shorter, has it grown partitions, or do we stand before something?"""
        found = self._consumer.partitions_for_topic(self.topic)
        ends = self._consumer.end_offsets(self._partitions(self.places))
        if self._mine(found or ()) != set(self.places) or any(end != self._consumer.position(tp) for tp, end in ends.items()):
            self.close()  # open again: everything is looked at there

    def _broken(self) -> bool:
        """True once the broker has closed a silent connection: it went away, or came back as another process."""
        if self._sentinel is None:
            return True
        try:
            return not self._sentinel.recv(1)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _connect(self) -> socket.socket:
        host, _, port = str(self._connection["bootstrap_servers"][0]).rpartition(":")
        sentinel = socket.create_connection((host.strip("[]"), int(port)), timeout=3)
        sentinel.setblocking(False)
        return sentinel

    def _new(self, **more: Any) -> Any:
        from kafka import KafkaConsumer

        return KafkaConsumer(**{**CONSUMER, **self._connection, **more})

    def _mine(self, numbers: Iterable[int]) -> set[int]:
        own, readers = self.share
        return {number for number in numbers if number % readers == own}

    def _partitions(self, numbers: Any) -> list[Any]:
        from kafka import TopicPartition

        return [TopicPartition(self.topic, number) for number in sorted(numbers)]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever the client raises: drop it. What is malformed is salvaged; a moved log is settled when opened again."""
        from kafka.errors import KafkaError, OffsetOutOfRangeError

        try:
            yield
        except OffsetOutOfRangeError:
            self.close()
        except (KafkaError, OSError, *salvage.MALFORMED) as error:
            self.close()
            try:
                if salvage.corrupt(error) and self._salvage():
                    return
            except (KafkaError, OSError) as second:
                raise _unavailable(self._connection, second) from None
            raise _unavailable(self._connection, error) from None

    # --- corrupt batches
    def _salvage(self) -> bool:
        """Find the partitions that stand before an unreadable batch and hand its records out as dead letters."""
        done = False
        for tp in self._partitions(self.places):
            place = self.places[tp.partition]
            fault = salvage.fault(self._new, tp, place.offset)
            if fault:
                following = salvage.after(self._new, tp, place.offset, fault)
                values = salvage.unchecked(self._new, tp, place.offset, following)
                records = [(offset, values.get(offset)) for offset in range(place.offset, following)]
                detail = f"offsets {place.offset} to {following - 1} are in a batch that does not read: {fault}"
                self._dead(tp.partition, records, Reason.CORRUPT, detail[:300])
                done = True
        return done


def _unavailable(connection: Mapping[str, Any], error: Exception) -> Unavailable:
    where = ",".join(connection["bootstrap_servers"])
    return Unavailable(f"the Kafka broker at {where}: expected an answer, got {salvage.short(error)}; it is tried again")
