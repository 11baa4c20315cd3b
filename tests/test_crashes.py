"""Injected crashes: a part is killed at a named point of its work, started again by the supervisor, and goes on.

Whatever the point, what stands afterwards is exactly the old state or the new one, in the end the new one, and nothing was done
twice. `tests/crash/sitecustomize.py` says how a point is armed in a running stack; a point that is not reached fails its test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))  # the stage is the benchmarks' small stack
sys.path.insert(0, str(Path(__file__).parent / "crash"))

from learn import turn
from stage import NAME, Stage, until

from truing.flows.demo.world import Case
from truing.infra.broker import connection
from truing.infra.client import Client
from truing.infra.control import announcer
from truing.infra.evidence import gather
from truing.infra.programs import environment, own
from truing.tasks import seal
from truing.tasks.errors import Unavailable
from truing.tasks.evaluation.ledger import read_ledger
from truing.tasks.events.join import APP
from truing.tasks.events.stream import Reader
from truing.tasks.kinds.model import Model
from truing.tasks.records import Release
from truing.tasks.release.acts import VERDICT, Acts
from truing.tasks.release.audit import follow, read, verify
from truing.tasks.release.book import Book, read_book
from truing.tasks.release.proof import OK, prove_problem
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.validation.suite import reports

TESTS = Path(__file__).resolve().parent
pytestmark = pytest.mark.services

MLFLOW = "mlflow.store.model_registry.sqlalchemy_store:SqlAlchemyStore."


@dataclass(frozen=True)
class Point:
    """Where to die: around the `call`-th call of `target` in `part` whose arguments' repr contains `about`."""

    name: str
    part: str  # the office that dies
    target: str
    when: str
    about: str = ""
    call: int = 1

    def __str__(self) -> str:
        return self.name


REGISTRY = (
    Point("approval written, not in the audit", "registry", MLFLOW + "set_model_version_tag", "after", "'approval'"),
    Point("approval in the audit, not shown", "registry", "truing.infra.registry_guard.view:View.decided", "before"),
    Point("statement written, not in the audit", "registry", MLFLOW + "set_model_version_tag", "after", "'release.{n}'"),
    Point("inside the alias move", "registry", MLFLOW + "set_registered_model_alias", "after", "champion"),
)
STEWARD = (
    Point("saw the approval", "steward", "truing.tasks.release.promotion:plan_promotion", "before"),
    Point("signed, not in the book", "steward", "truing.tasks.release.book:Book.add_release", "before"),
    Point("in the book, not attached", "steward", "truing.tasks.release.book:Book.add_release", "after"),
    Point("between the two tags", "steward", "truing.tasks.release.registry:Registry.set_tag", "after", "'release.{n}'"),
    Point("before the alias", "steward", "truing.tasks.release.registry:Registry.move_champion", "before"),
    Point("after the alias", "steward", "truing.tasks.release.registry:Registry.move_champion", "after"),
    Point("not in the lake's record", "steward", "truing.tasks.tables.lake:Lake.record", "before", "'releases'"),
    Point("not announced", "steward", "truing.tasks.tables.lake:Lake.record", "after", "'releases'"),
    Point("announced, not ticked off", "steward", "truing.tasks.release.book:Book.finish", "before"),
)
GATEWAY = (
    Point("fetched, not admitted", "gateway", "truing.infra.gateway.shelf:RegistryShelf.payload", "after"),
    Point("payload kept, not its state", "gateway", "truing.infra.gateway.cache:_replace", "after", ".msgpack"),
    Point("kept, not served", "gateway", "truing.infra.gateway.cache:Cache.keep", "after"),
)
DECIDE = (
    Point("evaluated, no verdict in the book", "steward", "truing.tasks.release.book:Book.add_verdict", "before"),
    Point("verdict in the book, not attached", "steward", "truing.tasks.release.book:Book.add_verdict", "after"),
)
KEEPER = (
    Point("read, not landed", "ingest", "truing.flows.landing:Landing.commit", "before"),
    Point("landed, not joined", "ingest", "truing.tasks.tables.store:Store.append", "after", "'landing'"),
    Point("joined into rows, not into the holdout", "ingest", "truing.tasks.events.join:write", "after", "'rows'"),
    Point("merged small files, old ones still there", "ingest", "deltalake.table:TableOptimizer.compact", "after"),
)
REGISTERED = Point("version written, not in the audit", "registry", MLFLOW + "create_model_version", "after")
CONTROL = Point("read a request, not remembered", "ingest", "truing.flows.errands:remember", "before")
OUTBOX = (
    Point("answer on disk, not given", "gateway", "truing.infra.outbox:Outbox.append", "after"),
    Point("events sent, not ticked off", "gateway", "truing.infra.sender:Sender.publish", "after"),
)
IMPROVE = (
    Point("window judged, not recorded", "trainer", "truing.tasks.validation.suite:admit_window", "before"),
    Point("samples listed, no dataset", "trainer", "truing.flows.loop:keep", "after"),
    Point("study logged, no candidate", "trainer", "truing.tasks.release.registry:Registry.log_run", "after"),
    Point("files uploaded, not registered", "trainer", "truing.tasks.release.rest:Rest.send", "before", "versions/create"),
)
POINTS = (*REGISTRY, *STEWARD, *GATEWAY, *DECIDE, *KEEPER, REGISTERED, CONTROL, *OUTBOX, *IMPROVE)


