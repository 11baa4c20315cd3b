"""The gate's arithmetic: cells, paired bounds, max-T, intervals. Numbers come by hand, by enumeration or from fairlearn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from truing.tasks import policy as policy_module
from truing.tasks.errors import DataError
from truing.tasks.statistics.cells import HIGHER_IS_BETTER, METRICS, PROPORTIONS, cells, ratio, slice_masks
from truing.tasks.statistics.intervals import gap, mean_interval, rate_interval
from truing.tasks.statistics.means import bernstein_upper, likelihood_mean_upper, mean_upper
from truing.tasks.statistics.multiplicity import critical_value, joint_lower
from truing.tasks.statistics.paired import Paired, interval, lower, needed, pair, upper
from truing.tasks.statistics.proportions import (
    binomial_tail,
    clopper_pearson,
    discordance_tail,
    drop_upper,
    likelihood_upper,
    profile,
    tail_of,
    z_of,
)
from truing.tasks.statistics.shift import psi, psi_floor

PASSING = 0.008


def people(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities, answers and sexes of n made-up people."""
    rng = np.random.default_rng(seed)
    y, p = rng.random(n) < 0.3, rng.random(n)
    return y, p, p > 0.5, np.where(rng.random(n) < 0.4, "Female", "Male")


def binary(worse: int, better: int, n: int, *, repeat: int = 1) -> Paired:
    """n rows of which `worse` were lost and `better` won, each standing `repeat` times under one subject."""
    base = np.array([1.0] * worse + [0.0] * better + [1.0] * (n - worse - better))
    new = np.array([0.0] * worse + [1.0] * better + [1.0] * (n - worse - better))
    base, new, codes = (np.repeat(x, repeat) for x in (base, new, np.arange(n)))
    den = np.ones(len(base))
    return pair((base, den), (new, den), mask=den > 0, subjects=codes.astype(np.int64), higher_is_better=True, proportion=True)


def continuous(values: np.ndarray) -> Paired:
    """A lower-is-better metric whose per-row drop is `values`."""
    den = np.ones(len(values))
    return pair(
        (np.zeros(len(values)), den),
        (values, den),
        mask=den > 0,
        subjects=np.arange(len(values)),
        higher_is_better=False,
        proportion=False,
    )


# --- cells --------------------------------------------------------------------------------------------------------------------


def test_cells_give_the_metrics_of_five_people_counted_by_hand() -> None:
    """Truth + + − − −, p .9 .4 .6 .1 .2, cut at .5: one hit, one miss, one false alarm, two right refusals.

    Brier (.01 + .36 + .36 + .01 + .04)/5 = .156; accuracy 3/5; TPR 1/2; FPR 1/3; selected 2/5.
    """
    y = np.array([True, True, False, False, False])
    p = np.array([0.9, 0.4, 0.6, 0.1, 0.2])
    values = {metric: ratio(*cells(metric, y, p, p > 0.5)) for metric in METRICS}
    assert values == pytest.approx({"brier": 0.156, "accuracy": 0.6, "tpr": 0.5, "fpr": 1 / 3, "selection_rate": 0.4})


def test_rates_and_group_gaps_agree_with_fairlearn() -> None:
    from fairlearn.metrics import (
        MetricFrame,
        demographic_parity_difference,
        equalized_odds_difference,
        false_positive_rate,
        selection_rate,
        true_positive_rate,
    )

    y, p, answer, sex = people(3000, 1)
    masks = slice_masks([f'{{"sex": "{s}"}}' for s in sex])
    ours = {
        metric: {s: ratio(*cells(metric, y, p, answer), masks[f"sex={s}"]) for s in ("Female", "Male")}
        for metric in ("tpr", "fpr", "selection_rate")
    }
    oracle = {"tpr": true_positive_rate, "fpr": false_positive_rate, "selection_rate": selection_rate}
    frame = MetricFrame(metrics=oracle, y_true=y, y_pred=answer, sensitive_features=sex).by_group
    for metric in oracle:
        assert ours[metric] == pytest.approx(frame[metric].to_dict())
    gaps = {m: abs((v["Female"] or 0) - (v["Male"] or 0)) for m, v in ours.items()}
    assert gaps["selection_rate"] == pytest.approx(demographic_parity_difference(y, answer, sensitive_features=sex))
    assert max(gaps["tpr"], gaps["fpr"]) == pytest.approx(equalized_odds_difference(y, answer, sensitive_features=sex))


