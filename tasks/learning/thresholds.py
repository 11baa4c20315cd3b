"""Thresholds by group: the same scores, another cut for each bucket (Hardt, Price & Srebro 2016, arXiv:1610.02413).

They read the protected attribute while serving, so they are for problems that serve it and policies that allow it. Here they
are deterministic: no answer is drawn by lot, so equal rates are met as closely as one cut a bucket can.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

CUTS = np.exp(np.linspace(-2.5, 2.5, 101))  # candidates, as multiples of the model's own threshold
PRICES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # accuracy that a gap of 1.0 may cost, from gentle to strict
SWEEPS = 4


def margins(probabilities: Floats, own: Floats, positive: int) -> Floats:
    """How far (n,) the positive label leads, as a share of its best rival, each over its own threshold; answered where > 1."""
    scaled = probabilities / own
    rivals = np.delete(scaled, positive, axis=1).max(axis=1)
    return np.asarray(scaled[:, positive] / np.maximum(rivals, 1e-12), np.float64)


def cut_by_group(margin: Floats, truth: Bools, bucket: Ints, buckets: int, *, parity: bool = False) -> Iterator[Floats]:
    """Cuts (b,) on `margin` (n,) that trade accuracy for equal rates, one set a price.

    A set minimises error + price · gap, one bucket's cut at a time. The gap is the equalized-odds difference (the larger of the
    spreads of TPR and FPR) or, with `parity`, the spread of the shares of positive answers. `bucket` is -1 where unknown: such
    rows keep a cut of 1.
    """
    n = max(1, int((bucket >= 0).sum()))
    wrong, tpr, fpr, rate = (np.zeros((buckets, len(CUTS))) for _ in range(4))
    for b in range(buckets):
        here = bucket == b
        yes = margin[here][:, None] > CUTS[None, :]
        positive = truth[here]
        wrong[b] = (yes != positive[:, None]).sum(axis=0) / n
        for table, rows in ((tpr, positive), (fpr, ~positive), (rate, np.ones(len(positive), bool))):
            table[b] = yes[rows].mean(axis=0) if rows.any() else np.nan
    spreads = (rate,) if parity else (tpr, fpr)
    at = np.full(buckets, len(CUTS) // 2)
    for price in PRICES:
        for _ in range(SWEEPS):
            before = at.copy()
            for b in range(buckets):
                trial = np.repeat(at[:, None], len(CUTS), axis=1)
                trial[b] = np.arange(len(CUTS))
                cost = np.take_along_axis(wrong, trial, axis=1).sum(axis=0)
                gaps = [_spread(np.take_along_axis(table, trial, axis=1)) for table in spreads]
                at[b] = int(np.argmin(cost + price * np.max(gaps, axis=0)))
            if (at == before).all():
                break
        yield CUTS[at]


def _spread(rates: Floats) -> Floats:
    """Largest minus smallest rate over buckets (axis 0); a bucket without rows does not count."""
    known = rates[~np.isnan(rates).any(axis=1)]
    return np.ptp(known, axis=0) if len(known) else np.zeros(rates.shape[1])
