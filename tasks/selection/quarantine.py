"""What a blocked candidate had learned from people is held back, so that the loop can go on without it.

A block says that something in the new feedback did harm, not what. Until selection can name the raters, everything that people
(not outcomes) newly taught the blocked candidate stays out. A later outcome on the same row frees it: outcomes are not hearsay.
Where people had said something else about the row before, that earlier word counts again: leaving such rows out instead would
thin out exactly the cases that an attacker picked, and so finish the attack.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import polars as pl

TAUGHT_BY_PEOPLE = ("correction", "rating", "preference", "interaction")


def held_rows(samples: pl.DataFrame, *, blocked: Iterable[str], cleared: Iterable[str]) -> frozenset[tuple[str, str]]:
    """(row id, target) pairs that blocked dataset versions learned from people and no cleared one had before.

    `samples` has the columns dataset, row, target, origin: one line for each row of each dataset version. `blocked` and
    `cleared` are digests of datasets whose candidates were blocked, or passed. A pair that a cleared one holds stays free.
    """
    people = samples.filter(pl.col("origin").is_in(TAUGHT_BY_PEOPLE))
    bad = people.filter(pl.col("dataset").is_in(list(blocked))).select("row", "target").unique()
    good = people.filter(pl.col("dataset").is_in(list(cleared))).select("row", "target").unique()
    return frozenset(bad.join(good, on=["row", "target"], how="anti").iter_rows())


def without_held(rows: pl.DataFrame, held: frozenset[tuple[str, str]]) -> pl.DataFrame:
    """`rows` (schema ROWS) less the words that are held back; an earlier word of people on the same row takes their place.

    Rows whose target now comes from an outcome or a review stay as they are.
    """
    if not held:
        return rows
    table = pl.DataFrame(sorted(held), schema={"id": pl.Utf8, "target": pl.Utf8}, orient="row").with_columns(held=pl.lit(True))
    marked = rows.join(table, on=["id", "target"], how="left")
    out = pl.col("held").fill_null(False) & pl.col("origin").is_in(TAUGHT_BY_PEOPLE)
    bad = marked.filter(out).drop("held")
    earlier = [word for row in bad.iter_rows(named=True) if (word := _before(row, held)) is not None]
    if not earlier:
        return marked.filter(~out).drop("held")
    restored = bad.update(pl.DataFrame(earlier, schema={name: bad.schema[name] for name in earlier[0]}), on="id", how="inner")
    return pl.concat([marked.filter(~out).drop("held"), restored.select(rows.columns)])


def _before(row: dict[str, Any], held: frozenset[tuple[str, str]]) -> dict[str, Any] | None:
    """The latest correction or confirming rating in the row's history that is not held back."""
    history = msgspec.json.decode(row["feedback"] or "{}").get("history", [])
    for kind, time, actor, value, *_ in reversed(history):
        confirms = kind == "rating" and value >= 0.5 and row["answer_label"] is not None
        label = value if kind == "correction" else row["answer_label"] if confirms else None
        if label is not None and (row["id"], label) not in held:
            return {"id": row["id"], "target": label, "origin": kind, "actor": actor, "labelled_at": time}
    return None
