"""Who may write what. Each rule takes an act and returns the Refusal against it, or None.

The trainer registers, the steward judges and promotes, the approver decides, the admin keeps users. Nobody holds two offices.
"""

from __future__ import annotations

import re
from typing import Any

from truing.infra.registry_guard.acts import RESERVED, STAMPS, Act, looks_like_champion, normal, only
from truing.infra.registry_guard.books import OWNER, Books, Held, Uploads
from truing.tasks.records import Cause, Refusal, Release, Verdict
from truing.tasks.release.versions import requested
from truing.tasks.seal import RELEASE_TYPE, VERDICT_TYPE, Facts, admit, open_envelope

_PROBLEM = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ALIAS = re.compile(r"[a-z][a-z_-]*")


class Rules:
    """The registry's rules; those about files and runs are in `ownership`."""

    def __init__(self, books: Books, uploads: Uploads) -> None:
        self.books, self.uploads = books, uploads

    # --- models and versions
    def create_model(self, act: Act) -> Refusal | None:
        if act.role not in ("trainer", "steward"):
            return only("trainer or steward", "makes a registered model")
        if not _PROBLEM.fullmatch(act.body.name):
            return Refusal(
                code="model.name",
                reason=f"expected the name of a problem (a-z, 0-9, - and _), got {act.body.name!r}",
                remedy="name the model like its problem",
            )
        return _free_of(act.body.tags, RESERVED)

    def describe(self, act: Act) -> Refusal | None:
        return None if act.role == "steward" else only("steward", "writes descriptions")

    def create_version(self, act: Act) -> Refusal | None:
        if act.role != "trainer":
            return only("trainer", "registers versions")
        sent = [tag for tag in act.body.tags if tag.key != "payload"]
        refusal = _free_of(sent, RESERVED)
        if refusal:
            return refusal
        model = act.body.model_id
        if not model or act.body.source != f"models:/{model}":
            return Refusal(
                code="version.source",
                reason=f"expected a logged model of this registry as source, got {act.body.source!r}",
                remedy="log the files as a logged model and register models:/<its id>; a copy of a version is not a new one",
            )
        root = self.books.logged_model_root(model)
        if root is None or self.books.logged_model_owner(model) != act.user:
            return Refusal(code="version.owner", reason=f"logged model {model} is not yours", remedy="log the files yourself")
        if not self.uploads.freeze(root):
            return Refusal(code="version.busy", reason=f"files of {model} are still being written", remedy="register when done")
        payload = self.books.payload(root)
        if payload is None:
            return Refusal(code="version.empty", reason=f"logged model {model} holds no files", remedy="upload them first")
        claimed = next((tag.value for tag in act.body.tags if tag.key == "payload"), payload)
        if claimed != payload:
            return Refusal(
                code="version.payload",
                reason=f"the tag payload says {claimed[:12]}, the files are {payload[:12]}",
                remedy="upload the very bytes that were hashed, into a new logged model",
            )
        twin = next((held for held in self.books.versions(act.body.name) if held.version.payload == payload), None)
        if twin:
            return Refusal(
                code="version.twin",
                reason=f"these bytes are version {twin.version.version} already",
                remedy="use that version: one payload is judged once",
            )
        return None

    def keep(self, act: Act) -> Refusal | None:
        return Refusal(
            code="keep",
            reason="models and versions are neither deleted nor renamed: verdicts and lineage point at them",
            remedy="leave it; a version that is not released does no harm",
        )

    def stage(self, act: Act) -> Refusal | None:
        return Refusal(
            code="stage",
            reason="stages are not used here and promote nothing",
            remedy="only the alias champion serves, and only the steward moves it",
        )

    # --- tags of a version
    def version_tag(self, act: Act) -> Refusal | None:
        key, value = act.body.key, act.body.value
        refusal = _plain(key)
        if refusal:
            return refusal
        held = self.books.version(act.body.name, act.body.version)
        if key == "approval":
            return admit(
                self.books.facts(held, actor=act.user, roles=act.roles, decision=value),
                "approve",
                keys=self.books.keys,
                now=act.now,
            )
        if key == "approval.reason":
            return None if act.role == "approver" else only("approver", "gives the reason of an approval")
        if act.role == "steward":
            if key == "verdict":
                return self._verdict(held, value)
            if key == "release" or key.startswith("release."):
                return self._statement(held, key, value)
            if key.startswith("verdict."):
                return None
        if RESERVED.match(key):
            office = "steward" if key.startswith(("verdict", "release")) else "registry"
            return only(office, f"writes the tag {key}")
        if act.role == "trainer":
            if held.version.trainer != act.user:
                return Refusal(code="tag.owner", reason=f"version {act.body.version} is not yours", remedy="tag your own")
            if held.version.verdict:
                return Refusal(
                    code="tag.judged",
                    reason=f"version {act.body.version} has its verdict; its tags stand",
                    remedy="register another version",
                )
            return None
        return None if act.role == "steward" else only("trainer or steward", f"writes the tag {key}")

    def delete_version_tag(self, act: Act) -> Refusal | None:
        if RESERVED.match(normal(act.body.key)):
            return Refusal(
                code="tag.kept", reason=f"the tag {act.body.key} is evidence and stays", remedy="approval can be set to revoked"
            )
        return self.version_tag(act)

    def _verdict(self, held: Held, text: str) -> Refusal | None:
        """A steward's login alone is not enough: the gate key must have signed, over these bytes, and not an older look."""
        verdict = open_envelope(text, Verdict, VERDICT_TYPE, self.books.keys.gate)
        if isinstance(verdict, Refusal):
            return verdict
        if verdict.problem != held.version.problem or verdict.candidate != self.books.payload(held.root):
            return Refusal(
                code="verdict.payload",
                reason=f"the verdict is about {verdict.problem} {verdict.candidate[:12]}, version {held.version.version} holds "
                f"other bytes",
                remedy="attach it to the version that it judged",
            )
        before = open_envelope(held.version.verdict, Verdict, VERDICT_TYPE, self.books.keys.gate)
        if isinstance(before, Verdict) and before.at > verdict.at:
            return Refusal(
                code="verdict.older", reason="a later verdict stands on this version", remedy="judge it again or leave it"
            )
        return None

    def _statement(self, held: Held, key: str, text: str) -> Refusal | None:
        release = open_envelope(text, Release, RELEASE_TYPE, self.books.keys.release)
        if isinstance(release, Refusal):
            return release
        version = held.version
        refusal = admit(
            Facts(problem=version.problem, version=version.version, payload=self.books.payload(held.root), release=text),
            "serve",
            keys=self.books.keys,
            now=release.at,
        )
        if refusal:
            return refusal
        if key != "release" and key != f"release.{release.sequence}":
            return Refusal(
                code="release.tag",
                reason=f"release {release.sequence} can't stand under {key}",
                remedy="name it by its sequence",
            )
        past = self.books.releases(version.problem)
        if any(other.sequence == release.sequence and other != release for other in past) or (
            past and release.sequence < past[-1].sequence
        ):
            return Refusal(
                code="release.sequence",
                reason=f"release {release.sequence} is taken: the newest of {version.problem} is {past[-1].sequence}",
                remedy="sign it with the next sequence",
            )
        return None

    # --- tags of a model
    def model_tag(self, act: Act) -> Refusal | None:
        key, value, problem = act.body.key, act.body.value, act.body.name
        refusal = _plain(key)
        if refusal:
            return refusal
        tags = self.books.model_tags(problem)
        if key in ("policy.accepted", "anchor", "anchor.reason", "rollback.to", "rollback.reason", "frozen"):
            if act.role != "approver":
                return only("approver", f"sets {key}")
            return self._person(problem, key, value, tags)
        if key == "policy.proposed":
            if act.role != "steward":
                return only("steward", "proposes a policy")
            if not _DIGEST.fullmatch(value):
                return Refusal(
                    code="policy.digest", reason=f"expected a policy's digest, got {value!r}", remedy="propose it anew"
                )
            return None
        if key == "rollback.done" and act.role == "steward":
            return None
        if RESERVED.match(key):
            return only("registry", f"writes the tag {key}")
        return None if act.role == "steward" else only("steward", f"writes the tag {key}")

    def delete_model_tag(self, act: Act) -> Refusal | None:
        if RESERVED.match(normal(act.body.key)):
            return Refusal(
                code="tag.kept",
                reason=f"the tag {act.body.key} is evidence and stays",
                remedy="set it anew; frozen can be set to false",
            )
        return self.model_tag(act)

    def _person(self, problem: str, key: str, value: str, tags: dict[str, str]) -> Refusal | None:
        """An approver's act on a model."""
        if key == "policy.accepted" and (value != tags.get("policy.proposed") or not value):
            return Refusal(
                code="policy.proposed",
                reason=f"expected the proposed policy {tags.get('policy.proposed', 'none')}, got {value or 'nothing'}",
                remedy="accept the policy that the steward has proposed",
            )
        if key in ("anchor", "rollback.to"):
            if value not in {release.version for release in self.books.releases(problem)}:
                return Refusal(
                    code=f"{key}.unreleased",
                    reason=f"version {value} of {problem} was never released",
                    remedy="name a version that was",
                )
            if key == "rollback.to" and value == self.books.champion(problem):
                return Refusal(
                    code="rollback.same", reason=f"version {value} serves already", remedy="name an earlier released version"
                )
            if key == "rollback.to" and not tags.get("rollback.reason", "").strip():
                return Refusal(
                    code="rollback.reason",
                    reason="no reason is given",
                    remedy="set the tag rollback.reason first, then rollback.to",
                )
        return None

    # --- aliases
    def alias(self, act: Act) -> Refusal | None:
        alias, problem = act.body.alias, act.body.name
        if looks_like_champion(alias):
            if alias != "champion":
                return Refusal(
                    code="alias.lookalike",
                    reason=f"the alias {alias!r} could be taken for champion",
                    remedy="write champion, as the steward, or take another word",
                )
            return self._champion(act, self.books.version(problem, act.body.version))
        if not _ALIAS.fullmatch(alias) or alias in ("latest", "v"):
            return Refusal(
                code="alias.name", reason=f"expected a plain word as alias, got {alias!r}", remedy="use a-z, - and _ only"
            )
        return None if act.role == "steward" else only("steward", "sets aliases")

    def delete_alias(self, act: Act) -> Refusal | None:
        if looks_like_champion(act.body.alias):
            return Refusal(
                code="alias.kept",
                reason="champion is moved, never taken away",
                remedy="ask for a rollback, or freeze the problem",
            )
        return None if act.role == "steward" else only("steward", "sets aliases")

    def _champion(self, act: Act, held: Held) -> Refusal | None:
        facts = self.books.facts(held, actor=act.user, roles=act.roles)
        problem, version = facts.problem, facts.version
        past = self.books.releases(problem)
        floor = past[-1].sequence if past else 0
        if act.role != "steward":  # the reason that would bind the steward too, else whose office it is
            unsigned = Facts(**{name: getattr(facts, name) for name in facts.__struct_fields__ if name != "release"})
            refusal = admit(unsigned, "promote", keys=self.books.keys, now=act.now)
            return refusal or Refusal(
                code="champion.steward",
                reason=f"only the steward moves champion; version {version} is fit for it",
                remedy="wait for the steward, it looks every second",
            )
        refusal = admit(facts, "promote", keys=self.books.keys, now=act.now, floor_sequence=floor)
        if refusal:
            return refusal
        release = open_envelope(facts.release, Release, RELEASE_TYPE, self.books.keys.release)
        if isinstance(release, Refusal):
            return Refusal(
                code="release.missing",
                reason=f"version {version} carries no signed release statement",
                remedy="sign and attach one first",
            )
        if release.cause is Cause.ROLLBACK:
            asked = requested(self.books.model_tags(problem))
            if asked is None or asked.version != version or release.at < asked.at:
                return Refusal(
                    code="rollback.unasked",
                    reason=f"no approver has asked to roll {problem} back to version {version}",
                    remedy="an approver sets rollback.reason, then rollback.to",
                )
        return None

    # --- the rest
    def webhook(self, act: Act) -> Refusal | None:
        return None if act.role in ("steward", "admin") else only("steward or admin", "keeps webhooks")

    def user(self, act: Act) -> Refusal | None:
        return None if act.role == "admin" else only("admin", "keeps users")

    def graphql(self, act: Act) -> Refusal | None:
        """Queries only. `body` is the request's JSON."""
        from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse

        try:
            document = parse(str(act.body.get("query", "")))
        except GraphQLError as error:
            return Refusal(code="graphql", reason=f"expected a GraphQL query, got {error.message}", remedy="mend the query")
        for node in document.definitions:
            if isinstance(node, OperationDefinitionNode) and node.operation is not OperationType.QUERY:
                return Refusal(code="graphql", reason="GraphQL reads only here", remedy="use the REST routes to write")
        return None


def _plain(key: str) -> Refusal | None:
    """Keys are exact; stamps are nobody's."""
    if key != normal(key) and RESERVED.match(normal(key)):
        return Refusal(
            code="tag.lookalike", reason=f"the tag {key!r} could be taken for {normal(key)!r}", remedy="write it exactly"
        )
    if STAMPS.match(key):
        return Refusal(code="tag.stamp", reason=f"the tag {key} is a stamp that only the registry sets", remedy="leave it out")
    return None


def _free_of(tags: Any, reserved: re.Pattern[str]) -> Refusal | None:
    """None of these tags may be reserved, in any spelling."""
    bad = sorted({tag.key for tag in tags if reserved.match(normal(tag.key)) or tag.key == OWNER})
    if not bad:
        return None
    return Refusal(
        code="tag.reserved",
        reason=f"the tags {', '.join(bad)} can't be brought along",
        remedy="leave them out: the registry, the steward and the approver set them",
    )
