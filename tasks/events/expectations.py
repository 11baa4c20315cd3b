"""Great Expectations on one window of rows: what fails alone goes alone, a window that fails goes whole, each with a reason.

Row checks compiled from the same suite (`truing.tasks.events.checks`) have decided before the commit already; a window shows
what no row does: volume, delay, means and quantiles, null shares, the mix of categories, and what a suite edited since forbids.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from truing.tasks import plugins
from truing.tasks.errors import ProblemError
from truing.tasks.events.checks import as_float, compile, test_of
from truing.tasks.events.rules import DELAY, EXTRA, FIRST, Suite, about_rows, effective, fingerprint, row_plugins
from truing.tasks.events.window_words import observed, wanted
from truing.tasks.problem import Problem
from truing.tasks.records import Record

if TYPE_CHECKING:
    import polars as pl

MIN_ROWS = "min_rows"  # meta of an expectation about windows: smaller windows are not asked, chance moves them too much
_ID, _INT = "id", 2**63 - 1


class Finding(Record, frozen=True):
    """What one expectation said of a window, in words. `failed` counts rows."""

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
    rules: str = ""  # fingerprint of what it was judged by; another one is a reason to judge again


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
        types = Counter(str(one["type"]) for one in expectations)
        found = plugins.plugins(plugins.EXPECTATIONS)
        for kind in types.keys() & found.keys():
            plugins.load(found[kind])  # a class enters Great Expectations' registry when it is defined
        try:
            suite = self._suite(name=name, expectations=[dict(one) for one in expectations])
        except (self._error, TypeError, ValueError) as error:
            raise ProblemError(
                f"suite {name}: expected types and kwargs of Great Expectations, got {_line(error)}; mend it"
            ) from None
        left = types - Counter(str(one.expectation_type) for one in suite.expectations)
        if left:  # what it can't build, it leaves out and only logs
            raise ProblemError(f"suite {name}: expected types and kwargs of Great Expectations, got a bad {min(left)}; mend it")
        form = {"result_format": "COMPLETE", "unexpected_index_column_names": [_ID], "include_unexpected_rows": False}
        result = self._batch.get_batch({"dataframe": frame}).validate(suite, result_format=form)
        return [_finding(one) for one in result.results]


def _finding(one: Any) -> tuple[Finding, list[str]]:
    config = one.expectation_config
    kwargs = {k: v for k, v in config.kwargs.items() if k not in ("column", "batch_id")}
    failed = [str(row[_ID]) for row in one.result.get("unexpected_index_list") or []]
    finding = Finding(
        type=config.type,
        column=config.kwargs.get("column") or "",
        success=bool(one.success),
        rows=about_rows({"type": config.type, "kwargs": {k: v for k, v in config.kwargs.items() if k != "batch_id"}}),
        failed=len(failed),
        expected=wanted(config.type, kwargs),
        observed=observed(config.type, one.result, bool(one.success), mostly=float(kwargs.get("mostly", 1))),
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
        # numpy's bool is no int for Great Expectations; Python's is one. pandas hashes no int beyond 64 bits: here types count
        plain = [np.bool_(v) if isinstance(v, bool) else max(-_INT, min(v, _INT)) if type(v) is int else v for v in values]
        columns[name] = pd.Series(plain, dtype=object)
    known = set(problem.inputs)
    extra = [", ".join(sorted(set(one) - known)) or None for one in inputs]
    columns[EXTRA] = pd.Series(extra, dtype=object)
    return pd.DataFrame(columns)


def _typed(raw: Any, inputs: Sequence[Mapping[str, Any]], problem: Problem) -> Any:
    """Rows whose types held, numbers as float64: Great Expectations can't compare objects."""
    import numpy as np

    frame = raw.drop(columns=[EXTRA])
    for name, spec in problem.inputs.items():
        if spec.type == "number":
            values = [inputs[row].get(name) for row in raw.index]
            frame[name] = np.array([np.nan if value is None else as_float(value) for value in values], dtype="float64")
    return frame


