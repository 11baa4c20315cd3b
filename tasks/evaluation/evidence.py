"""What is known of the labels before anything is scored: who was labelled, why, with what chance, and how well.

- Rows whose outcome came by itself count once, as they always did, while enough of them have one (`min_coverage`).
- Else labels are a *sample*. Who gives feedback is not drawn by chance (people report what went wrong; only accepted cases show
  what became of them), so such rows stand for themselves only (inclusion probability 1), and the rest of the pool is known
  from its audit: rows that the gateway drew at random, or that a plan drew, weighted by 1/probability.
- Rows that nobody could have drawn and that have no label take whatever label would be worst for the candidate, and so do rows
  that were drawn and not read yet. Where both models agree that costs nothing.

An evidence record names all this by row id; `ask` lines it up with the answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from truing.tasks.evaluation.audit import Plan, weights
from truing.tasks.problem import Problem, seconds
from truing.tasks.records import Origin, Record
from truing.tasks.statistics.cells import Bools, Floats
from truing.tasks.statistics.proportions import binomial_tail, clopper_pearson

if TYPE_CHECKING:
    import polars as pl

REACHED = 1.0  # a propensity of 1 on a row that was not drawn is from before there was a sampler: nobody could draw it


class Coverage(Record, frozen=True):
    """Counts over the pool: rows, old enough for an outcome, with a label, drawn by chance, of these read; doubles."""

    rows: int
    due: int
    labelled: int
    drawn: int = 0
    read: int = 0
    unreachable: int = 0
    twice: int = 0
    differed: int = 0

    @property
    def share(self) -> float:
        """Share of the due rows with a label."""
        return self.labelled / self.due if self.due else 0.0


@dataclass(frozen=True, eq=False)
class Evidence:
    """Labels as a sample: arrays (n,) over `ids`, as in `scores.Scores`. `positive` is the label, where there is one."""

    ids: tuple[str, ...]
    weights: Floats
    drawn: Bools
    given: Floats
    judged: Bools
    noisy: Bools
    doubles: tuple[int, int]
    coverage: Coverage
    why: str  # audit | plan | worst
    plan: str | None = None

    def on(self, ids: list[str]) -> dict[str, Any]:
        """The fields of `Scores` for rows in this order; rows that the evidence doesn't know are outside the pool."""
        place = {id: i for i, id in enumerate(self.ids)}
        at = np.array([place.get(id, -1) for id in ids], dtype=np.int64)
        inside = at >= 0
        take = np.where(inside, at, 0)
        return {
            "judged": self.judged[take] & inside,
            "weights": np.where(inside, self.weights[take], 0.0),
            "drawn": self.drawn[take] & inside,
            "given": np.where(inside, self.given[take], 0.0),
            "noisy": self.noisy[take] & inside,
            "doubles": self.doubles,
        }


def gather(
    rows: pl.DataFrame, problem: Problem, *, now: float, min_coverage: float, plan: Plan | None = None
) -> Evidence | None:
    """The labels of holdout rows (newest state each, unlabelled ones too) as a sample; None where all may count once.

    With a `plan` its pool is the pool, and only what it drew counts beside what was known when it was drawn. Without one:
    None when at least `min_coverage` of the due rows have a label that may judge; else the gateway's random audit.
    """
    ids = tuple(rows["id"].to_list())
    count = len(ids)
    judged, given, noisy, doubles = _labels(rows, problem, now)
    due = np.asarray(rows["asked_at"].to_list(), dtype=float) + seconds(problem.maturity.outcome) <= now
    if plan is not None:
        weight = weights(plan, ids)
        chosen = set(plan.drawn)
        known = {i for i, one in enumerate(plan.strata) if one.kind == "labelled"}
        drawn = np.array([id in chosen or plan.pool.get(id) in known for id in ids], dtype=bool)
        judged &= drawn
        reached = np.ones(count, dtype=bool)
        why, name = "plan", plan.candidate
    else:
        share = float((judged & due).sum() / due.sum()) if due.any() else 0.0
        if share >= min_coverage:
            return None
        chance = np.array([math.nan if one is None else one for one in rows["propensity"].to_list()], dtype=float)
        audited = np.asarray(rows["audit"].fill_null(False).to_list(), dtype=bool)
        reached = (chance > 0.0) & ((chance < REACHED) | audited)
        by_itself = judged & ~noisy
        drawn = by_itself | audited | ~reached  # nobody could draw the last: their labels are worst cases
        judged &= by_itself | (audited & reached)
        weight = np.where(by_itself | ~reached, 1.0, 1.0 / np.where(reached, chance, 1.0))
        weight = np.where(due, weight, 0.0)  # too young to say anything: outside
        why, name = ("audit" if bool((audited & reached).any()) else "worst"), None
    inside = weight > 0
    picked = drawn & inside & (weight > 1.0)
    covered = Coverage(
        rows=count,
        due=int(due.sum()),
        labelled=int((judged & inside).sum()),
        drawn=int(picked.sum()),
        read=int((picked & judged).sum()),
        unreachable=int((inside & ~reached & ~judged).sum()),
        twice=doubles[0],
        differed=doubles[1],
    )
    return Evidence(
        ids=ids, weights=weight, drawn=drawn & inside, given=given, judged=judged & inside, noisy=noisy & judged,
        doubles=doubles, coverage=covered, why=why, plan=name,
    )  # fmt: skip


