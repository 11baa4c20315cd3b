"""The keeper: every acknowledged message becomes one row, through SIGKILL, forgery and repetition; runs are started once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from waiting import until

from truing.flows.errands import STALE_S, Trigger, decide
from truing.flows.keeper import Busy, Keeper, drain
from truing.flows.landing import Landing
from truing.infra import broker
from truing.infra.control import Askers, signed
from truing.infra.heartbeat import last_beat
from truing.infra.keys import Keyring
from truing.infra.settings import Settings, child_environment
from truing.tasks.errors import Unavailable
from truing.tasks.events.schema import Reason, encode_event, token
from truing.tasks.events.stream import Publisher
from truing.tasks.problem import Problem
from truing.tasks.tables.lake import Lake, Vault

ROW: dict[str, Any] = {
    "age": 39,
    "workclass": "State-gov",
    "education": "Bachelors",
    "education_num": 13,
    "marital_status": "Never-married",
    "occupation": "Adm-clerical",
    "relationship": "Not-in-family",
    "capital_gain": 2174,
    "capital_loss": 0,
    "hours_per_week": 40,
    "native_country": "United-States",
}
Message = tuple[bytes, bytes]
KEY = b"k" * 32
ASKERS = Askers(operator=KEY, sources={"adult": {"clock": (b"c" * 32, frozenset({"curate"}))}})


class Site:
    """A data folder with keys, a running broker, and what applications and sources send to it."""

    def __init__(self, settings: Settings, problem: Problem) -> None:
        self.settings = settings
        self.ring = Keyring(settings.keys)
        self.ring.create([f"adult.{source}" for source in problem.sources])
        self.wire = self.ring.read("wire")
        null = subprocess.DEVNULL
        environment = child_environment(settings)
        self.broker = subprocess.Popen(broker.command(settings), env=environment, stdout=null, stderr=null)
        broker.wait_for(settings, 60)
        broker.ensure_topics(settings)
        self.events = Publisher(broker.connection(settings), settings.kafka.topic)
        self.control = Publisher(broker.connection(settings), settings.kafka.control, linger_ms=0)
        self.started: list[tuple[str, str]] = []
        self.said: list[str] = []

    def close(self) -> None:
        self.events.close()
        self.control.close()
        self.broker.terminate()
        self.broker.wait(20)

    def send(self, *messages: Message) -> None:
        self.events.publish(messages)

    def start(self, deployment: str, key: str) -> str:
        self.started.append((deployment, key))
        return "run"

    def keeper(self) -> Keeper:
        return Keeper(self.settings, start=self.start, log=self.said.append)

    def drained(self) -> pl.DataFrame:
        """All of `landing` after everything sent so far has landed and is joined."""
        keeper = self.keeper()
        try:
            drain(keeper)
        finally:
            keeper.close()
        return Vault(self.settings.vault).landing()

    # --- messages
    def prediction(self, n: int, **more: Any) -> Message:
        inputs = more.pop("inputs", ROW | {"age": 20 + n % 60})
        data = {"inputs": inputs, "answer": {"label": "<=50K", "confidence": 0.8}, "groups": {"sex": "Female"}}
        given = {"source": "gateway", "source_key": self.wire, "subject": f"person {n}", **more}
        return self._event("prediction", n, data, **given)

    def rating(self, n: int, value: float = 0.9, **more: Any) -> Message:
        given = {"source": "app", "token": self.token(n), "actor": "Ada Byron", **more}
        return self._event("rating", n, {"value": value}, **given)

    def outcome(self, n: int, label: str = ">50K", **more: Any) -> Message:
        given = {"source": "outcomes", "source_key": self.ring.source("adult", "outcomes"), **more}
        return self._event("outcome", n, {"label": label}, **given)

    def token(self, n: int, seconds: float = 600) -> str:
        return token(self.wire, "adult", f"p{n}", time.time() + seconds)

    def _event(self, kind: str, n: int, data: dict[str, Any], **more: Any) -> Message:
        return encode_event(kind, **{"problem": "adult", "prediction_id": f"p{n}", "time": time.time(), "data": data, **more})


@pytest.fixture
def site(tmp_path: Path, on_each_broker: Callable[..., Settings], problem: Problem) -> Iterator[Site]:
    one = Site(on_each_broker(tmp_path, ingest={"join_every_s": 0.1}), problem)
    try:
        yield one
    finally:
        one.close()


# --- one row a message --------------------------------------------------------------------------------------------------------


@pytest.mark.services
def test_what_is_not_believed_lands_as_a_dead_letter_with_its_reason_and_its_bytes(site: Site) -> None:
    cases: dict[str, tuple[Reason, bytes]] = {
        "garbage": (Reason.JSON, b"\x00\xff garbage"),
        "no proof": (Reason.PROOF, site.rating(1, token=None)[1]),
        "forged token": (Reason.TOKEN, site.rating(1, token=token(b"x" * 32, "adult", "p1", time.time() + 9))[1]),
        "token of another": (Reason.TOKEN, site.rating(1, token=site.token(2))[1]),
        "expired token": (Reason.EXPIRED, site.rating(1, token=site.token(1, seconds=-5))[1]),
        "forged mac": (Reason.MAC, site.outcome(1, source_key=b"x" * 32)[1]),
        "wrong type": (Reason.SOURCE_TYPE, site.outcome(1, source="gateway", source_key=site.wire)[1]),
        "a person judges": (Reason.SOURCE_TYPE, site.outcome(1, source="app", source_key=None, token=site.token(1))[1]),
        "unknown label": (Reason.LABEL, site.outcome(1, label="rich")[1]),
        "row check": (Reason.INPUTS, site.prediction(1, inputs=ROW | {"age": -4})[1]),
        "missing input": (Reason.INPUTS, site.prediction(1, inputs={"age": 4})[1]),
    }
    site.send(*((b"k", value) for _, value in cases.values()), site.prediction(1), site.rating(1), site.outcome(1))
    landing = site.drained()
    dead = landing.filter(pl.col("disposition") == "dead")
    assert Counter(dead.select("reason", "data").iter_rows()) == Counter((str(why), value) for why, value in cases.values())
    assert dead["type"].unique().to_list() == [""] and all(dead["detail"])
    good = landing.filter(pl.col("disposition") == "landed")
    assert sorted(good["type"]) == ["outcome", "prediction", "rating"]
    assert not good.filter(pl.col("actor").str.contains("Ada") | pl.col("subject").str.contains("person")).height


@pytest.mark.services
def test_the_same_event_sent_again_lands_once_also_after_a_restart(site: Site) -> None:
    messages = [site.prediction(1), site.rating(1), site.outcome(1)]
    site.send(*messages, *messages)
    first = site.drained()
    assert Counter(first["disposition"]) == {"landed": 3, "duplicate": 3}
    site.send(*messages)
    again = site.drained()
    assert Counter(again["disposition"]) == {"landed": 3, "duplicate": 6}
    assert again.filter(pl.col("disposition") == "landed").equals(first.filter(pl.col("disposition") == "landed"))


@pytest.mark.services
def test_feedback_may_come_before_its_prediction(site: Site) -> None:
    site.send(*(site.outcome(n) for n in range(20)))
    site.drained()
    lake, vault = Lake(site.settings.lake), Vault(site.settings.vault)
    assert lake.rows("adult").height == 0
    site.send(*(site.prediction(n) for n in range(20)))
    site.drained()
    rows = pl.concat([lake.rows("adult"), vault.holdout("adult", now=time.time() + 60)])
    assert sorted(rows["id"]) == sorted(f"p{n}" for n in range(20))
    assert set(rows["target"]) == {">50K"} and set(rows["origin"]) == {"outcome"}


# --- through SIGKILL ----------------------------------------------------------------------------------------------------------


def process(site: Site, log: Path) -> subprocess.Popen[bytes]:
    """The real keeper's process; no Prefect answers it."""
    environment = child_environment(site.settings, PREFECT_API_URL=site.settings.prefect_url)
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "truing.flows.always"], env=environment, stdout=file, stderr=file)


