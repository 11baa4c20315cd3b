"""What the steward does: verdicts, release statements, and the alias that serves. Its login alone is never enough."""

from __future__ import annotations

import re

import msgspec

from truing.infra.registry_guard.acts import Act, looks_like_champion, numbered, only
from truing.infra.registry_guard.ground import Ground
from truing.tasks.records import Cause, Refusal, Release, Verdict
from truing.tasks.seal import RELEASE_TYPE, VERDICT_TYPE, Facts, admit, digest, open_envelope

_ALIAS = re.compile(r"[a-z][a-z_-]*")


class Releases:
    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def verdict(self, act: Act) -> Refusal | None:
        """The gate key must have signed it, over these bytes, and no later look may stand."""
        docket, version = self._ground.ledger.of(act.body.name), act.body.version
        verdict = open_envelope(act.body.value, Verdict, VERDICT_TYPE, self._ground.keys.gate)
        if isinstance(verdict, Refusal):
            return verdict
        if verdict.problem != act.body.name or verdict.candidate != docket.versions[version].payload:
            return Refusal(
                code="verdict.payload",
                reason=f"the verdict is about {verdict.problem} {verdict.candidate[:12]}, version {version} holds other bytes",
                remedy="attach it to the version that it judged",
            )
        before = open_envelope(docket.verdicts.get(version), Verdict, VERDICT_TYPE, self._ground.keys.gate)
        if isinstance(before, Verdict) and before.at > verdict.at:
            return Refusal(
                code="verdict.older", reason="a later verdict stands on this version", remedy="judge it again or leave it"
            )
        act.found["words"] = f"{verdict.outcome} {digest(verdict)}" + (f": {verdict.reason}" if verdict.reason else "")
        return None

    def statement(self, act: Act) -> Refusal | None:
        """The release key must have signed it, over these bytes, under the next number; the same again is welcome."""
        problem, version, key = act.body.name, act.body.version, act.body.key
        ledger = self._ground.ledger
        release = open_envelope(act.body.value, Release, RELEASE_TYPE, self._ground.keys.release)
        if isinstance(release, Refusal):
            return release
        payload = ledger.of(problem).versions[version].payload
        facts = Facts(problem=problem, version=version, payload=payload, release=act.body.value)
        refusal = admit(facts, "serve", keys=self._ground.keys, now=release.at)
        if refusal:
            return refusal
        if key != "release" and key != f"release.{release.sequence}":
            return Refusal(
                code="release.tag",
                reason=f"release {release.sequence} can't stand under {key}",
                remedy="name it by its sequence",
            )
        same = ledger.of(problem).released.get(release.sequence)
        known = same is not None and open_envelope(same.envelope, Release, RELEASE_TYPE, self._ground.keys.release) == release
        if not known and release.sequence <= ledger.newest(problem):
            return Refusal(
                code="release.sequence",
                reason=f"release {release.sequence} is taken: the newest of {problem} is {ledger.newest(problem)}",
                remedy="sign it with the next sequence",
            )
        if key == "release" and known and ledger.newest(problem, version) > release.sequence:
            return Refusal(
                code="release.older",
                reason=f"release {release.sequence} is not the newest of version {version}",
                remedy=f"set it as release.{release.sequence}",
            )
        act.found["words"] = f"release {release.sequence} ({release.cause}) of payload {release.payload}"
        return None

    # --- aliases
    def alias(self, act: Act) -> Refusal | None:
        alias = act.body.alias
        if looks_like_champion(alias):
            if alias != "champion":
                return Refusal(
                    code="alias.lookalike",
                    reason=f"the alias {alias!r} could be taken for champion",
                    remedy="write champion, as the steward, or take another word",
                )
            return numbered(act) or self._ground.registered(act.body.name, act.body.version) or self._champion(act)
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

    def _champion(self, act: Act) -> Refusal | None:
        problem, version = act.body.name, act.body.version
        books, ledger, keys = self._ground.books, self._ground.ledger, self._ground.keys
        payload = books.payload(books.version(problem, version).root)
        facts = self._ground.facts(act, version, payload, ledger.of(problem).decision(version))
        if act.role != "steward":  # the reason that would bind the steward too, else whose office it is
            refusal = admit(msgspec.structs.replace(facts, release=None), "promote", keys=keys, now=act.now)
            return refusal or Refusal(
                code="champion.steward",
                reason=f"only the steward moves champion; version {version} is fit for it",
                remedy="wait for the steward, it looks every second",
            )
        release = open_envelope(facts.release, Release, RELEASE_TYPE, keys.release)
        newest = ledger.newest(problem)
        again = isinstance(release, Release) and release.sequence == newest and ledger.champion(problem) == version
        kind = "serve" if again else "promote"  # an alias that was bent in the database is put back, whatever has expired since
        refusal = admit(facts, kind, keys=keys, now=act.now, floor_sequence=newest)
        if refusal:
            return refusal
        if isinstance(release, Refusal):
            return Refusal(
                code="release.missing",
                reason=f"version {version} carries no signed release statement",
                remedy="sign and attach one first",
            )
        if release.cause is Cause.ROLLBACK and not self._asked(problem, release):
            return Refusal(
                code="rollback.unasked",
                reason=f"no approver has asked to roll {problem} back to version {version}",
                remedy="an approver sets rollback.reason, then rollback.to; or revokes what serves",
            )
        if release.cause is Cause.WITHDRAW and not self._asked(problem, release):
            return Refusal(
                code="withdraw.unasked",
                reason=f"no approver has revoked version {version} of {problem}",
                remedy="an approver sets its tag approval = revoked",
            )
        return None

    def _asked(self, problem: str, release: Release) -> bool:
        """Does the statement name a person's act that asks for this very version: a rollback to it, or a revocation?"""
        ledger = self._ground.ledger
        if release.cause is Cause.ROLLBACK and ledger.requests.get(release.asked or "") == (problem, release.version):
            return True
        revoked = {
            version
            for version, decisions in ledger.of(problem).decisions.items()
            if any(one.approval.decision == "revoked" and one.line == release.asked for one in decisions)
        }
        return revoked == {release.version} if release.cause is Cause.WITHDRAW else bool(revoked - {release.version})
