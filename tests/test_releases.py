"""The steward on a real registry, broker and gateway: what it releases, takes back, finds and mends, and what a crash leaves.

The steward runs in this process, so that it can be stopped at any call and started again on the same folder.
"""

from __future__ import annotations

import importlib
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))  # the stage is the benchmarks' small stack

from stage import NAME, Stage, until

from truing.flows import loop
from truing.flows.desk import Desk, close_desk, open_desk
from truing.flows.steward import turn
from truing.tasks import seal
from truing.tasks.errors import Refused, TruingError
from truing.tasks.records import Cause, Release
from truing.tasks.release.book import read_book
from truing.tasks.release.findings import open_findings
from truing.tasks.tables.lake import Lake

pytestmark = [pytest.mark.services, pytest.mark.slow]


class Died(BaseException):
    """The process is gone: nothing catches it, nothing is tidied up."""


class Room:
    """A stage whose steward is `desk`, worked by hand (`work`) or in the background (`working`)."""

    def __init__(self, folder: Path) -> None:
        self.stage = Stage(folder, parts=("broker", "registry", "ingest", "gateway"))
        self.settings = self.stage.settings
        self.desk: Desk | None = None
        with self.working():
            self.stage.up()

    # --- the steward's life
    def opened(self) -> Desk:
        if self.desk is None:
            self.desk = open_desk(self.settings)
            self.desk.aside = False  # in one thread, where it can be stopped
        return self.desk

    def die(self) -> None:
        if self.desk is not None:
            close_desk(self.desk)  # what the kernel does: files and their locks go with the process
            self.desk = None

    def work(self, patience_s: float = 60.0) -> None:
        """Turns until two in a row had nothing to do."""
        idle, end = 0, time.monotonic() + patience_s
        while idle < 2:
            idle = 0 if turn(self.opened()) else idle + 1
            assert time.monotonic() < end, "the steward never came to rest"

    @contextmanager
    def working(self) -> Iterator[None]:
        stop = threading.Event()

        def run() -> None:
            while not stop.is_set():
                try:
                    if not turn(self.opened()):
                        stop.wait(0.1)
                except TruingError:  # the stack is not up yet
                    stop.wait(0.2)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60.0)

    @contextmanager
    def dying(self, target: str, when: str, call: int = 1) -> Iterator[None]:
        """The `call`-th call of `module:qualified.name` from here on is the last thing the steward does."""
        module, _, qualified = target.partition(":")
        owner: Any = importlib.import_module(module)
        *outer, name = qualified.split(".")
        for part in outer:
            owner = getattr(owner, part)
        real: Callable[..., Any] = getattr(owner, name)
        count = 0

        def last(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == call and when == "before":
                raise Died
            result = real(*arguments, **named)
            if count == call:
                raise Died
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, last)
            yield
        assert count >= call, f"{target} was not reached"
        self.die()

    # --- what stands
    @property
    def releases(self) -> list[Release]:
        return read_book(self.settings.desk / "book.jsonl", self.stage.ring.public()).releases(NAME)

    @property
    def findings(self) -> dict[str, str]:
        found = open_findings(self.settings.desk / "findings.jsonl", self.stage.ring.public())
        return {one.key: one.got for one in found}

    def candidate(self) -> str:
        """A new version, judged."""
        version = self.stage.register(self.stage.variant())
        self.work()
        assert self.stage.outcome(version) == "pass"
        return version

    def consistent(self) -> None:
        """Book, tags, alias, lake and gateway name the same releases, each once."""
        self.work()
        book = self.releases
        assert [one.sequence for one in book] == list(range(1, len(book) + 1))
        assert self.stage.trainer.releases(NAME, self.stage.ring.public()) == book
        assert self.stage.trainer.champion(NAME) == book[-1].version
        recorded = Lake(self.settings.lake).records("releases", Release, problem=NAME)
        assert sorted(recorded, key=lambda one: one.sequence) == book
        assert self.opened().book.unfinished(NAME) == []
        if book[-1].cause is not Cause.WITHDRAW:
            seen = until("the gateway to serve it", lambda: self.serving(book[-1].sequence))
            assert seen["payload"] == book[-1].payload

    def serving(self, sequence: int) -> dict[str, Any] | None:
        seen = self.stage.status()
        return seen if seen["sequence"] == sequence else None

    # --- behind the registry's back
    def edit(self, statement: str, *values: str) -> None:
        with sqlite3.connect(self.settings.store / "mlflow.db", timeout=30.0) as database:
            assert database.execute(statement, values).rowcount > 0, "nothing was edited"

    def look(self, patience_s: float = 40.0, *, until_: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """The open findings once they are as wanted. Rounds are hurried: nothing else happens meanwhile."""
        end = time.monotonic() + patience_s
        while True:
            self.opened().at.pop("round", None)
            turn(self.opened())
            if until_(self.findings):
                return self.findings
            assert time.monotonic() < end, f"open: {self.findings}"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    made = Room(tmp_path_factory.mktemp("releases"))
    try:
        yield made
    finally:
        made.die()
        made.stage.down()


# --- crashes ------------------------------------------------------------------------------------------------------------------

BOOK, REGISTRY = "truing.tasks.release.book:Book", "truing.tasks.release.registry:Registry"
RELEASING = [
    ("truing.flows.release:held", "after", 1),  # the bytes were checked
    (f"{BOOK}.add_release", "before", 1),
    (f"{BOOK}.add_release", "after", 1),
    (f"{BOOK}.add_head", "after", 1),
    (f"{REGISTRY}.set_tag", "before", 1),
    (f"{REGISTRY}.set_tag", "after", 1),  # release.<n>
    (f"{REGISTRY}.set_tag", "after", 2),  # release
    (f"{REGISTRY}.attach_head", "after", 1),
    (f"{REGISTRY}.move_champion", "before", 1),
    (f"{REGISTRY}.move_champion", "after", 1),
    ("truing.tasks.tables.lake:Lake.record", "after", 1),
    (f"{BOOK}.finish", "before", 1),  # announced
    (f"{BOOK}.finish", "after", 1),
]
JUDGING = [
    ("truing.tasks.evaluation.ledger:note_look", "after", 1),
    ("truing.tasks.evaluation.kept:store", "after", 1),
    ("truing.tasks.tables.predictions:Predictions.keep", "after", 1),
    (f"{REGISTRY}.log_verdict", "after", 1),
    (f"{BOOK}.add_verdict", "after", 1),
    (f"{REGISTRY}.describe", "after", 1),
    (f"{REGISTRY}.set_tag", "after", 3),
    (f"{REGISTRY}.set_tag", "after", 5),
    (f"{BOOK}.finish", "before", 1),
]


def named(points: list[tuple[str, str, int]]) -> list[Any]:
    return [pytest.param(*point, id=f"{point[1]} {point[0].rpartition('.')[2]} {point[2]}") for point in points]


@pytest.mark.parametrize(("target", "when", "call"), named(RELEASING))
def test_a_release_that_dies_anywhere_is_the_old_one_or_the_new_one_and_never_two(
    room: Room, target: str, when: str, call: int
) -> None:
    version = room.candidate()
    before = room.releases[-1].sequence
    room.stage.approver.approve(NAME, version, "good")
    with room.dying(target, when, call), pytest.raises(Died):
        room.work()
    assert room.stage.status()["sequence"] in (before, before + 1)
    room.consistent()
    last = room.releases[-1]
    assert (last.sequence, last.version, last.cause) == (before + 1, version, Cause.PROMOTE)


@pytest.mark.parametrize(("target", "when", "call"), named(JUDGING))
def test_a_verdict_that_dies_anywhere_is_whole_in_the_end(room: Room, target: str, when: str, call: int) -> None:
    version = room.stage.register(room.stage.variant())
    with room.dying(target, when, call), pytest.raises(Died):
        room.work()
    room.consistent()
    seen = room.stage.trainer.version(NAME, version)
    judged = room.opened().book.verdict(NAME, seen.payload or "")
    assert judged is not None
    assert (seen.verdict, seen.description, seen.outcome) == (judged.envelope, judged.description, "pass")
    assert judged.verdict.look == 1, "the same rows are the same look"
    assert set(seen.tags) >= {"verdict.reason", "verdict.indicators", "verdict.run"}
    assert len([key for key in seen.tags if key.startswith("verdict")]) == 5


# --- back ---------------------------------------------------------------------------------------------------------------------


def test_a_rollback_is_served_and_a_rollback_of_it_too(room: Room) -> None:
    first, second = room.releases[-1].version, room.candidate()
    room.stage.approver.approve(NAME, second, "good")
    room.consistent()
    for target in (first, second, first):
        before = room.releases[-1].sequence
        room.stage.approver.request_rollback(NAME, target, "complaints")
        room.consistent()
        last = room.releases[-1]
        assert (last.version, last.cause, last.sequence) == (target, Cause.ROLLBACK, before + 1)
        assert last.asked == room.opened().watch.acts.of(NAME).rollback.line  # type: ignore[union-attr]
    room.work()
    assert room.releases[-1] == last, "one request, one release"


def test_frozen_nothing_is_promoted_but_the_way_back_is_open(room: Room) -> None:
    version, back = room.candidate(), room.releases[-2].version
    room.stage.approver.freeze(NAME, "inventory")
    try:
        room.stage.approver.approve(NAME, version, "good")
        before = room.releases[-1].sequence
        room.work()
        assert room.releases[-1].sequence == before
        room.stage.approver.request_rollback(NAME, back, "complaints")
        room.consistent()
        assert (room.releases[-1].version, room.releases[-1].cause) == (back, Cause.ROLLBACK)
    finally:
        room.stage.approver.thaw(NAME)
    room.consistent()


def test_the_newest_release_that_stands_comes_back_when_an_approval_is_revoked(room: Room) -> None:
    older = room.releases[-1].version
    version = room.candidate()
    room.stage.approver.approve(NAME, version, "good")
    room.consistent()
    room.stage.second.revoke(NAME, version, "wrong labels")
    room.consistent()
    last = room.releases[-1]
    assert (last.version, last.cause) == (older, Cause.ROLLBACK)
    assert last.reason == f"approval of version {version} revoked by approver2: wrong labels"
    with pytest.raises(Refused):
        room.stage.approver.request_rollback(NAME, version, "I liked it")
        room.work()
        raise Refused(seal.Refusal(code="rollback.revoked", reason="not released", remedy="none"))
    assert room.releases[-1].version == older


def test_a_way_back_does_not_wait_for_a_verdict(room: Room) -> None:
    """With a verdict on the bench that does not come to an end, a rollback is released all the same."""
    target = room.releases[-1].version
    room.stage.approver.approve(NAME, room.candidate(), "good")
    room.consistent()
    begun, end = threading.Event(), threading.Event()
    real = loop.decide

    def slowly(*arguments: Any, **named: Any) -> Any:
        begun.set()
        assert end.wait(60.0)
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "decide", slowly)
        room.opened().aside = True
        try:
            version = room.stage.register(room.stage.variant())
            turn(room.opened())
            assert begun.wait(30.0)
            room.stage.approver.request_rollback(NAME, target, "complaints")
            before = room.releases[-1].sequence
            assert turn(room.opened()) == 1
            assert (room.releases[-1].version, room.releases[-1].sequence) == (target, before + 1)
            assert room.stage.outcome(version) is None
        finally:
            end.set()
            bench = room.opened().bench
            assert bench is not None
            bench.join(60.0)
            room.opened().aside = False
    room.consistent()
    assert room.stage.outcome(version) == "pass"


