"""Ports for servers that tests and benchmarks start."""

from __future__ import annotations

import os
import socket
from typing import Any


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on now; all are held until the last is found, so they differ."""
    held = [socket.socket() for _ in range(n)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()


def free_port() -> int:
    return free_ports(1)[0]


def broker() -> dict[str, Any]:
    """Settings `kafka` on free ports: the embedded broker, or with TESTS_BROKER=kafka an Apache Kafka (TRUING_KAFKA_HOME)."""
    kind = os.environ.get("TESTS_BROKER") or "embedded"
    port, controller = free_ports(2)
    more = {"controller": controller} if kind == "kafka" else {}
    return {"bootstrap": f"127.0.0.1:{port}", "broker": kind, **more}
