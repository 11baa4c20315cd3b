"""Rows out of JSONL, CSV and parquet, one at a time: a file of any length, or a pipe that never ends, in constant memory.

A row that does not read comes out with its error and its own bytes, so that the caller may stop there or put it aside. Nothing
heavy is imported for text; parquet needs pyarrow.
"""

from __future__ import annotations

import csv
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from truing.tasks.errors import DataError

FORMATS: Final = {".csv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
LONGEST: Final = 4 << 20  # bytes of one line: no event may be as long
TICK_S: Final = 0.2
_PIECE: Final = 1 << 20
_NOTHING: Final = ("", "?")  # how CSV files write "no value"


class Line(msgspec.Struct, frozen=True):
    """One row: `number` is its line in the file (its row in parquet), `raw` its bytes; `error` = it does not read."""

    number: int
    raw: bytes
    row: dict[str, Any] = msgspec.field(default_factory=dict)
    error: str = ""
    at: int = 0  # bytes (rows of parquet) read so far, for progress
    head: bytes = b""  # of a CSV: its header, so that rows put aside make a CSV again


def format_of(path: Path) -> str:
    """By its ending. Raises DataError."""
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise DataError(
            f"{path}: expected a file that ends in {', '.join(FORMATS)}, got {path.suffix or 'no ending'}; convert it"
        ) from None


def length(path: Path, form: str) -> int:
    """Bytes (rows of parquet). Raises DataError for what can't be read, or is empty."""
    try:
        size = path.stat().st_size
        path.open("rb").close()
    except OSError as error:
        raise _unreadable(path, error) from None
    if not size:
        raise DataError(f"{path}: expected rows, got an empty file; send one with rows")
    return _parquet(path).metadata.num_rows if form == "parquet" else size


def read(path: Path, form: str) -> Iterator[Line]:
    """All rows of a file. Raises DataError when it is none of that form at all."""
    if form == "parquet":
        yield from _parquet_rows(path)
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        yield from (line for line in stream(handle, form, wait=False) if line is not None)
    finally:
        os.close(handle)


def stream(handle: int, form: str, *, wait: bool = True) -> Iterator[Line | None]:
    """Rows of an open file or pipe. With `wait`, None each time a moment (TICK_S) brought no line: time to send what waits."""
    lines = _lines(handle, wait=wait)
    yield from _csv_rows(lines) if form == "csv" else _json_rows(lines)


# --- lines --------------------------------------------------------------------------------------------------------------------


def _lines(handle: int, *, wait: bool) -> Iterator[tuple[int, bytes, int] | None]:
    """(number, line without its end, bytes read so far). Of a line that is too long comes its beginning."""
    rest, number, at, cut = b"", 0, 0, False
    while True:
        if wait and not select.select([handle], [], [], TICK_S)[0]:
            yield None
            continue
        piece = os.read(handle, _PIECE)
        if not piece:
            break
        at += len(piece)
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if cut:  # the end of a line whose beginning was told
                cut = False
                continue
            number += 1
            yield number, line.removesuffix(b"\r"), at
        if cut:
            rest = b""
        elif len(rest) > LONGEST:
            number, cut = number + 1, True
            yield number, rest, at
            rest = b""
    if rest:
        yield number + 1, rest.removesuffix(b"\r"), at


def _json_rows(lines: Iterator[tuple[int, bytes, int] | None]) -> Iterator[Line | None]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    for got in lines:
        if got is None:
            yield None
            continue
        number, raw, at = got
        text = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if not text.strip():
            continue
        if len(raw) > LONGEST:
            yield Line(number, raw, error=_too_long(), at=at)
            continue
        try:
            yield Line(number, raw, decoder.decode(text), at=at)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            yield Line(number, raw, error=f"expected a JSON object, got: {_flat(error)}; mend it", at=at)


def _csv_rows(lines: Iterator[tuple[int, bytes, int] | None]) -> Iterator[Line | None]:
    """A record may hold line ends between quotes (RFC 4180): it is whole once its quotes are even."""
    head: list[str] | None = None
    kept, first, top = b"", 0, b""
    for got in lines:
        if got is None:
            yield None
            continue
        number, raw, at = got
        first = first if kept else number
        kept = kept + b"\n" + raw if kept else raw
        if len(kept) > LONGEST:
            yield Line(first, kept, error=_too_long(), at=at, head=top)
            kept = b""
            continue
        if kept.count(b'"') % 2:
            continue
        record, kept = kept, b""
        if not record.strip():
            continue
        try:
            cells = next(csv.reader([record.decode("utf-8-sig" if head is None else "utf-8")], strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            if head is None:
                raise DataError(f"line {first}: expected a header in UTF-8, got: {_flat(error)}; mend it") from None
            yield Line(first, record, error=f"expected CSV in UTF-8, got: {_flat(error)}; mend it", at=at, head=top)
            continue
        if head is None:
            head, top = cells, record
            if len(set(head)) != len(head):
                raise DataError(f"line {first}: expected different column names, got {', '.join(head)}; rename them")
        elif len(cells) != len(head):
            wrong = f"expected {len(head)} cells like the header, got {len(cells)}; mend it"
            yield Line(first, record, error=wrong, at=at, head=top)
        else:
            row = {name: None if cell in _NOTHING else cell for name, cell in zip(head, cells, strict=True)}
            yield Line(first, record, row, at=at, head=top)
    if kept:
        yield Line(first, kept, error="expected a closing quote, got the end of the file; mend it", head=top)


# --- parquet ------------------------------------------------------------------------------------------------------------------


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"{path}: expected pyarrow to read parquet, found none; install truing[loop] or send JSONL") from None
    try:
        return ParquetFile(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    except ArrowException as error:
        raise DataError(f"{path}: expected PARQUET, got: {_flat(error)}; mend it") from None


def _parquet_rows(path: Path) -> Iterator[Line]:
    from pyarrow import ArrowException

    number, file = 0, _parquet(path)
    try:
        for batch in file.iter_batches(batch_size=5000):
            for row in batch.to_pylist():
                number += 1
                yield Line(number, b"", row, at=number)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: row {number + 1}: expected PARQUET, got: {_flat(error)}; mend it") from None


def _too_long() -> str:
    return f"expected at most {LONGEST >> 20} MiB in one row, got more (is a quote not closed?); split it"


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: expected a readable file, got: {error.strerror or error}; check path and permissions")


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