# --- in advance ---------------------------------------------------------------------------------------------------------------


def test_small_steps_go_out_under_a_standing_approval_and_larger_ones_wait(room: Room) -> None:
    room.stage.approver.approve(NAME, room.candidate(), "good")  # what is older than the last release is not let out
    room.consistent()
    room.stage.approver.set_model_tag(NAME, "standing.reason", "nightly")
    room.stage.approver.set_model_tag(NAME, "standing", '{"days": 1, "max_drift": 0.02, "per_day": 2}')
    try:
        for _ in range(2):
            version = room.candidate()
            room.consistent()
            last = room.releases[-1]
            standing = room.opened().watch.acts.of(NAME).standing
            assert standing is not None
            assert (last.version, last.approval, last.asked) == (version, seal.digest(standing.standing), standing.line)
        waits = room.candidate()
        room.consistent()
        assert room.releases[-1].version == version, "two a day"
    finally:
        room.stage.approver.set_model_tag(NAME, "standing.reason", "over")
        room.stage.approver.set_model_tag(NAME, "standing", "revoked")
    room.stage.approver.approve(NAME, waits, "good")
    room.consistent()
    assert room.releases[-1].version == waits


# --- behind the registry's back -----------------------------------------------------------------------------------------------


def test_what_was_edited_in_the_database_is_found_and_what_is_the_stewards_is_put_right(room: Room) -> None:
    room.consistent()
    assert room.look(until_=lambda open_: not open_) == {}
    serving, other = room.releases[-1].version, room.releases[-2].version
    tag = "UPDATE model_version_tags SET value = ? WHERE name = ? AND version = ? AND key = ?"
    room.edit("UPDATE registered_model_aliases SET version = ? WHERE name = ? AND alias = 'champion'", other, NAME)
    room.edit(tag, "block", NAME, serving, "verdict.outcome")
    room.edit(tag, "mine", NAME, serving, "release")
    room.edit("UPDATE model_versions SET description = ? WHERE name = ? AND version = ?", "Pass. Trust me.", NAME, serving)
    room.edit(tag, "mallory", NAME, serving, "trainer")
    wrong = {f"{NAME}/champion", f"{NAME}/{serving}/verdict.shown", f"{NAME}/{serving}/release",
             f"{NAME}/{serving}/description"}  # fmt: skip
    lines = (room.settings.desk / "findings.jsonl").read_text().count('"act":"open"')
    kept = room.look(until_=lambda open_: set(open_) == {f"{NAME}/{serving}/trainer"})
    assert kept == {f"{NAME}/{serving}/trainer": "mallory"}, "only the registry stamps who trained"
    text = (room.settings.desk / "findings.jsonl").read_text()
    assert text.count('"act":"open"') == lines + len(wrong) + 1
    room.edit(tag, "trainer", NAME, serving, "trainer")
    assert room.look(until_=lambda open_: not open_) == {}
    room.consistent()


