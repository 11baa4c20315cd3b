"""Envelopes by the block: what a sender's messages have in common is compared, the few values in between are cut out, by numpy.

A *stencil* is what stays the same from message to message of one problem, type and sender:

    {"specversion":"1.0","id":"…","source":"loans","type":"truing.outcome.v1","time":"…", … "proof":"mac:…","data":…}

It is cut from a message that was read the usual way, whatever the order of its attributes and the spaces between them, as long
as `data` comes last. It fits another message when every byte outside the values is the same, and no value holds what JSON may
write in two ways (quotes, backslashes, control characters) or more than ASCII. What a fitting message says is then what any
reader of JSON makes of it; what follows `"data":` is for whoever decodes it to find whole.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from truing.tasks.events.batches import Block, Ints

Bytes = npt.NDArray[np.uint8]

LONGEST: Final = 127  # characters of a value: its length is one byte then
_USUAL: Final = 32  # characters that are looked at first: most values are shorter
_INLINE: Final = 12  # bytes of a text that Arrow keeps in its view (BinaryView); of a longer one the first 4
_PAIR: Final = re.compile(r'[{,]\s*"(\w+)"\s*:\s*(?:"([^"\\]*)"|(?=\{))', re.ASCII)
_MASKS: Final = np.array([(1 << 8 * n) - 1 for n in range(5)], np.uint32)


class Span(NamedTuple):
    """One value of each message: where it begins in the block's bytes, and how long it is."""

    begins: Ints
    lengths: Ints

    def only(self, which: npt.NDArray[Any]) -> Span:
        return Span(self.begins[which], self.lengths[which])


class Sheet:
    """The bytes of a block with what every stencil asks of them. Positions count from its first record."""

    def __init__(self, block: Block) -> None:
        low = int(block.starts[0])
        high = int(block.starts[-1] + max(0, block.lengths[-1]))
        self.low, self.buffer = low, pa.py_buffer(block.buffer)
        self.data: Bytes = np.frombuffer(block.buffer, np.uint8)[low : high + LONGEST]
        self.starts = block.starts - low
        self.stops = self.starts + block.lengths
        self._openings: dict[tuple[bytes, int | None], tuple[npt.NDArray[np.bool_], Span]] = {}

    def opening(self, piece: bytes, size: int | None) -> tuple[npt.NDArray[np.bool_], Span]:
        """Which messages begin like this, and the value behind; looked at once for all stencils that have it in common."""
        if (piece, size) not in self._openings:
            begins = self.starts + len(piece)
            found = (self.windows(self.starts, len(piece)) == piece) & (begins <= self.stops)
            self._openings[piece, size] = found, self.value(begins, size)
        return self._openings[piece, size]

    def value(self, begins: Ints, size: int | None) -> Span:
        """The values from there on, up to the first character that JSON could write otherwise, or so long."""
        return Span(begins, np.full(len(begins), size) if size is not None else self._plain(begins))

    def windows(self, begins: Ints, size: int) -> npt.NDArray[Any]:
        """`size` bytes from each of these positions on, as numpy's S; what reaches beyond the block is cut elsewhere."""
        if len(self.data) < size:
            return np.zeros(len(begins), f"S{size}")
        windows = np.ndarray((len(self.data) - size + 1,), f"S{size}", self.data, strides=(1,))
        found: npt.NDArray[Any] = windows[np.minimum(begins, len(windows) - 1)]
        return found

    def chars(self, begins: Ints, size: int) -> Bytes:
        """The same as rows of `size` bytes."""
        return self.windows(begins, size).view(np.uint8).reshape(-1, size)

    def _plain(self, begins: Ints) -> Ints:
        """How many characters there are, one byte each, up to a quote, a backslash, a control character or more than ASCII."""
        found = self._within(begins, _USUAL)
        if len(long := np.flatnonzero(found == _USUAL)):
            found[long] = self._within(begins[long], LONGEST)
        return found

    def _within(self, begins: Ints, size: int) -> Ints:
        chars = self.chars(begins, size)
        other = (chars == ord('"')) | (chars == ord("\\")) | ((chars - np.uint8(32)) >= 96)
        first: Ints = other.argmax(axis=1)
        first[~other[np.arange(len(first)), first]] = size
        first[begins > len(self.data) - size] = 0  # the bytes end here: left to who reads it singly
        return first

    def texts(self, span: Span, *, binary: bool = False) -> pl.Series:
        """The values, as views into the block's own bytes as Arrow lays them out: nothing is copied, nor is UTF-8 checked.

        Text only of a stencil that fits: that is ASCII.
        """
        begins, lengths = span
        views = np.zeros((len(begins), 4), np.uint32)
        views[:, 0] = lengths
        views[:, 1:] = self.chars(begins, _INLINE).view(np.uint32)
        if int(lengths.min(initial=_INLINE)) < _INLINE:
            for word in range(3):
                views[:, 1 + word] &= _MASKS[np.clip(lengths - 4 * word, 0, 4)]
        long = lengths > _INLINE
        views[long, 2] = 0
        views[long, 3] = begins[long] + self.low
        made = pa.Array.from_buffers(
            pa.binary_view() if binary else pa.string_view(), len(begins), [None, pa.py_buffer(views), self.buffer]
        )
        return pl.Series(made)


