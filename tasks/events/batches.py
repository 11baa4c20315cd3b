"""A partition's fetch as arrays instead of a Python object a record: reading is four times cheaper.

kafka-python turns each record of a fetch into two objects of ten fields: 6 of the 7 µs that a poll costs an event. Here a
fetch stays one buffer; record lengths are hopped over in Python, everything else is decoded by numpy over the whole fetch, and
what comes out of `poll()` are `Block`s: (buffer, starts, lengths, offsets, timestamps).

The hook is a subclass of `Fetcher.PartitionRecords`, private to kafka-python 3.0.12, put on one consumer by `attach`. What is
not plain goes the stock class's own way: old formats, a wrong checksum, a record that does not read. So errors, and what was
handed out before them, are the stock ones. A test holds both equal.
"""

from __future__ import annotations

import inspect
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, overload

import numpy as np
import numpy.typing as npt

PINNED = "3.0.12"
_HEADER = struct.Struct(">qiibIhiqqqhii")  # as in kafka.record.default_records: base offset … count of records
_LENGTH = struct.Struct(">i")
_RECEIVE = 1 << 20  # bytes
_PARTS = {
    "__init__": "self fetch_offset tp records key_deserializer value_deserializer check_crcs isolation_level "
    "aborted_transactions metric_aggregator on_drain",
    "_maybe_skip_record": "self record",
    "_unpack_records": "self tp records key_deserializer value_deserializer",
    "_consume_aborted_transactions_up_to": "self offset",
    "_contains_abort_marker": "self batch",
    "drain": "self",
}

Ints = npt.NDArray[np.int64]


class Block(Sequence[tuple[int, bytes | None]]):
    """Records of one partition in order, each (offset, value): value n is `buffer[starts[n] : starts[n] + lengths[n]]`.

    A length of -1 is a tombstone. `timestamps` are milliseconds, -1 if unknown. Slices share the buffer, which nobody changes.
    """

    __slots__ = ("buffer", "lengths", "offsets", "starts", "timestamps")

    def __init__(self, buffer: Any, starts: Ints, lengths: Ints, offsets: Ints, timestamps: Ints) -> None:
        self.buffer, self.starts, self.lengths, self.offsets, self.timestamps = buffer, starts, lengths, offsets, timestamps

    @classmethod
    def of(cls, records: Sequence[tuple[int, bytes | None]]) -> Block:
        """The same of single records, whose times nobody asks for."""
        values = [value for _, value in records]
        lengths = np.array([-1 if value is None else len(value) for value in values], np.int64)
        ends = np.cumsum(np.maximum(lengths, 0))
        offsets = np.array([offset for offset, _ in records], np.int64)
        starts = ends - np.maximum(lengths, 0)
        return cls(b"".join(value or b"" for value in values), starts, lengths, offsets, np.full(len(values), -1, np.int64))

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, n: int) -> tuple[int, bytes | None]: ...
    @overload
    def __getitem__(self, n: slice) -> Block: ...
    def __getitem__(self, n: int | slice) -> tuple[int, bytes | None] | Block:
        if isinstance(n, slice):
            return Block(self.buffer, self.starts[n], self.lengths[n], self.offsets[n], self.timestamps[n])
        return int(self.offsets[n]), self.value(n)

    def value(self, n: int) -> bytes | None:
        start, length = int(self.starts[n]), int(self.lengths[n])
        return None if length < 0 else bytes(self.buffer[start : start + length])

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        return zip(self.offsets.tolist(), self.values(), strict=True)

    def values(self) -> list[bytes | None]:
        return [self.value(n) for n in range(len(self))]


def block_of(records: list[Any]) -> Block:
    """A Block from records of the client library (`offset`, `timestamp`, `value`)."""
    block = Block.of([(one.offset, one.value) for one in records])
    stamps = [-1 if one.timestamp is None else one.timestamp for one in records]  # the oldest format has none
    block.timestamps = np.array(stamps, np.int64)
    return block


