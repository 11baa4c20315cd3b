"""What a clause costs: judging rows from which an equally good candidate passes it, labels if they are aimed, and days.

A clause passes when the upper bound of the paired drop, about d + z(level)·√(σ²/m) on m rows of its denominator, is inside the
limit. For a candidate with no drop that happens with the wanted power from m = (z(level) + z(1 − power))²·σ²/limit² rows on;
σ² is the variance of one row's difference. It is taken from past evaluations of the same slice and metric (their intervals say
it), or else from the churn: the share of rows on which an equal candidate answers otherwise.

*Aimed at disagreement*: rows on which both answer alike add nothing to a drop in accuracy, TPR or FPR. If a share p of all
disagreeing rows of a pool is labelled, the variance is that of p·(pool) rows labelled at random, so churn·m labels do for m
random ones; the pool itself must hold m rows. The rest of the budget (`audit.TARGETED`) goes to random rows for the rates'
denominators. Selection rates need no labels; Brier scores differ on every row, so aiming saves nothing there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import msgspec

from truing.tasks.evaluation.audit import TARGETED
from truing.tasks.policy import Clause, Policy
from truing.tasks.records import Cell, Estimate, Evaluation, Record
from truing.tasks.statistics.cells import PROPORTIONS, UNLABELLED
from truing.tasks.statistics.proportions import EXACT_BELOW, tail_of, z_of

RELATIVE_FROM = 0.1  # as in the gate: below it a relative limit counts as points
AIMABLE = frozenset({"accuracy", "tpr", "fpr"})


class Traffic(Record, frozen=True):
    """What comes in. `holdout` rows a day may come to judge, a `labelled` share (0..1) of them gets its outcome by itself."""

    holdout: float | None = None
    labelled: float = 1.0
    judging: int = 0  # rows that may judge now
    pool: int = 0  # the same with those that have no label


class Seen(Record, frozen=True):
    """What is known of a slice × metric. `variance` is that of one denominator row's paired difference; `how`: seen | churn."""

    share: float | None = None  # of all judging rows, 0..1
    base_rate: float | None = None
    value: float | None = None  # the champion's
    variance: float | None = None
    how: str = ""

    def denominator(self, metric: str) -> float | None:
        """Rows in the metric's denominator for each judging row."""
        if self.share is None:
            return None
        rate = {"tpr": self.base_rate, "fpr": None if self.base_rate is None else 1.0 - self.base_rate}.get(metric, 1.0)
        return None if rate is None else self.share * rate


class Need(Record, frozen=True):
    """One clause against one model: rows, labels and days until an equal candidate passes it. None = not known, or never.

    `rows` judge at random, `labels` are those of a targeted audit over as many rows of which only answers need to be known;
    `days` and `pool_days` until there are so many. `there`: rows of its denominator now; `chance`: that an equal candidate
    passes on them; `harm`: that a drop of twice the limit is blocked on them.
    """

    name: str
    slice: str
    metric: str
    against: str
    deciding: bool
    exit: str
    power: float
    limit: float
    note: str
    seen: Seen
    there: int = 0
    rows: int | None = None
    days: float | None = None
    labels: int | None = None
    pool_days: float | None = None
    chance: float | None = None
    harm: float | None = None


def seen_in(evaluations: Sequence[Evaluation], name: str, metric: str, against: str, churn: float | None = None) -> Seen:
    """A slice × metric in past evaluations, oldest first: share, base rate and value from the newest, variance the median.

    With `churn` the variance is scaled to it (in proportions it grows with the rows that moved), or derived where none was
    seen: of rows near the threshold every second one is positive.
    """
    cells = [(one, cell) for one in evaluations if (cell := cell_of(one, name, metric)) is not None]
    if not cells:
        return Seen()
    newest, cell = cells[-1]
    rows = cell_of(newest, name, "accuracy") or cell
    share = rows.n / newest.n if newest.n else None
    spread = []
    for one, each in cells:
        moved = one.flips if against == "champion" else one.drift
        known = variance_of(each.delta if against == "champion" else each.delta_anchor)
        if known is None or getattr(one, against) in (None, one.candidate):
            continue
        if churn is not None and metric in PROPORTIONS:
            if not moved:
                continue
            known *= churn / moved
        spread.append(known)
    usual = churn if churn is not None else churn_of(evaluations)
    variance, how = (median(spread), "seen") if spread else (_by_churn(metric, cell.base_rate, usual), "churn")
    value = cell.champion if against == "champion" else cell.anchor
    return Seen(
        share=share, base_rate=cell.base_rate, value=value if value is not None else cell.candidate, variance=variance,
        how=how if variance is not None else "",
    )  # fmt: skip


def variance_of(delta: Estimate) -> float | None:
    """Variance of one row's difference from a two-sided interval; None where bounds are exact, absent, or nothing differed."""
    if delta.low is None or delta.high is None or delta.n < EXACT_BELOW or delta.high <= delta.low:
        return None
    return ((delta.high - delta.low) / (2.0 * z_of((1.0 - delta.level) / 2.0))) ** 2 * delta.n


def _by_churn(metric: str, base_rate: float | None, churn: float | None) -> float | None:
    if churn is None or metric not in PROPORTIONS:
        return None
    if metric in ("accuracy", "selection_rate"):
        return churn
    rate = base_rate if metric == "tpr" else None if base_rate is None else 1.0 - base_rate
    return min(1.0, churn / 2.0 / rate) if rate else None


def cell_of(evaluation: Evaluation, name: str, metric: str) -> Cell | None:
    return next((cell for cell in evaluation.cells if (cell.slice, cell.metric) == (name, metric)), None)


