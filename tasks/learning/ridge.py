"""The fast learner: one Newton step of penalised logistic regression from a frozen reference, in closed form.

Least squares on labels is cruder than log loss, and log loss has no closed form. But one Newton step has, if its starting point
is frozen: with the reference's probabilities p (n, k) and scores η, every row adds v u uᵀ to a gram matrix and
u (v η + y - p)ᵀ to the cross products, and the step is a ridge solution, W = (Σ v u uᵀ + λ)⁻¹ Σ u (v η + y - p)ᵀ. The
reference is the genesis head, frozen like the encoder; with 13,000 rows of Adult one step is as good as iterating to the end.
Without a reference p is uniform, and the step is plain ridge regression onto the labels.

Sums forget their order: an update adds rows, `subtract` takes them out again, and the result equals never having seen them (to
rounding; float64). u has a constant 1 appended; v = Σ p(1 - p) / (k - 1) is exact for two labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from truing.tasks.kinds.model import Head
from truing.tasks.learning.calibration import brier, calibrate, identity
from truing.tasks.learning.protocol import Batch, Found, Params, Range

Floats = NDArray[np.float64]
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)  # lambda; units have norm 1 and v <= 1/2, so it counts in half rows
STEP = 4096  # rows turned to float64 at once
LEAST = 0.1  # smallest v: where the reference is very sure, one step of Newton would overshoot on a single wrong label


@dataclass(frozen=True)
class Sums:
    """`gram` (d+1, d+1), `cross` (d+1, k), `rows` = summed weights."""

    gram: Floats
    cross: Floats
    rows: float

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.gram + other.gram, self.cross + other.cross, self.rows + other.rows)

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.gram - other.gram, self.cross - other.cross, self.rows - other.rows)


class Ridge:
    """Implements `truing.tasks.learning.protocol.Learner`. `reference` is a linear head in calibrated log-odds, or None."""

    name = "fast"

    def __init__(self, reference: Head | None = None) -> None:
        self.reference = reference

    def space(self) -> dict[str, Range]:
        return {"penalty": Range(PENALTIES[0], PENALTIES[-1], log=True)}

    def fit(self, batch: Batch, *, labels: int, params: Params | None = None, seed: int = 0, threads: int = 1) -> Sums:
        width = batch.units.shape[1] + 1
        state = Sums(np.zeros((width, width)), np.zeros((width, labels)), 0.0)
        return self.update(state, batch)

    def update(self, state: Sums, batch: Batch, *, params: Params | None = None, seed: int = 0, threads: int = 1) -> Sums:
        return state + self._sums(batch, state.cross.shape[1])

    def subtract(self, state: Sums, batch: Batch) -> Sums:
        return state - self._sums(batch, state.cross.shape[1])

    def head(self, state: Sums, params: Params) -> Head:
        weights = np.linalg.solve(_penalised(state, params["penalty"]), state.cross)
        return Head(weight=weights[:-1].astype(np.float32), bias=weights[-1].astype(np.float32))

    def left_out(self, state: Sums, batch: Batch, params: Params) -> Floats:
        """Scores (n, k) that each row of `batch`, all of them in `state`, would get had it alone been left out.

        The leave-one-out identity of weighted ridge, exact for the step: z - (z - ŷ) / (1 - h), with the working response
        z = η + (y - p) / v and the leverage h = w v uᵀ(G + λ)⁻¹u.
        """
        labels = state.cross.shape[1]
        inverse = np.asarray(np.linalg.inv(_penalised(state, params["penalty"])), np.float64)
        weights = inverse @ state.cross
        scores = np.empty((len(batch.targets), labels))
        for start in range(0, len(scores), STEP):
            part = batch.take(np.arange(start, min(start + STEP, len(scores))))
            units, variance, working = self._working(part, labels)
            leverage = np.einsum("ij,ij->i", units @ inverse, units) * variance * part.weights
            response = working / variance[:, None]
            scores[start : start + STEP] = response - (response - units @ weights) / np.maximum(1 - leverage, 1e-6)[:, None]
        return scores

    def tune(
        self,
        state: Sums,
        batch: Batch,
        evidence: Batch,
        *,
        trials: int = len(PENALTIES),
        seed: int = 0,
        threads: int = 1,
        judging: NDArray[np.bool_] | None = None,
    ) -> Found:
        """Choose lambda; a grid of five needs no search. Scores are those of `evidence`, then of the left-out `judging` rows.

        `judging` (n,) marks rows of `batch` that may judge too, each as if it alone had been left out.
        """
        whole = self.update(state, batch)
        left = batch.take(np.zeros(len(batch.targets), bool) if judging is None else judging)
        targets = np.concatenate([evidence.targets, left.targets])
        tried: list[tuple[float, float, Found]] = []
        for penalty in PENALTIES:
            head = self.head(whole, {"penalty": penalty})
            scores = np.concatenate([head.scores(evidence.units), self.left_out(whole, left, {"penalty": penalty})])
            score = brier(calibrate(scores, targets).probabilities(scores), targets)
            tried.append((score, penalty, Found(head, {"penalty": penalty}, scores)))
        return min(tried, key=lambda entry: entry[:2])[2]

    def _sums(self, batch: Batch, labels: int) -> Sums:
        width = batch.units.shape[1] + 1
        gram, cross = np.zeros((width, width)), np.zeros((width, labels))
        for start in range(0, len(batch.targets), STEP):
            part = batch.take(np.arange(start, min(start + STEP, len(batch.targets))))
            units, variance, working = self._working(part, labels)
            gram += (units * (part.weights * variance)[:, None]).T @ units
            cross += (units * part.weights[:, None]).T @ working
        return Sums(gram, cross, float(batch.weights.sum()))

    def _working(self, batch: Batch, labels: int) -> tuple[Floats, Floats, Floats]:
        """Units with a 1 appended (n, d+1), v (n,) and v η + y - p (n, k)."""
        units = np.hstack([batch.units.astype(np.float64), np.ones((len(batch.units), 1))])
        scores = np.zeros((len(units), labels)) if self.reference is None else self.reference.scores(batch.units)
        scores = scores - scores.mean(axis=1, keepdims=True)
        p = identity(labels).probabilities(scores)
        variance = np.maximum((p * (1 - p)).sum(axis=1) / (labels - 1), LEAST)
        return units, variance, variance[:, None] * scores + np.eye(labels)[batch.targets] - p


def _penalised(state: Sums, penalty: float) -> Floats:
    """The constant is not penalised; an empty state still has a solution."""
    ridge = state.gram.copy()
    ridge[np.diag_indices(len(ridge) - 1)] += penalty
    ridge[-1, -1] += 1e-9
    return ridge
