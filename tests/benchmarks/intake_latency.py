"""From a sender's acknowledgement to the joined row in lake or vault, at 200 events a second, while Prefect is killed.

A whole stack but for its registry side: broker, Prefect, runner and keeper under the supervisor. Half of the events are
predictions, the others their outcomes two seconds later. A row is there when its Delta commit is: the log file's time against
the moment of the acknowledgement, on one clock, so that measuring takes nothing from what is measured. Segments are short, so
that their seams fall into the run; Prefect's server is killed in its middle. Then the same once more on a million landed rows.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from fleet import until
from harness import Measured, main, say
from intake_traffic import Maker, fill, write_problem
from ports import free_ports

from truing.infra import apache
from truing.infra.broker import connection, quiet_client
from truing.infra.keys import keyring
from truing.infra.settings import Settings, load
from truing.infra.stack import Stack
from truing.infra.status import prefect_call
from truing.tasks.errors import TruingError
from truing.tasks.events.lake import Lake, Vault
from truing.tasks.events.stream import producer

PARTS = ("broker", "prefect", "runner", "ingest")
RATE = 200  # events a second
AFTER_S = 2.0  # an outcome after its prediction
MILLION = 1_000_000


class Sender:
    """`RATE` events a second for `seconds`; `acknowledged`: (prediction, its outcome?) → Unix seconds."""

    def __init__(self, settings: Settings, prefix: int) -> None:
        ring = keyring(settings)
        self.maker = Maker(ring.read("wire"), ring.source("loan", "loans"), now=time.time(), seed=prefix)
        self.topic = settings.kafka.topic
        self.producer = producer(connection(settings), linger_ms=0)
        self.acknowledged: dict[tuple[str, bool], float] = {}
        self.failed: list[str] = []
        self._first = prefix * 100_000_000

    def run(self, seconds: float) -> None:
        begun, n = time.monotonic(), 0
        due: deque[tuple[float, int]] = deque()
        while (now := time.monotonic() - begun) < seconds or due:
            while n < min(now, seconds) * RATE / 2:
                self._send("prediction", self._first + n)
                due.append((now + AFTER_S, self._first + n))
                n += 1
            while due and due[0][0] < now:
                self._send("outcome", due.popleft()[1])
            time.sleep(0.005)
        self.producer.flush(timeout=60)
        self.producer.close(timeout=10)

    def _send(self, kind: str, n: int) -> None:
        name = f"p{n:09d}"
        key, value = self.maker.good(kind, n, prediction_id=name)
        what = name, kind == "outcome"
        sent = self.producer.send(self.topic, key=key, value=value)
        sent.add_callback(lambda _: self.acknowledged.setdefault(what, time.time()))
        sent.add_errback(lambda error: self.failed.append(str(error)))


def arrivals(root: Path, table: str) -> Iterator[tuple[tuple[str, bool], float]]:
    """(prediction, with its outcome?) and when each state of it was committed, from Delta's log."""
    for line in sorted((root / table / "_delta_log").glob("*.json")):
        at = line.stat().st_mtime
        for action in map(json.loads, line.read_text().splitlines()):
            if "add" in action and action["add"].get("dataChange"):
                frame = pl.read_parquet(root / table / unquote(action["add"]["path"]), columns=["id", "target"], glob=False)
                for name, target in frame.iter_rows():
                    yield (name, False), at
                    if target is not None:
                        yield (name, True), at


def latencies(settings: Settings, sender: Sender) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
    """Moments of acknowledgement, seconds from each to its row (not below 0), and how many have no row."""
    there: dict[tuple[str, bool], float] = {}
    for root, table in ((settings.lake, "rows"), (settings.vault, "holdout")):
        for what, at in arrivals(root, table):
            if what in sender.acknowledged:
                there[what] = min(at, there.get(what, at))
    both = sorted((at, there[what] - at) for what, at in sender.acknowledged.items() if what in there)
    moments, waits = np.array(both).reshape(-1, 2).T
    return moments, np.maximum(waits, 0.0), len(sender.acknowledged) - len(both)


def settle(settings: Settings, events: int) -> None:
    """All events landed and joined. Raises TimeoutError."""
    from truing.tasks.events.join import APP

    vault, lake = Vault(settings.vault), Lake(settings.lake)

    def done() -> bool:
        if vault.scan("landing").select(pl.len()).collect().item() < events:
            return False
        at = vault.version("landing") or 0
        return all((store.transaction(table, APP) or -1) >= at for store, table in ((lake, "rows"), (vault, "holdout")))

    until(f"{events} events to be joined", done, 900)


def spread(waits: np.ndarray[Any, Any], suffix: str = "") -> dict[str, float]:
    cuts = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    return {f"{name}{suffix}": round(float(np.percentile(waits, at)), 4) for name, at in cuts.items()}


