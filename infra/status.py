"""How the stack is: parts, served releases, what waits for a person, how far ingest is behind, runs, disk. Reads only."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec

from truing.infra.calls import call
from truing.infra.catalog import catalog
from truing.infra.heartbeat import age, last_beat
from truing.infra.keys import keyring
from truing.infra.pending import expiring, pending
from truing.infra.preflight import reachable
from truing.infra.processes import living, memory
from truing.infra.programs import Program, socket_path
from truing.infra.refused import refused
from truing.infra.settings import Settings
from truing.infra.stack import Stack
from truing.tasks.errors import DataError, Refused, TruingError, Unavailable
from truing.tasks.policy import Policy

LOCKS = "locks not separated: all parts run as one user; whoever can read {keys} can do anything"
SEPARATED = "locks separated: each part runs under an account of its own"


def locks(settings: Settings) -> str:
    """One line for people: who could open what."""
    return SEPARATED if settings.accounts.separate else LOCKS.format(keys=settings.keys)


def status(settings: Settings, *, light: bool = False) -> dict[str, Any]:
    """Everything as plain data. A part that does not answer leaves its place None with the reason in `notes`.

    `light` leaves out what needs the lake (lag, what was refused): half a second of imports. What can be asked at once is.
    """
    stack = Stack(settings)
    states = stack.states()
    notes: list[str] = []
    closed = not states and _supervisor_closed(settings)
    if closed:
        notes.append("parts: their supervisor answers root only; health is by what answers; run `truing status` as root")
    up = bool(states) or closed
    names = catalog(settings.problems)
    with ThreadPoolExecutor(max_workers=8) as at_once:
        parts = at_once.submit(_parts, settings, stack, states, closed)
        problems = at_once.submit(_problems, settings, {name: policy for name, (_, policy) in names.items()}, notes, up)
        lag = None if light or not up else at_once.submit(_guarded, notes, "lag", lambda: _lag(settings))
        out = None if light else at_once.submit(_guarded, notes, "refused", lambda: refused(settings, names, now=time.time()))
        runs = at_once.submit(_guarded, notes, "runs", lambda: _runs(settings)) if up else None
        parked = None if light else at_once.submit(_guarded, notes, "parking", lambda: parking(settings))
        findings = at_once.submit(_guarded, notes, "findings", lambda: _findings(settings))
        disk = at_once.submit(_disk, settings)
    shown = parts.result()
    return {
        "up": up and (not closed or any(part["healthy"] for part in shown)),
        "healthy": bool(states) and all(part["healthy"] for part in shown),
        "data": str(settings.data),
        "parts": shown,
        "memory_mb": sum(part["memory_mb"] or 0 for part in shown),
        "problems": problems.result(),
        "findings": findings.result(),
        "lag": lag.result() if lag else None,
        "refused": out.result() if out else None,
        "parking": parked.result() if parked else None,
        "runs": runs.result() if runs else None,
        "disk": disk.result(),
        "orphans": 0 if up else len(living(settings.data)),
        "locks": locks(settings),
        "notes": notes,
    }


def _parts(settings: Settings, stack: Stack, states: dict[str, dict[str, Any]], closed: bool) -> list[dict[str, Any]]:
    """With `closed` the supervisor tells us nothing, and what answers or beats counts as running."""
    sizes = memory([state["pid"] for state in states.values() if state["pid"]])

    def one(part: Program) -> dict[str, Any]:
        state = states.get(part.name)
        beat = last_beat(settings, part.name)
        pid = (state or {}).get("pid") or None
        asked = state or ({"statename": "RUNNING", "pid": beat and beat["pid"]} if closed else None)
        healthy = asked is not None and stack.healthy(part, asked)
        return {
            "part": part.name,
            "state": state["statename"].lower() if state else "answers" if healthy else "down",
            "healthy": healthy,
            "pid": pid,
            "up_s": round(time.time() - state["start"]) if state and pid else None,
            "memory_mb": round(sizes[pid] / 1e6) if pid in sizes else None,
            "beat_s": None if (since := age(beat)) is None else round(since, 1),
            "where": part.says,
        }

    with ThreadPoolExecutor(max_workers=8) as at_once:
        return list(at_once.map(one, stack.parts))


def _supervisor_closed(settings: Settings) -> bool:
    """It is there, and this user may not talk to it: accounts are separate, and it is root's."""
    path = socket_path(settings)
    try:
        return path.exists() and not os.access(path, os.R_OK | os.W_OK)
    except PermissionError:
        return True


def _guarded(notes: list[str], name: str, act: Any) -> Any:
    try:
        return act()
    except TruingError as error:
        notes.append(f"{name}: {error}")
        return None


def _problems(settings: Settings, policies: dict[str, Policy], notes: list[str], up: bool) -> list[dict[str, Any]]:
    """Every problem: what serves, and what people have to know about it."""
    nothing: dict[str, Any] = {
        "served": None,
        "champion": None,
        "anchor": None,
        "waiting": [],
        "frozen": None,
        "expiring": None,
    }
    if not up:
        return [{"problem": name, **nothing} for name in policies]
    gateway = _guarded(notes, "gateway", lambda: call("GET", f"{settings.gateway_url}/status", timeout=3.0, ca=settings.tls.ca))
    served = gateway.get("problems", {}) if isinstance(gateway, dict) else {}
    found = _guarded(notes, "registry", lambda: _pending(settings, policies)) or {}
    now = time.time()
    return [
        {"problem": name, **nothing, "served": served.get(name), "expiring": expiring(served.get(name), now)}
        | found.get(name, {})
        for name in policies
    ]


