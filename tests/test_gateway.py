"""The gateway: what it answers over HTTP, and that no answer goes out without its event."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from serving import (
    FolderShelf,
    House,
    Rows,
    head_over,
    inputs_of,
    keys_in,
    landed,
    question,
    release_over,
    remember,
    running_broker,
    running_gateway,
    running_registry,
    served_here,
    settings_of,
    signed,
    until,
)

from truing.infra.broker import connection
from truing.infra.gateway.tensors import OWN, read_question
from truing.infra.keys import Keyring
from truing.infra.outbox import Outbox
from truing.infra.sender import Sender
from truing.infra.settings import Settings
from truing.tasks.errors import DataError
from truing.tasks.events.schema import Proofs, judge, token
from truing.tasks.kinds.model import Model
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Cause

# --- questions ----------------------------------------------------------------------------------------------------------------


def change(body: dict[str, Any], tensor: str, **fields: Any) -> dict[str, Any]:
    next(one for one in body["inputs"] if one["name"] == tensor).update(fields)
    return body


def drop(body: dict[str, Any], tensor: str) -> dict[str, Any]:
    body["inputs"] = [one for one in body["inputs"] if one["name"] != tensor]
    return body


BAD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no object": lambda q: [1],
    "no inputs": lambda q: {"inputs": []},
    "unknown column": lambda q: change(q, "age", name="agee"),
    "a protected attribute as input": lambda q: change(q, "relationship", name="sex"),
    "missing column": lambda q: drop(q, "education"),
    "column twice": lambda q: {"inputs": [*q["inputs"], q["inputs"][0]]},
    "wrong shape": lambda q: change(q, "age", shape=[3]),
    "two dimensions": lambda q: change(q, "age", shape=[2, 1]),
    "another length": lambda q: change(q, "age", shape=[1], data=[30]),
    "no rows": lambda q: {"inputs": [one | {"shape": [0], "data": []} for one in q["inputs"]]},
    "text for a number": lambda q: change(q, "age", data=["30", "31"]),
    "a truth for a number": lambda q: change(q, "age", data=[True, 31]),
    "number for a text": lambda q: change(q, "education", data=[1, "Masters"]),
    "fraction in INT64": lambda q: change(q, "age", datatype="INT64", data=[30.5, 31]),
    "another datatype": lambda q: change(q, "age", datatype="BOOL"),
    "out of range": lambda q: change(q, "age", data=[30, 900]),
    "null where required": lambda q: change(q, "age", data=[None, 31]),
    "prediction ids alike": lambda q: change(q, "prediction_id", data=["a", "a"]),
    "prediction id with blanks": lambda q: change(q, "prediction_id", data=["a b", None]),
    "empty subject": lambda q: change(q, "subject", data=["", None]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_question_is_one_line_of_what_was_expected(case: str, problem: Problem, adult: Rows) -> None:
    good = question(problem, adult[:2], subject=["x", None], prediction_id=["p-1", None], group__sex=["Female", None])
    read_question(msgspec.json.encode(good), problem, max_rows=2)
    with pytest.raises(DataError) as caught:
        read_question(msgspec.json.encode(BAD[case](good)), problem, max_rows=2)
    text = str(caught.value)
    assert "expected" in text and "; " in text and "\n" not in text and len(text) < 500


def test_too_many_rows_are_refused(problem: Problem, adult: Rows) -> None:
    with pytest.raises(DataError, match="1 to 2 rows, got 3"):
        read_question(msgspec.json.encode(question(problem, adult[:3])), problem, max_rows=2)


def test_an_optional_column_may_be_left_out_or_null(problem: Problem, adult: Rows) -> None:
    body = drop(question(problem, adult[:2]), "workclass")
    asked = read_question(msgspec.json.encode(body), problem, max_rows=2)
    assert [row["workclass"] for row in asked.rows] == [None, None]


def test_protected_attributes_never_are_among_the_rows(problem: Problem, adult: Rows) -> None:
    body = question(problem, adult[:2], group__sex=["Female", None], group__race=["White", "Black"], subject=["s1", None])
    asked = read_question(msgspec.json.encode(body), problem, max_rows=2)
    assert all(set(row) == set(problem.inputs) for row in asked.rows)
    ages = [row["age"] for row in adult[:2]]
    assert asked.groups == [{"sex": "Female", "race": "White", "age": ages[0]}, {"race": "Black", "age": ages[1]}]
    assert asked.subjects == ["s1", None]


# --- the whole: real broker, real HTTP ----------------------------------------------------------------------------------------


def columns_of(answer: httpx.Response) -> dict[str, list[Any]]:
    assert answer.status_code == 200, answer.text
    return {tensor["name"]: tensor["data"] for tensor in answer.json()["outputs"]}


class Stack:
    """One broker, one gateway over a folder shelf, release 1 served."""

    def __init__(self, settings: Settings, http: httpx.Client, shelf: FolderShelf, keyring: Keyring, problem: Problem) -> None:
        self.settings, self.http, self.shelf, self.keyring, self.problem = settings, http, shelf, keyring, problem

    def show(self, model: Model, sequence: int, **other: Any) -> None:
        """A release with its head, as the steward would make it."""
        files, key = model.to_files(), self.keyring.read("release")
        release = release_over(self.problem, files, sequence, **other)
        self.shelf.put(release.version, files, signed(release, key), head_over(release, key, now=time.time()))

    def release(self, model: Model, sequence: int, **other: Any) -> None:
        self.show(model, sequence, **other)
        until(lambda: self.told()["sequence"] == sequence)

    def told(self) -> dict[str, Any]:
        """The problem in /status."""
        return dict(self.status()["problems"][self.problem.name])

    def ask(self, rows: Rows, **beside: list[Any]) -> httpx.Response:
        return self.http.post(f"/v2/models/{self.problem.name}/infer", json=question(self.problem, rows, **beside))

    def status(self) -> dict[str, Any]:
        return dict(self.http.get("/status").json())

    def events(self) -> list[bytes]:
        until(lambda: self.status()["outbox"]["waiting"] == 0, 90)
        return landed(self.settings)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, problem: Problem, models: list[Model]) -> Iterator[Stack]:
    settings = settings_of(tmp_path_factory.mktemp("gateway"))
    keyring = keys_in(settings.keys, problem)
    shelf = FolderShelf(settings.data / "shelf")
    with running_broker(settings), served_here(settings, shelf) as http:
        yield Stack(settings, http, shelf, keyring, problem)


@pytest.fixture
def served(stack: Stack, models: list[Model]) -> Stack:
    if stack.shelf.shown is None:
        stack.release(models[0], 1)
    return stack


def proofs(stack: Stack) -> Proofs:
    """What the reader of the topic knows."""
    keys = {source: stack.keyring.source(stack.problem.name, source) for source in stack.problem.sources}
    wire, salt = stack.keyring.read("wire"), stack.keyring.read("actor-salt")
    return Proofs.of([stack.problem], wire=wire, salt=salt, keys={stack.problem.name: keys})


@pytest.mark.services
def test_before_the_first_release_it_lives_and_says_that_it_is_not_ready(stack: Stack, adult: Rows) -> None:
    assert stack.shelf.shown is None, "runs first"
    assert stack.http.get("/v2/health/live").status_code == 200
    assert stack.http.get("/v2/health/ready").status_code == 503
    answer = stack.ask(adult[:1])
    assert answer.status_code == 503 and "no release of adult is served yet" in answer.json()["error"]
    assert not stack.events(), "no answer, no event"


@pytest.mark.services
def test_the_protocol_names_the_model_its_columns_and_its_version(served: Stack, adult: Rows) -> None:
    assert served.http.get("/v2").json()["name"] == "truing"
    assert served.http.get("/v2/health/ready").json() == {"ready": True}
    assert served.http.get("/v2/models/adult/ready").status_code == 200
    told = served.http.get("/v2/models/adult").json()
    assert [one["name"] for one in told["inputs"]] == list(served.problem.inputs) and told["versions"] == ["1"]
    body = served.ask(adult[:1]).json()
    assert body["model_name"] == "adult" and body["model_version"] == "1" and body["parameters"]["sequence"] == 1


@pytest.mark.services
def test_each_answered_row_has_exactly_one_believable_event(served: Stack, adult: Rows, models: list[Model]) -> None:
    rows = adult[500:505]
    answer = columns_of(served.ask(rows, subject=[f"person-{i}" for i in range(5)], group__sex=[row["sex"] for row in rows]))
    told = {
        found.prediction_id: found
        for value in served.events()
        if (found := judge(value, proofs=proofs(served), now=time.time())).prediction_id in answer["prediction_id"]
    }
    assert [found.reason for found in told.values()] == [""] * 5
    for at, name in enumerate(answer["prediction_id"]):
        body = told[name].body
        assert body.inputs == {column: rows[at][column] for column in served.problem.inputs}
        assert body.groups["sex"] == rows[at]["sex"] and body.release == "adult@1" and body.variant == "champion"
        assert body.answer.label == answer["label"][at] and body.answer.confidence == answer["confidence"][at]
        assert body.answer.probabilities[served.problem.positive] == answer["probability"][at]
        assert b"person-" not in told[name].data and told[name].subject and "person" not in told[name].subject
    expected = models[0].predict([{name: row[name] for name in served.problem.inputs} for row in rows])
    assert answer["label"] == expected.labels


@pytest.mark.services
def test_a_batch_of_5000_has_5000_answers_and_5000_events(served: Stack, adult: Rows) -> None:
    ids = [f"batch-{i}" for i in range(5000)]
    answer = columns_of(served.ask(adult[:5000], prediction_id=ids))
    assert answer["prediction_id"] == ids and len(set(answer["token"])) == 5000
    counted = Counter(msgspec.json.decode(value)["predictionid"] for value in served.events())
    assert all(counted[name] == 1 for name in ids)


@pytest.mark.services
def test_protected_attributes_do_not_move_the_answer(served: Stack, adult: Rows) -> None:
    rows = adult[:20]
    plain = columns_of(served.ask(rows))
    for sex in ("Female", "Male"):
        told = columns_of(served.ask(rows, group__sex=[sex] * 20, group__race=["Black"] * 20))
        assert told["probability"] == plain["probability"] and told["label"] == plain["label"]


@pytest.mark.services
def test_a_bad_question_leaves_no_event_behind(served: Stack, adult: Rows) -> None:
    before = len(served.events())
    http = served.http
    for answer in (
        http.post("/v2/models/adult/infer", content=b"{not json"),
        http.post("/v2/models/adult/infer", json=drop(question(served.problem, adult[:2]), "education")),
        http.post("/feedback", content=b"{}"),
    ):
        assert answer.status_code == 400
        assert "expected" in answer.json()["error"] and "\n" not in answer.json()["error"]
    nobody = http.post("/v2/models/nobody/infer", json=question(served.problem, adult[:2]))
    assert nobody.status_code == 404 and "expected a model of adult" in nobody.json()["error"]
    assert http.get("/nothing").status_code == 404 and "expected" in http.get("/nothing").json()["error"]
    assert http.get("/v2/models/adult/infer").status_code == 405
    assert len(served.events()) == before
    assert served.status()["errors"]["400"] >= 3


@pytest.mark.services
def test_feedback_is_believed_for_the_token_of_its_prediction_only(served: Stack, adult: Rows) -> None:
    answer = columns_of(served.ask(adult[:2]))
    (first, _), (mine, other) = answer["prediction_id"], answer["token"]
    wire = served.keyring.read("wire")
    word = {"type": "rating", "prediction_id": first, "token": mine, "actor": "anna", "value": 0.9}
    words = [
        word,
        word | {"type": "correction", "label": ">50K", "value": None},
        word | {"type": "interaction", "kind": "click", "value": None},
        word | {"token": other},
        word | {"token": mine[:-1] + ("0" if mine[-1] != "0" else "1")},
        word | {"token": token(wire, "adult", first, time.time() - 5)},
        word | {"value": 2.0},
        word | {"type": "correction", "label": "perhaps"},
        word | {"type": "outcome"},
        {"type": "rating"},
        word | {"actor": ""},
        word | {"time": time.time() + 9000},
    ]
    told = served.http.post("/feedback", json=words).json()
    assert (told["accepted"], told["refused"]) == (3, 9)
    codes = [refusal["code"] for refusal in told["refusals"]]
    assert codes[:3] == ["token.forged", "token.forged", "token.expired"]
    assert codes[3:] == ["data", "label.unknown", "data", "data", "data", "time.future"]
    found = [judge(value, proofs=proofs(served), now=time.time()) for value in served.events()]
    mine_only = sorted((one.type, one.reason) for one in found if one.prediction_id == first and one.type != "prediction")
    assert mine_only == [("correction", ""), ("interaction", ""), ("rating", "")]


@pytest.mark.services
def test_an_id_that_the_gateway_made_is_answered_once(served: Stack, adult: Rows) -> None:
    """Who learns of a prediction can't ask for its token; a caller's own id is answered again, as a resend needs it."""
    told = columns_of(served.ask(adult[:2]))
    assert all(name.startswith(OWN) for name in told["prediction_id"])
    stolen = served.ask(adult[:2], prediction_id=told["prediction_id"])
    assert stolen.status_code == 400 and "an id of your own" in stolen.json()["error"]
    mine = [columns_of(served.ask(adult[:1], prediction_id=["mine-1"]))["token"] for _ in range(2)]
    assert all(mine)


class Askers:
    """Sixteen applications that ask the same rows again and again; each answer must be that of the release it names."""

    def __init__(self, url: str, problem: Problem, rows: Rows, expected: Callable[[int], list[float]]) -> None:
        self.wrong, self.seen = list[str](), Counter[int]()
        self._url, self._problem, self._rows, self._expected = url, problem, rows, expected
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(16)]

    def __enter__(self) -> Askers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self) -> None:
        body = question(self._problem, self._rows)
        with httpx.Client(base_url=self._url, trust_env=False, timeout=30) as http:
            while not self._stop.is_set():
                try:
                    answer = http.post(f"/v2/models/{self._problem.name}/infer", json=body)
                except httpx.HTTPError as error:
                    self.wrong.append(repr(error))
                    continue
                if answer.status_code != 200:
                    self.wrong.append(answer.text)
                    continue
                sequence = answer.json()["parameters"]["sequence"]
                self.seen[sequence] += 1
                if columns_of(answer)["probability"] != self._expected(sequence):
                    self.wrong.append(f"release {sequence} answered with another model")


@pytest.mark.services
def test_no_answer_fails_while_releases_change_and_each_is_of_one_release(
    served: Stack, adult: Rows, models: list[Model]
) -> None:
    """Sixteen askers, ten swaps: every answer equals what the release it names answers by itself."""
    rows = adult[600:608]
    expected = [model.predict(inputs_of(served.problem, rows)).probabilities[:, 1].tolist() for model in models]
    assert expected[0] != expected[1]
    start = served.told()["sequence"]
    assert start % 2 == 1
    with Askers(served.settings.gateway_url, served.problem, rows, lambda sequence: expected[(sequence - 1) % 2]) as askers:
        for sequence in range(start + 1, start + 11):
            served.release(models[(sequence - 1) % 2], sequence)
            until(lambda sequence=sequence: askers.seen[sequence] > 0 or bool(askers.wrong))
    assert not askers.wrong, askers.wrong[:3]
    assert len(askers.seen) >= 10


@pytest.mark.services
def test_a_release_that_expires_while_it_is_served_answers_no_more(served: Stack, adult: Rows, models: list[Model]) -> None:
    sequence = served.told()["sequence"] + 1
    expires = time.time() + 4.0
    served.release(models[0], sequence, expires=expires)
    until(lambda: time.time() > expires)
    answer = served.ask(adult[:1])
    assert answer.status_code == 503 and "expired" in answer.json()["error"]
    served.release(models[0], sequence + 1 + sequence % 2)
    assert served.ask(adult[:1]).status_code == 200


@pytest.mark.services
def test_a_withdrawn_model_answers_503_with_the_reason_until_the_next_release(
    served: Stack, adult: Rows, models: list[Model]
) -> None:
    before = served.told()
    sequence = before["sequence"] + 1
    why = f"withdrawn by release {sequence}: approval of version 1 revoked by anna: it harms"
    reason = why.partition(": ")[2]
    served.show(models[0], sequence, version=before["version"], cause=Cause.WITHDRAW, reason=reason)
    until(lambda: served.told()["withdrawn"] is not None)
    answer = served.ask(adult[:1])
    assert answer.status_code == 503 and why in answer.json()["error"] and "\n" not in answer.json()["error"]
    for path in ("/v2/health/ready", "/v2/models/adult/ready"):
        assert served.http.get(path).status_code == 503
    assert served.http.get("/v2/health/live").status_code == 200
    told = served.told()
    assert told["refusal"] == why and told["floor"] == sequence and told["sequence"] is None
    served.release(models[0], sequence + 1 + sequence % 2)
    assert served.ask(adult[:1]).status_code == 200 and served.told()["withdrawn"] is None


@pytest.fixture
def cached(tmp_path: Path, problem: Problem, models: list[Model]) -> Settings:
    """A data folder whose gateway can boot without any registry."""
    settings = settings_of(tmp_path)
    remember(settings, problem, models[0], keys_in(settings.keys, problem), version="3", sequence=3)
    return settings


@pytest.mark.services
def test_a_killed_gateway_sends_its_outbox_after_its_restart(cached: Settings, problem: Problem, adult: Rows) -> None:
    """SIGKILL while the broker is away: 50 answers were given, none was published; after both are back, each event is there."""
    ids = [f"kept-{i}" for i in range(50)]
    with running_gateway(cached) as gateway:
        body = question(problem, adult[:50], prediction_id=ids)
        answer = httpx.post(f"{cached.gateway_url}/v2/models/adult/infer", json=body, trust_env=False)
        assert answer.status_code == 200 and answer.json()["parameters"]["sequence"] == 3
        os.kill(gateway.pid, signal.SIGKILL)
        gateway.wait()
    with running_broker(cached), running_gateway(cached):
        status = f"{cached.gateway_url}/status"
        until(lambda: httpx.get(status, trust_env=False).json()["outbox"]["waiting"] == 0, 90)
        assert sorted(msgspec.json.decode(value)["predictionid"] for value in landed(cached)) == sorted(ids)


@pytest.mark.services
def test_what_a_killed_broker_forgot_comes_again(cached: Settings, tmp_path: Path) -> None:
    """SIGKILL right after the acknowledgement: the embedded broker may forget its last second. All ids are there again."""
    ids = [b"%d" % i for i in range(500)]
    host, port = "127.0.0.1", int(cached.kafka.bootstrap.rpartition(":")[2])
    sender = Sender(cached.kafka.topic, connection(cached), timeout_s=5)
    said: list[str] = []
    with running_broker(cached):
        box = Outbox(tmp_path / "box", sender, keep_s=60, sentinel=(host, port), log=said.append)
        box.start()
        box.append([(name, b'{"id": "%s"}' % name) for name in ids])
        until(lambda: box.waiting == 0)
    with running_broker(cached):
        until(lambda: any("again" in line for line in said))
        until(lambda: box.waiting == 0, 90)
        assert {msgspec.json.decode(value)["id"].encode() for value in landed(cached)} == set(ids)
        box.close()


# --- behind the real registry -------------------------------------------------------------------------------------------------


@pytest.mark.services
def test_the_gateway_follows_the_real_registry(
    tmp_path: Path, problem: Problem, policy: Policy, models: list[Model], adult: Rows
) -> None:
    """Two releases and two rollbacks under sixteen askers; a new password; a withdrawal that outlives a restart; at last the
    registry's disk is tampered with, and then the registry is away."""
    settings = settings_of(tmp_path, poll_s=0.3)
    keys = keys_in(settings.keys, problem)
    cache, aside = settings.data / "gateway", settings.data / "aside"
    rows = adult[600:604]
    expected = [model.predict(inputs_of(problem, rows)).probabilities[:, 1].tolist() for model in models]

    def served() -> dict[str, Any]:
        return dict(httpx.get(f"{settings.gateway_url}/status", trust_env=False).json()["problems"][problem.name])

    def answer() -> httpx.Response:
        body = question(problem, adult[:3])
        return httpx.post(f"{settings.gateway_url}/v2/models/adult/infer", json=body, trust_env=False)

    with running_registry(settings):
        house = House(settings, problem, policy)
        with running_gateway(settings):
            assert served()["sequence"] is None
            first = house.release(models[0])
            until(lambda: served()["sequence"] == 1, 60)
            with Askers(settings.gateway_url, problem, rows, lambda sequence: expected[(sequence - 1) % 2]) as askers:
                second = house.release(models[1])
                until(lambda: askers.seen[2] > 0, 60)
                assert served()["payload"] == models[1].payload
                house.roll_back(first)
                until(lambda: askers.seen[3] > 0, 60)
                assert served()["payload"] == models[0].payload and served()["cause"] == "rollback" and served()["floor"] == 3
                house.roll_back(second)
                until(lambda: askers.seen[4] > 0, 60)
            assert not askers.wrong, askers.wrong[:3]
            for _ in range(2):  # the one before the last is worth nothing at once
                keys.rotate("gateway", now=time.time())
            house.roll_back(first)
            until(lambda: served()["sequence"] == 5, 60)
            house.withdraw(first)
            until(lambda: served()["withdrawn"] is not None, 60)
            assert answer().status_code == 503 and "withdrawn by release 6: revoked by approver" in answer().json()["error"]
        with running_gateway(settings):
            assert answer().status_code == 503 and "withdrawn by release 6" in answer().json()["error"]
            house.roll_back(second)
            until(lambda: served()["sequence"] == 7, 60)
            assert answer().status_code == 200
        cache.rename(aside)
        for head in (settings.data / "registry" / "artifacts").rglob("head.safetensors"):
            data = head.read_bytes()
            head.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with running_gateway(settings):
            until(lambda: served()["refusal"] is not None, 60)
            assert "release.payload" in served()["refusal"] and served()["sequence"] is None
    if cache.exists():
        shutil.rmtree(cache)
    aside.rename(cache)
    with running_gateway(settings):
        assert served()["sequence"] == 7, "from its cache, with registry and broker away"
        assert answer().status_code == 200 and answer().json()["parameters"]["sequence"] == 7
