"""`tune`: from samples to one candidate model, by two learners of different speed; the better on validation rows wins.

Genesis (no parent) grows the encoder on the trusted rows and judges by out-of-fold answers: every fold's encoder is grown
without that fold, because leaves that a row helped to grow flatter it. Later rounds keep the parent's encoder; there the fast
learner is calibrated on rows with a true outcome, each scored as if it alone had been left out, and on the validation rows.
A fifth of the new outcome rows judges fast against slow beside the validation rows: a lucky trial is not taken for skill.
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
from truing.tasks.learning.calibration import brier, calibrate
from truing.tasks.learning.network import Network
from truing.tasks.learning.protocol import Batch, Progress
from truing.tasks.learning.replay import draw
from truing.tasks.learning.ridge import PENALTIES, Ridge
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Origin, Split, Trial

FOLDS = 5
ENOUGH = 200  # validation rows with a true outcome below which trusted rows judge
HELD = 0.2  # share of the new outcome rows that judge beside the validation rows
REPLAY = 2  # earlier rows drawn for every new one
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
        return _genesis(problem, samples, seed=seed, progress=progress)
    kind = Tabular(problem, parent.encoder)
    table = _table(kind, samples)
    evidence, judged_by_trusted = _evidence(kind, validation, table)
    if judged_by_trusted is not None:  # too little outcome evidence: what judges must not teach
        table = table.without(judged_by_trusted)
    held = _held(table, parent, seed=seed)
    judges = _join(evidence, table.batch.take(held))
    labels = len(problem.labels)
    fast_head, fast_calibration, fast_scores = _fast(table, held, evidence, parent, labels)
    slow_head, slow_calibration, slow_scores, tried = _slow(
        problem, table, held, judges, parent, seed=seed, trials=trials, threads=threads, storage=storage, progress=progress
    )
    scores = {
        "parent": brier(parent.probabilities(judges.units), judges.targets),
        "fast": brier(fast_calibration.probabilities(fast_scores), judges.targets),
        "slow": brier(slow_calibration.probabilities(slow_scores), judges.targets),
    }
    slow = scores["slow"] < scores["fast"]
    head, calibration = (slow_head, slow_calibration) if slow else (fast_head, fast_calibration)
    model = _model(problem, parent.encoder, head, calibration, reference=parent.reference, until=_until(samples))
    return Tuned(model, "slow" if slow else "fast", tried, scores, rows=samples.height)


def _genesis(problem: Problem, samples: pl.DataFrame, *, seed: int, progress: Progress | None) -> Tuned:
    """The fast learner alone: with a few thousand rows and no parent there is nothing to fine-tune."""
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
    """Penalised logistic regression at every penalty, from strong to weak, each one Newton step from the one before."""
    strong_to_weak = sorted(PENALTIES, reverse=True)
    head: Head | None = None
    for penalty in (strong_to_weak[0], *strong_to_weak):  # the first start is further away: one step more
        learner = Ridge(head)
        before, head = head, learner.head(learner.fit(batch, labels=labels), {"penalty": penalty})
        if before is not None:
            yield penalty, head
            if penalty <= until:
                return


def _fast(
    table: _Table, held: NDArray[np.bool_], evidence: Batch, parent: Model, labels: int
) -> tuple[Head, Calibration, Scores]:
    """Head, calibration, and scores of the judging rows: validation, then the held-back ones."""
    learner = Ridge(parent.reference)
    true = table.true & ~table.trusted
    nothing = learner.fit(table.batch.take(np.zeros(len(true), bool)), labels=labels)
    found = learner.tune(nothing, table.batch, evidence, judging=true)
    calibration = calibrate(found.scores, np.concatenate([evidence.targets, table.batch.targets[true]]))
    judges = np.concatenate([np.ones(len(evidence.targets), bool), held[true]])
    return found.head, calibration, found.scores[judges]


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
    held: NDArray[np.bool_],
    judges: Batch,
    parent: Model,
    *,
    seed: int,
    trials: int,
    threads: int,
    storage: Path | None,
    progress: Progress | None,
) -> tuple[Head, Calibration, Scores, tuple[Trial, ...]]:
    """The study leaves the held rows out; its best parameters then teach once more, with them."""
    network = Network()
    start = network.start(parent, seed=seed)
    found = network.tune(
        start, _with_replay(table, ~held, parent, seed=seed), judges,
        trials=trials, seed=seed, threads=threads, problem=problem.name, storage=storage, progress=progress,
    )  # fmt: skip
    everything = _with_replay(table, np.ones(len(held), bool), parent, seed=seed)
    head = network.update(start, everything, params=found.params, seed=seed, threads=threads)
    return head, calibrate(found.scores, judges.targets), found.scores, found.trials


def _with_replay(table: _Table, use: NDArray[np.bool_], parent: Model, *, seed: int) -> Batch:
    """The rows in `use` that the parent had not seen, and REPLAY times as many drawn from the earlier ones."""
    new = table.labelled > parent.card.learned_until
    if not new.any():
        new = np.ones(len(new), bool)
    fresh, old = table.batch.take(new & use), np.flatnonzero(~new & use)
    drawn, weights = draw([table.strata[i] for i in old], REPLAY * len(fresh.targets), seed=seed)
    again = table.batch.take(old[drawn])
    return _join(fresh, Batch(again.units, again.targets, again.weights * weights))


def _held(table: _Table, parent: Model, *, seed: int) -> NDArray[np.bool_]:
    """A fifth of the new rows with a true outcome: they judge beside the validation rows before they teach."""
    new = table.true & ~table.trusted & (table.labelled > parent.card.learned_until)
    return new & (np.random.default_rng(seed).random(len(new)) < HELD)


def _join(one: Batch, other: Batch) -> Batch:
    return Batch(
        np.concatenate([one.units, other.units]),
        np.concatenate([one.targets, other.targets]),
        np.concatenate([one.weights, other.weights]),
    )


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
