"""Release plans, and statements: pure, so each claim is a few lines."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from clerk import Clerk

from truing.infra.keys import Keyring
from truing.tasks.records import Approval, Cause, Outcome, Record, Refusal, Release, Verdict
from truing.tasks.release.acts import Asked
from truing.tasks.release.book import Judged
from truing.tasks.release.promotion import (
    check,
    fallbacks,
    plan_promotion,
    plan_rollback,
    plan_withdrawal,
    taken_back,
)
from truing.tasks.release.standing import small_enough
from truing.tasks.release.versions import (
    POLICY_TYPE,
    Version,
    accepted_policy,
    is_frozen,
    open_releases,
)
from truing.tasks.seal import APPROVAL_TYPE, RELEASE_TYPE, VERDICT_TYPE, Facts, Keys, canonical, digest, sign

NOW = 1_000_000.0
POLICY = "ab" * 32


class Desk:
    """The three offices' keys, and envelopes by them."""

    def __init__(self, keyring: Keyring) -> None:
        self.ring, self.keys = keyring, keyring.public()

    def seal(self, record: Record, kind: str, office: str) -> str:
        return canonical(sign(record, kind, self.ring.read(office))).decode()

    def facts(
        self, version: str = "1", outcome: Outcome = Outcome.PASS, *, approved_at: float = NOW, expires: float | None = None,
        **changes: Any,
    ) -> Facts:  # fmt: skip
        payload = version * 64
        verdict = Verdict(
            problem="adult", outcome=outcome, clauses=(), candidate=payload, evaluation="ee", policy=POLICY, dataset="dd",
            champion=None, look=1, at=NOW, key="k", reason="women's TPR fell",
        )  # fmt: skip
        approval = Approval(
            problem="adult", version=version, verdict=digest(verdict), decision="approved", by=("approver",),
            at=approved_at, expires=expires, reason="wanted",
        )  # fmt: skip
        made = Facts(
            problem="adult", version=version, payload=payload, trainer="trainer", policy=POLICY,
            verdict=self.seal(verdict, VERDICT_TYPE, "gate"), approval=self.seal(approval, APPROVAL_TYPE, "registry"),
        )  # fmt: skip
        return msgspec.structs.replace(made, **changes)

    def promote(self, facts: Facts, past: list[Release], now: float = NOW) -> Release | Refusal:
        return plan_promotion(facts, past=past, keys=self.keys, environment={"name": "laptop"}, now=now)

    def promoted(self, facts: Facts, past: list[Release], now: float = NOW) -> Release:
        plan = self.promote(facts, past, now)
        assert isinstance(plan, Release), plan
        return plan


@pytest.fixture(scope="module")
def desk(keyring: Keyring) -> Desk:
    return Desk(keyring)


def test_the_first_release_is_genesis_and_each_next_one_counts_up(desk: Desk) -> None:
    first = desk.promoted(desk.facts("1"), [])
    second = desk.promoted(desk.facts("2"), [first], NOW + 1)
    assert (first.sequence, first.cause, first.replaces) == (1, Cause.GENESIS, None)
    assert (second.sequence, second.cause, second.replaces) == (2, Cause.PROMOTE, 1)
    assert first.environment == {"name": "laptop"}
    assert second.name != first.name


def test_a_release_names_all_it_rests_on_by_digest(desk: Desk) -> None:
    facts = desk.facts("1")
    plan = desk.promoted(facts, [])
    assert plan.payload == "1" * 64
    assert (plan.policy, plan.dataset, plan.reason) == (POLICY, "dd", "wanted")
    assert plan.verdict is not None
    assert plan.approval is not None
    assert plan.verdict != plan.approval


