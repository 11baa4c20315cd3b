"""Kills while events come in: two keepers on three partitions, their broker, and curate; nothing may be lost or doubled.

SIGKILL at named points of the keepers' work (both brokers), at random times, in window validation, and of the broker itself.
The senders keep the gateway's outbox: what the embedded broker forgets of its last second, they send again. In the end every
valid event that they took on counts once and is in its row, and every invalid one is one dead letter.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from fleet import Fleet, until
from harness import Measured, main, say
from intake_traffic import Maker, write_problem
from ports import free_ports

from truing.infra import apache
from truing.infra.broker import address, connection, quiet_client
from truing.infra.heartbeat import last_beat
from truing.infra.keepers import part
from truing.infra.keys import keyring
from truing.infra.outbox import Outbox
from truing.infra.settings import Settings, load
from truing.tasks.errors import TruingError
from truing.tasks.events.intake import places
from truing.tasks.events.schema import token
from truing.tasks.events.stream import Publisher, Reader
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.validation.suite import reports

KEEPERS, PARTITIONS = 2, 3
RATE = 100  # predictions a second; each is rated, every second has an outcome
PUT = "truing.tasks.tables.store:Store.append"
CURATE = """
from truing.flows.curate import judge
from truing.infra.catalog import chosen
from truing.infra.settings import current
from truing.tasks.tables.lake import Lake
settings = current()
judge(Lake(settings.lake), chosen(settings.problems, "loan")[0], settings.problems / "loan", force=True)
"""


class Point(NamedTuple):
    """Where a process dies; as in `tests/test_crashes.py`."""

    name: str
    target: str
    when: str
    about: str = ""


POINTS = (
    Point("after poll", "truing.flows.landing:Landing.gather", "after"),
    Point("after checks", "truing.tasks.events.intake:land", "after"),
    Point("before commit", PUT, "before", "'landing'"),
    Point("data written, no entry in the log", "truing.tasks.tables.follow:Log.commit", "before"),
    Point("entry drafted, not linked", "truing.tasks.tables.follow:Log._draft", "after"),
    Point("after commit", PUT, "after", "'landing'"),
    Point("joined into rows, not into the holdout", "truing.tasks.events.join:write", "after", "'rows'"),
    Point("before compaction", "deltalake.table:TableOptimizer.compact", "before"),
    Point("compacted, old files still there", "deltalake.table:TableOptimizer.compact", "after"),
    Point("before trim", "truing.tasks.events.stream:Reader.trim", "before"),
    Point("after trim", "truing.tasks.events.stream:Reader.trim", "after"),
)
WINDOW = (
    Point("window judged, not recorded", "truing.tasks.validation.suite:admit_window", "before"),
    Point("window recorded, not said", "truing.tasks.validation.suite:admit_window", "after"),
)
SLOW = {"before compaction", "compacted, old files still there", "before trim", "after trim"}  # every few seconds


@dataclass
class Plan:
    """How many kills of each kind on one broker."""

    often: int  # at each named point
    slow: int  # at each point that is come to every few seconds
    window: int
    random: int
    broker: int


FULL = Plan(often=6, slow=3, window=3, random=12, broker=10)
QUICK = {"embedded": Plan(1, 1, 0, 1, 1), "kafka": Plan(1, 0, 0, 0, 1)}


class Noting(Publisher):
    """Counts what was acknowledged and how often each message went out."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.acknowledged = 0

    def publish(self, messages: Any) -> None:
        super().publish(messages)
        self.acknowledged += len(messages)