def test_statistics_and_policy_know_the_same_metrics() -> None:
    assert set(METRICS) == set(policy_module.METRICS) == set(HIGHER_IS_BETTER)
    assert not HIGHER_IS_BETTER["brier"] and not HIGHER_IS_BETTER["fpr"] and "brier" not in PROPORTIONS


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bad", [math.nan, 1.7, -0.1, math.inf])
def test_a_row_without_a_probability_spoils_every_metric_of_its_slice(metric: str, bad: float) -> None:
    y, p, answer, _ = people(50, 2)
    p[np.flatnonzero(y if metric == "tpr" else ~y)[0]] = bad
    assert ratio(*cells(metric, y, p, answer)) is None


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    y, p, answer, _ = people(3, 3)
    with pytest.raises(DataError, match="brier, accuracy"):
        cells("f1", y, p, answer)


def test_slices_cover_known_unseen_and_unknown_buckets() -> None:
    masks = slice_masks(['{"sex": "Female"}', "{}", None], {"sex": ["Female", "Male"]})
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "all": [True, True, True],
        "sex=Female": [True, False, False],
        "sex=Male": [False, False, False],
        "sex=unknown": [False, True, True],
    }


# --- bounds of proportions ----------------------------------------------------------------------------------------------------


def test_the_profile_likelihood_is_the_largest_over_the_nuisance_share() -> None:
    """Against a fine grid of the share that got better, for drops on both sides of the estimate."""
    for worse, better, n in ((12, 5, 300), (0, 7, 300), (9, 0, 260), (40, 60, 500), (300, 0, 300)):
        for drop in (-0.3, -0.02, 0.0, 0.01, 0.08, 0.4):
            q = np.linspace(max(0.0, -drop), (1.0 - drop) / 2.0, 200_001)[1:-1]
            with np.errstate(divide="ignore"):
                grid = worse * np.log(q + drop) + better * np.log(q)
                grid = grid + (n - worse - better) * np.log1p(-2 * q - drop)
            assert profile(worse, better, n, drop) == pytest.approx(float(np.nanmax(grid)), abs=2e-2)


def test_with_no_discordant_row_the_likelihood_bound_is_the_one_from_the_textbook() -> None:
    """The likelihood of a drop d is then (1 − d)^n, so −2n·log(1 − d) = z²."""
    assert likelihood_upper(0, 0, 1000, 0.025) == pytest.approx(1 - math.exp(-(z_of(0.025) ** 2) / 2000), abs=1e-8)


def test_bounds_are_symmetric_and_never_beyond_a_whole() -> None:
    one = binary(30, 10, 400)
    assert lower(one, 0.02).value == pytest.approx(-upper(one.reversed(), 0.02).value)
    assert lower(one, 0.02).value < one.drop < upper(one, 0.02).value
    for everything in (binary(300, 0, 300), binary(20, 0, 20), binary(0, 300, 300), binary(1, 0, 1)):
        low, high = interval(everything)
        assert -1.0 <= low <= high <= 1.0


def test_no_harm_seen_is_not_no_harm() -> None:
    for n in (1, 10, 100, 249, 250, 1000):
        bound = upper(binary(0, 0, n), PASSING).value
        assert bound >= min(1.0, 1 - PASSING ** (1 / n)) - 1e-6 if n < 250 else bound > 3.0 / n


def enumerate_level(n: int, limit: float, better: float, passes: Callable[[int, int], bool]) -> float:
    """Exact chance to pass at a true drop of `limit`: every table summed with its multinomial probability."""
    worse, total = better + limit, 0.0
    for c in range(n + 1):
        at_c = binomial_tail(c, n, better) - binomial_tail(c + 1, n, better)
        if at_c < 1e-9 and c > n * better:
            break
        most = next((b - 1 for b in range(n - c + 1) if not passes(b, c)), n - c)  # a pass at b is a pass below b
        if most >= 0:
            total += at_c * (1.0 - binomial_tail(most + 1, n - c, worse / (1.0 - better)))
    return total


@pytest.mark.parametrize(("n", "limit", "better"), [(40, 0.1, 0.0), (40, 0.2, 0.05), (120, 0.06, 0.02), (200, 0.05, 0.01)])
def test_below_250_rows_the_bound_is_exact(n: int, limit: float, better: float) -> None:
    assert enumerate_level(n, limit, better, lambda b, c: drop_upper(b, c, n, PASSING)[0] <= limit) <= PASSING


