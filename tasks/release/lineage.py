"""Versions, their parents and their releases as plain rows: what the report draws and `truing lineage` prints."""

from __future__ import annotations

from collections.abc import Sequence

from truing.tasks.records import Record, Release
from truing.tasks.release.versions import Version


class Link(Record, frozen=True):
    """One version in the family. `parent` is the version it was tuned from, `sequences` its releases (a rollback adds one)."""

    problem: str
    version: str
    payload: str
    parent: str | None
    origin: str
    dataset: str
    rows: int
    trained_by: str | None
    created: float
    outcome: str | None
    reason: str
    decision: str | None
    decided_by: str | None
    sequences: tuple[int, ...]
    causes: tuple[str, ...]
    champion: bool
    anchor: bool
    generation: int


def lineage(
    versions: Sequence[Version], releases: Sequence[Release], *, champion: str | None = None, anchor: str | None = None
) -> list[Link]:
    """Oldest first. `generation` counts steps from a version without a known parent (0). Payloads name parents, so a parent
    that is not registered here gives None."""
    by_payload = {version.payload: version for version in versions if version.payload}
    generation: dict[str, int] = {}
    rows: list[Link] = []
    for version in sorted(versions, key=lambda each: each.number):
        parent = by_payload.get(version.parent) if version.parent else None
        if parent is not None and parent.number >= version.number:
            parent = None  # a parent is older; anything else is a broken tag
        generation[version.version] = generation[parent.version] + 1 if parent else 0
        own = [release for release in releases if release.version == version.version]
        raw_rows = version.tags.get("rows", "")
        rows.append(
            Link(
                problem=version.problem,
                version=version.version,
                payload=version.payload or "",
                parent=parent.version if parent else None,
                origin=version.tags.get("origin", ""),
                dataset=version.tags.get("dataset", ""),
                rows=int(raw_rows) if raw_rows.isdecimal() else 0,
                trained_by=version.trainer,
                created=version.created,
                outcome=version.outcome,
                reason=version.tags.get("verdict.reason", ""),
                decision=version.approval,
                decided_by=version.tags.get("approval.by"),
                sequences=tuple(release.sequence for release in own),
                causes=tuple(release.cause.value for release in own),
                champion=version.version == champion,
                anchor=version.version == anchor,
                generation=generation[version.version],
            )
        )
    return rows
