"""The client: what an application asks and says arrives, once, or it is told in one line why not."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from ports import free_port
from serving import ROOT, inputs_of, keys_in, remember, running_broker, running_gateway, settings_of, until

from truing.client import Answer, Client, correction, interaction, rating
from truing.flows.keeper import Keeper
from truing.infra.broker import address, connection
from truing.infra.keys import Keyring
from truing.infra.landed import Landed
from truing.infra.sender import Sender
from truing.infra.settings import Settings, child_environment, load
from truing.infra.watermark import Mark
from truing.tasks.errors import DataError, Unavailable, UsageError
from truing.tasks.events.schema import Message, Proofs, judge
from truing.tasks.kinds.model import Model
from truing.tasks.problem import Problem, Source
from truing.tasks.tables.lake import Vault

ANSWER = Answer(prediction_id="p", token="1.x", label="<=50K", probability=0.1, confidence=0.9, version="1", sequence=1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, problem: Problem, models: list[Model]) -> Settings:
    """A data folder with keys, and with a released model in the gateway's cache: it needs no registry to boot."""
    settings = settings_of(tmp_path_factory.mktemp("client"))
    remember(settings, problem, models[0], keys_in(settings.keys, problem), version="1", sequence=1)
    return settings


@pytest.fixture(scope="module")
def stack(settings: Settings) -> Iterator[Settings]:
    """Broker and gateway, as `truing up` starts them."""
    with running_broker(settings), running_gateway(settings):
        until(lambda: reaches(f"{settings.gateway_url}/v2/health/ready"))
        yield settings


