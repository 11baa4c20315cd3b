"""Does the loop make the model better, and does the gate stop the round that would make it worse?

The loop's own code without its servers: world → landed events → join → tag → freeze → tune → ask → judge → release if it
passes. Every release is measured on the traffic that followed it, against its parent and against "never updated". A seed is one
unit: what is pooled are means of seeds, with one-sided 97.5 % bounds by Student's t.

    --limits   what the policy's limits are chosen by: drops and bounds of clean and of poisoned rounds, clause by clause
    --strict   leaves out outcomes on unsure answers too: what that costs
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import polars as pl
from harness import ROOT, Measured, main, say

from truing.flows.demo.adult import read_adult
from truing.flows.demo.world import Case, Scenario, Word, World
from truing.tasks.evaluation.answers import ask
from truing.tasks.evaluation.comparison import assess
from truing.tasks.evaluation.gate import judge
from truing.tasks.events.join import join
from truing.tasks.kinds.model import Model
from truing.tasks.learning.improve import tune
from truing.tasks.policy import Policy, load_policy
from truing.tasks.problem import Problem, load_problem
from truing.tasks.records import Outcome, Split
from truing.tasks.seal import canonical
from truing.tasks.selection.dataset import freeze
from truing.tasks.selection.quality import UNSURE, tag
from truing.tasks.selection.quarantine import held_rows, without_held
from truing.tasks.tables.columns import LANDING

ROUND_S = 1000.0  # simulated seconds between rounds


@dataclass
class Turn:
    """One round: its verdict, and what candidate and champion did on the traffic of the next."""

    seed: int
    number: int
    poisoned: bool
    outcome: str
    reason: str
    origin: str
    rows: int
    clauses: list[dict[str, Any]]
    validation: dict[str, float]
    following: dict[str, dict[str, float]]  # candidate | champion | never → metric → value on the next round's traffic
    gains: dict[str, float] = field(default_factory=dict)  # of the release in force on that traffic


@dataclass
class Run:
    seed: int
    turns: list[Turn]
    beside: dict[str, dict[str, float]]  # hgb_trusted, hgb_all, ours, never → metric on the last traffic


# --- the loop without servers -------------------------------------------------------------------------------------------------


class Book:
    """Everything that landed, and the newest state of every row."""

    def __init__(self, problem: Problem, salt: bytes) -> None:
        self.problem, self.salt = problem, salt
        self.events: dict[str, list[tuple[Any, ...]]] = {}
        self.states: dict[str, tuple[Any, ...]] = {}
        self.schema: Any = None
        self.offset = 0

    def land(
        self, case: str, kind: str, source: str, time: float, data: Any, *, actor: str | None, subject: str | None
    ) -> None:
        self.offset += 1
        values = {
            "topic": "user-events", "partition": 0, "offset": self.offset, "epoch": 0, "event_id": f"e{self.offset}",
            "type": kind, "source": source, "time": time, "landed_at": time, "problem": self.problem.name,
            "prediction_id": case, "subject": subject, "actor": actor, "actor_kind": "person" if actor else "source",
            "data": canonical(data), "disposition": "landed", "reason": "", "detail": "",
        }  # fmt: skip
        self.events.setdefault(case, []).append(tuple(values[name] for name in LANDING))

    def asked(self, case: Case, source: str, time: float, answer: dict[str, Any] | None, release: str | None) -> None:
        data = {"inputs": case.inputs, "groups": case.groups, "schema": "1"}
        if answer is not None:
            data |= {"answer": answer, "release": release}
        self.land(case.id, "prediction", source, time, data, actor=None, subject=case.subject)

    def said(self, word: Word, source: str, time: float) -> None:
        data = {"label": word.label} if word.label is not None else {"value": word.value}
        self.land(word.case, word.kind, source, time, data, actor=word.actor, subject=None)

    def derive(self, touched: set[str]) -> None:
        events = pl.DataFrame([event for case in touched for event in self.events[case]], schema=dict(LANDING), orient="row")
        rows = join(events, self.problem, salt=self.salt, revision=self.offset)
        self.schema = rows.schema
        self.states |= {row[0]: row for row in rows.iter_rows()}

    def rows(self) -> pl.DataFrame:
        return pl.DataFrame(list(self.states.values()), schema=self.schema, orient="row")


def simulate(seed: int, *, scenario: Scenario, problem: Problem, policy: Policy, trials: int = 6, strict: bool = False) -> Run:
    """One whole demo without servers."""
    salt = seed.to_bytes(4, "big") * 8
    world = World(adult(), problem, scenario, seed=seed, salt=salt)
    book = Book(problem, salt)
    for cases, source in ((world.trusted, "history"), (world.backfill, "backfill")):
        for case in cases:
            book.asked(case, source, 0.0, None, None)
            book.said(Word(case.id, "outcome", None, label=case.truth), source, 1.0)
    book.derive(set(book.events))
    rows = book.rows().filter(pl.col("split") == str(Split.TRUSTED))
    _, samples = freeze(tag(rows, policy), problem=problem, policy=policy, tables={}, seed=seed)
    never = champion = tune(problem, policy, samples, rows.clear(), None, seed=seed, trials=trials, threads=1).model
    taught: list[pl.DataFrame] = []
    verdicts: dict[str, Outcome] = {}
    turns: list[Turn] = []
    for number in range(1, scenario.rounds + 1):
        start = number * ROUND_S
        _turn_of_traffic(book, world, number, champion, start)
        now = start + ROUND_S / 2
        rows = book.rows()
        held = held_rows(
            pl.concat(taught) if taught else EMPTY,
            blocked=[name for name, outcome in verdicts.items() if outcome is Outcome.BLOCK],
            cleared=[name for name, outcome in verdicts.items() if outcome is Outcome.PASS],
        )
        labelled = without_held(rows.filter(pl.col("target").is_not_null()), held)
        tagged = tag(labelled.filter(pl.col("split").is_in([str(Split.TRUSTED), str(Split.TRAIN)])), policy)
        if strict:
            tagged = tagged.filter(~pl.col("reason").str.ends_with(UNSURE))
        dataset, samples = freeze(tagged, problem=problem, policy=policy, tables={}, seed=seed)
        validation = labelled.filter(pl.col("split") == str(Split.VALIDATION))
        tuned = tune(problem, policy, samples, validation, champion, seed=seed, trials=trials, threads=1)
        taught.append(samples.select(pl.lit(dataset.digest).alias("dataset"), pl.col("id").alias("row"), "target", "origin"))
        answers = ask(
            rows.filter(pl.col("split") == str(Split.HOLDOUT)), problem, policy, candidate=tuned.model, champion=champion,
            none=champion, anchor=never, look=1, now=now,
            digests={"candidate": tuned.model.payload, "champion": champion.payload, "none": champion.payload,
                     "anchor": never.payload},
        )  # fmt: skip
        evaluation, scores = assess(answers, problem, policy)
        verdict = judge(evaluation, scores, problem, policy, dataset=dataset.digest, key="k", now=now, seed=1)
        verdicts[dataset.digest] = verdict.outcome
        after = world.traffic(number + 1)
        following = {
            name: quality(model, after, problem)
            for name, model in (("candidate", tuned.model), ("champion", champion), ("never", never))
        }
        released = verdict.outcome is Outcome.PASS
        turns.append(
            Turn(
                seed,
                number,
                number == scenario.poisoned,
                str(verdict.outcome),
                verdict.reason,
                tuned.origin,
                dataset.samples,
                [json.loads(canonical(clause)) for clause in verdict.clauses],
                tuned.scores,
                following,
            )
        )
        if released:
            parent, champion = champion, tuned.model
        if champion is not never:  # the release in force on the traffic that follows, against its own parent
            force, before = quality(champion, after, problem), quality(parent, after, problem)
            turns[-1].gains = {
                "brier_parent": before["brier"] - force["brier"],
                "brier_never": following["never"]["brier"] - force["brier"],
                "accuracy_parent": force["accuracy"] - before["accuracy"],
                "accuracy_never": force["accuracy"] - following["never"]["accuracy"],
            }
    return Run(seed, turns, _beside(world, samples, champion, never, problem, seed, scenario))


def _turn_of_traffic(book: Book, world: World, number: int, champion: Model, start: float) -> None:
    cases = world.traffic(number)
    answers = champion.predict([case.inputs for case in cases])
    labels = champion.problem_labels
    for i, case in enumerate(cases):
        answer = {
            "label": answers.labels[i], "confidence": float(answers.confidence[i]),
            "probabilities": {label: float(p) for label, p in zip(labels, answers.probabilities[i], strict=True)},
        }  # fmt: skip
        book.asked(case, "gateway", start, answer, champion.payload)
    words = world.words(number, {case.id: answers.labels[i] for i, case in enumerate(cases)})
    for i, word in enumerate(words):
        book.said(word, "outcomes" if word.kind == "outcome" else "gateway", start + 1 + i / 1e4)
    book.derive({case.id for case in cases} | {word.case for word in words})


EMPTY = pl.DataFrame(schema={"dataset": pl.String, "row": pl.String, "target": pl.String, "origin": pl.String})


def quality(model: Model, cases: list[Case], problem: Problem) -> dict[str, float]:
    """Brier, accuracy, women's accuracy and women's TPR against what became true."""
    answers = model.predict([case.inputs for case in cases])
    p = answers.probabilities[:, model.positive]
    return measures(p, np.array([label == problem.positive for label in answers.labels]), cases, problem)


def measures(p: np.ndarray, yes: np.ndarray, cases: list[Case], problem: Problem) -> dict[str, float]:
    truth = np.array([case.truth == problem.positive for case in cases])
    women = np.array([case.groups.get("sex") == "Female" for case in cases])
    return {
        "brier": float(((p - truth) ** 2).mean()),
        "accuracy": float((yes == truth).mean()),
        "women_accuracy": float((yes == truth)[women].mean()),
        "women_tpr": float(yes[women & truth].mean()),
    }


def _beside(
    world: World, samples: pl.DataFrame, ours: Model, never: Model, problem: Problem, seed: int, scenario: Scenario
) -> dict[str, dict[str, float]]:
    """HistGradientBoosting as it comes, on the trusted rows only and on all that we had learned from."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    cases = world.traffic(scenario.rounds + 1)
    found = {"ours": quality(ours, cases, problem), "never": quality(never, cases, problem)}
    spec = ours.encoder
    after = spec.trees_see(*spec.read([case.inputs for case in cases]))  # categories as rates of the trusted rows
    for name, rows in (("hgb_trusted", samples.filter(pl.col("split") == str(Split.TRUSTED))), ("hgb_all", samples)):
        seen = spec.trees_see(*spec.read([json.loads(content) for content in rows["content"]]))
        peer = HistGradientBoostingClassifier(random_state=seed).fit(seen, rows["target"].to_list())
        p = peer.predict_proba(after)[:, list(peer.classes_).index(problem.positive)]
        found[name] = measures(p, p >= 0.5, cases, problem)
    return found


