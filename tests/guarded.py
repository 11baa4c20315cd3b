"""A registry behind its guard for the tests of it: one process, every login at hand, and a steward in a few lines."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from ports import free_port

from truing.infra import settings as settings_module
from truing.infra.keys import Keyring
from truing.infra.settings import Settings
from truing.tasks.records import Candidate, Outcome, Release, Verdict
from truing.tasks.release.acts import Acts, Docket
from truing.tasks.release.audit import Line, follow, read
from truing.tasks.release.promotion import plan_promotion
from truing.tasks.release.proof import statements
from truing.tasks.release.registry import Registry
from truing.tasks.seal import RELEASE_TYPE, VERDICT_TYPE, Facts, canonical, sign, tree_digest

POLICY = "ab" * 32
NAMES = (f"p{n}" for n in itertools.count(1))


class Server:
    """The registry's process on a data folder: it can be killed and started again."""

    def __init__(self, data: Path, port: int, **more: Any) -> None:
        self.data, self.port, self.problems = data, port, more.get("problems", Path("problems"))
        self._settings = Settings(data=data, **more)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "uvicorn", "--factory", "truing.infra.registry_guard.app:create_app",
            "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning",
        ]  # fmt: skip
        env = settings_module.child_environment(self._settings)
        with (self.data / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=env, cwd=self.data, stdout=log, stderr=log)

    def kill(self) -> None:
        """At once, as a crash does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(20)


class World:
    """A running registry, and every login at hand."""

    def __init__(self, data: Path, url: str, keyring: Keyring, server: Server) -> None:
        self.data, self.url, self.keyring, self.server = data, url, keyring, server
        self.users = {
            u: Registry(url, u, keyring.password(u)) for u in ("trainer", "steward", "approver", "approver2", "admin")
        }
        self.trainer, self.steward = self.users["trainer"], self.users["steward"]
        self.approver, self.second = self.users["approver"], self.users["approver2"]
        self.keys = keyring.public()
        self.counter = itertools.count()
        self._standing: dict[Outcome, tuple[str, str]] = {}

    def http(self, user: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, auth=(user, self.keyring.password(user)), trust_env=False, timeout=30)

    @contextmanager
    def mlflow(self, user: str) -> Iterator[Any]:
        """MLflow's own client, logged in."""
        import mlflow

        names = {
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": self.keyring.password(user),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }
        os.environ.update(names)
        mlflow.set_tracking_uri(self.url)
        mlflow.set_registry_uri(self.url)
        try:
            yield mlflow.MlflowClient(self.url, self.url)
        finally:
            for name in names:
                os.environ.pop(name, None)

    def problem(self, name: str = "", policy: str = POLICY) -> str:
        """A fresh problem whose policy is accepted."""
        name = name or next(NAMES)
        self.steward.propose_policy(name, policy)
        self.approver.accept_policy(name)
        return name

    def candidate(self, problem: str, parent: str | None = None) -> tuple[str, dict[str, bytes]]:
        files = {"model.json": b'{"n": %d}' % next(self.counter), "deep/weights.safetensors": os.urandom(2000)}
        return self.register(problem, files, parent), files

    def register(self, problem: str, files: dict[str, bytes], parent: str | None = None) -> str:
        made = Candidate(
            problem=problem, payload=tree_digest(files), parent=parent, base="base", code="0.1", kind="tabular",
            dataset="dd" * 32, trial=None, seed=1, origin="fast", registered=1.0, rows=120,
        )  # fmt: skip
        return self.trainer.register(problem, files, made)

    def verdict(self, problem: str, version: str, outcome: Outcome, **changes: Any) -> Verdict:
        reason = {
            Outcome.BLOCK: "women's TPR fell 12.1 points (7.3 to 16.9)",
            Outcome.INCONCLUSIVE: "no champion",
            Outcome.PASS: "",
        }[outcome]
        payload = self.steward.version(problem, version).payload or ""
        champion = self.steward.champion(problem)
        fields: dict[str, Any] = {
            "problem": problem, "outcome": outcome, "clauses": (), "candidate": payload, "evaluation": "ee" * 32,
            "policy": POLICY, "dataset": "dd" * 32, "look": 1, "at": time.time(), "key": "gate", "reason": reason,
            "champion": self.steward.version(problem, champion).payload if champion else None,
        }  # fmt: skip
        return Verdict(**(fields | changes))

    def judge(self, problem: str, version: str, outcome: Outcome, **changes: Any) -> Verdict:
        """The verdict alone; `attach_verdict` with all that goes with it has its own test."""
        verdict = self.verdict(problem, version, outcome, **changes)
        envelope = sign(verdict, VERDICT_TYPE, self.keyring.read("gate"))
        self.steward.set_tag(problem, version, "verdict", canonical(envelope).decode())
        return verdict

    def judged(self, outcome: Outcome) -> tuple[str, str]:
        problem = self.problem()
        version, _ = self.candidate(problem)
        self.judge(problem, version, outcome)
        return problem, version

    def standing(self, outcome: Outcome) -> tuple[str, str]:
        """A judged version for tests that leave it as it is."""
        if outcome not in self._standing:
            self._standing[outcome] = self.judged(outcome)
        return self._standing[outcome]

    def release(self, problem: str, version: str) -> Release:
        """What the steward does."""
        docket, past = self.docket(problem), self.past(problem)
        registered, decision = docket.versions[version], docket.decision(version)
        facts = Facts(
            problem=problem, version=version, payload=registered.payload, verdict=docket.verdicts.get(version),
            approval=decision.envelope if decision else None, policy=docket.policy, trainer=registered.trainer,
            frozen=docket.frozen, override=2, standing=docket.standing.envelope if docket.standing else None,
            champion=past[-1].payload if past else None,
        )  # fmt: skip
        plan = plan_promotion(facts, past=past, keys=self.keys, environment={"name": "test"}, now=time.time())
        assert isinstance(plan, Release), plan
        self.attach(plan)
        self.steward.move_champion(problem, version)
        return plan

    def attach(self, release: Release) -> None:
        self.steward.attach_release(release.problem, release.version, sign(release, RELEASE_TYPE, self.keyring.read("release")))

    def docket(self, problem: str) -> Docket:
        """What the audit says of a problem, checked, as the steward sees it over HTTP."""
        acts = Acts(self.keys.registry)
        for line in follow(self.steward.rest.audit(0), keys=self.keys.registry):
            acts.apply(line)
        return acts.of(problem)

    def past(self, problem: str) -> list[Release]:
        return statements(self.docket(problem), self.keys)

    def released(self) -> tuple[str, str]:
        problem, version = self.judged(Outcome.INCONCLUSIVE)
        self.approver.approve(problem, version, "first release, seen by hand")
        self.release(problem, version)
        return problem, version

    def behind(self, statement: str, *values: Any, base: str = "mlflow.db") -> None:
        """An edit in the database, past the guard."""
        with sqlite3.connect(self.data / "registry" / base, timeout=20) as connection:
            connection.execute(statement, values)
        connection.close()

    def mlflow_model(self, problem: str, version: str) -> str:
        """The id of the logged model that a version was registered from."""
        raw = self.trainer.rest.get("/model-versions/get", name=problem, version=version)["model_version"]
        return str(raw["source"]).rpartition("/")[2]

    def put(self, problem: str, version: str, key: str, value: str) -> None:
        """A version's tag, written into the database."""
        self.behind(
            "insert or replace into model_version_tags (workspace, name, version, key, value) values ('default', ?, ?, ?, ?)",
            problem, int(version), key, value,
        )  # fmt: skip

    def put_model(self, problem: str, key: str, value: str) -> None:
        self.behind(
            "insert or replace into registered_model_tags (workspace, name, key, value) values ('default', ?, ?, ?)",
            problem, key, value,
        )  # fmt: skip

    def audit(self) -> list[Line]:
        return list(read(self.data / "guard" / "audit.jsonl"))


def problems_with_two_eyes(folder: Path) -> Path:
    """Problem folders: `twoeyes` is like adult, but two approvers may together release what is blocked."""
    own = folder / "twoeyes"
    shutil.copytree(Path(__file__).resolve().parent.parent / "problems" / "adult", own)
    (own / "problem.toml").write_text((own / "problem.toml").read_text().replace('name = "adult"', 'name = "twoeyes"', 1))
    policy = (own / "policy.toml").read_text().split("[approvals]")
    rest = policy[1].partition("\n[")  # the tables after it, if there are any
    mine = '[approvals]\nblock_persons = 2\ninconclusive_expires = "3d"\n'
    (own / "policy.toml").write_text(policy[0] + mine + rest[1] + rest[2])
    return folder


@contextmanager
def serving(data: Path, **more: Any) -> Iterator[World]:
    """A registry of its own on an empty folder, ended with the block."""
    keyring = Keyring(data / "keys")
    keyring.create([])
    server = Server(data, free_port(), **more)
    server.start()
    made = World(data, f"http://127.0.0.1:{server.port}", keyring, server)
    try:
        made.trainer.wait(120)
        yield made
    finally:
        server.stop()
        for registry in made.users.values():
            registry.close()


def refused(answer: httpx.Response) -> str:
    assert answer.status_code == 403, (answer.status_code, answer.text)
    body = answer.json()
    assert body["error_code"] == "PERMISSION_DENIED"
    assert "\n" not in body["message"]
    return str(body["message"])


def mlflow_refusal(act: Any) -> str:
    from mlflow.exceptions import RestException

    with pytest.raises(RestException) as caught:
        act()
    assert caught.value.error_code == "PERMISSION_DENIED"
    return str(caught.value)
