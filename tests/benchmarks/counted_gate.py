"""The gate's two rules on cell counts (group × truth × both answers), for tens of thousands of data sets at once.

What the 32 clauses decide depends on a data set only by its 64 counts. The pass rule and the exact McNemar part of the block
rule are the library's own functions. The max-T critical value, which `judge` draws, is integrated here: clauses of different
groups share no row, and the four metrics of one group are four directions in a plane, spanned by what was lost and won among
its positives and among its negatives, so each repeat's own critical value comes from a table over that plane's angle.
`agreement` holds all of it against the real `judge` on rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import eight_groups as eight
import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from truing.tasks.evaluation.gate import judge
from truing.tasks.policy import Policy
from truing.tasks.records import Outcome
from truing.tasks.statistics.proportions import discordance_tails, drop_within, tail_of, z_of

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

CRITICAL = np.arange(2.0, 5.2, 0.01)
ANGLES = 91  # rows 0..90: degrees; then nothing moved, only positives moved, only negatives moved


@dataclass(frozen=True, eq=False)
class Tables:
    """(repeats, clauses): rows lost, rows won, rows that count, and the champion's own value; order group × METRICS."""

    worse: Counts
    better: Counts
    n: Counts
    champion: Floats

    @property
    def drop(self) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((self.worse - self.better) / self.n)


