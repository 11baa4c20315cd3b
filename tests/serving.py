"""What the tests of serving share: small real models, signed releases over them, and the processes around the gateway.

Nothing here pretends: models are fitted, envelopes signed, servers are the ones that `truing up` starts.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
from ports import free_ports
from waiting import until

from truing.infra.broker import command, connection, ensure_topics
from truing.infra.gateway.cache import Cache, State
from truing.infra.gateway.loader import Loader
from truing.infra.gateway.served import Shown
from truing.infra.keys import Keyring, following_public
from truing.infra.settings import Settings, child_environment, load
from truing.tasks import seal
from truing.tasks.errors import Unavailable
from truing.tasks.kinds.model import FORMAT, Calibration, Card, Model
from truing.tasks.kinds.tabular import Tabular
from truing.tasks.learning.protocol import Batch
from truing.tasks.learning.ridge import Ridge
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Approval, Candidate, Cause, Estimate, Evaluation, Head, Outcome, Release, Verdict
from truing.tasks.release.acts import Acts, Docket
from truing.tasks.release.audit import follow
from truing.tasks.release.manifest import release_of, rollback_of
from truing.tasks.release.registry import Registry

ROOT = Path(__file__).resolve().parent.parent
Rows = list[dict[str, Any]]


def settings_of(data: Path, poll_s: float = 0.05) -> Settings:
    """Settings of a gateway of its own, on free ports."""
    kafka, gateway, registry, prefect = free_ports(4)
    return load(
        data=data,
        problems=ROOT / "problems",
        kafka={"bootstrap": f"127.0.0.1:{kafka}", "broker": "embedded"},
        ports={"gateway": gateway, "registry": registry, "prefect": prefect},
        gateway={"poll_s": poll_s},
    )


def keys_in(folder: Path, problem: Problem) -> Keyring:
    """Every key of a stack of that problem, made anew."""
    keyring = Keyring(folder)
    keyring.create([f"{problem.name}.{source}" for source in problem.sources])
    return keyring


def remember(settings: Settings, problem: Problem, model: Model, keyring: Keyring, *, version: str, sequence: int) -> None:
    """A release in the gateway's cache, so that it needs no registry to boot."""
    files = model.to_files()
    release = release_over(problem, files, sequence, version=version)
    envelope = signed(release, keyring.read("release"))
    held = State(floor=sequence, statement=seal.digest(release), version=version, payload=release.payload, envelope=envelope)
    Cache(settings.data / "gateway" / problem.name).keep(held, files)


# --- models and statements ----------------------------------------------------------------------------------------------------


def small_models(problem: Problem, adult: Rows) -> list[Model]:
    """Two models of the same 300 people that differ in how strongly they are held back."""
    rows = inputs_of(problem, adult[:300])
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


def inputs_of(problem: Problem, rows: Rows) -> Rows:
    """The columns that the model reads."""
    return [{name: row[name] for name in problem.inputs} for row in rows]


def statement(problem: Problem, files: dict[str, bytes], key: bytes, sequence: int, **other: Any) -> str:
    """A signed release over `files`, as the registry shows it."""
    return signed(release_over(problem, files, sequence, **other), key)


def release_over(problem: Problem, files: dict[str, bytes], sequence: int, **other: Any) -> Release:
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
        reason=other.pop("reason", ""),
    )
    assert not other
    return release


def signed(release: Release, key: bytes) -> str:
    return seal.canonical(seal.sign(release, seal.RELEASE_TYPE, key)).decode()


def head_over(release: Release, key: bytes, *, now: float, **other: Any) -> str:
    """The steward's word that this release is the newest, for an hour."""
    head = Head(
        problem=other.pop("problem", release.problem),
        sequence=other.pop("sequence", release.sequence),
        release=seal.digest(release),
        audit=1,
        audit_digest="0" * 64,
        at=now,
        expires=other.pop("expires", now + 3600),
    )
    assert not other
    return seal.canonical(seal.sign(head, seal.HEAD_TYPE, key)).decode()


# --- the registry as a folder -------------------------------------------------------------------------------------------------


