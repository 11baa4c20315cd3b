"""Metrics as sums of per-row cells, so that one pass over the rows serves every slice, every bound and every resample.

A metric's value on a slice is `sum(numerator) / sum(denominator)` over its rows. The denominator never depends on the
model, which is what makes two models on the same rows a paired comparison.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from truing.tasks.errors import DataError
from truing.tasks.problem import UNKNOWN

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

ALL = "all"
HIGHER_IS_BETTER: dict[str, bool] = {"brier": False, "accuracy": True, "tpr": True, "fpr": False, "selection_rate": True}
METRICS = tuple(HIGHER_IS_BETTER)
PROPORTIONS = frozenset({"accuracy", "tpr", "fpr", "selection_rate"})  # numerator and denominator are 0 or 1 on every row
UNLABELLED = frozenset({"selection_rate"})  # needs no label: rows without one count too


def cells(metric: str, positive: Bools, p: Floats, answer: Bools) -> tuple[Floats, Floats]:
    """Numerator and denominator of `metric` per row, both float (n,).

    Args:
        metric: one of `METRICS`.
        positive: (n,) whether the row's true label is the positive one.
        p: (n,) probability of the positive label, 0..1. Anything else (NaN, 1.7) makes the row's numerator NaN in every
            metric, so a model that fails on a row can't look good there.
        answer: (n,) whether the model answers with the positive label.

    Example:
        >>> num, den = cells("tpr", np.array([True, True, False]), np.array([0.9, 0.2, 0.8]), np.array([True, False, True]))
        >>> float(num.sum() / den.sum())
        0.5
    """
    if metric not in METRICS:
        raise DataError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}; name one of these")
    if not positive.shape == p.shape == answer.shape:
        raise DataError(f"cells: expected arrays of one length, got {positive.shape}, {p.shape} and {answer.shape}")
    every = np.ones(len(positive))
    if metric == "brier":
        num, den = (p - positive) ** 2, every
    elif metric == "accuracy":
        num, den = (answer == positive).astype(float), every
    elif metric == "tpr":
        num, den = (answer & positive).astype(float), positive.astype(float)
    elif metric == "fpr":
        num, den = (answer & ~positive).astype(float), (~positive).astype(float)
    else:
        num, den = answer.astype(float), every
    sound = (p >= 0.0) & (p <= 1.0)  # False for NaN
    return (num if sound.all() else np.where(sound, num, np.nan)), den


def ratio(num: Floats, den: Floats, mask: Bools | None = None) -> float | None:
    """Σnum/Σden over the rows of a slice; None where the slice holds no row that counts, or one that is not a number."""
    if mask is not None:
        num, den = num[mask], den[mask]
    counts = den > 0
    total = float(den.sum())
    if total <= 0:
        return None
    value = float(num[counts].sum()) / total
    return value if np.isfinite(value) else None


def slice_masks(groups: Sequence[str | None], known: Mapping[str, Iterable[str]] | None = None) -> dict[str, Bools]:
    """`all` and every `group=bucket` as boolean masks (n,), from the rows' groups JSON.

    `known` names groups and buckets that are to have a mask even when no row is in them (an empty slice is a fact to
    report, not a key that is missing). A row that doesn't name a known group is in its bucket `unknown`.
    """
    n = len(groups)
    texts, codes = (
        np.unique(np.array([g or "{}" for g in groups], dtype=str), return_inverse=True) if n else (np.array([]), None)
    )
    parsed: list[dict[str, str]] = []
    for text in texts:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise DataError(f'groups: expected JSON like {{"sex": "Female"}}, got {str(text)[:60]!r}; join the rows again')
        parsed.append({str(k): str(v) for k, v in value.items()})
    names = sorted({g for one in parsed for g in one} | set(known or {}))
    masks: dict[str, Bools] = {ALL: np.ones(n, dtype=bool)}
    for group in names:
        buckets = [one.get(group, UNKNOWN) for one in parsed]
        for bucket in sorted({*buckets, *(known or {}).get(group, ())}):
            hit = np.array([b == bucket for b in buckets], dtype=bool)
            masks[f"{group}={bucket}"] = hit[codes] if codes is not None else np.zeros(0, dtype=bool)
    return masks
