"""The gate's sentences. A person decides on them, so each names what changed, by how much, the limit, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from truing.tasks.records import Clause, Estimate, Evaluation, Found, Outcome
from truing.tasks.statistics.cells import HIGHER_IS_BETTER, PROPORTIONS

if TYPE_CHECKING:
    from truing.tasks.evaluation.gate import Question

MINUS = "−"
SPOKEN = {"brier": "Brier score", "accuracy": "accuracy", "tpr": "TPR", "fpr": "FPR", "selection_rate": "selection rate"}
AGAINST = {"champion": "champion", "anchor": "anchor", "absolute": "prior"}
NEXT = {
    Outcome.PASS: "An approver who did not train it may set the tag `approval` to `approved`.",
    Outcome.INCONCLUSIVE: "An approver who did not train it may set `approval.reason`, then `approval` to `approved`, "
    "taking on what is still open, for a limited time.",
    Outcome.BLOCK: "It can't be released under this policy. Train a candidate without the harm.",
}


def amount(value: float, metric: str, *, signed: bool = False) -> str:
    """A difference without its unit: points (hundredths) with one decimal for proportions, raw with four for Brier scores."""
    text = f"{abs(value) * 100:.1f}" if metric in PROPORTIONS else f"{abs(value):.4f}"
    zero = float(text) == 0.0
    if value < 0 and not zero:
        return MINUS + text
    return f"+{text}" if signed and not zero else text


def unit(metric: str) -> str:
    return " points" if metric in PROPORTIONS else ""


def level(value: float | None, metric: str) -> str:
    """A metric's own value: percent for proportions, raw for Brier scores."""
    if value is None:
        return "–"
    return f"{value * 100:.1f} %" if metric in PROPORTIONS else f"{value:.4f}"


def moved(drop: float, metric: str) -> str:
    """`fell by 9.1 points`, `rose by 0.0041`, `stayed the same`."""
    if float(amount(abs(drop), metric)) == 0.0:
        return "stayed the same"
    up = (drop > 0) != HIGHER_IS_BETTER[metric]
    return f"{'rose' if up else 'fell'} by {amount(abs(drop), metric)}{unit(metric)}"


def rows(count: int) -> str:
    """A number of rows as one says it: two or three leading digits."""
    size = 10 ** max(0, len(str(count)) - 2)
    return f"{-(-count // size) * size:,}"


def bounds(one: Clause) -> str:
    """`−2.1 to 1.9`: joint lower and own upper bound, in the clause's own units."""
    if one.delta.low is None or one.delta.high is None:
        return "–"
    return f"{amount(one.delta.low, one.metric)} to {amount(one.delta.high, one.metric)}"


def points(one: Estimate, *, signed: bool = False) -> str:
    """A rate's estimate in points with its interval: `8.9 (3.1 to 14.6)`."""
    if one.value is None:
        return "–"
    text = amount(one.value, "tpr", signed=signed)
    return text if one.low is None or one.high is None else f"{text} ({amount(one.low, 'tpr')} to {amount(one.high, 'tpr')})"


def spent(evaluation: Evaluation, free: int) -> str:
    """What asking about many candidates has cost this one; nothing while they are free."""
    counts = ((evaluation.looks, "since the champion was released"), (evaluation.looks_anchor, "since the anchor was pinned"))
    said = [
        f"candidate {looks} {since}: each clause against it has {(free / looks) ** 2:.2%} of the pass level ({free} are free)"
        for looks, since in counts
        if looks > free
    ]
    return f" ({'; '.join(said)})" if said else ""


def not_on_unseen(looks: int, n: int) -> str:
    """Why the rows that have judged before are not enough."""
    some = f"the {n:,} that none of them was judged on don't confirm it yet" if n else "none has come since"
    return f"these rows have judged {looks - 1:,} other candidates since the champion was released, and {some}"


def _other(against: str) -> str:
    return " against the anchor" if against == "anchor" else ""


def clause(one: Question, outcome: Outcome, delta: Estimate, method: str, rows_needed: int | None, n: int) -> str:
    """One clause's reason, in one sentence."""
    drop, low, high, metric = delta.value or 0.0, delta.low or 0.0, delta.high or 0.0, one.metric
    if one.against == "absolute":
        return _floor(one, outcome, delta, rows_needed, n)
    said = f"{one.name} {moved(drop, metric)}{_other(one.against)}"
    limit = f"limit {amount(one.limit, metric)}{one.note}"
    if outcome is Outcome.BLOCK:
        return f"{said} ({limit}, joint lower bound {amount(low, metric)})"
    if outcome is Outcome.PASS:
        return f"{said} ({limit}, upper bound {amount(high, metric)} by {method})"
    if drop > one.limit:
        said += f", which may be chance ({limit}, joint lower bound {amount(low, metric)})"
    else:
        said += f", but a drop of {amount(high, metric)}{unit(metric)} can't be ruled out ({limit})"
    return said + _wants(rows_needed, n)


