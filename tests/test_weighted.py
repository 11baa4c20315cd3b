"""Paired drops from a labelled sample of a pool: numbers by hand, agreement with the plain bounds, validity by simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from truing.tasks.errors import DataError
from truing.tasks.evaluation.scores import PRIOR, Scores
from truing.tasks.statistics.cells import ALL
from truing.tasks.statistics.means import likelihood_mean_upper
from truing.tasks.statistics.multiplicity import joint_lower
from truing.tasks.statistics.paired import lower, upper
from truing.tasks.statistics.weighted import Labels, below, check, error_bounds, error_of, guessed, likelihood_root


def scores(
    positive: list[int] | np.ndarray,
    champion: list[int] | np.ndarray,
    candidate: list[int] | np.ndarray,
    **more: object,
) -> Scores:
    y, a, b = (np.asarray(one, dtype=bool) for one in (positive, champion, candidate))
    n = len(y)
    return Scores(
        rows="r",
        positive=y & np.asarray(more.get("judged", np.ones(n, dtype=bool)), dtype=bool),
        judged=np.asarray(more.pop("judged", np.ones(n, dtype=bool)), dtype=bool),
        subjects=np.asarray(more.pop("subjects", np.arange(n)), dtype=np.int64),
        slices={ALL: np.ones(n, dtype=bool)},
        probability={"candidate": b * 0.5 + 0.25, "champion": a * 0.5 + 0.25, PRIOR: np.full(n, 0.5)},
        answer={"candidate": b, "champion": a, PRIOR: np.ones(n, dtype=bool)},
        **more,  # type: ignore[arg-type]
    )


def population(n: int, rng: np.random.Generator, *, churn: float = 0.08, lost: float = 0.0) -> tuple[np.ndarray, ...]:
    """Truth and two answers; `lost` is the true drop in TPR: positives that the candidate alone gives up."""
    y = rng.random(n) < 0.3
    base = np.where(rng.random(n) < 0.85, y, ~y)
    a, b = (np.where(rng.random(n) < churn / 2, ~base, base) for _ in range(2))
    right = float((1 - churn / 2) * 0.85 + churn / 2 * 0.15)
    return y, a, b & ~(y & (rng.random(n) < lost / right))


def sampled(y: np.ndarray, a: np.ndarray, b: np.ndarray, rng: np.random.Generator, *, few: float, many: float) -> Scores:
    chance = np.where(a != b, many, few)
    drawn = rng.random(len(y)) < chance
    return scores(y, a, b, judged=drawn, drawn=drawn, weights=1 / chance)


def test_a_census_says_what_counting_says() -> None:
    """With every inclusion probability at one, drop and rates are those of the plain pair, and the bounds nearly."""
    rng = np.random.default_rng(1)
    y, a, b = population(2000, rng)
    plain, census = scores(y, a, b), scores(y, a, b, weights=np.ones(2000))
    for metric in ("accuracy", "tpr", "fpr", "brier"):
        one, other = plain.pair(ALL, metric, "champion"), census.pair(ALL, metric, "champion")
        assert other.drop == pytest.approx(one.drop, abs=1e-12)
        assert (other.reference, other.candidate, other.n) == (
            pytest.approx(one.reference),
            pytest.approx(one.candidate),
            one.n,
        )
        assert upper(other, 0.01).value == pytest.approx(upper(one, 0.01).value, abs=2e-3)
        assert lower(other, 0.01).value == pytest.approx(lower(one, 0.01).value, abs=2e-3)
        assert census.value("champion", metric, census.mask(ALL)) == pytest.approx(one.reference)


def test_a_drop_by_hand() -> None:
    """Eight rows. The two on which the models disagree are known, three of the six on which they agree (weight 2) were read.

    Accuracy: both known ones were right and are wrong, so 2/8 whatever the unread ones are. TPR: one of them is positive, one
    lost. Few labels are known, so the guess is the mean of all: (1 + 0 + 2·2)/(1 + 1 + 3·2) = 5/8. The positives are then
    1 + 0 + Σ over six of the guess + 2·Σ over three read of (y − guess) = 1 + 6·5/8 + 2·(2 − 15/8) = 5.
    """
    y, a, b = [1, 0, 1, 1, 0, 0, 0, 1], [1, 0, 1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 0, 1, 1, 0]
    judged = np.array([1, 1, 1, 1, 1, 0, 0, 0], dtype=bool)
    known = replace(scores(y, a, b, judged=judged), weights=np.array([1, 1, 2, 2, 2, 2, 2, 2.0]))
    assert known.pair(ALL, "accuracy", "champion").drop == pytest.approx((1 + 1) / 8)
    tpr = known.pair(ALL, "tpr", "champion")
    assert tpr.drop == pytest.approx(1 / 5)
    assert known.base_rate(known.mask(ALL)) == pytest.approx(5 / 8)


def test_rows_on_which_both_agree_add_nothing_to_a_drop_of_accuracy() -> None:
    rng = np.random.default_rng(2)
    y, a, b = population(4000, rng)
    disagree_only = scores(y, a, b, judged=a != b, weights=np.where(a != b, 1.0, 50.0))
    whole = scores(y, a, b, weights=np.ones(4000))
    one, other = disagree_only.pair(ALL, "accuracy", "champion"), whole.pair(ALL, "accuracy", "champion")
    assert one.drop == pytest.approx(other.drop)
    assert upper(one, 0.01).value == pytest.approx(upper(other, 0.01).value, abs=1e-5)


def test_labels_that_should_be_there_count_as_the_worst() -> None:
    """Twenty rows drawn and not read, on which the models disagree, widen both bounds by twenty rows' worth."""
    rng = np.random.default_rng(3)
    y, a, b = population(3000, rng)
    missing = np.zeros(3000, dtype=bool)
    missing[np.flatnonzero(a != b)[:20]] = True
    full = scores(y, a, b, weights=np.ones(3000)).pair(ALL, "accuracy", "champion")
    holes = scores(y, a, b, judged=~missing, drawn=np.ones(3000, dtype=bool), weights=np.ones(3000))
    open_ = holes.pair(ALL, "accuracy", "champion")
    assert open_.slack == pytest.approx(20 / 3000, abs=1e-9)
    assert upper(open_, 0.01).value > upper(full, 0.01).value
    assert upper(open_, 0.01).value <= upper(full, 0.01).value + 40 / 3000 + 1e-3
    agree = np.zeros(3000, dtype=bool)
    agree[np.flatnonzero(a == b)[:500]] = True
    harmless = scores(y, a, b, judged=~agree, drawn=np.ones(3000, dtype=bool), weights=np.ones(3000))
    assert upper(harmless.pair(ALL, "accuracy", "champion"), 0.01).value == pytest.approx(upper(full, 0.01).value, abs=1e-5)


