"""How fast does an approval serve, and a rollback; what do the locks cost; how does the stack come up and go down?

One real stack. 16 clients ask all the while; a failed answer among theirs breaks the guarantee. The registry with its guard is
measured beside MLflow's own basic-auth app under the same server, in alternating blocks of the same requests. Then `up` and
`down` in a row, with a look for processes, ports, locks and files that stayed behind.

    --cycles N     ups and downs in a row (50)
    --approvals N  approvals, one after the other (30)
    --clients RATE requests a second that each of the 16 clients asks for (5)
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import httpx
import numpy as np
from harness import Measured, main, say
from ports import free_ports
from stage import NAME, Stage, until

from truing.infra.client import Client
from truing.infra.keys import Keyring
from truing.infra.processes import living
from truing.infra.settings import child_environment
from truing.infra.stack import Stack
from truing.infra.status import status

CLIENTS = 16
BLOCKS = 8  # of requests to each of the two registries, alternating
APPROVAL_LIMIT_S, ROLLBACK_LIMIT_S, UP_LIMIT_S, MEMORY_LIMIT_MB, OVERHEAD_LIMIT = 3.0, 5.0, 20.0, 2000, 0.10


def p95(values: list[float]) -> float:
    return float(np.quantile(values, 0.95))


# --- 16 clients ---------------------------------------------------------------------------------------------------------------


@dataclass
class Crowd:
    """Clients in threads, each asking one row at a steady rate. What fails is kept in words."""

    stage: Stage
    rate: float
    asked: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def asking(self) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=self._ask, args=(stop, n), daemon=True) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)

    def _ask(self, stop: threading.Event, number: int) -> None:
        row = [self.stage.world.traffic(1)[number].inputs]
        with Client.of(self.stage.settings, NAME) as client:
            while not stop.wait(1 / self.rate):
                begun = time.perf_counter()
                try:
                    client.predict(row)
                except Exception as error:  # noqa: BLE001 - whatever it is, an answer failed
                    self.failed.append(f"{type(error).__name__}: {error}")
                self.seconds.append(time.perf_counter() - begun)
                self.asked += 1


def first_answer(stage: Stage, wanted: Callable[[Any], bool]) -> None:
    """Returns with the gateway's first answer that `wanted` takes."""
    row = [stage.world.traffic(1)[0].inputs]
    with Client.of(stage.settings, NAME) as client:
        until("an answer of the new release", lambda: wanted(client.predict(row)[0]) or None, 60.0)


def approvals(stage: Stage, n: int) -> list[float]:
    """Seconds from the approver's act to the first answer of the new version."""
    found = []
    for number in range(n):
        version = stage.judged(stage.variant())
        begun = time.perf_counter()
        stage.approver.approve(NAME, version, "passed")
        first_answer(stage, lambda answer, version=version: answer.version == version)
        found.append(time.perf_counter() - begun)
        say(f"  approval {number + 1} of {n}: version {version} answers after {found[-1]:.2f} s")
    return found


def rollbacks(stage: Stage, n: int) -> list[float]:
    """Back, and back from going back, in turn."""
    found = []
    past = [stage.status()["version"], "1"]
    for number in range(n):
        target, sequence = past[(number + 1) % 2], stage.status()["sequence"]
        begun = time.perf_counter()
        stage.approver.request_rollback(NAME, target, f"rollback {number} of the benchmark")
        first_answer(stage, lambda answer, t=target, s=sequence: answer.version == t and answer.sequence > s)
        found.append(time.perf_counter() - begun)
        say(f"  rollback {number + 1} of {n}: to version {target} after {found[-1]:.2f} s")
    return found


# --- the guard beside stock basic-auth ----------------------------------------------------------------------------------------


@dataclass
class Server:
    name: str
    url: str
    user: str
    password: str
    process: subprocess.Popen[bytes]
    rates: list[float] = field(default_factory=list)
    waits: dict[str, list[float]] = field(default_factory=lambda: {"read": [], "write": []})


