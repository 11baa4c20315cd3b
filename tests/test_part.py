"""One part in the foreground, as a container runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from truing.infra.accounts import create_keys
from truing.infra.catalog import catalog
from truing.infra.heartbeat import beat
from truing.infra.part import check_health, chosen
from truing.infra.settings import Settings, child_environment
from truing.infra.stack import BEAT_S
from truing.tasks.errors import SettingsError, Unavailable

In = Callable[..., Settings]


def run(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "truing.infra.part", *arguments]
    return subprocess.run(command, env=child_environment(settings), capture_output=True, text=True, check=False, timeout=60)


def test_a_part_that_is_none_is_a_usage_error_in_one_line(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    for arguments in ((), ("release",), ("gateway", "--force")):
        done = run(settings, *arguments)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "registry, prefect, runner, ingest, steward, gateway" in run(settings, "release").stderr


def test_a_container_of_ingest_is_the_keeper_of_its_pods_index(tmp_path: Path, settings_in: In) -> None:
    assert chosen(settings_in(tmp_path), "ingest").command[-1] == "0"
    second = chosen(settings_in(tmp_path, ingest={"keepers": 2, "number": 1}), "ingest")
    assert (second.name, second.command[-1]) == ("ingest-1", "1")
    with pytest.raises(SettingsError, match=r"^setting ingest\.keepers: expected more than 1 for keeper 1, got 1"):
        chosen(settings_in(tmp_path, ingest={"number": 1}), "ingest")


def test_a_sign_of_life_counts_while_it_is_fresh(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    steward = chosen(settings, "steward")
    with pytest.raises(Unavailable, match="expected a sign of life within 15 s, got none"):
        check_health(settings, steward, steady=1000.0)
    beat(settings, "steward", now=0.0, steady=1000.0)
    check_health(settings, steward, steady=1000.0 + BEAT_S)
    with pytest.raises(Unavailable, match="got the last 16 s ago"):
        check_health(settings, steward, steady=1000.0 + BEAT_S + 1)


def test_the_process_becomes_the_part_and_is_healthy_once_it_answers(tmp_path: Path, settings_in: In) -> None:
    """The pid that was started is the gateway's own: signals of whoever supervises reach it, and its office reads its keys."""
    settings = settings_in(tmp_path)
    create_keys(settings, {name: problem for name, (problem, _) in catalog(settings.problems).items()})
    assert run(settings, "gateway", "--healthy").returncode == 1
    command = [sys.executable, "-m", "truing.infra.part", "gateway"]
    process = subprocess.Popen(command, env=child_environment(settings), stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while run(settings, "gateway", "--healthy").returncode and time.monotonic() < end:
            assert process.poll() is None
        assert run(settings, "gateway", "--healthy").returncode == 0
        if os.path.isdir("/proc"):
            started = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            assert b"TRUING_OFFICE=gateway" in started
    finally:
        process.terminate()
        process.wait(20)