class Senders:
    """Sources and people behind one outbox, `RATE` predictions a second until `stop`."""

    def __init__(self, settings: Settings) -> None:
        ring = keyring(settings)
        self.maker = Maker(ring.read("wire"), ring.source("loan", "loans"), now=time.time(), seed=3)
        self.publisher = Noting(connection(settings), settings.kafka.topic)
        forgets = settings.kafka.broker == "embedded"
        self.outbox = Outbox(
            settings.data / "outbox", self.publisher, keep_s=20.0, sync=False, log=say,
            sentinel=address(settings) if forgets else None,
        )  # fmt: skip
        self.valid: set[tuple[str, str]] = set()  # type, event id
        self.asked: set[str] = set()
        self.truth: set[str] = set()  # predictions whose outcome was sent
        self.invalid: set[bytes] = set()
        self.again = 0
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self.outbox.start()
        self._thread.start()

    def end(self) -> None:
        """Nothing new; everything acknowledged."""
        self.stop.set()
        self._thread.join()
        until("all messages to be acknowledged", lambda: not self.outbox.waiting, 120)
        if self._settled():
            self.outbox.close()

    def _settled(self) -> bool:
        """The outbox looks for a broker that died between two of its messages, at most a second apart."""
        time.sleep(1.5)
        until("all messages to be acknowledged", lambda: not self.outbox.waiting, 120)
        return True

    def _run(self) -> None:
        begun, n = time.monotonic(), 0
        pick = random.Random(11)
        while not self.stop.wait(0.05):
            block: list[tuple[bytes, bytes]] = []
            while n < (time.monotonic() - begun) * RATE:
                block += self._about(n, pick)
                n += 1
            self.outbox.append(block)

    def _about(self, n: int, pick: random.Random) -> list[tuple[bytes, bytes]]:
        """A prediction, what is said of it, and now and then something that is not to be believed, or said twice."""
        name, made = f"p{n:09d}", []
        for kind in ("prediction", "rating", *(["outcome"] if n % 2 else [])):
            proof = {"token": token(self.maker.wire, "loan", name, self.maker.now + 86400)} if kind == "rating" else {}
            made.append(self.maker.good(kind, n, prediction_id=name, **proof))
            self.valid.add((kind, f"{kind[0]}{n:09d}"))
        self.asked.add(name)
        if n % 2:
            self.truth.add(name)
        if pick.random() < 0.05:  # 2 % of the messages
            broken = self.maker.broken(500_000_000 + n)
            self.invalid.add(broken[1])
            made.append(broken)
        if pick.random() < 0.03:
            self.again += 1
            made.append(pick.choice(made))
        return made


@dataclass
class Told:
    """What one broker's half came to."""

    kills: Counter[str] = field(default_factory=Counter)  # by point
    broker_kills: int = 0
    restarts: int = 0
    events: int = 0
    invalid: int = 0
    epochs: int = 0
    lost: int = 0
    doubled: int = 0
    recovery_s: list[float] = field(default_factory=list)  # from a keeper's death to its first sign of life
    broken: list[str] = field(default_factory=list)


