"""Labels as a sample: plans that can be drawn again, what counts how much, leaks, the gateway's draws, a second look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from sealed import NOW, Rule, asked, lenient, sealed_rows

from truing.flows import audits
from truing.flows.loop import Offices
from truing.infra.gateway.sampler import Sampler
from truing.tasks import seal
from truing.tasks.errors import DataError
from truing.tasks.evaluation.audit import Plan, allocate, draw_plan, keep_plan, read_plans, weights
from truing.tasks.evaluation.comparison import assess
from truing.tasks.evaluation.evidence import gather, leaks, readings
from truing.tasks.evaluation.gate import judge
from truing.tasks.evaluation.reading import finished, questions, wanted_readings
from truing.tasks.policy import Audit, Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Outcome, Verdict

HASHES = ("reader-a", "reader-b")


def plan_over(n: int, *, seed: str = "s", budget: int = 200, every: int = 10, **more: Any) -> Plan:
    ids = [f"r{i:05d}" for i in range(n)]
    groups = ["women" if i % 3 == 0 else "men" for i in range(n)]
    differ = np.arange(n) % every == 0
    return draw_plan(ids, groups, problem="p", budget=budget, seed=seed, at=1.0, disagree=differ, **more)


# --- plans --------------------------------------------------------------------------------------------------------------------


def test_allocation_spends_the_budget_and_never_more_than_there_is() -> None:
    """400 among 900, 100 and 5: the five are all taken; 395 go as 30 to 10, so 296 and 99."""
    assert allocate(np.array([900, 100, 5]), 400).tolist() == [296, 99, 5]
    assert allocate(np.array([3, 4]), 100).tolist() == [3, 4]
    assert allocate(np.array([50, 0, 1]), 0).tolist() == [2, 0, 1]  # every stratum keeps a chance


def test_a_plan_is_drawn_again_from_its_key_and_by_nobody_else() -> None:
    one, same, other = plan_over(2000), plan_over(2000), plan_over(2000, seed="another")
    assert one == same
    assert set(one.drawn) != set(other.drawn)
    assert one.labels <= one.budget + len(one.strata)
    assert set(one.twice) < set(one.drawn)
    for stratum in one.strata:
        members = [id for id, code in one.pool.items() if one.strata[code] == stratum]
        assert (len(members), len(set(members) & set(one.drawn))) == (stratum.rows, stratum.drawn)


def test_every_row_is_drawn_as_often_as_its_plan_says() -> None:
    """Over 400 keys each row's share of draws is its inclusion probability, within five standard errors."""
    n, keys = 120, 400
    plans = [plan_over(n, seed=str(key), budget=30) for key in range(keys)]
    count = {id: 0 for id in plans[0].pool}
    for plan in plans:
        for id in plan.drawn:
            count[id] += 1
    for id, code in plans[0].pool.items():
        chance = plans[0].strata[code].drawn / plans[0].strata[code].rows
        assert abs(count[id] / keys - chance) <= 5 * (chance * (1 - chance) / keys) ** 0.5


def test_known_rows_cost_nothing_and_most_of_the_budget_goes_to_disagreement() -> None:
    known = np.arange(2000) < 500
    plan = plan_over(2000, labelled=known, double=0.0)
    assert not {f"r{i:05d}" for i in range(500)} & set(plan.drawn)
    spent = {kind: sum(one.drawn for one in plan.strata if one.kind == kind) for kind in ("disagree", "agree", "labelled")}
    assert spent == {"disagree": 130, "agree": 70, "labelled": 500}
    assert weights(plan, ["r00000", "elsewhere"]).tolist() == [1.0, 0.0]


def test_a_plan_that_was_altered_or_is_not_ours_is_refused(tmp_path: Path) -> None:
    key, stranger = seal.new_key(), seal.new_key()
    path = keep_plan(tmp_path, plan_over(300), key)
    assert read_plans(tmp_path, "p", [seal.public_key(key)]) == [plan_over(300)]
    with pytest.raises(DataError, match="no signature"):
        read_plans(tmp_path, "p", [seal.public_key(stranger)])
    path.rename(path.with_name("0" * 64 + ".json"))
    with pytest.raises(DataError, match="the plan that its name says"):
        read_plans(tmp_path, "p", [seal.public_key(key)])


