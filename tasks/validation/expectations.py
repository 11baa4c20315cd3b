"""Great Expectations on one window of rows: what fails alone goes alone, a window that fails goes whole, each with a reason.

Row checks compiled from the same suite (`checks.py`) have decided before the commit already; a window shows
what no row does: volume, delay, means and quantiles, null shares, the mix of categories, and what a suite edited since forbids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from truing.tasks.problem import Problem
from truing.tasks.records import Record
from truing.tasks.validation.rules import DELAY, TYPES, Suite, about_rows, effective, fingerprint, row_plugins
from truing.tasks.validation.validator import ID, Finding, Validator, reason_of
from truing.tasks.validation.window_rows import SAMPLE, asked_of, by_checks, judge_many, judge_rows

if TYPE_CHECKING:
    import polars as pl

__all__ = ["MIN_ROWS", "Finding", "Validator", "WindowReport", "validate"]

MIN_ROWS = "min_rows"  # meta of an expectation about windows: smaller windows are not asked, chance moves them too much


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
    asked: int = 0  # expectations that judged; of those that held nothing else is kept


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

    Of a large window, and without a validator where nothing is asked of the window itself, the compiled checks answer for the
    rows (they agree with Great Expectations: tests/benchmarks/checks_agree.py). Raises ProblemError when the suite is no suite.
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
        failed, findings = by_checks(ids, inputs, suite, problem)
        good = len(ids) - len(failed)
    else:
        validator = validator or Validator()
        judge = judge_rows if len(ids) <= SAMPLE else judge_many
        failed, left, findings = judge(ids, inputs, suite, problem, validator)
        good = len(left)
        if good:
            if delays is not None:
                left = left.assign(**{DELAY: left[ID].map(dict(zip(ids, delays, strict=True))).astype("float64")})
            asked = [one for one in whole if one["type"] not in functions]
            if any(one["type"] in TYPES for one in asked):  # it looks at each value's type only where they are objects
                words = [column for column, spec in problem.inputs.items() if spec.type == "category"]
                left = left.astype(dict.fromkeys(words, object))
            findings += [finding for finding, _ in validator.run(left, asked, name, which=False)]
            findings += [asked_of(one, left, problem, functions)[0] for one in whole if one["type"] in functions]
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
        asked=len(findings),
        suite=name,
        at=now,
        rules=fingerprint(rules),
    )
