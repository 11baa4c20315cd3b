"""How the stack is: parts, served releases, what waits for a person, how far ingest is behind, runs, disk. Reads only."""

from __future__ import annotations

import shutil
import time
from datetime import datetime
from typing import Any

from truing.infra.calls import call
from truing.infra.catalog import catalog
from truing.infra.heartbeat import last_beat
from truing.infra.keys import keyring
from truing.infra.processes import living, memory
from truing.infra.settings import Settings
from truing.infra.stack import Stack
from truing.tasks.errors import TruingError, Unavailable

LOCKS = "locks not separated: all parts run as one user; whoever can read {keys} can do anything"
SEPARATED = "locks separated: each part runs under an account of its own"


def locks(settings: Settings) -> str:
    """One line for people: who could open what."""
    return SEPARATED if settings.accounts.separate else LOCKS.format(keys=settings.keys)


def status(settings: Settings, *, light: bool = False) -> dict[str, Any]:
    """Everything as plain data. A part that does not answer leaves its place None with the reason in `notes`.

    `light` leaves out what needs the lake (ingest's lag), which costs half a second of imports.
    """
    stack = Stack(settings)
    states = stack.states()
    sizes = memory([state["pid"] for state in states.values() if state["pid"]])
    parts = []
    for part in stack.parts:
        state = states.get(part.name)
        beat = last_beat(settings, part.name)
        pid = (state or {}).get("pid") or None
        parts.append(
            {
                "part": part.name,
                "state": state["statename"].lower() if state else "down",
                "healthy": bool(state) and stack.healthy(part, state or {}),
                "pid": pid,
                "up_s": round(time.time() - state["start"]) if state and pid else None,
                "memory_mb": round(sizes[pid] / 1e6) if pid in sizes else None,
                "beat_s": round(time.time() - float(beat["at"]), 1) if beat else None,
                "where": part.says,
            }
        )
    up = bool(states)
    notes: list[str] = []
    found: dict[str, Any] = {
        "up": up,
        "healthy": up and all(part["healthy"] for part in parts),
        "data": str(settings.data),
        "parts": parts,
        "memory_mb": sum(part["memory_mb"] or 0 for part in parts),
        "problems": [_problem(settings, name, notes, up=up) for name in catalog(settings.problems)],
        "lag": None if light or not up else _guarded(notes, "lag", lambda: _lag(settings)),
        "runs": _guarded(notes, "runs", lambda: _runs(settings)) if up else None,
        "disk": _disk(settings),
        "orphans": 0 if up else len(living(settings.data)),
        "locks": locks(settings),
        "notes": notes,
    }
    return found


def _guarded(notes: list[str], name: str, act: Any) -> Any:
    try:
        return act()
    except TruingError as error:
        notes.append(f"{name}: {error}")
        return None


def _problem(settings: Settings, name: str, notes: list[str], *, up: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"problem": name, "served": None, "champion": None, "anchor": None, "waiting": [], "frozen": None}
    if not up:
        return found
    gateway = _guarded(notes, "gateway", lambda: call("GET", f"{settings.gateway_url}/status", timeout=3.0, ca=settings.tls.ca))
    if isinstance(gateway, dict):
        found["served"] = gateway.get("problems", {}).get(name)
    registry = _guarded(notes, "registry", lambda: _registry(settings, name))
    return found | (registry or {})


def _registry(settings: Settings, name: str) -> dict[str, Any]:
    from truing.infra.logins import registry_as
    from truing.tasks.errors import DataError

    registry = registry_as(settings, "trainer", timeout_s=5.0)
    try:
        model = registry.model(name)
        versions = registry.versions(name)
    except DataError:  # no version yet
        return {"versions": 0}
    finally:
        registry.close()
    champion = int(model.champion or 0)
    waiting = [
        {"version": one.version, "outcome": str(one.outcome or "undecided"), "reason": one.tags.get("verdict.reason", "")}
        for one in versions
        if one.number > champion and one.approval is None and str(one.outcome) != "block"
    ]
    proposed, accepted = model.tags.get("policy.proposed"), model.tags.get("policy.accepted")
    return {
        "champion": model.champion,
        "anchor": model.anchor,
        "frozen": model.frozen,
        "versions": len(versions),
        "waiting": waiting,
        "policy": {"accepted": accepted, "proposed": proposed, "pending": bool(proposed) and proposed != accepted},
    }


def _lag(settings: Settings) -> dict[str, Any]:
    """Messages on the topic that have not landed, by partition; positions come from the vault, ends from the broker."""
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError

    from truing.infra.broker import connection, quiet_client
    from truing.tasks.events.lake import Vault

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
    used = sum(path.stat().st_size for path in settings.data.rglob("*") if path.is_file() and not path.is_symlink())
    return {"used_mb": round(used / 1e6), "free_mb": round(shutil.disk_usage(settings.data).free / 1e6)}
