"""Predictions meet what came back about them: landed events → states of rows, in `lake/rows` or, for holdout, in the vault.

`join` is pure and does not care in which order events arrived: it folds all events of a prediction in the order of their own
times. `derive` finds what landed since the last time, joins the predictions it touches anew from everything known about them,
and writes states; it can be repeated, and killed between its two commits, without losing or doubling a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from truing.tasks.events.parking import WORDS, heard
from truing.tasks.events.schema import PEOPLE, Attribute, Correction, Interaction, Outcome, Prediction, Rating, Review
from truing.tasks.problem import Problem, seconds, split_of
from truing.tasks.records import Origin, Record, Split
from truing.tasks.seal import canonical, digest_bytes
from truing.tasks.tables.columns import OWNER, ROWS
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.tables.store import Store
from truing.tasks.tables.subjects import commits

HISTORY = 200  # people's words kept in a row's history, the latest; landing has all of them
APP = "derive"  # application transaction on both tables: the landing version that they were derived from
_FEW = 5_000  # up to so many predictions are looked up in the files that hold them, more by a scan of all

_POSITION = ("topic", "partition", "epoch", "offset")
_COLUMNS = (
    *("problem", "prediction_id", "type", "time", "landed_at", *_POSITION, "event_id"),
    *("source", "actor", "subject", "data"),
)
_DECODE = {
    name: msgspec.json.Decoder(kind)
    for name, kind in {
        "prediction": Prediction,
        "rating": Rating,
        "correction": Correction,
        "outcome": Outcome,
        "review": Review,
        "attribute": Attribute,
        "interaction": Interaction,
    }.items()
}


class _Event(msgspec.Struct, gc=False):
    """One landed event; fields as in LANDING, in the order of `_COLUMNS`."""

    problem: str
    prediction_id: str
    type: str
    time: float
    landed_at: float
    topic: str
    partition: int
    epoch: int
    offset: int
    event_id: str
    source: str
    actor: str | None
    subject: str | None
    data: bytes


class _SetAside(msgspec.Struct, frozen=True):
    unused: dict[str, int] = msgspec.field(default_factory=dict)


_SET_ASIDE = msgspec.json.Decoder(_SetAside)


class Derived(Record, frozen=True):
    """What one derive did, by problem. `labelled` counts trainable rows that had no target before: what improve waits for."""

    version: int | None = None  # landing version now derived
    events: int = 0  # landed since the last derive
    joined: dict[str, int] = msgspec.field(default_factory=dict)  # new rows, holdout included
    labelled: dict[str, int] = msgspec.field(default_factory=dict)  # newly labelled trainable rows
    judged: dict[str, int] = msgspec.field(default_factory=dict)  # holdout rows that newly have an outcome or a review
    parked: dict[str, int] = msgspec.field(default_factory=dict)  # predictions not seen yet that feedback waits for
    unused: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)  # words newly set aside, by reason: see parking.py


class Increment(Record, frozen=True):
    """What `derive` is about to write: states for both tables at one landing version."""

    version: int
    seen: dict[str, int | None]  # table → the landing version that it held when this was derived
    positions: dict[str, int]  # app id of a partition → next offset
    states: Any  # pl.DataFrame, schema ROWS: those that changed
    derived: Derived


# --- join ---------------------------------------------------------------------------------------------------------------------


def join(events: pl.DataFrame, problem: Problem, *, salt: bytes, revision: int) -> pl.DataFrame:
    """All events of some predictions (schema LANDING) → one row state each (schema ROWS), ordered by id.

    Feedback before its prediction yields no row yet. Of several predictions with one id the first that landed counts.
    Teaching target: outcome > blind review > latest correction > rating. A mean rating of at least 0.5 (each actor's latest
    vote) confirms the served label; a lower one says only what is wrong. Of several words of one kind the latest counts, by
    the event's own time, then by position. Without any of these an interaction confirms the served label, if its kind is one
    of `problem.interactions` and its value large enough. What waited too long, comes too late, or is said by more people than
    count (`[parking]`) is left out and counted. All that was said stays in `feedback`: a value by type, "history" as [type,
    time, actor, value, source], and "unused" as {reason: words}.
    """
    known = list(_DECODE)
    frame = events.filter(
        pl.col("problem") == problem.name,
        pl.col("disposition") == "landed",
        pl.col("type").is_in(known),
        pl.col("prediction_id").is_not_null(),
    )
    frame = frame.select(_COLUMNS).sort("prediction_id", "time", *_POSITION, "event_id")
    limits = {kind: (problem.wait_s(kind), problem.late_s(kind)) for kind in WORDS}
    outcome_after = seconds(problem.maturity.outcome)
    trusted = {name for name, source in problem.sources.items() if source.split == "trusted"}
    rows: list[tuple[Any, ...]] = []
    for _, group in groupby((_Event(*row) for row in frame.iter_rows()), key=_prediction_id):
        row = _fold(list(group), problem, trusted, limits, outcome_after, salt, revision)
        if row is not None:
            rows.append(row)
    return pl.DataFrame(rows, schema=ROWS, orient="row")


def _prediction_id(event: _Event) -> str:
    return event.prediction_id


def _landing_order(event: _Event) -> tuple[float, str, int, int, int]:
    return event.landed_at or 0.0, event.topic or "", event.epoch or 0, event.partition or 0, event.offset or 0


def _fold(
    events: list[_Event],
    problem: Problem,
    trusted: set[str],
    limits: dict[str, tuple[float, float]],
    outcome_after: float,
    salt: bytes,
    revision: int,
) -> tuple[Any, ...] | None:
    """The state of one prediction from all its events in the order of their times, as a tuple in the order of ROWS."""
    asked = [event for event in events if event.type == "prediction"]
    if not asked:
        return None
    question = asked[0] if len(asked) == 1 else min(asked, key=_landing_order)
    body = _DECODE["prediction"].decode(question.data)
    subject = question.subject or question.prediction_id
    split = split_of(subject, salt, problem.splits)
    if question.source in trusted and split is not Split.HOLDOUT:  # a holdout subject is never anything else, whoever loads it
        split = Split.TRUSTED
    raw_groups = {name: body.inputs[name] for name in problem.groups if name in body.inputs} | body.groups
    landed_at = question.landed_at or 0.0
    latest: dict[str, _Event] = {}  # by type
    said: dict[str, Any] = {}  # by type
    votes: dict[str | None, tuple[float, _Event]] = {}  # one an actor
    history: list[list[Any]] = []
    confirmed: _Event | None = None  # the latest interaction that confirms
    words, unused = _in_time(events, question, limits)
    spoken = [event for event in words if event.type in PEOPLE]
    if len({event.actor for event in spoken}) > problem.parking.voices:
        counted = heard(sorted(spoken, key=_landing_order), problem.parking.voices)
        unused["voices"] = sum(1 for event in spoken if event.actor not in counted)
        words = [event for event in words if event.type not in PEOPLE or event.actor in counted]
    for event in words:
        kind = event.type
        landed_at = max(landed_at, event.landed_at or 0.0)
        word = _DECODE[kind].decode(event.data)
        if kind == "attribute":
            raw_groups |= word.groups
            continue
        value: Any
        if kind == "rating":
            value = word.value
            votes.pop(event.actor, None)  # so that the order of votes is the order of the latest words
            votes[event.actor] = (word.value, event)
        elif kind == "interaction":
            value = [word.kind, word.value]
            said["interaction"] = said.get("interaction", 0) + 1
            least = problem.interactions.get(word.kind)
            if least is not None and (word.value or 0.0) >= least:
                confirmed = event
        else:
            value = word.label
            said[kind], latest[kind] = value, event
        history.append([kind, event.time, event.actor, value, event.source])
    if votes:
        said["rating"] = sum(value for value, _ in votes.values()) / len(votes)
    if history:
        said["history"] = _latest(history)
    if unused:
        said["unused"] = unused
    target = origin = by = labelled_at = matured_at = None
    for kind in (Origin.OUTCOME, Origin.REVIEW, Origin.CORRECTION):
        if kind in latest and said[kind] in problem.labels:
            target, origin, by, labelled_at = said[kind], str(kind), latest[kind].actor, latest[kind].time
            break
    else:
        if votes and said["rating"] >= 0.5 and body.answer is not None:
            last = next((event for value, event in reversed(votes.values()) if value >= 0.5), None)
            if last is not None:
                target, origin, by, labelled_at = body.answer.label, str(Origin.RATING), last.actor, last.time
        elif not votes and confirmed is not None and body.answer is not None:
            target, origin = body.answer.label, str(Origin.INTERACTION)
            by, labelled_at = confirmed.actor, confirmed.time
    if origin in (Origin.OUTCOME, Origin.REVIEW) and labelled_at is not None:
        matured_at = max(question.time + outcome_after, labelled_at)
    content = canonical(body.inputs)
    answer = body.answer
    return (
        question.prediction_id,
        problem.name,
        subject,
        content,
        digest_bytes(content),
        canonical(problem.buckets(raw_groups)).decode(),
        None if answer is None else canonical(answer).decode(),
        None if answer is None else answer.label,
        None if answer is None else answer.confidence,
        body.release,
        body.variant,
        body.propensity,
        target,
        origin,
        by,
        canonical(said).decode(),
        question.time,
        labelled_at,
        matured_at,
        str(split),
        body.audit,
        revision,
        landed_at,
    )


def _in_time(
    events: list[_Event], question: _Event, limits: dict[str, tuple[float, float]]
) -> tuple[list[_Event], dict[str, int]]:
    """The words that count as far as time goes, each once, and how many do not, by reason (see parking.py)."""
    words: list[_Event] = []
    unused: dict[str, int] = {}
    seen: set[tuple[bool, str, str]] = set()
    for event in events:
        kind = event.type
        if kind == "prediction":
            continue
        identity = (kind in PEOPLE, event.source, event.event_id)
        if identity in seen:  # came twice
            continue
        seen.add(identity)
        wait, late = limits[kind]
        if event.time - question.time > late:
            unused["late"] = unused.get("late", 0) + 1
        elif (question.landed_at or 0.0) - (event.landed_at or 0.0) > wait:
            unused["waited"] = unused.get("waited", 0) + 1
        else:
            words.append(event)
    return words, unused


def _latest(history: list[list[Any]]) -> list[list[Any]]:
    """Without people's oldest words beyond HISTORY: a row is written again with each word, and one token may say thousands."""
    spare = sum(1 for line in history if line[0] in PEOPLE) - HISTORY
    if spare <= 0:
        return history
    kept = []
    for line in history:
        if line[0] in PEOPLE and spare > 0:
            spare -= 1
        else:
            kept.append(line)
    return kept


