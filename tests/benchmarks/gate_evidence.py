"""Who gives feedback is not drawn by chance. Does the gate notice, and how much of an audit does it take to decide rightly?

Eight groups (`eight_groups`), base rate 50 %, churn 10 %, 150,000 rows that both models answered. Outcomes come by themselves
only

    complaints   where the champion was wrong: a candidate can only look better there, so harm passes
    accepted     where the champion said yes: it is right about all positives there, so an equal candidate looks harmful

The naive gate judges on the rows that have a label, each counted once. Ours takes them for what they are, adds a blind audit of
a random share of the traffic (`evidence.gather`), and decides by the same `judge()`. `plan` is ours with as many labels as an
audit of 3.3 %, most of them where the models disagree. A decision is wrong when a candidate with a true drop of 10 points in
TPR of the 12 % group passes, or an equal one is blocked; `inconclusive` is not wrong, only slow.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
import numpy as np
import polars as pl
from eight_groups import GROUPS, HARMED, Harm, Rows, draw, policy, probabilities, problem, rows_of, scores_of
from harness import Measured, main, say

from truing.tasks.evaluation.audit import Plan, draw_plan
from truing.tasks.evaluation.evidence import Evidence, gather
from truing.tasks.evaluation.gate import judge
from truing.tasks.evaluation.scores import Scores
from truing.tasks.records import Evaluation, Outcome
from truing.tasks.seal import digest

POOL, BASE, CHURN, HARM = 150_000, 0.50, 0.10, 0.10
LABELS = 5000  # of the plan
SHARES = (0.002, 0.005, 0.01, 0.02, 0.05)
WAYS = ("complaints", "accepted")
RULES = msgspec.structs.replace(policy(resamples=10_000), evidence=msgspec.structs.replace(policy().evidence, min_coverage=0.8))


def speaks(way: str, rows: Rows) -> Any:
    """(n,) rows whose outcome comes by itself."""
    return rows.champion != rows.positive if way == "complaints" else rows.champion


def plan_of(rows: Rows, way: str, seed: int) -> Plan:
    return draw_plan(
        [f"r{i:06d}" for i in range(len(rows.positive))],
        [GROUPS[g] for g in rows.group],
        problem="eight",
        budget=LABELS,
        seed=str(seed),
        at=0.5,
        disagree=rows.champion != rows.candidate,
        labelled=speaks(way, rows),
    )


def landed(rows: Rows, way: str, share: float, rng: np.random.Generator, plan: Plan | None = None) -> pl.DataFrame:
    """The holdout as the vault would hold it: outcomes that came by themselves, and blind reviews of a random share."""
    n = len(rows.positive)
    audited, itself = rng.random(n) < share, speaks(way, rows)
    if plan is not None:
        chosen = set(plan.drawn)
        audited = np.array([f"r{i:06d}" in chosen for i in range(n)])
    label = np.where(rows.positive, "yes", "no")
    return pl.DataFrame(
        {
            "id": [f"r{i:06d}" for i in range(n)],
            "asked_at": 0.0,
            "matured_at": [1.0 if known else None for known in audited | itself],
            "target": [str(one) if known else None for one, known in zip(label, audited | itself, strict=True)],
            "origin": ["outcome" if i else "review" if a else None for i, a in zip(itself, audited, strict=True)],
            "feedback": [
                json.dumps({"history": [["review", 0.5, "a", str(one), "readers"]]}) if a else "{}"
                for one, a in zip(label, audited, strict=True)
            ],
            "propensity": share,
            "audit": audited,
        },
        schema_overrides={"matured_at": pl.Float64, "target": pl.String, "origin": pl.String},
    )


def decide(scores: Scores, evaluation: Evaluation, seed: int) -> Outcome:
    evaluation = msgspec.structs.replace(evaluation, n=scores.n, digest="")
    evaluation = msgspec.structs.replace(evaluation, digest=digest(evaluation))
    return judge(evaluation, scores, problem(), RULES, dataset="d", key="k", now=2.0, seed=seed).outcome


def naive(rows: Rows, way: str, seed: int) -> Outcome:
    """The rows that have a label, each counted once, as if they were the traffic."""
    known = np.flatnonzero(speaks(way, rows))
    few = Rows(rows.group[known], rows.positive[known], rows.champion[known], rows.candidate[known])
    evaluation, scores = scores_of(few)
    return decide(scores, evaluation, seed)


def ours(rows: Rows, found: Evidence | None, seed: int) -> Outcome:
    evaluation, scores = scores_of(rows)
    if found is None:
        raise RuntimeError("expected too few labels to count each once, got enough; lower the coverage of this setting")
    sample = found.on(list(found.ids))
    return decide(replace(scores, positive=rows.positive & sample["judged"], **sample), evaluation, seed)


def wrong(outcome: Outcome, harmed: bool) -> bool:
    return outcome is (Outcome.PASS if harmed else Outcome.BLOCK)


def right(outcome: Outcome, harmed: bool) -> bool:
    return outcome is (Outcome.BLOCK if harmed else Outcome.PASS)


def measure(arguments: argparse.Namespace) -> Measured:
    repeats, shares = (1, (0.0, 0.05)) if arguments.quick else (12, (0.0, *SHARES))
    rng = np.random.default_rng(4)
    tables = {False: probabilities(BASE, CHURN), True: probabilities(BASE, CHURN, (Harm(HARMED, "tpr", HARM),))}
    said: dict[tuple[str, str, float], list[tuple[Outcome, bool]]] = {}
    for number in range(repeats):
        for way in WAYS:
            for harmed, table in tables.items():
                rows = rows_of(draw(rng, POOL, table))
                said.setdefault(("naive", way, 0.0), []).append((naive(rows, way, number), harmed))
                for share in shares:
                    found = gather(landed(rows, way, share, rng), problem(), now=2.0, min_coverage=RULES.evidence.min_coverage)
                    said.setdefault(("ours", way, share), []).append((ours(rows, found, number), harmed))
                plan = plan_of(rows, way, number)
                found = gather(landed(rows, way, 0.0, rng, plan), problem(), now=2.0, min_coverage=1.0, plan=plan)
                said.setdefault(("plan", way, LABELS / POOL), []).append((ours(rows, found, number), harmed))
        say(f"{number + 1} of {repeats}")
    kinds = (Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.BLOCK)
    lines = [f"{'':6} {'outcomes':>10} {'audit':>6} {'wrong':>6} {'right':>6}   equal: pass, open, block   harmed: the same"]
    curve: list[dict[str, Any]] = []
    for (who, way, share), decisions in sorted(said.items()):
        mistaken = sum(wrong(*one) for one in decisions) / len(decisions)
        fine = sum(right(*one) for one in decisions) / len(decisions)
        counts = [[decisions.count((kind, h)) for kind in kinds] for h in (False, True)]
        curve.append({"gate": who, "outcomes": way, "audit_share": share, "wrong": mistaken, "right": fine})
        lines.append(f"{who:6} {way:>10} {share:>6.1%} {mistaken:>6.1%} {fine:>6.1%}   {counts[0]!s:>24}   {counts[1]!s:>16}")
    by = {(one["gate"], one["outcomes"], one["audit_share"]): one for one in curve}
    enough = [share for share in shares[1:] if all(by["ours", way, share]["right"] >= 0.8 for way in WAYS)]
    figures = {
        "naive_wrong": min(one["wrong"] for one in curve if one["gate"] == "naive"),
        "ours_wrong": max(one["wrong"] for one in curve if one["gate"] != "naive"),
        "audit_share": min(enough) if enough else None,  # smallest at which at least 80 % of the decisions are right
        "plan_right": min(one["right"] for one in curve if one["gate"] == "plan"),
        "decisions": 2 * repeats,
        "curve": curve,
    }
    broken = []
    if figures["ours_wrong"] > (0.0 if arguments.quick else 0.025):
        broken.append(f"ours decides wrongly in {figures['ours_wrong']:.1%}, promised at most 2.5 %")
    if figures["naive_wrong"] < 0.25:
        broken.append("the naive gate decides rightly here: this setting shows nothing")
    return Measured(figures, {"naive": "the same judge() on the labelled rows, each counted once"}, lines, broken)


if __name__ == "__main__":
    raise SystemExit(main("gate_evidence", measure))
