"""Expected calibration error (ECE) without the bias that makes every small slice look badly calibrated.

Rows are put into bins of equal numbers by their probability. In bin b the mean probability differs from the share of positives
by δ_b; the ECE is Σ (n_b/n)·|δ_b|. Its plug-in value is too high even for a perfect model: |noise| averages to σ_b·√(2/π) > 0
(Kumar, Liang and Ma 2019). So the true gaps are taken to be s times the ones seen, and s is chosen such that the plug-in value
that such gaps would show on average (folded normal) is the one seen; a value that pure noise would reach is an ECE of 0. The
interval's ends are the s at which a value as high, or as low, as the one seen would still have its share of the level.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from truing.tasks.records import Estimate
from truing.tasks.statistics.cells import Bools, Floats
from truing.tasks.statistics.proportions import z_of

BINS = 15
FEWEST = 20  # rows a bin, else there are fewer bins


def ece(
    positive: Bools,
    p: Floats,
    *,
    weights: Floats | None = None,
    subjects: npt.ArrayLike | None = None,
    bins: int = BINS,
    level: float = 0.95,
) -> Estimate:
    """Debiased ECE of probabilities `p` (n,), 0 = calibrated as far as can be told, at most 1.

    Args:
        weights: (n,) how many rows of the pool each row stands for; None = one each.
        subjects: (n,) who each row is about; a subject's rows err together.

    Binning hides what happens inside a bin, so this is a lower bound of the error over all probabilities.
    """
    n = len(p)
    w = np.ones(n) if weights is None else weights
    if weights is not None:
        keep = w > 0
        positive, p, w = positive[keep], p[keep], w[keep]
        subjects = None if subjects is None else np.asarray(subjects)[keep]
    bins = min(bins, len(p) // FEWEST)
    if bins < 2 or not ((p >= 0.0) & (p <= 1.0)).all():
        return Estimate(value=None, n=len(p), level=level)
    cuts = np.unique(np.quantile(p, np.linspace(0.0, 1.0, bins + 1)[1:-1]))
    place = np.searchsorted(cuts, p, side="right")
    mass = np.bincount(place, weights=w, minlength=len(cuts) + 1)
    used = mass > 0
    off = w * (p - positive)
    gaps = np.divide(np.bincount(place, weights=off, minlength=len(mass)), mass, out=np.zeros(len(mass)), where=used)
    rest = off - w * gaps[place]
    who = place if subjects is None else _pairs(place, np.asarray(subjects))
    at = np.arange(len(p)) if subjects is None else who[0]
    sums = np.bincount(at, weights=rest)
    bin_of = place if subjects is None else who[1]
    spread = np.bincount(bin_of, weights=sums**2, minlength=len(mass))
    count = np.bincount(bin_of, minlength=len(mass))
    sd = np.sqrt(np.divide(spread, mass**2, out=np.zeros(len(mass)), where=used) * count / np.maximum(count - 1, 1))
    share = mass / mass.sum()
    seen = float(share @ np.abs(gaps))

    def off_by(scale: float) -> tuple[float, float]:
        """Mean and standard deviation of the plug-in ECE if the gaps were `scale` times those seen."""
        mean, var = _folded(scale * gaps, sd)
        return float(share @ mean), math.sqrt(float(share**2 @ var))

    z = z_of((1.0 - level) / 2.0)
    value = seen * _scale(lambda s: off_by(s)[0] - seen)
    low = seen * _scale(lambda s: off_by(s)[0] + z * off_by(s)[1] - seen)
    high = seen * _scale(lambda s: off_by(s)[0] - z * off_by(s)[1] - seen)
    return Estimate(value=value, low=min(low, value), high=min(max(high, value), 1.0), n=len(p), level=level)


def _pairs(place: npt.NDArray[np.intp], subjects: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """(n,) code of each row's subject within its bin, and the bin of each such code."""
    codes = np.unique(subjects, return_inverse=True)[1]
    keys, back = np.unique(place * (int(codes.max()) + 1) + codes, return_inverse=True)
    return back, keys // (int(codes.max()) + 1)


def _folded(mean: Floats, sd: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of |N(mean, sd²)| (Leone, Nelson and Nottingham 1961)."""
    safe = np.maximum(sd, 1e-12)
    ratio = np.minimum(np.abs(mean) / safe, 1e6)
    inside = np.array([math.erf(r / math.sqrt(2.0)) for r in ratio])
    folded = safe * math.sqrt(2.0 / math.pi) * np.exp(-0.5 * ratio**2) + np.abs(mean) * inside
    return folded, np.maximum(mean**2 + safe**2 - folded**2, 0.0)


def _scale(rises: Callable[[float], float]) -> float:
    """The scale ≥ 0 at which `rises` is zero; 0 where it is above zero already there."""
    if rises(0.0) >= 0.0:
        return 0.0
    low, high = 0.0, 1.0
    while rises(high) < 0.0 and high < 1e6:
        low, high = high, high * 2.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if rises(middle) < 0.0 else (low, middle)
    return (low + high) / 2.0
