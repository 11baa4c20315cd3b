"""From Kafka records to rows of `landing`: every message becomes exactly one, landed, dead or duplicate.

A message is judged by the contract (`schema`), predictions then by the row checks of their problem, and what is left by its
identity: an event that landed before is a duplicate, and so is a dead letter whose very bytes are one already (sent again, or
read again from a log that lost its tail). Nothing is raised for what a sender did and nothing is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import polars as pl

from truing.tasks.events.lake import LANDING, Vault
from truing.tasks.events.schema import Message, Proofs, Reason, claimed_id, identity, judge
from truing.tasks.events.stream import Chunk, Place

Check = Callable[[Sequence[Mapping[str, Any]]], Sequence[str | None]]
"""Row checks of one problem: inputs of predictions → for each None, or what is wrong in one line."""

RECENT = 300_000  # event ids kept in memory, about 45 MB; older doubles are dropped by the join


class Recent:
    """The identities that landed last, at most `limit`, oldest out first."""

    def __init__(self, limit: int = RECENT) -> None:
        self.limit = limit
        self._known: dict[bytes, None] = {}

    def __contains__(self, name: bytes) -> bool:
        return name in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, names: Iterable[bytes]) -> None:
        known = self._known
        for name in names:
            known[name] = None
        for _ in range(len(known) - self.limit):
            del known[next(iter(known))]


def recall(vault: Vault, limit: int = RECENT) -> Recent:
    """The memory rebuilt from what landed last."""
    recent = Recent(limit)
    landed = (
        vault.scan("landing")
        .filter(pl.col("disposition").is_in(["landed", "erased"]))  # what was forgotten does not land again
        .select("problem", "type", "source", "prediction_id", "event_id", "landed_at")
        .sort("landed_at")
        .tail(limit)
        .drop("landed_at")
        .collect()
    )
    recent.add(identity(*row) for row in landed.iter_rows())
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
    found: dict[int, Place] = {}
    rows = vault.scan("landing").filter(pl.col("topic") == topic).select("partition", "epoch", "offset", "event_id")
    named = (pl.col("event_id") != "") & (pl.col("epoch") == pl.col("epoch").last())
    anchor = pl.col("offset", "event_id").filter(named).last().name.prefix("anchor_")
    last = rows.sort("epoch", "offset").group_by("partition").agg(pl.col("epoch", "offset").last(), anchor).collect()
    for partition, epoch, offset, anchor_offset, event_id in last.iter_rows():
        following = vault.transaction("landing", app_of(group, topic, partition, epoch))
        if following is None:  # landed under another group: this one begins where that one stopped
            following = offset + 1
        at = -1 if anchor_offset is None else anchor_offset
        found[partition] = Place(epoch=epoch, offset=following, anchor_offset=at, anchor_id=event_id or "")
    return found


class Landing(msgspec.Struct, frozen=True):
    """What one commit will add: rows of `landing` (schema LANDING) and the identities that are new with them."""

    frame: pl.DataFrame
    fresh: frozenset[bytes]
    positions: dict[tuple[int, int], int]  # (partition, epoch) → next offset
    counts: dict[str, int]  # by disposition


def land(
    chunks: Sequence[Chunk],
    *,
    topic: str,
    proofs: Proofs,
    recent: Recent,
    checks: Mapping[str, Check],
    now: float,
) -> Landing:
    """Judge all records of the chunks. `checks` by problem; `now` (Unix seconds) is the reader's clock."""
    values: list[bytes | None] = []
    messages: list[Message] = []
    at: list[tuple[int, int, int]] = []  # partition, offset, epoch
    positions: dict[tuple[int, int], int] = {}
    for chunk in chunks:
        partition, epoch, records, reason, detail = chunk
        positions[partition, epoch] = records[-1][0] + 1
        for offset, value in records:
            if reason:
                message = Message(event_id=claimed_id(value), data=value or b"", reason=reason, detail=detail)
            else:
                message = judge(value, proofs=proofs, now=now)
            at.append((partition, offset, epoch))
            values.append(value)
            messages.append(message)
    _check_inputs(messages, values, checks)
    fresh: set[bytes] = set()
    rows: list[tuple[Any, ...]] = []
    counts = {"landed": 0, "dead": 0, "duplicate": 0}
    for (partition, offset, epoch), message in zip(at, messages, strict=True):
        if not message.reason:
            disposition, name = "landed", message.identity
        else:
            disposition, name = "dead", dead_identity(message.data) if message.data else b""
        if name and (name in fresh or name in recent):
            disposition = "duplicate"
        elif name:  # a record without a value is like any other, and each is a dead letter
            fresh.add(name)
        counts[disposition] += 1
        rows.append(
            (
                topic,
                partition,
                offset,
                epoch,
                message.event_id,
                message.type,
                message.source or None,
                message.time or None,
                now,
                message.problem or None,
                message.prediction_id,
                message.subject,
                message.actor,
                message.actor_kind or None,
                message.data,
                disposition,
                str(message.reason) if disposition == "dead" else "",
                message.detail if disposition == "dead" else "",
            )
        )
    return Landing(pl.DataFrame(rows, schema=LANDING, orient="row"), frozenset(fresh), positions, counts)


def _check_inputs(messages: list[Message], values: list[bytes | None], checks: Mapping[str, Check]) -> None:
    """Predictions that fail the row checks of their problem become dead letters, in place."""
    for problem, check in checks.items():
        asked = [n for n, message in enumerate(messages) if message.type == "prediction" and message.problem == problem]
        if not asked:
            continue
        for n, wrong in zip(asked, check([messages[n].body.inputs for n in asked]), strict=True):
            if wrong is not None:
                old = messages[n]
                messages[n] = Message(
                    event_id=old.event_id,
                    source=old.source,
                    problem=old.problem,
                    data=values[n] or b"",
                    reason=Reason.INPUTS,
                    detail=wrong[:300],
                )
