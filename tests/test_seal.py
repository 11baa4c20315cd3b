"""Seal: what is signed can't be changed, moved to another use, or replayed; `admit` names the first reason against an act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.tasks import seal
from truing.tasks.records import (
    Approval,
    Cause,
    Envelope,
    Head,
    Outcome,
    Record,
    Refusal,
    Release,
    Standing,
    Verdict,
)

GATE, REGISTRY, RELEASE, OTHER = (seal.new_key() for _ in range(4))
KEYS = seal.Keys(gate=(seal.public_key(GATE),), registry=(seal.public_key(REGISTRY),), release=(seal.public_key(RELEASE),))
PAYLOAD, POLICY = "a" * 64, "p" * 64


def verdict(outcome: Outcome = Outcome.PASS, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "problem": "adult", "outcome": outcome, "clauses": (), "candidate": PAYLOAD, "evaluation": "e", "policy": POLICY,
        "dataset": "d", "champion": "c" * 64, "look": 1, "at": 1.0, "key": "k", "reason": "women's TPR fell by 9.1 points",
    }  # fmt: skip
    return Verdict(**{**fields, **changes})


def approval(of: Verdict, **changes: Any) -> Approval:
    fields: dict[str, Any] = {
        "problem": "adult", "version": "4", "verdict": seal.digest(of), "decision": "approved", "by": ("ada",), "at": 2.0,
        "expires": None, "reason": "",
    }  # fmt: skip
    return Approval(**{**fields, **changes})


def release(**changes: Any) -> Release:
    fields: dict[str, Any] = {
        "problem": "adult", "name": "adult@3", "version": "4", "sequence": 3, "payload": PAYLOAD, "verdict": "v",
        "approval": "a", "dataset": "d", "policy": POLICY, "environment": {}, "cause": Cause.PROMOTE, "replaces": 2, "at": 3.0,
        "expires": None,
    }  # fmt: skip
    return Release(**{**fields, **changes})


def facts(**changes: Any) -> seal.Facts:
    judged = changes.pop("judged", verdict())
    fields: dict[str, Any] = {
        "problem": "adult", "version": "4", "payload": PAYLOAD, "policy": POLICY, "trainer": "trainer",
        "champion": "c" * 64,
        "verdict": seal.sign(judged, seal.VERDICT_TYPE, GATE),
        "approval": seal.sign(approval(judged), seal.APPROVAL_TYPE, REGISTRY),
    }  # fmt: skip
    return seal.Facts(**{**fields, **changes})


def code(refusal: Refusal | None) -> str | None:
    return refusal.code if refusal else None


def test_a_passed_approved_version_may_be_promoted() -> None:
    assert seal.admit(facts(), "promote", keys=KEYS, now=10.0) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"judged": verdict(Outcome.BLOCK)}, "verdict.block"),
        ({"judged": verdict(Outcome.INCONCLUSIVE)}, "approval.reason"),
        ({"verdict": None}, "verdict.missing"),
        ({"verdict": seal.sign(verdict(), seal.VERDICT_TYPE, OTHER)}, "envelope.signature"),
        ({"verdict": seal.sign(verdict(), seal.RELEASE_TYPE, GATE)}, "envelope.type"),
        ({"verdict": "not an envelope"}, "envelope.unreadable"),
        ({"payload": "b" * 64}, "verdict.payload"),
        ({"payload": None}, "payload.missing"),
        ({"policy": None}, "policy.unaccepted"),
        ({"policy": "q" * 64}, "policy.changed"),
        ({"approval": None}, "approval.missing"),
        ({"approval": seal.sign(approval(verdict(Outcome.BLOCK)), seal.APPROVAL_TYPE, REGISTRY)}, "approval.other"),
        ({"approval": seal.sign(approval(verdict()), seal.APPROVAL_TYPE, OTHER)}, "envelope.signature"),
        ({"approval": seal.sign(approval(verdict(), by=("trainer",)), seal.APPROVAL_TYPE, REGISTRY)}, "approval.self"),
        ({"approval": seal.sign(approval(verdict(), by=()), seal.APPROVAL_TYPE, REGISTRY)}, "approval.self"),
        ({"approval": seal.sign(approval(verdict(), decision="revoked"), seal.APPROVAL_TYPE, REGISTRY)}, "approval.revoked"),
        ({"approval": seal.sign(approval(verdict(), expires=9.0), seal.APPROVAL_TYPE, REGISTRY)}, "approval.expired"),
        ({"trainer": None}, "approval.self"),
        ({"frozen": True}, "frozen"),
        ({"champion": "x" * 64}, "verdict.stale"),
        ({"judged": verdict(problem="other")}, "verdict.problem"),
    ],
)
def test_promotion_is_refused_with_its_reason(changes: dict[str, Any], expected: str) -> None:
    assert code(seal.admit(facts(**changes), "promote", keys=KEYS, now=10.0)) == expected


def test_an_inconclusive_version_needs_a_reason_and_an_end() -> None:
    judged = verdict(Outcome.INCONCLUSIVE)
    good = seal.sign(approval(judged, reason="first release, risk taken", expires=99.0), seal.APPROVAL_TYPE, REGISTRY)
    assert seal.admit(facts(judged=judged, approval=good), "promote", keys=KEYS, now=10.0) is None


@pytest.mark.parametrize(
    ("changes", "floor", "expected"),
    [
        ({}, 3, None),
        ({}, 4, "release.sequence"),
        ({"sequence": 0}, 0, "release.sequence"),
        ({"payload": "b" * 64}, 0, "release.payload"),
        ({"version": "5"}, 0, "release.other"),
        ({"problem": "other"}, 0, "release.other"),
        ({"expires": 9.0}, 0, "release.expired"),
        ({"approval": None}, 0, "release.evidence"),
        ({"cause": Cause.GENESIS, "verdict": None}, 0, "release.evidence"),
    ],
)
def test_serving_is_refused_below_the_floor_or_off_the_statement(
    changes: dict[str, Any], floor: int, expected: str | None
) -> None:
    asked = facts(release=seal.sign(release(**changes), seal.RELEASE_TYPE, RELEASE))
    assert code(seal.admit(asked, "serve", keys=KEYS, now=10.0, floor_sequence=floor)) == expected


def test_a_release_signed_by_the_gate_key_does_not_serve() -> None:
    asked = facts(release=seal.sign(release(), seal.RELEASE_TYPE, GATE))
    assert code(seal.admit(asked, "serve", keys=KEYS, now=10.0)) == "envelope.signature"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"actor": "ada", "roles": frozenset({"approver"}), "decision": "approved"}, None),
        ({"actor": "trainer", "roles": frozenset({"approver"}), "decision": "approved"}, "approval.self"),
        ({"actor": "bob", "roles": frozenset(), "decision": "approved"}, "approval.role"),
        ({"actor": "ada", "roles": frozenset({"approver"}), "decision": "yes"}, "approval.decision"),
        ({"actor": "ada", "roles": frozenset({"approver"}), "decision": "approved", "judged": verdict(Outcome.BLOCK)},
         "verdict.block"),
        ({"actor": "ada", "roles": frozenset({"approver"}), "decision": "rejected", "judged": verdict(Outcome.BLOCK)}, None),
        ({"actor": "ada", "roles": frozenset({"approver"}), "decision": "approved",
          "judged": verdict(Outcome.INCONCLUSIVE)}, "approval.reason"),
        ({"actor": "ada", "roles": frozenset({"approver"}), "decision": "approved", "verdict": None}, "verdict.missing"),
    ],
)  # fmt: skip
def test_a_person_may_decide_only_in_role_and_on_a_standing_verdict(changes: dict[str, Any], expected: str | None) -> None:
    assert code(seal.admit(facts(**changes), "approve", keys=KEYS, now=10.0)) == expected


def test_a_rollback_needs_no_fresh_approval_but_its_own_statement() -> None:
    back = release(cause=Cause.ROLLBACK, sequence=5, verdict=None, approval=None)
    asked = facts(approval=None, policy="q" * 64, champion="x" * 64, release=seal.sign(back, seal.RELEASE_TYPE, RELEASE))
    assert seal.admit(asked, "promote", keys=KEYS, now=10.0, floor_sequence=4) is None
    forged = facts(approval=None, release=seal.sign(back, seal.RELEASE_TYPE, OTHER))
    assert code(seal.admit(forged, "promote", keys=KEYS, now=10.0)) == "approval.missing"


BLOCKED = verdict(Outcome.BLOCK)


def override(**changes: Any) -> str:
    """The decision of two approvers on the blocked verdict, as its envelope's text."""
    fields: dict[str, Any] = {"by": ("ada", "bob"), "expires": 99.0, "reason": "recall; both of us", "override": True}
    made = approval(BLOCKED, **{**fields, **changes})
    return seal.canonical(seal.sign(made, seal.APPROVAL_TYPE, REGISTRY)).decode()


