"""How fast is the whole intake, as a share of what a bare kafka-python poll loop reaches on the same topic?

Real Apache Kafka (TRUING_KAFKA_HOME), a million events of about 420 bytes (`intake_traffic`): predictions, outcomes and ratings
with their proofs, 1 % broken, some sent twice. Each stage is a process of its own, so CPU and memory are its alone:

    stock     kafka-python's poll loop with the project's consumer options, its GC on: the 100 %
    intake    Kafka → Delta rows with every guarantee on: proof, keyed names, redaction, sealing, duplicates, row checks
    windows   the same while a second process has Great Expectations judge every landed prediction; the slower of both counts
    two       two keepers share the partitions
    costs     what each guarantee costs, timed alone on the same messages

Afterwards each good event must have landed exactly once and each broken one must be a dead letter once, with its reason.

Peers, from environments of their own (they need other versions than the project):

    python -m venv spark && spark/bin/pip install pyspark==4.0.0              and Java 17
    python -m venv quix && quix/bin/pip install quixstreams==3.28.1 deltalake pyarrow msgspec
    … intake_speed.py --peers FOLDER --spark spark/bin/python --quix quix/bin/python

FOLDER holds spark_to_delta.py with its jars. A peer checks no proof, hashes no name, seals and redacts nothing. `over_…` is CPU
seconds an event of the peer over ours (per core); `…_wall` the same by the clock. What is not given is null.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import intake_traffic as traffic
from harness import Measured, main, say
from ports import free_ports

from truing.infra import broker
from truing.infra import settings as settings_module
from truing.infra.keys import Keyring
from truing.infra.settings import Settings, child_environment
from truing.tasks.errors import TruingError
from truing.tasks.tables.subjects import FILE

EVENTS, QUICK_EVENTS, RUNS = 1_000_000, 60_000, 3
QUIX = Path(__file__).parent / "quix_to_delta.py"

# --- stages, each a process ---------------------------------------------------------------------------------------------------


def rss_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Seconds and CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self, events: int) -> dict[str, Any]:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"events": events, "wall": wall, "cpu": cpu, "rss_mb": rss_mb()}


def stock(settings: Settings) -> dict[str, Any]:
    """What a consumer of kafka-python reads, and nothing else."""
    from kafka import KafkaConsumer, TopicPartition

    from truing.tasks.events.stream import CONSUMER

    consumer = KafkaConsumer(**{**CONSUMER, **broker.connection(settings)})
    parts = [TopicPartition(settings.kafka.topic, n) for n in range(settings.kafka.partitions)]
    total = sum(consumer.end_offsets(parts).values())
    consumer.assign(parts)
    for part in parts:
        consumer.seek(part, 0)
    clock, count = Clock(), 0
    while count < total:
        count += sum(map(len, consumer.poll(timeout_ms=100, max_records=10_000).values()))
    return clock.read(count)


def landing(settings: Settings, share: tuple[int, int] = (0, 1)) -> Any:
    """The intake of one keeper, as `flows/keeper.py` makes it, without joins and errands."""
    from truing.flows.landing import Landing
    from truing.infra.catalog import catalog
    from truing.tasks.events.schema import Proofs

    ring = Keyring(settings.keys)
    problems = {name: problem for name, (problem, _) in catalog(settings.problems).items()}
    keys = {name: {source: ring.source(name, source) for source in one.sources} for name, one in problems.items()}
    proofs = Proofs.of(list(problems.values()), wire=ring.read("wire"), salt=ring.read("actor-salt"), keys=keys)
    for root in (settings.vault, settings.lake):
        root.mkdir(parents=True, exist_ok=True)
    return Landing(
        settings, share=share, problems=problems, proofs=proofs, split_salt=ring.read("split-salt"),
        stop=threading.Event(), log=say,
    )  # fmt: skip


def intake(settings: Settings, share: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """All that is on the topic, landed."""
    one = landing(settings, share)
    know(one.vault.sealing())
    total = one.reader.lag()
    runs = threading.Thread(target=one.run)
    clock = Clock()
    runs.start()
    while runs.is_alive() and sum(one.tally[name] for name in ("landed", "dead", "duplicate")) < total:
        time.sleep(0.01)
    found = clock.read(total)
    found["ended"] = time.time()
    one.stop.set()
    runs.join()
    return found | {"tally": dict(one.tally), "batched": one.reader.batched}


def keys(settings: Settings) -> dict[str, Any]:
    """A secret for nearly every bucket of owners: they are made once in a vault's life, by the first 65,536 people or so."""
    from truing.tasks.tables.lake import Vault

    settings.vault.mkdir(parents=True, exist_ok=True)
    made, clock = Vault(settings.vault).sealing(), Clock()
    know(made)
    made.close()
    return clock.read(1)