def test_the_same_approval_never_makes_two_releases(desk: Desk) -> None:
    facts = desk.facts("1")
    first = desk.promoted(facts, [])
    assert desk.promote(facts, [first], NOW + 50) == first, "after a crash the very same statement comes again"
    second = desk.promoted(desk.facts("2"), [first], NOW + 60)
    late = desk.promote(facts, [first, second], NOW + 70)
    assert isinstance(late, Refusal)
    assert late.code == "release.done"


def test_an_approval_given_anew_may_release_again(desk: Desk) -> None:
    first = desk.promoted(desk.facts("1"), [])
    again = desk.promoted(desk.facts("1", approved_at=NOW + 5), [first], NOW + 6)
    assert again.sequence == 2


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"approval": None}, "approval.missing"),
        ({"verdict": None}, "verdict.missing"),
        ({"payload": "9" * 64}, "verdict.payload"),
        ({"policy": None}, "policy.unaccepted"),
        ({"policy": "cd" * 32}, "policy.changed"),
        ({"trainer": "approver"}, "approval.self"),
        ({"frozen": True}, "frozen"),
        ({"champion": "8" * 64}, "verdict.stale"),
    ],
)
def test_what_admit_refuses_is_not_planned(desk: Desk, changes: dict[str, Any], code: str) -> None:
    plan = desk.promote(desk.facts("1", **changes), [])
    assert isinstance(plan, Refusal)
    assert plan.code == code


def test_a_blocked_version_has_no_plan(desk: Desk) -> None:
    plan = desk.promote(desk.facts("1", Outcome.BLOCK), [])
    assert isinstance(plan, Refusal)
    assert plan.reason == "version 1 is blocked: women's TPR fell"


def test_a_release_does_not_outlive_the_approval_it_rests_on(desk: Desk) -> None:
    facts = desk.facts("1", Outcome.INCONCLUSIVE, expires=NOW + 100)
    short = plan_promotion(facts, past=[], keys=desk.keys, environment={}, now=NOW, lasts_s=50)
    long = plan_promotion(facts, past=[], keys=desk.keys, environment={}, now=NOW, lasts_s=500)
    assert isinstance(short, Release)
    assert isinstance(long, Release)
    assert (short.expires, long.expires) == (NOW + 50, NOW + 100)


def test_a_signed_plan_is_admitted_and_one_out_of_turn_is_not(desk: Desk) -> None:
    facts = desk.facts("1")
    plan = desk.promoted(facts, [])
    key = desk.ring.read("release")
    assert check(plan, facts, private_key=key, keys=desk.keys, now=NOW) is None
    late = check(plan, facts, private_key=key, keys=desk.keys, now=NOW, floor_sequence=2)
    assert late is not None
    assert late.code == "release.sequence"
    stolen = check(plan, facts, private_key=desk.ring.read("gate"), keys=desk.keys, now=NOW)
    assert stolen is not None
    assert stolen.code == "envelope.signature"


def two(desk: Desk) -> list[Release]:
    first = desk.promoted(desk.facts("1"), [])
    return [first, desk.promoted(desk.facts("2"), [first], NOW + 10)]


def asked(version: str = "1", n: int = 20) -> Asked:
    return Asked(version=version, reason="complaints", by="approver", at=0.0, n=n, line=f"line {n}")


def back(desk: Desk, request: Asked, past: list[Release], *, known: int = 10, **changes: Any) -> Release | Refusal:
    facts = desk.facts(request.version, **changes)
    return plan_rollback(request, facts, past=past, environment={}, now=NOW + 30, known=known)


def test_a_rollback_is_a_new_release_over_the_old_payload(desk: Desk) -> None:
    past = two(desk)
    plan = back(desk, asked(), past)
    assert isinstance(plan, Release)
    assert (plan.sequence, plan.cause, plan.replaces, plan.version) == (3, Cause.ROLLBACK, 2, "1")
    assert (plan.payload, plan.verdict, plan.approval) == (past[0].payload, past[0].verdict, past[0].approval)
    assert (plan.reason, plan.asked, plan.name) == ("complaints", "line 20", "adult@3")
    facts = msgspec.structs.replace(desk.facts("1"), frozen=True, policy="cd" * 32)
    assert check(plan, facts, private_key=desk.ring.read("release"), keys=desk.keys, now=NOW + 31, floor_sequence=2) is None