class Room:
    """One broker's half: a fleet under fire while the senders send."""

    def __init__(self, folder: Path, kind: str) -> None:
        port, controller = free_ports(2)
        kafka = {"broker": kind, "bootstrap": f"127.0.0.1:{port}", "trim": True, "partitions": PARTITIONS}
        kafka |= {"controller": controller} if kind == "kafka" else {}
        problems = write_problem(folder / "problems")
        file = problems / "loan" / "problem.toml"
        file.write_text('retention = "1s"\n' + file.read_text())  # so that Kafka's topic is trimmed every few seconds too
        self.settings = load(
            data=folder / "data", problems=problems, kafka=kafka,
            ingest={"keepers": KEEPERS, "join_every_s": 0.25},
        )  # fmt: skip
        keyring(self.settings).create(["loan.loans"])
        self.fleet = Fleet(self.settings, targets=sorted({point.target for point in (*POINTS, *WINDOW)}))
        self.told = Told()
        self.vault, self.lake = Vault(self.settings.vault), Lake(self.settings.lake)

    def run(self, plan: Plan, seed: int) -> Told:
        self.fleet.start_broker()
        self.senders = Senders(self.settings)
        self.senders.start()
        self.fleet.start(*range(KEEPERS))
        pick, told = random.Random(seed), self.told
        acts: list[Callable[[], None]] = []
        for point in POINTS:
            acts += [self._kill_at(point)] * (plan.slow if point.name in SLOW else plan.often)
        acts += [self._kill_keeper(pick)] * plan.random + [self._kill_broker(pick)] * plan.broker
        acts += [self._kill_curate(point) for point in WINDOW for _ in range(plan.window)]
        pick.shuffle(acts)
        watch = threading.Thread(target=self._watch_recovery, daemon=True)
        watch.start()
        for done, act in enumerate(acts, 1):
            act()
            if done % 10 == 0:
                sent = self.senders.publisher.acknowledged
                say(f"  {self.settings.kafka.broker}: {done} of {len(acts)} kills, {sent} messages acknowledged")
        self.senders.end()
        self._settle()
        told.restarts = sum(self.fleet.restarts.values())
        told.broken += [f"exit codes {codes}" for codes in [self.fleet.stop(*range(KEEPERS))] if any(codes)]
        told.broken += self.fleet.faults
        self._count(windows=bool(plan.window))
        return told

    # --- killing
    def _kill_at(self, point: Point) -> Callable[[], None]:
        def act() -> None:
            with self.fleet.armed(point.target, point.when, point.about) as reached:
                until(f"a keeper to come to: {point.name}", reached, 90)
            self.told.kills[point.name] += 1

        return act

    def _kill_keeper(self, pick: random.Random) -> Callable[[], None]:
        def act() -> None:
            time.sleep(pick.uniform(0.2, 2.0))
            self.fleet.kill(pick.randrange(KEEPERS))
            self.told.kills["at a random time"] += 1

        return act

    def _kill_broker(self, pick: random.Random) -> Callable[[], None]:
        """Every other time together with a keeper."""

        def act() -> None:
            time.sleep(pick.uniform(0.2, 1.0))
            if pick.random() < 0.5:
                self.fleet.kill(pick.randrange(KEEPERS))
                self.told.kills["together with the broker"] += 1
            self.fleet.kill_broker()
            self.told.broker_kills += 1
            time.sleep(pick.uniform(0.0, 0.5))
            self.fleet.start_broker()

        return act

    def _kill_curate(self, point: Point) -> Callable[[], None]:
        def act() -> None:
            with self.fleet.armed(point.target, point.when, point.about) as reached:
                for _ in range(20):  # there may be no new row since the last window
                    code = self._curate()
                    if reached():
                        break
                    time.sleep(0.5)
                if not reached() or code != -9:
                    self.told.broken.append(f"curate was to die at: {point.name}, it ended with {code}")
            self.told.kills[point.name] += 1

        return act

    def _curate(self) -> int:
        with (self.fleet.folder / "curate.log").open("ab") as log:
            command = [sys.executable, "-c", CURATE]
            return subprocess.run(command, env=self.fleet.environment, stdout=log, stderr=log, check=False).returncode

    def _watch_recovery(self) -> None:
        """From a keeper's first look without its old process to its first sign of life."""
        seen: dict[int, tuple[int, float]] = {}
        while not self.senders.stop.wait(0.05):
            for number, process in list(self.fleet.keepers.items()):
                if seen.get(number, (0, 0.0))[0] != process.pid:
                    seen[number] = process.pid, time.monotonic()
                beat = last_beat(self.settings, part(number))
                if beat is not None and beat["pid"] == process.pid and seen[number][1]:
                    self.told.recovery_s.append(time.monotonic() - seen[number][1])
                    seen[number] = process.pid, 0.0

    # --- what stands in the end
    def _settle(self) -> None:
        """All that the log has is landed, and all that landed is joined."""
        kafka = self.settings.kafka

        def landed() -> bool:
            reader = Reader(connection(self.settings), kafka.topic, places(self.vault, kafka.group, kafka.topic))
            try:
                return reader.lag() == 0
            except TruingError:
                return False
            finally:
                reader.close()

        for what, true in (("the keepers to land all there is", landed), ("all to be joined", lambda: not self._unjoined())):
            try:
                until(what, true, 60)
            except TimeoutError as error:  # what is missing is counted
                self.told.broken.append(str(error))

    def _states(self) -> pl.DataFrame:
        columns = ["id", "revision", "target", "origin", "split", "feedback"]
        return pl.concat([self.lake.read("rows", columns), self.vault.read("holdout", columns)])

    def _unjoined(self) -> int:
        """Predictions without a row, and outcomes not in theirs: told by the newest state."""
        newest = self._states().sort("revision").unique("id", keep="last")
        judged = set(newest.filter(pl.col("origin") == "outcome")["id"])
        rated = set(newest.filter(pl.col("feedback").str.contains('"rating"'))["id"])
        return len(self.senders.asked - rated) + len(self.senders.truth - judged)

    def _count(self, *, windows: bool) -> None:
        """Fill in `lost` and `doubled`."""
        told, senders = self.told, self.senders
        landing = self.vault.landing(columns=["partition", "epoch", "offset", "type", "event_id", "disposition", "data"])
        landed = Counter(landing.filter(pl.col("disposition") == "landed").select("type", "event_id").iter_rows())
        dead = Counter(landing.filter(pl.col("disposition") == "dead")["data"])
        told.events, told.invalid = len(senders.valid), len(senders.invalid)
        told.epochs = int(landing["epoch"].max() or 0)  # type: ignore[arg-type]
        states = self._states()
        newest = states.sort("revision").unique("id", keep="last")
        lost = {
            "valid events not landed": len(senders.valid - set(landed)),
            "invalid ones without a dead letter": len(senders.invalid - set(dead)),
            "predictions or words not in a row": self._unjoined(),
        }
        doubled = {
            "valid events landed twice": sum(landed.values()) - len(landed),
            "dead letters twice": sum(dead.values()) - len(dead),
            "messages at one place": landing.height - landing.select("partition", "epoch", "offset").n_unique(),
            "states of a row twice": states.height - states.select("id", "revision").n_unique(),
            "rows in lake and vault": newest.height - len(set(newest["id"])),
        }
        strange = {"landed, never sent": len(set(landed) - senders.valid), "dead, never sent": len(set(dead) - senders.invalid)}
        if windows:
            self._curate()
            spans = sorted((one.first, one.last) for one in reports(self.lake, "loan"))
            doubled["rows in two windows"] = sum(a[1] >= b[0] for a, b in pairwise(spans))
        told.lost, told.doubled = sum(lost.values()), sum(doubled.values())
        told.broken += [f"{n} {what}" for what, n in (lost | doubled | strange).items() if n]


