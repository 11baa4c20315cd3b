"""Monitoring: intervals by hand, drift without false alarms, alerts that fold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from truing.tasks.monitoring.alerts import Finding, examine, fold, pooled
from truing.tasks.monitoring.stability import chance_limit, psi_of, stability
from truing.tasks.monitoring.windows import Window, difference, due, mean, served, window
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Estimate
from truing.tasks.tables.columns import ROWS
from truing.tasks.tables.lake import Lake


def traffic(
    problem: Problem, n: int, *, seed: int = 1, right: float = 0.8, labelled: float = 1.0, at: float = 0.0
) -> pl.DataFrame:
    """`n` served rows of which a share `right` is answered truly; women and men alternate; one row a second from `at`."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        truth = problem.labels[int(rng.random() < 0.3)]
        answer = truth if rng.random() < right else next(label for label in problem.labels if label != truth)
        p = 0.9 if answer == problem.positive else 0.1
        inputs = {name: float(rng.normal(40, 10)) if s.type == "number" else "ab"[i % 2] for name, s in problem.inputs.items()}
        rows.append(
            {
                "id": str(i),
                "problem": problem.name,
                "content": json.dumps(inputs).encode(),
                "groups": json.dumps({"sex": "Female" if i % 2 else "Male", "race": "White", "age": "30-45"}),
                "prediction": json.dumps({"label": answer, "probabilities": {problem.positive: p}}),
                "answer_label": answer,
                "release": "adult-1",
                "target": truth if rng.random() < labelled else None,
                "asked_at": at + i,
                "split": "train",
                "revision": 1,
            }
        )
    return pl.DataFrame(rows, schema_overrides=dict(ROWS)).with_columns(pl.lit(None).alias("unused")).drop("unused")


def of(frame: pl.DataFrame, problem: Problem) -> pl.DataFrame:
    from truing.tasks.monitoring.windows import inputs

    return inputs(frame, problem)


# --- stability


def test_identical_samples_have_a_psi_of_zero() -> None:
    counts = np.array([40.0, 60.0, 100.0])
    assert psi_of(counts, counts) == (0.0, 3)


def test_psi_is_the_sum_over_bins() -> None:
    """With half a row added to each of two bins: p = 50.5/101 = 0.5, q = 80.5/101 and 20.5/101."""
    psi, bins = psi_of(np.array([50.0, 50.0]), np.array([80.0, 20.0]))
    q = (80.5 / 101, 20.5 / 101)
    assert bins == 2 and psi == pytest.approx(sum((x - 0.5) * math.log(x / 0.5) for x in q))


def test_bins_with_few_rows_are_merged() -> None:
    assert psi_of(np.array([50.0, 50.0, 1.0, 1.0]), np.array([50.0, 50.0, 0.0, 2.0]))[1] == 3


def test_the_limit_is_the_chi_square_quantile() -> None:
    """χ²(9) exceeds 27.877 once in a thousand; times 1/100 + 1/100."""
    assert chance_limit(10, 100, 100, 0.001) == pytest.approx(27.877 / 50, rel=0.01)


def test_small_samples_without_drift_raise_no_alarm(problem: Problem) -> None:
    """200 looks at 100 rows each from the reference's own population: PSI is above 0.1 in most, and none is called moved."""
    reference = of(traffic(problem, 2000), problem)
    naive = alarms = 0
    for seed in range(200):
        found = stability(reference, of(traffic(problem, 100, seed=100 + seed), problem), problem)
        naive += any(one.psi > 0.1 for one in found)
        alarms += any(one.moved for one in found)
    assert naive > 100 and alarms <= 2


def test_a_shift_is_seen_and_named(problem: Problem) -> None:
    reference = of(traffic(problem, 2000), problem)
    moved = of(traffic(problem, 500, seed=3), problem).with_columns(pl.col("age") + 10, workclass=pl.lit("c"))
    found = {one.column for one in stability(reference, moved, problem) if one.moved}
    assert found == {"age", "workclass"}


def test_nothing_to_compare_is_no_shift(problem: Problem) -> None:
    frame = of(traffic(problem, 10), problem)
    assert stability(frame, frame.clear(), problem) == stability(frame.clear(), frame, problem) == []


# --- windows


def test_the_interval_of_a_proportion_is_the_normal_one() -> None:
    """80 of 100: standard error √(0.8·0.2/100) = 0.04."""
    got = mean(np.array([1.0] * 80 + [0.0] * 20), np.ones(100))
    assert got.value == 0.8 and got.low == pytest.approx(0.8 - 1.96 * 0.04, abs=1e-4)
    assert got.high == pytest.approx(0.8 + 1.96 * 0.04, abs=1e-4) and got.n == 100


def test_few_rows_give_a_value_and_no_interval() -> None:
    got = mean(np.ones(29), np.ones(29))
    assert (got.value, got.low, got.n) == (1.0, None, 29)
    assert mean(np.zeros(0), np.zeros(0)).value is None


def test_a_difference_adds_the_variances() -> None:
    num = np.array([1.0] * 80 + [0.0] * 20 + [1.0] * 50 + [0.0] * 50)
    first = np.arange(200) < 100
    got = difference(num, np.ones(200), first, ~first)
    assert got.value == pytest.approx(0.3)
    assert got.high - got.value == pytest.approx(1.96 * math.hypot(0.04, 0.05), abs=1e-4)


