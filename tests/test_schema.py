"""The door: what is believed, and with which reason the rest becomes a dead letter."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.tasks.errors import DataError
from truing.tasks.events.schema import (
    GATEWAY,
    KINDS,
    MAX_BYTES,
    Proofs,
    Reason,
    check_token,
    claimed_id,
    encode_event,
    identity,
    judge,
    pseudonym,
    read_message,
    token,
)
from truing.tasks.problem import Problem, seconds
from truing.tasks.records import DeadLetter, Event, Position

NOW = 1_790_000_000.0
WIRE, SALT = b"w" * 32, b"s" * 32
AT = Position(topic="user-events", partition=0, offset=7)
INPUTS = {"age": 39, "education": "Bachelors", "capital_gain": 2174.5, "occupation": None}
DATA: dict[str, dict[str, Any]] = {
    "prediction": {
        "inputs": INPUTS,
        "groups": {"sex": "Female", "race": "White"},
        "answer": {"label": ">50K", "confidence": 0.9, "probabilities": {">50K": 0.9, "<=50K": 0.1}},
        "release": "3",
    },
    "rating": {"value": 0.9},
    "correction": {"label": "<=50K"},
    "outcome": {"label": ">50K"},
    "review": {"label": ">50K"},
    "attribute": {"groups": {"sex": "Male"}},
    "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "interaction": {"kind": "click", "value": 2.5},
}


def key_of(source: str) -> bytes:
    return WIRE if source == GATEWAY else f"key of {source}".encode()


@pytest.fixture(scope="module")
def proofs(problem: Problem) -> Proofs:
    """Adult's sources, and one more that may send whatever sources may."""
    from truing.tasks.problem import Source

    every = Source(types=("prediction", "outcome", "review", "attribute", "preference"))
    wide = msgspec.structs.replace(problem, sources={**problem.sources, "all": every})
    other = msgspec.structs.replace(problem, name="other")
    keys = {one.name: {name: key_of(name) for name in one.sources} for one in (wide, other)}
    return Proofs.of([wide, other], wire=WIRE, salt=SALT, keys=keys)


def said(kind: str, **more: Any) -> bytes:
    """A good message of that kind; `more` overrides what encode_event is given."""
    given: dict[str, Any] = {"problem": "adult", "data": DATA[kind], "time": NOW - 5, "prediction_id": "p1"}
    if kind in ("rating", "correction", "interaction"):
        given |= {"source": "app", "token": token(WIRE, "adult", "p1", NOW + 60), "actor": "ada@example.org"}
    else:
        given |= {"source": "all", "source_key": key_of("all")}
    return encode_event(kind, **{**given, **more})[1]


def reason(value: bytes | None, proofs: Proofs, now: float = NOW) -> str:
    """ "" if believed."""
    found = read_message(value, AT, proofs=proofs, now=now)
    return found.reason if isinstance(found, DeadLetter) else ""


