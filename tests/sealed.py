"""Sealed rows and models by rule, for tests of what follows from answers: no training, exact truths, quick."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from truing.tasks.evaluation.answers import Answers, ask
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem

NOW = 1000.0
Inputs = list[dict[str, Any]]


@dataclass
class Said:
    labels: list[str]
    probabilities: npt.NDArray[np.float64]


class Rule:
    """A model that finds its score in an input, and says the opposite where `where` holds."""

    def __init__(self, problem: Problem, column: str = "education", where: Callable[[dict[str, Any]], bool] | None = None):
        self.problem, self.column, self.where = problem, column, where

    def predict(self, inputs: Inputs) -> Said:
        p = np.array([float(one[self.column]) for one in inputs])
        if self.where is not None:
            p = np.where([self.where(one) for one in inputs], 1.0 - p, p)
        order = [self.problem.labels.index(self.problem.positive)]
        table = np.empty((len(p), 2))
        table[:, order[0]], table[:, 1 - order[0]] = p, 1.0 - p
        return Said([self.problem.labels[int(i)] for i in np.argmax(table, axis=1)], table)


def sealed_rows(problem: Problem, n: int = 3000, *, seed: int = 1, noise: float = 0.05, per_subject: int = 1) -> pl.DataFrame:
    """n holdout rows. `education` is the champion's score (as a word: no search cuts by it), `occupation` an equal one's.

    Both err by `noise` around the true chance: they answer differently near the threshold, and neither is better anywhere.
    """
    rng = np.random.default_rng(seed)
    truth = rng.beta(0.8, 1.6, n)
    positive = rng.random(n) < truth
    old, new = np.clip(truth + rng.normal(0, noise, (2, n)), 0.01, 0.99)
    age, women = rng.integers(18, 80, n), rng.random(n) < 0.4
    work = rng.choice(["Private", "Self-emp", "Gov"], n, p=[0.6, 0.15, 0.25])
    race = rng.choice(["White", "Black", "Other"], n, p=[0.8, 0.15, 0.05])
    content = [
        {"age": int(a), "workclass": str(w), "education": f"{o:.6f}", "occupation": f"{c:.6f}"}
        for a, w, o, c in zip(age, work, old, new, strict=True)
    ]
    groups = [
        {"sex": "Female" if w else "Male", "race": str(r), "age": problem.bucket("age", int(a))}
        for w, r, a in zip(women, race, age, strict=True)
    ]
    return pl.DataFrame(
        {
            "id": [f"r{i:06d}" for i in range(n)],
            "problem": problem.name,
            "subject": [f"s{i // per_subject:06d}" for i in range(n)],
            "content": [json.dumps(one).encode() for one in content],
            "groups": [json.dumps(one) for one in groups],
            "target": [
                problem.positive if one else next(v for v in problem.labels if v != problem.positive) for one in positive
            ],
            "origin": "outcome",
            "asked_at": 10.0,
            "matured_at": 20.0,
            "split": "holdout",
            "revision": 1,
        }
    )


def asked(rows: pl.DataFrame, problem: Problem, policy: Policy, candidate: Rule, **more: Any) -> Answers:
    """The candidate against the rule `education`, which is champion, parent and anchor."""
    old = Rule(problem)
    digests = {"candidate": "c" * 64, "champion": "a" * 64, "none": "a" * 64, "anchor": "a" * 64}
    return ask(
        rows, problem, policy, candidate=candidate, champion=old, none=old, anchor=old, digests=digests, look=1, now=NOW, **more
    )


def lenient(policy: Policy, **changes: Any) -> Policy:
    """The policy with evidence asked for that small tests have."""
    evidence = msgspec.structs.replace(policy.evidence, min_rows=500)
    levels = msgspec.structs.replace(policy.levels, resamples=10_000)
    return msgspec.structs.replace(policy, evidence=evidence, levels=levels, **changes)