def test_the_same_request_never_makes_two_rollbacks_whatever_the_clocks_say(desk: Desk) -> None:
    past = two(desk)
    plan = back(desk, asked(), past)
    assert isinstance(plan, Release)
    assert back(desk, asked(), [*past, plan], known=20) == plan
    after = desk.promoted(desk.facts("3"), [*past, plan], NOW - 10_000)
    late = back(desk, asked(), [*past, plan, after], known=25)
    assert isinstance(late, Refusal)
    assert late.code == "rollback.done"


def test_a_rollback_can_be_rolled_back(desk: Desk) -> None:
    """1, 2, back to 1, back to 2, back to 1: five releases, each over the payload asked for."""
    past = two(desk)
    for n, version in ((20, "1"), (30, "2"), (40, "1")):
        plan = back(desk, asked(version, n), past, known=n - 5)
        assert isinstance(plan, Release), plan
        past = [*past, plan]
    assert [(one.sequence, one.version, one.payload[0]) for one in past[2:]] == [(3, "1", "1"), (4, "2", "2"), (5, "1", "1")]


def test_a_request_that_the_newest_release_already_knew_of_is_stale(desk: Desk) -> None:
    plan = back(desk, asked(n=20), two(desk), known=21)
    assert isinstance(plan, Refusal)
    assert plan.code == "rollback.late"


def test_there_is_no_way_back_to_what_was_never_released_or_changed_or_taken_back(desk: Desk, clerk: Clerk) -> None:
    clerk.decide("1", clerk_verdict(), "revoked", reason="leak")
    word = clerk.docket().decision("1")
    never = back(desk, asked("7"), two(desk))
    changed = back(desk, asked(), two(desk), payload="9" * 64)
    revoked = plan_rollback(asked(), desk.facts("1"), past=two(desk), environment={}, now=NOW, decision=word)
    assert [one.code for one in (never, changed, revoked) if isinstance(one, Refusal)] == [
        "rollback.unreleased", "rollback.payload", "rollback.revoked",
    ]  # fmt: skip


# --- revocation of what serves ------------------------------------------------------------------------------------------------


def clerk_verdict() -> Verdict:
    return Verdict(
        problem="adult", outcome=Outcome.PASS, clauses=(), candidate="2" * 64, evaluation="e", policy=POLICY, dataset="d",
        champion=None, look=1, at=1.0, key="k",
    )  # fmt: skip


@pytest.fixture
def clerk(keyring: Keyring) -> Clerk:
    return Clerk(keyring.read("registry"), keyring.read("gate"), keyring.read("release"))


def three(desk: Desk) -> list[Release]:
    past = two(desk)
    return [*past, desk.promoted(desk.facts("3"), past, NOW + 20)]


def test_only_what_serves_falls_with_its_approval_and_only_once(desk: Desk, clerk: Clerk) -> None:
    past = three(desk)
    clerk.decide("3", clerk_verdict())
    clerk.decide("2", clerk_verdict(), "revoked")
    assert taken_back(clerk.docket(), past) is None, "an earlier version's revocation changes nothing now"
    clerk.decide("3", clerk_verdict(), "rejected")
    assert taken_back(clerk.docket(), past) is None, "only a revocation un-serves"
    line = clerk.decide("3", clerk_verdict(), "revoked", reason="wrong labels")
    decision = taken_back(clerk.docket(), past)
    assert decision is not None
    assert decision.line == line.digest
    plan = plan_withdrawal(decision, past[0], past=past, environment={}, now=NOW)
    assert (plan.cause, plan.sequence, plan.version, plan.asked) == (Cause.ROLLBACK, 4, "1", line.digest)
    assert plan.reason == "approval of version 3 revoked by approver: wrong labels"
    assert taken_back(clerk.docket(), [*past, plan]) is None
    assert taken_back(clerk.docket(), []) is None


