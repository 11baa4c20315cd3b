"""The whole descent on one page, in two halves that meet only at a registered candidate's digest.

    learn    landed rows → samples → dataset version → trials → candidate       run by the runner; no key but its own login
    decide   candidate → evaluation → verdict                                   run by the steward; reads the vault
    release  verdict + a person's approval → release                            run by the steward; the only mover of `champion`

The steward's parts believe the audit, the steward's book and hashes: MLflow is where bytes lie and where people read. How a
verdict becomes what serves is `release.py`.

Nothing here imports Prefect: `improve.py` and `steward.py` bind these calls to runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from platform import machine, python_version
from typing import TYPE_CHECKING

from truing.tasks import seal
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Candidate, Outcome, Split

if TYPE_CHECKING:
    import polars as pl

    from truing.tasks.kinds.model import Model
    from truing.tasks.release.acts import Docket
    from truing.tasks.release.book import Book, Judged
    from truing.tasks.release.registry import Registry
    from truing.tasks.release.versions import Version
    from truing.tasks.tables.lake import Lake, Vault

Progress = Callable[[int, int, str], None]  # done, of, what: called between steps


@dataclass(frozen=True, kw_only=True)
class Study:
    """How much `learn` may try. `storage` holds the studies' journals."""

    trials: int
    threads: int
    seed: int
    storage: Path


@dataclass(frozen=True, kw_only=True)
class Offices:
    """The steward's two private keys and the public ones that count."""

    gate: bytes
    release: bytes
    public: seal.Keys


def silent(done: int, of: int, what: str) -> None:
    """The progress of those who do not want any."""


# --- learn --------------------------------------------------------------------------------------------------------------------


def learn(
    lake: Lake,
    registry: Registry,
    problem: Problem,
    policy: Policy,
    *,
    folder: Path,
    study: Study,
    now: float,
    progress: Progress = silent,
) -> Candidate | None:
    """Rows → a registered candidate, or None when nothing has been taught since the last one.

    `folder` is the problem's: an `expectations.json` that people edited there judges the windows of rows not judged yet.
    """
    from truing.tasks.learning.improve import tune
    from truing.tasks.selection.dataset import freeze
    from truing.tasks.selection.quality import tag
    from truing.tasks.validation.suite import validate_pending

    validate_pending(lake, problem, folder=folder, now=now, force=True)
    history = registry.versions(problem.name)
    rows = teachable(lake, problem, history)
    learning = rows.filter(_in(Split.TRUSTED, Split.TRAIN))
    tagged = tag(learning, policy)
    champion = registry.champion(problem.name)
    if champion is None:  # the first model learns from what people vouch for, and from nothing else
        tagged = tagged.filter(_in(Split.TRUSTED))
    dataset, samples = freeze(tagged, problem=problem, policy=policy, tables=_versions(lake), seed=study.seed)
    if not dataset.samples or any(known.tags.get("dataset") == dataset.digest for known in history):
        return None
    progress(1, 4, f"{dataset.samples} samples from {learning.height} rows")

    parent = model(registry, problem, champion)
    tuned = tune(
        problem, policy, samples, rows.filter(_in(Split.VALIDATION)), parent,
        seed=study.seed, trials=study.trials, threads=study.threads,
        storage=study.storage / f"{problem.name}.journal", progress=progress,
    )  # fmt: skip
    progress(3, 4, f"the {tuned.origin} learner is ahead")

    files = tuned.model.to_files()
    candidate = Candidate(
        problem=problem.name,
        payload=seal.tree_digest(files),
        parent=parent.payload if parent else None,
        base=tuned.model.base,
        code=installed("truing"),
        kind=problem.kind,
        dataset=dataset.digest,
        trial=min((trial for trial in tuned.trials if trial.score is not None), key=lambda t: t.score or 0.0, default=None),
        seed=study.seed,
        origin=tuned.origin,
        registered=now,
        rows=dataset.samples,
    )
    keep(lake, problem, dataset.digest, samples)  # before the candidate exists: a crash in between leaves an unused list
    lake.record("datasets", [dataset])
    lake.record("trials", list(tuned.trials))
    run = registry.log_run(
        problem.name,
        f"study of {dataset.samples} rows",
        {"learner": tuned.origin, "dataset": dataset.digest, "trials": str(len(tuned.trials))},
        {f"brier_{name}": score for name, score in tuned.scores.items()},
        {"truing.act": "study"},
        {"dataset.json": seal.canonical(dataset), "trials.json": seal.canonical(tuned.trials)},
    )
    registry.register(problem.name, files, candidate, run=run)
    progress(4, 4, "registered")
    return candidate


def teachable_rows(lake: Lake, problem: Problem) -> pl.DataFrame:
    """Labelled rows that validation let through."""
    from truing.tasks.validation.suite import admitted

    return admitted(lake, problem, lake.rows(problem.name, labelled=True))


def teachable(lake: Lake, problem: Problem, history: list[Version]) -> pl.DataFrame:
    """Labelled rows that validation let through, less what a blocked candidate had learned from people."""
    import polars as pl

    from truing.tasks.selection.quarantine import held_rows, without_held

    rows = teachable_rows(lake, problem)
    held = held_rows(
        lake.read("samples", predicate=pl.col("problem") == problem.name),
        blocked=[known.tags.get("dataset", "") for known in history if known.outcome == Outcome.BLOCK],
        cleared=cleared(history),
    )
    return without_held(rows, held)