def test_altered_files_are_found_and_never_released(room: Room) -> None:
    version, serving = room.candidate(), room.releases[-1]
    folder = artifacts(room, version)
    original = (folder / "model.json").read_bytes()
    room.stage.approver.approve(NAME, version, "good")
    (folder / "model.json").write_bytes(original + b" ")
    try:
        room.work()
        assert room.releases[-1] == serving
        assert f"{NAME}/{version}/bytes" in room.look(until_=lambda open_: f"{NAME}/{version}/bytes" in open_)
    finally:
        (folder / "model.json").write_bytes(original)
    room.opened().patience = type(room.opened().patience)(1.0, 300.0)
    assert room.look(until_=lambda open_: not open_) == {}
    room.consistent()
    assert room.releases[-1].version == version, "the bytes are back, the approval stands"


def artifacts(room: Room, version: str) -> Path:
    """Where a version's files lie."""
    uri = room.stage.trainer.rest.get("/model-versions/get-download-uri", name=NAME, version=version)["artifact_uri"]
    return room.settings.store / "artifacts" / str(uri).partition(":")[2].lstrip("/")


def test_a_row_that_was_put_into_the_database_is_found_and_is_no_version(room: Room) -> None:
    version = room.releases[-1].version
    tables = ("model_versions", "model_version_tags")
    with sqlite3.connect(room.settings.store / "mlflow.db", timeout=30.0) as database:
        for table in tables:
            names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            values = ", ".join("99" if name == "version" else name for name in names)
            copied = f"INSERT INTO {table} SELECT {values} FROM {table} WHERE name = ? AND version = ?"  # noqa: S608
            assert database.execute(copied, (NAME, version)).rowcount
    before = room.releases
    found = room.look(until_=bool)
    assert found == {f"{NAME}/99/row": "there"}
    room.work()
    assert room.releases == before
    for table in tables:
        room.edit(f"DELETE FROM {table} WHERE name = ? AND version = ?", NAME, "99")  # noqa: S608
    assert room.look(until_=lambda open_: not open_) == {}


