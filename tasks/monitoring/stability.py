"""Has the input moved? Population stability index between the rows that taught and the rows now asked.

PSI = Σ (q − p)·ln(q/p) over bins; 0 = identical, higher = more drift; practice calls 0.1 a shift. Without any drift it is not
0 but about χ²(bins − 1)·(1/n + 1/m), so at 100 rows "above 0.1" is wrong most of the time. Here a shift must exceed both 0.1
and what chance alone gives once in a thousand looks (shared among the columns). Bins with few expected rows are merged: below
five the approximation does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import polars as pl

from truing.tasks.problem import Problem
from truing.tasks.records import Record

SHIFT = 0.1  # PSI above which practice speaks of a shift
FALSE_ALARM = 0.001  # per look, over all columns
BINS = 10
FEW = 5.0  # expected rows of a bin on either side

Floats = npt.NDArray[np.float64]


class Stability(Record, frozen=True):
    """One column's PSI, what chance alone would reach (`limit`), and whether it moved."""

    column: str
    psi: float
    limit: float
    n: int
    moved: bool


def stability(reference: pl.DataFrame, observed: pl.DataFrame, problem: Problem) -> list[Stability]:
    """One line per input column, most moved first. Both frames have the problem's inputs as columns; [] if either is empty."""
    if not reference.height or not observed.height:
        return []
    found = []
    for name, spec in problem.inputs.items():
        before, now = _counts(reference[name], observed[name], number=spec.type == "number")
        psi, bins = psi_of(before, now)
        chance = chance_limit(bins, reference.height, observed.height, FALSE_ALARM / len(problem.inputs))
        found.append(
            Stability(column=name, psi=psi, limit=chance, n=observed.height, moved=psi > max(SHIFT, chance) and bins > 1)
        )
    return sorted(found, key=lambda one: -(one.psi - one.limit))


def psi_of(before: Floats, now: Floats) -> tuple[float, int]:
    """(PSI, bins that were left) from two aligned arrays of counts. Bins with few rows are merged into one.

    >>> psi_of(np.array([50.0, 50.0]), np.array([50.0, 50.0]))
    (0.0, 2)
    """
    n, m = before.sum(), now.sum()
    share = (before + now) / (n + m)
    rare = share * min(n, m) < FEW
    if rare.any():
        before = np.append(before[~rare], before[rare].sum())
        now = np.append(now[~rare], now[rare].sum())
    p, q = (before + 0.5) / (n + 0.5 * len(before)), (now + 0.5) / (m + 0.5 * len(now))  # half a row: no ln(0)
    return float(((q - p) * np.log(q / p)).sum()), len(before)


def chance_limit(bins: int, n: int, m: int, level: float) -> float:
    """The PSI that two samples of one population exceed with probability `level` (0..1).

    The χ² quantile is Wilson and Hilferty's cube (1931), up to 7 % above the exact one: the safe side.
    """
    k = max(bins - 1, 1)
    z = NormalDist().inv_cdf(1 - level)
    quantile = k * (1 - 2 / (9 * k) + z * math.sqrt(2 / (9 * k))) ** 3
    return quantile * (1 / n + 1 / m)


def _counts(before: pl.Series, now: pl.Series, *, number: bool) -> tuple[Floats, Floats]:
    if not number:
        both = (before.cast(pl.String).fill_null("(none)"), now.cast(pl.String).fill_null("(none)"))
        names = sorted({*both[0].unique(), *both[1].unique()})
        return _by_name(both[0], names), _by_name(both[1], names)
    first, second = (one.cast(pl.Float64).to_numpy() for one in (before, now))
    known = first[np.isfinite(first)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1])) if len(known) else np.array([])
    return _by_edge(first, edges), _by_edge(second, edges)


def _by_name(values: pl.Series, names: Sequence[str]) -> Floats:
    counts: Mapping[str, int] = dict(values.value_counts().iter_rows())
    return np.array([counts.get(name, 0) for name in names], dtype=float)


def _by_edge(values: Floats, edges: Floats) -> Floats:
    absent = ~np.isfinite(values)
    at = np.searchsorted(edges, values[~absent], side="right")
    return np.append(np.bincount(at, minlength=len(edges) + 1).astype(float), float(absent.sum()))