@pytest.mark.parametrize(
    ("changes", "needed", "expected"),
    [
        ({}, 2, None),
        ({}, 0, "verdict.block"),  # the policy knows no override
        ({}, 1, "verdict.block"),  # one person is never enough, whatever a policy says
        ({}, 3, "approval.persons"),
        ({"by": ("ada",)}, 2, "approval.persons"),
        ({"by": ("ada", "ada")}, 2, "approval.persons"),
        ({"by": ("ada", "trainer")}, 2, "approval.self"),
        ({"override": False}, 2, "approval.persons"),
        ({"reason": " "}, 2, "approval.reason"),
        ({"expires": None}, 2, "approval.reason"),
        ({"expires": 9.0}, 2, "approval.expired"),
        ({"decision": "rejected"}, 2, "approval.rejected"),
    ],
)
def test_a_blocked_version_goes_out_only_under_enough_different_persons(
    changes: dict[str, Any], needed: int, expected: str | None
) -> None:
    asked = facts(judged=BLOCKED, approval=override(**changes), override=needed)
    assert code(seal.admit(asked, "promote", keys=KEYS, now=10.0)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"override": 0}, "verdict.block"),
        ({"reason": ""}, "approval.reason"),
        ({"policy": "q" * 64}, "policy.changed"),
        ({"actor": "trainer"}, "approval.self"),
        ({"approval": override(by=("ada",))}, "approval.twice"),
        ({"approval": override(by=("bob",))}, None),  # the second person
        ({"approval": override(by=("ada",), decision="revoked")}, None),  # taken back, so it may be given again
    ],
)
def test_a_person_may_override_a_block_once_with_a_reason(changes: dict[str, Any], expected: str | None) -> None:
    given: dict[str, Any] = {"override": 2, "reason": "recall", "actor": "ada", "approval": None, **changes}
    asked = facts(judged=BLOCKED, roles=frozenset({"approver"}), decision="approved", **given)
    assert code(seal.admit(asked, "approve", keys=KEYS, now=10.0)) == expected


