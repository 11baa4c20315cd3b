"""Champion, candidate, "no update" and anchor on the same sealed rows, through the build that serves.

Only rows whose target is a matured outcome or a blind review may judge. Selection rates need no labels, so every holdout
row counts there. Beside the models stands the *prior predictor*, which always answers with the base rate of the judging
rows: what a model must beat before there is any champion.

In two steps: `answers.ask` has the models answer, `assess` works everything out from the answers alone, so that the same
evaluation can be made again from what was kept of them (`rebuild`).
"""

from __future__ import annotations

import msgspec
import numpy as np

from truing.tasks.evaluation.answers import MODELS, Answers
from truing.tasks.evaluation.discovery import confirm
from truing.tasks.evaluation.indicators import measure
from truing.tasks.evaluation.scores import PRIOR, Scores
from truing.tasks.evaluation.slices import slices_of
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Cell, Estimate, Evaluation
from truing.tasks.seal import digest
from truing.tasks.statistics.cells import ALL, METRICS, Bools
from truing.tasks.statistics.fairness import rate_of
from truing.tasks.statistics.intervals import rate_interval
from truing.tasks.statistics.paired import Paired, interval


def assess(answers: Answers, problem: Problem, policy: Policy, *, evidence: str = "") -> tuple[Evaluation, Scores]:
    """Everything about the candidate that follows from the answers. `evidence`: digest of what is kept of them."""
    facts = answers.facts
    scores = scores_of(answers, problem)
    answer, judged = scores.answer, scores.judged
    reference_name = "champion" if "champion" in answer else PRIOR
    due = judged | answers.due
    coverage = float(judged.sum() / due.sum()) if due.any() else 0.0
    pool = judged if scores.weights is None else scores.weights > 0
    said = answers.label
    evaluation = Evaluation(
        digest="",
        problem=problem.name,
        candidate=facts.payloads["candidate"],
        champion=facts.payloads.get("champion"),
        none=facts.payloads.get("none"),
        anchor=facts.payloads.get("anchor"),
        rows=scores.rows,
        n=scores.n,
        coverage=coverage if facts.coverage is None else facts.coverage,
        cells=tuple(_cells(scores)),
        forgetting=_forgetting(scores, reference_name),
        flips=float((answer["candidate"] != answer[reference_name])[pool].mean()) if pool.any() else 0.0,
        shift=facts.shift,
        latency_ms=facts.latency_ms,
        size_mb=facts.size_mb,
        look=facts.look,
        at=facts.at,
        drift=float((said["candidate"] != said["anchor"]).mean()) if "anchor" in said and answers.ids else None,
        indicators=measure(scores),
        worst=confirm(
            scores, facts.found, answers.found, answers.held, policy, looks=policy.evidence.max_looks, seed=facts.look
        ),
        counterfactual=facts.measured.counterfactual,
        importance=facts.measured.importance,
        importance_shift=facts.measured.importance_shift,
        looks=facts.looks,
        sampled=facts.sampled,
        evidence=evidence,
        looks_anchor=facts.looks_anchor,
        unseen=facts.unseen,
    )
    return msgspec.structs.replace(evaluation, digest=digest(evaluation)), scores


def scores_of(answers: Answers, problem: Problem) -> Scores:
    """The answers as the gate's tables, with the prior predictor beside the models."""
    judged, positive = answers.judged, answers.positive
    worth = judged.astype(float) if answers.weights is None else np.where(judged, answers.weights, 0.0)
    base = float(worth @ positive) / float(worth.sum()) if worth.any() else float("nan")
    n = len(answers.ids)
    return Scores(
        rows=digest([one for one, counts in zip(answers.ids, judged, strict=True) if counts]),
        positive=positive,
        judged=judged,
        subjects=answers.subjects,
        slices=slices_of(answers.groups, problem),
        probability=answers.probability | {PRIOR: np.full(n, base)},
        answer={name: said == problem.positive for name, said in answers.label.items()} | {PRIOR: np.full(n, base >= 0.5)},
        weights=answers.weights,
        drawn=answers.drawn,
        given=answers.given,
        noisy=answers.noisy,
        doubles=answers.facts.doubles,
    )


def _cells(scores: Scores) -> list[Cell]:
    known: dict[tuple[str, str, int], Estimate] = {}  # models of one digest share their arrays

    def delta(name: str, metric: str, against: str) -> Estimate:
        if against not in scores.probability:
            return Estimate(value=None)
        key = (name, metric, id(scores.probability[against]))
        if key not in known:
            known[key] = estimate(scores.pair(name, metric, against))
        return known[key]

    out = []
    for name, mask in scores.slices.items():
        for metric in METRICS:
            values = {model: scores.value(model, metric, mask) for model in MODELS if model in scores.probability}
            out.append(
                Cell(
                    slice=name,
                    metric=metric,
                    n=int((scores.cells("candidate", metric)[1][mask] > 0).sum()),
                    base_rate=_base_rate(scores, mask),
                    champion=values.get("champion"),
                    candidate=values["candidate"],
                    none=values.get("none"),
                    anchor=values.get("anchor"),
                    delta=delta(name, metric, "champion"),
                    delta_none=delta(name, metric, "none"),
                    delta_anchor=delta(name, metric, "anchor"),
                )
            )
    return out


def _base_rate(scores: Scores, mask: Bools) -> float | None:
    judged = mask & scores.judged
    worth = judged.astype(float) if scores.weights is None else np.where(judged, scores.weights, 0.0)
    return float(worth @ scores.positive) / float(worth.sum()) if worth.any() else None


def estimate(paired: Paired, level: float = 0.95) -> Estimate:
    """A paired drop as a record, with its two-sided interval; None instead of NaN."""
    if not paired.estimable:
        return Estimate(value=None, n=paired.n, level=level)
    low, high = interval(paired, level)
    return Estimate(value=paired.drop, low=min(low, paired.drop), high=max(high, paired.drop), n=paired.n, level=level)


def _forgetting(scores: Scores, reference: str) -> Estimate:
    """Share of the rows that the reference had right and the candidate has wrong (negative flips; Yan et al. 2021)."""
    if reference == PRIOR:
        return Estimate(value=None)
    right = scores.judged & scores.mask(ALL) & (scores.answer[reference] == scores.positive)
    lost = right & (scores.answer["candidate"] != scores.positive)
    if scores.weights is None:
        return rate_interval(float(lost.sum()), float(right.sum()))
    rate = rate_of(lost.astype(float), right.astype(float), weights=np.where(scores.judged, scores.weights, 0.0))
    return Estimate(value=None) if rate is None else rate_interval(rate.value * rate.n, rate.n)
