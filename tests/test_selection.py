"""Selection: what may teach, why the rest may not, and a name for exactly what was taught."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.selection.dataset import freeze
from truing.tasks.selection.quality import HEARSAY, tag
from truing.tasks.selection.quarantine import held_rows, without_held
from truing.tasks.tables.columns import ROWS

COMMON = {
    "problem": "adult", "subject": "s", "content": b"{}", "content_hash": "h", "groups": '{"sex":"Female","race":"Black"}',
    "answer_label": ">50K", "asked_at": 0.0, "labelled_at": 1.0, "split": "train", "target": ">50K",
}  # fmt: skip


def rows(*given: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([{"id": str(i), **COMMON, **row} for i, row in enumerate(given)], schema=dict(ROWS))


@pytest.mark.parametrize(
    ("row", "keep", "reason"),
    [
        ({"split": "trusted", "origin": "outcome", "answer_label": None}, True, "trusted"),
        ({"origin": "outcome", "answer_confidence": 0.9}, True, "outcome"),
        ({"origin": "outcome", "answer_confidence": 0.51}, True, "outcome, unsure answer"),
        ({"origin": "review", "answer_label": None}, True, "review, unsure answer"),
        ({"origin": "correction", "answer_confidence": 0.95}, True, "correction"),
        ({"origin": "correction", "answer_confidence": 0.51}, False, "confidence below"),
        ({"origin": "correction"}, False, "no answer served"),
        ({"origin": "rating", "feedback": '{"rating":0.95}', "answer_confidence": 0.95}, True, "rating"),
        ({"origin": "rating", "feedback": '{"rating":0.8}', "answer_confidence": 0.95}, True, "rating"),
        ({"origin": "rating", "feedback": '{"rating":0.79}', "answer_confidence": 0.95}, False, "rating below 0.8"),
        ({"origin": "rating", "feedback": '{"rating":0.95}', "answer_confidence": 0.51}, False, "confidence below"),
        ({"origin": "interaction", "answer_confidence": 0.95}, False, "not a rating, correction or outcome"),
        ({"origin": None, "target": None, "answer_confidence": 0.95}, False, "no label"),
        ({"split": "validation", "origin": "outcome", "answer_confidence": 0.95}, False, "judges, never teaches"),
        ({"split": "holdout", "origin": "outcome", "answer_confidence": 0.95}, False, "judges, never teaches"),
    ],
)
def test_a_row_teaches_only_for_a_reason_and_the_reason_stays(
    policy: Policy, row: dict[str, Any], keep: bool, reason: str
) -> None:
    tagged = tag(rows(row), policy).row(0, named=True)
    assert tagged["keep"] is keep and tagged["reason"].startswith(reason)
    assert (tagged["weight"] > 0) is keep


def test_the_threshold_on_confidence_is_the_policys(policy: Policy) -> None:
    at = policy.selection.min_confidence
    tagged = tag(rows(*({"origin": "correction", "answer_confidence": at + by} for by in (-1e-9, 0.0))), policy)
    assert tagged["keep"].to_list() == [False, True]


def test_a_persons_word_weighs_less_than_what_became_true(policy: Policy) -> None:
    tagged = tag(rows(*({"origin": o, "answer_confidence": 0.9} for o in ("outcome", "correction"))), policy)
    assert tagged["weight"].to_list() == [1.0, HEARSAY]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "origin": st.sampled_from([None, "outcome", "review", "correction", "rating", "interaction", "self"]),
                "target": st.sampled_from([None, "<=50K", ">50K"]),
                "split": st.sampled_from(["trusted", "train", "validation", "holdout"]),
                "answer_confidence": st.none() | st.floats(0, 1),
                "feedback": st.sampled_from([None, "{}", '{"rating":0.9}', '{"rating":null}']),
            }
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_row_gets_a_reason_and_only_labelled_teachable_rows_are_kept(given_rows: list[dict[str, Any]]) -> None:
    policy = Policy(version=1, clause=())
    tagged = tag(rows(*given_rows), policy)
    assert tagged["reason"].null_count() == tagged["keep"].null_count() == tagged["score"].null_count() == 0
    kept = tagged.filter("keep")
    assert kept["target"].null_count() == 0
    assert set(kept["split"].to_list()) <= {"trusted", "train"}
    assert tagged["score"].is_between(0, 1).all()


def some(policy: Policy) -> pl.DataFrame:
    return tag(
        rows(
            {"split": "trusted", "origin": "outcome"},
            {"origin": "correction", "answer_confidence": 0.9, "actor": "a", "target": "<=50K"},
            {"origin": "rating", "answer_confidence": 0.9, "feedback": '{"rating":0.9}', "actor": "b"},
            {"origin": "correction", "answer_confidence": 0.9, "actor": "a"},
            {"origin": "correction", "answer_confidence": 0.5, "actor": "a"},
        ),
        policy,
    )


def test_the_same_rows_and_seed_make_the_same_dataset_in_any_order(problem: Problem, policy: Policy) -> None:
    tagged = some(policy)
    one, samples = freeze(tagged, problem=problem, policy=policy, tables={"rows": 4}, seed=1)
    other, again = freeze(tagged.reverse(), problem=problem, policy=policy, tables={"rows": 9}, seed=1)
    assert one.digest == other.digest and samples.equals(again) and samples["id"].is_sorted()
    assert one.tables == {"rows": 4} and other.tables == {"rows": 9}


@pytest.mark.parametrize("change", [{"target": "<=50K"}, {"content_hash": "x"}, {"id": "9"}, {"weight": 0.25}])
def test_another_row_content_target_or_weight_is_another_dataset(
    problem: Problem, policy: Policy, change: dict[str, Any]
) -> None:
    tagged = some(policy)
    first = pl.col("id") == "0"
    changed = tagged.with_columns(
        pl.when(first).then(pl.lit(value)).otherwise(pl.col(name)).alias(name) for name, value in change.items()
    )
    digests = {freeze(frame, problem=problem, policy=policy, tables={}, seed=1)[0].digest for frame in (tagged, changed)}
    assert len(digests) == 2


def test_another_seed_or_rule_is_another_dataset(problem: Problem, policy: Policy) -> None:
    import msgspec

    stricter = msgspec.structs.replace(policy, selection=msgspec.structs.replace(policy.selection, min_rating=0.81))
    digests = {
        freeze(some(policy), problem=problem, policy=rules, tables={}, seed=seed)[0].digest
        for rules, seed in ((policy, 1), (policy, 2), (stricter, 1))
    }
    assert len(digests) == 3


def test_a_row_that_teaches_nothing_makes_no_new_dataset(problem: Problem, policy: Policy) -> None:
    tagged = some(policy)
    more = pl.concat([tagged, tag(rows({"id": "8", "origin": None, "target": None}), policy)])
    one, other = (freeze(frame, problem=problem, policy=policy, tables={}, seed=1)[0] for frame in (tagged, more))
    assert one.digest == other.digest and other.by_reason["no label"] == 1


def test_a_dataset_says_who_taught_and_whom_it_is_about(problem: Problem, policy: Policy) -> None:
    """Kept: one trusted, corrections by a (two), a rating by b; a's low-confidence correction is counted but not kept."""
    version, samples = freeze(some(policy), problem=problem, policy=policy, tables={}, seed=1)
    assert version.samples == samples.height == 4
    assert version.raters == {"a": 0.5, "b": 0.25}
    assert version.by_label == {"<=50K": 1, ">50K": 3} and version.by_group == {"race=Black": 4, "sex=Female": 4}
    assert sum(version.by_reason.values()) == 5 and version.by_reason["correction"] == 2


