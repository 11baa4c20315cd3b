"""A first look at a block of messages: what it lets through surely holds, whatever it is unsure of is judged singly.

`schema.judge` is the law, 10 to 20 µs a message. The glance says the same "yes" in about 4: envelopes that are written alike
are read together (`stencil`), and what they say goes through their lane by column (`lanes`). It never says "no": anything else
than a plain good message is left to `judge`, which finds the reason. A test holds both equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import polars as pl

from truing.tasks.contract import DECODERS
from truing.tasks.events.batches import Block, Ints
from truing.tasks.events.lanes import CODE, UNSURE, UNTIL, Alike, Check, Lane, Rules, Seen, Texts, states
from truing.tasks.events.redaction import Redactor
from truing.tasks.events.schema import MAX_BYTES, Message, Proofs, Reason, judge
from truing.tasks.events.stencil import Cut, Sheet, Stencil, cut
from truing.tasks.events.times import CHARS, unix_times, usual_times
from truing.tasks.tables.sealing import family_of
from truing.tasks.validation.rules import Suite

STENCILS: Final = 64  # ways of writing that are known at a time
FEW: Final = 100  # messages alike: fewer are sooner judged than looked at together
_MAC: Final = "mac:"
_FIXED: Final = ("specversion", "type", "datacontenttype", "problem", "actorkind")
_VALUES: Final = ("id", "time", "subject", "predictionid", "actor", "proof")


class Plain(msgspec.Struct, frozen=True, gc=False):
    """An envelope as nearly all are; any other is left to the law."""

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


class _Way:
    """One way of writing: whose messages come like that, their stencil, and how many it has fitted of late."""

    def __init__(self, lane: Lane, actor_kind: str, stencil: Stencil) -> None:
        self.lane, self.actor_kind, self.stencil, self.hits = lane, actor_kind, stencil, 0


class _Lanes(dict[tuple[str, str, str | None], Lane]):
    """(problem, type as on the wire, source or None for people) → lane, made as they come. KeyError for what can't be one."""

    def __init__(self, rules: Mapping[str, Rules], wire: Any) -> None:
        super().__init__()
        self.rules, self.wire = rules, wire

    def __missing__(self, key: tuple[str, str, str | None]) -> Lane:
        problem, type_, source = key
        self[key] = lane = Lane(DECODERS[type_][0], source, self.rules[problem], self.wire)
        return lane


class _Known:
    """Lanes and ways of writing that have been seen, under one version of the rules."""

    def __init__(self, lanes: _Lanes, ways: list[_Way]) -> None:
        self.lanes, self.ways = lanes, ways

    def learn(self, lane: Lane, actor_kind: str, value: bytes) -> None:
        """Know this good message's way of writing from the next block on."""
        values = _VALUES if lane.source else ("source", *_VALUES)
        fixed = ("source", *_FIXED) if lane.source else _FIXED
        sizes = {"proof": CODE if lane.source else UNTIL + 1 + CODE}
        stencil = cut(value, values=values, fixed=fixed, sizes=sizes)
        if stencil is None or any(way.stencil == stencil and way.lane is lane for way in self.ways):
            return
        ways = sorted(self.ways, key=lambda way: -way.hits)[: STENCILS - 1]  # the rarest goes
        for way in ways:
            way.hits //= 2
        self.ways = [*ways, _Way(lane, actor_kind, stencil)]


