"""A policy on versions that were judged before: what would it have said?

Three sources, the surest first. The verdict was made under this very policy: then it is the answer. The rows' answers are
stored: then the gate judges them anew. Else the evaluation's cells are at hand: a drop and its 95 % interval for each slice
and metric, from which bounds at other levels follow by the normal approximation. The joint critical value depends on all rows;
it lies between that of one clause and Bonferroni's. What falls between is said to be open, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from truing.tasks.evaluation.ledger import level_share
from truing.tasks.evaluation.power import RELATIVE_FROM, cell_of
from truing.tasks.policy import Absolute, Clause, Policy
from truing.tasks.records import Estimate, Evaluation, Outcome, Record, Verdict
from truing.tasks.statistics.cells import PROPORTIONS
from truing.tasks.statistics.proportions import EXACT_BELOW, z_of

NEAR = 0.05  # of the limit: an approximate bound so close to it decides nothing

SAME, STORED, CELLS, NOTHING = "this policy", "stored answers", "cells", "nothing at hand"
PASSES, BLOCKS, OPEN, MAY_PASS, MAY_BLOCK = "pass", "block", "open", "may pass", "may block"


class Line(Record, frozen=True):
    """One clause on past cells. `says`: pass | block | open | may pass | may block; bounds are approximate."""

    name: str
    against: str
    deciding: bool
    says: str
    drop: float | None
    low: float | None  # the stricter joint lower bound, Bonferroni's
    high: float | None
    limit: float
    why: str = ""


class Rehearsal(Record, frozen=True):
    """A past version under this policy. `possible`: the outcomes it may have; one if that is certain, none if nothing is."""

    version: str
    then: str
    possible: tuple[str, ...]
    how: str
    reason: str
    lines: tuple[Line, ...] = ()

    @property
    def changes(self) -> bool:
        """Is it certain that the outcome would be another?"""
        return bool(self.possible) and self.then not in self.possible


def rehearse(version: str, verdict: Verdict, evaluation: Evaluation | None, policy: Policy) -> Rehearsal:
    """From what is stored without the rows' answers."""
    then = verdict.outcome.value
    if verdict.policy == policy.digest:
        return Rehearsal(version=version, then=then, possible=(then,), how=SAME, reason=verdict.reason)
    if evaluation is None:
        why = "judged under another policy, and its evaluation is not at hand"
        return Rehearsal(version=version, then=then, possible=(), how=NOTHING, reason=why)
    lines = tuple(_lines(evaluation, verdict, policy))
    holds = _holds(evaluation, policy)
    possible = _outcomes(lines, bool(holds))
    order = (BLOCKS, MAY_BLOCK, OPEN, MAY_PASS, PASSES)
    weighty = [one for one in lines if one.deciding or one.says in (BLOCKS, MAY_BLOCK)]
    worst = min(weighty, key=lambda one: (order.index(one.says), one.limit - (one.high or 0.0)), default=None)
    told = [*holds, *([f"{worst.name} ({worst.against}): {worst.why}"] if worst else [])]
    return Rehearsal(version=version, then=then, possible=possible, how=CELLS, reason="; ".join(told), lines=lines)


def rejudged(version: str, past: Verdict, anew: Verdict) -> Rehearsal:
    """From stored answers: `anew` is what the gate itself says of the very rows under this policy (`kept.Case.conclude`)."""
    says = {Outcome.PASS: PASSES, Outcome.BLOCK: BLOCKS, Outcome.INCONCLUSIVE: OPEN}
    lines = tuple(
        Line(
            name=one.name, against=one.against, deciding=one.deciding, says=says[one.outcome], drop=one.delta.value,
            low=one.delta.low, high=one.delta.high, limit=one.limit, why=one.reason,
        )
        for one in anew.clauses
    )  # fmt: skip
    then = past.outcome.value
    return Rehearsal(version=version, then=then, possible=(anew.outcome.value,), how=STORED, reason=anew.reason, lines=lines)


def _outcomes(lines: Iterable[Line], held: bool) -> tuple[str, ...]:
    lines = list(lines)
    if any(one.says == BLOCKS for one in lines):
        return (Outcome.BLOCK.value,)
    deciding = [one for one in lines if one.deciding]
    found = set()
    if any(one.says == MAY_BLOCK for one in lines):
        found.add(Outcome.BLOCK.value)
    if held or not deciding or any(one.says in (OPEN, MAY_BLOCK) for one in deciding):
        found.add(Outcome.INCONCLUSIVE.value)
    else:
        found.add(Outcome.PASS.value)
        if any(one.says == MAY_PASS for one in deciding):
            found.add(Outcome.INCONCLUSIVE.value)
    return tuple(sorted(found))


def _lines(evaluation: Evaluation, verdict: Verdict, policy: Policy) -> Iterable[Line]:
    anchored = evaluation.anchor is not None and evaluation.anchor != evaluation.champion
    asked = [(one, "champion", one.limit) for one in policy.clause if evaluation.champion is not None]
    asked += [(one, "anchor", one.anchor_limit) for one in policy.clause if anchored and one.anchor_limit is not None]
    count = len(asked) + len(policy.absolute)
    for clause, against, limit in asked:
        yield _clause(evaluation, clause, against, limit, policy, count)
    for floor in policy.absolute:
        yield _floor(verdict, floor, policy, count, evaluation.looks)