class Room:
    """A running stage whose parts carry the injector, and what has been acknowledged to us so far."""

    def __init__(self, folder: Path) -> None:
        self.points = folder / "points"
        self.points.mkdir()
        (self.points / "targets").write_text("\n".join(sorted({point.target for point in POINTS})))
        path = os.pathsep.join(filter(None, (str(TESTS / "crash"), os.environ.get("PYTHONPATH"))))
        self.injected = {"CRASH": str(self.points), "PYTHONPATH": path}
        self.stage = Stage(folder)
        self.settings, self.stack = self.stage.settings, self.stage.stack
        self.vault, self.lake = Vault(self.settings.vault), Lake(self.settings.lake)
        self._halves = ((self.lake, "rows"), (self.vault, "holdout"))
        self.asked: set[str] = set()  # predictions whose answer came
        self.said: set[str] = set()  # predictions whose outcome was acknowledged

    def up(self) -> None:
        with pytest.MonkeyPatch.context() as patch:  # the parts inherit it; this process has begun without
            for name, value in self.injected.items():
                patch.setenv(name, value)
            self.stage.up()
        self.row = self.stage.world.trusted[0].inputs
        self._cases = iter([*self.stage.world.traffic(1), *self.stage.world.traffic(2)])

    # --- dying
    @contextmanager
    def dying(self, point: Point) -> Iterator[None]:
        """The body makes `point.part` die there; on leaving, the part is back. Fails if the point was never reached."""
        before = self._state(point.part).get("pid")
        self._arm(point)
        try:
            yield
            until(f"{point.part} to reach: {point.name}", lambda: self.reached(point))
        finally:
            (self.points / "armed").unlink()
        try:
            until(f"{point.part} to be back", lambda: self._back(point.part, before))
        except TimeoutError as error:
            pytest.fail(f"{error}: {self.stack.last_words(point.part)}")

    def learn_dying(self, point: Point) -> None:
        """One turn of learning in a process of its own, which dies there."""
        given = environment(self.settings) | own(self.settings, "runner") | self.injected
        self._arm(point)
        try:
            command = [sys.executable, str(TESTS / "crash" / "learn.py"), NAME]
            run = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
        finally:
            (self.points / "armed").unlink()
        assert run.returncode == -9, f"expected to die at {point}, got {run.returncode}: {run.stdout}{run.stderr}"
        assert self.reached(point), "it died, but elsewhere"

    def reached(self, point: Point) -> bool:
        return (self.points / f"{point.name}.reached").exists()

    def _arm(self, point: Point) -> None:
        draft = self.points / "draft"
        draft.write_text(json.dumps(asdict(point)))
        draft.rename(self.points / "armed")

    def _state(self, part: str) -> dict[str, Any]:
        return self.stack.states().get(part, {})

    def _back(self, part: str, before: int) -> bool:
        state, program = self._state(part), next(one for one in self.stack.parts if one.name == part)
        return state.get("pid") not in (None, 0, before) and self.stack.healthy(program, state)

    # --- people
    def approve(self, version: str) -> None:
        """As a person does who sees an error: look whether it stands, else try again."""
        while True:
            try:
                self.stage.approver.approve(NAME, version, "as tested")
                return
            except Unavailable:
                self.stage.approver.wait(120.0)
                seen = self.stage.approver.version(NAME, version)
                if seen.stamp:
                    return
                assert seen.approval is None, "shown as approved, and it is not"

    def answer_of(self, files: Mapping[str, bytes]) -> float:
        """The probability that these files answer to the row that `ask` asks about."""
        model = Model.from_files(dict(files))
        return float(model.predict([self.row]).probabilities[0, self.stage.problem.labels.index(self.stage.problem.positive)])

    # --- traffic
    def ask(self) -> tuple[str, int, float]:
        """One answer: version, sequence, probability."""
        with Client.of(self.settings, NAME, timeout_s=60.0) as client:
            told = client.predict([self.row], ids=[name := uuid.uuid4().hex])[0]
        self.asked.add(name)
        return told.version, told.sequence, told.probability

    @contextmanager
    def asking(self) -> Iterator[list[tuple[str, int, float]]]:
        """Somebody asks all the while; yields the answers in order."""
        told = [self.ask()]
        stop = threading.Event()

        def go_on() -> None:
            while not stop.wait(0.1):
                told.append(self.ask())

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(go_on)
            try:
                yield told
            finally:
                stop.set()
            asking.result()  # raises what it died of

    def teach(self, n: int = 20) -> list[Case]:
        """Ask about `n` new people and say what became of them; returned when both are acknowledged."""
        cases = [case for case, _ in zip(self._cases, range(n), strict=False)]
        with Client.of(self.settings, NAME, timeout_s=60.0) as client:
            client.predict(
                [case.inputs for case in cases],
                subjects=[case.subject for case in cases],
                groups=[case.groups for case in cases],
                ids=[case.id for case in cases],
            )
        self.asked |= {case.id for case in cases}
        with Client.of(self.settings, NAME, source="outcomes") as client:
            for case in cases:
                client.outcome(case.id, case.truth)
            client.flush(timeout_s=60.0)
        self.said |= {case.id for case in cases}
        return cases

    def said_on_control(self) -> dict[int, dict[str, Any]]:
        """Every message of the control topic by its offset."""
        reader, found = Reader(connection(self.settings), self.settings.kafka.control), {}
        try:
            while reader.lag():
                for chunk in reader.poll(200):
                    found |= {offset: json.loads(value or b"{}") for offset, value in chunk.records}
        finally:
            reader.close()
        return found

    # --- what stands
    def landed(self) -> tuple[pl.DataFrame, set[str]]:
        """All events that landed and the ids of all rows, once every acknowledged event is among them and no join is due."""

        def look() -> tuple[pl.DataFrame, set[str]] | None:
            landing = self.vault.read("landing")
            landed = landing.filter(pl.col("disposition") == "landed")
            have = set(landed.select("type", "prediction_id").iter_rows())
            if not have >= {("prediction", name) for name in self.asked} | {("outcome", name) for name in self.said}:
                return None
            ends = landing.group_by("topic", "partition", "epoch").agg(pl.col("offset").max() + 1)
            for *place, end in ends.iter_rows():
                app = ":".join((APP, *map(str, place)))
                if any((store.transaction(table, app) or 0) < end for store, table in self._halves):
                    return None
            rows = pl.concat(store.scan(table).select("id", "revision") for store, table in self._halves).collect()
            assert rows.n_unique() == rows.height, "a state of a row was written twice"
            return landed, set(rows["id"])

        return until("all acknowledged events to land and join", look)

    def check_events(self) -> None:
        """Every message landed at one place, every event counts once, and every acknowledged one is a row."""
        landed, rows = self.landed()
        places = self.vault.read("landing", columns=["topic", "partition", "epoch", "offset"])
        assert places.n_unique() == places.height, "a message landed twice"
        assert landed.select("source", "event_id").n_unique() == landed.height, "an event counts twice"
        assert rows == set(landed.filter(pl.col("type") == "prediction")["prediction_id"])

    def book(self) -> Book:
        """The steward's book, once nothing in it waits to be shown."""
        path, keys = self.settings.desk / "book.jsonl", self.stage.ring.public()
        return until("the steward to finish", lambda: None if (one := read_book(path, keys)).unfinished(NAME) else one)

    def check_releases(self) -> None:
        """Book, audit, tags, lake, alias and announcements tell one story: every sequence once, every approval once."""
        settings, keys, book = self.settings, self.stage.ring.public(), self.book()
        issued = {one.release.sequence: one for one in book.issued(NAME)}
        statements = {sequence: one.envelope for sequence, one in issued.items()}
        releases = [issued[sequence].release for sequence in sorted(issued)]
        assert sorted(issued) == list(range(1, len(issued) + 1)), "a sequence was left out"
        assert len({release.approval for release in releases}) == len(releases), "an approval was carried out twice"

        path = settings.guard / "audit.jsonl"
        verify(path, keys.registry, heads=book.marks)
        acts = Acts(keys.registry)
        for line in follow(read(path), keys=keys.registry):
            acts.apply(line)
        docket = acts.of(NAME)
        assert {sequence: one.envelope for sequence, one in docket.released.items()} == statements
        given = [seal.digest(one.approval) for each in docket.decisions.values() for one in each]
        assert given == [release.approval for release in releases], "an approval was recorded twice"

        versions = self.stage.trainer.versions(NAME)
        shown = [(sequence, text) for version in versions for sequence, text in version.statements().items()]
        assert sorted(shown) == sorted(statements.items())
        assert self.stage.trainer.champion(NAME) == releases[-1].version
        recorded = self.lake.read("releases", columns=["id"])
        assert self.lake.records("releases", Release, problem=NAME) == releases and recorded.height == len(releases)
        told = [one["id"] for one in self.said_on_control().values() if one["type"] == "model.released"]
        assert len(set(told)) == len(releases), "a release was announced under two ids"

        seen, checks = gather(settings, [NAME])  # bytes, tags, audit, book and the gateway's memory, as `truing verify` does
        checks += prove_problem(seen[NAME], now=time.time())
        assert [check for check in checks if check.state != OK] == []
        assert [line.entry.reason for line in read(settings.desk / "findings.jsonl")] == [], "a crash was taken for an attack"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    made = Room(tmp_path_factory.mktemp("crashes"))
    try:
        made.up()
        yield made
    finally:
        made.stage.down()


