"""Rows that no verdict under the present champion was worked out on: evidence that can't have been learned from.

See `ledger` for when they are asked. A person's rows stay together: whoever was judged on before is not unseen because another
row about her has come.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from truing.tasks.evaluation.answers import Predictor, ask, holdout
from truing.tasks.evaluation.comparison import assess
from truing.tasks.evaluation.gate import holds_on
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem, seconds
from truing.tasks.records import Unseen

if TYPE_CHECKING:
    import polars as pl

    from truing.tasks.evaluation.evidence import Evidence


def part(rows: pl.DataFrame, problem: Problem, *, until: float, now: float) -> tuple[pl.DataFrame, pl.DataFrame, float]:
    """The rows that verdicts were shown on until then, the judging ones that came since, and the coverage of all together."""
    import polars as pl

    chosen, judged = holdout(rows, problem, now)
    due = judged | (chosen["asked_at"].cast(pl.Float64) <= now - seconds(problem.maturity.outcome))
    late = judged & (chosen["matured_at"] > until).fill_null(False)
    known = chosen["subject"].is_in(chosen["subject"].filter(judged & ~late).unique().to_list())
    shown = chosen.filter(~late & (chosen["asked_at"] <= until))
    return shown, chosen.filter(late & ~known), int(judged.sum()) / max(int(due.sum()), 1)


def confirm(
    rows: pl.DataFrame,
    problem: Problem,
    policy: Policy,
    *,
    candidate: Predictor,
    champion: Predictor,
    anchor: Predictor | None,
    digests: Mapping[str, str | None],
    looks: int,
    looks_anchor: int,
    now: float,
    evidence: Evidence | None = None,
) -> Unseen:
    """What the unseen rows say of a candidate: how many they are, and whether it would pass on them alone. Nothing else."""
    if rows.is_empty():
        return Unseen(n=0, holds=False)
    answers = ask(
        rows, problem, policy, candidate=candidate, champion=champion, none=None, anchor=anchor, digests=digests, look=1,
        now=now, looks=looks, looks_anchor=looks_anchor, evidence=evidence,
    )  # fmt: skip
    evaluation, scores = assess(answers, problem, policy)
    return Unseen(n=scores.n, holds=holds_on(evaluation, scores, problem, policy))