def missing() -> str:
    """Why the hook can't be used with the client library that is installed; "" if it can."""
    import kafka
    from kafka.consumer.fetcher import Fetcher
    from kafka.record import MemoryRecords

    if kafka.__version__ != PINNED:
        return f"expected kafka-python {PINNED}, got {kafka.__version__}"
    if "_buffer" not in getattr(MemoryRecords, "__slots__", ()):
        return "expected MemoryRecords._buffer, got none"
    stock = getattr(Fetcher, "PartitionRecords", None)
    for name, parts in _PARTS.items():
        found = getattr(stock, name, None)
        got = " ".join(inspect.signature(found).parameters) if found else "none"
        if got != parts:
            return f"expected PartitionRecords.{name}({parts}), got {got}"
    return ""


def attach(consumer: Any) -> bool:
    """Let this consumer's `poll()` give Blocks, one a fetch; `max_records` counts them then. False = it stays stock."""
    fetcher = getattr(consumer, "_fetcher", None)
    if fetcher is None or missing():
        return False
    fetcher.PartitionRecords = _hook()
    _widen(getattr(consumer, "_manager", None))
    return True


def _widen(manager: Any) -> None:
    """Let this consumer's plain connections take what has arrived at once.

    The client library takes 4 KiB at a time, and gives Python's lock away and wants it back each time, 100,000 times in 400 MB:
    whoever is at work in another thread is woken as often. Where it is not as expected, nothing changes.
    """
    from kafka.net.transport import KafkaTCPTransport

    build = getattr(manager, "_build_transport", None)
    if build is None or not hasattr(KafkaTCPTransport, "_sock_recv"):
        return

    class Wide(KafkaTCPTransport):  # type: ignore[misc]
        def _sock_recv(self) -> tuple[bytes, Any]:
            try:
                data = self._sock.recv(_RECEIVE)
            except (BlockingIOError, InterruptedError):
                return b"", None
            except OSError:
                data = b""
            return (data, None) if data else super()._sock_recv()  # which says what is wrong

    def wider(transport: Any) -> Any:
        if type(transport) is KafkaTCPTransport:
            transport.__class__ = Wide
        return transport

    async def built(*given: Any, **named: Any) -> Any:
        return wider(await build(*given, **named))

    manager._build_transport = built
    for connection in list(getattr(manager, "_conns", {}).values()):
        wider(getattr(connection, "transport", None))


class _Unusual(Exception):  # never leaves this module
    pass


def _hook() -> Any:
    """The subclass, made when first used: importing this file must not import the client library."""
    global _made
    if _made is None:
        from kafka.consumer.fetcher import Fetcher

        class Blocks(Fetcher.PartitionRecords):  # type: ignore[misc]
            aborted_producer_ids: Any
            aborted_transactions: Any

            def _maybe_skip_record(self, record: Any) -> bool:
                return False  # `_unpack_records` begins at the offset asked for

            def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Block]:
                state: Any = set(self.aborted_producer_ids), deque(self.aborted_transactions)
                try:
                    block, following, size = _parse(self, records._buffer)
                except _Unusual:
                    self.aborted_producer_ids, self.aborted_transactions = state
                    yield from self._stock(super()._unpack_records(tp, records, *deserializers))
                    return
                if len(block):
                    self.records_read += len(block)
                    self.bytes_read += size
                    self.next_fetch_offset = int(block.offsets[-1]) + 1
                    yield block
                if following is not None:
                    self.next_fetch_offset = following
                self.drain()

            def _stock(self, found: Iterator[Any]) -> Iterator[Block]:
                """Records of the stock class, as far as they come, as one Block; then what it raised."""
                records, fault = [], None
                try:
                    for record in found:
                        if record.offset >= self.fetch_offset:
                            records.append(record)
                except Exception as error:  # noqa: BLE001 - raised again below, behind what was read before it
                    fault = error
                if records:
                    yield block_of(records)
                if fault is not None:
                    raise fault

        _made = Blocks
    return _made


