"""Gaps between the buckets of a protected attribute, from an evaluation's cells alone: what people see and the tags carry.

A gap is the rate of the bucket where it is highest minus the rate where it is lowest, both by the *candidate*; the
champion's gap is taken between the same two buckets, so that the change has a meaning. Picking the extremes of many buckets
flatters no one: it makes gaps look larger than they are, the more so the smaller the buckets, which is why small ones are
left out and every gap has an interval.
"""

from __future__ import annotations

from dataclasses import dataclass

from truing.tasks.problem import UNKNOWN
from truing.tasks.records import Cell, Estimate, Evaluation
from truing.tasks.statistics.cells import HIGHER_IS_BETTER
from truing.tasks.statistics.intervals import gap, rate_interval

GAP_METRICS = ("tpr", "fpr", "selection_rate")  # equal opportunity, the rest of equalized odds, demographic parity
FEWEST = 50  # rows in the denominator below which a bucket's rate is not compared


@dataclass(frozen=True)
class Gap:
    """One attribute × metric. `highest` and `lowest` are buckets; gaps and their change in points of the metric (0..1)."""

    group: str
    metric: str
    highest: str
    lowest: str
    candidate: Estimate
    champion: Estimate
    change: Estimate  # > 0: the candidate widens the gap


def gaps(evaluation: Evaluation) -> list[Gap]:
    """Every attribute × metric in which two buckets are large enough; intervals are Newcombe's (rows taken as independent)."""
    by_name = {(cell.slice, cell.metric): cell for cell in evaluation.cells}
    found = []
    for group in dict.fromkeys(cell.slice.partition("=")[0] for cell in evaluation.cells if "=" in cell.slice):
        buckets = [name for name, metric in by_name if metric == "tpr" and name.startswith(f"{group}=")]
        for metric in GAP_METRICS:
            cells = [
                cell
                for name in buckets
                if (cell := by_name[name, metric]).n >= FEWEST and cell.candidate is not None and name != f"{group}={UNKNOWN}"
            ]
            if len(cells) < 2:
                continue
            high, low = max(cells, key=lambda cell: cell.candidate or 0.0), min(cells, key=lambda cell: cell.candidate or 0.0)
            if high is low:
                low = next(cell for cell in cells if cell is not high)
            found.append(
                Gap(
                    group=group,
                    metric=metric,
                    highest=high.slice.partition("=")[2],
                    lowest=low.slice.partition("=")[2],
                    candidate=gap(rate(high, high.candidate), rate(low, low.candidate)),
                    champion=gap(rate(high, high.champion), rate(low, low.champion)),
                    change=gap(_change(high), _change(low)),
                )
            )
    return found


def rate(cell: Cell, value: float | None) -> Estimate:
    """One model's value of a proportion cell with its Wilson interval."""
    return rate_interval(value * cell.n, cell.n) if value is not None else Estimate(value=None)


def _change(cell: Cell) -> Estimate:
    """Candidate minus champion: the drop, or minus it where higher is better."""
    drop = cell.delta
    if drop.value is None or drop.low is None or drop.high is None or not HIGHER_IS_BETTER[cell.metric]:
        return drop
    return Estimate(value=-drop.value, low=-drop.high, high=-drop.low, n=drop.n, level=drop.level)
