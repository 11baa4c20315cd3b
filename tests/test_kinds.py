"""The kind for tables: an encoder that never changes its mind, and models whose bytes are their name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest

from truing.tasks.errors import DataError
from truing.tasks.kinds.encoders import TableEncoder
from truing.tasks.kinds.model import FORMAT, Calibration, Card, Head, Model
from truing.tasks.kinds.tabular import Tabular
from truing.tasks.problem import Problem
from truing.tasks.seal import tree_digest


def inputs_of(rows: list[dict[str, Any]], problem: Problem) -> list[dict[str, Any]]:
    return [{name: row[name] for name in problem.inputs} for row in rows]


@pytest.fixture(scope="module")
def kind(adult: list[dict[str, Any]], problem: Problem) -> Tabular:
    rows = adult[:600]
    return Tabular.grow(problem, inputs_of(rows, problem), [row["income"] for row in rows], seed=3, trees=30)


@pytest.fixture(scope="module")
def model(kind: Tabular, problem: Problem) -> Model:
    return make_model(kind, problem, hidden=0)


def make_model(kind: Tabular, problem: Problem, *, hidden: int) -> Model:
    rng, d = np.random.default_rng(0), kind.encoder.width
    more = {}
    if hidden:
        more = {
            "hidden": rng.normal(size=(d, hidden)).astype(np.float32),
            "hidden_bias": np.zeros(hidden, np.float32),
            "out": rng.normal(size=(hidden, 2)).astype(np.float32),
        }
    head = Head(weight=rng.normal(size=(d, 2)).astype(np.float32), bias=np.zeros(2, np.float32), **more)
    card = Card(
        format=FORMAT, kind="tabular", problem=problem.name, head=problem.label, labels=problem.labels,
        positive=problem.positive, thresholds=(0.5, 0.5), calibration=Calibration(temperature=1.5, bias=(0.1, -0.1)),
    )  # fmt: skip
    return Model(card, kind.encoder, head)


def test_a_unit_has_norm_one_and_depends_on_its_own_row_only(
    kind: Tabular, adult: list[dict[str, Any]], problem: Problem
) -> None:
    inputs = inputs_of(adult[700:760], problem)
    units = kind.encode(inputs).matrix
    assert units.shape == (60, kind.encoder.width) and units.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(units[17], kind.encode([inputs[17]]).matrix[0])


def test_the_numpy_forest_finds_the_leaves_that_the_library_found(adult: list[dict[str, Any]], problem: Problem) -> None:
    """The same forest grown by scikit-learn says for every row which leaf it is in; leaves are numbered in its own order."""
    from sklearn.ensemble import GradientBoostingClassifier

    rows = adult[:400]
    labels = [row["income"] for row in rows]
    kind = Tabular.grow(problem, inputs_of(rows, problem), labels, seed=5, trees=12)
    seen = kind.encoder.trees_see(*kind.encoder.read(inputs_of(adult[400:900], problem)))
    ours = kind.encoder.leaves(seen)
    grown_on = kind.encoder.trees_see(*kind.encoder.read(inputs_of(rows, problem)))
    theirs = GradientBoostingClassifier(
        n_estimators=12, max_depth=kind.encoder.spec.depth, learning_rate=0.1, subsample=0.5, min_samples_leaf=20,
        max_features=0.5, random_state=5,
    ).fit(grown_on, labels).apply(seen)[:, :, 0]  # fmt: skip
    for tree in range(12):
        pairs = set(zip(ours[:, tree].tolist(), theirs[:, tree].tolist(), strict=True))
        assert len(pairs) == len(set(ours[:, tree].tolist())) == len(set(theirs[:, tree].tolist()))


def test_the_same_rows_and_seed_grow_the_same_encoder(kind: Tabular, adult: list[dict[str, Any]], problem: Problem) -> None:
    rows = adult[:600]
    labels = [row["income"] for row in rows]
    again = Tabular.grow(problem, inputs_of(rows, problem), labels, seed=3, trees=30)
    other = Tabular.grow(problem, inputs_of(rows, problem), labels, seed=4, trees=30)
    assert again.encoder.digest == kind.encoder.digest != other.encoder.digest


@pytest.mark.parametrize("hidden", [0, 5])
def test_a_model_comes_back_from_its_files_byte_for_byte(
    kind: Tabular, adult: list[dict[str, Any]], problem: Problem, hidden: int
) -> None:
    model = make_model(kind, problem, hidden=hidden)
    files = model.to_files()
    again = Model.from_files(files)
    assert again.to_files() == files and again.payload == model.payload == tree_digest(files)
    inputs = inputs_of(adult[:50], problem)
    np.testing.assert_array_equal(again.predict(inputs).probabilities, model.predict(inputs).probabilities)


def test_predictions_do_not_depend_on_the_batch_they_come_in(
    model: Model, adult: list[dict[str, Any]], problem: Problem
) -> None:
    inputs = inputs_of(adult[:40], problem)
    together = model.predict(inputs)
    alone = np.concatenate([model.predict([one]).probabilities for one in inputs])
    np.testing.assert_allclose(together.probabilities, alone, atol=1e-6)
    np.testing.assert_allclose(together.probabilities.sum(axis=1), 1.0)
    assert together.labels == [model.problem_labels[i] for i in together.probabilities.argmax(axis=1)]
    np.testing.assert_array_equal(together.confidence, together.probabilities.max(axis=1))


def test_a_threshold_moves_the_answer_but_not_the_probability(
    model: Model, adult: list[dict[str, Any]], problem: Problem
) -> None:
    """Positive from p >= 0.3 on: a label other than the likelier one may be answered, with its own, smaller confidence."""
    low = Model(msgspec.structs.replace(model.card, thresholds=(0.7, 0.3)), model.encoder, model.head)
    inputs = inputs_of(adult[:300], problem)
    usual, lowered = model.predict(inputs), low.predict(inputs)
    np.testing.assert_array_equal(usual.probabilities, lowered.probabilities)
    p = lowered.probabilities[:, model.positive]
    assert ((p > 0.3) & (p < 0.5)).any()
    assert [label == problem.positive for label in lowered.labels] == (p >= 0.3).tolist()
    np.testing.assert_allclose(lowered.confidence, np.where(p >= 0.3, p, 1 - p), atol=1e-12)


def test_no_rows_get_no_answers(model: Model) -> None:
    answers = model.predict([])
    assert answers.labels == [] and answers.probabilities.shape == (0, 2) and answers.confidence.shape == (0,)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shoe_size": 43}, "shoe_size"),
        ({"education": None}, "education: expected a value"),
        ({"age": "forty"}, "age: expected a number"),
        ({"age": float("nan")}, "age: expected a finite number"),
        ({"occupation": 7}, "occupation: expected text"),
    ],
)
def test_a_row_that_can_not_be_read_is_refused_in_one_line(
    model: Model, adult: list[dict[str, Any]], problem: Problem, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError) as error:
        model.predict([*inputs_of(adult[:3], problem), {**inputs_of(adult[3:4], problem)[0], **change}])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_missing_optional_and_unseen_categories_are_answered_alike(
    model: Model, adult: list[dict[str, Any]], problem: Problem
) -> None:
    row = {**inputs_of(adult[:1], problem)[0]}
    unseen = model.predict([{**row, "occupation": "Astronaut"}]).probabilities
    absent = model.predict([{name: value for name, value in row.items() if name != "occupation"}]).probabilities
    np.testing.assert_array_equal(unseen, absent)


@pytest.mark.parametrize("file", ["model.json", "head.safetensors", "encoder.json", "encoder.safetensors"])
def test_damaged_or_missing_files_are_refused(model: Model, file: str) -> None:
    files = model.to_files()
    with pytest.raises(DataError, match="damaged"):
        Model.from_files({name: data for name, data in files.items() if name != file})
    with pytest.raises(DataError, match="damaged"):
        Model.from_files({**files, file: files[file][: len(files[file]) // 2]})


def test_a_head_that_does_not_fit_its_encoder_is_refused(model: Model) -> None:
    wrong = Head(weight=model.head.weight[:-1], bias=model.head.bias)
    with pytest.raises(DataError, match="expected head arrays"):
        Model(model.card, model.encoder, wrong)
    endless = Head(weight=np.full_like(model.head.weight, np.nan), bias=model.head.bias)
    with pytest.raises(DataError, match="finite"):
        Model(model.card, model.encoder, endless)


def test_a_counterfactual_turns_the_answer(kind: Tabular, model: Model, adult: list[dict[str, Any]], problem: Problem) -> None:
    one = inputs_of(adult[:1], problem)[0]
    before = model.predict([one]).labels[0]
    found = kind.counterfactuals(one, model.predict)
    assert found and all(change.label != before for change in found)
    again = model.predict([{**one, change.column: change.value} for change in found[:5]])
    assert again.labels == [change.label for change in found[:5]]


def test_attribution_is_zero_for_a_column_that_is_ordinary_already(
    kind: Tabular, model: Model, adult: list[dict[str, Any]], problem: Problem
) -> None:
    one = {**inputs_of(adult[:1], problem)[0], "age": kind.encoder.spec.numbers[0].fill}
    parts = kind.attribute(one, model.predict)
    assert set(parts) == set(problem.inputs) and parts["age"] == 0.0
    assert any(abs(value) > 1e-3 for value in parts.values())


def test_unknown_labels_and_too_few_rows_are_refused(kind: Tabular, adult: list[dict[str, Any]], problem: Problem) -> None:
    assert kind.targets([problem.positive, problem.labels[0]]).tolist() == [1, 0]
    with pytest.raises(DataError, match="maybe"):
        kind.targets(["maybe"])
    with pytest.raises(DataError, match="at least 50 trusted rows"):
        Tabular.grow(problem, inputs_of(adult[:20], problem), [row["income"] for row in adult[:20]], seed=0)


def test_serving_needs_no_heavy_library() -> None:
    code = "import sys, truing.tasks.kinds.model; print([m for m in ('torch','sklearn','polars','mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_encoder_comes_back_from_its_files(kind: Tabular) -> None:
    assert TableEncoder.from_files(kind.save()).to_files() == kind.save()
