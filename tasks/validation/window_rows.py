"""What a suite says of the single rows of a window: by Great Expectations, or by the compiled checks with it as their judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from truing.tasks.problem import Problem
from truing.tasks.validation.checks import as_float, compile, test_of
from truing.tasks.validation.rules import DELAY, EXTRA, FIRST, Suite, about_rows, effective, row_plugins
from truing.tasks.validation.validator import ID, Finding, Validator, reason_of
from truing.tasks.validation.window_words import wanted

SAMPLE = 1_000  # rows of a large window that Great Expectations is asked about; up to so many it is asked about all
_INT = 2**63 - 1


def _raw(ids: Sequence[str], inputs: Sequence[Mapping[str, Any]], problem: Problem) -> Any:
    """The window as pandas, values as they came: columns of objects, null where absent."""
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {ID: pd.Series(list(ids), dtype=object)}
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
    frame = raw.drop(columns=[EXTRA])
    for name, spec in problem.inputs.items():
        if spec.type == "number":
            frame[name] = _floats([inputs[row].get(name) for row in raw.index])
    return frame


def _floats(values: Sequence[Any]) -> Any:
    import numpy as np

    return np.array([np.nan if value is None else as_float(value) for value in values], dtype="float64")


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
        return rows[~rows[ID].isin(list(failed))]

    raw = _raw(ids, inputs, problem)
    left = judge(raw, validator.run(raw, early, name))
    if len(left):
        typed = _typed(left, inputs, problem)
        left = judge(typed, validator.run(typed, late, name))
    plugged = [asked_of(one, left, problem, functions) for one in ours if one["type"] in functions] if len(left) else []
    return failed, judge(left, plugged), findings


def asked_of(one: Mapping[str, Any], rows: Any, problem: Problem, functions: Mapping[str, Any]) -> tuple[Finding, list[str]]:
    """A plug-in's function on every row of a window."""
    test, column, kwargs = test_of(one, problem, functions), one["kwargs"]["column"], one["kwargs"]
    values = (None if value != value else value for value in rows[column])
    failed = [str(row) for row, value in zip(rows[ID], values, strict=True) if test(value) is not None]
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


def judge_many(
    ids: Sequence[str], inputs: Sequence[Mapping[str, Any]], suite: Suite | None, problem: Problem, validator: Validator
) -> tuple[dict[str, str], Any, list[Finding]]:
    """`judge_rows` by the compiled checks, 50 times faster, with Great Expectations as their judge on rows evenly spread.

    Should they differ on one of these, Great Expectations is asked about all rows, its word counts, and a finding says so.
    """
    failed, findings = by_checks(ids, inputs, suite, problem)
    some = range(0, len(ids), max(1, len(ids) // SAMPLE))
    theirs, _, _ = judge_rows([ids[n] for n in some], [inputs[n] for n in some], suite, problem, validator)
    differ = theirs.keys() ^ {ids[n] for n in some if ids[n] in failed}
    if differ:
        failed, left, findings = judge_rows(ids, inputs, suite, problem, validator)
        what = "the checks at the door to agree with Great Expectations"
        findings.append(Finding(type="row_checks", column="", success=False, rows=True, failed=len(differ), expected=what))
        return failed, left, findings
    good = [n for n, row in enumerate(ids) if row not in failed]
    kept = [inputs[n] for n in good]
    return failed, _whole([ids[n] for n in good], kept, problem), findings


def _whole(ids: Sequence[str], inputs: Sequence[Mapping[str, Any]], problem: Problem) -> Any:
    """Rows that hold, in the types that pandas hashes fastest, as Great Expectations has it do: float64, and words in Arrow."""
    import pandas as pd

    columns: dict[str, Any] = {ID: pd.Series(list(ids), dtype="str")}
    for name, spec in problem.inputs.items():
        values = [one.get(name) for one in inputs]
        columns[name] = _floats(values) if spec.type == "number" else pd.Series(values, dtype="str")
    return pd.DataFrame(columns)


def by_checks(
    ids: Sequence[str], inputs: Sequence[Mapping[str, Any]], suite: Suite | None, problem: Problem
) -> tuple[dict[str, str], list[Finding]]:
    """The rows' own faults by the checks of the door, and a finding for each expectation about rows."""
    rules = effective(suite, problem)
    functions = row_plugins(rules)
    reasons = compile(suite, problem)(inputs)
    failed = {row: why for row, why in zip(ids, reasons, strict=True) if why is not None}
    bad = [one for one, why in zip(inputs, reasons, strict=True) if why is not None]
    about = [one for one in rules["expectations"] if about_rows(one, functions) and one["kwargs"].get("column") != DELAY]
    findings = []
    for early in (True, False):  # as in judge_rows: what has not its type is not asked the rest
        left = []
        counts = dict.fromkeys(range(len(about)), 0)
        for row in bad:
            fails = [
                n for n, one in enumerate(about) if (one["type"] in FIRST) is early and _fails(one, row, problem, functions)
            ]
            counts.update({n: counts[n] + 1 for n in fails})
            left += [row] if early and not fails else []
        bad = left
        findings += [
            Finding(
                type=one["type"],
                column=one["kwargs"]["column"],
                success=not counts[n],
                rows=True,
                failed=counts[n],
                expected=wanted(one["type"], {k: v for k, v in one["kwargs"].items() if k != "column"}),
            )
            for n, one in enumerate(about)
            if (one["type"] in FIRST) is early
        ]
    return failed, findings


def _fails(one: Mapping[str, Any], row: Mapping[str, Any], problem: Problem, functions: Mapping[str, Any]) -> bool:
    column = one["kwargs"]["column"]
    if column == EXTRA:
        return not set(problem.inputs).issuperset(row)
    value = row.get(column)
    return test_of(one, problem, functions)(None if value != value else value) is not None