# --- between approval and served release


@pytest.mark.parametrize("point", [*REGISTRY, *STEWARD, *GATEWAY], ids=str)
def test_an_approved_version_is_released_once_though_a_part_dies(room: Room, point: Point) -> None:
    """Every answer on the way is the old release's or the new one's, to the last bit, and never the old one's after it."""
    old = room.ask()
    files = room.stage.variant()
    version = room.stage.judged(files)
    new = (version, old[1] + 1, room.answer_of(files))
    with room.asking() as told:
        with room.dying(replace(point, about=point.about.format(n=new[1]))):
            room.approve(version)
        room.stage.served_as(version, 120.0)
    room.check_events()
    assert told == [old] * told.count(old) + [new] * told.count(new), f"not the old answers, then the new ones: {set(told)}"
    assert room.ask() == new
    room.check_releases()


# --- the demo's other steps


@pytest.mark.parametrize("point", DECIDE, ids=str)
def test_a_version_is_judged_once_though_the_steward_dies(room: Room, point: Point) -> None:
    """One verdict in the book, that very one in the audit and on the page, and one look at the sealed rows."""
    files = room.stage.variant()
    with room.dying(point):
        version = room.stage.register(files)
    until("the verdict", lambda: room.stage.outcome(version))
    judged, shown = room.book().verdict(NAME, seal.tree_digest(files)), room.stage.trainer.version(NAME, version).verdict
    assert judged is not None and judged.envelope == shown
    lines = [line.entry for line in read(room.settings.desk / "book.jsonl") if line.entry.act == "verdict"]
    assert [entry.facts["envelope"] for entry in lines if entry.facts["version"] == version] == [shown]
    lines = [line.entry for line in read(room.settings.guard / "audit.jsonl") if line.entry.act == VERDICT]
    assert [entry.facts["envelope"] for entry in lines if entry.facts["version"] == version] == [shown]
    looks = read_ledger(room.settings.desk / "looks" / f"{NAME}.jsonl")
    assert [look.candidate for look in looks].count(seal.tree_digest(files)) == judged.verdict.look == 1


