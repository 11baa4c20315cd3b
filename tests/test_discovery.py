"""Slices found by themselves: planted harm is found and holds on the other half; noise is not taken for harm."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from sealed import NOW, Rule, asked, lenient, sealed_rows

from truing.tasks.evaluation.comparison import assess, scores_of
from truing.tasks.evaluation.discovery import Proposal, confirm, held_back
from truing.tasks.evaluation.gate import judge
from truing.tasks.evaluation.kept import Decision, pack, unpack
from truing.tasks.policy import Discovery, Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Outcome


def old_gov(one: dict[str, object]) -> bool:
    return one["workclass"] == "Gov" and int(str(one["age"])) >= 55


@pytest.fixture(scope="module")
def harmed(problem: Problem, policy: Policy) -> tuple[Proposal, ...]:
    return asked(sealed_rows(problem, 6000), problem, lenient(policy), Rule(problem, "occupation", where=old_gov)).facts.found


def test_a_planted_slice_of_two_conditions_is_found_and_confirmed_on_the_other_half(problem: Problem, policy: Policy) -> None:
    """Government workers of 55 and over, 10 % of the rows, get the opposite answer; nobody named such a slice."""
    rules = lenient(policy)
    answers = asked(sealed_rows(problem, 6000), problem, rules, Rule(problem, "occupation", where=old_gov))
    worst = assess(answers, problem, rules)[0].worst[0]
    assert worst.confirmed and len(worst.conditions) == 2
    assert any(one == "workclass Gov" for one in worst.conditions)
    assert any(one.startswith("age ≥ 5") for one in worst.conditions)
    assert worst.drop.value is not None and worst.drop.low is not None and worst.drop.high is not None
    assert 0 < worst.drop.low < worst.drop.value < worst.drop.high
    assert worst.n < 400, "tested on the half that was held back"
    assert worst.slice == " and ".join(worst.conditions)


def test_halves_are_parted_by_subject_for_ever() -> None:
    sides = [held_back("adult", f"s{i}") for i in range(4000)]
    assert 0.47 < np.mean(sides) < 0.53
    assert sides[:50] == [held_back("adult", f"s{i}") for i in range(50)]
    assert sides != [held_back("other", f"s{i}") for i in range(4000)]


def test_the_search_sees_nothing_of_the_other_half(problem: Problem, policy: Policy, harmed: tuple[Proposal, ...]) -> None:
    """Whatever the labels of the held-back rows say, the same slices are proposed."""
    import polars as pl

    frame = sealed_rows(problem, 6000)
    held = [held_back(problem.name, one) for one in frame["subject"]]
    frame = frame.with_columns(target=pl.when(pl.Series(held)).then(pl.lit(problem.positive)).otherwise(pl.col("target")))
    again = asked(frame, problem, lenient(policy), Rule(problem, "occupation", where=old_gov))
    assert again.facts.found == harmed != ()


def test_noise_is_confirmed_no_more_often_than_the_level(problem: Problem, policy: Policy) -> None:
    """Sixty equal candidates that answer otherwise near the threshold: proposals every time, held at 2 % (1.2 expected)."""
    rules = lenient(policy)
    proposed = confirmed = 0
    for seed in range(60):
        answers = asked(sealed_rows(problem, 1500, seed=seed, noise=0.1), problem, rules, Rule(problem, "occupation"))
        found = confirm(scores_of(answers, problem), answers.facts.found, answers.found, answers.held, rules, looks=1, seed=1)
        proposed += bool(found)
        confirmed += any(one.confirmed for one in found)
    assert proposed >= 50 and confirmed <= 4


def test_a_found_slice_blocks_only_where_the_policy_says_so(problem: Problem, policy: Policy) -> None:
    """Harm on 4 % of the rows passes every clause here; with `[discovery] block` it is the reason of the block."""
    wide = tuple(msgspec.structs.replace(one, limit=0.5, anchor_limit=0.5) for one in policy.clause)
    rules = lenient(policy, clause=wide, absolute=())
    answers = asked(sealed_rows(problem, 6000), problem, rules, Rule(problem, "occupation", where=old_gov))
    watching = unpack(pack(answers, problem, rules, Decision(version="1", dataset="d", key="k", at=NOW, seed=1))).conclude()[1]
    assert watching.outcome is Outcome.PASS
    strict = msgspec.structs.replace(rules, discovery=Discovery(block=True))
    evaluation, scores = assess(answers, problem, strict)
    verdict = judge(evaluation, scores, problem, strict, dataset="d", key="k", now=NOW, seed=1)
    assert verdict.outcome is Outcome.BLOCK
    assert "workclass Gov" in verdict.reason and "accuracy fell by" in verdict.reason


def test_without_a_champion_or_rows_nothing_is_found(problem: Problem, policy: Policy) -> None:
    assert asked(sealed_rows(problem, 40), problem, lenient(policy), Rule(problem, "occupation")).facts.found == ()


def test_an_answer_that_is_no_number_finds_nothing_and_breaks_nothing(problem: Problem, policy: Policy) -> None:
    class Broken(Rule):
        def predict(self, inputs):  # type: ignore[no-untyped-def]
            said = super().predict(inputs)
            said.probabilities[:5] = np.nan
            return said

    rules = lenient(policy)
    evaluation, _ = assess(asked(sealed_rows(problem, 600), problem, rules, Broken(problem)), problem, rules)
    assert evaluation.worst == ()
