"""Batches that do not read: where they end, and what can be read of them for the dead letters.

Every look takes a fresh consumer: kafka-python 3.0.12 spins for ever when `poll()` is called again after it raised.
"""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Callable
from typing import Any

MALFORMED = (ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError, EOFError, AttributeError)
New = Callable[..., Any]  # a fresh KafkaConsumer, given further settings


def corrupt(error: BaseException) -> bool:
    """Is it the data, not the broker or the way to it?"""
    from kafka.errors import CorruptRecordError, KafkaError

    return isinstance(error, (CorruptRecordError, *MALFORMED)) or (type(error) is KafkaError and "make progress" in str(error))


def short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def fault(new: New, tp: Any, offset: int) -> str:
    """Why reading from this offset on fails, or "". A fresh consumer each time: one that raised would hang."""
    from kafka.errors import KafkaError

    consumer = new()
    try:
        consumer.assign([tp])
        consumer.seek(tp, offset)
        consumer.poll(timeout_ms=1000, max_records=1)
        return ""
    except (KafkaError, *MALFORMED) as error:
        if not corrupt(error):
            raise
        return short(error)
    finally:
        consumer.close(timeout_ms=1000)


def after(new: New, tp: Any, offset: int, why: str) -> int:
    """The first offset behind the unreadable batch. A checksum's error names its batch, so bisection is exact."""
    consumer = new()
    try:
        end = consumer.end_offsets([tp])[tp]
    finally:
        consumer.close(timeout_ms=1000)
    rest = range(offset + 1, end)
    if "crc" in why:
        return offset + 1 + bisect.bisect_left(rest, True, key=lambda at: fault(new, tp, at) != why)
    return next(itertools.filterfalse(lambda at: fault(new, tp, at), rest), end)


def unchecked(new: New, tp: Any, start: int, stop: int) -> dict[int, bytes | None]:
    """What can be read of a corrupt batch without its checksum, for the dead letters only."""
    from kafka.errors import KafkaError

    consumer = new(check_crcs=False)
    values: dict[int, bytes | None] = {}
    try:
        consumer.assign([tp])
        consumer.seek(tp, start)
        for records in consumer.poll(timeout_ms=1000, max_records=stop - start).values():
            values.update((record.offset, record.value) for record in records if record.offset < stop)
    except (KafkaError, OSError, *MALFORMED):
        return values
    finally:
        consumer.close(timeout_ms=1000)
    return values