@pytest.mark.parametrize(("change", "expected"), [({"budget": 0}, "at least 1 label"), ({"double": 2.0}, "0 to 1")])
def test_a_plan_without_sense_is_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        plan_over(50, **change)
    with pytest.raises(DataError, match="each id once"):
        draw_plan(["a", "a"], ["", ""], problem="p", budget=2, seed="s", at=0.0)


# --- what counts --------------------------------------------------------------------------------------------------------------


def line(id: str, **more: Any) -> dict[str, Any]:
    plain = {"id": id, "asked_at": 0.0, "matured_at": None, "target": None, "origin": None, "feedback": "{}",
             "propensity": 0.1, "audit": False}  # fmt: skip
    return plain | more


def said(problem: Problem, label: int, *readers: str, origin: str = "review") -> dict[str, Any]:
    history = [["review", 5.0, reader, problem.labels[label], "readers"] for reader in readers]
    return {
        "target": problem.labels[label], "origin": origin, "matured_at": 10.0, "feedback": json.dumps({"history": history}),
    }  # fmt: skip


def frame(*lines: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(lines), schema_overrides={"matured_at": pl.Float64, "target": pl.String, "origin": pl.String})


def test_each_label_counts_by_how_it_came(problem: Problem) -> None:
    rows = frame(
        line("by itself", **said(problem, 1, origin="outcome")),
        line("audited", audit=True, **said(problem, 1, "a")),
        line("drawn, not read", audit=True),
        line("not drawn"),
        line("before the sampler", propensity=1.0),
        line("aimed at, not drawn", **said(problem, 0, "a")),
        line("too young", asked_at=99.0),
    )
    found = gather(rows, problem, now=100.0, min_coverage=0.9)
    assert found
    at = {id: i for i, id in enumerate(found.ids)}
    facts = {id: (float(found.weights[i]), bool(found.drawn[i]), bool(found.judged[i])) for id, i in at.items()}
    assert facts == {
        "by itself": (1.0, True, True),
        "audited": (10.0, True, True),
        "drawn, not read": (10.0, True, False),  # counts as the worst it could be
        "not drawn": (10.0, False, False),
        "before the sampler": (1.0, True, False),
        "aimed at, not drawn": (10.0, False, False),  # its label came for a reason: without the plan it doesn't count
        "too young": (0.0, False, False),
    }
    assert (found.coverage.drawn, found.coverage.read, found.coverage.unreachable) == (2, 1, 1)
    assert found.why == "audit"
    assert gather(rows, problem, now=100.0, min_coverage=0.3) is None  # enough came by itself: every row counts once


def test_two_readers_of_one_row(problem: Problem) -> None:
    """One row read alike, one differently: two doubles, one differed, and a label of one half."""
    history = [["review", 5.0, "a", problem.labels[0], "s"], ["review", 6.0, "b", problem.labels[1], "s"]]
    apart = said(problem, 1) | {"feedback": json.dumps({"history": history})}
    found = gather(
        frame(line("alike", audit=True, **said(problem, 1, "a", "b")), line("apart", audit=True, **apart), line("rest")),
        problem, now=100.0, min_coverage=1.0,
    )  # fmt: skip
    assert found and found.doubles == (2, 1)
    assert found.given[found.ids.index("apart")] == 0.5
    assert readings(apart["feedback"]) == {"a": problem.labels[0], "b": problem.labels[1]}


def test_on_a_plan_only_what_it_drew_counts(problem: Problem) -> None:
    ids = [f"r{i:05d}" for i in range(60)]
    plan = plan_over(60, budget=20, labelled=np.arange(60) < 5, double=0.0)
    rows = frame(*(line(id, **said(problem, 1, "a", origin="outcome" if i < 5 else "review")) for i, id in enumerate(ids)))
    found = gather(rows, problem, now=100.0, min_coverage=0.1, plan=plan)
    assert found and found.why == "plan"
    assert {id for id, counts in zip(found.ids, found.judged, strict=True) if counts} == set(plan.drawn) | set(ids[:5])
    assert found.weights.sum() == pytest.approx(60 + sum(w - 1 for w in found.weights))
    assert float((found.weights * found.judged).sum()) == pytest.approx(60)  # the weights of what was read stand for the pool


