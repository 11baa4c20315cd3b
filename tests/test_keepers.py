"""Several keepers on one vault: they share the partitions, replace their chief, and land once even where they overlap."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))  # a small problem and events of it

from fleet import Fleet, until
from intake_traffic import Maker, write_problem

from truing.flows.keeper import Busy, Keeper, drain
from truing.flows.landing import Landing
from truing.infra import broker, keepers
from truing.infra.accounts import office
from truing.infra.broker import connection
from truing.infra.heartbeat import last_beat
from truing.infra.keys import keyring
from truing.infra.processes import living
from truing.infra.programs import programs
from truing.infra.settings import Settings
from truing.infra.stack import Stack
from truing.infra.status import status
from truing.tasks.errors import SettingsError
from truing.tasks.events import join
from truing.tasks.events.intake import places
from truing.tasks.events.stream import Publisher, producer
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.tables.store import Stale

Message = tuple[bytes, bytes]
In = Callable[..., Settings]


class Site:
    """A fleet with its broker up, and a sender of the problem `loan`."""

    def __init__(self, folder: Path, settings_in: In, number: int = 2) -> None:
        ingest = {"keepers": number, "join_every_s": 0.1, "linger_ms": 20}
        self.settings = settings_in(folder, problems=write_problem(folder / "problems"), ingest=ingest)
        self.ring = keyring(self.settings)
        self.ring.create(["loan.loans"])
        self.fleet = Fleet(self.settings)
        self.fleet.start_broker()
        self.vault, self.lake = Vault(self.settings.vault), Lake(self.settings.lake)
        self.maker = Maker(self.ring.read("wire"), self.ring.source("loan", "loans"), now=time.time(), seed=1)
        self.events = Publisher(connection(self.settings), self.settings.kafka.topic)
        self.sent: set[str] = set()

    def close(self) -> None:
        self.events.close()
        self.fleet.close()

    def send(self, first: int, count: int) -> None:
        self.events.publish([self.maker.good("prediction", n) for n in range(first, first + count)])
        self.sent |= {f"p{n:09d}" for n in range(first, first + count)}

    def landed(self) -> pl.DataFrame:
        return self.vault.read("landing", ["partition", "offset", "epoch", "prediction_id", "disposition"])

    def rows(self) -> pl.DataFrame:
        states = [self.lake.read("rows", ["id", "revision"]), self.vault.read("holdout", ["id", "revision"])]
        return pl.concat(states)

    def check(self) -> None:
        """Once everything that was sent is a row: it is one row, from one event, at one place."""
        until("all events to be rows", lambda: set(self.rows()["id"]) >= self.sent)
        landed, rows = self.landed(), self.rows()
        assert Counter(landed["prediction_id"]) == dict.fromkeys(self.sent, 1)
        assert set(landed["disposition"]) == {"landed"}
        assert landed.select("partition", "epoch", "offset").n_unique() == landed.height
        assert Counter(rows["id"]) == dict.fromkeys(self.sent, 1)

    def chief(self) -> int | None:
        """Which living keeper says that it is chief."""
        for number, process in self.fleet.keepers.items():
            beat = last_beat(self.settings, keepers.part(number))
            if process.poll() is None and beat is not None and beat["pid"] == process.pid and beat["chief"]:
                return number
        return None


@pytest.fixture
def site(tmp_path: Path, settings_in: In) -> Iterator[Site]:
    one = Site(tmp_path, settings_in)
    try:
        yield one
    finally:
        one.close()


# --- sharing ------------------------------------------------------------------------------------------------------------------


@pytest.mark.services
def test_two_keepers_share_the_partitions_and_one_joins_for_both_until_it_dies(site: Site) -> None:
    site.send(0, 200)
    site.fleet.start(0, 1)
    site.check()
    until("a chief", lambda: site.chief() is not None)
    landed = dict(site.landed().group_by("partition").len().iter_rows())
    until("both to have said it", lambda: _told(site) == [landed[0] + landed[2], landed[1]])
    assert min(landed.values()) > 0

    first = site.chief()
    assert first is not None
    other = site.fleet.keepers[1 - first].pid
    with site.fleet.spared():
        site.fleet.kill(first)
        site.send(200, 100)
        until("the other one to be chief", lambda: site.chief() == 1 - first)
    site.check()
    assert site.fleet.keepers[1 - first].pid == other, "it went on, nothing restarted it"
    assert site.fleet.stop(0, 1) == [0, 0] and site.fleet.faults == []


def _told(site: Site) -> list[int]:
    beats = [last_beat(site.settings, name) for name in keepers.parts(site.settings)]
    return [beat["counts"].get("landed", 0) if beat else 0 for beat in beats]


@pytest.mark.services
def test_the_number_of_keepers_may_change_from_start_to_start(tmp_path: Path, settings_in: In) -> None:
    """Two, then four on three partitions (one is idle), then one."""
    site = Site(tmp_path, settings_in)
    try:
        for turn, number in enumerate((2, 4, 1)):
            site.send(100 * turn, 100)
            site.fleet.environment["TRUING_INGEST__KEEPERS"] = str(number)
            site.fleet.start(*range(number))
            site.check()
            until("signs of life of all", lambda number=number: all(_lives(site, n) for n in range(number)))
            assert site.fleet.stop(*range(number)) == [0] * number
        assert site.fleet.faults == [] and not site.fleet.restarts
    finally:
        site.close()


def _lives(site: Site, number: int) -> bool:
    beat = last_beat(site.settings, keepers.part(number))
    return beat is not None and beat["pid"] == site.fleet.keepers[number].pid


# --- fencing ------------------------------------------------------------------------------------------------------------------


@pytest.mark.services
def test_processes_that_both_own_a_partition_land_each_message_once(site: Site) -> None:
    """Keeper 0 of 1 reads all three partitions, and 1 of 2 and 2 of 3 each read one of them too: no lock parts them."""
    owners = [site.fleet.spawn(k, TRUING_INGEST__KEEPERS=str(k + 1)) for k in range(3)]
    try:
        first = count(0, 20)

        def overlapped() -> bool:
            site.send(next(first), 20)
            return any("read the positions again and resume there" in site.fleet.log(k).read_text() for k in range(3))

        until("one of them to be refused", overlapped)
        site.check()
        assert [one.poll() for one in owners] == [None] * 3
    finally:
        for one in owners:
            one.terminate()
        codes = [one.wait(30) for one in owners]
    assert codes == [0, 0, 0]


@pytest.mark.services
def test_a_commit_of_another_owner_before_the_first_one_of_ours_refuses_ours(site: Site) -> None:
    """Both read the places of an empty lake, and both read all messages; the second one has a longer batch."""
    keeper = Keeper(site.settings, start=lambda *_: "", log=print, number=None)
    ours, theirs = keeper.landing, _another(keeper)
    try:
        site.send(0, 50)
        theirs.commit(theirs.judge(_all(theirs)))
        site.send(50, 50)
        late = ours.judge(_all(ours, 100))
        with pytest.raises(Stale, match="read the positions again"):
            ours.commit(late)
        assert site.landed().height == 50
    finally:
        theirs.reader.close()
        keeper.close()


@pytest.mark.services
def test_two_chiefs_write_no_state_twice(site: Site) -> None:
    """Both join what landed first, one of them also what landed later; whoever writes second is refused and joins anew."""
    keeper = Keeper(site.settings, start=lambda *_: "", log=print, number=None)
    salt = site.ring.read("split-salt")

    def increment() -> join.Increment:
        found = join.increment(site.vault, site.lake, keeper.problems, salt=salt)
        assert found is not None
        return found

    try:
        site.send(0, 50)
        keeper.landing.drain()
        early = increment()
        site.send(50, 50)
        keeper.landing.drain()
        late = increment()
        join.write(site.lake, "rows", early)
        with pytest.raises(Stale, match="expected derive at None, got"):
            join.write(site.lake, "rows", late)
        late = increment()
        for store, table in ((site.lake, "rows"), (site.vault, "holdout")):
            join.write(store, table, late)
        join.write(site.vault, "holdout", early)  # what it says is written already
        site.check()
    finally:
        keeper.close()


def _another(keeper: Keeper) -> Landing:
    of = keeper.landing
    given = {"problems": of.problems, "proofs": of.proofs, "split_salt": of.split_salt}
    return Landing(of.settings, **given, stop=threading.Event(), log=print)


def _all(landing: Landing, least: int = 50) -> list:
    chunks: list = []
    until("all messages", lambda: chunks.extend(landing.gather()) or sum(len(one.records) for one in chunks) >= least)
    return chunks


@pytest.mark.services
def test_what_a_compaction_leaves_is_marked_as_joined(tmp_path: Path, settings_in: In, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes a new version of `landing` after the last event; whoever waits for that one to be joined waits no longer."""
    monkeypatch.setattr("truing.flows.chief.FILES", 1)
    monkeypatch.setattr("truing.flows.chief.COMPACT_S", 0.2)
    site = Site(tmp_path, settings_in, number=1)
    keeper = Keeper(site.settings, start=lambda *_: "", log=print)
    running = threading.Thread(target=keeper.run)
    running.start()
    try:
        for n in range(3):
            site.send(10 * n, 10)
            site.check()

        def compacted() -> bool:
            table = DeltaTable(f"{site.settings.vault}/landing")
            return table.history(1)[0]["operation"] == "OPTIMIZE" and len(table.file_uris()) == 1

        until("a compaction after the last event", compacted)
        until("the join to say so", lambda: site.vault.transaction("holdout", join.APP) == site.vault.version("landing"))
    finally:
        keeper.stop.set()
        running.join()
        site.close()


