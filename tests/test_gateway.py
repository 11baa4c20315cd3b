"""The gateway: what it answers, what it refuses to serve, and that no answer goes out without its event."""

from __future__ import annotations

import os
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
from truing.tasks.problem import Problem
from truing.tasks.records import Cause, Release

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
    units = kind.encode(rows)
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
        {"name": name.replace("__", ":"), "shape": [len(data)], "datatype": "BYTES", "data": data} for name, data in beside.items()
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


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
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