def _clause(evaluation: Evaluation, clause: Clause, against: str, limit: float, policy: Policy, count: int) -> Line:
    cell = cell_of(evaluation, clause.slice, clause.metric)
    empty = Line(
        name=clause.name, against=against, deciding=clause.deciding, says=OPEN, drop=None, low=None, high=None, limit=limit
    )
    if cell is None:
        return _because(empty, "no such cell was stored")
    delta = cell.delta if against == "champion" else cell.delta_anchor
    if delta.value is None or delta.low is None or delta.high is None:
        return _because(empty, "could not be estimated")
    value = cell.champion if against == "champion" else cell.anchor
    noise = 0.0
    if clause.relative and value is not None and value >= RELATIVE_FROM:
        noise = limit * math.sqrt(value * (1.0 - value) / cell.n) if clause.metric in PROPORTIONS and cell.n else 0.0
        limit = limit * value
    looks = evaluation.looks if against == "champion" else evaluation.looks_anchor
    return _decided(empty, delta, limit, noise, _levels(policy, looks), count)


def _floor(verdict: Verdict, floor: Absolute, policy: Policy, count: int, looks: int) -> Line:
    """Against the prior predictor only the verdict's own bounds are stored; taken at this policy's level."""
    empty = Line(
        name=floor.name, against="absolute", deciding=True, says=OPEN, drop=None, low=None, high=None, limit=-floor.at_least
    )
    wanted = (floor.slice, floor.metric, "absolute")
    known = next((one for one in verdict.clauses if (one.slice, one.metric, one.against) == wanted), None)
    if known is None or known.delta.value is None or known.delta.high is None:
        return _because(empty, "the verdict did not ask it")
    half = (known.delta.high - known.delta.value) / z_of(_levels(policy, looks)[1]) * z_of(0.025)
    delta = Estimate(
        value=known.delta.value, low=known.delta.value - half, high=known.delta.value + half, n=known.delta.n, level=0.95
    )
    return _decided(empty, delta, -floor.at_least, 0.0, _levels(policy, looks), count, null=-floor.at_least)


def _decided(
    empty: Line, delta: Estimate, limit: float, noise: float, levels: tuple[float, float], count: int, *, null: float = 0.0
) -> Line:
    block, passing = levels
    drop, far = float(delta.value or 0.0), z_of((1.0 - delta.level) / 2.0)
    down, up = (drop - float(delta.low or 0.0)) / far, (float(delta.high or 0.0) - drop) / far
    single, strict = drop - z_of(block) * down, drop - z_of(block / max(count, 1)) * down
    high = drop + z_of(passing) * math.hypot(up, noise)
    if drop > limit and strict > null:
        says, why = BLOCKS, f"drop {drop:.4f} beyond {limit:.4f}, surely"
    elif drop > limit and single > null:
        says, why = MAY_BLOCK, f"drop {drop:.4f} beyond {limit:.4f}; the joint bound needs the rows"
    elif delta.n < EXACT_BELOW:
        says, why = OPEN, f"{delta.n} rows: too few for a bound from a stored interval"
    elif abs(high - limit) <= NEAR * abs(limit):
        says, why = MAY_PASS, f"upper bound about {high:.4f}, too near the limit {limit:.4f} to tell"
    elif high <= limit:
        says, why = PASSES, f"upper bound about {high:.4f}, limit {limit:.4f}"
    else:
        says, why = OPEN, f"a drop of {high:.4f} can't be ruled out, limit {limit:.4f}"
    return Line(
        name=empty.name, against=empty.against, deciding=empty.deciding, says=says, drop=drop, low=strict, high=high,
        limit=limit, why=why,
    )  # fmt: skip


def _because(line: Line, why: str) -> Line:
    return Line(
        name=line.name, against=line.against, deciding=line.deciding, says=line.says, drop=None, low=None, high=None,
        limit=line.limit, why=why,
    )  # fmt: skip


def _levels(policy: Policy, looks: int) -> tuple[float, float]:
    """Levels of block and pass, as in the gate."""
    once = policy.evidence.max_looks
    return policy.levels.block / once, policy.levels.passing / once * level_share(looks, policy.evidence.free_candidates)


def _holds(evaluation: Evaluation, policy: Policy) -> list[str]:
    """The gate's holds that stored numbers tell."""
    evidence = policy.evidence
    found = []
    if evaluation.champion is None:
        found.append("no champion")
    if evaluation.n < evidence.min_rows:
        found.append(f"{evaluation.n:,} rows judged, {evidence.min_rows:,} are asked for")
    if evaluation.sampled is None and evaluation.coverage < evidence.min_coverage:
        found.append(f"coverage {evaluation.coverage:.0%}, {evidence.min_coverage:.0%} is asked for")
    if evaluation.look > evidence.max_looks:
        found.append(f"look {evaluation.look}, {evidence.max_looks} are paid for")
    held = evaluation.unseen is not None and evaluation.unseen.holds
    if evaluation.looks > evidence.free_candidates and evaluation.champion is not None and not held:
        found.append(f"candidate {evaluation.looks} since the release, and not shown to hold on rows that came later")
    return found
