"""Reading in batches gives what kafka-python's own classes give, record for record, from whatever a broker may answer."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import codec as codecs
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaConnectionError
from kafka.net.transport import KafkaTCPTransport
from kafka.protocol.consumer import IsolationLevel
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.record.util import calc_crc32c
from kafka.structs import TopicPartition

from truing.tasks.events import batches
from truing.tasks.events.batches import Block, block_of

AT = TopicPartition("user-events", 0)
PLAIN, GZIP, SNAPPY, LZ4, ZSTD = range(5)
HAVE = [
    number for number, name in enumerate(("", "gzip", "snappy", "lz4", "zstd")) if not name or getattr(codecs, f"has_{name}")()
]
Abort = tuple[int, int]  # producer, first offset


def batch(
    offset: int, values: list[bytes | None], *, codec: int = PLAIN, magic: int = 2, producer: int = -1,
    transactional: bool = False, control: int | None = None, gaps: list[int] | None = None, appended: bool = False,
    rng: random.Random | None = None,
) -> bytes:  # fmt: skip
    """One record batch as a broker stores it. `gaps` are offsets left out before a record, as compaction does."""
    known = {"producer_id": producer, "producer_epoch": 0, "base_sequence": 0} if producer >= 0 else {}
    first = offset if magic < 2 else 0  # the broker counts: a producer's batch begins at 0
    builder = MemoryRecordsBuilder(magic, codec, 1 << 20, offset=first, transactional=transactional, **known)
    for n, value in enumerate(values):
        builder.skip(gaps[n] if gaps else 0)
        headers = [("trace", b"\x00" * n), ("e", None)] if rng and rng.random() < 0.3 and magic == 2 else []
        key = struct.pack(">hh", 0, control) if control is not None else None if n % 3 == 0 else b"k" * n
        assert builder.append(1_790_000_000_000 + n * 7, key, value, headers) is not None
    builder.close()
    made = bytearray(builder.buffer())
    if magic == 2:
        attributes = struct.unpack_from(">h", made, 21)[0] | (0x20 if control is not None else 0) | (0x08 if appended else 0)
        struct.pack_into(">q", made, 0, offset)
        struct.pack_into(">h", made, 21, attributes)
        struct.pack_into(">I", made, 17, calc_crc32c(memoryview(made)[21:]))
    return bytes(made)


def part(hook: bool, buffer: bytes, *, fetch_offset: int = 0, aborted: list[Abort] | None = None) -> Any:
    """The client library's view of one fetch, with or without our hook."""
    kind = batches._hook() if hook else Fetcher.PartitionRecords
    gone = [SimpleNamespace(producer_id=producer, first_offset=first) for producer, first in aborted or []]
    return kind(
        fetch_offset, AT, MemoryRecords(buffer), isolation_level=IsolationLevel.READ_COMMITTED, aborted_transactions=gone
    )


def taken(one: Any) -> Iterator[tuple[list[tuple[int, int, bytes | None]], Any]]:
    """What `take` gives until the fetch is used up or raises: records, and where reading would go on (or what was raised)."""
    while one:
        try:
            found = one.take(1_000_000)
        except Exception as error:  # noqa: BLE001 - whatever the library raises is what is compared
            yield [], (type(error).__name__, str(error))
            return
        blocks = [each if isinstance(each, Block) else block_of([each]) for each in found]
        times = [stamp for block in blocks for stamp in block.timestamps.tolist()]
        records = [record for block in blocks for record in block]
        yield [(offset, stamp, value) for (offset, value), stamp in zip(records, times, strict=True)], one.next_fetch_offset


def same(buffer: bytes, **more: Any) -> list[tuple[int, int, bytes | None]]:
    """Assert that both read the same; returns the records."""
    ours, stock = ([*taken(part(hook, buffer, **more))] for hook in (True, False))
    assert ours == stock
    return [record for records, _ in ours for record in records]