@lru_cache(maxsize=1)
def adult() -> list[dict[str, Any]]:
    return read_adult()


@lru_cache(maxsize=1)
def loaded() -> tuple[Problem, Policy]:
    folder = ROOT / "problems" / "adult"
    problem = load_problem(folder)
    return problem, load_policy(folder, problem)


def one(seed: int, scenario: Scenario, trials: int, strict: bool) -> Run:
    problem, policy = loaded()
    return simulate(seed, scenario=scenario, problem=problem, policy=policy, trials=trials, strict=strict)


def runs(seeds: range, scenario: Scenario, *, trials: int = 6, strict: bool = False, processes: int = 2) -> Iterator[Run]:
    """Simulations of many seeds, over several processes with one thread each."""
    import multiprocessing

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ[name] = "1"
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(partial(one, scenario=scenario, trials=trials, strict=strict), seeds)


# --- what is reported ---------------------------------------------------------------------------------------------------------

GAINS = ("brier_parent", "brier_never", "accuracy_parent", "accuracy_never")


def pooled(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and its one-sided 97.5 % lower bound."""
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, -math.inf
    return mean, mean - float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)


def measure(arguments: argparse.Namespace) -> Measured:
    seeds = 2 if arguments.quick else arguments.seeds
    scenario = Scenario()
    found: list[Run] = []
    for run in runs(
        range(arguments.first, arguments.first + seeds), scenario, trials=2 if arguments.quick else 6, strict=arguments.strict
    ):
        found.append(run)
        say(f"seed {run.seed}: " + ", ".join(f"{turn.outcome}{' (poisoned)' if turn.poisoned else ''}" for turn in run.turns))
    if arguments.save:
        Path(arguments.save).write_text(json.dumps([asdict(run) for run in found]))
    return report(found, limits=arguments.limits)


def report(found: list[Run], *, limits: bool) -> Measured:
    turns = [turn for run in found for turn in run.turns]
    clean, poisoned = ([turn for turn in turns if turn.poisoned is which] for which in (False, True))
    figures: dict[str, Any] = {"seeds": len(found)}
    lows = []
    for name in GAINS:
        per_seed = [float(np.mean([turn.gains[name] for turn in run.turns if turn.gains])) for run in found]
        mean, low = pooled(per_seed)
        lows.append(low)
        key = {"brier_parent": "gain_over_parent", "brier_never": "gain_over_never"}.get(name, f"{name}_gain")
        figures |= {key: mean, f"{key}_low": low if math.isfinite(low) else None}
    figures["gain_low"] = min(lows) if math.isfinite(min(lows)) else None
    blocked = [turn for turn in poisoned if turn.outcome == "block"]
    holdout = [clause["delta"]["value"] for turn in blocked for clause in turn.clauses if _is_tpr(clause)]
    traffic = [turn.following["champion"]["women_tpr"] - turn.following["candidate"]["women_tpr"] for turn in blocked]
    figures |= {
        "blocked_harm_holdout": float(np.mean(holdout)) if holdout else None,
        "blocked_harm_traffic": float(np.mean(traffic)) if traffic else None,
        "hgb_trusted": _mean(found, "hgb_trusted", "brier"),
        "hgb_all": _mean(found, "hgb_all", "brier"),
        "clean_passed": float(np.mean([turn.outcome == "pass" for turn in clean])),
        "clean_blocked": float(np.mean([turn.outcome == "block" for turn in clean])),
        "poison_blocked": float(np.mean([turn.outcome == "block" for turn in poisoned])),
        "poison_passed": float(np.mean([turn.outcome == "pass" for turn in poisoned])),
    }
    beside = {
        f"{who} {metric} on the last traffic": _mean(found, name, metric)
        for who, name in (
            ("last release", "ours"), ("never updated", "never"),
            ("HistGradientBoosting, trusted rows", "hgb_trusted"), ("HistGradientBoosting, all samples", "hgb_all"),
        )
        for metric in ("brier", "accuracy", "women_tpr")
    }  # fmt: skip
    broken = [f"seed {turn.seed}: the poisoned candidate passed ({turn.reason})" for turn in poisoned if turn.outcome == "pass"]
    return Measured(figures, beside, [*_rounds(found), *(_limits(clean, poisoned) if limits else [])], broken)


def _is_tpr(clause: dict[str, Any]) -> bool:
    return clause["slice"] == "sex=Female" and clause["metric"] == "tpr" and clause["against"] == "champion"


def _mean(found: list[Run], name: str, metric: str) -> float:
    return float(np.mean([run.beside[name][metric] for run in found]))


def _rounds(found: list[Run]) -> list[str]:
    """One line a round: verdicts, and the candidate's gain over the champion on the traffic that followed."""
    lines = [f"{'round':<14}{'pass':>6}{'block':>6}{'open':>6}{'fast':>6}{'samples':>9}   gains: Brier  accuracy  women's TPR"]
    for at, first in enumerate(found[0].turns):
        turns = [run.turns[at] for run in found]
        count = [sum(turn.outcome == outcome for turn in turns) for outcome in ("pass", "block", "inconclusive")]
        fast, rows = sum(turn.origin == "fast" for turn in turns), float(np.mean([turn.rows for turn in turns]))
        brier, accuracy, tpr = (
            float(np.mean([turn.following["candidate"][metric] - turn.following["champion"][metric] for turn in turns]))
            for metric in ("brier", "accuracy", "women_tpr")
        )
        lines.append(
            f"{at + 1} {'poisoned' if first.poisoned else 'clean':<12}{count[0]:>6}{count[1]:>6}{count[2]:>6}{fast:>6}"
            f"{rows:>9.0f}{-brier:>+15.4f}{accuracy:>+10.4f}{tpr:>+13.3f}"
        )
    return lines


def _limits(clean: list[Turn], poisoned: list[Turn]) -> list[str]:
    """One line a deciding clause: how far clean candidates' upper bounds reach, and how hard the poisoned ones hit it."""
    lines = [
        "",
        f"{'deciding clause':<17} {'against':<9} limit | clean drop, its bound's 90 and 95 %, over | poisoned drop, blocks",
    ]
    known = [(clause["name"], clause["against"]) for turn in clean for clause in turn.clauses if clause["deciding"]]
    for name, against in dict.fromkeys(known):
        calm, hit = (
            [clause for turn in turns for clause in turn.clauses if (clause["name"], clause["against"]) == (name, against)]
            for turns in (clean, poisoned)
        )
        drop, harm = (np.array([clause["delta"]["value"] for clause in clauses] or [np.nan]) for clauses in (calm, hit))
        high, limit = np.array([clause["delta"]["high"] for clause in calm]), calm[0]["limit"]
        reach = " ".join(f"{np.quantile(high, share):>+7.4f}" for share in (0.9, 0.95))
        blocks = float(np.mean([clause["outcome"] == "block" for clause in hit])) if hit else 0.0
        lines.append(
            f"{name:<17} {against:<9} {limit:.3f} | {drop.mean():>+.4f} ± {drop.std():.4f} {reach} "
            f"{np.mean(high >= limit):>6.1%} | {harm.mean():>+.4f} ± {harm.std():.4f} {blocks:>6.1%}"
        )
    return lines


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=20, help="simulations (default 20; --quick runs 2)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--limits", action="store_true", help="print the table the limits are chosen by")
    parser.add_argument("--strict", action="store_true", help="leave out outcomes on unsure answers")
    parser.add_argument("--save", help="write every round as JSON to this file")


if __name__ == "__main__":
    sys.exit(main("loop_gain", measure, options=options))
