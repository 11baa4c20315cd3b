"""The published contract: up to date, valid, and of one mind with the door."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from truing.flows.cli.contract import FILES, documents
from truing.tasks import seal
from truing.tasks.contract import KINDS, PEOPLE
from truing.tasks.events.published import json_schema
from truing.tasks.events.schema import Proofs, Reason, judge, rfc3339, token
from truing.tasks.problem import Problem, Source

ROOT = Path(__file__).resolve().parent.parent
NOW = 1_790_000_000.0
WIRE, KEY = b"w" * 32, b"k" * 32
DATA: dict[str, dict[str, Any]] = {
    "prediction": {
        "inputs": {"age": 40, "education": "HS-grad", "hours_per_week": 38.5, "member": True, "workclass": None},
        "groups": {"sex": "Female"},
        "answer": {"label": ">50K", "confidence": 0.9, "probabilities": {">50K": 0.9, "<=50K": 0.1}},
        "release": "adult@1", "variant": None, "propensity": 0.5, "schema": "v1", "audit": False,
    },
    "rating": {"value": 0.5},
    "correction": {"label": ">50K"},
    "outcome": {"label": ">50K"},
    "review": {"label": "<=50K"},
    "attribute": {"groups": {"sex": "Female", "age": 31}},
    "preference": {"prompt": "", "chosen": "a", "rejected": "b"},
    "interaction": {"kind": "dwell", "value": 3.5},
}  # fmt: skip
VALUES: list[Any] = [None, "", "x" * 300, "x" * 5000, 0, 1, -0.5, 1.5, True, [], [1], {}, {"a": 1}, {"a": {"b": 1}}, {"a": [1]}]
TIMES = [
    *(
        "2026-09-21 13:33:20Z",
        "2026-09-21t13:33:20.5z",
        "2026-09-21T13:33:20+0200",
        "2026-09-21T13:33Z",
        "2026-13-01T00:00:00Z",
    ),
    *(
        "2026-13-01T00:00:00Z",
        "2026-09-21T24:00:00Z",
        "2026-09-21T13:33:60Z",
        "2026-09-21T13:33:20",
        "2026-09-21T13:33:20.Z",
        "yesterday",
    ),
]
BEYOND = {
    Reason.PROBLEM,
    Reason.SOURCE,
    Reason.SOURCE_TYPE,
    Reason.LABEL,
    Reason.GROUP,
    Reason.FUTURE,
    Reason.OLD,
    Reason.MAC,
    Reason.TOKEN,
}  # fmt: skip - what only the door can know


@pytest.fixture(scope="module")
def door(problem: Problem) -> Proofs:
    types = tuple(kind for kind in KINDS if kind not in PEOPLE)
    told = msgspec.structs.replace(problem, sources={"all": Source(types=types)})  # type: ignore[arg-type]
    return Proofs.of([told], wire=WIRE, salt=b"s" * 32, keys={problem.name: {"all": KEY}})


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema())


def good(kind: str) -> dict[str, Any]:
    """A message of that type before it is proven."""
    message = {
        "specversion": "1.0", "id": "e-1", "source": "app" if kind in PEOPLE else "all", "type": f"truing.{kind}.v1",
        "time": rfc3339(NOW), "problem": "adult", "subject": "s-1", "datacontenttype": "application/json",
        "predictionid": "p-1", "actor": "anna", "actorkind": "person", "data": copy.deepcopy(DATA[kind]),
    }  # fmt: skip
    return message


def proven(kind: str, message: dict[str, Any]) -> bytes:
    """As JSON, with a proof that holds for what it says, unless `proof` was set or is to be absent."""
    raw = json.dumps(message.get("data")).encode()
    whole = dict(message)
    if whole.get("proof", "unset") == "unset":
        id = str(message.get("predictionid") or "")
        if kind in PEOPLE:
            whole["proof"] = token(WIRE, "adult", id, NOW + 60)
        else:
            names = ("id", "source", "type", "time", "problem", "predictionid", "subject", "actor")
            signed = [str(message.get(name) or "") for name in names]
            whole["proof"] = "mac:" + seal.mac(KEY, "event", *signed, str(message.get("actorkind", "person")), raw)
    parts = [
        f"{json.dumps(name)}:".encode() + (raw if name == "data" else json.dumps(value).encode())
        for name, value in whole.items()
    ]
    return b"{" + b",".join(parts) + b"}"


def mutations(kind: str) -> Iterator[dict[str, Any]]:
    """Each attribute and each field of the data left out, or with each of the values; one that nobody knows; times."""
    plain = good(kind)
    yield plain
    yield plain | {"extension": {"any": 1}}
    yield plain | {"proof": ""}
    for name in plain:
        yield {key: value for key, value in plain.items() if key != name}
        for value in VALUES:
            yield plain | {name: value}
    for at in TIMES:
        yield plain | {"time": at}
    for kept in ("truing.verdict.v1", "truing.rating.v2", "rating"):
        yield plain | {"type": kept}
    yield plain | {"datacontenttype": "application/json; charset=utf-8"}
    yield plain | {"actorkind": "source"}

    def inside(path: tuple[str, ...], part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        def put(changed: dict[str, Any]) -> dict[str, Any]:
            made = copy.deepcopy(plain)
            at = made["data"]
            for step in path:
                at = at[step]
            at.clear()
            at.update(changed)
            return made

        yield put(part | {"unknown": 1})
        for name, now in part.items():
            yield put({key: value for key, value in part.items() if key != name})
            for value in VALUES:
                yield put(part | {name: value})
            if isinstance(now, dict):
                yield from inside((*path, name), now)

    yield from inside((), plain["data"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_and_the_door_are_of_one_mind(kind: str, door: Proofs, schema: jsonschema.Draft202012Validator) -> None:
    """What the door takes, the schema takes. What the schema refuses, the door refuses. What the door alone refuses, it refuses
    for a reason that no schema can know, or because numbers together don't make sense."""
    told: Counter[str] = Counter()
    for message in mutations(kind):
        value = proven(kind, message)
        found = judge(value, proofs=door, now=NOW)
        fits = schema.is_valid(json.loads(value))
        told["valid" if fits else "invalid"] += 1
        if not found.reason:
            assert fits, (value, [error.message for error in schema.iter_errors(json.loads(value))])
        elif fits:
            alone = found.detail.startswith(("expected probabilities", "expected finite"))
            assert found.reason in BEYOND or alone, (found.reason, found.detail, value)
    assert told["valid"] > 5 and told["invalid"] > 40, told


