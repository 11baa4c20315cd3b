"""Ports for servers that tests and benchmarks start."""

from __future__ import annotations

import os
import random
from typing import Any

from truing.infra.processes import taken

# Below those that Linux gives outgoing connections (from 32,768): one of them could hold a server's port while it restarts.
RANGE = range(12_000, 32_000)
_given: set[int] = set()


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on now, and that this process has not given out before."""
    found: list[int] = []
    while len(found) < n:
        port = random.SystemRandom().choice(RANGE)
        if port not in _given and taken("127.0.0.1", port) is None:
            _given.add(port)
            found.append(port)
    return found


def free_port() -> int:
    return free_ports(1)[0]


def broker() -> dict[str, Any]:
    """Settings `kafka` on free ports: the embedded broker, or with TESTS_BROKER=kafka an Apache Kafka (TRUING_KAFKA_HOME)."""
    kind = os.environ.get("TESTS_BROKER") or "embedded"
    port, controller = free_ports(2)
    more = {"controller": controller} if kind == "kafka" else {}
    return {"bootstrap": f"127.0.0.1:{port}", "broker": kind, **more}