@pytest.mark.parametrize(
    ("n", "limit", "better"), [(250, 0.02, 0.0), (250, 0.06, 0.03), (600, 0.005, 0.0), (600, 0.01, 0.003), (2000, 0.01, 0.0)]
)
def test_from_250_rows_on_the_likelihood_bound_keeps_its_level_and_the_plain_one_does_not(
    n: int, limit: float, better: float
) -> None:
    """Nominal 0.8 %. At 600 rows and a limit of half a point, three rows of harm are expected: often none is seen."""
    assert enumerate_level(n, limit, better, lambda b, c: drop_upper(b, c, n, PASSING)[0] <= limit) <= 0.0090
    if (n, limit) == (600, 0.005):
        plain = enumerate_level(n, limit, better, lambda b, c: likelihood_upper(b, c, n, PASSING) <= limit)
        assert plain > 0.04


def test_at_a_true_drop_on_the_limit_at_most_one_candidate_in_a_hundred_passes() -> None:
    """2,000 candidates that lose exactly 6 points of TPR on 560 positives, 6 % discordant beyond that: nominal 0.8 %."""
    rng = np.random.default_rng(5)
    tables = rng.multinomial(560, [0.09, 0.03, 0.88], size=2000)
    passed = sum(drop_upper(int(b), int(c), 560, PASSING)[0] <= 0.06 for b, c, _ in tables)
    assert passed / 2000 <= 0.015


def test_an_equal_candidate_passes_with_the_power_that_the_rows_needed_promise() -> None:
    """At 8 % discordance; the promise is 80 %, the half row of unseen harm costs a little of it."""
    rng = np.random.default_rng(6)
    n = math.ceil(needed(binary(40, 40, 1000), 0.03, PASSING) or 0)
    assert 700 < n < 1000  # (2.41 + 0.84)² · 0.0805 / 0.03² = 945
    tables = rng.multinomial(n, [0.04, 0.04, 0.92], size=2000)
    passed = np.mean([drop_upper(int(b), int(c), n, PASSING)[0] <= 0.03 for b, c, _ in tables])
    assert 0.74 < passed < 0.86


def test_exact_tails_are_those_of_a_coin() -> None:
    """Ten of ten: 2^-10. Nine or more of ten: 11/1024. At least none: certain."""
    assert discordance_tail(10, 0) == pytest.approx(1 / 1024)
    assert discordance_tail(9, 1) == pytest.approx(11 / 1024)
    assert discordance_tail(0, 5) == 1.0
    assert clopper_pearson(0, 20, 0.025)[1] == pytest.approx(1 - 0.025 ** (1 / 20), abs=1e-9)
    assert clopper_pearson(20, 20, 0.025)[0] == pytest.approx(0.025 ** (1 / 20), abs=1e-9)
    assert tail_of(z_of(0.0008)) == pytest.approx(0.0008)


# --- bounds of means ----------------------------------------------------------------------------------------------------------


def test_empirical_likelihood_of_zeros_and_ones_is_the_binomial_likelihood() -> None:
    """Ten of a hundred: the root of 2·[10·log(.1/μ) + 90·log(.9/(1−μ))] = z² above .1."""
    bound = likelihood_mean_upper(np.array([0.0] * 90 + [1.0] * 10), 0.025)
    assert 2 * (10 * math.log(0.1 / bound) + 90 * math.log(0.9 / (1 - bound))) == pytest.approx(z_of(0.025) ** 2, rel=1e-5)


def test_empirical_likelihood_nears_the_normal_bound_with_many_rows() -> None:
    x = np.random.default_rng(7).normal(0.001, 0.05, 20_000)
    normal = x.mean() + z_of(PASSING) * x.std() / math.sqrt(len(x))
    assert likelihood_mean_upper(x, PASSING) == pytest.approx(normal, abs=2e-5)


def test_a_mean_of_constant_values_still_reckons_with_harm_unseen() -> None:
    assert upper(continuous(np.zeros(400)), PASSING).value > 0.001
    assert upper(continuous(np.zeros(400)), PASSING).method == "empirical likelihood"


def test_skewed_brier_differences_pass_at_their_limit_no_more_than_nominal() -> None:
    """Most rows barely move, one in fifty loses a lot (mean drop 0.005 = the limit): 1,000 candidates on 2,000 rows."""
    rng = np.random.default_rng(8)
    passed = 0
    for _ in range(1000):
        harmed = rng.random(2000) < 0.02
        x = np.where(harmed, 0.30, -0.001020408) + rng.normal(0, 0.02, 2000)
        passed += mean_upper(x, PASSING, worst=1.0, span=2.0)[0] <= 0.005
    assert passed / 1000 <= 0.012