@pytest.mark.services
def test_sigkill_in_mid_stream_neither_loses_nor_doubles(site: Site, tmp_path: Path) -> None:
    """Predictions with ratings and garbage between them; the keeper is killed twice meanwhile, the third lands the rest."""
    sent: Counter[str] = Counter()
    garbage: set[bytes] = set()

    def traffic() -> None:
        for n in range(0, 600, 20):
            bad = [b"garbage %d" % m for m in range(n, n + 20, 5)]
            site.send(*(site.prediction(m) for m in range(n, n + 20)), *(site.rating(m) for m in range(n, n + 20)))
            site.send(*((b"k", value) for value in bad))
            sent.update(f"p{m}" for m in range(n, n + 20))
            garbage.update(bad)
            time.sleep(0.1)

    vault = Vault(site.settings.vault)
    sender = threading.Thread(target=traffic)
    keeper = process(site, tmp_path / "log")
    sender.start()
    try:
        for share in (100, 500):
            until(lambda share=share: vault.version("landing") is not None and vault.landing(columns=["offset"]).height > share)
            keeper.kill()
            keeper.wait()
            keeper = process(site, tmp_path / "log")
        sender.join()
        until(lambda: vault.landing(columns=["offset"]).height >= 1200 + len(garbage))
        site.send(*(message(n) for n in range(600, 620) for message in (site.prediction, site.rating)))
        sent.update(f"p{n}" for n in range(600, 620))
        until(lambda: vault.landing(columns=["offset"]).height >= 1240 + len(garbage))
        lake = Lake(site.settings.lake)
        until(lambda: lake.rows("adult").height + vault.holdout("adult", now=0, matured=False).height >= 620)
        keeper.send_signal(signal.SIGTERM)
        assert keeper.wait(30) == 0, (tmp_path / "log").read_text()
    finally:
        sender.join()
        if keeper.poll() is None:
            keeper.kill()
            keeper.wait()
    landing = vault.landing()
    by_type = {kind: Counter(frame["prediction_id"]) for (kind,), frame in landing.group_by("type")}
    assert by_type["prediction"] == by_type["rating"] == sent
    assert Counter(landing["disposition"]) == {"landed": 1240, "dead": len(garbage)}
    assert set(landing.filter(pl.col("disposition") == "dead")["data"]) == garbage
    rows = pl.concat([lake.rows("adult"), vault.holdout("adult", now=0, matured=False)])
    assert Counter(rows["id"]) == sent
    assert rows["target"].null_count() == 0
    beat = last_beat(site.settings, "ingest")
    assert beat is not None and beat["counts"]["landed"] > 0


