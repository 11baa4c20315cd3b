"""The policy file: what may be left out, what is refused, what a clause costs, and what it would have said of the past."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import time
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from clerk import Clerk
from ports import free_ports
from test_gate import NOW, RULES, Reader, clause, rows, weigh

from truing.flows.cli.main import parser
from truing.flows.cli.policy_check import Worry, check_policy, worries
from truing.infra.keys import Keyring
from truing.infra.settings import Ports, Settings
from truing.tasks.errors import ProblemError
from truing.tasks.evaluation.answers import ask
from truing.tasks.evaluation.dryrun import rehearse
from truing.tasks.evaluation.gate import judge
from truing.tasks.evaluation.kept import Decision, pack, store, unpack
from truing.tasks.evaluation.power import Traffic, chance_to_block, chance_to_pass, needs, rows_for, seen_in
from truing.tasks.policy import Audit, Discovery, Evidence, Levels, Policy, Repair, load_policy
from truing.tasks.problem import Problem, load_problem
from truing.tasks.seal import VERDICT_TYPE, digest
from truing.tasks.statistics.proportions import drop_within, z_of
from truing.tasks.tables.lake import Vault

ADULT = Path(__file__).parents[1] / "problems" / "adult"
FIRST = 'name = "Brier score"\n'


def loaded(folder: Path, *, before: str = "", extra: str = "", problem: tuple[str, str] = ("", "")) -> Policy:
    """Adult's policy with text put before its first clause and into it."""
    here = folder / "adult"
    shutil.copytree(ADULT, here)
    path = here / "policy.toml"
    text = path.read_text().replace("[[clause]]\n" + FIRST, f"{before}\n[[clause]]\n{FIRST}{extra}\n", 1)
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
    found = loaded(tmp_path, before=before, extra='exit = "targeted"\npower = 0.95', problem=desk)
    assert found.audit == Audit(share=0.01, groups=("sex",), budget=10000, reviewers_source="desk", double=0.1)
    assert found.discovery == Discovery(block=True, depth=3, slices=8)
    assert found.repair == Repair(enabled=False, by_group_thresholds=True, methods=("thresholds",))
    assert (found.clause[0].exit, found.clause[0].power) == ("targeted", 0.95)


