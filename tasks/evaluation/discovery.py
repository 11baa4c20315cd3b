"""The worst slices, found by themselves: where does the candidate lose most against the champion?

Whoever looks at hundreds of slices finds one that looks bad. So the subjects are parted by hash: on one half conditions over
inputs, groups and the label are combined level by level (a beam search, exhaustive for two conditions) and the slices with the
largest studentised loss are kept; on the other half, which did not take part, those few are tested with joint lower bounds
(max-T, `levels.block`). What is confirmed there is true with the same certainty as a block.

`lost` is 1 on rows that only the candidate gets wrong and −1 on those that only the champion does, so a slice's mean is its
drop in accuracy; with the condition "label >50K" it is the drop in TPR. Like SliceFinder (Chung et al. 2020), which however
tests on the rows that it searched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from truing.tasks.evaluation.slices import spoken
from truing.tasks.problem import UNKNOWN, Problem
from truing.tasks.records import Estimate, Found, Record
from truing.tasks.statistics.cells import ALL, Bools, Floats
from truing.tasks.statistics.multiplicity import joint_lower
from truing.tasks.statistics.paired import upper

if TYPE_CHECKING:
    from truing.tasks.evaluation.scores import Scores
    from truing.tasks.policy import Policy

METRIC = "accuracy"
FEWEST = 40  # rows of a slice on the half that is searched
CUTS = 5  # a number is cut into so many parts of equal size
MOST_VALUES = 25  # the commonest values of a category
BEAM = 60  # slices carried on from the second condition on
LEAST_Z = 1.5  # a loss smaller than this many standard errors is not worth a test
CLOSEST = 300  # of the slices that lose most are looked at again without the rows of those chosen already
BESIDE = "outside those before"  # said of a slice that would have rows of one chosen before it
BLOCKING_SHARE = 0.25  # of `levels.block`, on top of it, where found slices may block


class Proposal(Record, frozen=True):
    """A slice worth testing: its conditions, and the drop on the half where it was found."""

    conditions: tuple[str, ...]
    seen: float


def held_back(problem: str, subject: str) -> bool:
    """Is this subject on the half where slices are tested? Fixed for ever, so that no retry mixes the halves."""
    return hashlib.blake2b(f"{problem}/found/{subject}".encode(), digest_size=1).digest()[0] % 2 == 1


def conditions(
    inputs: Sequence[Mapping[str, Any]], slices: Mapping[str, Bools], positive: Bools, problem: Problem, rows: Bools
) -> tuple[list[str], list[str], npt.NDArray[np.bool_]]:
    """(names, what each is about, masks (n, conditions)). Numbers are cut at quantiles of `rows`; equal masks appear once."""
    names: list[str] = []
    about: list[str] = []
    masks: list[Bools] = []
    seen: set[bytes] = set()

    def add(name: str, of: str, mask: Bools) -> None:
        inside = mask[rows]
        if FEWEST <= int(inside.sum()) < len(inside) and (key := np.packbits(inside).tobytes()) not in seen:
            seen.add(key)
            names.append(name)
            about.append(of)
            masks.append(mask)

    for name, mask in slices.items():
        if name != ALL and not name.endswith(f"={UNKNOWN}"):
            add(spoken(name), name.partition("=")[0], mask)
    for label in problem.labels if len(problem.labels) == 2 else ():
        add(f"label {label}", "label", positive == (label == problem.positive))
    for name, spec in problem.inputs.items():
        if spec.type == "number":
            values = np.array([_number(one.get(name)) for one in inputs], dtype=float)
            known = values[rows & np.isfinite(values)]
            for cut in np.unique(np.quantile(known, np.linspace(0, 1, CUTS + 1)[1:-1])) if len(known) else ():
                add(f"{name} ≥ {cut:g}", f"input {name}", values >= cut)
                add(f"{name} < {cut:g}", f"input {name}", values < cut)
            add(f"{name} missing", f"input {name}", ~np.isfinite(values))
        else:
            words = np.array(
                [str(one.get(name)) if one.get(name) not in (None, "") else "missing" for one in inputs], dtype=str
            )
            commonest, count = np.unique(words[rows], return_counts=True)
            for word in commonest[np.argsort(-count, kind="stable")][:MOST_VALUES]:
                add(f"{name} {word}", f"input {name}", words == word)
    return names, about, np.array(masks, dtype=bool).reshape(len(masks), len(rows)).T


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def search(
    inputs: Sequence[Mapping[str, Any]],
    slices: Mapping[str, Bools],
    positive: Bools,
    problem: Problem,
    *,
    lost: Floats | None,
    rows: Bools,
    weights: Floats | None = None,
    depth: int = 2,
    most: int = 5,
) -> list[tuple[Proposal, Bools]]:
    """Up to `most` slices that lose most on `rows`, each with its mask over all rows (n,), the worst first.

    Args:
        inputs: (n,) what the models were asked.
        slices: masks (n,) of the protected groups' buckets; pairs of them come about like all other combinations.
        lost: (n,) −1, 0 or 1, see above; None: nothing to compare, nothing found.
        rows: (n,) the half that is searched, rows with a label only.
        weights: (n,) 1/inclusion probability; None = one each.
        depth: conditions that a slice may combine.
    """
    if lost is None or int(rows.sum()) < 2 * FEWEST:
        return []
    names, about, masks = conditions(inputs, slices, positive, problem, rows)
    if not names:
        return []
    inside = masks[rows].astype(np.float32)
    loss = lost[rows] * (1.0 if weights is None else weights[rows])
    tables = np.stack([np.ones(len(loss)), loss, loss**2]).astype(np.float32)
    beam: list[tuple[int, ...]] = [(i,) for i in range(len(names))]
    found: dict[tuple[int, ...], float] = dict(zip(beam, _scores(inside.T, tables)[0], strict=True))
    for level in range(2, depth + 1):
        if level > 2:
            beam = sorted((one for one in beam if found[one] > 0), key=lambda one: -found[one])[:BEAM]
        wider: dict[tuple[int, ...], float] = {}
        for one in beam:
            base = inside[:, list(one)].prod(axis=1)
            scores, counts = _scores((inside * base[:, None]).T, tables)
            whole = float(base.sum())
            for i in np.flatnonzero((scores > 0) & (counts >= FEWEST) & (counts < whole)):
                if i not in one and all(_together(about[i], about[j]) for j in one):
                    wider[tuple(sorted((*one, int(i))))] = float(scores[i])
        found |= wider
        beam = list(wider)
    ranked = sorted((one for one in found if found[one] >= LEAST_Z), key=lambda one: (-found[one], one))[:CLOSEST]
    shapes = np.array([inside[:, list(one)].prod(axis=1) for one in ranked], dtype=np.float32)
    left = np.ones(
        len(lost), dtype=bool
    )  # outside the slices chosen so far: what they explain is neither found nor tested twice
    chosen: list[tuple[Proposal, Bools]] = []
    while ranked and len(chosen) < most:
        scores = _scores(shapes * left[rows], tables)[0]
        best = int(np.argmax(scores))
        if scores[best] < LEAST_Z:
            break
        said_of: Bools = np.asarray(masks[:, list(ranked[best])].all(axis=1))
        mask: Bools = np.asarray(said_of & left)
        said = [names[i] for i in ranked[best]] + ([BESIDE] if (said_of & ~left).any() else [])
        inner = mask[rows]
        drop = float(loss[inner].sum() / (inner.sum() if weights is None else weights[rows][inner].sum()))
        chosen.append((Proposal(conditions=tuple(said), seen=drop), mask))
        left &= ~mask
    return chosen


def _together(one: str, other: str) -> bool:
    """May two conditions be combined? The label only with groups: with an input that a model goes by it would select the rows
    on which that model is right, and any model that answers otherwise there would seem to lose.
    """
    if "label" in (one, other):
        return one != other and "input " not in one + other
    return one != other or one.startswith("input ")


def _scores(masks: npt.NDArray[np.float32], tables: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
    """(studentised loss, rows) of each mask (k, rows); a loss of at least a few rows' worth, else 0."""
    count, total, squares = (masks @ tables.T).T.astype(float)
    mean = total / np.maximum(count, 1.0)
    spread = np.sqrt(
        np.maximum(squares - count * mean**2, 0.0) + 1.0
    )  # a row more, or two of two lost would be the worst of all
    return np.where(count >= FEWEST, total / spread, 0.0), count