# --- derive -------------------------------------------------------------------------------------------------------------------


def derive(
    vault: Vault, lake: Lake, problems: Mapping[str, Problem] | Iterable[Problem], *, salt: bytes, now: float
) -> Derived:
    """Everything landed since the last derive → states in `lake/rows` and `vault/holdout`.

    Both tables record the landing version that they hold, in the commit itself; the older of the two says where to go on, so
    a crash between the commits heals here. A holdout row goes to the vault and nowhere else.
    """
    named = problems if isinstance(problems, Mapping) else {problem.name: problem for problem in problems}
    if vault.remote:
        return _derive(vault, lake, named, salt)
    if vault.version("landing") is None:
        return Derived()
    with commits(Path(vault.root)):  # between sealing and committing nobody's key is destroyed
        return _derive(vault, lake, named, salt)


def _derive(vault: Vault, lake: Lake, problems: Mapping[str, Problem], salt: bytes) -> Derived:
    found = increment(vault, lake, problems, salt=salt)
    if found is None:
        return Derived()
    write(lake, "rows", found)
    write(vault, "holdout", found)
    return found.derived


def sealed_states(vault: Vault, lake: Lake, states: pl.DataFrame) -> pl.DataFrame:
    """States (schema ROWS) with their content sealed for their subjects; as they are while the vault has no keys.

    The lake's own file has every key that its rows need before they are written.
    """
    if vault.subjects is None or not states.height:
        return states
    keys = vault.sealing()
    families = ["holdout" if split == Split.HOLDOUT else "trainable" for split in states["split"]]
    content = keys.seal_many(families, states["subject"].to_list(), states["content"].to_list())
    keys.mirror(lake.sealing())
    return states.with_columns(pl.Series("content", content, dtype=pl.Binary))


