"""The join: one prediction's events end in one state, in whatever order they came and wherever the process died."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truing.tasks.events.join import coverage, derive, increment, join, leaked, write
from truing.tasks.problem import Group, Input, Maturity, Problem, Source, Splits, split_of
from truing.tasks.seal import digest_bytes
from truing.tasks.tables.columns import LANDING, ROWS
from truing.tasks.tables.lake import Lake, Vault

SALT = b"split salt of the test, 32 bytes"
DAY = 86400.0
TOY = Problem(
    name="toy",
    kind="tabular",
    label="answer",
    labels=("no", "yes"),
    positive="yes",
    inputs={"age": Input(type="number"), "job": Input(type="category", optional=True)},
    groups={"sex": Group(values=("Female", "Male")), "age": Group(edges=(30.0, 60.0))},
    sources={"history": Source(types=("prediction", "outcome"), split="trusted"), "outcomes": Source(types=("outcome",))},
    splits=Splits(holdout=0.3, validation=0.2),
    maturity=Maturity(outcome="10s", credit="1d"),
)
_OFFSETS = itertools.count()


def event(kind: str, prediction: str, time: float, data: dict[str, Any], **columns: Any) -> dict[str, Any]:
    offset = next(_OFFSETS)
    base: dict[str, Any] = {
        "topic": "t",
        "partition": 0,
        "offset": offset,
        "epoch": 0,
        "event_id": f"e{offset}",
        "type": kind,
        "source": "gateway",
        "time": time,
        "landed_at": 1000.0 + offset,
        "problem": "toy",
        "prediction_id": prediction,
        "actor_kind": "person",
        "data": msgspec.json.encode(data),
        "disposition": "landed",
    }
    return base | columns


def asked(prediction: str, time: float = 100.0, *, label: str | None = "no", **columns: Any) -> dict[str, Any]:
    answer = None if label is None else {"label": label, "confidence": 0.8, "probabilities": {"no": 0.8, "yes": 0.2}}
    data = {"inputs": {"job": "baker", "age": 44}, "groups": {"sex": "Female"}, "answer": answer, "release": "r1"}
    return event("prediction", prediction, time, data, **{"subject": f"subject {prediction}"} | columns)


def said(kind: str, prediction: str, time: float, value: Any, actor: str = "ann", **columns: Any) -> dict[str, Any]:
    data = {"value": value} if kind == "rating" else {"label": value}
    return event(kind, prediction, time, data, actor=actor, **columns)


def frame(events: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(events, schema=LANDING)


def one(*events: dict[str, Any]) -> dict[str, Any]:
    rows = join(frame(list(events)), TOY, salt=SALT, revision=7)
    assert rows.schema == pl.Schema(ROWS)
    assert rows.height == 1
    return rows.row(0, named=True)


def taught(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["target"], row["origin"], row["actor"], row["labelled_at"]


# --- what one prediction becomes ----------------------------------------------------------------------------------------------


def test_a_prediction_without_feedback_is_an_unlabelled_row() -> None:
    row = one(asked("p"))
    assert row["content"] == b'{"age":44,"job":"baker"}'  # keys sorted
    assert row["content_hash"] == digest_bytes(row["content"])
    assert msgspec.json.decode(row["groups"]) == {"sex": "Female", "age": "30-60"}  # age comes from the inputs
    assert msgspec.json.decode(row["prediction"]) == {
        "label": "no",
        "confidence": 0.8,
        "probabilities": {"no": 0.8, "yes": 0.2},
    }
    assert (row["answer_label"], row["answer_confidence"], row["release"]) == ("no", 0.8, "r1")
    assert taught(row) == (None, None, None, None)
    assert (row["matured_at"], row["feedback"], row["audit"], row["revision"]) == (None, "{}", False, 7)


def test_an_outcome_teaches_before_review_correction_and_rating() -> None:
    words = [
        said("outcome", "p", 105.0, "yes", "court"),
        said("review", "p", 106.0, "no", "rita"),
        said("correction", "p", 107.0, "no", "carl"),
        said("rating", "p", 108.0, 1.0, "ann"),
    ]
    assert taught(one(asked("p"), *words)) == ("yes", "outcome", "court", 105.0)
    assert taught(one(asked("p"), *words[1:])) == ("no", "review", "rita", 106.0)
    assert taught(one(asked("p"), *words[2:])) == ("no", "correction", "carl", 107.0)
    assert taught(one(asked("p"), *words[3:])) == ("no", "rating", "ann", 108.0)


def test_only_outcomes_and_reviews_mature() -> None:
    """Maturity is 10 s after the question at 100, or the outcome's own time if that is later."""
    assert one(asked("p"), said("outcome", "p", 105.0, "yes"))["matured_at"] == 110.0
    assert one(asked("p"), said("outcome", "p", 130.0, "yes"))["matured_at"] == 130.0
    assert one(asked("p"), said("review", "p", 105.0, "yes"))["matured_at"] == 110.0
    assert one(asked("p"), said("correction", "p", 130.0, "yes"))["matured_at"] is None


