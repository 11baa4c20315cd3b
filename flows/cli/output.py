"""How verbs speak: the result on stdout (text or JSON), progress and warnings on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def result(data: Any, text: str, *, as_json: bool) -> None:
    """The one result of a verb."""
    print(json.dumps(data, indent=2, default=str) if as_json else printable(text))


def note(text: str) -> None:
    """A line for the person at the terminal; never part of the result."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Without control characters: tags and reasons may have been written by anybody, and a terminal obeys what it is sent."""
    return text if text.isprintable() else "".join(char if char.isprintable() or char == "\n" else " " for char in text)


def flat(text: str) -> str:
    """On one line: what somebody wrote into a tag must not look like a line of ours."""
    return text if text.isprintable() else " ".join(printable(text).split())


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Columns padded to their widest cell; None is a dash. A cell stays on its line, whatever is in it."""
    rows = [[str(cell) for cell in head], *([("-" if cell is None else flat(str(cell))) for cell in line] for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def span(seconds: float | None) -> str | None:
    """A length of time for people: 90 s, 12 min, 5 h, 12 days."""
    if seconds is None:
        return None
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def ago(at: float | None, now: float) -> str | None:
    """How long ago that was (Unix seconds)."""
    return None if at is None else f"{span(max(0.0, now - at))} ago"


def ahead(at: float | None, now: float) -> str | None:
    """In how long that will be (Unix seconds)."""
    return None if at is None else f"in {span(max(0.0, at - now))}"


class Bar:
    """A progress bar on a terminal's stderr; silent elsewhere."""

    def __init__(self, of: int, what: str) -> None:
        self.of, self.what, self.shown = max(of, 1), what, -1
        self.live = sys.stderr.isatty()

    def __call__(self, done: int) -> None:
        share = min(100, 100 * done // self.of)
        if self.live and share != self.shown:
            self.shown = share
            sys.stderr.write(f"\r{self.what} {'█' * (share // 4):<25} {share:3d} %")
            sys.stderr.write("\n" if share == 100 else "")
            sys.stderr.flush()
