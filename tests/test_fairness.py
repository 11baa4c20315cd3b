"""Rankings, calibration and disparities: values as fairlearn and scikit-learn have them, intervals that hold."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from truing.tasks.statistics.fairness import Rate, change, difference, rate_of, ratio
from truing.tasks.statistics.ranking import auroc, auroc_drop, error, rank
from truing.tasks.statistics.reliability import ece


def scored(rng: np.random.Generator, n: int, apart: float = 1.0) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    positive = rng.random(n) < 0.3
    return positive, rng.normal(apart * positive, 1.0)


# --- ranking ------------------------------------------------------------------------------------------------------------------


def test_auroc_is_scikit_learns_with_ties_and_weights_too() -> None:
    roc_auc_score = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle").roc_auc_score
    rng = np.random.default_rng(1)
    positive, p = scored(rng, 700)
    weights = rng.uniform(1.0, 9.0, 700)
    assert rank(positive, p).value == pytest.approx(roc_auc_score(positive, p), abs=1e-12)
    assert rank(positive, np.round(p)).value == pytest.approx(roc_auc_score(positive, np.round(p)), abs=1e-12)
    weighted = roc_auc_score(positive, p, sample_weight=weights)
    assert rank(positive, p, weights).value == pytest.approx(weighted, abs=1e-12)


def test_delongs_variance_is_the_mean_over_all_pairs_worked_out_the_long_way() -> None:
    rng = np.random.default_rng(2)
    positive, p = scored(rng, 60)
    wins = np.sign(p[positive][:, None] - p[~positive][None, :]) / 2 + 0.5
    by_hand = wins.mean(axis=1).var(ddof=1) / positive.sum() + wins.mean(axis=0).var(ddof=1) / (~positive).sum()
    assert error(rank(positive, p).influence) ** 2 == pytest.approx(by_hand, rel=1e-12)


def test_paired_interval_of_two_aurocs_covers_and_is_narrower_than_an_unpaired_one() -> None:
    """600 samples of two models that share most of their noise; the truth is that they rank alike."""
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(600):
        positive, shared = scored(rng, 300)
        first, second = (rank(positive, shared + rng.normal(0, 0.5, 300)) for _ in range(2))
        drop = auroc_drop(first, second)
        inside += drop.low <= 0.0 <= drop.high
    assert 0.925 <= inside / 600 <= 0.975
    wide, one = auroc(first), auroc_drop(first, second)
    assert one.high - one.low < 0.8 * (wide.high - wide.low)


def test_rows_of_one_subject_count_once() -> None:
    """Every row three times is no more evidence."""
    rng = np.random.default_rng(4)
    positive, p = scored(rng, 200)
    thrice, subjects = np.tile(np.arange(200), 3), np.tile(np.arange(200), 3)
    once, again = auroc(rank(positive, p)), auroc(rank(positive[thrice], p[thrice]), subjects=subjects)
    naive = auroc(rank(positive[thrice], p[thrice]))
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.02)
    assert naive.high - naive.low < 0.65 * (once.high - once.low)


def test_a_perfect_ranking_is_not_certain_and_nonsense_is_not_estimable() -> None:
    positive = np.array([True] * 10 + [False] * 90)
    perfect = auroc(rank(positive, positive.astype(float)))
    assert perfect.value == perfect.high == 1.0 and perfect.low < 0.8
    assert auroc(rank(positive, np.where(positive, np.nan, 0.5))).value is None
    assert auroc(rank(np.zeros(5, dtype=bool), np.ones(5))).value is None


# --- calibration --------------------------------------------------------------------------------------------------------------


def test_a_calibrated_model_has_hardly_any_ece_where_the_plug_in_sees_much() -> None:
    """The plug-in ECE of a perfect model on 500 rows is about 6 points, all of it noise."""
    rng = np.random.default_rng(5)
    values, plug_in, from_zero = [], [], 0
    for _ in range(200):
        p = np.sort(rng.uniform(0.05, 0.95, 500))
        positive = rng.random(500) < p
        one = ece(positive, p)
        values.append(one.value)
        plug_in.append(np.mean([abs(np.mean(p[b] - positive[b])) for b in np.array_split(np.arange(500), 15)]))
        from_zero += one.low == 0.0
    assert np.mean(plug_in) > 0.05 and np.mean(values) < 0.3 * np.mean(plug_in)
    assert from_zero / 200 >= 0.95


@pytest.mark.parametrize("off", [0.04, 0.1])
def test_ece_interval_covers_the_true_error(off: float) -> None:
    """Truth: the model says p, the world is p − off everywhere, so the ECE is `off`."""
    rng = np.random.default_rng(6)
    inside, values = 0, []
    for _ in range(200):
        p = rng.uniform(0.2, 0.9, 2000)
        one = ece(rng.random(2000) < p - off, p)
        values.append(one.value)
        inside += one.low <= off <= one.high
    assert inside / 200 >= 0.9
    assert np.mean(values) == pytest.approx(off, abs=0.008)


def test_ece_needs_rows_and_probabilities() -> None:
    assert ece(np.ones(30, dtype=bool), np.ones(30)).value is None
    p = np.full(400, 0.5)
    p[0] = math.nan
    assert ece(np.ones(400, dtype=bool), p).value is None


# --- disparities --------------------------------------------------------------------------------------------------------------


def test_differences_and_ratios_are_fairlearns() -> None:
    metrics = pytest.importorskip("fairlearn.metrics", reason="fairlearn is the oracle")
    rng = np.random.default_rng(7)
    group = rng.choice(["a", "b", "c"], 3000, p=[0.5, 0.3, 0.2])
    positive = rng.random(3000) < 0.3
    answer = rng.random(3000) < 0.2 + 0.4 * positive + 0.05 * (group == "b") - 0.08 * (group == "c")
    rates = {g: rate_of(answer[group == g].astype(float), np.ones(int((group == g).sum()))) for g in "abc"}
    tpr = {g: rate_of((answer & positive)[group == g].astype(float), positive[group == g].astype(float)) for g in "abc"}
    fpr = {g: rate_of((answer & ~positive)[group == g].astype(float), (~positive)[group == g].astype(float)) for g in "abc"}
    told = {"sensitive_features": group}
    assert difference([rates]).value == pytest.approx(metrics.demographic_parity_difference(positive, answer, **told))
    assert ratio([rates]).value == pytest.approx(metrics.demographic_parity_ratio(positive, answer, **told))
    assert difference([tpr, fpr]).value == pytest.approx(metrics.equalized_odds_difference(positive, answer, **told))
    assert ratio([tpr, fpr]).value == pytest.approx(metrics.equalized_odds_ratio(positive, answer, **told))
    for one in (difference([rates]), ratio([rates]), difference([tpr, fpr]), ratio([tpr, fpr])):
        assert one.low < one.value < one.high


def test_interval_of_the_largest_difference_holds_though_the_extremes_were_picked() -> None:
    """Five equal groups: the picked difference is never 0, and the interval still says that it may be."""
    rng = np.random.default_rng(8)
    zero, over = 0, 0
    for _ in range(200):
        seen = rng.binomial(400, 0.3, 5) / 400
        one = difference([{str(i): Rate(float(v), 400.0) for i, v in enumerate(seen)}])
        other = ratio([{str(i): Rate(float(v), 400.0) for i, v in enumerate(seen)}])
        zero += one.low == 0.0
        over += other.high == 1.0
    assert zero / 200 >= 0.94 and over / 200 >= 0.94


def test_change_of_a_difference_is_paired() -> None:
    """The same rows twice: no change, and an interval around it that shrinks as the models move together."""
    before = [{"a": Rate(0.5, 900.0), "b": Rate(0.4, 900.0)}]
    after = [{"a": Rate(0.52, 900.0), "b": Rate(0.36, 900.0)}]
    loose, tight = (change(before, after, [{"a": rho, "b": rho}]) for rho in (0.0, 0.9))
    assert loose.value == tight.value == pytest.approx(0.06)
    assert loose.low < 0.0 < tight.low
    assert tight.high - tight.low < 0.5 * (loose.high - loose.low)


def test_repeated_subjects_and_weights_count_as_fewer_rows() -> None:
    num, den = np.array([1.0, 0.0] * 100), np.ones(200)
    assert rate_of(num, den).n == 200
    assert rate_of(np.repeat(num, 3), np.ones(600), subjects=np.repeat(np.arange(200.0), 3)).n == pytest.approx(200)
    assert rate_of(num, den, weights=np.array([1.0, 1.0, 9.0, 9.0] * 50)).n < 130
    assert rate_of(num, np.zeros(200)) is None
