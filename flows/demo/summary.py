"""What just happened, computed anew from lake, vault and registry: versions, verdicts, quality on what followed, group gaps.

Nothing is carried over from the demo's own memory, so the same page can be made of any stack's data folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from truing.tasks.kinds.model import Model
from truing.tasks.problem import Problem
from truing.tasks.records import Approval, Estimate, Refusal, Release
from truing.tasks.seal import APPROVAL_TYPE, Keys, open_envelope
from truing.tasks.statistics.cells import cells
from truing.tasks.statistics.intervals import gap, mean_interval, rate_interval

if TYPE_CHECKING:
    import polars as pl

    from truing.tasks.release.registry import Registry
    from truing.tasks.release.versions import Version
    from truing.tasks.tables.lake import Lake, Vault

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass
class Line:
    """One version, in words and numbers. `gap` is between the two buckets; `followed`: on traffic that it answered itself."""

    version: str
    parent: str | None
    learner: str
    rows: int
    outcome: str
    reason: str
    approver: str | None = None
    sequences: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    cause: str | None = None
    holdout: dict[str, Estimate] = field(default_factory=dict)
    groups: dict[str, Estimate] = field(default_factory=dict)
    gap: Estimate | None = None
    followed: dict[str, Estimate] = field(default_factory=dict)
    gained: dict[str, Estimate] = field(default_factory=dict)


@dataclass
class Summary:
    """`group` and its two largest buckets are what gaps are about; `events` counts landed, duplicate and dead messages."""

    problem: str
    title: str
    lines: list[Line]
    group: str
    buckets: tuple[str, str]
    metric: str
    judged: int
    events: dict[str, int]
    rows: dict[str, int]
    gain: dict[str, Estimate] = field(default_factory=dict)  # all traffic after the first update: served minus never updated


def summarise(lake: Lake, vault: Vault, registry: Registry, problem: Problem, *, keys: Keys, now: float) -> Summary:
    """Everything the page shows. Scores every version on the matured holdout rows, and every release on what it answered."""
    import polars as pl

    versions = registry.versions(problem.name)
    releases = registry.releases(problem.name, keys)
    models = {known.version: Model.from_files(registry.payload(problem.name, known.version)) for known in versions}
    judge = vault.holdout(problem.name, now=now)
    group, buckets = _widest(problem, judge)
    traffic = _answered(pl.concat([lake.rows(problem.name), vault.holdout(problem.name, now=now, matured=False)]))
    by_payload = {known.payload: known.version for known in versions}
    first = releases[0].version if releases else None
    lines = []
    for version in versions:
        line = _line(version, by_payload, releases, keys)
        line.holdout, line.groups, line.gap = _standing(models[version.version], judge, problem, group, buckets)
        mine = traffic.filter(pl.col("release").is_in(line.names))
        if line.sequences and mine.height:
            line.followed, line.gained = _following(mine, models, version, line.parent, first, problem)
        lines.append(line)
    later = traffic.filter(pl.col("release").is_in([f"{problem.name}@{r.sequence}" for r in releases if r.version != first]))
    landing = vault.read("landing", columns=["disposition"])
    counts = dict(landing.group_by("disposition").len().iter_rows())
    splits = pl.concat([lake.rows(problem.name), vault.holdout(problem.name, now=now, matured=False)])
    return Summary(
        problem=problem.name,
        title=problem.title or problem.name,
        lines=lines,
        group=group,
        buckets=buckets,
        metric="tpr",
        judged=judge.height,
        events={str(key): int(value) for key, value in counts.items()},
        rows=dict(splits.group_by("split").len().sort("split").iter_rows()),
        gain=_gain(later, models[first], problem) if first and later.height else {},
    )


def _line(version: Version, by_payload: dict[str | None, str], releases: list[Release], keys: Keys) -> Line:
    candidate = version.candidate
    own = [release for release in releases if release.version == version.version]
    approval = open_envelope(version.stamp, Approval, APPROVAL_TYPE, keys.registry) if version.stamp else None
    stands = approval is not None and not isinstance(approval, Refusal) and approval.decision == "approved"
    return Line(
        version=version.version,
        parent=by_payload.get(version.parent) if version.parent else None,
        learner=candidate.origin if candidate else "?",
        rows=candidate.rows if candidate else 0,
        outcome=version.outcome or "undecided",
        reason=version.tags.get("verdict.reason", ""),
        approver=" and ".join(approval.by) if stands and isinstance(approval, Approval) else None,
        sequences=[release.sequence for release in own],
        names=[release.name for release in own],
        cause=str(own[-1].cause) if own else None,
    )


def _widest(problem: Problem, judge: pl.DataFrame) -> tuple[str, tuple[str, str]]:
    """The protected group with named buckets, and its two largest ones."""
    import polars as pl

    name = next((key for key, spec in problem.groups.items() if spec.values), next(iter(problem.groups)))
    if judge.is_empty():
        return name, ("", "")
    counts = judge.select(pl.col("groups").str.json_path_match(f"$.{name}").alias("bucket")).group_by("bucket").len()
    two = counts.filter(pl.col("bucket") != "unknown").sort("len", descending=True)["bucket"].to_list()[:2]
    return name, (two[0], two[1]) if len(two) == 2 else (two[0], two[0])


def _answered(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that a release answered and whose true outcome is known, with that outcome as `truth`."""
    import polars as pl

    return rows.with_columns(truth=pl.col("feedback").str.json_path_match("$.outcome")).filter(
        pl.col("truth").is_not_null(), pl.col("release").is_not_null(), pl.col("answer_label").is_not_null()
    )