def stock(folder: Path) -> Server:
    """MLflow's own auth app: same uvicorn, same SQLite, its password cache on."""
    folder.mkdir()
    port, password = free_ports(1)[0], "a-long-enough-password"
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = MANAGE\ndatabase_uri = sqlite:///{folder / 'auth.db'}\nadmin_username = admin\n"
        "auth_cache_ttl_seconds = 600\n"
    )
    store = f"sqlite:///{folder / 'mlflow.db'}"
    env = os.environ | {
        "_MLFLOW_SERVER_FILE_STORE": store, "_MLFLOW_SERVER_REGISTRY_STORE": store,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/", "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": (folder / "artifacts").as_uri(), "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password, "MLFLOW_FLASK_SERVER_SECRET_KEY": "0" * 32,
        "DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true",
    }  # fmt: skip
    return Server("stock", f"http://127.0.0.1:{port}", "admin", password, _serve("mlflow.server.auth:create_app", port, env))


def guarded(folder: Path) -> Server:
    """Ours, on a folder of its own."""
    from truing.infra.settings import load

    folder.mkdir()
    port = free_ports(1)[0]
    settings = load(data=folder, ports={"registry": port}, office="registry")
    ring = Keyring(settings.keys)
    ring.create([])
    process = _serve("truing.infra.registry_guard.app:create_app", port, child_environment(settings))
    return Server("guard", settings.registry_url, "steward", ring.password("steward"), process)


def _serve(app: str, port: int, env: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--factory",
        "--port",
        str(port),
        "--no-access-log",
        "--log-level",
        "error",
        app,
    ]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def furnish(server: Server, trainer: str, password: str) -> None:
    """One model with four versions of a few kB each, by the trainer; and the connection warm."""
    from truing.tasks import seal
    from truing.tasks.records import Candidate
    from truing.tasks.release.registry import Registry

    registry = Registry(server.url, trainer, password)
    registry.wait(120)
    for number in range(4):
        files = {"model.json": b"%d" % number * 2000, "head.safetensors": bytes(4000 + number)}
        made = Candidate(
            problem=NAME, payload=seal.tree_digest(files), parent=None, base="b", code="0", kind="tabular",
            dataset=f"d{number}", trial=None, seed=1, origin="fast", registered=1.0, rows=1,
        )  # fmt: skip
        registry.register(NAME, files, made)