def judge_rows(
    ids: Sequence[str], inputs: Sequence[Mapping[str, Any]], suite: Suite | None, problem: Problem, validator: Validator
) -> tuple[dict[str, str], Any, list[Finding]]:
    """What the suite says of single rows: {id: first reason} of those that fail, the good ones as pandas, all findings.

    In two steps, since Great Expectations raises on what has not its type: types and nulls of all rows, then the rest on those
    left. Row functions of plug-ins are asked after them.
    """
    rules = effective(suite, problem)
    name, functions = str(rules["name"]), row_plugins(rules)
    ours = [one for one in rules["expectations"] if about_rows(one, functions)]
    early = [one for one in ours if one["type"] in FIRST]
    late = [one for one in ours if one["type"] not in FIRST and one["type"] not in functions]
    failed: dict[str, str] = {}
    findings: list[Finding] = []

    def judge(rows: Any, found: Sequence[tuple[Finding, list[str]]]) -> Any:
        for finding, fails in found:
            findings.append(finding)
            for row in fails:
                failed.setdefault(row, reason_of(finding))
        return rows[~rows[_ID].isin(list(failed))]

    raw = _raw(ids, inputs, problem)
    left = judge(raw, validator.run(raw, early, name))
    if len(left):
        typed = _typed(left, inputs, problem)
        left = judge(typed, validator.run(typed, late, name))
    plugged = [_asked(one, left, problem, functions) for one in ours if one["type"] in functions] if len(left) else []
    return failed, judge(left, plugged), findings


def _asked(one: Mapping[str, Any], rows: Any, problem: Problem, functions: Mapping[str, Any]) -> tuple[Finding, list[str]]:
    """A plug-in's function on every row of a window."""
    test, column, kwargs = test_of(one, problem, functions), one["kwargs"]["column"], one["kwargs"]
    values = (None if value != value else value for value in rows[column])
    failed = [str(row) for row, value in zip(rows[_ID], values, strict=True) if test(value) is not None]
    share, mostly = 1 - len(failed) / len(rows), float(kwargs.get("mostly", 1))
    finding = Finding(
        type=one["type"],
        column=column,
        success=share >= mostly,
        rows=mostly >= 1,
        failed=len(failed),
        expected=wanted(one["type"], {k: v for k, v in kwargs.items() if k != "column"}),
        observed="" if share >= mostly or mostly >= 1 else f"{share:.3g}",
    )
    return finding, failed


def validate(
    frame: pl.DataFrame,
    suite: Suite | None,
    problem: Problem,
    *,
    now: float,
    validator: Validator | None = None,
    revisions: tuple[int, int] = (0, 0),
) -> WindowReport:
    """Judge a window (columns id, content: JSON of the inputs; perhaps `delay_s`): rows alone, then the window of good ones.

    Without a validator, and where nothing is asked of the window itself, the compiled checks answer for the rows (they agree
    with Great Expectations: tests/benchmarks/checks_agree.py) and seconds of imports are saved. Raises ProblemError when the
    suite is no suite.
    """
    rules = effective(suite, problem)
    name, functions = str(rules["name"]), row_plugins(rules)
    ids = frame["id"].to_list()
    inputs = [msgspec.json.decode(content) for content in frame["content"]]
    delays = frame[DELAY] if DELAY in frame.columns and frame[DELAY].null_count() < frame.height else None
    whole = [
        one
        for one in rules["expectations"]
        if not about_rows(one, functions)
        and len(ids) >= int(one.get("meta", {}).get(MIN_ROWS, 0))
        and (one["kwargs"].get("column") != DELAY or delays is not None)
    ]
    if validator is None and not whole:
        failed, findings = _compiled(ids, inputs, suite, problem)
        good = len(ids) - len(failed)
    else:
        validator = validator or Validator()
        failed, left, findings = judge_rows(ids, inputs, suite, problem, validator)
        good = len(left)
        if good:
            if delays is not None:
                left = left.assign(**{DELAY: left[_ID].map(dict(zip(ids, delays, strict=True))).astype("float64")})
            findings += [
                finding for finding, _ in validator.run(left, [one for one in whole if one["type"] not in functions], name)
            ]
            findings += [_asked(one, left, problem, functions)[0] for one in whole if one["type"] in functions]
    against = [finding for finding in findings if not finding.rows and not finding.success]
    broken = [finding for finding in findings if finding.rows and not finding.success and not finding.failed]
    reasons = [reason_of(finding) for finding in (*against, *broken)]
    if ids and not good:
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
        rules=fingerprint(rules),
    )


def _compiled(
    ids: Sequence[str], inputs: Sequence[Mapping[str, Any]], suite: Suite | None, problem: Problem
) -> tuple[dict[str, str], list[Finding]]:
    """The rows' own faults by the checks of the door, and one finding that says so."""
    reasons = compile(suite, problem)(inputs)
    failed = {row: why for row, why in zip(ids, reasons, strict=True) if why is not None}
    finding = Finding(
        type="row_checks",
        column="",
        success=not failed,
        rows=True,
        failed=len(failed),
        expected="what is asked of each row alone",
    )
    return failed, [finding]


def reason_of(finding: Finding) -> str:
    """One line: column, what was expected, what was got."""
    where = f"{finding.column}: " if finding.column else ""
    return f"{where}expected {finding.expected}" + (f", got {finding.observed}" if finding.observed else "")
