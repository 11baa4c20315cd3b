"""Can 10,000 labels decide what would take 40,000 at random? Most of them go to rows on which the two models disagree.

Eight groups, 32 clauses, base rate 25 %, churn 10 % (`eight_groups`). Both models answer a pool of 70,000 rows; the plan of
`evaluation.audit` says which rows are read, one in ten twice; reviewers err in 0, 2 or 5 %. Repeats are counted on cells: rows
of one group, answer pair and label are alike to the gate, so counts are all it sees. `gate's judge()` decides a sample of the
same repeats row by row, and both must agree.

    pass       equal candidates that pass
    block      10-point TPR drops in the 12 % group that are blocked
    wrong      candidates that pass although one deciding clause's true drop is exactly 5.0 points, worst such clause
    random     the same 10,000 labels drawn from the traffic, by the gate's own unweighted rules

The same on Adult (`adult_groups`): two boosted models, their real churn, groups by sex and age. The share of targeted rows, of
double readings and of the level spent on the reviewers' error were chosen on other seeds (77, 78) than those reported here.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import adult_groups
import msgspec
import numpy as np
from eight_groups import GROUPS, HARMED, LIMIT, METRICS, Harm, draw, plant, policy, probabilities, problem, rows_of, scores_of
from harness import Measured, main, say

from truing.tasks.evaluation.audit import TARGETED, allocate, draw_plan
from truing.tasks.evaluation.evidence import Evidence
from truing.tasks.evaluation.gate import judge
from truing.tasks.evaluation.scores import Scores
from truing.tasks.policy import Policy
from truing.tasks.records import Evaluation, Outcome
from truing.tasks.seal import digest
from truing.tasks.statistics.multiplicity import joint_lower
from truing.tasks.statistics.proportions import UNSEEN_HARM, clopper_pearson, tail_of, z_of
from truing.tasks.statistics.weighted import CELL_ROWS, ERROR_SHARE, error_bounds, likelihood_root

POOL, LABELS, BASE, CHURN, DOUBLE = 70_000, 10_000, 0.25, 0.10, 0.10
ERRORS = (0.0, 0.02, 0.05)
bounds = lru_cache(maxsize=None)(error_bounds)


@dataclass(frozen=True)
class Setting:
    """A population of cells (8, 2, 2, 2), its policy, and where harm is planted."""

    name: str
    equal: Any
    rules: Policy
    harmed: str
    aims: tuple[tuple[str, str], ...]  # (group, metric) of wrong passes

    def table(self, harm: Harm | None = None) -> Any:
        found = self.equal.copy()
        if harm is not None:
            plant(found[GROUPS.index(harm.group)], harm)
        return found

    @property
    def deciding(self) -> list[tuple[str, int]]:
        return [(one.metric, GROUPS.index(one.slice[2:])) for one in self.rules.clause if one.deciding]


# --- many repeats at once, as counts ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Batch:
    """R repeats. seen: (R, 8 groups, champion, candidate, what is known: label 0, ½, 1, none); weight (R, 8, disagree);
    answered: (R, 8, champion, candidate) of the pool; doubles (R, 2)."""

    seen: Any
    weight: Any
    answered: Any
    doubles: Any


def batch(rng: np.random.Generator, table: Any, repeats: int, error: float) -> Batch:
    pool = rng.multinomial(POOL, table.ravel(), size=repeats).reshape(repeats, 8, 2, 2, 2)  # group, truth, champion, candidate
    rows = round(LABELS / (1 + DOUBLE))
    apart = pool[..., 0, 1] + pool[..., 1, 0]
    sizes = np.stack([pool.sum(axis=(2, 3, 4)) - apart.sum(axis=2), apart.sum(axis=2)], axis=-1)  # (R, 8, agree | disagree)
    aimed = np.minimum(sizes[..., 1].sum(axis=1), round(TARGETED * rows))
    take = np.zeros_like(sizes)
    for r in range(repeats):
        take[r, :, 1] = allocate(sizes[r, :, 1], int(aimed[r]))
        take[r, :, 0] = allocate(sizes[r, :, 0], rows - int(aimed[r]))
    drawn = np.zeros_like(pool)
    for differ, pairs in enumerate((((0, 0), (1, 1)), ((0, 1), (1, 0)))):
        cells = [(truth, *pair) for truth in (0, 1) for pair in pairs]
        _without(rng, pool, take[..., differ], [np.s_[:, :, c[0], c[1], c[2]] for c in cells], drawn)
    twice = np.zeros_like(drawn)
    flat, out = drawn.reshape(repeats, -1), twice.reshape(repeats, -1)
    _without(rng, flat, np.round(DOUBLE * drawn.sum(axis=(1, 2, 3, 4))).astype(int), [np.s_[:, i] for i in range(64)], out)
    once = drawn - twice
    chance = np.array([error, 1 - error])[None, None, :, None, None]  # that the label read is positive
    yes = rng.binomial(once, np.broadcast_to(chance, once.shape))
    both = rng.binomial(twice, np.broadcast_to(chance**2, once.shape))
    neither = rng.binomial(twice - both, np.broadcast_to((1 - chance) ** 2 / (1 - chance**2 + 1e-300), once.shape).clip(0, 1))
    half = twice - both - neither
    parts = [once - yes + neither, half, yes + both, pool - drawn]
    seen = np.stack([part.sum(axis=2) for part in parts], axis=-1)
    weight = np.where(take > 0, sizes / np.maximum(take, 1), 1.0)
    doubles = np.stack([twice.sum(axis=(1, 2, 3, 4)), half.sum(axis=(1, 2, 3, 4))], axis=-1)
    return Batch(seen, weight, pool.sum(axis=2), doubles)


def _without(rng: np.random.Generator, have: Any, take: Any, cells: list[Any], out: Any) -> None:
    """Draw without replacement from the cells, one after the other."""
    left, total = take.copy(), sum(have[cell] for cell in cells)
    for cell in cells:
        rest = total - have[cell]
        out[cell] = rng.hypergeometric(have[cell], rest, left)
        left, total = left - out[cell], rest


ANSWERS = [(ch, ca) for ch in (0, 1) for ca in (0, 1)]


def labels(some: Batch, error: Any) -> Any:
    """Pseudo-labels (R, 8, 2, 2, 4) at an error rate (R,); the last is the guess of rows without one."""
    estimate = _each(some, lambda doubles: bounds(doubles, 0.5)[0])
    guess = np.zeros((len(some.seen), 2, 2))
    shape = np.array([0.0, 0.5, 1.0])
    known, weight = some.seen[..., :3], np.zeros(some.seen.shape[:4])
    for ch, ca in ANSWERS:
        weight[:, :, ch, ca] = some.weight[:, :, int(ch != ca)]
    worth = known * weight[..., None]
    read = (shape[None] - estimate[:, None]) / (1 - 2 * estimate[:, None])
    mean = (worth * read[:, None, None, None]).sum(axis=(1, 4)) / np.maximum(worth.sum(axis=(1, 4)), 1e-300)
    overall = (worth * read[:, None, None, None]).sum(axis=(1, 2, 3, 4)) / worth.sum(axis=(1, 2, 3, 4))
    guess = np.clip(np.where(known.sum(axis=(1, 4)) >= CELL_ROWS, mean, overall[:, None, None]), 0, 1)
    read = (shape[None] - error[:, None]) / (1 - 2 * error[:, None])
    q = np.broadcast_to(guess[:, None, :, :, None], (*weight.shape, 1))
    return np.concatenate([q + weight[..., None] * (read[:, None, None, None] - q), q], axis=-1)


def _each(some: Batch, do: Any) -> Any:
    return np.array([do((int(a), int(b))) for a, b in some.doubles])


def affine(metric: str) -> Any:
    """(a, b, c, d) by answers (4, 2, 2): what a row adds to the drop, a + b·y, and to the denominator, c + d·y."""
    out = np.zeros((4, 2, 2))
    for ch, ca in ANSWERS:
        out[:, ch, ca] = {
            "accuracy": ((1 - ch) - (1 - ca), (ch - (1 - ch)) - (ca - (1 - ca)), 1, 0),
            "tpr": (0, ch - ca, 0, 1),
            "fpr": (ca - ch, ch - ca, 1, -1),
        }[metric]
    return out


@dataclass(frozen=True, eq=False)
class Line:
    """One clause in R repeats: drop, standard error; values at a drop come from `units`."""

    pseudo: Any
    counts: Any
    form: Any
    weight: Any

    @classmethod
    def of(cls, some: Batch, pseudo: Any, metric: str, group: int) -> Line:
        r = len(some.seen)
        form = np.broadcast_to(affine(metric)[..., None], (4, 2, 2, 4)).reshape(4, 16)
        return cls(
            pseudo[:, group].reshape(r, 16), some.seen[:, group].reshape(r, 16).astype(float), form, some.weight[:, group]
        )

    def units(self, drop: Any, sign: float = 1.0) -> Any:
        a, b, c, d = self.form
        return sign * a - drop * c + (sign * b - drop * d) * self.pseudo

    def mass(self) -> Any:
        return (self.counts * (self.form[2] + self.form[3] * self.pseudo)).sum(axis=1)

    def drop(self) -> Any:
        return (self.counts * self.units(0.0)).sum(axis=1) / self.mass()

    def se(self) -> Any:
        n = self.counts.sum(axis=1)
        per = self.mass() / n
        square = (self.counts * self.units(self.drop()[:, None]) ** 2).sum(axis=1)
        return np.sqrt(square / (n - 1)) / per / np.sqrt(n)

    def below(self, drop: float, level: float, error: Any, sign: float = 1.0) -> Any:
        """As `weighted.below`, for all repeats."""
        values = self.units(drop, sign)
        alpha = sign * self.form[0] - drop * self.form[2]
        beta = sign * self.form[1] - drop * self.form[3]
        noise = (error / (1 - 2 * error))[:, None]
        likely = np.where(beta > 0, 1 + noise, -noise)
        guess = np.repeat(self.pseudo[:, 3::4], 4, axis=1)
        weight = np.stack([self.weight[:, int(ch != ca)] for ch, ca in ANSWERS], axis=1).repeat(4, axis=1)
        worst = np.where(self.counts > 0, alpha + beta * (guess + weight * (likely - guess)), -np.inf).max(axis=1)
        worst = np.maximum(worst, 1 - drop)
        root = likelihood_root(
            np.concatenate([values, worst[:, None]], axis=1),
            np.concatenate([self.counts, np.full((len(values), 1), UNSEEN_HARM)], axis=1),
        )
        return root <= -z_of(level)


def passes(some: Batch, metric: str, group: int, level: float = policy().levels.passing) -> Any:
    """Does the deciding clause pass? (R,)"""
    fine = np.ones(len(some.seen), dtype=bool)
    for which in (1, 2, 0):
        error = _each(some, lambda doubles, which=which: bounds(doubles, level * ERROR_SHARE)[which])
        line = Line.of(some, labels(some, error), metric, group)
        fine &= line.below(LIMIT, level * (1 - ERROR_SHARE), error)
    return fine & (line.drop() <= LIMIT)


def blocks(some: Batch, critical: float, which: list[tuple[str, int]]) -> Any:
    """Does one of these clauses block at this critical value? (R,)"""
    error = _each(some, lambda doubles: bounds(doubles, 0.5)[0])
    pseudo, alone = labels(some, error), tail_of(critical)
    out = np.zeros(len(some.seen), dtype=bool)
    for metric, group in which:
        if metric == "selection_rate":
            n = some.answered[:, group].sum(axis=(1, 2))
            lost, won = some.answered[:, group, 1, 0], some.answered[:, group, 0, 1]
            drop = (lost - won) / n
            out |= (drop > LIMIT) & (drop > critical * np.sqrt(((lost + won) / n - drop**2) / n))
            continue
        line = Line.of(some, pseudo, metric, group)
        near = (line.drop() > LIMIT) & (line.drop() - critical * line.se() > 0)
        for at in (1, 2, 0) if near.any() else ():
            error = _each(some, lambda doubles, at=at: bounds(doubles, alone * ERROR_SHARE)[at])
            near &= Line.of(some, labels(some, error), metric, group).below(0.0, alone * (1 - ERROR_SHARE), error, -1.0)
        out |= near
    return out


EVERY = [(metric, group) for group in range(8) for metric in METRICS]


# --- the gate itself, row by row ----------------------------------------------------------------------------------------------


def one_by_one(rng: np.random.Generator, table: Any, error: float) -> tuple[Evaluation, Scores, Batch]:
    """One repeat through `draw_plan`, `Evidence` and `judge`, and the same as counts."""
    counts = draw(rng, POOL, table)
    rows = rows_of(counts)
    order = rng.permutation(POOL)
    ids = [f"r{i:06d}" for i in order]
    differ = rows.champion != rows.candidate
    names = [GROUPS[g] for g in rows.group]
    plan = draw_plan(
        ids, names, problem="eight", budget=LABELS, seed=str(rng.integers(1 << 60)), at=0.0, disagree=differ, double=DOUBLE
    )
    chosen, again = set(plan.drawn), set(plan.twice)
    drawn = np.array([id in chosen for id in ids])
    twice = np.array([id in again for id in ids])
    first, second = (rows.positive ^ (rng.random(POOL) < error) for _ in range(2))
    given = np.where(twice, (first * 1.0 + second) / 2, first * 1.0)
    share = np.array([one.rows / one.drawn for one in plan.strata])
    weight = share[[plan.pool[id] for id in ids]]
    doubles = (int(twice.sum()), int((twice & (first != second)).sum()))
    evidence = Evidence(
        ids=tuple(ids), weights=weight, drawn=drawn, given=given, judged=drawn, noisy=drawn, doubles=doubles,
        coverage=None, why="plan",  # type: ignore[arg-type]
    )  # fmt: skip
    evaluation, scores = scores_of(rows)
    scores = replace(scores, positive=first & drawn, **evidence.on(ids))
    evaluation = msgspec.structs.replace(evaluation, n=scores.n, digest="")
    kind = np.where(~drawn, 3, (given * 2).astype(int))
    seen = np.zeros((1, 8, 2, 2, 4), dtype=int)
    np.add.at(seen[0], (rows.group, rows.champion * 1, rows.candidate * 1, kind), 1)
    by = np.ones((1, 8, 2))
    for one in plan.strata:
        by[0, GROUPS.index(one.group), int(one.kind == "disagree")] = one.rows / one.drawn
    batch_of_one = Batch(seen, by, counts.sum(axis=1)[None], np.array([doubles]))
    return msgspec.structs.replace(evaluation, digest=digest(evaluation)), scores, batch_of_one


def agreement(
    rng: np.random.Generator, setting: Setting, error: float, harm: Harm | None, repeats: int
) -> tuple[int, list[float]]:
    """How many of the repeats judge() and the counts decide differently, and the critical values judge() used."""
    table, rules, apart, criticals = setting.table(harm), setting.rules, 0, []
    for number in range(repeats):
        evaluation, scores, some = one_by_one(rng, table, error)
        verdict = judge(evaluation, scores, problem(), rules, dataset="d", key="k", now=0.0, seed=number)
        pairs = [scores.pair(one.slice, one.metric, "champion") for one in rules.clause]
        critical = joint_lower(
            pairs, subjects=scores.subject_count, level=rules.levels.block, draws=rules.levels.resamples,
            rng=np.random.default_rng(number),
        ).critical  # fmt: skip
        criticals.append(critical)
        blocked = bool(blocks(some, critical, EVERY)[0])
        passed = not blocked and all(bool(passes(some, *one)[0]) for one in setting.deciding)
        says = Outcome.BLOCK if blocked else Outcome.PASS if passed else Outcome.INCONCLUSIVE
        if says is not verdict.outcome:
            apart += 1
            say(f"apart: judge {verdict.outcome} ({verdict.reason[:120]}), counts {says}")
    return apart, criticals


def at_random(rng: np.random.Generator, setting: Setting, error: float, harm: Harm | None, repeats: int) -> list[Outcome]:
    """All labels random and the plain rules: what 10,000 labels of the traffic decide."""
    table, said = setting.table(harm), []
    rules = msgspec.structs.replace(setting.rules, levels=msgspec.structs.replace(setting.rules.levels, resamples=10_000))
    for number in range(repeats):
        rows = rows_of(draw(rng, LABELS, table))
        evaluation, scores = scores_of(replace(rows, positive=rows.positive ^ (rng.random(LABELS) < error)))
        said.append(judge(evaluation, scores, problem(), rules, dataset="d", key="k", now=0.0, seed=number).outcome)
    return said


# --- measuring ----------------------------------------------------------------------------------------------------------------


def high(count: int, of: int) -> float:
    """Upper 95 % bound of a share."""
    return clopper_pearson(count, of, 0.05)[1]


def wrongly(rng: np.random.Generator, setting: Setting, error: float, harm: Harm, repeats: int) -> int:
    table, count = setting.table(harm), 0
    first = (harm.metric, GROUPS.index(harm.group))
    for some in chunks(rng, table, repeats, error):
        let = np.flatnonzero(passes(some, *first))
        few = Batch(some.seen[let], some.weight[let], some.answered[let], some.doubles[let])
        fine = np.ones(len(let), dtype=bool)
        for one in setting.deciding:
            if one != first and fine.any():
                fine &= passes(few, *one)
        count += int(fine.sum())
    return count


def chunks(rng: np.random.Generator, table: Any, repeats: int, error: float) -> Any:
    for start in range(0, repeats, 2000):
        yield batch(rng, table, min(2000, repeats - start), error)


def settings() -> list[Setting]:
    eight = Setting(
        "eight groups",
        probabilities(BASE, CHURN),
        policy(),
        HARMED,
        (("D", "tpr"), ("E", "tpr"), ("A", "tpr"), ("D", "accuracy")),
    )
    people = adult_groups.population()
    rules = adult_groups.policy(people)
    rates = {
        one.slice[-1]: people[GROUPS.index(one.slice[-1]), 1].sum()
        for one in rules.clause
        if one.deciding and one.metric == "tpr"
    }
    smallest = min(rates, key=lambda group: rates[group])
    return [eight, Setting("Adult", people, rules, smallest, ((smallest, "tpr"), (smallest, "accuracy")))]


def measure_one(setting: Setting, rng: np.random.Generator, quick: bool) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Rows by label error, lines of the table, what broke."""
    repeats, wrong_repeats, checked, random_repeats = (400, 2000, 1, 4) if quick else (20_000, 50_000, 12, 100)
    worst_harm, apart, criticals, decided = Harm(setting.harmed, "tpr", 0.10), 0, [], 0
    for error in ERRORS:
        for harm in (None, worst_harm, Harm(setting.harmed, "tpr", LIMIT)):
            more, found = agreement(rng, setting, error, harm, checked)
            apart, criticals, decided = apart + more, criticals + found, decided + checked
    broken = [f"{setting.name}: counts and judge() differ in {apart} of {decided} repeats"] if apart else []
    churn = float(setting.equal[:, :, 0, 1].sum() + setting.equal[:, :, 1, 0].sum())
    lines = [
        f"{setting.name}: pool {POOL:,}, churn {churn:.1%}, base rate {setting.equal[:, 1].sum():.1%}, {len(setting.deciding)} "
        f"deciding clauses; judge() and counts agree in {decided - apart} of {decided}, critical value {min(criticals):.2f} to "
        f"{max(criticals):.2f}",
        f"{'label error':>11} {'pass':>7} {'random':>7} {'block':>7} {'random':>7} {'false block':>12} {'wrong pass':>11}  at",
    ]
    say(lines[0])
    rows = []
    for error in ERRORS:
        equal = stopped = false = 0
        for some in chunks(rng, setting.table(), repeats, error):
            hit = blocks(some, min(criticals), EVERY)
            fine = ~hit
            for one in setting.deciding:
                fine &= passes(some, *one)
            equal, false = equal + int(fine.sum()), false + int(hit.sum())
        for some in chunks(rng, setting.table(worst_harm), repeats, error):
            stopped += int(blocks(some, max(criticals), EVERY).sum())
        aims = setting.aims[:1] if quick else setting.aims
        wrong = {f"{m} {g}": wrongly(rng, setting, error, Harm(g, m, LIMIT), wrong_repeats) for g, m in aims}
        worst = max(wrong, key=lambda name: wrong[name])
        plain = [at_random(rng, setting, error, harm, random_repeats) for harm in (None, worst_harm)]
        row = {
            "label_error": error,
            "passed": equal / repeats,
            "blocked": stopped / repeats,
            "false_block_high": high(false, repeats),
            "wrong_pass": {name: count / wrong_repeats for name, count in wrong.items()},
            "wrong_pass_high": high(wrong[worst], wrong_repeats),
            "random_passed": plain[0].count(Outcome.PASS) / random_repeats,
            "random_blocked": plain[1].count(Outcome.BLOCK) / random_repeats,
        }
        rows.append(row)
        lines.append(
            f"{error:>10.0%}  {row['passed']:>7.1%} {row['random_passed']:>7.1%} {row['blocked']:>7.2%} "
            f"{row['random_blocked']:>7.1%} {row['false_block_high']:>12.2%} {row['wrong_pass_high']:>11.2%}  {worst}"
        )
        say(lines[-1])
    return rows, lines, broken


