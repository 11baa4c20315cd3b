"""The demo under fire: each part is killed with SIGKILL in mid-story, and the story goes on without loss or double."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import psutil
import pytest

from truing.infra.processes import living
from truing.tasks.tables.lake import Lake, Vault

TRUING = Path(sys.executable).with_name("truing")
PATIENCE_S = 240


class Story:
    """`truing demo` in a subprocess, told line by line."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.lines: list[str] = []
        self._fresh: queue.Queue[str] = queue.Queue()
        command = [str(TRUING), "demo", "--rounds", "3", "--data", str(data), "--report", str(data.parent / "report.html")]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            self._fresh.put(line)

    def until(self, words: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                if words in self._fresh.get(timeout=1.0):
                    return
            except queue.Empty:
                assert self.process.poll() is None, f"the demo ended before {words!r}:\n" + "\n".join(self.lines[-20:])
        pytest.fail(f"no {words!r} within {PATIENCE_S} s:\n" + "\n".join(self.lines[-20:]))

    def status(self) -> dict[str, dict[str, object]]:
        told = subprocess.run([TRUING, "status", "--json", "--data", self.data], capture_output=True, text=True, check=False)
        return {part["part"]: part for part in json.loads(told.stdout)["parts"]}

    def kill(self, part: str) -> None:
        os.kill(int(str(self.status()[part]["pid"])), signal.SIGKILL)

    def kill_improve(self) -> None:
        """The process of the improve run, as soon as there is one."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for process in living(self.data):
                try:
                    if process.environ().get("PREFECT__FLOW_RUN_ID") and "prefect" in " ".join(process.cmdline()):
                        process.kill()
                        return
                except psutil.Error:
                    continue
            time.sleep(0.05)
        pytest.fail("no improve run started")

    def kill_supervisor(self) -> None:
        pid = int((self.data / "run" / "supervisor.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        subprocess.run([TRUING, "up", "--data", self.data], check=True, capture_output=True, timeout=PATIENCE_S)


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    told = Story(tmp_path / "demo")
    yield told
    if told.process.poll() is None:
        told.process.send_signal(signal.SIGINT)
        told.process.wait(60)
    subprocess.run([TRUING, "down", "--data", told.data], check=False, capture_output=True, timeout=120)


@pytest.mark.services
@pytest.mark.slow
def test_every_part_may_be_killed_and_nothing_is_lost_or_doubled(story: Story) -> None:
    """SIGKILL once each of ingest, improve, steward, gateway and the supervisor. For records that the broker's log had."""
    shots: list[tuple[str, Callable[[], None]]] = [
        ("Round 1", lambda: story.kill("ingest")),  # while traffic pours in
        ("outcomes came after", story.kill_improve),
        ("candidate v2", lambda: story.kill("steward")),  # while it judges
        ("Round 2", lambda: story.kill("gateway")),  # while it answers
        ("Round 3", story.kill_supervisor),
    ]
    for words, shoot in shots:
        story.until(words)
        shoot()
    assert story.process.wait(PATIENCE_S * 2) == 0, "\n".join(story.lines[-30:])

    vault, lake = Vault(story.data / "vault"), Lake(story.data / "lake")
    landing = vault.read("landing", columns=["topic", "partition", "offset", "epoch", "event_id", "source", "disposition"])
    positions = landing.select("topic", "partition", "offset", "epoch")
    assert positions.n_unique() == landing.height, "a message landed twice"
    landed = landing.filter(pl.col("disposition") == "landed")
    assert landed.select("source", "event_id").n_unique() == landed.height, "an event counts twice"
    assert landing.filter(pl.col("disposition") == "dead").is_empty()
    told = next(line for line in story.lines if line.startswith("Events: "))
    acknowledged = int(told.split()[1].replace(",", ""))
    assert landed.height == acknowledged, told
    rows = pl.concat([lake.rows("adult"), vault.holdout("adult", now=time.time(), matured=False)])
    predictions = landing.filter(pl.col("event_id").str.starts_with("prediction:"), pl.col("disposition") == "landed")
    assert rows["id"].n_unique() == rows.height
    assert rows.filter(pl.col("release").is_not_null()).height == predictions.height > 0
