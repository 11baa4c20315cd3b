"""From a sender's acknowledgement to the committed event, and to the joined row, at 200 events a second, Prefect killed.

A whole stack but for its registry side: broker, Prefect, runner and keeper under the supervisor. Half of the events are
predictions, the others their outcomes two seconds later. An event has landed when the Delta commit of `landing` that holds it
is there, with its Kafka position in the same commit: `landed_…`. It is joined when a commit of `rows` or `holdout` holds its
row: `p50`, `p95`, … Both by the log file's time against the moment of the acknowledgement, on one clock, so that measuring
takes nothing from what is measured. Segments are short, so that their seams fall into the run; Prefect's server is killed in
its middle. `first_p95` and `last_p95` are of the first and the last fifth: what grows with the lake shows there; `keeper_cpu`
is what the keeper's process took of one core. Then the same once more on a million landed rows.
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
from contextlib import contextmanager
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
from truing.tasks.events.stream import producer
from truing.tasks.tables.follow import entry
from truing.tasks.tables.lake import Lake, Vault

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


class Watch:
    """When each data file was committed. Taken down while the run goes on: the keeper trims its logs."""

    def __init__(self, settings: Settings) -> None:
        self.folders = {
            "landing": settings.vault / "landing",
            "rows": settings.lake / "rows",
            "holdout": settings.vault / "holdout",
        }
        self.files: dict[str, list[tuple[str, float]]] = {table: [] for table in self.folders}  # path, Unix seconds
        self._next = {}
        for table, folder in self.folders.items():
            there = [int(path.stem) for path in (folder / "_delta_log").glob("*.json")]
            self._next[table] = max(there, default=-1) + 1

    def look(self) -> None:
        for table, folder in self.folders.items():
            while (path := entry(folder, self._next[table])).exists():
                self._next[table] += 1
                for action in map(json.loads, path.read_text().splitlines()):
                    if "add" in action and action["add"]["dataChange"]:
                        self.files[table].append((str(folder / unquote(action["add"]["path"])), path.stat().st_mtime))

    @contextmanager
    def looking(self) -> Iterator[None]:
        over = threading.Event()

        def every_second() -> None:
            while not over.wait(1.0):
                self.look()

        thread = threading.Thread(target=every_second)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.look()

    def landed(self) -> Iterator[tuple[tuple[str, bool], float]]:
        """(prediction, its outcome?) and when it was committed."""
        for file, at in self.files["landing"]:
            for name, kind in pl.read_parquet(file, columns=["prediction_id", "type"], glob=False).iter_rows():
                yield (name, kind == "outcome"), at

    def joined(self) -> Iterator[tuple[tuple[str, bool], float]]:
        """(prediction, with its outcome?) and when each state of it was committed."""
        for file, at in self.files["rows"] + self.files["holdout"]:
            for name, target in pl.read_parquet(file, columns=["id", "target"], glob=False).iter_rows():
                yield (name, False), at
                if target is not None:
                    yield (name, True), at


Waits = np.ndarray[Any, Any]


def latencies(arrivals: Iterator[tuple[tuple[str, bool], float]], sender: Sender) -> tuple[Waits, Waits, int]:
    """Moments of acknowledgement, seconds from each to its arrival (not below 0), and how many never arrived."""
    there: dict[tuple[str, bool], float] = {}
    for what, at in arrivals:
        if what in sender.acknowledged:
            there[what] = min(at, there.get(what, at))
    both = sorted((at, there[what] - at) for what, at in sender.acknowledged.items() if what in there)
    moments, waits = np.array(both).reshape(-1, 2).T
    return moments, np.maximum(waits, 0.0), len(sender.acknowledged) - len(both)


def cpu_s(pid: int) -> float:
    """What a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def spread(waits: Waits, prefix: str = "", suffix: str = "") -> dict[str, float]:
    cuts = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    return {f"{prefix}{name}{suffix}": round(float(np.percentile(waits, at)), 4) for name, at in cuts.items()}


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
    watch, spent, begun = Watch(settings), cpu_s(pids["ingest"]), time.time()
    with watch.looking():
        sender.run(seconds)
        took = time.time() - begun - AFTER_S
        spent = cpu_s(pids["ingest"]) - spent
        killer.join()
        settle(settings, len(sender.acknowledged))
    until("Prefect to be back", lambda: stack.states()["prefect"]["pid"] not in (0, pids["prefect"]), 60)
    _, landings, unlanded = latencies(watch.landed(), sender)
    moments, waits, lost = latencies(watch.joined(), sender)
    until("Prefect to answer", lambda: _runs(settings) is not None, 120)
    seams = [one for one in _runs(settings) or [] if begun < one < begun + seconds]
    near = np.zeros(len(moments), bool)
    for seam in seams:
        near |= np.abs(moments - seam) < 2.0
    after = stack.states()
    broken = [f"{lost} acknowledged events are in no row"] if lost else []
    broken += [f"{unlanded} acknowledged events have not landed"] if unlanded else []
    broken += [f"{len(sender.failed)} events were not acknowledged: {sender.failed[0]}"] if sender.failed else []
    broken += ["the keeper did not live through it"] if after["ingest"]["pid"] != pids["ingest"] else []
    fifth = np.searchsorted(moments, moments[0] + np.array([0.2, 0.8]) * (moments[-1] - moments[0]))
    figures: dict[str, Any] = {
        **spread(landings, "landed_"),
        **spread(waits),
        "first_p95": round(float(np.percentile(waits[: fifth[0]], 95)), 4),
        "last_p95": round(float(np.percentile(waits[fifth[1] :], 95)), 4),
        "keeper_cpu": round(spent / (took + AFTER_S), 3),
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
    sender, watch = Sender(settings, 2), Watch(settings)
    with watch.looking():
        sender.run(60.0)
        settle(settings, MILLION + figures["events"] + len(sender.acknowledged))
    _, landings, _ = latencies(watch.landed(), sender)
    _, waits, lost = latencies(watch.joined(), sender)
    if lost:
        broken = [*broken, f"{lost} acknowledged events are in no row of the million's lake"]
    return {**figures, **spread(landings, "landed_", "_1m"), **spread(waits, suffix="_1m")}, broken


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
