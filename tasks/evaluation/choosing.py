"""Rows that choose a repair, and what they say of a model: gap, accuracy, and how much of each clause's limit it uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from truing.tasks.records import Clause
from truing.tasks.statistics.cells import HIGHER_IS_BETTER, Bools, Floats, cells, ratio

FEWEST = 30  # rows in a rate's denominator below which a bucket does not count in a gap


@dataclass(frozen=True)
class Measure:
    """One model on the rows that choose: `gap` (equalized-odds or demographic-parity difference), accuracy, Brier score, and
    each clause's drop against the champion in limits (1 = all used up)."""

    gap: float
    accuracy: float
    brier: float
    used: dict[str, float]


@dataclass(frozen=True, eq=False)
class Choosing:
    """Validation rows (`units`), then `taught` ones (indices into the samples); all with a true outcome, `truth` (m,).

    `buckets` are the slices between which the gap is taken: the larger spread of TPR and FPR, or with `parity` the spread of
    selection rates. `reference` holds the champion's value for each clause.
    """

    units: NDArray[np.float32]
    taught: NDArray[np.int64]
    truth: Bools
    slices: dict[str, Bools]
    positive: int
    buckets: tuple[str, ...]
    parity: bool = False
    clauses: tuple[Clause, ...] = ()
    reference: Mapping[str, float] = field(default_factory=dict)

    def measure(self, p: Floats, cuts: Floats) -> Measure:
        """`p` (m, k) probabilities, `cuts` (k,) or (m, k) thresholds."""
        yes = (p / cuts).argmax(axis=1) == self.positive
        gap = 0.0
        for metric in ("selection_rate",) if self.parity else ("tpr", "fpr"):
            num, den = cells(metric, self.truth, p[:, self.positive], yes)
            masks = [self.slices[name] for name in self.buckets]
            rates = [ratio(num, den, mask) or 0.0 for mask in masks if den[mask].sum() >= FEWEST]
            gap = max(gap, max(rates) - min(rates)) if rates else gap
        now, used = self.values(p, cuts), {}
        for one in self.clauses:
            if one.name in now and one.name in self.reference:
                worse = self.reference[one.name] - now[one.name]
                used[one.name] = (worse if HIGHER_IS_BETTER[one.metric] else -worse) / one.limit
        brier = float(((p[:, self.positive] - self.truth) ** 2).mean())
        return Measure(gap, float((yes == self.truth).mean()), brier, used)

    def values(self, p: Floats, cuts: Floats) -> dict[str, float]:
        """Each clause's metric on its slice; absent where no row counts."""
        yes = (p / cuts).argmax(axis=1) == self.positive
        found = {}
        for one in self.clauses:
            num, den = cells(one.metric, self.truth, p[:, self.positive], yes)
            value = ratio(num, den, self.slices[one.slice]) if one.slice in self.slices else None
            if value is not None:
                found[one.name] = value
        return found


def against_champion(clauses: Sequence[Clause]) -> tuple[Clause, ...]:
    """The clauses that compare with the champion, with a limit that a drop can be measured in."""
    return tuple(one for one in clauses if one.against == "champion" and one.limit > 0)