def block(server: Server, n: int) -> None:
    """`n` requests by 4 connections: of ten, nine read (model, version, versions, alias's place) and one sets a tag."""
    token = base64.b64encode(f"{server.user}:{server.password}".encode()).decode()
    api = f"{server.url}/api/2.0/mlflow"
    reads: list[tuple[str, dict[str, Any]]] = [
        ("registered-models/get", {"name": NAME}),
        ("model-versions/get", {"name": NAME, "version": "2"}),
        ("model-versions/search", {"filter": f"name='{NAME}'", "max_results": 100}),
        ("experiments/search", {"max_results": 5}),
    ]

    def worker(which: int) -> list[tuple[str, float]]:
        waits = []
        with httpx.Client(headers={"Authorization": f"Basic {token}"}, trust_env=False, timeout=60) as http:
            for number in range(n // 4):
                begun = time.perf_counter()
                if number % 10 == 9:
                    kind, body = "write", {"name": NAME, "version": "3", "key": "note", "value": f"{which}-{number}"}
                    answer = http.post(f"{api}/model-versions/set-tag", json=body)
                else:
                    kind, (path, params) = "read", reads[number % 4]
                    answer = http.get(f"{api}/{path}", params=params)
                answer.raise_for_status()
                waits.append((kind, time.perf_counter() - begun))
        return waits

    begun = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        done = [wait for waits in pool.map(worker, range(4)) for wait in waits]
    server.rates.append(len(done) / (time.perf_counter() - begun))
    for kind, wait in done:
        server.waits[kind].append(wait)


def overhead(folder: Path, n: int) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and what stands beside them: requests a second and p95 of both, by alternating blocks."""
    servers = [guarded(folder / "guard"), stock(folder / "stock")]
    try:
        ring = Keyring(folder / "guard" / "keys")
        furnish(servers[0], "trainer", ring.password("trainer"))
        furnish(servers[1], "admin", servers[1].password)
        for server in servers:
            block(server, n // 4)
            server.rates.clear()
            server.waits = {"read": [], "write": []}
        for number in range(BLOCKS):
            for server in servers if number % 2 else servers[::-1]:
                block(server, n)
        guard, plain = servers
        ratios = [1 - mine / theirs for mine, theirs in zip(guard.rates, plain.rates, strict=True)]
        every = {server.name: server.waits["read"] + server.waits["write"] for server in servers}
        figures = {
            "guard_overhead": float(np.median(ratios)),
            "guard_requests_s": float(np.median(guard.rates)),
            "guard_p95_ms": 1000 * p95(every["guard"]),
            "guard_read_p95_ms": 1000 * p95(guard.waits["read"]),
            "guard_write_p95_ms": 1000 * p95(guard.waits["write"]),
            "guard_p95_overhead": p95(every["guard"]) / p95(every["stock"]) - 1,
        }
        beside = {
            "stock basic-auth requests_s": float(np.median(plain.rates)),
            "stock basic-auth p95_ms": 1000 * p95(every["stock"]),
            "stock basic-auth read p95_ms": 1000 * p95(plain.waits["read"]),
            "stock basic-auth write p95_ms": 1000 * p95(plain.waits["write"]),
            "limit of guard_overhead": OVERHEAD_LIMIT,
        }
        return figures, beside
    finally:
        for server in servers:
            server.process.terminate()
            server.process.wait(20)


# --- up and down --------------------------------------------------------------------------------------------------------------


def cycles(stage: Stage, n: int) -> tuple[list[float], list[str]]:
    """Seconds of each `up`, and what stayed behind after any `down`."""
    seconds, left = [], []
    for number in range(n):
        stack = Stack(stage.settings)
        begun = time.perf_counter()
        stack.up()
        seconds.append(time.perf_counter() - begun)
        stack.down()
        found = remains(stage)
        left += [f"cycle {number + 1}: {one}" for one in found]
        say(f"  cycle {number + 1} of {n}: up in {seconds[-1]:.1f} s, {len(found)} left behind")
    return seconds, left


def remains(stage: Stage) -> list[str]:
    """Processes, ports, locks and run files of a stack that is down."""
    settings = stage.settings
    found = [f"process {process.pid}" for process in living(settings.data)]
    ports = [settings.ports.gateway, settings.ports.registry, settings.ports.prefect]
    for port in [*ports, int(settings.kafka.bootstrap.rpartition(":")[2])]:
        with httpx.Client(trust_env=False, timeout=1.0) as http:
            try:
                http.get(f"http://127.0.0.1:{port}/")
                found.append(f"port {port}")
            except httpx.ConnectError:
                continue
            except httpx.HTTPError:
                found.append(f"port {port}")
    found += [f"file {path.name}" for path in (settings.data / "run").iterdir()]
    handle = os.open(settings.data / "run", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        found.append("lock on run/")
    finally:
        os.close(handle)
    return found


def measure(arguments: argparse.Namespace) -> Measured:
    quick = arguments.quick
    n = 3 if quick else arguments.approvals
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        folder = Path(name)
        whole = Stage(folder / "stack", parts=None)
        say("the whole stack")
        try:
            whole.up()
            crowd = Crowd(whole, arguments.clients)
            with crowd.asking():
                served = approvals(whole, n)
                back = rollbacks(whole, 2 if quick else 10)
            memory = status(whole.settings, light=True)["memory_mb"]
            say(f"  {crowd.asked} requests of {CLIENTS} clients, {len(crowd.failed)} failed; {memory} MB")
        finally:
            whole.down()
        say("ups and downs")
        ups, left = cycles(whole, 1 if quick else arguments.cycles)
        say("the registry beside stock basic-auth")
        guard, beside = overhead(folder, 200 if quick else 800)
    figures = {
        "approval_to_served_p95": p95(served),
        "approval_to_served_p50": float(np.median(served)),
        "approvals": len(served),
        "clients": CLIENTS,
        "requests": crowd.asked,
        "failed_requests": len(crowd.failed),
        "request_p95_ms": 1000 * p95(crowd.seconds),
        "rollback_p95": p95(back),
        "rollbacks": len(back),
        "up_seconds": p95(ups),
        "up_seconds_median": float(np.median(ups)),
        "cycles": len(ups),
        "left_behind": len(left),
        "memory_mb": memory,
        **guard,
    }
    beside |= {
        "limit of approval_to_served_p95": APPROVAL_LIMIT_S,
        "limit of rollback_p95": ROLLBACK_LIMIT_S,
        "limit of up_seconds": UP_LIMIT_S,
        "limit of memory_mb": MEMORY_LIMIT_MB,
    }
    broken = [*crowd.failed[:5], *left[:5]]
    return Measured(figures=figures, beside=beside, broken=broken)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--approvals", type=int, default=30)
    parser.add_argument("--clients", type=float, default=5.0)


if __name__ == "__main__":
    raise SystemExit(main("release_speed", measure, options=options))
