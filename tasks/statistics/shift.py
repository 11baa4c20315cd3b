"""How far one column's distribution moved: the population stability index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def psi(reference: Sequence[Any], current: Sequence[Any], *, bins: int = 10) -> float:
    """Population stability index between two samples of one column: 0 = identical, higher = more shift.

    Numbers are cut at the reference's deciles, everything else counts as a category; None is a category of its own. Half a
    row is added to each bin. The usual alarm at 0.1 is meaningless for small samples: without any shift the expectation is
    about (bins − 1)·(1/n + 1/m), see `psi_floor`.

    Example:
        >>> psi(list("aabb"), list("aabb"))
        0.0
    """
    if not len(reference) or not len(current):
        return float("nan")
    first, second = _binned(reference, current, bins)
    p, q = first / first.sum(), second / second.sum()
    return float(((q - p) * np.log(q / p)).sum())


def psi_floor(n: int, m: int, *, bins: int = 10) -> float:
    """What `psi` is on average when nothing has shifted."""
    return (bins - 1) * (1.0 / n + 1.0 / m)


def _binned(reference: Sequence[Any], current: Sequence[Any], bins: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    seen = [v for v in reference if v is not None]
    if seen and all(isinstance(v, int | float) and not isinstance(v, bool) for v in seen):
        edges = np.unique(np.quantile(np.array(seen, dtype=float), np.linspace(0, 1, bins + 1)[1:-1]))
        size = len(edges) + 2
        both = []
        for side in (reference, current):
            missing = np.array([v is None for v in side], dtype=bool)
            codes = np.searchsorted(edges, np.array([0.0 if v is None else float(v) for v in side]), side="right")
            both.append(np.where(missing, size - 1, codes))
    else:
        names = {v: i for i, v in enumerate(sorted({str(v) for v in [*reference, *current]}))}
        size = len(names)
        both = [np.array([names[str(v)] for v in side]) for side in (reference, current)]
    first, second = (np.bincount(codes, minlength=size).astype(float) + 0.5 for codes in both)
    held = (first > 0.5) | (second > 0.5)
    return first[held], second[held]
