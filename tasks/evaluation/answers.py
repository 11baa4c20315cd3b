"""What all models said on the same sealed rows: all that an evaluation is worked out from, and nothing of what was asked.

After `ask` no model and no content is needed any more: what `comparison.assess` makes of `Answers` it makes again from the
stored ones (`rebuild`). What can't be worked out again without the models or the inputs (how long an answer took, how answers
move when a column is swapped, how the inputs have shifted) is measured here and stands in `Facts` as it was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from truing.tasks.errors import DataError
from truing.tasks.evaluation.discovery import Proposal, held_back, search
from truing.tasks.evaluation.slices import slices_of
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem, seconds
from truing.tasks.records import Estimate, Origin, Record, Sampled, Split, Unseen
from truing.tasks.seal import digest
from truing.tasks.statistics.cells import Bools, Floats
from truing.tasks.statistics.paired import Codes
from truing.tasks.statistics.shift import psi

if TYPE_CHECKING:
    import polars as pl

    from truing.tasks.evaluation.evidence import Evidence

MODELS = ("candidate", "champion", "none", "anchor")
COLUMNS = ("id", "subject", "content", "groups", "target", "origin", "asked_at", "matured_at")
Words = npt.NDArray[np.str_]


class Answered(Protocol):
    """What a model says about n rows: labels (n), probabilities (n, k) in the order of the problem's labels."""

    @property
    def labels(self) -> Sequence[str]: ...

    @property
    def probabilities(self) -> Floats: ...


class Predictor(Protocol):
    """Anything that answers like `truing.tasks.kinds.model.Model`."""

    def predict(self, inputs: list[dict[str, Any]]) -> Answered: ...


class Measured(Record, frozen=True):
    """What asking the models again, with other inputs, has shown: see the fields of the same names in `Evaluation`."""

    counterfactual: dict[str, Estimate] = msgspec.field(default_factory=dict)
    importance: dict[str, float] = msgspec.field(default_factory=dict)
    importance_shift: float | None = None


class Facts(Record, frozen=True):
    """What is not a column. `payloads`: model → payload digest; `found`: conditions and first drop of the slices found."""

    problem: str
    payloads: dict[str, str]
    look: int
    looks: int
    at: float
    coverage: float | None
    latency_ms: float
    size_mb: float
    shift: dict[str, float]
    doubles: tuple[int, int] = (0, 0)
    sampled: Sampled | None = None
    measured: Measured = Measured()
    found: tuple[Proposal, ...] = ()
    looks_anchor: int = 1
    unseen: Unseen | None = None


@dataclass(frozen=True, eq=False)
class Answers:
    """One entry a row, sorted by id. `probability` (0..1) is of the positive label; `label` is the one answered.

    `subjects` are codes 0..S−1 in the order of the subjects' hashes; `held` are the rows on which found slices are tested;
    `found` holds their masks in the order of `facts.found`. The sample's fields are as in `scores.Scores`.
    """

    ids: list[str]
    subjects: Codes
    groups: list[str | None]
    positive: Bools
    judged: Bools
    due: Bools
    held: Bools
    probability: dict[str, Floats]
    label: dict[str, Words]
    facts: Facts
    found: list[Bools] = field(default_factory=list)
    weights: Floats | None = None
    drawn: Bools | None = None
    given: Floats | None = None
    noisy: Bools | None = None


def rows_digest(rows: pl.DataFrame, problem: Problem, *, now: float) -> str:
    """Digest of the ids of the rows that judge now: the name of the sealed set, under which looks are counted."""
    chosen, judged = holdout(rows, problem, now)
    return digest(chosen["id"].filter(judged).to_list())


