"""What should be released, if anything: pure plans. The steward signs them, attaches them and moves `champion`.

Plans can be made again after a crash at any point: the same approval, or the same request, gives the very same statement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from truing.tasks.records import Approval, Cause, Refusal, Release, Verdict
from truing.tasks.release.manifest import release_name, release_of, rollback_of
from truing.tasks.release.versions import Rollback
from truing.tasks.seal import APPROVAL_TYPE, RELEASE_TYPE, VERDICT_TYPE, Facts, Keys, admit, digest, open_envelope, sign


def plan_promotion(
    facts: Facts,
    *,
    past: Sequence[Release],
    keys: Keys,
    environment: Mapping[str, str],
    now: float,
    lasts_s: float | None = None,
) -> Release | Refusal:
    """The release of this version, or why there is none.

    `past` are all releases of the problem by rising sequence. An approval that was released already gives that release again as
    long as it is the newest, and after that the Refusal `release.done`.
    """
    verdict = open_envelope(facts.verdict, Verdict, VERDICT_TYPE, keys.gate)
    approval = open_envelope(facts.approval, Approval, APPROVAL_TYPE, keys.registry)
    if isinstance(approval, Approval):
        done = [release for release in past if release.approval == digest(approval) and release.cause is not Cause.ROLLBACK]
        if done and done[-1] != past[-1]:
            return Refusal(
                code="release.done",
                reason=f"version {facts.version} was release {done[-1].sequence}; {past[-1].sequence} came after it",
                remedy="use `truing rollback` to serve it again",
            )
        if done:
            return done[-1]
    refusal = admit(msgspec.structs.replace(facts, release=None), "promote", keys=keys, now=now)
    if refusal:
        return refusal
    if isinstance(verdict, Refusal) or isinstance(approval, Refusal):  # admit has opened both; for the type checker
        raise ValueError("expected a verdict and an approval after admit, got none; report this")
    sequence = past[-1].sequence + 1 if past else 1
    return release_of(
        verdict,
        approval,
        version=facts.version,
        name=release_name(facts.problem, sequence),
        past=past,
        environment=environment,
        now=now,
        lasts_s=lasts_s,
    )


def plan_rollback(
    asked: Rollback,
    facts: Facts,
    *,
    past: Sequence[Release],
    environment: Mapping[str, str],
    now: float,
) -> Release | Refusal:
    """The new release over an old payload that a person asked for, or why there is none.

    `facts` are of the version to go back to (its bytes hashed now). A request that was carried out gives its release again
    while that is the newest, then the Refusal `rollback.done`.
    """
    own = [release for release in past if release.version == asked.version]
    if not own:
        return Refusal(
            code="rollback.unreleased",
            reason=f"version {asked.version} of {facts.problem} was never released",
            remedy="name a version that was",
        )
    done = [release for release in own if release.cause is Cause.ROLLBACK and release.at >= asked.at]
    if done:
        if done[0] == past[-1]:
            return done[0]
        return Refusal(
            code="rollback.done",
            reason=f"the rollback to version {asked.version} was release {done[0].sequence}",
            remedy="ask again to go back once more",
        )
    if past[-1].at > asked.at:
        return Refusal(
            code="rollback.late",
            reason=f"release {past[-1].sequence} went out after the rollback to version {asked.version} was asked for",
            remedy="ask again if it still is to go back",
        )
    if facts.version != asked.version or facts.payload != own[-1].payload:
        return Refusal(
            code="rollback.payload",
            reason=f"version {asked.version} no longer holds the bytes that were released",
            remedy="restore its artifact, or go back to another version",
        )
    return rollback_of(
        own[-1],
        past[-1],
        name=release_name(facts.problem, past[-1].sequence + 1),
        reason=asked.reason,
        environment=environment,
        now=now,
    )


def check(
    release: Release, facts: Facts, *, private_key: bytes, keys: Keys, now: float, floor_sequence: int = 0
) -> Refusal | None:
    """Would guard and gateway admit this plan once signed? Asked before anything is attached."""
    signed = msgspec.structs.replace(facts, release=sign(release, RELEASE_TYPE, private_key))
    act = "serve" if release.cause is Cause.ROLLBACK else "promote"
    return admit(signed, act, keys=keys, now=now, floor_sequence=floor_sequence)
