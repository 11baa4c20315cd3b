"""Avro through a schema registry: the same events, believed for the same proofs, whatever a stranger's schema says."""

from __future__ import annotations

import io
import json
import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fastavro
import pytest
from serving import keys_in, running_broker, settings_of

from truing.client import Client
from truing.flows.keeper import Keeper, drain
from truing.infra.broker import connection
from truing.infra.keys import Keyring
from truing.infra.schema_registry import Registry, codec_of
from truing.infra.sender import Sender
from truing.infra.settings import Settings, load
from truing.tasks.errors import DataError, SettingsError, Unavailable
from truing.tasks.events.avro import Codec, avro_schema, canonical, number, unfit
from truing.tasks.events.said import Names, Speaker
from truing.tasks.events.schema import Proofs, Reason, claimed_id, encode_event, judge
from truing.tasks.problem import Problem
from truing.tasks.tables.lake import Vault

NOW = 1_790_000_000.0
KEY = b"k" * 32
INPUTS = {
    "age": 40,
    "hours_per_week": 38.5,
    "education": "HS-grad",
    "workclass": None,
    "member": True,
    "big": 2**53 + 1,
    "é": 1e-7,
}


VECTORS = (
    *(
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("4340000000000000", "9007199254740992"),
    ),
    *(("7fefffffffffffff", "1.7976931348623157e+308"), ("4430000000000000", "295147905179352830000")),
    *(("44b52d02c7e14af5", "9.999999999999997e+22"), ("44b52d02c7e14af6", "1e+23"), ("444b1ae4d6e2ef50", "1e+21")),
    *(
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ),
    *(("41b3de4355555553", "333333333.3333332"), ("becbf647612f3696", "-0.0000033333333333333333")),
    ("43143ff3c1cb0959", "1424953923781206.2"),
)


class StandIn:
    """The registry's documented REST calls in a few lines, because no real one runs here: it keeps schemas in memory."""

    def __init__(self) -> None:
        self.schemas: list[str] = []
        self.subjects: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.broken = False
        self.password = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*outer.get(self.path.partition("?")[0].strip("/").split("/")))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(*outer.post(self.path.strip("/").split("/"), body))

            def _answer(self, status: int, body: Any) -> None:
                outer.asked.append(f"{self.command} {self.path}")
                if outer.broken:
                    status, body = 500, {"error_code": 50001, "message": "Error in the backend data store"}
                if outer.password and self.headers.get("Authorization", "") != outer.password:
                    status, body = 401, {"error_code": 40101, "message": "Unauthorized"}
                raw = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, subject: str, schema: Any) -> int:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        if text not in self.schemas:
            self.schemas.append(text)
        id = self.schemas.index(text) + 1
        versions = self.subjects.setdefault(subject, [])
        if id not in versions:
            versions.append(id)
        return id

    def get(self, path: list[str]) -> tuple[int, Any]:
        if path[0] != "subjects" or path[1] not in self.subjects:
            return 404, {"error_code": 40401, "message": f"Subject '{path[1]}' not found."}
        versions = self.subjects[path[1]]
        if len(path) == 3:
            return 200, list(range(1, len(versions) + 1))
        id = versions[int(path[3]) - 1]
        return 200, {"subject": path[1], "version": int(path[3]), "id": id, "schema": self.schemas[id - 1]}

    def post(self, path: list[str], body: Any) -> tuple[int, Any]:
        return 200, {"id": self.add(path[1], body["schema"])}


@pytest.fixture
def registry() -> Iterator[StandIn]:
    one = StandIn()
    try:
        yield one
    finally:
        one.close()


def codec(registry: StandIn, subject: str = "user-events-value") -> Codec:
    one = Registry(registry.url, subject)
    return Codec(one.versions, one.register)


def door(problem: Problem, avro: Codec) -> Proofs:
    keys = {problem.name: dict.fromkeys(problem.sources, KEY)}
    return Proofs.of([problem], wire=KEY, salt=b"s" * 32, keys=keys, avro=avro.read)


def given(**more: Any) -> dict[str, Any]:
    return {
        "problem": "adult",
        "source": "history",
        "source_key": KEY,
        "time": NOW,
        "prediction_id": "p",
        "actor_kind": "source",
    } | more


# --- the same events ----------------------------------------------------------------------------------------------------------