def write(store: Store, table: str, found: Increment) -> int:
    """One half of a derive: the increment's states that belong into `rows` or `holdout`. Repeated, it does nothing.

    Raises Stale when another chief has written there meanwhile: derive anew.
    """
    holdout = pl.col("split") == str(Split.HOLDOUT)
    states = found.states.filter(holdout if table == "holdout" else ~holdout)
    have = store.transactions(table, [APP, *found.positions])
    if (have[APP] or -1) >= found.version:
        return int(store.version(table) or 0)
    further = [(app, at) for app, at in found.positions.items() if at > (have[app] or 0)]
    return store.append(table, states, app=[(APP, found.version), *further], expect={APP: found.seen[table]})


def increment(vault: Vault, lake: Lake, problems: Mapping[str, Problem], *, salt: bytes) -> Increment | None:
    """What landed since the older of both tables was derived, joined; None when nothing did."""
    stores: tuple[tuple[Store, str], ...] = ((lake, "rows"), (vault, "holdout"))
    versions = [store.transaction(table, APP) for store, table in stores]
    since = None if None in versions else min(version for version in versions if version is not None)
    newest, files, exact = vault.since("landing", since)
    if newest is None or (since is not None and newest <= since):
        return None
    fresh = files.select("problem", "prediction_id", "type", "disposition", *_POSITION).collect()
    ends = {
        f"{APP}:{topic}:{partition}:{epoch}": int(last) + 1
        for topic, partition, epoch, last in fresh.group_by("topic", "partition", "epoch")
        .agg(pl.col("offset").max())
        .iter_rows()
        if last is not None
    }
    if not exact:  # a compaction mixed old with new: leave out what both tables hold, by position
        recorded = [store.transactions(table, ends) for store, table in stores]
        starts = {app: min(have[app] or 0 for have in recorded) for app in ends}
        app = pl.format(f"{APP}:{{}}:{{}}:{{}}", "topic", "partition", "epoch")
        start = app.replace_strict(starts, default=0, return_dtype=pl.Int64)
        fresh = fresh.filter(pl.col("offset") >= start)
    fresh = fresh.filter(
        pl.col("disposition") == "landed", pl.col("prediction_id").is_not_null(), pl.col("problem").is_in(list(problems))
    )
    touched = fresh.select("problem", "prediction_id").unique()
    events = _events(vault, touched)
    joined = [join(events, problem, salt=salt, revision=newest) for problem in problems.values()]
    states = pl.concat([pl.DataFrame(schema=ROWS), *joined])
    before = _before(stores, states)
    both = states.join(before, on=["problem", "id"], how="left", suffix="_before")
    same = [pl.col(name).eq_missing(pl.col(f"{name}_before")) for name in ("content_hash", "groups", "feedback", "landed_at")]
    changed = both.filter(~pl.all_horizontal(same))
    judges = pl.col("origin").is_in([str(Origin.OUTCOME), str(Origin.REVIEW)]).fill_null(False)
    judged = pl.col("origin_before").is_in([str(Origin.OUTCOME), str(Origin.REVIEW)]).fill_null(False)
    holdout = pl.col("split") == str(Split.HOLDOUT)
    derived = Derived(
        version=newest,
        events=fresh.height,
        joined=_count(changed.filter(pl.col("content_hash_before").is_null())),
        labelled=_count(changed.filter(~holdout, taught(), ~taught("_before"))),
        judged=_count(changed.filter(holdout, judges, ~judged)),
        parked=_count(touched.join(states, left_on=["problem", "prediction_id"], right_on=["problem", "id"], how="anti")),
        unused=_unused(changed),
    )
    seen = {table: at for (_, table), at in zip(stores, versions, strict=True)}
    states = sealed_states(vault, lake, changed.select(list(ROWS)))
    return Increment(version=newest, seen=seen, positions=ends, states=states, derived=derived)


