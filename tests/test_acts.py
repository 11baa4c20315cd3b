"""The fold of the audit: what stands now, whoever reads it, and that nothing counts which the registry did not sign."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from clerk import Clerk

from truing.tasks import seal
from truing.tasks.records import Cause, Outcome, Release, Verdict
from truing.tasks.release.audit import Broken, Mark, follow, seal_line, verify

REGISTRY, GATE, RELEASE = (seal.new_key() for _ in range(3))


def verdict(payload: str = "a" * 64) -> Verdict:
    return Verdict(
        problem="adult", outcome=Outcome.PASS, clauses=(), candidate=payload, evaluation="e", policy="p", dataset="d",
        champion=None, look=1, at=1.0, key="k",
    )  # fmt: skip


def release(sequence: int, version: str = "1") -> Release:
    return Release(
        problem="adult", name=f"adult@{sequence}", version=version, sequence=sequence, payload="a" * 64, verdict="v",
        approval="a", dataset="d", policy="p", environment={}, cause=Cause.PROMOTE, replaces=None, at=1.0, expires=None,
    )  # fmt: skip


@pytest.fixture
def clerk() -> Clerk:
    return Clerk(REGISTRY, GATE, RELEASE)


def test_the_fold_says_what_stands_now(clerk: Clerk) -> None:
    clerk.version("1", "a" * 64)
    clerk.write("policy", policy="p")
    clerk.write("anchor", version="1", reason="first")
    clerk.decide("1", verdict())
    last = clerk.decide("1", verdict(), "revoked", reason="wrong data")
    clerk.write("frozen", value="until friday", reason="audit")
    asked = clerk.ask_back("1")
    clerk.stand()
    docket = clerk.docket()
    assert (docket.versions["1"].payload, docket.versions["1"].trainer) == ("a" * 64, "trainer")
    assert (docket.policy, docket.frozen) == ("p", True)
    assert docket.anchor is not None and docket.anchor.version == "1"
    decision = docket.decision("1")
    assert decision is not None
    assert (decision.approval.decision, decision.line, len(docket.decisions["1"])) == ("revoked", last.digest, 2)
    assert docket.rollback is not None and docket.rollback.line == asked.digest
    assert docket.standing is not None
    clerk.write("frozen", value="false", reason="")
    clerk.stand(decision="revoked")
    assert not clerk.docket().frozen
    assert clerk.docket().standing is None


def test_only_done_acts_count(clerk: Clerk) -> None:
    clerk.write("frozen", value="true", reason="", outcome="refused")
    clerk.write("frozen", value="true", reason="", outcome="allowed")
    assert not clerk.docket().frozen
    assert clerk.acts().mark == clerk.mark


def test_a_decision_in_a_foreign_envelope_or_about_another_version_is_none(clerk: Clerk) -> None:
    other = Clerk(seal.new_key(), GATE, RELEASE)
    forged = other.decide("1", verdict()).entry.facts["envelope"]
    clerk.write("decision", version="1", envelope=forged)
    assert clerk.docket().decision("1") is None
    ours = clerk.decide("2", verdict()).entry.facts["envelope"]
    clerk.write("decision", version="1", envelope=ours)
    assert clerk.docket().decision("1") is None


def test_the_first_statement_of_a_sequence_stays(clerk: Clerk) -> None:
    clerk.attach(release(1))
    clerk.attach(release(2, "2"))
    clerk.attach(release(2, "3"))
    clerk.write("release", version="7", envelope="junk")
    found = clerk.docket().released
    assert {sequence: one.version for sequence, one in found.items()} == {1: "1", 2: "2"}


def test_the_chain_shows_what_was_changed_cut_or_put_in(clerk: Clerk, tmp_path: Path) -> None:
    for number in range(1, 6):
        clerk.version(str(number), str(number) * 64)
    keys, lines = clerk.public.registry, clerk.lines
    changed = msgspec.structs.replace(lines[2], entry=msgspec.structs.replace(lines[2].entry, user="admin"))
    resealed = seal_line(changed.entry, seal.new_key())
    for broken in ([*lines[:2], *lines[3:]], [*lines[:2], changed, *lines[3:]], [*lines[:2], resealed, *lines[3:]]):
        with pytest.raises(Broken):
            list(follow(broken, keys=keys))
    rewritten = Clerk(REGISTRY, GATE, RELEASE)  # the registry's own key, another story
    for number in range(1, 7):
        rewritten.version(str(number), "f" * 64)
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in rewritten.lines))
    assert verify(path, keys).n == 6
    with pytest.raises(Broken, match="rewritten"):
        verify(path, keys, heads=[clerk.mark])
    with pytest.raises(Broken, match="tail was cut"):
        verify(path, keys, heads=[Mark(n=9, digest="f")])
    with pytest.raises(Broken, match="rewritten"):
        list(follow(rewritten.lines[4:], keys=keys, since=clerk.mark))
