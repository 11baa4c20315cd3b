"""Dead letters: seen without being read, sent again through the same door, told once on a topic of their own."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from test_ingest import ROW, Site

from truing.flows.cli.main import main
from truing.flows.dead_topic import DeadTopic
from truing.flows.keeper import drain
from truing.infra.broker import connection
from truing.infra.refused import refused
from truing.infra.settings import Settings
from truing.tasks.errors import Unavailable
from truing.tasks.events.dead import Act, acts, letters, note, redacted
from truing.tasks.problem import Problem
from truing.tasks.tables.lake import Vault
from truing.tasks.validation.checks import BETWEEN, expectation

ROOT = Path(__file__).resolve().parent.parent
SECRET = "ada.lovelace@example.org"

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def site(tmp_path: Path, settings_in: Callable[..., Settings], problem: Problem) -> Iterator[Site]:
    shutil.copytree(ROOT / "problems", tmp_path / "problems")
    one = Site(settings_in(tmp_path, problems=tmp_path / "problems"), problem)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def dlq(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`truing dlq …` on that site: exit code, and what it printed as JSON (or its stderr when it failed)."""
    kafka = site.settings.kafka
    for name, value in (("BOOTSTRAP", kafka.bootstrap), ("BROKER", kafka.broker)):
        monkeypatch.setenv(f"TRUING_KAFKA__{name}", value)

    def run(*words: str, plain: bool = False) -> tuple[int, Any]:
        given = ["dlq", *words, *([] if plain else ["--json"])]
        code = main([*given, "--data", str(site.settings.data), "--problems", str(site.settings.problems)])
        out = capsys.readouterr()
        return code, out.err if code else out.out if plain else json.loads(out.out)

    return run


def suite(site: Site, most: int) -> None:
    """People older than `most` are none to predict."""
    rule = expectation(BETWEEN, column="age", max_value=most)
    path = site.settings.problems / "adult" / "expectations.json"
    path.write_bytes(msgspec.json.encode({"name": "adult", "expectations": [rule]}))


# --- looking ------------------------------------------------------------------------------------------------------------------


def test_a_list_says_why_and_from_where_and_nothing_of_what_was_sent(site: Site, dlq: Run) -> None:
    forged = site.prediction(1, id=SECRET, source_key=b"x" * 32, subject=SECRET)
    field = site.rating(2)[1].replace(b'"value"', f'"{SECRET}"'.encode())
    site.send(forged, (b"k", field), (b"k", SECRET.encode()), (b"k", b'{"id":"%s"}' % SECRET.encode()))
    site.drained()
    code, found = dlq("list")
    assert code == 0
    assert found["reasons"] == {"data": 1, "envelope": 1, "json": 1, "proof.forged": 1}
    _, text = dlq("list", plain=True)
    for shown in (json.dumps(found), text):
        assert SECRET not in shown
        assert "lovelace" not in shown
    sizes = {one["reason"]: one["size"] for one in found["letters"]}
    assert sizes["json"] == len(SECRET)
    assert sizes["data"] == len(field)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Object contains unknown field `ada` - at `$.data`", "Object contains unknown field … - at `$.data`"),
        ("Invalid enum value 'ada'", "Invalid enum value …"),
        ("expected the token of the prediction, got no proof", "expected the token of the prediction, got no proof"),
    ],
)
def test_what_an_error_quotes_of_a_message_is_left_out(said: str, shown: str) -> None:
    assert redacted(said) == shown


def test_an_original_is_shown_for_a_reason_and_that_is_noted(site: Site, dlq: Run) -> None:
    site.send((b"k", SECRET.encode()))
    site.drained()
    position = letters(Vault(site.settings.vault))[0].position
    assert SECRET not in json.dumps(dlq("show", position)[1])
    code, said = dlq("show", position, "--reveal")
    assert (code, "expected --reason" in said) == (2, True)
    code, found = dlq("show", position, "--reveal", "--reason", "the sender asked", "--as", "grace")
    assert (code, found["original"]) == (0, SECRET)
    assert [(one.act, one.by, one.reason) for one in acts(Vault(site.settings.vault))] == [
        ("reveal", "grace", "the sender asked")
    ]
    assert SECRET not in (site.settings.vault / "dead_acts").as_posix() + "".join(
        path.read_bytes().decode("latin-1") for path in (site.settings.vault / "dead_acts").rglob("*.parquet")
    )


def test_filters_and_limits_choose(site: Site, dlq: Run) -> None:
    site.send((b"k", b"one"), (b"k", b"two"), site.prediction(1, source_key=b"x" * 32))
    site.drained()
    assert dlq("list", "--because", "json")[1]["count"] == 2
    assert dlq("list", "--problem", "adult")[1]["reasons"] == {"proof.forged": 1}
    assert len(dlq("list", "--limit", "1")[1]["letters"]) == 1
    assert dlq("list", "--since", "1h")[1]["count"] == 3
    assert dlq("list", "--since", "2999-01-01T00:00:00Z")[1]["count"] == 0


