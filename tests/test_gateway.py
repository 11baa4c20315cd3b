"""The gateway: what it answers, what it refuses to serve, and that no answer goes out without its event."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from truing.infra.broker import command, connection, ensure_topics
from truing.infra.gateway.cache import Cache, State
from truing.infra.gateway.loader import Loader, Shown
from truing.infra.gateway.outbox import Outbox
from truing.infra.gateway.tensors import read_question
from truing.infra.keys import Keyring
from truing.infra.sender import Message, Sender
from truing.infra.settings import Settings, child_environment, load
from truing.tasks import seal
from truing.tasks.errors import DataError, Unavailable
from truing.tasks.events.schema import Proofs, judge, token
from truing.tasks.kinds.model import FORMAT, Calibration, Card, Model
from truing.tasks.kinds.tabular import Tabular
from truing.tasks.learning.protocol import Batch
from truing.tasks.learning.ridge import Ridge
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Approval, Candidate, Cause, Estimate, Evaluation, Outcome, Release, Verdict
from truing.tasks.release.manifest import release_of, rollback_of
from truing.tasks.release.registry import Registry

ROOT = Path(__file__).resolve().parent.parent
Rows = list[dict[str, Any]]


# --- small real parts ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(problem: Problem, adult: Rows) -> list[Model]:
    """Two small models of the same 300 people that differ in how strongly they are held back."""
    import numpy as np

    rows = [{name: row[name] for name in problem.inputs} for row in adult[:300]]
    labels = [str(row["income"]) for row in adult[:300]]
    kind = Tabular.grow(problem, rows, labels, seed=1, trees=10)
    batch = Batch(kind.encode(rows).matrix, kind.targets(labels), np.ones(len(rows)))
    ridge = Ridge()
    card = Card(
        format=FORMAT,
        kind="tabular",
        problem=problem.name,
        head=problem.label,
        labels=problem.labels,
        positive=problem.positive,
        thresholds=(0.5, 0.5),
        calibration=Calibration(temperature=4.0, bias=(0.0, 0.0)),
    )
    state = ridge.fit(batch, labels=2)
    return [Model(card, kind.encoder, ridge.head(state, {"penalty": penalty})) for penalty in (1.0, 30.0)]


def statement(problem: Problem, files: dict[str, bytes], key: bytes, sequence: int, **other: Any) -> str:
    """A signed release over `files`, as the registry shows it."""
    release = Release(
        problem=problem.name,
        name=f"{problem.name}@{sequence}",
        version=other.pop("version", str(sequence)),
        sequence=sequence,
        payload=seal.tree_digest(files),
        verdict="v" * 64,
        approval="a" * 64,
        dataset="d" * 64,
        policy="p" * 64,
        environment={"name": "test"},
        cause=other.pop("cause", Cause.PROMOTE),
        replaces=sequence - 1 or None,
        at=0.0,
        expires=other.pop("expires", None),
    )
    assert not other
    return seal.canonical(seal.sign(release, seal.RELEASE_TYPE, key)).decode()


class FolderShelf:
    """A registry that is a folder: versions with their bytes, and what stands as champion. `away` = it does not answer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shown: Shown | None = None
        self.away = False
        self.downloads = 0

    def put(self, version: str, files: dict[str, bytes], release: str) -> None:
        folder = self.root / version
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        self.shown = Shown(version=version, release=release)

    def champion(self, problem: str) -> Shown | None:
        if self.away:
            raise Unavailable("the registry is away")
        return self.shown

    def payload(self, problem: str, version: str) -> dict[str, bytes]:
        self.downloads += 1
        return {path.name: path.read_bytes() for path in (self.root / version).iterdir()}


class Bench:
    """A loader over a folder shelf, with a clock to turn."""

    def __init__(self, problem: Problem, keyring: Keyring, folder: Path) -> None:
        self.problem, self.keyring, self.folder = problem, keyring, folder
        self.now = 1000.0
        self.shelf = FolderShelf(folder / "shelf")
        self.said: list[str] = []
        self.loader = self.another()

    def another(self) -> Loader:
        """A gateway started anew on the same folder."""
        return Loader(
            {self.problem.name: self.problem},
            self.shelf,
            keys=seal.Keys(release=(self.keyring.read("release.pub"),)),
            folder=self.folder / "cache",
            poll_s=0.05,
            clock=lambda: self.now,
            log=self.said.append,
        )

    def release(self, model: Model, sequence: int, **other: Any) -> None:
        files = model.to_files()
        key = other.pop("key", self.keyring.read("release"))
        version = other.get("version", str(sequence))
        self.shelf.put(version, files, statement(self.problem, files, key, sequence, **other))

    def look(self) -> bool:
        return self.loader.look(self.problem.name)

    @property
    def sequence(self) -> int | None:
        served = self.loader.served(self.problem.name)
        return served.release.sequence if served else None

    @property
    def refusal(self) -> str:
        return self.loader.refusal(self.problem.name) or ""


