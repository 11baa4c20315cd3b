"""What should be released, if anything: pure plans. The steward signs them, books them and has them served.

An act asks for one release at most: an approval is known by its digest, a request by the digest of its audit record. Order is
the audit's, never a clock's: two processes' clocks need not agree, and one may jump.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from truing.tasks.records import Approval, Cause, Refusal, Release, Standing, Verdict
from truing.tasks.release.acts import Asked, Decision, Docket
from truing.tasks.release.book import Book
from truing.tasks.release.manifest import highest, release_name, release_of, rollback_of
from truing.tasks.seal import (
    APPROVAL_TYPE,
    RELEASE_TYPE,
    STANDING_TYPE,
    VERDICT_TYPE,
    Facts,
    Keys,
    admit,
    digest,
    open_envelope,
    sign,
)

_FORWARD = (Cause.GENESIS, Cause.PROMOTE)


def facts_of(problem: str, version: str, *, docket: Docket, book: Book, policy: str, override: int) -> Facts | Refusal:
    """What the steward knows of a version, without asking MLflow: from the audit, its own book and its own policy file.

    `policy` is the digest of that file: verdicts are made under it, and `override` comes from it, so it has to be the accepted
    one. The payload is the registered one: compare the bytes with it before anything is signed.
    """
    registered = docket.versions.get(version)
    if registered is None:
        return Refusal(
            code="version.unknown",
            reason=f"version {version} of {problem} was never registered",
            remedy="register it as the trainer; a row in MLflow's database is none",
        )
    if docket.policy != policy:
        return Refusal(
            code="policy.changed" if docket.policy else "policy.unaccepted",
            reason=f"the steward's policy of {problem} is {policy[:12]}, accepted is {(docket.policy or 'none')[:12]}",
            remedy="an approver accepts the proposed policy with `truing policy accept`",
        )
    judged = book.verdict(problem, registered.payload)
    if judged is not None and docket.verdicts.get(version, judged.envelope) != judged.envelope:
        return Refusal(
            code="verdict.older",
            reason=f"the audit holds a later verdict on version {version} than the steward's book: the book was restored",
            remedy="move the book away to have it made anew, or restore the newest one",
        )
    decision, serving = docket.decision(version), book.champion(problem)
    return Facts(
        problem=problem,
        version=version,
        payload=registered.payload,
        verdict=judged.envelope if judged else None,
        approval=decision.envelope if decision else None,
        policy=docket.policy,
        trainer=registered.trainer,
        frozen=docket.frozen,
        override=override,
        standing=docket.standing.envelope if docket.standing else None,
        champion=serving.payload if serving else None,
    )


def plan_promotion(
    facts: Facts,
    *,
    past: Sequence[Release],
    keys: Keys,
    environment: Mapping[str, str],
    now: float,
    lasts_s: float | None = None,
    floor: int = 0,
    asked: str | None = None,
) -> Release | Refusal:
    """The release of this version, or why there is none.

    `past` are all releases of the problem by rising sequence, `floor` the highest number ever given, `asked` the digest of the
    deciding act's audit record. An approval that was released already gives that release again as long as it is the newest, and
    after that the Refusal `release.done`. `facts.champion` is the payload that serves, None when nothing does.
    """
    verdict = open_envelope(facts.verdict, Verdict, VERDICT_TYPE, keys.gate)
    approval = _consent(facts, keys)
    if isinstance(approval, Approval):
        done = [release for release in past if release.approval == digest(approval) and release.cause in _FORWARD]
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
    if facts.champion is None and verdict.champion is not None:
        return Refusal(
            code="verdict.stale",
            reason=f"version {facts.version} was compared with a champion that was withdrawn since",
            remedy="wait for the steward to judge it again",
        )
    return release_of(
        verdict,
        approval,
        version=facts.version,
        name=release_name(facts.problem, highest(past, floor) + 1),
        past=past,
        environment=environment,
        now=now,
        lasts_s=lasts_s,
        floor=floor,
        asked=asked,
    )


def _consent(facts: Facts, keys: Keys) -> Approval | Standing | Refusal:
    """The person's word that would let it out: on this version, else in advance."""
    if facts.approval is None and facts.standing is not None:
        return open_envelope(facts.standing, Standing, STANDING_TYPE, keys.registry)
    return open_envelope(facts.approval, Approval, APPROVAL_TYPE, keys.registry)


