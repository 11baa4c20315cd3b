"""What a person left behind in lake and vault: found by pseudonym, made unreadable, deleted; and what stays of others rejoined.

    find      one problem's traces of one person          (reads only, and again within the lock)
    destroy   the person's keys, in both files            → unreadable from here on, in every copy
    erase     the traces from landing, rows, holdout, samples, dataset records
    purge     the data files that held them, once no reader can be in mid-scan

All that write run within `subjects.no_commits`, each can be repeated, and `Traces` is written down before the first of them: a
process killed at any point goes on from there and ends the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import msgspec
import polars as pl

from truing.tasks.events.join import join, sealed_states
from truing.tasks.problem import Problem
from truing.tasks.records import DatasetVersion, Record, Split
from truing.tasks.tables.columns import OWNER, ROWS
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.tables.store import Store

Place = tuple[str, int, int, int]  # topic, partition, epoch, offset
TABLES = (("vault", "landing"), ("vault", "holdout"), ("lake", "rows"), ("lake", "samples"), ("lake", "datasets"))


class Traces(Record, frozen=True):
    """What one problem knows of one person. With `words_only` what others said about the person stays."""

    problem: str
    person: str  # pseudonym
    words_only: bool
    events: tuple[Place, ...] = ()  # landed, and duplicates of them
    dead: tuple[Place, ...] = ()  # dead letters that name the person
    rows: tuple[str, ...] = ()  # predictions about the person
    touched: tuple[str, ...] = ()  # predictions about others that lose the person's words
    vouched: bool = False  # some of the rows are trusted ones: suites were profiled from them
    datasets: dict[str, int] = msgspec.field(default_factory=dict)  # dataset version → samples that go

    @property
    def empty(self) -> bool:
        return not (self.events or self.dead or self.rows or self.touched or self.datasets)


def find(vault: Vault, lake: Lake, problem: str, person: str, *, words_only: bool) -> Traces:
    """Everything by pseudonym in one problem; dead letters have none (`dead`)."""
    of = pl.col("problem") == problem
    where = ["topic", "partition", "epoch", "offset"]
    columns = [*where, "prediction_id", "subject", "actor", "disposition"]
    landing = vault.read("landing", columns, of & pl.col("disposition").is_in(["landed", "duplicate"]))
    said, about = (pl.col("actor") == person).fill_null(False), (pl.col("subject") == person).fill_null(False)
    rows: set[str] = set()
    vouched = False
    if not words_only:
        for store, table in ((lake, "rows"), (vault, "holdout")):
            states = store.read(table, ["id", "split"], of & (pl.col("subject") == person))
            rows |= set(states["id"])
            vouched |= str(Split.TRUSTED) in set(states["split"])
        rows |= set(landing.filter(about)["prediction_id"].drop_nulls())
    theirs = landing.filter(said if words_only else said | about | pl.col("prediction_id").is_in(sorted(rows)).fill_null(False))
    touched = set(theirs.filter(said)["prediction_id"].drop_nulls()) - rows
    samples = lake.read("samples", ["dataset", "row", "actor"], of)
    gone = samples.filter((pl.col("actor") == person).fill_null(False) | pl.col("row").is_in(sorted(rows)))
    return Traces(
        problem=problem,
        person=person,
        words_only=words_only,
        events=tuple(sorted(theirs.select(where).iter_rows())),
        rows=tuple(sorted(rows)),
        touched=tuple(sorted(touched)),
        vouched=vouched,
        datasets=dict(sorted(gone.group_by("dataset").len().iter_rows())),
    )


def both(one: Traces, other: Traces) -> Traces:
    """Two finds of the same person: nothing that was found once is let go."""
    rows = {*one.rows, *other.rows}
    return msgspec.structs.replace(
        one,
        events=tuple(sorted({*one.events, *other.events})),
        dead=tuple(sorted({*one.dead, *other.dead})),
        rows=tuple(sorted(rows)),
        touched=tuple(sorted({*one.touched, *other.touched} - rows)),
        vouched=one.vouched or other.vouched,
        datasets={name: max(one.datasets.get(name, 0), n) for name, n in (one.datasets | other.datasets).items()},
    )


class _Claims(msgspec.Struct):
    problem: object = None
    subject: object = None
    actor: object = None
    predictionid: object = None


def dead(vault: Vault, problem: str, name: str, rows: Collection[str]) -> Iterator[Place]:
    """Dead letters that claim to be by or about the person called `name` or one of these predictions, or hold the name."""
    spelled = {name, json.dumps(name)[1:-1], json.dumps(name, ensure_ascii=False)[1:-1]}
    ids = set(rows)
    word = re.compile("|".join(rf"(?<!\w){re.escape(one)}(?!\w)" for one in sorted(spelled)))
    columns = ["topic", "partition", "epoch", "offset", "data"]
    for *place, data in vault.landing(disposition="dead", columns=columns).iter_rows():
        if not data:
            continue
        try:
            claims = msgspec.json.decode(data, type=_Claims)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            claims = _Claims()
        if isinstance(claims.problem, str) and claims.problem != problem:
            continue
        known = isinstance(claims.predictionid, str) and claims.predictionid in ids
        if known or name in (claims.subject, claims.actor) or word.search(data.decode(errors="replace")):
            yield (place[0], place[1], place[2], place[3])


# --- keys ---------------------------------------------------------------------------------------------------------------------


def destroy(vault: Vault, lake: Lake, traces: Iterable[Traces]) -> int:
    """The keys of these people: of a forgotten subject all, of an actor those of words. Returns how many secrets went."""
    if vault.subjects is None:
        return 0
    keys, count = vault.sealing(), 0
    subjects = {one.person for one in traces if not one.words_only}
    everybody = {one.person for one in traces}
    owners = vault.scan("landing").select(OWNER.alias("owner"), "subject").unique().collect()
    known = set(owners["subject"].drop_nulls())
    for store, table in ((lake, "rows"), (vault, "holdout")):
        known |= set(store.scan(table).select("subject").unique().collect()["subject"].drop_nulls())
    for family, gone, others in (
        ("trainable", subjects, known),
        ("holdout", subjects, known),
        ("vault", everybody, set(owners["owner"].drop_nulls())),
    ):
        if gone:
            count += keys.destroy(family, gone, others)
    keys.mirror(lake.sealing())
    return count


# --- rows ---------------------------------------------------------------------------------------------------------------------


def erase(vault: Vault, lake: Lake, problem: Problem, traces: Traces, *, salt: bytes) -> dict[str, int]:
    """Delete the traces and rejoin what only loses words. Returns rows changed, by table. `salt` parts subjects into splits.

    Of a landed event stays that it was there, under its id (so that it does not land again), without who and what; of a dead
    letter only its place and reason.
    """
    counts = {"landing": 0, "dead": 0, "rows": 0, "holdout": 0, "samples": 0, "rejoined": 0}
    nobody = {"disposition": "'erased'"} | {name: "NULL" for name in ("data", "subject", "actor", "actor_kind", "detail")}
    nothing = nobody | dict.fromkeys(("event_id", "source", "problem"), "''")  # what it claimed may be a name
    for some in _by_place(traces.events):
        counts["landing"] += vault.rewrite("landing", f"({some}) AND disposition IN ('landed', 'duplicate')", nobody)
    for some in _by_place(traces.dead):
        counts["dead"] += vault.rewrite("landing", f"({some}) AND disposition = 'dead'", nothing)
    of = f"problem = {_quoted(problem.name)}"
    for some in _lists("id", (*traces.rows, *traces.touched)):
        counts["rows"] += lake.rewrite("rows", f"{of} AND {some}")
        counts["holdout"] += vault.rewrite("holdout", f"{of} AND {some}")
    for some in _lists("row", traces.rows):
        counts["samples"] += lake.rewrite("samples", f"{of} AND {some}")
    for some in _lists("row", traces.touched):
        counts["samples"] += lake.rewrite("samples", f"{of} AND {some} AND actor = {_quoted(traces.person)}")
    counts["rejoined"] = _rejoin(vault, lake, problem, traces.touched, salt)
    _datasets(lake, problem.name, traces)
    return counts


def _rejoin(vault: Vault, lake: Lake, problem: Problem, ids: Sequence[str], salt: bytes) -> int:
    """The states of these predictions from what is left of their events."""
    if not ids:
        return 0
    wanted = pl.Series("prediction_id", list(ids))
    left = vault.holding("landing", "prediction_id", wanted).filter(
        pl.col("problem") == problem.name, pl.col("disposition") == "landed", pl.col("prediction_id").is_in(wanted.implode())
    )
    events = vault.opened(left.collect(), "data", OWNER).filter(pl.col("data").is_not_null())
    states = join(events, problem, salt=salt, revision=int(vault.version("landing") or 0))
    states = sealed_states(vault, lake, states.select(list(ROWS)))
    holdout = pl.col("split") == str(Split.HOLDOUT)
    for store, table, mine in ((lake, "rows", ~holdout), (vault, "holdout", holdout)):
        fresh = states.filter(mine)
        there = store.holding(table, "id", fresh["id"]).select("problem", "id").collect()  # killed after this: not twice
        store.append(table, fresh.join(there, on=["problem", "id"], how="anti"))
    return states.height


def _datasets(lake: Lake, problem: str, traces: Traces) -> None:
    """The records of dataset versions say which rows are gone, and name the person no more among the raters."""
    stored = lake.read("datasets", ["id", "seq", "json"], pl.col("problem") == problem)
    named = stored.filter(pl.col("json").str.contains(traces.person, literal=True) | pl.col("id").is_in(list(traces.datasets)))
    if not named.height:
        return
    found = lake.records("datasets", DatasetVersion, problem=problem)
    fresh = []
    for one in found:
        if one.digest in set(named["id"]):
            gone = (
                one.erased if one.digest not in traces.datasets else tuple(sorted({*one.erased, *traces.rows, *traces.touched}))
            )
            raters = {actor: share for actor, share in one.raters.items() if actor != traces.person}
            fresh.append(msgspec.structs.replace(one, erased=gone, raters=raters))
    lake.record("datasets", fresh)
    for some in _lists("id", sorted(set(named["id"]))):
        lake.rewrite("datasets", f"problem = {_quoted(problem)} AND {some} AND seq <= {int(named['seq'].max() or 0)}")  # type: ignore[arg-type]


# --- files --------------------------------------------------------------------------------------------------------------------


def leftovers(stores: Mapping[str, Store]) -> dict[str, list[str]]:
    """Data files that no newest version holds, by `store/table`: what may still hold what was erased."""
    found = {f"{place}/{table}": stores[place].leftovers(table) for place, table in TABLES if place in stores}
    return {table: files for table, files in found.items() if files}


def purge(stores: Mapping[str, Store], files: Mapping[str, Sequence[str]]) -> int:
    """Delete them; those that a table holds again stay."""
    return sum(stores[name.partition("/")[0]].purge(name.partition("/")[2], some) for name, some in files.items())


# --- SQL ----------------------------------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _lists(column: str, values: Iterable[str]) -> Iterator[str]:
    rest = iter(values)
    while some := list(islice(rest, 1000)):
        yield f"{column} IN ({', '.join(map(_quoted, some))})"


def _by_place(places: Iterable[Place]) -> Iterator[str]:
    """Positions in the log, a thousand a time: they name nobody."""
    rest = iter(places)
    while some := list(islice(rest, 1000)):
        logs: dict[tuple[str, int, int], list[int]] = {}
        for topic, partition, epoch, offset in some:
            logs.setdefault((topic, partition, epoch), []).append(offset)
        yield " OR ".join(
            f'(topic = {_quoted(topic)} AND partition = {partition} AND epoch = {epoch} AND "offset" IN '
            f"({', '.join(map(str, offsets))}))"
            for (topic, partition, epoch), offsets in sorted(logs.items())
        )