@pytest.fixture
def bench(problem: Problem, keyring: Keyring, tmp_path: Path) -> Bench:
    return Bench(problem, keyring, tmp_path)


# --- what may be served -------------------------------------------------------------------------------------------------------


def test_an_admitted_release_is_served(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1, cause=Cause.GENESIS)
    assert bench.look() and bench.sequence == 1
    assert not bench.look(), "the same statement is not loaded twice"
    assert "model.serving" in bench.said[-1]


def test_tampered_bytes_are_refused_at_load_and_the_old_model_goes_on(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1)
    bench.look()
    bench.release(models[1], 2)
    head = bench.shelf.root / "2" / "head.safetensors"
    honest = head.read_bytes()
    head.write_bytes(honest[:-1] + bytes([honest[-1] ^ 1]))
    assert not bench.look() and bench.sequence == 1
    assert "release.payload" in bench.refusal and "\n" not in bench.refusal
    head.write_bytes(honest)
    assert not bench.look(), "a refused statement is not fetched again at every look"
    bench.now += 60
    assert bench.look() and bench.sequence == 2 and not bench.refusal


def test_one_more_file_is_another_payload(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1)
    (bench.shelf.root / "1" / "extra.py").write_text("print('hello')")
    assert not bench.look() and "release.payload" in bench.refusal


def test_a_lower_sequence_is_refused(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 5)
    bench.look()
    bench.release(models[1], 4)
    assert not bench.look() and bench.sequence == 5 and "release.sequence" in bench.refusal


def test_a_second_statement_with_a_served_sequence_is_refused(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 5)
    bench.look()
    bench.release(models[1], 5, version="6")
    assert not bench.look() and bench.sequence == 5 and "release.sequence" in bench.refusal


def test_a_release_by_another_key_is_refused(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1, key=seal.new_key())
    assert not bench.look() and bench.sequence is None and "envelope.signature" in bench.refusal
    assert bench.shelf.downloads == 0, "nothing is fetched for a statement that nobody signed"


def test_an_expired_release_is_refused(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1, expires=bench.now)
    assert not bench.look() and "release.expired" in bench.refusal


def test_the_statement_of_another_version_or_none_is_refused(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1)
    shown = bench.shelf.shown
    assert shown is not None
    bench.shelf.put("2", models[0].to_files(), shown.release)
    assert not bench.look() and "release.other" in bench.refusal
    bench.shelf.put("3", models[0].to_files(), "")
    assert not bench.look() and "envelope.missing" in bench.refusal


def test_signed_bytes_that_are_no_model_are_refused(bench: Bench, models: list[Model]) -> None:
    """The steward signs digests; what can't be built is still not served."""
    bench.release(models[0], 1)
    bench.look()
    files = {"model.json": b"{}", "head.safetensors": b"\x00" * 16}
    bench.shelf.put("2", files, statement(bench.problem, files, bench.keyring.read("release"), 2))
    assert not bench.look() and bench.sequence == 1 and "does not load" in bench.refusal


def test_a_rollback_is_a_new_release_over_an_old_payload(bench: Bench, models: list[Model]) -> None:
    """Version 1 comes back with sequence 3: the statement tells them apart, and the bytes at hand need no download."""
    bench.release(models[0], 1)
    bench.look()
    bench.release(models[1], 2)
    bench.look()
    downloads = bench.shelf.downloads
    bench.release(models[0], 3, version="1", cause=Cause.ROLLBACK)
    assert bench.look() and bench.sequence == 3 and bench.shelf.downloads == downloads
    served = bench.loader.served(bench.problem.name)
    assert served is not None and served.model.payload == models[0].payload