# --- leaks --------------------------------------------------------------------------------------------------------------------


def test_a_leak_is_more_than_coincidence() -> None:
    rng = np.random.default_rng(1)

    def people(n: int) -> list[dict[str, Any]]:
        return [{"age": int(a), "work": f"w{w}"} for a, w in zip(rng.integers(18, 80, n), rng.integers(0, 200, n), strict=True)]

    teaching, validation, judging = people(1000), people(500), people(500)
    honest = leaks(judging, teaching, validation)
    assert 0.04 < honest.content < 0.15 and not honest.suspicious  # people are alike without being the same
    copied = leaks(judging[:250] + teaching[:250], teaching, validation)  # half of them loaded again under other names
    assert copied.suspicious and copied.content > 0.5
    blurred = [one | {"work": f" {one['work'].upper()}  "} for one in teaching[:250]]
    spelled = leaks(judging[:250] + blurred, teaching, validation)
    assert spelled.suspicious and spelled.near > 0.5 > spelled.content
    assert leaks(judging, teaching, validation, subjects=1).suspicious


# --- the gateway's draws ------------------------------------------------------------------------------------------------------


def test_the_sampler_keeps_its_share_and_draws_small_groups_more_often(problem: Problem, policy: Policy) -> None:
    rules = msgspec.structs.replace(policy, audit=Audit(share=0.05, groups=("race",)))
    sampler, rng = Sampler(b"k" * 32), np.random.default_rng(2)
    groups = [{"race": race} for race in rng.choice(["White", "Black", "Other"], 20_000, p=[0.9, 0.08, 0.02])]
    drawn = sampler.draw(problem, rules, [f"p{i}" for i in range(20_000)], groups)
    chances, hits = np.array([chance for chance, _ in drawn]), np.array([hit for _, hit in drawn])
    assert 0.02 < hits.mean() <= 0.06
    assert hits.sum() == pytest.approx(chances.sum(), rel=0.15)
    small = np.array([one["race"] == "Other" for one in groups])
    assert hits[small].mean() > 3 * hits[~small].mean()
    estimate = float((hits / chances)[small].sum())  # what the recorded chances are for
    assert estimate == pytest.approx(small.sum(), rel=0.25)


def test_the_sampler_can_not_be_asked_into_another_answer(problem: Problem, policy: Policy) -> None:
    rules = msgspec.structs.replace(policy, audit=Audit(share=0.5))
    one = Sampler(b"k" * 32).draw(problem, rules, [f"p{i}" for i in range(50)], [{}] * 50)
    assert one == Sampler(b"k" * 32).draw(problem, rules, [f"p{i}" for i in range(50)], [{}] * 50)
    assert one != Sampler(b"j" * 32).draw(problem, rules, [f"p{i}" for i in range(50)], [{}] * 50)
    assert Sampler(b"k" * 32).draw(problem, policy, ["p"], [{}]) == [(0.0, False)]


# --- a second look ------------------------------------------------------------------------------------------------------------


def read_by(problem: Problem, rows: pl.DataFrame, truth: dict[str, str], ids: set[str], twice: set[str]) -> pl.DataFrame:
    """The rows after these were read, as the join would write them."""

    def feedback(id: str) -> str:
        readers = HASHES if id in twice else HASHES[:1]
        return json.dumps({"history": [["review", 30.0, one, truth[id], "readers"] for one in readers]})

    got = pl.col("id").is_in(list(ids))
    return rows.with_columns(
        target=pl.when(got).then(pl.col("id").replace_strict(truth, default=None)).otherwise(pl.col("target")),
        origin=pl.when(got).then(pl.lit("review")).otherwise(pl.col("origin")),
        matured_at=pl.when(got).then(30.0).otherwise(pl.col("matured_at")),
        feedback=pl.Series([feedback(id) if id in ids else "{}" for id in rows["id"].to_list()]),
    )


