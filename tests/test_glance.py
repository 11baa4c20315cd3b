"""What passes at a glance is what the law lets pass, word for word; all else is left to the law: on thousands of messages."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from test_schema import DATA, INPUTS, NOW, SALT, WIRE, altered, key_of

from truing.tasks.contract import TIME
from truing.tasks.events import glance, intake
from truing.tasks.events.batches import Block
from truing.tasks.events.glance import Glance
from truing.tasks.events.intake import Batch, Recent, land
from truing.tasks.events.lanes import Seen
from truing.tasks.events.redaction import Redactor
from truing.tasks.events.schema import Proofs, Reason, encode_event, identity_text, rfc3339, token
from truing.tasks.events.stencil import Sheet, cut
from truing.tasks.events.stream import Chunk
from truing.tasks.events.times import unix_times
from truing.tasks.problem import Input, Problem, Redaction, Source
from truing.tasks.validation import checks

ROW = INPUTS | {
    "workclass": "Private", "education_num": 9, "marital_status": "Divorced", "relationship": "Wife", "capital_loss": 0,
    "hours_per_week": 40, "native_country": "Cuba", "capital_gain": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def problems(problem: Problem) -> list[Problem]:
    """Census income, and one with odd column names, listed words, and a text that is redacted."""
    every = Source(types=("prediction", "outcome", "review", "attribute", "preference"))
    odd = msgspec.structs.replace(
        problem,
        name="odd",
        inputs={
            "hours per week": Input(type="number", min=0.5, max=99),
            "class": Input(type="category", values=("a", "b")),
            "note": Input(type="category", optional=True),
        },
        redaction=Redaction(inputs=("note",)),
        sources={"all": every},
    )
    return [msgspec.structs.replace(problem, sources={**problem.sources, "all": every}), odd]


@pytest.fixture(scope="module")
def proofs(problems: list[Problem]) -> Proofs:
    keys = {one.name: {name: key_of(name) for name in one.sources} for one in problems}
    return Proofs.of(problems, wire=WIRE, salt=SALT, keys=keys)


class Law(Glance):
    """The same door without a glance: every message goes singly."""

    def look(self, block: Block, now: float) -> list[Seen]:
        return []


def passed(one: Glance, values: Sequence[bytes | None], *, times: int = 1) -> list[int]:
    """Which of the values pass at a glance; at the second by stencils of the first."""
    block = Block.of([*enumerate(values)])
    for _ in range(times):
        found = sorted(at for seen in one.look(block, NOW) for at in seen.at.tolist())
    return found


@pytest.fixture(autouse=True)
def none_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glance, "FEW", 1)


def door(kind: type[Glance], proofs: Proofs, problems: list[Problem]) -> Glance:
    made = kind(proofs, split_salt=b"p" * 32)
    for one in problems:
        made.refresh(one.name, None, checks.compile(None, one))
    return made


def good(rng: random.Random, kind: str) -> dict[str, Any]:
    """What `encode_event` is given for a good message of that kind, in one of its many shapes."""
    name = rng.choice(("adult", "adult", "odd"))
    data = DATA[kind]
    if kind == "prediction":
        note = rng.choice((None, "asked twice", "mail anna@example.org", "ask +49 171 2345678"))
        row = (
            ROW | {"age": rng.choice((18, 39.5, 90))} if name == "adult" else {"hours per week": 7, "class": "a", "note": note}
        )
        answer = rng.choice((None, DATA["prediction"]["answer"], {"label": ">50K", "confidence": 1}))
        data = {"inputs": row, "answer": answer, "groups": rng.choice(({}, {"sex": "Male"}, {"age": 7}))}
    given: dict[str, Any] = {"problem": name, "data": data, "time": NOW - rng.randint(0, 900), "id": f"e{rng.randint(0, 400)}"}
    given["prediction_id"] = None if kind == "preference" and rng.random() < 0.5 else f"p{rng.randint(0, 90)}"
    given["subject"] = rng.choice((None, "ada", "ada@example.org", "Ådä", "s" * 200))
    if kind in ("rating", "correction", "interaction"):
        proof = token(WIRE, name, str(given["prediction_id"]), NOW + 60)
        return given | {"source": rng.choice(("app", "gateway", "ünicode")), "token": proof, "actor": rng.choice(("eve", "é"))}
    return given | {"source": "all", "source_key": key_of("all"), "actor": rng.choice((None, "clerk"))}


def broken(rng: random.Random, value: bytes) -> bytes | None:
    """The message with one thing wrong, or odd and still right."""
    how = rng.randrange(14)
    if how == 0:
        return rng.choice((None, b"", b"{}", b"[]", b"\xff", value + b" " * 300_000, value[: len(value) // 2]))
    if how == 1:
        at = rng.randrange(len(value))
        return value[:at] + bytes([rng.randrange(256)]) + value[at + 1 :]
    changes: list[dict[str, Any]] = [
        {"type": "truing.vote.v1"}, {"problem": "gone"}, {"proof": None}, {"proof": "mac:é"}, {"proof": f"{'9' * 20}.00"},
        {"source": "nobody"}, {"source": "outcomes"}, {"time": rfc3339(NOW + 400)}, {"time": "2026-11-23 03:40"},
        {"predictionid": None}, {"actorkind": "source"}, {"id": ""}, {"extension": {"data": 5}}, {"specversion": "1.1"},
        {"datacontenttype": "application/json; charset=utf-8"}, {"proof": token(WIRE, "adult", "p1", NOW - 5)}, {"id": "é"},
    ]  # fmt: skip
    return altered(value, **rng.choice(changes))


def signed(rng: random.Random, n: int) -> bytes:
    """Signed well by a source, and its data may still not do."""
    name, row = "adult", dict(ROW)
    column = rng.choice(list(row))
    row[column] = rng.choice((None, -1, 10**7, "x", True, 2**60, 1.5, "", 0))
    if rng.random() < 0.3:
        del row[column]
    if rng.random() < 0.1:
        row["extra"] = 1
    if rng.random() < 0.3:
        name, row = "odd", {"hours per week": rng.choice((0, 0.5, 99, 99.5, "9")), "class": rng.choice(("a", "b", "c", None))}
    shares = rng.choice(({}, {">50K": 0.4}, {">50K": 0.4, "<=50K": 0.6}, {"?": 1.0}))
    data: dict[str, Any] = {
        "inputs": row,
        "answer": {"label": rng.choice((">50K", "?")), "confidence": 0.5, "probabilities": shares},
    }
    kind = "prediction"
    if rng.random() < 0.3:
        kind = rng.choice(("outcome", "review", "attribute"))
        data = {"groups": {rng.choice(("sex", "zip")): 1}} if kind == "attribute" else {"label": rng.choice((">50K", "?"))}
    given = {"problem": name, "source": "all", "source_key": key_of("all"), "prediction_id": f"s{n}", "time": NOW}
    return encode_event(kind, data=data, **given)[1]


def traffic(seed: int, count: int) -> list[bytes | None]:
    rng = random.Random(seed)
    found: list[bytes | None] = []
    for n in range(count):
        value = encode_event(kind := rng.choice(sorted(DATA)), **good(rng, kind))[1]
        dice = rng.random()
        found.append(value if dice < 0.5 else signed(rng, n) if dice < 0.7 else broken(rng, value))
    return found


def rows(batch: Batch) -> list[tuple[Any, ...]]:
    """Everything about each record, in order of offsets."""
    text = batch.frame.with_columns(
        text=pl.Series(batch.texts), family=pl.Series(batch.families), owner=pl.Series(batch.owners)
    )
    return text.sort("offset").rows()


@pytest.mark.parametrize(("few", "size"), [(1, 300), (8, 1_000), (8, 10_000)])
def test_blocks_and_single_messages_become_the_same_rows(
    proofs: Proofs, problems: list[Problem], few: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glance, "FEW", few)
    monkeypatch.setattr(intake, "BLOCK", size)
    values = traffic(1, 6_000)
    made = []
    for kind in (Glance, Law):
        one, recent = door(kind, proofs, problems), Recent()
        chunks = [Chunk(0, 0, list(enumerate(values[:3_500]))), Chunk(1, 2, list(enumerate(values[3_500:], 3_500)))]
        made.append(land(chunks, topic="t", glance=one, recent=recent, now=NOW))
    ours, law = (rows(batch) for batch in made)
    assert ours == law
    assert made[0].counts == made[1].counts and made[0].positions == made[1].positions == {(0, 0): 3_500, (1, 2): 6_000}
    assert made[0].counts["landed"] > 1000 and made[0].counts["duplicate"] > 100
    reasons = set(made[0].frame["reason"]) - {""}
    elsewhere = {Reason.CORRUPT, Reason.LOST, Reason.AVRO, Reason.OLD}
    assert reasons >= {str(reason) for reason in Reason} - {str(reason) for reason in elsewhere}


def test_nearly_all_good_messages_pass_at_a_glance(proofs: Proofs, problems: list[Problem]) -> None:
    """Else the equality above would say nothing. Left to the law: names that are not ASCII, what is redacted."""
    rng = random.Random(2)
    kinds = ("prediction", "rating", "correction", "outcome", "review", "attribute", "interaction")
    values = []
    for kind in kinds:
        for n in range(200):
            given = good(rng, kind) | {"subject": "ada", "actor": "eve", "id": f"{kind}{n}"}
            given["source"] = "app" if "token" in given else "all"
            if kind == "prediction" and given["problem"] == "odd":
                given["data"]["inputs"]["note"] = "nothing in it"
            values.append(encode_event(kind, **given)[1])
    one = door(Glance, proofs, problems)
    assert passed(one, values) == passed(one, values) == list(range(len(values)))
    assert sum(way.hits for way in one._known.ways) == len(values)  # the second time by stencils alone


def test_an_event_is_remembered_by_the_same_mark_whichever_way_it_came(proofs: Proofs, problems: list[Problem]) -> None:
    rng, one = random.Random(6), door(Glance, proofs, problems)
    values = [encode_event(kind, **good(rng, kind))[1] for kind in sorted(DATA) for _ in range(40)]
    told = [json.loads(value) for value in values]
    for _ in range(2):  # one by one, and by stencils
        found = one.look(Block.of([*enumerate(values)]), NOW)
        marks = {at: mark for seen in found for at, mark in zip(seen.at.tolist(), seen.marks, strict=True)}
        assert len(marks) > 100
        for at, mark in marks.items():
            event = told[at]
            kind = event["type"].split(".")[1]
            text = identity_text(event["problem"], kind, event["source"], event.get("predictionid"), event["id"])
            assert mark == one.mark(text), event


def test_a_number_among_what_is_to_be_redacted_has_nothing_to_redact(proofs: Proofs, problems: list[Problem]) -> None:
    one = door(Glance, proofs, problems)
    one.refresh("odd", None, checks.compile(None, problems[1]), Redactor(inputs=("hours per week", "note")))
    given = {"problem": "odd", "source": "all", "source_key": key_of("all"), "prediction_id": "p", "time": NOW}
    rows_ = [{"hours per week": 7, "class": "a", "note": note} for note in (None, "nothing", "mail anna@example.org")]
    values = [encode_event("prediction", data={"inputs": row}, **given)[1] for row in rows_]
    assert passed(one, values) == [0, 1]


def test_an_old_event_is_left_to_the_law(proofs: Proofs, problems: list[Problem]) -> None:
    value = encode_event("outcome", **good(random.Random(3), "outcome") | {"time": NOW - 900 * 86_400})[1]
    one = door(Glance, proofs, problems)
    assert passed(one, [value]) == [] and one.single(value, NOW).reason == Reason.OLD


def test_what_is_redacted_lands_redacted_also_in_a_block(proofs: Proofs, problems: list[Problem]) -> None:
    given = good(random.Random(4), "prediction") | {"problem": "odd", "source": "all", "source_key": key_of("all")}
    given["data"] = {"inputs": {"hours per week": 7, "class": "a", "note": "mail anna@example.org"}}
    values = [encode_event("prediction", **given)[1]]
    batch = land(
        [Chunk(0, 0, list(enumerate(values)))], topic="t", glance=door(Glance, proofs, problems), recent=Recent(), now=NOW
    )
    assert json.loads(batch.texts[0])["inputs"]["note"] == "mail [email]" and batch.counts["landed"] == 1


def test_new_row_checks_count_from_the_next_block_on(proofs: Proofs, problems: list[Problem]) -> None:
    value = encode_event(
        "prediction", problem="adult", source="all", source_key=key_of("all"), data={"inputs": ROW}, time=NOW, prediction_id="p"
    )[1]
    one = door(Glance, proofs, problems)
    assert passed(one, [value], times=2) == [0]
    suite = {"name": "adult", "expectations": [checks.expectation(checks.BETWEEN, column="age", min_value=50)], "meta": {}}
    one.refresh("adult", suite, checks.compile(suite, problems[0]))
    assert passed(one, [value]) == [] and one.single(value, NOW).reason == Reason.INPUTS


def test_senders_and_ways_of_writing_without_number_do_not_fill_the_memory(proofs: Proofs, problems: list[Problem]) -> None:
    """A person's `source` is unproven: anybody may call himself anything, and put spaces where he likes."""
    one = door(Glance, proofs, problems)
    proof = token(WIRE, "adult", "p1", NOW + 60)
    for n in range(300):
        value = encode_event(
            "rating", problem="adult", source=f"app{n}", token=proof, prediction_id="p1", data={"value": 1}, time=NOW
        )[1].replace(b",", b"," + b" " * n, 1)
        assert passed(one, [value]) == [0]
    assert len(one._known.lanes) == 1 and len(one._known.ways) == glance.STENCILS


