"""What does it cost an application to import the client, and to say something with it?

*Import*: a fresh interpreter, `from truing.client import Client`, less a fresh one that imports nothing; median seconds, and
seconds of CPU, which a busy machine disturbs less. Packages it must never pull in are counted (the guarantee). *Say*:
microseconds until `outcome` returns: queued in memory; in an outbox, written (`sync=False`); in an outbox, on the disk (fsync),
by one thread and by eight, who share their fsyncs. Beside it the import of other clients that an application would use.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from harness import Measured, main, say

LIMIT_S = 0.3
HEAVY = {"torch", "polars", "pandas", "numpy", "mlflow", "prefect", "pydantic", "deltalake", "httpx", "kafka", "fastavro"}
PEERS = {"mlflow_client": "from mlflow import MlflowClient", "httpx": "import httpx", "kafka_python": "import kafka",
         "pydantic": "import pydantic"}  # fmt: skip
NOWHERE = {"bootstrap_servers": "127.0.0.1:9"}  # the discard port: nothing answers, all stays queued


def imported(statement: str, times: int) -> tuple[float, float]:
    """Median seconds, and median seconds of CPU, of a fresh interpreter."""
    taken, worked = [], []
    for _ in range(times):
        before, began = os.times(), time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
        after = os.times()
        worked.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return median(taken), median(worked)


def said(many: int, threads: int = 1, **options: Any) -> float:
    """Microseconds of one `outcome`."""
    from truing.client import Client

    with tempfile.TemporaryDirectory() as folder:
        if "sync" in options:
            options["outbox"] = Path(folder)
        client = Client("adult", source="outcomes", source_key=b"k" * 32, kafka=NOWHERE, timeout_s=0.1, **options)

        def speak(number: int) -> None:
            for turn in range(many // threads):
                client.outcome(f"p-{number}-{turn}", ">50K")

        speakers = [threading.Thread(target=speak, args=(number,)) for number in range(threads)]
        began = time.perf_counter()
        for one in speakers:
            one.start()
        for one in speakers:
            one.join()
        taken = time.perf_counter() - began
        assert client.waiting == many // threads * threads
        if "outbox" in options:
            client.close()
    return taken / many * 1e6


def measure(arguments: argparse.Namespace) -> Measured:
    times = 5 if arguments.quick else 15
    bare, bare_cpu = imported("", times)
    seconds, cpu = imported("from truing.client import Client", times)
    listed = "import sys; from truing.client import Client; print(' '.join({m.split('.')[0] for m in sys.modules}))"
    loaded = set(subprocess.run([sys.executable, "-c", listed], check=True, capture_output=True, text=True).stdout.split())
    say("client imported")
    beside: dict[str, Any] = {"limit_s": LIMIT_S, "bare_python_s": bare}
    for name, statement in PEERS.items():
        there = find_spec(statement.split()[1]) is not None
        beside[f"{name}_s"] = imported(statement, 3)[0] - bare if there else None
        say(f"{name} imported" if there else f"{name} is not installed")
    figures = {
        "import_s": seconds - bare, "import_cpu_s": cpu - bare_cpu, "heavy_modules": len(loaded & HEAVY),
        "memory_us": said(1500), "outbox_us": said(1500, sync=False),
        "outbox_fsync_us": said(300, sync=True), "outbox_fsync_8_threads_us": said(800, 8, sync=True),
    }  # fmt: skip
    lines = [
        f"from truing.client import Client   {seconds - bare:6.3f} s   (limit {LIMIT_S} s; {cpu - bare_cpu:.3f} s of CPU)",
        *(f"{PEERS[name.removesuffix('_s')]:<34} {value:6.3f} s" for name, value in beside.items()
          if name.removesuffix("_s") in PEERS and value is not None),
        f"an outcome queued in memory        {figures['memory_us']:6.0f} µs",
        f"an outcome in an outbox            {figures['outbox_us']:6.0f} µs written, {figures['outbox_fsync_us']:.0f} µs on "
        f"the disk, {figures['outbox_fsync_8_threads_us']:.0f} µs by eight threads",
    ]  # fmt: skip
    broken = [f"the client pulls in {', '.join(sorted(loaded & HEAVY))}"] if loaded & HEAVY else []
    return Measured(figures, beside, lines, broken)


if __name__ == "__main__":
    sys.exit(main("client_import", measure))