def confirm(
    scores: Scores, proposals: Sequence[Proposal], masks: Sequence[Bools], held: Bools, policy: Policy, *, looks: int, seed: int
) -> tuple[Found, ...]:
    """The slices on the other half: the drop there with its joint lower and own upper bound; confirmed where that is above 0.

    Where the policy lets them block they spend a quarter of `levels.block` on top of it, else they may spend as much as it.
    """
    if not proposals or "champion" not in scores.probability:
        return ()
    level = policy.levels.block * (BLOCKING_SHARE if policy.discovery.block else 1.0) / looks
    slices = {f"found:{i}": mask & held for i, mask in enumerate(masks)}
    half = replace(scores, slices=slices)
    pairs = [half.pair(name, METRIC, "champion") for name in slices]
    joint = joint_lower(
        pairs, subjects=scores.subject_count, level=level, draws=policy.levels.resamples, rng=np.random.default_rng(seed)
    )
    rows = max(int((scores.judged & held).sum()), 1)
    found = []
    for one, paired, mask, low in zip(proposals, pairs, masks, joint.low, strict=True):
        count = int((mask & held & scores.judged).sum())
        drop = Estimate(value=None, n=count, level=1.0 - level)
        confirmed = False
        if paired.estimable and np.isfinite(low):
            high = upper(paired, level).value
            drop = Estimate(
                value=paired.drop, low=min(float(low), paired.drop), high=max(high, paired.drop), n=count, level=1.0 - level
            )
            confirmed = float(low) > 0.0
        found.append(
            Found(
                slice=" and ".join(one.conditions).replace(f" and {BESIDE}", f", {BESIDE}"), conditions=one.conditions,
                metric=METRIC, n=count, share=count / rows,
                seen=one.seen, drop=drop, confirmed=confirmed,
            )
        )  # fmt: skip
    return tuple(found)
