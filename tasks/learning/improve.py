"""`tune`: from samples to one candidate model, by two learners of different speed; the better on validation rows wins.

Genesis (no parent) grows the encoder on the trusted rows and judges by out-of-fold answers: every fold's encoder is grown
without that fold, because leaves that a row helped to grow flatter it. Later rounds keep the parent's encoder; there the fast
learner is calibrated on rows with a true outcome, each scored as if it alone had been left out, and on the validation rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from truing.tasks.errors import DataError
from truing.tasks.kinds.encoders import TableEncoder
from truing.tasks.kinds.model import FORMAT, Calibration, Card, Head, Model
from truing.tasks.kinds.tabular import Tabular
from truing.tasks.learning.calibration import brier, calibrate, identity
from truing.tasks.learning.network import Network
from truing.tasks.learning.protocol import Batch, Params, Progress
from truing.tasks.learning.replay import draw
from truing.tasks.learning.ridge import PENALTIES, Ridge
from truing.tasks.learning.study import Report, search
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Origin, Split, Trial

FOLDS = 5
NEWTON = 2  # steps at each penalty of genesis
ENOUGH = 200  # validation rows with a true outcome below which trusted rows judge
FIRST: Params = {"rate": 5e-3, "epochs": 4.0, "stay": 1e-4, "drop": 0.2}
TRUE = (Origin.OUTCOME.value, Origin.REVIEW.value)
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Tuned:
    """`scores`: validation Brier of "parent" (absent at genesis), "fast" and "slow"; lower is better. `rows` taught it."""

    model: Model
    origin: str
    trials: tuple[Trial, ...]
    scores: dict[str, float]
    rows: int = 0


@dataclass(frozen=True)
class _Table:
    """Samples as arrays: `trusted` and `true` (n,) masks, `labelled` (n,) times, `strata` label × buckets."""

    batch: Batch
    trusted: NDArray[np.bool_]
    true: NDArray[np.bool_]
    labelled: NDArray[np.float64]
    strata: list[str]

    def without(self, held: NDArray[np.bool_]) -> _Table:
        strata = [name for name, out in zip(self.strata, held, strict=True) if not out]
        return _Table(self.batch.take(~held), self.trusted[~held], self.true[~held], self.labelled[~held], strata)


def tune(
    problem: Problem,
    policy: Policy,
    samples: pl.DataFrame,
    validation: pl.DataFrame,
    parent: Model | None,
    *,
    seed: int,
    trials: int = 6,
    threads: int = 2,
    storage: Path | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """A model tuned on `samples` (kept rows: trusted and train) and judged on `validation`.

    Raises DataError when there is nothing to learn from. Same arguments (and journal), same bytes.
    """
    if samples.is_empty():
        raise DataError("expected samples to learn from, got none; wait for feedback or run `truing ingest`")
    if samples.select(pl.col("split").is_in([Split.HOLDOUT.value, Split.VALIDATION.value]).any()).item():
        raise DataError(
            "expected trusted and train rows to learn from, got holdout or validation rows; freeze the dataset again"
        )
    if parent is None:
        return _genesis(problem, samples, seed=seed, trials=trials, threads=threads, storage=storage, progress=progress)
    kind = Tabular(problem, parent.encoder)
    table = _table(kind, samples)
    evidence, judged_by_trusted = _evidence(kind, validation, table)
    if judged_by_trusted is not None:  # too little outcome evidence: what judges must not teach
        table = table.without(judged_by_trusted)
    scores = {"parent": brier(parent.probabilities(evidence.units), evidence.targets)}
    fast_head, fast_calibration = _fast(table, evidence, parent, len(problem.labels))
    scores["fast"] = brier(fast_calibration.probabilities(fast_head.scores(evidence.units)), evidence.targets)
    slow_head, tried = _slow(
        problem, table, evidence, parent, seed=seed, trials=trials, threads=threads, storage=storage, progress=progress
    )
    slow_scores = slow_head.scores(evidence.units)
    slow_calibration = calibrate(slow_scores, evidence.targets, weights=evidence.weights)
    scores["slow"] = brier(slow_calibration.probabilities(slow_scores), evidence.targets)
    slow = scores["slow"] < scores["fast"]
    head, calibration = (slow_head, slow_calibration) if slow else (fast_head, fast_calibration)
    model = _model(problem, parent.encoder, head, calibration, reference=parent.reference, until=_until(samples))
    return Tuned(model, "slow" if slow else "fast", tried, scores, rows=samples.height)


def _genesis(
    problem: Problem,
    samples: pl.DataFrame,
    *,
    seed: int,
    trials: int,
    threads: int,
    storage: Path | None,
    progress: Progress | None,
) -> Tuned:
    trusted = samples.filter(pl.col("split") == Split.TRUSTED.value)
    if trusted.is_empty():
        raise DataError("expected trusted rows for the first model, got none; load a history that people vouch for")
    inputs, labels = _inputs(trusted), trusted["target"].to_list()
    fold = np.random.default_rng(seed).permutation(len(inputs)) % FOLDS
    k = len(problem.labels)
    out_of_fold = {penalty: np.zeros((len(inputs), k)) for penalty in PENALTIES}
    for f in range(FOLDS):
        rest, held = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        kind = Tabular.grow(problem, [inputs[i] for i in rest], [labels[i] for i in rest], seed=seed)
        part = _batch(kind, [inputs[i] for i in rest], [labels[i] for i in rest])
        units = kind.encode([inputs[i] for i in held]).matrix
        for penalty, head in _path(part, k):
            out_of_fold[penalty][held] = head.scores(units)
        if progress is not None:
            progress(f + 1, FOLDS, f"fold {f + 1}")
    kind = Tabular.grow(problem, inputs, labels, seed=seed)
    batch = _batch(kind, inputs, labels)
    penalty, calibration, score = _choose(out_of_fold, batch.targets)
    head = dict(_path(batch, k, until=penalty))[penalty]
    model = _model(problem, kind.encoder, head, calibration, reference=head, until=_until(trusted))
    return Tuned(model, "fast", (), {"fast": score}, rows=trusted.height)


def _path(batch: Batch, labels: int, *, until: float = 0.0) -> Iterator[tuple[float, Head]]:
    """Penalised logistic regression at every penalty, from strong to weak, each a few Newton steps from the one before."""
    head = None
    for penalty in sorted(PENALTIES, reverse=True):
        for _ in range(NEWTON):
            learner = Ridge(head)
            head = learner.head(learner.fit(batch, labels=labels), {"penalty": penalty})
        if head is not None:
            yield penalty, head
        if penalty <= until:
            return


def _fast(table: _Table, evidence: Batch, parent: Model, labels: int) -> tuple[Head, Calibration]:
    learner = Ridge(parent.reference)
    state = learner.fit(table.batch, labels=labels)
    true = table.batch.take(table.true & ~table.trusted)
    targets = np.concatenate([true.targets, evidence.targets])
    scored: dict[float, Scores] = {}
    for penalty in PENALTIES:
        left_out = learner.left_out(state, true, {"penalty": penalty})
        scored[penalty] = np.concatenate([left_out, learner.head(state, {"penalty": penalty}).scores(evidence.units)])
    penalty, calibration, _ = _choose(scored, targets)
    return learner.head(state, {"penalty": penalty}), calibration


def _choose(scored: dict[float, Scores], targets: NDArray[np.int64]) -> tuple[float, Calibration, float]:
    found = []
    for penalty, scores in scored.items():
        calibration = calibrate(scores, targets)
        found.append((brier(calibration.probabilities(scores), targets), penalty, calibration))
    score, penalty, calibration = min(found, key=lambda entry: entry[:2])
    return penalty, calibration, score


def _slow(
    problem: Problem,
    table: _Table,
    evidence: Batch,
    parent: Model,
    *,
    seed: int,
    trials: int,
    threads: int,
    storage: Path | None,
    progress: Progress | None,
) -> tuple[Head, tuple[Trial, ...]]:
    network = Network()
    start = network.start(parent, seed=seed)
    new = table.labelled > parent.card.learned_until
    if not new.any():
        new = np.ones(len(new), bool)
    old = np.flatnonzero(~new)
    drawn, weights = draw([table.strata[i] for i in old], int(new.sum()), seed=seed)
    fresh = table.batch.take(new)
    again = table.batch.take(old[drawn])
    batch = Batch(
        np.concatenate([fresh.units, again.units]),
        np.concatenate([fresh.targets, again.targets]),
        np.concatenate([fresh.weights, again.weights * weights]),
    )

    def objective(params: Params, report: Report) -> float:
        def each_epoch(epoch: int, head: Head) -> None:
            report(epoch, _brier(head, evidence))

        head = network.update(start, batch, params=params, seed=seed, threads=threads, each_epoch=each_epoch)
        score = _brier(head, evidence)
        tried.append((score, head))
        return score

    tried: list[tuple[float, Head]] = []
    _, done = search(
        problem.name, objective, network.space(), first=FIRST, trials=trials, seed=seed, storage=storage, progress=progress
    )
    head = min(tried, key=lambda entry: entry[0])[1] if tried else start
    return head, done


def _brier(head: Head, evidence: Batch) -> float:
    return brier(identity(head.bias.shape[0]).probabilities(head.scores(evidence.units)), evidence.targets)


def _evidence(kind: Tabular, validation: pl.DataFrame, table: _Table) -> tuple[Batch, NDArray[np.bool_] | None]:
    true = validation.filter(pl.col("origin").is_in(TRUE) & pl.col("target").is_not_null())
    if true.height >= ENOUGH:
        return _batch(kind, _inputs(true), true["target"].to_list()), None
    trusted = np.flatnonzero(table.trusted)
    held = np.zeros(len(table.trusted), bool)
    held[trusted[::5]] = True
    if not held.any():
        raise DataError(f"expected {ENOUGH} validation rows with outcomes or trusted rows, got neither; wait for outcomes")
    return table.batch.take(held), held


def _table(kind: Tabular, samples: pl.DataFrame) -> _Table:
    batch = _batch(kind, _inputs(samples), samples["target"].to_list(), samples["weight"].to_numpy())
    trusted = (samples["split"] == Split.TRUSTED.value).to_numpy()
    true = samples["origin"].is_in(TRUE).fill_null(False).to_numpy()
    labelled = samples["labelled_at"].fill_null(0.0).to_numpy()
    strata = (samples["target"] + "|" + samples["groups"]).to_list()
    return _Table(batch, trusted, true, labelled, strata)


def _batch(kind: Tabular, inputs: list[dict[str, object]], labels: list[str], weights: Scores | None = None) -> Batch:
    units = kind.encode(inputs).matrix
    return Batch(units, kind.targets(labels), np.ones(len(labels)) if weights is None else weights.astype(np.float64))


def _inputs(rows: pl.DataFrame) -> list[dict[str, object]]:
    decoder = msgspec.json.Decoder(dict[str, object])
    return [decoder.decode(content) for content in rows["content"]]


def _until(rows: pl.DataFrame) -> float:
    latest = rows["labelled_at"].max()
    return float(latest) if isinstance(latest, (int, float)) else 0.0


def _model(
    problem: Problem, encoder: TableEncoder, head: Head, calibration: Calibration, *, reference: Head | None, until: float
) -> Model:
    k = len(problem.labels)
    card = Card(
        format=FORMAT, kind="tabular", problem=problem.name, head=problem.label, labels=problem.labels,
        positive=problem.positive, thresholds=(1 / k,) * k, calibration=calibration, learned_until=until,
    )  # fmt: skip
    return Model(card, encoder, head, reference)
