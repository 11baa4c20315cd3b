"""Fairer heads in closed form: a blocked model's head plus the smallest correction that brings groups' rates together.

The correction is one Newton step of penalised logistic regression from the blocked model itself, in which every cell (bucket of
the protected attribute × label) has a multiplier. The step's gram and cross products are summed once a cell; any set of
multipliers then costs one linear solve. What comes out does not read the protected attribute: it only says how much each row
counts while learning.

- *Reweighing* (Kamiran & Calders 2012, doi:10.1007/s10115-011-0463-8): multipliers that make bucket and label independent.
- *Constrained*: multipliers are the exponentials of the constraints' multipliers and rise with what is still violated. The loop
  is that of Agarwal et al. 2018 (arXiv:1803.02453) with a closed-form best response; instead of a random mixture of all its
  heads every head on the way is kept, and rows that did not teach choose one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from truing.tasks.errors import DataError
from truing.tasks.kinds.model import Head, Model
from truing.tasks.learning.protocol import Batch
from truing.tasks.learning.ridge import LEAST, STEP

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

PENALTY = 1.0  # pull of the correction to nought, in half rows (units have norm 1)
RATE = 2.0  # log multiplier a constraint gains a round for each 1.0 by which it is violated
TIGHT = 3.0  # how many times faster TPR's gains: pressing FPR together drags TPR along, and this holds it in place
ROUNDS = 20
MOVE = 0.25  # largest change of a log multiplier a round: large gaps are approached, not jumped over and back
MOST = 8.0  # largest multiplier, and the inverse of the smallest: beyond, single rows would carry a whole cell


class Step(NamedTuple):
    """One corrected head: `change` (d+1, k) in calibrated log-odds, the cells' multipliers (b, k), and how it was made."""

    change: Floats
    multipliers: Floats
    method: str
    round: int


