"""Dead letters: messages that can't be used, what a person did about them, and the way back through the same door.

They are rows of `landing`; nothing here copies them. A letter is named by its position, `topic:partition:epoch:offset`. Lists
show why and from where, never what: not even the id that an unbelieved message claims. Replaying sends the original bytes
again; whoever sent them first, they prove themselves again, land once however often they are sent, or are dead still. Acts
(`vault/dead_acts`) say who did what, when and why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import polars as pl

from truing.tasks.errors import DataError, Unavailable
from truing.tasks.records import Record
from truing.tasks.tables.columns import OWNER, RECORDS
from truing.tasks.tables.lake import Vault
from truing.tasks.tables.store import Stale
from truing.tasks.tables.subjects import OVERHEAD

ACTS = "dead_acts"
BATCH = 500  # letters between two notes of what was sent
_POSITION = ("topic", "partition", "epoch", "offset")
_TRIES = 20
_VALUE = re.compile(r"`(?!\$)[^`]*`|'[^']*'")  # what an error quotes of the message itself

Message = tuple[bytes | None, bytes]  # key, value
Send = Callable[[Sequence[Message]], list[tuple[int, int]]]  # messages → partition and offset of each, acknowledged


class Act(Record, frozen=True):
    """What a person did to one letter. `sent`: where a replay stands on the topic, partition and offset; None in between."""

    id: str
    letter: str  # its position
    act: str  # replay | drop | reveal
    by: str
    reason: str
    at: float
    problem: str = ""
    sent: tuple[int, int] | None = None


class Letter(Record, frozen=True):
    """One dead letter without its content. `state` is open | replayed | dropped."""

    position: str
    reason: str
    detail: str
    problem: str
    size: int  # bytes of the original
    first_seen: float
    state: str
    again: str = ""  # the letter whose replay this is
    became: str = ""  # of one sent again: landed | duplicate | waiting | dead (still) | the position of the letter it is again


class Done(Record, frozen=True):
    """What a replay did: letters sent, and those whose bytes are no more (lifetime over), or never were (lost, tombstones)."""

    sent: int
    gone: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()


# --- looking ------------------------------------------------------------------------------------------------------------------


def letters(
    vault: Vault,
    *,
    reason: str | None = None,
    problem: str | None = None,
    since: float | None = None,
    positions: Iterable[str] | None = None,
    all: bool = False,
) -> list[Letter]:
    """The letters that match, oldest first. Without `all` only open ones. `positions` may leave out the topic."""
    wanted = pl.col("disposition") == "dead"
    if reason is not None:
        wanted &= pl.col("reason") == reason
    if problem is not None:
        wanted &= pl.col("problem") == problem
    if since is not None:
        wanted &= pl.col("landed_at") >= since
    if positions is not None:
        wanted &= _among(positions)
    size = pl.col("data").bin.size() - pl.when(pl.col("data").bin.starts_with(b"\x01")).then(OVERHEAD).otherwise(0)
    frame = (
        vault.scan("landing")
        .filter(wanted)
        .select(*_POSITION, "reason", "detail", "problem", size.alias("size"), "landed_at")
        .sort("landed_at", *_POSITION)
        .collect()
    )
    done = acts(vault)
    states = {one.letter: one for one in done if one.act == "drop" or (one.act == "replay" and one.sent is not None)}
    again = {(_topic(one.letter), *one.sent): one for one in done if one.sent is not None}
    became = _became(vault, [one for one in states.values() if one.act == "replay"])
    found = []
    for topic, partition, epoch, offset, why, detail, of, many, landed_at in frame.iter_rows():
        name = f"{topic}:{partition}:{epoch}:{offset}"
        act = states.get(name)
        still = act is None or became.get(name) == "dead"
        state = "open" if still else "dropped" if act and act.act == "drop" else "replayed"
        before = again.get((topic, partition, offset))
        if all or still:
            found.append(
                Letter(
                    position=name,
                    reason=why,
                    detail=redacted(detail),
                    problem=of or "",
                    size=many or 0,
                    first_seen=landed_at,
                    state=state,
                    again=before.letter if before is not None and before.at <= landed_at else "",
                    became=became.get(name, ""),
                )
            )
    return found


def redacted(detail: str) -> str:
    """Why, without what an error quotes of the message; paths like `$.data.value` stay."""
    return _VALUE.sub("…", detail)


def acts(vault: Vault) -> list[Act]:
    """Everything that was done, in order; of an act that was completed later its last form."""
    frame = vault.read(ACTS).sort("seq").unique("id", keep="last", maintain_order=True)
    return [msgspec.json.decode(text, type=Act) for text in frame["json"]]


def _became(vault: Vault, replays: Sequence[Act]) -> dict[str, str]:
    """{letter: what its replay came to}."""
    if not replays:
        return {}
    at = pl.DataFrame(
        [(one.letter, _topic(one.letter), *(one.sent or (0, 0))) for one in replays],
        schema={"letter": pl.String, "topic": pl.String, "partition": pl.Int32, "offset": pl.Int64},
        orient="row",
    )
    landing = (
        vault.scan("landing").select(*_POSITION, "disposition", "type").filter(pl.col("offset").is_in(at["offset"].implode()))
    )
    found = (
        landing.join(at.lazy(), on=["topic", "partition", "offset"])
        .sort("epoch")
        .unique("letter", keep="last")  # a log read again from its start: the newer epoch is the one
        .collect()
    )
    out = dict.fromkeys(at["letter"], "waiting")
    for line in found.iter_rows(named=True):
        became = line["disposition"]
        if became == "dead":
            became = ":".join(str(line[name]) for name in _POSITION)
        elif became == "duplicate" and not line["type"]:  # the same bytes, not believed this time either: one letter, not two
            became = "dead"
        out[line["letter"]] = became
    return out


def originals(vault: Vault, positions: Sequence[str]) -> dict[str, bytes | None]:
    """The bytes of these letters as they came: None where their lifetime is over, empty where there never were any."""
    frame = vault.scan("landing").filter(pl.col("disposition") == "dead", _among(positions)).collect()
    opened = vault.opened(frame, "data", OWNER).select(*_POSITION, "data")
    return {f"{topic}:{p}:{epoch}:{offset}": data for topic, p, epoch, offset, data in opened.iter_rows()}


def _topic(position: str) -> str:
    return position.rsplit(":", 3)[0]


def _among(positions: Iterable[str]) -> pl.Expr:
    """Rows at these positions. Raises DataError for what is none."""
    wanted = pl.lit(False)
    offsets: dict[tuple[str, ...], list[int]] = {}
    for given in positions:
        parts = given.rsplit(":", 3)
        numbers = parts[-3:]
        if len(numbers) < 3 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in numbers):
            raise DataError(
                f"expected a position like 0:0:17 (partition:epoch:offset, as `truing dlq list` shows), got {given[:80]!r}"
            )
        offsets.setdefault((*parts[:-3], *numbers[:2]), []).append(int(numbers[2]))
    for (*topic, partition, epoch), some in offsets.items():
        here = (pl.col("partition") == int(partition)) & (pl.col("epoch") == int(epoch)) & pl.col("offset").is_in(some)
        wanted |= here & (pl.col("topic") == topic[0]) if topic else here
    return wanted


# --- acting -------------------------------------------------------------------------------------------------------------------


def note(vault: Vault, done: Sequence[Act]) -> None:
    """Keep acts; an id that is there already is kept anew, and its last form counts. Raises Unavailable."""
    for _ in range(_TRIES):
        last = vault.transaction(ACTS, ACTS)
        begin = last or 0
        lines = [(one.problem, one.id, begin + n, msgspec.json.encode(one).decode()) for n, one in enumerate(done, 1)]
        frame = pl.DataFrame(lines, schema=RECORDS, orient="row")
        try:
            vault.append(ACTS, frame, app=(ACTS, begin + len(done)), expect={ACTS: last})
        except Stale:
            continue
        return
    raise Unavailable(f"{vault.root}/{ACTS}: expected to note what was done, got conflicts; try again")


def replay(vault: Vault, chosen: Sequence[Letter], send: Send, *, by: str, reason: str, now: float) -> Done:
    """Send the originals again through the door they came to, and note where they stand then.

    What is sent is noted before and completed after, `BATCH` letters at a time: killed in between, letters stay open, and
    sending them once more lands nothing twice. Raises Unavailable when the broker does not take them.
    """
    sent, gone, empty = 0, list[str](), list[str]()
    for start in range(0, len(chosen), BATCH):
        some = chosen[start : start + BATCH]
        bytes_of = originals(vault, [one.position for one in some])
        gone += [one.position for one in some if bytes_of.get(one.position) is None]
        empty += [one.position for one in some if bytes_of.get(one.position) == b""]
        able = [one for one in some if bytes_of.get(one.position)]
        if not able:
            continue
        begun = [_act("replay", one, by=by, reason=reason, now=now) for one in able]
        note(vault, begun)
        stand = send([_message(bytes_of[one.position] or b"") for one in able])
        note(vault, [msgspec.structs.replace(act, sent=where) for act, where in zip(begun, stand, strict=True)])
        sent += len(able)
    return Done(sent=sent, gone=tuple(gone), empty=tuple(empty))


def drop(vault: Vault, chosen: Sequence[Letter], *, by: str, reason: str, now: float) -> int:
    """Mark letters as done with: they leave the list. Their bytes live no longer for it, nor less long."""
    if chosen:
        note(vault, [_act("drop", one, by=by, reason=reason, now=now) for one in chosen])
    return len(chosen)


def reveal(vault: Vault, letter: Letter, *, by: str, reason: str, now: float) -> bytes | None:
    """One original, noted before it is shown. None when its lifetime is over."""
    note(vault, [_act("reveal", letter, by=by, reason=reason, now=now)])
    return originals(vault, [letter.position]).get(letter.position)


def _act(act: str, letter: Letter, *, by: str, reason: str, now: float) -> Act:
    name = f"{act}:{now:.6f}:{letter.position}"
    return Act(id=name, letter=letter.position, act=act, by=by, reason=reason, at=now, problem=letter.problem)


class _Claims(msgspec.Struct):
    id: str | None = None
    predictionid: str | None = None


def _message(value: bytes) -> Message:
    """Under the key it would have had: so words on one prediction stay in one partition."""
    try:
        claims = msgspec.json.decode(value, type=_Claims)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, value
    key = claims.predictionid or claims.id
    return (key.encode() if key else None), value


def sender(producer: Any, topic: str) -> Send:
    """`Send` by a KafkaProducer: returns when all are acknowledged, else raises Unavailable."""
    from kafka.errors import KafkaError

    def send(messages: Sequence[Message]) -> list[tuple[int, int]]:
        try:
            futures = [producer.send(topic, key=key, value=value) for key, value in messages]
            producer.flush(timeout=30)
            stand = [future.get(timeout=30) for future in futures]
        except (KafkaError, OSError, AssertionError) as error:
            cause = " ".join(str(error).split())[:160] or type(error).__name__
            raise Unavailable(
                f"the topic {topic}: expected it to take {len(messages)} messages, got {cause}; try again"
            ) from None
        return [(one.partition, one.offset) for one in stand]

    return send


def counted(found: Iterable[Letter]) -> Mapping[str, int]:
    """{reason: letters}, the most frequent first."""
    counts: dict[str, int] = {}
    for one in found:
        counts[one.reason] = counts.get(one.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