def test_an_event_says_the_same_in_avro_and_in_json(registry: StandIn, problem: Problem) -> None:
    """Same identity, same proof kept, same data: numbers of both kinds, null, text beyond ASCII."""
    answer = {"label": ">50K", "confidence": 1, "probabilities": {">50K": 1.0}}
    for kind, data in (
        ("prediction", {"inputs": INPUTS, "groups": {"sex": "Female"}, "answer": answer, "propensity": None}),
        ("prediction", {"inputs": {}}),
        ("outcome", {"label": ">50K"}),
    ):
        writer, reader = codec(registry), codec(registry)
        key, value = writer.write(kind, data=data, id="e-1", subject="anna", **given())
        plain_key, plain = encode_event(kind, data=data, id="e-1", subject="anna", **given())
        proofs = door(problem, reader)
        here, there = (judge(one, proofs=proofs, now=NOW) for one in (value, plain))
        assert (here.reason, there.reason) == ("", "") and key == plain_key and value[:1] == b"\0"
        assert here.body == there.body and here.identity == there.identity and here.subject == there.subject
        assert claimed_id(value) == claimed_id(plain) == "e-1"


def test_a_row_of_a_file_is_sent_as_avro_and_checked_by_the_door_before(registry: StandIn, problem: Problem) -> None:
    speaker = Speaker(problem, "history", KEY, now=NOW, avro=codec(registry))
    row = {name: (12 if spec.type == "number" else "Private") for name, spec in problem.inputs.items()} | {"income": ">50K"}
    made = speaker.messages(row, Names(endless=False))
    found = [judge(value, proofs=door(problem, codec(registry)), now=NOW) for _, value in made]
    assert [(one.type, one.reason) for one in found] == [("prediction", ""), ("outcome", "")]
    assert all(value[0] == 0 for _, value in made)
    with pytest.raises(DataError, match="at most 262144 bytes as JSON"):
        speaker.messages(row | {"occupation": "x" * 262_000}, Names(endless=False))


def test_one_altered_byte_is_never_believed(registry: StandIn, problem: Problem) -> None:
    avro = codec(registry)
    _, value = avro.write("prediction", data={"inputs": INPUTS, "groups": {"sex": "Female"}}, id="e", **given())
    proofs, plain = door(problem, avro), judge(value, proofs=door(problem, avro), now=NOW)
    for at in range(1, len(value)):
        for flip in (1, 0x80):
            other = bytearray(value)
            other[at] ^= flip
            found = judge(bytes(other), proofs=proofs, now=NOW)
            assert found.reason or found.body == plain.body, at


def test_canonical_json_is_that_of_rfc_8785() -> None:
    """The numbers of its appendix B, and its order of keys (by UTF-16 units: the emoji comes before U+FB33)."""
    for bits, text in VECTORS:
        value = struct.unpack(">d", bytes.fromhex(bits))[0]
        assert number(value) == text and canonical(value).decode() == text
    assert (
        canonical({"\ufb33": 1, "😀": 2, "é": "\u2028\x0f", "a": None}).decode()
        == '{"a":null,"é":"\u2028\\u000f","😀":2,"\ufb33":1}'
    )
    rng = random.Random(1)
    for _ in range(2000):
        value = rng.choice([rng.gauss(0, 1) * 10 ** rng.uniform(-12, 18), float(rng.randint(-(10**6), 10**6))])
        assert canonical(value).decode() == number(value) and float(number(value)) == value


def test_what_avro_can_not_carry_is_told_before_it_is_sent(registry: StandIn) -> None:
    avro = codec(registry)
    for kind, data, says in (
        ("prediction", {"inputs": {"a": float("nan")}}, "finite"),
        ("outcome", {}, "label"),
        ("verdict", {}, "expected an event type"),
        ("prediction", {"inputs": {"a": 2**70}}, "finite|carry"),
    ):
        with pytest.raises(DataError, match=says):
            avro.write(kind, data=data, **given())


# --- what a stranger may try --------------------------------------------------------------------------------------------------


def tried(registry: StandIn, problem: Problem, schema: Any, body: bytes) -> tuple[str, str]:
    id = registry.add("user-events-value", schema)
    found = judge(struct.pack(">BI", 0, id) + body, proofs=door(problem, codec(registry)), now=NOW)
    return found.reason, found.detail


ID = {"name": "id", "type": "string"}