def test_it_boots_from_its_cache_with_the_registry_away(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 7)
    bench.look()
    bench.shelf.away = True
    again = bench.another()
    again.boot(bench.problem.name)
    served = again.served(bench.problem.name)
    assert served is not None and served.release.sequence == 7
    with pytest.raises(Unavailable):
        again.look(bench.problem.name)
    assert again.served(bench.problem.name) is served


def test_a_tampered_cache_is_refused_at_boot(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 7)
    bench.look()
    (blob,) = (bench.folder / "cache" / bench.problem.name).glob("*.msgpack")
    files = msgspec.msgpack.decode(blob.read_bytes(), type=dict[str, bytes])
    files["head.safetensors"] = models[1].to_files()["head.safetensors"]
    blob.write_bytes(msgspec.msgpack.encode(files))
    bench.loader = bench.another()
    bench.loader.boot(bench.problem.name)
    assert bench.sequence is None and "release.payload" in bench.refusal
    assert bench.look() and bench.sequence == 7, "the honest bytes come back from the registry"


def test_the_floor_outlives_the_process(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 7)
    bench.look()
    bench.loader = bench.another()
    bench.release(models[1], 6)
    bench.now += 60
    bench.loader.boot(bench.problem.name)
    assert not bench.look() and bench.sequence == 7 and bench.loader.floor(bench.problem.name) == 7


def test_without_a_readable_floor_nothing_is_served(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 7)
    bench.look()
    (bench.folder / "cache" / bench.problem.name / "state.json").write_text("{")
    bench.loader = bench.another()
    bench.loader.boot(bench.problem.name)
    bench.now += 60
    assert not bench.look() and bench.sequence is None and "floor" in bench.refusal


# --- questions ----------------------------------------------------------------------------------------------------------------


def question(problem: Problem, rows: Rows, **beside: list[Any]) -> dict[str, Any]:
    """The request's JSON, one tensor a column."""
    tensors = [
        {
            "name": name,
            "shape": [len(rows)],
            "datatype": "FP64" if spec.type == "number" else "BYTES",
            "data": [row[name] for row in rows],
        }
        for name, spec in problem.inputs.items()
    ]
    tensors += [
        {"name": name.replace("__", ":"), "shape": [len(data)], "datatype": "BYTES", "data": data}
        for name, data in beside.items()
    ]
    return {"inputs": tensors}


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


# --- the outbox ---------------------------------------------------------------------------------------------------------------


class Collector:
    """A publisher into a list, which can be away."""

    def __init__(self) -> None:
        self.taken: list[Message] = []
        self.away = False

    def publish(self, messages: Any) -> None:
        if self.away:
            raise Unavailable("the broker is away")
        self.taken += messages

    def close(self) -> None:
        pass


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def outbox(folder: Path, publisher: Any, keep_s: float = 60.0, said: list[str] | None = None) -> Outbox:
    return Outbox(folder, publisher, keep_s=keep_s, log=(said if said is not None else []).append)


def test_what_was_not_acknowledged_is_sent_by_the_next_process(tmp_path: Path) -> None:
    publisher = Collector()
    publisher.away = True
    box = outbox(tmp_path, publisher)
    box.start()
    box.append([(b"k%d" % i, b"v%d" % i) for i in range(2500)])
    until(lambda: box.last_error is not None)
    box.close(timeout_s=0)
    publisher.away = False
    box = outbox(tmp_path, publisher)
    assert box.waiting == 2500
    box.start()
    until(lambda: box.waiting == 0)
    box.close()
    assert publisher.taken == [(b"k%d" % i, b"v%d" % i) for i in range(2500)]


def test_a_torn_write_is_left_out_and_said(tmp_path: Path) -> None:
    """Three whole frames, then half of a fourth: its answer never went out."""
    box = outbox(tmp_path, Collector())
    box.append([(b"k", b"v%d" % i) for i in range(4)])
    box.close(timeout_s=0)
    (path,) = tmp_path.glob("*.log")
    path.write_bytes(path.read_bytes()[:-1])
    publisher, said = Collector(), list[str]()
    box = outbox(tmp_path, publisher, said=said)
    box.start()
    until(lambda: box.waiting == 0)
    box.close()
    assert [value for _, value in publisher.taken] == [b"v0", b"v1", b"v2"] and "no whole event" in said[0]