@pytest.mark.services
def test_what_was_read_before_the_broker_went_away_lands(site: Site) -> None:
    """Intake has read ten messages and waits for more in the same commit; the broker ends meanwhile."""
    waiting = site.settings.ingest.model_copy(update={"linger_ms": 3000})
    site.settings = site.settings.model_copy(update={"ingest": waiting})
    keeper = site.keeper()
    runs = threading.Thread(target=keeper.run)
    runs.start()
    try:
        site.send(*(site.prediction(n) for n in range(10)))
        until(lambda: sum(place.offset for place in keeper.reader.places.values()) == 10)
        assert keeper.tally["landed"] == 0
        site.broker.terminate()
        site.broker.wait(20)
        until(lambda: keeper.tally["landed"] == 10)
    finally:
        keeper.stop.set()
        runs.join()
    assert Counter(Vault(site.settings.vault).landing()["prediction_id"]) == Counter(f"p{n}" for n in range(10))


@pytest.mark.services
def test_there_is_one_keeper_for_one_data_folder(site: Site) -> None:
    first = site.keeper()
    with pytest.raises(Busy, match=r"^expected no other keeper on [^\n]+$"):
        site.keeper()
    first.close()
    site.keeper().close()


@pytest.mark.services
def test_a_vault_that_can_not_be_written_is_waited_for_and_loses_nothing(site: Site) -> None:
    """`landing` is a file where a folder should be, until it is taken away. More is sent than may wait between the threads."""
    small = site.settings.ingest.model_copy(update={"batch": 4})
    site.settings = site.settings.model_copy(update={"ingest": small})
    keeper = site.keeper()
    block = site.settings.vault / "landing"
    block.write_text("in the way")
    runs = threading.Thread(target=keeper.run)
    runs.start()
    try:
        site.send(*(site.prediction(n) for n in range(30)))
        until(lambda: any("landing" in text for text in site.said))
        block.unlink()
        until(lambda: keeper.tally["landed"] == 30)
    finally:
        keeper.stop.set()
        runs.join()
    assert Counter(Vault(site.settings.vault).landing()["disposition"]) == {"landed": 30}


