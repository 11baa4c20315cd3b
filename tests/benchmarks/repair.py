"""Can a model that treats women and men unequally be repaired at little cost, without looking at anybody's sex?

Adult, several seeds. A model as the loop makes it (trusted rows, then an update on all others) is repaired by the steward's own
code on training and validation rows, and measured on holdout rows that took no part in any choice, through the serving build
and the gate's own comparison. The gap is the equalized-odds difference by sex: the larger of the differences of TPR and FPR.
A second variant may read sex, as thresholds by group do. Beside them fairlearn, on the same rows, units and scores.

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
from truing.tasks.evaluation.comparison import compare
from truing.tasks.evaluation.gate import judge
from truing.tasks.evaluation.repair import Repaired, attribute_of, harmed, repair
from truing.tasks.kinds.model import Model
from truing.tasks.learning.improve import tune
from truing.tasks.policy import Policy, load_policy
from truing.tasks.problem import Group, Input, Problem, load_problem
from truing.tasks.seal import canonical

TRUSTED = 2_000
RESAMPLES = 10_000
HALF, POINT = 0.5, 0.01  # what has to be shown: at least halved, at most a point of accuracy


@dataclass
class Found:
    """One seed. `gate`: what was said of the poisoned round's candidate and of its repair."""

    seed: int
    before: float
    variants: dict[str, dict[str, float]]  # ours, ours_by_group, fairlearn … → gap, loss, their bounds, share, seconds
    methods: dict[str, str]
    reads_sex: float
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


def split(problem: Problem, seed: int) -> Split:
    """Rows as the lake holds them; 30 % holdout, 10 % validation, 2,000 trusted, the rest in two halves of traffic."""
    people = read_adult()
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(people))]
    holdout, validation = int(0.3 * len(order)), int(0.4 * len(order))
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


