"""Bias indicators of an evaluation beyond its cells: rankings, calibration and disparities, each with a 95 % interval.

Keys, with whose they are at the end:
    auroc:<slice>:candidate|champion|drop      ece:<slice>:candidate|champion
    <disparity>:<group>:candidate|champion|change
The disparities: demographic_parity_difference, equalized_odds_difference, error_difference; and, without a change,
demographic_parity_ratio and equalized_odds_ratio.

A drop above 0 and a change above 0 are worse. They inform people; no clause decides on them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from truing.tasks.evaluation.scores import Scores
from truing.tasks.problem import UNKNOWN
from truing.tasks.records import Estimate
from truing.tasks.statistics.cells import ALL, UNLABELLED, Bools, Floats
from truing.tasks.statistics.fairness import Rate, change, difference, rate_of, ratio
from truing.tasks.statistics.ranking import auroc, auroc_drop, rank
from truing.tasks.statistics.reliability import ece

FEWEST = 50  # rows in a rate's denominator, and of either label in a ranking, below which nothing is said
SIDES = ("candidate", "champion")
DISPARITIES = {
    "demographic_parity": ("selection_rate",),
    "equalized_odds": ("tpr", "fpr"),
    "error": ("accuracy",),
}
Rates = dict[str, Rate]


def measure(scores: Scores) -> dict[str, Estimate]:
    """Everything that can be said on these rows, by key; what is too small to be said is left out."""
    sides = [one for one in SIDES if one in scores.probability]
    return _rankings(scores, sides) | _disparities(scores, sides)


def _weights(scores: Scores) -> Floats | None:
    """How many rows of the pool each labelled row stands for; None where every judged row counts once."""
    return None if scores.weights is None else np.where(scores.judged, scores.weights, 0.0)


def _rankings(scores: Scores, sides: list[str]) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    weights = _weights(scores)
    repeats = scores.subject_count < len(scores.subjects)
    for name, mask in scores.slices.items():
        rows = mask & scores.judged
        positives = int((scores.positive & rows).sum())
        if name.endswith(f"={UNKNOWN}") or min(positives, int(rows.sum()) - positives) < FEWEST:
            continue
        positive, worth = scores.positive[rows], None if weights is None else weights[rows]
        subjects = scores.subjects[rows] if repeats else None
        ranks = {side: rank(positive, scores.probability[side][rows], worth) for side in sides}
        for side in sides:
            found[f"auroc:{name}:{side}"] = auroc(ranks[side], subjects=subjects)
            found[f"ece:{name}:{side}"] = ece(positive, scores.probability[side][rows], weights=worth, subjects=subjects)
        if "champion" in ranks:
            found[f"auroc:{name}:drop"] = auroc_drop(ranks["champion"], ranks["candidate"], subjects=subjects)
    return found


def _disparities(scores: Scores, sides: list[str]) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    groups: dict[str, dict[str, Bools]] = {}
    for name, mask in scores.slices.items():
        group, _, bucket = name.partition("=")
        if name != ALL and bucket != UNKNOWN:
            groups.setdefault(group, {})[bucket] = mask
    for group, buckets in groups.items():
        for disparity, metrics in DISPARITIES.items():
            rates = {side: [_rates(scores, side, metric, buckets) for metric in metrics] for side in sides}
            if any(len(family) < 2 for family in rates["candidate"]):
                continue
            for side in sides:
                found[f"{disparity}_difference:{group}:{side}"] = difference(rates[side])
                if disparity != "error":
                    found[f"{disparity}_ratio:{group}:{side}"] = ratio(rates[side])
            if "champion" in rates:
                together = [_together(scores, metric, buckets) for metric in metrics]
                moved = change(rates["champion"], rates["candidate"], together)
                found[f"{disparity}_difference:{group}:change"] = moved
    return found


def _columns(scores: Scores, side: str, metric: str, mask: Bools) -> tuple[Floats, Floats, Floats | None]:
    """Numerators, denominators and weights of one model on the rows of a slice that count."""
    num, den = scores.cells(side, metric)
    weights = None if metric in UNLABELLED else _weights(scores)
    return num[mask], den[mask], None if weights is None else weights[mask]


def _rates(scores: Scores, side: str, metric: str, buckets: Mapping[str, Bools]) -> Rates:
    found: Rates = {}
    repeats = scores.subject_count < len(scores.subjects)
    for bucket, mask in buckets.items():
        num, den, weights = _columns(scores, side, metric, mask)
        if int((den > 0).sum()) < FEWEST:
            continue
        rate = rate_of(num, den, weights=weights, subjects=scores.subjects[mask] if repeats else None)
        if rate is not None:
            found[bucket] = rate
    return found


def _together(scores: Scores, metric: str, buckets: Mapping[str, Bools]) -> dict[str, float]:
    """Correlation of both models' answers on the rows that count, by bucket; 1 where they never differ."""
    found: dict[str, float] = {}
    for bucket, mask in buckets.items():
        one, den, weights = _columns(scores, "champion", metric, mask)
        two, _, _ = _columns(scores, "candidate", metric, mask)
        counts = den > 0 if weights is None else (den > 0) & (weights > 0)
        a, b = one[counts], two[counts]
        if len(a) < 2 or np.array_equal(a, b):
            found[bucket] = 1.0
        elif a.std() > 0 and b.std() > 0:
            found[bucket] = float(np.corrcoef(a, b)[0, 1])
    return found
