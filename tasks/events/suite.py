"""A problem's suite and its windows: profiled on first use, run on what was joined, and deciding what learning may use.

A window is what was joined since the last one, once it is large or old enough. Learning uses only rows whose window was judged
(`admitted`), without the rows that failed alone and without windows that failed whole. Holdout rows are judged at the door.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from truing.tasks.events import checks
from truing.tasks.events.checks import Suite, expectation
from truing.tasks.events.expectations import MIN_ROWS, Validator, WindowReport, validate
from truing.tasks.events.lake import Lake
from truing.tasks.problem import Problem
from truing.tasks.records import Record, Split

WINDOW_ROWS, WINDOW_S = 10_000, 10.0  # a window is due with so many rows, or when its oldest row waits so long
_MANY = 500  # rows from which a profiled expectation about a window is asked
_MIX = 0.5  # Kullback-Leibler divergence allowed between the trusted rows' mix of categories and a window's; 0 = the same
_VALUES = 50  # categories with more values have no mix worth a bound


# --- profiling ----------------------------------------------------------------------------------------------------------------


def profile(rows: pl.DataFrame, problem: Problem) -> Suite:
    """A generous suite from rows that people vouch for (column `content`): the problem's own ranges where given, else observed.

    A number may lie a whole observed width outside of what was seen; means within one standard deviation, null shares within
    25 points, the mix of a category within 0.5 nats, all on windows of at least 500 rows.
    """
    inputs = [msgspec.json.decode(content) for content in rows["content"]]
    suite = checks.structural(problem)
    found = suite["expectations"]
    found.append(expectation("expect_table_row_count_to_be_between", min_value=1))
    enough = {MIN_ROWS: _MANY}
    for name, spec in problem.inputs.items():
        values = [value for one in inputs if (value := one.get(name)) is not None]
        if not values:
            continue
        if spec.optional:
            share = max(0.0, round(len(values) / len(inputs) - 0.25, 3))
            found.append(
                expectation(
                    "expect_column_proportion_of_non_null_values_to_be_between", column=name, min_value=share, meta=enough
                )
            )
        if spec.type == "number":
            numbers = [float(value) for value in values if type(value) in (int, float)]
            low, high, mean = min(numbers), max(numbers), sum(numbers) / len(numbers)
            width = max(high - low, abs(high), 1.0)
            if spec.min is None and spec.max is None:
                found.append(expectation(checks.BETWEEN, column=name, min_value=low - width, max_value=high + width))
            spread = max((sum((value - mean) ** 2 for value in numbers) / len(numbers)) ** 0.5, 1e-9)
            bounds = {"min_value": mean - spread, "max_value": mean + spread}
            found.append(expectation("expect_column_mean_to_be_between", column=name, meta=enough, **bounds))
        elif len(values) >= _MANY and len(set(values)) <= _VALUES:
            counts = {value: values.count(value) / len(values) for value in sorted(set(values))}
            mix = {"values": list(counts), "weights": list(counts.values())}
            kind = "expect_column_kl_divergence_to_be_less_than"
            found.append(
                expectation(kind, column=name, partition_object=mix, threshold=_MIX, tail_weight_holdout=0.01, meta=enough)
            )
    suite["meta"] = {"profiled_rows": len(inputs)}
    return suite


def ensure(lake: Lake, problem: Problem, *, folder: Path | None) -> Suite | None:
    """The problem's suite; on first use profiled from its trusted rows and kept at `<lake>/expectations/<name>.json`.

    None while there are no trusted rows: then `problem.toml` alone decides.
    """
    kept = None if lake.remote else Path(lake.root) / "expectations"
    suite = checks.load(problem, folder=folder, kept=kept)
    if suite is None:
        rows = lake.rows(problem.name, splits=[Split.TRUSTED])
        if rows.height:
            suite = profile(rows, problem)
            if kept is not None:  # on a bucket it is profiled anew, from the same rows
                checks.keep(suite, kept)
    return suite


# --- windows of the lake ------------------------------------------------------------------------------------------------------


class Window(Record, frozen=True):
    """Rows that wait to be judged: `frame` has id and content; their first states have revisions first..last."""

    problem: str
    first: int
    last: int
    frame: Any  # a polars frame


def reports(lake: Lake, problem: str) -> list[WindowReport]:
    """All windows judged so far, in order."""
    return lake.records("windows", WindowReport, problem=problem)


def validated_revision(lake: Lake, problem: str) -> int:
    """Rows first joined at a later landing version than this have not been judged; -1 before the first window."""
    return max((report.last for report in reports(lake, problem)), default=-1)


def _first_seen(lake: Lake, problem: str) -> pl.LazyFrame:
    """id and the revision of its first state: the state that fixed its content."""
    states = lake.scan("rows").filter(pl.col("problem") == problem)
    return states.group_by("id").agg(pl.col("revision").min().alias("first_revision"))


def pending_window(lake: Lake, problem: str, *, now: float, force: bool = False) -> Window | None:
    """Rows not judged yet, if due: at least 10,000, or the oldest landed 10 s before `now`, or forced. None if not, or none."""
    done = validated_revision(lake, problem)
    waiting = _first_seen(lake, problem).filter(pl.col("first_revision") > done).collect()
    if not waiting.height:
        return None
    states = lake.scan("rows").filter(pl.col("problem") == problem, pl.col("revision") > done)
    frame = (
        states.select("id", "content", "revision", "landed_at")
        .join(waiting.lazy(), left_on=["id", "revision"], right_on=["id", "first_revision"], how="semi")
        .unique("id", keep="first")
        .sort("revision", "id")
        .collect()
    )
    oldest = frame.select(pl.col("landed_at").min()).item()
    if not force and frame.height < WINDOW_ROWS and oldest is not None and now - oldest < WINDOW_S:
        return None
    first, last = frame["revision"][0], frame["revision"][-1]
    return Window(problem=problem, first=first, last=last, frame=frame.select("id", "content"))


def admit_window(lake: Lake, report: WindowReport) -> None:
    """Record the result (of the findings those that failed): `admitted` counts this window's rows in, or leaves them out."""
    bad = tuple(finding for finding in report.findings if not finding.success)
    lake.record("windows", [msgspec.structs.replace(report, findings=bad)])