@dataclass(frozen=True, eq=False)
class Lever:
    """Everything that corrections of one model by one attribute are made from.

    `batch` (n rows) taught the model; `bucket` (n,) is each row's bucket 0..b-1, -1 where unknown (multiplier 1 always).
    """

    model: Model
    batch: Batch
    bucket: Ints
    buckets: int
    penalty: float = PENALTY

    def __post_init__(self) -> None:
        if len(self.bucket) != len(self.batch.targets) or self.buckets < 2:
            raise DataError(
                f"expected a bucket for each of {len(self.batch.targets)} rows and two buckets, got {len(self.bucket)} rows "
                f"and {self.buckets}; name an attribute with buckets"
            )

    @property
    def labels(self) -> int:
        return len(self.model.card.labels)

    @cached_property
    def logits(self) -> Floats:
        """Calibrated log-odds (n, k) of the rows that taught, by the model as it is."""
        return logits(self.model, self.batch.units)

    @cached_property
    def counts(self) -> Floats:
        """Summed weights of the cells (b, k)."""
        found = np.zeros((self.buckets, self.labels))
        known = self.bucket >= 0
        np.add.at(found, (self.bucket[known], self.batch.targets[known]), self.batch.weights[known])
        return found

    @cached_property
    def _sums(self) -> tuple[dict[tuple[int, int], tuple[Floats, Floats]], Floats, Floats]:
        """Gram and cross products of every cell, and those of the rows of unknown bucket."""
        width = self.batch.units.shape[1] + 1
        cells = {}
        for b in range(-1, self.buckets):
            for y in range(self.labels):
                rows = np.flatnonzero((self.bucket == b) & (self.batch.targets == y))
                gram, cross = np.zeros((width, width)), np.zeros((width, self.labels))
                for start in range(0, len(rows), STEP):
                    units, variance, residual, weights = self._working(rows[start : start + STEP])
                    gram += (units * (weights * variance)[:, None]).T @ units
                    cross += (units * weights[:, None]).T @ residual
                cells[b, y] = gram, cross
        gram, cross = np.zeros((width, width)), np.zeros((width, self.labels))
        for y in range(self.labels):
            unknown = cells.pop((-1, y))
            gram, cross = gram + unknown[0], cross + unknown[1]
        return cells, gram, cross

    def _working(self, rows: Ints) -> tuple[Floats, Floats, Floats, Floats]:
        """Units with a 1 appended (m, d+1), v (m,), y - p (m, k) and weights (m,)."""
        units = np.hstack([self.batch.units[rows].astype(np.float64), np.ones((len(rows), 1))])
        p = softmax(self.logits[rows])
        variance = np.maximum((p * (1 - p)).sum(axis=1) / (self.labels - 1), LEAST)
        return units, variance, np.eye(self.labels)[self.batch.targets[rows]] - p, self.batch.weights[rows]

    def _gram(self, multipliers: Floats) -> Floats:
        cells, gram, _ = self._sums
        whole = gram + sum(multipliers[cell] * one for cell, (one, _) in cells.items())
        diagonal = np.diag_indices(len(whole) - 1)
        whole[diagonal] += self.penalty
        whole[-1, -1] += 1e-9
        return np.asarray(whole, np.float64)

    def solve(self, multipliers: Floats) -> Floats:
        """The correction (d+1, k) in calibrated log-odds for these multipliers (b, k)."""
        cells, _, cross = self._sums
        target = cross + sum(multipliers[cell] * one for cell, (_, one) in cells.items())
        return np.asarray(np.linalg.solve(self._gram(multipliers), target), np.float64)

    @cached_property
    def leverage(self) -> Floats:
        """h (n,) of every row at multipliers of 1: the share of its own working response in its own answer."""
        inverse = np.linalg.inv(self._gram(np.ones((self.buckets, self.labels))))
        found = np.empty(len(self.bucket))
        for start in range(0, len(found), STEP):
            rows = np.arange(start, min(start + STEP, len(found)))
            units, variance, _, weights = self._working(rows)
            found[rows] = np.einsum("ij,ij->i", units @ inverse, units) * variance * weights
        return np.minimum(found, 0.5)

    def left_out(self, step: Step, rows: Ints) -> Floats:
        """Calibrated log-odds (m, k) that `rows` would get had each alone been left out, of the model and of the correction.

        The leave-one-out identity of weighted ridge; leverages are those at multipliers of 1 times the row's own multiplier,
        which is their first order.
        """
        units, variance, residual, _ = self._working(rows)
        own = np.where(self.bucket[rows] >= 0, step.multipliers[self.bucket[rows], self.batch.targets[rows]], 1.0)
        h = np.minimum(self.leverage[rows] * own, 0.5)[:, None]
        response = self.logits[rows] + residual / variance[:, None]
        found: Floats = response - (response - self.logits[rows] - units @ step.change) / (1 - h)
        return found

    def still(self) -> Step:
        """No correction at all: the model as it is."""
        none = np.zeros((self.batch.units.shape[1] + 1, self.labels))
        return Step(none, np.ones((self.buckets, self.labels)), "none", 0)

    def reweighing(self) -> Step:
        """P(bucket)·P(label) / P(bucket, label) as multipliers: what Kamiran and Calders weigh rows by."""
        counts = self.counts
        expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / max(counts.sum(), 1e-12)
        multipliers = np.clip(np.where(counts > 0, expected / np.maximum(counts, 1e-12), 1.0), 1 / MOST, MOST)
        return Step(self.solve(multipliers), multipliers, "reweighing", 0)

    def constrained(
        self, *, parity: bool = False, guide: Bools | None = None, rounds: int = ROUNDS, rate: float = RATE
    ) -> Iterator[Step]:
        """Heads on the way to equal rates of all buckets, from gentle to strict.

        What is made equal: TPR and FPR (equalized odds), or with `parity` the share of positive answers (demographic parity).
        `guide` (n,) marks the rows that say how unequal the rates are (None = all): what people taught may be the very harm.
        """
        told = np.ones(len(self.bucket), bool) if guide is None else guide
        positive = self.model.positive
        log = np.zeros((self.buckets, self.labels))
        others = [label for label in range(self.labels) if label != positive]
        answered = self.answers(self.logits)
        for turn in range(1, rounds + 1):
            yes = (answered == positive).astype(float)
            if parity:
                lacking = self._lacking(yes, told)
                push, pull = rate * lacking, rate * lacking
            else:
                push = TIGHT * rate * self._lacking(yes, told & (self.batch.targets == positive))
                pull = rate * self._lacking(yes, told & (self.batch.targets != positive))
            small = min(1.0, MOVE / max(float(np.abs([push, pull]).max()), 1e-12))
            log[:, positive] += small * push
            log[:, others] -= small * pull[:, None]
            multipliers = np.clip(np.exp(log), 1 / MOST, MOST)
            step = Step(self.solve(multipliers), multipliers, "constrained", turn)
            yield step
            answered = self.answers(shifted(self.logits, self.batch.units, step.change))

    def answers(self, scores: Floats) -> Ints:
        """Label index answered for calibrated log-odds (m, k), by the model's own thresholds."""
        return np.asarray((softmax(scores) / np.array(self.model.card.thresholds)).argmax(axis=1), np.int64)

    def _lacking(self, yes: Floats, rows: Bools) -> Floats:
        """Mean positive rate of all buckets' rows minus each bucket's own (b,); 0 for a bucket without such rows."""
        known = rows & (self.bucket >= 0)
        weights = self.batch.weights[known]
        total = np.bincount(self.bucket[known], weights=weights, minlength=self.buckets)
        hits = np.bincount(self.bucket[known], weights=weights * yes[known], minlength=self.buckets)
        overall = hits.sum() / max(total.sum(), 1e-12)
        return np.where(total > 0, overall - hits / np.maximum(total, 1e-12), 0.0)


def logits(model: Model, units: NDArray[np.float32]) -> Floats:
    """Calibrated log-odds (n, k) of encoded rows."""
    calibration = model.card.calibration
    found: Floats = calibration.temperature * model.head.scores(units) + np.array(calibration.bias)
    return found


def shifted(scores: Floats, units: NDArray[np.float32], change: Floats) -> Floats:
    """Log-odds after a correction."""
    moved: Floats = scores + units @ change[:-1].astype(np.float32) + change[-1]
    return moved


def corrected(model: Model, change: Floats) -> Model:
    """The model with a correction added to its linear head: same encoder, calibration, thresholds and hidden layer."""
    t = model.card.calibration.temperature
    head = msgspec.structs.replace(
        model.head,
        weight=(model.head.weight + change[:-1] / t).astype(np.float32),
        bias=(model.head.bias + change[-1] / t).astype(np.float32),
    )
    return Model(model.card, model.encoder, Head(**head.arrays()), model.reference)


def softmax(scores: Floats) -> Floats:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float64)
