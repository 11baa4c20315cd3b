"""What happened to the traffic: windows of served rows with volume, label coverage, quality and group gaps.

A window is closed by time and stays; its numbers are taken again while labels come in. Rows of holdout subjects live in the
vault and are not here, so a window speaks for the other subjects, who are a random share by hash.
"""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl

from truing.tasks.monitoring.stability import Stability, stability
from truing.tasks.problem import UNKNOWN, Problem
from truing.tasks.records import Estimate, Record, Split
from truing.tasks.statistics.cells import Bools, Floats, cells, slice_masks
from truing.tasks.tables.columns import ROWS, winners
from truing.tasks.tables.lake import Lake

METRICS = ("brier", "accuracy", "tpr", "selection_rate")
GAPS = ("accuracy", "tpr", "selection_rate")
FEWEST = 30  # rows below which no interval is given
Z95 = 1.959964


class Gap(Record, frozen=True):
    """Difference of a metric between two buckets of one protected attribute (first − second)."""

    group: str
    first: str
    second: str
    metric: str
    delta: Estimate


class Window(Record, frozen=True):
    """Served rows asked in [start, end). `id` is its place in the row of windows."""

    id: str
    problem: str
    start: float
    end: float
    release: str | None  # the one that answered most of them
    rows: int
    labelled: int
    metrics: dict[str, Estimate]
    gaps: tuple[Gap, ...]
    moved: tuple[Stability, ...] = ()
    at: float = 0.0

    @property
    def coverage(self) -> float:
        """Share of its rows with a label, 0..1."""
        return self.labelled / self.rows if self.rows else 0.0


class Mark(Record, frozen=True):
    """How far monitoring has looked: a version of the table `rows`, and starts of windows that were not over then."""

    id: str
    problem: str
    version: int | None
    waiting: tuple[float, ...] = ()


