"""A first look at a block of messages: what it lets through surely holds, whatever it is unsure of is judged singly.

`schema.judge` is the law, 10 to 20 µs a message. The glance says the same "yes" in 4 to 7: bodies are decoded into types made
from the problem (`tight`), MACs go on from hash states that have the key in them already, names of people are remembered, times
of a whole block are read at once. It never says "no": anything else than a plain good message comes back undecided, for `judge`
to find the reason. A test holds both equal.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from truing.tasks.contract import DECODERS, PEOPLE
from truing.tasks.events.redaction import Redactor
from truing.tasks.events.schema import (
    FUTURE_S,
    GATEWAY,
    MAX_BYTES,
    Known,
    Message,
    Proofs,
    Reason,
    fits,
    identity_text,
    judge,
)
from truing.tasks.events.times import unix_times
from truing.tasks.problem import Problem
from truing.tasks.tables.sealing import family_of
from truing.tasks.validation.rules import Suite
from truing.tasks.validation.tight import tight

Check = Callable[[Sequence[Mapping[str, Any]]], Sequence[str | None]]
"""Row checks of one problem: inputs of predictions → for each None, or what is wrong in one line."""

NAMES: Final = 250_000  # people's names remembered with their hashes, a problem: tens of MB, and about 2 µs saved each time
LANES: Final = 4_096  # senders remembered; a person's `source` is unproven, so there may be any number
_UNSURE: Final = (msgspec.DecodeError, LookupError, TypeError, ValueError, AttributeError, RecursionError)
_LENGTHS: Final = tuple("\0" * 7 + chr(n) for n in range(128))  # 8 bytes big-endian, as `seal.mac` frames its parts, for ASCII
_EMPTY: Final = _LENGTHS[0]
_COLUMNS: Final = 12  # of `Seen`, lists all
_SIZES: Final = tuple(n.to_bytes(8, "big") for n in range(4096))

# --- the envelope -------------------------------------------------------------------------------------------------------------


class Plain(msgspec.Struct, frozen=True, gc=False):
    """An envelope as nearly all are; any other is undecided."""

    specversion: Literal["1.0"]
    id: Annotated[str, msgspec.Meta(min_length=1)]
    source: Annotated[str, msgspec.Meta(min_length=1)]
    type: str
    time: str
    data: msgspec.Raw
    problem: str
    proof: str
    datacontenttype: Literal["application/json"] = "application/json"
    subject: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    predictionid: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    actor: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    actorkind: Literal["person", "source"] = "person"


class Lane:
    """All messages of one problem, type and sender have this in common."""

    __slots__ = (
        "asks",
        "beyond",
        "credit_s",
        "decode",
        "inner",
        "kind",
        "marked",
        "names",
        "number",
        "outer",
        "owner",
        "people",
        "problem",
        "problem_part",
        "sender",
        "source",
        "token",
        "unasked",
    )  # fmt: skip

    def __init__(self, number: int, source: str, kind: str, rules: Rules) -> None:
        problem = rules.problem.name
        registered = rules.known.sources.get(source)
        self.number, self.source, self.kind, self.problem = number, source, kind, problem
        self.asks, self.unasked = kind == "prediction", kind == "preference"  # the latter may name no prediction
        self.owner = f"source {source}"
        self.credit_s = rules.known.credit_s
        self.names = rules.names
        # what the MAC goes over: the framed parts that all have in common, and hash states with the key in them
        self.problem_part = _framed(problem)
        self.sender = _framed(source) + _framed(f"truing.{kind}.v1")
        allowed = registered is not None and kind in registered[1]
        key = registered[0] if allowed and registered else None
        self.inner: Any
        self.outer: Any
        self.inner, self.outer = (None, None) if key is None else states(key)
        # may a token speak here?
        self.people = kind in PEOPLE
        self.token = self.people and (registered is None or source == GATEWAY)
        if not (allowed or self.token):
            raise KeyError(source)
        prefix = identity_text(problem, kind, source, "", "")
        self.marked = prefix.removeprefix("0:") if self.people else rules.secret + prefix
        self.decode, self.beyond = rules.reading(kind)


class Rules:
    """What one problem asks of its events, and what is remembered of its people. `refresh` when its suite has changed."""

    def __init__(self, known: Known, *, salt: bytes, split_salt: bytes, secret: str) -> None:
        self.known, self.problem, self.secret = known, known.problem, secret
        self.names = Names(known.problem, salt, split_salt)
        self.refresh(None, lambda rows: [None] * len(rows))

    def refresh(self, suite: Suite | None, check: Check, redactor: Redactor | None = None) -> None:
        self.check, self.redactor = check, redactor or Redactor.of(self.problem)
        self.tight = tight(self.problem, suite)

    def reading(self, kind: str) -> tuple[Callable[[bytes], Any], Callable[[str, bytes, Any], bytes] | None]:
        """How a body is decoded, and what is done about it then: the bytes that land; raises ValueError if it does not hold."""
        decoder = self.tight.get(kind)
        if decoder is None:
            return DECODERS[f"truing.{kind}.v1"][1].decode, self._loosely
        if kind != "prediction":
            return decoder.decode, None
        read = self.redactor.inputs if kind in self.redactor.reads else ()
        inputs = next(one.type for one in msgspec.structs.fields(decoder.type) if one.encode_name == "inputs")
        names = {one.encode_name: one.name for one in msgspec.structs.fields(inputs)}
        return decoder.decode, _beyond(self.redactor.text, [names[one] for one in read if one in names])

    def _loosely(self, kind: str, raw: bytes, body: Any) -> bytes:
        if not fits(body, self.known):
            raise ValueError(kind)
        raw, body = self.redacted(kind, raw, body)
        if kind == "prediction" and self.check([body.inputs])[0] is not None:
            raise ValueError(kind)
        return raw

    def redacted(self, kind: str, raw: bytes, body: Any) -> tuple[bytes, Any]:
        """The bytes to land and their body, with what names or finds a person in free text replaced."""
        clean = self.redactor.event(kind, raw, body)
        return (raw, body) if clean is raw else (clean, DECODERS[f"truing.{kind}.v1"][1].decode(clean))


def _beyond(clean: Callable[[str], str], read: Sequence[str]) -> Callable[[str, bytes, Any], bytes]:
    """What a prediction's tight type can't say: probabilities sum to 1, and nothing in the columns `read` is to be redacted."""

    def beyond(kind: str, raw: bytes, body: Any) -> bytes:
        answer = body.answer
        if answer is not None and answer.probabilities and abs(sum(answer.probabilities.values()) - 1) > 0.01:
            raise ValueError(kind)
        for name in read:
            text = getattr(body.inputs, name)
            if type(text) is str and clean(text) is not text:
                raise ValueError(kind)
        return raw

    return beyond


def _framed(text: str) -> str:
    """A part of a MAC as text. Raises IndexError or UnicodeError for what is not short ASCII."""
    text.encode("ascii")
    return _LENGTHS[len(text)] + text


def states(key: bytes) -> tuple[Any, Any]:
    """SHA-256 with the inner and with the outer key of HMAC in it (RFC 2104): copies go on from there."""
    block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    return tuple(hashlib.sha256(bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))  # type: ignore[return-value]


class Names(dict[str, tuple[str, str]]):
    """People's names of one problem → (keyed hash, family of keys: where a subject's rows will stand). Filled as they come."""

    def __init__(self, problem: Problem, salt: bytes, split_salt: bytes) -> None:
        super().__init__()
        self.split_salt = split_salt
        self._holdout = problem.splits.holdout
        # as `pseudonym` and `split_of`, from states that have key and problem in them already
        self._hash = hashlib.blake2b(f"{len(problem.name)}:{problem.name}".encode(), key=salt[:64], digest_size=16)
        self._point = hashlib.blake2b(key=split_salt[:64], digest_size=8)

    def __missing__(self, name: str) -> tuple[str, str]:
        if len(self) >= NAMES:
            self.clear()
        state = self._hash.copy()
        state.update(name.encode())
        hashed = state.hexdigest()
        state = self._point.copy()
        state.update(hashed.encode())
        held = int.from_bytes(state.digest(), "big") / 2**64 < self._holdout
        self[name] = found = hashed, "holdout" if held else "trainable"
        return found


class Seen(NamedTuple):
    """The good ones of a block: their places in it, and columns. `lanes` are numbers in `table`, `marks` see `Glance.mark`."""

    at: list[int]
    ids: list[str]
    asked: list[str | None]  # the prediction
    whens: list[str]
    actor_kinds: list[str]
    lanes: list[int]
    raws: list[bytes]
    subjects: list[str | None]
    actors: list[str | None]
    owners: list[str]  # whose keys seal it, and of which family
    families: list[str]
    marks: list[int]
    times: npt.NDArray[np.float64]
    table: list[Lane]


class _Lanes(dict[tuple[str, str, str], Lane]):
    """(problem, type as on the wire, source) → lane, made as they come. KeyError where nothing may be believed at once."""

    def __init__(self, rules: Mapping[str, Rules]) -> None:
        super().__init__()
        self.rules = rules
        self.table: list[Lane] = []

    def __missing__(self, key: tuple[str, str, str]) -> Lane:
        problem, type_, source = key
        lane = Lane(len(self.table), source, DECODERS[type_][0], self.rules[problem])
        self.table.append(lane)
        self[key] = lane
        return lane


class Glance:
    """The door for blocks of messages. `rules` by problem; one thread looks, another may refresh the rules."""

    def __init__(self, proofs: Proofs, *, split_salt: bytes) -> None:
        self.proofs = proofs
        self.secret = hashlib.blake2b(b"marks", key=proofs.salt[:64], digest_size=16).hexdigest()
        given = {"salt": proofs.salt, "split_salt": split_salt}
        self.rules = {name: Rules(known, **given, secret=self.secret) for name, known in proofs.known.items()}
        self._wire = states(proofs.wire)
        self._lanes = _Lanes(self.rules)

    def refresh(self, problem: str, suite: Suite | None, check: Check, redactor: Redactor | None = None) -> None:
        """New row checks of a problem, compiled, and the suite that they were compiled from; what is redacted from now on."""
        self.rules[problem].refresh(suite, check, redactor)
        self._lanes = _Lanes(self.rules)

    def mark(self, identity: str) -> int:
        """An `identity_text` as 64 bits: Python's own keyed hash (SipHash) behind a secret, so nobody can make two alike."""
        return hash(self.secret + identity)

    def single(self, value: bytes | None, now: float) -> Message:
        """One message by the law: contract, redaction, row checks. Raises Unavailable as `judge` does."""
        message = judge(value, proofs=self.proofs, now=now)
        if message.reason:
            return message
        rules = self.rules[message.problem]
        message.data, message.body = rules.redacted(message.type, message.data, message.body)
        if message.type == "prediction" and (wrong := rules.check([message.body.inputs])[0]) is not None:
            return Message(
                event_id=message.event_id, source=message.source, problem=message.problem, data=value or b"",
                reason=Reason.INPUTS, detail=wrong[:300],
            )  # fmt: skip
        message.family = "vault"
        if message.subject is not None:
            message.family = family_of(message.subject, rules.problem, rules.names.split_salt)
        return message

    def look(self, values: Sequence[bytes | None], now: float) -> Seen:
        """Those of the values that surely are good, in order; the others are for `single`."""
        if len(self._lanes) > LANES:
            self._lanes = _Lanes(self.rules)
        lanes, secret = self._lanes, self.secret
        wire_inner, wire_outer = self._wire
        decode, same, lengths, sizes = _PLAIN.decode, hmac.compare_digest, _LENGTHS, _SIZES
        good: list[tuple[Any, ...]] = []
        add = good.append
        for n, value in enumerate(values):
            try:
                if len(value) > MAX_BYTES:  # type: ignore[arg-type]  # of None: TypeError
                    continue
                one = decode(value)  # type: ignore[arg-type]
                lane = lanes[one.problem, one.type, one.source]
                raw, proof, name, when = bytes(one.data), one.proof, one.id, one.time
                asked, subject, actor, kind = one.predictionid, one.subject, one.actor, one.actorkind
                if proof[:4] == "mac:":
                    state = lane.inner.copy()
                    state.update(
                        f"\0\0\0\0\0\0\0\5event{lengths[len(name)]}{name}{lane.sender}{lengths[len(when)]}{when}"
                        f"{lane.problem_part}{_EMPTY if asked is None else lengths[len(asked)] + asked}"
                        f"{_EMPTY if subject is None else lengths[len(subject)] + subject}"
                        f"{_EMPTY if actor is None else lengths[len(actor)] + actor}\0\0\0\0\0\0\0\6{kind}".encode("ascii")
                        + sizes[len(raw)]
                        + raw
                    )
                    outer = lane.outer.copy()
                    code = proof[4:]
                else:
                    until, _, code = proof.partition(".")
                    if not lane.token or kind != "person" or int(until) <= now or not until.isdigit():
                        continue
                    lengths[max(len(name), len(actor or ""), len(subject or ""), len(one.source))]  # unsigned: or IndexError
                    state = wire_inner.copy()
                    state.update(
                        f"\0\0\0\0\0\0\0\5token{lane.problem_part}{lengths[len(asked or '')]}{asked or ''}"
                        f"{lengths[len(until)]}{until}".encode("ascii")
                    )
                    outer = wire_outer.copy()
                outer.update(state.digest())
                if not same(outer.hexdigest(), code) or not (asked or lane.unasked):
                    continue
                body = lane.decode(raw)
                if lane.beyond is not None:
                    raw = lane.beyond(lane.kind, raw, body)
                if subject is None and lane.asks:
                    subject = f"prediction {asked}"
                if actor is not None:
                    actor = lane.names[actor][0]
                if subject is not None:
                    subject, family = lane.names[subject]
                    owner = subject
                else:
                    owner, family = lane.owner if actor is None else actor, "vault"
                mark = hash(
                    f"{secret}{len(asked or '')}:{asked or ''}{lane.marked}{name}" if lane.people else lane.marked + name
                )
                add((n, name, asked, when, kind, lane.number, raw, subject, actor, owner, family, mark))
            except _UNSURE:
                continue
        times = unix_times([one[_WHEN] for one in good])
        credit = np.array([lane.credit_s for lane in lanes.table] or [0.0])[np.array([one[_LANE] for one in good], np.intp)]
        timely = (times <= now + FUTURE_S) & (times >= now - credit)  # NaN = undecided: neither
        if not timely.all():
            good = [good[n] for n in np.flatnonzero(timely).tolist()]
            times = times[timely]
        columns: list[Any] = [*map(list, zip(*good, strict=True))] if good else [[] for _ in range(_COLUMNS)]
        return Seen._make([*columns, times, lanes.table])


_WHEN: Final = Seen._fields.index("whens")
_LANE: Final = Seen._fields.index("lanes")
_PLAIN: Final = msgspec.json.Decoder(Plain)