def test_those_who_override_together_stand_behind_one_verdict() -> None:
    before = approval(BLOCKED, by=("ada",), override=True)
    assert seal.together(before, "bob", verdict=BLOCKED) == ("ada", "bob")
    assert seal.together(before, "ada", verdict=BLOCKED) == ("ada",)
    assert seal.together(None, "bob", verdict=BLOCKED) == ("bob",)
    assert seal.together(before, "bob", verdict=verdict(Outcome.BLOCK, look=2)) == ("bob",), "another verdict"
    assert seal.together(approval(BLOCKED, decision="rejected", override=True), "bob", verdict=BLOCKED) == ("bob",)


def standing(key: bytes = REGISTRY, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "problem": "adult", "decision": "approved", "by": ("ada",), "at": 1.0, "expires": 99.0, "max_drift": 0.02, "per_day": 3,
        "reason": "nightly updates",
    }  # fmt: skip
    return seal.canonical(seal.sign(Standing(**{**fields, **changes}), seal.STANDING_TYPE, key)).decode()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"standing": standing()}, None),
        ({"standing": standing(expires=9.0)}, "standing.ended"),
        ({"standing": standing(decision="revoked")}, "standing.ended"),
        ({"standing": standing(problem="other")}, "standing.other"),
        ({"standing": standing(by=("trainer",))}, "approval.self"),
        ({"standing": standing(by=())}, "approval.self"),
        ({"standing": standing(OTHER)}, "envelope.signature"),
        ({"standing": standing(), "judged": verdict(Outcome.INCONCLUSIVE)}, "standing.outcome"),
        ({"standing": standing(), "judged": BLOCKED, "override": 2}, "standing.outcome"),
        ({"standing": standing(), "judged": BLOCKED}, "verdict.block"),
        ({"standing": standing(), "frozen": True}, "frozen"),
        ({"standing": standing(), "champion": "x" * 64}, "verdict.stale"),
    ],
)
def test_an_approval_in_advance_covers_a_pass_until_it_ends(changes: dict[str, Any], expected: str | None) -> None:
    assert code(seal.admit(facts(**{"approval": None, **changes}), "promote", keys=KEYS, now=10.0)) == expected


