"""What does the door do with anything at all? A million mutated messages, each of which must become one row with its reason.

Valid messages of every type and proof are mutated (mutations.py): bits, bytes and fields, depth, numbers, encodings, times,
proofs. Blocks of 2,000 go through `land` as in the keeper, every twentieth block is sealed and committed; of the others a tenth
goes through `judge`, the single path, which must agree. *Crashes*: an exception, or a hang of 30 s. *Unexplained*: no row, or
two, a dead letter without a known reason, a valid message that did not land, paths that disagree. *Memory*: resident size after
the first fifth of the run, which fills every memory of the door, against its end: more than 64 MB is a leak.

A share goes over a real broker (Apache Kafka where TRUING_KAFKA_HOME names one, else the embedded one); there a byte of stored
batches is flipped behind the back of their checksums, which must neither stop reading nor hide a record.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import psutil
from harness import Measured, main, say
from mutations import KEYS, PROBLEM, WIRE, Base, mutated
from ports import free_ports

from truing.infra import broker
from truing.infra import settings as settings_module
from truing.infra.settings import Settings, child_environment
from truing.tasks.errors import Unavailable
from truing.tasks.events.glance import Glance
from truing.tasks.events.intake import Recent, land
from truing.tasks.events.schema import Proofs, Reason, judge
from truing.tasks.events.stream import Chunk, Publisher, Reader
from truing.tasks.problem import Problem, load_problem
from truing.tasks.tables.columns import LANDING
from truing.tasks.tables.lake import Vault

BLOCK, HANG_S, STUCK_S, LEAK_MB, REMEMBERED = 2000, 30, 90.0, 64.0, 20_000
SALT, SPLIT = b"s" * 32, b"p" * 32
# --- through the door ---------------------------------------------------------------------------------------------------------


class Door:
    """The keeper's way from bytes to rows, and what went wrong on it."""

    def __init__(self, problem: Problem, vault: Vault, now: float) -> None:
        self.proofs = Proofs.of([problem], wire=WIRE, salt=SALT, keys={"loan": KEYS})
        self.glance = Glance(self.proofs, split_salt=SPLIT)
        self.recent, self.vault, self.now = Recent(REMEMBERED), vault, now
        self.offset = self.events = self.crashes = self.blocks = self.committed = 0
        self.unexplained: list[str] = []
        self.fates: dict[str, Counter[str]] = {}

    def block(self, sent: list[tuple[str, bytes | None]], *, commit: bool, check: int) -> None:
        first, self.offset = self.offset, self.offset + len(sent)
        records = [(first + n, value) for n, (_, value) in enumerate(sent)]
        self.blocks += 1
        self.events += len(sent)
        try:
            with limit():
                batch = land([Chunk(0, 0, records)], topic="t", glance=self.glance, recent=self.recent, now=self.now)
                frame = batch.frame
                if commit:
                    frame = batch.sealed(self.vault.sealing())
                    self.vault.append("landing", frame, app=[("fuzz:t:0:0", self.offset)])
                    self.committed += frame.height
        except Exception as error:  # noqa: BLE001 - what it is all about
            self.crashes += 1
            self._blame(sent, error)
            return
        self.explain(sent, first, frame.select("offset", "disposition", "reason", "detail", "type"), check)

    def explain(self, sent: list[tuple[str, bytes | None]], first: int, frame: Any, check: int) -> None:
        rows = {line[0]: line[1:] for line in frame.iter_rows()}
        if frame.height != len(sent) or len(rows) != len(sent):
            self.unexplained.append(f"{len(sent)} records became {frame.height} rows at {len(rows)} places")
        for n, (name, value) in enumerate(sent):
            disposition, reason, detail, kind = rows.get(first + n, ("none", "", "", ""))
            self.fates.setdefault(name, Counter())[reason or disposition] += 1
            wrong = ""
            if disposition == "dead":
                wrong = "" if reason in _REASONS and detail else f"dead without a known reason: {reason!r} {detail!r}"
            elif disposition not in ("landed", "duplicate"):
                wrong = f"disposition {disposition}"
            if (name in ("valid", "again") and disposition != "landed") or (
                name == "again, twice" and disposition != "duplicate"
            ):
                wrong = f"{disposition} {reason} {detail}"
            if not wrong and check and n % check == 0 and disposition != "duplicate":
                wrong = self._differs(value, str(reason), kind)
            if wrong:
                self.unexplained.append(f"{name}: {wrong}: {(value or b'')[:200]!r}")

    def _differs(self, value: bytes | None, reason: str, kind: str) -> str:
        """The single path must say the same; row checks come after it."""
        message = judge(value, proofs=self.proofs, now=self.now)
        same = str(message.reason) == reason or (not message.reason and reason == str(Reason.INPUTS))
        return (
            ""
            if same and (reason or message.type == kind)
            else f"{reason or kind} in blocks, {message.reason or message.type} alone"
        )

    def _blame(self, sent: list[tuple[str, bytes | None]], error: Exception) -> None:
        """Which of them it was: each alone."""
        culprit = "none of them alone"
        for name, value in sent:
            try:
                with limit():
                    land([Chunk(0, 0, [(0, value)])], topic="t", glance=self.glance, recent=Recent(1), now=self.now)
            except Exception:  # noqa: BLE001
                culprit = f"{name}: {(value or b'')[:300]!r}"
                break
        say(f"CRASH {type(error).__name__}: {str(error)[:200]}; {culprit}")


