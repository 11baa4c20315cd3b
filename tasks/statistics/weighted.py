"""Paired drops on a pool in which all answers are known and labels only of a sample with known inclusion probabilities.

Every metric here is affine in a row's label y: what a row adds to (drop × denominator) is a + b·y, to the denominator c + d·y.
So all that sampling and reading errors change is the label: y is replaced by an unbiased *pseudo-label*

    q + (drawn / π)·(ŷ − q),      ŷ = (ȳ − e)/(1 − 2e)

with q a guess from what is known of the whole pool (both answers, the score), π the row's inclusion probability, ȳ the mean of
the labels given and e the reviewers' error rate. The guess is the control variate of the difference estimator (Särndal,
Swensson and Wretman 1992, ch. 6): any q leaves the mean right, a good one takes most of the noise of the denominators away.
Rows on which both models agree have b = 0 for accuracy and add exactly nothing, labelled or not.

A drop is at most L when the mean of (a + b·y) − L·(c + d·y) is at most 0. The upper bound is the largest L that the empirical
likelihood of that mean does not reject (Owen 1988; a ratio inverted like Fieller's), with half a row of the worst kind counted
on top as in `proportions`; where fewer than 250 rows' worth is known, the empirical Bernstein bound instead. Labels that should
be there and are not take the value that is worst for the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from truing.tasks.errors import DataError
from truing.tasks.statistics.cells import Bools, Floats
from truing.tasks.statistics.means import bernstein_upper
from truing.tasks.statistics.proportions import EXACT_BELOW, UNSEEN_HARM, clopper_pearson, z_of

ERROR_SHARE = 0.1  # of the level is spent on not knowing the reviewers' error rate
CELL_ROWS = 30  # labelled rows below which a cell of the guess falls back to the mean of all
MOST_ERROR = 0.45  # beyond, a label says nothing


# --- labels -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known of the labels of n pool rows.

    given: mean of the labels given to the row, 0..1 (1 = positive); anything where there is none.
    known: has a label.
    drawn: was to be labelled. Drawn and not known counts as the worst that it could be; known implies drawn.
    weights: 1/π of every row, ≥ 1, drawn or not.
    noisy: the label was read by a reviewer, with error rate e; an outcome has none.
    guess: q, 0..1.
    doubles: (rows read twice by different reviewers, of these the ones read differently).
    """

    given: Floats
    known: Bools
    drawn: Bools
    weights: Floats
    noisy: Bools
    guess: Floats
    doubles: tuple[int, int] = (0, 0)

    def pseudo(self, error: float) -> Floats:
        """Unbiased pseudo-labels (n,) at error rate `error`; rows drawn and not known keep the guess."""
        return np.asarray(self.guess + np.where(self.known, self.weights * (self.read(error) - self.guess), 0.0))

    def read(self, error: float) -> Floats:
        """ŷ: the labels given with the reviewers' error taken out; unbiased, so it may leave 0..1."""
        return np.where(self.noisy, (self.given - error) / (1.0 - 2.0 * error), self.given)


def error_of(disagreement: float) -> float:
    """Reviewers' error rate from how often two of them disagree: d = 2e(1 − e), so e = (1 − √(1 − 2d))/2.

    Two things are assumed: reviewers err independently of each other, and as often on positives as on negatives.

    Example:
        >>> round(error_of(0.095), 6)
        0.05
    """
    return (1.0 - math.sqrt(max(0.0, 1.0 - 2.0 * disagreement))) / 2.0


def error_bounds(doubles: tuple[int, int], level: float) -> tuple[float, float, float]:
    """(estimate, low, high) of the reviewers' error rate; low and high hold together at `level`. (0, 0, 0) without doubles."""
    twice, differed = doubles
    if not twice:
        return 0.0, 0.0, 0.0
    low, high = clopper_pearson(differed, twice, level / 2.0)
    return tuple(min(error_of(share), MOST_ERROR) for share in (differed / twice, low, high))  # type: ignore[return-value]


def guessed(kinds: npt.NDArray[np.int64], labels: Labels) -> Floats:
    """q (n,): the weighted mean label of the row's kind (both answers and score bin, say), or of all where few are known."""
    error = error_bounds(labels.doubles, 0.5)[0]
    worth = np.where(labels.known, labels.weights, 0.0)
    total = float(worth.sum())
    if total <= 0.0:
        return np.full(len(kinds), 0.5)
    read = np.where(labels.known, labels.read(error), 0.0)
    overall = float(worth @ read) / total
    size = int(kinds.max()) + 1
    rows = np.bincount(kinds, weights=labels.known, minlength=size)
    mass = np.bincount(kinds, weights=worth, minlength=size)
    means = np.divide(
        np.bincount(kinds, weights=worth * read, minlength=size), mass, out=np.full(size, overall), where=mass > 0
    )
    return np.asarray(np.clip(np.where(rows >= CELL_ROWS, means, overall), 0.0, 1.0)[kinds])