def table(truth: np.ndarray, women: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Counts (2 women, 2 truth, 2 before, 2 after)."""
    code = ((women * 2 + truth) * 2 + before) * 2 + after
    return np.bincount(code, minlength=16).reshape(2, 2, 2, 2)


def gap_and_accuracy(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Equalized-odds differences and accuracies, before and after; `counts` (…, 2, 2, 2, 2)."""
    found = []
    for axis in (-1, -2):  # sum out the other model's answer
        one = counts.sum(axis=axis)
        rate = one[..., 1] / np.maximum(one.sum(axis=-1), 1)
        gap = np.abs(rate[..., 0, :] - rate[..., 1, :]).max(axis=-1)
        right = one[..., 1, 1].sum(axis=-1) + one[..., 0, 0].sum(axis=-1)
        found.append((gap, right / counts.sum(axis=(-4, -3, -2, -1))))
    return found[0][0], found[1][0], found[0][1], found[1][1]


def measured(truth: np.ndarray, women: np.ndarray, before: np.ndarray, after: np.ndarray, seed: int) -> dict[str, float]:
    """Gap before and after, their ratio and the accuracy lost, with paired 95 % bootstrap intervals over the rows."""
    counts = table(truth, women, before, after)
    draws = np.random.default_rng(seed).multinomial(counts.sum(), counts.ravel() / counts.sum(), size=RESAMPLES)
    values = {}
    for name, point, drawn in zip(
        ("before", "after", "was", "now"),
        gap_and_accuracy(counts),
        gap_and_accuracy(draws.reshape(-1, 2, 2, 2, 2)),
        strict=True,
    ):
        values[name] = (float(point), drawn)
    loss = values["was"][0] - values["now"][0], values["was"][1] - values["now"][1]
    share = values["after"][0] / values["before"][0], values["after"][1] / values["before"][1]
    return {
        "gap": values["after"][0], **_ends("gap", values["after"][1]),
        "share": share[0], **_ends("share", share[1]),
        "loss": loss[0], **_ends("loss", loss[1]),
    }  # fmt: skip


def _ends(name: str, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


# --- one seed -----------------------------------------------------------------------------------------------------------------


def one(seed: int, peers: bool, trials: int) -> Found:
    problem, policy = setting()
    parts = split(problem, seed)
    never = tune(problem, policy, parts.trusted, parts.validation.clear(), None, seed=seed, threads=1).model
    samples = pl.concat([parts.trusted, parts.first, parts.second])
    base = tune(problem, policy, samples, parts.validation, never, seed=seed, trials=trials, threads=1).model
    truth, women = truth_of(parts.holdout, problem)
    before = answers(base, parts.holdout)
    found = Found(seed, float(gap_and_accuracy(table(truth, women, before, before))[0]), {}, {}, 0.0)
    for name, allowed in (("ours", False), ("ours_by_group", True)):
        began = time.perf_counter()
        made = repair(
            problem, samples, parts.validation, base, attribute="sex", by_group_thresholds=allowed,
            methods=("thresholds",) if allowed else ("reweighing", "constrained"),
        )  # fmt: skip
        seconds = time.perf_counter() - began
        if made is None:
            continue
        served = Model.from_files(made.model.to_files())  # what the gateway would load
        found.methods[name] = made.method
        found.variants[name] = measured(truth, women, before, answers(served, parts.holdout), seed) | {"seconds": seconds}
        if not allowed:
            found.reads_sex = _turned(served, parts.holdout)
            _held_by_gate(found, problem, policy, parts.holdout, served, base)
    if peers:
        found.variants |= _fairlearn(problem, parts, samples, base, truth, women, before, seed)
    found.gate |= _blocked_round(problem, policy, parts, never, seed, trials)
    return found


def _turned(model: Model, rows: pl.DataFrame) -> float:
    """Share of answers that change when everybody's sex is another: what a model does that reads it."""
    other = {"Female": "Male", "Male": "Female"}
    plain = [json.loads(content) for content in rows["content"]]
    swapped = [{**row, "sex": other[row["sex"]]} for row in plain]
    was, now = model.predict(plain).labels, model.predict(swapped).labels
    return float(np.mean([a != b for a, b in zip(was, now, strict=True)]))


def _held_by_gate(found: Found, problem: Problem, policy: Policy, holdout: pl.DataFrame, model: Model, base: Model) -> None:
    """The same gap by the gate's own comparison: no second way of counting."""
    evaluation, _ = compare(
        holdout, problem, policy, candidate=model, champion=base, none=None, anchor=None, look=1, now=10.0,
        digests={"candidate": model.payload, "champion": base.payload},
    )  # fmt: skip
    cell = {(one.slice, one.metric): one.candidate or 0.0 for one in evaluation.cells}
    gaps = [abs(cell["sex=Female", metric] - cell["sex=Male", metric]) for metric in ("tpr", "fpr")]
    found.variants["ours"]["gap_by_gate"] = max(gaps)


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
    evaluation, scores = compare(
        parts.holdout, problem, policy, candidate=model, champion=champion, none=champion, anchor=anchor, look=1, now=10.0,
        digests=digests,
    )  # fmt: skip
    return judge(evaluation, scores, problem, policy, dataset="d", key="k", now=10.0, seed=1)


def _fairlearn(
    problem: Problem, parts: Split, samples: pl.DataFrame, base: Model, truth: np.ndarray, women: np.ndarray,
    before: np.ndarray, seed: int,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """ThresholdOptimizer on our scores (it reads sex, and draws lots), ExponentiatedGradient on our units."""
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
    found = {}
    began = time.perf_counter()
    post = ThresholdOptimizer(estimator=Ours(), constraints="equalized_odds", prefit=True, predict_method="predict_proba")
    post.fit(x, y.astype(int), sensitive_features=female)
    said = np.asarray(post.predict(after, sensitive_features=women, random_state=seed)).astype(bool)
    found["ThresholdOptimizer"] = measured(truth, women, before, said, seed) | {"seconds": time.perf_counter() - began}
    began = time.perf_counter()
    reduced = ExponentiatedGradient(
        LogisticRegression(C=3.0, solver="newton-cholesky", max_iter=30), EqualizedOdds(difference_bound=0.02), max_iter=12
    )
    reduced.fit(x, y.astype(int), sensitive_features=female)
    said = np.asarray(reduced.predict(after, random_state=seed)).astype(bool)
    found["ExponentiatedGradient"] = measured(truth, women, before, said, seed) | {"seconds": time.perf_counter() - began}
    return found


# --- what is reported ---------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> Measured:
    seeds = 1 if arguments.quick else arguments.seeds
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ[name] = "1"
    import multiprocessing

    work = partial(one, peers=not arguments.quick and not arguments.alone, trials=1 if arguments.quick else 4)
    found: list[Found] = []
    with ProcessPoolExecutor(1 if seeds == 1 else 2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for each in pool.map(work, range(arguments.first, arguments.first + seeds)):
            found.append(each)
            ours = each.variants.get("ours", {})
            say(
                f"seed {each.seed}: gap {each.before:.3f} to {ours.get('gap', float('nan')):.3f}, accuracy "
                f"{-ours.get('loss', float('nan')):+.4f} ({each.methods}); round {each.gate['blocked']}, "
                f"repaired {each.gate['repaired']}"
            )
    if arguments.save:
        Path(arguments.save).write_bytes(msgspec.json.encode(found))
    return report(found)


def report(found: list[Found]) -> Measured:
    variants = list(dict.fromkeys(name for each in found for name in each.variants))
    lines = [
        f"{len(found)} seeds, 14,652 holdout rows each; gap = equalized-odds difference by sex; means over seeds, in brackets",
        "the worst seed's end of its paired 95 % interval",
        f"{'':<24}{'gap before':>11}{'gap after':>11}{'share left':>20}{'accuracy lost':>20}{'reads sex':>11}{'seconds':>9}",
    ]
    figures: dict[str, Any] = {"seeds": len(found), "gap_before": _mean([each.before for each in found])}
    beside: dict[str, Any] = {}
    for name in variants:
        have = [each.variants[name] for each in found if name in each.variants]
        mean = {key: _mean([one[key] for one in have]) for key in have[0]}
        worst = {key: max(one[key] for one in have) for key in ("share_high", "loss_high")}
        lines.append(
            f"{name:<24}{figures['gap_before']:>11.3f}{mean['gap']:>11.3f}{mean['share']:>11.2f} ({worst['share_high']:.2f})"
            f"{mean['loss']:>+13.4f} ({worst['loss_high']:+.4f}){_reads(name):>9}{mean['seconds']:>9.1f}"
        )
        if name == "ours":
            figures |= {"gap_after": mean["gap"], "accuracy_loss": mean["loss"], "share_left": mean["share"],
                        "share_left_high": _upper([one["share"] for one in have]),
                        "accuracy_loss_high": _upper([one["loss"] for one in have]),
                        "gap_after_worst_high": max(one["gap_high"] for one in have), "seconds": mean["seconds"]}  # fmt: skip
        elif name == "ours_by_group":
            figures |= {"by_group_gap_after": mean["gap"], "by_group_accuracy_loss": mean["loss"]}
        else:
            beside |= {
                f"{name} gap_after": mean["gap"],
                f"{name} accuracy_loss": mean["loss"],
                f"{name} seconds": mean["seconds"],
            }
    for name in ("ThresholdOptimizer", "ExponentiatedGradient"):
        if name not in variants:
            beside[name] = None
            lines.append(f"{name}: left out by --quick or --alone")
    blocked = [each for each in found if each.gate["blocked"] == "block"]
    figures |= {
        "poisoned_blocked": len(blocked), "repaired_pass": sum(each.gate["repaired"] == "pass" for each in blocked),
        "repaired_blocked": sum(each.gate["repaired"] == "block" for each in blocked),
        "repaired_open": sum(each.gate["repaired"] == "inconclusive" for each in blocked),
    }  # fmt: skip
    for each in found[:3]:
        lines += [f"seed {each.seed}, poisoned round: {each.gate['blocked']}: {each.gate['blocked_reason'][:150]}"]
        if "note" in each.gate:
            lines += [
                f"    {each.gate['note']}",
                f"    the gate on it: {each.gate['repaired']}: {each.gate['repaired_reason'][:150]}",
            ]
    return Measured(figures, beside, lines, list(_broken(found)))


def _broken(found: list[Found]) -> list[str]:
    """Guarantees: over the seeds halved, at most a point lost; no seed's answers depend on sex; one way of counting."""
    lines = [f"seed {each.seed}: no repair was found" for each in found if "ours" not in each.variants]
    have = [each for each in found if "ours" in each.variants]
    if have:
        share, loss = (_mean([each.variants["ours"][key] for each in have]) for key in ("share", "loss"))
        if share > HALF:
            lines.append(f"expected at most half of the gap to be left, got {share:.2f}")
        if loss > POINT:
            lines.append(f"expected at most a point of accuracy to be lost, got {loss:.4f}")
    for each in have:
        if each.reads_sex:
            lines.append(f"seed {each.seed}: {each.reads_sex:.2%} of the answers change with sex")
        if abs(each.variants["ours"]["gap"] - each.variants["ours"]["gap_by_gate"]) > 1e-9:
            lines.append(f"seed {each.seed}: the gate counts another gap, {each.variants['ours']['gap_by_gate']:.4f}")
        if each.gate["blocked"] == "pass":
            lines.append(f"seed {each.seed}: the poisoned candidate passed")
    return lines


def _reads(name: str) -> str:
    return "yes" if name in ("ours_by_group", "ThresholdOptimizer") else "no"


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _upper(values: list[float]) -> float | None:
    """One-sided 97.5 % upper bound of the mean over seeds (Student's t)."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    return _mean(values) + float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / len(values) ** 0.5


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=6, help="splits of Adult (default 6; --quick runs 1)")
    parser.add_argument("--first", type=int, default=100, help="the first seed (default 100)")
    parser.add_argument("--alone", action="store_true", help="without fairlearn")
    parser.add_argument("--save", help="write everything as JSON to this file")


if __name__ == "__main__":
    sys.exit(main("repair", measure, options=options))