def know(people: Any) -> None:
    """All secrets in memory, made where there are none: a keeper that has been up for a while has them there."""
    people.seal_many((), (), ())  # it has looked at its file, and forgets nothing any more
    for family in ("trainable", "holdout", "vault"):
        people._make(family, set(range(1 << 16)))


def windows(settings: Settings, wanted: int) -> dict[str, Any]:
    """Great Expectations over every landed prediction, window by window while they land, until `wanted` were judged."""
    import msgspec
    import polars as pl

    from truing.infra.catalog import catalog
    from truing.tasks.tables.columns import OWNER
    from truing.tasks.tables.lake import Vault
    from truing.tasks.validation.expectations import Validator, validate
    from truing.tasks.validation.profile import profile

    problem = catalog(settings.problems)["loan"][0]
    vault, validator = Vault(settings.vault), Validator()
    decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    print("ready", flush=True)
    version: int | None = None
    suite, judged, count = None, 0, 0
    while judged < wanted:
        newest, frame, _ = vault.since("landing", version)
        if newest == version:
            time.sleep(0.05)
            continue
        version = newest
        asked = frame.filter(pl.col("type") == "prediction", pl.col("disposition") == "landed").collect()
        if not asked.height:
            continue
        opened = vault.opened(asked, "data", OWNER)
        content = [bytes(decode(data)["inputs"]) for data in opened["data"]]
        window = pl.DataFrame(
            {"id": asked["prediction_id"], "content": content}, schema={"id": pl.String, "content": pl.Binary}
        )
        suite = suite or profile(window.head(5_000), problem)
        report = validate(window, suite, problem, now=time.time(), validator=validator)
        if not report.success or report.failed:
            raise SystemExit(f"a window of good rows was refused: {report.reason} {len(report.failed)}")
        judged, count = judged + window.height, count + 1
    return {"windows": count, "judged": judged, "ended": time.time(), "rss_mb": rss_mb()}