def record(*fields: Any, name: str = "Event") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields)}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("no json", "expected an Avro schema"),
        ('"string"', "first field is the string `id`"),
        (record({"name": "data", "type": "string"}, ID), "first field is the string `id`"),
        (record(ID, {"name": "data", "type": {"type": "array", "items": "null"}}), "got array"),
        (record(ID, {"name": "data", "type": {"type": "fixed", "name": "F", "size": 1 << 40}}), "got fixed"),
        (record(ID, {"name": "data", "type": "bytes"}), "no other names, got bytes"),
        (record(ID, {"name": "data", "type": ["null", "Event"]}), "no recursion"),
        (record(ID, {"name": "data", "type": {"type": "map", "values": record(name="Empty")}}), "maps of scalars only"),
        (record(ID, {"name": "data", "type": ["null", 5]}), "expected records, maps, unions and scalars"),
        ({"type": "record", "name": "Event", "fields": [ID, {"type": "string"}]}, "expected an Avro schema"),
        (json.dumps(record(ID)) + " " * 70_000, "at most 65536 characters"),
    ],
)
def test_a_schema_that_is_none_for_events_is_a_reason_and_not_a_crash(
    registry: StandIn, problem: Problem, schema: Any, says: str
) -> None:
    reason, detail = tried(registry, problem, schema, b"\x02a\x00")
    assert reason == Reason.AVRO and says in detail and len(detail) <= 200


def test_a_schema_of_few_names_and_a_billion_nodes_is_refused_at_once() -> None:
    """Ten records, each with ten fields of the one before: 10^10 nulls out of no bytes at all."""
    below: Any = {"type": "record", "name": "R0", "fields": [{"name": "n", "type": "null"}]}
    for level in range(1, 10):
        fields = [{"name": "f0", "type": below}] + [{"name": f"f{n}", "type": f"R{level - 1}"} for n in range(1, 10)]
        below = {"type": "record", "name": f"R{level}", "fields": fields}
    assert "at most 400 nodes" in str(unfit(record(ID, {"name": "data", "type": below})))
    assert unfit(avro_schema()) is None


def test_random_bytes_are_dead_letters_with_a_reason(registry: StandIn, problem: Problem) -> None:
    """20,000 bodies: random, cut off, with bytes behind, with lengths up to 2^63; none is believed, none raises."""
    avro, rng = codec(registry), random.Random(7)
    _, value = avro.write("prediction", data={"inputs": INPUTS}, id="e", **given())
    proofs = door(problem, avro)
    for turn in range(20_000):
        body = bytearray(value[5:])
        match turn % 5:
            case 0:
                body = bytearray(rng.randbytes(rng.randrange(80)))
            case 1:
                del body[rng.randrange(len(body)) :]
            case 2:
                body += rng.randbytes(1 + rng.randrange(9))
            case 3:
                at = rng.randrange(len(body))
                body[at : at + 1] = b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"
            case 4:
                for _ in range(3):
                    body[rng.randrange(len(body))] = rng.randrange(256)
        found = judge(value[:5] + bytes(body), proofs=proofs, now=NOW)
        assert found.reason or bytes(body) == value[5:]


def test_other_schemas_of_the_subject_read_too(registry: StandIn, problem: Problem) -> None:
    """Somebody else's: other order, another namespace, no attribute that they don't need, data as one record."""
    names = ("proof", "problem", "type", "source", "time", "actorkind", "predictionid")
    schema = record(
        {"name": "id", "type": {"type": "string", "avro.java.string": "String"}},
        *({"name": name, "type": "string"} for name in names),
        {"name": "data", "type": record({"name": "label", "type": "string"}, name="D")},
    )  # fmt: skip
    plain = json.loads(encode_event("outcome", data={"label": ">50K"}, id="e", **given())[1])
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(json.loads(json.dumps(schema))), plain)
    assert tried(registry, problem, schema, body.getvalue())[0] == ""


# --- the registry -------------------------------------------------------------------------------------------------------------


def test_an_unknown_id_is_asked_for_once_a_batch(registry: StandIn, problem: Problem) -> None:
    avro = codec(registry)
    proofs = door(problem, avro)
    for now in (NOW, NOW + 1):
        registry.asked.clear()
        for id in range(1000, 1100):
            found = judge(struct.pack(">BI", 0, id) + b"x", proofs=proofs, now=now)
            assert found.reason == Reason.AVRO and f"got {id}" in found.detail
        assert len(registry.asked) == 1
    registry.add("another-subject", record(ID))
    other = judge(struct.pack(">BI", 0, 1) + b"\x02a", proofs=proofs, now=NOW + 2)
    assert other.reason == Reason.AVRO, "a schema of another subject is not believed"


