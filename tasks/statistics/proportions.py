"""Bounds for one proportion and for the difference of two proportions measured on the same rows.

Of n rows, `worse` were right under the reference and wrong under the candidate, `better` the other way round; the drop is
(worse − better)/n, and the rows on which both agree say nothing about its direction. From 250 rows on the bound comes from
the likelihood ratio: the signed root of the profile log-likelihood of the multinomial (worse, better, n − worse − better),
maximised over the nuisance share in closed form (Tango 1998 gives the quadratic). Below, it is exact.

The plain likelihood ratio lets too much through where harm was never or hardly ever seen (nominal 0.8 %, true 4.9 % at 300
rows and a limit of one point). So the upper bound counts **up to half a row of harm** on top of what was seen: half a row
where the candidate won nothing back, less the more it won, because the more rows have moved, the finer the steps in which the
evidence comes. By full enumeration (250-5,000 rows, limits of 0.5-8 points, up to 5 % won back, nominal 0.8 %) the true level
then stays at or below 1.02 %, and 0.90 % at limits from 3 points on: where half a row is always counted it is the same, and
equal candidates pass up to 3 points less often.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from truing.tasks.statistics.cells import Bools, Floats

EXACT_BELOW = 250  # rows
UNSEEN_HARM = 0.5  # rows of harm counted on top of those seen, where nothing was won back
_NORMAL = NormalDist()


def z_of(level: float) -> float:
    """Standard normal quantile above which a share `level` lies: z_of(0.025) is 1.96."""
    return _NORMAL.inv_cdf(1.0 - level)


def tail_of(z: float) -> float:
    """Share of a standard normal above z; the inverse of `z_of`."""
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def _times_log(count: float, share: float) -> float:
    if count <= 0:
        return 0.0
    return count * math.log(share) if share > 0 else -math.inf


def profile(worse: float, better: float, n: float, drop: float) -> float:
    """Log-likelihood of a drop, maximised over the share of better rows. `drop` in −1..1; −inf where it is impossible."""
    if drop < 0:
        return profile(better, worse, n, -drop)
    # with q = share better: 2n q² − B q − better·drop·(1−drop) = 0
    lean = worse + better - drop * (2.0 * n - worse + better)
    root = math.sqrt(lean * lean + 8.0 * n * better * drop * (1.0 - drop))
    if lean > 0:
        q = (lean + root) / (4.0 * n)
    else:  # the same root, written so that nothing cancels
        q = 2.0 * better * drop * (1.0 - drop) / (root - lean) if root - lean > 0 else 0.0
    q = min(max(q, 0.0), (1.0 - drop) / 2.0)
    return _times_log(worse, q + drop) + _times_log(better, q) + _times_log(n - worse - better, max(0.0, 1.0 - 2.0 * q - drop))


def likelihood_upper(worse: float, better: float, n: float, level: float) -> float:
    """One-sided upper bound of the drop: the largest one whose signed root likelihood ratio is above −z(level).

    Example:
        >>> round(likelihood_upper(0, 0, 1000, 0.025), 5)  # 1 − exp(−z²/2n): with no discordant row at all
        0.00192
    """
    estimate = (worse - better) / n
    best = (
        _times_log(worse, worse / n) + _times_log(better, better / n) + _times_log(n - worse - better, (n - worse - better) / n)
    )
    far = z_of(level) ** 2 / 2.0
    low, high = estimate, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if best - profile(worse, better, n, middle) < far:
            low = middle
        else:
            high = middle
        if high - low < 1e-10:
            break
    return high


def unseen_harm(better: float) -> float:
    """Rows of harm to count on top of those seen, where the candidate was better on `better` rows."""
    return UNSEEN_HARM / (1.0 + better / 3.0)


def drop_upper(worse: int, better: int, n: int, level: float) -> tuple[float, str]:
    """One-sided upper bound of the drop in −1..1, and the name of the method that gave it."""
    if n < EXACT_BELOW:
        return exact_upper(worse, better, n, level), "exact"
    more = unseen_harm(better)
    return likelihood_upper(worse + more, better, n + more, level), "likelihood ratio"


def binomial_tail(successes: int, trials: int, share: float) -> float:
    """P(X ≥ successes) for X ~ Binomial(trials, share), by summing the smaller side in logs."""
    if successes <= 0:
        return 1.0
    if successes > trials or share <= 0.0:
        return 0.0
    if share >= 1.0:
        return 1.0
    upper_is_shorter = successes > trials * share
    k = np.arange(successes, trials + 1) if upper_is_shorter else np.arange(0, successes)
    logs = _log_choose(trials)[k] + k * math.log(share) + (trials - k) * math.log1p(-share)
    top = float(logs.max())
    total = math.exp(top) * float(np.exp(logs - top).sum()) if top > -745 else 0.0
    return min(1.0, total) if upper_is_shorter else max(0.0, 1.0 - total)


@lru_cache(maxsize=256)
def _log_choose(n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """log of n over k for k = 0..n."""
    factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1, dtype=float)))))
    return np.asarray(factorial[n] - factorial - factorial[::-1], dtype=np.float64)


@lru_cache(maxsize=65_536)
def clopper_pearson(successes: int, trials: int, level: float) -> tuple[float, float]:
    """Exact one-sided bounds (low, high) of a proportion, each at `level`."""
    low, high = 0.0, 1.0
    if successes > 0:
        low = _solve(lambda share: binomial_tail(successes, trials, share) < level)
    if successes < trials:
        high = _solve(lambda share: 1.0 - binomial_tail(successes + 1, trials, share) >= level)
    return low, high


def _solve(holds_below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2.0
        if holds_below(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def exact_upper(worse: int, better: int, n: int, level: float) -> float:
    """A bound that holds at every n: exact bounds of the two discordant shares, half the level each (conservative)."""
    return clopper_pearson(worse, n, level / 2.0)[1] - clopper_pearson(better, n, level / 2.0)[0]


def discordance_tail(worse: int, better: int) -> float:
    """Exact one-sided McNemar: how often a fair coin puts at least `worse` of the discordant rows on the worse side."""
    return binomial_tail(worse, worse + better, 0.5)


def drop_within(worse: npt.ArrayLike, better: npt.ArrayLike, n: npt.ArrayLike, limit: float, level: float) -> Bools:
    """Whether `drop_upper` is at most `limit`, for many tables at once and without looking for the bound itself.

    The likelihood-ratio bound is inside the limit exactly when the estimate is and the signed root at the limit is beyond
    −z(level): one evaluation a table instead of thirty. Tables without rows are never inside.

    Args:
        worse, better, n: counts of one shape.
        limit: a drop, 0..1.
    """
    b, c, total = (np.asarray(x, dtype=float) for x in np.broadcast_arrays(worse, better, n))
    inside = np.zeros(b.shape, dtype=bool)
    many = total >= EXACT_BELOW
    if many.any():
        won = c[many]
        more = UNSEEN_HARM / (1.0 + won / 3.0)  # `unseen_harm`
        seen, size = b[many] + more, total[many] + more
        best = _log_likelihood(seen, won, size - seen - won, seen / size, won / size)
        far = best - profile_many(seen, won, size, limit)
        inside[many] = ((seen - won) / size <= limit) & (far >= z_of(level) ** 2 / 2.0)
    few = (total < EXACT_BELOW) & (total > 0)
    if few.any():
        tables, where = np.unique(np.stack([b[few], c[few], total[few]]).astype(np.int64), axis=1, return_inverse=True)
        inside[few] = np.array([exact_upper(int(b_), int(c_), int(n_), level) <= limit for b_, c_, n_ in tables.T])[
            where.ravel()
        ]
    return inside


def profile_many(worse: Floats, better: Floats, n: Floats, drop: float) -> Floats:
    """`profile` for many tables at one drop of 0..1."""
    lean = worse + better - drop * (2.0 * n - worse + better)
    product = better * drop * (1.0 - drop)
    root = np.sqrt(lean * lean + 8.0 * n * product)
    apart = np.where(root - lean > 0, root - lean, 1.0)
    q = np.where(lean > 0, (lean + root) / (4.0 * n), np.where(root - lean > 0, 2.0 * product / apart, 0.0))
    q = np.clip(q, 0.0, (1.0 - drop) / 2.0)
    return _log_likelihood(worse, better, n - worse - better, q + drop, q)


def _log_likelihood(worse: Floats, better: Floats, same: Floats, p: Floats, q: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [(worse, p), (better, q), (same, np.maximum(0.0, 1.0 - p - q))]
        return np.asarray(sum(np.where(count > 0, count * np.log(share), 0.0) for count, share in parts), dtype=np.float64)


def discordance_tails(worse: npt.ArrayLike, better: npt.ArrayLike) -> Floats:
    """`discordance_tail` for many tables; each different one is worked out once."""
    b, c = np.broadcast_arrays(np.asarray(worse), np.asarray(better))
    if not b.size:
        return np.zeros(b.shape)
    tables, where = np.unique(np.stack([b.ravel(), c.ravel()]).astype(np.int64), axis=1, return_inverse=True)
    return np.array([discordance_tail(int(x), int(y)) for x, y in tables.T])[where.ravel()].reshape(b.shape)


def wilson(successes: float, trials: float, level: float) -> tuple[float, float]:
    """Two-sided score interval of a proportion at confidence `level` (Wilson 1927); sane at 0 and at 1."""
    z = z_of((1.0 - level) / 2.0)
    share = successes / trials
    centre = (share + z * z / (2.0 * trials)) / (1.0 + z * z / trials)
    half = z * math.sqrt(share * (1.0 - share) / trials + z * z / (4.0 * trials * trials)) / (1.0 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)