WRITTEN = {"id": "e1", "source": "app", "subject": "ada", "predictionid": "p1", "actor": "eve"}


def rating(**changes: str) -> bytes:
    """A good rating, its values written as they stand, whatever is in them."""
    told = WRITTEN | changes
    proof = told.pop("proof", token(WIRE, "adult", "p1", NOW + 60))
    data = told.pop("data", '{"value":0.5}')
    rest = "".join(f',"{name}":"{value}"' for name, value in told.items())
    return (
        f'{{"specversion":"1.0","type":"truing.rating.v1","time":"{rfc3339(NOW)}","datacontenttype":"application/json"'
        f',"problem":"adult"{rest},"actorkind":"person","proof":"{proof}","data":{data}}}'
    ).encode()


TOKEN = token(WIRE, "adult", "p1", NOW + 60)
LATE, OTHER, LONG = (token(WIRE, "adult", *of) for of in (("p1", NOW - 1), ("p2", NOW + 60), ("p1", 99_999_999_999.0)))
VALUES = (
    'x","actor":"adam', 'x","actor":"adam","data":{"value":1},"z":"', "x\\", "x\\u0041", 'x\\"y', "x\ty", "x\x7fy", "x\0", "xé",
    "", " ", '","', "}}", "{", *("x" * n for n in (31, 32, 33, 126, 127, 128, 256, 257)),
)  # fmt: skip
BODIES = (
    '{"value":0.5} ', ' {"value":0.5}', '{"value":0.5},"id":"e2"', '{"value":0.5}}', '{"value":2}', "{}", "0.5", "[]",
    '{"value":0.5,"value":1}', '{"value":0.5},"data":{"value":1}', '{"value":"é"}', '{"value":0.5, "n":{}}', '{"value":0.5}\n',
)  # fmt: skip
PROOFS = (
    "", "x" * 75, LATE, OTHER, LONG, TOKEN.upper(), TOKEN.replace(".", ","), TOKEN + "0", "0" + TOKEN, TOKEN[:-1] + '"',
    "mac:" + "0" * 64, "mac:" + "0" * 71, "é" * 37 + "x", TOKEN.replace(".", "\0"),
    "é" + TOKEN[2:], "\x7f" + TOKEN[1:], " " + TOKEN[1:],
)  # fmt: skip
ODD = [
    *(rating(**{name: value}) for name in WRITTEN if name != "predictionid" for value in VALUES),
    *(rating(data=data) for data in BODIES),
    *(rating(proof=proof) for proof in PROOFS),
    *(rating().replace(old, new) for old, new in (
        (b'"specversion":"1.0"', b'"specversion" : "1.0"'), (b'"type"', b'"TYPE"'), (b"person", b"source"),
    )),
    rating()[:-1], rating() + b"}", rating() + b" ", rating() * 2,
]  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
def test_a_stencil_fits_nothing_that_another_reader_would_read_otherwise(
    proofs: Proofs, problems: list[Problem], last: bool
) -> None:
    """Each odd message among good ones that are written alike, in their middle and at the block's very end."""
    ours, law, found = door(Glance, proofs, problems), door(Law, proofs, problems), []
    assert passed(ours, [rating()] * 3, times=2) == [0, 1, 2] and len(ours._known.ways) == 1
    for odd in ODD:
        for one in (ours, law):
            values = [rating(id="a"), odd, rating(id="b")][: 2 if last else 3]
            found.append(rows(land([Chunk(0, 0, [*enumerate(values)])], topic="t", glance=one, recent=Recent(), now=NOW)))
    assert found[::2] == found[1::2]
    assert {word for some in found for row in some for word in row} >= {"landed", "dead"}


