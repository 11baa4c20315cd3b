"""Windows of the vault's rows: rows that fail one must not judge.

The steward judges them itself, when it is about to rely on them, and keeps the reports at its own desk: the vault is the
keeper's to write, and what the trainer can write (the lake, its windows and its suite) must not choose which rows judge. So the
suite is the one that people wrote beside the problem, else a profile of the trusted rows, made on first use and kept there.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import polars as pl

from truing.tasks.errors import DataError, Unavailable
from truing.tasks.problem import Problem
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.validation.expectations import WindowReport, validate
from truing.tasks.validation.profile import ensure
from truing.tasks.validation.rules import effective, fingerprint
from truing.tasks.validation.suite import brief, judged_part, last_of, out_of, pending_window, window_of

TABLE = "holdout"


def place(desk: Path) -> Path:
    """Where reports (`<problem>.jsonl`, all judgements in order) and suites of the vault's windows lie."""
    return desk / "windows"


def holdout_reports(desk: Path, problem: str) -> list[WindowReport]:
    """The latest judgement of every window of the vault's rows. Raises DataError, Unavailable."""
    path = place(desk) / f"{problem}.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unavailable(f"{path}: can't be read ({error.strerror}); check its permissions") from None
    found: dict[str, WindowReport] = {}
    for number, line in enumerate(lines, 1):
        try:
            report = msgspec.json.decode(line, type=WindowReport)
        except msgspec.DecodeError as error:
            if number == len(lines):  # cut short by a crash: that window is judged again
                break
            raise DataError(f"{path}: line {number}: expected a report, got {error}; restore the file") from None
        found.pop(report.id, None)
        found[report.id] = report
    return list(found.values())


def validate_holdout(
    vault: Vault, lake: Lake, problem: Problem, *, desk: Path, folder: Path | None, now: float
) -> dict[str, str]:
    """Judge what was not judged yet, and again what another suite had rejected; {row id: why it must not judge}.

    `folder` is the problem's. Raises ProblemError when the suite is none.
    """
    suite = ensure(lake, problem, folder=folder, kept=place(desk) / "expectations")
    rules = fingerprint(effective(suite, problem))
    known = holdout_reports(desk, problem.name)
    made: list[WindowReport] = []
    for before in known:
        if (before.failed or not before.success) and before.rules != rules:
            rows = window_of(vault, problem.name, first=before.first, last=before.last, table=TABLE)
            span = (before.first, before.last)
            made.append(validate(judged_part(rows), suite, problem, now=now, revisions=span))
    window = pending_window(vault, problem.name, now=now, force=True, done=last_of(known), table=TABLE)
    if window is not None:
        made.append(validate(window.frame, suite, problem, now=now, revisions=(window.first, window.last)))
    if made:
        _keep(desk, problem.name, made)
    latest = {report.id: report for report in (*known, *made)}
    return out_of(latest.values(), vault, problem.name, table=TABLE)


def may_judge(rows: pl.DataFrame, out: dict[str, str]) -> pl.DataFrame:
    """The rows (column id) without those that failed. Order kept."""
    return rows.filter(~pl.col("id").is_in(pl.Series(list(out), dtype=pl.String).implode())) if out else rows


def _keep(desk: Path, problem: str, made: list[WindowReport]) -> None:
    path = place(desk) / f"{problem}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes() if path.exists() else b""
        with path.open("ab") as file:
            if whole and not whole.endswith(b"\n"):  # a line cut short by a crash
                file.truncate(whole.rfind(b"\n") + 1)
            file.write(b"".join(msgspec.json.encode(brief(report)) + b"\n" for report in made))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Unavailable(f"{path}: can't be written ({error.strerror}); check its permissions and the space left") from None
