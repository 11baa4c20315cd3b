"""A problem's suite on first use: generous bounds from the rows that people vouch for, for people to tighten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from truing.tasks.problem import Input, Problem
from truing.tasks.records import Split
from truing.tasks.tables.lake import Lake
from truing.tasks.validation import rules
from truing.tasks.validation.expectations import MIN_ROWS
from truing.tasks.validation.rules import Suite, expectation
from truing.tasks.validation.window_words import DIVERGENCE, QUANTILES

_MANY = 500  # rows from which a profiled expectation about a window is asked
_MIX = 0.5  # Kullback-Leibler divergence allowed between the trusted rows' mix of categories and a window's; 0 = the same
_NEW = 0.1  # share of a window's values that no trusted row had
_VALUES = 50  # categories with more values have no mix worth a bound
_MOST = 1_000_000  # rows: a larger window is a flood, or a loop gone wrong
_LATE_S = 7 * 86_400.0  # half of a window may land a week after it was asked: an outbox outlives a long week-end
_SHARES = (0.1, 0.5, 0.9)  # quantiles that are held
_ENOUGH = {MIN_ROWS: _MANY}


def profile(rows: pl.DataFrame, problem: Problem) -> Suite:
    """Bounds from trusted rows (`content`; perhaps `asked_at`, `landed_at`): the problem's own ranges, else observed ones.

    A number may lie a whole observed width outside of what was seen. About windows of at least 500 rows: mean and quantiles
    within one standard deviation, spread within a factor of three, null shares within 25 points, the mix of a category within
    0.5 nats, a tenth of new values, half of the rows landed within a week (or four times as long as the trusted ones took), at
    most a million rows.
    """
    inputs = [msgspec.json.decode(content) for content in rows["content"]]
    suite = rules.structural(problem)
    found = suite["expectations"]
    found.append(expectation("expect_table_row_count_to_be_between", min_value=1, max_value=_MOST, meta=_ENOUGH))
    late = expectation("expect_column_median_to_be_between", column=rules.DELAY, max_value=_delay(rows), meta=_ENOUGH)
    found.append(late)
    for name, spec in problem.inputs.items():
        values = [value for one in inputs if (value := one.get(name)) is not None]
        if not values:
            continue
        if spec.optional:
            share = max(0.0, round(len(values) / len(inputs) - 0.25, 3))
            kind = "expect_column_proportion_of_non_null_values_to_be_between"
            found.append(expectation(kind, column=name, min_value=share, meta=_ENOUGH))
        found += _of_numbers(name, spec, values) if spec.type == "number" else _of_words(name, spec, values)
    suite["meta"] = {"profiled_rows": len(inputs)}
    return suite


def _delay(rows: pl.DataFrame) -> float:
    if not {"asked_at", "landed_at"} <= set(rows.columns):
        return _LATE_S
    median = rows.select((pl.col("landed_at") - pl.col("asked_at")).median()).item()
    return max(_LATE_S, 4 * (median or 0.0))


def _of_numbers(name: str, spec: Input, values: list[Any]) -> list[dict[str, Any]]:
    numbers = np.array([float(value) for value in values if type(value) in (int, float)])
    if not numbers.size:
        return []
    low, high, mean = float(numbers.min()), float(numbers.max()), float(numbers.mean())
    found = []
    if spec.min is None and spec.max is None:
        width = max(high - low, abs(high), 1.0)
        found.append(expectation(rules.BETWEEN, column=name, min_value=low - width, max_value=high + width))
    span = spec.max - spec.min if spec.min is not None and spec.max is not None else high - low
    spread = max(float(numbers.std()), 0.01 * span, 1e-9)  # a column of one value may begin to move a little
    bounds = {"min_value": mean - spread, "max_value": mean + spread}
    found.append(expectation("expect_column_mean_to_be_between", column=name, meta=_ENOUGH, **bounds))
    found.append(expectation("expect_column_stdev_to_be_between", column=name, max_value=3 * spread, meta=_ENOUGH))
    marks = [float(mark) for mark in np.quantile(numbers, _SHARES)]
    held = {"quantiles": list(_SHARES), "value_ranges": [[mark - spread, mark + spread] for mark in marks]}
    found.append(expectation(QUANTILES, column=name, quantile_ranges=held, meta=_ENOUGH))
    return found


def _of_words(name: str, spec: Input, values: list[Any]) -> list[dict[str, Any]]:
    counts = pl.Series(values, dtype=pl.String).value_counts(sort=True, name="n")
    if len(values) < _MANY or counts.height > _VALUES:
        return []
    shares = {value: n / len(values) for value, n in sorted(counts.iter_rows())}
    found = []
    if spec.values is None:
        found.append(expectation(rules.IN_SET, column=name, value_set=list(shares), mostly=1 - _NEW, meta=_ENOUGH))
    mix = {"values": list(shares), "weights": list(shares.values())}
    more = {"partition_object": mix, "threshold": _MIX, "tail_weight_holdout": 0.01}
    return [*found, expectation(DIVERGENCE, column=name, meta=_ENOUGH, **more)]


def ensure(lake: Lake, problem: Problem, *, folder: Path | None, kept: Path | None = None) -> Suite | None:
    """The problem's suite; on first use profiled from its trusted rows and kept, usually at `<lake>/expectations/<name>.json`.

    None while there are no trusted rows: then `problem.toml` alone decides. `kept` names another folder to keep it in.
    """
    if kept is None and not lake.remote:
        kept = Path(lake.root) / "expectations"
    suite = rules.load(problem, folder=folder, kept=kept)
    if suite is None:
        rows = lake.rows(problem.name, splits=[Split.TRUSTED]).filter(pl.col("content").is_not_null())
        if rows.height:
            suite = profile(rows, problem)
            if kept is not None:  # on a bucket it is profiled anew, from the same rows
                rules.keep(suite, kept)
    return suite