def test_acknowledged_events_are_kept_for_the_grace_then_dropped(tmp_path: Path) -> None:
    publisher = Collector()
    for keep_s, left in ((60.0, 1), (0.0, 0)):
        box = outbox(tmp_path / str(keep_s), publisher, keep_s=keep_s)
        box.start()
        box.append([(b"k", b"v")])
        until(lambda box=box: box.waiting == 0)
        box.close()
        box = outbox(tmp_path / str(keep_s), publisher, keep_s=keep_s)
        box.start()  # a new process opens a new file; the old one may go once it is acknowledged again
        until(lambda box=box: box.waiting == 0)
        until(lambda box=box, left=left: (box.kept_bytes > 0) == bool(left))
        box.close()


def test_two_processes_cannot_share_an_outbox(tmp_path: Path) -> None:
    box = outbox(tmp_path, Collector())
    with pytest.raises(Unavailable, match="another gateway holds it"):
        outbox(tmp_path, Collector())
    box.close(timeout_s=0)


def test_an_oversized_event_is_refused_before_it_is_written(tmp_path: Path) -> None:
    box = outbox(tmp_path, Collector())
    with pytest.raises(DataError, match="at most"):
        box.append([(b"k", b"v"), (b"k", b"v" * 300_000)])
    assert box.waiting == 0 and box.kept_bytes == 0
    box.close(timeout_s=0)


# --- the whole: real broker, real HTTP ----------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stack_settings(data: Path, poll_s: float = 0.05) -> Settings:
    return load(
        data=data,
        problems=ROOT / "problems",
        kafka={"bootstrap": f"127.0.0.1:{free_port()}", "broker": "embedded"},
        ports={"gateway": free_port(), "registry": free_port(), "prefect": free_port()},
        gateway={"poll_s": poll_s},
    )


