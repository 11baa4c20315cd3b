"""Asked again with other inputs: what flips when only who it is about is swapped, and what the answers lean on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from truing.tasks.errors import ProblemError
from truing.tasks.evaluation.counterfactual import table_effects, text_effects
from truing.tasks.evaluation.importance import importance, permuted, shift
from truing.tasks.evaluation.probing import Units, probe, scored
from truing.tasks.kinds.model import Model
from truing.tasks.kinds.swaps import Terms, fill, table_swaps
from truing.tasks.kinds.tabular import Tabular
from truing.tasks.problem import Input, Problem, load_problem

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
MADLIBS, WINOGENDER = DATA / "identity_madlibs_en.parquet", DATA / "identity_winogender_templates.parquet"
SEX = ["Female", "Male"]
Scored = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def by(chance: Any) -> Any:
    """A model from a function of one case to a probability; it answers yes from one half on."""

    def score(cases: list[Any]) -> Scored:
        p = np.array([chance(case) for case in cases], dtype=float)
        return p, p >= 0.5

    return score


def served(problem: Problem) -> Problem:
    sex = msgspec.structs.replace(problem.groups["sex"], served=True)
    return msgspec.structs.replace(
        problem, inputs={**problem.inputs, "sex": Input(type="category")}, groups={**problem.groups, "sex": sex}
    )


# --- tables -------------------------------------------------------------------------------------------------------------------


def test_a_protected_input_is_swapped_with_what_the_problem_says_goes_along(problem: Problem) -> None:
    rows = [{"sex": "Female", "relationship": "Wife"}, {"sex": "Male", "relationship": "Not-in-family"}]
    swaps = table_swaps(served(problem), "sex", rows, SEX)
    assert [(one.row, one.to, one.inputs) for one in swaps] == [
        (0, "Male", {"sex": "Male", "relationship": "Husband"}),
        (1, "Female", {"sex": "Female", "relationship": "Not-in-family"}),
    ]


def test_where_the_attribute_is_no_input_only_what_goes_along_is_swapped(problem: Problem) -> None:
    rows = [{"relationship": "Wife"}, {"relationship": "Husband"}, {"relationship": "Own-child"}]
    swaps = table_swaps(problem, "sex", rows, ["Female", "Male", "Male"])
    assert [(one.row, one.inputs["relationship"]) for one in swaps] == [(0, "Husband"), (1, "Wife")]
    assert table_swaps(problem, "race", rows, ["White"] * 3) == []
    assert table_swaps(problem, "sex", rows[:1], ["unknown"]) == []  # nobody knows what the other bucket would be


def test_a_number_takes_the_middle_of_each_other_bucket(problem: Problem) -> None:
    """Medians: 25 of 24 and 26, and 70."""
    rows: list[dict[str, Any]] = [{"age": 24.0}, {"age": 26.0}, {"age": 70.0}]
    swaps = table_swaps(problem, "age", rows, ["<30", "<30", ">=60"])
    assert [(one.row, one.inputs["age"]) for one in swaps] == [(0, 70.0), (1, 70.0), (2, 25.0)]


def test_flips_and_shifts_are_those_of_the_model(problem: Problem) -> None:
    """60 wives at 0.4 and 40 husbands at 0.6; swapped, each scores like the other: all flip, ±0.2."""
    rows = [{"relationship": "Wife", "age": 40.0}] * 60 + [{"relationship": "Husband", "age": 40.0}] * 40
    buckets = {"sex": ["Female"] * 60 + ["Male"] * 40, "race": ["White"] * 100, "age": ["30-45"] * 100}
    found = table_effects(problem, rows, buckets, by(lambda row: 0.6 if row["relationship"] == "Husband" else 0.4))
    assert sorted(found) == ["flip:sex", "shift:sex=Female", "shift:sex=Male"]
    flip, women = found["flip:sex"], found["shift:sex=Female"]
    assert flip.value == 1.0 and flip.n == 100 and flip.low is not None and 0.9 < flip.low < 1.0
    assert women.value == pytest.approx(0.2) and women.n == 60
    assert found["shift:sex=Male"].value == pytest.approx(-0.2)
    blind = table_effects(problem, rows, buckets, by(lambda row: 0.7))
    assert blind["flip:sex"].value == 0.0 and (blind["flip:sex"].high or 0) > 0
    assert table_effects(problem, [], {"sex": [], "race": [], "age": []}, by(lambda row: 0.7)) == {}


def test_a_kind_swaps_by_its_problem(problem: Problem, adult: list[dict[str, Any]], models: list[Model]) -> None:
    people = [{name: one[name] for name in problem.inputs if one.get(name) is not None} for one in adult[:300]]
    swaps = Tabular(problem, models[0].encoder).swaps("sex", people, [one["sex"] for one in adult[:300]])
    assert {one.row for one in swaps} == {i for i, one in enumerate(people) if one["relationship"] in ("Wife", "Husband")}


def test_what_goes_along_is_checked_with_the_problem(tmp_path: Path) -> None:
    text = (ROOT / "problems" / "adult" / "problem.toml").read_text()
    folder = tmp_path / "adult"
    folder.mkdir()
    for wrong, said in (
        (text.replace("[counterfactual.sex]", "[counterfactual.gender]"), "expected groups of"),
        (text.replace("relationship = { Husband", "hours_per_week = { Husband"), "expected inputs that are categories"),
    ):
        (folder / "problem.toml").write_text(wrong)
        with pytest.raises(ProblemError, match=said):
            load_problem(folder)


# --- text ---------------------------------------------------------------------------------------------------------------------

TERMS = {"religion": ["christian", "muslim", "jewish", "old believer"], "sexuality": ["gay", "straight"]}


def test_terms_are_exchanged_within_their_group_as_whole_words_with_their_capitals() -> None:
    terms = Terms(TERMS)
    made = terms.swaps("Muslim or MUSLIM, not muslimah; gay.", "religion")
    assert [(came, to) for came, to, _ in made] == [("muslim", "christian"), ("muslim", "jewish"), ("muslim", "old believer")]
    assert made[0][2] == "Christian or CHRISTIAN, not muslimah; gay."
    assert terms.swaps("an Old Believer", "religion")[0][2] == "an Christian"
    assert terms.found("A gay old believer") == ["gay", "old believer"] and terms.swaps("", "religion") == []
    assert Terms({}).found("gay") == []


def test_a_template_is_filled_without_mixing_up_names() -> None:
    assert fill("$NOM saw $NOM_PRONOUN", {"NOM": "Ann", "NOM_PRONOUN": "her"}) == "Ann saw her"


def test_a_classifier_that_dislikes_one_word_is_found_out() -> None:
    """Half of the texts say gay (0.8), half straight (0.2): every swap flips, by 0.6 either way; religion says nothing."""
    texts = [f"I am a {word} man number {i}" for i in range(30) for word in ("gay", "straight")]
    found = text_effects(texts, Terms(TERMS), by(lambda text: 0.8 if "gay" in text else 0.2))
    assert sorted(found) == ["flip:sexuality", "shift:sexuality=gay", "shift:sexuality=straight"]
    assert found["flip:sexuality"].value == 1.0
    assert found["shift:sexuality=gay"].value == pytest.approx(-0.6)
    assert found["shift:sexuality=straight"].value == pytest.approx(0.6)


@pytest.mark.skipif(not MADLIBS.exists(), reason=f"{MADLIBS} is not here")
def test_swaps_of_real_templates_are_real_templates_with_the_same_label() -> None:
    """Madlibs pair every phrase with every term, so a right swap lands on another of its phrases, as toxic as before."""
    rows = pl.read_parquet(MADLIBS)
    known = dict(rows.select("phrase", "toxicity").iter_rows())
    terms = Terms({"sexuality": ["lesbian", "gay", "bisexual", "straight"], "age": ["old", "young", "elderly"]})
    every = [phrase for phrase in known if terms.found(phrase)]
    texts = [every[i] for i in np.random.default_rng(0).permutation(len(every))[:3000]]
    swapped = [(text, made) for text in texts for group in terms.groups for _, _, made in terms.swaps(text, group)]
    assert len(swapped) > 1000
    assert all(known.get(made) == known[text] for text, made in swapped)
    label = by(lambda text: 0.9 if known[text] == "toxic" else 0.1)
    fair = text_effects(texts, terms, label)
    assert fair["flip:sexuality"].value == 0.0 and fair["shift:sexuality=gay"].value == 0.0
    unfair = text_effects(texts, terms, by(lambda text: 0.9 if known[text] == "toxic" or "gay" in text else 0.1))
    calm = [text for text in texts if known[text] == "nontoxic" and set(terms.found(text)) & set(terms.groups["sexuality"])]
    gay, others = sum("gay" in text for text in calm), sum("gay" not in text for text in calm)
    said = sum(1 for text in texts if set(terms.found(text)) & set(terms.groups["sexuality"]))
    assert unfair["flip:sexuality"].value == pytest.approx((gay + others / 3) / said)


@pytest.mark.skipif(not WINOGENDER.exists(), reason=f"{WINOGENDER} is not here")
def test_pronouns_are_swapped_in_real_templates() -> None:
    rows = pl.read_parquet(WINOGENDER)
    she = {"NOM_PRONOUN": "she", "POSS_PRONOUN": "her", "ACC_PRONOUN": "her"}
    he = {"NOM_PRONOUN": "he", "POSS_PRONOUN": "his", "ACC_PRONOUN": "him"}
    texts = [
        fill(row["sentence"], {"OCCUPATION": row["occupation(0)"], "PARTICIPANT": row["other-participant(1)"], **she})
        for row in rows.iter_rows(named=True)
    ]
    assert not any("$" in text for text in texts)
    nominative = [
        (one, fill(row["sentence"], {"OCCUPATION": row["occupation(0)"], "PARTICIPANT": row["other-participant(1)"], **he}))
        for one, row in zip(texts, rows.iter_rows(named=True), strict=True)
        if "$NOM_PRONOUN" in row["sentence"] and "POSS" not in row["sentence"] and "ACC" not in row["sentence"]
    ]
    terms = Terms({"gender": ["she", "he"]})
    assert len(nominative) > 50
    assert all(terms.swaps(one, "gender")[0][2] == other for one, other in nominative)


# --- importance ---------------------------------------------------------------------------------------------------------------


def test_only_what_the_model_reads_matters() -> None:
    rng = np.random.default_rng(0)
    rows = [{"a": float(a), "b": float(b)} for a, b in rng.random((400, 2))]
    truth = np.array([row["a"] > 0.5 for row in rows])
    found = importance(rows, truth, ["a", "b"], {"one": by(lambda row: row["a"]), "none": by(lambda row: 0.5)}, seed=1)
    assert found == {"one": {"a": 1.0, "b": 0.0}, "none": {}}
    assert found == importance(rows, truth, ["a", "b"], {"one": by(lambda row: row["a"]), "none": by(lambda row: 0.5)}, seed=1)
    assert importance([], truth[:0], ["a"], {"one": by(lambda row: row["a"])}, seed=1) == {"one": {}}


def test_a_shift_of_reasons_is_half_the_distance_of_the_shares() -> None:
    """(0.5, 0.5, 0) to (0.5, 0.2, 0.3): 0.3 of the reasons are others now."""
    assert shift({"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.2, "c": 0.3}) == pytest.approx(0.3)
    assert shift({"a": 1.0}, {"b": 1.0}) == 1.0 and shift({"a": 1.0}, {}) is None


def test_a_missing_value_is_handed_on_as_missing() -> None:
    assert permuted([{"a": 1, "b": 2}, {"b": 3}], "a", np.array([1, 0])) == [{"b": 2}, {"a": 1, "b": 3}]


def judging(problem: Problem, n: int, *, seed: int = 0, origin: str = "outcome") -> pl.DataFrame:
    """Holdout rows whose age and hours (as percents) are two independent chances of the positive label."""
    rng = np.random.default_rng(seed)
    ages, hours = rng.integers(18, 80, n), rng.integers(1, 100, n)
    other = next(label for label in problem.labels if label != problem.positive)
    return pl.DataFrame(
        {
            "id": [f"r{i:05d}" for i in range(n)],
            "content": [
                json.dumps({"age": int(a), "hours_per_week": int(h)}).encode() for a, h in zip(ages, hours, strict=True)
            ],
            "groups": [json.dumps({"sex": "Male", "age": problem.bucket("age", int(a))}) for a in ages],
            "target": [problem.positive if yes else other for yes in rng.random(n) < (ages + hours) / 200],
            "origin": origin,
            "matured_at": 20.0,
        }
    )


class Reads:
    """Answers by one column alone."""

    def __init__(self, problem: Problem, column: str) -> None:
        self.problem, self.column = problem, column

    def predict(self, inputs: list[dict[str, Any]]) -> Any:
        p = np.array([min(max(float(one[self.column]) / 100.0, 0.0), 1.0) for one in inputs])
        table = np.column_stack([1 - p, p] if self.problem.labels.index(self.problem.positive) else [p, 1 - p])
        labels = [self.problem.labels[int(i)] for i in table.argmax(axis=1)]
        return type("Said", (), {"labels": labels, "probabilities": table})()


def test_probing_says_what_candidate_and_parent_lean_on_and_is_the_same_again(problem: Problem) -> None:
    """The candidate reads age, which is protected: swapped ages flip answers; its parent read hours, so all reasons are new."""
    rows = judging(problem, 800)
    old, new = Reads(problem, "hours_per_week"), Reads(problem, "age")
    found = probe(rows, problem, candidate=new, parent=old, seed=3, now=100.0)
    assert found.importance["age"] == 1.0 and found.importance_shift == 1.0
    assert (found.counterfactual["flip:age"].value or 0.0) > 0.2
    assert (
        (found.counterfactual["shift:age=>=60"].value or 0.0)
        < -0.1
        < 0.1
        < (found.counterfactual["shift:age=<30"].value or 0.0)
    )
    assert found == probe(rows, problem, candidate=new, parent=old, seed=3, now=100.0)
    alone = probe(rows, problem, candidate=old, parent=None, seed=3, now=100.0)
    assert alone.importance_shift is None and alone.counterfactual["flip:age"].value == 0.0
    empty = probe(rows.clear(), problem, candidate=old, parent=None, seed=3, now=100.0)
    assert empty.importance == {} and empty.counterfactual == {}


def test_asking_models_of_one_encoder_together_changes_no_answer(
    problem: Problem, adult: list[dict[str, Any]], models: list[Model]
) -> None:
    people = [{name: one[name] for name in problem.inputs if one.get(name) is not None} for one in adult[300:500]]
    units = Units()
    for model in models:
        together, alone = scored(model, problem, units)(people), scored(model, problem)(people)
        np.testing.assert_array_equal(together[0], alone[0])
        np.testing.assert_array_equal(together[1], alone[1])
    assert scored(models[0], problem, units)(people[:7])[0].shape == (7,)


def test_rows_that_may_not_judge_are_not_asked(problem: Problem) -> None:
    for rows, now in ((judging(problem, 60, origin="rating"), 100.0), (judging(problem, 60), 10.0)):
        assert probe(rows, problem, candidate=Reads(problem, "age"), parent=None, seed=1, now=now).importance == {}
