"""Tags of a model: where people accept a policy, pin the anchor, freeze, ask for a rollback, or approve in advance."""

from __future__ import annotations

import math
import re

import msgspec

from truing.infra.registry_guard.acts import RESERVED, Act, normal, only, plain
from truing.infra.registry_guard.deeds import REASONS, Terms
from truing.infra.registry_guard.ground import Ground
from truing.tasks.records import Head, Refusal
from truing.tasks.release.versions import is_frozen
from truing.tasks.seal import HEAD_TYPE, open_envelope

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ACTS = ("policy.accepted", "anchor", "rollback.to", "frozen", "standing")
LONGEST_DAYS, MOST_DRIFT, MOST_A_DAY = 90.0, 0.1, 24  # of a standing approval: beyond these a person has to look again


class Models:
    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def tag(self, act: Act) -> Refusal | None:
        key = act.body.key
        refusal = plain(key)
        if refusal:
            return refusal
        if key in _ACTS or (key in REASONS and key != "approval.reason"):
            return self._person(act) if act.role == "approver" else only("approver", f"sets {key}")
        if key == "policy.proposed":
            if act.role != "steward":
                return only("steward", "proposes a policy")
            if not _DIGEST.fullmatch(act.body.value):
                return Refusal(
                    code="policy.digest", reason=f"expected a policy's digest, got {act.body.value!r}", remedy="propose it anew"
                )
            return None
        if key == "release.head":
            return self._head(act)
        if key == "rollback.done" and act.role == "steward":
            return None
        if RESERVED.match(key):
            return only("registry", f"writes the tag {key}")
        return None if act.role == "steward" else only("steward", f"writes the tag {key}")

    def delete_tag(self, act: Act) -> Refusal | None:
        if RESERVED.match(normal(act.body.key)):
            return Refusal(
                code="tag.kept",
                reason=f"the tag {act.body.key} is evidence and stays",
                remedy="set it anew; frozen can be set to false, standing to revoked",
            )
        return self.tag(act)

    # --- people
    def _person(self, act: Act) -> Refusal | None:
        """An approver's act. Its reason is the one that this person has set just before it."""
        problem, key, value = act.body.name, act.body.key, act.body.value
        ledger = self._ground.ledger
        if key in REASONS:
            return None
        if key == "policy.accepted":
            proposed = ledger.proposed.get(problem)
            if value and value == proposed:
                return None
            return Refusal(
                code="policy.proposed",
                reason=f"expected the proposed policy {proposed or 'none'}, got {value or 'nothing'}",
                remedy="accept the policy that the steward has proposed",
            )
        name = key.removesuffix(".to")
        reason = act.found["reason"] = ledger.reason(act.user, problem, f"{name}.reason")
        if key == "frozen":
            frozen = is_frozen({"frozen": value})
            act.found["value"] = "true" if frozen else "false"
            if frozen and not reason and value.strip().casefold() not in ("true", "yes", "1"):
                act.found["reason"] = value.strip()
            return None
        if key in ("anchor", "rollback.to"):
            if value not in ledger.released(problem):
                return Refusal(
                    code=f"{key}.unreleased",
                    reason=f"version {value} of {problem} was never released",
                    remedy="name a version that was",
                )
            if key == "rollback.to" and value == ledger.champion(problem):
                return Refusal(
                    code="rollback.same", reason=f"version {value} serves already", remedy="name an earlier released version"
                )
            word = ledger.of(problem).decision(value)
            if key == "rollback.to" and word and word.approval.decision != "approved":
                return Refusal(
                    code="rollback.revoked",
                    reason=f"version {value} was {word.approval.decision} by {' and '.join(word.approval.by)}",
                    remedy="name another version, or approve this one anew",
                )
        if key == "standing" and value == "revoked":
            act.found["terms"] = None
            return None
        if not reason:
            return Refusal(
                code=f"{name}.reason",
                reason="no reason is given",
                remedy=f"set the tag {name}.reason first, then {key}",
            )
        return self._terms(act) if key == "standing" else None

    def _terms(self, act: Act) -> Refusal | None:
        try:
            terms = msgspec.json.decode(act.body.value, type=Terms)
        except msgspec.DecodeError as error:
            return Refusal(
                code="standing.terms",
                reason=f"a standing approval does not read: {error}",
                remedy='write {"days":7,"max_drift":0.02,"per_day":3}, or revoked',
            )
        fine = 0 < terms.days <= LONGEST_DAYS and 0 <= terms.max_drift <= MOST_DRIFT and 1 <= terms.per_day <= MOST_A_DAY
        if not fine or not math.isfinite(terms.days):
            return Refusal(
                code="standing.terms",
                reason=f"expected at most {LONGEST_DAYS:g} days, a drift of at most {MOST_DRIFT:g} 1 to {MOST_A_DAY} a day, "
                f"got {act.body.value[:120]}",
                remedy="give it for smaller steps, or decide on each version",
            )
        act.found["terms"] = terms
        return None

    # --- the steward
    def _head(self, act: Act) -> Refusal | None:
        """Signed, about this problem, and not older than the one that stands."""
        if act.role != "steward":
            return only("steward", "signs the head")
        problem = act.body.name
        head = open_envelope(act.body.value, Head, HEAD_TYPE, self._ground.keys.release)
        if isinstance(head, Refusal):
            return head
        if head.problem != problem:
            return Refusal(code="head.other", reason=f"the head is about {head.problem}", remedy="attach it there")
        before = self._ground.ledger.heads.get(problem, (0, 0))
        if (head.sequence, head.audit) < before:  # never by clocks: one that was set back would end the heads
            return Refusal(
                code="head.older",
                reason=f"a head of release {before[0]} at audit record {before[1]} stands, this one is of {head.sequence} at "
                f"{head.audit}",
                remedy="sign a new one",
            )
        act.found["head"] = {"sequence": str(head.sequence), "audit": str(head.audit)}
        return None
