"""Resampling rows or subjects, on summed cells: ten thousand resamples of a hundred thousand rows in well under a second.

A clause's drop depends on a data set only through how many rows fall into each *kind* (slice memberships, label, both
answers). Drawing rows with replacement is drawing those counts from one multinomial, so a resample costs as many numbers as
there are kinds, whatever the number of rows (Efron 1979 on the weights' own distribution). Where every row is a kind of its
own (probabilities), rows are summed into blocks of subjects first, and the blocks are drawn: that is a bootstrap of blocks,
and of subjects where each block is one.

The gate itself draws the joint distribution of all clauses from its limit, N(0, Σ) with the subjects' own Σ (`multiplicity`).
This is the direct way to the same numbers, for tests, benchmarks and whoever wants to see it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from truing.tasks.statistics.cells import Floats

Codes = npt.NDArray[np.int64]


def kinds(*columns: npt.ArrayLike) -> tuple[Codes, Codes]:
    """Rows alike in every column as one kind: (kind of each row (n,), one row of each kind).

    Example:
        >>> kinds([0, 0, 1, 1], [1, 1, 0, 1])[0].tolist()
        [0, 0, 1, 2]
    """
    codes = np.zeros(len(np.asarray(columns[0])), dtype=np.int64)
    for column in columns:
        values, inverse = np.unique(np.asarray(column), return_inverse=True)
        codes = codes * len(values) + inverse
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return inverse.astype(np.int64), first.astype(np.int64)


def resampled(
    num: Floats, den: Floats, counts: npt.ArrayLike, *, draws: int, rng: np.random.Generator, chunk: int = 2_000
) -> Floats:
    """Σnum/Σden of `draws` data sets drawn with replacement, (draws, clauses); NaN where a resample has nothing that counts.

    Args:
        num, den: (kinds, clauses) what one row of each kind adds.
        counts: (kinds,) how many rows there are of each; with blocks or subjects as kinds, 1 each.
    """
    many = np.asarray(counts, dtype=float)
    n, share = int(many.sum()), many / many.sum()
    out = np.empty((draws, num.shape[1]))
    for start in range(0, draws, chunk):
        drawn = rng.multinomial(n, share, size=min(chunk, draws - start)).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            out[start : start + len(drawn)] = (drawn @ num) / (drawn @ den)
    return out


def joint_critical(drops: Floats, estimate: Floats, level: float) -> float:
    """The max-T critical value of resampled drops (draws, clauses): a quantile of the largest studentised error."""
    spread = drops.std(axis=0, ddof=1)
    usable = np.isfinite(spread) & (spread > 1e-12)
    errors = (drops[:, usable] - estimate[usable]) / spread[usable]
    return float(np.quantile(errors.max(axis=1), 1.0 - level, method="higher"))