@contextmanager
def running_broker(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command(settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ensure_topics(settings)
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def running_gateway(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """The gateway as `truing up` starts it."""
    code = (sys.executable, "-m", "uvicorn", "--factory", "truing.infra.gateway.app:create_app", "--no-access-log")
    process = subprocess.Popen(
        [*code, "--port", str(settings.ports.gateway), "--log-level", "warning"],
        env=child_environment(settings),
        cwd=settings.data,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: answers(settings), 120)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def answers(settings: Settings) -> bool:
    try:
        return httpx.get(f"{settings.gateway_url}/v2/health/live", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def served_here(settings: Settings, shelf: FolderShelf) -> Iterator[httpx.Client]:
    """The real app under uvicorn in a thread, over a folder shelf."""
    import uvicorn

    from truing.infra.gateway.app import create_app

    config = uvicorn.Config(create_app(settings, shelf=shelf), port=settings.ports.gateway, log_level="critical", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        with httpx.Client(base_url=settings.gateway_url, trust_env=False, timeout=30) as http:
            yield http
    finally:
        server.should_exit = True
        thread.join(20)


def landed(settings: Settings, topic: str | None = None) -> list[bytes]:
    """Every message of the topic, from the beginning."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(**connection(settings), auto_offset_reset="earliest", enable_auto_commit=False, api_version=(2, 5))
    topic = topic or settings.kafka.topic
    parts = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
    consumer.assign(parts)
    ends = consumer.end_offsets(parts)
    consumer.seek_to_beginning(*parts)
    found: list[bytes] = []
    stop = time.monotonic() + 20
    while any(consumer.position(part) < ends[part] for part in parts) and time.monotonic() < stop:
        for batch in consumer.poll(timeout_ms=200, max_records=10_000).values():
            found += [record.value for record in batch]
    consumer.close()
    return found


def columns_of(answer: httpx.Response) -> dict[str, list[Any]]:
    assert answer.status_code == 200, answer.text
    return {tensor["name"]: tensor["data"] for tensor in answer.json()["outputs"]}


class Stack:
    """One broker, one gateway over a folder shelf, release 1 served."""

    def __init__(self, settings: Settings, http: httpx.Client, shelf: FolderShelf, keyring: Keyring, problem: Problem) -> None:
        self.settings, self.http, self.shelf, self.keyring, self.problem = settings, http, shelf, keyring, problem

    def release(self, model: Model, sequence: int) -> None:
        files = model.to_files()
        self.shelf.put(str(sequence), files, statement(self.problem, files, self.keyring.read("release"), sequence))
        until(lambda: self.status()["problems"][self.problem.name]["sequence"] == sequence)

    def ask(self, rows: Rows, **beside: list[Any]) -> httpx.Response:
        return self.http.post(f"/v2/models/{self.problem.name}/infer", json=question(self.problem, rows, **beside))

    def status(self) -> dict[str, Any]:
        return dict(self.http.get("/status").json())

    def events(self) -> list[bytes]:
        until(lambda: self.status()["outbox"]["waiting"] == 0, 90)
        return landed(self.settings)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, problem: Problem, models: list[Model]) -> Iterator[Stack]:
    settings = stack_settings(tmp_path_factory.mktemp("gateway"))
    keyring = Keyring(settings.keys)
    keyring.create([f"{problem.name}.{source}" for source in problem.sources])
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
def test_no_answer_fails_while_releases_change_and_each_is_of_one_release(
    served: Stack, adult: Rows, models: list[Model]
) -> None:
    """Four askers, ten swaps: every answer equals what the release it names answers by itself."""
    rows = adult[600:608]
    asked = [{name: row[name] for name in served.problem.inputs} for row in rows]
    expected = [model.predict(asked).probabilities[:, 1].tolist() for model in models]
    assert expected[0] != expected[1]
    stop, wrong, seen = threading.Event(), list[str](), Counter[int]()

    def keep_asking() -> None:
        with httpx.Client(base_url=served.settings.gateway_url, trust_env=False, timeout=30) as http:
            while not stop.is_set():
                answer = http.post("/v2/models/adult/infer", json=question(served.problem, rows))
                if answer.status_code != 200:
                    wrong.append(answer.text)
                    continue
                sequence = answer.json()["parameters"]["sequence"]
                seen[sequence] += 1
                if columns_of(answer)["probability"] != expected[(sequence - 1) % 2]:
                    wrong.append(f"release {sequence} answered with another model")

    start = served.status()["problems"]["adult"]["sequence"]
    assert start % 2 == 1
    askers = [threading.Thread(target=keep_asking) for _ in range(4)]
    for asker in askers:
        asker.start()
    for sequence in range(start + 1, start + 11):
        served.release(models[(sequence - 1) % 2], sequence)
        until(lambda sequence=sequence: seen[sequence] > 0 or bool(wrong))
    stop.set()
    for asker in askers:
        asker.join(30)
    assert not wrong, wrong[:3]
    assert len(seen) >= 10


@pytest.mark.services
def test_a_release_that_expires_while_it_is_served_answers_no_more(served: Stack, adult: Rows, models: list[Model]) -> None:
    sequence = served.status()["problems"]["adult"]["sequence"] + 1
    files, key = models[0].to_files(), served.keyring.read("release")
    expires = time.time() + 1.0
    served.shelf.put(str(sequence), files, statement(served.problem, files, key, sequence, expires=expires))
    until(lambda: served.status()["problems"]["adult"]["sequence"] == sequence)
    until(lambda: time.time() > expires)
    answer = served.ask(adult[:1])
    assert answer.status_code == 503 and "expired" in answer.json()["error"]
    served.release(models[0], sequence + 1 + sequence % 2)
    assert served.ask(adult[:1]).status_code == 200


@pytest.fixture
def cached(tmp_path: Path, problem: Problem, models: list[Model]) -> Settings:
    """A data folder whose gateway can boot without any registry."""
    settings = stack_settings(tmp_path)
    keyring = Keyring(settings.keys)
    keyring.create([f"{problem.name}.{source}" for source in problem.sources])
    files = models[0].to_files()
    state = State(
        floor=2,
        statement="",
        version="3",
        payload=models[0].payload,
        envelope=statement(problem, files, keyring.read("release"), 3),
    )
    Cache(settings.data / "gateway" / problem.name).keep(state, files)
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


class House:
    """A registry with its guard, and the acts of each office on it, each under its own login."""

    def __init__(self, settings: Settings, problem: Problem, policy: Policy) -> None:
        self.settings, self.problem, self.policy = settings, problem, policy
        self.keyring = Keyring(settings.keys)
        users = ("trainer", "steward", "approver")
        self.trainer, self.steward, self.approver = (
            Registry(settings.registry_url, user, self.keyring.password(user)) for user in users
        )
        self.past: list[Release] = []

    def release(self, model: Model) -> Release:
        """Register, judge, approve, release: the whole way that a version has to go."""
        name, now = self.problem.name, time.time()
        files = model.to_files()
        candidate = Candidate(
            problem=name,
            payload=model.payload,
            parent=self.past[-1].payload if self.past else None,
            base=model.base,
            code="test",
            kind="tabular",
            dataset="d" * 64,
            trial=None,
            seed=1,
            origin="fast",
            registered=now,
        )
        version = self.trainer.register(name, files, candidate)
        if not self.past:
            self.steward.propose_policy(name, self.policy.digest)
            self.approver.accept_policy(name)
        nothing = Estimate(value=None)
        evaluation = Evaluation(
            digest="e" * 64,
            problem=name,
            candidate=model.payload,
            champion=candidate.parent,
            none=None,
            anchor=None,
            rows="r" * 64,
            n=100,
            coverage=1.0,
            cells=(),
            forgetting=nothing,
            flips=0.0,
            shift={},
            latency_ms=0.0,
            size_mb=0.0,
        )
        verdict = Verdict(
            problem=name,
            outcome=Outcome.PASS,
            clauses=(),
            candidate=model.payload,
            evaluation=seal.digest(evaluation),
            policy=self.policy.digest,
            dataset="d" * 64,
            champion=candidate.parent,
            look=1,
            at=now,
            key="test",
        )
        signed = seal.sign(verdict, seal.VERDICT_TYPE, self.keyring.read("gate"))
        self.steward.attach_verdict(name, version, signed, evaluation, "text", "<p>page</p>")
        self.approver.approve(name, version, "it is better")
        facts = self.steward.facts(name, version)
        approval = seal.open_envelope(facts.approval, Approval, seal.APPROVAL_TYPE, self.keyring.public().registry)
        assert isinstance(approval, Approval), approval
        statement = release_of(
            verdict,
            approval,
            version=version,
            name=f"{name}@{len(self.past) + 1}",
            past=self.past,
            environment={"name": "test"},
            now=now,
        )
        return self.move(statement)

    def roll_back(self, old: Release) -> Release:
        self.approver.request_rollback(self.problem.name, old.version, "people complain")
        name = f"{self.problem.name}@{len(self.past) + 1}"
        return self.move(rollback_of(old, self.past[-1], name=name, reason="people complain", environment={}, now=time.time()))

    def move(self, statement: Release) -> Release:
        signed = seal.sign(statement, seal.RELEASE_TYPE, self.keyring.read("release"))
        self.steward.attach_release(self.problem.name, statement.version, signed)
        self.steward.move_champion(self.problem.name, statement.version)
        self.past.append(statement)
        return statement


@contextmanager
def running_registry(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    code = (sys.executable, "-m", "uvicorn", "--factory", "truing.infra.registry_guard.app:create_app", "--no-access-log")
    process = subprocess.Popen(
        [*code, "--port", str(settings.ports.registry), "--log-level", "warning"],
        env=child_environment(settings),
        cwd=settings.data,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        Registry(settings.registry_url, "approver", Keyring(settings.keys).password("approver")).wait(150)
        yield process
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.services
def test_the_gateway_follows_the_real_registry(
    tmp_path: Path, problem: Problem, policy: Policy, models: list[Model], adult: Rows
) -> None:
    """Release 1, release 2, back to 1 as release 3; then the registry's disk is tampered with, and at last it is away."""
    settings = stack_settings(tmp_path, poll_s=0.3)
    Keyring(settings.keys).create([f"{problem.name}.{source}" for source in problem.sources])
    cache, aside = settings.data / "gateway", settings.data / "aside"

    def served() -> dict[str, Any]:
        return dict(httpx.get(f"{settings.gateway_url}/status", trust_env=False).json()["problems"][problem.name])

    with running_registry(settings):
        house = House(settings, problem, policy)
        with running_gateway(settings):
            assert served()["sequence"] is None
            first = house.release(models[0])
            until(lambda: served()["sequence"] == 1, 60)
            house.release(models[1])
            until(lambda: served()["sequence"] == 2, 60)
            assert served()["payload"] == models[1].payload
            house.roll_back(first)
            until(lambda: served()["sequence"] == 3, 60)
            assert served()["payload"] == models[0].payload and served()["cause"] == "rollback" and served()["floor"] == 3
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
        assert served()["sequence"] == 3, "from its cache, with registry and broker away"
        body = question(problem, adult[:3])
        answer = httpx.post(f"{settings.gateway_url}/v2/models/adult/infer", json=body, trust_env=False)
        assert answer.status_code == 200 and answer.json()["parameters"]["sequence"] == 3