_made: Any = None


def _parse(part: Any, buffer: Any) -> tuple[Block, int | None, int]:
    """All records of a fetch from `part.fetch_offset` on, the offset behind its last batch, and their bytes.

    Raises _Unusual when anything is not as plain as the format (Kafka's record batch, magic 2) wants it.
    """
    from kafka.protocol.consumer import IsolationLevel
    from kafka.record.util import calc_crc32c

    view = memoryview(buffer)
    committed = part.isolation_level == IsolationLevel.READ_COMMITTED
    pieces: list[Any] = []
    places: list[int] = []  # of the pieces in the fetch
    counts, bases, stamps, steps = [], [], [], []  # of each batch; steps = 1: each record has its own time, 0: the broker's
    position, end, following, packed = 0, len(view), None, False
    while end - position >= 12:
        stop = position + 12 + _LENGTH.unpack_from(view, position + 8)[0]
        if stop > end:  # the fetch was cut here by its limit of bytes
            break
        if stop - position < _HEADER.size:
            raise _Unusual
        header = _HEADER.unpack_from(view, position)
        base, _, epoch, magic, crc, attributes, last, first, newest, producer, _, _, count = header
        if magic != 2 or count < 0:
            raise _Unusual
        if part.check_crcs and calc_crc32c(view[position + 21 : stop]) != crc:
            raise _Unusual
        part.leader_epoch = epoch
        following = base + last + 1
        body, position = view[position + _HEADER.size : stop], stop
        control = attributes & 0x20
        if committed and producer > -1:
            part._consume_aborted_transactions_up_to(base + last)
            if control:
                if _aborts(body, attributes):
                    part.aborted_producer_ids.discard(producer)
            elif attributes & 0x10 and producer in part.aborted_producer_ids:
                continue
        if control or (following <= part.fetch_offset):
            continue
        plain = _plain(body, attributes & 0x07)
        packed = packed or plain is not body
        pieces.append(plain)
        places.append(stop - len(body))
        counts.append(count)
        bases.append(base)
        stamps.append(newest if attributes & 0x08 else first)
        steps.append(0 if attributes & 0x08 else 1)
    joined: Any = buffer  # where nothing is compressed, all stays where it is
    if packed:
        joined, places = b"".join(pieces), list(accumulate(map(len, pieces), initial=0))[:-1]
    at: list[int] = []  # where each record begins, behind its length
    sizes: list[int] = []
    for piece, place, count in zip(pieces, places, counts, strict=True):
        _hop(piece, count, place, at, sizes)
    starts, lengths, deltas, times = _columns(joined, np.array(at, np.int64), np.array(sizes, np.int64))
    offsets = np.repeat(np.array(bases, np.int64), counts) + deltas
    times = np.repeat(np.array(stamps, np.int64), counts) + np.repeat(np.array(steps, np.int64), counts) * times
    block = Block(joined, starts, lengths, offsets, times)
    wanted = offsets >= part.fetch_offset
    skip = int(np.argmax(wanted)) if wanted.any() else len(offsets)
    return block[skip:], following, sum(sizes[skip:])


def _plain(body: Any, codec: int) -> Any:
    """The records of a batch, decompressed by the client library's own functions if need be."""
    if not codec:
        return body
    from kafka import codec as codecs

    name = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}.get(codec)
    if name is None or not getattr(codecs, f"has_{name}")():
        raise _Unusual  # the stock class says what is missing
    try:
        return getattr(codecs, f"{name}_decode")(body if name == "gzip" else body.tobytes())
    except Exception:  # noqa: BLE001 - each codec raises its own; the stock class will raise it again, to its caller
        raise _Unusual from None