@pytest.mark.parametrize("point", KEEPER, ids=str)
def test_events_land_and_join_once_though_the_keeper_dies(room: Room, point: Point) -> None:
    with room.asking(), room.dying(point):
        taught = room.teach()
    room.check_events()
    rows = pl.concat([room.lake.rows(NAME), room.vault.holdout(NAME, now=time.time(), matured=False)])
    targets = dict(rows.select("id", "target").iter_rows())
    assert [targets[case.id] for case in taught] == [case.truth for case in taught]


def test_a_version_is_registered_once_though_the_registry_dies(room: Room) -> None:
    """A row that MLflow wrote before it was recorded is taken out again: the trainer's second try makes the only one."""
    files, before = room.stage.variant(), room.stage.trainer.versions(NAME)
    with room.dying(REGISTERED), pytest.raises(Unavailable):
        room.stage.register(files)
    room.stage.trainer.wait(120.0)
    assert room.stage.trainer.versions(NAME) == before
    version = room.stage.judged(files)
    after = room.stage.trainer.versions(NAME)
    assert [(one.version, one.payload) for one in after[len(before) :]] == [(version, seal.tree_digest(files))]
    room.check_releases()


def test_a_request_is_remembered_once_though_the_keeper_dies(room: Room) -> None:
    """The keeper reads the control topic beside landing; what it did about a message and its place go into one commit."""
    with room.dying(CONTROL):
        announcer(room.settings)({"type": "alert.raised", "problem": NAME, "key": "a crash"})
    said = room.said_on_control()

    def remembered() -> list[int] | None:
        rows = room.vault.read("requests", predicate=pl.col("id").str.starts_with(room.settings.kafka.control))
        return sorted(rows["seq"]) if rows["seq"].max() == max(said) else None

    assert until("the last message to be remembered", remembered) == sorted(said)