def test_what_is_in_the_repository_is_what_the_types_say() -> None:
    """Run `truing contract --write docs` after a change of the contract."""
    for form, text in documents().items():
        assert (ROOT / "docs" / FILES[form]).read_text() == text, f"docs/{FILES[form]}: run `truing contract --write docs`"


def test_the_json_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_the_asyncapi_document_holds_together() -> None:
    """Structure only (the official schema is no Python package): version, every reference leads somewhere, every operation's
    messages are of its channel, every channel has an address, and payloads are schemas."""
    whole = json.loads(documents()["asyncapi"])
    assert whole["asyncapi"] == "3.0.0" and {"title", "version"} <= set(whole["info"])

    def follow(reference: str) -> Any:
        at = whole
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]
        return at

    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            if "$ref" in part:
                yield part["$ref"]
            for each in part.values():
                yield from references(each)
        elif isinstance(part, list):
            for each in part:
                yield from references(each)

    found = list(references(whole))
    assert len(found) > 40 and all(isinstance(follow(one), dict) for one in found)
    for channel in whole["channels"].values():
        assert channel["address"] and set(channel) <= {"address", "description", "messages", "bindings"}
    for operation in whole["operations"].values():
        assert operation["action"] in ("send", "receive")
        assert all(one["$ref"].startswith(operation["channel"]["$ref"]) for one in operation["messages"])
    for part in whole["components"]["schemas"].values():
        jsonschema.Draft7Validator.check_schema(part)
    names = {one["name"] for one in whole["components"]["messages"].values()}
    assert {f"truing.{kind}.v1" for kind in KINDS} <= names


def test_a_message_as_the_schema_describes_it_is_valid_by_asyncapis_copy_too() -> None:
    whole = json.loads(documents()["asyncapi"])
    for kind in KINDS:
        payload = {"$ref": f"#/components/schemas/{kind.title()}Event", **whole}
        checker = jsonschema.Draft7Validator(payload)
        message = json.loads(proven(kind, good(kind)))
        assert checker.is_valid(message) and not checker.is_valid(message | {"type": "truing.verdict.v1"})