def _events(vault: Vault, touched: pl.DataFrame) -> pl.DataFrame:
    """Everything ever landed about these predictions."""
    few = touched.height <= _FEW
    landing = vault.holding("landing", "prediction_id", touched["prediction_id"]) if few else vault.scan("landing")
    landing = landing.filter(pl.col("disposition") == "landed").select(*_COLUMNS, "disposition")
    found = landing.join(touched.lazy(), on=["problem", "prediction_id"], how="semi").collect()
    return vault.opened(found, "data", OWNER).filter(pl.col("data").is_not_null())


def _before(stores: tuple[tuple[Store, str], ...], states: pl.DataFrame) -> pl.DataFrame:
    """What is known of these rows already: newest target, origin, groups and feedback."""
    columns = ["problem", "id", "revision", "content_hash", "groups", "feedback", "landed_at", "target", "origin"]
    keys = states.select("problem", "id")
    found = []
    for store, table in stores:
        known = store.holding(table, "id", keys["id"]) if keys.height <= _FEW else store.scan(table)
        found.append(known.select(columns).join(keys.lazy(), on=["problem", "id"], how="semi").collect())
    return pl.concat(found).sort("revision", descending=True).unique(["problem", "id"], keep="first").drop("revision")


def taught(suffix: str = "") -> pl.Expr:
    """Has a target that improve waits for: more than a click."""
    weak = (pl.col(f"origin{suffix}") == str(Origin.INTERACTION)).fill_null(False)
    return pl.col(f"target{suffix}").is_not_null() & ~weak


