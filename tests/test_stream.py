"""Reading Kafka from positions in the lake: nothing twice, nothing skipped, whatever the broker went through."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from truing.infra import broker
from truing.infra.settings import Settings, child_environment
from truing.tasks.errors import SettingsError, Unavailable
from truing.tasks.events.stream import Chunk, Place, Publisher, Reader

pytestmark = pytest.mark.services


class Broker:
    """A broker as a process of this test."""

    def __init__(self, settings: Settings, *, batched: bool) -> None:
        self.settings = settings
        self.batched = batched  # do its readers read in batches?
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        null = subprocess.DEVNULL
        environment = child_environment(self.settings)
        self.process = subprocess.Popen(broker.command(self.settings), env=environment, stdout=null, stderr=null)
        broker.wait_for(self.settings, 60)
        broker.ensure_topics(self.settings)

    def stop(self, *, kill: bool = False) -> None:
        if self.process is not None:
            self.process.kill() if kill else self.process.terminate()
            self.process.wait(20)
            self.process = None

    def publish(self, *values: bytes, key: bytes = b"k") -> None:
        publisher = Publisher(broker.connection(self.settings), self.settings.kafka.topic, linger_ms=50)  # one call, one batch
        publisher.publish([(key, value) for value in values])
        publisher.close()

    @property
    def forgets(self) -> bool:
        """Does SIGKILL cost it what it acknowledged last?"""
        return self.settings.kafka.broker == "embedded"

    def spoil(self, old: bytes, new: bytes) -> None:
        """Change bytes of the only partition in the stopped broker's file, behind the back of the batch's checksum."""
        folder = self.settings.data / "broker"
        if self.settings.kafka.broker == "kafka":
            path = folder / "log" / f"{self.settings.kafka.topic}-0" / f"{0:020d}.log"
            stored = path.read_bytes()
            assert stored.count(old) == 1
            path.write_bytes(stored.replace(old, new))
            return
        path = folder / "kafka.json"
        whole = json.loads(path.read_text())
        topic = next(body for name, body in whole["topics"] if name == self.settings.kafka.topic)
        for _, raw in topic["partitions"][0][1]["record_batches"]:
            raw[:] = bytes(raw).replace(old, new)
        path.write_text(json.dumps(whole))

    def reader(self, places: dict[int, Place] | None = None) -> Reader:
        return Reader(broker.connection(self.settings), self.settings.kafka.topic, places, batched=self.batched)


@pytest.fixture(params=[True, False], ids=["batches", "records"])
def kafka(tmp_path: Path, on_each_broker: Callable[..., Settings], request: pytest.FixtureRequest) -> Iterator[Broker]:
    settings = on_each_broker(tmp_path)
    one = settings.kafka.model_copy(update={"partitions": 1})
    running = Broker(settings.model_copy(update={"kafka": one}), batched=request.param)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def message(n: int) -> bytes:
    return json.dumps({"id": f"e{n}"}).encode()


def read(reader: Reader, count: int, seconds: float = 20) -> list[Chunk]:
    """Chunks until `count` records came; raises TimeoutError. A broker that is away is asked again."""
    found: list[Chunk] = []
    end = time.monotonic() + seconds
    while sum(len(chunk.records) for chunk in found) < count:
        if time.monotonic() > end:
            raise TimeoutError(f"expected {count} records, got {found}; notes {reader.notes}")
        try:
            found += reader.poll(100)
        except Unavailable:
            time.sleep(0.05)
    return found


def values(chunks: list[Chunk]) -> list[bytes | None]:
    return [value for chunk in chunks for _, value in chunk.records]


def test_a_reader_goes_on_where_its_places_say(kafka: Broker) -> None:
    sent = [message(n) for n in range(5)]
    kafka.publish(*sent)
    first = kafka.reader()
    assert values(read(first, 5)) == sent
    assert first.places == {0: Place(epoch=0, offset=5, anchor_offset=4, anchor_id="e4")}
    assert first.lag() == 0
    first.close()
    kafka.publish(message(5))
    second = kafka.reader(first.places)
    assert second.lag() == 1
    assert values(read(second, 1)) == [message(5)]
    assert second.notes == []
    second.close()


def test_a_log_that_became_shorter_is_read_as_a_new_epoch(kafka: Broker) -> None:
    kafka.publish(*(message(n) for n in range(3)))
    reader = kafka.reader({0: Place(epoch=2, offset=50)})
    chunks = read(reader, 3)
    assert [chunk.epoch for chunk in chunks] == [3]
    assert reader.places[0].epoch == 3
    assert "lost its tail" in reader.notes[0]
    reader.close()


def test_a_log_that_grew_again_past_the_loss_is_found_out_by_its_anchor(kafka: Broker) -> None:
    """Read up to 2 was e0, x1; the broker lost x1 and took e1, e2 instead: going on at 2 would skip e1 for ever."""
    kafka.publish(*(message(n) for n in range(3)))
    reader = kafka.reader({0: Place(epoch=0, offset=2, anchor_offset=1, anchor_id="x1")})
    chunks = read(reader, 3)
    assert {chunk.epoch for chunk in chunks} == {1}
    assert values(chunks) == [message(n) for n in range(3)]
    reader.close()


def test_a_killed_broker_is_read_on_and_what_it_forgot_is_noticed(kafka: Broker) -> None:
    """The embedded broker saves once a second: what is sent right before SIGKILL is gone, and sent again by its sender.

    Apache Kafka gives what it acknowledged to the system at once: a killed process forgets none of it, so no new epoch begins.
    """
    kafka.publish(message(0))
    time.sleep(2.5)
    reader = kafka.reader()
    late = [message(n) for n in range(1, 20)]
    kafka.publish(*late)
    assert values(read(reader, 20)) == [message(0), *late]
    kafka.stop(kill=True)
    kafka.start()
    new = [message(n) for n in range(20, 60)]
    kafka.publish(*new, *late)  # if it forgot, new messages now stand where read ones stood
    seen = read(reader, len(new))
    while reader.lag():
        seen += read(reader, 1)
    assert set(values(seen)) >= set(new)
    if not kafka.forgets:
        assert (values(seen), reader.places[0].epoch, reader.notes) == ([*new, *late], 0, [])
    reader.close()


def test_records_deleted_before_they_were_read_are_said_to_be_lost(kafka: Broker) -> None:
    kafka.publish(*(message(n) for n in range(10)))
    reader = kafka.reader({0: Place(epoch=0, offset=2)})
    reader.trim({0: 6})
    chunks = read(reader, 5)
    lost = chunks[0]
    assert (lost.reason, lost.records, lost.detail) == (
        "lost",
        [(5, None)],
        "offsets 2 to 5 were deleted before they were read",
    )
    assert values(chunks[1:]) == [message(n) for n in range(6, 10)]
    reader.close()


def test_a_batch_with_a_wrong_checksum_becomes_dead_letters_and_reading_goes_on(kafka: Broker) -> None:
    """One byte of the second of three batches is flipped in the stopped broker's file."""
    for first in (0, 3, 6):
        kafka.publish(*(message(n) for n in range(first, first + 3)))
    kafka.stop()
    kafka.spoil(b"e4", b"E4")
    kafka.start()
    reader = kafka.reader()
    chunks = read(reader, 9)
    assert [(chunk.reason, [offset for offset, _ in chunk.records]) for chunk in chunks if chunk.reason] == [
        ("corrupt", [3, 4, 5])
    ]
    good = [chunk for chunk in chunks if not chunk.reason]
    assert values(good) == [message(n) for n in (0, 1, 2, 6, 7, 8)]
    bad = next(chunk for chunk in chunks if chunk.reason)
    assert [value for _, value in bad.records] == [message(3), b'{"id": "E4"}', message(5)]
    kafka.publish(message(9))
    assert values(read(reader, 1)) == [message(9)]
    reader.close()