# --- books --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lost", "an older copy"])
def test_a_book_that_is_gone_or_old_takes_its_releases_back_and_gives_no_number_twice(room: Room, how: str) -> None:
    room.consistent()
    path = room.settings.desk / "book.jsonl"
    old = path.read_bytes()
    version = room.candidate()
    room.stage.approver.approve(NAME, version, "good")
    room.consistent()
    before = room.releases
    room.die()
    path.unlink()
    if how == "an older copy":
        path.write_bytes(old)
    room.work()
    assert room.releases == before
    room.consistent()
    room.stage.approver.request_rollback(NAME, before[-2].version, "complaints")
    room.consistent()
    assert room.releases[-1].sequence == before[-1].sequence + 1


def test_nothing_serves_when_no_approval_stands_and_the_next_one_starts_anew(room: Room) -> None:
    last = room.releases[-1]
    for version in sorted({one.version for one in room.releases} - {last.version}):
        room.stage.approver.revoke(NAME, version, "recall")
    room.work()
    assert room.releases[-1] == last
    room.stage.approver.revoke(NAME, last.version, "recall")
    room.work()
    gone = room.releases[-1]
    assert (gone.cause, gone.version, gone.sequence) == (Cause.WITHDRAW, last.version, last.sequence + 1)
    until("the gateway to serve nothing", lambda: not room.stage.status()["ready"])
    answer = httpx.get(f"{room.settings.gateway_url}/v2/models/{NAME}/ready")
    assert answer.status_code == 503
    version = room.stage.register(room.stage.variant())
    room.work()
    assert room.stage.outcome(version) == "inconclusive", "there is no champion to compare with"
    room.stage.approver.approve(NAME, version, "start again")
    room.work()
    again = room.releases[-1]
    assert (again.version, again.cause, again.sequence) == (version, Cause.PROMOTE, gone.sequence + 1)
    until("the gateway to serve it", lambda: room.serving(again.sequence))


def test_an_older_database_makes_no_sequence_fall_and_no_second_genesis(room: Room) -> None:
    """The last test of this room: the registry's database is restored from a copy in which two releases are missing."""
    room.consistent()
    copy = room.settings.data / "older.db"
    store = room.settings.store / "mlflow.db"
    with sqlite3.connect(store, timeout=30.0) as database, sqlite3.connect(copy) as target:
        database.backup(target)
    for _ in range(2):
        room.stage.approver.approve(NAME, room.candidate(), "good")
        room.consistent()
    before = room.releases
    with sqlite3.connect(copy) as source, sqlite3.connect(store, timeout=30.0) as database:
        source.backup(database)
    gone = {f"{NAME}/{one.version}/row" for one in before[-2:]}
    room.look(until_=lambda open_: gone <= set(open_))
    assert room.releases == before
    assert room.stage.status()["sequence"] == before[-1].sequence, "what serves goes on"
    room.stage.approver.request_rollback(NAME, before[-3].version, "the newest ones are gone")
    room.work()
    assert (room.releases[-1].sequence, room.releases[-1].version) == (before[-1].sequence + 1, before[-3].version)
    until("the gateway to serve it", lambda: room.serving(before[-1].sequence + 1))