class Watch:
    """CPU seconds inside of functions, by a name for several of them. They are put back at the end."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._before: list[tuple[Any, str, Any]] = []

    def put(self, where: Any, name: str, label: str) -> None:
        before = getattr(where, name)

        def watched(*given: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return before(*given, **named)
            finally:
                self.seconds[label] += time.process_time() - began

        self._before.append((where, name, before))
        setattr(where, name, watched)

    def end(self) -> None:
        for where, name, before in self._before:
            setattr(where, name, before)


def costs(settings: Settings) -> dict[str, float]:
    """CPU µs an event of each part of the way, timed alone on the first 100,000 messages."""
    from truing.tasks.events import glance as door
    from truing.tasks.events import intake as rows
    from truing.tasks.events import lanes
    from truing.tasks.events.stencil import Stencil
    from truing.tasks.tables.subjects import commits

    one = landing(settings)
    know(one.vault.sealing())
    wanted = min(100_000, one.reader.lag())
    clock, chunks, count = time.process_time(), [], 0
    while count < wanted:
        chunks += one.gather()
        count = sum(len(chunk.records) for chunk in chunks)
    found = {"poll": (time.process_time() - clock) / count}
    one.reader.close()

    def timed(work: Callable[[], Any]) -> float:
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            work()
            best = min(best, time.process_time() - began)
        return best / count

    glance, now = one.glance, time.time()
    blocks = [block for chunk in chunks for block in rows._blocks(chunk.records)]

    def look() -> None:
        for block in blocks:
            glance.look(block, now)

    look()  # what is written alike is known from now on, and who people are
    whole = timed(look)
    watch = Watch()
    watch.put(Stencil, "fit", "envelopes")
    watch.put(door, "_cut_out", "envelopes")
    watch.put(lanes.Lane, "_proofs", "proof")
    watch.put(lanes, "same", "proof")
    watch.put(lanes, "_decoded", "contract and row checks")
    for way in glance._known.ways:
        if way.lane.beyond is not None and way.lane.kind == "prediction":
            watch.put(way.lane, "beyond", "redaction")
    look()
    watch.end()
    found |= {label: seconds / count for label, seconds in watch.seconds.items()}
    hashed = glance.rules["loan"].names
    known = [*hashed]

    def names() -> None:
        hashed.clear()
        for name in known:
            hashed[name]

    found["names, each for the first time"] = timed(names)
    marks = [mark for block in blocks for seen in glance.look(block, now) for mark in seen.marks]
    found["duplicates"] = timed(lambda: rows.Recent().news(marks))
    found["the rest of the glance"] = whole - sum(watch.seconds.values()) / count

    def landed() -> list[rows.Batch]:
        recent = rows.Recent()
        return [rows.land([chunk], topic="t", glance=glance, recent=recent, now=now) for chunk in chunks]

    batches = landed()
    found["broken ones, columns"] = timed(landed) - whole - found["duplicates"]
    people = one.vault.sealing()
    found["sealing"] = timed(lambda: [batch.sealed(people) for batch in batches])
    frames = [batch.sealed(people) for batch in batches]
    began = time.process_time()
    for frame in frames:
        with commits(settings.vault):
            one.vault.append("landing", frame)
    found["Delta commit"] = (time.process_time() - began) / count
    return {name: round(seconds * 1e6, 2) for name, seconds in found.items()}


# --- around them --------------------------------------------------------------------------------------------------------------


def stage(settings: Settings, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--stage", name, *arguments]
    return subprocess.Popen(command, env=child_environment(settings), stdout=subprocess.PIPE)


def result(running: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The last line that a stage said. Raises RuntimeError when it died."""
    said, _ = running.communicate()
    if running.returncode:
        raise RuntimeError(f"{running.args[2:]} ended with {running.returncode}")
    found: dict[str, Any] = json.loads(said.decode().splitlines()[-1])
    return found