def test_the_latest_correction_wins_by_its_own_time() -> None:
    late, early = said("correction", "p", 120.0, "yes", "bob"), said("correction", "p", 110.0, "no", "ann")
    assert taught(one(late, asked("p"), early)) == ("yes", "correction", "bob", 120.0)


def test_of_two_corrections_at_one_time_the_later_position_wins() -> None:
    first, second = said("correction", "p", 120.0, "yes", "bob"), said("correction", "p", 120.0, "no", "ann")
    assert taught(one(second, asked("p"), first))[:3] == ("no", "correction", "ann")


def test_a_good_rating_confirms_the_served_answer_and_a_bad_one_teaches_nothing() -> None:
    assert taught(one(asked("p"), said("rating", "p", 101.0, 0.5))) == ("no", "rating", "ann", 101.0)
    assert taught(one(asked("p"), said("rating", "p", 101.0, 0.49))) == (None, None, None, None)
    assert taught(one(asked("p", label=None), said("rating", "p", 101.0, 1.0))) == (None, None, None, None)


def test_each_actor_has_one_vote_the_latest() -> None:
    """ann 1.0 three times, then 0.2; bob 0.6: mean (0.2 + 0.6) / 2 = 0.4 and not (3.2 + 0.6) / 5 = 0.76."""
    votes = [said("rating", "p", 101.0 + n, value) for n, value in enumerate([1.0, 1.0, 1.0, 0.2])]
    row = one(asked("p"), *votes, said("rating", "p", 103.5, 0.6, "bob"))
    assert msgspec.json.decode(row["feedback"])["rating"] == pytest.approx(0.4)
    assert row["target"] is None


def test_everything_said_is_kept() -> None:
    row = one(
        asked("p"), said("rating", "p", 101.0, 0.9), said("correction", "p", 102.0, "no"), said("correction", "p", 103.0, "yes")
    )
    feedback = msgspec.json.decode(row["feedback"])
    assert (feedback["rating"], feedback["correction"]) == (0.9, "yes")
    assert feedback["history"] == [
        ["rating", 101.0, "ann", 0.9, "gateway"],
        ["correction", 102.0, "ann", "no", "gateway"],
        ["correction", 103.0, "ann", "yes", "gateway"],
    ]


def test_what_comes_after_the_credit_window_is_left_out() -> None:
    inside, outside = said("outcome", "p", 100.0 + DAY, "yes"), said("outcome", "p", 100.1 + DAY, "no")
    assert taught(one(asked("p"), inside, outside))[0] == "yes"
    assert taught(one(asked("p"), outside)) == (None, None, None, None)


def test_a_late_attribute_moves_a_row_into_its_bucket() -> None:
    late = event("attribute", "p", 150.0, {"groups": {"sex": "Male", "age": 70}})
    assert msgspec.json.decode(one(asked("p"), late)["groups"]) == {"sex": "Male", "age": ">=60"}


def test_only_the_draw_makes_a_row_an_audit_row() -> None:
    """A review aimed at a row says nothing about whether the random sampler had drawn it, and its weight depends on that."""
    assert one(asked("p"), said("review", "p", 105.0, "yes"))["audit"] is False


def test_the_same_event_twice_counts_once() -> None:
    word = said("rating", "p", 101.0, 0.9)
    again = word | {"offset": next(_OFFSETS)}
    assert len(msgspec.json.decode(one(asked("p"), word, again)["feedback"])["history"]) == 1


def test_a_second_prediction_with_the_same_id_changes_nothing() -> None:
    row = one(asked("p"), asked("p", 90.0, label="yes", subject="somebody else"))
    assert (row["subject"], row["answer_label"], row["asked_at"]) == ("subject p", "no", 100.0)


def test_feedback_before_its_prediction_yields_no_row() -> None:
    assert join(frame([said("outcome", "p", 105.0, "yes")]), TOY, salt=SALT, revision=1).height == 0


def test_dead_letters_duplicates_preferences_and_other_problems_are_left_out() -> None:
    events = [
        asked("p"),
        said("outcome", "p", 105.0, "yes", disposition="dead"),
        said("outcome", "p", 106.0, "yes", disposition="duplicate"),
        said("outcome", "p", 107.0, "yes", problem="other"),
        event("preference", "p", 108.0, {"prompt": "a", "chosen": "b", "rejected": "c"}, prediction_id=None),
    ]
    assert one(*events)["target"] is None


