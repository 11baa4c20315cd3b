"""How unequally a model treats the groups of an attribute: differences and ratios between all of them, with intervals.

Names and values are fairlearn's (demographic parity: selection rates; equalized odds: the worse of TPR and FPR; difference =
highest − lowest, ratio = lowest/highest over the groups). The extremes are picked after looking, so an interval for "those two
groups" claims too much: here the intervals of *all* pairs hold together, at a critical value drawn for that, and the largest
difference lies between the largest lower end and the largest upper end of any pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from truing.tasks.records import Estimate
from truing.tasks.statistics.cells import Floats
from truing.tasks.statistics.intervals import gap, rate_interval
from truing.tasks.statistics.proportions import tail_of

DRAWS = 10_000  # of the joint distribution; the seed is fixed, so the same rates give the same interval


@dataclass(frozen=True)
class Rate:
    """A group's share of successes (0..1) in `n` trials' worth: fewer than its rows where subjects repeat or rows weigh."""

    value: float
    n: float


def rate_of(
    num: Floats, den: Floats, *, weights: Floats | None = None, subjects: npt.NDArray[Any] | None = None
) -> Rate | None:
    """Σnum/Σden as a rate; None without a row that counts, or with one that is not a number.

    `n` is the number of independent rows with the same variance: Σden, less what rows of one subject and unequal weights
    cost (Kish's design effect, from the linearised variance).
    """
    w = np.ones(len(num)) if weights is None else weights
    counts = (den > 0) & (w > 0)
    mass = float((w * den)[counts].sum())
    if mass <= 0.0:
        return None
    value = float((w * num)[counts].sum()) / mass
    if not math.isfinite(value):
        return None
    n = float(counts.sum())
    if weights is not None or subjects is not None:
        off = (w * (num - value * den))[counts]
        if subjects is not None:
            codes = np.unique(subjects[counts], return_inverse=True)[1]
            off = np.asarray(np.bincount(codes, weights=off), dtype=np.float64)
        variance = float(off @ off) / mass**2
        independent = float((w * den)[counts].sum() ** 2 / ((w * den)[counts] ** 2).sum())
        n = min(n, value * (1.0 - value) / variance if variance > 0.0 and 0.0 < value < 1.0 else independent)
    return Rate(value, n)


def difference(families: Sequence[Mapping[str, Rate]], level: float = 0.95) -> Estimate:
    """Highest − lowest rate of any family (selection rates; or TPRs and FPRs), 0 = equal .. 1.

    Example:
        >>> one = difference([{"a": Rate(0.5, 1000), "b": Rate(0.4, 1000)}])
        >>> round(one.value, 3), round(one.low, 3), round(one.high, 3)
        (0.1, 0.056, 0.144)
    """
    families = [one for one in families if len(one) > 1]
    n = round(min((rate.n for one in families for rate in one.values()), default=0.0))
    if not families:
        return Estimate(value=None, n=n, level=level)
    value = max(max(r.value for r in one.values()) - min(r.value for r in one.values()) for one in families)
    pairs = [gap(a, b) for a, b in _pairs(families, _together(families, level))]
    low = max(pair.low or 0.0 for pair in pairs)
    high = max(pair.high or 0.0 for pair in pairs)
    return Estimate(value=value, low=min(max(low, 0.0), value), high=max(high, value), n=n, level=level)


def ratio(families: Sequence[Mapping[str, Rate]], level: float = 0.95) -> Estimate:
    """Lowest/highest rate of any family, 1 = equal .. 0; not estimable where nobody in some family is selected at all."""
    families = [one for one in families if len(one) > 1]
    n = round(min((rate.n for one in families for rate in one.values()), default=0.0))
    if not families or any(max(r.value for r in one.values()) <= 0.0 for one in families):
        return Estimate(value=None, n=n, level=level)
    value = min(min(r.value for r in one.values()) / max(r.value for r in one.values()) for one in families)
    ends = [_quotient(a, b) for a, b in _pairs(families, _together(families, level))]
    low, high = min(end[0] for end in ends), min(end[1] for end in ends)
    return Estimate(value=value, low=min(low, value), high=min(max(high, value), 1.0), n=n, level=level)


def change(
    before: Sequence[Mapping[str, Rate]],
    after: Sequence[Mapping[str, Rate]],
    together: Sequence[Mapping[str, float]],
    level: float = 0.95,
) -> Estimate:
    """How much wider the difference is after than before (> 0: wider), both on the same rows.

    `together`: per family and group, the correlation (−1..1) of both models' rates on the same rows. The interval is drawn from
    the joint normal distribution of all rates and centred on what is seen: a highest − lowest is not normal itself.
    """
    old, new = difference(before, level), difference(after, level)
    n = min(old.n, new.n)
    if old.value is None or new.value is None:
        return Estimate(value=None, n=n, level=level)
    rng = np.random.default_rng(0)
    drawn = [np.full(DRAWS, -np.inf), np.full(DRAWS, -np.inf)]
    for first, second, paired in zip(before, after, together, strict=True):
        names = [name for name in first if name in second]
        if len(names) < 2:
            continue
        one, two = rng.standard_normal((2, DRAWS, len(names)))
        rho = np.array([paired.get(name, 0.0) for name in names])
        two = rho * one + np.sqrt(np.maximum(1.0 - rho**2, 0.0)) * two
        for side, (rates, noise) in enumerate(((first, one), (second, two))):
            sampled = np.array([rates[k].value for k in names]) + noise * np.array([_sd(rates[k]) for k in names])
            drawn[side] = np.maximum(drawn[side], sampled.max(axis=1) - sampled.min(axis=1))
    value, moved = new.value - old.value, drawn[1] - drawn[0]
    middle = float(np.median(moved))
    low, high = (float(q) - middle + value for q in np.quantile(moved, [(1.0 - level) / 2.0, (1.0 + level) / 2.0]))
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n, level=level)


def _sd(rate: Rate) -> float:
    """Standard deviation of a rate, with half a success and half a failure added: 0 of 20 is not certain to be 0."""
    share = (rate.value * rate.n + 0.5) / (rate.n + 1.0)
    return math.sqrt(share * (1.0 - share) / rate.n)


def _together(families: Sequence[Mapping[str, Rate]], level: float) -> float:
    """The level (0..1) of each rate's interval at which all pairs' intervals hold together at `level`."""
    rng = np.random.default_rng(0)
    largest = np.zeros(DRAWS)
    for family in families:
        sd = np.array([_sd(rate) for rate in family.values()])
        noise = rng.standard_normal((DRAWS, len(sd))) * sd
        for i in range(len(sd)):
            for j in range(i):
                np.maximum(largest, np.abs(noise[:, i] - noise[:, j]) / math.hypot(sd[i], sd[j]), out=largest)
    return 1.0 - 2.0 * tail_of(float(np.quantile(largest, level)))


def _pairs(families: Sequence[Mapping[str, Rate]], each: float) -> list[tuple[Estimate, Estimate]]:
    """Every ordered pair of groups of one family, with intervals at level `each`."""
    found = []
    for family in families:
        ends = [rate_interval(rate.value * rate.n, rate.n, each) for rate in family.values()]
        found += [(a, b) for i, a in enumerate(ends) for j, b in enumerate(ends) if i != j]
    return found


def _quotient(a: Estimate, b: Estimate) -> tuple[float, float]:
    """Interval of a/b recovered from both (Donner and Zou 2012); where b may be next to nothing, the widest that both allow."""
    r, lo, hi = a.value or 0.0, a.low or 0.0, a.high or 0.0
    s, s_lo, s_hi = b.value or 0.0, b.low or 0.0, b.high or 0.0
    if s <= 0.0:
        return 1.0, math.inf  # nobody in b: not the pair that is lowest over highest
    low, high = lo / s_hi, hi / s_lo if s_lo > 0 else math.inf
    down, up = s_hi * (2 * s - s_hi), s_lo * (2 * s - s_lo)
    if down > 0.0:
        low = max(low, (r * s - math.sqrt(max((r * s) ** 2 - lo * (2 * r - lo) * down, 0.0))) / down)
    if up > 0.0 and (inner := (r * s) ** 2 - hi * (2 * r - hi) * up) >= 0.0:
        high = min(high, (r * s + math.sqrt(inner)) / up)
    return low, high
