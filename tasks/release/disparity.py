"""How far apart two groups are under a version, its parent and the anchor, from one evaluation: all on the same rows.

Which two buckets a group is reduced to is decided once for the whole family, so that versions can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from truing.tasks.evaluation.gaps import GAP_METRICS, rate
from truing.tasks.policy import Policy
from truing.tasks.problem import UNKNOWN, Problem
from truing.tasks.records import Cell, Estimate, Evaluation, Record
from truing.tasks.statistics.cells import HIGHER_IS_BETTER
from truing.tasks.statistics.intervals import gap as between


class Disparity(Record, frozen=True):
    """The gap of one metric between two buckets (rate in `over` minus rate in `under`, −1..1), all models on the same rows.

    `against_parent` and `against_anchor` are changes of the gap, paired by row; > 0: this version widens it.
    """

    group: str
    metric: str
    over: str
    under: str
    gap: Estimate
    parent: Estimate
    anchor: Estimate
    against_parent: Estimate
    against_anchor: Estimate


def chosen_gap(problem: Problem, policy: Policy) -> tuple[str, str]:
    """What the policy cares for first: a deciding clause on a group, then any, then the first group's TPR."""
    rules = sorted(
        (one for one in policy.clause if "=" in one.slice and one.metric in GAP_METRICS), key=lambda one: not one.deciding
    )
    if rules:
        return rules[0].slice.partition("=")[0], rules[0].metric
    return next((name for name, spec in problem.groups.items() if spec.values), next(iter(problem.groups), "")), "tpr"


def buckets(problem: Problem, evaluations: Sequence[Evaluation]) -> dict[tuple[str, str], tuple[str, str]]:
    """(group, metric) → its two largest buckets in the newest evaluation, the one with the candidate's higher rate first."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    if not evaluations:
        return found
    cells = {(one.slice, one.metric): one for one in evaluations[-1].cells}
    for group in problem.groups:
        sizes = {
            name.partition("=")[2]: cell.n
            for (name, metric), cell in cells.items()
            if metric == "accuracy" and name.startswith(f"{group}=") and name != f"{group}={UNKNOWN}"
        }
        two = sorted(sizes, key=lambda bucket: (-sizes[bucket], bucket))[:2]
        for metric in GAP_METRICS:
            rates = [cells.get((f"{group}={bucket}", metric)) for bucket in two]
            values = [cell.candidate if cell and cell.candidate is not None else -1.0 for cell in rates]
            if len(two) == 2:
                found[group, metric] = (two[0], two[1]) if values[0] >= values[1] else (two[1], two[0])
    return found


def disparities(evaluation: Evaluation, pairs: Mapping[tuple[str, str], tuple[str, str]]) -> list[Disparity]:
    """The gap of each pair of buckets, with 95 % intervals (Newcombe's; rows taken as independent)."""
    cells = {(one.slice, one.metric): one for one in evaluation.cells}
    found = []
    for (group, metric), (over, under) in pairs.items():
        high, low = cells.get((f"{group}={over}", metric)), cells.get((f"{group}={under}", metric))
        if high is None or low is None:
            continue
        found.append(
            Disparity(
                group=group,
                metric=metric,
                over=over,
                under=under,
                gap=between(rate(high, high.candidate), rate(low, low.candidate)),
                parent=between(rate(high, high.none), rate(low, low.none)),
                anchor=between(rate(high, high.anchor), rate(low, low.anchor)),
                against_parent=between(_gained(high, high.delta_none), _gained(low, low.delta_none)),
                against_anchor=between(_gained(high, high.delta_anchor), _gained(low, low.delta_anchor)),
            )
        )
    return found


def _gained(cell: Cell, drop: Estimate) -> Estimate:
    """Candidate minus the other: the drop, or minus it where higher is better."""
    if drop.value is None or drop.low is None or drop.high is None or not HIGHER_IS_BETTER[cell.metric]:
        return drop
    return Estimate(value=-drop.value, low=-drop.high, high=-drop.low, n=drop.n, level=drop.level)
