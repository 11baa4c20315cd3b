"""Tags: which labelled rows are high-confidence samples, and why the others are not.

A row is *confident* when somebody said something definite about it (a rating of at least `min_rating`, a correction or an
outcome) **and** the calibrated confidence of the answer that was served is at least `min_confidence`. People's words teach only
then. Outcomes and blind reviews are what became true, so they teach in any case; their tag still says "unsure answer".

Why: rows that are missing by their confidence are missing exactly where the model has most to learn. Adult, Brier score after
four clean rounds, mean of 4 seeds, at min_confidence 0.55 / 0.7 / 0.8 / 0.9: as here 0.0948 / 0.0957 / 0.0963 / 0.0973; with
unsure outcomes left out too 0.0949 / 0.0959 / 0.0970 / 0.0988. So keep the threshold low, and never sieve outcomes by it.

Interactions (a click, a minute of reading) teach nothing by default, and little where the policy gives them a weight: they say
that an answer was seen, and they can only ever confirm it, so a model that learns from them learns what it said itself.
"""

from __future__ import annotations

from functools import reduce

import polars as pl

from truing.tasks.policy import Policy, Selection
from truing.tasks.records import Origin, Split
from truing.tasks.selection.caps import capped

TRUE = (str(Origin.OUTCOME), str(Origin.REVIEW))
PEOPLE = (str(Origin.CORRECTION), str(Origin.RATING))
WEAK = str(Origin.INTERACTION)
HEARSAY = (
    Selection().people_weight
)  # on Adult with 3 % wrong words 0.5 and 1 teach alike (Brier ± 0.0001); half is half a lever
UNSURE = ", unsure answer"  # suffix of the reason of a row that teaches although its answer was not confident


def tag(rows: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """`rows` (schema ROWS) with four more columns, order kept.

    keep    bool: may teach
    reason  what speaks for it ("outcome", "correction", "rating", "trusted"; perhaps with ", unsure answer", ", capped") or
            against it
    score   0..1: calibrated confidence of the served answer; 1 for trusted rows, 0 where none was served
    weight  1.0 for trusted rows, outcomes and reviews, `people_weight` for people's words, `interaction_weight` for
            interactions, 0.0 where not kept; less where one actor or subject would outweigh the rest (caps.py)
    """
    rules = policy.selection
    trusted = pl.col("split") == str(Split.TRUSTED)
    true = pl.col("origin").is_in(TRUE).fill_null(False)
    rating = pl.col("feedback").str.json_path_match("$.rating").cast(pl.Float64, strict=False).fill_null(0.0)
    weak = (pl.col("origin") == WEAK).fill_null(False)
    may = [name for names, weight in ((PEOPLE, rules.people_weight), ((WEAK,), rules.interaction_weight)) if weight
           for name in names]  # fmt: skip
    sure = pl.col("answer_confidence").fill_null(0.0) >= rules.min_confidence
    against: list[tuple[pl.Expr, str]] = [
        (pl.col("target").is_null() | pl.col("origin").is_null(), "no label"),
        (pl.col("split").is_in([str(Split.HOLDOUT), str(Split.VALIDATION)]), "judges, never teaches"),
        (~trusted & ~pl.col("origin").is_in([*TRUE, *PEOPLE, *may]).fill_null(False), "not a rating, correction or outcome"),
        (~trusted & ~pl.col("origin").is_in([*TRUE, *may]).fill_null(False), "people's words do not teach here"),
        ((pl.col("origin") == str(Origin.RATING)) & (rating < rules.min_rating), f"rating below {rules.min_rating:g}"),
        (~trusted & ~true & pl.col("answer_confidence").is_null(), "no answer served"),
        (~trusted & ~true & ~sure, f"confidence below {rules.min_confidence:g}"),
    ]
    by_origin = pl.col("origin") + pl.when(sure).then(pl.lit("")).otherwise(pl.lit(UNSURE))
    reason = pl.when(trusted).then(pl.lit("trusted")).otherwise(by_origin)
    reason = reduce(lambda so_far, rule: pl.when(rule[0]).then(pl.lit(rule[1])).otherwise(so_far), reversed(against), reason)
    keep = ~reduce(lambda one, other: one | other, (condition for condition, _ in against))
    score = pl.when(trusted).then(1.0).otherwise(pl.col("answer_confidence").fill_null(0.0))
    keep = keep.fill_null(False)
    said = pl.when(weak).then(rules.interaction_weight).otherwise(rules.people_weight)
    weight = pl.when(~keep).then(0.0).when(trusted | true).then(1.0).otherwise(said)
    tagged = rows.with_columns(keep=keep, reason=reason, score=score, weight=weight)
    people = ~trusted & pl.col("origin").is_in([*PEOPLE, WEAK]).fill_null(False)
    most = max(rules.people_weight, rules.interaction_weight)
    for by, share in (("actor", rules.actor_share), ("subject", rules.subject_share)):
        tagged = capped(tagged, by, share, people=people, weight=most)
    return tagged
