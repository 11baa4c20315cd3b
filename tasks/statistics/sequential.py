"""Looking as often as one likes: a bound of a mean that holds at every time at once.

A 95 % interval looked at a thousand times is wrong far more often than in one of twenty; a confidence *sequence* is wrong in
one of twenty for all looks together, so canary and monitor may stop whenever they have seen enough. Two of them, both
one-sided:

- `betting_lower`: for values in a known range, without any assumption and at every n. A gambler bets that the mean is above m;
  his capital is a martingale when it isn't, so by Ville's inequality it exceeds 1/level only once in 1/level. Values of m that
  he got rich against are ruled out (Waudby-Smith and Ramdas 2024, predictable plug-in bets).
- `normal_lower`: for any means of many values (a difference of proportions, a studentised sum): Robbins' normal mixture with
  the running variance, valid in the limit (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024), tightest near `best_at`
  values.
"""

from __future__ import annotations

import math

import numpy as np

from truing.tasks.errors import DataError
from truing.tasks.statistics.cells import Floats

GRID = 200  # means tried between both ends of the range


def betting_lower(values: Floats, level: float, *, least: float = 0.0, most: float = 1.0) -> Floats:
    """Lower bounds of the mean after each value (n,), all valid together with probability 1 − `level`.

    Args:
        values: (n,) in the order they came, each in `least`..`most`.

    Raises:
        DataError: a value outside the range.

    Example:
        >>> bound = betting_lower(np.ones(100), 0.05)
        >>> bool(bound[4] == 0.0), bool(0.9 < bound[-1] < 1.0)
        (False, True)
    """
    x = (np.asarray(values, dtype=float) - least) / (most - least)
    if not len(x):
        return np.zeros(0)
    if not ((x >= 0.0) & (x <= 1.0)).all():
        raise DataError(
            f"confidence sequence: expected values in {least}..{most}, got some outside; clip them or widen the range"
        )
    bets = _bets(x, level)
    means = np.arange(GRID) / GRID  # a mean of exactly `most` can't be ruled out
    found = np.zeros(len(x))
    capital = np.zeros(GRID)
    for start in range(0, len(x), 1000):  # never more than a thousand rows of capital at once
        part, bet = x[start : start + 1000, None], bets[start : start + 1000, None]
        limited = np.minimum(bet, 0.75 / np.maximum(means, 1e-9))
        steps = np.log1p(limited * (part - means))
        log = capital + np.cumsum(steps, axis=0)
        capital = log[-1]
        found[start : start + 1000] = _first_kept(log >= math.log(1.0 / level))
    return least + (most - least) * np.maximum.accumulate(found)


def _first_kept(out: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Floats:
    """The smallest mean not ruled out, per time; a whole step is given away to the grid."""
    kept = np.where(out.all(axis=1), GRID, np.argmin(out, axis=1))
    return np.asarray(np.maximum(kept - 1, 0) / GRID, dtype=np.float64)


def _bets(x: Floats, level: float) -> Floats:
    """How much to bet on each value, knowing only those before it."""
    t = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    before = np.concatenate(([0.25], variance[:-1]))
    return np.asarray(np.sqrt(2.0 * math.log(1.0 / level) / (before * t * np.log1p(t))), dtype=np.float64)


def normal_lower(mean: Floats, variance: Floats, n: Floats, level: float, *, best_at: float = 1000.0) -> Floats:
    """Lower bounds of a mean at all n together, from its running estimate and the variance of one value; −inf where n < 2.

    Args:
        mean, variance: at each n, of the values so far.
        best_at: the n at which the bound should be tightest; it costs about a third more width there than a single look.
    """
    z = math.sqrt(-2.0 * math.log(2.0 * level) + math.log(-2.0 * math.log(2.0 * level) + 1.0)) if level < 0.5 else 1.0
    rho2 = z * z / best_at
    count = np.maximum(np.asarray(n, dtype=float), 1.0)
    width = np.sqrt(2.0 * (count * rho2 + 1.0) / (count**2 * rho2) * np.log(1.0 + np.sqrt(count * rho2 + 1.0) / (2.0 * level)))
    return np.asarray(
        np.where(np.asarray(n) < 2, -math.inf, mean - np.sqrt(np.maximum(variance, 0.0)) * width), dtype=np.float64
    )