def test_a_window_counts_what_was_served_in_it(problem: Problem) -> None:
    rows = traffic(problem, 1000, labelled=0.5)
    reference = of(rows, problem)
    got = window(served(rows), reference, problem, start=100.0, end=600.0, now=1000.0)
    assert got.rows == 500 and 200 < got.labelled < 300 and got.coverage == got.labelled / 500
    assert got.release == "adult-1"
    assert got.metrics["accuracy"].n == got.labelled and got.metrics["selection_rate"].n == 500
    accuracy = got.metrics["accuracy"]
    assert accuracy.low is not None and accuracy.high is not None and accuracy.low < 0.8 < accuracy.high
    assert {(gap.group, gap.first, gap.second) for gap in got.gaps} == {("sex", "Female", "Male")}
    assert not any(one.moved for one in got.moved)


def test_loads_that_people_vouch_for_are_no_traffic(problem: Problem) -> None:
    rows = traffic(problem, 10).with_columns(split=pl.lit("trusted"))
    assert served(rows).height == 0


def test_only_windows_that_got_rows_or_labels_are_due(tmp_path: Path, problem: Problem) -> None:
    """Rows of 0-300 s in whole minutes; then a label for the row asked at 130 s comes back: its minute is due again."""
    lake = Lake(tmp_path / "lake")
    rows = traffic(problem, 301, labelled=0.0)
    lake.append("rows", rows)
    seen, spans, inside = due(lake, "adult", mark=None, every_s=60.0, now=400.0, most=9)
    assert [start for start, _ in spans] == [0.0, 60.0, 120.0, 180.0, 240.0, 300.0] and inside.height == 301
    assert due(lake, "adult", mark=seen, every_s=60.0, now=400.0, most=9)[1] == []
    lake.append("rows", rows[130:131].with_columns(target=pl.lit(">50K"), revision=pl.lit(2, pl.Int64)))
    _, spans, inside = due(lake, "adult", mark=seen, every_s=60.0, now=400.0, most=9)
    assert spans == [(120.0, 180.0)] and inside.height == 60 and inside["target"].drop_nulls().to_list() == [">50K"]


def test_a_window_that_is_not_over_waits(tmp_path: Path, problem: Problem) -> None:
    lake = Lake(tmp_path / "lake")
    lake.append("rows", traffic(problem, 90))
    seen, spans, _ = due(lake, "adult", mark=None, every_s=60.0, now=100.0, most=9)
    assert seen.waiting == (60.0,) and spans == [(0.0, 60.0)]
    assert due(lake, "adult", mark=seen, every_s=60.0, now=119.0, most=9)[1] == []
    assert due(lake, "adult", mark=seen, every_s=60.0, now=120.0, most=9)[1] == [(60.0, 120.0)]


# --- alerts


def windows(problem: Problem, rights: list[float]) -> list[Window]:
    found = []
    for i, right in enumerate(rights):
        rows = traffic(problem, 1000, seed=i, right=right, at=i * 1000.0)
        found.append(window(rows, of(rows, problem), problem, start=i * 1000.0, end=(i + 1) * 1000.0, now=1e6))
    return found


def test_steady_quality_raises_nothing(problem: Problem, policy: Policy) -> None:
    assert examine(windows(problem, [0.8] * 5), problem, policy) == []


def test_a_drop_beyond_chance_is_critical(problem: Problem, policy: Policy) -> None:
    found = examine(windows(problem, [0.85, 0.85, 0.85, 0.7]), problem, policy)
    assert [(one.key, one.level) for one in found] == [("quality:brier", "critical")]


def test_quality_is_judged_on_the_newest_window_with_labels(problem: Problem, policy: Policy) -> None:
    """A last window whose labels have not come yet hides nothing."""
    seen = windows(problem, [0.85, 0.85, 0.7, 0.85])
    unlabelled = traffic(problem, 100, labelled=0.0, at=4000.0)
    last = window(unlabelled, None, problem, start=4000.0, end=5000.0, now=5000.0)
    assert [one.key for one in examine([*seen[:3], last], problem, policy)] == ["quality:brier"]
    assert examine([*seen, last], problem, policy) == []


def test_no_traffic_is_no_finding(problem: Problem, policy: Policy) -> None:
    assert examine([], problem, policy) == []


def test_pooling_weighs_by_precision() -> None:
    """Half widths 0.1 and 0.2: weights 100 and 25, so (100·0.5 + 25·1.0)/125 = 0.6, half width 125^-½."""
    got = pooled([Estimate(value=0.5, low=0.4, high=0.6, n=10), Estimate(value=1.0, low=0.8, high=1.2, n=5)])
    assert got is not None and got.value == pytest.approx(0.6) and got.n == 15
    assert got.high == pytest.approx(0.6 + 125**-0.5)
    assert pooled([Estimate(value=0.5, n=3)]) is None


def test_an_alert_folds_while_it_is_found_and_closes_when_not() -> None:
    one = Finding(key="drift:age", kind="drift", level="warning", slice="age", observed=0.4, expected=0.2, act="look")
    first, new = fold([], [one], problem="adult", now=10.0)
    assert len(first) == 1 and new == first and first[0].since == 10.0 and first[0].closed_at is None
    second, new = fold(first, [one], problem="adult", now=20.0)
    assert new == [] and second[0].id == first[0].id and (second[0].folded, second[0].since) == (1, 10.0)
    third, new = fold(second, [], problem="adult", now=30.0)
    assert new == [] and third[0].closed_at == 30.0
    again, new = fold(third, [one], problem="adult", now=40.0)
    assert len(again) == 1 and new[0].id != first[0].id