def _unused(changed: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Words set aside now and not before, by problem and reason."""
    told: dict[str, Counter[str]] = {}
    some = changed.filter(pl.col("feedback").str.contains('"unused":', literal=True))
    for problem, now, before in some.select("problem", "feedback", "feedback_before").iter_rows():
        fresh = Counter(_SET_ASIDE.decode(now).unused)
        fresh.subtract(_SET_ASIDE.decode(before or "{}").unused)
        told.setdefault(problem, Counter()).update(+fresh)
    return {problem: dict(sorted(reasons.items())) for problem, reasons in sorted(told.items()) if reasons}


def _count(rows: pl.DataFrame) -> dict[str, int]:
    return dict(sorted(rows.group_by("problem").len().iter_rows(), key=itemgetter(0)))


# --- what the gate asks -------------------------------------------------------------------------------------------------------


def coverage(vault: Vault, problem: Problem, *, now: float) -> tuple[int, int]:
    """(holdout predictions with a label that may judge, holdout predictions old enough to have one) at `now`."""
    rows = vault.holdout(problem.name, now=now, matured=False)
    due = rows.filter(pl.col("asked_at") + seconds(problem.maturity.outcome) <= now)
    may_judge = pl.col("origin").is_in([str(Origin.OUTCOME), str(Origin.REVIEW)])
    return due.filter(may_judge, pl.col("matured_at") <= now).height, due.height


def leaked(vault: Vault, lake: Lake, problem: str) -> list[str]:
    """Subjects that stand in holdout and among the rows that may teach, sorted: must be empty before a verdict counts."""
    judges = vault.read("holdout", ["subject"], pl.col("problem") == problem)
    teaches = lake.read("rows", ["subject"], pl.col("problem") == problem)
    return judges.unique().join(teaches, on="subject", how="semi")["subject"].sort().to_list()
