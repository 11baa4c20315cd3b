"""What other gates say about the same data sets: a threshold on the point estimate, "worse by more than 5 %", percentiles.

- *threshold*: TFMA's change threshold. Its verdict compares the point estimate of each slice with the limit; the confidence
  interval that it also computes is not looked at (tensorflow/model-analysis, `evaluators/metrics_validator.py`).
- *worse by more than 5 %*: the same, relative to the champion's own value.
- *percentiles*: a paired bootstrap of the rows; pass = the upper percentile of every deciding clause at the gate's own level is
  inside the limit, block = a point estimate beyond it and a 95 % interval above zero.
All have the same ten deciding clauses; *of 32* means every clause decides.
"""

from __future__ import annotations

import counted_gate as counted
import eight_groups as eight
import numpy as np
from eight_groups import Floats, Harm

HIGHER = np.tile([True, True, False, True], 8)
SHAPES = ((500, 0.50, 0.05), (500, 0.25, 0.05), (2_000, 0.25, 0.05), *eight.FLOORS)


def fails(counts: eight.Counts, columns: np.ndarray, *, relative: bool) -> float:
    """Share of the data sets that a point estimate beyond the limit in one of the clauses refuses."""
    tables = counted.tables_of(counts)
    limit = eight.LIMIT * tables.champion if relative else np.full(tables.drop.shape, eight.LIMIT)
    return float((tables.drop > limit)[:, columns].any(axis=1).mean())


def percentile(
    rng: np.random.Generator, counts: eight.Counts, deciding: np.ndarray, level: float, draws: int
) -> tuple[float, float]:
    """Shares passed and blocked by percentiles of `draws` resamples of the rows."""
    passed = blocked = 0
    for one in counts:
        n = int(one.sum())
        again = rng.multinomial(n, one.ravel() / n, size=draws).reshape(draws, *one.shape)
        drops = np.nan_to_num(counted.tables_of(again).drop)
        estimate = np.nan_to_num(counted.tables_of(one[None]).drop[0])
        beyond = estimate > eight.LIMIT
        harm = beyond & (np.quantile(drops, 0.025, axis=0) > 0.0)
        blocked += bool(harm.any())
        inside = np.quantile(drops, 1.0 - level, axis=0) <= eight.LIMIT
        passed += bool(inside[deciding].all() and not harm.any())
    return passed / len(counts), blocked / len(counts)


def percentile_at_limit(rng: np.random.Generator, table: Floats, n: int, column: int, level: float, repeats: int) -> float:
    """How often the percentile bound alone lets a true drop of 5.0 of one clause through."""
    counts = rng.multinomial(n, table.ravel(), size=repeats).reshape(-1, *table.shape)
    tables = counted.tables_of(counts)
    passed = 0
    for b, c, size in zip(tables.worse[:, column], tables.better[:, column], tables.n[:, column], strict=True):
        again = rng.multinomial(int(size), [b / size, c / size, 1.0 - (b + c) / size], size=1000)
        passed += bool(np.quantile((again[:, 0] - again[:, 1]) / size, 1.0 - level) <= eight.LIMIT)
    return passed / repeats


def measure(rng: np.random.Generator, *, quick: bool) -> tuple[list[str], dict[str, float]]:
    policy = eight.policy()
    deciding = np.array([one.deciding for one in policy.clause])
    every = np.ones(len(deciding), dtype=bool)
    column = next(i for i, one in enumerate(policy.clause) if one.name == "tpr E")
    repeats, few, draws = (2_000, 20, 500) if quick else (20_000, 200, 1_000)
    lines = [
        "", "other rules, same data; equal = an equal candidate is refused (percentiles: blocked), 5.0 = a true drop of 5.0 of",
        "the 10 % group's TPR passes, 10 = a 10-point TPR drop of the 12 % group is not refused (percentiles: not blocked); %",
        f"{'rows':>7} {'base':>5} {'churn':>6} |   ours: equal  5.0   10 | threshold: equal  5.0   10  of 32: equal | "
        "> 5 %: equal  5.0   10 | "
        "percentiles: equal  5.0   10  equal passes",
    ]  # fmt: skip
    worst: dict[str, list[float]] = {}
    for n, base, churn in SHAPES[2:4] if quick else SHAPES:
        tables = [
            eight.probabilities(base, churn, harms)
            for harms in ((), (Harm("E", "tpr", 0.05),), (Harm(eight.HARMED, "tpr", 0.1),))
        ]
        equal, limit, ten = (rng.multinomial(n, table.ravel(), size=repeats).reshape(-1, 8, 2, 2, 2) for table in tables)
        ours = [
            counted.decide(equal, policy).block.mean(),
            counted.decide(limit, policy).good.mean(),
            1 - counted.decide(ten, policy).block.mean(),
        ]
        point = [
            fails(equal, deciding, relative=False),
            1 - fails(limit, deciding, relative=False),
            1 - fails(ten, deciding, relative=False),
        ]
        wide = fails(equal, every, relative=False)
        relative = [
            fails(equal, deciding, relative=True),
            1 - fails(limit, deciding, relative=True),
            1 - fails(ten, deciding, relative=True),
        ]
        passes, false = percentile(rng, equal[:few], deciding, policy.levels.passing, draws)
        _, seen = percentile(rng, ten[:few], deciding, policy.levels.passing, draws)
        through = percentile_at_limit(rng, tables[1], n, column, policy.levels.passing, 500 if quick else 5_000)
        given = {
            "threshold_false_block": point[0], "threshold_wrong_pass": point[1], "relative_false_block": relative[0],
            "relative_wrong_pass": relative[1], "percentile_false_block": false, "percentile_wrong_pass": through,
        }  # fmt: skip
        for key, value in given.items():
            worst.setdefault(key, []).append(float(value))
        lines.append(
            f"{n:>7,} {base:>5.0%} {churn:>6.0%} | " + "{:>13.2f} {:>4.2f} {:>4.1f}".format(*(100 * x for x in ours))
            + " | {:>16.1f} {:>4.1f} {:>4.1f}".format(*(100 * x for x in point)) + f" {100 * wide:>13.1f}"
            + " | {:>12.1f} {:>4.1f} {:>4.1f}".format(*(100 * x for x in relative))
            + f" | {100 * false:>18.1f} {100 * through:>4.2f} {100 * (1 - seen):>4.1f} {100 * passes:>13.1f}"
        )  # fmt: skip
    return lines, {key: max(values) for key, values in worst.items()}