def test_the_newest_release_whose_approval_stands_comes_back_else_nothing(desk: Desk, clerk: Clerk) -> None:
    past = three(desk)
    clerk.decide("1", clerk_verdict())
    clerk.decide("3", clerk_verdict(), "revoked")
    assert [one.version for one in fallbacks(clerk.docket(), past)] == ["2", "1"]
    clerk.decide("2", clerk_verdict(), "rejected")
    assert [one.version for one in fallbacks(clerk.docket(), past)] == ["1"]
    clerk.decide("1", clerk_verdict(), "revoked")
    assert fallbacks(clerk.docket(), past) == []
    decision = taken_back(clerk.docket(), past)
    assert decision is not None
    plan = plan_withdrawal(decision, None, past=past, environment={}, now=NOW)
    assert (plan.cause, plan.sequence, plan.version, plan.payload) == (Cause.WITHDRAW, 4, "3", past[-1].payload)
    assert taken_back(clerk.docket(), [*past, plan]) is None
    gone = check(plan, desk.facts("3"), private_key=desk.ring.read("release"), keys=desk.keys, now=NOW, floor_sequence=3)
    assert gone is None


def test_nothing_judged_against_a_withdrawn_champion_is_promoted(desk: Desk) -> None:
    verdict = msgspec.structs.replace(clerk_verdict(), champion="1" * 64)
    approval = Approval(
        problem="adult", version="2", verdict=digest(verdict), decision="approved", by=("approver",), at=NOW, expires=None,
        reason="",
    )  # fmt: skip
    facts = desk.facts(
        "2", verdict=desk.seal(verdict, VERDICT_TYPE, "gate"), approval=desk.seal(approval, APPROVAL_TYPE, "registry")
    )
    stale = desk.promote(facts, two(desk))
    assert isinstance(stale, Refusal)
    assert stale.code == "verdict.stale"
    assert isinstance(desk.promote(msgspec.structs.replace(facts, champion="1" * 64), two(desk)), Release)


# --- numbers ------------------------------------------------------------------------------------------------------------------


def test_no_genesis_and_no_old_number_where_a_release_is_known(desk: Desk) -> None:
    """A wiped registry or a lost book leaves no past; the floor still knows that 7 were given."""
    plan = plan_promotion(desk.facts("1"), past=[], keys=desk.keys, environment={}, now=NOW, floor=7)
    assert isinstance(plan, Release)
    assert (plan.sequence, plan.cause, plan.replaces, plan.name) == (8, Cause.PROMOTE, 7, "adult@8")
    further = plan_rollback(asked(), desk.facts("1"), past=two(desk), environment={}, now=NOW, floor=7)
    assert isinstance(further, Release)
    assert (further.sequence, further.replaces) == (8, 7)


# --- standing approvals -------------------------------------------------------------------------------------------------------


def judged(**changes: Any) -> Judged:
    fields: dict[str, Any] = {
        "verdict": clerk_verdict(), "envelope": "", "version": "2", "description": "", "indicators": "", "run": "",
        "candidate": "", "drift": 0.02, "anchor": "1" * 64, "heads_only": True, "n": 1,
    }  # fmt: skip
    return Judged(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "anchor", "within"),
    [
        ({}, "1" * 64, True),  # exactly at the limit
        ({"drift": 0.0201}, "1" * 64, False),
        ({"drift": None}, "1" * 64, False),
        ({"heads_only": False}, "1" * 64, False),
        ({}, "5" * 64, False),  # another anchor was pinned since
        ({"anchor": None}, None, False),
    ],
)
def test_only_a_small_step_goes_out_in_advance(clerk: Clerk, changes: dict[str, Any], anchor: str | None, within: bool) -> None:
    clerk.stand()
    allowed = clerk.docket().standing
    assert allowed is not None
    refusal = small_enough(allowed.standing, judged(**changes), anchor=anchor, past=[], now=NOW)
    assert (refusal is None) is within


