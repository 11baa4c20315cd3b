"""From Kafka records to rows of `landing`: every message becomes exactly one, landed, dead or duplicate.

A message is judged by the contract (`schema`), predictions then by the row checks of their problem, and what is left by its
identity: an event that landed before is a duplicate, and so is a dead letter whose very bytes are one already (sent again, or
read again from a log that lost its tail). Nothing is raised for what a sender did and nothing is dropped.

It is done in blocks: `Glance` lets nearly all through, by columns, and the few others go singly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from truing.tasks.events.batches import Block
from truing.tasks.events.glance import Glance
from truing.tasks.events.lanes import Seen, constant
from truing.tasks.events.schema import Message, claimed_id, identity_text
from truing.tasks.events.stream import Chunk, Place
from truing.tasks.tables.columns import LANDING
from truing.tasks.tables.lake import Vault
from truing.tasks.tables.subjects import Subjects, day, owner

RECENT = 300_000  # identities kept in memory, tens of MB; older doubles are dropped by the join
NAMED = 1_000  # messages at the end of a partition among which one that claims an id is looked for
BLOCK = 20_000  # messages judged at once: a look at a block costs some ms, however little there is in it
_DISPOSITIONS = pl.Series(["landed", "duplicate"])
_DATALESS = [name for name in LANDING if name != "data"]
_SAID = [name for name in _DATALESS if name not in ("topic", "landed_at")]

Mark = int | bytes
"""What is remembered of an identity: of an event 64 keyed bits (`Glance.mark`), of a dead letter its `dead_identity`."""


class Recent:
    """The identities that landed last: at least `limit` of them, at most twice as many. Two sets, the older one goes whole."""

    def __init__(self, limit: int = RECENT) -> None:
        self.limit = limit
        self._young: set[Mark] = set()
        self._old: set[Mark] = set()

    def __contains__(self, mark: Mark) -> bool:
        return mark in self._young or mark in self._old

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def add(self, marks: Iterable[Mark]) -> None:
        self.news(marks)

    def news(self, marks: Iterable[Mark | None]) -> list[bool]:
        """For each whether it is new; None always is. All are remembered."""
        return self.told(list(marks))[0]

    def told(self, marks: list[Mark | None]) -> tuple[list[bool], set[Mark]]:
        """The same, and those that were new: what `drop` forgets again."""
        if len(self._young) >= self.limit:
            self._young, self._old = set(), self._young
        several: set[Any] = set(marks)
        several.discard(None)
        known = several & self._young | several & self._old
        fresh = several - known
        new = [mark not in known for mark in marks] if known else [True] * len(marks)
        if len(several) < len(marks):  # one of them twice: the first is new, the others are not
            first: set[Mark] = set()
            for n, mark in enumerate(marks):
                if mark is not None and new[n]:
                    new[n] = mark not in first
                    first.add(mark)
        self._young |= fresh
        return new, fresh

    def drop(self, marks: Iterable[Mark]) -> None:
        for mark in marks:
            self._young.discard(mark)
            self._old.discard(mark)


def recall(vault: Vault, mark: Callable[[str], int], limit: int = RECENT) -> Recent:
    """The memory rebuilt from what landed last; `mark` as in `Glance`."""
    recent = Recent(limit)
    landed = vault.scan("landing").filter(pl.col("disposition").is_in(["landed", "erased"]))  # the forgotten stay out too
    times = landed.select("landed_at").collect()["landed_at"]
    if len(times) > limit:  # found by one column: a start takes no longer because the lake is large
        landed = landed.filter(pl.col("landed_at") >= times.top_k(limit).min())
    columns = ("problem", "type", "source", "prediction_id", "event_id")
    last = landed.select(*columns, "landed_at").collect().sort("landed_at").tail(limit).drop("landed_at")
    recent.add(mark(identity_text(*row)) for row in last.iter_rows())
    dead = vault.landing(disposition="dead", columns=["landed_at", "data"]).sort("landed_at").tail(limit)
    recent.add(dead_identity(data) for data in dead["data"] if data)
    return recent


def dead_identity(value: bytes) -> bytes:
    """What makes it the same dead letter: its bytes. 16 bytes, so that nobody makes garbage that passes for a good event."""
    return hashlib.blake2b(value, digest_size=16).digest()


def app_of(group: str, topic: str, partition: int, epoch: int) -> str:
    """The application whose Delta transaction version is the next offset of this partition."""
    return f"{group}:{topic}:{partition}:{epoch}"


def places(vault: Vault, group: str, topic: str) -> dict[int, Place]:
    """Where to go on in each partition, from what the commits recorded, with the last message that claims an id as anchor."""
    rows = vault.scan("landing").filter(pl.col("topic") == topic)
    ends = rows.group_by("partition", "epoch").agg(pl.col("offset").max()).collect()
    newest = {partition: (epoch, offset) for partition, epoch, offset in ends.sort("epoch").iter_rows()}
    last = pl.DataFrame(
        [(partition, *where) for partition, where in newest.items()],
        schema={"partition": pl.Int32, "epoch": pl.Int32, "last": pl.Int64}, orient="row",
    )  # fmt: skip
    lowest = min((offset for _, offset in newest.values()), default=0)
    near = rows.filter(pl.col("offset") > lowest - NAMED, pl.col("event_id") != "")
    near = near.join(last.lazy(), on=["partition", "epoch"]).filter(pl.col("offset") > pl.col("last") - NAMED)
    named = near.select("partition", "offset", "event_id").collect().sort("offset")
    anchors = {partition: (offset, name) for partition, offset, name in named.iter_rows()}
    found: dict[int, Place] = {}
    for partition, (epoch, offset) in newest.items():
        following = vault.transaction("landing", app_of(group, topic, partition, epoch))
        if following is None:  # landed under another group: this one begins where that one stopped
            following = offset + 1
        at, name = anchors.get(partition, (-1, ""))
        found[partition] = Place(epoch=epoch, offset=following, anchor_offset=at, anchor_id=name)
    return found


class Batch(msgspec.Struct, frozen=True):
    """What one commit will add: rows of `landing` (schema LANDING without `data`), and `data` with whose keys will seal it."""

    frame: pl.DataFrame
    texts: list[bytes]
    families: list[str]  # of keys; "" = a duplicate, which keeps no text
    owners: list[str]
    positions: dict[tuple[int, int], int]  # (partition, epoch) → next offset
    counts: dict[str, int]  # by disposition, "type …", "reason …"

    def sealed(self, keys: Subjects) -> pl.DataFrame:
        """The rows whole, each text sealed for its owner. Call it within `subjects.commits`. Raises Unavailable."""
        data = keys.seal_many(self.families, self.owners, self.texts)
        return self.frame.with_columns(pl.Series("data", data, dtype=pl.Binary)).select(list(LANDING))


def land(chunks: Sequence[Chunk], *, topic: str, glance: Glance, recent: Recent, now: float) -> Batch:
    """Judge all records of the chunks, and remember them. `now` (Unix seconds) is the reader's clock.

    What is remembered counts as landed: whoever drops the batch must `recall`. Raises Unavailable as `judge` does, and then
    nothing of the chunks was remembered.
    """
    positions: dict[tuple[int, int], int] = {}
    part, remembered = _Part(), list[set[Mark]]()
    try:
        for chunk in chunks:
            positions[chunk.partition, chunk.epoch] = chunk.records[-1][0] + 1
            for block in _blocks(chunk.records):
                _judge(part, chunk, block, glance, recent, remembered, now)
    except BaseException:
        for marks in remembered:
            recent.drop(marks)
        raise
    frame = part.whole().with_columns(topic=pl.lit(topic), landed_at=pl.lit(now, pl.Float64)).select(_DATALESS)
    texts, families, owners = (seen + rest for seen, rest in zip(part.seen, part.rest, strict=True))
    return Batch(frame, texts, families, owners, positions, _counts(frame))


class _Part:
    """Rows as they gather: those seen at a glance as frames, the others as tuples; of each kind (texts, families, owners)."""

    def __init__(self) -> None:
        self.frames: list[pl.DataFrame] = []
        self.rows: list[tuple[Any, ...]] = []
        self.seen: list[list[Any]] = [[], [], []]
        self.rest: list[list[Any]] = [[], [], []]

    def whole(self) -> pl.DataFrame:
        rest = pl.DataFrame(self.rows, schema={name: LANDING[name] for name in _SAID}, orient="row")
        return pl.concat([*self.frames, rest])


def _judge(
    part: _Part, chunk: Chunk, block: Block, glance: Glance, recent: Recent, remembered: list[set[Mark]], now: float
) -> None:
    """One block: its objects are gone again, but for columns, before the next one comes."""
    seen: list[Seen] = []
    if chunk.reason:
        reason, detail = chunk.reason, chunk.detail
        rest = {
            n: Message(event_id=claimed_id(value), data=value or b"", reason=reason, detail=detail)
            for n, (_, value) in enumerate(block)
        }
    else:
        seen = glance.look(block, now)
        left = np.ones(len(block), bool)
        for one in seen:
            left[one.at] = False
        rest = {n: glance.single(block.value(n), now) for n in np.flatnonzero(left).tolist()}
    marks = _marks(len(block), seen, rest, glance)
    new, fresh = recent.told(marks)
    remembered.append(fresh)
    again = None if len(fresh) == len(marks) else ~np.array(new, bool)
    for one in seen:
        part.frames.append(_columns(one, again, chunk, block))
        if again is not None:
            for place in np.flatnonzero(again[one.at]).tolist():
                one.raws[place], one.families[place] = b"", ""
        part.seen[0] += one.raws
        part.seen[1] += one.families
        part.seen[2] += one.owners
    for at, single in rest.items():
        _row(part, single, (chunk.partition, int(block.offsets[at]), chunk.epoch), new[at], now)


def _row(part: _Part, one: Message, where: tuple[int, int, int], new: bool, now: float) -> None:
    """One message that was judged singly."""
    disposition = "duplicate" if not new else "dead" if one.reason else "landed"
    why = (str(one.reason), one.detail) if disposition == "dead" else ("", "")
    part.rows.append(
        (
            *where, one.event_id, one.type, one.source or None, one.time or None, one.problem or None, one.prediction_id,
            one.subject, one.actor, one.actor_kind or None, disposition, *why,
        )
    )  # fmt: skip
    texts, families, owners = part.rest
    texts.append(one.data if new else b"")
    families.append("" if not new else "dead" if one.reason else one.family)
    owners.append(day(now) if one.reason else owner(one.subject, one.actor, one.source))


def _blocks(records: Sequence[tuple[int, bytes | None]]) -> Iterator[Block]:
    """The records, at most BLOCK at a time."""
    for first in range(0, len(records), BLOCK):
        some = records[first : first + BLOCK]
        yield some if isinstance(some, Block) else Block.of(some)


def _marks(count: int, seen: Sequence[Seen], rest: Mapping[int, Message], glance: Glance) -> list[Mark | None]:
    """Of each record of a block, in order, what makes it the same when it comes again; None = every one is another."""
    marks = np.full(count, None, object)
    for group in seen:
        marks[group.at] = group.marks
    for at, one in rest.items():
        if not one.reason:
            marks[at] = glance.mark(identity_text(one.problem, one.type, one.source, one.prediction_id, one.event_id))
        elif one.data:  # a record without a value is like any other, and each is a dead letter
            marks[at] = dead_identity(one.data)
    found: list[Mark | None] = marks.tolist()
    return found


def _columns(seen: Seen, again: npt.NDArray[np.bool_] | None, chunk: Chunk, block: Block) -> pl.DataFrame:
    """Whole rows of what was seen at a glance; `again` tells of each record of the block whether it is a duplicate."""
    many = len(seen.at)
    codes = np.zeros(many, np.uint32) if again is None else again[seen.at].astype(np.uint32)
    whole = {
        **seen.columns,
        "partition": constant(chunk.partition, many, LANDING["partition"]),
        "offset": pl.Series(block.offsets[seen.at]),
        "epoch": constant(chunk.epoch, many, LANDING["epoch"]),
        "disposition": _DISPOSITIONS[pl.Series(codes)],
        "reason": constant("", many),
        "detail": constant("", many),
    }
    return pl.DataFrame({name: whole[name] for name in _SAID})


def _counts(frame: pl.DataFrame) -> dict[str, int]:
    counts = {"landed": 0, "dead": 0, "duplicate": 0}
    counts |= dict(frame["disposition"].value_counts().iter_rows())
    for column in ("type", "reason"):
        counts |= {f"{column} {value}": n for value, n in frame[column].value_counts().iter_rows() if value}
    return counts
