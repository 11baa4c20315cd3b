"""What blind reviewers are asked: the rows that the gateway's sampler drew and those of open plans, in one mixed order.

A reviewer sees a row's inputs and the labels to choose from. Not what any model answered, nor whether chance or disagreement
brought the row here: both would move the label. Some rows come back for a second reviewer, which is how the reviewers' own
error becomes known; no one reads a row twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from truing.tasks.evaluation.audit import Plan, ranks
from truing.tasks.evaluation.evidence import readings
from truing.tasks.problem import Problem
from truing.tasks.records import Origin, Record

if TYPE_CHECKING:
    import polars as pl


class Question(Record, frozen=True):
    """One row to be read: its prediction id and what the model was asked, nothing of what it answered."""

    id: str
    inputs: dict[str, Any]


def questions(
    rows: pl.DataFrame, problem: Problem, plans: Sequence[Plan], *, reader: str, double: float, open_only: bool = True
) -> list[Question]:
    """The holdout rows that `reader` may be asked about, in an order of the reader's own.

    Args:
        rows: newest state of each holdout row (schema ROWS), unlabelled ones too.
        plans: those whose labels are still wanted.
        reader: the hash under which this reviewer's words arrive.
        double: share of the randomly drawn rows that are read twice; a plan names its own.
        open_only: leave out what has been read often enough.
    """
    wanted = wanted_readings(rows, problem, plans, double=double)
    out = []
    for id, content, said, origin in rows.select("id", "content", "feedback", "origin").iter_rows():
        times = wanted.get(id, 0)
        if not times or content is None:
            continue
        words = readings(said)
        if reader in words or (open_only and (origin == str(Origin.OUTCOME) or len(words) >= times)):
            continue
        out.append(Question(id=id, inputs=_shown(msgspec.json.decode(content), problem)))
    order = np.argsort(ranks([one.id for one in out], f"order {problem.name} {reader}"), kind="stable")
    return [out[int(i)] for i in order]


def wanted_readings(rows: pl.DataFrame, problem: Problem, plans: Sequence[Plan], *, double: float) -> dict[str, int]:
    """How many reviewers are to read each drawn row."""
    drawn = rows.filter(rows["audit"].fill_null(False))["id"].to_list()
    share = ranks(drawn, f"twice {problem.name}").astype(np.float64) / 2.0**64
    wanted = {id: 2 if point < double else 1 for id, point in zip(drawn, share.tolist(), strict=True)}
    for plan in plans:
        twice = set(plan.twice)
        for id in plan.drawn:
            wanted[id] = max(wanted.get(id, 0), 2 if id in twice else 1)
    return wanted


def finished(plan: Plan, rows: pl.DataFrame, *, now: float) -> bool:
    """Has every row of the plan been read as often as it asks, or got its outcome meanwhile, and may it judge by now?

    A word that comes before the row's outcome could have come judges no earlier than that (`matured_at`).
    """
    twice, left = set(plan.twice), set(plan.drawn)
    for id, said, origin, matured_at in rows.select("id", "feedback", "origin", "matured_at").iter_rows():
        known = origin == str(Origin.OUTCOME) or len(readings(said)) >= (2 if id in twice else 1)
        if id in left and known and matured_at is not None and matured_at <= now:
            left.discard(id)
    return not left


def _shown(inputs: dict[str, Any], problem: Problem) -> dict[str, Any]:
    """Inputs of the problem only: whatever else stands in the content may give the answer away."""
    return {name: inputs.get(name) for name in problem.inputs}
