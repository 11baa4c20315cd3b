"""A policy in plain words, for the person who accepts it: what may not happen to whom, by how much, and what follows."""

from __future__ import annotations

from truing.tasks.evaluation.slices import spoken
from truing.tasks.evaluation.wording import SPOKEN, amount, unit
from truing.tasks.policy import Absolute, Clause, Policy
from truing.tasks.statistics.cells import HIGHER_IS_BETTER

EXIT = {
    "hold": "while it is open, it waits for more labels",
    "targeted": "while it is open, up to {budget:,} labels are asked for where the models disagree",
    "canary": "while it is open, a capped share of the traffic may try it, with a stop at harm",
    "sign": "while it is open, a person may sign for the named risk, with an end",
}


def clause_words(clause: Clause, policy: Policy) -> str:
    """`sex Female: the TPR may not fall by more than 7.0 points against the champion, nor by 10.0 against the anchor`."""
    verb = "fall" if HIGHER_IS_BETTER[clause.metric] else "rise"
    said = f"{spoken(clause.slice)}: the {SPOKEN[clause.metric]} may not {verb} by more than {_limit(clause, clause.limit)}"
    said += " against the champion"
    if clause.anchor_limit is not None:
        said += f", nor by more than {_limit(clause, clause.anchor_limit)} against the anchor"
    if not clause.deciding:
        return f"{said}; watched: it blocks where harm is proved, and a pass does not wait for it"
    return f"{said}; {EXIT[clause.exit].format(budget=policy.audit.budget)}"


def floor_words(floor: Absolute) -> str:
    return (
        f"{spoken(floor.slice)}: the {SPOKEN[floor.metric]} must be better than the prior predictor's by at least "
        f"{amount(floor.at_least, floor.metric)}{unit(floor.metric)}"
    )


def rules_words(policy: Policy) -> list[str]:
    """What holds for all clauses together, one sentence each."""
    evidence, levels = policy.evidence, policy.levels
    said = [
        f"A verdict can be a pass from {evidence.min_rows:,} judging rows on, if {evidence.min_coverage:.0%} of the rows due "
        "have an outcome.",
        f"It passes if every deciding clause's own upper bound is inside its limit (error {levels.passing:.2%} each), and is "
        f"blocked if one drop is beyond its limit and its joint lower bound above zero (error {levels.block:.2%} in all).",
        f"{_times(evidence.max_looks)} at one candidate; {evidence.free_candidates} candidates between two releases are judged "
        f"at the full level, the k-th after them at ({evidence.free_candidates}/k)² of it.",
    ]
    persons = policy.approvals.block_persons
    said.append(
        f"{persons} approvers together may release a blocked version."
        if persons
        else "Nobody can release a blocked version, and an inconclusive one only with a reason and for at most "
        f"{policy.approvals.inconclusive_expires}."
    )
    if policy.audit.share or policy.audit.budget:
        said.append(
            f"{policy.audit.share:.1%} of the traffic is drawn at random for blind review"
            + (f" within each {' × '.join(policy.audit.groups)}" if policy.audit.groups else "")
            + f"; targeted audits may cost {policy.audit.budget:,} labels; {policy.audit.double:.0%} are read twice."
        )
    found = policy.discovery
    said.append(
        f"The {found.slices} worst slices of up to {found.depth} conditions are found on one half and tested on the other; "
        + ("one that holds there blocks." if found.block else "one that holds there is told.")
    )
    if policy.repair.enabled:
        said.append(
            f"A block by a fairness clause is answered by repaired candidates ({', '.join(policy.repair.methods)})"
            + (", with thresholds by group" if policy.repair.by_group_thresholds else "")
            + "."
        )
    return said


def _limit(clause: Clause, limit: float) -> str:
    if clause.relative:
        return f"{limit:.0%} of its value there"
    return f"{amount(limit, clause.metric)}{unit(clause.metric)}"


def _times(looks: int) -> str:
    return "One look" if looks == 1 else f"{looks} looks, each at an equal part of these levels,"
