"""What an act has done, as the audit keeps it: its name, its facts, and for a decision a signed record of it.

A rule has looked up and checked what is needed (`Act.found`); nothing is read again here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from truing.infra.registry_guard.acts import Act
from truing.infra.registry_guard.ledger import CHAMPION, FOLDER, HEAD, PROPOSAL, REASON, SHOWN, Ledger
from truing.tasks.errors import ProblemError
from truing.tasks.policy import Policy, load_policy
from truing.tasks.problem import load_problem, seconds
from truing.tasks.records import Approval, Outcome, Record, Standing, Verdict
from truing.tasks.release import acts
from truing.tasks.seal import APPROVAL_TYPE, STANDING_TYPE, canonical, digest, digest_bytes, sign, together

EXPIRES = "30d"  # of an approval of an inconclusive verdict, when the policy's own file is not at hand
REASONS = ("approval.reason", "anchor.reason", "rollback.reason", "frozen.reason", "standing.reason")
DAY_S = 86_400.0


class Deed(Record, frozen=True):
    """`act` and `facts` of the audit line, and its words for people; `target` if the request could not name it yet."""

    act: str
    facts: dict[str, str]
    words: str = ""
    target: str = ""


class Terms(Record, frozen=True):
    """What an approver writes into the tag `standing`."""

    days: float
    max_drift: float
    per_day: int


def terms(standing: Standing) -> str:
    """The tag's text of a standing approval."""
    given = Terms(days=(standing.expires - standing.at) / DAY_S, max_drift=standing.max_drift, per_day=standing.per_day)
    return msgspec.json.encode(given).decode()


class Deeds:
    """`key` gives the registry's private key of the moment; `problems` is the folder of problem folders."""

    def __init__(self, ledger: Ledger, key: Callable[[], bytes], problems: Path) -> None:
        self.ledger, self._key, self.problems = ledger, key, problems

    def of(self, act: Act, answer: dict[str, Any]) -> Deed:
        """What `act`, once MLflow has `answer`ed, is in the audit."""
        match act.function:
            case "_create_model_version":
                return self._version(act, str(answer["model_version"]["version"]))
            case "_set_model_version_tag":
                return self._version_tag(act)
            case "_set_registered_model_tag":
                return self._model_tag(act)
            case "_set_registered_model_alias" if act.body.alias == "champion":
                return Deed(act=CHAMPION, facts={"problem": act.body.name, "version": act.body.version})
            case "_update_model_version":
                facts = {"problem": act.body.name, "version": act.body.version, "key": "description"}
                return Deed(act=SHOWN, facts=facts | {"mark": digest_bytes(act.body.description.encode())})
        return Deed(act=act.function, facts={})

    def policy(self, problem: str, name: str | None) -> Policy | None:
        """The policy with this digest, if the problem's file holds it now: nothing else is taken from a file."""
        folder = self.problems / problem
        try:
            found = load_policy(folder, load_problem(folder))
        except ProblemError:
            return None
        return found if found.digest == name else None

    def _version(self, act: Act, version: str) -> Deed:
        payload, root = act.found["payload"], act.found["root"]
        facts = {"problem": act.body.name, "version": version, "payload": payload, "trainer": act.user, FOLDER: root}
        words = f"version {version}, payload {payload}, trainer {act.user}"
        return Deed(act=acts.VERSION, facts=facts, words=words, target=f"{act.body.name}/{version}")

    def _version_tag(self, act: Act) -> Deed:
        problem, version, key, value = act.body.name, act.body.version, act.body.key, act.body.value
        at = {"problem": problem, "version": version}
        if key == "approval":
            approval = self._approval(act)
            envelope = canonical(sign(approval, APPROVAL_TYPE, self._key())).decode()
            words = f"{approval.decision} verdict {approval.verdict} by {' and '.join(approval.by)}"
            words += f": {approval.reason}" if approval.reason else ""
            return Deed(act=acts.DECISION, facts=at | {"envelope": envelope}, words=words)
        if key == "approval.reason":
            return Deed(act=REASON, facts=at | {"key": key, "text": value}, words=value)
        if key == "verdict":
            return Deed(act=acts.VERDICT, facts=at | {"envelope": value}, words=act.found["words"])
        if key == "release" or key.startswith("release."):
            return Deed(act=acts.RELEASE, facts=at | {"envelope": value}, words=act.found["words"])
        if act.role == "steward":
            return Deed(act=SHOWN, facts=at | {"key": key, "mark": digest_bytes(value.encode())})
        return Deed(act=act.function, facts={})

    def _model_tag(self, act: Act) -> Deed:
        problem, key, value = act.body.name, act.body.key, act.body.value
        by = f"{key}={value[:120]} by {act.user}"
        reason = act.found.get("reason", "")
        match key:
            case "policy.proposed":
                return Deed(act=PROPOSAL, facts={"problem": problem, "policy": value})
            case "policy.accepted":
                return Deed(act=acts.POLICY, facts={"problem": problem, "policy": value}, words=by)
            case "anchor":
                return Deed(act=acts.ANCHOR, facts={"problem": problem, "version": value, "reason": reason}, words=by)
            case "rollback.to":
                return Deed(act=acts.ROLLBACK, facts={"problem": problem, "version": value, "reason": reason}, words=by)
            case "frozen":
                facts = {"problem": problem, "value": act.found["value"], "reason": reason}
                return Deed(act=acts.FROZEN, facts=facts, words=by)
            case "standing":
                envelope = canonical(sign(self._standing(act, reason), STANDING_TYPE, self._key())).decode()
                return Deed(act=acts.STANDING, facts={"problem": problem, "envelope": envelope}, words=f"{by}: {reason}")
            case "release.head":
                return Deed(act=HEAD, facts={"problem": problem, **act.found["head"]})
            case _ if key in REASONS:
                return Deed(act=REASON, facts={"problem": problem, "version": "", "key": key, "text": value}, words=value)
        return Deed(act=act.function, facts={})

    def _approval(self, act: Act) -> Approval:
        """The decision. A blocked version's is carried by all who have approved it so far, and ends with the first of them."""
        verdict: Verdict = act.found["verdict"]
        before: Approval | None = act.found["before"]
        approved = act.body.value == "approved"
        override = approved and verdict.outcome is Outcome.BLOCK
        by: tuple[str, ...] = (act.user,)
        reason = act.found["reason"]
        expires = act.now + seconds(self._expires(act.body.name, verdict.policy)) if approved else None
        if override and before is not None and len(everyone := together(before, act.user, verdict=verdict)) > 1:
            by, reason = everyone, f"{before.reason}; {act.user}: {reason}"
            expires = min(filter(None, (expires, before.expires)))
        elif override:
            reason = f"{act.user}: {reason}"
        return Approval(
            problem=act.body.name,
            version=act.body.version,
            verdict=digest(verdict),
            decision=act.body.value,
            by=by,
            at=act.now,
            expires=None if verdict.outcome is Outcome.PASS else expires,
            reason=reason,
            override=override,
        )

    def _expires(self, problem: str, policy: str) -> str:
        """How long an approval of an inconclusive verdict holds, by the very policy that judged."""
        found = self.policy(problem, policy)
        return found.approvals.inconclusive_expires if found else EXPIRES

    def _standing(self, act: Act, reason: str) -> Standing:
        given: Terms | None = act.found["terms"]
        return Standing(
            problem=act.body.name,
            decision="approved" if given else "revoked",
            by=(act.user,),
            at=act.now,
            expires=act.now + (given.days * DAY_S if given else 0.0),
            max_drift=given.max_drift if given else 0.0,
            per_day=given.per_day if given else 0,
            reason=reason,
        )
