"""Replay: rows learned from before, drawn again beside the new ones so that fine-tuning does not forget them.

The draw gives every stratum (label × protected buckets) the same number of rows as far as it has them, so that the few are not
drowned by the many; each row then weighs the inverse of its chance to be drawn. The loss stays an unbiased estimate of the loss
over all earlier rows, only steadier for the small strata.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def draw(strata: Sequence[str], size: int, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Indices of `size` rows (all, if there are fewer) and their weights, which sum to the number of rows drawn from.

    >>> chosen, weights = draw(["many"] * 90 + ["few"] * 10, 20, seed=0)
    >>> int((chosen >= 90).sum()), float(weights.sum())
    (10, 100.0)
    """
    rng = np.random.default_rng(seed)
    names, member = np.unique(np.asarray(strata, dtype=str), return_inverse=True)
    counts = [int(count) for count in np.bincount(member, minlength=len(names))]
    quota = [0] * len(names)
    left = min(size, len(member))
    while left:  # share what is left equally among strata that still have rows
        open_ = [stratum for stratum, count in enumerate(counts) if quota[stratum] < count]
        share = max(1, left // len(open_))
        for stratum in open_:
            given = min(share, counts[stratum] - quota[stratum], left)
            quota[stratum] += given
            left -= given
    chosen: list[NDArray[np.int64]] = []
    weights: list[NDArray[np.float64]] = []
    for stratum, number in enumerate(quota):
        if number:
            rows = np.flatnonzero(member == stratum)
            chosen.append(np.sort(rng.choice(rows, size=number, replace=False)))
            weights.append(np.full(number, counts[stratum] / number))
    if not chosen:
        return np.zeros(0, np.int64), np.zeros(0)
    return np.concatenate(chosen).astype(np.int64), np.concatenate(weights)
