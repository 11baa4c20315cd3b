"""What the registry adds with its own hand after an act has happened: who, when, and for a decision a signed record of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from truing.infra.registry_guard.acts import Act
from truing.infra.registry_guard.books import Books
from truing.tasks.errors import ProblemError
from truing.tasks.policy import load_policy
from truing.tasks.problem import load_problem, seconds
from truing.tasks.records import Approval, Outcome, Refusal, Verdict
from truing.tasks.release.versions import POLICY_TYPE
from truing.tasks.seal import APPROVAL_TYPE, VERDICT_TYPE, canonical, digest, open_envelope, sign

EXPIRES = "30d"  # of an approval of an inconclusive verdict, when the policy's own file is not at hand


class Stamps:
    """One method per act that leaves a stamp; others leave none. `key` is the registry's private key."""

    def __init__(self, books: Books, key: bytes, problems: Path) -> None:
        self.books, self._key, self.problems = books, key, problems

    def after(self, act: Act, answer: dict[str, Any]) -> str | None:
        """Stamp what `act` did, as MLflow `answer`ed. Returns words for the audit, or None if there was nothing to stamp."""
        body = act.body
        match act.function:
            case "_create_run":
                self.books.own_run(answer["run"]["info"]["run_id"], act.user)
            case "_create_logged_model":
                self.books.own_logged_model(answer["model"]["info"]["model_id"], act.user)
            case "_create_model_version":
                version = str(answer["model_version"]["version"])
                payload = self.books.payload(self.books.version(body.name, version).root) or ""
                self.books.stamp_version(body.name, version, {"payload": payload, "trainer": act.user})
                return f"version {version}, payload {payload}, trainer {act.user}"
            case "_set_model_version_tag" if body.key == "approval":
                return self._approval(act)
            case "_set_registered_model_tag" if body.key == "policy.accepted":
                return self._policy(act)
            case "_set_registered_model_tag" if body.key in ("anchor", "rollback.to", "frozen"):
                name = body.key.removesuffix(".to")
                self.books.stamp_model(body.name, {f"{name}.by": act.user, f"{name}.at": repr(act.now)})
                return f"{body.key}={body.value} by {act.user}"
        return None

    def _approval(self, act: Act) -> str:
        held = self.books.version(act.body.name, act.body.version)
        verdict = open_envelope(held.version.verdict, Verdict, VERDICT_TYPE, self.books.keys.gate)
        if isinstance(verdict, Refusal):  # the rule has just read it under the same lock
            raise ValueError(verdict.reason)
        expires = None
        if act.body.value == "approved" and verdict.outcome is not Outcome.PASS:
            expires = act.now + seconds(self._expires(act.body.name, verdict.policy))
        approval = Approval(
            problem=act.body.name,
            version=held.version.version,
            verdict=digest(verdict),
            decision=act.body.value,
            by=(act.user,),
            at=act.now,
            expires=expires,
            reason=held.version.tags.get("approval.reason", ""),
        )
        envelope = sign(approval, APPROVAL_TYPE, self._key)
        self.books.stamp_version(
            act.body.name,
            held.version.version,
            {"approval.by": act.user, "approval.at": repr(act.now), "approval.stamp": canonical(envelope).decode()},
        )
        return f"{approval.decision} verdict {approval.verdict} by {act.user}"

    def _expires(self, problem: str, policy: str) -> str:
        """How long an approval of an inconclusive verdict holds, by the very policy that judged."""
        folder = self.problems / problem
        try:
            found = load_policy(folder, load_problem(folder))
        except ProblemError:
            return EXPIRES
        return found.approvals.inconclusive_expires if found.digest == policy else EXPIRES

    def _policy(self, act: Act) -> str:
        accepted = Approval(
            problem=act.body.name,
            version="",
            verdict=act.body.value,
            decision="approved",
            by=(act.user,),
            at=act.now,
            expires=None,
            reason="policy",
        )
        envelope = sign(accepted, POLICY_TYPE, self._key)
        self.books.stamp_model(
            act.body.name,
            {"policy.by": act.user, "policy.at": repr(act.now), "policy.stamp": canonical(envelope).decode()},
        )
        return f"policy {act.body.value} accepted by {act.user}"