# --- one slice × metric -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Design:
    """The rows of a slice for one metric: drop part a + b·y, denominator c + d·y, their labels, their subjects 0..S−1."""

    a: Floats
    b: Floats
    c: Floats
    d: Floats
    labels: Labels
    subject: npt.NDArray[np.int64]
    subjects: int

    def reversed(self) -> Design:
        return replace(self, a=-self.a, b=-self.b)

    @property
    def open(self) -> bool:
        """Is there a row that should have a label and has none?"""
        return bool((self.labels.drawn & ~self.labels.known).any())

    def rows(self, drop: float, error: float, *, best: bool = False) -> Floats:
        """(a + b·y) − drop·(c + d·y) of every row at its pseudo-label; missing ones at their worst (or best)."""
        alpha, beta, labels = self.a - drop * self.c, self.b - drop * self.d, self.labels
        pseudo = labels.pseudo(error)
        if self.open:
            filled = labels.guess + labels.weights * (((beta < 0.0) if best else (beta > 0.0)) - labels.guess)
            pseudo = np.where(labels.drawn & ~labels.known, filled, pseudo)
        return np.asarray(alpha + beta * pseudo)

    def units(self, drop: float, error: float, *, best: bool = False) -> Floats:
        """The same, summed by subject (subjects,)."""
        rows = self.rows(drop, error, best=best)
        return np.asarray(np.bincount(self.subject, weights=rows, minlength=self.subjects))

    def worst(self, drop: float, error: float) -> float:
        """The largest value that a row drawn could have at this drop."""
        alpha, beta, labels = self.a - drop * self.c, self.b - drop * self.d, self.labels
        noise = np.where(labels.noisy, error, 0.0) / (1.0 - 2.0 * error)
        likely = np.where(beta > 0.0, 1.0 + noise, -noise)
        return max(float((alpha + beta * (labels.guess + labels.weights * (likely - labels.guess))).max()), 1.0 - drop)

    def mass(self, error: float) -> float:
        """Σ denominator."""
        return float((self.c + self.d * self.labels.pseudo(error)).sum())

    def unread(self) -> Design:
        """The same rows if nothing had been drawn: only what was known for certain, everything else at its worst."""
        certain = self.labels.known & (self.labels.weights == 1.0)
        every = np.ones(len(certain), dtype=bool)
        return replace(self, labels=replace(self.labels, known=certain, drawn=every, weights=every.astype(float)))

    def few(self, error: float) -> bool:
        """Is less than 250 rows' worth known?"""
        return self.subjects < EXACT_BELOW or self.known(error) < EXACT_BELOW

    def known(self, error: float) -> float:
        """How many fully known rows' worth the denominator is: Σ denominator over the largest weight that a drop can have."""
        moving = (self.b != 0.0) & (self.labels.weights > 0.0)
        return self.mass(error) / (float(self.labels.weights[moving].max()) if moving.any() else 1.0)


def drop_of(design: Design, error: float, *, best: bool | None = None) -> float:
    """The drop at which the units sum to zero; with `best` missing labels are filled in favour of the candidate, or against.

    NaN where the estimated denominator is not above zero.
    """
    if best is None or not design.open:
        mass = design.mass(error)
        pseudo = design.labels.pseudo(error)
        return float((design.a + design.b * pseudo).sum()) / mass if mass > 0.0 else math.nan
    return _root(lambda drop: float(design.rows(drop, error, best=bool(best)).sum()), -1.0, 1.0)


