"""Counterfactual fairness of the answers: how often they flip, and how far scores move, when only who it is about is swapped.

Two keys an attribute: `flip:sex`, the mean over cases of the share of their swaps that turn the answer (0..1), and
`shift:sex=Female`, the mean change of the positive label's probability when a case of that bucket is swapped (> 0: it would
have scored higher as somebody else). Both with 95 % intervals over cases; swaps of one case are averaged first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from truing.tasks.kinds.swaps import Swap, Terms, table_swaps, text_swaps
from truing.tasks.problem import Problem
from truing.tasks.records import Estimate
from truing.tasks.statistics.cells import Bools, Floats
from truing.tasks.statistics.intervals import mean_interval

FEWEST = 20  # swapped cases below which nothing is said
Score = Callable[[list[Any]], tuple[Floats, Bools]]  # cases → probability of the positive label (n,), is it answered (n,)


def table_effects(
    problem: Problem, inputs: Sequence[dict[str, Any]], buckets: dict[str, list[str]], score: Score
) -> dict[str, Estimate]:
    """For every protected attribute that is among the inputs, or has columns that go along; `buckets`: attribute → (n)."""
    found: dict[str, Estimate] = {}
    own = score(list(inputs)) if inputs else (np.zeros(0), np.zeros(0, bool))
    for group in problem.groups:
        swaps = table_swaps(problem, group, inputs, buckets[group])
        found |= effects(group, own, [buckets[group][one.row] for one in swaps], swaps, score)
    return found


def text_effects(texts: Sequence[str], terms: Terms, score: Score) -> dict[str, Estimate]:
    """For every group of identity terms: texts with a term exchanged for each other one of its group."""
    found: dict[str, Estimate] = {}
    own = score(list(texts))
    for group in terms.groups:
        swaps, came = text_swaps(texts, terms, group)
        found |= effects(group, own, came, swaps, score)
    return found


def effects(
    group: str, own: tuple[Floats, Bools], came: Sequence[str], swaps: Sequence[Swap], score: Score
) -> dict[str, Estimate]:
    """`own` are the scores of all cases, `came` each swap's own bucket; see the module for the keys."""
    if not swaps:
        return {}
    p, yes = score([one.inputs for one in swaps])
    rows = np.array([one.row for one in swaps])
    flipped = (yes != own[1][rows]).astype(float)
    moved = p - own[0][rows]
    cases, values = _by_case(rows, flipped)
    found = {}
    if len(cases) >= FEWEST:
        found[f"flip:{group}"] = mean_interval(values, bounds=(0.0, 1.0))
    buckets = np.array(came, dtype=str)
    for bucket in np.unique(buckets):
        here = buckets == bucket
        _, values = _by_case(rows[here], moved[here])
        if len(values) >= FEWEST:
            found[f"shift:{group}={bucket}"] = mean_interval(values, bounds=(-1.0, 1.0))
    return found


def _by_case(rows: np.ndarray[Any, Any], values: Floats) -> tuple[np.ndarray[Any, Any], Floats]:
    cases, codes = np.unique(rows, return_inverse=True)
    return cases, np.bincount(codes, weights=values) / np.bincount(codes)
