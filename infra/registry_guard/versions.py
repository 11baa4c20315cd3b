"""Models and their versions: the trainer registers, people decide, the steward writes what they read."""

from __future__ import annotations

import re
from typing import Any

from truing.infra.registry_guard.acts import RESERVED, Act, normal, numbered, only, plain
from truing.infra.registry_guard.books import OWNER, Held
from truing.infra.registry_guard.ground import Ground
from truing.infra.registry_guard.releases import Releases
from truing.tasks.records import Refusal, Verdict
from truing.tasks.seal import VERDICT_TYPE, admit, open_envelope

_PROBLEM = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class Versions:
    def __init__(self, ground: Ground, releases: Releases) -> None:
        self._ground, self._releases = ground, releases

    # --- making
    def create_model(self, act: Act) -> Refusal | None:
        if act.role not in ("trainer", "steward"):
            return only("trainer or steward", "makes a registered model")
        name = act.body.name
        if not _PROBLEM.fullmatch(name):
            return Refusal(
                code="model.name",
                reason=f"expected the name of a problem (a-z, 0-9, - and _), got {name!r}",
                remedy="name the model like its problem",
            )
        known = len(self._ground.ledger.of(name).versions)
        if known and name not in self._ground.books.models():
            return Refusal(
                code="model.gone",
                reason=f"{name} has {known} versions in the audit, and its row is gone from the database",
                remedy="restore MLflow's database from a backup; numbers are never given twice",
            )
        return _free_of_reserved(act.body.tags)

    def create(self, act: Act) -> Refusal | None:
        if act.role != "trainer":
            return only("trainer", "registers versions")
        problem, model = act.body.name, act.body.model_id
        refusal = _free_of_reserved([tag for tag in act.body.tags if tag.key != "payload"])
        if refusal:
            return refusal
        if not model or act.body.source != f"models:/{model}":
            return Refusal(
                code="version.source",
                reason=f"expected a logged model of this registry as source, got {act.body.source!r}",
                remedy="log the files as a logged model and register models:/<its id>; a copy of a version is not a new one",
            )
        owned = self._ground.books.logged_model(model)
        if owned.root is None or owned.user != act.user:
            return Refusal(code="version.owner", reason=f"logged model {model} is not yours", remedy="log the files yourself")
        if not self._ground.uploads.freeze(owned.root):
            return Refusal(code="version.busy", reason=f"files of {model} are still being written", remedy="register when done")
        payload = self._ground.books.payload(owned.root, settle=True)
        if payload is None:
            return Refusal(code="version.empty", reason=f"logged model {model} holds no files", remedy="upload them first")
        claimed = next((tag.value for tag in act.body.tags if tag.key == "payload"), payload)
        if claimed != payload:
            return Refusal(
                code="version.payload",
                reason=f"the tag payload says {claimed[:12]}, the files are {payload[:12]}",
                remedy="upload the very bytes that were hashed, into a new logged model",
            )
        twin = next((held for held in self._ground.ledger.of(problem).versions.values() if held.payload == payload), None)
        if twin:
            return Refusal(
                code="version.twin",
                reason=f"these bytes are version {twin.version} already",
                remedy="use that version: one payload is judged once",
            )
        act.found.update(payload=payload, root=owned.root, stamps={"payload": payload, "trainer": act.user})
        return self.renumbered(problem, self._ground.books.highest(problem) + 1)

    def renumbered(self, problem: str, number: int) -> Refusal | None:
        """A number that the audit knows, or one before it, was given already, whatever the database says now."""
        known = max((int(version) for version in self._ground.ledger.of(problem).versions), default=0)
        if number > known:
            return None
        return Refusal(
            code="version.renumbered",
            reason=f"the database would call it version {number} of {problem}, the audit knows versions up to {known}",
            remedy="restore MLflow's database from a backup; numbers are never given twice",
        )

    def describe(self, act: Act) -> Refusal | None:
        if act.role != "steward":
            return only("steward", "writes descriptions")
        if act.function != "_update_model_version":
            return None
        return numbered(act) or self._ground.registered(act.body.name, act.body.version)

    def keep(self, act: Act) -> Refusal | None:
        return Refusal(
            code="keep",
            reason="models, versions and files are neither deleted nor renamed: verdicts and lineage point at them",
            remedy="leave it; a version that is not released does no harm",
        )

    def stage(self, act: Act) -> Refusal | None:
        return Refusal(
            code="stage",
            reason="stages are not used here and promote nothing",
            remedy="only the alias champion serves, and only the steward moves it",
        )

    # --- tags
    def tag(self, act: Act) -> Refusal | None:
        problem, version, key = act.body.name, act.body.version, act.body.key
        refusal = plain(key) or numbered(act) or self._ground.registered(problem, version)
        if refusal:
            return refusal
        if key == "approval":
            return self._decide(act)
        if key == "approval.reason":
            return None if act.role == "approver" else only("approver", "gives the reason of an approval")
        if act.role == "steward":
            if key == "verdict":
                return self._releases.verdict(act)
            if key == "release" or re.fullmatch(r"release\.[0-9]+", key):
                return self._releases.statement(act)
            if key.startswith("verdict."):
                return None
        if RESERVED.match(key):
            office = "steward" if key.startswith(("verdict", "release")) else "registry"
            return only(office, f"writes the tag {key}")
        if act.role == "trainer":
            docket = self._ground.ledger.of(problem)
            if docket.versions[version].trainer != act.user:
                return Refusal(code="tag.owner", reason=f"version {version} is not yours", remedy="tag your own")
            if version in docket.verdicts:
                return Refusal(
                    code="tag.judged",
                    reason=f"version {version} has its verdict; its tags stand",
                    remedy="register another version",
                )
            return None
        return None if act.role == "steward" else only("trainer or steward", f"writes the tag {key}")

    def delete_tag(self, act: Act) -> Refusal | None:
        if RESERVED.match(normal(act.body.key)):
            return Refusal(
                code="tag.kept", reason=f"the tag {act.body.key} is evidence and stays", remedy="approval can be set to revoked"
            )
        return self.tag(act)

    # --- a person's word
    def _decide(self, act: Act) -> Refusal | None:
        """Only a yes needs the bytes to be right and the page unaltered: a no is always heard."""
        problem, version = act.body.name, act.body.version
        docket = self._ground.ledger.of(problem)
        before = docket.decision(version)
        if before and before.approval.expires is not None and before.approval.expires <= act.now:
            before = None
        held, payload = None, docket.versions[version].payload
        if act.body.value == "approved" and act.role == "approver":
            held = self._ground.books.version(problem, version)
            payload = self._ground.books.payload(held.root) or ""
        facts = self._ground.facts(act, version, payload, before)
        refusal = admit(facts, "approve", keys=self._ground.keys, now=act.now)
        if refusal is None and held is not None:
            refusal = self._altered(held)
        verdict = open_envelope(facts.verdict, Verdict, VERDICT_TYPE, self._ground.keys.gate)
        if refusal or isinstance(verdict, Refusal):
            return refusal
        act.found.update(verdict=verdict, before=before.approval if before else None, reason=facts.reason)
        return None

    def _altered(self, held: Held) -> Refusal | None:
        """Is what the approver reads what the steward has written?"""
        version = held.version
        page = version.tags | {"description": version.description}
        wrong = self._ground.ledger.altered(version.problem, version.version, page)
        if page.get("verdict") != self._ground.ledger.of(version.problem).verdicts.get(version.version):
            wrong = ["verdict", *wrong]
        if not wrong:
            return None
        return Refusal(
            code="view.altered",
            reason=f"the page of version {version.version} was altered behind the registry's back: {', '.join(wrong)}",
            remedy="see `truing audit verify`; once the steward has put the page right, decide on it",
        )


def _free_of_reserved(tags: Any) -> Refusal | None:
    """None of these tags may be reserved, in any spelling."""
    bad = sorted({tag.key for tag in tags if RESERVED.match(normal(tag.key)) or tag.key == OWNER})
    if not bad:
        return None
    return Refusal(
        code="tag.reserved",
        reason=f"the tags {', '.join(bad)} can't be brought along",
        remedy="leave them out: the registry, the steward and the approver set them",
    )
