"""AUROC of one model, and the drop between two models on the same rows, with DeLong's variance.

The AUROC is the chance that a positive row gets a higher score than a negative one, ties counted half. DeLong, DeLong and
Clarke-Pearson (1988) write it as a mean of *placements*: the share of negatives below each positive, and of positives above
each negative. A row's placement, centred and scaled, is what it adds to the estimate's error; two models' contributions on
the same row give their covariance, and the sum over a subject's rows its share where subjects repeat (Obuchowski 1997).
Midranks make it O(n log n) (Sun and Xu 2014).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from truing.tasks.records import Estimate
from truing.tasks.statistics.cells import Bools, Floats
from truing.tasks.statistics.proportions import wilson, z_of


@dataclass(frozen=True, eq=False)
class Ranking:
    """`value` 0..1 (0.5 = no better than chance); `influence` (n,): what each row adds to its error. NaN without both kinds."""

    value: float
    influence: Floats
    positives: int
    negatives: int


def rank(positive: Bools, p: Floats, weights: Floats | None = None) -> Ranking:
    """The AUROC of scores `p` (n,), higher for positives.

    Args:
        positive: (n,) the rows' labels.
        weights: (n,) how many rows of the pool each one stands for (1/inclusion probability); None = one each.

    A score that is not a number makes the value NaN, never better.
    """
    n = len(p)
    w = np.ones(n) if weights is None else weights
    counts = w > 0
    up, down = positive & counts, ~positive & counts
    many, few = int(up.sum()), int(down.sum())
    if not many or not few or not np.isfinite(p[counts]).all():
        return Ranking(math.nan, np.zeros(n), many, few)
    mass_up, mass_down = float(w[up].sum()), float(w[down].sum())
    below = _share_below(p, np.where(down, w, 0.0)) / mass_down  # of negatives below each row
    above = 1.0 - _share_below(p, np.where(up, w, 0.0)) / mass_up  # of positives above each row
    value = float(w[up] @ below[up]) / mass_up
    influence = np.zeros(n)
    # a sample of m is one short of telling its own variance: m/(m−1), as in DeLong
    influence[up] = w[up] * (below[up] - value) / mass_up * math.sqrt(many / max(many - 1, 1))
    influence[down] = w[down] * (above[down] - value) / mass_down * math.sqrt(few / max(few - 1, 1))
    return Ranking(value, influence, many, few)


def _share_below(p: Floats, mass: Floats) -> Floats:
    """Σ mass of the rows with a smaller score, plus half of that with the same one."""
    values, place = np.unique(p, return_inverse=True)
    at = np.bincount(place, weights=mass, minlength=len(values))
    return np.asarray((np.cumsum(at) - 0.5 * at)[place])


def error(influence: Floats, subjects: npt.ArrayLike | None = None) -> float:
    """Standard error from row influences; rows of one subject are summed first."""
    if subjects is not None:
        codes = np.unique(np.asarray(subjects), return_inverse=True)[1]
        influence = np.asarray(np.bincount(codes, weights=influence), dtype=np.float64)
    return math.sqrt(float(influence @ influence))


def auroc(one: Ranking, *, subjects: npt.ArrayLike | None = None, level: float = 0.95) -> Estimate:
    """The AUROC with its interval, on the logit scale, so that it stays inside 0..1.

    Where every pair is ranked right (or wrong) DeLong's variance is zero; then the Wilson interval of as many trials as the
    rarer kind has rows says how far that reaches.
    """
    n = one.positives + one.negatives
    if math.isnan(one.value):
        return Estimate(value=None, n=n, level=level)
    se, z = error(one.influence, subjects), z_of((1.0 - level) / 2.0)
    if se <= 1e-12 or one.value <= 0.0 or one.value >= 1.0:
        trials = float(min(one.positives, one.negatives))
        low, high = wilson(one.value * trials, trials, level)
    else:
        odds, far = math.log(one.value / (1.0 - one.value)), z * se / (one.value * (1.0 - one.value))
        low, high = (1.0 / (1.0 + math.exp(-(odds + side * far))) for side in (-1.0, 1.0))
    return Estimate(value=one.value, low=min(low, one.value), high=max(high, one.value), n=n, level=level)


def auroc_drop(
    reference: Ranking, candidate: Ranking, *, subjects: npt.ArrayLike | None = None, level: float = 0.95
) -> Estimate:
    """Reference − candidate on the same rows (> 0: the candidate ranks worse), with DeLong's paired interval."""
    n = candidate.positives + candidate.negatives
    if math.isnan(reference.value) or math.isnan(candidate.value):
        return Estimate(value=None, n=n, level=level)
    drop = reference.value - candidate.value
    far = z_of((1.0 - level) / 2.0) * error(reference.influence - candidate.influence, subjects)
    return Estimate(value=drop, low=drop - far, high=drop + far, n=n, level=level)