def plan_rollback(
    asked: Asked,
    facts: Facts,
    *,
    past: Sequence[Release],
    environment: Mapping[str, str],
    now: float,
    floor: int = 0,
    known: int = 0,
    decision: Decision | None = None,
) -> Release | Refusal:
    """The new release over an old payload that a person asked for, or why there is none.

    `facts` are of the version to go back to (its bytes hashed now), `decision` the word that stands on it, `known` how far the
    audit went when the newest release was signed. A request that was carried out gives its release again while that is the
    newest, then the Refusal `rollback.done`.
    """
    done = [release for release in past if release.asked == asked.line]
    if done and done[-1] == past[-1]:
        return done[-1]
    if done:
        return Refusal(
            code="rollback.done",
            reason=f"the rollback to version {asked.version} was release {done[-1].sequence}",
            remedy="ask again to go back once more",
        )
    own = [release for release in past if release.version == asked.version and release.cause is not Cause.WITHDRAW]
    if not own:
        return Refusal(
            code="rollback.unreleased",
            reason=f"version {asked.version} of {facts.problem} was never released",
            remedy="name a version that was",
        )
    if known > asked.n:
        return Refusal(
            code="rollback.late",
            reason=f"release {past[-1].sequence} went out after the rollback to version {asked.version} was asked for",
            remedy="ask again if it still is to go back",
        )
    if decision is not None and decision.approval.decision != "approved":
        return Refusal(
            code="rollback.revoked",
            reason=f"version {asked.version} was {decision.approval.decision} by {' and '.join(decision.approval.by)}"
            + (f": {decision.approval.reason}" if decision.approval.reason else ""),
            remedy="go back to another version, or approve this one anew",
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
        name=release_name(facts.problem, highest(past, floor) + 1),
        reason=asked.reason,
        environment=environment,
        now=now,
        floor=floor,
        asked=asked.line,
    )


def taken_back(docket: Docket, past: Sequence[Release]) -> Decision | None:
    """The revocation that what serves now falls under and that was not carried out yet."""
    if not past or past[-1].cause is Cause.WITHDRAW:
        return None
    decision = docket.decision(past[-1].version)
    if decision is None or decision.approval.decision != "revoked":
        return None
    return None if any(release.asked == decision.line for release in past) else decision


def fallbacks(docket: Docket, past: Sequence[Release]) -> list[Release]:
    """What may come back when the newest release falls: earlier ones of other versions whose approval stands, newest first."""
    found: dict[str, Release] = {}
    for release in reversed(past[:-1]):
        decision = docket.decision(release.version)
        stands = decision is None or decision.approval.decision == "approved"
        if release.cause is not Cause.WITHDRAW and release.version != past[-1].version and stands:
            found.setdefault(release.version, release)
    return list(found.values())


def plan_withdrawal(
    decision: Decision,
    back: Release | None,
    *,
    past: Sequence[Release],
    environment: Mapping[str, str],
    now: float,
    floor: int = 0,
) -> Release:
    """The release that ends the newest one because its approval was revoked: `back` in its place, or nothing."""
    approval, serving = decision.approval, past[-1]
    who = f"approval of version {serving.version} revoked by {' and '.join(approval.by)}"
    reason = who + (f": {approval.reason}" if approval.reason else "")
    name = release_name(serving.problem, highest(past, floor) + 1)
    made = rollback_of(
        back or serving,
        serving,
        name=name,
        reason=reason,
        environment=environment,
        now=now,
        floor=floor,
        asked=decision.line,
    )
    return made if back is not None else msgspec.structs.replace(made, cause=Cause.WITHDRAW)


def check(
    release: Release, facts: Facts, *, private_key: bytes, keys: Keys, now: float, floor_sequence: int = 0
) -> Refusal | None:
    """Would the gateway admit this plan once signed? Asked before anything is booked."""
    signed = msgspec.structs.replace(facts, release=sign(release, RELEASE_TYPE, private_key))
    return admit(signed, "serve", keys=keys, now=now, floor_sequence=floor_sequence)