_REASONS = {str(reason) for reason in Reason}


@contextmanager
def limit() -> Iterator[None]:
    """A hang is a crash."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no answer within {HANG_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def resident() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6


def through_blocks(door: Door, base: Base, count: int) -> tuple[list[float], float]:
    """`count` messages and more; resident MB after each hundredth, and seconds."""
    source, sizes, begun = mutated(base), [], time.perf_counter()
    every = max(1, count // BLOCK // 25)
    while door.events < count:
        sent = [next(source) for _ in range(BLOCK)]
        door.block(sent, commit=door.blocks % 20 == 0, check=10)
        if door.blocks % every == 0:
            sizes.append(resident())
            say(
                f"{door.events:,} of {count:,}, {sizes[-1]:.0f} MB, {door.crashes} crashes, {len(door.unexplained)} unexplained"
            )
    return sizes, time.perf_counter() - begun


# --- over a broker ------------------------------------------------------------------------------------------------------------


class Site:
    """A broker of one partition, of our own."""

    def __init__(self, folder: Path) -> None:
        kind = "kafka" if os.environ.get("TRUING_KAFKA_HOME") else "embedded"
        port, controller = free_ports(2)
        kafka: dict[str, Any] = {"broker": kind, "bootstrap": f"127.0.0.1:{port}", "controller": controller, "partitions": 1}
        self.settings: Settings = settings_module.load(data=folder / "data", problems=folder, kafka=kafka)
        self.start()

    def start(self) -> None:
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(
            broker.command(self.settings), env=child_environment(self.settings), stdout=null, stderr=null
        )
        broker.wait_for(self.settings, 60)
        broker.ensure_topics(self.settings)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def spoil(self, marks: list[bytes]) -> int:
        """Turn a byte in the batches that hold these marks, in the stopped broker's files; how many were found."""
        folder, topic, done = self.settings.data / "broker", self.settings.kafka.topic, 0
        if self.settings.kafka.broker == "kafka":
            for path in sorted((folder / "log" / f"{topic}-0").glob("*.log")):
                stored = path.read_bytes()
                for mark in marks:
                    done += stored.count(mark)
                    stored = stored.replace(mark, mark.swapcase())
                path.write_bytes(stored)
            return done
        path = folder / "kafka.json"
        whole = json.loads(path.read_text())
        found = next(body for name, body in whole["topics"] if name == topic)
        for _, raw in found["partitions"][0][1]["record_batches"]:
            stored = bytes(raw)
            for mark in marks:
                done += stored.count(mark)
                stored = stored.replace(mark, mark.swapcase())
            raw[:] = stored
        path.write_text(json.dumps(whole))
        return done


