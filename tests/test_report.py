"""What a person is shown about a verdict: description, tags and page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest

from truing.tasks.evaluation.gaps import FEWEST, gaps
from truing.tasks.evaluation.report import describe, indicators, slug, verdict_html
from truing.tasks.evaluation.wording import amount, level, moved, rows
from truing.tasks.problem import Problem
from truing.tasks.records import Candidate, Cell, Clause, Estimate, Evaluation, Found, Outcome, Sampled, Verdict
from truing.tasks.statistics.cells import METRICS

NOTHING = Estimate(value=None)


def cell(slice_: str, metric: str, n: int, champion: float | None, candidate: float, drop: float | None = None) -> Cell:
    """One cell; the drop has a half-width of two points."""
    delta = NOTHING if drop is None else Estimate(value=drop, low=drop - 0.02, high=drop + 0.02, n=n)
    return Cell(
        slice=slice_,
        metric=metric,
        n=n,
        base_rate=0.3,
        champion=champion,
        candidate=candidate,
        none=None,
        anchor=None,
        delta=delta,
        delta_none=NOTHING,
        delta_anchor=NOTHING,
    )


def clause(name: str, outcome: Outcome, value: float | None, limit: float = 0.06, **more: object) -> Clause:
    delta = NOTHING if value is None else Estimate(value=value, low=value - 0.049, high=value + 0.04, n=560, level=0.98)
    fields = {"slice": "sex=Female", "metric": "tpr", "deciding": True, "against": "champion", "reason": f"{name}: because"}
    return Clause(name=name, outcome=outcome, delta=delta, limit=limit, **(fields | more))  # type: ignore[arg-type]


@pytest.fixture
def evaluation() -> Evaluation:
    """Women's TPR went from 60 to 50 of a hundred, men's stayed at 70; eleven people are of race Other."""
    cells = [cell("all", metric, 1000, 0.65, 0.62, 0.03) for metric in METRICS]
    for metric in METRICS:
        women = 0.10 if metric == "tpr" else 0.0
        cells.append(cell("sex=Female", metric, 400, 0.6, 0.6 - women, women))
        cells.append(cell("sex=Male", metric, 600, 0.7, 0.7, 0.0))
        cells += [cell("race=White", metric, 900, 0.6, 0.6, 0.0), cell("race=Other", metric, 11, 0.1, 0.1, 0.0)]
    return Evaluation(
        digest="e" * 64,
        problem="adult",
        candidate="c" * 64,
        champion="a" * 64,
        none=None,
        anchor=None,
        rows="r" * 64,
        n=1000,
        coverage=0.97,
        cells=tuple(cells),
        forgetting=Estimate(value=0.021, n=700),
        flips=0.034,
        shift={},
        latency_ms=3.2,
        size_mb=0.4,
    )


@pytest.fixture
def verdict() -> Verdict:
    return Verdict(
        problem="adult",
        outcome=Outcome.BLOCK,
        clauses=(
            clause("women's TPR", Outcome.BLOCK, 0.091),
            clause("women's TPR", Outcome.INCONCLUSIVE, 0.07, 0.08, against="anchor"),
            clause("old <30 | TPR", Outcome.PASS, -0.01, slice="age=<30", deciding=False),
            clause("empty", Outcome.INCONCLUSIVE, None, deciding=False),
            clause("beats the prior", Outcome.PASS, -0.07, -0.03, metric="brier", slice="all", against="absolute"),
        ),
        candidate="c" * 64,
        evaluation="e" * 64,
        policy="p" * 64,
        dataset="d" * 64,
        champion="a" * 64,
        look=1,
        at=1.79e9,
        key="k",
        reason="women's TPR fell by 9.1 points (limit 6.0, joint lower bound 4.2)",
    )


@pytest.fixture
def candidate() -> Candidate:
    return Candidate(
        problem="adult",
        payload="c" * 64,
        parent="a" * 64,
        base="b" * 64,
        code="0.1.0",
        kind="tabular",
        dataset="d" * 64,
        trial=None,
        seed=1,
        origin="fast",
        registered=1.0,
        rows=5211,
        version="7",
    )


def test_amounts_are_points_for_rates_and_raw_for_brier_scores() -> None:
    assert amount(0.0912, "tpr") == "9.1" and amount(0.0912, "brier") == "0.0912"
    assert amount(-0.0004, "accuracy", signed=True) == "0.0" and amount(0.004, "accuracy", signed=True) == "+0.4"
    assert moved(0.091, "tpr") == "fell by 9.1 points" and moved(0.0041, "brier") == "rose by 0.0041"
    assert moved(-0.02, "fpr") == "fell by 2.0 points" and moved(0.0, "tpr") == "stayed the same"
    assert level(0.612, "tpr") == "61.2 %" and level(None, "tpr") == "–"
    assert [rows(n) for n in (7, 96, 14_652, 20_001)] == ["7", "96", "15,000", "21,000"]


def test_gaps_are_between_the_candidates_extremes_with_the_change_between_the_same_two(evaluation: Evaluation) -> None:
    """Men .70 over women .50 by the candidate, .60 by the champion: the gap went from 10 to 20 points."""
    found = {(one.group, one.metric): one for one in gaps(evaluation)}
    sex = found["sex", "tpr"]
    assert (sex.highest, sex.lowest) == ("Male", "Female")
    assert (sex.candidate.value, sex.champion.value) == (pytest.approx(0.2), pytest.approx(0.1))
    assert sex.change.value == pytest.approx(0.1)
    assert sex.change.low == pytest.approx(0.1 - 0.02 * 2**0.5) and sex.change.high == pytest.approx(0.1 + 0.02 * 2**0.5)
    assert ("race", "tpr") not in found and FEWEST > 11  # one bucket is too small to compare


def test_the_description_lets_a_person_decide(
    verdict: Verdict, evaluation: Evaluation, candidate: Candidate, problem: Problem
) -> None:
    text = describe(verdict, evaluation, candidate, problem)
    assert text.startswith("**Block.** women's TPR fell by 9.1 points (limit 6.0, joint lower bound 4.2).")
    assert "can't be released" in text.splitlines()[2]
    line = next(x for x in text.splitlines() if x.startswith("| women's TPR"))
    assert line == "| women's TPR | sex Female | champion | +9.1 | 4.2 to 13.1 | 6.0 | 560 | **block** |"
    assert "| sex: TPR | Male over Female | 10.0 (" in text and "5,211 samples" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {9, 6}  # a bar in a name opens no column
    assert "<" not in text


def test_the_page_is_whole_and_asks_nothing_of_the_network(
    verdict: Verdict, evaluation: Evaluation, candidate: Candidate, problem: Problem
) -> None:
    page = verdict_html(verdict, evaluation, candidate, problem)
    assert not re.search(r"https?:|//|<script|@import|url\(", page.replace("<!doctype", ""))
    open_tags: list[str] = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta",):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

    Balanced().feed(page)
    assert open_tags == []
    assert page.count("<svg") == 3 and "not estimable" in page
    assert "old &lt;30 | TPR" in page and "old <30" not in page
    assert page.count("<circle") == 4 + 2 * 3  # each estimable clause; champion and candidate for three gaps by sex


def test_a_hostile_name_stays_text(verdict: Verdict, evaluation: Evaluation, candidate: Candidate, problem: Problem) -> None:
    evil = "<img src=x onerror=alert(1)>"
    worse = msgspec.structs.replace(verdict, reason=evil, clauses=(clause(evil, Outcome.BLOCK, 0.09, reason=evil),))
    odd = msgspec.structs.replace(candidate, origin=evil, version=evil, parent=evil, payload="`" + evil)
    page = verdict_html(worse, evaluation, odd, problem)
    assert "<img" not in page and "<img" not in describe(worse, evaluation, odd, problem)


def test_indicators_are_short_lines_under_plain_names(verdict: Verdict, evaluation: Evaluation) -> None:
    tags = indicators(evaluation, verdict)
    assert all(re.fullmatch(r"[a-z0-9._-]+", key) and len(value) < 250 for key, value in tags.items())
    assert tags["clause.womens-tpr"] == "block: drop +9.1 (4.2 to 13.1), limit 6.0 points"
    assert tags["clause.womens-tpr.anchor"].startswith("inconclusive: drop +7.0")
    assert tags["clause.empty"] == "inconclusive: drop not estimable, limit 6.0 points (watched)"
    assert tags["sex.tpr"].startswith("Male over Female: candidate 20.0 (")
    assert "change +10.0 (7.2 to 12.8) points" in tags["sex.tpr"]
    assert slug("women's TPR (≥60)") == "womens-tpr-60" and slug("—") == "unnamed"


def test_what_goes_beyond_the_clauses_is_told_where_it_was_measured(
    verdict: Verdict, evaluation: Evaluation, candidate: Candidate, problem: Problem
) -> None:
    """Found slices, disparities, rankings, swaps, importance, how the labels came about; nothing where there is nothing."""
    bare = verdict_html(verdict, evaluation, candidate, problem)
    titles = ("Where it loses most", "All groups", "Ranking", "Had the person been another", "What it goes by")
    assert not any(title in bare for title in titles)
    slices = [
        Found(
            slice=f"{words} and age ≥ 55", conditions=(words, "age ≥ 55"), metric="accuracy", n=231, share=0.031, seen=0.2,
            drop=Estimate(value=0.123, low=low, high=0.2, n=231, level=0.98), confirmed=low > 0,
        )
        for words, low in (("workclass <Gov>", 0.041), ("workclass Private", -0.02))
    ]  # fmt: skip
    told = msgspec.structs.replace(
        evaluation,
        worst=tuple(slices),
        indicators={
            "auroc:all:champion": Estimate(value=0.9, low=0.88, high=0.92), "auroc:all:candidate": Estimate(value=0.88),
            "auroc:all:drop": Estimate(value=0.02, low=0.01, high=0.03), "ece:all:candidate": Estimate(value=0.03),
            "equalized_odds_difference:sex:champion": Estimate(value=0.1, low=0.05, high=0.15),
            "equalized_odds_difference:sex:candidate": Estimate(value=0.2, low=0.15, high=0.25),
            "equalized_odds_difference:sex:change": Estimate(value=0.1, low=0.04, high=0.16),
            "demographic_parity_ratio:sex:candidate": Estimate(value=0.82, low=0.71, high=0.93),
        },
        counterfactual={"flip:sex": Estimate(value=0.012, low=0.009, high=0.017)},
        importance={"age": 0.7, "hours": 0.3}, importance_shift=0.12, shift={"age": 0.31, "hours": 0.01}, looks=37,
        sampled=Sampled(why="plan", plan="c" * 64, pool=70_000, labelled=9_950, drawn=7_000, read=6_950, unreachable=0,
                        twice=500, differed=20),
    )  # fmt: skip
    page, text = verdict_html(verdict, told, candidate, problem), describe(verdict, told, candidate, problem)
    assert all(title in page for title in titles)
    for said in ("workclass &lt;Gov&gt; and age ≥ 55", "+12.3", "4.1 to 20.0", "+10.0 (4.0 to 16.0)", "0.82 (0.71 to 0.93)",
                 "1.2 (0.9 to 1.7)", "12% of it has moved", "age (PSI 0.31)", "differed on 4.0%", "number 37 since",
                 ):  # fmt: skip
        assert said in page, said
    assert "holds" in page and "hours (PSI" not in page and "<Gov>" not in page
    assert "workclass &lt;Gov> and age ≥ 55: accuracy fell by 12.3 points on 231 rows held back" in text
    assert "workclass Private" not in text, "what was not confirmed is on the page only"
    tags = indicators(told, verdict)
    assert tags["equalized_odds_difference.sex-change"] == "10.0 (4.0 to 16.0)" and tags["counterfactual.flip-sex"]
    assert all(re.fullmatch(r"[a-z0-9._-]+", key) and len(value) < 250 for key, value in tags.items())