@pytest.mark.parametrize(
    ("before", "extra", "says"),
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
def test_what_can_not_be_meant_is_refused_in_one_line(tmp_path: Path, before: str, extra: str, says: str) -> None:
    with pytest.raises(ProblemError) as caught:
        loaded(tmp_path, before=before, extra=extra)
    assert says in str(caught.value) and "\n" not in str(caught.value) and "policy.toml" in str(caught.value)


def test_no_candidate_for_free_is_refused(tmp_path: Path, problem: Problem) -> None:
    here = tmp_path / "adult"
    shutil.copytree(ADULT, here)
    (here / "policy.toml").write_text((here / "policy.toml").read_text().replace("[levels]", "free_candidates = 0\n[levels]"))
    with pytest.raises(ProblemError, match="free_candidates of at least 1"):
        load_policy(here, problem)


# --- what a clause costs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "variance", "power"), [(0.05, 0.16, 0.8), (0.02, 0.04, 0.9), (0.07, 0.3, 0.5)])
def test_the_rows_named_give_the_power_promised_under_the_gates_own_bound(limit: float, variance: float, power: float) -> None:
    n = math.ceil(rows_for(limit, variance, level=0.008, power=power))
    moved = np.random.default_rng(5).multinomial(n, [variance / 2, variance / 2, 1 - variance], 40_000)
    passed = drop_within(moved[:, 0], moved[:, 1], n, limit, 0.008).mean()
    assert passed == pytest.approx(power, abs=0.025)
    assert chance_to_pass(limit, variance, n, level=0.008) == pytest.approx(power, abs=0.01)


def test_a_drop_of_twice_the_limit_is_blocked_as_often_as_said() -> None:
    n, limit, variance = 3000, 0.05, 0.2
    said = chance_to_block(0.1, limit, variance, n, level=0.02, clauses=32)
    rng = np.random.default_rng(6)
    drops = rng.normal(0.1, math.sqrt(variance / n), 20_000)
    assert said == pytest.approx(float((drops > max(limit, z_of(0.02 / 32) * math.sqrt(variance / n))).mean()), abs=0.01)
    assert chance_to_block(0.1, limit, variance, 100, level=0.02, clauses=32) < 0.2 < 0.99 < said


def test_variance_read_from_stored_cells_is_that_of_the_rows(problem: Problem) -> None:
    evaluation, scores = weigh(rows(problem), problem)
    for name, metric, most in (("all", "accuracy", 1.05), ("sex=Female", "tpr", 1.1), ("all", "brier", 1.3)):
        truth = float(scores.pair(name, metric, "champion").units.var())  # its bounds count worse rows than were seen
        found = seen_in([evaluation], name, metric, "champion").variance
        assert found is not None and 0.95 < found / truth < most
    women = seen_in([evaluation], "sex=Female", "tpr", "champion")
    assert women.share == pytest.approx(0.4, abs=0.03) and women.how == "seen"
    assert women.denominator("tpr") == pytest.approx(float((scores.mask("sex=Female") & scores.positive).mean()), abs=1e-9)


def test_needs_say_what_the_verdict_says_and_days_follow_the_traffic(problem: Problem) -> None:
    frame = rows(problem)
    evaluation, scores = weigh(frame, problem)
    policy = msgspec.structs.replace(RULES, clause=(clause("tpr", "sex=Female", limit=0.01), clause("brier", limit=0.01)))
    verdict = judge(evaluation, scores, problem, policy, dataset="d", key="k", now=NOW, seed=3)
    traffic = Traffic(holdout=200.0, labelled=0.5, judging=4000, pool=5000)
    women, brier = needs(policy, [evaluation], traffic)
    assert women.rows is not None and women.days is not None and women.labels is not None and women.pool_days is not None
    assert women.rows == pytest.approx(verdict.clauses[0].rows_needed, rel=0.06)
    assert women.days == pytest.approx((women.rows - 4000) / 100.0, abs=0.1)
    assert women.labels == math.ceil(women.labels) < women.rows and women.pool_days < women.days
    assert women.chance is not None and women.chance < 0.5 and brier.chance is not None and brier.chance > 0.9
    assert (brier.labels, brier.days) == (None, 0.0)


def test_more_power_asks_for_more_rows_in_the_verdict_too(problem: Problem) -> None:
    evaluation, scores = weigh(rows(problem), problem)
    asked = []
    for power in (0.8, 0.95):
        policy = msgspec.structs.replace(RULES, clause=(clause("tpr", "sex=Female", limit=0.01, power=power),))
        one = judge(evaluation, scores, problem, policy, dataset="d", key="k", now=NOW, seed=3).clauses[0]
        mine = needs(policy, [evaluation], Traffic(judging=4000))[0]
        assert one.rows_needed and mine.rows and mine.rows == pytest.approx(one.rows_needed, rel=0.06)
        asked.append(one.rows_needed)
    assert asked[1] / asked[0] == pytest.approx(((z_of(0.008) + z_of(0.05)) / (z_of(0.008) + z_of(0.2))) ** 2, rel=0.001)


def test_more_churn_costs_more_rows_and_none_known_costs_nobody_knows(problem: Problem) -> None:
    evaluation, _ = weigh(rows(problem), problem)
    policy = msgspec.structs.replace(RULES, clause=(clause("accuracy", limit=0.01),))
    few, many = (needs(policy, [evaluation], Traffic(judging=4000), churn=churn)[0].rows for churn in (0.05, 0.1))
    assert few and many and many == pytest.approx(2 * few, rel=0.01)
    assert needs(policy, [], Traffic())[0].rows is None
    derived = needs(policy, [], Traffic(), shares={"all": (1.0, 0.25)}, churn=0.05)[0]
    assert (
        derived.rows == pytest.approx(rows_for(0.01, 0.05, level=0.008, power=0.8), rel=0.001) and derived.seen.how == "churn"
    )


def test_a_relative_limit_on_a_rare_rate_counts_as_points_and_says_so(problem: Problem) -> None:
    evaluation, _ = weigh(rows(problem), problem)
    rules = [clause("tpr", limit=0.1, relative=True), clause("fpr", limit=0.1, relative=True)]
    tpr, fpr = needs(msgspec.structs.replace(RULES, clause=tuple(rules)), [evaluation], Traffic(judging=4000))
    assert tpr.seen.value and tpr.limit == pytest.approx(0.1 * tpr.seen.value) and tpr.note.startswith("10% of ")
    assert fpr.seen.value is not None and (fpr.seen.value < 0.1) == fpr.note.startswith("counts as points")


# --- on past versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", [0.0, 0.1, 0.25, 0.5])
def test_what_cells_say_for_certain_is_what_the_gate_says(problem: Problem, harm: float) -> None:
    """Judged under one policy, rehearsed under eighteen others, each of them put to the gate as well."""
    evaluation, scores = weigh(rows(problem, harm=harm, seed=1), problem)
    judged = partial(judge, evaluation, scores, problem, dataset="d", key="k", now=NOW, seed=3)
    past = judged(RULES)
    assert rehearse("1", past, evaluation, RULES).possible == (past.outcome.value,)
    certain = 0
    for limit, level, least in itertools.product((0.01, 0.04, 0.15), (0.008, 0.05), (1000, 5000, 100)):
        policy = msgspec.structs.replace(
            RULES,
            clause=(clause("brier", limit=0.01), clause("tpr", "sex=Female", limit=limit)),
            levels=Levels(passing=level, resamples=10_000),
            evidence=Evidence(min_rows=least),
        )
        told = rehearse("1", past, evaluation, policy)
        assert told.how == "cells" and judged(policy).outcome.value in told.possible, told
        certain += len(told.possible) == 1
    assert certain >= 12


def test_what_is_not_stored_is_not_guessed(problem: Problem) -> None:
    evaluation, scores = weigh(rows(problem), problem)
    past = judge(evaluation, scores, problem, RULES, dataset="d", key="k", now=NOW, seed=3)
    other = msgspec.structs.replace(RULES, version=2)
    assert rehearse("1", past, None, other).possible == ()
    beyond = msgspec.structs.replace(other, clause=(clause("tpr", "sex=Other"),))
    line = rehearse("1", past, evaluation, beyond).lines[0]
    assert (line.says, line.why) == ("open", "no such cell was stored")


# --- the verb -----------------------------------------------------------------------------------------------------------------


def asked(*words: str) -> argparse.Namespace:
    return parser().parse_args(["gate", *words])


def test_options_count_before_and_after_the_act() -> None:
    assert asked("--json", "check-policy").json and asked("check-policy", "--json").json
    assert not asked("check-policy").json


def test_a_policy_nobody_has_judged_under_is_said_in_words(
    tmp_path: Path, policy: Policy, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data=tmp_path / "none", problems=ADULT.parent)
    assert check_policy(asked("check-policy", "--churn", "0.05", "--traffic", "4000"), settings) == 0
    told = capsys.readouterr().out
    assert policy.digest[:12] in told and "no audit can be read" in told
    assert "sex Female: the TPR may not fall by more than 7.0 points against the champion" in told
    assert "watched: it blocks where harm is proved" in told and "nothing to try the policy on" in told


def test_the_verb_knows_acceptance_past_verdicts_and_clauses_out_of_reach(
    tmp_path: Path, problem: Problem, policy: Policy, capsys: pytest.CaptureFixture[str]
) -> None:
    """An audit with a verdict, a holdout in the vault, no MLflow; then the file is edited to ask for the impossible."""
    problems = tmp_path / "problems"
    shutil.copytree(ADULT.parent, problems)
    settings = Settings(data=tmp_path / "data", problems=problems, ports=Ports(registry=free_ports(1)[0]))
    ring = Keyring(settings.keys)
    ring.create([])
    clerk = Clerk(ring.read("registry"), ring.read("gate"), ring.read("release"))
    clerk.write("policy", policy=policy.digest)
    clerk.version("1", "p" * 64)
    answers = ask(
        rows(problem, 9000, churn=0.1), problem, policy, candidate=Reader("new", problem), champion=Reader("old", problem),
        none=None, anchor=None, digests={"candidate": "p" * 64, "champion": "c" * 64}, look=1, now=NOW,
    )  # fmt: skip
    files = pack(answers, problem, policy, Decision(version="1", dataset="d", key="gate", at=NOW, seed=1))
    evaluation, given = unpack(files).conclude()
    clerk.write("verdict", "steward", version="1", envelope=clerk.envelope(given, VERDICT_TYPE, clerk.gate))
    settings.guard.mkdir(parents=True)
    (settings.guard / "audit.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in clerk.lines))
    frame = rows(problem, 3000).with_columns(pl.col("content").cast(pl.Binary))
    Vault(settings.vault).append("holdout", frame.with_columns(release=pl.lit("adult@1"), asked_at=time.time() - 3600.0))
    options = ("check-policy", "--json", "--churn", "0.05")
    assert check_policy(asked(*options), settings) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accepted"] is True and told["traffic"]["judging"] == 3000
    assert told["traffic"]["holdout"] == pytest.approx(72_000, rel=0.02)
    assert [one["how"] for one in told["past"]] == ["this policy"] and not any(one["changes"] for one in told["past"])
    path = problems / "adult" / "policy.toml"
    path.write_text(path.read_text().replace("limit = 0.07", "limit = 0.0007"))
    assert check_policy(asked(*options), settings) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["accepted"] is False and [one["how"] for one in told["past"]] == ["nothing at hand"]
    evidence = settings.desk / "evidence" / digest(given)
    store(evidence, files, evaluation)
    check_policy(asked(*options), settings)
    told = json.loads(capsys.readouterr().out)
    anew = unpack(files).conclude(load_policy(path.parent, problem))[1]
    assert [(one["how"], one["possible"]) for one in told["past"]] == [("stored answers", [anew.outcome.value])]
    assert anew.outcome is not given.outcome and told["past"][0]["changes"]
    (evidence / "facts.json").write_bytes((evidence / "facts.json").read_bytes().replace(b'"look":1', b'"look":2'))
    check_policy(asked(*options), settings)
    assert json.loads(capsys.readouterr().out)["past"][0]["how"] == "nothing at hand"
    fatal = [one for one in told["worries"] if one["fatal"]]
    assert [one["clause"] for one in fatal] == ["women's TPR"] and "rows are needed" in fatal[0]["text"]


def test_a_targeted_audit_decides_in_time_if_budget_and_looks_allow_it() -> None:
    """Five outcomes in a hundred come by themselves: random labels take years, aimed ones weeks."""
    traffic = Traffic(holdout=3000.0, labelled=0.05, judging=4000, pool=80_000)
    rule = clause("tpr", "sex=Female", limit=0.02, exit="targeted")

    def told(budget: int, looks: int) -> list[Worry]:
        policy = msgspec.structs.replace(
            RULES, clause=(rule,), audit=Audit(budget=budget), evidence=Evidence(min_rows=1000, max_looks=looks)
        )
        found = needs(policy, [], traffic, shares={"sex=Female": (0.3, 0.25)}, churn=0.1)
        assert found[0].days and found[0].days > 365 and found[0].pool_days is not None and found[0].pool_days < 90
        return worries(found, policy, traffic, 90.0)

    assert [one.fatal for one in told(40_000, 2)] == [False]
    small, once = told(4000, 2), told(40_000, 1)
    assert small[0].fatal and "(audit.budget is 4,000)" in small[0].text
    assert any(one.fatal for one in once) and "second look" in once[0].text
