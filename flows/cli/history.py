"""`truing lineage`: where each version came from and what became of it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import result, table

if TYPE_CHECKING:
    from truing.infra.settings import Settings


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    lineage = verbs.add_parser("lineage", parents=[common], help="every version: parent, rows, verdict, approver, release")
    lineage.add_argument("--problem", help="which problem (default: the only one)")
    lineage.set_defaults(do=do_lineage)


def do_lineage(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.catalog import chosen
    from truing.infra.keys import keyring
    from truing.infra.logins import registry_as

    problem, _ = chosen(settings.problems, args.problem)
    ring = keyring(settings)
    registry = registry_as(settings, "trainer")
    versions = registry.versions(problem.name)
    by_payload = {one.payload: one.version for one in versions}
    model = registry.model(problem.name) if versions else None
    marks = {"champion": model.champion, "anchor": model.anchor} if model else {}
    sequences: dict[str, list[int]] = {}
    for release in registry.releases(problem.name, ring.public()):
        sequences.setdefault(release.version, []).append(release.sequence)
    found: list[dict[str, Any]] = [
        {
            "version": one.version,
            "parent": by_payload.get(one.parent),
            "learner": one.tags.get("origin"),
            "rows": one.tags.get("rows"),
            "verdict": None if one.outcome is None else str(one.outcome),
            "reason": one.tags.get("verdict.reason"),
            "approval": one.approval,
            "releases": sequences.get(one.version, []),
            "marks": [name for name, at in marks.items() if at == one.version],
        }
        for one in versions
    ]
    shown = [
        (
            one["version"],
            one["parent"],
            one["learner"],
            one["rows"],
            one["verdict"],
            one["approval"],
            ", ".join(map(str, one["releases"] or [])) or None,
            ", ".join(one["marks"]),
        )
        for one in found
    ]
    head = ("version", "parent", "learner", "rows", "verdict", "approval", "releases", "")
    result(found, table(head, shown) if shown else f"{problem.name}: no version yet", as_json=args.json)
    return 0