def test_trusted_is_who_loads_but_a_holdout_subject_is_never_anything_else() -> None:
    rows = join(frame([asked(f"p{n}") for n in range(300)]), TOY, salt=SALT, revision=1)
    expected = [str(split_of(subject, SALT, TOY.splits)) for subject in rows["subject"]]
    assert rows["split"].to_list() == expected
    assert set(expected) == {"train", "validation", "holdout"}
    vouched = join(frame([asked(f"p{n}", source="history") for n in range(300)]), TOY, salt=SALT, revision=1)
    assert vouched["split"].to_list() == ["holdout" if split == "holdout" else "trusted" for split in expected]


# --- derive -------------------------------------------------------------------------------------------------------------------


def stores(folder: Path) -> tuple[Vault, Lake]:
    return Vault(folder / "vault"), Lake(folder / "lake")


def known(vault: Vault, lake: Lake) -> pl.DataFrame:
    """The newest states of both sides, less the revision: that says when, not what."""
    both = [lake.rows("toy"), vault.holdout("toy", now=0.0, matured=False)]
    return pl.concat(both).sort("id").drop("revision")


def expected(events: list[dict[str, Any]]) -> pl.DataFrame:
    return join(frame(events), TOY, salt=SALT, revision=0).sort("id").drop("revision")


def test_holdout_rows_stand_in_the_vault_and_nowhere_else(tmp_path: Path) -> None:
    vault, lake = stores(tmp_path)
    vault.append("landing", frame([asked(f"p{n}") for n in range(100)]))
    done = derive(vault, lake, [TOY], salt=SALT, now=200.0)
    assert set(lake.read("rows")["split"]) == {"train", "validation"}
    assert set(vault.read("holdout")["split"]) == {"holdout"}
    assert lake.read("rows").height + vault.read("holdout").height == 100
    assert done.joined == {"toy": 100}


def test_derive_counts_what_improve_and_the_gate_wait_for(tmp_path: Path) -> None:
    vault, lake = stores(tmp_path)
    ids = [f"p{n}" for n in range(60)]
    splits = {id: str(split_of(f"subject {id}", SALT, TOY.splits)) for id in ids}
    trainable = [id for id in ids if splits[id] != "holdout"]
    vault.append("landing", frame([asked(id) for id in ids] + [said("outcome", "nobody", 101.0, "yes")]))
    first = derive(vault, lake, [TOY], salt=SALT, now=200.0)
    assert (first.events, first.joined, first.labelled, first.parked) == (61, {"toy": 60}, {}, {"toy": 1})
    vault.append("landing", frame([said("outcome", id, 105.0, "yes") for id in ids]))
    second = derive(vault, lake, {"toy": TOY}, salt=SALT, now=200.0)
    assert (second.joined, second.labelled, second.judged) == ({}, {"toy": len(trainable)}, {"toy": 60 - len(trainable)})
    vault.append("landing", frame([said("correction", id, 106.0, "no") for id in ids]))
    third = derive(vault, lake, [TOY], salt=SALT, now=200.0)
    assert (third.events, third.labelled, third.judged) == (60, {}, {})


def test_derive_again_changes_nothing(tmp_path: Path) -> None:
    vault, lake = stores(tmp_path)
    vault.append("landing", frame([asked(f"p{n}") for n in range(30)]))
    derive(vault, lake, [TOY], salt=SALT, now=200.0)
    versions = lake.version("rows"), vault.version("holdout")
    for store in (vault, Vault(vault.root)):
        assert derive(store, Lake(lake.root), [TOY], salt=SALT, now=201.0).events == 0
    assert (lake.version("rows"), vault.version("holdout")) == versions


def test_a_compacted_landing_is_not_derived_twice(tmp_path: Path) -> None:
    vault, lake = stores(tmp_path)
    events = [asked(f"p{n}") for n in range(40)]
    for start in range(0, 40, 10):
        vault.append("landing", frame(events[start : start + 10]))
        derive(vault, lake, [TOY], salt=SALT, now=200.0)
    late = [said("outcome", "p0", 105.0, "yes"), said("outcome", "p1", 105.0, "yes")]
    vault.append("landing", frame(late))
    vault.compact(above=2)
    assert derive(vault, lake, [TOY], salt=SALT, now=200.0).events == 2
    assert lake.read("rows").height + vault.read("holdout").height == 42
    assert known(vault, lake).equals(expected(events + late))