def _pending(settings: Settings, policies: dict[str, Policy]) -> dict[str, dict[str, Any]]:
    from truing.infra.evidence import visitor

    keys, registry = keyring(settings).public(), visitor(settings, timeout_s=5.0)
    found: dict[str, dict[str, Any]] = {}
    try:
        for name, policy in policies.items():
            try:
                found[name] = pending(settings, registry, name, policy, keys)
            except (DataError, Refused):  # no version yet, which MLflow may call forbidden
                found[name] = {"versions": 0}
    finally:
        registry.close()
    return found


def _findings(settings: Settings) -> list[dict[str, Any]] | None:
    """What the steward found to differ and is still so; None where this user can't see it."""
    from truing.tasks.release.findings import open_findings

    path = settings.desk / "findings.jsonl"
    if settings.desk.exists() and not os.access(settings.desk, os.X_OK):
        return None
    if not path.exists():
        return []
    found = open_findings(path, keyring(settings).public())
    return [{**msgspec.structs.asdict(one), "key": one.key} for one in found]


def _lag(settings: Settings) -> dict[str, Any]:
    """Messages on the topic that have not landed, by partition; positions come from the vault, ends from the broker."""
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError

    from truing.infra.broker import connection, quiet_client
    from truing.tasks.tables.lake import Vault

    if not reachable(settings.kafka.bootstrap, 1.0):  # the client would go on trying for half a minute
        raise Unavailable(f"the broker at {settings.kafka.bootstrap}: expected its offsets, got no answer; see its log")
    quiet_client()
    topic = settings.kafka.topic
    try:
        consumer = KafkaConsumer(**connection(settings), request_timeout_ms=5000)
        try:
            numbers = sorted(consumer.partitions_for_topic(topic) or ())
            ends = consumer.end_offsets([TopicPartition(topic, number) for number in numbers])
        finally:
            consumer.close()
    except (KafkaError, OSError) as error:
        raise Unavailable(f"the broker at {settings.kafka.bootstrap}: expected its offsets, got {error}") from None
    landed: dict[int, int] = {}
    epochs: dict[int, int] = {}
    for (number, epoch), following in (Vault(settings.vault).positions(topic) if settings.vault.exists() else {}).items():
        if epoch >= epochs.get(number, -1):
            epochs[number], landed[number] = epoch, following
    lines = {number: max(0, end - landed.get(number, 0)) for (_, number), end in sorted(ends.items())}
    return {"topic": topic, "behind": sum(lines.values()), "landed": sum(landed.values()), "by_partition": lines}


def parking(settings: Settings) -> dict[str, dict[str, int]] | None:
    """{problem: {reason: words}}: what waits for its prediction, what was set aside; None where there is no vault to see."""
    from truing.tasks.events.parking import counts, set_aside
    from truing.tasks.tables.lake import Vault

    if not settings.vault.exists() or not os.access(settings.vault, os.R_OK | os.X_OK):
        return None
    problems = {name: problem for name, (problem, _) in catalog(settings.problems).items()}
    return counts(set_aside(Vault(settings.vault), problems, now=time.time()))


def prefect_call(settings: Settings, method: str, path: str, body: Any = None, *, missing: bool = False) -> Any:
    """One call of Prefect's API with the stack's login; with `missing`, a 404 is None."""
    user, _, password = keyring(settings).read("prefect-auth").decode().partition(":")
    url, ca = f"{settings.prefect_url}{path}", settings.tls.ca
    return call(method, url, body, login=(user, password), timeout=5.0, missing=missing, ca=ca)


def _runs(settings: Settings) -> list[dict[str, Any]]:
    """Each deployment's last finished or running run and its next scheduled one."""
    deployments = prefect_call(settings, "POST", "/deployments/filter", {"limit": 200})
    flows = {flow["id"]: flow["name"] for flow in prefect_call(settings, "POST", "/flows/filter", {"limit": 200})}
    found = []
    for one in deployments:
        mine = {"deployments": {"id": {"any_": [one["id"]]}}, "limit": 1}
        last = prefect_call(
            settings,
            "POST",
            "/flow_runs/filter",
            mine | {"sort": "START_TIME_DESC", "flow_runs": {"start_time": {"is_null_": False}}},
        )
        coming = prefect_call(
            settings,
            "POST",
            "/flow_runs/filter",
            mine | {"sort": "EXPECTED_START_TIME_ASC", "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}},
        )
        found.append(
            {
                "run": f"{flows.get(one['flow_id'], '?')}/{one['name']}",
                "last": last[0]["state_name"] if last else None,
                "at": _unix(last[0]["start_time"]) if last else None,
                "next": _unix(coming[0]["expected_start_time"]) if coming else None,
            }
        )
    return sorted(found, key=lambda line: str(line["run"]))


def _unix(text: str | None) -> float | None:
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _disk(settings: Settings) -> dict[str, Any]:
    if not settings.data.exists():
        return {"used_mb": 0, "free_mb": None}
    used = 0
    for folder, _, files in os.walk(settings.data):  # what vanishes meanwhile, or is closed to us, is not counted
        for name in files:
            with suppress(OSError):
                used += os.lstat(os.path.join(folder, name)).st_size
    return {"used_mb": round(used / 1e6), "free_mb": round(shutil.disk_usage(settings.data).free / 1e6)}