def altered(value: bytes, **changes: Any) -> bytes:
    """The message with attributes replaced (None removes one), proof untouched."""
    message = json.loads(value) | changes
    kept = {name: value for name, value in message.items() if value is not None}
    return json.dumps(kept, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_proven_message_reads_back_as_it_was_sent(kind: str, proofs: Proofs) -> None:
    event = read_message(said(kind, id="e1"), AT, proofs=proofs, now=NOW)
    assert isinstance(event, Event), event
    assert (event.id, event.type, event.problem, event.prediction_id) == ("e1", f"truing.{kind}.v1", "adult", "p1")
    assert event.time == NOW - 5
    assert {name: event.data[name] for name in DATA[kind]} == (
        DATA[kind] if kind != "interaction" else {"kind": "click", "value": 2.5}
    )


def test_the_key_is_the_prediction_and_the_value_is_cloudevents() -> None:
    key, value = encode_event("outcome", problem="adult", source="x", data={"label": ">50K"}, time=0.5, prediction_id="p9")
    message = json.loads(value)
    assert key == b"p9"
    assert message["specversion"] == "1.0" and message["time"] == "1970-01-01T00:00:00.500000Z"
    assert "actor" not in message and "proof" not in message


def test_the_same_thing_said_twice_has_the_same_id_and_another_thing_another() -> None:
    assert claimed_id(said("rating")) == claimed_id(said("rating"))
    assert claimed_id(said("rating")) != claimed_id(said("rating", data={"value": 0.8}))
    assert claimed_id(said("rating")) != claimed_id(said("rating", actor="bob"))


# --- proofs -------------------------------------------------------------------------------------------------------------------


def test_a_token_holds_for_its_prediction_until_it_expires() -> None:
    given = token(WIRE, "adult", "p1", NOW)
    assert check_token(WIRE, given, "adult", "p1", NOW - 1) is None
    assert check_token(WIRE, given, "adult", "p1", NOW) is Reason.EXPIRED
    assert check_token(WIRE, given, "adult", "p2", NOW - 1) is Reason.TOKEN
    assert check_token(WIRE, given, "other", "p1", NOW - 1) is Reason.TOKEN
    assert check_token(b"x" * 32, given, "adult", "p1", NOW - 1) is Reason.TOKEN
    assert check_token(WIRE, f"{int(NOW) + 999}.{given.partition('.')[2]}", "adult", "p1", NOW - 1) is Reason.TOKEN


@pytest.mark.parametrize("given", ["", ".", "x", "9999999999.", f"{'9' * 20}.{'0' * 64}", "²." + "a" * 64, "-5.é"])
def test_nonsense_is_no_token(given: str) -> None:
    assert check_token(WIRE, given, "adult", "p1", NOW) is Reason.TOKEN


def test_an_expired_or_foreign_token_is_a_dead_letter(proofs: Proofs) -> None:
    assert reason(said("rating", token=token(WIRE, "adult", "p1", NOW - 1)), proofs) == Reason.EXPIRED
    assert reason(said("rating", token=token(WIRE, "adult", "p2", NOW + 9)), proofs) == Reason.TOKEN
    assert reason(said("rating", token=None), proofs) == Reason.PROOF


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "e2"},
        {"type": "truing.review.v1"},
        {"time": "2026-09-21T14:13:20.000001Z"},
        {"problem": "other"},
        {"predictionid": "p2"},
        {"subject": "eve"},
        {"subject": None},
        {"actor": "eve"},
        {"actorkind": "source"},
        {"data": {"label": "<=50K"}},
        {"proof": "mac:" + "0" * 64},
        {"proof": "mac:é"},
    ],
)
def test_a_source_signs_everything_that_is_used(changes: dict[str, Any], proofs: Proofs) -> None:
    value = said("outcome", id="e1", source="outcomes", source_key=key_of("outcomes"), subject="bob", actor="clerk")
    assert reason(altered(value), proofs) == ""
    assert reason(altered(value, **changes), proofs) == Reason.MAC


def test_a_source_speaks_only_for_itself_and_only_of_its_types(proofs: Proofs) -> None:
    assert reason(said("outcome", source="outcomes"), proofs) == Reason.MAC  # signed with another source's key
    assert reason(said("outcome", source="nobody"), proofs) == Reason.SOURCE
    assert reason(said("review", source="outcomes", source_key=key_of("outcomes")), proofs) == Reason.SOURCE_TYPE
    assert reason(said("outcome", source=GATEWAY, source_key=WIRE), proofs) == Reason.SOURCE_TYPE
    assert reason(said("prediction", source=GATEWAY, source_key=WIRE), proofs) == ""


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"rating", "correction", "interaction"}))
def test_a_persons_token_can_never_judge_or_ask(kind: str, proofs: Proofs) -> None:
    good = token(WIRE, "adult", "p1", NOW + 60)
    assert reason(said(kind, source="app", source_key=None, token=good), proofs) == Reason.SOURCE_TYPE


def test_a_token_can_not_borrow_a_sources_name_or_standing(proofs: Proofs) -> None:
    assert reason(said("rating", source="outcomes"), proofs) == Reason.PROOF
    assert reason(said("rating", actor_kind="source"), proofs) == Reason.SOURCE_TYPE