def served(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that a release answered; loads that people vouch for are none."""
    return rows.filter(
        pl.col("release").is_not_null(), pl.col("answer_label").is_not_null(), pl.col("split") != str(Split.TRUSTED)
    )


def due(
    lake: Lake, problem: str, *, mark: Mark | None, every_s: float, now: float, most: int
) -> tuple[Mark, list[tuple[float, float]], pl.DataFrame]:
    """What to look at again: (the next mark, whole windows of `every_s` seconds, the served rows in them).

    Those are the windows over by `now` in which a row was asked or labelled since `mark`, at most the newest `most`. A window
    that is not over is noted in the mark and comes up when it is.
    """
    version, added, _ = lake.since("rows", mark.version if mark else None)
    touched = added.filter(pl.col("problem") == problem, pl.col("release").is_not_null())
    starts = set(touched.select((pl.col("asked_at") // every_s * every_s).unique()).collect().to_series())
    starts |= set(mark.waiting if mark else ())
    over = sorted(start for start in starts if start + every_s <= now)[-most:]
    waiting = tuple(sorted(start for start in starts if start + every_s > now))
    following = Mark(id=f"monitor:{problem}", problem=problem, version=version, waiting=waiting)
    if not over:
        return following, [], pl.DataFrame(schema=dict(ROWS))
    inside = pl.col("asked_at").is_between(over[0], over[-1] + every_s, closed="left")
    rows = winners(lake.scan("rows").filter(pl.col("problem") == problem, inside)).collect()
    return following, [(start, start + every_s) for start in over], lake.living(served(rows))


def window(
    rows: pl.DataFrame, reference: pl.DataFrame | None, problem: Problem, *, start: float, end: float, now: float
) -> Window:
    """The numbers of one window. `rows` are `served` rows, `reference` the inputs of the trusted rows as columns."""
    inside = rows.filter(pl.col("asked_at") >= start, pl.col("asked_at") < end)
    labelled = inside.filter(pl.col("target").is_not_null())
    releases = inside["release"].value_counts(sort=True)
    return Window(
        id=f"{problem.name}:{start:.0f}-{end:.0f}",
        problem=problem.name,
        start=start,
        end=end,
        release=releases["release"][0] if releases.height else None,
        rows=inside.height,
        labelled=labelled.height,
        metrics=quality(inside, labelled, problem),
        gaps=gaps(inside, labelled, problem),
        moved=() if reference is None else tuple(stability(reference, inputs(inside, problem), problem)),
        at=now,
    )


def quality(rows: pl.DataFrame, labelled: pl.DataFrame, problem: Problem) -> dict[str, Estimate]:
    """Every metric over all rows of the window; selection rate needs no label."""
    found = {}
    for metric in METRICS:
        num, den = _cells(metric, rows if metric == "selection_rate" else labelled, problem)
        found[metric] = mean(num, den)
    return found


def gaps(rows: pl.DataFrame, labelled: pl.DataFrame, problem: Problem) -> tuple[Gap, ...]:
    """Each metric's difference between the two largest known buckets of each attribute, most doubtful last."""
    found = []
    for metric in GAPS:
        frame = rows if metric == "selection_rate" else labelled
        num, den = _cells(metric, frame, problem)
        masks = slice_masks(frame["groups"].to_list()) if frame.height else {}
        for group in problem.groups:
            buckets = [
                (name, mask) for name, mask in masks.items() if name.startswith(f"{group}=") and not name.endswith(UNKNOWN)
            ]
            largest = sorted(buckets, key=lambda one: (-int(one[1].sum()), one[0]))[:2]
            for (first, here), (second, there) in itertools.pairwise(sorted(largest)):
                delta = difference(num, den, here, there)
                found.append(
                    Gap(
                        group=group,
                        first=first.partition("=")[2],
                        second=second.partition("=")[2],
                        metric=metric,
                        delta=delta,
                    )
                )
    return tuple(found)


def mean(num: Floats, den: Floats) -> Estimate:
    """Σnum/Σden with its 95 % interval, from the variance of the linearised ratio; without one below 30 rows that count."""
    n, value, spread = _ratio(num, den)
    if value is None or n < FEWEST:
        return Estimate(value=value, n=n)
    return Estimate(value=value, low=value - Z95 * spread, high=value + Z95 * spread, n=n)


def difference(num: Floats, den: Floats, first: Bools, second: Bools) -> Estimate:
    """Ratio on `first` minus ratio on `second` (disjoint rows) with its 95 % interval."""
    n, a, spread_a = _ratio(num[first], den[first])
    m, b, spread_b = _ratio(num[second], den[second])
    if a is None or b is None:
        return Estimate(value=None, n=min(n, m))
    if min(n, m) < FEWEST:
        return Estimate(value=a - b, n=min(n, m))
    half = Z95 * float(np.hypot(spread_a, spread_b))
    return Estimate(value=a - b, low=a - b - half, high=a - b + half, n=min(n, m))


def inputs(rows: pl.DataFrame, problem: Problem) -> pl.DataFrame:
    """The problem's inputs as columns, read from the rows' content."""
    kinds = {name: pl.Float64() if spec.type == "number" else pl.String() for name, spec in problem.inputs.items()}
    read = pl.col("content").cast(pl.String).str.json_decode(pl.Struct(kinds)).alias("inputs")
    return rows.select(read).unnest("inputs") if rows.height else pl.DataFrame(schema=kinds)


def _ratio(num: Floats, den: Floats) -> tuple[int, float | None, float]:
    """(rows that count, ratio, its standard error)."""
    total = float(den.sum())
    n = int((den > 0).sum())
    if total <= 0 or not np.isfinite(num).all():
        return n, None, 0.0
    value = float(num.sum()) / total
    return n, value, float(np.sqrt(((num - value * den) ** 2).sum())) / total


def _cells(metric: str, rows: pl.DataFrame, problem: Problem) -> tuple[Floats, Floats]:
    answer = (rows["answer_label"] == problem.positive).fill_null(False).to_numpy()
    positive = (rows["target"] == problem.positive).fill_null(False).to_numpy()
    path = f"$.probabilities.['{problem.positive}']"
    p = rows["prediction"].str.json_path_match(path).cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if metric != "brier":  # only Brier reads the probability; the others must not lose rows that carry none
        p = np.where(np.isfinite(p), p, 0.5)
    return cells(metric, positive, p, answer)