def test_a_reading_error_is_taken_out() -> None:
    """Drop and base rate with 10 % of the labels turned, corrected by what double reading says, are those of the truth."""
    rng = np.random.default_rng(4)
    y, a, b = population(60_000, rng, lost=0.1)
    first, second = (y ^ (rng.random(60_000) < 0.1) for _ in range(2))
    differed = int((first != second)[:20_000].sum())
    read = scores(first, a, b, weights=np.ones(60_000), noisy=np.ones(60_000, dtype=bool), doubles=(20_000, differed))
    truth = scores(y, a, b).pair(ALL, "tpr", "champion")
    raw = scores(first, a, b).pair(ALL, "tpr", "champion")
    found = read.pair(ALL, "tpr", "champion")
    assert found.drop == pytest.approx(truth.drop, abs=0.012)
    assert abs(raw.drop - truth.drop) > 0.02
    assert read.base_rate(read.mask(ALL)) == pytest.approx(float(y.mean()), abs=0.01)
    assert lower(found, 0.025).value < truth.drop < upper(found, 0.025).value


def test_error_rates() -> None:
    assert error_of(0.0) == 0.0
    assert error_of(2 * 0.07 * 0.93) == pytest.approx(0.07)
    assert error_bounds((0, 0), 0.01) == (0.0, 0.0, 0.0)
    estimate, low, high = error_bounds((500, 48), 0.01)
    assert low < estimate < high
    assert estimate == pytest.approx(error_of(48 / 500))


