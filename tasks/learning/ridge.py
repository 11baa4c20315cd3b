"""The fast learner: ridge regression onto one-hot labels, in closed form, from sums over rows.

The state is the gram matrix Σ w u uᵀ and the cross products Σ w u yᵀ (u with a constant 1 appended). Sums forget their order:
an update adds rows, `subtract` takes them out again, and the result equals never having seen them (to rounding; float64).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from truing.tasks.kinds.model import Head
from truing.tasks.learning.calibration import brier, calibrate
from truing.tasks.learning.protocol import Batch, Params, Progress, Range
from truing.tasks.records import Trial

Floats = NDArray[np.float64]
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # lambda; units have norm 1, so it counts in rows
STEP = 4096  # rows turned to float64 at once


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


def sums(batch: Batch, labels: int) -> Sums:
    width = batch.units.shape[1] + 1
    gram, cross = np.zeros((width, width)), np.zeros((width, labels))
    for start in range(0, len(batch.targets), STEP):
        part = slice(start, start + STEP)
        units = _with_one(batch.units[part])
        weighted = units * batch.weights[part, None]
        gram += weighted.T @ units
        cross += weighted.T @ np.eye(labels)[batch.targets[part]]
    return Sums(gram, cross, float(batch.weights.sum()))


def solve(state: Sums, penalty: float) -> Floats:
    """(d+1, k) weights of the penalised least squares; the constant is not penalised."""
    ridge = state.gram.copy()
    ridge[np.diag_indices(len(ridge) - 1)] += penalty
    ridge[-1, -1] += 1e-9  # an empty state still has a solution
    return np.asarray(np.linalg.solve(ridge, state.cross), np.float64)


def left_out(state: Sums, batch: Batch, penalty: float) -> Floats:
    """Scores (n, k) that each row of `batch`, all of them in `state`, would get had it alone been left out.

    The exact leave-one-out identity of weighted ridge: y - (y - ŷ) / (1 - h), h = w uᵀ(G + λ)⁻¹u.
    """
    weights = solve(state, penalty)
    ridge = state.gram.copy()
    ridge[np.diag_indices(len(ridge) - 1)] += penalty
    ridge[-1, -1] += 1e-9
    inverse = np.asarray(np.linalg.inv(ridge), np.float64)
    scores = np.empty((len(batch.targets), weights.shape[1]))
    for start in range(0, len(scores), STEP):
        part = slice(start, start + STEP)
        units = _with_one(batch.units[part])
        leverage = np.einsum("ij,ij->i", units @ inverse, units) * batch.weights[part]
        truth = np.eye(weights.shape[1])[batch.targets[part]]
        scores[part] = truth - (truth - units @ weights) / np.maximum(1 - leverage, 1e-6)[:, None]
    return scores


class Ridge:
    """Implements `truing.tasks.learning.protocol.Learner`."""

    name = "fast"

    def space(self) -> dict[str, Range]:
        return {"penalty": Range(PENALTIES[0], PENALTIES[-1], log=True)}

    def fit(self, batch: Batch, *, labels: int, params: Params | None = None, seed: int = 0, threads: int = 1) -> Sums:
        return sums(batch, labels)

    def update(self, state: Sums, batch: Batch, *, params: Params | None = None, seed: int = 0, threads: int = 1) -> Sums:
        return state + sums(batch, state.cross.shape[1])

    def subtract(self, state: Sums, batch: Batch) -> Sums:
        return state - sums(batch, state.cross.shape[1])

    def head(self, state: Sums, params: Params) -> Head:
        weights = solve(state, params["penalty"])
        return Head(weight=weights[:-1].astype(np.float32), bias=weights[-1].astype(np.float32))

    def tune(
        self,
        state: Sums,
        batch: Batch,
        evidence: Batch,
        *,
        trials: int = len(PENALTIES),
        seed: int = 0,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> tuple[Head, tuple[Trial, ...]]:
        """Choose lambda on `evidence`, rows that the state has not seen. A grid of six needs no search."""
        best: tuple[float, Head] | None = None
        for penalty in PENALTIES:
            head = self.head(state, {"penalty": penalty})
            scores = head.scores(evidence.units)
            score = brier(calibrate(scores, evidence.targets).probabilities(scores), evidence.targets)
            if best is None or score < best[0]:
                best = (score, head)
        assert best is not None  # noqa: S101 - the grid is not empty
        return best[1], ()


def _with_one(units: NDArray[np.float32]) -> Floats:
    return np.hstack([units.astype(np.float64), np.ones((len(units), 1))])