@contextmanager
def kafka(folder: Path) -> Iterator[Settings]:
    """A broker of our own, empty, ended with the block. Raises TruingError where there is none to start."""
    from truing.infra import apache

    port, controller = free_ports(2)
    settings = settings_module.load(
        data=folder / "kafka", problems=traffic.write_problem(folder / "problems"), ingest={"sync": False},
        kafka={"broker": "kafka", "bootstrap": f"127.0.0.1:{port}", "controller": controller},
    )  # fmt: skip
    apache.check(settings)
    settings.data.mkdir(parents=True)
    Keyring(settings.keys).create(["loan.loans"])
    environment = child_environment(settings)
    running = subprocess.Popen(broker.command(settings), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        broker.wait_for(settings, 60)
        broker.ensure_topics(settings)
        yield settings
    finally:
        running.terminate()
        running.wait(30)


def afresh(settings: Settings, name: str) -> Settings:
    """The same broker and keys, those of people too as in a vault that is in use, and no row: where the intake begins anew."""
    data = settings.data.parent / name
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    shutil.copytree(settings.keys, data / "keys")
    (data / "vault").mkdir()
    shutil.copy(settings.vault / FILE, data / "vault" / FILE)
    return settings.model_copy(update={"data": data})


def wrong(settings: Settings, sent: Counter[str], *, where: str) -> list[str]:
    """What was lost, doubled or refused for another reason than its own."""
    import polars as pl

    from truing.tasks.tables.lake import Vault

    landing = Vault(settings.vault).scan("landing")
    landing = landing.select("partition", "offset", "event_id", "type", "disposition", "reason").collect()
    found = []
    for kind in ("prediction", "outcome", "rating"):
        good = landing.filter(pl.col("type") == kind, pl.col("disposition") == "landed")["event_id"]
        got = (good.len(), good.n_unique(), good.str.slice(1).cast(pl.Int64).sum())
        wanted = (sent[kind], sent[kind], sent[f"sum {kind}"])
        if got != wanted:
            found.append(f"{where}: {kind}: expected rows, different ones, sum of numbers {wanted}, got {got}")
    dead = landing.filter(pl.col("disposition") == "dead")["reason"].value_counts()
    refused = {f"reason {reason}": count for reason, count in dead.iter_rows()}
    if refused != {name: count for name, count in sent.items() if name.startswith("reason ")}:
        found.append(f"{where}: dead letters: expected {sent}, got {refused}")
    again = landing.filter(pl.col("disposition") == "duplicate").height
    if again != sent["again"] or landing.select("partition", "offset").n_unique() != landing.height:
        found.append(f"{where}: expected {sent['again']} duplicates and each position once, got {again} of {landing.height}")
    return found


def with_windows(settings: Settings, wanted: int) -> tuple[float, dict[str, Any]]:
    """Seconds from the start of the intake until all has landed and every prediction was judged in a window."""
    judging = stage(settings, "windows", str(wanted))
    assert judging.stdout is not None
    judging.stdout.readline()  # Great Expectations is imported, as in a runner that is up
    landed = result(stage(settings, "intake"))
    judged = result(judging)
    return landed["wall"] + max(0.0, judged["ended"] - landed["ended"]), judged


def peer(command: list[str], settings: Settings, events: int) -> dict[str, Any] | None:
    """Wall and CPU seconds an event of a peer's last run; it prints one JSON line a run: rows, seconds. None if it failed."""
    import psutil

    say(f"peer: {' '.join(command[:2])}")
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert running.stdout is not None
    whole, used, last = psutil.Process(running.pid), 0.0, None
    for line in running.stdout:
        if not line.startswith(b"{"):
            continue
        family = [whole, *whole.children(recursive=True)]
        total = sum(sum(one.cpu_times()[:2]) for one in family)
        said = json.loads(line)
        last = {"events": said["rows"], "wall": said["seconds"], "cpu": total - used}
        used = total
    running.wait()
    return last if running.returncode == 0 and last and last["events"] >= events else None


def measure(arguments: argparse.Namespace) -> Measured:
    broker.quiet_client()
    events, runs = (QUICK_EVENTS, 1) if arguments.quick else (arguments.events, RUNS)
    folder = Path(tempfile.mkdtemp(prefix="intake-speed-"))
    try:
        with kafka(folder) as settings:
            return compared(settings, arguments, events, runs)
    except TruingError as error:
        names = ("share_of_poll", "share_with_windows", "two_process_cpu_ratio", "rss_mb", "over_spark")
        return Measured(dict.fromkeys(names), {"why": str(error)}, [f"not measured: {error}"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compared(settings: Settings, arguments: argparse.Namespace, events: int, runs: int) -> Measured:
    now = time.time()
    sent = traffic.fill(settings, events, now=now)
    say(f"{events:,} events sent in {time.time() - now:.0f} s; load {os.getloadavg()[0]:.1f}")
    made = result(stage(settings, "keys"))
    polled = [result(stage(settings, "stock")) for _ in range(runs)]
    broken: list[str] = []
    landed = []
    for n in range(runs):
        own = afresh(settings, f"one{n}")
        landed.append(result(stage(own, "intake")))
        broken += wrong(own, sent, where="one keeper")
        rates = [events / one[n]["wall"] for one in (polled, landed)]
        say(f"stock {rates[0]:,.0f}/s, intake {rates[1]:,.0f}/s; load {os.getloadavg()[0]:.1f}")
        shutil.rmtree(own.data)
    own = afresh(settings, "synced")
    ingest = own.ingest.model_copy(update={"sync": True})
    synced = result(stage(own.model_copy(update={"ingest": ingest}), "intake"))
    broken += wrong(own, sent, where="one keeper that waits for the disk")
    shutil.rmtree(own.data)
    own = afresh(settings, "two")
    both = [result(one) for one in [stage(own, "intake", "0", "2"), stage(own, "intake", "1", "2")]]
    broken += wrong(own, sent, where="two keepers")
    shutil.rmtree(own.data)
    say("two keepers measured")
    own = afresh(settings, "windows")
    seconds, judged = with_windows(own, sent["prediction"])
    broken += wrong(own, sent, where="with windows")
    shutil.rmtree(own.data)
    table = result(stage(afresh(settings, "costs"), "costs"))
    say("costs measured")
    poll, ours = median(one["wall"] for one in polled), median(one["wall"] for one in landed)
    poll_cpu, our_cpu = median(one["cpu"] for one in polled), median(one["cpu"] for one in landed)
    figures: dict[str, Any] = {
        "share_of_poll": poll / ours,
        "share_with_windows": poll / seconds,
        "share_with_fsync": poll / synced["wall"],
        "two_process_cpu_ratio": sum(one["cpu"] for one in both) / our_cpu,
        "rss_mb": max(one["rss_mb"] for one in (*landed, *both)),
        "events_per_s": events / ours,
        "share_of_poll_cpu": poll_cpu / our_cpu,
        "cpu_us": our_cpu / events * 1e6,
        "windows": judged["windows"],
        "keys_made_s": made["wall"],
        "costs_us": table,
        "load": os.getloadavg()[0],
    }
    beside: dict[str, Any] = {"poll_per_s": events / poll, "poll_cpu_us": poll_cpu / events * 1e6}
    spark = [arguments.spark, f"{arguments.peers}/spark_to_delta.py", settings.kafka.bootstrap, settings.kafka.topic]
    out = settings.data.parent
    peers = {
        "spark": (arguments.spark and arguments.peers, [*map(str, spark), str(out / "spark")], "--peers and --spark"),
        "quix": (
            arguments.quix,
            [str(arguments.quix), str(QUIX), settings.kafka.bootstrap, settings.kafka.topic, str(out / "quix"), str(events)],
            "--quix",
        ),
    }
    for name, (given, command, wanted) in peers.items():
        one = peer(command, settings, events) if given and not arguments.quick else None
        figures[f"over_{name}"] = one["cpu"] / one["events"] / (our_cpu / events) if one else None
        figures[f"over_{name}_wall"] = one["wall"] / one["events"] / (ours / events) if one else None
        beside[f"{name}_per_s"] = one["events"] / one["wall"] if one else None
        beside[f"{name}_cpu_us"] = one["cpu"] / one["events"] * 1e6 if one else None
        if one is None:
            why = "--quick" if arguments.quick else "it ended without all rows" if given else f"expected {wanted}"
            beside[f"{name}_why"] = f"left out: {why}"
    if not all(one["batched"] for one in landed):
        beside["why_slow"] = "the client library is not the pinned one: read record by record"
    lines = [f"{events:,} events, median of {runs}", "cost of each part, CPU µs an event, timed alone:"]
    lines += [f"  {name:<38}{cost:6.2f}" for name, cost in table.items()]
    return Measured(figures, beside, lines, broken)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--peers", type=Path, default=os.environ.get("TRUING_PEERS"), help="folder of spark_to_delta.py")
    parser.add_argument("--spark", type=Path, help="python with pyspark 4.0.0")
    parser.add_argument("--quix", type=Path, help="python with quixstreams 3.28")


def run_stage(name: str, arguments: list[str]) -> dict[str, Any]:
    settings = settings_module.current()
    broker.quiet_client()
    if name == "intake":
        return intake(settings, (int(arguments[0]), int(arguments[1])) if arguments else (0, 1))
    return (
        windows(settings, int(arguments[0]))
        if name == "windows"
        else {"stock": stock, "costs": costs, "keys": keys}[name](settings)
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        print(json.dumps(run_stage(sys.argv[2], sys.argv[3:])))
        sys.exit(0)
    sys.exit(main("intake_speed", measure, options=options))
