"""Windows of landed rows: which are due, what became of them, and which rows learning may use.

A window is what was joined since the last one, once it is large or old enough. Learning uses only rows whose window was judged
(`usable`), without the rows that failed alone and without windows that failed whole. Holdout rows are judged at the door alone.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from truing.tasks.events.lake import Lake
from truing.tasks.events.suite import Validator, WindowReport, ensure, validate
from truing.tasks.problem import Problem
from truing.tasks.records import Record

WINDOW_ROWS, WINDOW_S = 10_000, 10.0  # a window is due with so many rows, or when its oldest row waits so long


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
    """Record the result: from now on `usable` counts this window's rows in, or leaves them out."""
    lake.record("windows", [report])


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


def usable(lake: Lake, problem: str, *, splits: Sequence[str] | None = None, labelled: bool | None = None) -> pl.DataFrame:
    """`Lake.rows` without what no window has judged yet and without what was rejected: all that curate may use."""
    done = validated_revision(lake, problem)
    out = pl.Series(list(rejected(lake, problem)), dtype=pl.String)
    judged = _first_seen(lake, problem).filter(pl.col("first_revision") <= done).select("id").collect()
    rows = lake.rows(problem, splits=splits, labelled=labelled)
    return rows.join(judged, on="id", how="semi", maintain_order="left").filter(~pl.col("id").is_in(out.implode()))


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


# --- for people ---------------------------------------------------------------------------------------------------------------


def summary(report: WindowReport) -> str:
    """The window in Markdown, for a Prefect artifact."""
    lines = [
        f"**Window {report.id}**: {'admitted' if report.success else 'rejected'}, {report.rows} rows, "
        f"{len(report.failed)} failed alone" + (f". {report.reason}" if report.reason else "."),
        "",
    ]
    bad = [finding for finding in report.findings if not finding.success]
    if bad:
        lines += ["| column | expectation | failing rows | observed |", "|---|---|---:|---|"]
        lines += [f"| {f.column or 'window'} | {f.type} {_cell(f.expected)} | {f.failed} | {_cell(f.observed)} |" for f in bad]
    else:
        lines.append(f"All {len(report.findings)} expectations hold.")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1c2430}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0}td,th{border-bottom:1px solid #d5dbe3;padding:.35rem .5rem;"
    "text-align:left;vertical-align:top}.bad{color:#a4262c;font-weight:600}.good{color:#1d6b3a;font-weight:600}"
)


def page(report: WindowReport) -> str:
    """The window as one self-contained HTML page: no script, nothing loaded from elsewhere."""

    def row(*cells: str, tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    def word(success: bool) -> str:
        return '<span class="good">holds</span>' if success else '<span class="bad">fails</span>'

    text = html.escape
    findings = "".join(
        row(text(f.column or "window"), text(f.type), text(f.expected), word(f.success), str(f.failed), text(f.observed))
        for f in report.findings
    )
    failing = "".join(row(text(name), text(why)) for name, why in list(report.failed.items())[:200])
    more = f"<p>and {len(report.failed) - 200} more</p>" if len(report.failed) > 200 else ""
    verdict = '<span class="good">admitted</span>' if report.success else '<span class="bad">rejected</span>'
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Window {text(report.id)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>Window {text(report.id)}</h1>"
        f"<p>{verdict}: {report.rows} rows of {text(report.problem)}, {len(report.failed)} failed alone.</p>"
        f"<p>{text(report.reason)}</p>"
        f"<table>{row('column', 'expectation', 'expected', '', 'failing rows', 'observed', tag='th')}{findings}</table>"
        + (f"<h2>Rows that failed alone</h2><table>{row('row', 'reason', tag='th')}{failing}</table>{more}" if failing else "")
        + "</body></html>"
    )
