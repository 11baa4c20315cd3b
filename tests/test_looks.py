"""Looks: what asking about many candidates costs, and rows that no verdict was worked out on."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from test_gate import NOW, Reader, clause, only, rows

from truing.tasks.evaluation.answers import ask
from truing.tasks.evaluation.comparison import assess
from truing.tasks.evaluation.gate import holds_on, judge
from truing.tasks.evaluation.ledger import Look, candidates_since, level_share, note_look, read_ledger, shown_until
from truing.tasks.evaluation.unseen import confirm, part
from truing.tasks.policy import Evidence, Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Outcome, Unseen, Verdict

FREE = 3
POLICY: Policy = only(
    clause("accuracy", limit=0.04, anchor_limit=0.05),
    evidence=Evidence(min_rows=100, min_coverage=0.0, max_looks=1, free_candidates=FREE),
)
PAYLOADS = {"candidate": "payload-new", "champion": "payload-old", "anchor": "payload-far"}


def look(candidate: str, at: float, *, champion: str | None = "one", anchor: str | None = "zero", rows_: str = "r") -> Look:
    return Look(problem="adult", candidate=candidate, rows=rows_, at=at, champion=champion, anchor=anchor)


def asked(frame: pl.DataFrame, problem: Problem, policy: Policy = POLICY, **counts: object) -> Verdict:
    models = {role: Reader(name, problem) for role, name in (("candidate", "new"), ("champion", "old"), ("anchor", "far"))}
    answers = ask(frame, problem, policy, **models, none=None, digests=PAYLOADS, look=1, now=NOW, **counts)  # type: ignore[arg-type]
    evaluation, scores = assess(answers, problem, policy)
    return judge(evaluation, scores, problem, policy, dataset="d", key="k", now=NOW, seed=1)


# --- counting -----------------------------------------------------------------------------------------------------------------


def test_other_candidates_count_since_the_release_and_since_the_anchor() -> None:
    ledger = (
        look("a", 1.0),
        look("a", 2.0, rows_="s"),
        look("b", 3.0),
        look("c", 4.0, champion="two"),
        look("d", 5.0, champion=None),
    )
    assert [candidates_since(ledger, name, champion="one") for name in "abx"] == [1, 2, 3]
    assert candidates_since(ledger, "x", champion="two") == 2
    assert [candidates_since(ledger, name, anchor="zero") for name in "acx"] == [1, 3, 5]
    assert candidates_since(ledger, "x", champion=None) == 1  # without a champion nothing passes, so nothing is spent
    assert shown_until(ledger, champion="one", free=1) == 2.0  # all looks at a free candidate show rows
    assert shown_until(ledger, champion="one", free=5) == 3.0


def test_a_line_of_an_older_ledger_is_read_and_spends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "looks.jsonl"
    path.write_text('{"problem":"adult","candidate":"a","rows":"r","at":1.0}\n')
    assert candidates_since(read_ledger(path), "b", champion="one", anchor="zero") == 1
    note_look(path, look("a", 2.0))
    note_look(path, look("a", 3.0))
    assert [one.at for one in read_ledger(path)] == [1.0, 2.0]
    assert candidates_since(read_ledger(path), "b", champion="one") == 2


def test_any_number_of_candidates_spends_less_than_twice_what_the_free_ones_do() -> None:
    for free in (1, 5, 20):
        shares = [level_share(k, free) for k in range(1, 100_000)]
        assert shares[:free] == [1.0] * free and sum(shares) < 2 * free
        assert all(a >= b for a, b in pairwise(shares))


# --- the verdict --------------------------------------------------------------------------------------------------------------


def test_the_next_candidate_is_held_to_more_and_the_verdict_says_why(problem: Problem) -> None:
    frame = rows(problem)
    free, late = asked(frame, problem, looks=FREE), asked(frame, problem, looks=4 * FREE, unseen=Unseen(n=900, holds=True))
    assert free.outcome is late.outcome is Outcome.PASS and "candidate" not in free.reason
    assert (
        "candidate 12 since the champion was released: each clause against it has 6.25% of the pass level (3 are free)"
        in late.reason
    )
    for one, other in zip(free.clauses, late.clauses, strict=True):
        wider = other.delta.high - one.delta.high  # type: ignore[operator]
        assert wider > 0 if one.against == "champion" else wider == 0
    anchored = asked(frame, problem, looks_anchor=9)
    assert anchored.outcome is Outcome.PASS and "candidate 9 since the anchor was pinned" in anchored.reason


@pytest.mark.parametrize(("unseen", "said"), [(None, "none has come since"), (Unseen(n=900, holds=False), "the 900 that none")])
def test_past_the_free_ones_nothing_passes_on_rows_that_have_judged_before(
    problem: Problem, unseen: Unseen | None, said: str
) -> None:
    given = asked(rows(problem), problem, looks=FREE + 1, unseen=unseen)
    assert given.outcome is Outcome.INCONCLUSIVE and said in given.reason
    assert "these rows have judged 3 other candidates since the champion was released" in given.reason
    assert all(one.outcome is Outcome.PASS for one in given.clauses if one.against == "champion")


def test_harm_blocks_whoever_asks_however_often(problem: Problem) -> None:
    harmed = rows(problem, harm=0.9)
    women = msgspec.structs.replace(POLICY, clause=(clause("tpr", "sex=Female", limit=0.08),))
    assert asked(harmed, problem, women, looks=500, unseen=Unseen(n=10**6, holds=True)).outcome is Outcome.BLOCK


# --- the rows that nobody was shown -------------------------------------------------------------------------------------------


def later(frame: pl.DataFrame, at: float, name: str) -> pl.DataFrame:
    """The same kind of rows about other people, come later."""
    renamed = {key: pl.concat_str(pl.lit(name), pl.col(key)) for key in ("id", "subject")}
    return frame.with_columns(**renamed, asked_at=pl.lit(at - 1.0), matured_at=pl.lit(at))


def test_rows_part_by_when_their_label_came_and_a_person_stays_whole(problem: Problem) -> None:
    first, second = rows(problem, 40), later(rows(problem, 30, seed=1), 500.0, "late-")
    again = second.head(1).with_columns(id=pl.lit("again"), subject=pl.lit(first["subject"][0]))
    slow = first.head(1).with_columns(id=pl.lit("slow"), subject=pl.lit("slow"), matured_at=pl.lit(500.0))
    open_ = first.head(1).with_columns(id=pl.lit("open"), subject=pl.lit("open"), target=pl.lit(None), matured_at=pl.lit(None))
    whole = pl.concat([first, second, again, slow, open_], how="vertical_relaxed")
    shown, unseen, _ = part(whole, problem, until=100.0, now=NOW)
    assert set(shown["id"]) == {*first["id"], "open"}
    assert set(unseen["id"]) == {*second["id"], "slow"}  # the second row of a person judged on before is in neither
    assert part(whole, problem, until=10**9, now=NOW)[1].is_empty()


def test_what_the_shown_rows_say_does_not_depend_on_the_unseen_ones(problem: Problem) -> None:
    """Two worlds that differ only in what came later: same evaluation but for that bit, so verdicts tell nothing of it."""
    first = rows(problem, 1500)
    shown = [
        part(pl.concat([first, later(rows(problem, 900, seed=s, harm=h), 500.0, "late-")]), problem, until=100.0, now=NOW)[0]
        for s, h in ((1, 0.0), (2, 0.9))
    ]
    assert shown[0].equals(shown[1])


def test_a_candidate_cut_to_the_shown_rows_is_not_confirmed_and_an_honest_one_is(problem: Problem) -> None:
    """It answers every row that judged before as the champion does, and talks down three in ten of the others."""
    first, second = rows(problem, 3000), later(rows(problem, 3000, seed=1), 500.0, "late-")

    def talked_down(frame: pl.DataFrame, share: float) -> pl.DataFrame:
        rng = np.random.default_rng(0)
        inputs = [json.loads(content) for content in frame["content"]]
        cut = [one | {"new": 1.0 - one["old"] if rng.random() < share else one["old"]} for one in inputs]
        return frame.with_columns(content=pl.Series([json.dumps(one).encode() for one in cut], dtype=pl.Binary))

    def outcome(frame: pl.DataFrame) -> tuple[Outcome, Unseen]:
        shown, unseen, coverage = part(frame, problem, until=100.0, now=NOW)
        models = {role: Reader(name, problem) for role, name in (("candidate", "new"), ("champion", "old"), ("anchor", "far"))}
        said = confirm(unseen, problem, POLICY, **models, digests=PAYLOADS, looks=9, looks_anchor=9, now=NOW)
        return asked(shown, problem, looks=9, looks_anchor=9, unseen=said, coverage=coverage).outcome, said

    cut = pl.concat([talked_down(first, 0.0), talked_down(second, 0.3)])
    assert asked(talked_down(first, 0.0), problem).outcome is Outcome.PASS  # alone, on what it was cut to
    assert outcome(cut) == (Outcome.INCONCLUSIVE, Unseen(n=3000, holds=False))
    honest = pl.concat([talked_down(first, 0.0), talked_down(second, 0.0)])
    assert outcome(honest) == (Outcome.PASS, Unseen(n=3000, holds=True))


def test_no_rows_confirm_nothing(problem: Problem) -> None:
    models = {role: Reader(name, problem) for role, name in (("candidate", "new"), ("champion", "old"), ("anchor", "far"))}
    none = confirm(rows(problem, 10).clear(), problem, POLICY, **models, digests=PAYLOADS, looks=9, looks_anchor=9, now=NOW)
    assert none == Unseen(n=0, holds=False)
    answers = ask(rows(problem, 10).clear(), problem, POLICY, **models, none=None, digests=PAYLOADS, look=1, now=NOW)
    evaluation, scores = assess(answers, problem, POLICY)
    assert not holds_on(evaluation, scores, problem, POLICY)
