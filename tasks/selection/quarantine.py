"""What a blocked candidate had learned from people is held back, so that the loop can go on without it.

A block says that something in the new feedback did harm, not what. Until selection can name the raters, everything that people
(not outcomes) newly taught the blocked candidate stays out. A later outcome on the same row frees it: outcomes are not hearsay.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

TAUGHT_BY_PEOPLE = ("correction", "rating", "preference", "interaction")


def held_rows(samples: pl.DataFrame, *, blocked: Iterable[str], cleared: Iterable[str]) -> frozenset[tuple[str, str]]:
    """(row id, target) pairs that blocked dataset versions learned from people and no cleared one had before.

    `samples` has the columns dataset, row, target, origin: one line for each row of each dataset version. `blocked` and `cleared`
    are dataset digests whose candidates were blocked, or passed. A pair that a cleared version holds is not held back.
    """
    people = samples.filter(pl.col("origin").is_in(TAUGHT_BY_PEOPLE))
    bad = people.filter(pl.col("dataset").is_in(list(blocked))).select("row", "target").unique()
    good = people.filter(pl.col("dataset").is_in(list(cleared))).select("row", "target").unique()
    return frozenset(bad.join(good, on=["row", "target"], how="anti").iter_rows())


def without_held(rows: pl.DataFrame, held: frozenset[tuple[str, str]]) -> pl.DataFrame:
    """`rows` (columns id, target, origin) less what is held back. Rows whose target now comes from an outcome stay."""
    if not held:
        return rows
    table = pl.DataFrame(sorted(held), schema={"id": pl.Utf8, "target": pl.Utf8}, orient="row").with_columns(held=pl.lit(True))
    marked = rows.join(table, on=["id", "target"], how="left")
    return marked.filter(
        pl.col("held").is_null() | ~pl.col("origin").is_in(TAUGHT_BY_PEOPLE)
    ).drop("held")