def test_the_bernstein_bound_is_the_one_that_is_printed() -> None:
    """Values 0, 1, 0, 1 in a range of 2 at level .1: .5 + sqrt(2·(1/3)·log 20/4) + 7·2·log 20/(3·3)."""
    expected = 0.5 + math.sqrt(2 / 3 * math.log(20) / 4) + 14 * math.log(20) / 9
    assert bernstein_upper(np.array([0.0, 1.0, 0.0, 1.0]), 0.1, span=2.0) == pytest.approx(expected)
    assert math.isinf(bernstein_upper(np.array([0.1]), 0.1, span=2.0))
    assert upper(continuous(np.full(20, 0.01)), PASSING).method == "empirical Bernstein"


# --- subjects -----------------------------------------------------------------------------------------------------------------


def test_repeating_every_row_under_its_subject_adds_no_evidence() -> None:
    once, thrice = binary(30, 10, 600), binary(30, 10, 600, repeat=3)
    assert thrice.repeats and thrice.n == 1800 and thrice.drop == pytest.approx(once.drop)
    assert thrice.se == pytest.approx(once.se)
    bound = upper(thrice, PASSING)
    assert bound.method == "empirical likelihood by subject"
    assert bound.value == pytest.approx(upper(once, PASSING).value, abs=0.002)


def test_subjects_of_different_sizes_are_summed_and_their_error_is_that_of_resampling_them() -> None:
    """300 people with one to four rows each, whose rows go wrong together or not at all."""
    rng = np.random.default_rng(21)
    size = rng.integers(1, 5, 300)
    codes = np.repeat(np.arange(300), size)
    lost = (rng.random(300) < 0.1)[codes] & (rng.random(len(codes)) < 0.7)
    den = np.ones(len(codes))
    one = pair((den, den), (1.0 - lost, den), mask=den > 0, subjects=codes, higher_is_better=True, proportion=True)
    assert one.n == len(codes) and len(one.units) == 300
    assert one.drop == pytest.approx(lost.mean()) == pytest.approx(one.units.mean())
    sums = np.bincount(codes, weights=lost)
    drawn = rng.multinomial(300, np.full(300, 1 / 300), size=8000)
    assert one.se == pytest.approx(float(((drawn @ sums) / (drawn @ size)).std()), rel=0.04)
    shuffled = rng.permutation(len(codes))
    again = pair(
        (den, den), (1.0 - lost[shuffled], den), mask=den > 0, subjects=codes[shuffled], higher_is_better=True, proportion=True
    )
    assert again.se == pytest.approx(one.se) and upper(again, 0.01).value == pytest.approx(upper(one, 0.01).value)


def test_few_subjects_with_many_rows_say_little() -> None:
    bound = upper(binary(0, 0, 5, repeat=400), PASSING)
    assert bound.value == 1.0 and "by subject" in bound.method


def test_pairs_without_rows_or_numbers_are_not_estimable() -> None:
    empty, den = np.zeros(4), np.ones(4)
    codes = np.arange(4)
    options = {"subjects": codes, "higher_is_better": True, "proportion": True}
    nobody = pair((empty, den), (empty, den), mask=empty > 0, **options)
    broken = pair((den, den), (np.array([1, math.nan, 1, 1]), den), mask=den > 0, **options)
    for one in (nobody, broken):
        assert not one.estimable and one.why
        assert math.isnan(upper(one, 0.01).value) and math.isnan(lower(one, 0.01).value)
        assert needed(one, 0.05, 0.01) is None
    with pytest.raises(DataError, match="one denominator"):
        pair((den, den), (den, den * 2), mask=den > 0, **options)


# --- multiplicity -------------------------------------------------------------------------------------------------------------


