"""Can a trainer climb on the sealed rows? Three of them submit 200 candidates each and read every difference in every verdict.

Setting: the eight groups (`eight_groups.py`), 20,000 sealed rows and ten more with each submission, base rate 50 %, churn 3 %.

- *The climber* wants to look better. In the band of rows that its honest candidate is unsure of, each submission answers at
  random (by a hash of the inputs); the last one is a vote of all, each weighted by what it gained, group by group (the
  boosting attack on holdouts, Blum and Hardt 2015).
- *The hider* wants to release harm. Each submission refuses one of 195 small parts of one group (by hash again); the verdict
  tells how many judging rows were hit. The last five refuse the parts that hit fewest, until the true TPR is 6 points worse.
- *The lucky one* submits 200 candidates that are truly 5.0 points worse for a group, each with its own chance.

Three gates: *no budget* (every candidate at the full level on all rows), *level only* (the k-th at (free/k)²), and ours, which
also asks rows that no verdict was worked out on (`tasks/evaluation/ledger.py`).
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import counted_gate as counted
import eight_groups as eight
import msgspec
import numpy as np
from harness import Measured, main, say

from truing.tasks.evaluation.gate import holds_on, judge
from truing.tasks.evaluation.ledger import Look, candidates_since, level_share, note_look, read_ledger, shown_until
from truing.tasks.policy import Policy
from truing.tasks.records import Evaluation, Unseen
from truing.tasks.seal import digest

START, EACH, SUBMISSIONS, BASE, CHURN = 20_000, 10, 200, 0.50, 0.03
FRESH, BAND, PARTS, HIDDEN = 200_000, 0.25, 195, 0.06
HIDER, VICTIM = eight.GROUPS.index(eight.HARMED), eight.GROUPS.index("E")
FREE = eight.policy().evidence.free_candidates
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass
class World:
    """Rows in the order they come; the first `START` are there at the start, the last `FRESH` judge nobody."""

    group: Any
    truth: Bools
    champion: Bools
    score: Any  # the honest candidate's
    cut: float
    hash: Any  # (n,) what a model can compute of a row's inputs, 0..1
    rng: np.random.Generator
    shared: tuple[Any, Any, float]

    @staticmethod
    def of(seed: int) -> World:
        rng = np.random.default_rng(seed)
        n = START + EACH * SUBMISSIONS + FRESH
        cut, kappa = eight.likeness(BASE, CHURN)
        c, a = rng.standard_normal(n), rng.standard_normal(n)
        noise = math.sqrt(1.0 - eight.QUALITY**2)
        world = World(
            group=rng.choice(8, size=n, p=eight.SHARES), truth=c > cut, champion=eight.QUALITY * c + noise * a > cut, score=c,
            cut=cut, hash=rng.random(n), rng=rng, shared=(eight.QUALITY * c, noise * a, kappa),
        )  # fmt: skip
        world.score = world.another()
        return world

    def another(self, rows: int | None = None) -> Any:
        """The scores of one more candidate that is as good as the champion."""
        mean, own, kappa = self.shared
        mean, own = mean[:rows], own[:rows]
        noise = math.sqrt(1.0 - eight.QUALITY**2)
        return mean + kappa * own + math.sqrt(1.0 - kappa**2) * noise * self.rng.standard_normal(len(mean))

    @property
    def honest(self) -> Bools:
        return np.asarray(self.score > self.cut)

    def counts(self, answer: Bools, rows: slice) -> eight.Counts:
        parts = (self.group[rows], self.truth[rows].astype(int), self.champion[rows].astype(int), answer[rows].astype(int))
        return np.bincount(np.ravel_multi_index(parts, (8, 2, 2, 2)), minlength=64).reshape(8, 2, 2, 2)

    def rows(self, answer: Bools, rows: slice) -> eight.Rows:
        return eight.Rows(self.group[rows], self.truth[rows], self.champion[rows], answer[rows])


def there(submission: int) -> int:
    """Rows that may judge at a submission, from 1."""
    return START + EACH * submission


def shown(submission: int, gate: str) -> int:
    return there(min(submission, FREE)) if gate == "ours" else there(submission)


def at(k: int, gate: str) -> Policy:
    policy = eight.policy()
    share = 1.0 if gate == "no budget" else level_share(k, FREE)
    return msgspec.structs.replace(policy, levels=msgspec.structs.replace(policy.levels, passing=policy.levels.passing * share))


def passes(world: World, answer: Bools, k: int, gate: str) -> bool:
    """Would the k-th submission be passed?"""
    policy, until = at(k, gate), shown(k, gate)
    if not counted.decide(world.counts(answer, slice(0, until))[None], policy).good[0]:
        return False
    if gate != "ours" or k <= FREE:
        return True
    deciding = np.array([one.deciding for one in policy.clause])
    return bool(counted.decide(world.counts(answer, slice(until, there(k)))[None], policy).passes[0, deciding].all())


def drops(world: World, answer: Bools, k: int, gate: str) -> Any:
    """What the verdict shows: the drop of every clause, (8, 4)."""
    return counted.tables_of(world.counts(answer, slice(0, shown(k, gate)))[None]).drop[0].reshape(8, 4)


def climb(world: World, gate: str) -> Bools:
    band = np.abs(world.score - world.cut) < BAND
    votes, level = np.zeros(len(world.truth)), np.zeros(8)
    for k in range(1, SUBMISSIONS):
        said = np.random.default_rng([k, 7]).random(len(band)) < 0.5  # a hash of the inputs, one function a submission
        gains = -drops(world, np.where(band, said, world.honest), k, gate)[:, 0]  # accuracy, group by group
        level += (gains - level) / k
        votes += (gains - level)[world.group] * np.where(said, 1.0, -1.0)
    return np.asarray(np.where(band, votes > 0, world.honest))


def hide(world: World, gate: str) -> Bools:
    part = np.minimum((world.hash * PARTS).astype(int), PARTS - 1)
    mine = (world.group == HIDER) & world.honest
    hits = [drops(world, np.where(mine & (part == i), False, world.honest), i + 1, gate)[HIDER, 1] for i in range(PARTS)]
    fresh = slice(there(SUBMISSIONS), None)
    positives = (world.group == HIDER) & world.truth
    cost = np.bincount(part[fresh], weights=(positives & mine)[fresh], minlength=PARTS) / positives[fresh].sum()
    order = np.argsort(hits)
    chosen = order[: int(np.searchsorted(np.cumsum(cost[order]), HIDDEN)) + 1]
    return np.asarray(np.where(mine & np.isin(part, chosen), False, world.honest))


def accuracy(world: World, answer: Bools, rows: slice) -> float:
    return float((answer == world.truth)[rows].mean())


def lucky(seed: int) -> dict[str, bool]:
    """Did one of 200 candidates with a true drop of 5.0 points of TPR pass, by gate?"""
    world = World.of(10_000 + seed)
    n = there(SUBMISSIONS)
    table = eight.probabilities(BASE, CHURN)[VICTIM]
    share = 0.05 * table[1].sum() / table[1, :, 1].sum()
    found = dict.fromkeys(GATES, False)
    victims = (world.group[:n] == VICTIM) & world.truth[:n]
    for k in range(1, SUBMISSIONS + 1):
        answer = world.another(n) > world.cut
        answer &= ~(victims & (world.rng.random(n) < share))
        for gate in GATES:
            found[gate] = found[gate] or passes(world, answer, k, gate)
    return found


GATES = ("no budget", "level only", "ours")


def real(world: World, answer: Bools, folder: Path) -> tuple[str, str]:
    """The hider's last submission by the real judge and a real ledger: its outcome and its reason."""
    path, policy, problem = folder / "looks.jsonl", eight.policy(), eight.problem()
    for k in range(1, SUBMISSIONS):
        note_look(
            path, Look(problem="eight", candidate=f"c{k}", rows=f"r{k}", at=float(there(k)), champion="champion")
        ) if k < 12 else None
    with path.open("ab") as file:  # the rest in one go: noting reads the whole ledger each time
        for k in range(12, SUBMISSIONS):
            file.write(
                msgspec.json.encode(
                    Look(problem="eight", candidate=f"c{k}", rows=f"r{k}", at=float(there(k)), champion="champion")
                )
                + b"\n"
            )
    ledger = read_ledger(path)
    k = candidates_since(ledger, "candidate", champion="champion")
    until = int(shown_until(ledger, champion="champion", free=FREE))
    assert (k, until) == (SUBMISSIONS, shown(SUBMISSIONS, "ours"))

    def with_looks(evaluation: Evaluation, unseen: Unseen | None = None) -> Evaluation:
        changed = msgspec.structs.replace(evaluation, looks=k, unseen=unseen, digest="")
        return msgspec.structs.replace(changed, digest=digest(changed))

    evaluation, scores = eight.scores_of(world.rows(answer, slice(until, there(k))))
    unseen = Unseen(n=scores.n, holds=holds_on(with_looks(evaluation), scores, problem, policy))
    evaluation, scores = eight.scores_of(world.rows(answer, slice(0, until)))
    verdict = judge(with_looks(evaluation, unseen), scores, problem, policy, dataset="d", key="k", now=0.0, seed=1)
    return str(verdict.outcome), verdict.reason