def test_a_standing_approval_carries_few_releases_a_day_and_none_twice(desk: Desk, clerk: Clerk) -> None:
    """Two a day: the third waits until the first is older than 24 hours. A clock set back counts more, never fewer."""
    line = clerk.stand(per_day=2)
    standing = clerk.docket().standing
    assert standing is not None
    facts = desk.facts("1", approval=None, standing=standing.envelope)
    first = plan_promotion(facts, past=[], keys=desk.keys, environment={}, now=NOW, asked=line.digest)
    assert isinstance(first, Release)
    assert (first.approval, first.asked, first.expires) == (digest(standing.standing), line.digest, None)
    second = msgspec.structs.replace(first, sequence=2, payload="3" * 64, at=NOW + 50)
    limits = {"anchor": "1" * 64, "past": [first, second]}
    for now, within in ((NOW + 60, False), (NOW + 86_399, False), (NOW + 86_401, True), (NOW - 9e5, False)):
        assert (small_enough(standing.standing, judged(), now=now, **limits) is None) is within
    again = small_enough(
        standing.standing, judged(), anchor="1" * 64, past=[msgspec.structs.replace(first, payload="2" * 64)], now=NOW + 9e5
    )
    assert again is not None
    assert "released before" in again.reason


# --- what tags say ------------------------------------------------------------------------------------------------------------


def version(number: str, parent: str | None = None, **tags: str) -> Version:
    own = {"payload": number * 64, "parent": (parent or "") * 64, "origin": "fast", "rows": "120"}
    return Version(problem="adult", version=number, created=NOW, tags=own | tags)


def test_only_statements_whose_signature_and_subject_hold_are_releases(desk: Desk) -> None:
    first, second = two(desk)
    good = desk.seal(first, RELEASE_TYPE, "release")
    wrong_key = desk.seal(second, RELEASE_TYPE, "gate")
    moved = desk.seal(second, RELEASE_TYPE, "release")  # version 2's statement on version 1
    seen = [
        version("1", **{"release.1": good, "release.2": moved, "release": "junk"}),
        version("2", **{"release.2": wrong_key}),
    ]
    assert open_releases(seen, desk.keys) == [first]


def test_an_accepted_policy_needs_the_registrys_stamp_on_that_very_digest(desk: Desk) -> None:
    record = Approval(
        problem="adult", version="", verdict=POLICY, decision="approved", by=("approver",), at=NOW, expires=None, reason=""
    )
    stamp = desk.seal(record, POLICY_TYPE, "registry")
    keys: Keys = desk.keys
    assert accepted_policy("adult", {"policy.accepted": POLICY, "policy.stamp": stamp}, keys) == POLICY
    assert accepted_policy("adult", {"policy.accepted": POLICY}, keys) is None
    assert accepted_policy("adult", {"policy.accepted": "cd" * 32, "policy.stamp": stamp}, keys) is None
    assert accepted_policy("other", {"policy.accepted": POLICY, "policy.stamp": stamp}, keys) is None
    forged = desk.seal(record, POLICY_TYPE, "gate")
    assert accepted_policy("adult", {"policy.accepted": POLICY, "policy.stamp": forged}, keys) is None
    approval = desk.seal(record, APPROVAL_TYPE, "registry")
    assert accepted_policy("adult", {"policy.accepted": POLICY, "policy.stamp": approval}, keys) is None


def test_a_misspelt_freeze_freezes(desk: Desk) -> None:
    assert not is_frozen({})
    assert not is_frozen({"frozen": "False"})
    assert is_frozen({"frozen": "true"})
    assert is_frozen({"frozen": "until friday"})
