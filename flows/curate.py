"""Curate: windows of landed rows → judged by the problem's suite; small Delta files merged now and then."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

MOST = 20  # windows of one run
FILES = 200  # of a table, above which it is compacted


@flow(name="curate", flow_run_name="curate {problem}", persist_result=False, retries=1, retry_delay_seconds=5)
def curate(problem: str, force: bool = False) -> dict[str, Any]:
    """Judge what is due; with `force` also a small and young window. Rows that no window admitted never teach.

    Windows that left rows out under another suite than today's are judged again, so a mended suite needs nobody's word.
    """
    from truing.infra.catalog import chosen
    from truing.infra.settings import current
    from truing.tasks.tables.lake import Lake

    settings, log = current(), get_run_logger()
    spec, _ = chosen(settings.problems, problem)
    lake = Lake(settings.lake)
    reports = judge(lake, spec, settings.problems / problem, force=force)
    if reports:
        _show(problem, reports, keep_page(settings.lake, reports[-1]))
    compacted = lake.compact(above=FILES)
    rejected = sum(1 for one in reports if not one.success)
    log.info("%d windows judged, %d rejected; compacted %s", len(reports), rejected, compacted or "nothing")
    return {"windows": len(reports), "rejected": rejected, "rows": sum(one.rows for one in reports), "compacted": compacted}


def judge(lake: Any, problem: Any, folder: Any, *, force: bool) -> list[Any]:
    """Every window that is due, and those due again, judged and recorded. Without one Great Expectations is not imported."""
    from truing.tasks.validation.expectations import Validator
    from truing.tasks.validation.suite import judge_again, pending_window, to_judge_again, validate_pending

    found: list[Any] = []
    again = to_judge_again(lake, problem, folder=folder)[-MOST:]
    if not again and pending_window(lake, problem.name, now=time.time(), force=force) is None:
        return found
    validator = Validator()
    for before in again:
        found.append(judge_again(lake, problem, before.id, folder=folder, now=time.time(), validator=validator))
    while len(found) < MOST:
        report = validate_pending(lake, problem, folder=folder, now=time.time(), force=force, validator=validator)
        if report is None:
            break
        found.append(report)
    return found


def keep_page(lake: Path, report: Any) -> Path | None:
    """The newest window as a page of its own, `<lake>/pages/window-<problem>.html`; None where it can't be written."""
    from truing.tasks.validation.window_page import page

    path = lake / "pages" / f"window-{report.problem}.html"
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text(page(report))
    except OSError as error:
        get_run_logger().warning("%s: can't be written (%s)", path, error.strerror)
        return None
    return path


def _show(problem: str, reports: list[Any], path: Path | None) -> None:
    from truing.tasks.validation.window_page import summary

    lines = [
        {
            "window": one.id,
            "rows": one.rows,
            "verdict": "admitted" if one.success else "rejected",
            "failed alone": len(one.failed),
            "reason": one.reason,
        }
        for one in reports
    ]
    create_table_artifact(lines, key=f"windows-{problem}", description=f"Windows of {problem} judged in this run")
    text = summary(reports[-1]) + (f"\nAs a page: `{path}`\n" if path else "")
    create_markdown_artifact(text, key=f"window-{problem}", description="The newest window in full")