def test_an_open_verdict_draws_a_plan_and_its_labels_decide(problem: Problem, policy: Policy, tmp_path: Path) -> None:
    """12,000 rows, 600 outcomes: too few. The plan asks for 3,000 labels; with them the same candidate passes."""
    whole = sealed_rows(problem, 12_000, noise=0.03).with_columns(
        propensity=pl.lit(0.0), audit=pl.lit(value=False), feedback=pl.lit("{}")
    )
    truth = dict(whole.select("id", "target").iter_rows())
    some = pl.Series(np.arange(12_000) % 20 == 0)
    rows = whole.with_columns(
        target=pl.when(some).then("target"), origin=pl.when(some).then("origin"), matured_at=pl.when(some).then("matured_at")
    )
    rules = lenient(policy, audit=Audit(budget=3000, double=0.05, groups=("sex",)))
    clauses = tuple(
        msgspec.structs.replace(one, limit=0.05, anchor_limit=None, deciding=one.slice == "sex=Female") for one in policy.clause
        if one.metric in ("accuracy", "tpr")
    )  # fmt: skip
    rules = msgspec.structs.replace(
        rules, clause=clauses, absolute=(), evidence=msgspec.structs.replace(rules.evidence, max_looks=2, min_coverage=0.0)
    )
    gate, release = seal.new_key(), seal.new_key()
    keys = seal.Keys(gate=(seal.public_key(gate),), release=(seal.public_key(release),))
    offices = Offices(gate=gate, release=release, public=keys)
    candidate = Rule(problem, "occupation")

    def look(frame: pl.DataFrame, number: int) -> tuple[Verdict, Any]:
        sample = audits.evidence_on(
            frame, problem, rules, desk=tmp_path, offices=offices, candidate="c" * 64, champion="a" * 64, now=NOW
        )
        answers = asked(frame, problem, rules, candidate, evidence=sample)
        evaluation, scores = assess(answers, problem, rules)
        evaluation = msgspec.structs.replace(evaluation, look=number, digest="")
        evaluation = msgspec.structs.replace(evaluation, digest=seal.digest(evaluation))
        return judge(evaluation, scores, problem, rules, dataset="d", key="k", now=NOW, seed=number), answers

    first, answers = look(rows, 1)
    assert first.outcome is Outcome.INCONCLUSIVE
    plan = audits.aim(answers, first, problem, rules, desk=tmp_path, offices=offices, now=NOW)
    assert plan and plan.labels == pytest.approx(3000, abs=10)
    assert audits.aim(answers, first, problem, rules, desk=tmp_path, offices=offices, now=NOW) is None  # one plan a pair
    assert not finished(plan, rows, now=NOW)
    again, _ = look(rows, 1)
    assert again.outcome is Outcome.INCONCLUSIVE  # a plan that is not read yet changes nothing

    wanted = wanted_readings(rows, problem, [plan], double=0.0)
    assert sum(wanted.values()) == plan.labels
    queue = questions(rows, problem, [plan], reader=HASHES[0], double=0.0)
    assert {one.id for one in queue} == set(plan.drawn)
    read = read_by(problem, rows, truth, set(plan.drawn), set(plan.twice))
    assert finished(plan, read, now=NOW)
    early = read.with_columns(
        pl.when(pl.col("id") == plan.drawn[0]).then(NOW + 1.0).otherwise(pl.col("matured_at")).alias("matured_at")
    )
    assert not finished(plan, early, now=NOW), "one word may not judge yet"
    assert questions(read, problem, [plan], reader="reader-c", double=0.0) == []
    second, answers = look(read, 2)
    assert second.outcome is Outcome.PASS, second.reason
    assert answers.facts.sampled and answers.facts.sampled.why == "plan"

    once = msgspec.structs.replace(plan, twice=())
    alone = gather(
        read_by(problem, rows, truth, set(plan.drawn), set()),
        problem,
        now=NOW,
        min_coverage=rules.evidence.min_coverage,
        plan=once,
    )
    evaluation, scores = assess(asked(read, problem, rules, candidate, evidence=alone), problem, rules)
    third = judge(evaluation, scores, problem, rules, dataset="d", key="k", now=NOW, seed=2)
    assert third.outcome is Outcome.INCONCLUSIVE and "so their error is unknown" in third.reason
    assert audits.aim(answers, first, problem, rules, desk=tmp_path, offices=offices, now=NOW) is None