def _labels(rows: pl.DataFrame, problem: Problem, now: float) -> tuple[Bools, Floats, Bools, tuple[int, int]]:
    """(may judge, mean label, read by a reviewer) (n,) and how often two reviewers read one row, and differed."""
    origins, matured = rows["origin"].to_list(), rows["matured_at"].to_list()
    targets, said = rows["target"].to_list(), rows["feedback"].to_list()
    judges = (str(Origin.OUTCOME), str(Origin.REVIEW))
    judged = np.array(
        [
            o in judges and t in problem.labels and m is not None and m <= now
            for o, t, m in zip(origins, targets, matured, strict=True)
        ],
        dtype=bool,
    )
    noisy = judged & np.array([origin == str(Origin.REVIEW) for origin in origins], dtype=bool)
    given = np.array([target == problem.positive for target in targets], dtype=float)
    twice = differed = 0
    for i in np.flatnonzero(noisy):
        words = readings(said[i])
        if len(words) > 1:
            values = [label == problem.positive for label in list(words.values())[:2]]
            given[i] = sum(values) / 2
            twice += 1
            differed += values[0] != values[1]
    return judged, given, noisy, (twice, differed)


def readings(feedback: str | None) -> dict[str, str]:
    """The blind reviews of a row: {actor: label}, each reviewer's latest word, in the order in which they first spoke."""
    history = msgspec.json.decode(feedback or "{}").get("history", [])
    words: dict[str, str] = {}
    for kind, _, actor, value, *_ in history:
        if kind == "review":
            words[str(actor)] = str(value)
    return words


# --- leaks --------------------------------------------------------------------------------------------------------------------


class Leaks(Record, frozen=True):
    """What judges and teaches at once. Shares (0..1) of rows whose content, exactly or nearly, stands among those that teach.

    People can be alike without being the same, so the natural rate of coincidence is taken from the validation rows, which
    were split off by the same hash.
    """

    subjects: int
    content: float
    near: float
    content_validation: float
    near_validation: float
    suspicious: bool  # a share beyond doubt (1 in 1,000) above twice that of the validation rows, and above 1 %


def leaks(
    judging: Sequence[Mapping[str, Any]],
    teaching: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    *,
    subjects: int = 0,
) -> Leaks:
    """Compare inputs before anything is scored. `subjects` is how many subjects stand on both sides."""
    known = {exactly(one) for one in teaching}, {nearly(one) for one in teaching}

    def share(rows: Sequence[Mapping[str, Any]], which: int) -> float:
        form = (exactly, nearly)[which]
        return sum(form(one) in known[which] for one in rows) / len(rows) if rows else 0.0

    found = [share(rows, which) for rows in (judging, validation) for which in (0, 1)]
    suspicious = False
    for here, there in ((found[0], found[2]), (found[1], found[3])):
        if here <= max(0.01, there) or not validation:
            continue
        usual = clopper_pearson(round(there * len(validation)), len(validation), 0.001)[1]
        suspicious |= binomial_tail(round(here * len(judging)), len(judging), min(2.0 * usual, 1.0)) < 0.001
    return Leaks(
        subjects=subjects, content=found[0], near=found[1], content_validation=found[2], near_validation=found[3],
        suspicious=suspicious or subjects > 0,
    )  # fmt: skip


def exactly(inputs: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(dict(inputs), order="sorted")


def nearly(inputs: Mapping[str, Any]) -> bytes:
    """The same for rows that differ only in spelling, spacing, or the third digit of a number."""
    plain = {
        name: float(f"{value:.2g}") if isinstance(value, int | float) and not isinstance(value, bool)
        else " ".join(value.casefold().split()) if isinstance(value, str) else value
        for name, value in inputs.items()
    }  # fmt: skip
    return msgspec.json.encode(plain, order="sorted")