def _standing(
    model: Model, judge: pl.DataFrame, problem: Problem, group: str, buckets: tuple[str, str]
) -> tuple[dict[str, Estimate], dict[str, Estimate], Estimate | None]:
    import polars as pl

    if judge.is_empty():
        return {}, {}, None
    p, answer = _scores(model, judge, problem)
    positive = (judge["target"] == problem.positive).to_numpy()
    subjects = judge["subject"].to_numpy()
    holdout = {
        "brier": mean_interval((p - positive) ** 2, subjects=subjects),
        "accuracy": mean_interval((answer == positive).astype(float), subjects=subjects),
    }
    where = judge.select(pl.col("groups").str.json_path_match(f"$.{group}"))["groups"].to_numpy()
    each = {}
    for bucket in buckets:
        num, den = cells("tpr", positive, p, answer)
        mask = where == bucket
        each[bucket] = rate_interval(float(num[mask].sum()), float(den[mask].sum()))
    return holdout, each, gap(each[buckets[0]], each[buckets[1]])


def _scores(model: Model, rows: pl.DataFrame, problem: Problem) -> tuple[Floats, Bools]:
    decoder = msgspec.json.Decoder(dict[str, object])
    answers = model.predict([decoder.decode(content) for content in rows["content"]])
    p = np.asarray(answers.probabilities)[:, list(model.problem_labels).index(problem.positive)]
    return p, np.array([label == problem.positive for label in answers.labels])


def _served(rows: pl.DataFrame, problem: Problem) -> tuple[Floats, Bools, Bools]:
    """What was answered at the time, not what a model would say now: probability of the positive, its answer, the truth."""
    decoder = msgspec.json.Decoder(dict[str, object])
    p = np.array([decoder.decode(text)["probabilities"][problem.positive] for text in rows["prediction"]])  # type: ignore[index]
    answer = (rows["answer_label"] == problem.positive).to_numpy()
    return p, answer, (rows["truth"] == problem.positive).to_numpy()


def _following(
    mine: pl.DataFrame,
    models: dict[str, Model],
    version: Version,
    parent: str | None,
    first: str | None,
    problem: Problem,
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    p, answer, truth = _served(mine, problem)
    subjects = mine["subject"].to_numpy()
    followed = {
        "brier": mean_interval((p - truth) ** 2, subjects=subjects),
        "accuracy": mean_interval((answer == truth).astype(float), subjects=subjects),
    }
    gained: dict[str, Estimate] = {}
    for name, other in (("parent", parent), ("never updated", first)):
        if other is not None and other != version.version and other in models:
            gained |= {f"{metric} against {name}": value for metric, value in _gain(mine, models[other], problem).items()}
    return followed, gained


def _gain(rows: pl.DataFrame, other: Model, problem: Problem) -> dict[str, Estimate]:
    """Paired on the same rows, > 0 is better than `other`."""
    p, answer, truth = _served(rows, problem)
    subjects = rows["subject"].to_numpy()
    q, said = _scores(other, rows, problem)
    return {
        "brier": mean_interval((q - truth) ** 2 - (p - truth) ** 2, subjects=subjects),
        "accuracy": mean_interval((answer == truth).astype(float) - (said == truth), subjects=subjects),
    }
