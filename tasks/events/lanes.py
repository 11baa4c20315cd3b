"""Lanes: all messages of one problem, type and sender. What can be said of one of them alike is said of all, by column.

A lane goes through its messages in four steps, each of which leaves those out that it is unsure of: times and lengths (numpy),
proofs (HMAC from hash states that have the key in them), bodies (types made from the problem), people's names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from truing.tasks.contract import DECODERS, PEOPLE
from truing.tasks.events.batches import Ints
from truing.tasks.events.redaction import Redactor
from truing.tasks.events.schema import FUTURE_S, GATEWAY, Known, fits, identity_text
from truing.tasks.events.stencil import LONGEST
from truing.tasks.problem import Problem
from truing.tasks.validation.rules import Suite
from truing.tasks.validation.tight import tight

Check = Callable[[Sequence[Mapping[str, Any]]], Sequence[str | None]]
"""Row checks of one problem: inputs of predictions → for each None, or what is wrong in one line."""
Beyond = Callable[[list[bytes], list[Any]], Sequence[bytes | None]]
"""Raw bodies and the same decoded → the bytes that land of each, None = unsure; the very list where nothing changes."""
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
States = tuple[Any, Any]

NAMES: Final = 250_000  # people's names remembered with their hashes, a problem: tens of MB, and about 2 µs saved each time
UNSURE: Final = (msgspec.DecodeError, LookupError, TypeError, ValueError, AttributeError, RecursionError)
CODE: Final = 64  # hex digits of HMAC-SHA256
UNTIL: Final = 10  # digits of the Unix second until which a token speaks: from 2001 to 2286
_FRAMES: Final = pl.Series(["\0" * 7 + chr(n) for n in range(LONGEST + 1)])  # 8 bytes big-endian, as in `seal.mac`
_COUNTS: Final = pl.Series([f"{n}:" for n in range(LONGEST + 1)])
_SIZES: Final = pl.Series([n.to_bytes(8, "big") for n in range(4096)])
_PLACES: Final = 10 ** np.arange(UNTIL - 1, -1, -1, dtype=np.int64)
_FIRST, _SECOND = itemgetter(0), itemgetter(1)

# --- hashing ------------------------------------------------------------------------------------------------------------------


def states(key: bytes) -> States:
    """SHA-256 with the inner and with the outer key of HMAC in it (RFC 2104): copies go on from there."""
    block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    return tuple(hashlib.sha256(bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))  # type: ignore[return-value]


def macs(key: States, messages: Iterable[bytes]) -> Bytes:
    """HMAC-SHA256 of each message in small hex digits, shape (messages, 64)."""
    inner, outer = key[0].copy, key[1].copy
    found: list[bytes] = []
    add = found.append
    for message in messages:
        first = inner()
        first.update(message)
        second = outer()
        second.update(first.digest())
        add(second.digest())
    return np.frombuffer(b"".join(found).hex().encode(), np.uint8).reshape(-1, CODE)


def same(ours: Bytes, given: Bytes) -> Mask:
    """Which rows of 64 are the same; it takes as long whatever is in them."""
    alike: Mask = np.bitwise_or.reduce(ours.view(np.uint64) ^ np.ascontiguousarray(given).view(np.uint64), axis=1) == 0
    return alike


def _framed(text: str) -> str:
    """A part of a MAC. `text` is ASCII, of LONGEST characters at most."""
    return f"{_FRAMES[len(text)]}{text}"


def _frames(column: Texts | None) -> list[str | pl.Series]:
    """The same of a column, "" where there is none."""
    return [_framed("")] if column is None else [column.told(_FRAMES), column.values]


def _counted(part: str | Texts | None) -> list[str | pl.Series]:
    """A part of an identity, with its length."""
    return [part.told(_COUNTS), part.values] if isinstance(part, Texts) else [f"{len(part or '')}:{part or ''}"]


def _written(*parts: str | pl.Series) -> pl.Series:
    """The parts one behind the other, for each row; at least one is a column."""
    merged: list[str | pl.Series] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(before := merged[-1], str):
            merged[-1] = before + part
        else:
            merged.append(part)
    return pl.select(pl.concat_str([pl.lit(one) if isinstance(one, str) else one for one in merged])).to_series()


class Names(dict[str, tuple[str, str]]):
    """People's names of one problem → (keyed hash, family of keys: where a subject's rows will stand). Filled as they come."""

    def __init__(self, problem: Problem, salt: bytes, split_salt: bytes) -> None:
        super().__init__()
        self.split_salt = split_salt
        # as `pseudonym` and `split_of`, from states that have key and problem in them already
        self._hash = hashlib.blake2b(f"{len(problem.name)}:{problem.name}".encode(), key=salt[:64], digest_size=16).copy
        self._point = hashlib.blake2b(key=split_salt[:64], digest_size=8).copy
        self._trainable = _first_point(problem.splits.holdout)

    def __missing__(self, name: str) -> tuple[str, str]:
        if len(self) >= NAMES:
            self.clear()
        state = self._hash()
        state.update(name.encode())
        hashed = state.hexdigest()
        state = self._point()
        state.update(hashed.encode())
        self[name] = found = hashed, "trainable" if state.digest() >= self._trainable else "holdout"
        return found


def _first_point(share: float) -> bytes:
    """The smallest 8 bytes, big-endian, whose part of 2^64 is not below `share`, as floats divide."""
    low, high = 0, 2**64
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle / 2**64 < share else (low, middle)
    return low.to_bytes(8, "big")


# --- columns ------------------------------------------------------------------------------------------------------------------


class Texts(NamedTuple):
    """One attribute of several messages, and how long it is: ASCII, of LONGEST characters at most if it is to be believed."""

    values: pl.Series
    lengths: Ints

    @classmethod
    def of(cls, values: Sequence[str]) -> Texts:
        return cls(pl.Series(values, dtype=pl.String), np.fromiter(map(len, values), np.int64, len(values)))

    def only(self, which: Mask) -> Texts:
        return Texts(self.values.filter(pl.Series(which)), self.lengths[which])

    def told(self, table: pl.Series) -> pl.Series:
        """What the table says of each length."""
        return table[pl.Series(np.minimum(self.lengths, LONGEST).astype(np.uint32))]


class Alike(msgspec.Struct):
    """Messages that name the same attributes, as columns; what none of them names is None.

    `at` are their places in the block, `times` Unix seconds (NaN = can't be read), `codes` the 64 characters of each proof.
    """

    at: Ints
    ids: Texts
    whens: Texts
    times: npt.NDArray[np.float64]
    codes: Bytes
    raws: Texts  # the bodies, as they were sent
    sources: Texts | None = None  # where the lane has no sender of its own
    asked: Texts | None = None  # the prediction
    subjects: Texts | None = None
    actors: Texts | None = None
    untils: Bytes | None = None  # rows of 10 characters: how long each token speaks

    def only(self, which: Mask) -> Alike:
        if which.all():
            return self
        return Alike(**{name: _only(getattr(self, name), which) for name in self.__struct_fields__})


def _only(column: Any, which: Mask) -> Any:
    return None if column is None else column.only(which) if isinstance(column, Texts) else column[which]


class Seen(NamedTuple):
    """Good messages of one lane: their places in the block, and columns. `marks` see `Glance.mark`."""

    at: Ints
    columns: dict[str, pl.Series]  # those of `landing` that the message itself tells
    raws: list[bytes]
    families: list[str]  # of keys
    owners: list[str]  # whose keys seal it
    marks: list[int]


# --- what a problem asks ------------------------------------------------------------------------------------------------------


class Rules:
    """What one problem asks of its events, and what is remembered of its people. `refresh` when its suite has changed."""

    def __init__(self, known: Known, *, salt: bytes, split_salt: bytes) -> None:
        self.known, self.problem = known, known.problem
        self.names = Names(known.problem, salt, split_salt)
        self.refresh(None, lambda rows: [None] * len(rows))

    def refresh(self, suite: Suite | None, check: Check, redactor: Redactor | None = None) -> None:
        self.check, self.redactor = check, redactor or Redactor.of(self.problem)
        self.tight = tight(self.problem, suite)

    def reading(self, kind: str) -> tuple[Callable[[bytes], Any], Beyond | None]:
        """How a body is decoded (raises one of UNSURE), and what is done about all of them then."""
        decoder = self.tight.get(kind)
        if decoder is None:
            return DECODERS[f"truing.{kind}.v1"][1].decode, lambda raws, bodies: [
                self._loosely(kind, raw, body) for raw, body in zip(raws, bodies, strict=True)
            ]
        if kind != "prediction":
            return decoder.decode, None
        read = [name for name in self.redactor.inputs if kind in self.redactor.reads and self._words(name)]
        inputs = next(one.type for one in msgspec.structs.fields(decoder.type) if one.encode_name == "inputs")
        names = {one.encode_name: one.name for one in msgspec.structs.fields(inputs)}
        return decoder.decode, _beyond(self.redactor, [attrgetter(f"inputs.{names[one]}") for one in read])

    def _words(self, name: str) -> bool:
        return name in self.problem.inputs and self.problem.inputs[name].type != "number"

    def _loosely(self, kind: str, raw: bytes, body: Any) -> bytes | None:
        try:
            if not fits(body, self.known):
                return None
            raw, body = self.redacted(kind, raw, body)
            return None if kind == "prediction" and self.check([body.inputs])[0] is not None else raw
        except UNSURE:  # of one message: the others are none the worse for it
            return None

    def redacted(self, kind: str, raw: bytes, body: Any) -> tuple[bytes, Any]:
        """The bytes to land and their body, with what names or finds a person in free text replaced."""
        clean = self.redactor.event(kind, raw, body)
        return (raw, body) if clean is raw else (clean, DECODERS[f"truing.{kind}.v1"][1].decode(clean))


def _beyond(redactor: Redactor, read: Sequence[attrgetter[Any]]) -> Beyond:
    """What a prediction's tight type can't say: probabilities sum to 1, and nothing in the texts `read` is to be redacted."""

    def beyond(raws: list[bytes], bodies: list[Any]) -> Sequence[bytes | None]:
        doubtful = {
            n
            for n, answer in enumerate(map(attrgetter("answer"), bodies))
            if answer is not None and answer.probabilities and abs(sum(answer.probabilities.values()) - 1) > 0.01
        }
        for text_of in read:
            texts = [*map(text_of, bodies)]
            if not redactor.clean(set(texts) - {None}):
                doubtful |= {n for n, text in enumerate(texts) if text is not None and redactor.text(text) is not text}
        return [None if n in doubtful else raw for n, raw in enumerate(raws)] if doubtful else raws

    return beyond


# --- the lane -----------------------------------------------------------------------------------------------------------------


class Lane:
    """Judges messages of one problem and type by one `source`, or (None) by people, whose source is their own affair."""

    def __init__(self, kind: str, source: str | None, rules: Rules, wire: States) -> None:
        """Raises KeyError where such messages may never be believed at once."""
        registered = rules.known.sources
        self.kind, self.source = kind, source
        self.problem, self.rules, self.wire = rules.problem.name, rules, wire
        self.people = kind in PEOPLE
        if any(len(name) > LONGEST or not name.isascii() for name in (self.problem, source or "")):
            raise KeyError(source)
        if source is None:
            if not self.people:
                raise KeyError(kind)
            self._strangers = [name for name in registered if name != GATEWAY]  # they prove themselves, or say nothing
        else:
            key, kinds = registered[source]
            if kind not in kinds:
                raise KeyError(kind)
            self._key = states(key)
        self.decode, self.beyond = rules.reading(kind)
        self._identity = identity_text(self.problem, kind, "", "", "").removeprefix("0:0:")  # behind prediction and source

    def judge(self, some: Alike, actor_kind: str, *, now: float, secret: str) -> Seen | None:
        """Those of them that surely are good; None if there is none. `secret` is for `marks`."""
        if not len(some.at) or (some.asked is None and self.kind != "preference"):  # all others must name a prediction
            return None
        if self.source is None and (actor_kind != "person" or some.untils is None):
            return None
        some = some.only(self._timely(some, now) & same(self._proofs(some, actor_kind), some.codes))
        raws: list[bytes] = some.raws.values.to_list()
        bodies, wrong = _decoded(self.decode, raws)
        if wrong:
            sure = np.ones(len(raws), bool)
            sure[wrong] = False
            some, raws, bodies = some.only(sure), [*compress(raws, sure)], [*compress(bodies, sure)]
        if self.beyond is not None and (landing := self.beyond(raws, bodies)) is not raws:
            sure = np.array([raw is not None for raw in landing], bool)
            some, raws = some.only(sure), [raw for raw in landing if raw is not None]
        return self._seen(some, raws, actor_kind, secret) if raws else None

    def _timely(self, some: Alike, now: float) -> Mask:
        """Which are neither old, nor ahead of time, nor longer than can be said here, and by whom a token may be sent."""
        sure: Mask = (some.times <= now + FUTURE_S) & (some.times >= now - self.rules.known.credit_s)  # NaN: neither
        sure &= some.raws.lengths < len(_SIZES)
        for column in (some.ids, some.whens, some.sources, some.asked, some.subjects, some.actors):
            if column is not None:
                sure &= column.lengths <= LONGEST
        if some.untils is not None:
            digits = some.untils - np.uint8(ord("0"))
            sure &= (digits.max(axis=1) <= 9) & (digits.astype(np.int64) @ _PLACES > now)
        if some.sources is not None and self._strangers:
            sure &= ~some.sources.values.is_in(self._strangers).to_numpy()
        return sure

    def _proofs(self, some: Alike, actor_kind: str) -> Bytes:
        """What the code of each proof must be."""
        problem = _framed(self.problem)
        if some.untils is not None:
            untils = pl.Series(some.untils.view(f"S{UNTIL}").ravel(), dtype=pl.Binary).cast(pl.String)
            signed = _written(_framed("token"), problem, *_frames(some.asked), _FRAMES[UNTIL], untils)
            return macs(self.wire, signed.cast(pl.Binary).to_list())
        heads = _written(
            _framed("event"), *_frames(some.ids), _framed(str(self.source)), _framed(f"truing.{self.kind}.v1"),
            *_frames(some.whens), problem, *_frames(some.asked), *_frames(some.subjects), *_frames(some.actors),
            _framed(actor_kind),
        )  # fmt: skip
        sizes = _SIZES[pl.Series(np.minimum(some.raws.lengths, len(_SIZES) - 1).astype(np.uint32))]
        return macs(
            self._key, pl.select(pl.lit(heads.cast(pl.Binary)) + pl.lit(sizes) + some.raws.values).to_series().to_list()
        )

    def _seen(self, some: Alike, raws: list[bytes], actor_kind: str, secret: str) -> Seen:
        many, names = len(some.at), self.rules.names
        sender = some.sources if self.source is None else self.source
        identity = [secret, *_counted(some.asked if self.people else None), *_counted(sender), self._identity]
        marks = [*map(hash, _written(*identity, some.ids.values).to_list())]
        subjects: list[str] | None = None if some.subjects is None else some.subjects.values.to_list()
        if subjects is None and self.kind == "prediction" and some.asked is not None:
            subjects = [f"prediction {name}" for name in some.asked.values.to_list()]
        actors = None if some.actors is None else [*map(_FIRST, map(names.__getitem__, some.actors.values.to_list()))]
        families = ["vault"] * many
        if subjects is not None:
            known = [*map(names.__getitem__, subjects)]
            subjects, families = [*map(_FIRST, known)], [*map(_SECOND, known)]
        columns = {
            "event_id": some.ids.values,
            "type": constant(self.kind, many),
            "source": sender.values if isinstance(sender, Texts) else constant(sender, many),
            "time": pl.Series(some.times),
            "problem": constant(self.problem, many),
            "prediction_id": constant(None, many) if some.asked is None else some.asked.values,
            "subject": constant(None, many) if subjects is None else pl.Series(subjects, dtype=pl.String),
            "actor": constant(None, many) if actors is None else pl.Series(actors, dtype=pl.String),
            "actor_kind": constant(actor_kind, many),
        }
        owners = subjects or actors or [f"source {name}" for name in columns["source"].to_list()]
        return Seen(some.at, columns, raws, families, owners, marks)


def constant(value: Any, many: int, dtype: Any = pl.String) -> pl.Series:
    """A column of the same value."""
    return pl.Series([value], dtype=dtype).new_from_index(0, many)


def _decoded(decode: Callable[[bytes], Any], raws: Sequence[bytes]) -> tuple[list[Any], list[int]]:
    """Each body, and the places of those that do not read."""
    bodies: list[Any] = []
    wrong: list[int] = []
    left = iter(raws)
    while True:
        try:
            bodies.extend(map(decode, left))  # keeps what came before an error
        except UNSURE:
            wrong.append(len(bodies))
            bodies.append(None)
        else:
            return bodies, wrong