def measure(arguments: argparse.Namespace) -> Measured:
    quiet_client()
    halves: dict[str, Told] = {}
    beside: dict[str, Any] = {}
    for kind in ("embedded", "kafka"):
        if kind == "kafka":
            try:
                apache.check(load(kafka={"broker": "kafka"}))
            except TruingError as error:
                beside["kafka"] = f"null: {error}"
                continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(arguments.keep or temporary) / kind
            folder.mkdir(parents=True)
            room = Room(folder, kind)
            try:
                halves[kind] = room.run(QUICK[kind] if arguments.quick else FULL, seed=5)
            finally:
                room.fleet.close()
    points = sorted({name for told in halves.values() for name in told.kills})
    recovery = sorted(s for told in halves.values() for s in told.recovery_s)
    figures: dict[str, Any] = {
        "kills": sum(sum(told.kills.values()) for told in halves.values()),
        "broker_kills": {kind: told.broker_kills for kind, told in halves.items()},
        "restarts": sum(told.restarts for told in halves.values()),
        "lost": sum(told.lost for told in halves.values()),
        "doubled": sum(told.doubled for told in halves.values()),
        "events": sum(told.events for told in halves.values()),
        "invalid": sum(told.invalid for told in halves.values()),
        "epochs": {kind: told.epochs for kind, told in halves.items()},
        "recovery_p50_s": recovery[len(recovery) // 2] if recovery else None,
        "by_point": {kind: dict(sorted(told.kills.items())) for kind, told in halves.items()},
    }
    table = [f"{'killed':<40}" + "".join(f"{kind:>10}" for kind in halves)]
    table += [f"{name:<40}" + "".join(f"{told.kills[name]:>10}" for told in halves.values()) for name in points]
    table += [f"{'the broker':<40}" + "".join(f"{told.broker_kills:>10}" for told in halves.values())]
    beside["load_1m"] = os.getloadavg()[0]
    broken = [f"{kind}: {line}" for kind, told in halves.items() for line in told.broken]
    return Measured(figures, beside, table, broken)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", metavar="FOLDER", help="a new folder to work in that stays, with all logs")


if __name__ == "__main__":
    raise SystemExit(main("intake_crash", measure, options=_options))
