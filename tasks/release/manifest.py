"""The release statement: what a signature will stand under. Everything in it is named by digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from truing.tasks.records import Approval, Cause, Release, Standing, Verdict
from truing.tasks.seal import digest


def release_of(
    verdict: Verdict,
    approval: Approval | Standing,
    *,
    version: str,
    name: str,
    past: Sequence[Release],
    environment: Mapping[str, str],
    now: float,
    lasts_s: float | None = None,
    floor: int = 0,
    asked: str | None = None,
) -> Release:
    """The statement for an approved verdict, with the next number after `past` (by rising sequence) and after `floor`.

    Genesis is a release before which no number was ever given. `lasts_s` is how long the gateway may serve it, in seconds; None
    = no end. It never outlives a decision with an end, on which it rests; a standing approval's end only ends new releases.
    """
    own_end = approval.expires if isinstance(approval, Approval) else None
    ends = [end for end in (own_end, now + lasts_s if lasts_s is not None else None) if end is not None]
    before = highest(past, floor)
    return Release(
        problem=verdict.problem,
        name=name,
        version=version,
        sequence=before + 1,
        payload=verdict.candidate,
        verdict=digest(verdict),
        approval=digest(approval),
        dataset=verdict.dataset,
        policy=verdict.policy,
        environment=dict(environment),
        cause=Cause.PROMOTE if before else Cause.GENESIS,
        replaces=before or None,
        at=now,
        expires=min(ends) if ends else None,
        reason=approval.reason,
        asked=asked,
    )


def rollback_of(
    old: Release,
    last: Release,
    *,
    name: str,
    reason: str,
    environment: Mapping[str, str],
    now: float,
    floor: int = 0,
    asked: str | None = None,
) -> Release:
    """A new statement over an old payload: its own verdict and approval, the next number, no end of its own.

    An emergency exit must stay open after the old approval has run out, so expiry is not carried over.
    """
    before = highest([last], floor)
    return msgspec.structs.replace(
        old,
        name=name,
        sequence=before + 1,
        environment=dict(environment),
        cause=Cause.ROLLBACK,
        replaces=before,
        at=now,
        expires=None,
        reason=reason,
        asked=asked,
    )


def highest(past: Sequence[Release], floor: int = 0) -> int:
    """The last number given: the next release's is one more. 0 = none ever was."""
    return max(floor, past[-1].sequence if past else 0)


def release_name(problem: str, sequence: int) -> str:
    """`adult@3`: what people and prediction events call a release."""
    return f"{problem}@{sequence}"
