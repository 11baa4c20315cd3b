"""A book that is lost, or older than what it signed: made whole from signed statements before anything is decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from truing.tasks.errors import Refused, TruingError
from truing.tasks.records import Head, Release
from truing.tasks.release.book import HIGHEST, Book, statements_in
from truing.tasks.release.rest import NotFound
from truing.tasks.seal import HEAD_TYPE, open_envelope

if TYPE_CHECKING:
    from truing.tasks.release.acts import Docket
    from truing.tasks.release.registry import Registry
    from truing.tasks.tables.lake import Lake


def recover(book: Book, registry: Registry, lake: Lake, docket: Docket, problem: str, *, now: float) -> int:
    """Take back every statement of ours that the audit or MLflow still shows; how many were missing. Raises Unavailable.

    Verdicts come from the audit alone, which knows the last one on each version: an older one may stand in any tag. The number
    in the newest head, and for a new book the highest in the lake's record, raise the floor: their statements may be gone. The
    lake is written by trainers, so a number is all that is taken from there.
    """
    found = 0
    for one in sorted(docket.released.values(), key=lambda each: each.sequence):
        found += book.adopt(one.envelope, problem=problem, audit=one.n, at=now)
    for version, envelope in docket.verdicts.items():
        found += book.adopt_verdict(envelope, problem=problem, version=version, at=now)
    book.raise_floor(problem, max(docket.released, default=0), at=now)
    try:
        tags, texts = _shown(registry, problem)
    except (LookupError, TypeError, ValueError):  # a database that somebody wrote into
        if book.fresh and not docket.released:
            raise
        return found
    for text in texts:
        found += book.adopt(text, problem=problem, audit=0, at=now)
    head = open_envelope(tags.get("release.head"), Head, HEAD_TYPE, book.keys.release)
    if isinstance(head, Head) and head.problem == problem:
        book.raise_floor(problem, head.sequence, at=now)
    if book.fresh:
        book.raise_floor(problem, _recorded(lake, problem), at=now)
    return found


def _shown(registry: Registry, problem: str) -> tuple[dict[str, str], list[str]]:
    """The model's tags and every text on its versions that may be a statement; nothing where there is no such model."""
    try:
        tags = registry.model(problem).tags
    except (NotFound, Refused):  # MLflow calls an unknown model forbidden
        tags = {}
    return tags, statements_in(version.tags for version in registry.versions(problem))


def _recorded(lake: Lake, problem: str) -> int:
    """The highest sequence in the lake's record; 0 when there is none to be read."""
    try:
        known = [one.sequence for one in lake.records("releases", Release, problem=problem)]
    except TruingError:
        return 0
    return max((sequence for sequence in known if sequence < HIGHEST), default=0)
