"""The gate: a policy and the models' answers on sealed rows become pass, block or inconclusive.

- *Block*: some clause's drop is beyond its limit **and** its joint lower bound (max-T over all clauses, `levels.block`) is
above zero.
  Watched clauses block too.
- *Pass*: every deciding clause's own one-sided upper bound is inside its limit (`levels.passing`; intersection-union, so no
  correction), there is a champion, and there is evidence enough.
- Else *inconclusive*, with the rows that would be needed.

What can't be estimated (no rows, an answer that isn't a number) never passes. Both levels are divided by
`evidence.max_looks`, so that asking again is paid for beforehand; and the more other candidates these rows have judged, the
smaller the pass level and the fewer the rows that count (`ledger`). Against the prior predictor (absolute clauses) the same
two rules decide on the shortfall: how much the improvement stays below what is asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np

from truing.tasks.errors import DataError
from truing.tasks.evaluation import wording
from truing.tasks.evaluation.ledger import level_share
from truing.tasks.evaluation.scores import PRIOR, Scores
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Clause, Estimate, Evaluation, Found, Outcome, Unseen, Verdict
from truing.tasks.seal import digest
from truing.tasks.statistics.multiplicity import joint_lower
from truing.tasks.statistics.paired import Paired, needed, upper

RELATIVE_FROM = 0.1  # below this champion's value a relative limit would mean next to nothing, so it counts as absolute points


@dataclass(frozen=True, eq=False)
class Question:
    """One line of the policy against one model, with everything needed to decide it.

    `limit` is in the metric's points, for a relative clause worked out from the reference's value. `excess` is what must
    not exceed `room` with confidence: the drop and its limit, or, for a relative limit r, drop − r·reference and 0.
    """

    name: str
    slice: str
    metric: str
    against: str  # champion | anchor | absolute
    deciding: bool
    paired: Paired
    excess: Paired
    limit: float
    room: float
    note: str = ""
    power: float = 0.8  # the chance to pass that rows needed are named for

    @property
    def null(self) -> float:
        """What the joint lower bound has to exceed before the clause blocks."""
        return self.limit if self.against == "absolute" else 0.0


def judge(
    evaluation: Evaluation,
    scores: Scores,
    problem: Problem,
    policy: Policy,
    *,
    dataset: str,
    key: str,
    now: float,
    seed: int,
) -> Verdict:
    """The gate's word on one candidate.

    Args:
        evaluation, scores: what `comparison.assess` returned, both of them.
        dataset: digest of the dataset version the candidate learned from.
        key: id of the key that will sign the verdict.
        seed: of the joint distribution's draws; the same seed, rows and policy give the same verdict.

    Raises:
        DataError: evaluation and scores are not about the same rows and models.
    """
    _check(evaluation, scores, problem)
    looks = policy.evidence.max_looks
    block_level, pass_levels = policy.levels.block / looks, _pass_levels(evaluation, policy)
    questions = _questions(evaluation, scores, policy)
    joint = joint_lower(
        [one.paired for one in questions],
        subjects=scores.subject_count,
        level=block_level,
        draws=policy.levels.resamples,
        rng=np.random.default_rng(seed),
        null=[one.null for one in questions],
    )
    clauses = tuple(
        _decide(one, float(low), pass_levels[one.against], 1.0 - block_level, scores)
        for one, low in zip(questions, joint.low, strict=True)
    )
    if policy.discovery.block:
        clauses += tuple(_found(one) for one in evaluation.worst if one.confirmed)
    holds = _holds(evaluation, scores, policy)
    blocked = [one for one in clauses if one.outcome is Outcome.BLOCK]
    open_ones = [one for one in clauses if one.deciding and one.outcome is not Outcome.PASS]
    deciding = [one for one in clauses if one.deciding]
    if blocked:
        outcome, reason = Outcome.BLOCK, wording.blocked(blocked)
    elif holds or open_ones or not deciding:
        outcome, reason = Outcome.INCONCLUSIVE, wording.inconclusive(holds, open_ones, deciding)
    else:
        outcome, reason = Outcome.PASS, wording.passed(deciding, scores.n)
    reason += wording.spent(evaluation, policy.evidence.free_candidates)
    return Verdict(
        problem=problem.name,
        outcome=outcome,
        clauses=clauses,
        candidate=evaluation.candidate,
        evaluation=evaluation.digest,
        policy=policy.digest,
        dataset=dataset,
        champion=evaluation.champion,
        look=evaluation.look,
        at=now,
        key=key,
        reason=reason,
    )


def holds_on(evaluation: Evaluation, scores: Scores, problem: Problem, policy: Policy) -> bool:
    """Does every deciding clause pass on these rows alone? For rows that no verdict has shown: that bit is all that is told."""
    _check(evaluation, scores, problem)
    levels = _pass_levels(evaluation, policy)
    deciding = [one for one in _questions(evaluation, scores, policy) if one.deciding]
    sound = not any(scores.unsound(name) for name in ("candidate", "champion", "anchor") if name in scores.probability)
    return bool(deciding) and sound and all(_passes(one, levels[one.against]) for one in deciding)


def _pass_levels(evaluation: Evaluation, policy: Policy) -> dict[str, float]:
    """One-sided pass level of a clause by what it is held against; what has been asked before is paid for here."""
    once, free = policy.levels.passing / policy.evidence.max_looks, policy.evidence.free_candidates
    return {
        "champion": once * level_share(evaluation.looks, free),
        "anchor": once * level_share(evaluation.looks_anchor, free),
        "absolute": once * level_share(evaluation.looks, free),
    }


def _passes(one: Question, level: float) -> bool:
    return one.paired.estimable and upper(one.excess, level).value <= one.room and one.paired.drop <= one.limit


def _found(one: Found) -> Clause:
    """A slice found by itself that held on rows that did not take part in finding it: its joint lower bound is above 0."""
    return Clause(
        name=one.slice, slice=one.slice, metric=one.metric, outcome=Outcome.BLOCK, deciding=False, against="champion",
        delta=one.drop, limit=0.0, reason=wording.found(one),
    )  # fmt: skip


def _check(evaluation: Evaluation, scores: Scores, problem: Problem) -> None:
    if evaluation.digest != digest(msgspec.structs.replace(evaluation, digest="")):
        raise DataError("evaluation: expected the digest of its own content, got another; compare the models again")
    if evaluation.problem != problem.name:
        raise DataError(f"evaluation: expected one of {problem.name}, got one of {evaluation.problem}; compare on its own rows")
    if evaluation.rows != scores.rows or evaluation.n != scores.n:
        raise DataError("evaluation and scores: expected the same rows, got different ones; pass both results of one `assess`")
    for name in ("champion", "anchor"):
        if (getattr(evaluation, name) is not None) != (name in scores.probability):
            raise DataError(
                f"evaluation and scores: expected both or neither to know the {name}; pass both results of one `assess`"
            )


def _questions(evaluation: Evaluation, scores: Scores, policy: Policy) -> list[Question]:
    """All that the policy asks: its clauses against champion and anchor, where there are such, and its floors."""
    found = []
    anchored = evaluation.anchor is not None and evaluation.anchor != evaluation.champion
    for clause in policy.clause:
        pairs = [("champion", clause.limit)] if evaluation.champion is not None else []
        if anchored and clause.anchor_limit is not None:
            pairs.append(("anchor", clause.anchor_limit))
        for against, limit in pairs:
            paired = scores.pair(clause.slice, clause.metric, against)
            excess, points, room, note = paired, limit, limit, ""
            if clause.relative and paired.estimable:
                if paired.reference >= RELATIVE_FROM:
                    points, room = limit * paired.reference, 0.0
                    excess = scores.pair(clause.slice, clause.metric, against, allowance=limit)
                    note = wording.relative(limit, paired.reference, against, clause.metric)
                else:
                    note = wording.too_small_to_be_relative(limit, paired.reference, against, clause.metric)
            found.append(
                Question(
                    name=clause.name,
                    slice=clause.slice,
                    metric=clause.metric,
                    against=against,
                    deciding=clause.deciding,
                    paired=paired,
                    excess=excess,
                    limit=points,
                    room=room,
                    note=note,
                    power=clause.power,
                )
            )
    for floor in policy.absolute:
        paired = scores.pair(floor.slice, floor.metric, PRIOR)
        found.append(
            Question(
                name=floor.name,
                slice=floor.slice,
                metric=floor.metric,
                against="absolute",
                deciding=True,
                paired=paired,
                excess=paired,
                limit=-floor.at_least,
                room=-floor.at_least,
            )
        )
    return found


def _decide(one: Question, low: float, pass_level: float, joint_level: float, scores: Scores) -> Clause:
    paired = one.paired
    if not paired.estimable or math.isnan(low):
        return Clause(
            name=one.name,
            slice=one.slice,
            metric=one.metric,
            outcome=Outcome.INCONCLUSIVE,
            deciding=one.deciding,
            against=one.against,
            delta=Estimate(value=None, n=paired.n, level=joint_level),
            limit=one.limit,
            reason=wording.not_estimable(one.name, paired.why),
        )
    bound = upper(one.excess, pass_level)
    high = max(bound.value + (one.limit - one.room), paired.drop)
    delta = Estimate(value=paired.drop, low=min(low, paired.drop), high=high, n=paired.n, level=joint_level)
    beyond = paired.drop > one.limit
    rows_needed = None
    if beyond and low > one.null:
        outcome = Outcome.BLOCK
    elif bound.value <= one.room and not beyond:
        outcome = Outcome.PASS
    else:
        outcome = Outcome.INCONCLUSIVE
        rows_needed = _rows_needed(one, pass_level, scores)
    return Clause(
        name=one.name,
        slice=one.slice,
        metric=one.metric,
        outcome=outcome,
        deciding=one.deciding,
        against=one.against,
        delta=delta,
        limit=one.limit,
        reason=wording.clause(one, outcome, delta, bound.method, rows_needed, scores.n),
        rows_needed=rows_needed,
    )


def _rows_needed(one: Question, level: float, scores: Scores) -> int | None:
    """Holdout rows of the present mix from which an equally good candidate passes this clause with the policy's power.

    For a floor there is no "equally good": there it is the rows from which a candidate with the improvement seen passes.
    """
    drop = one.paired.drop if one.against == "absolute" else 0.0
    count = needed(one.paired, one.limit, level, drop=drop, power=one.power)
    if count is None or not one.paired.n:
        return None
    return math.ceil(count * scores.n / one.paired.n)


def _holds(evaluation: Evaluation, scores: Scores, policy: Policy) -> list[str]:
    """Why nothing may pass whatever the clauses say."""
    holds = []
    evidence = policy.evidence
    if evaluation.champion is None:
        holds.append("no champion")
    broken = {name: scores.unsound(name) for name in ("candidate", "champion", "anchor") if name in scores.probability}
    holds += [f"the {name}'s answer is not a probability on {count} rows" for name, count in broken.items() if count]
    if scores.n < evidence.min_rows:
        holds.append(f"{scores.n:,} rows may judge, the policy asks for {evidence.min_rows:,}")
    if scores.weights is None and scores.n and evaluation.coverage < evidence.min_coverage:  # a sample's bounds allow for it
        holds.append(
            f"{evaluation.coverage:.0%} of the holdout rows that should have an outcome have one, "
            f"the policy asks for {evidence.min_coverage:.0%}"
        )
    if (
        scores.weights is not None
        and scores.noisy is not None
        and (scores.noisy & scores.judged).any()
        and not scores.doubles[0]
    ):
        holds.append("people read labels and none was read by two of them, so their error is unknown")
    if evaluation.look > evidence.max_looks:
        holds.append(f"this is look {evaluation.look} at the candidate, the policy pays for {evidence.max_looks}")
    unseen = evaluation.unseen or Unseen(n=0, holds=False)
    if evaluation.champion is not None and evaluation.looks > evidence.free_candidates and not unseen.holds:
        holds.append(wording.not_on_unseen(evaluation.looks, unseen.n))
    return holds