def test_nobody_can_use_up_the_event_ids_of_another() -> None:
    outcome = identity("adult", "outcome", "outcomes", "p1", "e1")
    assert identity("adult", "outcome", "outcomes", "p2", "e1") == outcome  # a source's ids are its own
    assert identity("adult", "rating", "outcomes", "p1", "e1") != outcome
    assert identity("adult", "rating", "app", "p1", "e1") != identity("adult", "rating", "app", "p2", "e1")
    assert identity("other", "outcome", "outcomes", "p1", "e1") != outcome


# --- form ---------------------------------------------------------------------------------------------------------------------

GOOD = said("outcome", id="e1")
DEEP = b'{"specversion":"1.0","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Reason.JSON),
        (b"", Reason.JSON),
        (b"\x00\xff\xfe", Reason.JSON),
        (b"hello", Reason.JSON),
        (GOOD[:-1], Reason.JSON),
        (GOOD.replace(b'"all"', b'"\xff"'), Reason.JSON),
        (GOOD.replace(b'"all"', b'"\\ud800"'), Reason.JSON),
        (GOOD.replace(b'">50K"', b"NaN"), Reason.JSON),
        (DEEP, Reason.JSON),
        (b"[]", Reason.ENVELOPE),
        (b"{}", Reason.ENVELOPE),
        (altered(GOOD, id=5), Reason.ENVELOPE),
        (altered(GOOD, id=""), Reason.ENVELOPE),
        (altered(GOOD, data=None), Reason.ENVELOPE),
        (altered(GOOD, specversion="0.3"), Reason.ENVELOPE),
        (altered(GOOD, datacontenttype="text/xml"), Reason.ENVELOPE),
        (altered(GOOD, actorkind="robot"), Reason.ENVELOPE),
        (altered(GOOD, type="truing.outcome.v2"), Reason.TYPE),
        (altered(GOOD, type="com.example.click"), Reason.TYPE),
        (altered(GOOD, problem="german-credit"), Reason.PROBLEM),
        (altered(GOOD, predictionid=None), Reason.PREDICTION),
        (altered(GOOD, proof=None), Reason.PROOF),
        (GOOD + b" " * MAX_BYTES, Reason.OVERSIZE),
    ],
    ids=range(23),
)
def test_what_has_not_the_form_is_a_dead_letter_with_its_reason(value: bytes | None, expected: Reason, proofs: Proofs) -> None:
    letter = read_message(value, AT, proofs=proofs, now=NOW)
    assert isinstance(letter, DeadLetter)
    assert letter.reason == expected
    assert letter.detail and "\n" not in letter.detail and len(letter.detail) <= 300
    assert base64.b64decode(letter.original) == (value or b"")
    assert letter.position == AT and letter.first_seen == NOW


def test_attributes_that_we_do_not_know_do_not_disturb(proofs: Proofs) -> None:
    assert reason(altered(GOOD, traceparent="00-ab", dataschema="x"), proofs) == ""


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("rating", {"value": 1.01}, Reason.DATA),
        ("rating", {"value": "high"}, Reason.DATA),
        ("rating", {"value": 0.5, "note": "x"}, Reason.DATA),
        ("rating", {}, Reason.DATA),
        ("outcome", {"label": ">60K"}, Reason.LABEL),
        ("correction", {"label": ""}, Reason.DATA),
        ("attribute", {"groups": {"religion": "none"}}, Reason.GROUP),
        ("prediction", {"inputs": {"age": [1]}}, Reason.DATA),
        ("prediction", {"inputs": {"age": 2**70}}, Reason.DATA),
        ("prediction", {"inputs": INPUTS, "groups": {"zip": "1"}}, Reason.GROUP),
        ("prediction", {"inputs": INPUTS, "answer": {"label": "?", "confidence": 0.5}}, Reason.LABEL),
        ("prediction", {"inputs": INPUTS, "propensity": -0.1}, Reason.DATA),
        (
            "prediction",
            {"inputs": INPUTS, "answer": {"label": ">50K", "confidence": 1, "probabilities": {">50K": 0.4}}},
            Reason.DATA,
        ),
    ],
)
def test_what_the_data_may_not_be(kind: str, data: dict[str, Any], expected: Reason, proofs: Proofs) -> None:
    """Written past encode_event, which would refuse most of it: signed well, and still a dead letter."""
    from truing.tasks import seal
    from truing.tasks.events.schema import _signed

    message = json.loads(said(kind, id="e1"))
    raw = json.dumps(data, separators=(",", ":")).encode()
    if message["proof"].startswith("mac:"):
        parts = _signed("e1", "all", message["type"], message["time"], "adult", "p1", None, None, "person", raw)
        message["proof"] = "mac:" + seal.mac(key_of("all"), *parts)
    del message["data"]
    value = json.dumps(message).encode()[:-1] + b',"data":' + raw + b"}"
    assert reason(value, proofs) == expected


