"""Champion, candidate, "no update" and anchor on the same sealed rows, through the build that serves.

Only rows whose target is a matured outcome or a blind review may judge. Selection rates need no labels, so every holdout
row counts there. Beside the models stands the *prior predictor*, which always answers with the base rate of the judging
rows: what a model must beat before there is any champion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from truing.tasks.errors import DataError
from truing.tasks.evaluation.scores import PRIOR, Scores
from truing.tasks.evaluation.slices import slices_of
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem, seconds
from truing.tasks.records import Cell, Estimate, Evaluation, Origin, Split
from truing.tasks.seal import digest
from truing.tasks.statistics.cells import (
    ALL,
    METRICS,
    Bools,
    Floats,
    ratio,
)
from truing.tasks.statistics.intervals import rate_interval
from truing.tasks.statistics.paired import Paired, interval
from truing.tasks.statistics.shift import psi

if TYPE_CHECKING:
    import polars as pl

MODELS = ("candidate", "champion", "none", "anchor")
COLUMNS = ("id", "subject", "content", "groups", "target", "origin", "asked_at", "matured_at")


class Answered(Protocol):
    """What a model says about n rows: labels (n), probabilities (n, k) in the order of the problem's labels."""

    @property
    def labels(self) -> Sequence[str]: ...

    @property
    def probabilities(self) -> Floats: ...


class Predictor(Protocol):
    """Anything that answers like `truing.tasks.kinds.model.Model`."""

    def predict(self, inputs: list[dict[str, Any]]) -> Answered: ...


def rows_digest(rows: pl.DataFrame, problem: Problem, *, now: float) -> str:
    """Digest of the ids of the rows that judge now: the name of the sealed set, under which looks are counted."""
    chosen, judged = _holdout(rows, problem, now)
    return digest(chosen["id"].filter(judged).to_list())