def test_what_can_not_be_meant_is_one_line(site: Site, dlq: Run) -> None:
    site.send((b"k", b"garbage"))
    site.drained()
    for words, said in (
        (("replay", "--reason", "x"), "expected positions, --because"),
        (("replay", "0:0:0", "--because", "json", "--reason", "x"), "got both"),
        (("drop", "--everything", "--reason", " "), "expected --reason"),
        (("show", "elsewhere"), "expected a position like 0:0:17"),
        (("show", "0:0:99"), "expected one dead letter at 0:0:99, got none"),
        (("list", "--since", "yesterday"), "--since: expected 24h"),
        (("list", "--limit", "0"), "--limit of at least 1"),
    ):
        code, error = dlq(*words)
        assert code == 2
        assert said in error
        assert error.count("\n") == 1


# --- acting -------------------------------------------------------------------------------------------------------------------


def test_after_a_fix_a_replay_lands_and_twice_replayed_it_lands_once(site: Site, dlq: Run) -> None:
    suite(site, most=30)
    site.send(site.prediction(1, inputs=ROW | {"age": 50}), site.prediction(2, inputs=ROW | {"age": 25}), site.outcome(1))
    site.drained()
    (one,) = letters(Vault(site.settings.vault))
    assert (one.reason, one.detail) == ("inputs", "age: expected at most 30, got more")
    suite(site, most=60)
    assert dlq("replay", "--because", "inputs", "--reason", "the suite was too narrow")[1]["sent"] == 1
    landed = site.drained()
    assert landed["disposition"].value_counts(sort=True).rows() == [("landed", 3), ("dead", 1)]
    assert dlq("list")[1]["count"] == 0
    (told,) = dlq("list", "--all")[1]["letters"]
    assert (told["state"], told["became"]) == ("replayed", "landed")
    assert dlq("replay", one.position, "--reason", "once more")[1]["sent"] == 1
    again = site.drained()
    assert again.filter(again["disposition"] == "landed").height == 3
    assert again.filter(again["disposition"] == "duplicate").height == 1


def test_what_is_dead_again_stays_open(site: Site, dlq: Run) -> None:
    """An expired token does not come to life by being sent again; the same bytes are one letter, not two."""
    site.send(site.rating(1, token=site.token(1, seconds=-5)))
    site.drained()
    (first,) = letters(Vault(site.settings.vault))
    assert first.reason == "token.expired"
    dlq("replay", "--everything", "--reason", "perhaps")
    assert [one["became"] for one in dlq("list", "--all")[1]["letters"]] == ["waiting"]
    site.drained()
    (second,) = letters(Vault(site.settings.vault))
    assert (second.position, second.state, second.became) == (first.position, "open", "dead")


def test_a_letter_that_came_of_a_replay_names_the_first(site: Site) -> None:
    """What a reader no longer remembers is another letter, at a position that the act of replaying knows."""
    site.send((b"k", b"garbage"))
    site.drained()
    vault = Vault(site.settings.vault)
    (first,) = letters(vault)
    far = vault.landing().with_columns(offset=pl.lit(40, pl.Int64), landed_at=pl.lit(first.first_seen + 60))
    note(
        vault,
        [
            Act(
                id="a",
                letter=first.position,
                act="replay",
                by="ada",
                reason="x",
                at=first.first_seen,
                sent=(far["partition"][0], 40),
            )
        ],
    )
    vault.append("landing", far)
    (second,) = letters(vault)
    assert second.again == first.position
    assert [one.became for one in letters(vault, all=True)] == [second.position, ""]


def test_a_replay_that_was_killed_before_its_note_leaves_its_letter_open(site: Site, dlq: Run) -> None:
    """The messages went out, the second note did not: nothing is lost, and once more sent lands nothing twice."""
    from truing.tasks.events.dead import replay, sender
    from truing.tasks.events.stream import producer

    suite(site, most=30)
    site.send(site.prediction(1, inputs=ROW | {"age": 50}))
    site.drained()
    suite(site, most=60)
    vault, sending = Vault(site.settings.vault), producer(connection(site.settings))
    send = sender(sending, site.settings.kafka.topic)

    def killed(messages: Any) -> list[tuple[int, int]]:
        send(messages)
        raise Unavailable("killed")

    with pytest.raises(Unavailable):
        replay(vault, letters(vault), killed, by="ada", reason="fixed", now=time.time())
    assert [one.sent for one in acts(vault)] == [None]
    replay(vault, letters(vault), send, by="ada", reason="fixed", now=time.time())
    sending.close()
    landed = site.drained()
    assert landed["disposition"].value_counts(sort=True).sort("disposition").rows() == [
        ("dead", 1),
        ("duplicate", 1),
        ("landed", 1),
    ]
    assert letters(vault) == []


def test_dropped_letters_leave_the_list_and_stay_in_the_record(site: Site, dlq: Run) -> None:
    site.send((b"k", b"one"), (b"k", b"two"))
    site.drained()
    first, second = letters(Vault(site.settings.vault))
    assert dlq("drop", first.position, "--reason", "a test of theirs", "--as", "grace")[1] == {"dropped": 1, "by": "grace"}
    assert [one["position"] for one in dlq("list")[1]["letters"]] == [second.position]
    assert [one["state"] for one in dlq("list", "--all")[1]["letters"]] == ["dropped", "open"]
    assert "drop by grace" in dlq("show", first.position, plain=True)[1]