def world(seed: int, n: int = 1500, subjects: int = 500) -> list[Paired]:
    """Two equally good models in eight overlapping slices, three rows a subject."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(subjects), n // subjects)
    right = rng.random(n) < 0.8
    churn = rng.random(n) < 0.1
    new = np.where(churn, rng.random(n) < 0.8, right).astype(float)
    base, den = np.where(churn, rng.random(n) < 0.8, right).astype(float), np.ones(n)
    group = rng.integers(0, 6, subjects)[codes]
    masks = [den > 0, group < 3, *(group == g for g in range(6))]
    options = {"subjects": codes, "higher_is_better": True, "proportion": True}
    return [pair((base, den), (new, den), mask=mask, **options) for mask in masks]


def test_the_joint_critical_value_is_that_of_resampling_the_subjects() -> None:
    """The Gaussian multiplier draws stand for 10,000 direct resamples of subjects on summed cells."""
    pairs, count = world(11), 500
    fast = critical_value(pairs, subjects=count, level=0.05, draws=20_000, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    influence = np.stack([one.influence(count) for one in pairs])
    weights = rng.multinomial(count, np.full(count, 1 / count), size=10_000).astype(float)
    errors = np.array([one.se for one in pairs])
    direct = float(np.quantile(((weights - 1.0) @ influence.T / errors).max(axis=1), 0.95))
    assert fast == pytest.approx(direct, abs=0.12)
    assert z_of(0.05) < fast < z_of(0.05 / len(pairs))


def test_asking_the_same_clause_twice_costs_nothing() -> None:
    one = world(12)[0]
    draw = lambda pairs: critical_value(pairs, subjects=500, level=0.02, draws=40_000, rng=np.random.default_rng(2))  # noqa: E731
    assert draw([one] * 6) == pytest.approx(z_of(0.02), abs=0.06)


def test_two_of_two_rows_lost_is_no_certain_harm() -> None:
    """Wald sees no error at all there; a fair coin does it in a quarter of the cases."""
    options = {"level": 0.02, "draws": 10_000}
    for worse in (1, 2, 5, 8):
        joint = joint_lower([binary(worse, 0, worse)], subjects=worse, rng=np.random.default_rng(0), **options)
        assert (joint.low[0] > 0) == (0.5**worse <= 0.02)
    few = joint_lower([continuous(np.full(30, 0.02))], subjects=30, rng=np.random.default_rng(0), **options)
    assert few.low[0] <= 0


def test_gross_harm_in_one_slice_is_seen_among_many() -> None:
    pairs = [*world(13), binary(60, 10, 400)]
    joint = joint_lower(pairs, subjects=500, level=0.02, draws=20_000, rng=np.random.default_rng(3))
    assert joint.low[-1] > 0.05 and (joint.low[:-1] < 0).all()


def test_equal_models_are_blocked_by_luck_no_more_often_than_the_level() -> None:
    """400 worlds of equal models, eight slices each: some joint lower bound is above zero in at most 5 % at level 2 %."""
    hits = 0
    for seed in range(400):
        pairs = world(1000 + seed, n=900, subjects=300)
        joint = joint_lower(pairs, subjects=300, level=0.02, draws=10_000, rng=np.random.default_rng(seed))
        hits += bool((joint.low > 0).any())
    assert hits / 400 <= 0.05


# --- intervals and shift ------------------------------------------------------------------------------------------------------


def test_rates_and_gaps_have_the_published_intervals() -> None:
    """Newcombe 1998: 81 of 263 has the score interval .2553 to .3662; 56/70 against 48/80 differs by .0524 to .3339."""
    one = rate_interval(81, 263)
    assert (one.low, one.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    both = gap(rate_interval(56, 70), rate_interval(48, 80))
    assert (both.value, both.low, both.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert gap(rate_interval(1, 2), rate_interval(0, 0)).value is None


def test_mean_intervals_widen_when_rows_share_subjects() -> None:
    x = np.random.default_rng(4).random(900) ** 2
    free, tied = mean_interval(x), mean_interval(np.repeat(x, 4), subjects=np.repeat(np.arange(900), 4))
    assert free.value == pytest.approx(tied.value) and (free.low, free.high) == pytest.approx((tied.low, tied.high))
    assert free.low is not None and free.high is not None and free.low < x.mean() < free.high
    sure = mean_interval(np.ones(100), bounds=(0.0, 1.0))
    assert sure.high == 1.0 and sure.low is not None and sure.low < 0.99
    assert mean_interval(np.array([])).value is None and mean_interval(np.array([0.1, math.nan])).value is None


def test_identical_columns_show_no_shift_and_moved_ones_do() -> None:
    rng = np.random.default_rng(9)
    x = rng.normal(size=4000)
    assert psi(x.tolist(), x.tolist()) == 0.0
    assert psi(x.tolist(), rng.normal(size=4000).tolist()) < 3 * psi_floor(4000, 4000)
    assert psi(x.tolist(), (x + 1.0).tolist()) > 0.5
    assert psi(["a", "b", None], ["a", "a", "c"] * 50) > 0.25
    assert math.isnan(psi([], [1.0]))
