"""How often does the gate block a good model, pass a harmful one, and pass an equal one?

Eight groups, 32 clauses, limit 5 points, churn near the threshold (`eight_groups.py`); the gate's own rules on counts
(`counted_gate.py`), held against the real `judge` in the same run. *False block*: every true drop is 0. *Wrong pass*: one
deciding clause's true drop is exactly 5.0 and the verdict is a pass; beside it the stricter *clause* figure, that this clause
alone lets it through, over all ten deciding clauses. Bounds are upper 95 % (Clopper-Pearson). Then several looks, the rules of
other gates on the same data, and two real models on Adult.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import adult_groups
import counted_gate as counted
import eight_groups as eight
import numpy as np
import other_gates
from eight_groups import Floats, Harm
from harness import Measured, main, say

from truing.tasks.errors import Unavailable
from truing.tasks.policy import Policy
from truing.tasks.statistics.proportions import clopper_pearson, drop_within

ROWS = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 40_000, 50_000)
CELLS = tuple(product((0.50, 0.25), (0.03, 0.05, 0.10, 0.15)))  # base rate, churn
LOOKS = (1, 2, 4, 8)
TEN = Harm(eight.HARMED, "tpr", 0.10)
AT_LIMIT = tuple(Harm(group, metric, 0.05) for group, metric in product("AE", ("tpr", "accuracy")))
WATCHED = tuple(Harm(group, "tpr", 0.05) for group in "FGH")
FALSE_BLOCK, WRONG_PASS, PASSED, BLOCKED, AGREED = 0.025, 0.01, 0.80, 0.95, 0.995  # the floors
Shape = tuple[int, float, float]  # rows, base rate, churn


@dataclass(frozen=True)
class Size:
    """Repeats: data sets of equal and of badly harmed candidates, at the limit, of one clause alone, and row by row."""

    equal: int
    at_limit: int
    clause: int
    real: int

    @staticmethod
    def of(quick: bool) -> Size:
        return Size(2_000, 4_000, 10_000, 4) if quick else Size(20_000, 50_000, 100_000, 20)


@dataclass
class Found:
    """Shares at one shape; `…_high` are upper 95 % bounds."""

    passed_equal: float = 0.0
    false_block: float = 0.0
    false_block_high: float = 0.0
    blocked_10pt: float = 0.0
    wrong_pass_high: float = 0.0
    clause_high: float = 0.0
    watched: dict[str, float] = field(default_factory=dict)


def high(hits: int, of: int) -> float:
    return clopper_pearson(int(hits), int(of), 0.05)[1]


def sample(rng: np.random.Generator, n: int, table: Floats, repeats: int) -> eight.Counts:
    return rng.multinomial(n, table.ravel(), size=repeats).reshape(-1, *table.shape)


def clause_alone(rng: np.random.Generator, n: int, table: Floats, column: int, policy: Policy, repeats: int) -> int:
    """How often one clause alone passes: its own three-way table (lost, won, neither) on the rows of n that count for it."""
    exact = counted.tables_of(np.round(table * 1e15).astype(np.int64)[None])
    lost, won, counts = (float(part[0, column]) / 1e15 for part in (exact.worse, exact.better, exact.n))
    size = rng.binomial(n, counts, size=repeats)
    worse = rng.binomial(size, lost / counts)
    better = rng.binomial(size - worse, won / (counts - lost))
    one = policy.clause[column]
    return int(
        (drop_within(worse, better, size, one.limit, policy.levels.passing) & (worse - better <= one.limit * size)).sum()
    )


def measure_shape(rng: np.random.Generator, shape: Shape, policy: Policy, size: Size) -> Found:
    n, base, churn = shape
    equal = counted.decide(sample(rng, n, eight.probabilities(base, churn), size.equal), policy)
    ten = counted.decide(sample(rng, n, eight.probabilities(base, churn, (TEN,)), size.equal), policy)
    found = Found(
        passed_equal=float(equal.good.mean()),
        false_block=float(equal.block.mean()),
        false_block_high=high(equal.block.sum(), size.equal),
        blocked_10pt=float(ten.block.mean()),
    )
    for harm in AT_LIMIT:
        given = counted.decide(sample(rng, n, eight.probabilities(base, churn, (harm,)), size.at_limit), policy)
        found.wrong_pass_high = max(found.wrong_pass_high, high(given.good.sum(), size.at_limit))
    for column, one in enumerate(policy.clause):
        if one.deciding:
            table = eight.probabilities(base, churn, (Harm(one.slice[-1], one.metric, 0.05),))
            passes = clause_alone(rng, n, table, column, policy, size.clause)
            found.clause_high = max(found.clause_high, high(passes, size.clause))
    for harm in WATCHED:
        given = counted.decide(sample(rng, n, eight.probabilities(base, churn, (harm,)), size.equal), policy)
        found.watched[harm.group] = float(given.good.mean())
    return found


def over_looks(rng: np.random.Generator, shape: Shape, looks: int, table: Floats, repeats: int) -> tuple[int, int]:
    """Data sets passed and blocked when the gate looks each time another n/looks rows have come; its first word counts."""
    policy = eight.policy(max_looks=looks)
    counts = np.zeros((repeats, *table.shape), dtype=np.int64)
    passed, blocked = np.zeros(repeats, dtype=bool), np.zeros(repeats, dtype=bool)
    for look in range(1, looks + 1):
        more = shape[0] * look // looks - shape[0] * (look - 1) // looks
        counts += sample(rng, more, table, repeats)
        still = ~(passed | blocked)
        given = counted.decide(counts[still], policy)
        blocked[still], passed[still] = given.block, given.good
    return int(passed.sum()), int(blocked.sum())


def measure_looks(rng: np.random.Generator, size: Size) -> tuple[list[str], float, float]:
    lines = [
        "", "several looks, each when another part of the rows has come; wrong pass: TPR of the 10 % group",
        f"{'rows':>7} {'base':>5} {'churn':>6} {'looks':>6} | equal pass  10-point blocked  false block ≤  wrong pass ≤",
    ]  # fmt: skip
    worst_block = worst_pass = 0.0
    for shape, looks in product(eight.FLOORS, LOOKS[:: 1 if size.real > 10 else 3]):
        n, base, churn = shape
        equal, false = over_looks(rng, shape, looks, eight.probabilities(base, churn), size.equal)
        _, ten = over_looks(rng, shape, looks, eight.probabilities(base, churn, (TEN,)), size.equal)
        wrong, _ = over_looks(rng, shape, looks, eight.probabilities(base, churn, (Harm("E", "tpr", 0.05),)), size.at_limit)
        worst_block, worst_pass = max(worst_block, high(false, size.equal)), max(worst_pass, high(wrong, size.at_limit))
        lines.append(
            f"{n:>7,} {base:>5.0%} {churn:>6.0%} {looks:>6} | {equal / size.equal:>10.1%} {ten / size.equal:>17.2%} "
            f"{high(false, size.equal):>14.2%} {high(wrong, size.at_limit):>13.2%}"
        )
    return lines, worst_block, worst_pass


def measure_adult(rng: np.random.Generator, size: Size) -> tuple[list[str], dict[str, float], tuple[int, int]]:
    """The same with two real models' answers; harm planted into TPR, group by group."""
    try:
        equal = adult_groups.population()
    except Unavailable as error:
        return ["", f"Adult: not measured, {error}"], {}, (0, 0)
    policy = adult_groups.policy(equal)
    deciding = [one for one in policy.clause if one.deciding]
    lines = ["", "Adult, two boosted models that agree on all but 4 % of unseen people; deciding: " + ", ".join(
        f"{one.metric} of {adult_groups.NAMES[eight.GROUPS.index(one.slice[-1])]}" for one in deciding)]  # fmt: skip
    lines.append(
        f"{'rows':>7} | equal pass  false block ≤  wrong pass ≤  each clause ≤  10-point drops blocked: women 30-44, men 30-44"
    )
    worst = {"adult_false_block_high": 0.0, "adult_wrong_pass_high": 0.0}
    for n in (5_000, 10_000, 20_000, 40_000)[:: 1 if size.real > 10 else 2]:
        given = counted.decide(sample(rng, n, equal, size.equal), policy)
        blocked = []
        for group in "BF":
            table = adult_groups.harmed(equal, Harm(group, "tpr", 0.10))
            blocked.append(float(counted.decide(sample(rng, n, table, size.equal), policy).block.mean()))
        wrong = alone = 0.0
        for column, one in enumerate(policy.clause):
            if not one.deciding:
                continue
            table = adult_groups.harmed(equal, Harm(one.slice[-1], one.metric, 0.05))
            alone = max(alone, high(clause_alone(rng, n, table, column, policy, size.clause), size.clause))
            if one.metric == "tpr":
                hit = counted.decide(sample(rng, n, table, size.at_limit), policy)
                wrong = max(wrong, high(hit.good.sum(), size.at_limit))
        false = high(given.block.sum(), size.equal)
        worst["adult_false_block_high"] = max(worst["adult_false_block_high"], false)
        worst["adult_wrong_pass_high"] = max(worst["adult_wrong_pass_high"], wrong, alone)
        lines.append(
            f"{n:>7,} | {given.good.mean():>10.1%} {false:>14.2%} {wrong:>13.2%} {alone:>14.2%}"
            f"{blocked[0]:>35.1%} {blocked[1]:>10.1%}"
        )
    counts = np.concatenate(
        [sample(rng, 8_000, adult_groups.harmed(equal, Harm("F", "tpr", drop)), size.real) for drop in (0.0, 0.1)]
    )
    verdicts, _, _ = counted.agreement(counts, policy)
    return lines, worst, (verdicts, len(counts))