@pytest.mark.services
def test_a_chief_that_trims_the_logs_at_once_loses_and_doubles_nothing(
    tmp_path: Path, settings_in: In, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged, checkpointed and trimmed all the while, far more often than it ever is; every loop has handles of its own."""
    for name, value in {"FILES": 1, "COMPACT_S": 0.1, "MERGE_S": 0.2, "LOG_S": 0.0}.items():
        monkeypatch.setattr(f"truing.flows.chief.{name}", value)
    monkeypatch.setattr("truing.tasks.tables.follow.CHECKPOINT", 3)
    site = Site(tmp_path, settings_in, number=1)
    keeper = Keeper(site.settings, start=lambda *_: "", log=print)
    running = threading.Thread(target=keeper.run)
    running.start()
    log = Path(site.settings.vault, "landing", "_delta_log")
    try:
        for n in range(12):
            site.send(10 * n, 10)
            site.check()
        until("the first entries to go", lambda: not (log / f"{1:020}.json").exists())
        site.check()
    finally:
        keeper.stop.set()
        running.join()
        site.close()


def begins(keeper: Keeper) -> int:
    """Records that the broker was let forget, in all partitions."""
    reader = keeper.landing.reader
    with reader._guarded():
        consumer = reader._new()
        try:
            return sum(consumer.beginning_offsets(reader._partitions(range(3))).values())
        finally:
            consumer.close()


@pytest.mark.services
def test_only_what_landed_a_while_ago_is_trimmed(tmp_path: Path, settings_in: In) -> None:
    site = Site(tmp_path, settings_in, number=1)
    keeper = Keeper(site.settings, start=lambda *_: "", log=print)
    landing = keeper.landing
    try:
        site.send(0, 2000)
        landing.drain()
        landing.trim()
        assert begins(keeper) == 0, "what has just landed may be gone from the broker's log after a crash, and written over"
        site.send(2000, 2000)
        landing.drain()
        landing.trim()
        assert begins(keeper) == 2000 - 3, "what stood landed at the last call goes, but for its last records"
    finally:
        keeper.close()
        site.close()


@pytest.mark.services
def test_on_kafka_what_landed_goes_after_its_retention_and_what_has_not_landed_never(tmp_path: Path, on_apache: In) -> None:
    """Age is by the broker's clock: a sender that calls its records ancient has none of them deleted for it."""
    site = Site(tmp_path, on_apache, number=1)
    keeper = Keeper(site.settings, start=lambda *_: "", log=print)
    landing = keeper.landing
    try:
        site.send(0, 300)
        landing.drain()
        for _ in range(2):
            landing.trim(keep_s=3600.0)
        assert begins(keeper) == 0, "all of it is younger than an hour"
        old = producer(connection(site.settings))
        ancient = [site.maker.good("prediction", n) for n in range(300, 400)]
        sent = [old.send(site.settings.kafka.topic, key=key, value=value, timestamp_ms=1) for key, value in ancient]
        old.close()
        site.sent |= {f"p{n:09d}" for n in range(300, 400)}
        assert min(one.get().timestamp for one in sent) > time.time() * 1000 - 60_000
        landing.trim(keep_s=0.001)
        assert begins(keeper) == 300 - 3, "what has landed is older than a millisecond; what stands behind it has not landed"
        keeper.close()
        keeper = Keeper(site.settings, start=lambda *_: "", log=print)
        drain(keeper)
        site.check()
    finally:
        keeper.close()
        site.close()


@pytest.mark.services
def test_topics_of_an_earlier_start_get_what_is_ours_by_now_and_keep_what_a_person_set(on_apache: In, tmp_path: Path) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType

    site = Site(tmp_path, on_apache, number=1)
    name = site.settings.kafka.topic

    def resource(values: dict[str, str] | None = None) -> ConfigResource:
        return ConfigResource(ConfigResourceType.TOPIC, name, values)

    def told() -> dict[str, str]:
        found = admin.describe_configs([resource()])["topic"][name]
        return {key: one["value"] for key, one in found.items()}

    ours = broker.ours(site.settings)
    admin = broker.administrator(site.settings)
    try:
        assert told() == ours and ours["retention.ms"] == str(7 * 86_400_000)
        admin.reset_configs([resource(dict(ours))])
        assert told() == {}
        admin.alter_configs([resource({"retention.ms": "60000"})])
        broker.ensure_topics(site.settings)
        assert told() == {**ours, "retention.ms": "60000"}
        file = next(site.settings.problems.glob("*/problem.toml"))
        file.write_text('retention = "30d"\n' + file.read_text())
        assert broker.ours(site.settings)["retention.ms"] == str(30 * 86_400_000), "longer than a week where the problem is"
    finally:
        admin.close()
        site.close()


# --- names and locks ----------------------------------------------------------------------------------------------------------


def test_each_keeper_is_a_part_with_the_office_and_the_keys_of_ingest(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path, ingest={"keepers": 3})
    names = [part.name for part in programs(settings) if keepers.is_keeper(part.name)]
    assert names == ["ingest", "ingest-1", "ingest-2"]
    assert {office(name) for name in names} == {"ingest"}
    assert not any(keepers.is_keeper(name) for name in ("ingest-", "ingest-x", "ingestion", "gateway"))


@pytest.mark.services
def test_the_supervisor_keeps_each_of_them_and_status_shows_them(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path, problems=write_problem(tmp_path / "problems"), ingest={"keepers": 2})
    stack = Stack(settings, parts=("broker", "ingest", "ingest-1"))
    stack.up()
    try:
        pid = stack.states()["ingest-1"]["pid"]
        os.kill(pid, signal.SIGKILL)
        until("it to be back", lambda: stack.states()["ingest-1"]["pid"] not in (0, pid))
        until("both to be healthy", lambda: all(stack.healthy(part, stack.states()[part.name]) for part in stack.parts))
        shown = {part["part"]: part["healthy"] for part in status(settings, light=True)["parts"]}
        assert shown["ingest"] and shown["ingest-1"]
    finally:
        stack.down()
    assert not living(settings.data) and list((settings.data / "run").iterdir()) == []


def test_a_number_is_held_once_and_must_be_one_of_the_settings(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path, ingest={"keepers": 2})
    held = [keepers.claim(settings, "0"), keepers.claim(settings, "1")]
    with pytest.raises(Busy, match=r"^expected no other keeper on [^\n]+ \(1\), got one[^\n]+$"):
        keepers.claim(settings, "1")
    with pytest.raises(Busy):
        keepers.claim_all(settings)
    keepers.release(held)
    fewer = settings_in(tmp_path, ingest={"keepers": 1})
    everything = keepers.claim_all(fewer)
    with pytest.raises(Busy, match=r"\(1\)"):  # a keeper of the earlier number would be held off too
        keepers.claim(settings, "1")
    keepers.release(everything)
    with pytest.raises(SettingsError, match=r"^setting ingest\.keepers: expected more than 2 for keeper 2, got 2; [^\n]+$"):
        keepers.share(settings, 2)


@pytest.mark.services
def test_garbage_at_the_end_of_what_was_read_does_not_hide_that_the_log_is_another_one(site: Site) -> None:
    """The last message names no id. The next one of its partition does, and is what tells this log from another."""
    keeper = Keeper(site.settings, start=lambda *_: "", log=print, number=None)
    try:
        site.send(0, 30)
        site.events.publish([(b"p%09d" % n, b"garbage") for n in range(30)])
        keeper.landing.drain()
        found = places(site.vault, site.settings.kafka.group, site.settings.kafka.topic)
        assert found == keeper.reader.places
        names = dict(site.vault.read("landing", ["partition", "offset", "event_id"]).select(
            pl.concat_str("partition", pl.lit(":"), "offset"), "event_id").iter_rows())  # fmt: skip
        for partition, place in found.items():
            assert names[f"{partition}:{place.offset - 1}"] == ""
            assert names[f"{partition}:{place.anchor_offset}"] == place.anchor_id != ""
    finally:
        keeper.close()


@pytest.mark.services
def test_who_has_not_noticed_a_new_epoch_is_refused(site: Site) -> None:
    """Another owner of the partition reads epoch 1 already; ours still takes the broker's log for that of epoch 0."""
    keeper = Keeper(site.settings, start=lambda *_: "", log=print, number=None)
    ours, theirs = keeper.landing, _another(keeper)
    try:
        site.send(0, 50)
        early, late = _all(theirs), ours.judge(_all(ours))
        theirs.commit(theirs.judge([chunk._replace(epoch=1) for chunk in early]))
        with pytest.raises(Stale, match=r"expected truing:user-events:\d:1 at None"):
            ours.commit(late)
        assert site.landed().height == 50
    finally:
        theirs.reader.close()
        keeper.close()
