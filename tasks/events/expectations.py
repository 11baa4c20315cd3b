"""Great Expectations on one window of rows: what fails alone goes alone, a window that fails goes whole, each with a reason.

Row checks compiled from the same suite (`truing.tasks.events.checks`) have decided before the commit already; a window shows
what no row does: means, null shares, the mix of categories, and what a suite edited since then forbids.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from truing.tasks.errors import ProblemError
from truing.tasks.events.checks import EXTRA, FIRST, Suite, about_rows, effective
from truing.tasks.problem import Problem
from truing.tasks.records import Record

if TYPE_CHECKING:
    import polars as pl

MIN_ROWS = "min_rows"  # meta of an expectation about windows: smaller windows are not asked, chance moves them too much
_ID = "id"


class Finding(Record, frozen=True):
    """What one expectation said of a window. `failed` counts rows; `observed` is Great Expectations' value in words."""

    type: str
    column: str
    success: bool
    rows: bool  # about rows, or about the window
    failed: int = 0
    expected: str = ""
    observed: str = ""


class WindowReport(Record, frozen=True):
    """One window judged. `success` False rejects all of it; else the rows in `failed` alone (id → why) are rejected."""

    id: str
    problem: str
    first: int  # revisions of the rows, first and last
    last: int
    rows: int
    success: bool
    reason: str
    failed: dict[str, str]
    findings: tuple[Finding, ...]
    suite: str  # name of the suite
    at: float


class Validator:
    """A Great Expectations context that lives: its import takes 3-5 s, so one process should make it once."""

    def __init__(self) -> None:
        import great_expectations as gx

        for name in ("great_expectations.core.expectation_suite", "great_expectations.validator.validator"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they log what we raise
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("windows").add_dataframe_asset("window")
        self._batch = asset.add_batch_definition_whole_dataframe("whole")
        self._suite = gx.ExpectationSuite
        self._error = gx.exceptions.GreatExpectationsError

    def run(self, frame: Any, expectations: Sequence[Mapping[str, Any]], name: str) -> list[tuple[Finding, list[str]]]:
        """Each expectation on a pandas frame with a column `id`: (finding, ids of failing rows). Raises ProblemError."""
        if not expectations:
            return []
        try:
            suite = self._suite(name=name, expectations=[dict(one) for one in expectations])
        except (self._error, TypeError, ValueError) as error:
            raise ProblemError(
                f"suite {name}: expected types and kwargs of Great Expectations, got {_line(error)}; mend it"
            ) from None
        left = Counter(str(one["type"]) for one in expectations) - Counter(
            str(one.expectation_type) for one in suite.expectations
        )
        if left:  # what it can't build, it leaves out and only logs
            raise ProblemError(f"suite {name}: expected types and kwargs of Great Expectations, got a bad {min(left)}; mend it")
        form = {"result_format": "COMPLETE", "unexpected_index_column_names": [_ID], "include_unexpected_rows": False}
        result = self._batch.get_batch({"dataframe": frame}).validate(suite, result_format=form)
        return [_finding(one) for one in result.results]


def _finding(one: Any) -> tuple[Finding, list[str]]:
    config = one.expectation_config
    kwargs = {k: v for k, v in config.kwargs.items() if k not in ("column", "batch_id")}
    failed = [str(row[_ID]) for row in one.result.get("unexpected_index_list") or []]
    observed = one.result.get("observed_value")
    if not one.result and not one.success:
        observed = "nothing: it could not be computed on this column"
    elif isinstance(observed, float):
        observed = f"{observed:.6g}"
    if "partition_object" in kwargs:
        kwargs["partition_object"] = "the profiled mix"
    finding = Finding(
        type=config.type,
        column=config.kwargs.get("column") or "",
        success=bool(one.success),
        rows=about_rows({"type": config.type, "kwargs": {k: v for k, v in config.kwargs.items() if k != "batch_id"}}),
        failed=len(failed),
        expected=", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in kwargs.items()),
        observed="" if observed is None else str(observed),
    )
    return finding, failed


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _raw(ids: Sequence[str], inputs: Sequence[Mapping[str, Any]], problem: Problem) -> Any:
    """The window as pandas, values as they came: columns of objects, null where absent."""
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {_ID: pd.Series(list(ids), dtype=object)}
    for name in problem.inputs:
        values: list[Any] = [one.get(name) for one in inputs]
        # numpy's bool is no int for Great Expectations; Python's is one
        columns[name] = pd.Series([np.bool_(v) if isinstance(v, bool) else v for v in values], dtype=object)
    known = set(problem.inputs)
    extra = [", ".join(sorted(set(one) - known)) or None for one in inputs]
    columns[EXTRA] = pd.Series(extra, dtype=object)
    return pd.DataFrame(columns)


def _typed(raw: Any, problem: Problem) -> Any:
    """Rows whose types held, numbers as float64: Great Expectations can't compare objects."""
    frame = raw.drop(columns=[EXTRA])
    return frame.astype({name: "float64" for name, spec in problem.inputs.items() if spec.type == "number"})


def validate(
    frame: pl.DataFrame,
    suite: Suite | None,
    problem: Problem,
    *,
    now: float,
    validator: Validator | None = None,
    revisions: tuple[int, int] = (0, 0),
) -> WindowReport:
    """Judge a window (columns id, content: JSON of the inputs) with Great Expectations.

    In three steps, since it raises on what has not its type: types and nulls of all rows; then the other expectations about
    rows, on those left; then those about the window, on the good rows. Raises ProblemError when the suite is no suite.
    """
    validator = validator or Validator()
    rules = effective(suite, problem)
    name, wanted = str(rules["name"]), rules["expectations"]
    ids = frame["id"].to_list()
    inputs = [msgspec.json.decode(content) for content in frame["content"]]
    early = [one for one in wanted if about_rows(one) and one["type"] in FIRST]
    late = [one for one in wanted if about_rows(one) and one["type"] not in FIRST]
    whole = [one for one in wanted if not about_rows(one) and len(ids) >= int(one.get("meta", {}).get(MIN_ROWS, 0))]
    failed: dict[str, str] = {}
    findings: list[Finding] = []

    def judge(rows: Any, expectations: list[dict[str, Any]]) -> Any:
        """The rows that hold; what fails is noted with its first reason."""
        for finding, fails in validator.run(rows, expectations, name):
            findings.append(finding)
            for row in fails:
                failed.setdefault(row, _reason(finding))
        return rows[~rows[_ID].isin(list(failed))]

    left = judge(_raw(ids, inputs, problem), early)
    good = judge(_typed(left, problem), late) if len(left) else left
    if len(good):
        findings += [finding for finding, _ in validator.run(good, whole, name)]
    against = [finding for finding in findings if not finding.rows and not finding.success]
    broken = [finding for finding in findings if finding.rows and not finding.success and not finding.failed]
    reasons = [_reason(finding) for finding in (*against, *broken)]
    if ids and not len(good):
        reasons.append("no row of it holds")
    first, last = revisions
    return WindowReport(
        id=f"{problem.name}:{first}-{last}",
        problem=problem.name,
        first=first,
        last=last,
        rows=len(ids),
        success=not reasons,
        reason="; ".join(reasons),
        failed=failed,
        findings=tuple(findings),
        suite=name,
        at=now,
    )


def _reason(finding: Finding) -> str:
    rule = finding.type.removeprefix("expect_").removeprefix("column_").replace("_", " ")
    where = f"{finding.column}: " if finding.column else ""
    return (
        f"{where}expected {rule}"
        + (f" ({finding.expected})" if finding.expected else "")
        + (f", got {finding.observed}" if finding.observed else "")
    )
