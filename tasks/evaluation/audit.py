"""Which unlabelled rows a reviewer reads: a plan with known inclusion probabilities, drawn so that it can be drawn again.

A row on which champion and candidate agree says nothing about the drop, only about the denominator that a rate needs. So most
of the budget goes to rows where they disagree, the rest to a random share, stratified by group; every row of the pool keeps a
chance above zero, which is all that an unbiased estimate needs (Horvitz and Thompson 1952). Within a stratum rows are drawn
without replacement, in the order of a keyed hash of their ids: whoever holds the key draws the same rows, nobody else can
guess them. Small strata get more than their share (square root of their size; Bankier 1988), because each group has clauses of
its own.

The plan is written before the first of its labels is asked for, and signed; reviewers see neither answers nor strata.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from truing.tasks import seal
from truing.tasks.errors import DataError
from truing.tasks.records import Record, Refusal
from truing.tasks.statistics.cells import Bools, Floats

TARGETED = 0.65  # of the rows drawn go to disagreement, if there is so much of it
FEWEST = 2  # rows drawn from a stratum at least, or all of it
PLAN_TYPE = "application/vnd.truing.plan.v1+json"

Counts = npt.NDArray[np.int64]


class Stratum(Record, frozen=True):
    """Rows with one inclusion probability, drawn/rows. `kind`: labelled (all known before), disagree, agree."""

    kind: str
    group: str
    rows: int
    drawn: int


class Plan(Record, frozen=True):
    """One audit: the pool by stratum, the rows drawn in the order in which they are to be read, and which of them twice.

    `pool` maps row id → index into `strata`. `why` names what it was aimed at: `random`, or `targeted`.
    """

    problem: str
    why: str
    candidate: str | None  # payload digest the plan is aimed at
    champion: str | None
    seed: str
    at: float
    budget: int
    strata: tuple[Stratum, ...]
    pool: dict[str, int]
    drawn: tuple[str, ...]
    twice: tuple[str, ...]

    @property
    def labels(self) -> int:
        """Labels asked for in all."""
        return len(self.drawn) + len(self.twice)


def allocate(sizes: Counts, budget: int, *, power: float = 0.5) -> Counts:
    """Rows to draw from each stratum: in proportion to sizeᵖᵒʷᵉʳ, at least `FEWEST`, never more than there are.

    Example:
        >>> allocate(np.array([10_000, 100, 3]), 113).tolist()
        [100, 10, 3]
    """
    take = np.minimum(sizes, FEWEST)
    budget = min(max(budget, int(take.sum())), int(sizes.sum()))
    weight, full = sizes.astype(float) ** power, sizes <= 0
    wanted = np.zeros(len(sizes))
    for _ in range(len(sizes) + 1):  # what overflows a small stratum goes to the others
        rest = budget - float(sizes[full].sum())
        free = np.where(full, 0.0, weight)
        wanted = np.where(full, sizes, free / max(float(free.sum()), 1e-300) * rest)
        over = ~full & (wanted >= sizes)
        if not over.any():
            break
        full |= over
    take = np.maximum(take, np.floor(wanted).astype(np.int64))
    order = np.argsort(np.where(take < sizes, -(wanted - np.floor(wanted)), np.inf), kind="stable")
    for one in order[: max(0, budget - int(take.sum()))]:
        take[one] += take[one] < sizes[one]
    return np.asarray(take, dtype=np.int64)


def ranks(ids: Sequence[str], key: str) -> npt.NDArray[np.uint64]:
    """A keyed hash of each id: the order in which rows are drawn and read."""
    secret = key.encode()[:64]
    return np.array(
        [int.from_bytes(hashlib.blake2b(id.encode(), key=secret, digest_size=8).digest(), "big") for id in ids], dtype=np.uint64
    )


def draw_plan(
    ids: Sequence[str],
    groups: Sequence[str],
    *,
    problem: str,
    budget: int,
    seed: str,
    at: float,
    disagree: Bools | None = None,
    labelled: Bools | None = None,
    double: float = 0.05,
    candidate: str | None = None,
    champion: str | None = None,
) -> Plan:
    """Draw `budget` labels from the pool.

    Args:
        ids: of the n pool rows, each once.
        groups: (n,) what to stratify by, such as "sex=Female race=Black".
        budget: labels in all, second readings included.
        seed: key of the draw; a secret of the drawer until the plan is done, so that nobody can steer rows past it.
        disagree: (n,) champion and candidate answer differently; None = a random plan.
        labelled: (n,) already known for certain; they cost nothing and count in full.
        double: share of the drawn rows that two reviewers read.

    Raises:
        DataError: no budget, or an id twice.
    """
    if budget < 1 or not 0.0 <= double <= 1.0:
        raise DataError(f"audit: expected a budget of at least 1 label and a double share of 0 to 1, got {budget} and {double}")
    if len(set(ids)) != len(ids) or len(groups) != len(ids):
        raise DataError(f"audit: expected each id once and a group each, got {len(ids)} ids, {len(set(ids))} different")
    n = len(ids)
    known = labelled if labelled is not None else np.zeros(n, dtype=bool)
    apart = disagree if disagree is not None else np.zeros(n, dtype=bool)
    kind = np.where(known, "labelled", np.where(apart, "disagree", "agree"))
    names, codes = np.unique([f"{k}\t{g}" for k, g in zip(kind, groups, strict=True)], return_inverse=True)
    sizes = np.bincount(codes, minlength=len(names)).astype(np.int64)
    kinds = np.array([name.partition("\t")[0] for name in names])
    rows = round(budget / (1.0 + double))
    aimed, rest = int(sizes[kinds == "disagree"].sum()), int(sizes[kinds == "agree"].sum())
    first = min(aimed, max(round(TARGETED * rows), rows - rest))
    take = np.zeros(len(names), dtype=np.int64)
    for name, share in (("disagree", first), ("agree", rows - first)):
        chosen = kinds == name
        if chosen.any():
            take[chosen] = allocate(sizes[chosen], share)
    order = ranks(ids, seed)
    place = np.empty(n, dtype=np.int64)  # of a row within its stratum, in the order of the hash
    sorted_rows = np.lexsort((order, codes))
    place[sorted_rows] = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    drawn = (place < take[codes]) & ~known
    reading = [ids[int(i)] for i in np.flatnonzero(drawn)]
    reading = [reading[int(i)] for i in np.argsort(ranks(reading, f"{seed} reading"))]
    twice = sorted(reading[int(i)] for i in np.argsort(ranks(reading, f"{seed} twice"))[: round(double * len(reading))])
    return Plan(
        problem=problem,
        why="targeted" if disagree is not None else "random",
        candidate=candidate,
        champion=champion,
        seed=seed,
        at=at,
        budget=budget,
        strata=tuple(
            Stratum(kind=k, group=name.partition("\t")[2], rows=int(size), drawn=int(size if k == "labelled" else count))
            for name, k, size, count in zip(names, kinds.tolist(), sizes, take, strict=True)
        ),
        pool=dict(zip(ids, codes.tolist(), strict=True)),
        drawn=tuple(reading),
        twice=tuple(twice),
    )


def weights(plan: Plan, ids: Sequence[str]) -> Floats:
    """1/inclusion probability of each row (n,); 0 for rows outside the plan's pool."""
    each = [one.rows / one.drawn if one.drawn else 0.0 for one in plan.strata] + [0.0]
    return np.array([each[plan.pool.get(id, len(plan.strata))] for id in ids])


# --- plans on disk ------------------------------------------------------------------------------------------------------------


def keep_plan(folder: Path, plan: Plan, key: bytes) -> Path:
    """Sign a plan and write it as `<folder>/<problem>/<digest>.json`; written once."""
    path = folder / plan.problem / f"{seal.digest(plan)}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(seal.canonical(seal.sign(plan, PLAN_TYPE, key)))
        fresh.replace(path)
    return path


def read_plans(folder: Path, problem: str, keys: Iterable[bytes]) -> list[Plan]:
    """All plans of a problem, oldest first. Raises DataError for one that is unsigned, altered or not its own name."""
    found, trusted = [], tuple(keys)
    for path in sorted((folder / problem).glob("*.json")):
        plan = seal.open_envelope(path.read_bytes(), Plan, PLAN_TYPE, trusted)
        if isinstance(plan, Refusal):
            raise DataError(f"{path}: {plan}")
        if seal.digest(plan) != path.stem:
            raise DataError(f"{path}: expected the plan that its name says, got another; restore it from a backup")
        found.append(plan)
    return sorted(found, key=lambda one: (one.at, one.seed))
