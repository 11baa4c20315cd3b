"""The policy file's optional fields: what they mean when absent, and what is refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from truing.tasks.errors import ProblemError
from truing.tasks.policy import Audit, Discovery, Policy, Repair, load_policy
from truing.tasks.problem import Problem, load_problem

ADULT = Path(__file__).parents[1] / "problems" / "adult"
FIRST = 'name = "Brier score"\n'


def loaded(folder: Path, *, before: str = "", clause: str = "", problem: tuple[str, str] = ("", "")) -> Policy:
    """Adult's policy with text put before its first clause and into it."""
    here = folder / "adult"
    shutil.copytree(ADULT, here)
    path = here / "policy.toml"
    text = path.read_text().replace("[[clause]]\n" + FIRST, f"{before}\n[[clause]]\n{FIRST}{clause}\n", 1)
    path.write_text(text)
    told = here / "problem.toml"
    told.write_text(told.read_text().replace(*problem, 1))
    return load_policy(here, load_problem(here))


def test_what_is_absent_asks_for_nothing_and_changes_nothing(policy: Policy) -> None:
    assert policy.audit == Audit() and policy.audit.share == 0.0 and policy.audit.budget == 0
    assert not policy.discovery.block and not policy.repair.by_group_thresholds and policy.evidence.free_candidates == 5
    assert {clause.exit for clause in policy.clause} == {"hold"} and {clause.power for clause in policy.clause} == {0.8}


def test_all_of_it_is_read(tmp_path: Path) -> None:
    before = """
[audit]
share = 0.01
groups = ["sex"]
budget = 10000
reviewers_source = "desk"
double = 0.1
[discovery]
block = true
depth = 3
slices = 8
[repair]
enabled = false
by_group_thresholds = true
methods = ["thresholds"]
"""
    desk = ("[splits]", '[sources.desk]\ntypes = ["review"]\n\n[splits]')
    found = loaded(tmp_path, before=before, clause='exit = "targeted"\npower = 0.95', problem=desk)
    assert found.audit == Audit(share=0.01, groups=("sex",), budget=10000, reviewers_source="desk", double=0.1)
    assert found.discovery == Discovery(block=True, depth=3, slices=8)
    assert found.repair == Repair(enabled=False, by_group_thresholds=True, methods=("thresholds",))
    assert (found.clause[0].exit, found.clause[0].power) == ("targeted", 0.95)


@pytest.mark.parametrize(
    ("before", "clause", "says"),
    [
        ("[audit]\nshare = 1.5", "", "audit.share: expected a share of 0 to 1, got 1.5"),
        ("[audit]\ndouble = -0.1", "", "audit.double: expected a share of 0 to 1"),
        ("[audit]\nbudget = -1", "", "audit.budget: expected 0 (none) or a number of labels"),
        ('[audit]\ngroups = ["hair"]', "", "got ['hair']"),
        ('[audit]\nreviewers_source = "outcomes"', "", "expected a source that may send reviews"),
        ("[audit]\nbugdet = 4", "", "unknown field `bugdet`"),
        ("[discovery]\ndepth = 9", "", "discovery: expected depth of 1 to 4"),
        ("[discovery]\nslices = 0", "", "slices of 1 to 100"),
        ('[repair]\nmethods = ["magic"]', "", "expected some of reweighing"),
        ('[repair]\nmethods = ["thresholds"]', "", "by_group_thresholds is false"),
        ("", 'exit = "shrug"', "exit: expected one of hold, targeted, canary, sign"),
        ("", 'exit = "targeted"', "expected audit.budget above 0"),
        ("", "power = 1.0", "power: expected at least 0.5 and below 1"),
        ("", "power = 0.2", "power: expected at least 0.5 and below 1"),
    ],
)
def test_what_can_not_be_meant_is_refused_in_one_line(tmp_path: Path, before: str, clause: str, says: str) -> None:
    with pytest.raises(ProblemError) as caught:
        loaded(tmp_path, before=before, clause=clause)
    assert says in str(caught.value) and "\n" not in str(caught.value) and "policy.toml" in str(caught.value)


def test_no_candidate_for_free_is_refused(tmp_path: Path, problem: Problem) -> None:
    here = tmp_path / "adult"
    shutil.copytree(ADULT, here)
    (here / "policy.toml").write_text((here / "policy.toml").read_text().replace("[levels]", "free_candidates = 0\n[levels]"))
    with pytest.raises(ProblemError, match="free_candidates of at least 1"):
        load_policy(here, problem)