@pytest.mark.parametrize("point", OUTBOX, ids=str)
def test_an_answer_is_recorded_once_though_the_gateway_dies(room: Room, point: Point) -> None:
    """Who got no answer asks again under the same id; who got one finds it in the lake."""
    with room.dying(point):
        room.teach(5)
    room.check_events()


def test_a_candidate_is_registered_once_though_improve_dies_again_and_again(room: Room) -> None:
    """Each turn dies a step later than the one before, and leaves no version; the one that lives registers exactly one.

    Every turn starts from what the one before left behind, so each crash is recovered from up to the next point at least.
    """
    room.teach()
    room.landed()
    before = room.stage.trainer.versions(NAME)
    for point in IMPROVE:
        room.learn_dying(point)
        assert room.stage.trainer.versions(NAME) == before, f"{point}: a version was left behind"
    payload = turn(room.settings, NAME)
    after = room.stage.trainer.versions(NAME)
    assert [version.payload for version in after[len(before) :]] == [payload]
    assert len({version.tags["dataset"] for version in after}) == len(after), "two candidates of one dataset version"
    samples = room.lake.read("samples", columns=["dataset", "row"])
    assert samples.n_unique() == samples.height > 0, "a sample was listed twice"
    spans = sorted((window.first, window.last) for window in reports(room.lake, NAME))
    assert all(one[1] < other[0] for one, other in pairwise(spans)), f"windows overlap: {spans}"
    assert turn(room.settings, NAME) is None, "the same dataset was learned twice"