def rejected(lake: Lake, problem: str) -> dict[str, str]:
    """{row id: reason} of all rows that learning must leave out: failed alone, or in a window that failed."""
    out: dict[str, str] = {}
    seen: pl.DataFrame | None = None
    for report in reports(lake, problem):
        out |= report.failed
        if not report.success:
            seen = _first_seen(lake, problem).collect() if seen is None else seen
            inside = seen.filter(pl.col("first_revision").is_between(report.first, report.last))
            out |= {row: f"window {report.id}: {report.reason}" for row in inside["id"] if row not in report.failed}
    return out


def admitted(lake: Lake, problem: Problem, rows: pl.DataFrame) -> pl.DataFrame:
    """Of these rows (column id) those that learning may use: in a window that was judged, and not rejected. Order kept."""
    judged = _first_seen(lake, problem.name).filter(pl.col("first_revision") <= validated_revision(lake, problem.name))
    out = pl.Series(list(rejected(lake, problem.name)), dtype=pl.String)
    may = judged.filter(~pl.col("id").is_in(out.implode())).select("id").collect()
    return rows.join(may, on="id", how="semi", maintain_order="left")


def validate_pending(
    lake: Lake,
    problem: Problem,
    *,
    folder: Path | None,
    now: float,
    force: bool = False,
    validator: Validator | None = None,
) -> WindowReport | None:
    """The whole step: the window that is due, judged by the problem's suite and recorded. None when none is due."""
    window = pending_window(lake, problem.name, now=now, force=force)
    if window is None:
        return None
    suite = ensure(lake, problem, folder=folder)
    span = (window.first, window.last)
    report = validate(window.frame, suite, problem, now=now, validator=validator, revisions=span)
    admit_window(lake, report)
    return report
