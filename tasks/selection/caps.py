"""How much one voice may weigh in what is learned: nobody's words, and nobody's words about one person, outweigh the rest.

A token proves that somebody may speak about one prediction, not who speaks, so actors can be invented. What they can't invent
is predictions: each row has one target and one weight, however many people spoke about it (`[parking] voices`). So a crowd of
invented actors is worth the tokens it holds; one actor with many tokens meets the cap of actors, many actors with tokens about
one person meet the cap of subjects. Weights are scaled down, rows stay: what was said is not thrown away for being much.
"""

from __future__ import annotations

import polars as pl

FREE = 20  # rows that anybody may teach, however small the dataset is: shares of a handful of rows mean nothing
CAPPED = ", capped"  # suffix of the reason of a row whose weight was scaled down


def capped(tagged: pl.DataFrame, by: str, share: float, *, people: pl.Expr, weight: float) -> pl.DataFrame:
    """`tagged` (columns keep, reason, weight) with the weights of people's rows scaled so that no value of column `by` holds
    more than `share` (0..1) of the whole weight, `FREE` rows of `weight` apart. Null in `by` is one value: to give no name
    is no way around. With fewer than 1/share voices and nothing beside them, those at the top weigh alike.
    """
    taught = pl.col("keep") & people
    each = tagged.filter(taught).group_by(by).agg(pl.col("weight").sum()).sort("weight", descending=True)
    weights = each["weight"].to_list()
    level = _level(weights, float(tagged["weight"].sum()), share, FREE * weight)
    if not weights or weights[0] <= level * (1 + 1e-9):
        return tagged
    factors = each.select(by, factor=(level / pl.col("weight")).clip(upper_bound=1.0))
    joined = tagged.join(factors, on=by, how="left", nulls_equal=True, maintain_order="left")
    cut = taught & (pl.col("factor") < 1.0)
    return joined.with_columns(
        weight=pl.when(cut).then((pl.col("weight") * pl.col("factor")).round(6)).otherwise(pl.col("weight")),
        reason=pl.when(cut).then(pl.col("reason") + CAPPED).otherwise(pl.col("reason")),
    ).drop("factor")


def _level(weights: list[float], total: float, share: float, free: float) -> float:
    """The most that one may weigh: with k of them at level L, L = share · (rest + k · L). `weights` fall."""
    rest = total
    for k, weight in enumerate(weights):
        room = 1.0 - k * share
        level = max(share * rest / room, free) if room > 1e-9 else max(weight, free)
        if weight <= level:
            return level
        rest -= weight
    room = 1.0 - len(weights) * share
    return max(share * max(rest, 0.0) / room, free) if room > 1e-9 else max(weights[-1], free) if weights else free