def tables_of(counts: Counts) -> Tables:
    """Counts (repeats, groups, truth, champion, candidate) as one 2×2 table a clause."""
    lost_yes, won_yes = counts[:, :, 1, 1, 0], counts[:, :, 1, 0, 1]
    won_no, lost_no = counts[:, :, 0, 1, 0], counts[:, :, 0, 0, 1]
    rows, yes = counts.sum(axis=(2, 3, 4)), counts[:, :, 1].sum(axis=(2, 3))
    right_yes, wrong_no = counts[:, :, 1, 1].sum(axis=2), counts[:, :, 0, 1].sum(axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        champion = [
            (right_yes + rows - yes - wrong_no) / rows, right_yes / yes, wrong_no / (rows - yes), (right_yes + wrong_no) / rows,
        ]  # fmt: skip

    def flat(parts: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
        return np.stack(parts, axis=2).reshape(len(counts), -1)

    return Tables(
        worse=flat([lost_yes + lost_no, lost_yes, lost_no, lost_yes + won_no]),  # type: ignore[arg-type]
        better=flat([won_yes + won_no, won_yes, won_no, won_yes + lost_no]),  # type: ignore[arg-type]
        n=flat([rows, yes, rows - yes, rows]),  # type: ignore[arg-type]
        champion=flat(champion),  # type: ignore[arg-type]
    )


@lru_cache(maxsize=1)
def _log_inside() -> Floats:
    """log P(no metric of one group exceeds c) by angle and c, (94, len(CRITICAL))."""
    x, weights = np.polynomial.legendre.leggauss(200)
    out = np.zeros((ANGLES + 3, len(CRITICAL)))
    for j, c in enumerate(CRITICAL):
        u = (c + 8.5) / 2 * x + (c - 8.5) / 2
        mass = (c + 8.5) / 2 * weights * np.exp(-u * u / 2) / np.sqrt(2 * np.pi)
        for i in range(1, ANGLES):
            cos, sin = np.cos(np.radians(i)), np.sin(np.radians(i))
            high = ndtr(np.minimum(c, (c - cos * u) / sin))
            out[i, j] = mass @ np.clip(high - ndtr((cos * u - c) / sin), 0.0, None)
        out[0, j] = ndtr(c) * (2 * ndtr(c) - 1)  # not reached: an angle of 0 means one part has no spread
        out[ANGLES], out[ANGLES + 1, j], out[ANGLES + 2, j] = 1.0, ndtr(c), 2 * ndtr(c) - 1
    return np.log(out)


def criticals(tables: Tables, level: float) -> Floats:
    """The max-T critical value of each repeat (repeats,), without the noise of drawing it."""
    inside = _log_inside()
    shape = (len(tables.n), -1, 4)
    worse, better, n = (x.reshape(shape)[:, :, 1:3].astype(float) for x in (tables.worse, tables.better, tables.n))
    spread = worse + better - (worse - better) ** 2 / np.maximum(n, 1.0)  # squared deviations among positives, negatives
    yes, no = spread[:, :, 0], spread[:, :, 1]
    angle = np.degrees(np.arctan2(np.sqrt(np.maximum(no, 0.0)), np.sqrt(np.maximum(yes, 0.0))))
    low = np.clip(angle.astype(np.int64), 1, ANGLES - 2)
    part = np.clip(angle - low, 0.0, 1.0)
    still_yes, still_no = yes < 1e-9, no < 1e-9
    special = np.where(still_yes & still_no, ANGLES, np.where(still_no, ANGLES + 1, ANGLES + 2))
    odd = still_yes | still_no
    first, second = np.where(odd, special, low), np.where(odd, special, low + 1)
    goal = np.log1p(-level)

    def at(j: Counts) -> Floats:
        return np.asarray(((1 - part) * inside[first, j[:, None]] + part * inside[second, j[:, None]]).sum(axis=1))

    below, above = np.zeros(len(n), dtype=np.int64), np.full(len(n), len(CRITICAL) - 1)
    while (above - below > 1).any():
        middle = (below + above) // 2
        over = at(middle) >= goal
        above, below = np.where(over, middle, above), np.where(over, below, middle)
    one, other = at(below), at(above)
    step = np.clip((goal - one) / np.where(other > one, other - one, 1.0), 0.0, 1.0)
    return np.maximum(CRITICAL[below] + step * 0.01, z_of(level))


@dataclass(frozen=True, eq=False)
class Decided:
    """(repeats, clauses) each: did the clause block, did it pass. And the verdicts of whole repeats, (repeats,)."""

    blocks: Bools
    passes: Bools
    block: Bools
    good: Bools


def decide(counts: Counts, policy: Policy) -> Decided:
    """The gate's word on each of many data sets, (repeats, groups, 2, 2, 2)."""
    tables = tables_of(counts)
    looks = policy.evidence.max_looks
    block_level, pass_level = policy.levels.block / looks, policy.levels.passing / looks
    n, drop = tables.n, tables.drop
    limit = np.array([one.limit for one in policy.clause])
    deciding = np.array([one.deciding for one in policy.clause])
    with np.errstate(invalid="ignore", divide="ignore"):
        beyond = drop > limit
        error = np.sqrt((tables.worse + tables.better - (tables.worse - tables.better) ** 2 / n) / (n - 1.0) / n)
    critical = criticals(tables, block_level)
    suspect = beyond & (error > 1e-12) & (drop - critical[:, None] * error > 0.0)
    blocks = np.zeros(suspect.shape, dtype=bool)
    alone = np.array([tail_of(float(c)) for c in critical])
    rows, columns = np.nonzero(suspect)
    blocks[rows, columns] = discordance_tails(tables.worse[rows, columns], tables.better[rows, columns]) <= alone[rows]
    passes = np.zeros(blocks.shape, dtype=bool)
    for value in np.unique(limit):
        some = deciding & (limit == value)
        passes[:, some] = drop_within(tables.worse[:, some], tables.better[:, some], n[:, some], float(value), pass_level)
    passes &= ~beyond
    block = blocks.any(axis=1)
    return Decided(blocks=blocks, passes=passes, block=block, good=passes[:, deciding].all(axis=1) & ~block)


def agreement(counts: Counts, policy: Policy) -> tuple[int, int, int]:
    """Verdicts and clauses on which `decide` and the real `judge` on rows agree: (verdicts, clauses, how many clauses).

    Watched clauses are compared by whether they block: only deciding ones are asked whether they pass.
    """
    ours = decide(counts, policy)
    verdicts = clauses = 0
    problem = eight.problem()
    for i, table in enumerate(counts):
        evaluation, scores = eight.scores_of(eight.rows_of(table))
        given = judge(evaluation, scores, problem, policy, dataset="d", key="k", now=0.0, seed=i)
        word = Outcome.BLOCK if ours.block[i] else Outcome.PASS if ours.good[i] else Outcome.INCONCLUSIVE
        verdicts += word is given.outcome
        for j, one in enumerate(given.clauses):
            same_block = bool(ours.blocks[i, j]) == (one.outcome is Outcome.BLOCK)
            same_pass = not one.deciding or bool(ours.passes[i, j]) == (one.outcome is Outcome.PASS)
            clauses += same_block and same_pass
    return verdicts, clauses, counts.shape[0] * len(policy.clause)