def over_a_broker(folder: Path, base: Base, door: Door, count: int) -> dict[str, Any]:
    """`count` mutated messages in batches of 50, in every fortieth a mark whose bytes are turned on the disk."""
    site = Site(folder)
    where = broker.connection(site.settings)
    source, sent, marks = mutated(base), [], []
    try:
        publisher = Publisher(where, site.settings.kafka.topic, linger_ms=20, batch_size=1 << 20, max_request_size=4 << 20)
        while len(sent) < count:
            batch = [one for one in (next(source) for _ in range(60)) if len(one[1] or b"") < 200_000][:50]
            if len(sent) // 50 % 40 == 3:
                marks.append(b"mark-%06d-spoiled" % len(sent))
                batch[7] = ("spoiled", b'{"id":"' + marks[-1] + b'"}')
            publisher.publish([(b"k", value) for _, value in batch])  # type: ignore[misc]
            sent += batch
        publisher.close()
        time.sleep(2.5 if site.settings.kafka.broker == "embedded" else 0.0)  # it saves once a second
        site.stop()
        spoiled = site.spoil(marks)
        site.start()
        reader = Reader(where, site.settings.kafka.topic)
        found: dict[int, tuple[bytes | None, str]] = {}
        twice, moved = 0, time.monotonic()
        while len(found) < len(sent) and time.monotonic() - moved < STUCK_S:
            try:
                chunks = reader.poll(100, BLOCK)
            except Unavailable:
                time.sleep(0.1)
                continue
            moved = time.monotonic() if chunks else moved
            for chunk in chunks:
                twice += sum(offset in found for offset, _ in chunk.records)
                found |= {offset: (value, chunk.reason) for offset, value in chunk.records}
                if not chunk.reason:
                    here = [sent[offset] for offset, _ in chunk.records]
                    if [value for _, value in here] != [value for _, value in chunk.records]:
                        door.unexplained.append(f"offsets {chunk.records[0][0]}…: other bytes than were sent")
                    door.fates.setdefault("over the broker", Counter())["read"] += len(here)
                    door.recent = Recent(REMEMBERED)
                    base_offset = chunk.records[0][0]
                    door.offset = base_offset
                    door.block([(f"broker {name}", value) for name, value in here], commit=False, check=25)
        reader.close()
    finally:
        site.stop()
    corrupt = [offset for offset, (_, reason) in found.items() if reason == "corrupt"]
    hidden = [
        offset for offset, (name, _) in enumerate(sent) if name == "spoiled" and found.get(offset, (None, ""))[1] != "corrupt"
    ]
    if twice or hidden or spoiled != len(marks):
        door.unexplained.append(
            f"{twice} records came twice, {len(hidden)} of {spoiled} spoiled batches were not said to be corrupt"
        )
    missing = len(sent) - len(found)
    if missing:
        door.unexplained.append(f"{missing} records of {len(sent)} were never read")
    return {
        "broker": site.settings.kafka.broker,
        "sent": len(sent),
        "spoiled": spoiled,
        "corrupt": len(corrupt),
        "missing": missing,
    }


def measure(arguments: argparse.Namespace) -> Measured:
    count, share = (100_000, 4_000) if arguments.quick else (arguments.events, 40_000)
    now = time.time()
    base = Base(arguments.seed, now)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "loan").mkdir()
        (root / "loan" / "problem.toml").write_text(PROBLEM)
        (root / "vault").mkdir()
        problem = load_problem(root / "loan")
        door = Door(problem, Vault(root / "vault"), now)
        sizes, seconds = through_blocks(door, base, count)
        kept = door.vault.scan("landing").select("offset").collect()["offset"]
        if (
            kept.len() != door.committed
            or kept.n_unique() != door.committed
            or set(door.vault.landing().columns) != set(LANDING)
        ):
            door.unexplained.append(f"{door.committed} rows were committed, {kept.len()} stand in the table")
        say("over a broker")
        wire = over_a_broker(root, base, door, share)
    warm = sizes[len(sizes) // 5]
    growth = max(sizes[-3:]) - warm
    by = {name: dict(fates.most_common()) for name, fates in sorted(door.fates.items()) if not name.startswith("broker ")}
    figures = {
        "events": door.events, "crashes": door.crashes, "unexplained": len(door.unexplained), "rss_growth_mb": round(growth, 1),
        "rss_mb": round(sizes[-1], 1), "per_second": round(count / seconds), "by_mutation": by,
        "broker": wire["broker"], "broker_events": wire["sent"], "corrupt_batches": wire["spoiled"],
        "corrupt_records": wire["corrupt"], "broker_missing": wire["missing"],
    }  # fmt: skip
    lines = [f"{'mutation':<34}{'sent':>9}  became"]
    for name, fates in by.items():
        told = ", ".join(f"{what} {number:,}" for what, number in list(fates.items())[:5])
        lines.append(f"{name:<34}{sum(fates.values()):>9,}  {told}")
    lines.append(
        f"{wire['sent']:,} over the {wire['broker']} broker: {wire['spoiled']} batches spoiled on its disk, "
        f"{wire['corrupt']:,} records told as corrupt, {wire['missing']} missing"
    )
    broken = [f"{door.crashes} crashes"] if door.crashes else []
    broken += door.unexplained[:20]
    if growth > LEAK_MB:
        broken.append(f"resident memory grew by {growth:.0f} MB after the warm-up, at most {LEAK_MB:.0f} may be: {sizes}")
    figures = {name: value for name, value in figures.items() if name != "by_mutation"} | {"by_mutation": _flat(by)}
    return Measured(figures, {}, lines, broken)


def _flat(by: dict[str, dict[str, int]]) -> list[list[Any]]:
    return [[name, what, number] for name, fates in by.items() for what, number in fates.items()]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, default=1_000_000, help="mutated messages through the door (1,000,000)")
    parser.add_argument("--seed", type=int, default=7, help="another seed, other messages")


if __name__ == "__main__":
    sys.exit(main("intake_fuzz", measure, options=options))
