"""`truing verify`, `lineage`: check what is served with our own keys, and show where it came from."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import result, table

if TYPE_CHECKING:
    from truing.infra.settings import Settings


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    verify = verbs.add_parser("verify", parents=[common], help="check signatures and digests of a version with our own keys")
    verify.add_argument("version", nargs="?", help="number of the version (default: the champion)")
    verify.add_argument("--problem", help="which problem (default: the only one)")
    verify.set_defaults(do=do_verify)
    lineage = verbs.add_parser("lineage", parents=[common], help="every version: parent, rows, verdict, approver, release")
    lineage.add_argument("--problem", help="which problem (default: the only one)")
    lineage.set_defaults(do=do_lineage)


def do_verify(args: argparse.Namespace, settings: Settings) -> int:
    """The registry's word counts for nothing here: its bytes are hashed and its envelopes opened with the keys in the keyring.

    Exit 3 with the first reason when the version may not be served.
    """
    from truing.infra.catalog import chosen
    from truing.infra.keys import keyring
    from truing.tasks import seal
    from truing.tasks.errors import DataError, Refused
    from truing.tasks.records import Approval, Refusal, Release, Verdict
    from truing.tasks.release.registry import Registry

    problem, _ = chosen(settings.problems, args.problem)
    ring = keyring(settings)
    keys = ring.public()
    registry = Registry(settings.registry_url, "trainer", ring.password("trainer"))
    version = args.version or registry.champion(problem.name)
    if version is None:
        raise DataError(f"{problem.name}: expected a champion, found none; name a version or approve one")
    files = registry.payload(problem.name, version)
    facts = registry.facts(problem.name, version, keys=keys, files=files)
    refusal = seal.admit(facts, "serve", keys=keys, now=time.time())
    if refusal is not None:
        raise Refused(refusal)
    release = seal.open_envelope(facts.release, Release, seal.RELEASE_TYPE, keys.release)
    verdict = seal.open_envelope(facts.verdict, Verdict, seal.VERDICT_TYPE, keys.gate)
    approval = seal.open_envelope(facts.approval, Approval, seal.APPROVAL_TYPE, keys.registry)
    if isinstance(release, Refusal):
        raise Refused(release)
    lines = [("payload", facts.payload, f"{len(files)} files hashed, as released")]
    lines.append(("release", f"{release.sequence}", f"signed, {release.cause}, policy {release.policy[:12]}"))
    for record in (verdict, approval):
        if isinstance(record, Refusal):
            raise Refused(record)
    if isinstance(verdict, Verdict):
        named = seal.digest(verdict) == release.verdict
        lines.append(
            ("verdict", str(verdict.outcome), "signed" + (", named by the release" if named else ", newer than the release"))
        )
    if isinstance(approval, Approval):
        named = seal.digest(approval) == release.approval
        lines.append(("approval", " and ".join(approval.by), "stamped" + (", named by the release" if named else ", newer")))
    found = {
        "problem": problem.name,
        "version": version,
        "payload": facts.payload,
        "sequence": release.sequence,
        "cause": str(release.cause),
        "files": {name: seal.digest_bytes(data) for name, data in sorted(files.items())},
    }
    text = f"{problem.name} version {version} verifies\n" + table(("", "", ""), lines).partition("\n")[2]
    result(found, text, as_json=args.json)
    return 0


def do_lineage(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.catalog import chosen
    from truing.infra.keys import keyring
    from truing.tasks.release.registry import Registry

    problem, _ = chosen(settings.problems, args.problem)
    ring = keyring(settings)
    registry = Registry(settings.registry_url, "trainer", ring.password("trainer"))
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
