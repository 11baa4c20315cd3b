"""The steward does what is due, once: which versions it judges, and which approvals it releases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from truing.flows.steward import undecided, waiting
from truing.tasks import seal
from truing.tasks.policy import Policy
from truing.tasks.records import Approval, Candidate, Cause, Outcome, Release, Verdict
from truing.tasks.release.versions import Version

GATE, REGISTRY, OTHER = seal.new_key(), seal.new_key(), seal.new_key()
KEYS = seal.Keys(gate=(seal.public_key(GATE),), registry=(seal.public_key(REGISTRY),))
SERVING = "c" * 64

Make = Callable[..., Version]


def candidate(number: int) -> Candidate:
    return Candidate(
        problem="adult", payload=f"{number:064d}", parent=SERVING, base="b", code="0.1", kind="tabular", dataset=f"d{number}",
        trial=None, seed=1, origin="fast", registered=1.0,
    )  # fmt: skip


@pytest.fixture
def made(policy: Policy) -> Make:
    """A version with a verdict and an approval, each of which can be left out, changed or forged."""

    def make(number: int = 4, *, key: bytes = GATE, stamp_key: bytes = REGISTRY, at: float = 2.0, **more: Any) -> Version:
        fields: dict[str, Any] = {"outcome": Outcome.PASS, "policy": policy.digest, "champion": SERVING, "approved": True}
        fields |= more
        verdict = Verdict(
            problem="adult", outcome=fields["outcome"], clauses=(), candidate=f"{number:064d}", evaluation="e",
            policy=fields["policy"], dataset="d", champion=fields["champion"], look=1, at=1.0, key="k",
        )  # fmt: skip
        approval = Approval(
            problem="adult", version=str(number), verdict=seal.digest(verdict), decision="approved", by=("ada",), at=at,
            expires=None, reason="",
        )  # fmt: skip
        tags = {
            "candidate": seal.canonical(candidate(number)).decode(),
            "payload": f"{number:064d}",
            "verdict": seal.canonical(seal.sign(verdict, seal.VERDICT_TYPE, key)).decode(),
        }
        if fields["approved"]:
            tags["approval"] = "approved"
            tags["approval.stamp"] = seal.canonical(seal.sign(approval, seal.APPROVAL_TYPE, stamp_key)).decode()
        tags |= fields.get("tags", {})
        for gone in fields.get("without", ()):
            tags.pop(gone)
        return Version(problem="adult", version=str(number), created=0.0, tags=tags)

    return make


def serving(number: int = 3) -> Version:
    return Version(problem="adult", version=str(number), created=0.0, tags={"payload": SERVING})


@pytest.mark.parametrize(
    ("change", "due"),
    [
        ({"without": ("verdict",)}, True),  # never judged
        ({"key": OTHER}, True),  # somebody else's verdict is none
        ({}, False),  # judged against what serves, under this policy
        ({"champion": "x" * 64}, True),  # another release came in between
        ({"policy": "p" * 64}, True),  # the rules changed
        ({"champion": "x" * 64, "outcome": Outcome.BLOCK}, False),  # a block is not tried again
        ({"champion": "x" * 64, "tags": {"approval": "rejected"}}, False),
        ({"champion": "x" * 64, "tags": {"release": "…"}}, False),  # it has served
        ({"without": ("verdict", "candidate")}, False),  # not one of ours
    ],
)
def test_what_is_judged(made: Make, policy: Policy, change: dict[str, Any], due: bool) -> None:
    assert undecided(made(**change), serving(), policy, KEYS) is due


def test_an_older_version_is_not_judged_again_because_a_newer_one_serves(made: Make, policy: Policy) -> None:
    assert not undecided(made(2, champion="x" * 64), serving(3), policy, KEYS)


def test_only_stamped_approvals_wait_for_release_oldest_first(made: Make) -> None:
    late, early, forged = made(4, at=9.0), made(5, at=3.0), made(6, stamp_key=OTHER)
    unsaid = made(7, approved=False)
    assert [version.version for version in waiting([late, early, forged, unsaid], [], KEYS)] == ["5", "4"]


def test_an_approval_that_was_carried_out_does_not_wait(made: Make) -> None:
    version = made()
    opened = seal.open_envelope(version.stamp, Approval, seal.APPROVAL_TYPE, KEYS.registry)
    assert isinstance(opened, Approval)
    done = Release(
        problem="adult", name="adult@2", version="4", sequence=2, payload="a", verdict="v", approval=seal.digest(opened),
        dataset="d", policy="p", environment={}, cause=Cause.PROMOTE, replaces=1, at=3.0, expires=None,
    )  # fmt: skip
    assert waiting([version], [done], KEYS) == []
    other = msgspec.structs.replace(done, approval="another")
    assert waiting([version], [other], KEYS) == [version]