def test_with_the_registry_away_nothing_is_dead_it_is_judged_again_later(registry: StandIn, problem: Problem) -> None:
    writer, reader = codec(registry), codec(registry)
    _, value = writer.write("outcome", data={"label": ">50K"}, **given(source="outcomes"))
    proofs = door(problem, reader)
    registry.broken = True
    for _ in range(2):
        with pytest.raises(Unavailable, match="schema registry"):
            judge(value, proofs=proofs, now=NOW)
    registry.broken = False
    assert judge(value, proofs=proofs, now=NOW).reason == ""
    registry.broken = True
    assert judge(value, proofs=proofs, now=NOW + 1).reason == "", "what is known needs no registry"


def test_without_a_registry_avro_is_a_dead_letter(problem: Problem, registry: StandIn) -> None:
    _, value = codec(registry).write("outcome", data={"label": ">50K"}, **given())
    proofs = Proofs.of([problem], wire=KEY, salt=b"s", keys={problem.name: dict.fromkeys(problem.sources, KEY)})
    assert judge(value, proofs=proofs, now=NOW).reason == Reason.JSON


def test_a_login_is_sent_and_never_shown(registry: StandIn, tmp_path: Path) -> None:
    registry.password = "Basic YW5uYTpzM2NyZXQ="  # anna:s3cret
    kafka = {"broker": "embedded", "schema_registry": registry.url, "schema_registry_user": "anna"}
    right = load(data=tmp_path, kafka=kafka | {"schema_registry_password": "s3cret"})
    avro = codec_of(right)
    assert avro is not None and avro.write("outcome", data={"label": ">50K"}, **given())
    wrong = codec_of(load(data=tmp_path, kafka=kafka | {"schema_registry_password": "guess"}))
    assert wrong is not None
    with pytest.raises(Unavailable) as caught:
        wrong.write("outcome", data={"label": ">50K"}, **given())
    assert "401" in str(caught.value) and "guess" not in str(caught.value) and "s3cret" not in repr(right)
    with pytest.raises(SettingsError, match="without a login"):
        Registry("http://anna:s3cret@127.0.0.1:1", "s")


@pytest.mark.services
def test_avro_and_json_land_side_by_side_and_a_silent_registry_only_delays(
    registry: StandIn, problem: Problem, tmp_path: Path
) -> None:
    """Through the embedded broker and a keeper: a client writes Avro, an older one JSON; a made-up id is a dead letter."""
    settings: Settings = settings_of(tmp_path / "data")
    settings = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"schema_registry": registry.url})})
    keys_in(settings.keys, problem)
    with running_broker(settings):
        with Client.of(settings, "adult", source="outcomes") as client:
            for n in range(20):
                client.outcome(f"avro-{n}", ">50K")
        key = Keyring(settings.keys).source("adult", "outcomes")
        now = given(source="outcomes", source_key=key, time=time.time())
        plain = [encode_event("outcome", data={"label": "<=50K"}, **now | {"prediction_id": f"json-{n}"}) for n in range(20)]
        sender = Sender(settings.kafka.topic, connection(settings))
        sender.publish([*plain, (b"x", struct.pack(">BI", 0, 77) + b"made up")])
        sender.close()
        keeper = Keeper(settings, start=lambda *_: None, log=lambda _: None)
        registry.broken = True
        with pytest.raises(Unavailable, match="schema registry"):
            drain(keeper)
        keeper.close()
        registry.broken = False
        keeper = Keeper(settings, start=lambda *_: None, log=lambda _: None)
        drain(keeper)
        keeper.close()
        landed = Vault(settings.vault).landing()
    counts = Counter(zip(landed["disposition"], landed["reason"], strict=True))
    assert counts == {("landed", ""): 40, ("dead", "avro"): 1}
    bodies = {row["prediction_id"]: row["data"] for row in landed.iter_rows(named=True) if row["disposition"] == "landed"}
    assert bodies["avro-3"] == b'{"label":">50K"}' and bodies["json-3"] == b'{"label":"<=50K"}'