@pytest.mark.services
def test_what_somebody_else_has_landed_is_not_landed_again_and_nothing_behind_it_is_skipped(site: Site) -> None:
    """Another owner of the partitions commits between this keeper's start and its first batch, of which there are several."""
    small = site.settings.ingest.model_copy(update={"batch": 4})
    site.settings = site.settings.model_copy(update={"ingest": small})
    keeper = site.keeper()
    mine = keeper.landing
    site.send(*(site.prediction(n) for n in range(10)))
    given = {"problems": keeper.problems, "proofs": mine.proofs, "split_salt": mine.split_salt}
    other = Landing(site.settings, **given, stop=threading.Event(), log=site.said.append)
    other.drain()
    other.reader.close()
    site.send(*(site.prediction(n) for n in range(10, 30)))
    runs = threading.Thread(target=keeper.run)
    runs.start()
    try:
        until(lambda: keeper.tally["landed"] == 20)
    finally:
        keeper.stop.set()
        runs.join()
    assert Counter(Vault(site.settings.vault).landing()["prediction_id"]) == Counter(f"p{n}" for n in range(30))
    assert any("read the positions again" in text for text in site.said)


# --- starting runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "act", "deployment"),
    [
        ({"type": "run.requested", "problem": "adult", "run": "improve"}, "start", "improve/adult"),
        ({"type": "run.requested", "problem": "adult", "run": "curate", "id": "x", "time": 1000.0}, "start", "curate/adult"),
        ({"type": "run.requested", "problem": "adult", "run": "monitor"}, "start", "monitor/adult"),
        ({"type": "run.requested", "run": "ingest"}, "start", "ingest/all"),
        ({"type": "run.requested", "problem": "adult", "run": "gate"}, "refused", None),
        ({"type": "run.requested", "problem": "adult", "run": "release"}, "refused", None),
        ({"type": "run.requested", "problem": "adult", "run": "rollback"}, "refused", None),
        ({"type": "run.requested", "problem": "adult", "run": "steward/../improve"}, "refused", None),
        ({"type": "run.requested", "problem": "nobody", "run": "improve"}, "refused", None),
        ({"type": "run.requested", "problem": "adult", "run": "improve", "time": 1000.0 - STALE_S - 1}, "ignored", None),
        ({"type": "run.requested", "problem": "adult", "run": "improve", "repair": "3"}, "start", "improve/adult"),
        ({"type": "run.requested", "problem": "adult", "run": "improve", "repair": "3; drop"}, "refused", None),
        ({"type": "model.ready", "problem": "adult", "version": "3", "outcome": "block"}, "start", "improve/adult"),
        ({"type": "model.ready", "problem": "adult", "version": "3", "outcome": "pass"}, "noted", None),
        ({"type": "model.ready", "problem": "nobody", "version": "3", "outcome": "block"}, "noted", None),
        ({"type": "model.released", "problem": "adult", "version": "3"}, "noted", None),
        ({"type": 5}, "ignored", None),
        ([], "ignored", None),
    ],
)
def test_a_control_message_starts_what_may_be_asked_for_and_nothing_else(
    message: Any, act: str, deployment: str | None
) -> None:
    if isinstance(message, dict) and isinstance(message["type"], str):
        message = signed({"time": 1000.0} | message, KEY)
    asked = decide(json.dumps(message).encode(), ["adult"], askers=ASKERS, now=1000.0)
    assert (asked.act, asked.deployment) == (act, deployment)
    assert asked.parameters == ({"repair": "3"} if act == "start" and "3" in message.values() else {})
    assert "\n" not in asked.word


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"[" * 100_000])
def test_a_control_message_that_does_not_read_is_ignored(value: bytes | None) -> None:
    assert decide(value, ["adult"], askers=ASKERS, now=1000.0).act == "ignored"


