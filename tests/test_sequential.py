"""Many looks and many resamples: bounds that hold at every time at once, true resamples, the pass rule for many tables."""

from __future__ import annotations

import numpy as np
import pytest
from test_statistics import PASSING, world

from truing.tasks.errors import DataError
from truing.tasks.statistics.multiplicity import critical_value
from truing.tasks.statistics.proportions import (
    discordance_tail,
    discordance_tails,
    drop_upper,
    drop_within,
    profile,
    profile_many,
    unseen_harm,
)
from truing.tasks.statistics.resampling import joint_critical, kinds, resampled
from truing.tasks.statistics.sequential import betting_lower, normal_lower

# --- at every time at once ----------------------------------------------------------------------------------------------------


def running(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = np.arange(1, len(x) + 1, dtype=float)
    mean = np.cumsum(x) / n
    return mean, np.cumsum(x * x) / n - mean**2, n


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_two_thousand_looks_are_wrong_together_no_more_often_than_one_may_be(share: float) -> None:
    """100 runs looked at after each of 2,000 rows, level 5 %; the bound made for one look is wrong four times as often."""
    rng = np.random.default_rng(1)
    betting = normal = single = 0
    for _ in range(100):
        x = (rng.random(2000) < share).astype(float)
        mean, variance, n = running(x)
        late = n >= 250
        betting += bool((betting_lower(x, 0.05) > share).any())
        normal += bool((normal_lower(mean, variance, n, 0.05) > share)[late].any())
        single += bool((mean - 1.645 * np.sqrt(variance / n) > share)[late].any())
    assert betting <= 10 and normal <= 10  # 5 expected at most; 11 or more would be seen once in a hundred times
    assert single >= 12


def test_the_bounds_close_in_on_the_mean() -> None:
    x = (np.random.default_rng(2).random(20_000) < 0.2).astype(float)
    mean, variance, n = running(x)
    normal = normal_lower(mean, variance, n, 0.05)
    betting = betting_lower(x, 0.05)
    assert (np.diff(betting) >= 0).all() and 0.17 < betting[-1] < 0.2
    assert 0.185 < normal[-1] < 0.2 and normal[0] == -np.inf
    shifted = betting_lower(2 * x - 1, 0.05, least=-1.0, most=1.0)
    assert shifted == pytest.approx(2 * betting - 1)


def test_values_outside_the_range_are_refused() -> None:
    with pytest.raises(DataError, match=r"0\.0\.\.1\.0"):
        betting_lower(np.array([0.5, 1.2]), 0.05)
    assert len(betting_lower(np.zeros(0), 0.05)) == 0


# --- true resamples -----------------------------------------------------------------------------------------------------------


def test_kinds_are_rows_alike_in_every_column() -> None:
    rng = np.random.default_rng(3)
    columns = [rng.integers(0, 3, 500), rng.random(500) < 0.5, rng.choice(["a", "b"], 500)]
    kind, first = kinds(*columns)
    assert len(first) == 12
    for column in columns:
        assert (column[first][kind] == column).all()


def test_resampling_subjects_directly_gives_the_critical_value_of_the_multiplier_draws() -> None:
    pairs, count = world(11), 500
    num = np.stack([one.influence(count) * count + one.drop for one in pairs], axis=1)  # linear: a mean of one value a subject
    estimate = np.array([one.drop for one in pairs])
    drops = resampled(num, np.ones_like(num), np.ones(count), draws=8_000, rng=np.random.default_rng(4))
    assert drops.shape == (8_000, len(pairs))
    assert drops.std(axis=0) == pytest.approx([one.se for one in pairs], rel=0.04)
    fast = critical_value(pairs, subjects=count, level=0.05, draws=20_000, rng=np.random.default_rng(0))
    assert joint_critical(drops, estimate, 0.05) == pytest.approx(fast, abs=0.12)


# --- many tables --------------------------------------------------------------------------------------------------------------


def test_the_pass_rule_for_many_tables_is_the_one_of_a_single_one() -> None:
    rng = np.random.default_rng(5)
    n = rng.integers(1, 1500, 400)
    worse = rng.binomial(n, rng.random(400) * 0.15)
    better = rng.binomial(n - worse, rng.random(400) * 0.1)
    tables = [tuple(map(int, one)) for one in zip(worse, better, n, strict=True)]
    for limit, level in ((0.05, PASSING), (0.02, 0.001)):
        one_by_one = [drop_upper(*one, level)[0] <= limit for one in tables]
        assert drop_within(worse, better, n, limit, level).tolist() == one_by_one
        assert 20 < sum(one_by_one) < 380
    assert discordance_tails(worse, better) == pytest.approx([discordance_tail(b, c) for b, c, _ in tables])
    assert profile_many(*(np.array(x, dtype=float) for x in (worse, better, n)), 0.03) == pytest.approx(
        [profile(*one, 0.03) for one in tables]
    )
    assert not drop_within(0, 0, 0, 0.5, 0.5)


def test_unseen_harm_weighs_half_a_row_and_less_the_more_was_won_back() -> None:
    assert unseen_harm(0) == 0.5 and unseen_harm(3) == 0.25
    assert drop_upper(5, 9, 400, PASSING)[0] < drop_upper(5, 8, 400, PASSING)[0] < drop_upper(5, 0, 400, PASSING)[0]