def test_a_selection_of_nothing_is_an_empty_dataset(problem: Problem, policy: Policy) -> None:
    version, samples = freeze(tag(rows(), policy), problem=problem, policy=policy, tables={}, seed=1)
    assert version.samples == 0 and samples.is_empty() and version.raters == {}


# --- quarantine ---------------------------------------------------------------------------------------------------------------


def lines(dataset: str, *taught: tuple[str, str, str]) -> pl.DataFrame:
    return pl.DataFrame([(dataset, *line) for line in taught], schema=["dataset", "row", "target", "origin"], orient="row")


def test_what_people_newly_taught_a_blocked_candidate_is_held_back() -> None:
    samples = pl.concat(
        [
            lines("good", ("0", ">50K", "rating")),
            lines("bad", ("0", ">50K", "rating"), ("1", "<=50K", "correction"), ("2", ">50K", "outcome")),
            lines("open", ("3", ">50K", "rating")),
        ]
    )
    assert held_rows(samples, blocked=["bad"], cleared=["good"]) == {("1", "<=50K")}


def test_an_outcome_frees_a_held_row() -> None:
    frame = rows({"origin": "outcome"}, {"origin": "correction"}, {"origin": "rating"})
    held = frozenset({("0", ">50K"), ("1", ">50K")})
    assert without_held(frame, held)["id"].to_list() == ["0", "2"]


def test_an_earlier_word_takes_the_place_of_a_held_one() -> None:
    """A rating confirmed ">50K" at t=1; at t=9 a correction said "<=50K", which a blocked candidate had learned."""
    said = [["rating", 1.0, "a", 0.9, "gateway"], ["correction", 9.0, "b", "<=50K", "gateway"]]
    history = json.dumps({"rating": 0.9, "correction": "<=50K", "history": said})
    frame = rows({"origin": "correction", "target": "<=50K", "feedback": history, "actor": "b", "labelled_at": 9.0})
    row = without_held(frame, frozenset({("0", "<=50K")})).row(0, named=True)
    assert (row["target"], row["origin"], row["actor"], row["labelled_at"]) == (">50K", "rating", "a", 1.0)
    assert without_held(frame, frozenset({("0", "<=50K"), ("0", ">50K")})).is_empty()


def test_nothing_held_changes_nothing() -> None:
    frame = rows({"origin": "correction"})
    assert without_held(frame, frozenset()).equals(frame)
