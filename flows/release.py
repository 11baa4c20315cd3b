"""The last part of the descent: a verdict and a person's approval become a release, and that release is served.

    plan     promotion, rollback or withdrawal → what would be signed, or why not     nothing is written
    issue    plan → signed and in the steward's book                                  from here on it is the release
    serve    book → statement, head, alias                                            each step can be repeated
    finish   record and announcement                                                  at least once

A crash before `issue` leaves the old release, one after it the new: `serve` and `finish` are taken up again until through.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any

from truing.tasks import seal
from truing.tasks.errors import DataError, Refused
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Cause, Envelope, Refusal, Release

if TYPE_CHECKING:
    from truing.flows.loop import Offices
    from truing.tasks.release.acts import Asked, Decision, Docket
    from truing.tasks.release.book import Book, Issued
    from truing.tasks.release.registry import Registry
    from truing.tasks.tables.lake import Lake

Announce = Callable[[dict[str, Any]], object]


def promotion(
    registry: Registry,
    problem: Problem,
    policy: Policy,
    version: str,
    *,
    docket: Docket,
    book: Book,
    offices: Offices,
    environment: str,
    now: float,
) -> Release | Refusal:
    """The release of a version that an approver let out, now or in advance, or why there is none."""
    from truing.tasks.problem import seconds
    from truing.tasks.release.promotion import facts_of, plan_promotion
    from truing.tasks.release.standing import small_enough

    name, past = problem.name, book.releases(problem.name)
    facts = facts_of(name, version, docket=docket, book=book, policy=policy.digest, override=policy.approvals.block_persons)
    if isinstance(facts, Refusal):
        return facts
    decision, allowed = docket.decision(version), docket.standing
    lasts = policy.approvals.release_expires
    plan = plan_promotion(
        facts, past=past, keys=offices.public, environment=place(environment), now=now,
        lasts_s=seconds(lasts) if lasts else None, floor=book.floor(name),
        asked=decision.line if decision else allowed.line if allowed else None,
    )  # fmt: skip
    if isinstance(plan, Refusal):
        return plan
    judged = book.verdict(name, plan.payload)
    if decision is None and allowed is not None and judged is not None:
        pinned = docket.anchor and docket.versions.get(docket.anchor.version)
        over = small_enough(allowed.standing, judged, anchor=pinned.payload if pinned else None, past=past, now=now)
        if over is not None:
            return over
    held(registry, name, version, plan.payload)
    return plan


def rollback(
    registry: Registry,
    problem: Problem,
    asked: Asked,
    *,
    docket: Docket,
    book: Book,
    environment: str,
    now: float,
) -> Release | Refusal:
    """The release that serves an earlier version again, or why there is none."""
    from truing.tasks.release.promotion import plan_rollback

    name, last = problem.name, book.last(problem.name)
    registered = docket.versions.get(asked.version)
    facts = seal.Facts(problem=name, version=asked.version, payload=registered.payload if registered else None)
    plan = plan_rollback(
        asked, facts, past=book.releases(name), environment=place(environment), now=now, floor=book.floor(name),
        known=last.audit if last else 0, decision=docket.decision(asked.version),
    )  # fmt: skip
    if isinstance(plan, Release):
        held(registry, name, plan.version, plan.payload)
    return plan


def withdrawal(
    registry: Registry, problem: Problem, decision: Decision, *, docket: Docket, book: Book, environment: str, now: float
) -> Release:
    """The release that ends what serves, because its approval was revoked: the newest that stands and is whole, or nothing."""
    from truing.tasks.release.promotion import fallbacks, plan_withdrawal

    past = book.releases(problem.name)
    back = next((one for one in fallbacks(docket, past) if whole(registry, one)), None)
    return plan_withdrawal(decision, back, past=past, environment=place(environment), now=now, floor=book.floor(problem.name))


def whole(registry: Registry, release: Release) -> bool:
    """Are the bytes of a release still there as they were? Raises Unavailable when the registry does not answer."""
    try:
        held(registry, release.problem, release.version, release.payload)
    except (Refused, DataError):
        return False
    return True


def issue(plan: Release, *, book: Book, offices: Offices, audit: int, now: float) -> Issued | Refusal:
    """Sign a plan and book it: from here on it is the release, whatever breaks. `audit` is how far the audit was read."""
    from truing.tasks.release.promotion import check

    done = next((one for one in book.issued(plan.problem) if one.release == plan), None)
    if done is not None:
        return done
    facts = seal.Facts(problem=plan.problem, version=plan.version, payload=plan.payload)
    floor = book.floor(plan.problem) + 1
    refusal = check(plan, facts, private_key=offices.release, keys=offices.public, now=now, floor_sequence=floor)
    if refusal is not None:
        return refusal
    return book.add_release(seal.sign(plan, seal.RELEASE_TYPE, offices.release), audit=audit, at=now)


def serve(registry: Registry, issued: Issued, *, book: Book, head: Envelope) -> None:
    """Have a booked release served: statement, head, alias, in this order. Can be repeated at any point.

    An older release that was overtaken before it was through gets its statement and nothing else.
    """
    release = issued.release
    name, newest = release.problem, book.last(release.problem) == issued
    seen = registry.version(name, release.version)
    registry.attach_release(name, release.version, issued.envelope, newest=newest, seen=seen)
    if newest:
        registry.attach_head(name, head)
        registry.move_champion(name, release.version)


def finish(lake: Lake, issued: Issued, *, book: Book, announce: Announce, now: float) -> None:
    """Record and announce a release that serves; then it is through. A crash in between announces it again, under one id."""
    release = issued.release
    lake.record("releases", [release])
    announce(
        {"id": seal.digest(release)[:32], "type": SAID[release.cause], "problem": release.problem, "version": release.version,
         "sequence": release.sequence, "payload": release.payload, "reason": release.reason}
    )  # fmt: skip
    book.finish(issued, at=now)


SAID = {
    Cause.GENESIS: "model.released",
    Cause.PROMOTE: "model.released",
    Cause.ROLLBACK: "model.rolled-back",
    Cause.WITHDRAW: "model.withdrawn",
}


def held(registry: Registry, problem: str, version: str, payload: str) -> dict[str, bytes]:
    """The files of a version, if they are the ones that are meant. Raises Refused when they hash to something else."""
    files = registry.payload(problem, version)
    found = seal.tree_digest(files) if files else None
    if found != payload:
        raise Refused(
            Refusal(
                code="payload.other",
                reason=f"version {version} of {problem} holds {(found or 'nothing')[:12]}, registered was {payload[:12]}",
                remedy="its files were altered behind the registry's back: restore them from a backup",
            )
        )
    return files


def place(environment: str) -> dict[str, str]:
    """Where a release was signed, for its statement."""
    return {"name": environment, "truing": installed("truing"), "python": platform.python_version()}
