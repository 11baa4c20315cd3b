"""The setting in which the gate's errors are measured: eight groups, 32 clauses, churn near the threshold, harm on top of it.

Champion, candidate and truth are cut from one trivariate normal: (a, b, c) with corr(a, c) = corr(b, c) = `QUALITY`, and
corr(a, b) such that a and b disagree in a share `churn` of the rows. All three answer "yes" above the threshold that the base
rate sets. Champion and candidate are exchangeable, so every true drop of an equal candidate is exactly zero, and they disagree
where the score is near the threshold. Harm then turns a known share of the candidate's right answers in one group into wrong
ones. What the gate reads of a row is (group, truth, both answers): 8 × 2 × 2 × 2 cells whose probabilities are exact here, so
a drop of 5.0 points is one of 5.0 points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import msgspec
import numpy as np
import numpy.typing as npt

from truing.tasks.evaluation.scores import PRIOR, Scores
from truing.tasks.policy import Clause, Evidence, Levels, Policy
from truing.tasks.problem import Group, Input, Problem
from truing.tasks.records import Estimate, Evaluation
from truing.tasks.seal import digest
from truing.tasks.statistics.cells import ALL

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

GROUPS = ("A", "B", "C", "D", "E", "F", "G", "H")
SHARES = np.array([0.30, 0.20, 0.14, 0.12, 0.10, 0.07, 0.04, 0.03])
HARMED = "D"  # the group of 12 %
DECIDING_FROM = 0.10  # accuracy and TPR of groups at least so large decide; everything else is watched
METRICS = ("accuracy", "tpr", "fpr", "selection_rate")
LIMIT = 0.05
QUALITY = 0.8
FLOORS = ((10_000, 0.50, 0.05), (12_500, 0.50, 0.10), (12_500, 0.25, 0.03), (20_000, 0.25, 0.05), (40_000, 0.25, 0.10))


@dataclass(frozen=True)
class Harm:
    """Planted harm: `metric` (accuracy, tpr or fpr) of one group is truly `drop` worse under the candidate, 0..1."""

    group: str
    metric: str
    drop: float


def clauses() -> tuple[Clause, ...]:
    """The 32: each group × metric, limit 5 points."""
    return tuple(
        Clause(
            name=f"{metric} {group}",
            slice=f"g={group}",
            metric=metric,
            limit=LIMIT,
            deciding=metric in ("accuracy", "tpr") and bool(share >= DECIDING_FROM),
        )
        for group, share in zip(GROUPS, SHARES, strict=True)
        for metric in METRICS
    )


def policy(*, max_looks: int = 1, resamples: int = 20_000) -> Policy:
    return Policy(
        version=1,
        clause=clauses(),
        evidence=Evidence(min_rows=1, min_coverage=0.0, max_looks=max_looks),
        levels=Levels(resamples=resamples),
    )


def problem() -> Problem:
    return Problem(
        name="eight", kind="tabular", label="y", labels=("no", "yes"), positive="yes",
        inputs={"x": Input(type="number")}, groups={"g": Group(values=GROUPS)},
    )  # fmt: skip


def probabilities(base: float, churn: float, harms: tuple[Harm, ...] = ()) -> Floats:
    """P(group, truth, champion's answer, candidate's answer), (8, 2, 2, 2); sums to 1.

    Args:
        base: share of positives, 0..1, the same in every group.
        churn: share of rows on which an equal candidate answers differently, 0..1.
    """
    full = SHARES[:, None, None, None] * _of_one_group(base, churn)
    for harm in harms:
        plant(full[GROUPS.index(harm.group)], harm)
    return full


def likeness(base: float, churn: float) -> tuple[float, float]:
    """The threshold on all three scores, and the correlation of both models' scores once the truth's is known."""
    cut = NormalDist().inv_cdf(1.0 - base)
    tilt = _solve(lambda a: 4.0 * float(_owen(np.array([cut]), a)[0]) - churn)  # churn = 4·T(cut, √((1−ρ)/(1+ρ)))
    rho = (1.0 - tilt**2) / (1.0 + tilt**2)
    return cut, (rho - QUALITY**2) / (1.0 - QUALITY**2)


@lru_cache(maxsize=64)
def _of_one_group(base: float, churn: float) -> Floats:
    cut, kappa = likeness(base, churn)
    inner = float(np.sqrt((1.0 - kappa) / (1.0 + kappa)))
    table = np.zeros((2, 2, 2))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    for truth, (low, high) in enumerate(((-8.5, cut), (cut, 8.5))):
        c = (high - low) / 2 * nodes + (high + low) / 2
        mass = (high - low) / 2 * weights * np.exp(-c * c / 2) / np.sqrt(2 * np.pi)
        h = (cut - QUALITY * c) / np.sqrt(1.0 - QUALITY**2)
        yes = np.array([1.0 - NormalDist().cdf(x) for x in h])
        differ = 2.0 * _owen(h, inner)  # each of the two ways
        table[truth] = [
            [float(mass @ (1.0 - yes - differ)), float(mass @ differ)],
            [float(mass @ differ), float(mass @ (yes - differ))],
        ]
    return table / table.sum()


def plant(cells: Floats, harm: Harm) -> None:
    """Turn right answers of the candidate into wrong ones, the same share of each cell that counts."""
    if harm.metric == "tpr":
        _turn(cells, 1, harm.drop * float(cells[1].sum()) / float(cells[1, :, 1].sum()))
    elif harm.metric == "fpr":
        _turn(cells, 0, harm.drop * float(cells[0].sum()) / float(cells[0, :, 0].sum()))
    elif harm.metric == "accuracy":
        share = harm.drop * float(cells.sum()) / float(cells[1, :, 1].sum() + cells[0, :, 0].sum())
        _turn(cells, 1, share)
        _turn(cells, 0, share)
    else:
        raise ValueError(f"expected harm to accuracy, tpr or fpr, got {harm.metric!r}; name one")


def _turn(cells: Floats, truth: int, share: float) -> None:
    moved = share * cells[truth, :, truth]
    cells[truth, :, truth] -= moved
    cells[truth, :, 1 - truth] += moved


def _owen(h: Floats, a: float) -> Floats:
    """Owen's T(h, a) = ∫₀ᵃ exp(−h²(1+x²)/2)/(1+x²) dx / 2π (Owen 1956); two normals of one threshold differ in 4T of all."""
    nodes, weights = _nodes(64)
    x = a / 2 * (nodes + 1)
    values = np.exp(-(h[:, None] ** 2) * (1 + x**2) / 2) / (1 + x**2)
    return np.asarray(a / 2 * values @ weights / (2 * np.pi))


