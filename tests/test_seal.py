"""Seal: what is signed can't be changed, moved to another use, or replayed; `admit` names the first reason against an act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.tasks import seal
from truing.tasks.records import Approval, Cause, Envelope, Outcome, Record, Refusal, Release, Verdict

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