def _wants(rows_needed: int | None, n: int) -> str:
    if rows_needed is None:
        return ""
    if rows_needed > n:
        return f"; about {rows(rows_needed)} rows are needed, {n:,} are there"
    return f"; an equal candidate would likely have passed on these {n:,} rows"


def _floor(one: Question, outcome: Outcome, delta: Estimate, rows_needed: int | None, n: int) -> str:
    gain, least, most = -(delta.value or 0.0), -(delta.high or 0.0), -(delta.low or 0.0)
    metric, asked = one.metric, -one.limit
    side = "better" if gain >= 0 else "worse"
    said = f"{one.name}: the {SPOKEN[metric]} is {amount(abs(gain), metric)}{unit(metric)} {side} than the prior predictor's"
    if outcome is Outcome.BLOCK:
        return f"{said} (at least {amount(asked, metric)} asked, at most {amount(most, metric)} likely)"
    if outcome is Outcome.PASS:
        return f"{said} (at least {amount(asked, metric)} asked, {amount(least, metric)} sure)"
    tail = f"; about {rows(rows_needed)} rows are needed, {n:,} are there" if rows_needed and rows_needed > n else ""
    return f"{said}, of which {amount(least, metric)} is sure (at least {amount(asked, metric)} asked){tail}"


def found(one: Found) -> str:
    """A slice found by itself, in one sentence."""
    if one.drop.value is None or one.drop.low is None:
        return f"{one.slice}: {SPOKEN[one.metric]} can't be estimated on the rows held back"
    said = f"{one.slice}: {SPOKEN[one.metric]} {moved(one.drop.value, one.metric)} on {one.n:,} rows held back"
    if one.confirmed:
        return f"{said} (found by itself, joint lower bound {amount(one.drop.low, one.metric)})"
    return f"{said}, which may be chance (joint lower bound {amount(one.drop.low, one.metric)})"


def not_estimable(name: str, why: str) -> str:
    return f"{name} can't be estimated: {why}"


def relative(share: float, reference: float, against: str, metric: str) -> str:
    return f", which is {share:.0%} of the {against}'s {level(reference, metric)}"


def too_small_to_be_relative(share: float, reference: float, against: str, metric: str) -> str:
    return (
        f" in points: as {share:.0%} of the {against}'s {level(reference, metric)} it would mean too little, "
        f"so it counts as absolute"
    )


def blocked(clauses: Sequence[Clause]) -> str:
    """The worst offender first (drop measured in its limits), then how many more."""
    worst = max(clauses, key=_times_limit)
    others = sorted({one.name for one in clauses} - {worst.name})
    return worst.reason + (f"; also blocked by {_listed(others)}" if others else "")


def inconclusive(holds: Sequence[str], clauses: Sequence[Clause], deciding: Sequence[Clause]) -> str:
    """What holds a pass back; where only the lack of a champion does, what the floors say."""
    parts = list(holds)
    if not clauses and deciding and all(one.against == "absolute" for one in deciding):
        parts.append(deciding[0].reason)
    if clauses:
        parts.append(clauses[0].reason)
        others = [name for name in dict.fromkeys(one.name for one in clauses[1:]) if name != clauses[0].name]
        if others:
            parts[-1] += f"; also open: {_listed(others)}"
    return "; ".join(parts) if parts else "the policy names no deciding clause that can be asked"


def passed(clauses: Sequence[Clause], n: int) -> str:
    tightest = max(clauses, key=lambda one: (one.delta.high or 0.0) - one.limit if one.against == "absolute" else _used(one))
    count = f"all {len(clauses)} deciding comparisons are" if len(clauses) > 1 else "the deciding comparison is"
    return f"{count} inside the limits on {n:,} rows; the closest: {tightest.reason}"


def _used(one: Clause) -> float:
    return (one.delta.high or 0.0) / one.limit


def _times_limit(one: Clause) -> float:
    drop = one.delta.value or 0.0
    return drop / one.limit if one.limit > 0 else drop - one.limit


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
