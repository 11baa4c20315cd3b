"""Dead letters told on a topic of their own (`kafka.dead`), for alarms and other people's tools: one message each, no content.

The vault is the record; the topic is derived from it by the chief, in the order of positions. How far it got, by partition and
epoch, are application transactions of `vault/dead_sent`, together with where the derived topic ended. A crash between sending
and that commit is found out by its successor: what stands on the derived topic beyond that end is not sent again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import polars as pl

from truing.infra.broker import connection
from truing.infra.settings import Settings
from truing.tasks.errors import TruingError, Unavailable
from truing.tasks.events.dead import redacted, sender
from truing.tasks.events.stream import CONSUMER, discard, producer
from truing.tasks.tables.columns import RECORDS
from truing.tasks.tables.lake import Vault
from truing.tasks.tables.store import Stale

TABLE = "dead_sent"
EVERY_S = 2.0
BATCH = 5_000  # letters between two commits
_READ_S = 2.0  # without a record: the end of what is there


class DeadTopic:
    """Sends what is new. Not safe among threads; `close` it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._vault = Vault(settings.vault)
        self._version: int | None = None  # of landing, up to which all is told
        self._sure = False  # nothing of an earlier process stands on the topic untold, and `_at` is where it ended
        self._at: dict[int, int] = {}
        self._producer: Any = None

    def forward(self) -> int:
        """Tell all that is not told yet; returns how many. Raises Unavailable, and Stale when somebody else tells too."""
        version, landed, _ = self._vault.since("landing", self._version)
        if version is None or version == self._version:
            return 0
        told = 0
        for some in self._untold(landed):
            told += self._tell(some)
        self._version = version
        return told

    def close(self) -> None:
        if self._producer is not None:
            discard(self._producer)
            self._producer = None

    def _untold(self, landed: pl.LazyFrame) -> Iterator[pl.DataFrame]:
        columns = ["topic", "partition", "epoch", "offset", "reason", "detail", "problem", "landed_at"]
        dead = landed.filter(pl.col("disposition") == "dead").select(columns).collect()
        places = [place for place in dead.select("topic", "partition", "epoch").unique().iter_rows()]
        marks = [(*place, self._vault.transaction(TABLE, _app(*place)) or 0) for place in places]
        schema = {"topic": pl.String, "partition": pl.Int32, "epoch": pl.Int32, "next": pl.Int64}
        known = pl.DataFrame(marks, schema=schema, orient="row")
        fresh = dead.join(known, on=["topic", "partition", "epoch"]).filter(pl.col("offset") >= pl.col("next"))
        yield from fresh.sort("topic", "partition", "epoch", "offset").iter_slices(BATCH) if fresh.height else ()

    def _tell(self, letters: pl.DataFrame) -> int:
        """Send these and commit that they were sent."""
        expect: dict[str, int | None] = {}
        apps: dict[str, int] = {}
        messages: list[tuple[bytes | None, bytes]] = []
        sent_before = set() if self._sure else self._beyond()
        for one in letters.iter_rows(named=True):
            app = _app(one["topic"], one["partition"], one["epoch"])
            if app not in expect:
                expect[app] = self._vault.transaction(TABLE, app)
            apps[app] = one["offset"] + 1
            name = ":".join(str(one[key]) for key in ("topic", "partition", "epoch", "offset"))
            if name not in sent_before:
                messages.append((name.encode(), _message(name, one)))
        ends = dict(self._at) if self._sure else self._ends()
        if messages:
            for partition, offset in self._send(messages):
                ends[partition] = offset + 1  # lower than before where the broker lost its tail
        seq = (self._vault.transaction(TABLE, TABLE) or 0) + 1
        line = pl.DataFrame([("", str(seq), seq, msgspec.json.encode({"ends": ends}).decode())], schema=RECORDS, orient="row")
        self._vault.append(TABLE, line, app=[*apps.items(), (TABLE, seq)], expect=expect)
        self._sure, self._at = True, ends
        return len(messages)

    def _send(self, messages: list[tuple[bytes | None, bytes]]) -> list[tuple[int, int]]:
        if self._producer is None:
            self._producer = producer(connection(self.settings))
        self._sure = False
        try:
            return sender(self._producer, self.settings.kafka.dead)(messages)
        except Unavailable:
            self.close()
            raise

    def _ends(self) -> dict[int, int]:
        """Where the derived topic ended at the last commit."""
        lines = self._vault.read(TABLE, ["seq", "json"]).sort("seq").tail(1)["json"]
        found = msgspec.json.decode(lines[0], type=_Told).ends if len(lines) else {}
        return dict(found)

    def _beyond(self) -> set[str]:
        """Names on the derived topic after its last committed end: sent by a process that was killed before its commit."""
        from kafka import KafkaConsumer, TopicPartition
        from kafka.errors import KafkaError

        topic, begun = self.settings.kafka.dead, self._ends()
        names: set[str] = set()
        try:
            consumer = KafkaConsumer(**{**CONSUMER, **connection(self.settings)})
            try:
                parts = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
                if not parts:
                    raise Unavailable(f"expected the topic {topic} on the broker, found none; run `truing up` or create it")
                firsts, ends = consumer.beginning_offsets(parts), consumer.end_offsets(parts)
                consumer.assign(parts)
                left = {}
                for part in parts:
                    start = max(firsts[part], begun.get(part.partition, 0))
                    if start < ends[part]:
                        consumer.seek(part, start)
                        left[part] = ends[part]
                    else:  # nothing more, or a log that lost its tail
                        consumer.seek(part, ends[part])
                while any(consumer.position(part) < end for part, end in left.items()):
                    polled = consumer.poll(timeout_ms=int(_READ_S * 1000))
                    if not polled:
                        break
                    names |= {record.key.decode() for records in polled.values() for record in records if record.key}
            finally:
                consumer.close(timeout_ms=1000)
        except (KafkaError, OSError) as error:
            cause = " ".join(str(error).split())[:160] or type(error).__name__
            raise Unavailable(f"the topic {topic}: expected to read its end, got {cause}; it is tried again") from None
        return names


class _Told(msgspec.Struct):
    ends: dict[int, int]


def _app(topic: str, partition: int, epoch: int) -> str:
    return f"dead:{topic}:{partition}:{epoch}"


def _message(name: str, one: Mapping[str, Any]) -> bytes:
    """JSON: id (= key), topic, partition, epoch, offset, reason, detail, problem, first_seen (Unix seconds)."""
    said = {key: one[key] for key in ("topic", "partition", "epoch", "offset", "reason", "problem")}
    return msgspec.json.encode({"id": name, **said, "detail": redacted(one["detail"]), "first_seen": one["landed_at"]})


def tell(settings: Settings, *, elected: threading.Event, stop: threading.Event, log: Callable[[str], None]) -> None:
    """The chief's loop: every two seconds, until `stop`. What is away is said once and tried again."""
    topic, said = DeadTopic(settings), ""
    while not stop.wait(EVERY_S):
        if not elected.is_set():
            continue
        try:
            topic.forward()
            said = ""
        except Stale:
            topic.close()
            topic = DeadTopic(settings)
        except TruingError as error:
            if str(error) != said:
                said = str(error)
                log(f"dead letters: {said}")
    topic.close()