def measure(arguments: argparse.Namespace) -> Measured:
    quick = arguments.quick
    rng = np.random.default_rng(20261123)
    lines = [f"{LABELS:,} labels, one in ten rows read twice; random = as many at random; bounds are upper 95 % ones"]
    broken: list[str] = []
    found = {}
    for setting in settings():
        found[setting.name], more, wrong = measure_one(setting, rng, quick)
        lines, broken = lines + more, broken + wrong
    per = found["eight groups"]
    figures = {
        "labels": LABELS,
        "passed_equal": min(row["passed"] for row in per),
        "passed_equal_no_error": per[0]["passed"],
        "blocked_10pt": min(row["blocked"] for row in per),
        "wrong_pass_high": max(row["wrong_pass_high"] for row in per),
        "false_block_high": max(row["false_block_high"] for row in per),
        "by_label_error": per,
        "adult": found["Adult"],
    }
    beside = {
        "random_passed": per[0]["random_passed"],
        "random_blocked": per[0]["random_blocked"],
        "floor": "pass 0.80 (target 0.95), block 0.99, wrong pass 0.01",
    }
    for name, rows in found.items():
        for row in rows:
            where = f"{name}, label error {row['label_error']:.0%}"
            if row["wrong_pass_high"] > (0.015 if quick else 0.01):  # a bound from 2,000 repeats is wide
                broken.append(f"{where}: wrong passes at 5.0 up to {row['wrong_pass_high']:.2%}, promised 1 %")
            if name == "eight groups" and (row["passed"] < 0.8 or row["blocked"] < 0.99):
                broken.append(f"{where}: {row['passed']:.1%} pass and {row['blocked']:.1%} are blocked, promised 80 and 99 %")
    return Measured(figures, beside, lines, broken)


if __name__ == "__main__":
    raise SystemExit(main("gate_targeted", measure))
