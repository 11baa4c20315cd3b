"""Can a model that treats women and men unequally be repaired at little cost, without looking at anybody's sex?

Adult. A model as the loop makes it (trusted rows, then an update on all others) is repaired by the loop's own code on training
and validation rows, and measured through the serving build on a third of the people, who took no part in any choice; three runs
judge everybody once. The gap is the equalized-odds difference by sex: the larger of the differences of TPR and FPR, of all the
runs' answers pooled; intervals are paired bootstraps over people (a single run's gap hangs on the few hundred women's positives
in it). A second variant may read sex, as thresholds by group do. Beside them fairlearn, on the same rows, units and scores.

Then the loop's own case: a round in which users mislabel women's positives, so that the gate blocks its candidate, and what the
gate says of the repaired one beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
import numpy as np
import polars as pl
from harness import ROOT, Measured, main, say

from truing.flows.demo.adult import read_adult
from truing.tasks.evaluation.answers import ask
from truing.tasks.evaluation.comparison import assess
from truing.tasks.evaluation.counterfactual import table_effects
from truing.tasks.evaluation.gate import judge
from truing.tasks.evaluation.probing import scored
from truing.tasks.evaluation.repair import Repaired, attribute_of, harmed, repair
from truing.tasks.kinds.model import Model
from truing.tasks.learning.improve import tune
from truing.tasks.policy import Policy, load_policy
from truing.tasks.problem import Group, Input, Problem, load_problem
from truing.tasks.seal import canonical

TRUSTED = 2_000
FOLDS = 3
RESAMPLES = 2_000
HALF, POINT = 0.5, 0.01  # what has to be shown: at least halved, at most a point of accuracy


@dataclass
class Found:
    """One run. `answers`: variant → cell of each holdout row (see `code`); `gate`: what was said of the poisoned round."""

    run: int
    people: list[int]
    answers: dict[str, list[int]]
    seconds: dict[str, float] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    reads_sex: float = 0.0
    gap_by_gate: float = 0.0
    flips: tuple[float, float] = (0.0, 0.0)
    gate: dict[str, str] = field(default_factory=dict)


# --- the setting --------------------------------------------------------------------------------------------------------------


def setting() -> tuple[Problem, Policy]:
    """Adult, with sex among the inputs for thresholds by group only: no encoder reads it there."""
    folder = ROOT / "problems" / "adult"
    problem = load_problem(folder)
    policy = load_policy(folder, problem)
    sex = Group(values=problem.groups["sex"].values, served=True)
    inputs = {**problem.inputs, "sex": Input(type="category", optional=True)}
    return msgspec.structs.replace(problem, inputs=inputs, groups={**problem.groups, "sex": sex}), policy


@dataclass
class Split:
    trusted: pl.DataFrame
    first: pl.DataFrame
    second: pl.DataFrame
    validation: pl.DataFrame
    holdout: pl.DataFrame


def split(problem: Problem, run: int) -> Split:
    """Rows as the lake holds them: a third holdout, 10 % validation, 2,000 trusted, the rest in two halves of traffic.

    Three runs share one shuffle, each with another third as holdout, so that together they judge everybody once.
    """
    people = read_adult()
    order = [int(i) for i in np.random.default_rng(run // FOLDS).permutation(len(people))]
    third = len(order) // FOLDS
    order = order[run % FOLDS * third :] + order[: run % FOLDS * third]
    holdout, validation = third, third + len(order) // 10
    middle = (validation + TRUSTED + len(order)) // 2

    def rows(chosen: list[int], name: str, at: float) -> pl.DataFrame:
        lines = []
        for i in chosen:
            one = people[i]
            content = {key: one[key] for key in problem.inputs if one.get(key) is not None}
            groups = problem.buckets({key: one.get(key) for key in problem.groups})
            lines.append(
                {"id": f"r{i}", "subject": f"s{i}", "content": canonical(content), "groups": canonical(groups).decode(),
                 "target": one[problem.label], "origin": "outcome", "split": name, "weight": 1.0,
                 "asked_at": at, "labelled_at": at, "matured_at": at}
            )  # fmt: skip
        return pl.DataFrame(lines)

    return Split(
        rows(order[validation : validation + TRUSTED], "trusted", 1.0),
        rows(order[validation + TRUSTED : middle], "train", 2.0),
        rows(order[middle:], "train", 3.0),
        rows(order[holdout:validation], "validation", 2.0),
        rows(order[:holdout], "holdout", 2.0),
    )


# --- measuring ----------------------------------------------------------------------------------------------------------------


def answers(model: Model, rows: pl.DataFrame) -> np.ndarray:
    said = model.predict([json.loads(content) for content in rows["content"]])
    return np.array([label == model.card.positive for label in said.labels])


def truth_of(rows: pl.DataFrame, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    women = np.array([json.loads(groups)["sex"] == "Female" for groups in rows["groups"]])
    return (rows["target"] == problem.positive).to_numpy(), women


def code(truth: np.ndarray, women: np.ndarray, before: np.ndarray, after: np.ndarray) -> list[int]:
    """Each row's cell among (2 women, 2 truth, 2 before, 2 after)."""
    return [int(cell) for cell in ((women * 2 + truth) * 2 + before) * 2 + after]