def cleared(history: list[Version]) -> list[str]:
    """Datasets whose candidate passed. A repair that passes clears nothing: it is what was made of them despite the harm."""
    passed = [known for known in history if known.outcome == Outcome.PASS and known.tags.get("origin") != "repair"]
    return [known.tags.get("dataset", "") for known in passed]


def keep(lake: Lake, problem: Problem, dataset: str, samples: pl.DataFrame) -> None:
    """Write which rows a dataset version holds. Safe to repeat: the digest is the transaction."""
    import polars as pl

    lines = samples.select(
        pl.lit(problem.name).alias("problem"), pl.lit(dataset).alias("dataset"), pl.col("id").alias("row"),
        pl.col("content_hash").alias("content"), "target", "origin", "actor", "weight",
    )  # fmt: skip
    lake.append("samples", lines, app=(f"samples:{dataset}", 1))


def model(registry: Registry, problem: Problem, version: str | None) -> Model | None:
    """A registered version as the serving build reads it; None for no version."""
    from truing.tasks.kinds.model import Model

    return None if version is None else Model.from_files(registry.payload(problem.name, version))


# --- decide -------------------------------------------------------------------------------------------------------------------


def decide(
    vault: Vault,
    lake: Lake,
    registry: Registry,
    problem: Problem,
    policy: Policy,
    seen: Version,
    *,
    docket: Docket,
    book: Book,
    offices: Offices,
    ledger: Path,
    desk: Path,
    folder: Path,
    now: float,
    timer: Callable[[], float],
) -> Judged:
    """Candidate → evaluation → verdict, signed and booked with all that a person needs to decide; `show` puts it on the page.

    Every model that takes part is the one that was registered or released, by its hash (`judging.py`); `seen` is the version as
    MLflow shows it. What the verdict follows from is kept below `desk` before it is booked (`evaluation.kept`), so that anybody
    can make it again.
    """
    from truing.flows.audits import aim
    from truing.flows.judging import answered, parties, sealed_rows
    from truing.tasks.evaluation.beside import mended
    from truing.tasks.evaluation.kept import Decision, pack, store, unpack
    from truing.tasks.evaluation.ledger import note_look, read_ledger
    from truing.tasks.evaluation.report import describe, indicators, verdict_html
    from truing.tasks.release.registry import fitting
    from truing.tasks.tables.predictions import Predictions

    name, version = problem.name, seen.version
    models = parties(registry, problem, seen, docket=docket, book=book)
    candidate = models.record
    rows = sealed_rows(vault, lake, problem, desk=desk, folder=folder, now=now)
    answers, look = answered(
        rows, lake, problem, policy, models, known=read_ledger(ledger), desk=desk, offices=offices, now=now, timer=timer
    )
    note_look(ledger, look)

    before = book.verdict(name, candidate.payload)
    at = max(now, before.verdict.at) if before else now  # a clock that was set back makes no verdict older than the one before
    key = seal.key_id(seal.public_key(offices.gate))
    how = Decision(version=version, dataset=candidate.dataset, key=key, at=at, seed=answers.facts.look, made=_made())
    files = pack(answers, problem, policy, how)
    evaluation, verdict = unpack(files).conclude()  # what is judged is what is kept
    store(desk / "evidence" / seal.digest(verdict), files, evaluation)
    aim(answers, verdict, problem, policy, desk=desk, offices=offices, now=now)
    Predictions(desk).keep(
        name, evaluation.digest, answers.ids, payloads=answers.facts.payloads, probability=answers.probability,
        label=answers.label, releases={one.payload: one.name for one in book.releases(name)}, at=now,
    )  # fmt: skip

    envelope = seal.sign(verdict, seal.VERDICT_TYPE, offices.gate)
    run = registry.log_verdict(name, version, envelope, evaluation, verdict_html(verdict, evaluation, candidate, problem))
    description = describe(verdict, evaluation, candidate, problem)
    ailing = book.verdict(name, candidate.repairs) if candidate.repairs else None
    if ailing is not None:
        description = mended(description, ailing.version, candidate.note, ailing.verdict, verdict)
    return book.add_verdict(
        envelope,
        at=now,
        version=version,
        description=fitting(description),
        indicators=seal.canonical(indicators(evaluation, verdict)).decode(),
        run=run,
        candidate=seal.digest_bytes(seen.tags["candidate"].encode()),
        drift="" if evaluation.drift is None else repr(evaluation.drift),
        anchor=evaluation.anchor or "",
        heads_only=str(models.heads_only).lower(),
    )


def show(registry: Registry, problem: Problem, judged: Judged, *, seen: Version | None = None) -> None:
    """Put a booked verdict on the version's page. Can be repeated; what `seen` shows already is left alone."""
    registry.show_verdict(
        problem.name,
        judged.version,
        judged.envelope,
        description=judged.description,
        indicators=judged.indicators,
        run=judged.run,
        seen=seen,
    )


def _in(*splits: Split) -> pl.Expr:
    import polars as pl

    return pl.col("split").is_in([str(split) for split in splits])


def _made() -> dict[str, str]:
    """What does the arithmetic of a verdict."""
    return {"truing": installed("truing"), "numpy": installed("numpy"), "python": python_version(), "machine": machine()}


def _versions(lake: Lake) -> dict[str, int]:
    return {"rows": lake.version("rows") or 0}