def values(rng: random.Random, count: int) -> list[bytes | None]:
    long = (0, 1, 63, 64, 127, 128, 8191, 8192)
    return [rng.choice((None, b"x" * rng.choice(long), rng.randbytes(rng.randint(1, 300)))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(40))
def test_random_fetches_read_alike(seed: int) -> None:
    """Codecs, tombstones, headers, gaps, the broker's times, transactions and their marks, old formats, cut ends, seeks."""
    rng = random.Random(seed)
    offset, buffer, aborted = rng.choice((0, 5, 2**33)), b"", []
    start = offset
    for _ in range(rng.randint(1, 12)):
        count = rng.randint(1, 40)
        gaps = [rng.choice((0, 0, 0, 3, 200)) for _ in range(count)]
        kind = rng.choice(("plain", "plain", "codec", "idempotent", "aborted", "committed", "old"))
        if kind == "old" and seed % 4:
            kind = "plain"
        made = values(rng, count)
        more: dict[str, Any] = {"gaps": gaps, "rng": rng, "appended": rng.random() < 0.2}
        if kind == "codec":
            more["codec"] = rng.choice(HAVE)
        if kind in ("idempotent", "aborted", "committed"):
            more |= {"producer": rng.randint(0, 3), "transactional": kind != "idempotent"}
        if kind == "old":
            buffer += batch(offset, made, magic=rng.choice((0, 1)))
            offset += count
            continue
        if kind == "aborted":
            aborted.append((more["producer"], offset))
        buffer += batch(offset, made, **more)
        offset += count + sum(gaps)
        if kind in ("aborted", "committed"):
            mark = 0 if kind == "aborted" else 1
            buffer += batch(offset, [b"\x00" * 6], producer=more["producer"], transactional=True, control=mark)
            offset += 1
    if rng.random() < 0.5:
        buffer = buffer[: len(buffer) - rng.randint(1, 100)]
    asked = rng.randint(start, offset)
    same(buffer, fetch_offset=asked, aborted=aborted)
    assert all(found >= asked for found, _, _ in same(buffer, fetch_offset=asked, aborted=aborted))


def test_what_is_before_a_wrong_checksum_is_handed_out_and_then_it_is_said() -> None:
    good, bad = batch(0, [b"a", b"b"]), bytearray(batch(2, [b"c"]))
    bad[-3] ^= 1
    ours = [*taken(part(True, good + bytes(bad) + batch(3, [b"d"])))]
    assert [record[2] for records, _ in ours for record in records] == [b"a", b"b"]
    assert ours[-1][1] == ("CorruptRecordError", ours[-1][1][1]) and "offset 2 failed crc" in ours[-1][1][1]
    same(good + bytes(bad) + batch(3, [b"d"]))


@pytest.mark.parametrize("at", range(61, 90))
@pytest.mark.parametrize("byte", [0, 1, 0x7F, 0x80, 0xFF])
def test_a_record_that_does_not_read_fails_alike(at: int, byte: int) -> None:
    """Bytes of the records are changed and the checksum made anew: a sender's nonsense rather than a broken disk."""
    made = bytearray(batch(0, [b"one", None, b"three" * 40], rng=random.Random(1)))
    made[at] = byte
    struct.pack_into(">I", made, 17, calc_crc32c(memoryview(made)[21:]))
    same(bytes(made))


def test_another_client_library_is_read_record_by_record(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = SimpleNamespace(_fetcher=SimpleNamespace(PartitionRecords=Fetcher.PartitionRecords))
    assert batches.missing() == "" and batches.attach(consumer)
    assert consumer._fetcher.PartitionRecords is batches._hook()
    monkeypatch.setattr("kafka.__version__", "3.1.0")
    other = SimpleNamespace(_fetcher=SimpleNamespace(PartitionRecords=Fetcher.PartitionRecords))
    assert not batches.attach(other) and other._fetcher.PartitionRecords is Fetcher.PartitionRecords
    assert batches.missing() == "expected kafka-python 3.0.12, got 3.1.0"
    monkeypatch.undo()
    monkeypatch.setattr(Fetcher.PartitionRecords, "_unpack_records", lambda self, records: None)
    assert batches.missing().startswith("expected PartitionRecords._unpack_records(")


def test_a_connection_gives_what_has_arrived_at_once_and_ends_as_the_clients_own() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport = KafkaTCPTransport(None, ours)
    manager = SimpleNamespace(_build_transport=None, _conns={0: SimpleNamespace(transport=transport)})
    manager._build_transport = lambda: None
    batches._widen(manager)
    assert transport._sock_recv() == (b"", None)  # nothing there
    theirs.sendall(b"x" * 100_000)
    assert transport._sock_recv() == (b"x" * 100_000, None)
    theirs.sendall(b"last")
    theirs.close()
    assert transport._sock_recv() == (b"last", None)
    data, error = transport._sock_recv()
    assert data == b"" and isinstance(error, KafkaConnectionError)
    ours.close()
    data, error = transport._sock_recv()
    assert data == b"" and isinstance(error, KafkaConnectionError)


def test_a_slice_of_a_block_shares_its_buffer() -> None:
    block = part(True, batch(7, [b"a", None, b"", b"d"])).take(10)[0]
    assert list(block) == [(7, b"a"), (8, None), (9, b""), (10, b"d")]
    assert block[1:3][0] == (8, None) and block[-1] == (10, b"d") and block[1:].buffer is block.buffer