def measure_agreement(rng: np.random.Generator, size: Size) -> tuple[int, int, int, int]:
    """Row-level data sets through the real `judge`, half of them where the verdict is about to turn."""
    verdicts = clauses = asked = sets = 0
    for n, churn in ((600, 0.05), (3_000, 0.05), (9_000, 0.03), (12_500, 0.10)):
        for harms in ((), (Harm("E", "tpr", 0.05),), (TEN,), (Harm("H", "tpr", 0.15), Harm("B", "accuracy", 0.02))):
            counts = sample(rng, n, eight.probabilities(0.25, churn, harms), size.real)
            for policy in (eight.policy(), eight.policy(max_looks=4)):
                same, agreed, of = counted.agreement(counts[:: policy.evidence.max_looks], policy)
                verdicts, clauses, asked = verdicts + same, clauses + agreed, asked + of
                sets += len(counts[:: policy.evidence.max_looks])
    return verdicts, sets, clauses, asked


def grid_lines(found: dict[Shape, Found]) -> list[str]:
    rows = sorted({shape[0] for shape in found})
    lines: list[str] = []
    titles = {
        "passed_equal": "equal candidates pass", "blocked_10pt": "10-point TPR drops in the 12 % group blocked",
        "false_block_high": "false block, upper bound", "wrong_pass_high": "wrong pass at 5.0, upper bound (worst of 4)",
        "clause_high": "one clause alone passes 5.0, upper bound (worst of 10 clauses)",
        "F": "passed although the watched TPR of the 7 % group truly fell by 5.0", "G": "… of the 4 % group",
        "H": "… of the 3 % group",
    }  # fmt: skip
    for key, title in titles.items():
        lines += ["", title + ", %", f"{'base':>5} {'churn':>6} | " + " ".join(f"{n:>7,}" for n in rows)]
        for base, churn in CELLS:
            values = []
            for n in rows:
                one = found[n, base, churn]
                values.append(one.watched[key] if key in one.watched else getattr(one, key))
            lines.append(f"{base:>5.0%} {churn:>6.0%} | " + " ".join(f"{100 * value:>7.2f}" for value in values))
    return lines


