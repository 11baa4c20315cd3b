"""Windows of joined rows, judged by the problem's suite, and what that decides: learning uses judged rows only.

A window is what was joined since the last one, once it is large or old enough. Out stay the rows that failed alone and windows
that failed whole, until they are judged again under a mended suite: all judgements stay in the record, the latest counts. The
vault's rows are judged in the same way by who lets them judge: see holdout.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from truing.tasks.errors import DataError
from truing.tasks.problem import Problem
from truing.tasks.records import Record, Split
from truing.tasks.tables.lake import Lake
from truing.tasks.tables.store import Store
from truing.tasks.validation.expectations import Validator, WindowReport, validate
from truing.tasks.validation.profile import ensure, profile
from truing.tasks.validation.rules import DELAY, effective, fingerprint

__all__ = ["Window", "WindowReport", "ensure", "profile", "reports"]

WINDOW_ROWS, WINDOW_S = 10_000, 10.0  # a window is due with so many rows, or when its oldest row waits so long
TABLE = "windows"


class Window(Record, frozen=True):
    """Rows to be judged: `frame` has id, content and delay_s; their first states have revisions first..last."""

    problem: str
    first: int
    last: int
    frame: Any  # a polars frame


# --- what was judged ----------------------------------------------------------------------------------------------------------


def reports(lake: Lake, problem: str) -> list[WindowReport]:
    """The latest judgement of every window, in the order in which they were made."""
    return lake.records(TABLE, WindowReport, problem=problem)


def judgements(lake: Lake, problem: str, window: str) -> list[WindowReport]:
    """All judgements of one window, oldest first."""
    frame = lake.read(TABLE, ["seq", "json"], (pl.col("problem") == problem) & (pl.col("id") == window)).sort("seq")
    return [msgspec.json.decode(text, type=WindowReport) for text in frame["json"]]


def validated_revision(lake: Lake, problem: str) -> int:
    """Rows first joined at a later landing version than this have not been judged; -1 before the first window."""
    return last_of(reports(lake, problem))


def last_of(known: Iterable[WindowReport]) -> int:
    return max((report.last for report in known), default=-1)


def admit_window(lake: Lake, report: WindowReport) -> None:
    """Record the result (of the findings those that failed): `admitted` counts this window's rows in, or leaves them out."""
    lake.record(TABLE, [brief(report)])


def brief(report: WindowReport) -> WindowReport:
    """What is kept of a report: of its findings those that failed."""
    return msgspec.structs.replace(report, findings=tuple(finding for finding in report.findings if not finding.success))


# --- windows of a table -------------------------------------------------------------------------------------------------------


def _first_seen(store: Store, problem: str, table: str) -> pl.LazyFrame:
    """id and the revision of its first state: the state that fixed its content."""
    states = store.scan(table).filter(pl.col("problem") == problem)
    return states.group_by("id").agg(pl.col("revision").min().alias("first_revision"))


def window_of(store: Store, problem: str, *, first: int, last: int | None = None, table: str = "rows") -> pl.DataFrame:
    """Rows whose first state has a revision of first..last: id, content, revision, landed_at, delay_s. Erased ones are gone."""
    asked = pl.col("first_revision") >= first if last is None else pl.col("first_revision").is_between(first, last)
    wanted = _first_seen(store, problem, table).filter(asked).collect()
    states = store.scan(table).filter(pl.col("problem") == problem, pl.col("revision") >= first)
    loaded = pl.col("split") == str(Split.TRUSTED)
    frame = (
        states.join(wanted.lazy(), left_on=["id", "revision"], right_on=["id", "first_revision"], how="semi")
        .unique("id", keep="first")
        .with_columns(pl.when(~loaded).then(pl.col("landed_at") - pl.col("asked_at")).alias(DELAY))
        .select("id", "content", "subject", "revision", "landed_at", DELAY)
        .sort("revision", "id")
        .collect()
    )
    return store.opened(frame, "content", "subject")


def pending_window(
    store: Store, problem: str, *, now: float, force: bool = False, done: int | None = None, table: str = "rows"
) -> Window | None:
    """Rows not judged yet, if due: at least 10,000, or the oldest landed 10 s before `now`, or forced. None if not, or none.

    `done` is the last revision that was judged; by default what the lake's record says.
    """
    if done is None:
        done = validated_revision(store, problem) if isinstance(store, Lake) else -1
    frame = window_of(store, problem, first=done + 1, table=table)
    if not frame.height:
        return None
    oldest = frame.select(pl.col("landed_at").min()).item()
    if not force and frame.height < WINDOW_ROWS and oldest is not None and now - oldest < WINDOW_S:
        return None
    first, last = frame["revision"][0], frame["revision"][-1]
    return Window(problem=problem, first=first, last=last, frame=judged_part(frame))


def judged_part(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("content").is_not_null()).select("id", "content", DELAY)


# --- what follows from it -----------------------------------------------------------------------------------------------------


def out_of(known: Iterable[WindowReport], store: Store, problem: str, *, table: str = "rows") -> dict[str, str]:
    """{row id: reason} of all rows that these judgements leave out: failed alone, or in a window that failed."""
    out: dict[str, str] = {}
    seen: pl.DataFrame | None = None
    for report in known:
        out |= report.failed
        if not report.success:
            seen = _first_seen(store, problem, table).collect() if seen is None else seen
            inside = seen.filter(pl.col("first_revision").is_between(report.first, report.last))
            out |= {row: f"window {report.id}: {report.reason}" for row in inside["id"] if row not in report.failed}
    return out


def rejected(lake: Lake, problem: str) -> dict[str, str]:
    """{row id: reason} of all rows that learning must leave out."""
    return out_of(reports(lake, problem), lake, problem)


def admitted(lake: Lake, problem: Problem, rows: pl.DataFrame) -> pl.DataFrame:
    """Of these rows (column id) those that learning may use: in a window that was judged, and not rejected. Order kept."""
    known = reports(lake, problem.name)
    judged = _first_seen(lake, problem.name, "rows").filter(pl.col("first_revision") <= last_of(known))
    out = pl.Series(list(out_of(known, lake, problem.name)), dtype=pl.String)
    may = judged.filter(~pl.col("id").is_in(out.implode())).select("id").collect()
    return rows.join(may, on="id", how="semi", maintain_order="left")


# --- judging ------------------------------------------------------------------------------------------------------------------


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


def to_judge_again(lake: Lake, problem: Problem, *, folder: Path | None) -> list[WindowReport]:
    """Windows that left rows out under another suite than today's: what was mended since may hold now."""
    rules = fingerprint(effective(ensure(lake, problem, folder=folder), problem))
    return [one for one in reports(lake, problem.name) if (one.failed or not one.success) and one.rules != rules]


def judge_again(
    lake: Lake, problem: Problem, window: str, *, folder: Path | None, now: float, validator: Validator | None = None
) -> WindowReport:
    """One window once more, under today's suite, with the content its rows began with. Raises DataError if there is none."""
    known = {report.id: report for report in reports(lake, problem.name)}
    if window not in known:
        newest = ", ".join(list(known)[-3:]) or "none yet"
        raise DataError(f"expected a judged window of {problem.name} ({newest}), got {window!r}; see `truing windows list`")
    before = known[window]
    frame = judged_part(window_of(lake, problem.name, first=before.first, last=before.last))
    suite = ensure(lake, problem, folder=folder)
    report = validate(frame, suite, problem, now=now, validator=validator, revisions=(before.first, before.last))
    admit_window(lake, report)
    return report