def waiting(k: int = SUBMISSIONS) -> int:
    """Unseen rows from which an equal candidate passes four times in five as the k-th, to the nearest 500."""
    rng, deciding = np.random.default_rng(0), np.array([one.deciding for one in eight.policy().clause])
    for n in range(2_000, 60_000, 500):
        counts = rng.multinomial(n, eight.probabilities(BASE, CHURN).ravel(), size=500).reshape(-1, 8, 2, 2, 2)
        if counted.decide(counts, at(k, "ours")).passes[:, deciding].all(axis=1).mean() >= 0.8:
            return n
    return 60_000


def measure(arguments: argparse.Namespace) -> Measured:
    seeds, worlds = (2, 2) if arguments.quick else (20, 100)
    fresh, held = slice(there(SUBMISSIONS), None), slice(0, there(FREE))
    gains: dict[str, list[tuple[float, float]]] = {gate: [] for gate in ("no budget", "ours")}
    hidden: dict[str, list[tuple[bool, float, float]]] = {gate: [] for gate in GATES}
    last = None
    for seed in range(seeds):
        world = World.of(seed)
        for gate, pairs in gains.items():
            answer = climb(world, gate)
            pairs.append(tuple(accuracy(world, answer, part) - accuracy(world, world.honest, part) for part in (held, fresh)))  # type: ignore[arg-type]
        for gate in GATES:
            answer = hide(world, gate)
            true = counted.tables_of(world.counts(answer, fresh)[None]).drop[0, 4 * HIDER + 1]
            seen = drops(world, answer, SUBMISSIONS, gate)[HIDER, 1]
            hidden[gate].append(
                (any(passes(world, answer, k, gate) for k in range(PARTS + 1, SUBMISSIONS + 1)), float(true), float(seen))
            )
            if gate == "ours" and seed == 0:
                last = (world, answer)
        say(f"world {seed + 1} of {seeds}")
    luck = []
    for seed in range(worlds):
        luck.append(lucky(seed))
        if (seed + 1) % 20 == 0:
            say(f"luck {seed + 1} of {worlds}")
    wait = waiting()
    with tempfile.TemporaryDirectory() as folder:
        assert last is not None
        outcome, reason = real(*last, Path(folder))
    lines = [
        f"{SUBMISSIONS} submissions, {START:,} rows and {EACH} more with each; {seeds} worlds, {worlds} for the lucky one",
        "",
    ]
    figures: dict[str, Any] = {}
    for gate, pairs in gains.items():
        each = np.array(pairs)
        middle, error = each.mean(axis=0), each.std(axis=0, ddof=1) / math.sqrt(len(each))
        lines.append(
            f"climber, {gate + ':':<11} accuracy against its honest candidate {100 * middle[0]:+.2f} points on the rows shown, "
            f"{100 * middle[1]:+.2f} ± {196 * error[1]:.2f} on {FRESH:,} fresh ones"
        )
        if gate == "ours":
            figures |= {
                "gain_on_holdout": float(middle[0]),
                "gain_on_fresh": float(middle[1]),
                "gain_on_fresh_low": float(middle[1] - 1.96 * error[1]),
            }
    for gate in GATES:
        passed, true, seen = (np.array([one[i] for one in hidden[gate]], dtype=float) for i in range(3))
        lines.append(
            f"hider,   {gate + ':':<11} passed in {passed.mean():.0%}; true drop {100 * true.mean():.1f} points, "
            f"shown in its verdict {100 * seen.mean():+.1f}"
        )
    for gate in GATES:
        lines.append(
            f"lucky,   {gate + ':':<11} one that is truly 5.0 points worse passed in {np.mean([one[gate] for one in luck]):.0%}"
        )
    lines += [
        f"an honest candidate that comes as number {SUBMISSIONS} passes in 4 of 5 cases once {wait:,} rows have come that "
        f"no verdict has shown; as number {FREE + 1}, {waiting(FREE + 1):,}",
        "", f"the hider's last verdict ({outcome}): {reason}",
    ]  # fmt: skip
    key = {"no budget": "no_budget", "level only": "level_only"}
    figures |= {
        "hidden_harm_passed": float(np.mean([one[0] for one in hidden["ours"]])),
        "lucky_harm_passed": float(np.mean([one["ours"] for one in luck])),
        "submissions": SUBMISSIONS,
        "honest_waits_rows": wait,
    }
    beside = {f"hidden_harm_passed_{key[gate]}": float(np.mean([one[0] for one in hidden[gate]])) for gate in key}
    beside |= {f"lucky_harm_passed_{key[gate]}": float(np.mean([one[gate] for one in luck])) for gate in key}
    broken = []
    if figures["gain_on_fresh_low"] > 0:
        broken.append(f"the climber is {figures['gain_on_fresh']:.4f} better on fresh rows")
    if figures["hidden_harm_passed"] > 0 or outcome == "pass":
        broken.append("hidden harm was passed")
    if figures["lucky_harm_passed"] * worlds > 2 * FREE * 0.008 * worlds + 3 * math.sqrt(0.08 * worlds):
        broken.append(f"one of 200 harmful candidates passed in {figures['lucky_harm_passed']:.0%} of the worlds")
    return Measured(figures, beside, lines, broken)


if __name__ == "__main__":
    sys.exit(main("gate_hillclimb", measure))