@pytest.mark.services
def test_a_request_survives_an_absent_prefect_and_a_restart_without_being_lost_or_doubled(site: Site) -> None:
    """Key = its signed id. While the run can't be started nothing is remembered; afterwards it is, once."""
    asked = signed({"type": "run.requested", "problem": "adult", "run": "curate"}, site.ring.read("control"))
    site.control.publish([(b"", json.dumps(asked).encode())])
    refused: list[str] = []

    def away(deployment: str, key: str) -> str:
        refused.append(key)
        raise Unavailable("Prefect is away")

    def turn(start: Callable[[str, str], str], done: Callable[[], Any]) -> None:
        keeper = Keeper(site.settings, start=start, log=site.said.append)
        runs = threading.Thread(target=keeper.run)
        runs.start()
        try:
            until(done)
        finally:
            keeper.stop.set()
            runs.join()

    turn(away, lambda: refused)
    assert Vault(site.settings.vault).read("requests").height == 0
    turn(site.start, lambda: Vault(site.settings.vault).read("requests").height == 1)
    site.control.publish([(b"", json.dumps({"type": "run.requested", "problem": "adult", "run": "gate"}).encode())])
    turn(site.start, lambda: Vault(site.settings.vault).read("requests").height == 2)
    key = f"asked:operator:{asked['id']}"
    assert set(refused) == {key}
    assert site.started == [("curate/adult", key)]
    assert any("steward's act" in text for text in site.said)


def test_improve_is_due_after_enough_labels_and_its_mark_outlives_the_process(tmp_path: Path) -> None:
    """after=100: 99 are too few; 130 start one run and move the mark to 130; a restart at 200 waits, at 230 starts the next."""
    started: list[tuple[str, str]] = []

    def start(deployment: str, key: str) -> None:
        started.append((deployment, key))

    vault = Vault(tmp_path)
    first = Trigger(vault, "adult", after=100, labelled=99)
    assert not first.pull(start, now=10.0)
    first.labelled = 130
    assert not first.pull(start, now=20.0)  # the burst may go on
    assert first.pull(start, now=22.0)
    assert not first.pull(start, now=30.0)
    second = Trigger(Vault(tmp_path), "adult", after=100, labelled=200)
    assert not second.pull(start, now=10.0)
    second.labelled = 230
    assert not second.pull(start, now=11.0)
    assert second.pull(start, now=13.0)
    assert started == [("improve/adult", "improve:adult:0"), ("improve/adult", "improve:adult:130")]


def test_an_improve_that_could_not_be_remembered_keeps_its_key(tmp_path: Path) -> None:
    """A crash between start and mark starts again under the same key, which Prefect answers with the same run."""
    keys: list[str] = []

    def crash(deployment: str, key: str) -> None:
        keys.append(key)
        raise Unavailable("gone")

    for labelled in (150, 180):
        trigger = Trigger(Vault(tmp_path), "adult", after=100, labelled=labelled)
        with pytest.raises(Unavailable):
            trigger.pull(crash, now=99.0)
    assert keys == ["improve:adult:0"] * 2


# --- the process --------------------------------------------------------------------------------------------------------------


def test_a_keeper_without_keys_or_folder_ends_with_one_line(tmp_path: Path, settings_in: Callable[..., Settings]) -> None:
    settings = settings_in(tmp_path)
    environment = child_environment(settings) | {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-m", "truing.flows.always"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "expected the key" in done.stderr
