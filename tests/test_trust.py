"""Who is believed, for how long, and how much: late words join, forgeries are dead letters, crowds are capped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from test_ingest import ROW, Message, Site
from test_join import SALT, TOY, asked, frame, said, stores, taught

from truing.infra.settings import Settings
from truing.tasks.errors import ProblemError
from truing.tasks.events.join import derive, join
from truing.tasks.events.parking import counts, set_aside
from truing.tasks.events.schema import Reason, encode_event, token
from truing.tasks.policy import Policy, load_policy
from truing.tasks.problem import Parking, Problem
from truing.tasks.selection.dataset import freeze
from truing.tasks.selection.quality import tag
from truing.tasks.tables.columns import ROWS
from truing.tasks.tables.lake import Lake, Vault

DAY = 86400.0
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", params=["embedded", "kafka"])
def site(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    settings_in: Callable[..., Settings],
    problem: Problem,
) -> Iterator[Site]:
    made = settings_in if request.param == "embedded" else request.getfixturevalue("on_apache")
    one = Site(made(tmp_path_factory.mktemp("site")), problem)
    try:
        yield one
    finally:
        one.close()


@pytest.mark.services
def test_a_thousand_predictions_meet_their_words_before_seconds_29_days_and_400_days_after(site: Site) -> None:
    """Asked 401 days ago. A quarter of the words lands before its prediction; the others were said so long after it."""
    asked_at = time.time() - 401 * DAY
    after = {0: 1.0, 1: 5.0, 2: 29 * DAY, 3: 400 * DAY}
    first, words = [], []
    for n in range(1000):
        at, value = asked_at + after[n % 4], ">50K"
        word = (
            site.outcome(n, value, time=at),
            site.rating(n, 0.9, time=at, actor=f"person {n}"),
            site._event("correction", n, {"label": value}, source="app", token=site.token(n), actor="ada", time=at),
        )[n // 4 % 3]
        (first if n % 4 == 0 else words).append(word)
    site.send(*first)
    landed = site.drained()
    assert Lake(site.settings.lake).read("rows").height == 0  # all of them wait
    assert landed.height == 250 and set(landed["disposition"]) == {"landed"}
    site.send(*(site.prediction(n, time=asked_at) for n in range(1000)), *words)
    landed = site.drained()
    assert Counter(landed["disposition"]) == {"landed": 2000}
    rows = pl.concat(
        [Lake(site.settings.lake).rows("adult"), Vault(site.settings.vault).holdout("adult", now=0.0, matured=False)]
    )
    assert rows.height == 1000 and rows["target"].null_count() == 0
    late = dict(rows.select("id", pl.col("labelled_at") - pl.col("asked_at")).iter_rows())
    assert all(abs(late[f"p{n}"] - after[n % 4]) < 0.01 for n in range(1000))
    found = set_aside(Vault(site.settings.vault), {"adult": site_problem(site)}, now=time.time())
    assert found.is_empty()


def site_problem(site: Site) -> Problem:
    from truing.tasks.problem import load_problem

    return load_problem(site.settings.problems / "adult")


@pytest.mark.services
def test_whatever_is_forged_is_a_dead_letter_with_the_right_reason(site: Site) -> None:
    wire, key = site.wire, site.ring.source("adult", "outcomes")
    other = b"o" * 32  # of a source of another problem

    def given(kind: str, data: dict[str, Any], **more: Any) -> Message:
        base = {"problem": "adult", "prediction_id": "p1", "time": time.time(), "source": "app", "actor": "eve"}
        return encode_event(kind, data=data, **{**base, **more})

    def rated(**more: Any) -> Message:
        return given("rating", {"value": 0.0}, **{"token": site.token(1), **more})

    def altered(message: Message, old: bytes, new: bytes) -> Message:
        assert old in message[1]
        return message[0], message[1].replace(old, new, 1)

    asks = {"inputs": ROW, "groups": {"sex": "Female"}}
    cases: dict[str, tuple[Reason, Message]] = {
        "token by another key": (Reason.TOKEN, rated(token=token(b"x" * 32, "adult", "p1", time.time() + 60))),
        "token of another prediction": (Reason.TOKEN, rated(token=site.token(2))),
        "token of another problem": (Reason.TOKEN, rated(token=token(wire, "other", "p1", time.time() + 60))),
        "token that has expired": (Reason.EXPIRED, rated(token=site.token(1, seconds=-5))),
        "token made to last longer": (Reason.TOKEN, rated(token=f"{int(time.time()) + 10**6}.{site.token(1).split('.')[1]}")),
        "token in the mouth of a source": (Reason.SOURCE_TYPE, rated(actor_kind="source")),
        "token under a source's name": (Reason.PROOF, rated(source="outcomes")),
        "token for an outcome": (Reason.SOURCE_TYPE, given("outcome", {"label": ">50K"}, token=site.token(1))),
        "token for a review": (Reason.SOURCE_TYPE, given("review", {"label": ">50K"}, token=site.token(1))),
        "token for a protected attribute": (
            Reason.SOURCE_TYPE, given("attribute", {"groups": {"sex": "Male"}}, token=site.token(1)),
        ),
        "source that nobody registered": (
            Reason.SOURCE, given("outcome", {"label": ">50K"}, source="mallory", source_key=other),
        ),
        "source with another problem's key": (
            Reason.MAC, given("outcome", {"label": ">50K"}, source="outcomes", source_key=other),
        ),
        "source with another source's key": (
            Reason.MAC, given("outcome", {"label": ">50K"}, source="outcomes", source_key=site.ring.source("adult", "history")),
        ),
        "source with the wire key": (Reason.MAC, given("outcome", {"label": ">50K"}, source="outcomes", source_key=wire)),
        "source beyond its types": (Reason.SOURCE_TYPE, given("prediction", asks, source="outcomes", source_key=key)),
        "source that speaks as a person": (
            Reason.SOURCE_TYPE, given("rating", {"value": 1.0}, source="outcomes", source_key=key),
        ),
        "gateway that judges": (Reason.SOURCE_TYPE, given("outcome", {"label": ">50K"}, source="gateway", source_key=wire)),
        "groups changed on the way": (
            Reason.MAC, altered(given("prediction", asks, source="gateway", source_key=wire), b'"Female"', b'"Male"'),
        ),
        "groups that the problem does not know": (
            Reason.GROUP, given("prediction", {"inputs": ROW, "groups": {"caste": "x"}}, source="gateway", source_key=wire),
        ),
        "another subject": (
            Reason.MAC,
            altered(given("prediction", asks, source="gateway", source_key=wire, subject="person 1"), b"person 1", b"person 2"),
        ),
        "another problem": (Reason.PROBLEM, altered(rated(), b'"adult"', b'"other"')),
        "no proof": (Reason.PROOF, rated(token=None)),
    }  # fmt: skip
    before = site.drained().height
    site.send(*(message for _, message in cases.values()))
    landed = site.drained().tail(len(cases))
    assert site.drained().height == before + len(cases) and set(landed["disposition"]) == {"dead"}
    told = dict(landed.select("event_id", "reason").iter_rows())
    ids = {name: msgspec.json.decode(message[1])["id"] for name, (_, message) in cases.items()}
    assert {name: told[ids[name]] for name in cases} == {name: str(reason) for name, (reason, _) in cases.items()}


# --- crowds -------------------------------------------------------------------------------------------------------------------


def crowd(kind: str, value: Any, number: int = 1000) -> list[dict[str, Any]]:
    """Invented people who hold one token, right after the honest one."""
    return [said(kind, "p", 102.0 + n / 1000, value, f"invented {n}") for n in range(number)]


def state(problem: Problem, *events: dict[str, Any]) -> dict[str, Any]:
    return join(frame(list(events)), problem, salt=SALT, revision=1).row(0, named=True)


def voices(number: int) -> Problem:
    return msgspec.structs.replace(TOY, parking=Parking(voices=number))


@pytest.mark.parametrize("kind", ["rating", "correction"])
def test_where_one_voice_counts_a_thousand_invented_ones_do_not_move_the_target(kind: str) -> None:
    honest = said(kind, "p", 101.0, "yes" if kind == "correction" else 1.0, "honest")
    alone = state(voices(1), asked("p"), honest)
    row = state(voices(1), asked("p"), honest, *crowd(kind, "no" if kind == "correction" else 0.0))
    assert taught(row) == taught(alone) and taught(row)[2] == "honest"
    feedback = msgspec.json.decode(row["feedback"])
    assert feedback["unused"] == {"voices": 1000} and len(feedback["history"]) == 1


def test_a_thousand_invented_ratings_weigh_no_more_than_the_voices_that_count() -> None:
    """Honest 1.0, then a thousand times 0.0: with 8 voices the mean is 1/8, and the thousandth liar adds nothing."""
    honest = said("rating", "p", 101.0, 1.0, "honest")
    for number in (7, 8, 1000):
        feedback = msgspec.json.decode(state(TOY, asked("p"), honest, *crowd("rating", 0.0, number))["feedback"])
        assert feedback["rating"] == pytest.approx(1 / 8)
        assert feedback.get("unused", {}) == ({"voices": number - 7} if number > 7 else {})


def test_who_is_heard_may_correct_himself_and_who_came_too_late_stays_unheard_in_any_order(tmp_path: Path) -> None:
    honest, again = said("correction", "p", 101.0, "yes", "honest"), said("correction", "p", 200.0, "no", "honest")
    flood = crowd("correction", "yes", 50)
    problem = voices(1)
    whole = state(problem, asked("p"), honest, *flood, again | {"landed_at": 1e9})
    assert taught(whole) == ("no", "correction", "honest", 200.0)
    vault, lake = stores(tmp_path)  # and the same when it lands bit by bit
    for events in ([honest], [asked("p")], flood, [again | {"landed_at": 1e9}]):
        vault.append("landing", frame(events))
        derive(vault, lake, [problem], salt=SALT, now=1e9)
    rows = pl.concat([lake.rows("toy"), vault.holdout("toy", now=0.0, matured=False)])
    assert taught(rows.row(0, named=True)) == taught(whole)
    assert counts(set_aside(vault, {"toy": problem}, now=1e9)) == {"toy": {"voices": 50}}


def rows(*given: dict[str, Any]) -> pl.DataFrame:
    common = {
        "problem": "adult", "content": b"{}", "content_hash": "h", "groups": "{}", "answer_label": ">50K", "asked_at": 0.0,
        "answer_confidence": 0.9, "labelled_at": 1.0, "split": "train", "target": ">50K", "origin": "correction",
    }  # fmt: skip
    return pl.DataFrame(
        [{"id": str(i), "subject": f"s{i}", "actor": f"a{i}", **common, **row} for i, row in enumerate(given)],
        schema=dict(ROWS),
    )


def weight(tagged: pl.DataFrame, by: str, value: str | None) -> float:
    mine = pl.col(by).is_null() if value is None else pl.col(by) == value
    return float(tagged.filter(mine)["weight"].sum()) / float(tagged["weight"].sum())


@pytest.mark.parametrize("actor", ["eve", None])
def test_one_actor_with_many_tokens_has_no_more_than_the_share_of_the_policy(policy: Policy, actor: str | None) -> None:
    """5,000 words of one (or of "nobody") against 300 of 300 people and 200 outcomes."""
    flood = [{"actor": actor, "target": "<=50K"}] * 5000
    tagged = tag(rows(*flood, *[{}] * 300, *[{"origin": "outcome", "actor": None}] * 200), policy)
    assert policy.selection.actor_share == 0.1
    theirs = tagged.filter(pl.col("target") == "<=50K")
    assert float(theirs["weight"].sum()) / float(tagged["weight"].sum()) == pytest.approx(0.1, abs=1e-3)
    assert set(theirs["reason"]) == {"correction, capped"} and theirs["keep"].all()
    assert set(tagged.filter(pl.col("target") == ">50K")["weight"]) == {0.5, 1.0}  # nobody else weighs less for it


def test_many_invented_actors_about_one_person_have_no_more_than_the_share_of_the_policy(
    policy: Policy, problem: Problem
) -> None:
    tagged = tag(rows(*[{"subject": "victim", "target": "<=50K"}] * 1000, *[{}] * 600), policy)
    assert weight(tagged, "subject", "victim") == pytest.approx(policy.selection.subject_share, abs=1e-3)
    version, _ = freeze(tagged, problem=problem, policy=policy, tables={}, seed=1)
    assert version.by_reason == {"correction": 600, "correction, capped": 1000}


def test_a_crowd_that_outnumbers_everybody_is_capped_each_and_a_few_rows_are_free(policy: Policy) -> None:
    """Three actors and nobody else: no share of 10 % can hold, so all weigh alike; 20 rows of one are not a crowd."""
    three = tag(rows(*[{"actor": name} for name, n in (("a", 500), ("b", 100), ("c", 50)) for _ in range(n)]), policy)
    assert [round(weight(three, "actor", name), 3) for name in "abc"] == [0.333, 0.333, 0.333]
    few = tag(rows(*[{"actor": "a"}] * 20, {"actor": "b"}), policy)
    assert set(few["weight"]) == {0.5}


def test_outcomes_and_what_people_vouch_for_are_never_capped(policy: Policy) -> None:
    tagged = tag(
        rows(
            *[{"origin": "outcome", "actor": "court"}] * 500,
            *[{"split": "trusted", "actor": "x", "origin": "correction"}] * 500,
        ),
        policy,
    )
    assert set(tagged["weight"]) == {1.0}


def test_a_policy_may_let_peoples_words_teach_nothing_and_interactions_a_little(policy: Policy) -> None:
    def under(**more: float) -> list[tuple[bool, float, str]]:
        rules = msgspec.structs.replace(policy, selection=msgspec.structs.replace(policy.selection, **more))
        tagged = tag(rows({}, {"origin": "interaction"}, {"origin": "outcome"}), rules)
        return list(tagged.select("keep", "weight", "reason").iter_rows())

    assert under()[1] == (False, 0.0, "not a rating, correction or outcome")
    assert under(interaction_weight=0.05)[1] == (True, 0.05, "interaction")
    assert under(people_weight=0.0)[0] == (False, 0.0, "people's words do not teach here")
    assert under(people_weight=0.0)[2] == (True, 1.0, "outcome")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("actor_share = 0.0", r"selection\.actor_share: expected above 0 to 1, got 0\.0"),
        ("people_weight = 1.5", r"selection\.people_weight: expected 0 to 1, got 1\.5"),
    ],
)
def test_a_share_outside_of_0_to_1_is_one_line(tmp_path: Path, problem: Problem, line: str, says: str) -> None:
    text = (ROOT / "problems" / "adult" / "policy.toml").read_text().replace("[selection]\n", f"[selection]\n{line}\n")
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(ProblemError, match=says) as caught:
        load_policy(tmp_path, problem)
    assert "\n" not in str(caught.value)
