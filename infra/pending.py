"""What waits for a person, and what will stop if nobody does anything: from MLflow's view, which the steward keeps right."""

from __future__ import annotations

import time
from typing import Any, TypeVar

from truing.infra.settings import Settings
from truing.tasks.policy import Policy
from truing.tasks.records import Approval, Head, Record, Refusal, Standing, Verdict
from truing.tasks.release.registry import Registry
from truing.tasks.release.versions import Model, Version
from truing.tasks.seal import APPROVAL_TYPE, HEAD_TYPE, STANDING_TYPE, VERDICT_TYPE, Keys, open_envelope

R = TypeVar("R", bound=Record)

SOON_S = 7 * 86_400.0  # an approval that ends within this is said loudly


def pending(settings: Settings, registry: Registry, name: str, policy: Policy, keys: Keys) -> dict[str, Any]:
    """One problem as people need to know it. Raises Unavailable; DataError or Refused before its first version."""
    model, versions = registry.model(name), registry.versions(name)
    proposed, accepted = model.tags.get("policy.proposed"), model.tags.get("policy.accepted")
    return {
        "champion": model.champion,
        "anchor": model.anchor,
        "frozen": model.frozen,
        "frozen_by": model.tags.get("frozen.by") if model.frozen else None,
        "versions": len(versions),
        "waiting": [one for version in versions if (one := _waiting(settings, version, model, policy, keys)) is not None],
        "policy": {"accepted": accepted, "proposed": proposed, "pending": bool(proposed) and proposed != accepted},
        "standing": _standing(model, keys),
        "head": _head(model, keys),
    }


def expiring(served: dict[str, Any] | None, now: float) -> dict[str, Any] | None:
    """The end of what serves, if it has one. `soon` says that a person has to act now."""
    if not served or served.get("expires") is None:
        return None
    left = float(served["expires"]) - now
    return {"version": served.get("version"), "expires": served["expires"], "left_s": round(left), "soon": left < SOON_S}


def _waiting(settings: Settings, version: Version, model: Model, policy: Policy, keys: Keys) -> dict[str, Any] | None:
    """A version that nobody has decided on, or not enough people; None for all others."""
    if version.release is not None or version.number <= int(model.champion or 0):
        return None
    verdict = open_envelope(version.verdict, Verdict, VERDICT_TYPE, keys.gate)
    approval = open_envelope(version.stamp, Approval, APPROVAL_TYPE, keys.registry) if version.stamp else None
    by: list[str] = []
    if isinstance(approval, Approval):
        if not approval.override or approval.decision != "approved" or len(approval.by) >= policy.approvals.block_persons:
            return None
        by = list(approval.by)
    elif version.outcome == "block" or version.approval is not None:
        return None
    judged = isinstance(verdict, Verdict)
    return {
        "version": version.version,
        "outcome": str(version.outcome or "undecided"),
        "reason": version.tags.get("verdict.reason", ""),
        "since": verdict.at if isinstance(verdict, Verdict) else version.created,
        "by": by,
        "wanted": policy.approvals.block_persons if by else 1,
        "act": f"truing approve {version.version} --problem {version.problem} --reason …" if judged else None,
        "page": f"{settings.registry_url}/#/models/{version.problem}/versions/{version.version}",
    }


def _standing(model: Model, keys: Keys) -> dict[str, Any] | None:
    standing = _opened(model.tags.get("standing.stamp"), Standing, STANDING_TYPE, keys.registry)
    if standing is None or standing.decision != "approved" or standing.expires <= time.time():
        return None
    return {
        "by": list(standing.by),
        "expires": standing.expires,
        "max_drift": standing.max_drift,
        "per_day": standing.per_day,
        "reason": standing.reason,
    }


def _head(model: Model, keys: Keys) -> dict[str, Any] | None:
    head = _opened(model.tags.get("release.head"), Head, HEAD_TYPE, keys.release)
    if head is None:
        return None
    return {"sequence": head.sequence, "audit": head.audit, "at": head.at, "expires": head.expires}


def _opened(text: str | None, kind: type[R], name: str, keys: tuple[bytes, ...]) -> R | None:
    found = open_envelope(text, kind, name, keys)
    return None if isinstance(found, Refusal) else found
