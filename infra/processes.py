"""Whose process is it: our own by an environment marker, a port's owner by its socket.

The marker outlives a killed supervisor: whatever carries `TRUING_STACK=<digest of the data folder>` belongs to that stack.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from truing.tasks.errors import Unavailable

MARKER = "TRUING_STACK"


def marker(data: Path) -> str:
    """Names one data folder: the first 16 hex digits of the sha256 of its absolute path."""
    return hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:16]


def living(data: Path) -> list[psutil.Process]:
    """Living processes of the stack on `data`, without this process and those that started it."""
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    wanted = marker(data)
    found = []
    for process in psutil.process_iter():
        if process.pid in mine:
            continue
        if variable(process, MARKER) == wanted:
            found.append(process)
    return found


def variable(process: psutil.Process, name: str) -> str | None:
    """A variable that another process was started with; None if it has none, is gone, a zombie, or another user's."""
    try:
        facts = process.as_dict(["environ", "status"])
    except (psutil.Error, OSError):
        return None
    found = (facts["environ"] or {}).get(name) if facts["status"] != psutil.STATUS_ZOMBIE else None
    return None if found is None else str(found)


def reap(data: Path, *, patience_s: float = 5.0) -> int:
    """End every process of the stack on `data`: politely, then by force. Returns how many there were.

    Again until none is left: one that ends may have started another meanwhile.
    """
    count = 0
    for _ in range(5):
        processes = living(data)
        if not processes:
            break
        count += len(processes)
        for process in processes:
            _quietly(process.terminate)
        _, alive = psutil.wait_procs(processes, timeout=patience_s)
        for process in alive:
            _quietly(process.kill)
        psutil.wait_procs(alive, timeout=patience_s)
    return count


def _quietly(act: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):
        act()


def check_port(host: str, port: int, part: str, setting: str) -> None:
    """Raises Unavailable if something listens there already, naming it and the setting that moves us."""
    error = taken(host, port)
    if error is not None:
        raise Unavailable(
            f"port {port} ({part}): expected it free on {host}, got {owner(port) or error}; "
            f"stop it, set {setting}, or use --ports auto"
        )


def taken(host: str, port: int) -> str | None:
    """Why a server of ours could not listen there; None if it could."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def owner(port: int) -> str | None:
    """Who listens on a port, as `name (pid 123)`; None if that can't be seen."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        return None
    return None


def memory(pids: list[int]) -> dict[int, int]:
    """Proportional set size in bytes by pid, children included: shared pages count once over all. RSS where that is unknown."""
    sizes: dict[int, int] = {}
    for pid in pids:
        total = 0
        try:
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                try:
                    full = one.memory_full_info()
                    total += int(getattr(full, "pss", full.rss))
                except psutil.Error:
                    continue
        except psutil.Error:
            continue
        sizes[pid] = total
    return sizes