class Glance:
    """The door for blocks of messages. `rules` by problem; one thread looks, another may refresh the rules."""

    def __init__(self, proofs: Proofs, *, split_salt: bytes) -> None:
        self.proofs = proofs
        self.secret = hashlib.blake2b(b"marks", key=proofs.salt[:64], digest_size=16).hexdigest()
        self.rules = {name: Rules(known, salt=proofs.salt, split_salt=split_salt) for name, known in proofs.known.items()}
        self._forget()

    def _forget(self) -> None:
        self._known = _Known(_Lanes(self.rules, states(self.proofs.wire)), [])

    def refresh(self, problem: str, suite: Suite | None, check: Check, redactor: Redactor | None = None) -> None:
        """New row checks of a problem, compiled, and the suite that they were compiled from; what is redacted from now on."""
        self.rules[problem].refresh(suite, check, redactor)
        self._forget()

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

    def look(self, block: Block, now: float) -> list[Seen]:
        """Those of the messages that surely are good, by lane, each in order; the others are for `single`."""
        found: list[Seen] = []
        known = self._known  # what is learned here is of these rules, whoever refreshes them meanwhile
        left = np.flatnonzero((block.lengths > 0) & (block.lengths <= MAX_BYTES))
        if len(left) < FEW:
            return found
        sheet = Sheet(block)
        for way in known.ways:
            if len(left) < FEW:
                return found
            fits = way.stencil.fit(sheet, left)
            if len(fits.at):
                left = left[~np.isin(left, fits.at, assume_unique=True, kind="table")]
                way.hits += len(fits.at)
                columns = _cut_out(sheet, fits, mac=way.lane.source is not None)
                seen = way.lane.judge(columns, way.actor_kind, now=now, secret=self.secret)
                found += [seen] if seen else []
        return found + (self._read(block, left, known, now) if len(left) >= FEW else [])

    def _read(self, block: Block, at: Ints, known: _Known, now: float) -> list[Seen]:
        """The same of what no stencil fits, read one by one. Where several are written alike, a stencil is cut for the next."""
        alike: dict[tuple[Any, ...], list[tuple[int, Plain]]] = {}
        decode = _PLAIN.decode
        for n in at.tolist():
            try:
                one = decode(block.value(n) or b"")
            except UNSURE:
                continue
            mac = one.proof.startswith(_MAC)
            named = tuple(part is not None for part in (one.predictionid, one.subject, one.actor))
            alike.setdefault((one.problem, one.type, one.source if mac else None, one.actorkind, named), []).append((n, one))
        found = []
        for (problem, type_, source, actor_kind, _), some in alike.items():
            if len(some) < FEW:
                continue
            try:
                lane = known.lanes[problem, type_, source]
            except UNSURE:
                continue
            columns = _gathered(some, mac=source is not None)
            seen = lane.judge(columns, actor_kind, now=now, secret=self.secret) if columns else None
            if seen:
                found.append(seen)
                known.learn(lane, actor_kind, block.value(int(seen.at[0])) or b"")
        return found


def _cut_out(sheet: Sheet, found: Cut, *, mac: bool) -> Alike:
    """Columns of the messages that a stencil fits."""
    untils, ahead = None, 0
    if not mac:
        proofs = found.values["proof"].begins
        right = ((sheet.chars(proofs, UNTIL) - np.uint8(ord("0"))) <= 9).all(axis=1) & (sheet.data[proofs + UNTIL] == ord("."))
        if not right.all():
            found = found.only(right)
        untils, ahead = sheet.chars(found.values["proof"].begins, UNTIL), UNTIL + 1
    values = found.values
    texts = {name: Texts(sheet.texts(span), span.lengths) for name, span in values.items() if name != "proof"}
    raws = Texts(sheet.texts(found.data, binary=True), found.data.lengths)
    usual = bool((values["time"].lengths == CHARS).all())
    return Alike(
        at=found.at, ids=texts["id"], whens=texts["time"],
        times=usual_times(sheet.chars(values["time"].begins, CHARS)) if usual else unix_times(texts["time"].values.to_list()),
        codes=sheet.chars(values["proof"].begins + ahead, CODE), untils=untils, raws=raws, sources=texts.get("source"),
        asked=texts.get("predictionid"), subjects=texts.get("subject"), actors=texts.get("actor"),
    )  # fmt: skip


def _gathered(some: Iterable[tuple[int, Plain]], *, mac: bool) -> Alike | None:
    """The same of messages that were read one by one."""
    ahead = len(_MAC) if mac else UNTIL + 1
    plain = [
        (n, one)
        for n, one in some
        if len(one.proof) == ahead + CODE
        and (mac or one.proof[UNTIL] == ".")
        and f"{one.id}{one.source}{one.time}{one.proof}{one.predictionid}{one.subject}{one.actor}".isascii()
    ]
    if not plain:
        return None
    ones = [one for _, one in plain]
    proofs = np.frombuffer("".join(one.proof for one in ones).encode(), np.uint8).reshape(len(ones), -1)

    def column(name: str) -> Texts | None:
        values = [getattr(one, name) for one in ones]
        return None if values[0] is None else Texts.of(values)

    bodies = [bytes(one.data) for one in ones]
    return Alike(
        at=np.array([n for n, _ in plain], np.int64), ids=Texts.of([one.id for one in ones]),
        whens=Texts.of([one.time for one in ones]), times=unix_times([one.time for one in ones]), codes=proofs[:, ahead:],
        raws=Texts(pl.Series(bodies, dtype=pl.Binary), np.array([len(one) for one in bodies], np.int64)),
        sources=None if mac else column("source"), asked=column("predictionid"), subjects=column("subject"),
        actors=column("actor"), untils=None if mac else np.ascontiguousarray(proofs[:, :UNTIL]),
    )  # fmt: skip


_PLAIN: Final = msgspec.json.Decoder(Plain)
