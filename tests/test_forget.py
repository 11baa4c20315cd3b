"""Forgetting: no copy of a person stays, byte for byte; others stay whole; what is built next never knew the person."""

from __future__ import annotations

import io
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cached_property
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from fleet import until
from sealed import Rule, asked, sealed_rows
from test_ingest import ROW, Message, Site

from truing.flows import erase, loop
from truing.flows.cli.explain import proved
from truing.flows.cli.main import parser
from truing.flows.erase_desk import _descent
from truing.infra import apache
from truing.infra.broker import administrator
from truing.infra.keys import Keyring
from truing.infra.settings import Settings
from truing.tasks.evaluation.audit import draw_plan, keep_plan, read_plans
from truing.tasks.evaluation.kept import Decision, pack, store, unpack
from truing.tasks.events.erasure import Traces
from truing.tasks.events.schema import encode_event, pseudonym
from truing.tasks.policy import load_policy
from truing.tasks.problem import Problem, load_problem, split_of
from truing.tasks.records import DatasetVersion, Split
from truing.tasks.release.versions import Version
from truing.tasks.seal import digest
from truing.tasks.selection.dataset import freeze
from truing.tasks.selection.quality import tag
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.tables.predictions import Predictions
from truing.tasks.tables.store import Store
from truing.tasks.tables.subjects import bucket, sealed
from truing.tasks.validation.suite import validate_pending