@lru_cache(maxsize=4)
def _nodes(count: int) -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return nodes, weights


def _solve(rises: Callable[[float], float]) -> float:
    low, high = 0.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) > 0 else (middle, high)
    return (low + high) / 2


def true_drops(table: Floats) -> dict[str, float]:
    """The true drop of every clause by its name (> 0 is worse)."""
    found = {}
    for g, group in enumerate(GROUPS):
        cells = table[g]
        wrong = [float(cells[1, 0].sum() + cells[0, 1].sum()), float(cells[1, :, 0].sum() + cells[0, :, 1].sum())]
        found[f"accuracy {group}"] = (wrong[1] - wrong[0]) / float(cells.sum())
        found[f"tpr {group}"] = float(cells[1, 1].sum() - cells[1, :, 1].sum()) / float(cells[1].sum())
        found[f"fpr {group}"] = float(cells[0, :, 1].sum() - cells[0, 1].sum()) / float(cells[0].sum())
        found[f"selection_rate {group}"] = float(cells[:, 1].sum() - cells[:, :, 1].sum()) / float(cells.sum())
    return found


def draw(rng: np.random.Generator, n: int, table: Floats) -> Counts:
    """Counts (8, 2, 2, 2) of n independent rows: all that the gate's clauses depend on."""
    return rng.multinomial(n, table.ravel()).reshape(table.shape)


@dataclass(frozen=True, eq=False)
class Rows:
    """n rows: group code 0..7, truth, both answers."""

    group: Counts
    positive: npt.NDArray[np.bool_]
    champion: npt.NDArray[np.bool_]
    candidate: npt.NDArray[np.bool_]


def rows_of(counts: Counts) -> Rows:
    """Counts (8, 2, 2, 2) spelled out as rows, in the order of the cells (no clause cares about the order)."""
    each = np.repeat(np.arange(counts.size), counts.ravel())
    group, truth, champion, candidate = np.unravel_index(each, counts.shape)
    return Rows(group.astype(np.int64), truth == 1, champion == 1, candidate == 1)


def scores_of(rows: Rows, *, champion: str = "champion") -> tuple[Evaluation, Scores]:
    """What `assess` would hand to `judge` about these rows, each a subject of its own and labelled."""
    n = len(rows.positive)
    slices = {ALL: np.ones(n, dtype=bool)} | {f"g={name}": rows.group == code for code, name in enumerate(GROUPS)}
    base = float(rows.positive.mean()) if n else 0.0
    scores = Scores(
        rows="rows",
        positive=rows.positive,
        judged=np.ones(n, dtype=bool),
        subjects=np.arange(n, dtype=np.int64),
        slices=slices,
        probability={
            "candidate": np.where(rows.candidate, 0.75, 0.25),
            "champion": np.where(rows.champion, 0.75, 0.25),
            PRIOR: np.full(n, base),
        },
        answer={"candidate": rows.candidate, "champion": rows.champion, PRIOR: np.full(n, base >= 0.5)},
    )
    evaluation = Evaluation(
        digest="", problem="eight", candidate="candidate", champion=champion, none=None, anchor=None, rows="rows", n=n,
        coverage=1.0, cells=(), forgetting=Estimate(value=None), flips=0.0, shift={}, latency_ms=0.0, size_mb=0.0,
    )  # fmt: skip
    return msgspec.structs.replace(evaluation, digest=digest(evaluation)), scores
