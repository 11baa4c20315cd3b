"""The steward's audits: labels as a sample, plans aimed at where the models disagree, and when to look again.

A plan is drawn when a verdict stays open for want of rows, the policy has a budget for it and pays for one more look. It is
signed with the gate's key and written before its first label is asked for; `truing review` asks for them; once all are there
the version is judged again on what they say.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from truing.tasks import seal
from truing.tasks.evaluation.audit import Plan, draw_plan, keep_plan, read_plans
from truing.tasks.evaluation.evidence import Evidence, gather
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Outcome, Verdict

if TYPE_CHECKING:
    import polars as pl

    from truing.flows.loop import Offices
    from truing.tasks.evaluation.answers import Answers
    from truing.tasks.tables.lake import Lake, Vault


def folder(desk: Path) -> Path:
    return desk / "audits"


def plan_for(desk: Path, problem: str, offices: Offices, *, candidate: str, champion: str | None) -> Plan | None:
    """The newest plan aimed at this pair of models."""
    plans = read_plans(folder(desk), problem, offices.public.gate)
    aimed = [plan for plan in plans if plan.candidate == candidate and plan.champion == champion]
    return aimed[-1] if aimed else None


def evidence_on(
    rows: pl.DataFrame, problem: Problem, policy: Policy, *, desk: Path, offices: Offices, candidate: str, champion: str | None,
    now: float,
) -> Evidence | None:  # fmt: skip
    """What is known of the labels; a finished plan of this pair comes before everything else."""
    from truing.tasks.evaluation.reading import finished

    plan = plan_for(desk, problem.name, offices, candidate=candidate, champion=champion)
    if plan is not None and not finished(plan, rows, now=now):
        plan = None
    return gather(rows, problem, now=now, min_coverage=policy.evidence.min_coverage, plan=plan)


def aim(
    answers: Answers, verdict: Verdict, problem: Problem, policy: Policy, *, desk: Path, offices: Offices, now: float
) -> Plan | None:
    """Draw a plan for a verdict that stayed open for want of rows; None when there is nothing to draw or to spend."""
    short = any(one.deciding and one.outcome is Outcome.INCONCLUSIVE and one.rows_needed for one in verdict.clauses)
    thin = verdict.outcome is Outcome.INCONCLUSIVE and short and verdict.champion is not None
    if not thin or policy.audit.budget < 1 or verdict.look >= policy.evidence.max_looks:
        return None
    if plan_for(desk, problem.name, offices, candidate=verdict.candidate, champion=verdict.champion) is not None:
        return None
    differ = answers.label["candidate"] != answers.label["champion"]
    if not (differ & ~answers.judged).any():
        return None  # every row that could tell is labelled: only more traffic helps
    seed = seal.mac(offices.gate, "audit", problem.name, verdict.candidate, verdict.evaluation)
    plan = draw_plan(
        answers.ids,
        [_stratum(text, policy.audit.groups) for text in answers.groups],
        problem=problem.name,
        budget=policy.audit.budget,
        seed=seed,
        at=now,
        disagree=np.asarray(differ, dtype=bool),
        labelled=answers.judged,
        double=policy.audit.double,
        candidate=verdict.candidate,
        champion=verdict.champion,
    )
    keep_plan(folder(desk), plan, offices.gate)
    return plan


def leak(rows: pl.DataFrame, lake: Lake, problem: Problem) -> str | None:
    """Why what judges may also have taught, by content; None where alikeness is no more than that of the validation rows."""
    from truing.tasks.evaluation.evidence import leaks
    from truing.tasks.records import Split

    known = lake.read("rows", ["content", "split", "subject"], _of(problem)).unique(
        "subject", keep="first", maintain_order=True
    )
    known = lake.living(known)
    judging = rows.unique("subject", keep="first", maintain_order=True)

    def inputs(frame: pl.DataFrame) -> list[dict[str, Any]]:
        return [msgspec.json.decode(content) for content in frame["content"].drop_nulls().to_list()]

    aside = known["split"] == str(Split.VALIDATION)
    found = leaks(inputs(judging), inputs(known.filter(~aside)), inputs(known.filter(aside)))
    if not found.suspicious:
        return None
    return (
        f"{found.content:.1%} of the holdout's subjects have inputs that also teach ({found.near:.1%} nearly so); among "
        f"validation subjects, split off by the same hash, it is {found.content_validation:.1%} ({found.near_validation:.1%})"
    )


def _of(problem: Problem) -> pl.Expr:
    import polars as pl

    return pl.col("problem") == problem.name


def _stratum(groups: str | None, names: tuple[str, ...]) -> str:
    known = msgspec.json.decode(groups or "{}")
    return " ".join(f"{name}={known.get(name)}" for name in names)


def landed(vault: Vault, problem: Problem, *, desk: Path, offices: Offices, champion: str | None, now: float) -> list[Plan]:
    """Finished plans against the present champion whose labels no verdict has heard yet (`heard`)."""
    from truing.tasks.evaluation.reading import finished

    plans = read_plans(folder(desk), problem.name, offices.public.gate)
    waiting = [plan for plan in plans if plan.champion == champion and not _mark(desk, plan).exists()]
    if not waiting:
        return []
    rows = vault.holdout(problem.name, now=now, matured=False)
    return [plan for plan in waiting if finished(plan, rows, now=now)]


def heard(desk: Path, plan: Plan) -> None:
    """Note that a verdict was made on the plan's labels. After a crash before this the same verdict is made again."""
    _mark(desk, plan).touch()


def _mark(desk: Path, plan: Plan) -> Path:
    return folder(desk) / plan.problem / f"{seal.digest(plan)}.heard"
