"""Words that have no row to stand in: what waits for its prediction, what was set aside, and why. Nothing is lost silently.

    parked   its prediction has not landed, and may still
    expired  it waited as long as words of its type wait, and no prediction came
    waited   its prediction came after that
    late     it was said longer after the question than words of its type may be
    voices   as many other people had spoken about this prediction before as count
    twice    it landed before (the door's memory is finite)

A view of `landing`, as dead letters are: the events themselves stand there, whatever becomes of them. The join decides by the
same rules, given in `problem.toml [parking]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, get_args

import polars as pl

from truing.tasks.events.schema import PEOPLE
from truing.tasks.problem import Problem, Word
from truing.tasks.tables.lake import Vault

WORDS: tuple[str, ...] = get_args(Word)
REASONS = ("parked", "expired", "waited", "late", "voices", "twice")
_ORDER = ("landed_at", "topic", "epoch", "partition", "offset")
_KEY = ("problem", "prediction_id")


def set_aside(vault: Vault, problems: Mapping[str, Problem], *, now: float) -> pl.DataFrame:
    """One line for each landed word without a row to stand in, in the order of landing, at `now` (Unix seconds).

    Columns: problem, reason (one of REASONS), detail, prediction_id, type, source, actor (keyed hash), time, landed_at, topic,
    partition, epoch, offset, event_id. Reads a few columns of the whole landing table, never `data`: for people's questions,
    not for every step of the loop.
    """
    landing = vault.scan("landing").filter(
        pl.col("disposition") == "landed", pl.col("prediction_id").is_not_null(), pl.col("problem").is_in(list(problems))
    )
    asked = (
        landing.filter(pl.col("type") == "prediction")
        .select(*_KEY, *_ORDER, pl.col("time").alias("asked_at"))
        .sort(_ORDER)
        .unique(_KEY, keep="first", maintain_order=True)
        .select(*_KEY, "asked_at", pl.col("landed_at").alias("came_at"))
    )
    columns = (*_KEY, "type", "source", "actor", "time", "landed_at", "topic", "partition", "epoch", "offset", "event_id")
    words = landing.filter(pl.col("type").is_in(WORDS)).select(columns).join(asked, on=list(_KEY), how="left")
    words = words.with_columns(
        wait=_limit(problems, Problem.wait_s), most_late=_limit(problems, Problem.late_s),
        people=pl.col("type").is_in(list(PEOPLE)),
    )  # fmt: skip
    voices = pl.col("problem").replace_strict({name: one.parking.voices for name, one in problems.items()}, default=1)
    waited = pl.col("came_at") - pl.col("landed_at") > pl.col("wait")
    late = pl.col("time") - pl.col("asked_at") > pl.col("most_late")
    expired = pl.col("came_at").is_null() & (now - pl.col("landed_at") > pl.col("wait"))
    identity = [*_KEY, "people", "source", "event_id"]  # of one prediction, so types of people share their ids as at the door
    words = _candidates(words.collect(), identity, voices, late | waited).lazy().sort(_ORDER)
    rules: list[tuple[str, pl.Expr]] = [
        ("twice", pl.col("landed_at").cum_count().over(identity) > 1),
        ("expired", expired),
        ("parked", pl.col("came_at").is_null()),
        ("late", late),
        ("waited", waited),
    ]
    words = words.with_columns(reason=_first(rules, pl.lit("")))
    counted = words.filter(pl.col("people"), pl.col("reason") == "").select(*_KEY, "actor").unique(maintain_order=True)
    unheard = (
        counted.with_columns(number=pl.int_range(pl.len()).over(_KEY))
        .filter(pl.col("number") >= voices)
        .select(*_KEY, "actor", people=pl.lit(value=True), unheard=pl.lit(value=True))
    )
    words = words.join(unheard, on=[*_KEY, "actor", "people"], how="left", nulls_equal=True, maintain_order="left")
    reason = pl.when((pl.col("reason") == "") & pl.col("unheard")).then(pl.lit("voices")).otherwise(pl.col("reason"))
    found = words.with_columns(reason=reason).filter(pl.col("reason") != "")
    days = {name: pl.col(name).truediv(86400.0).round(1).cast(pl.String) for name in ("wait", "most_late")}
    detail = _first(
        [
            ("waits for its prediction", pl.col("reason") == "parked"),
            ("no prediction came within " + days["wait"] + " days", pl.col("reason") == "expired"),
            ("its prediction came after more than " + days["wait"] + " days", pl.col("reason") == "waited"),
            ("said more than " + days["most_late"] + " days after the question", pl.col("reason") == "late"),
            ("as many people as count had spoken before", pl.col("reason") == "voices"),
        ],
        pl.lit("it landed before"),
    )
    return found.select("problem", "reason", detail.alias("detail"), *columns[1:]).collect()


def _candidates(words: pl.DataFrame, identity: Sequence[str], voices: pl.Expr, untimely: pl.Expr) -> pl.DataFrame:
    """All that may be set aside, with what it is compared to: a handful of a million words, so the rest need no sorting."""
    crowds = (
        words.filter("people").group_by(_KEY).agg(pl.col("actor").n_unique().alias("actors")).filter(pl.col("actors") > voices)
    )
    crowded = words.select(_KEY).join(crowds.with_columns(crowded=True), on=list(_KEY), how="left", maintain_order="left")
    again = words.select(name=pl.struct(identity).hash())["name"].is_duplicated()
    return words.filter(pl.col("came_at").is_null() | untimely | again | crowded["crowded"].fill_null(value=False))


def counts(found: pl.DataFrame) -> dict[str, dict[str, int]]:
    """{problem: {reason: words}} of what `set_aside` gives."""
    told: dict[str, dict[str, int]] = {}
    for problem, reason, number in found.group_by("problem", "reason").len().sort("problem", "reason").iter_rows():
        told.setdefault(problem, {})[reason] = number
    return told


def heard(words: Sequence[Any], voices: int) -> set[str | None]:
    """The actors among whom a prediction's words count: the first `voices` in the order given, which is that of landing."""
    found: dict[str | None, None] = {}
    for word in words:
        if len(found) == voices:
            break
        found.setdefault(word.actor)
    return set(found)


def _limit(problems: Mapping[str, Problem], of: Any) -> pl.Expr:
    """Seconds by problem and type."""
    limits = {f"{name} {kind}": of(problem, kind) for name, problem in problems.items() for kind in WORDS}
    key = pl.concat_str("problem", pl.lit(" "), "type")
    return key.replace_strict(limits, default=None, return_dtype=pl.Float64)


def _first(rules: Sequence[tuple[Any, pl.Expr]], other: pl.Expr) -> pl.Expr:
    """What stands beside the first condition that holds."""
    return reduce(
        lambda so_far, rule: pl.when(rule[1]).then(pl.lit(rule[0]) if isinstance(rule[0], str) else rule[0]).otherwise(so_far),
        reversed(rules), other,
    )  # fmt: skip