def measure(arguments: argparse.Namespace) -> Measured:
    quiet_client()
    minutes = arguments.minutes or (0.4 if arguments.quick else 10.0)
    million = not arguments.quick and not arguments.small
    try:
        apache.check(load(kafka={"broker": "kafka"}))
        kind, why = "kafka", None
    except TruingError as error:
        kind, why = "embedded", f"null: {error}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary)
        gateway, registry, prefect, kafka, controller = free_ports(5)
        given = {"controller": controller} if kind == "kafka" else {}
        settings = load(
            data=folder / "data",
            problems=write_problem(folder / "problems"),
            ports={"gateway": gateway, "registry": registry, "prefect": prefect},
            kafka={"broker": kind, "bootstrap": f"127.0.0.1:{kafka}", **given},
            ingest={"segment_s": minutes * 60 / 10},
        )
        stack = Stack(settings, parts=PARTS)
        stack.up(lambda part, text: say(f"  {part}: {text}"))
        try:
            found = _under_fire(settings, stack, minutes)
            if million:
                found = _on_a_million(settings, found)
        finally:
            stack.down()
    figures, broken = found
    table = [f"{key:<12} {value}" for key, value in figures.items()]
    beside = {"kafka": why, "load_1m": os.getloadavg()[0]} if why else {"load_1m": os.getloadavg()[0]}
    return Measured(figures, beside, table, broken)


def _under_fire(settings: Settings, stack: Stack, minutes: float) -> tuple[dict[str, Any], list[str]]:
    until("the deployment of ingest", lambda: _runs(settings) is not None, 120)
    sender, seconds = Sender(settings, 1), minutes * 60
    pids = {name: state["pid"] for name, state in stack.states().items()}
    killer = threading.Timer(seconds / 2, lambda: os.kill(pids["prefect"], signal.SIGKILL))
    killer.start()
    begun = time.time()
    sender.run(seconds)
    took = time.time() - begun - AFTER_S
    killer.join()
    settle(settings, len(sender.acknowledged))
    until("Prefect to be back", lambda: stack.states()["prefect"]["pid"] not in (0, pids["prefect"]), 60)
    moments, waits, lost = latencies(settings, sender)
    until("Prefect to answer", lambda: _runs(settings) is not None, 120)
    seams = [one for one in _runs(settings) or [] if begun < one < begun + seconds]
    near = np.zeros(len(moments), bool)
    for seam in seams:
        near |= np.abs(moments - seam) < 2.0
    after = stack.states()
    broken = [f"{lost} acknowledged events are in no row"] if lost else []
    broken += [f"{len(sender.failed)} events were not acknowledged: {sender.failed[0]}"] if sender.failed else []
    broken += ["the keeper did not live through it"] if after["ingest"]["pid"] != pids["ingest"] else []
    figures: dict[str, Any] = {
        **spread(waits),
        "rate": round(len(sender.acknowledged) / took, 1),
        "events": len(sender.acknowledged),
        "restarts": sum(after[name]["pid"] != pid for name, pid in pids.items()),
        "seams": len(seams),
        "seam_p95": round(float(np.percentile(waits[near], 95)), 4) if near.any() else None,
        "lost": lost,
    }
    return figures, broken


def _on_a_million(settings: Settings, found: tuple[dict[str, Any], list[str]]) -> tuple[dict[str, Any], list[str]]:
    """The same for a minute, with a million events in the lake."""
    figures, broken = found
    say("  filling up to a million events")
    begun = time.monotonic()
    fill(settings, MILLION, now=time.time())
    settle(settings, MILLION + figures["events"])
    say(f"  landed and joined in {time.monotonic() - begun:.0f} s")
    sender = Sender(settings, 2)
    sender.run(60.0)
    settle(settings, MILLION + figures["events"] + len(sender.acknowledged))
    _, waits, lost = latencies(settings, sender)
    if lost:
        broken = [*broken, f"{lost} acknowledged events are in no row of the million's lake"]
    return {**figures, **spread(waits, "_1m")}, broken


def _runs(settings: Settings) -> list[float] | None:
    """When the segments of the keeper began; None while there is no deployment yet, or no answer."""
    from datetime import datetime

    try:
        if prefect_call(settings, "GET", "/deployments/name/ingest/all", missing=True) is None:
            return None
        wanted = {"flow_runs": {"tags": {"all_": ["keeper"]}}, "limit": 200}
        runs = prefect_call(settings, "POST", "/flow_runs/filter", wanted)
    except TruingError:
        return None
    return sorted(datetime.fromisoformat(one["start_time"]).timestamp() for one in runs if one["start_time"])


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, help="how long (default 10)")
    parser.add_argument("--small", action="store_true", help="without the million")
    parser.add_argument("--keep", metavar="FOLDER", help="a new folder to work in that stays, with all logs")


if __name__ == "__main__":
    raise SystemExit(main("intake_latency", measure, options=_options))