@pytest.mark.parametrize("written", ["rows", "holdout"])
@pytest.mark.parametrize("more", [False, True], ids=["nothing new", "more landed"])
def test_a_crash_between_the_two_commits_heals(tmp_path: Path, written: str, more: bool) -> None:
    vault, lake = stores(tmp_path)
    events = [asked(f"p{n}") for n in range(40)]
    vault.append("landing", frame(events))
    derive(vault, lake, [TOY], salt=SALT, now=200.0)
    news = [said("outcome", f"p{n}", 105.0, "yes") for n in range(20)]
    vault.append("landing", frame(news))
    found = increment(vault, lake, {"toy": TOY}, salt=SALT)
    assert found is not None
    write(*((lake, "rows") if written == "rows" else (vault, "holdout")), found)  # and here it dies
    if more:
        news.append(said("outcome", "p30", 106.0, "no"))
        vault.append("landing", frame(news[-1:]))
    vault, lake = stores(tmp_path)
    derive(vault, lake, [TOY], salt=SALT, now=200.0)
    assert known(vault, lake).equals(expected(events + news))
    assert lake.read("rows").height + vault.read("holdout").height == 40 + len(news)  # no state was written twice
    assert derive(vault, lake, [TOY], salt=SALT, now=200.0).events == 0


_KINDS = st.sampled_from(["rating", "correction", "outcome", "review", "attribute", "interaction"])


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[int], list[int]]:
    """Events of up to six predictions, some said twice or never asked; an order of arrival; where batches end."""
    events = [
        asked(f"p{n}", 100.0 + n, label=draw(st.sampled_from(["no", "yes", None]))) for n in range(draw(st.integers(1, 5)))
    ]
    for _ in range(draw(st.integers(0, 12))):
        prediction, time = f"p{draw(st.integers(0, 5))}", float(draw(st.integers(95, 115)))
        kind, actor = draw(_KINDS), draw(st.sampled_from(["ann", "bob"]))
        if kind == "attribute":
            events.append(event(kind, prediction, time, {"groups": {"sex": draw(st.sampled_from(["Female", "Male", "?"]))}}))
        elif kind == "interaction":
            events.append(event(kind, prediction, time, {"kind": "click"}))
        else:
            value = draw(st.floats(0, 1)) if kind == "rating" else draw(st.sampled_from(["no", "yes"]))
            events.append(said(kind, prediction, time, value, actor))
        if draw(st.booleans()):
            events.append(events[-1] | {"offset": next(_OFFSETS)})
    order = draw(st.permutations(range(len(events))))
    cuts = sorted(draw(st.sets(st.integers(1, len(events)), max_size=3)) | {len(events)})
    return events, list(order), cuts


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(histories())
def test_any_order_of_arrival_ends_in_the_same_rows(history: tuple[list[dict[str, Any]], list[int], list[int]]) -> None:
    events, order, cuts = history
    with tempfile.TemporaryDirectory() as folder:
        vault, lake = stores(Path(folder))
        start = 0
        for cut in cuts:
            vault.append("landing", frame([events[n] for n in order[start:cut]]))
            derive(vault, lake, [TOY], salt=SALT, now=200.0)
            start = cut
        assert known(vault, lake).equals(expected(events))


# --- what the gate asks -------------------------------------------------------------------------------------------------------


def test_coverage_counts_the_holdout_rows_old_enough(tmp_path: Path) -> None:
    vault, lake = stores(tmp_path)
    ids = [id for n in range(200) if split_of(f"subject {(id := f'p{n}')}", SALT, TOY.splits) == "holdout"][:10]
    events = [asked(id, 100.0) for id in ids[:8]] + [asked(id, 195.0) for id in ids[8:]]
    events += [said("outcome", id, 105.0, "yes") for id in ids[:6]] + [said("correction", ids[6], 105.0, "yes")]
    vault.append("landing", frame(events))
    derive(vault, lake, [TOY], salt=SALT, now=200.0)
    assert coverage(vault, TOY, now=200.0) == (6, 8)
    assert coverage(vault, TOY, now=300.0) == (6, 10)


def test_a_holdout_subject_in_a_trusted_load_judges_and_a_planted_copy_is_a_leak(tmp_path: Path) -> None:
    """The join keeps both sides apart, whoever loads; a row written past it is found."""
    vault, lake = stores(tmp_path)
    holdout = next(s for n in range(100) if split_of(s := f"subject {n}", SALT, TOY.splits) == "holdout")
    vault.append("landing", frame([asked("a", subject=holdout), asked("b"), asked("c", subject=holdout, source="history")]))
    derive(vault, lake, [TOY], salt=SALT, now=200.0)
    assert leaked(vault, lake, "toy") == []
    judged = vault.read("holdout").filter(pl.col("subject") == holdout)
    assert set(judged["id"]) == {"a", "c"}
    lake.append("rows", judged.head(1).with_columns(id=pl.lit("planted"), split=pl.lit("train")))
    assert leaked(vault, lake, "toy") == [holdout]