def ask(
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
    looks: int = 1,
    looks_anchor: int = 1,
    unseen: Unseen | None = None,
    coverage: float | None = None,
    timer: Callable[[], float] | None = None,
    size_mb: float = 0.0,
    reference: Sequence[Mapping[str, Any]] | None = None,
    evidence: Evidence | None = None,
    measured: Measured | None = None,
) -> Answers:
    """Ask all models about the holdout rows that may judge, and look for slices.

    Args:
        rows: the vault's holdout, newest state of each row. With the unmatured ones too (`vault.holdout(…, matured=False)`)
            selection rates count all of them, and the coverage is worked out here.
        candidate, champion, none, anchor: models; "none" is the candidate's parent without the new rows ("no update").
        digests: payload digest of each model given, by those names. Models of one digest are asked once.
        look: which look at this candidate this is, from 1 (`ledger.look_at`).
        looks, looks_anchor: how many different candidates were judged since the champion was released, and since the anchor was
            pinned, this one included (`ledger.candidates_since`).
        unseen: what rows say that no verdict has shown, where the free candidates are spent (`gate.holds_on`).
        coverage: share of the holdout rows old enough for an outcome that have one, where the caller knows it better: pass
            it when `rows` holds matured ones only, else it reads 1.
        timer: a clock in seconds; without one `latency_ms` (candidate, per 1,000 rows) is 0.
        size_mb: the candidate's files together, 10^6 bytes.
        reference: inputs that the candidate learned from; with them, `shift` is each input's PSI against the judging rows.
        evidence: how the labels were drawn, where they are a sample of the pool (`evidence.gather`).
        measured: what asking the models with other inputs has shown.

    Raises:
        DataError: a column is missing, a row is not a holdout row, or a model doesn't answer every row.
    """
    chosen, column = holdout(rows, problem, now)
    ids = chosen["id"].to_list()
    sample: dict[str, Any] = evidence.on(ids) if evidence is not None else {}
    doubles = sample.pop("doubles", (0, 0))
    judged = np.asarray(sample.pop("judged", column.to_list()), dtype=bool)
    inputs: list[dict[str, Any]] = [msgspec.json.decode(content) for content in chosen["content"].to_list()]
    names = np.array(chosen["subject"].to_list(), dtype=str)
    unique, codes = np.unique(names, return_inverse=True)

    probability: dict[str, Floats] = {}
    said: dict[str, Words] = {}
    payloads: dict[str, str] = {}
    latency_ms = 0.0
    for name, model in zip(MODELS, (candidate, champion, none, anchor), strict=True):
        if model is None:
            continue
        payload = digests.get(name)
        if payload is None:
            raise DataError(f"digests: expected one for {name}, got none; pass its payload digest")
        same = next((known for known, other in payloads.items() if other == payload), None)
        payloads[name] = payload
        if same is not None:
            probability[name], said[name] = probability[same], said[same]
            continue
        begin = timer() if timer else 0.0
        probability[name], said[name] = _ask(name, model, inputs, problem)
        if timer and name == "candidate" and inputs:
            latency_ms = (timer() - begin) * 1e6 / len(inputs)

    positive = np.array([target == problem.positive for target in chosen["target"].to_list()], dtype=bool) & judged
    groups = chosen["groups"].to_list()
    held = np.array([held_back(problem.name, one) for one in unique], dtype=bool)[codes] if ids else np.zeros(0, dtype=bool)
    slices = search(
        inputs, slices_of(groups, problem), positive, problem,
        lost=_lost(probability, said, positive, problem), rows=judged & ~held, weights=sample.get("weights"),
        depth=policy.discovery.depth, most=policy.discovery.slices,
    )  # fmt: skip
    return Answers(
        ids=ids,
        subjects=codes.astype(np.int64),
        groups=groups,
        positive=positive,
        judged=judged,
        due=np.asarray(np.asarray(chosen["asked_at"].to_list(), dtype=float) + seconds(problem.maturity.outcome) <= now),
        held=held,
        probability=probability,
        label=said,
        facts=Facts(
            problem=problem.name, payloads=payloads, look=look, looks=looks, at=now, coverage=coverage, latency_ms=latency_ms,
            size_mb=size_mb, doubles=doubles, sampled=_sampled(evidence), measured=measured or Measured(),
            shift=_shift(reference, [one for one, counts in zip(inputs, judged, strict=True) if counts], problem),
            found=tuple(proposal for proposal, _ in slices), looks_anchor=looks_anchor, unseen=unseen,
        ),
        found=[mask for _, mask in slices],
        **sample,
    )  # fmt: skip


def _lost(probability: Mapping[str, Floats], said: Mapping[str, Words], positive: Bools, problem: Problem) -> Floats | None:
    """1 where only the candidate is wrong, −1 where only the champion is, else 0 (n,); None without a champion."""
    if "champion" not in said:
        return None
    wrong = {name: (said[name] == problem.positive) != positive for name in ("candidate", "champion")}
    lost = wrong["candidate"].astype(float) - wrong["champion"]
    return lost if np.isfinite(probability["candidate"]).all() else None


def _sampled(evidence: Evidence | None) -> Sampled | None:
    if evidence is None:
        return None
    seen = evidence.coverage
    return Sampled(
        why=evidence.why, plan=evidence.plan, pool=seen.rows, labelled=seen.labelled, drawn=seen.drawn, read=seen.read,
        unreachable=seen.unreachable, twice=seen.twice, differed=seen.differed,
    )  # fmt: skip


def holdout(rows: pl.DataFrame, problem: Problem, now: float) -> tuple[pl.DataFrame, pl.Series]:
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


def _ask(name: str, model: Predictor, inputs: list[dict[str, Any]], problem: Problem) -> tuple[Floats, Words]:
    """Probability of the positive label, and the label answered; one of each a row."""
    if not inputs:
        return np.zeros(0), np.zeros(0, dtype=str)
    answers = model.predict(inputs)
    labels = list(getattr(model, "problem_labels", problem.labels))
    table = np.asarray(answers.probabilities, dtype=float)
    if table.shape != (len(inputs), len(labels)) or len(answers.labels) != len(inputs) or problem.positive not in labels:
        raise DataError(
            f"{name}: expected {len(inputs)} answers over {list(problem.labels)}, got {len(answers.labels)} with probabilities "
            f"{table.shape} over {labels}; the model belongs to another problem"
        )
    return np.ascontiguousarray(table[:, labels.index(problem.positive)]), np.array(answers.labels, dtype=str)


def _shift(reference: Sequence[Mapping[str, Any]] | None, inputs: list[dict[str, Any]], problem: Problem) -> dict[str, float]:
    if not reference or not inputs:
        return {}
    return {
        name: round(psi([one.get(name) for one in reference], [one.get(name) for one in inputs]), 6) for name in problem.inputs
    }