def test_a_clock_may_run_a_little_ahead_and_credit_ends(proofs: Proofs, problem: Problem) -> None:
    credit = seconds(problem.maturity.credit)
    assert reason(said("outcome", time=NOW + 299), proofs) == ""
    assert reason(said("outcome", time=NOW + 301), proofs) == Reason.FUTURE
    assert reason(said("outcome", time=NOW - credit + 1), proofs) == ""
    assert reason(said("outcome", time=NOW - credit - 1), proofs) == Reason.OLD


def test_a_preference_may_stand_alone(proofs: Proofs) -> None:
    assert reason(said("preference", prediction_id=None), proofs) == ""


def test_a_sender_is_told_at_once_what_would_not_be_believed() -> None:
    for kind, data in (
        ("rating", {"value": 2}),
        ("rating", {"value": 1, "x": 1}),
        ("vote", {}),
        ("prediction", {"inputs": {"age": math.nan}}),
        ("prediction", {"inputs": {"age": math.inf}}),
    ):
        with pytest.raises(DataError, match=r"^[^\n]+$"):
            encode_event(kind, problem="adult", source="app", data=data, time=NOW, prediction_id="p")


# --- people -------------------------------------------------------------------------------------------------------------------


def test_names_of_people_do_not_pass_the_door(proofs: Proofs) -> None:
    message = judge(said("prediction", subject="ada@example.org", actor="ada@example.org"), proofs=proofs, now=NOW)
    assert message.subject == message.actor == pseudonym(SALT, "adult", "ada@example.org")
    assert b"ada@" not in msgspec.msgpack.encode(message)
    assert pseudonym(SALT, "other", "ada@example.org") != message.subject
    assert pseudonym(b"t" * 32, "adult", "ada@example.org") != message.subject


def test_a_question_about_nobody_named_is_a_subject_of_its_own(proofs: Proofs) -> None:
    one = judge(said("prediction", prediction_id="p1"), proofs=proofs, now=NOW).subject
    two = judge(said("prediction", prediction_id="p2"), proofs=proofs, now=NOW).subject
    assert one and two and one != two
    assert judge(said("outcome"), proofs=proofs, now=NOW).subject is None


# --- anything -----------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_no_bytes_raise(value: bytes) -> None:
    proofs = Proofs(wire=WIRE, salt=SALT, known={})
    assert judge(value, proofs=proofs, now=NOW).reason
    claimed_id(value)


@given(at=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255))
def test_no_changed_byte_is_believed_unless_it_changes_nothing(at: int, byte: int) -> None:
    """Whatever one byte of a source's message becomes, the event is refused or the very same."""
    from truing.tasks.problem import Input, Source

    tiny = Problem(
        name="adult",
        kind="tabular",
        label="income",
        labels=("<=50K", ">50K"),
        positive=">50K",
        inputs={"age": Input(type="number")},
        sources={"all": Source(types=("outcome",))},
    )
    proofs = Proofs.of([tiny], wire=WIRE, salt=SALT, keys={"adult": {"all": key_of("all")}})
    good = judge(GOOD, proofs=proofs, now=NOW)
    found = judge(GOOD[:at] + bytes([byte]) + GOOD[at + 1 :], proofs=proofs, now=NOW)
    assert found.reason or found == good
