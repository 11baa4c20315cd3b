"""What can be wrong before anything starts: a taken port, a broker that is away, a full or read-only disk, another `up`."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from truing.infra import tls
from truing.infra.accounts import reach
from truing.infra.processes import check_port
from truing.infra.programs import Program
from truing.infra.settings import Settings
from truing.tasks.errors import Unavailable


def check(settings: Settings, parts: tuple[Program, ...]) -> None:
    """Raises Unavailable, in one line with the remedy, for the first thing that would keep `parts` from running."""
    if settings.accounts.separate:
        reach(settings)
    tls.check(settings)
    seen: dict[int, str] = {}
    for part in parts:
        if part.port is None:
            continue
        if part.port in seen:
            raise Unavailable(
                f"port {part.port}: expected one part on it, got {seen[part.port]} and {part.name}; set {part.setting}"
            )
        seen[part.port] = part.name
        check_port(settings.host, part.port, part.name, part.setting)
    if settings.kafka.broker == "kafka" and any(part.name == "broker" for part in parts):
        _apache(settings, seen)
    if settings.kafka.broker == "external" and not reachable(settings.kafka.bootstrap, 5.0):
        raise Unavailable(
            f"expected a Kafka broker at {settings.kafka.bootstrap}, got no answer; start it, correct "
            "TRUING_KAFKA_BOOTSTRAP, or unset it to use the embedded one"
        )
    free = shutil.disk_usage(settings.data).free >> 20
    if free < settings.min_free_mb:
        raise Unavailable(
            f"{settings.data}: expected {settings.min_free_mb} MB free, got {free} MB; free some, set TRUING_DATA or "
            "TRUING_MIN_FREE_MB"
        )


def _apache(settings: Settings, seen: dict[int, str]) -> None:
    """Java, jars, and the second port of a Kafka that we start."""
    from truing.infra import apache

    apache.check(settings)
    port = apache.controller_port(settings)
    if port in seen:
        raise Unavailable(
            f"port {port}: expected one part on it, got {seen[port]} and the broker's controller; set TRUING_KAFKA__CONTROLLER"
        )
    check_port(apache.CONTROLLER_HOST, port, "the broker's controller", "TRUING_KAFKA__CONTROLLER")


def reachable(bootstrap: str, timeout: float) -> bool:
    """Does any of the `host:port,host:port` accept a connection?"""
    for one in bootstrap.split(","):
        host, _, port = one.strip().rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout):
                return True
        except (OSError, ValueError):
            continue
    return False


@contextmanager
def alone(data: Path, *, write: bool = True) -> Iterator[None]:
    """One `up` or `down` at a time on one data folder: a lock on `<data>/run` itself, so no lock file is left behind.

    Makes the folder. Raises Unavailable when it can't be written, or when somebody else holds it. Without `write` nothing is:
    `down` works on a full disk.
    """
    run = data / "run"
    try:
        if write:
            run.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=run):  # it has no name, so nothing is left of it
                pass
        handle = os.open(run, os.O_RDONLY)
    except OSError as error:
        raise Unavailable(
            f"expected a folder to write to at {data}, got: {error.strerror}; mend it or set TRUING_DATA"
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Unavailable(
                f"expected to be alone with {data}, got another `truing up` or `truing down` at work; wait for it"
            ) from None
        yield
    finally:
        os.close(handle)