def gap_and_accuracy(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gaps and accuracies, before and after; `counts` (…, 16)."""
    counts = counts.reshape(*counts.shape[:-1], 2, 2, 2, 2)
    found = []
    for axis in (-1, -2):  # sum out the other model's answer
        one = counts.sum(axis=axis)
        rate = one[..., 1] / np.maximum(one.sum(axis=-1), 1)
        gap = np.abs(rate[..., 0, :] - rate[..., 1, :]).max(axis=-1)
        right = one[..., 1, 1].sum(axis=-1) + one[..., 0, 0].sum(axis=-1)
        found.append((gap, right / counts.sum(axis=(-4, -3, -2, -1))))
    return found[0][0], found[1][0], found[0][1], found[1][1]


def measured(found: list[Found], variant: str) -> dict[str, float]:
    """Gap before and after, the share left and the accuracy lost over all runs, with 95 % intervals over people."""
    have = [each for each in found if variant in each.answers]
    people = np.concatenate([each.people for each in have])
    cells = np.concatenate([each.answers[variant] for each in have]).astype(np.int64)
    size, rng = int(people.max()) + 1, np.random.default_rng(0)
    present = np.bincount(people, minlength=size) > 0
    drawn = np.empty((RESAMPLES, 16))
    for at in range(RESAMPLES):
        weights = np.zeros(size)
        weights[present] = np.bincount(rng.integers(present.sum(), size=present.sum()), minlength=int(present.sum()))
        drawn[at] = np.bincount(cells, weights=weights[people], minlength=16)
    now, resampled = (gap_and_accuracy(counts) for counts in (np.bincount(cells, minlength=16).astype(float), drawn))
    values: dict[str, float] = {}
    for name, point, many in (
        ("before", now[0], resampled[0]),
        ("gap", now[1], resampled[1]),
        ("share", now[1] / now[0], resampled[1] / resampled[0]),
        ("loss", now[2] - now[3], resampled[2] - resampled[3]),
    ):
        low, high = np.quantile(many, [0.025, 0.975])
        values |= {name: float(point), f"{name}_low": float(low), f"{name}_high": float(high)}
    return values


# --- one run ------------------------------------------------------------------------------------------------------------------


def one(run: int, peers: bool, trials: int) -> Found:
    problem, policy = setting()
    parts = split(problem, run)
    never = tune(problem, policy, parts.trusted, parts.validation.clear(), None, seed=run, threads=1).model
    samples = pl.concat([parts.trusted, parts.first, parts.second])
    base = tune(problem, policy, samples, parts.validation, never, seed=run, trials=trials, threads=1).model
    truth, women = truth_of(parts.holdout, problem)
    before = answers(base, parts.holdout)
    found = Found(run, [int(name[1:]) for name in parts.holdout["id"]], {})
    for name, allowed in (("ours", False), ("ours_by_group", True)):
        began = time.perf_counter()
        made = repair(
            problem, samples, parts.validation, base, attribute="sex", by_group_thresholds=allowed,
            methods=("thresholds",) if allowed else ("reweighing", "constrained"),
        )  # fmt: skip
        found.seconds[name] = time.perf_counter() - began
        if made is None:
            continue
        served = Model.from_files(made.model.to_files())  # what the gateway would load
        found.methods[name] = made.method
        found.answers[name] = code(truth, women, before, answers(served, parts.holdout))
        if not allowed:
            found.reads_sex = _turned(served, parts.holdout)
            found.gap_by_gate = _held_by_gate(problem, policy, parts.holdout, served, base)
            found.flips = _as_spouse(base, parts, problem), _as_spouse(served, parts, problem)
    if peers:
        _fairlearn(found, problem, parts, samples, base, truth, women, before)
    found.gate |= _blocked_round(problem, policy, parts, never, run, trials)
    return found


def _turned(model: Model, rows: pl.DataFrame) -> float:
    """Share of answers that change when everybody's sex is another: what a model does that reads it."""
    other = {"Female": "Male", "Male": "Female"}
    plain = [json.loads(content) for content in rows["content"]]
    swapped = [{**row, "sex": other[row["sex"]]} for row in plain]
    was, now = model.predict(plain).labels, model.predict(swapped).labels
    return float(np.mean([a != b for a, b in zip(was, now, strict=True)]))


def _as_spouse(model: Model, parts: Split, problem: Problem) -> float:
    """Share of wives and husbands whose answer flips when they are written down as the other: how a model tells sex anyway."""
    drawn = parts.holdout.head(4000)
    buckets = [json.loads(groups)["sex"] for groups in drawn["groups"]]
    inputs = [{k: v for k, v in json.loads(content).items() if k != "sex"} for content in drawn["content"]]
    plain = {**problem.inputs}
    del plain["sex"]
    problem = msgspec.structs.replace(problem, inputs=plain, groups={"sex": problem.groups["sex"]})
    effects = table_effects(problem, inputs, {"sex": buckets}, scored(model, problem))
    return effects["flip:sex"].value or 0.0


def _held_by_gate(problem: Problem, policy: Policy, holdout: pl.DataFrame, model: Model, base: Model) -> float:
    """The same gap by the gate's own comparison: there is no second way of counting."""
    asked = ask(
        holdout, problem, policy, candidate=model, champion=base, none=None, anchor=None, look=1, now=10.0,
        digests={"candidate": model.payload, "champion": base.payload},
    )  # fmt: skip
    evaluation, _ = assess(asked, problem, policy)
    cell = {(one.slice, one.metric): one.candidate or 0.0 for one in evaluation.cells}
    return max(abs(cell["sex=Female", metric] - cell["sex=Male", metric]) for metric in ("tpr", "fpr"))


def _blocked_round(problem: Problem, policy: Policy, parts: Split, never: Model, seed: int, trials: int) -> dict[str, str]:
    """A champion from the first half of the traffic; then users call nearly all women's positives of both halves negative."""
    problem = msgspec.structs.replace(problem, name="adult")
    champion = tune(
        problem, policy, pl.concat([parts.trusted, parts.first]), parts.validation, never, seed=seed, trials=trials, threads=1
    ).model
    rng = np.random.default_rng([seed, 7])
    traffic = pl.concat([parts.first, parts.second])
    truth, women = truth_of(traffic, problem)
    outcome = rng.random(traffic.height) < 0.15
    hit = women & truth & ~outcome & (rng.random(traffic.height) < 0.9)
    negative = next(label for label in problem.labels if label != problem.positive)
    taught = traffic.with_columns(
        target=pl.when(pl.Series(hit)).then(pl.lit(negative)).otherwise(pl.col("target")),
        origin=pl.when(pl.Series(outcome)).then(pl.lit("outcome")).otherwise(pl.lit("correction")),
        labelled_at=pl.lit(4.0),
    )
    samples = pl.concat([parts.trusted, taught])
    candidate = tune(problem, policy, samples, parts.validation, champion, seed=seed, trials=trials, threads=1).model
    told = {"candidate": _verdict(problem, policy, parts, candidate, champion, never)}
    verdict = told["candidate"]
    asked = harmed(verdict.clauses)
    made: Repaired | None = None
    if asked:
        made = repair(
            problem, samples, parts.validation, candidate, attribute=attribute_of(asked), champion=champion,
            clauses=verdict.clauses, methods=("reweighing", "constrained"),
        )  # fmt: skip
    found = {"blocked": str(verdict.outcome), "blocked_reason": verdict.reason, "repaired": "none offered"}
    if made is not None:
        after = _verdict(problem, policy, parts, made.model, champion, never)
        found |= {"repaired": str(after.outcome), "repaired_reason": after.reason, "note": made.note}
    return found


def _verdict(problem: Problem, policy: Policy, parts: Split, model: Model, champion: Model, anchor: Model) -> Any:
    digests = {"candidate": model.payload, "champion": champion.payload, "none": champion.payload, "anchor": anchor.payload}
    asked = ask(
        parts.holdout, problem, policy, candidate=model, champion=champion, none=champion, anchor=anchor, look=1, now=10.0,
        digests=digests,
    )  # fmt: skip
    evaluation, scores = assess(asked, problem, policy)
    return judge(evaluation, scores, problem, policy, dataset="d", key="k", now=10.0, seed=1)


def _fairlearn(
    found: Found, problem: Problem, parts: Split, samples: pl.DataFrame, base: Model, truth: np.ndarray, women: np.ndarray,
    before: np.ndarray,
) -> None:  # fmt: skip
    """ThresholdOptimizer on our scores (it reads sex, and draws lots), ExponentiatedGradient on our units (it draws lots)."""
    from fairlearn.postprocessing import ThresholdOptimizer
    from fairlearn.reductions import EqualizedOdds, ExponentiatedGradient
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.linear_model import LogisticRegression

    def units(rows: pl.DataFrame) -> np.ndarray:
        return base.encoder.encode([json.loads(content) for content in rows["content"]])

    class Ours(ClassifierMixin, BaseEstimator):
        classes_ = np.array([0, 1])
        fitted_ = True

        def fit(self, x: Any, y: Any) -> Ours:
            return self

        def predict_proba(self, x: Any) -> np.ndarray:
            p = base.probabilities(np.asarray(x, np.float32))[:, base.positive]
            return np.column_stack([1 - p, p])

        def predict(self, x: Any) -> np.ndarray:
            return (self.predict_proba(x)[:, 1] >= 0.5).astype(int)

    learned = pl.concat([samples, parts.validation])
    x, (y, female) = units(learned), truth_of(learned, problem)
    after = units(parts.holdout)
    began = time.perf_counter()
    post = ThresholdOptimizer(estimator=Ours(), constraints="equalized_odds", prefit=True, predict_method="predict_proba")
    post.fit(x, y.astype(int), sensitive_features=female)
    said = np.asarray(post.predict(after, sensitive_features=women, random_state=found.run)).astype(bool)
    found.answers["ThresholdOptimizer"] = code(truth, women, before, said)
    found.seconds["ThresholdOptimizer"] = time.perf_counter() - began
    began = time.perf_counter()
    learner = LogisticRegression(C=3.0, solver="newton-cholesky", max_iter=30)
    reduced = ExponentiatedGradient(learner, EqualizedOdds(difference_bound=0.02), max_iter=8)
    reduced.fit(x, y.astype(int), sensitive_features=female)
    said = np.asarray(reduced.predict(after, random_state=found.run)).astype(bool)
    found.answers["ExponentiatedGradient"] = code(truth, women, before, said)
    found.seconds["ExponentiatedGradient"] = time.perf_counter() - began


# --- what is reported ---------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> Measured:
    runs = 1 if arguments.quick else arguments.runs
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ[name] = "1"
    import multiprocessing

    chosen = range(arguments.first, arguments.first + runs)
    peers = [not (arguments.quick or arguments.alone) and run - arguments.first < arguments.peers for run in chosen]
    found: list[Found] = []
    with ProcessPoolExecutor(1 if runs == 1 else 2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for each in pool.map(partial(one, trials=1 if arguments.quick else 4), chosen, peers):
            found.append(each)
            told = measured([each], "ours") if "ours" in each.answers else {"before": 0.0, "gap": 0.0, "loss": 0.0}
            say(
                f"run {each.run}: gap {told['before']:.3f} to {told['gap']:.3f}, accuracy {-told['loss']:+.4f} "
                f"({', '.join(each.methods.values())}); poisoned round {each.gate['blocked']}, repaired {each.gate['repaired']}"
            )
    if arguments.save:
        Path(arguments.save).write_bytes(msgspec.json.encode(found))
    return report(found)


PEERS = ("ThresholdOptimizer", "ExponentiatedGradient")


def report(found: list[Found]) -> Measured:
    variants = list(dict.fromkeys(name for each in found for name in each.answers))
    people = len({person for each in found for person in each.people})
    lines = [
        f"{len(found)} runs, {people:,} people judged by models that never saw them; 95 % intervals over people",
        f"{'':<23}{'gap before':>11}{'gap after':>25}{'share left':>21}{'accuracy lost':>28}{'sex read':>9}{'seconds':>8}",
    ]
    figures: dict[str, Any] = {"runs": len(found)}
    beside: dict[str, Any] = {}
    seen = {name: measured(found, name) for name in variants}
    for name, told in seen.items():
        seconds = float(np.mean([each.seconds[name] for each in found if name in each.answers]))
        lines.append(
            f"{name:<23}{told['before']:>11.3f}{_between(told, 'gap', 3):>25}{_between(told, 'share', 2):>21}"
            f"{_between(told, 'loss', 4):>28}{'yes' if name in ('ours_by_group', PEERS[0]) else 'no':>9}{seconds:>8.1f}"
        )
        if name == "ours":
            figures |= {
                "gap_before": told["before"], "gap_after": told["gap"], "gap_after_high": told["gap_high"],
                "accuracy_loss": told["loss"], "accuracy_loss_high": told["loss_high"], "share_left": told["share"],
                "share_left_low": told["share_low"], "share_left_high": told["share_high"], "seconds": seconds,
            }  # fmt: skip
        elif name == "ours_by_group":
            figures |= {"by_group_gap_after": told["gap"], "by_group_accuracy_loss": told["loss"]}
        else:
            beside |= {f"{name} gap_before": told["before"], f"{name} gap_after": told["gap"],
                       f"{name} accuracy_loss": told["loss"], f"{name} seconds": seconds}  # fmt: skip
    for name in PEERS:
        if name not in variants:
            beside[name] = None
            lines.append(f"{name}: not run with --quick or --alone")
    flips = [float(np.mean([each.flips[side] for each in found])) for side in (0, 1)]
    outcomes = [each.gate["repaired"] for each in found if each.gate["blocked"] == "block"]
    figures |= {
        "spouse_flips_before": flips[0], "spouse_flips_after": flips[1], "poisoned_blocked": len(outcomes),
        "repaired_pass": outcomes.count("pass"), "repaired_open": outcomes.count("inconclusive"),
        "repaired_blocked": outcomes.count("block"),
    }  # fmt: skip
    lines.append(
        f"wives and husbands whose answer flips when written down as the other: {flips[0]:.1%} before, {flips[1]:.1%} after: "
        "without sex, a model finds it in what goes with it"
    )
    for each in found[:3]:
        lines.append(f"run {each.run}, poisoned round: {each.gate['blocked']}: {each.gate['blocked_reason'][:140]}")
        if "note" in each.gate:
            lines.append(f"    {each.gate['note']}")
            lines.append(f"    the gate on it: {each.gate['repaired']}: {each.gate['repaired_reason'][:140]}")
    return Measured(figures, beside, lines, _broken(found, seen))


def _between(told: dict[str, float], name: str, digits: int) -> str:
    return f"{told[name]:.{digits}f} ({told[f'{name}_low']:.{digits}f} to {told[f'{name}_high']:.{digits}f})"


def _broken(found: list[Found], seen: dict[str, dict[str, float]]) -> list[str]:
    """Guarantees. One run says little about a gap: there only what its interval rules out is broken."""
    if "ours" not in seen:
        return ["no repair was found"]
    ours, broken = seen["ours"], []
    pooled = len(found) >= FOLDS
    if ours["share" if pooled else "share_low"] > HALF:
        broken.append(f"expected at most half of the gap to be left, got {_between(ours, 'share', 2)}")
    if ours["loss" if pooled else "loss_low"] > POINT:
        broken.append(f"expected at most a point of accuracy to be lost, got {_between(ours, 'loss', 4)}")
    for each in found:
        if each.reads_sex:
            broken.append(f"run {each.run}: {each.reads_sex:.2%} of the answers change with sex")
        told = measured([each], "ours")["gap"] if "ours" in each.answers else each.gap_by_gate
        if abs(told - each.gap_by_gate) > 1e-9:
            broken.append(f"run {each.run}: the gate counts another gap, {each.gap_by_gate:.4f}")
        if each.gate["blocked"] == "pass":
            broken.append(f"run {each.run}: the poisoned candidate passed")
    return broken


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=3, help="thirds of shuffles of Adult (default 3: everybody once)")
    parser.add_argument("--first", type=int, default=300, help="the first run; 0 to 299 were used for choosing (default 300)")
    parser.add_argument("--peers", type=int, default=2, help="runs on which fairlearn is measured too (default 2)")
    parser.add_argument("--alone", action="store_true", help="without fairlearn")
    parser.add_argument("--save", help="write everything as JSON to this file")


if __name__ == "__main__":
    sys.exit(main("repair", measure, options=options))
