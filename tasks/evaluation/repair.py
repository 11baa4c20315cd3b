"""Repair: a candidate that a fairness clause blocked, corrected, and asked to pass the same gate.

From the blocked model, the rows that taught it and the group it failed, three methods make a family of corrections, from
gentle to strict: reweighing and constrained heads (`truing.tasks.learning.constrained`; they read no protected attribute) and,
only where policy and problem allow it, thresholds by group (`truing.tasks.learning.thresholds`). One is chosen on validation
rows and on taught rows with a true outcome, each as if it alone had been left out. No holdout row is seen here: what comes out
is one more candidate, which the steward judges like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from truing.tasks.errors import DataError
from truing.tasks.evaluation.choosing import Choosing, Measure, against_champion
from truing.tasks.evaluation.slices import known_buckets, slices_of
from truing.tasks.evaluation.wording import amount
from truing.tasks.kinds.model import ByGroup, Model
from truing.tasks.kinds.tabular import Tabular
from truing.tasks.learning.constrained import Lever, Step, corrected, logits, shifted, softmax
from truing.tasks.learning.protocol import Batch
from truing.tasks.learning.thresholds import cut_by_group, margins
from truing.tasks.problem import Problem
from truing.tasks.records import Clause, Origin, Outcome, Split
from truing.tasks.statistics.cells import Bools, Floats

METHODS = ("reweighing", "constrained", "thresholds")
SPOKEN = {"reweighing": "reweighing", "constrained": "a constrained head", "thresholds": "thresholds by group"}
TRUE = (Origin.OUTCOME.value, Origin.REVIEW.value)
GAP_SHARE = 1 / 3  # share of the gap that may stay: under a half, so that it is a half on rows nobody has looked at
DROP_SHARE = 0.25  # share of a blocked clause's limit that may be used up
MOST_LOSS = 0.01  # accuracy given up against the blocked candidate


@dataclass(frozen=True, eq=False)
class Repaired:
    """A corrected model, how it was made (`method`, one of METHODS), and what that did to the `rows` that chose."""

    model: Model
    method: str
    attribute: str
    before: Measure
    after: Measure
    tried: int
    rows: int
    note: str


def harmed(clauses: Sequence[Clause]) -> tuple[Clause, ...]:
    """The blocked clauses that speak about a group: what a repair can be asked for."""
    return tuple(one for one in clauses if one.outcome is Outcome.BLOCK and "=" in one.slice and one.against != "absolute")


def attribute_of(clauses: Sequence[Clause]) -> str:
    """The protected attribute of the clause that is furthest beyond its limit."""
    worst = max(clauses, key=lambda one: (one.delta.value or 0.0) / one.limit if one.limit > 0 else 0.0)
    return worst.slice.partition("=")[0]


def repair(
    problem: Problem,
    samples: pl.DataFrame,
    validation: pl.DataFrame,
    blocked: Model,
    *,
    attribute: str,
    champion: Model | None = None,
    clauses: Sequence[Clause] = (),
    methods: Sequence[str] = METHODS,
    by_group_thresholds: bool = False,
) -> Repaired | None:
    """The blocked model corrected for one protected attribute, or None when no correction does better than it.

    Of all corrections that leave at most GAP_SHARE of the gap (or the champion's gap, if that is larger), lose at most
    MOST_LOSS of accuracy, stay inside every clause and use at most DROP_SHARE of a blocked one's limit, the one with the best
    Brier score is taken; where there is none, the one that comes nearest.

    Args:
        samples: rows that taught it, with content, target, weight, origin, split and groups.
        validation: rows that never taught anything, with the same columns; only true outcomes count.
        champion, clauses: the verdict's clauses, and the model that they compare with.
        by_group_thresholds: the policy's word; offered only where the attribute is among the inputs too.

    Raises:
        DataError: an attribute the problem does not have, or no rows with a true outcome.
    """
    if attribute not in problem.groups:
        raise DataError(f"expected a protected attribute of {sorted(problem.groups)}, got {attribute!r}; name one of these")
    kind = Tabular(problem, blocked.encoder)
    asked = against_champion(harmed(clauses))
    buckets = tuple(f"{attribute}={name}" for name in known_buckets(problem)[attribute])
    batch = _batch(kind, samples)
    lever = Lever(blocked, batch, _codes(slices_of(samples["groups"].to_list(), problem), buckets), len(buckets))
    true = samples["origin"].is_in(TRUE).fill_null(False).to_numpy()
    rows = _choosing(kind, problem, samples, validation, buckets)
    rows = replace(rows, parity=bool(asked) and all(one.metric == "selection_rate" for one in asked))
    own = logits(blocked, rows.units)

    def answered(step: Step) -> Floats:
        return softmax(np.concatenate([shifted(own, rows.units, step.change), lever.left_out(step, rows.taught)]))

    most_gap = 0.0
    if champion is not None:
        rows = replace(rows, clauses=against_champion(clauses))
        p = champion.probabilities(np.concatenate([rows.units, batch.units[rows.taught]]))
        cuts = np.array(champion.card.thresholds)
        rows = replace(rows, reference=rows.values(p, cuts))
        most_gap = rows.measure(p, cuts).gap
    before = rows.measure(answered(lever.still()), np.array(blocked.card.thresholds))
    most_gap = max(most_gap, GAP_SHARE * before.gap)
    urgent = {one.name for one in asked}

    def strain(one: Measure) -> float:
        """The largest share of what may be used; above 1 the aim is missed."""
        shares = [one.gap / max(most_gap, 1e-9), (before.accuracy - one.accuracy) / MOST_LOSS]
        shares += [used / (DROP_SHARE if name in urgent else 1.0) for name, used in one.used.items()]
        return max(shares)

    offered = [name for name in METHODS if name in methods]
    if not (by_group_thresholds and attribute in problem.inputs):
        offered = [name for name in offered if name != "thresholds"]
    found: list[tuple[float, int, Measure, str, Model]] = []
    for model, method, p, cuts in _family(lever, answered, offered, rows, true, problem, attribute):
        after = rows.measure(p, cuts)
        found.append((strain(after), len(found), after, method, model))
    met = [one for one in found if one[0] <= 1.0]
    best = min(met, key=lambda one: (one[2].brier, one[1])) if met else min(found, key=lambda one: one[:2], default=None)
    if best is None or best[0] >= strain(before):
        return None
    _, _, after, method, model = best
    note = _note(attribute, method, before, after, asked, rows, len(found))
    return Repaired(model, method, attribute, before, after, len(found), len(rows.truth), note)


def _family(
    lever: Lever,
    answered: Callable[[Step], Floats],
    offered: Sequence[str],
    rows: Choosing,
    true: Bools,
    problem: Problem,
    attribute: str,
) -> Iterator[tuple[Model, str, Floats, Floats]]:
    """Every correction on offer: the model, its method, and its probabilities (m, k) and cuts on the rows that choose."""
    model, own = lever.model, np.array(lever.model.card.thresholds)
    steps: list[Step] = []
    if "reweighing" in offered:
        steps.append(lever.reweighing())
    if "constrained" in offered:
        steps += lever.constrained(parity=rows.parity)
        if not true.all():  # what people taught may be the harm itself: once more, led by true outcomes alone
            steps += lever.constrained(parity=rows.parity, guide=true)
    for step in steps:
        yield corrected(model, step.change), step.method, answered(step), own
    if "thresholds" not in offered:
        return
    p, bucket, group = answered(lever.still()), _codes(rows.slices, rows.buckets), problem.groups[attribute]
    lead = margins(p, own, model.positive)
    for cut in cut_by_group(lead, rows.truth, bucket, len(rows.buckets), parity=rows.parity):
        each = np.tile(own, (len(rows.buckets), 1))
        each[:, model.positive] *= cut
        rule = ByGroup(
            column=attribute,
            thresholds=tuple(tuple(map(float, row)) for row in each),
            values=tuple(group.values or ()),
            edges=tuple(group.edges or ()),
        )
        card = msgspec.structs.replace(model.card, by_group=rule)
        yield Model(card, model.encoder, model.head, model.reference), "thresholds", p, np.vstack([each, own])[bucket]


def _choosing(
    kind: Tabular, problem: Problem, samples: pl.DataFrame, validation: pl.DataFrame, buckets: tuple[str, ...]
) -> Choosing:
    """Trusted rows do not choose: the encoder grew on them."""
    true = validation.filter(pl.col("origin").is_in(TRUE) & pl.col("target").is_not_null())
    learned = samples["origin"].is_in(TRUE).fill_null(False) & (samples["split"] != Split.TRUSTED.value)
    taught = np.flatnonzero(learned.to_numpy())
    groups = [*true["groups"].to_list(), *samples["groups"].gather(taught).to_list()]
    if not groups:
        raise DataError("expected validation or train rows with a true outcome to choose a repair by, got none; wait for some")
    targets = [*true["target"].to_list(), *samples["target"].gather(taught).to_list()]
    truth = np.array([target == problem.positive for target in targets], dtype=bool)
    return Choosing(
        units=kind.encode(_inputs(true)).matrix,
        taught=taught,
        truth=truth,
        slices=slices_of(groups, problem),
        positive=problem.labels.index(problem.positive),
        buckets=buckets,
    )


def _batch(kind: Tabular, samples: pl.DataFrame) -> Batch:
    units = kind.encode(_inputs(samples)).matrix
    return Batch(units, kind.targets(samples["target"].to_list()), samples["weight"].to_numpy().astype(np.float64))


def _inputs(rows: pl.DataFrame) -> list[dict[str, object]]:
    decoder = msgspec.json.Decoder(dict[str, object])
    return [decoder.decode(content) for content in rows["content"]]


def _codes(slices: Mapping[str, Bools], buckets: Sequence[str]) -> NDArray[np.int64]:
    """Which of `buckets` each row is in; -1 for none."""
    found = np.full(len(next(iter(slices.values()))), -1, np.int64)
    for code, name in enumerate(buckets):
        found[slices[name]] = code
    return found


def _note(
    attribute: str, method: str, before: Measure, after: Measure, asked: Sequence[Clause], rows: Choosing, tried: int
) -> str:
    """What was repaired and what it cost, in words."""
    gap = "demographic-parity" if rows.parity else "equalized-odds"
    parts = [f"the {gap} difference by {attribute} went from {before.gap * 100:.1f} to {after.gap * 100:.1f} points"]
    for one in asked:
        if one.name in before.used and one.name in after.used:
            was, now = (amount(side.used[one.name] * one.limit, one.metric) for side in (before, after))
            parts.append(f"the drop of {one.name} from {was} to {now}")
    parts.append(f"accuracy by {amount(after.accuracy - before.accuracy, 'accuracy', signed=True)} points")
    parts.append(f"the Brier score by {amount(after.brier - before.brier, 'brier', signed=True)}")
    return (
        f"Repaired by {SPOKEN[method]}, the best of {tried} corrections: {', '.join(parts)}, "
        f"on {len(rows.truth):,} validation and left-out rows, none of them holdout"
    )