class FolderShelf:
    """A registry that is a folder: versions with their bytes, what stands as champion, the steward's head, a word of changes.

    `away` = it does not answer; `deaf` = it can't hold a question open.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shown: Shown | None = None
        self.newest = ""
        self.away = self.deaf = False
        self.downloads = self.heads = 0
        self._word = 0
        self._written = threading.Condition()

    def put(self, version: str, files: dict[str, bytes], release: str, head: str | None = None) -> None:
        folder = self.root / version
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        self.show(version, release, head)

    def show(self, version: str, release: str, head: str | None = None) -> None:
        """A guarded write: whoever waits for changes hears of it."""
        with self._written:
            self.newest = self.newest if head is None else head
            self.shown = Shown(version=version, release=release)
            self._word += 1
            self._written.notify_all()

    def champion(self, problem: str) -> Shown | None:
        self._answer()
        return self.shown

    def payload(self, problem: str, version: str) -> dict[str, bytes]:
        self._answer()
        self.downloads += 1
        return {path.name: path.read_bytes() for path in (self.root / version).iterdir()}

    def head(self, problem: str) -> str:
        self._answer()
        self.heads += 1
        return self.newest

    def changes(self, since: str, wait_s: float) -> str:
        self._answer()
        with self._written:
            if not self.deaf:
                self._written.wait_for(lambda: str(self._word) != since, timeout=wait_s)
            return str(self._word)

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("the registry is away")


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
            keys=following_public(self.keyring),
            folder=self.folder / "cache",
            poll_s=0.05,
            clock=lambda: self.now,
            log=self.said.append,
        )

    def release(self, model: Model, sequence: int, *, head: str | None = None, **other: Any) -> Release:
        """A release on the shelf with a fresh head that names it, or with `head` ("" = none)."""
        files = model.to_files()
        key = other.pop("key", self.keyring.read("release"))
        release = release_over(self.problem, files, sequence, **other)
        fresh = head_over(release, self.keyring.read("release"), now=self.now)
        self.shelf.put(release.version, files, signed(release, key), fresh if head is None else head)
        return release

    def boot(self) -> None:
        """End this gateway and start the next one."""
        self.loader = self.another()
        self.loader.boot(self.problem.name)

    def look(self) -> bool:
        return self.loader.look(self.problem.name)

    @property
    def sequence(self) -> int | None:
        served = self.loader.served(self.problem.name)
        return served.release.sequence if served else None

    @property
    def refusal(self) -> str:
        return self.loader.refusal(self.problem.name) or ""

    @property
    def withdrawn(self) -> str:
        return self.loader.withdrawn(self.problem.name) or ""


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


# --- processes ----------------------------------------------------------------------------------------------------------------


@contextmanager
def running_broker(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    null = subprocess.DEVNULL
    process = subprocess.Popen(command(settings), env=child_environment(settings), stdout=null, stderr=null)
    try:
        ensure_topics(settings, 90.0)
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
        until(lambda: answers(settings) or process.poll() is not None)
        assert process.poll() is None, "the gateway ended"
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
        asked = self.docket().rollback
        assert asked is not None
        return self.move(self._back(old, "people complain", asked.line))

    def withdraw(self, old: Release) -> Release:
        """Revoked by a person while it serves, and nothing else stands."""
        self.approver.revoke(self.problem.name, old.version, "it harms")
        decision = self.docket().decision(old.version)
        assert decision is not None
        statement = self._back(old, "revoked by approver: it harms", decision.line)
        return self.move(msgspec.structs.replace(statement, cause=Cause.WITHDRAW))

    def docket(self) -> Docket:
        """What the audit says of the problem."""
        keys = self.keyring.public().registry
        acts = Acts(keys)
        for line in follow(self.steward.audit(0), keys=keys):
            acts.apply(line)
        return acts.of(self.problem.name)

    def _back(self, old: Release, reason: str, asked: str) -> Release:
        name = f"{self.problem.name}@{len(self.past) + 1}"
        return rollback_of(
            old, self.past[-1], name=name, reason=reason, environment={"name": "test"}, now=time.time(), asked=asked
        )

    def move(self, statement: Release) -> Release:
        """As the steward does it: the statement, a head that names it, then the alias."""
        key = self.keyring.read("release")
        self.steward.attach_release(self.problem.name, statement.version, seal.sign(statement, seal.RELEASE_TYPE, key))
        self.steward.attach_head(self.problem.name, head_over(statement, key, now=time.time()))
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
        approver = Registry(settings.registry_url, "approver", Keyring(settings.keys).password("approver"))
        until(lambda: approver.rest.alive() or process.poll() is not None, 150)
        assert process.poll() is None, "the registry ended"
        yield process
    finally:
        process.terminate()
        process.wait(20)