def test_bytes_whose_lifetime_is_over_can_not_be_sent_or_shown(site: Site, dlq: Run) -> None:
    site.send((b"k", b"garbage"))
    landing = site.drained()
    vault = Vault(site.settings.vault)
    day = time.strftime("%Y-%m-%d", time.gmtime(landing["landed_at"][0]))
    vault.sealing().destroy("dead", [day], [])
    (one,) = letters(vault)
    assert dlq("replay", one.position, "--reason", "x")[1] == {
        "sent": 0, "gone": [one.position], "empty": [], "by": acts_by(),
    }  # fmt: skip
    code, said = dlq("show", one.position, "--reveal", "--reason", "x")
    assert (code, "its lifetime is over" in said) == (2, True)


def acts_by() -> str:
    import getpass

    return getpass.getuser()


def test_status_counts_the_open_letters_of_the_last_day(site: Site, dlq: Run) -> None:
    site.send((b"k", b"one"), (b"k", b"two"), site.prediction(1, source_key=b"x" * 32))
    site.drained()
    dlq("drop", "--because", "proof.forged", "--reason", "a test of theirs")
    found = refused(site.settings, ["adult"], now=time.time())
    assert found == {"dead": {"json": 2}, "windows": {"adult": {"judged": 0, "rejected": 0, "rows": 0}}}
    assert refused(site.settings, [], now=time.time() + 2 * 86_400) == {"dead": {}, "windows": {}}


# --- the topic of dead letters ------------------------------------------------------------------------------------------------


def told(site: Site) -> list[dict[str, Any]]:
    """All that stands on the derived topic."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(**connection(site.settings), enable_auto_commit=False)
    part = TopicPartition(site.settings.kafka.dead, 0)
    consumer.assign([part])
    consumer.seek_to_beginning(part)
    end, found = consumer.end_offsets([part])[part], []
    while consumer.position(part) < end:
        for records in consumer.poll(timeout_ms=500).values():
            found += [json.loads(record.value) | {"key": record.key.decode()} for record in records]
    consumer.close()
    return found


def test_each_letter_is_told_once_without_content(site: Site) -> None:
    site.send((b"k", SECRET.encode()), site.prediction(1, id=SECRET, source_key=b"x" * 32), site.prediction(2))
    site.drained()
    topic = DeadTopic(site.settings)
    assert (topic.forward(), topic.forward()) == (2, 0)
    site.send((b"k", b"more"))
    site.drained()
    assert topic.forward() == 1
    topic.close()
    found = told(site)
    assert sorted(one["reason"] for one in found) == ["json", "json", "proof.forged"]
    assert {one["key"] for one in found} == {one.position for one in letters(Vault(site.settings.vault))}
    assert all(one["key"] == one["id"] for one in found)
    assert SECRET not in json.dumps(found)


def test_a_crash_between_telling_and_its_commit_tells_nothing_twice(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.send((b"k", b"one"), (b"k", b"two"))
    site.drained()
    before = DeadTopic(site.settings)
    with monkeypatch.context() as killed:
        killed.setattr(before._vault, "append", _killed)
        with pytest.raises(Unavailable):
            before.forward()
    before.close()
    assert len(told(site)) == 2
    site.send((b"k", b"three"))
    site.drained()
    after = DeadTopic(site.settings)
    assert after.forward() == 1
    after.close()
    assert len({one["id"] for one in told(site)}) == len(told(site)) == 3


def _killed(*_: Any, **__: Any) -> int:
    raise Unavailable("killed")


def test_after_a_compaction_old_letters_are_not_told_again(site: Site) -> None:
    topic = DeadTopic(site.settings)
    for n in range(3):
        site.send((b"k", b"garbage %d" % n))
        site.drained()
        assert topic.forward() == 1
    merged = Vault(site.settings.vault).compact(above=1)
    assert {"landing", "dead_sent"} <= merged.keys()
    assert topic.forward() == 0
    topic.close()
    assert DeadTopic(site.settings).forward() == 0
    assert len(told(site)) == 3


def test_a_keeper_tells_them_by_itself(site: Site) -> None:
    keeper = site.keeper()
    running = threading.Thread(target=keeper.run)
    running.start()
    try:
        site.send((b"k", b"garbage"))
        end = time.monotonic() + 20
        while not (found := told(site)) and time.monotonic() < end:
            time.sleep(0.2)
    finally:
        keeper.stop.set()
        running.join(20)
    assert [one["reason"] for one in found] == ["json"]


def test_a_drained_site_needs_no_topic_of_dead_letters(site: Site) -> None:
    """Derived from the vault: whoever lands without telling loses nothing, the next chief tells it."""
    site.send((b"k", b"garbage"))
    keeper = site.keeper()
    drain(keeper)
    keeper.close()
    assert told(site) == []
    topic = DeadTopic(site.settings)
    assert topic.forward() == 1
    topic.close()