def measure(arguments: argparse.Namespace) -> Measured:
    rng, policy, size = np.random.default_rng(arguments.seed), eight.policy(), Size.of(arguments.quick)
    rows = tuple(n for n in ROWS if not arguments.quick or n in (500, 50_000))
    found: dict[Shape, Found] = {}
    for base, churn in CELLS:
        for n in rows:
            found[n, base, churn] = measure_shape(rng, (n, base, churn), policy, size)
        say(f"base {base:.0%}, churn {churn:.0%}: {len(found)} of {len(CELLS) * len(rows)} shapes")
    floors = {shape: found[shape] if shape in found else measure_shape(rng, shape, policy, size) for shape in eight.FLOORS}
    every = [*found.values(), *floors.values()]
    looks, looks_block, looks_pass = measure_looks(rng, size)
    say("looks measured")
    adult, worst_adult, (adult_same, adult_sets) = measure_adult(rng, size)
    say("Adult measured")
    verdicts, sets, clauses, asked = measure_agreement(rng, size)
    verdicts, sets = verdicts + adult_same, sets + adult_sets
    say("held against judge")
    others, beside = other_gates.measure(rng, quick=arguments.quick)
    figures: dict[str, Any] = {
        "false_block_high": max(looks_block, *(one.false_block_high for one in every)),
        "wrong_pass_high": max(looks_pass, *(max(one.wrong_pass_high, one.clause_high) for one in every)),
        "blocked_10pt": min(one.blocked_10pt for one in floors.values()),
        "passed_equal": min(one.passed_equal for one in floors.values()),
        "wrong_pass_verdict_high": max(one.wrong_pass_high for one in every),
        "wrong_pass_looks_high": looks_pass,
        **worst_adult,
        "judge_agrees": verdicts / sets,
        "judge_agrees_clauses": clauses / asked,
        "judged_sets": sets,
    }
    head = [f"{'rows':>7} {'base':>5} {'churn':>6} | equal pass  10-point blocked  (floors)"]
    head += [
        f"{n:>7,} {base:>5.0%} {churn:>6.0%} | {one.passed_equal:>10.1%} {one.blocked_10pt:>17.2%}"
        for (n, base, churn), one in floors.items()
    ]
    limits = {
        "false_block_high": figures["false_block_high"] > FALSE_BLOCK,
        "wrong_pass_high": figures["wrong_pass_high"] > WRONG_PASS,
        "passed_equal": figures["passed_equal"] < PASSED,
        "blocked_10pt": figures["blocked_10pt"] < BLOCKED,
        "judge_agrees": figures["judge_agrees"] < AGREED,
        **{key: value > (FALSE_BLOCK if "block" in key else WRONG_PASS) for key, value in worst_adult.items()},
    }  # fmt: skip
    if arguments.quick:  # too few repeats for these two bounds to be tight
        for key in ("wrong_pass_high", "adult_wrong_pass_high", "passed_equal"):
            limits[key] = figures.get(key, 0.0) > 2.0 * WRONG_PASS if "wrong" in key else figures[key] < PASSED - 0.03
    broken = [f"{key} is {figures[key]:.4f}" for key, wrong in limits.items() if wrong]
    return Measured(figures, beside, [*head, *grid_lines(found), *looks, *adult, *others], broken)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default 0)")


if __name__ == "__main__":
    sys.exit(main("gate_error", measure, options=options))