def churn_of(evaluations: Sequence[Evaluation]) -> float | None:
    """Share of answers that a candidate changes against its champion: the median of past evaluations; None without any."""
    flips = [one.flips for one in evaluations if one.champion is not None and one.champion != one.candidate]
    return median(flips) if flips else None


# --- what a clause needs ------------------------------------------------------------------------------------------------------


def rows_for(limit: float, variance: float, *, level: float, power: float) -> float:
    """Denominator rows from which a candidate without a drop passes `limit` (> 0) with `power`; at least EXACT_BELOW.

    Example:
        >>> round(rows_for(0.05, 0.159, level=0.008, power=0.8))  # about 670 positives at 16 % discordance
        672
    """
    return max((z_of(level) + z_of(1.0 - power)) ** 2 * variance / limit**2, float(EXACT_BELOW))


def chance_to_pass(limit: float, variance: float, rows: float, *, level: float) -> float:
    """Chance that a candidate without a drop passes on so many denominator rows; 0 below EXACT_BELOW, where bounds are wide."""
    if rows < EXACT_BELOW:
        return 0.0
    return 1.0 if variance <= 0.0 else tail_of(z_of(level) - limit / math.sqrt(variance / rows))


def chance_to_block(drop: float, limit: float, variance: float, rows: float, *, level: float, clauses: int) -> float:
    """Chance that a true `drop` is blocked: estimate beyond the limit and its joint lower bound (Bonferroni's, which is a
    little wider than max-T's) above zero."""
    if rows < 2 or variance <= 0.0:
        return 0.0
    se = math.sqrt(variance / rows)
    return tail_of((max(limit, z_of(level / clauses) * se) - drop) / se)


def needs(
    policy: Policy,
    evaluations: Sequence[Evaluation],
    traffic: Traffic,
    *,
    shares: Mapping[str, tuple[float, float | None]] | None = None,
    churn: float | None = None,
    anchored: bool = True,
) -> list[Need]:
    """Every clause against champion and, where it has a limit of its own, anchor.

    Args:
        evaluations: past ones, oldest first; without any, variances come from `churn`.
        shares: slice → its share of the rows and its base rate now; None = as in the newest evaluation.
        churn: share of answers that an equal candidate changes; None = as seen.
        anchored: there is an anchor, so that anchor limits are asked.
    """
    asked = [(one, "champion", one.limit) for one in policy.clause]
    asked += [(one, "anchor", one.anchor_limit) for one in policy.clause if anchored and one.anchor_limit is not None]
    return [
        _need(clause, against, limit, policy, evaluations, traffic, shares, churn, len(asked) + len(policy.absolute))
        for clause, against, limit in sorted(asked, key=lambda each: policy.clause.index(each[0]))
    ]


def _need(
    clause: Clause,
    against: str,
    limit: float,
    policy: Policy,
    evaluations: Sequence[Evaluation],
    traffic: Traffic,
    shares: Mapping[str, tuple[float, float | None]] | None,
    churn: float | None,
    clauses: int,
) -> Need:
    seen = seen_in(evaluations, clause.slice, clause.metric, against, churn)
    if shares is not None:
        share, base_rate = shares.get(clause.slice, (0.0, None))
        known, how = seen.variance, seen.how
        if known is None:
            known = _by_churn(clause.metric, base_rate, churn if churn is not None else churn_of(evaluations))
            how = "churn" if known is not None else ""
        seen = msgspec.structs.replace(seen, share=share, base_rate=base_rate, variance=known, how=how)
    note = ""
    if clause.relative and seen.value is not None:
        if seen.value >= RELATIVE_FROM:
            limit, note = limit * seen.value, f"{limit:.0%} of {seen.value:.1%}"
        else:
            note = f"counts as points: {limit:.0%} of {seen.value:.1%} would mean next to nothing"
    found = Need(
        name=clause.name, slice=clause.slice, metric=clause.metric, against=against, deciding=clause.deciding,
        exit=clause.exit, power=clause.power, limit=limit, note=note, seen=seen,
    )  # fmt: skip
    rate = seen.denominator(clause.metric)
    if not rate or seen.variance is None:
        return found
    level = policy.levels.passing / policy.evidence.max_looks
    there = traffic.judging * rate
    wanted = rows_for(limit, seen.variance, level=level, power=clause.power) / rate
    aimed = _aimed(clause.metric, wanted, churn if churn is not None else churn_of(evaluations))
    fresh = traffic.holdout if clause.metric in UNLABELLED or traffic.holdout is None else traffic.holdout * traffic.labelled
    block = policy.levels.block / policy.evidence.max_looks
    return msgspec.structs.replace(
        found,
        there=round(there),
        rows=math.ceil(wanted),
        days=_days(wanted - traffic.judging, fresh),
        labels=aimed,
        pool_days=None if aimed is None else _days(wanted - max(traffic.pool, traffic.judging), traffic.holdout),
        chance=chance_to_pass(limit, seen.variance, there, level=level),
        harm=chance_to_block(2.0 * limit, limit, seen.variance, there, level=block, clauses=clauses),
    )


def _aimed(metric: str, rows: float, churn: float | None) -> int | None:
    """Labels of a targeted audit over a pool of so many rows; None where aiming is no help or nothing says how much differs."""
    if metric in UNLABELLED:
        return 0
    if metric not in AIMABLE or churn is None or churn >= TARGETED:
        return None
    return math.ceil(churn * rows / TARGETED)


def _days(missing: float, a_day: float | None) -> float | None:
    if missing <= 0:
        return 0.0
    return missing / a_day if a_day else None
