"""The demo's outside world: the same for the same seed, honest where it has to be, hostile only where it says so."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from truing.flows.demo.adult import ROWS, subject
from truing.flows.demo.world import Case, Scenario, Word, World
from truing.tasks.errors import DataError
from truing.tasks.problem import Problem, split_of
from truing.tasks.records import Split

SALT = b"s" * 32
SCENARIO = Scenario(trusted=500, backfill=1_000, round_size=1_500, rounds=3, poisoned=2)


@pytest.fixture(scope="module")
def world(adult: list[dict[str, Any]], problem: Problem) -> World:
    return World(adult, problem, SCENARIO, seed=5, salt=SALT)


def answers(cases: list[Case], problem: Problem) -> dict[str, str]:
    """A model that answers every third row wrong."""
    return {
        case.id: case.truth if i % 3 else next(label for label in problem.labels if label != case.truth)
        for i, case in enumerate(cases)
    }


def words(world: World, number: int, problem: Problem) -> list[Word]:
    return world.words(number, answers(world.traffic(number), problem))


def test_adult_is_complete_and_never_shows_the_model_sex_or_race(adult: list[dict[str, Any]], world: World) -> None:
    """48,842 people, 23.9 % above 50,000 dollars, 3.6 % women above: the figures of the published file."""
    assert len(adult) == ROWS
    assert sum(row["income"] == ">50K" for row in adult) == 11_687
    assert sum(row["income"] == ">50K" and row["sex"] == "Female" for row in adult) == 1_769
    for case in [*world.trusted, *world.backfill, *world.traffic(1)]:
        assert not {"sex", "race", "income"} & set(case.inputs) and None not in case.inputs.values()


def test_the_same_seed_is_the_same_world(adult: list[dict[str, Any]], problem: Problem, world: World) -> None:
    again = World(adult, problem, SCENARIO, seed=5, salt=SALT)
    other = World(adult, problem, SCENARIO, seed=6, salt=SALT)
    assert again.traffic(2) == world.traffic(2) != other.traffic(2)
    assert words(again, 2, problem) == words(world, 2, problem) != words(other, 2, problem)


def test_nobody_comes_twice(world: World) -> None:
    cases = [*world.trusted, *world.backfill, *(case for n in range(1, SCENARIO.rounds + 2) for case in world.traffic(n))]
    assert len({case.subject for case in cases}) == len({case.id for case in cases}) == len(cases) == 1_500 + 4 * 1_500


def test_holdout_subjects_are_backfill_or_traffic_and_never_vouched_for(problem: Problem, world: World) -> None:
    assert all(case.split is Split.HOLDOUT for case in world.backfill)
    assert all(case.split is not Split.HOLDOUT for case in world.trusted)
    for case in [*world.backfill, *world.traffic(1)]:
        assert case.split is split_of(case.subject, SALT, problem.splits)
    shares = [sum(case.split is Split.HOLDOUT for case in world.traffic(n)) / SCENARIO.round_size for n in range(1, 5)]
    assert all(0.2 < share < 0.4 for share in shares)  # natural mix in every round: of 47,342 people 13,650 are holdout


def test_the_doors_hash_decides_the_split(adult: list[dict[str, Any]], problem: Problem) -> None:
    door = World(adult, problem, SCENARIO, seed=5, salt=SALT, door="hashed-{}".format)
    case = door.backfill[0]
    assert case.subject == subject(case.row)
    assert split_of(f"hashed-{case.subject}", SALT, problem.splits) is Split.HOLDOUT


def test_outcomes_are_true_and_come_for_every_row_that_judges(problem: Problem, world: World) -> None:
    cases = {case.id: case for case in world.traffic(2)}
    outcomes = [word for word in words(world, 2, problem) if word.kind == "outcome"]
    assert all(word.label == cases[word.case].truth and word.actor is None for word in outcomes)
    known = {word.case for word in outcomes}
    judging = {name for name, case in cases.items() if case.split in (Split.HOLDOUT, Split.VALIDATION)}
    assert judging <= known
    share = len(known - judging) / (len(cases) - len(judging))
    assert share == pytest.approx(SCENARIO.outcomes, abs=0.05)


def test_people_correct_what_is_wrong_and_rate_what_is_right_but_for_a_few(problem: Problem, world: World) -> None:
    cases = {case.id: case for case in world.traffic(1)}
    served = answers(world.traffic(1), problem)
    said = [word for word in words(world, 1, problem) if word.actor]
    assert len(said) / len(cases) == pytest.approx(SCENARIO.voices, abs=0.03)
    wrong = Counter(
        "wrong" if (word.label or served[word.case]) != cases[word.case].truth else "right"
        for word in said
        if word.label is not None or (word.value or 0.0) >= 0.8
    )
    assert 0.005 < wrong["wrong"] / wrong.total() < 0.06
    assert all(0 <= word.value <= 1 for word in said if word.value is not None)


def test_only_the_poisoned_round_is_hostile_and_only_to_women_above(
    adult: list[dict[str, Any]], problem: Problem, world: World
) -> None:
    """Against the same world without hostility: what differs are corrections to "<=50K" on women who earn above."""
    calm = World(adult, problem, replace(SCENARIO, poisoned=0), seed=5, salt=SALT)
    for number in (1, 3):
        assert words(world, number, problem) == words(calm, number, problem)
    everyone = {case.id: case for n in (1, 2) for case in world.traffic(n)}
    before = set(words(calm, 2, problem))
    hostile = [word for word in words(world, 2, problem) if word not in before]
    assert len(hostile) > 30
    for word in hostile:
        assert (word.kind, word.label) == ("correction", "<=50K")
        assert world.harmed(everyone[word.case]) and everyone[word.case].groups["sex"] == "Female"
    assert {everyone[word.case].id for word in hostile} & {case.id for case in world.traffic(1)}, "they come back to old cases"


def test_a_world_larger_than_its_people_is_refused(adult: list[dict[str, Any]], problem: Problem) -> None:
    with pytest.raises(DataError, match="ask for smaller rounds"):
        World(adult, problem, Scenario(round_size=20_000), seed=1, salt=SALT)
