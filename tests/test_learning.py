"""Learning: exact sums, unforgetting networks, honest probabilities, and the better of fast and slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from truing.tasks.errors import DataError
from truing.tasks.kinds.model import Calibration, Head, Model
from truing.tasks.learning.calibration import brier, calibrate, identity
from truing.tasks.learning.improve import Tuned, tune
from truing.tasks.learning.network import Network
from truing.tasks.learning.protocol import Batch, Params, Range
from truing.tasks.learning.replay import draw
from truing.tasks.learning.ridge import PENALTIES, Ridge
from truing.tasks.learning.study import Report, search
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.seal import canonical


def batch(n: int, d: int = 12, *, seed: int = 0, labels: int = 2) -> Batch:
    """Unit-norm rows whose label follows a fixed direction, with noise."""
    rng = np.random.default_rng(seed)
    units = rng.normal(size=(n, d))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    truth = np.random.default_rng(99).normal(size=(d, labels)) * 4
    noise = rng.gumbel(size=(n, labels))
    return Batch(units.astype(np.float32), (units @ truth + noise).argmax(axis=1), rng.uniform(0.5, 1.5, size=n))


def joined(*parts: Batch) -> Batch:
    return Batch(*(np.concatenate([part[i] for part in parts]) for i in range(3)))  # type: ignore[arg-type]


# --- fast ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [2, 3])
def test_subtracting_rows_equals_never_having_seen_them(labels: int) -> None:
    stay, go = batch(300, seed=1, labels=labels), batch(120, seed=2, labels=labels)
    first = Ridge()
    reference = first.head(first.fit(stay, labels=labels), {"penalty": 1.0})
    for learner in (Ridge(), Ridge(reference)):
        never = learner.fit(stay, labels=labels)
        back = learner.subtract(learner.update(learner.fit(stay, labels=labels), go), go)
        assert np.abs(back.gram - never.gram).max() < 1e-9 and np.abs(back.cross - never.cross).max() < 1e-9
        one, other = (learner.head(state, {"penalty": 0.3}) for state in (never, back))
        assert max(np.abs(one.weight - other.weight).max(), np.abs(one.bias - other.bias).max()) < 1e-6  # float32 heads


def test_the_order_of_updates_does_not_matter() -> None:
    a, b = batch(100, seed=1), batch(100, seed=2)
    learner = Ridge()
    one, other = (learner.fit(joined(*parts), labels=2) for parts in ((a, b), (b, a)))
    np.testing.assert_allclose(one.gram, other.gram, atol=1e-10)
    np.testing.assert_allclose(learner.update(learner.fit(a, labels=2), b).cross, one.cross, atol=1e-10)


def test_leave_one_out_scores_are_those_of_a_fit_without_the_row() -> None:
    rows = batch(60)
    first = Ridge()
    reference = first.head(first.fit(rows, labels=2), {"penalty": 1.0})
    for learner in (Ridge(), Ridge(reference)):
        scores = learner.left_out(learner.fit(rows, labels=2), rows, {"penalty": 0.3})
        for i in (0, 17, 59):
            rest = rows.take(np.delete(np.arange(60), i))
            head = learner.head(learner.fit(rest, labels=2), {"penalty": 0.3})
            np.testing.assert_allclose(scores[i], head.scores(rows.units[i : i + 1])[0], atol=1e-4)


def test_steps_from_their_own_result_come_to_rest_at_the_maximum_of_the_penalised_likelihood() -> None:
    """At rest the gradient is nought: Σ w u (y - p) = λ W for every label, up to the floor under v."""
    rows, penalty = batch(800), 3.0
    head: Head | None = None
    for _ in range(30):
        learner = Ridge(head)
        head = learner.head(learner.fit(rows, labels=2), {"penalty": penalty})
    assert head is not None
    p = identity(2).probabilities(head.scores(rows.units))
    gradient = (rows.units * rows.weights[:, None]).T @ (np.eye(2)[rows.targets] - p)
    np.testing.assert_allclose(gradient, penalty * head.weight, atol=0.02)


def test_a_row_of_weight_two_counts_like_two_rows() -> None:
    rows = batch(50)
    twice = Batch(rows.units, rows.targets, rows.weights * 2)
    learner = Ridge()
    np.testing.assert_allclose(learner.fit(joined(rows, rows), labels=2).gram, learner.fit(twice, labels=2).gram, atol=1e-10)


def test_ridge_tunes_its_penalty_on_rows_that_have_not_taught_their_own_score() -> None:
    """40 noisy rows in 12 dimensions: the penalty chosen is about the best on 2,000 others; left-out rows judge too."""
    rows, evidence = batch(40), batch(2000, seed=5)
    learner = Ridge()
    nothing = learner.fit(rows.take(np.zeros(40, bool)), labels=2)
    found = learner.tune(nothing, rows, evidence, judging=np.arange(40) < 30)
    assert found.scores.shape == (2030, 2)
    whole = learner.fit(rows, labels=2)
    np.testing.assert_array_equal(found.head.weight, learner.head(whole, found.params).weight)
    np.testing.assert_allclose(found.scores[2000:], learner.left_out(whole, rows.take(np.arange(30)), found.params))
    by_penalty = {}
    for penalty in PENALTIES:
        scores = learner.head(whole, {"penalty": penalty}).scores(evidence.units)
        by_penalty[penalty] = brier(calibrate(scores, evidence.targets).probabilities(scores), evidence.targets)
    assert by_penalty[found.params["penalty"]] < min(by_penalty.values()) + 0.002


# --- slow ---------------------------------------------------------------------------------------------------------------------

GENTLE: Params = {"rate": 1e-2, "epochs": 4.0, "stay": 1e-4, "drop": 0.0}


def test_the_network_starts_where_its_parent_stands(tuned: Tuned, adult: list[dict[str, Any]], problem: Problem) -> None:
    parent = tuned.model
    start = Network().start(parent, seed=1)
    units = parent.encoder.encode([{name: row[name] for name in problem.inputs} for row in adult[:40]])
    np.testing.assert_allclose(identity(2).probabilities(start.scores(units)), parent.probabilities(units), atol=1e-5)


def test_fine_tuning_learns_and_the_same_seed_learns_the_same() -> None:
    rows, later = batch(1500), batch(1000, seed=7)
    network = Network()
    one, again, other = (
        network.fit(rows, labels=2, params={**GENTLE, "epochs": 12.0}, seed=seed, threads=1) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.weight, again.weight)
    assert np.abs(one.weight - other.weight).max() > 0
    right = (one.scores(later.units).argmax(axis=1) == later.targets).mean()
    common = (later.targets == np.bincount(later.targets).argmax()).mean()
    assert right > 0.75 and common < 0.75


def test_a_stronger_pull_stays_nearer_to_the_start() -> None:
    network = Network()
    start = network.fit(batch(300), labels=2, params=GENTLE, seed=1, threads=1)
    new = batch(300, seed=8)
    moved = [
        float(
            np.abs(network.update(start, new, params={**GENTLE, "stay": stay}, seed=1, threads=1).weight - start.weight).sum()
        )
        for stay in (1e-4, 1.0)
    ]
    assert moved[1] < moved[0] / 2


def test_a_study_of_the_network_returns_what_it_judged() -> None:
    rows, evidence = batch(400), batch(300, seed=6)
    network = Network()
    start = network.fit(rows.take(np.arange(50)), labels=2, params=GENTLE, seed=1, threads=1)
    found = network.tune(start, rows, evidence, trials=3, seed=1, threads=1, problem="adult")
    np.testing.assert_array_equal(found.scores, found.head.scores(evidence.units))
    best = min(trial.score for trial in found.trials if trial.score is not None)
    assert brier(identity(2).probabilities(found.scores), evidence.targets) == best and len(found.trials) == 3


def test_the_network_can_not_subtract_and_says_so() -> None:
    network = Network()
    head = network.fit(batch(50), labels=2, params=GENTLE, seed=1, threads=1)
    assert network.subtract(head, batch(5)) is None


# --- replay -------------------------------------------------------------------------------------------------------------------


def test_replay_draws_small_strata_whole_and_weighs_the_loss_back() -> None:
    """1,000 rows, 3 strata of 900, 90 and 10; 150 drawn: 10 of the smallest, 70 of each other; weights 900/70, 90/70, 1."""
    strata = ["a"] * 900 + ["b"] * 90 + ["c"] * 10
    chosen, weights = draw(strata, 150, seed=4)
    counts = {name: sum(strata[i] == name for i in chosen) for name in "abc"}
    assert counts == {"a": 70, "b": 70, "c": 10} and len(set(chosen.tolist())) == 150
    assert weights.sum() == pytest.approx(1000)
    assert {strata[i]: w for i, w in zip(chosen.tolist(), weights.tolist(), strict=True)} == pytest.approx(
        {"a": 900 / 70, "b": 90 / 70, "c": 1.0}
    )


def test_replay_of_nothing_is_nothing_and_of_few_is_all() -> None:
    assert draw([], 10, seed=0)[0].tolist() == []
    chosen, weights = draw(["a", "b", "a"], 10, seed=0)
    assert sorted(chosen.tolist()) == [0, 1, 2] and weights.tolist() == [1.0, 1.0, 1.0]


# --- calibration --------------------------------------------------------------------------------------------------------------


def test_calibration_finds_the_temperature_and_bias_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=40_000) * 2
    scores = np.column_stack([-z / 2, z / 2])
    truth = Calibration(temperature=1.7, bias=(-0.2, 0.2))
    targets = (rng.random(len(z)) < truth.probabilities(scores)[:, 1]).astype(np.int64)
    found = calibrate(scores, targets)
    assert found.temperature == pytest.approx(1.7, abs=0.06) and found.bias[1] == pytest.approx(0.2, abs=0.03)


def test_without_rows_calibration_is_the_prior() -> None:
    prior = Calibration(temperature=2.0, bias=(0.1, -0.1))
    assert calibrate(np.zeros((0, 2)), np.zeros(0, np.int64), prior=prior) == prior


def test_a_handful_of_rows_can_not_swing_the_calibration() -> None:
    scores = np.array([[0.0, 1.0]] * 5)
    found = calibrate(scores, np.zeros(5, np.int64))
    assert found.temperature > 0 and abs(found.bias[1]) < 0.5


def test_brier_of_certain_right_and_wrong_answers() -> None:
    """Two rows: one right at 1.0 (0), one wrong at 1.0 (1): mean 0.5."""
    assert brier(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([1, 0])) == 0.5


# --- study --------------------------------------------------------------------------------------------------------------------


def bowl(params: Params, report: Report) -> float:
    score = (params["x"] - 0.3) ** 2
    for epoch in range(4):
        report(epoch, score)
    return score


def test_a_study_starts_from_the_last_ones_best(tmp_path: Path) -> None:
    space, journal = {"x": Range(0.0, 1.0)}, tmp_path / "studies" / "journal.log"
    best, trials = search("adult", bowl, space, first={"x": 0.9}, trials=8, seed=1, storage=journal)
    assert trials[0].params == {"x": 0.9} and len(trials) == 8
    again, later = search("adult", bowl, space, first={"x": 0.9}, trials=2, seed=2, storage=journal)
    assert later[0].params == pytest.approx(best) and later[1].params == {"x": 0.9}
    assert bowl(again, lambda *_: None) <= bowl(best, lambda *_: None) + 1e-12
    _, strangers = search("other", bowl, space, first={"x": 0.5}, trials=1, seed=1, storage=journal)
    assert strangers[0].params == {"x": 0.5}


def test_hopeless_trials_are_pruned_and_kept_on_record() -> None:
    def steep(params: Params, report: Report) -> float:
        for epoch in range(6):
            report(epoch, params["x"])
        return params["x"]

    _, trials = search("adult", steep, {"x": Range(0.0, 1.0)}, first={"x": 0.0}, trials=8, seed=3)
    states = [trial.state for trial in trials]
    assert "pruned" in states and set(states) <= {"complete", "pruned"}
    assert all((trial.score is None) == (trial.state == "pruned") for trial in trials)


# --- tune ---------------------------------------------------------------------------------------------------------------------


def frame(
    rows: list[dict[str, Any]], problem: Problem, *, split: str, labelled: float, origin: str = "outcome"
) -> pl.DataFrame:
    contents = [canonical({name: row[name] for name in problem.inputs if row[name] is not None}) for row in rows]
    return pl.DataFrame(
        {
            "id": [f"{split}-{labelled:g}-{i}" for i in range(len(rows))],
            "content": contents,
            "groups": [canonical(problem.buckets(row)).decode() for row in rows],
            "target": [row["income"] for row in rows],
            "origin": [origin] * len(rows),
            "labelled_at": [labelled] * len(rows),
            "split": [split] * len(rows),
            "weight": [1.0] * len(rows),
        }
    )


@pytest.fixture(scope="module")
def tuned(adult: list[dict[str, Any]], problem: Problem, policy: Policy) -> Tuned:
    trusted = frame(adult[:500], problem, split="trusted", labelled=1.0)
    return tune(problem, policy, trusted, trusted.clear(), None, seed=3, threads=1)


@pytest.fixture(scope="module")
def round_one(adult: list[dict[str, Any]], problem: Problem) -> tuple[pl.DataFrame, pl.DataFrame]:
    samples = [
        frame(adult[:500], problem, split="trusted", labelled=1.0),
        frame(adult[500:2500], problem, split="train", labelled=2.0),
    ]
    return pl.concat(samples), frame(adult[2500:2900], problem, split="validation", labelled=2.0)


def test_genesis_learns_from_trusted_rows_only(
    adult: list[dict[str, Any]], problem: Problem, policy: Policy, tuned: Tuned
) -> None:
    trusted = frame(adult[:500], problem, split="trusted", labelled=1.0)
    flood = frame(adult[500:900], problem, split="train", labelled=2.0)
    again = tune(problem, policy, pl.concat([trusted, flood]), trusted.clear(), None, seed=3, threads=1)
    assert again.model.payload == tuned.model.payload and again.rows == 500


def test_more_outcomes_make_a_better_model_and_the_same_call_the_same_bytes(
    adult: list[dict[str, Any]], problem: Problem, policy: Policy, tuned: Tuned,
    round_one: tuple[pl.DataFrame, pl.DataFrame],
) -> None:  # fmt: skip
    seen: list[str] = []
    one, again = (
        tune(
            problem, policy, *round_one, tuned.model, seed=3, trials=2, threads=1,
            progress=lambda done, of, what: seen.append(f"{done}/{of} {what}"),
        )
        for _ in range(2)
    )  # fmt: skip
    assert one.model.payload == again.model.payload and one.scores == again.scores and seen
    assert set(one.scores) == {"parent", "fast", "slow"} and one.origin == min(("fast", "slow"), key=lambda k: one.scores[k])
    assert one.model.base == tuned.model.base, "the encoder is frozen at genesis"
    later = adult[3000:9000]
    inputs = [{name: row[name] for name in problem.inputs} for row in later]
    truth = np.array([row["income"] == problem.positive for row in later])
    after, before = (
        float(((model.predict(inputs).probabilities[:, model.positive] - truth) ** 2).mean())
        for model in (one.model, tuned.model)
    )
    assert after < before
    assert Model.from_files(one.model.to_files()).payload == one.model.payload


def test_without_enough_outcomes_trusted_rows_judge_and_do_not_teach(
    problem: Problem, policy: Policy, tuned: Tuned, round_one: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    samples, validation = round_one
    hearsay = validation.with_columns(origin=pl.lit("correction"))
    found = tune(problem, policy, samples, hearsay, tuned.model, seed=3, trials=1, threads=1)
    again = tune(problem, policy, samples, validation.head(3), tuned.model, seed=3, trials=1, threads=1)
    assert found.model.payload == again.model.payload


def test_tune_refuses_nothing_and_rows_that_judge(
    problem: Problem, policy: Policy, tuned: Tuned, round_one: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    samples, validation = round_one
    with pytest.raises(DataError, match="got none"):
        tune(problem, policy, samples.clear(), validation, tuned.model, seed=1, trials=1)
    with pytest.raises(DataError, match="validation rows"):
        tune(problem, policy, pl.concat([samples, validation]), validation, tuned.model, seed=1, trials=1)
    with pytest.raises(DataError, match="trusted rows"):
        tune(problem, policy, samples.filter(pl.col("split") == "train"), validation, None, seed=1, trials=1)