def test_the_likelihood_root_is_the_bound_seen_from_the_other_side() -> None:
    """At the upper bound of the mean, the values less that bound have a signed root of exactly −z."""
    values = np.concatenate([np.full(200, -1.0), np.full(150, 0.5), np.full(70, 2.0)])
    bound = likelihood_mean_upper(values, 0.01)
    root = likelihood_root(values - bound, np.ones(len(values)))
    assert float(root) == pytest.approx(-2.3263, abs=1e-3)
    assert float(likelihood_root(np.array([-1.0, -2.0]), np.ones(2))) == -math.inf
    batch = likelihood_root(np.array([[-1.0, 2.0], [1.0, -2.0]]), np.array([[3.0, 1.0], [3.0, 1.0]]))
    assert batch[0] == pytest.approx(-batch[1])


def test_wrong_passes_and_wrong_blocks_stay_within_the_level() -> None:
    """400 samples at a true TPR drop of 8 points: neither 5 % bound excludes it in more than 8.5 % (5 % and three errors).

    Once with a plan (all that disagree, 10 % of the rest), once with a random audit of 20 %.
    """
    for few, many in ((0.1, 1.0), (0.2, 0.2)):
        rng, low, high = np.random.default_rng(5), 0, 0
        for _ in range(400):
            design = sampled(*population(5000, rng, lost=0.08), rng, few=few, many=many).pair(ALL, "tpr", "champion").design
            assert design
            low += below(design, 0.08, 0.0, 0.05)
            high += below(design.reversed(), -0.08, 0.0, 0.05)
        assert low / 400 <= 0.085, (few, many, low)
        assert high / 400 <= 0.085, (few, many, high)


def test_the_plan_says_more_than_as_many_random_labels() -> None:
    rng = np.random.default_rng(6)
    y, a, b = population(30_000, rng)
    plan = sampled(y, a, b, rng, few=0.02, many=1.0)
    random = sampled(y, a, b, rng, few=plan.n / 30_000, many=plan.n / 30_000)
    assert plan.n == pytest.approx(random.n, rel=0.1)
    assert plan.pair(ALL, "tpr", "champion").se < 0.6 * random.pair(ALL, "tpr", "champion").se


def test_two_lost_rows_of_two_are_no_certain_harm() -> None:
    y, a, b = np.ones(3000, dtype=bool), np.ones(3000, dtype=bool), np.ones(3000, dtype=bool)
    b[:2] = False
    pair = scores(y, a, b, weights=np.ones(3000)).pair(ALL, "tpr", "champion")
    joint = joint_lower([pair], subjects=3000, level=0.02, draws=10_000, rng=np.random.default_rng(1))
    assert joint.low[0] <= 0.0


def test_rows_of_one_subject_are_summed_first() -> None:
    rng = np.random.default_rng(7)
    y, a, b = (np.repeat(one, 4) for one in population(1500, rng, churn=0.2))
    alone = scores(y, a, b, weights=np.ones(6000)).pair(ALL, "accuracy", "champion")
    people = scores(y, a, b, weights=np.ones(6000), subjects=np.repeat(np.arange(1500), 4)).pair(ALL, "accuracy", "champion")
    assert people.se == pytest.approx(2 * alone.se, rel=0.02)
    assert len(people.units) == 1500


def test_impossible_labels_are_refused() -> None:
    flat = np.zeros(3)
    good = Labels(given=flat, known=flat > 1, drawn=flat > 1, weights=np.ones(3), noisy=flat > 1, guess=flat)
    check(good)
    with pytest.raises(DataError, match="at least 1"):
        check(replace(good, weights=np.array([1.0, 0.5, 2.0])))
    with pytest.raises(DataError, match="drawn rows only"):
        check(replace(good, known=np.array([True, False, False])))
    assert guessed(np.zeros(3, dtype=np.int64), good).tolist() == [0.5, 0.5, 0.5]
