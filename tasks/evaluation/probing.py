"""Asking the models again with other inputs: counterfactuals and importance, on a sample of the rows that judge.

Indicators, not clauses: they say where to look and travel with the version. A few hundred milliseconds at any number of rows.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from truing.tasks.evaluation.answers import Answered, Measured, Predictor
from truing.tasks.evaluation.counterfactual import Score, table_effects
from truing.tasks.evaluation.importance import importance, shift
from truing.tasks.kinds.model import Model
from truing.tasks.kinds.tabular import decode
from truing.tasks.problem import Problem
from truing.tasks.records import Origin
from truing.tasks.statistics.cells import Bools, Floats

if TYPE_CHECKING:
    import polars as pl

SWAPPED = 1000  # rows asked about as somebody else
SHUFFLED = 1000  # rows whose columns are shuffled, one after the other
TRUE = (str(Origin.OUTCOME), str(Origin.REVIEW))


def probe(
    rows: pl.DataFrame,
    problem: Problem,
    *,
    candidate: Predictor,
    parent: Predictor | None,
    seed: int,
    now: float,
) -> Measured:
    """What swapped and shuffled inputs show, on rows that may judge. Same arguments, same numbers.

    `rows` as in `answers.ask`; `parent` is the model whose reasons the candidate's are compared with.
    """
    import polars as pl

    known = rows.filter(
        pl.col("content").is_not_null()
        & pl.col("target").is_in(list(problem.labels))
        & pl.col("origin").is_in(TRUE)
        & (pl.col("matured_at") <= now)
    ).sort("id")
    drawn = np.random.default_rng(seed).permutation(known.height)[: max(SWAPPED, SHUFFLED)]
    known = known[drawn.tolist()]
    inputs: list[dict[str, Any]] = [msgspec.json.decode(content) for content in known["content"].to_list()]
    groups = [json.loads(one or "{}") for one in known["groups"].to_list()]
    buckets = {name: [one.get(name, "unknown") for one in groups] for name in problem.groups}
    positive = np.array([target == problem.positive for target in known["target"].to_list()], dtype=bool)
    units = Units()
    scores = {"candidate": scored(candidate, problem, units)}
    if parent is not None:
        scores["parent"] = scored(parent, problem, units)
    some = slice(0, SHUFFLED)
    read = [name for name in problem.inputs if name not in problem.unread]
    shares = importance(inputs[some], positive[some], read, scores, seed=seed)
    part = slice(0, SWAPPED)
    return Measured(
        counterfactual=table_effects(
            problem, inputs[part], {name: each[part] for name, each in buckets.items()}, scores["candidate"]
        ),
        importance=shares["candidate"],
        importance_shift=shift(shares["candidate"], shares["parent"]) if parent is not None else None,
    )


class Units:
    """The units of the rows encoded last: models on one encoder are asked the same rows in turn, and encoding is what costs."""

    def __init__(self) -> None:
        self.rows: list[Any] | None = None
        self.encoder: Any = None
        self.matrix: Any = None

    def of(self, model: Model, rows: list[Any]) -> Any:
        if self.rows is not rows or self.encoder is None or self.encoder.digest != model.encoder.digest:
            self.rows, self.encoder, self.matrix = rows, model.encoder, model.encoder.encode(rows)
        return self.matrix


def scored(model: Predictor, problem: Problem, units: Units | None = None) -> Score:
    """A model as a function from inputs to the positive label's probability and whether it is the answer."""

    def score(inputs: list[Any]) -> tuple[Floats, Bools]:
        said: Answered
        if units is not None and isinstance(model, Model) and inputs:
            p = model.probabilities(units.of(model, inputs))
            said = decode(model.card.labels, p, model.thresholds(inputs))
        else:
            said = model.predict(inputs)
        labels = list(getattr(model, "problem_labels", problem.labels))
        chance = np.asarray(said.probabilities, dtype=float)[:, labels.index(problem.positive)]
        return chance, np.array([label == problem.positive for label in said.labels], dtype=bool)

    return score