ROOT = Path(__file__).parent.parent
MARK = "Zyxxquil-Vrantham"  # nobody else's bytes
NOW = time.time()


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Adult, with a source of preferences."""
    shutil.copytree(ROOT / "problems", tmp_path / "problems")
    file = tmp_path / "problems" / "adult" / "problem.toml"
    file.write_text(file.read_text() + '\n[sources.opinions]\ntypes = ["preference"]\n')
    return tmp_path / "problems"


class House(Site):
    """A site with people in it."""

    @cached_property
    def problem(self) -> Problem:
        return load_problem(self.settings.problems / "adult")

    @cached_property
    def salts(self) -> tuple[bytes, bytes]:
        """Of names and of splits."""
        return self.ring.read("actor-salt"), self.ring.read("split-salt")

    @property
    def vault(self) -> Vault:
        return Vault(self.settings.vault)

    @property
    def lake(self) -> Lake:
        return Lake(self.settings.lake)

    def split(self, name: str) -> Split:
        return split_of(self.code(name), self.salts[1], self.problem.splits)

    def code(self, name: str) -> str:
        return pseudonym(self.salts[0], "adult", name)

    def names(self, splits: Callable[[Split], bool], count: int, *, like: str = "person") -> list[str]:
        return list(islice((name for n in count_from(0) if splits(self.split(name := f"{like} {n}"))), count))

    def about(self, n: int, name: str, **inputs: Any) -> list[Message]:
        """A question about somebody and what became true."""
        return [
            self.prediction(n, subject=name, id=f"q{n}", time=NOW - 60, inputs=ROW | {"age": 20 + n % 60} | inputs),
            self.outcome(n, id=f"o{n}", time=NOW - 30),
        ]

    def preference(self, name: str, text: str) -> Message:
        return encode_event(
            "preference", problem="adult", source="opinions", source_key=self.ring.source("adult", "opinions"), time=NOW,
            data={"prompt": text, "chosen": "a", "rejected": "b"}, subject=name, id=f"preference of {len(name)}",
        )  # fmt: skip

    def retained(self, milliseconds: int) -> None:
        """Shorten the retention of every topic."""
        from kafka.admin import ConfigResource, ConfigResourceType

        values, kafka = {"retention.ms": str(milliseconds), "file.delete.delay.ms": "1"}, self.settings.kafka
        admin = administrator(self.settings)
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, one, values) for one in (kafka.topic, kafka.dead)])
        admin.close()

    def freeze(self) -> tuple[DatasetVersion, pl.DataFrame]:
        """What `learn` does before it learns."""
        problem = self.problem
        policy = load_policy(self.settings.problems / "adult", problem)
        validate_pending(self.lake, problem, folder=self.settings.problems / "adult", now=NOW, force=True)
        rows = loop.teachable_rows(self.lake, problem)
        version, kept = freeze(tag(rows, policy), problem=problem, policy=policy, tables={}, seed=1)
        self.lake.record("datasets", [version])
        loop.keep(self.lake, problem, version.digest, kept)
        return version, kept

    def forget(self, *words: str) -> dict[str, Any]:
        """`truing forget`, as a person types it."""
        args = parser().parse_args(["forget", "--reason", "asked to", "--json", *words])
        with redirect_stdout(io.StringIO()) as out:
            assert args.do(args, self.settings) == 0
        told: dict[str, Any] = msgspec.json.decode(out.getvalue())
        return told

    def tend(self, later_s: float = 3600.0) -> None:
        problems = {"adult": self.problem}
        erase.tend(self.settings, problems, split_salt=self.salts[1], now=time.time() + later_s, log=self.said.append)


@pytest.fixture
def house(
    tmp_path: Path, on_each_broker: Callable[..., Settings], problems: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[House]:
    """On each broker; Apache Kafka looks for what is over every half second, not every five minutes."""
    usual, often = apache.properties, "log.retention.check.interval.ms=500\n"
    monkeypatch.setattr(apache, "properties", lambda settings: usual(settings) + often)
    settings = on_each_broker(tmp_path, problems=problems)
    one = House(settings, load_problem(problems / "adult"))
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def quick(tmp_path: Path, settings_in: Callable[..., Settings], problems: Path) -> Iterator[House]:
    """On the embedded broker only."""
    from ports import free_ports

    kafka = {"broker": "embedded", "bootstrap": f"127.0.0.1:{free_ports(1)[0]}"}
    one = House(settings_in(tmp_path, problems=problems, kafka=kafka), load_problem(problems / "adult"))
    try:
        yield one
    finally:
        one.close()


def holding(folder: Path, *marks: str, but: tuple[str, ...] = ()) -> list[str]:
    """Files below a folder in which any of these texts stands: in its raw bytes, or decompressed and decoded as a table."""
    wanted = [mark.encode() for mark in marks]
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.startswith(but):
            continue
        raw = path.read_bytes()
        if path.suffix == ".parquet":
            for column in pl.read_parquet(path).iter_columns():
                raw += b"".join(one if isinstance(one, bytes) else str(one).encode() for one in column.drop_nulls().to_list())
        if any(mark in raw for mark in wanted):
            found.append(name)
    return found


BROKER = ("broker/", "run/broker")


def test_after_forgetting_no_byte_of_the_person_is_left(house: House) -> None:
    """Inputs, a rating and a correction, a dead letter and a preference; in training rows and in the holdout."""
    teaches = house.names(lambda split: split is Split.TRAIN, 41)
    judges = house.names(lambda split: split is Split.HOLDOUT, 11)
    person, hidden = teaches.pop(), judges.pop()
    messages = [message for n, name in enumerate((*teaches, *judges)) for message in house.about(n, name)]
    messages += house.about(100, person, occupation=MARK) + house.about(101, hidden, native_country=MARK)
    messages += [
        house.rating(100, actor="ada", id="r1"), house.rating(101, actor="ada", id="r2"),
        house._event("correction", 102, {"label": ">50K"}, actor="ada", source="app", token=house.token(102), id="c0"),
        house.preference(person, f"is {MARK} a name?"), house.preference(hidden, f"{MARK}?"),
        (b"k", f'{{"half an event of {MARK}": '.encode()), (b"k", f'{{"a": "{person}"'.encode()),
    ]  # fmt: skip
    messages += house.about(102, person, occupation=MARK)
    history = {"source": "history", "source_key": house.ring.source("adult", "history")}
    for n, name in ((103, person), *enumerate(teaches[:30], 200)):  # the load that suites are profiled from
        messages.append(
            house.prediction(n, subject=name, inputs=ROW | ({"workclass": MARK} if name == person else {}), **history)
        )
        messages.append(house.outcome(n, **history))
    house.send(*messages)
    house.drained()
    frozen, kept = house.freeze()
    mine = [row for row in kept["id"] if row in ("p100", "p102", "p103")]
    assert frozen.samples == 73 and len(mine) == 3
    Predictions(house.settings.desk).keep(
        "adult", "e" * 64, ["p101", "p45"], payloads={"candidate": "c" * 64}, releases={}, at=NOW,
        probability={"candidate": np.array([0.1, 0.2])}, label={"candidate": np.array(["<=50K", "<=50K"])},
    )  # fmt: skip
    plan = draw_plan(["p45", "p101", "p46"], ["", "", ""], problem="adult", budget=3, seed="s", at=NOW)
    keep_plan(house.settings.desk / "audits", plan, house.ring.read("gate"))

    assert MARK.encode() in b"".join(one for one in house.vault.landing()["data"] if one)  # it was there, and sealed
    assert holding(house.settings.data, MARK, but=BROKER) == []
    would = house.forget("--subject", person, "--dry-run")["adult"]
    assert would == {"events": 9, "dead_letters": 1, "rows": 3, "rejoined": 0, "datasets": {frozen.digest: 3}}

    told = [house.forget("--subject", name) for name in (person, hidden)]
    house.forget("--subject", MARK)  # the half event that names nobody else
    house.tend()
    codes = (house.code(person), house.code(hidden))
    assert holding(house.settings.data, MARK, *codes, but=(*BROKER, "steward/erasures/")) == []
    assert told[0]["datasets"] == {"adult": {frozen.digest: 3}} and told[1]["counts"]["predictions"] == 1
    if house.settings.kafka.broker == "kafka":
        assert all(name.startswith(BROKER) for name in holding(house.settings.data, MARK)) and holding(
            house.settings.data, MARK
        )
        house.retained(1)
    until("the topics to let go of it", lambda: holding(house.settings.data, MARK) == [])
    topics = {name: at for one in told for name, at in one["topics"].items()}
    assert all(at is not None for at in topics.values()) and house.settings.kafka.topic in topics

    assert house.lake.rows("adult").height == 70 and house.vault.holdout("adult", now=NOW + 1e6).height == 10
    (cut,) = read_plans(house.settings.desk / "audits", "adult", house.ring.public().gate)
    assert cut.pool.keys() == {"p45", "p46"} and cut.strata[0].rows == 2
    (record,) = house.lake.records("datasets", DatasetVersion)
    assert record.digest == frozen.digest and record.erased == ("p100", "p102", "p103")
    assert house.drained().filter(pl.col("disposition") == "landed").height == 160  # nothing of theirs came back


def test_the_dataset_built_after_is_that_of_a_house_which_never_knew_the_person(quick: House, tmp_path: Path) -> None:
    """Also where the person only rated others: their rows are as if nobody had said it."""
    house = quick
    others, person = house.names(lambda split: split is Split.TRAIN, 20), "Vera"
    base = [house.prediction(n, subject=name, id=f"q{n}", time=NOW - 60) for n, name in enumerate(others)]
    said = [house.rating(n, actor="ada", id=f"r{n}", time=NOW - 50) for n in range(10)]
    theirs = [house.rating(n, actor=person, id=f"v{n}", time=NOW - 40) for n in range(5, 15)]
    theirs += house.about(50, person)
    twin_settings = house.settings.model_copy(update={"data": tmp_path / "twin"})
    house.send(*base, *said, *theirs)
    house.drained()
    with_them, _ = house.freeze()
    house.forget("--subject", person)
    house.tend()
    again, kept = house.freeze()

    shutil.copytree(house.settings.keys, twin_settings.keys)
    house.close()
    twin = House(twin_settings, house.problem)
    try:
        twin.send(*base, *said)
        twin.drained()
        never, same = twin.freeze()
    finally:
        twin.close()
    assert never.digest == again.digest != with_them.digest
    columns = ["id", "content", "target", "weight", "feedback", "actor"]
    assert kept.select(columns).equals(same.select(columns)) and kept.height == 10


def test_only_what_an_actor_said_goes_and_others_words_stay(quick: House) -> None:
    house, name = quick, "Vera"
    (about,) = house.names(lambda split: split is Split.TRAIN, 1)
    house.send(
        *house.about(1, name),
        house.prediction(2, subject=about),
        house.rating(2, 1.0, actor="ada"),
        house.rating(2, 0.0, actor=name),
    )
    house.drained()
    told = house.forget("--actor", name)
    assert told["counts"]["rejoined"] == 1 and told["people"] == {"adult": house.code(name)}
    rows = pl.concat([house.lake.rows("adult"), house.vault.holdout("adult", now=NOW + 1e6)])
    assert sorted(rows["id"]) == ["p1", "p2"]  # what is about Vera stays
    (feedback,) = rows.filter(pl.col("id") == "p2")["feedback"]
    assert msgspec.json.decode(feedback)["rating"] == 1.0 and house.code(name) not in feedback


def test_neighbours_in_the_bucket_still_read_and_who_comes_back_has_a_new_key(quick: House) -> None:
    house, person = quick, "person 0"
    home = (bucket(house.code(person)), house.split(person))
    other = next(name for n in range(10_000_000) if (bucket(house.code(name := f"other {n}")), house.split(name)) == home)
    house.send(*house.about(1, person, occupation="before"), *house.about(2, other))
    house.drained()
    house.forget("--subject", person)
    rows = pl.concat([house.lake.rows("adult"), house.vault.holdout("adult", now=NOW + 1e6)])
    assert rows["id"].to_list() == ["p2"] and b"Adm-clerical" in rows["content"][0]
    house.send(*house.about(3, person, occupation="after"), *house.about(4, other))
    house.drained()
    rows = pl.concat([house.lake.rows("adult"), house.vault.holdout("adult", now=NOW + 1e6)])
    assert sorted(rows["id"]) == ["p2", "p3", "p4"]
    assert b"after" in rows.filter(pl.col("id") == "p3")["content"][0]


class Killed(BaseException):
    """Where a process would have been gone."""


def test_killed_anywhere_and_run_again_it_ends_the_same(quick: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house, person = quick, "Vera"
    others = house.names(lambda split: True, 3)
    house.send(
        *(message for n, name in enumerate(others) for message in house.about(n, name)),
        *house.about(50, person), *(house.rating(n, actor=person, id=f"v{n}") for n in range(3)), (b"k", b'{"Vera": '),
    )  # fmt: skip
    house.drained()
    house.freeze()
    data, before = house.settings.data, house.settings.data.with_name("before")
    parts = ("vault", "lake", "steward")
    for part in parts:
        if (data / part).exists():
            shutil.copytree(data / part, before / part)
    points = [(Store, "rewrite"), (Store, "append"), (erase, "_keep"), (erase.erasure, "destroy"), (erase, "told")]
    ends: list[Any] = []
    at, done = 0, False
    while not done:
        for part in parts:
            shutil.rmtree(data / part, ignore_errors=True)
            if (before / part).exists():
                shutil.copytree(before / part, data / part)
        left = [at]
        with monkeypatch.context() as patched:
            for place, name in points:
                _kill_at(patched, place, name, left)
            try:
                house.forget("--subject", person)
                done = True
            except Killed:
                assert left == [-1]
        if not done:
            house.forget("--subject", person)
        house.tend()
        assert holding(data, house.code(person), but=("steward/erasures/", "broker/")) == []
        assert not list(erase.folder(house.settings).glob("*.json"))
        rows = pl.concat([house.lake.rows("adult"), house.vault.holdout("adult", now=NOW + 1e6)]).drop("revision", "content")
        told = house.vault.read("landing").group_by("disposition").len().sort("disposition")
        samples = house.lake.read("samples").sort("row")
        ends.append((rows.sort("id").to_dicts(), told.to_dicts(), samples.to_dicts()))
        at += 1
    assert at > 8 and all(end == ends[-1] for end in ends)
    assert len(erase.erasures(house.settings)) == 1


def _kill_at(patched: pytest.MonkeyPatch, place: Any, name: str, left: list[int]) -> None:
    """Die after the n-th of all these calls: what it wrote stands, what follows does not."""
    real = getattr(place, name)

    def call(*args: Any, **more: Any) -> Any:
        made = real(*args, **more)
        if left[0] == 0:
            left[0] = -1
            raise Killed
        left[0] -= 1
        return made

    patched.setattr(place, name, call)


def test_dead_letters_are_unreadable_when_their_lifetime_is_over(quick: House) -> None:
    house = quick
    house.send((b"k", b"no event"), *house.about(1, "somebody"))
    house.drained()
    day = 86_400.0
    house.tend(30 * day)
    assert house.vault.landing(disposition="dead")["data"].to_list() == [b"no event"]
    house.tend(32 * day)
    assert house.vault.landing(disposition="dead")["data"].to_list() == [None]
    assert house.vault.landing(disposition="landed")["data"].null_count() == 0


def test_what_the_keeper_writes_is_sealed_and_older_plain_rows_still_read(quick: House) -> None:
    house = quick
    house.send(*house.about(1, "somebody"), (b"k", b"no event"))
    house.drained()
    stored = [
        *house.vault.read("landing")["data"],
        *house.vault.read("holdout")["content"],
        *house.lake.read("rows")["content"],
    ]
    assert len(stored) == 4 and all(sealed(one) for one in stored)
    for root in (house.settings.vault, house.settings.lake):
        with sqlite3.connect(root / "subjects.sqlite") as file:
            families = {family for (family,) in file.execute("SELECT DISTINCT family FROM secrets")}
        file.close()
        assert families <= ({"trainable"} if root == house.settings.lake else {"trainable", "holdout", "vault", "dead"})
    row = house.vault.read("landing").filter(pl.col("type") == "prediction").with_columns(
        data=pl.lit(b'{"inputs":{}}'), offset=pl.lit(99, pl.Int64), prediction_id=pl.lit("old")
    )  # fmt: skip
    house.vault.append("landing", row)
    assert house.vault.landing(columns=["data"])["data"].to_list()[-1] == b'{"inputs":{}}'


def test_an_act_of_forgetting_names_person_and_reason_and_is_signed(quick: House) -> None:
    house = quick
    house.send(*house.about(1, "somebody"))
    house.drained()
    told = house.forget("--subject", "somebody", "--as", "approver2")
    (signed,) = erase.erasures(house.settings)
    assert (signed.by, signed.reason, signed.id) == ("approver2", "asked to", told["id"])
    path = house.settings.desk / "erasures" / f"{signed.id}.json"
    path.write_bytes(path.read_bytes().replace(b'"payload":"ey', b'"payload":"eY'))
    with pytest.raises(Exception, match=signed.id):
        erase.erasures(house.settings)


def test_who_is_unknown_leaves_everything_as_it_is(quick: House) -> None:
    house = quick
    house.send(*house.about(1, "somebody"))
    house.drained()
    before = house.vault.read("landing")
    told = house.forget("--subject", "nobody at all")
    assert told["people"] == {} and told["versions"] == [] and house.vault.read("landing").equals(before)


def test_evidence_that_lost_a_row_is_told_from_evidence_that_was_altered(tmp_path: Path, problem: Problem) -> None:
    """A verdict rests on 400 rows; one of them goes. `verify` says why it can't be made again, and still finds a change."""
    policy = load_policy(ROOT / "problems" / "adult", problem)
    settings = Settings(data=tmp_path, problems=ROOT / "problems")
    Keyring(settings.keys).create([])
    answers = asked(sealed_rows(problem, 400), problem, policy, Rule(problem, "occupation"))
    files = pack(answers, problem, policy, Decision(version="1", dataset="d" * 64, key="gate", at=NOW, seed=3))
    evaluation, verdict = unpack(files).conclude()
    place = settings.desk / "evidence" / digest(verdict)
    store(place, files, evaluation)
    gone = answers.ids[7]
    traces = Traces(problem="adult", person="c" * 32, words_only=False, rows=(gone,), events=(("t", 0, 0, 1),))
    act = erase.Act(id="a" * 24, kind="subject", by="approver", reason="asked", at=NOW, traces=(traces,), stage="erased")
    erase.desk(settings, {"adult": problem}, act, outbox_gone_by=NOW, topics={}, notes=[])
    (check,) = proved(settings, problem, "1", verdict)
    assert check.state == "ok" and "forgotten" in check.note
    rows = pl.read_parquet(place / "rows.parquet")
    assert rows.height == 399 and gone not in rows["id"]
    rows.with_columns(positive=~pl.col("positive")).write_parquet(place / "rows.parquet")
    (check,) = proved(settings, problem, "1", verdict)
    assert check.state == "differs"


def test_versions_are_named_for_their_own_rows_and_for_what_their_parents_learned() -> None:
    def version(number: int, dataset: str, parent: int | None) -> Version:
        tags = {"dataset": dataset, "payload": f"payload {number}"} | ({"parent": f"payload {parent}"} if parent else {})
        return Version(problem="adult", version=str(number), created=NOW, tags=tags)

    known = [
        version(1, "clean", None),
        version(2, "theirs", 1),
        version(3, "later", 2),
        version(10, "last", 3),
        version(4, "side", 1),
    ]
    assert [one.version for one in _descent(known, frozenset({"theirs"}))] == ["2", "3", "10"]