def test_a_decision_of_its_own_goes_before_an_approval_in_advance() -> None:
    no = seal.sign(approval(verdict(), decision="rejected"), seal.APPROVAL_TYPE, REGISTRY)
    assert code(seal.admit(facts(approval=no, standing=standing()), "promote", keys=KEYS, now=10.0)) == "approval.rejected"


@pytest.mark.parametrize(
    ("payload", "floor", "expected"), [(None, 3, None), ("b" * 64, 3, None), (None, 4, "release.sequence")]
)
def test_a_withdrawal_is_admitted_without_bytes_but_not_below_the_floor(
    payload: str | None, floor: int, expected: str | None
) -> None:
    gone = seal.sign(release(cause=Cause.WITHDRAW), seal.RELEASE_TYPE, RELEASE)
    asked = facts(release=gone, payload=payload, approval=None, policy=None)
    assert code(seal.admit(asked, "serve", keys=KEYS, now=10.0, floor_sequence=floor)) == expected
    assert code(seal.admit(asked, "promote", keys=KEYS, now=10.0, floor_sequence=floor)) == expected


@pytest.mark.parametrize(
    ("key", "problem", "now", "expected"),
    [
        (RELEASE, "adult", 10.0, None),
        (GATE, "adult", 10.0, "envelope.signature"),
        (RELEASE, "other", 10.0, "head.other"),
        (RELEASE, "adult", 20.0, "head.expired"),
    ],
)
def test_a_head_counts_for_its_problem_until_it_expires(key: bytes, problem: str, now: float, expected: str | None) -> None:
    made = Head(problem="adult", sequence=3, release="r", audit=9, audit_digest="a", at=1.0, expires=20.0)
    opened = seal.open_head(seal.sign(made, seal.HEAD_TYPE, key), problem, keys=KEYS, now=now)
    assert (opened.code if isinstance(opened, Refusal) else None) == expected
    assert expected or opened == made


@given(st.binary(min_size=1, max_size=300), st.integers(0, 10_000))
def test_any_changed_byte_breaks_the_signature(noise: bytes, where: int) -> None:
    envelope = seal.sign(verdict(), seal.VERDICT_TYPE, GATE)
    raw = bytearray(seal.canonical(envelope))
    at = where % len(raw)
    changed = bytes(raw[:at]) + noise + bytes(raw[at + len(noise) :])
    opened = seal.open_envelope(changed, Verdict, seal.VERDICT_TYPE, KEYS.gate)
    assert isinstance(opened, Refusal) or opened == verdict()


def test_rotation_accepts_either_key_while_both_count() -> None:
    both = (seal.public_key(OTHER), seal.public_key(GATE))
    for key in (GATE, OTHER):
        opened = seal.open_envelope(seal.sign(verdict(), seal.VERDICT_TYPE, key), Verdict, seal.VERDICT_TYPE, both)
        assert opened == verdict()


def test_mac_keeps_its_parts_apart() -> None:
    assert seal.mac(b"k", "ab", "c") != seal.mac(b"k", "a", "bc")
    assert seal.mac_matches(b"k", seal.mac(b"k", "ab"), "ab")
    assert not seal.mac_matches(b"k", "ü", "ab")


def test_a_tree_digest_sees_names_bytes_and_moves(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    before = seal.tree_digest(seal.read_tree(tmp_path))
    (tmp_path / "a").write_bytes(b"2")
    (tmp_path / "b").write_bytes(b"1")
    assert seal.tree_digest(seal.read_tree(tmp_path)) != before
    (tmp_path / "c").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="link"):
        seal.read_tree(tmp_path)


def test_records_are_frozen_and_round_trip() -> None:
    import msgspec

    envelope = seal.sign(verdict(), seal.VERDICT_TYPE, GATE)
    assert msgspec.json.decode(seal.canonical(envelope), type=Envelope) == envelope
    with pytest.raises(AttributeError):
        envelope.payload = "x"  # type: ignore[misc]
    assert issubclass(Verdict, Record)
