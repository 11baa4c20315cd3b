"""Joint lower bounds over many slices × metrics at once: max-T.

With 32 clauses, a block at each one's own 2 % would stop every other good candidate. The clauses overlap (accuracy of all,
accuracy of women, women's TPR), so Bonferroni would waste most of the evidence. max-T takes one critical value from the
joint distribution of the studentised drops. It is drawn by the Gaussian multiplier bootstrap: N(0, Σ) with Σ the covariance
of the per-subject influence sums, which approximates resampling the subjects uniformly over all clauses (Chernozhukov,
Chetverikov and Kato 2013) and costs one Cholesky factor instead of twenty thousand passes over the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from truing.tasks.statistics.cells import Floats
from truing.tasks.statistics.paired import Paired, lower
from truing.tasks.statistics.proportions import EXACT_BELOW, discordance_tail, tail_of, z_of


@dataclass(frozen=True, eq=False)
class Joint:
    """`low` (clauses,): simultaneous lower bounds of the drops, NaN where not estimable; `critical`: their common value."""

    critical: float
    low: Floats


def joint_lower(
    pairs: Sequence[Paired],
    *,
    subjects: int,
    level: float,
    draws: int,
    rng: np.random.Generator,
    null: Sequence[float] | None = None,
) -> Joint:
    """Lower bounds that all hold together with probability 1 − `level`.

    Studentised bounds are too hopeful in small slices (two rows of two lost would be certain harm), so each is also held to
    an exact one at the error share that the critical value leaves it: a clause whose discordant rows a fair coin could have
    produced (McNemar), or, for other means below 250 subjects, whose empirical Bernstein bound says less, can't exceed its
    `null` (0 unless given).

    Args:
        subjects: number of subjects that the pairs' codes run over.
        level: joint one-sided error, 0..1.
        draws: resamples of the joint distribution; at least 10,000 for a level of 2 %.
        null: the drop that each clause is to be told apart from.
    """
    count = len(pairs)
    nulls = np.zeros(count) if null is None else np.asarray(null, dtype=float)
    low = np.full(count, math.nan)
    errors = np.array([one.se if one.estimable else math.nan for one in pairs])
    usable = np.flatnonzero(np.isfinite(errors) & (errors > 1e-12))
    critical = critical_value([pairs[int(i)] for i in usable], subjects=subjects, level=level, draws=draws, rng=rng)
    alone = tail_of(critical)
    for i, one in enumerate(pairs):
        if not one.estimable:
            continue
        spread = np.isfinite(errors[i]) and errors[i] > 1e-12
        bound = one.drop - one.slack - critical * float(errors[i]) if spread else lower(one, alone).value
        if bound > nulls[i]:
            bound = _held(one, bound, float(nulls[i]), alone)
        low[i] = bound
    return Joint(critical=critical, low=low)


def critical_value(pairs: Sequence[Paired], *, subjects: int, level: float, draws: int, rng: np.random.Generator) -> float:
    """The 1 − `level` quantile of the largest studentised error over all pairs; a single normal quantile for a single pair."""
    if not pairs:
        return z_of(level)
    influence = np.stack([one.influence(subjects) for one in pairs])
    influence /= np.sqrt((influence**2).sum(axis=1, keepdims=True))
    correlation = influence @ influence.T
    correlation[np.diag_indices_from(correlation)] = 1.0 + 1e-9  # equal clauses make it singular
    factor = np.linalg.cholesky(correlation)
    largest = (rng.standard_normal((draws, len(pairs))) @ factor.T).max(axis=1)
    return max(float(np.quantile(largest, 1.0 - level, method="higher")), z_of(level))


def _held(one: Paired, bound: float, null: float, alone: float) -> float:
    if one.worse is not None and one.better is not None and not one.repeats:
        if null == 0.0:
            return bound if discordance_tail(one.worse, one.better) <= alone else 0.0
        return min(bound, max(null, lower(one, alone).value)) if one.n < EXACT_BELOW else bound
    if one.few or one.design is not None:
        return min(bound, max(null, lower(one, alone).value))
    return bound
