"""Two-sided intervals for what is shown beside a verdict: rates, means, gaps between groups."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from truing.tasks.records import Estimate
from truing.tasks.statistics.cells import Floats
from truing.tasks.statistics.means import likelihood_mean_upper
from truing.tasks.statistics.proportions import wilson


def rate_interval(successes: float, trials: float, level: float = 0.95) -> Estimate:
    """A proportion with its Wilson interval; not estimable without trials."""
    if trials <= 0 or not math.isfinite(successes):
        return Estimate(value=None, level=level)
    low, high = wilson(successes, trials, level)
    value = successes / trials
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=round(trials), level=level)


def mean_interval(
    values: Floats,
    *,
    subjects: npt.ArrayLike | None = None,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """A mean with its two-sided empirical-likelihood interval.

    Args:
        values: (n,) per-row values, such as squared errors (Brier) or 0/1 (accuracy).
        subjects: (n,) who each row is about (any labels); rows of one subject are then summed first.
        bounds: smallest and largest value there can be, where known; half a value of each kind is then counted, so that
            "all were right" doesn't claim certainty.
    """
    x = np.asarray(values, dtype=float)
    if not len(x) or not np.isfinite(x).all():
        return Estimate(value=None, n=len(x), level=level)
    mean = float(x.mean())
    units = x
    if subjects is not None:
        codes = np.unique(np.asarray(subjects), return_inverse=True)[1]
        size = np.bincount(codes)
        units = mean + np.bincount(codes, weights=x - mean) * (len(size) / len(x))
    each = (1.0 - level) / 2.0
    if len(units) < 2 and bounds is None:
        return Estimate(value=mean, n=len(x), level=level)
    high = likelihood_mean_upper(units, each, worst=bounds[1] if bounds else None)
    low = -likelihood_mean_upper(-units, each, worst=-bounds[0] if bounds else None)
    return Estimate(value=mean, low=min(low, mean), high=max(high, mean), n=len(x), level=level)


def gap(first: Estimate, second: Estimate) -> Estimate:
    """`first` − `second` for two independent groups of rows, with an interval recovered from theirs.

    MOVER (Zou and Donner 2008); on two Wilson intervals it is Newcombe's hybrid score interval (1998). `n` is the smaller
    of both.
    """
    n, level = min(first.n, second.n), first.level
    if first.value is None or second.value is None:
        return Estimate(value=None, n=n, level=level)
    value = first.value - second.value
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Estimate(value=value, n=n, level=level)
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value=value, low=value - down, high=value + up, n=n, level=level)