def test_a_broker_that_is_away_is_said_in_one_line_and_reading_goes_on_when_it_is_back(kafka: Broker) -> None:
    kafka.publish(message(0))
    reader = kafka.reader()
    assert values(read(reader, 1)) == [message(0)]
    time.sleep(1.5)  # let it save: this is not about a lost tail
    kafka.stop()
    with pytest.raises(Unavailable, match=r"^the Kafka broker at [^\n]+$"):
        for _ in range(100):
            reader.poll(50)
    kafka.start()
    kafka.publish(message(1))
    assert values(read(reader, 1)) == [message(1)]
    reader.close()


def test_topics_are_made_once_and_control_keeps_its_order(kafka: Broker) -> None:
    from kafka import KafkaAdminClient

    broker.ensure_topics(kafka.settings)  # again
    admin = KafkaAdminClient(**broker.connection(kafka.settings))
    topics = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics()}
    admin.close()
    assert topics[kafka.settings.kafka.topic] == kafka.settings.kafka.partitions
    assert topics[kafka.settings.kafka.control] == 1


# --- without a broker ---------------------------------------------------------------------------------------------------------


def test_a_taken_port_a_dead_port_and_a_wrong_address_are_one_line_each(
    tmp_path: Path, settings_in: Callable[..., Settings]
) -> None:
    settings = settings_in(tmp_path)
    with pytest.raises(
        Unavailable, match=r"^the Kafka broker at .*expected an answer within 0.5 s, got connection refused; [^\n]+$"
    ):
        broker.wait_for(settings, 0.5)
    with socket.socket() as other:
        other.bind(broker.address(settings))
        other.listen()
        with pytest.raises(Unavailable, match=r"^port \d+ of the broker: expected it free .*; [^\n]+$"):
            broker.check_free(settings)
        with pytest.raises(Unavailable, match=r"^the Kafka broker at [^\n]+ is it a Kafka broker; [^\n]+$"):
            broker.wait_for(settings, 0.5)
    wrong = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"bootstrap": "nowhere"})})
    with pytest.raises(SettingsError, match=r"expected host:port, got 'nowhere'"):
        broker.address(wrong)


def test_an_external_broker_has_no_command_here(tmp_path: Path, settings_in: Callable[..., Settings]) -> None:
    settings = settings_in(tmp_path, kafka={"broker": "external", "bootstrap": "127.0.0.1:9"})
    with pytest.raises(SettingsError, match="expected embedded"):
        broker.command(settings)


def test_a_sender_whose_broker_hangs_goes_whole_with_what_it_could_not_send(
    tmp_path: Path, settings_in: Callable[..., Settings]
) -> None:
    """Else its thread would write on beside that of the next one."""
    hung = Broker(settings_in(tmp_path), batched=False)
    hung.start()
    publisher = Publisher(broker.connection(hung.settings), hung.settings.kafka.topic)
    try:
        publisher.publish([(b"k", b"1")])
        old = publisher._producer
        assert hung.process is not None
        hung.process.send_signal(signal.SIGSTOP)
        try:
            old.send(hung.settings.kafka.topic, b"2")
            publisher.close()
            old._sender.join(20)
            assert not old._sender.is_alive()
        finally:
            hung.process.send_signal(signal.SIGCONT)
        publisher.publish([(b"k", b"3")])
    finally:
        publisher.close()
        hung.stop()