def _aborts(body: Any, attributes: int) -> bool:
    """Is this control batch the mark of an aborted transaction? Its record's key is version and type, int16 each; 0 = abort."""
    if attributes & 0x07 or len(body) < 10:
        raise _Unusual
    starts: list[int] = []
    _hop(body, 1, 0, starts, [])
    position = starts[0] + 1
    for _ in range(2):  # time and offset
        _, position = _varint(body, position)
    length, position = _varint(body, position)
    if length < 4:
        raise _Unusual
    return int.from_bytes(body[position + 2 : position + 4], "big") == 0


def _varint(body: Any, position: int) -> tuple[int, int]:
    from kafka.record.util import decode_varint

    try:
        value, position = decode_varint(body, position)
    except (IndexError, ValueError):
        raise _Unusual from None
    return int(value), position


def _hop(body: Any, count: int, shift: int, at: list[int], sizes: list[int]) -> None:
    """From length to length (zigzag varints): where each record begins, plus `shift`, and its size. They must fill the body."""
    position, end = 0, len(body)
    data = bytes(body)
    try:
        for _ in range(count):
            size = data[position]
            position += 1
            if size > 127:
                high = data[position]
                if high < 128:
                    size += (high << 7) - 128
                    position += 1
                else:
                    value, position = _varint(data, position - 1)
                    size = value << 1
            if size & 1:  # a negative length
                raise _Unusual
            size >>= 1
            at.append(position + shift)
            sizes.append(size)
            position += size
    except IndexError:
        raise _Unusual from None
    if position != end:
        raise _Unusual


def _columns(joined: Any, at: Ints, sizes: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Start and length of each value, offset delta and time delta. A record: attributes, time, offset, key, value, headers."""
    data = np.frombuffer(joined, np.uint8)
    if (sizes < 6).any() or (data[at] > 127).any():  # attributes are one byte
        raise _Unusual
    ends = at + sizes
    position = at + 1
    times, position = _varints(data, position)
    offsets, position = _varints(data, position)
    keys, position = _varints(data, position)
    position = position + np.maximum(keys, 0)
    if (position > ends).any():
        raise _Unusual
    lengths, starts = _varints(data, position)
    position = starts + np.maximum(lengths, 0)
    if (position >= ends).any() or (lengths < -1).any():
        raise _Unusual
    headers, behind = _varints(data, position)
    if (headers < 0).any():
        raise _Unusual
    for n in np.flatnonzero((headers > 0) | (behind != ends)).tolist():
        _headers(joined, int(headers[n]), int(behind[n]), int(ends[n]))
    return starts, lengths, offsets, times


def _headers(joined: bytes, count: int, position: int, end: int) -> None:
    """Step over a record's headers, which nobody here reads; they must read, and end where the record does."""
    for _ in range(count):
        length, position = _varint(joined, position)
        if length < 0:
            raise _Unusual
        try:
            bytes(joined[position : position + length]).decode()
        except UnicodeDecodeError:
            raise _Unusual from None
        length, position = _varint(joined, position + length)
        position += max(length, 0)
    if position != end:
        raise _Unusual


def _varints(data: npt.NDArray[np.uint8], position: Ints) -> tuple[Ints, Ints]:
    """Zigzag varints at these positions, and the positions behind them."""
    byte = _bytes(data, position)
    value, position = byte & 0x7F, position + 1
    more = np.flatnonzero(byte > 0x7F)
    for shift in range(7, 70, 7):
        if not len(more):
            break
        byte = _bytes(data, position[more])
        value[more] |= (byte & 0x7F) << shift
        position[more] += 1
        more = more[byte > 0x7F]
    else:
        if len(more):
            raise _Unusual
    unsigned = value.view(np.uint64)
    return (unsigned >> np.uint64(1)).view(np.int64) ^ -(value & 1), position


def _bytes(data: npt.NDArray[np.uint8], position: Ints) -> Ints:
    if len(position) and not 0 <= int(position.min()) <= int(position.max()) < len(data):
        raise _Unusual
    return data[position].astype(np.int64)
