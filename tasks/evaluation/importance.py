"""Permutation importance (Breiman 2001; Fisher, Rudin & Dominici 2019): how much worse the Brier score gets when one input is
shuffled over the rows.

Said as shares of all inputs' losses, so that two models can be compared: `shift` is half the L1 distance of their shares, 0 =
the same reasons, 1 = none in common. A candidate that scores as well as its parent for other reasons shows here first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from truing.tasks.evaluation.counterfactual import Score
from truing.tasks.statistics.cells import Bools


def permuted(inputs: Sequence[Mapping[str, Any]], column: str, order: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """The rows with one column's values handed to others; a row without a value hands on just that."""
    made = []
    for row, other in zip(inputs, order, strict=True):
        one = {name: value for name, value in row.items() if name != column}
        if inputs[other].get(column) is not None:
            one[column] = inputs[other][column]
        made.append(one)
    return made


def importance(
    inputs: Sequence[Mapping[str, Any]],
    positive: Bools,
    columns: Sequence[str],
    scores: Mapping[str, Score],
    *,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Model → column → share (0..1) of the summed Brier losses; all models are asked the same shuffled rows.

    `positive` (n,) is the truth. A shuffle that helps counts as 0; a model that uses nothing has no shares.
    """
    rng = np.random.default_rng(seed)
    if not len(inputs):
        return {name: {} for name in scores}
    plain = list(inputs)
    before = {name: _brier(score, plain, positive) for name, score in scores.items()}
    losses: dict[str, dict[str, float]] = {name: {} for name in scores}
    for column in columns:
        rows = permuted(inputs, column, rng.permutation(len(inputs)))
        for name, score in scores.items():
            losses[name][column] = max(0.0, _brier(score, rows, positive) - before[name])
    found = {}
    for name, each in losses.items():
        total = sum(each.values())
        found[name] = {column: round(loss / total, 6) for column, loss in each.items()} if total > 0 else {}
    return found


def shift(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """Half the L1 distance between two models' shares, 0..1; None where one has none."""
    if not one or not other:
        return None
    return round(sum(abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in {*one, *other}) / 2, 6)


def _brier(score: Score, rows: list[Any], positive: Bools) -> float:
    p, _ = score(rows)
    return float(((p - positive) ** 2).mean())
