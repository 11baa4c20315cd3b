"""One-sided bounds for the mean of bounded values, without a model of their distribution.

From 250 values on: empirical likelihood (Owen 1988), whose bound follows the skew of the data as the normal one doesn't. It
can't see beyond the worst value observed, so half a value of the worst kind possible is added before the upper bound is
taken. Below 250: the empirical Bernstein bound (Maurer and Pontil 2009), which holds at every n and is wide.
"""

from __future__ import annotations

import math

import numpy as np

from truing.tasks.statistics.cells import Floats
from truing.tasks.statistics.proportions import EXACT_BELOW, UNSEEN_HARM, z_of


def likelihood_mean_upper(values: Floats, level: float, *, worst: float | None = None, unseen: float = UNSEEN_HARM) -> float:
    """Empirical-likelihood upper bound of the mean.

    The weights that make a given likelihood ratio's mean largest are w ∝ 1/(1 − t·y), y = the values scaled to 0..1: one
    unknown, so one root instead of Owen's nested two. With `worst`, `unseen` values of that size are counted beside the
    data.

    Example:
        >>> round(likelihood_mean_upper(np.array([0.0] * 90 + [1.0] * 10), 0.025), 3)  # ten of a hundred: binomial LR
        0.169
    """
    counts = np.ones(len(values))
    if worst is not None and unseen > 0:
        values, counts = np.append(values, worst), np.append(counts, unseen)
    lowest, span = float(values.min()), float(values.max() - values.min())
    if span <= 0.0:
        return lowest
    y, total = (values - lowest) / span, float(counts.sum())

    def tilt(tau: float) -> tuple[float, float]:
        """Signed root of the likelihood ratio, and the mean, at t = 1 − exp(−tau)."""
        shrink = 1.0 + math.expm1(-tau) * y
        weights = counts / shrink
        mass = float(weights.sum())
        ratio = 2.0 * (float(counts @ np.log(shrink)) + total * math.log(mass / total))
        return math.sqrt(max(ratio, 0.0)), float(weights @ y) / mass

    goal = z_of(level)
    spread = float(np.sqrt(counts @ (y - counts @ y / total) ** 2 / total))
    high = goal / (math.sqrt(total) * max(spread, 1e-12))
    low, at_low, at_high = 0.0, -goal, tilt(high)[0] - goal
    while at_high < 0.0 and high < 600.0:
        low, at_low = high, at_high
        high *= 2.0
        at_high = tilt(high)[0] - goal
    mean = tilt(high)[1]
    side = 0
    for _ in range(60):  # regula falsi, Illinois variant
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        root, mean = tilt(middle)
        off = root - goal
        if abs(off) < 1e-7 or high - low < 1e-14 * high:
            break
        if off > 0.0:
            high, at_high = middle, off
            at_low *= 0.5 if side == 1 else 1.0
            side = 1
        else:
            low, at_low = middle, off
            at_high *= 0.5 if side == -1 else 1.0
            side = -1
    return lowest + span * mean


def bernstein_upper(values: Floats, level: float, *, span: float) -> float:
    """Empirical Bernstein upper bound of the mean of values that lie in a range of width `span`; +inf below two values."""
    n = len(values)
    if n < 2:
        return math.inf
    far = math.log(2.0 / level)
    return float(values.mean() + math.sqrt(2.0 * float(values.var(ddof=1)) * far / n) + 7.0 * span * far / (3.0 * (n - 1)))


def mean_upper(values: Floats, level: float, *, worst: float, span: float) -> tuple[float, str]:
    """Upper bound of the mean, and the method. `worst` is the largest value there can be, `span` the width of the range."""
    if len(values) < EXACT_BELOW:
        return bernstein_upper(values, level, span=span), "empirical Bernstein"
    return likelihood_mean_upper(values, level, worst=worst), "empirical likelihood"