class Cut(NamedTuple):
    """The messages that a stencil fits: their places in the block, its values by name, and what stands behind `"data":`."""

    at: Ints
    values: dict[str, Span]
    data: Span

    def only(self, which: npt.NDArray[np.bool_]) -> Cut:
        return Cut(self.at[which], {name: span.only(which) for name, span in self.values.items()}, self.data.only(which))


class Stencil:
    """`pieces` are the bytes before each value of `names`, in order; the last stands before the data.

    A value that `sizes` names is so long, whatever is in it: whoever reads it looks at every character.
    """

    def __init__(self, pieces: Sequence[bytes], names: Sequence[str], sizes: Mapping[str, int]) -> None:
        self.pieces, self.names = tuple(pieces), tuple(names)
        self.sizes = [sizes.get(name) for name in names]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stencil) and (self.pieces, self.names) == (other.pieces, other.names)

    __hash__ = None  # type: ignore[assignment]

    def fit(self, sheet: Sheet, at: Ints) -> Cut:
        """Which of the messages `at` (places in the block, in order) it fits."""
        begins, first = sheet.opening(self.pieces[0], self.sizes[0])
        at = at[begins[at]]
        spans, stops = [first.only(at)], sheet.stops[at]
        for n, piece in enumerate(self.pieces[1:], 1):
            places = spans[-1].begins + spans[-1].lengths
            fits = (sheet.windows(places, len(piece)) == piece) & (places + len(piece) <= stops)
            if not fits.all():
                at, places, stops = at[fits], places[fits], stops[fits]
                spans = [span.only(fits) for span in spans]
            places = places + len(piece)
            if n < len(self.names):
                spans.append(sheet.value(places, self.sizes[n]))
        right = stops - places > 2
        for span in spans:
            right &= span.lengths > 0
        for position, char in ((places, "{"), (stops - 2, "}"), (stops - 1, "}")):
            right &= sheet.data[np.minimum(position, len(sheet.data) - 1)] == ord(char)
        found = Cut(at, dict(zip(self.names, spans, strict=True)), Span(places, stops - 1 - places))
        return found if right.all() else found.only(right)


def cut(value: bytes, *, values: Collection[str], fixed: Collection[str], sizes: Mapping[str, int]) -> Stencil | None:
    """The stencil of a message: what `values` name may be another each time, what `fixed` names is always as here.

    A value longer than `sizes` says has its beginning in the stencil. None when the message is not plain: another attribute,
    one twice, data not last, beyond ASCII.
    """
    try:
        text = value.decode("ascii")
    except UnicodeDecodeError:
        return None
    pieces: list[bytes] = []
    names: list[str] = []
    seen: set[str] = set()
    done = at = 0
    while found := _PAIR.match(text, at):
        name = found[1]
        if name in seen:
            return None
        seen.add(name)
        at = found.end()
        if found[2] is None:
            whole = name == "data" and text.endswith("}}")
            return Stencil([*pieces, text[done:at].encode()], names, sizes) if whole else None
        if name in values:
            begin = found.end(2) - min(len(found[2]), sizes.get(name, LONGEST))
            pieces.append(text[done:begin].encode())
            names.append(name)
            done = found.end(2)
        elif name not in fixed:
            return None
    return None