def test_a_stencil_is_cut_of_any_order_and_spacing_as_long_as_data_is_last() -> None:
    good, fixed = json.loads(rating()), ("specversion", "type", "datacontenttype", "problem", "actorkind")
    data = good.pop("data")
    names = [*good]
    for seed in range(20):
        random.Random(seed).shuffle(names)
        value = json.dumps({name: good[name] for name in names} | {"data": data}, indent=seed % 3 or None).encode()
        value = value[: value.rindex(b"}", 0, -1) + 1] + b"}"
        made = cut(value, values=(*WRITTEN, "time", "proof"), fixed=fixed, sizes={"proof": len(good["proof"])})
        assert made is not None
        sheet = Sheet(Block.of([(0, value), (1, b" " * 200)]))
        found = made.fit(sheet, np.array([0]))
        assert {name: sheet.texts(span)[0] for name, span in found.values.items()} == {name: good[name] for name in made.names}
        assert json.loads(sheet.texts(found.data, binary=True)[0]) == data
    assert cut(rating().replace(b'"actor"', b'"z":1,"actor"'), values=WRITTEN, fixed=(*fixed, "z"), sizes={}) is None


def test_times_of_a_block_are_the_times_of_datetime() -> None:
    rng = random.Random(5)
    texts = [rfc3339(rng.uniform(-1e9, 4e9)) for _ in range(3_000)]
    texts += [
        "2024-02-29T00:00:00.000000Z",
        "2023-02-29T00:00:00.000000Z",
        "2026-13-01T00:00:00.000000Z",
        "2026-04-31T00:00:00.000000Z",
    ]
    texts += [
        "2026-01-01T24:00:00.000000Z",
        "2026-01-01T00:60:00.000000Z",
        "2026-01-01T00:00:60.000000Z",
        "0000-01-01T00:00:00.000000Z",
    ]
    texts += [
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00.5+02:00",
        "2026-01-01T00:00:00.000000+",
        "٢026-01-01T00:00:00.000000Z",
        "",
        "x" * 27,
    ]

    def alone(text: str) -> float:
        try:
            return float(msgspec.convert(text, TIME).timestamp())
        except (msgspec.ValidationError, OverflowError, ValueError):
            return float("nan")

    np.testing.assert_array_equal(unix_times(texts), [alone(text) for text in texts])
    assert time.gmtime(unix_times(["2026-11-23T03:40:00.123456Z"])[0])[:5] == (2026, 11, 23, 3, 40)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_remembered_of_a_block_is_what_one_by_one_would_be(seed: int) -> None:
    rng = random.Random(seed)
    recent, known = Recent(limit=50), set[Any]()
    for _ in range(6):  # of at most 12 each: none is forgotten again
        block = [rng.choice((None, rng.randrange(40), rng.randbytes(1))) for _ in range(rng.randrange(12))]
        before = {one for one in known if one in recent}
        expected = []
        for one in block:
            expected.append(one is None or one not in known)
            known.add(one)
        new, fresh = recent.told(block)
        assert new == expected
        assert fresh == {one for one in block if one is not None} - before
    recent.drop(fresh)
    assert not any(one in recent for one in fresh)
