"""Can harm come in small steps? Every candidate loses two more points of women's TPR; each alone passes.

Through `ask`, `assess`, `judge` and a real policy: limit 5 points against the champion, and 5 against the anchor, which stays
the first release. Candidate i is the champion of its time with two more points of women's TPR gone and 0.4 % of all answers
changed by chance, on one sealed set of as many rows as one step alone needs. Who passes becomes champion; anything else
releases nobody. The third has lost six points since the anchor: its clause has to *block*, not only to hold. Beside it the
same without an anchor.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import polars as pl
from harness import Measured, main, say

from truing.tasks.evaluation.answers import ask
from truing.tasks.evaluation.comparison import assess
from truing.tasks.evaluation.gate import judge
from truing.tasks.policy import Clause, Evidence, Policy
from truing.tasks.problem import Group, Input, Problem
from truing.tasks.records import Outcome, Verdict

ROWS, STEP, STEPS, RIGHT, CHURN, NOW = 40_000, 0.02, 5, 0.9, 0.004, 1000.0
PROBLEM = Problem(
    name="steps", kind="tabular", label="y", labels=("no", "yes"), positive="yes",
    inputs={"row": Input(type="number")}, groups={"sex": Group(values=("Female", "Male"))},
)  # fmt: skip
POLICY = Policy(
    version=1,
    clause=(
        Clause(name="accuracy", slice="all", metric="accuracy", limit=0.02, anchor_limit=0.04),
        Clause(name="women's TPR", slice="sex=Female", metric="tpr", limit=0.05, anchor_limit=0.05),
        Clause(name="men's TPR", slice="sex=Male", metric="tpr", limit=0.05, anchor_limit=0.05),
    ),
    evidence=Evidence(min_rows=5_000, min_coverage=0.8),
)


@dataclass
class Said:
    labels: list[str]
    probabilities: Any


@dataclass
class Step:
    """A model by its answers: row number → yes or no."""

    name: str
    yes: Any

    def predict(self, inputs: list[dict[str, Any]]) -> Said:
        yes = self.yes[[int(one["row"]) for one in inputs]]
        p = np.where(yes, 0.75, 0.25)
        return Said([PROBLEM.labels[int(one)] for one in yes], np.stack([1 - p, p], axis=1))


def world(seed: int) -> tuple[pl.DataFrame, list[Step]]:
    """The sealed rows, and the anchor followed by the candidates, each 2 points of women's TPR below the one before."""
    rng = np.random.default_rng(seed)
    women, truth, lost = rng.random(ROWS) < 0.5, rng.random(ROWS) < 0.5, rng.random(ROWS)
    base = np.where(rng.random(ROWS) < RIGHT, truth, ~truth)
    models = []
    for i in range(STEPS + 1):
        gone = women & truth & base & (lost < i * STEP / RIGHT)
        models.append(Step(f"step {i}", (base & ~gone) ^ (rng.random(ROWS) < CHURN)))
    numbers = np.arange(ROWS)
    rows = pl.DataFrame(
        {
            "id": [f"r{i:06d}" for i in numbers],
            "subject": [f"s{i:06d}" for i in numbers],
            "content": [json.dumps({"row": int(i)}).encode() for i in numbers],
            "groups": ['{"sex":"Female"}' if one else '{"sex":"Male"}' for one in women],
            "target": [PROBLEM.labels[int(one)] for one in truth],
            "origin": "outcome",
            "asked_at": 10.0,
            "matured_at": 20.0,
            "split": "holdout",
        }
    )
    return rows, models


def asked(rows: pl.DataFrame, candidate: Step, champion: Step, anchor: Step | None, *, looks_anchor: int, seed: int) -> Verdict:
    digests = {"candidate": candidate.name, "champion": champion.name, "anchor": anchor.name if anchor else None}
    answers = ask(
        rows, PROBLEM, POLICY, candidate=candidate, champion=champion, none=None, anchor=anchor, digests=digests, look=1,
        now=NOW, looks_anchor=looks_anchor,
    )  # fmt: skip
    evaluation, scores = assess(answers, PROBLEM, POLICY)
    return judge(evaluation, scores, PROBLEM, POLICY, dataset="d", key="k", now=NOW, seed=seed)


def walk(seed: int, *, anchored: bool) -> tuple[int, int | None, str, list[str]]:
    """Releases, the step that was blocked, the reason, and which clauses blocked it (by what they are held against)."""
    rows, models = world(seed)
    champion, released = models[0], 0
    for i, candidate in enumerate(models[1:], start=1):
        verdict = asked(rows, candidate, champion, models[0] if anchored else None, looks_anchor=i, seed=seed)
        if verdict.outcome is Outcome.BLOCK:
            return released, i, verdict.reason, [one.against for one in verdict.clauses if one.outcome is Outcome.BLOCK]
        if verdict.outcome is not Outcome.PASS:
            return released, None, verdict.reason, []
        champion, released = candidate, released + 1
    return released, None, "", []


def measure(arguments: argparse.Namespace) -> Measured:
    seeds = 2 if arguments.quick else arguments.seeds
    found, free = [], []
    for seed in range(seeds):
        found.append(walk(seed, anchored=True))
        if seed < max(1, seeds // 4):
            free.append(walk(seed, anchored=False)[0])
        say(f"seed {seed}: {found[-1][0]} released, blocked at step {found[-1][1]}")
    released, blocked = [one[0] for one in found], [one[1] for one in found]
    asked = sum(one >= 1 for one in released) / seeds
    right = [one for one in found if one[0] == 2 and one[1] == 3 and set(one[3]) == {"anchor"}]
    gone = [one[0] * STEP for one in found]
    example = right[0][2] if right else found[0][2]
    figures = {
        "released": max(set(released), key=released.count),
        "blocked_at": max(set(blocked), key=blocked.count) or 0,
        "share_one_alone_passes": asked,
        "share_two_out_third_blocked": len(right) / seeds,
        "share_more_than_two_out": sum(one > 2 for one in released) / seeds,
        "points_lost_most": 100 * max(gone),
        "seeds": seeds,
    }
    beside = {"released_without_anchor": float(np.mean(free)), "points_lost_without_anchor": 100 * float(np.mean(free)) * STEP}
    lines = [
        f"{ROWS:,} sealed rows, up to {STEPS} steps of {100 * STEP:.0f} points of women's TPR; {seeds} seeds",
        f"one step alone passes            {asked:6.0%}",
        f"two released, the third blocked  {len(right) / seeds:6.0%}   by the anchor's clause alone",
        f"more than two released           {figures['share_more_than_two_out']:6.0%}",
        f"without an anchor: {np.mean(free):.1f} of {STEPS} released, {100 * STEP * float(np.mean(free)):.0f} points lost",
        f"as it says: {example}",
    ]
    broken = []
    if figures["released"] != 2 or figures["blocked_at"] != 3:
        broken.append(f"released {figures['released']}, blocked at {figures['blocked_at']}; expected 2 and 3")
    if figures["share_more_than_two_out"] > 0:
        broken.append("a candidate six points below the anchor was released")
    return Measured(figures, beside, lines, broken)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=12, help="sealed sets (default 12; --quick takes 2)")


if __name__ == "__main__":
    sys.exit(main("gate_anchor", measure, options=options))
