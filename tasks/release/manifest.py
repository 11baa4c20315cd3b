"""The release statement: what a signature will stand under. Everything in it is named by digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from truing.tasks.records import Approval, Cause, Release, Verdict
from truing.tasks.seal import digest


def release_of(
    verdict: Verdict,
    approval: Approval,
    *,
    version: str,
    name: str,
    past: Sequence[Release],
    environment: Mapping[str, str],
    now: float,
    lasts_s: float | None = None,
) -> Release:
    """The statement for an approved verdict, one after the last of `past` (by rising sequence; empty = genesis).

    `lasts_s` is how long the gateway may serve it, in seconds; None = no end. It never outlives the approval it rests on.
    """
    last = past[-1] if past else None
    ends = [end for end in (approval.expires, now + lasts_s if lasts_s is not None else None) if end is not None]
    return Release(
        problem=verdict.problem,
        name=name,
        version=version,
        sequence=last.sequence + 1 if last else 1,
        payload=verdict.candidate,
        verdict=digest(verdict),
        approval=digest(approval),
        dataset=verdict.dataset,
        policy=verdict.policy,
        environment=dict(environment),
        cause=Cause.PROMOTE if last else Cause.GENESIS,
        replaces=last.sequence if last else None,
        at=now,
        expires=min(ends) if ends else None,
        reason=approval.reason,
    )


def rollback_of(old: Release, last: Release, *, name: str, reason: str, environment: Mapping[str, str], now: float) -> Release:
    """A new statement over an old payload: its own verdict and approval, the next sequence, no end of its own.

    An emergency exit must stay open after the old approval has run out, so expiry is not carried over.
    """
    return Release(
        problem=old.problem,
        name=name,
        version=old.version,
        sequence=last.sequence + 1,
        payload=old.payload,
        verdict=old.verdict,
        approval=old.approval,
        dataset=old.dataset,
        policy=old.policy,
        environment=dict(environment),
        cause=Cause.ROLLBACK,
        replaces=last.sequence,
        at=now,
        expires=None,
        reason=reason,
    )


def release_name(problem: str, sequence: int) -> str:
    """`adult@3`: what people and prediction events call a release."""
    return f"{problem}@{sequence}"
