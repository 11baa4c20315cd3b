"""Comparison on sealed rows and the verdict: what blocks, what passes, and what never may."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from truing.tasks.errors import DataError
from truing.tasks.evaluation.answers import ask, rows_digest
from truing.tasks.evaluation.comparison import assess
from truing.tasks.evaluation.gate import judge
from truing.tasks.evaluation.ledger import Look, look_at, note_look, read_ledger
from truing.tasks.evaluation.scores import Scores
from truing.tasks.policy import Absolute, Clause, Evidence, Levels, Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Clause as Decided
from truing.tasks.records import Evaluation, Outcome, Verdict
from truing.tasks.seal import digest

NOW = 1000.0


@dataclass
class Answers:
    labels: list[str]
    probabilities: np.ndarray


class Reader:
    """A model that finds its probability among the inputs: the smallest thing that predicts."""

    def __init__(self, name: str, problem: Problem) -> None:
        self.name, self.problem, self.asked = name, problem, 0

    def predict(self, inputs: list[dict[str, Any]]) -> Answers:
        self.asked += 1
        p = np.array([one[self.name] if one[self.name] is not None else math.nan for one in inputs], dtype=float)
        labels = [self.problem.labels[int(v > 0.5)] for v in p]
        return Answers(labels, np.stack([1 - p, p], axis=1))


def rows(problem: Problem, n: int = 4000, *, seed: int = 0, harm: float = 0.0, churn: float = 0.3) -> pl.DataFrame:
    """Judged holdout rows. Inputs carry three models' probabilities: `old`, `new` and `far` (the anchor).

    `harm` is the share of women's positives that the new model talks down.
    """
    rng = np.random.default_rng(seed)
    women = rng.random(n) < 0.4
    z = rng.normal(0, 2, n) - 0.5 - 0.5 * women
    y = rng.random(n) < 1 / (1 + np.exp(-z))
    old, new, far = (1 / (1 + np.exp(-(z + rng.normal(0, churn, n)))) for _ in range(3))
    new = np.where(women & y & (rng.random(n) < harm), 0.3 * new, new)
    return pl.DataFrame(
        {
            "id": [f"r{i:05d}" for i in range(n)],
            "problem": problem.name,
            "subject": [f"s{i:05d}" for i in range(n)],
            "content": [
                json.dumps({"old": o, "new": c, "far": f}).encode()
                for o, c, f in zip(old.tolist(), new.tolist(), far.tolist(), strict=True)
            ],
            "groups": [
                json.dumps({"sex": "Female" if w else "Male", "race": "White", "age": a})
                for w, a in zip(women, rng.choice(["<30", ">=60"], n), strict=True)
            ],
            "target": [problem.labels[int(v)] for v in y],
            "origin": "outcome",
            "asked_at": 10.0,
            "matured_at": 20.0,
            "split": "holdout",
            "revision": 1,
        }
    )


def clause(metric: str, slice_: str = "all", limit: float = 0.06, **more: Any) -> Clause:
    return Clause(name=f"{metric} {slice_}", slice=slice_, metric=metric, limit=limit, **more)


RULES = Policy(
    version=1,
    clause=(
        clause("brier", limit=0.01),
        clause("accuracy", limit=0.03),
        clause("tpr", "sex=Female", limit=0.08),
        clause("tpr", "sex=Male", limit=0.06, deciding=False),
    ),
    absolute=(Absolute(name="beats the prior", slice="all", metric="brier", at_least=0.02),),
    evidence=Evidence(min_rows=1000, min_coverage=0.8, max_looks=1),
    levels=Levels(resamples=10_000),
)


def weigh(
    frame: pl.DataFrame,
    problem: Problem,
    *,
    candidate: str = "new",
    champion: str | None = "old",
    anchor: str | None = None,
    look: int = 1,
) -> tuple[Evaluation, Scores]:
    named = {"candidate": candidate, "champion": champion, "none": champion, "anchor": anchor}
    models = {role: Reader(name, problem) if name else None for role, name in named.items()}
    assert models["candidate"]
    digests = {role: f"payload-{name}" for role, name in named.items() if name}
    return assess(ask(frame, problem, RULES, **models, digests=digests, look=look, now=NOW), problem, RULES)  # type: ignore[arg-type]


def verdict(frame: pl.DataFrame, problem: Problem, policy: Policy = RULES, **options: Any) -> Verdict:
    evaluation, scores = weigh(frame, problem, **options)
    return judge(evaluation, scores, problem, policy, dataset="data", key="key", now=NOW, seed=3)


def found(given: Verdict, name: str, against: str = "champion") -> Decided:
    return next(one for one in given.clauses if one.name == name and one.against == against)


def only(*clauses: Clause, **more: Any) -> Policy:
    return msgspec.structs.replace(RULES, clause=clauses, absolute=(), **more)


# --- the three outcomes -------------------------------------------------------------------------------------------------------


def test_an_equal_candidate_passes_and_the_verdict_binds_what_it_judged(problem: Problem) -> None:
    evaluation, scores = weigh(rows(problem), problem)
    given = judge(evaluation, scores, problem, RULES, dataset="data", key="key", now=NOW, seed=3)
    assert given.outcome is Outcome.PASS, given.reason
    assert (given.candidate, given.champion) == ("payload-new", "payload-old")
    assert (given.evaluation, given.policy, given.dataset) == (evaluation.digest, RULES.digest, "data")
    assert evaluation.digest == digest(msgspec.structs.replace(evaluation, digest=""))
    assert all(one.outcome is Outcome.PASS for one in given.clauses if one.deciding)
    assert "inside the limits on 4,000 rows" in given.reason


def test_harm_to_one_group_blocks_and_the_reason_names_it(problem: Problem) -> None:
    given = verdict(rows(problem, harm=0.5), problem)
    women = found(given, "tpr sex=Female")
    assert given.outcome is women.outcome is Outcome.BLOCK
    assert women.delta.value is not None and women.delta.low is not None and women.delta.low > 0
    assert women.delta.value > women.limit
    assert f"tpr sex=Female fell by {women.delta.value * 100:.1f} points" in women.reason
    assert f"(limit 8.0, joint lower bound {women.delta.low * 100:.1f})" in women.reason
    assert found(given, "tpr sex=Male").outcome is not Outcome.BLOCK
    assert given.reason.split(" (")[0] in {one.reason.split(" (")[0] for one in given.clauses if one.outcome is Outcome.BLOCK}


def test_a_watched_clause_blocks_but_never_holds_a_pass_back(problem: Problem) -> None:
    watched = clause("tpr", "sex=Female", limit=0.08, deciding=False)
    easy = clause("accuracy", limit=0.2)
    assert verdict(rows(problem, harm=0.5), problem, only(easy, watched)).outcome is Outcome.BLOCK
    tight = msgspec.structs.replace(watched, limit=0.001)
    given = verdict(rows(problem), problem, only(easy, tight))
    assert found(given, tight.name).outcome is Outcome.INCONCLUSIVE and given.outcome is Outcome.PASS


def test_too_little_evidence_is_inconclusive_with_the_rows_that_are_needed(problem: Problem) -> None:
    given = verdict(rows(problem), problem, only(clause("tpr", "sex=Female", limit=0.01)))
    one = given.clauses[0]
    assert given.outcome is one.outcome is Outcome.INCONCLUSIVE
    assert one.rows_needed is not None and one.rows_needed > 4000
    assert "can't be ruled out" in given.reason and "rows are needed, 4,000 are there" in given.reason
    assert (
        verdict(rows(problem, 2 * one.rows_needed), problem, only(clause("tpr", "sex=Female", limit=0.01))).outcome in Outcome
    )


def test_a_certain_drop_inside_the_limit_does_not_block(problem: Problem) -> None:
    given = verdict(rows(problem, 8000, harm=0.2), problem, only(clause("tpr", "sex=Female", limit=0.2)))
    one = given.clauses[0]
    assert one.delta.low is not None and one.delta.low > 0.02 and given.outcome is Outcome.PASS


def test_a_drop_beyond_the_limit_that_may_be_chance_neither_blocks_nor_passes(problem: Problem) -> None:
    frame = rows(problem, 300, harm=0.25, seed=4)
    given = verdict(frame, problem, only(clause("tpr", "sex=Female", limit=0.005), evidence=Evidence(min_rows=1)))
    one = given.clauses[0]
    assert one.delta.value is not None and one.delta.value > 0.005
    assert given.outcome is Outcome.INCONCLUSIVE and "may be chance" in given.reason


# --- what never passes --------------------------------------------------------------------------------------------------------


def test_without_a_champion_the_best_is_inconclusive(problem: Problem) -> None:
    given = verdict(rows(problem), problem, champion=None)
    assert given.outcome is Outcome.INCONCLUSIVE and given.reason.startswith("no champion")
    assert {one.against for one in given.clauses} == {"absolute"} and given.champion is None
    assert given.clauses[0].outcome is Outcome.PASS


def test_a_candidate_no_better_than_the_prior_is_blocked_even_at_genesis(problem: Problem) -> None:
    frame = rows(problem)
    dull = frame.with_columns(content=pl.lit(json.dumps({"new": 0.4, "old": 0.4, "far": 0.4}).encode()))
    given = verdict(dull, problem, champion=None)
    assert given.outcome is Outcome.BLOCK and "prior predictor" in given.reason


@pytest.mark.parametrize("who", ["new", "old"])
def test_answers_that_are_not_numbers_never_pass(problem: Problem, who: str) -> None:
    frame = rows(problem)
    broken = [json.loads(c) | ({who: None} if i == 7 else {}) for i, c in enumerate(frame["content"])]
    given = verdict(frame.with_columns(content=pl.Series([json.dumps(b).encode() for b in broken])), problem)
    assert given.outcome is Outcome.INCONCLUSIVE
    assert "not a probability on 1 row" in given.reason
    assert found(given, "brier all").delta.value is None


def test_an_empty_slice_never_passes(problem: Problem) -> None:
    for name in ("race=Black", "sex=unknown", "age=45-60"):
        given = verdict(rows(problem), problem, only(clause("tpr", name)))
        assert given.outcome is Outcome.INCONCLUSIVE and "can't be estimated: no row" in given.reason
        assert given.clauses[0].rows_needed is None


def test_no_rows_at_all_never_pass(problem: Problem) -> None:
    evaluation, scores = weigh(rows(problem, 30).clear(), problem)
    assert (evaluation.n, evaluation.coverage) == (0, 0.0)
    given = judge(evaluation, scores, problem, RULES, dataset="data", key="key", now=NOW, seed=3)
    assert given.outcome is Outcome.INCONCLUSIVE
    assert msgspec.json.decode(msgspec.json.encode(evaluation), type=Evaluation) == evaluation


def test_too_few_rows_low_coverage_and_spent_looks_never_pass(problem: Problem) -> None:
    frame = rows(problem)
    assert "the policy asks for 5,000" in verdict(frame, problem, only(*RULES.clause, evidence=Evidence(min_rows=5000))).reason
    third = pl.int_range(pl.len()) % 3 == 0
    sparse = frame.with_columns(
        target=pl.when(third).then(None).otherwise("target"), origin=pl.when(third).then(None).otherwise("origin")
    )
    low = verdict(sparse, problem)
    assert low.outcome is Outcome.INCONCLUSIVE and "67%" in low.reason
    spent = verdict(frame, problem, look=2)
    assert spent.outcome is Outcome.INCONCLUSIVE and "look 2" in spent.reason


def test_paying_for_more_looks_widens_every_bound(problem: Problem) -> None:
    frame = rows(problem)
    once, often = (verdict(frame, problem, only(*RULES.clause, evidence=Evidence(min_rows=1, max_looks=k))) for k in (1, 10))
    for a, b in zip(once.clauses, often.clauses, strict=True):
        assert a.delta.high is not None and b.delta.high is not None and a.delta.low is not None and b.delta.low is not None
        assert b.delta.high > a.delta.high and b.delta.low < a.delta.low


# --- evidence -----------------------------------------------------------------------------------------------------------------


def test_only_matured_outcomes_and_reviews_judge(problem: Problem) -> None:
    frame = rows(problem, 600)
    kinds = ["outcome", "review", "correction", "rating", "self", None]
    mixed = frame.with_columns(origin=pl.Series([kinds[i % 6] for i in range(600)]))
    late = mixed.with_columns(matured_at=pl.when(pl.int_range(pl.len()) < 60).then(NOW + 1).otherwise("matured_at"))
    evaluation, scores = weigh(late, problem)
    assert evaluation.n == scores.n == 180  # a third of the 540 that matured
    assert evaluation.coverage == pytest.approx(180 / 600)
    assert evaluation.rows == rows_digest(late, problem, now=NOW) != rows_digest(mixed, problem, now=NOW)


def test_selection_rates_count_rows_without_a_label(problem: Problem) -> None:
    frame = rows(problem, 400).with_columns(target=pl.when(pl.int_range(pl.len()) < 100).then(None).otherwise("target"))
    cells = {(c.slice, c.metric): c for c in weigh(frame, problem)[0].cells}
    assert cells["all", "selection_rate"].n == 400 and cells["all", "accuracy"].n == 300
    assert cells["all", "tpr"].n + cells["all", "fpr"].n == 300


def test_rows_that_teach_or_lack_columns_are_refused(problem: Problem) -> None:
    frame = rows(problem, 50)
    with pytest.raises(DataError, match="rows that teach can't judge"):
        weigh(frame.with_columns(split=pl.lit("train")), problem)
    with pytest.raises(DataError, match="matured_at"):
        weigh(frame.drop("matured_at"), problem)
    with pytest.raises(DataError, match="same rows"):
        first, second = weigh(frame, problem), weigh(frame.head(40), problem)
        judge(first[0], second[1], problem, RULES, dataset="d", key="k", now=NOW, seed=1)
    with pytest.raises(DataError, match="own content"):
        forged = msgspec.structs.replace(weigh(frame, problem)[0], flips=0.0, n=10**6)
        judge(forged, weigh(frame, problem)[1], problem, RULES, dataset="d", key="k", now=NOW, seed=1)


def test_models_of_one_digest_are_asked_once(problem: Problem) -> None:
    one = Reader("old", problem)
    digests = {"candidate": "c", "champion": "p", "none": "p", "anchor": "p"}
    ask(
        rows(problem, 20),
        problem,
        RULES,
        candidate=Reader("new", problem),
        champion=one,
        none=one,
        anchor=one,
        digests=digests,
        look=1,
        now=NOW,
    )
    assert one.asked == 1


def test_cells_hold_every_slice_metric_and_model(problem: Problem) -> None:
    evaluation, _ = weigh(rows(problem), problem, anchor="far")
    cells = {(c.slice, c.metric): c for c in evaluation.cells}
    assert len(cells) == 5 * (1 + 2 + 5 + 4)  # all, two sexes, five races, four ages
    women = cells["sex=Female", "tpr"]
    assert women.champion == women.none and women.anchor is not None and women.base_rate is not None
    assert women.champion is not None and women.candidate is not None
    assert women.delta.value == pytest.approx(women.champion - women.candidate)
    assert cells["race=Black", "tpr"].champion is None and cells["race=Black", "tpr"].delta.value is None
    assert 0 < evaluation.flips < 0.2 and evaluation.forgetting.value is not None


def test_drift_is_the_share_of_all_holdout_rows_answered_otherwise_than_by_the_anchor(problem: Problem) -> None:
    """Labelled or not: half of the rows have no outcome here, and all of them count."""
    frame = rows(problem).with_columns(target=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.col("target")))
    inputs = [json.loads(content) for content in frame["content"]]
    moved = sum((one["new"] > 0.5) != (one["far"] > 0.5) for one in inputs)
    assert weigh(frame, problem, anchor="far")[0].drift == pytest.approx(moved / len(inputs))
    assert moved > 0
    assert weigh(frame, problem, anchor="new")[0].drift == 0.0
    assert weigh(frame, problem)[0].drift is None


def test_latency_size_and_shift_are_what_was_handed_in(problem: Problem) -> None:
    ticks = iter([5.0, 5.5])
    inputs = {name: 1.0 for name in problem.inputs}
    answers = ask(
        rows(problem, 100),
        problem,
        RULES,
        candidate=Reader("new", problem),
        champion=None,
        none=None,
        anchor=None,
        digests={"candidate": "c"},
        look=1,
        now=NOW,
        timer=lambda: next(ticks),
        size_mb=2.5,
        reference=[inputs] * 10,
    )
    evaluation, _ = assess(answers, problem, RULES)
    assert evaluation.latency_ms == pytest.approx(5000.0)  # half a second for 100 rows
    assert evaluation.size_mb == 2.5 and set(evaluation.shift) == set(problem.inputs)


# --- invariance ---------------------------------------------------------------------------------------------------------------


def test_the_verdict_does_not_depend_on_the_order_of_the_rows(problem: Problem) -> None:
    frame = rows(problem, harm=0.2)
    for columns in (frame, frame.drop("revision")):
        assert verdict(columns, problem) == verdict(columns.sample(fraction=1.0, shuffle=True, seed=1), problem)


def test_calling_the_other_model_champion_flips_every_sign(problem: Problem) -> None:
    frame = rows(problem, harm=0.3)
    there, back = verdict(frame, problem), verdict(frame, problem, candidate="old", champion="new")
    for one, other in zip(there.clauses, back.clauses, strict=True):
        if one.against == "champion":
            assert one.delta.value == pytest.approx(-(other.delta.value or 0.0), abs=1e-12)
    assert there.outcome is Outcome.BLOCK and back.outcome is not Outcome.BLOCK


def test_a_model_compared_with_itself_shows_no_drop(problem: Problem) -> None:
    given = verdict(rows(problem), problem, candidate="old")
    assert all(one.delta.value == 0.0 for one in given.clauses if one.against == "champion")
    assert given.outcome is Outcome.PASS


def test_an_older_revision_of_a_row_does_not_count(problem: Problem) -> None:
    frame = rows(problem)
    stale = frame.head(500).with_columns(revision=pl.lit(0), target=pl.lit(problem.labels[0])).cast({"revision": pl.Int64})
    doubled = pl.concat([stale, frame.cast({"revision": pl.Int64})])
    assert verdict(doubled, problem) == verdict(frame.cast({"revision": pl.Int64}), problem)


# --- anchor and relative limits -----------------------------------------------------------------------------------------------


def test_many_small_steps_are_stopped_by_the_anchor(problem: Problem) -> None:
    """The champion has lost as much as the candidate: no drop between them, but one against the anchor."""
    frame = rows(problem, harm=0.5)
    policy = only(clause("tpr", "sex=Female", limit=0.08, anchor_limit=0.1))
    against_itself = verdict(frame, problem, policy, candidate="new", champion="new", anchor="far")
    assert found(against_itself, "tpr sex=Female").outcome is Outcome.PASS
    assert found(against_itself, "tpr sex=Female", "anchor").outcome is Outcome.BLOCK
    assert against_itself.outcome is Outcome.BLOCK and "against the anchor" in against_itself.reason


def test_an_anchor_that_is_the_champion_asks_nothing_twice(problem: Problem) -> None:
    policy = only(clause("tpr", "sex=Female", limit=0.08, anchor_limit=0.1))
    assert [c.against for c in verdict(rows(problem), problem, policy, anchor="old").clauses] == ["champion"]
    assert [c.against for c in verdict(rows(problem), problem, policy).clauses] == ["champion"]


def test_relative_limits_are_shares_of_the_champions_value(problem: Problem) -> None:
    frame = rows(problem)
    given = verdict(frame, problem, only(clause("accuracy", limit=0.05, relative=True)))
    champion = next(c for c in weigh(frame, problem)[0].cells if (c.slice, c.metric) == ("all", "accuracy")).champion
    assert champion is not None and given.clauses[0].limit == pytest.approx(0.05 * champion)
    assert given.outcome is Outcome.PASS and f"5% of the champion's {champion * 100:.1f} %" in given.clauses[0].reason
    blocked = verdict(rows(problem, harm=0.6), problem, only(clause("tpr", "sex=Female", limit=0.1, relative=True)))
    assert blocked.outcome is Outcome.BLOCK


def test_a_relative_limit_on_a_small_value_counts_as_points_and_says_so(problem: Problem) -> None:
    frame = rows(problem)
    low = frame.with_columns(
        content=pl.Series(
            [json.dumps({k: v * 0.55 for k, v in json.loads(c).items()}).encode() for c in frame["content"]], dtype=pl.Binary
        )
    )
    given = verdict(low, problem, only(clause("fpr", limit=0.05, relative=True)))
    one = given.clauses[0]
    assert one.limit == 0.05 and "absolute" in one.reason and "5% of the champion's" in one.reason


# --- error rates --------------------------------------------------------------------------------------------------------------


def test_equal_candidates_are_seldom_blocked_and_harmful_ones_never_pass(problem: Problem) -> None:
    """2,500 rows: at most 2 of 50 equal candidates blocked; of 30 that lose 15 points of women's TPR none passes."""
    equal = [verdict(rows(problem, 2500, seed=s), problem).outcome for s in range(50)]
    assert equal.count(Outcome.BLOCK) <= 2
    harmed = [verdict(rows(problem, 2500, seed=s, harm=0.4), problem).outcome for s in range(30)]
    assert Outcome.PASS not in harmed and harmed.count(Outcome.BLOCK) >= 24


# --- the ledger ---------------------------------------------------------------------------------------------------------------


def test_the_ledger_counts_a_look_per_set_of_rows_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger" / "looks.jsonl"
    assert read_ledger(path) == () and look_at((), "c", "r1") == 1
    for rows_ in ("r1", "r1", "r2"):
        note_look(path, Look(problem="adult", candidate="c", rows=rows_, at=1.0))
    looks = read_ledger(path)
    assert [one.rows for one in looks] == ["r1", "r2"]
    assert [look_at(looks, "c", r) for r in ("r1", "r2", "r3")] == [1, 2, 3]
    assert look_at(looks, "other", "r3") == 1
    path.write_text("not json\n")
    with pytest.raises(DataError, match="one look a line"):
        read_ledger(path)