def _root(falls: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if falls(middle) > 0.0 else (low, middle)
    return (low + high) / 2.0


# --- bounds -------------------------------------------------------------------------------------------------------------------


def likelihood_root(values: Floats, counts: Floats) -> Floats:
    """Signed root of the empirical likelihood ratio against a mean of zero, along the last axis; > 0: the mean is above.

    ±inf where zero is outside the values' range. Batches share one shape: (…, k) values with (…, k) counts, which may be 0.
    """
    scale = np.abs(np.where(counts > 0, values, 0.0)).max(axis=-1, keepdims=True)
    x = np.where(counts > 0, values, 0.0) / np.where(scale > 0, scale, 1.0)
    top, bottom = x.max(axis=-1, keepdims=True), x.min(axis=-1, keepdims=True)
    total = (counts * x).sum(axis=-1, keepdims=True)
    inside = (top > 0) & (bottom < 0)
    low = np.where(inside, -1.0 / np.where(top > 0, top, 1.0), -1.0) * (1.0 - 1e-13)
    high = np.where(inside, -1.0 / np.where(bottom < 0, bottom, -1.0), 1.0) * (1.0 - 1e-13)
    tilt = np.clip(total / np.maximum((counts * x * x).sum(axis=-1, keepdims=True), 1e-300), low / 2, high / 2)
    for _ in range(100):  # Newton on the concave dual, halved into its bracket where it would leave it
        share = x / (1.0 + tilt * x)
        slope = (counts * share).sum(axis=-1, keepdims=True)
        low, high = np.where(slope > 0, tilt, low), np.where(slope > 0, high, tilt)
        step = tilt + slope / np.maximum((counts * share * share).sum(axis=-1, keepdims=True), 1e-300)
        following = np.where((step > low) & (step < high), step, (low + high) / 2.0)
        if np.all(np.abs(following - tilt) <= 1e-10 * np.maximum(np.abs(tilt), 1e-6)):
            tilt = following
            break
        tilt = following
    ratio = 2.0 * (counts * np.log1p(np.where(inside, tilt, 0.0) * x)).sum(axis=-1)
    sign = np.sign(total[..., 0])
    root = sign * np.sqrt(np.maximum(ratio, 0.0))
    beyond = np.select([sign > 0, sign < 0], [math.inf, -math.inf], 0.0)
    return np.asarray(np.where(inside[..., 0], root, beyond))


def below(design: Design, drop: float, error: float, level: float) -> bool:
    """Is the true drop below `drop`, at one-sided `level`? Error rate taken as known."""
    units = design.units(drop, error)
    worst = design.worst(drop, error)
    if design.few(error):
        least = min(float(units.min()), -worst)
        return bernstein_upper(units, level, span=max(worst, float(units.max())) - least) < 0.0
    values, counts = np.unique(units, return_counts=True)
    root = likelihood_root(np.append(values, worst), np.append(counts.astype(float), UNSEEN_HARM))
    return bool(root <= -z_of(level))


def weighted_upper(design: Design, level: float) -> tuple[float, str]:
    """One-sided upper bound of the drop, at most 1, and its method.

    Where few labels were drawn, the bound that allows for any label of the others may say more: then each has half of the
    level, and the lower one holds. Rows on which both models agree cost that one nothing.
    """
    bound, how = _over_errors(design, level / 2.0 if design.few(0.0) else level)
    if design.few(0.0):
        certain, word = _over_errors(design.unread(), level / 2.0)
        if certain < bound:
            return certain, f"worst labels, {word}"
    return bound, how


def _over_errors(design: Design, level: float) -> tuple[float, str]:
    """The largest bound over the confidence interval of the reviewers' error rate, which gets a tenth of the level."""
    errors: tuple[float, ...] = (0.0,)
    rest, how = level, f"weighted empirical {'Bernstein' if design.few(0.0) else 'likelihood'}"
    if design.labels.doubles[0] and bool((design.labels.noisy & design.labels.known).any()):
        estimate, low, high = error_bounds(design.labels.doubles, level * ERROR_SHARE)
        errors, rest = tuple(dict.fromkeys((high, low, estimate))), level * (1.0 - ERROR_SHARE)
        how += f", label error {estimate:.1%} ({low:.1%} to {high:.1%})"
    bound = -1.0
    for error in errors:
        if bound > -1.0 and below(design, bound, error, rest):
            continue
        bound = max(bound, _bound(design, error, rest))
    return bound, how


def _bound(design: Design, error: float, level: float) -> float:
    drop = drop_of(design, error, best=False)
    if math.isnan(drop) or not below(design, 1.0, error, level):
        return 1.0
    low, high = min(drop, 1.0), 1.0
    step = 0.02
    while high - low > 1e-6:
        middle = min(low + step, (low + high) / 2.0)
        if below(design, middle, error, level):
            high, step = middle, math.inf
        else:
            low, step = middle, step * 2
    return high


def check(labels: Labels) -> None:
    """Raises DataError when the labels of a pool contradict themselves."""
    if not np.isfinite(labels.weights).all() or (labels.weights < 1.0).any():
        raise DataError("weights: expected 1/inclusion probability, at least 1, got less or none; read the plan again")
    if (labels.known & ~labels.drawn).any():
        raise DataError("labels: expected labels of drawn rows only, got others; rows nobody drew can't judge")
