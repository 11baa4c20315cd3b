"""Which broker, and Apache Kafka as a part of the stack: what is checked beforehand, and what a kill and an end leave."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from truing.infra import apache, broker
from truing.infra.preflight import check
from truing.infra.processes import living
from truing.infra.programs import programs
from truing.infra.running import as_running, remember
from truing.infra.settings import Settings, child_environment, load
from truing.infra.stack import Stack
from truing.tasks.errors import SettingsError, TruingError, Unavailable
from truing.tasks.events.stream import Publisher, Reader

In = Callable[..., Settings]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that looks like an unpacked Kafka 4."""
    libs = tmp_path / "kafka" / "libs"
    libs.mkdir(parents=True)
    (libs / "kafka_2.13-4.0.0.jar").touch()
    return libs.parent


@pytest.fixture
def with_java(tmp_path: Path) -> Callable[[str], str]:
    """A java that says it is of the given version: the file's name."""

    def make(version: str) -> str:
        path = tmp_path / f"java-{version}"
        path.write_text(f"""#!/bin/sh\necho 'openjdk version "{version}" 2025-04-15' >&2\n""")
        path.chmod(0o755)
        return str(path)

    return make


# --- which one ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "chosen"),
    [
        ({}, "embedded"),
        ({"TRUING_KAFKA_HOME": "/opt/kafka"}, "kafka"),
        ({"TRUING_KAFKA_BOOTSTRAP": "b:9092"}, "external"),
        ({"TRUING_KAFKA_HOME": "/opt/kafka", "TRUING_KAFKA__BROKER": "embedded"}, "embedded"),
        ({"TRUING_KAFKA_HOME": "/opt/kafka", "TRUING_KAFKA_BOOTSTRAP": "b:9092", "TRUING_KAFKA__BROKER": "kafka"}, "kafka"),
    ],
)
def test_naming_a_broker_means_using_it(
    environment: dict[str, str], chosen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TRUING_KAFKA_HOME", "TRUING_KAFKA_BOOTSTRAP", "TRUING_KAFKA__BROKER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    kafka = load().kafka
    assert kafka.broker == chosen
    assert kafka.home == (Path("/opt/kafka") if "TRUING_KAFKA_HOME" in environment else None)
    assert (kafka.bootstrap == "b:9092") == ("TRUING_KAFKA_BOOTSTRAP" in environment)


def test_two_brokers_named_at_once_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUING_KAFKA_HOME", "/opt/kafka")
    monkeypatch.setenv("TRUING_KAFKA_BOOTSTRAP", "b:9092")
    monkeypatch.delenv("TRUING_KAFKA__BROKER", raising=False)
    with pytest.raises(
        SettingsError, match=r"^expected TRUING_KAFKA_BOOTSTRAP [^\n]+ got both; unset one, or say which [^\n]+$"
    ):
        load()


@pytest.mark.parametrize(
    ("kafka", "trims"),
    [
        ({"broker": "embedded"}, True),
        ({"broker": "embedded", "trim": False}, False),
        ({"broker": "kafka"}, True),
        ({"broker": "external"}, False),
        ({"broker": "external", "trim": True}, True),
    ],
)
def test_only_a_broker_of_ours_is_trimmed_unless_it_is_asked_for(kafka: dict[str, Any], trims: bool) -> None:
    assert load(kafka=kafka).kafka.trims is trims


def test_only_a_broker_of_ours_is_a_part_of_the_stack(tmp_path: Path, settings_in: In) -> None:
    for kind in ("embedded", "kafka", "external"):
        settings = settings_in(tmp_path, kafka={"broker": kind, "bootstrap": "127.0.0.1:9092"})
        assert [part.says for part in programs(settings) if part.name == "broker"] == {
            "embedded": ["Kafka at 127.0.0.1:9092"],
            "kafka": ["Apache Kafka at 127.0.0.1:9092"],
            "external": [],
        }[kind]


def test_verbs_find_the_kafka_that_a_stack_was_started_with(tmp_path: Path, settings_in: In, home: Path) -> None:
    there = settings_in(tmp_path, kafka={"broker": "kafka", "home": home, "bootstrap": "127.0.0.1:9092", "controller": 7})
    (there.data / "run").mkdir(parents=True)
    remember(there, ["broker"])
    assert as_running(settings_in(tmp_path)).kafka == there.kafka


# --- what can be wrong beforehand ---------------------------------------------------------------------------------------------


def refused(settings: Settings) -> str:
    """What `up` says before anything is started or written."""
    with pytest.raises(TruingError) as caught:
        Stack(settings, parts=("broker",)).up()
    assert not settings.data.exists()
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_home_without_kafka_a_kafka_that_is_too_old_and_none_at_all_are_one_line_each(
    tmp_path: Path, settings_in: In, home: Path, with_java: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRUING_KAFKA_HOME", raising=False)
    given = {"broker": "kafka", "bootstrap": "127.0.0.1:9092", "java": with_java("17.0.15")}
    assert "setting kafka.home: expected a folder with broker=kafka, got none" in refused(settings_in(tmp_path, kafka=given))
    given["home"] = tmp_path
    assert f"expected Kafka's jars (kafka_2.*.jar) in {tmp_path} or its libs/, got none" in refused(
        settings_in(tmp_path, kafka=given)
    )
    (home / "libs" / "kafka_2.13-4.0.0.jar").rename(home / "libs" / "kafka_2.13-3.9.1.jar")
    given["home"] = home
    assert f"expected Kafka 4 or newer, got 3.9 in {home / 'libs'}" in refused(settings_in(tmp_path, kafka=given))


@pytest.mark.parametrize(("version", "shown"), [("1.8.0_402", "8"), ("11.0.22", "11"), ("16", "16")])
def test_a_java_that_is_too_old_is_one_line(
    version: str, shown: str, tmp_path: Path, settings_in: In, home: Path, with_java: Callable[[str], str]
) -> None:
    given = {"broker": "kafka", "home": home, "bootstrap": "127.0.0.1:9092", "java": with_java(version)}
    said = refused(settings_in(tmp_path, kafka=given))
    assert f"expected Java 17 or newer, got Java {shown} from {given['java']}" in said and "TRUING_KAFKA__JAVA" in said


def test_no_java_and_one_that_does_not_run_are_one_line_each(tmp_path: Path, settings_in: In, home: Path) -> None:
    given = {"broker": "kafka", "home": home, "bootstrap": "127.0.0.1:9092", "java": "no-such-java"}
    said = refused(settings_in(tmp_path, kafka=given))
    assert said.startswith("Apache Kafka: expected 'no-such-java' on the path, found none; install Java 17 or newer")
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    broken.chmod(0o755)
    given["java"] = str(broken)
    assert f"expected Java 17 or newer, got broken from {broken}" in refused(settings_in(tmp_path, kafka=given))


def test_the_controllers_port_is_the_next_one_and_is_checked_like_every_other(
    tmp_path: Path, settings_in: In, home: Path, with_java: Callable[[str], str]
) -> None:
    given = {"broker": "kafka", "home": home, "bootstrap": "127.0.0.1:9092", "java": with_java("21.0.1")}
    assert apache.controller_port(settings_in(tmp_path, kafka=given)) == 9093
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        given["controller"] = port = other.getsockname()[1]
        said = refused(settings_in(tmp_path, kafka=given))
        assert said.startswith(f"port {port} (the broker's controller): expected it free on 127.0.0.1")
        assert "set TRUING_KAFKA__CONTROLLER" in said
    given["controller"] = 9092
    assert "expected one part on it, got broker and the broker's controller" in refused(settings_in(tmp_path, kafka=given))


def test_a_kafka_started_here_knows_passwords_only_as_plain_sasl_and_tls_with_a_certificate(
    tmp_path: Path, settings_in: In, home: Path, with_java: Callable[[str], str]
) -> None:
    given = {"broker": "kafka", "home": home, "bootstrap": "127.0.0.1:9092", "java": with_java("17")}
    given["security_protocol"] = "SASL_SSL"
    assert "setting tls.certificate: expected one for a Kafka that speaks SASL_SSL" in refused(
        settings_in(tmp_path, kafka=given)
    )
    for wrong, got in (
        ({"security_protocol": "SSL"}, "SSL with PLAIN"),
        ({"sasl_mechanism": "SCRAM-SHA-512"}, "SASL_SSL with SCRAM-SHA-512"),
    ):
        said = refused(settings_in(tmp_path, kafka=given | wrong))
        assert f"for a Kafka that is started here, got {got}" in said


def test_its_files_name_loopback_only_and_no_topic_comes_by_itself(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path, kafka={"broker": "kafka", "bootstrap": "127.0.0.1:9092"})
    lines = dict(line.split("=", 1) for line in apache.properties(settings).splitlines())
    assert lines["listeners"] == "PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093"
    assert lines["advertised.listeners"] == "PLAINTEXT://127.0.0.1:9092"
    assert lines["controller.quorum.voters"] == "1@127.0.0.1:9093"
    assert lines["auto.create.topics.enable"] == "false"
    assert {value for name, value in lines.items() if "replication.factor" in name} == {"1"}


# --- the running thing --------------------------------------------------------------------------------------------------------


@pytest.mark.services
def test_apache_kafka_is_a_part_like_any_other(tmp_path: Path, on_apache: In) -> None:
    """Up, killed, back with every record and the same identity, stopped cleanly, up again, gone without a trace."""
    settings = on_apache(tmp_path / "a folder, näm=ed")
    stack = Stack(settings, parts=("broker",))
    folder = settings.data / "broker"
    try:
        assert stack.up() is True
        java = psutil.Process(stack.states()["broker"]["pid"])
        assert java.name() == "java" and not java.children()  # the supervisor's signals reach the broker itself
        assert not [name for name in java.environ() if name.startswith("TRUING_") and name != "TRUING_STACK"]
        listening = {one.laddr for one in java.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
        assert {one.port for one in listening} == {broker.address(settings)[1], apache.controller_port(settings)}
        assert {one.ip.removeprefix("::ffff:") for one in listening} == {"127.0.0.1"}  # java's sockets are of both families
        identity = (folder / "log" / "meta.properties").read_bytes()

        publisher = Publisher(broker.connection(settings), settings.kafka.topic)
        publisher.publish([(b"k", b"%d" % n) for n in range(1000)])
        java.kill()
        java.wait()
        publisher.publish([(b"k", b"%d" % n) for n in range(1000, 1100)])  # waits for the supervisor to bring it back
        publisher.close()
        assert stack.up() is False
        assert stack.states()["broker"]["pid"] != java.pid

        assert stack.down() is True
        assert (folder / "log" / ".kafka_cleanshutdown").exists()
        assert stack.up() is True
        assert (folder / "log" / "meta.properties").read_bytes() == identity
        reader = Reader(broker.connection(settings), settings.kafka.topic)
        values = set()
        while len(values) < 1100:
            values |= {value for chunk in reader.poll(200) for _, value in chunk.records}
        reader.close()
        assert values == {b"%d" % n for n in range(1100)}
    finally:
        stack.down()
    assert not living(settings.data)
    assert list((settings.data / "run").iterdir()) == []
    check(settings, stack.parts)  # its ports are free again


@pytest.mark.services
def test_up_makes_the_topics_on_a_broker_of_your_own(tmp_path: Path, on_each_broker: In) -> None:
    """The broker is started by this test; the stack is told where it answers and nothing else."""
    theirs = on_each_broker(tmp_path / "theirs")
    null = subprocess.DEVNULL
    process = subprocess.Popen(broker.command(theirs), env=child_environment(theirs), stdout=null, stderr=null)
    yours = theirs.kafka.model_copy(update={"broker": "external", "home": None})
    settings = theirs.model_copy(update={"data": tmp_path / "ours", "kafka": yours})
    stack = Stack(settings, parts=("ingest",))
    try:
        broker.wait_for(theirs, 60)
        assert stack.up() is True
        reader = Reader(broker.connection(settings), settings.kafka.topic)
        assert reader.lag() == 0 and len(reader.places) == settings.kafka.partitions
        reader.close()
        assert stack.down() is True
        assert process.poll() is None  # it is not ours to stop
    finally:
        stack.down()
        process.terminate()
        process.wait(20)


@pytest.mark.services
def test_a_format_that_was_killed_halfway_is_done_again_and_every_folder_has_an_identity_of_its_own(
    tmp_path: Path, on_apache: In
) -> None:
    found = set()
    for name in ("one", "two"):
        settings = on_apache(tmp_path / name)
        log = settings.data / "broker" / "log"
        log.mkdir(parents=True)
        (log / "bootstrap.checkpoint").write_bytes(b"torn")
        apache.prepare(settings)
        meta = dict(line.split("=", 1) for line in (log / "meta.properties").read_text().splitlines() if "=" in line)
        apache.prepare(settings)
        assert meta["cluster.id"] in (log / "meta.properties").read_text()
        found.add(meta["cluster.id"])
    assert len(found) == 2


@pytest.mark.services
def test_storage_that_can_not_be_formatted_is_one_line(tmp_path: Path, home: Path, on_apache: In) -> None:
    settings = on_apache(tmp_path)
    empty = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"home": home})})  # a jar without classes
    with pytest.raises(Unavailable, match=r"^expected Kafka to format [^\n]+, got: [^\n]+; check folder and kafka.home$"):
        apache.prepare(empty)