def compare(
    rows: pl.DataFrame,
    problem: Problem,
    policy: Policy,
    *,
    candidate: Predictor,
    champion: Predictor | None,
    none: Predictor | None,
    anchor: Predictor | None,
    digests: Mapping[str, str | None],
    look: int,
    now: float,
    coverage: float | None = None,
    timer: Callable[[], float] | None = None,
    size_mb: float = 0.0,
    reference: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[Evaluation, Scores]:
    """Score all models on the holdout rows that may judge.

    Args:
        rows: the vault's holdout, newest state of each row. With the unmatured ones too (`vault.holdout(…, matured=False)`)
            selection rates count all of them, and the coverage is worked out here.
        candidate, champion, none, anchor: models; "none" is the candidate's parent without the new rows ("no update").
        digests: payload digest of each model given, by those names. Models of one digest are asked once.
        look: which look at this candidate this is, from 1 (`ledger.look_at`).
        coverage: share of the holdout rows old enough for an outcome that have one, where the caller knows it better: pass
            it when `rows` holds matured ones only, else it reads 1.
        timer: a clock in seconds; without one `latency_ms` (candidate, per 1,000 rows) is 0.
        size_mb: the candidate's files together, 10^6 bytes.
        reference: inputs that the candidate learned from; with them, `shift` is each input's PSI against the judging rows.

    Raises:
        DataError: a column is missing, a row is not a holdout row, or a model doesn't answer every row.
    """
    chosen, judged_column = _holdout(rows, problem, now)
    judged = np.asarray(judged_column.to_list(), dtype=bool)
    inputs: list[dict[str, Any]] = [msgspec.json.decode(content) for content in chosen["content"].to_list()]
    targets = chosen["target"].to_list()
    positive = np.array([t == problem.positive for t in targets], dtype=bool) & judged
    subjects = np.unique(np.array(chosen["subject"].to_list(), dtype=str), return_inverse=True)[1].astype(np.int64)

    probability: dict[str, Floats] = {}
    answer: dict[str, Bools] = {}
    said: dict[str, Any] = {}  # the labels answered
    asked: dict[str, str] = {}  # digest → name of the model already asked
    latency_ms = 0.0
    for name, model in zip(MODELS, (candidate, champion, none, anchor), strict=True):
        if model is None:
            continue
        payload = digests.get(name)
        if payload is None:
            raise DataError(f"digests: expected one for {name}, got none; pass its payload digest")
        if payload in asked:
            same = asked[payload]
            probability[name], answer[name], said[name] = probability[same], answer[same], said[same]
            continue
        begin = timer() if timer else 0.0
        probability[name], answer[name], said[name] = _ask(name, model, inputs, problem)
        if timer and name == "candidate" and inputs:
            latency_ms = (timer() - begin) * 1e6 / len(inputs)
        asked[payload] = name
    base = float(positive.sum()) / judged.sum() if judged.any() else float("nan")
    probability[PRIOR] = np.full(len(inputs), base)
    answer[PRIOR] = np.full(len(inputs), base >= 0.5)

    scores = Scores(
        rows=digest(chosen["id"].filter(judged_column).to_list()),
        positive=positive,
        judged=judged,
        subjects=subjects,
        slices=slices_of(chosen["groups"].to_list(), problem),
        probability=probability,
        answer=answer,
    )
    reference_name = "champion" if champion is not None else PRIOR
    due = judged | _due(chosen, problem, now)
    evaluation = Evaluation(
        digest="",
        problem=problem.name,
        candidate=str(digests["candidate"]),
        champion=digests.get("champion") if champion is not None else None,
        none=digests.get("none") if none is not None else None,
        anchor=digests.get("anchor") if anchor is not None else None,
        rows=scores.rows,
        n=scores.n,
        coverage=coverage if coverage is not None else float(judged.sum() / due.sum()) if due.any() else 0.0,
        cells=tuple(_cells(scores)),
        forgetting=_forgetting(scores, reference_name),
        flips=float((answer["candidate"] != answer[reference_name])[judged].mean()) if judged.any() else 0.0,
        shift=_shift(reference, [one for one, counts in zip(inputs, judged, strict=True) if counts], problem),
        latency_ms=latency_ms,
        size_mb=size_mb,
        look=look,
        at=now,
        drift=float((said["candidate"] != said["anchor"]).mean()) if "anchor" in said and inputs else None,
    )
    return msgspec.structs.replace(evaluation, digest=digest(evaluation)), scores


def _holdout(rows: pl.DataFrame, problem: Problem, now: float) -> tuple[pl.DataFrame, pl.Series]:
    """The problem's readable holdout rows sorted by id, and which of them may judge."""
    import polars as pl

    missing = [name for name in COLUMNS if name not in rows.columns]
    if missing:
        raise DataError(f"holdout rows: expected columns {list(COLUMNS)}, got none called {missing}; read them from the vault")
    if "problem" in rows.columns:
        rows = rows.filter(pl.col("problem") == problem.name)
    if "split" in rows.columns:
        others = sorted(set(rows["split"].drop_nulls().to_list()) - {str(Split.HOLDOUT)})
        if others:
            raise DataError(f"holdout rows: expected split holdout only, got {others}; rows that teach can't judge")
    if "revision" in rows.columns:
        rows = rows.sort("id", "revision").unique(subset="id", keep="last", maintain_order=True)
    rows = rows.filter(pl.col("content").is_not_null()).sort("id")
    if rows["id"].is_duplicated().any():
        raise DataError("holdout rows: expected each id once, got some twice; read the newest state of each row")
    judged = rows.select(
        (
            pl.col("target").is_in(list(problem.labels))
            & pl.col("origin").is_in([str(Origin.OUTCOME), str(Origin.REVIEW)])
            & (pl.col("matured_at") <= now)
        )
        .fill_null(False)
        .alias("judged")
    )["judged"]
    return rows, judged


def _due(rows: pl.DataFrame, problem: Problem, now: float) -> Bools:
    """Rows asked so long ago that their outcome should have come and matured."""
    asked = np.asarray(rows["asked_at"].to_list(), dtype=float)
    return np.asarray(asked + seconds(problem.maturity.outcome) <= now, dtype=bool)


def _ask(name: str, model: Predictor, inputs: list[dict[str, Any]], problem: Problem) -> tuple[Floats, Bools, Any]:
    """Probability of the positive label, is it the answer, and the labels answered; one of each a row."""
    if not inputs:
        return np.zeros(0), np.zeros(0, dtype=bool), np.zeros(0, dtype=str)
    answers = model.predict(inputs)
    labels = list(getattr(model, "problem_labels", problem.labels))
    table = np.asarray(answers.probabilities, dtype=float)
    if table.shape != (len(inputs), len(labels)) or len(answers.labels) != len(inputs) or problem.positive not in labels:
        raise DataError(
            f"{name}: expected {len(inputs)} answers over {list(problem.labels)}, got {len(answers.labels)} with probabilities "
            f"{table.shape} over {labels}; the model belongs to another problem"
        )
    said = np.array(answers.labels, dtype=str)
    return table[:, labels.index(problem.positive)], said == problem.positive, said


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
        judged = mask & scores.judged
        base_rate = float(scores.positive[judged].mean()) if judged.any() else None
        for metric in METRICS:
            per_model = {model: scores.cells(model, metric) for model in MODELS if model in scores.probability}
            values = {model: ratio(num, den, mask) for model, (num, den) in per_model.items()}
            out.append(
                Cell(
                    slice=name,
                    metric=metric,
                    n=int((per_model["candidate"][1][mask] > 0).sum()),
                    base_rate=base_rate,
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
    return rate_interval(float(lost.sum()), float(right.sum()))


def _shift(reference: Sequence[Mapping[str, Any]] | None, inputs: list[dict[str, Any]], problem: Problem) -> dict[str, float]:
    if not reference or not inputs:
        return {}
    return {
        name: round(psi([one.get(name) for one in reference], [one.get(name) for one in inputs]), 6) for name in problem.inputs
    }