def reaches(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def events(settings: Settings, problem: Problem, keys: dict[str, dict[str, bytes]] | None = None) -> list[Message]:
    """All messages of the topic, judged as the reader judges them."""
    from kafka import KafkaConsumer, TopicPartition

    status = f"{settings.gateway_url}/status"
    if reaches(status):
        until(lambda: httpx.get(status, trust_env=False).json()["outbox"]["waiting"] == 0)
    keyring = Keyring(settings.keys)
    keys = keys or {problem.name: {source: keyring.source(problem.name, source) for source in problem.sources}}
    proofs = Proofs.of([problem], wire=keyring.read("wire"), salt=keyring.read("actor-salt"), keys=keys)
    consumer = KafkaConsumer(**connection(settings), enable_auto_commit=False, auto_offset_reset="earliest")
    parts = [TopicPartition(settings.kafka.topic, number) for number in range(settings.kafka.partitions)]
    consumer.assign(parts)
    ends = consumer.end_offsets(parts)
    consumer.seek_to_beginning(*parts)
    found: list[Message] = []
    end = time.monotonic() + 20
    while any(consumer.position(part) < ends[part] for part in parts) and time.monotonic() < end:
        for batch in consumer.poll(timeout_ms=200).values():
            found += [judge(record.value, proofs=proofs, now=time.time()) for record in batch]
    consumer.close()
    return found


@pytest.mark.services
def test_what_is_asked_and_said_arrives_believed(stack: Settings, problem: Problem, adult: list[dict[str, Any]]) -> None:
    rows = adult[700:706]
    with Client.of(stack, "adult") as client:
        answers = client.predict(
            inputs_of(problem, rows), subjects=[f"s{i}" for i in range(6)], groups=[{"sex": row["sex"]} for row in rows]
        )
        assert len(answers) == 6 and {answer.sequence for answer in answers} == {1}
        assert all(answer.label in problem.labels and 0 <= answer.probability <= 1 for answer in answers)
        client.rate(answers[0], 0.9, actor="anna")
        client.correct(answers[1], ">50K", actor="anna")
        client.interact(answers[2], "dwell", actor="bert", value=3.5)
        words = [
            rating(answers[3], 0.2, "carl"),
            correction(answers[4], "<=50K", "carl"),
            interaction(answers[5], "click", "dora"),
        ]
        receipt = client.feedback([*words, rating(ANSWER, 0.5, "eve")])
    assert receipt.accepted == 3 and [(one.item, one.code) for one in receipt.refusals] == [(3, "token.forged")]
    ids = {answer.prediction_id for answer in answers}
    told = Counter((one.type, one.reason) for one in events(stack, problem) if one.prediction_id in ids)
    assert told == {("prediction", ""): 6, ("rating", ""): 2, ("correction", ""): 2, ("interaction", ""): 2}


@pytest.mark.services
def test_a_question_asked_again_has_one_event_name(stack: Settings, problem: Problem, adult: list[dict[str, Any]]) -> None:
    """After a broken connection the same ids are asked again; the reader keeps the first event of each name."""
    with Client.of(stack, "adult") as client:
        for _ in range(2):
            client.predict(inputs_of(problem, adult[:3]), ids=["again-0", "again-1", "again-2"])
    names = [one.identity for one in events(stack, problem) if (one.prediction_id or "").startswith("again-")]
    assert len(names) == 6 and len(set(names)) == 3


@pytest.mark.services
def test_a_refused_question_or_word_is_a_data_error_in_one_line(
    stack: Settings, problem: Problem, adult: list[dict[str, Any]]
) -> None:
    with Client.of(stack, "adult") as client:
        with pytest.raises(DataError, match=r"^expected.*'colour'.*; "):
            client.predict([*inputs_of(problem, adult[:1]), {"colour": "red"}])
        with pytest.raises(DataError, match="subjects: expected 1"):
            client.predict(inputs_of(problem, adult[:1]), subjects=[])
        with pytest.raises(DataError, match="token"):
            client.rate(ANSWER, 1.0, actor="eve")
    with Client.of(stack, "unheard-of") as other, pytest.raises(DataError, match="expected a model of adult"):
        other.predict(inputs_of(problem, adult[:1]))


@pytest.mark.services
def test_flush_counts_what_the_broker_holds(stack: Settings, problem: Problem, adult: list[dict[str, Any]]) -> None:
    """2,500 cases with their outcomes: 5,000 messages, two and a half chunks."""
    rows = inputs_of(problem, adult[:2500])
    labels = [str(row["income"]) for row in adult[:2500]]
    with Client.of(stack, "adult", source="backfill") as client:
        for at, (row, label) in enumerate(zip(rows, labels, strict=True)):
            answer = (
                {"label": label, "confidence": 0.8, "probabilities": dict.fromkeys(problem.labels, 0.2) | {label: 0.8}}
                if at % 2
                else None
            )
            client.backfill_prediction(
                f"case-{at}", row, subject=f"p{at}", groups={"sex": "Female"}, answer=answer, time=time.time()
            )
            client.outcome(f"case-{at}", label, time=time.time())
        assert client.flush() == 5000 and client.flush() == 0 and client.waiting == 0
    told = Counter((one.type, one.reason) for one in events(stack, problem) if (one.prediction_id or "").startswith("case-"))
    assert told == {("prediction", ""): 2500, ("outcome", ""): 2500}


@pytest.mark.services
def test_an_outcome_sent_twice_has_one_name(stack: Settings, problem: Problem) -> None:
    at = time.time()
    for _ in range(2):
        with Client.of(stack, "adult", source="outcomes") as client:
            client.outcome("twice", ">50K", time=at)
            assert client.flush() == 1
    names = [one.identity for one in events(stack, problem) if one.prediction_id == "twice"]
    assert len(names) == 2 and len(set(names)) == 1


@pytest.mark.services
def test_a_source_may_send_only_its_types(stack: Settings, problem: Problem) -> None:
    """The client signs what it is told; the reader knows that `outcomes` may send outcomes only."""
    with Client.of(stack, "adult", source="outcomes") as client:
        client.review("only", ">50K", reviewer="rita")
        client.attribute("only", {"sex": "Female"})
        client.outcome("only", ">50K")
    told = [one for one in events(stack, problem) if b'"predictionid":"only"' in one.data or one.prediction_id == "only"]
    assert Counter(one.reason for one in told) == {"source.type": 2, "": 1}


def test_without_a_broker_it_says_so_and_keeps_what_was_said(tmp_path: Path, problem: Problem) -> None:
    settings = load(
        data=tmp_path, problems=ROOT / "problems", kafka={"bootstrap": f"127.0.0.1:{free_port()}", "broker": "embedded"}
    )
    Keyring(settings.keys).create([f"{problem.name}.{source}" for source in problem.sources])
    client = Client.of(settings, "adult", source="outcomes", timeout_s=1.0)
    for at in range(3):
        client.outcome(f"late-{at}", ">50K")
    with pytest.raises(Unavailable) as caught:
        client.flush(timeout_s=0.5)
    assert "3 events wait" in str(caught.value) and "\n" not in str(caught.value) and client.waiting == 3
    with running_broker(settings):
        assert client.flush() == 3
        client.close()
        assert sorted(one.prediction_id or "" for one in events(settings, problem)) == ["late-0", "late-1", "late-2"]


def test_without_a_gateway_it_says_so() -> None:
    with (
        Client("adult", gateway=f"http://127.0.0.1:{free_port()}", timeout_s=0.3) as client,
        pytest.raises(Unavailable, match=r"^expected an answer of the gateway at http://127.0.0.1:\d+, got ConnectError; see"),
    ):
        client.predict([{"age": 30}])


def test_only_a_source_with_a_key_sends_outcomes() -> None:
    with Client("adult") as client, pytest.raises(UsageError, match="source and source_key"):
        client.outcome("p", ">50K")
    with (
        Client("adult", source="outcomes", source_key=b"k" * 32) as client,
        pytest.raises(UsageError, match="bootstrap_servers"),
    ):
        client.outcome("p", ">50K")


def test_an_event_that_no_reader_would_take_is_refused_here() -> None:
    with Client("adult", source="backfill", source_key=b"k" * 32, kafka={"bootstrap_servers": "127.0.0.1:1"}) as client:
        with pytest.raises(DataError, match="at most"):
            client.backfill_prediction("p", {"text": "x" * 300_000})
        with pytest.raises(DataError, match="prediction"):
            client.backfill_prediction("p", {}, answer={"label": ">50K"})
        with pytest.raises(DataError, match="preference"):
            client.prefer("q", "a", None)  # type: ignore[arg-type]
        assert client.waiting == 0 and client.kept == 0


def test_one_client_serves_many_threads(stack: Settings, problem: Problem) -> None:
    with Client.of(stack, "adult", source="outcomes") as client:
        sent = in_threads(8, lambda at: [client.outcome(f"thread-{at}-{n}", ">50K") for n in range(50)])
        assert client.flush() == 400 and sent == 8
    found = Counter(one.prediction_id for one in events(stack, problem) if (one.prediction_id or "").startswith("thread-"))
    assert len(found) == 400 and set(found.values()) == {1}


def in_threads(many: int, act: Callable[[int], object]) -> int:
    threads = [threading.Thread(target=act, args=(at,)) for at in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(threads)


# --- the outbox ---------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from truing.client import Client, rating
from truing.infra.settings import current
client = Client.of(current(), "adult", source="outcomes", outbox=Path(sys.argv[1]), timeout_s=1.0)
for n in range(50):
    client.outcome(f"{sys.argv[2]}-{n}", ">50K")
print("said", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def alone(tmp_path: Path, problem: Problem) -> Settings:
    """Keys, and nothing that runs."""
    settings = settings_of(tmp_path / "data")
    keys_in(settings.keys, problem)
    return settings


def test_what_was_said_before_a_kill_is_sent_by_the_next_client(alone: Settings, problem: Problem, tmp_path: Path) -> None:
    """No broker runs while it is said, and the process dies at once: all of it is in the folder."""
    for name in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path / "outbox"), name],
            env=child_environment(alone), cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL and done.stdout == "said\n", done.stderr
    with running_broker(alone), Client.of(alone, "adult", source="outcomes", outbox=tmp_path / "outbox") as client:
        client.outcome("third", "<=50K")
        client.flush()
        assert client.waiting == 0 and client.kept == 101, "nobody told that they have landed"
        names = {f"{name}-{n}" for name in ("first", "second") for n in range(50)} | {"third"}
        assert {one.prediction_id for one in events(alone, problem)} == names


def test_two_clients_of_one_outbox_are_one_too_many(tmp_path: Path) -> None:
    client = Client("adult", outbox=tmp_path)
    with pytest.raises(Unavailable, match="another process holds it"):
        Client("adult", outbox=tmp_path)
    client.close()


def test_a_broker_killed_after_its_acknowledgements_gets_everything_again_and_it_lands_once(
    alone: Settings, problem: Problem, tmp_path: Path
) -> None:
    """Five times 60 outcomes, each flushed (acks=all), and then the embedded broker dies before its disk has them. A keeper
    lands what comes meanwhile; in the end all 300 stand in the lake once, and the outbox is empty."""
    keeper = None
    with Client.of(alone, "adult", source="outcomes", outbox=tmp_path / "outbox") as client:
        for turn in range(6):
            with running_broker(alone) as broker:
                if keeper is None:
                    keeper = Keeper(alone, start=lambda *_: None, log=lambda _: None)
                    thread = threading.Thread(target=keeper.run)
                    thread.start()
                if turn == 5:
                    until(lambda: client.kept == 0)
                    keeper.stop.set()
                    thread.join()
                    break
                for n in range(60):
                    client.outcome(f"t{turn}-{n}", ">50K")
                client.flush()
                broker.kill()
                broker.wait()
    landed = Vault(alone.vault).scan("landing").filter(pl.col("disposition") == "landed").select("prediction_id").collect()
    assert sorted(landed["prediction_id"]) == sorted(f"t{turn}-{n}" for turn in range(5) for n in range(60))


@pytest.mark.services
def test_a_broker_may_be_named_in_any_way_that_kafka_knows(alone: Settings, problem: Problem, tmp_path: Path) -> None:
    """An outbox asks first whether anybody listens, and has to ask the same addresses as the producer afterwards."""
    host, port = address(alone)
    with running_broker(alone):
        for named in (f"{host}:{port}", f"PLAINTEXT://{host}:{port}", f"127.0.0.1:1,{host}:{port}", [f"{host}:{port}"]):
            sender = Sender(alone.kafka.topic, {"bootstrap_servers": named}, knocks=True)
            assert sender.publish([(b"k", b"{}")])
            sender.close()
    nobody = Sender(alone.kafka.topic, {"bootstrap_servers": f"{host}:{port}"}, timeout_s=60.0, knocks=True)
    with pytest.raises(Unavailable, match="ConnectionRefusedError"):  # without a minute's wait
        nobody.publish([(b"k", b"{}")])


@pytest.mark.services
def test_what_has_landed_leaves_the_outbox_and_what_has_not_stays(
    on_each_broker: Callable[..., Settings], problem: Problem, tmp_path: Path
) -> None:
    """100 outcomes while no keeper runs: the broker has them, the outbox keeps them. A keeper lands them: the outbox is empty.
    On Apache Kafka a SIGKILL of the broker in between changes nothing."""
    settings = on_each_broker(tmp_path)
    keys_in(settings.keys, problem)
    with Client.of(settings, "adult", source="outcomes", outbox=tmp_path / "outbox", timeout_s=20.0) as client:
        with running_broker(settings) as broker:
            for n in range(100):
                client.outcome(f"p-{n}", ">50K")
            client.flush(timeout_s=60.0)
            assert client.kept == 100
            broker.kill()
            broker.wait()
        with running_broker(settings):
            keeper = Keeper(settings, start=lambda *_: None, log=lambda _: None)
            thread = threading.Thread(target=keeper.run)
            thread.start()
            until(lambda: client.kept == 0)
            keeper.stop.set()
            thread.join()
    landed = Vault(settings.vault).scan("landing").filter(pl.col("disposition") == "landed").select("prediction_id").collect()
    assert sorted(landed["prediction_id"]) == sorted(f"p-{n}" for n in range(100))


def test_words_wait_for_a_gateway_that_is_away_and_a_forged_one_is_told(
    stack: Settings, problem: Problem, adult: list[dict[str, Any]], tmp_path: Path
) -> None:
    with Client.of(stack, "adult") as client:
        answer = client.predict(inputs_of(problem, adult[:1]))[0]
    away = f"http://127.0.0.1:{free_port()}"
    with Client("adult", gateway=away, outbox=tmp_path, timeout_s=0.2) as client:
        client.correct(answer, ">50K", actor="clerk-4")
        client.rate(ANSWER, 1.0, actor="eve")
        assert client.waiting == 2 and client.refused() == []
    with Client.of(stack, "adult", outbox=tmp_path) as client:
        client.flush()
        ((word, why),) = client.refused()
        assert (word.actor, why.code) == ("eve", "token.forged") and client.refused() == [] and client.waiting == 0
    (said,) = [one for one in events(stack, problem) if one.type == "correction" and one.prediction_id == answer.prediction_id]
    assert said.body.label == ">50K"


def test_a_preference_needs_no_prediction(alone: Settings, problem: Problem, tmp_path: Path) -> None:
    import msgspec

    raters = msgspec.structs.replace(problem, sources={"raters": Source(types=("preference",))})
    kafka = connection(alone)
    with running_broker(alone), Client("adult", source="raters", source_key=b"k" * 32, kafka=kafka) as client:
        client.prefer("Which?", "this", "that", actor="anna")
        assert client.flush() == 1
        (said,) = events(alone, raters, keys={"adult": {"raters": b"k" * 32}})
    assert (said.type, said.reason, said.prediction_id, said.actor_kind) == ("preference", "", None, "person")
    assert (said.body.prompt, said.body.chosen, said.body.rejected) == ("Which?", "this", "that")


# --- when has it landed? ------------------------------------------------------------------------------------------------------


def landed(*told: dict[int, Mark], forgetful: bool) -> Landed:
    """After having been told these watermarks, one after the other; `None` stands for a broker that died."""
    answers = [one for one in told if one is not None]
    one = Landed(lambda: answers.pop(0), forgetful=forgetful)
    for each in told:
        one.doubt() if each is None else one.look(0.0, lambda: True)
    return one


def test_below_the_watermark_everything_has_landed() -> None:
    one = landed({0: Mark(0, 10, "a"), 1: Mark(0, 5, "a")}, forgetful=False)
    assert one.has({0: 10, 1: 4}) and not one.has({0: 11}) and not one.has({2: 1})
    assert not Landed(dict, forgetful=False).told


def test_of_a_forgetful_broker_an_old_word_says_nothing_about_what_is_written_now() -> None:
    old = {0: Mark(0, 10, "a")}
    assert not landed(old, forgetful=True).has({0: 5}), "may be from before the broker died; nothing moved since"
    assert landed(old, {0: Mark(0, 11, "a")}, forgetful=True).has({0: 11}), "it moved: a keeper reads this log"
    assert landed(old, {0: Mark(0, 10, "b")}, forgetful=True).has({0: 10}), "a keeper has looked at this log"
    dead: Any = None
    assert not landed(old, dead, {0: Mark(0, 12, "a")}, forgetful=True).has({0: 11}), "a late word of the session before"
    assert landed(old, dead, {0: Mark(0, 12, "b")}, forgetful=True).has({0: 11})


def test_a_log_that_began_anew_is_written_again() -> None:
    told = [{0: Mark(0, 10, "a")}, {0: Mark(0, 11, "a")}, {0: Mark(1, 3, "b")}]
    one = Landed(lambda: told.pop(0), forgetful=True)
    assert [one.look(0.0, lambda: True) for _ in range(3)] == [False, False, True] and one.has({0: 3})


def test_a_word_that_came_while_the_broker_may_have_died_is_not_heard() -> None:
    one = Landed(lambda: {0: Mark(0, 10, "a")}, forgetful=True)
    assert one.look(0.0, lambda: False) is False and not one.told and not one.has({0: 1})
