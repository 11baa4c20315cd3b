"""A Great Expectations context that lives, and what its expectations said, in words."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from truing.tasks import plugins
from truing.tasks.errors import ProblemError
from truing.tasks.records import Record
from truing.tasks.validation.rules import about_rows
from truing.tasks.validation.window_words import observed, wanted

ID = "id"  # the column of a window that names its rows


class Finding(Record, frozen=True):
    """What one expectation said of a window, in words. `failed` counts rows."""

    type: str
    column: str
    success: bool
    rows: bool  # about rows, or about the window
    failed: int = 0
    expected: str = ""
    observed: str = ""


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

    def run(
        self, frame: Any, expectations: Sequence[Mapping[str, Any]], name: str, *, which: bool = True
    ) -> list[tuple[Finding, list[str]]]:
        """Each expectation on a pandas frame with a column `id`: (finding, ids of failing rows). Raises ProblemError.

        Without `which` no ids: most of the time of a large window goes into finding them.
        """
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
        ids = {"result_format": "COMPLETE", "unexpected_index_column_names": [ID], "include_unexpected_rows": False}
        form: Any = ids if which else "BASIC"
        result = self._batch.get_batch({"dataframe": frame}).validate(suite, result_format=form)
        return [_finding(one) for one in result.results]


def _finding(one: Any) -> tuple[Finding, list[str]]:
    config = one.expectation_config
    kwargs = {k: v for k, v in config.kwargs.items() if k not in ("column", "batch_id")}
    failed = [str(row[ID]) for row in one.result.get("unexpected_index_list") or []]
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


def reason_of(finding: Finding) -> str:
    """One line: column, what was expected, what was got."""
    where = f"{finding.column}: " if finding.column else ""
    return f"{where}expected {finding.expected}" + (f", got {finding.observed}" if finding.observed else "")
