"""Who may do what on the broker: the table, and Apache Kafka holding everybody to it; passwords stand in no log."""

from __future__ import annotations

import logging
import re
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion
from kafka.errors import KafkaError, TopicAuthorizationFailedError, UnknownTopicOrPartitionError
from ports import free_ports
from pydantic import SecretStr
from test_tls import Authority

from truing.flows.cli.main import main
from truing.flows.keeper import Keeper, drain
from truing.infra import acl, apache, broker
from truing.infra.accounts import create_keys
from truing.infra.catalog import catalog
from truing.infra.keys import Keyring
from truing.infra.settings import Settings
from truing.infra.stack import Stack
from truing.infra.watermark import Announcer, Mark, Watermark
from truing.tasks.errors import Unavailable
from truing.tasks.events.schema import encode_event
from truing.tasks.events.stream import Publisher, Reader
from truing.tasks.problem import Problem
from truing.tasks.tables.lake import Vault

In = Callable[..., Settings]
QUICK = {"bootstrap_timeout_ms": 5000, "request_timeout_ms": 5000}
WRITING = {"max_block_ms": 5000, "delivery_timeout_ms": 6000, "request_timeout_ms": 5000, "bootstrap_timeout_ms": 5000}


def write(config: Mapping[str, Any], topic: str) -> bool:
    """Whether a producer with these options may write there; any other failure is raised."""
    producer = KafkaProducer(**{**config, **WRITING}, acks="all")
    try:
        producer.send(topic, key=b"k", value=b"v").get(10)
    except TopicAuthorizationFailedError:
        return False
    finally:
        producer.close(timeout=2)
    return True


def read(config: Mapping[str, Any], topic: str) -> bool:
    consumer = KafkaConsumer(**{**config, **QUICK}, group_id=None, auto_offset_reset="earliest", enable_auto_commit=False)
    try:
        partitions = [TopicPartition(topic, 0)]
        consumer.assign(partitions)
        consumer.beginning_offsets(partitions)
        consumer.poll(timeout_ms=500)
    except TopicAuthorizationFailedError:
        return False
    finally:
        consumer.close()
    return True


def delete(config: Mapping[str, Any], topic: str) -> bool:
    admin = KafkaAdminClient(**{**config, **QUICK})
    try:
        admin.delete_records({TopicPartition(topic, 0): 0}, timeout_ms=5000)
    except (TopicAuthorizationFailedError, UnknownTopicOrPartitionError):  # who may do nothing there is not told of it
        return False
    finally:
        admin.close()
    return True


TRY = {"READ": read, "WRITE": write, "DELETE": delete}


# --- the table ----------------------------------------------------------------------------------------------------------------


def test_the_table_names_every_identity_and_lets_nobody_read_people_but_ingest_and_operators(
    settings_in: In, tmp_path: Path, problem: Problem
) -> None:
    settings = settings_in(tmp_path)
    table = acl.rights(settings, {"adult": problem})
    assert {one.identity for one in table} == set(acl.identities({"adult": problem}))
    events, control = settings.kafka.topic, settings.kafka.control
    assert {one.identity for one in table if (one.topic, one.operation) == (events, "READ")} == {"ingest", "operator"}
    assert {one.identity for one in table if one.operation == "DELETE"} == {"ingest"}
    assert all(one.topic == events for one in table if one.identity.startswith("source-"))
    asking = msgspec.structs.replace(problem, control={"curate": ("outcomes",)})
    more = acl.rights(settings, {"adult": asking})
    assert [(one.identity, one.topic) for one in more if one not in table] == [("source-adult.outcomes", control)]


def test_people_get_it_as_commands_with_their_own_principals(settings_in: In, tmp_path: Path, problem: Problem) -> None:
    settings = settings_in(tmp_path)
    lines = acl.commands(acl.rights(settings, {"adult": problem}), settings, {"gateway": "User:CN=gateway"})
    mine = [line for line in lines if "CN=gateway" in line]
    assert len(mine) == 1 and mine[0].endswith(f"--operation Write --topic '{settings.kafka.topic}'")
    assert any("User:ingest' --operation Read --operation Delete" in line for line in lines)


def test_the_command_line_shows_it_and_refuses_what_is_no_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data", str(tmp_path), "--problems", str(Path(__file__).resolve().parent.parent / "problems")]
    assert main(["keys", "acl", *where]) == 0
    assert re.search(r"User:gateway +user-events +WRITE", capsys.readouterr().out)
    assert main(["keys", "acl", "--commands", "--principal", "gateway=User:CN=g", *where]) == 0
    assert "--allow-principal 'User:CN=g' --operation Write --topic 'user-events'" in capsys.readouterr().out
    for wrong in (["acl", "--principal", "stranger=User:x"], ["acl", "--principal", "gateway"], ["list", "--apply"]):
        assert main(["keys", *wrong, *where]) == 2
        assert capsys.readouterr().err.count("\n") == 1


# --- a Kafka that we start ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, on_apache: In) -> Iterator[Settings]:
    """`truing up` of a broker with SASL: keys, topics, rights."""
    plain = on_apache(tmp_path_factory.mktemp("sasl"))
    settings = plain.model_copy(update={"kafka": plain.kafka.model_copy(update={"security_protocol": "SASL_PLAINTEXT"})})
    stack = Stack(settings, parts=("broker",))
    stack.up()
    try:
        yield settings
    finally:
        stack.down()


@pytest.mark.services
def test_only_a_keeper_tells_what_has_landed_and_all_who_send_hear_it(secured: Settings) -> None:
    group, topic = secured.kafka.group, secured.kafka.topic
    said = {0: Mark(0, 7, "a.1")}
    for identity in ("gateway", "source-adult.outcomes", "trainer"):
        teller = Announcer(broker.connection(secured, identity), group, topic)
        assert not teller.tell({0: Mark(0, 999, "forged")}), identity
        teller.close()
    teller = Announcer(broker.connection(secured, "ingest"), group, topic)
    assert teller.tell(said)
    teller.close()
    for identity in ("gateway", "source-adult.outcomes", "operator"):
        hearer = Watermark(broker.connection(secured, identity), group, topic)
        assert hearer() == said, identity
        hearer.close()
    stranger = Watermark(broker.connection(secured, "trainer"), group, topic)
    with pytest.raises(Unavailable, match="expected the group"):
        stranger()
    stranger.close()


@pytest.mark.services
def test_everybody_may_do_what_the_table_says_and_nothing_else(secured: Settings) -> None:
    problems = {name: problem for name, (problem, _) in catalog(secured.problems).items()}
    table = {(one.identity, one.topic, one.operation) for one in acl.rights(secured, problems)}
    topics = (secured.kafka.topic, secured.kafka.control, secured.kafka.dead)
    found = set()
    for identity in acl.identities(problems):
        config = broker.connection(secured, identity)
        found |= {(identity, topic, operation) for topic in topics for operation, act in TRY.items() if act(config, topic)}
    assert found == table


@pytest.mark.services
def test_each_office_is_itself_and_a_person_is_the_operator(secured: Settings) -> None:
    for office, name in (("ingest", "ingest"), ("steward", "steward"), ("prefect", "operator"), ("", "operator")):
        config = broker.connection(secured.model_copy(update={"office": office}))
        assert config["sasl_plain_username"] == name
        assert config["sasl_plain_password"] == Keyring(secured.keys).read(f"kafka-{name}").decode()


@pytest.mark.services
def test_no_password_a_wrong_one_and_the_controllers_door_get_nothing(secured: Settings) -> None:
    config = broker.connection(secured, "ingest")
    controller = f"127.0.0.1:{apache.controller_port(secured)}"
    for wrong in (
        config | {"sasl_plain_password": "guess"},
        config | {"sasl_plain_username": "nobody"},
        {**config, "security_protocol": "PLAINTEXT"},
        {**config, "security_protocol": "PLAINTEXT", "bootstrap_servers": [controller]},
        config | {"bootstrap_servers": [controller]},
    ):
        with pytest.raises((KafkaError, OSError)):
            KafkaAdminClient(**{**wrong, "bootstrap_timeout_ms": 1500, "request_timeout_ms": 1500}).list_topics()


@pytest.mark.services
def test_rights_are_set_once_and_what_nobody_has_any_more_goes(secured: Settings, problem: Problem) -> None:
    table = acl.rights(secured, {"adult": problem})
    assert acl.apply(secured, table, prune=True) == (0, 0)
    fewer = [one for one in table if one.identity != "source-adult.backfill"]
    assert acl.apply(secured, fewer) == (0, 0)  # on a cluster of yours nothing is taken away
    assert acl.apply(secured, fewer, prune=True) == (0, 1)
    config = broker.connection(secured, "source-adult.backfill")
    assert not write(config, secured.kafka.topic)
    assert acl.apply(secured, table, prune=True) == (1, 0) and write(config, secured.kafka.topic)
    with pytest.raises(Unavailable, match=r"^the Kafka broker at [^\n]+: expected to set its ACLs, got [^\n]+$"):
        gateway = secured.kafka.model_copy(update={"broker": "external", **_login(secured, "gateway")})
        acl.apply(secured.model_copy(update={"kafka": gateway}), table)


@pytest.mark.services
def test_a_keeper_lands_what_gateway_and_source_sent_each_under_its_own_name(secured: Settings) -> None:
    ring, now = Keyring(secured.keys), time.time()
    asked = {"inputs": {"age": 40}, "answer": {"label": "<=50K", "confidence": 0.8}}
    given: dict[str, Any] = {"problem": "adult", "prediction_id": "p", "time": now}
    messages = {
        "gateway": encode_event("prediction", data=asked, id="q", source="gateway", source_key=ring.read("wire"), **given),
        "source-adult.outcomes": encode_event(
            "outcome", data={"label": ">50K"}, id="o", source="outcomes", source_key=ring.source("adult", "outcomes"), **given
        ),
    }
    for identity, message in messages.items():
        publisher = Publisher(broker.connection(secured, identity), secured.kafka.topic)
        publisher.publish([message])
        publisher.close()
    keeper = Keeper(secured.model_copy(update={"office": "ingest"}), start=lambda *_: "run", log=print)
    try:
        drain(keeper)
        keeper.landing.reader.trim({0: 0})  # it may
        assert keeper.landing.reader.notes == []
    finally:
        keeper.close()
    landed = Vault(secured.vault).landing().filter(pl.col("event_id").is_in(["q", "o"]))
    assert landed.height == 2
    assert dict(landed.select("event_id", "disposition").iter_rows())["o"] == "landed"


def _login(settings: Settings, identity: str) -> dict[str, Any]:
    password = Keyring(settings.keys).read(f"kafka-{identity}").decode()
    return {"sasl_username": identity, "sasl_password": SecretStr(password)}


@pytest.mark.services
def test_passwords_stand_in_no_log_no_repr_and_no_file_that_others_read(
    secured: Settings, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    passwords = {path.read_text() for path in secured.keys.glob("*/kafka-*")}
    assert len(passwords) == len(acl.identities({})) + 4
    config = broker.connection(secured, "operator")
    with caplog.at_level(logging.DEBUG), talkative():
        assert write(config, secured.kafka.topic) and read(config, secured.kafka.topic)
        publisher = Publisher(broker.connection(secured, "gateway"), secured.kafka.control)
        with pytest.raises(Unavailable) as refused:
            publisher.publish([(b"", b"x")])
        reader = Reader(broker.connection(secured, "gateway"), secured.kafka.topic)
        with pytest.raises(Unavailable) as unread:  # a refused fetch is told by the poll after it
            for _ in range(50):
                reader.poll(100)
    assert "kafka" in caplog.text  # it did log
    given = secured.kafka.model_copy(update=_login(secured, "operator"))
    said = "".join((caplog.text, *capsys.readouterr(), str(refused.value), str(unread.value), repr(publisher), repr(reader)))
    said += f"{given!r} {given} {secured.model_copy(update={'kafka': given})!r}"
    for folder in (secured.logs, secured.data / "run"):
        said += "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
    assert not [one for one in passwords if one in said]
    holders = [path for path in secured.data.rglob("*") if path.is_file() and _holds(path, passwords)]
    assert {path.name for path in holders if path.parent.name == "broker" and path.parent.parent == secured.data} == {
        "server.properties"
    }
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in holders)


def _holds(path: Path, passwords: set[str]) -> bool:
    data = path.read_bytes()
    return any(one.encode() in data for one in passwords)


@contextmanager
def talkative() -> Iterator[None]:
    """The client's own logger at DEBUG, whoever silenced it before."""
    logger = logging.getLogger("kafka")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)


# --- a cluster of your own: SCRAM, TLS, client certificates -------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, on_apache: In) -> Iterator[tuple[Settings, Authority, int]]:
    """A broker that speaks SASL_SSL with PLAIN and SCRAM, and TLS with client certificates on a second port."""
    folder = tmp_path_factory.mktemp("theirs")
    authority, mutual = Authority(folder / "authority"), free_ports(1)[0]
    plain = on_apache(folder)
    kafka = plain.kafka.model_copy(update={"security_protocol": "SASL_SSL"})
    settings = plain.model_copy(update={"tls": authority.issue("127.0.0.1"), "kafka": kafka})
    create_keys(settings, {})
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    text = re.sub(r"(?m)^(.*listeners)=(SASL_SSL://[^,\n]+)", rf"\1=\2,SSL://127.0.0.1:{mutual}", apache.properties(settings))
    text = text.replace("map=SASL_SSL:SASL_SSL", "map=SSL:SSL,SASL_SSL:SASL_SSL")
    text = text.replace("\nsasl.enabled.mechanisms=PLAIN", "\nsasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512")
    text = text.replace("super.users=User:admin", "super.users=User:admin;User:CN=127.0.0.1")  # as Authority names them
    text += "".join(f"listener.name.sasl_ssl.scram-sha-{bits}.sasl.jaas.config={scram}\n" for bits in (256, 512))
    text += f"ssl.truststore.type=PEM\nssl.truststore.location={authority.ca}\nlistener.name.ssl.ssl.client.auth=required\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apache, "properties", lambda _: text)
        command = apache.prepare(settings)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=settings.data / "broker", stdout=log, stderr=subprocess.STDOUT)
    try:
        broker.ensure_topics(settings, 60.0)
        yield settings, authority, mutual
    finally:
        process.terminate()
        process.wait(30)


def external(settings: Settings, **kafka: Any) -> Settings:
    """The same broker as somebody else's: reached by what the settings say."""
    given = settings.kafka.model_copy(update={"broker": "external", "home": None, **kafka})
    return settings.model_copy(update={"kafka": given})


@pytest.mark.services
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_cluster_is_reached_over_tls_by_plain_and_by_scram(
    theirs: tuple[Settings, Authority, int], mechanism: str, problem: Problem
) -> None:
    settings, authority, _ = theirs
    name, password = f"app-{mechanism.lower()}", "geheim-" + mechanism
    admin = broker.administrator(settings)
    try:
        if mechanism == "PLAIN":
            name, password = "operator", Keyring(settings.keys).read("kafka-operator").decode()
        else:
            admin.alter_user_scram_credentials(
                [UserScramCredentialUpsertion(name, ScramMechanism[mechanism.replace("-", "_")], password)]
            )
    finally:
        admin.close()
    files = {"ssl_ca": authority.ca, "sasl_mechanism": mechanism, "sasl_username": name, "sasl_password": SecretStr(password)}
    given = external(settings, **files)
    config = broker.connection(given)
    assert not write(config, given.kafka.topic), "known, and without rights"
    table = [one for one in acl.rights(given, {"adult": problem}) if one.identity == "gateway"]
    acl.apply(settings, table, principals={"gateway": f"User:{name}"})
    assert write(config, given.kafka.topic) and not write(config, given.kafka.control)
    assert not read(config, given.kafka.topic)
    wrong = external(settings, **files | {"sasl_password": SecretStr("wrong")})
    with pytest.raises(Unavailable) as refused:
        broker.wait_for(wrong, 2.0)
    assert password not in str(refused.value) and "wrong" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.services
def test_a_cluster_knows_a_client_by_its_certificate(theirs: tuple[Settings, Authority, int]) -> None:
    settings, authority, mutual = theirs
    mine, stranger = authority.issue("127.0.0.1"), Authority(authority.folder / "other", "Other CA").issue("127.0.0.1")
    named = authority.issue("gateway.example")  # CN=gateway.example
    where = {"security_protocol": "SSL", "bootstrap": f"127.0.0.1:{mutual}", "ssl_ca": authority.ca}

    def by(certificate: Any) -> Settings:
        return external(settings, **where, ssl_certificate=certificate.certificate, ssl_key=certificate.key)

    assert write(broker.connection(by(mine)), settings.kafka.topic)  # a super user by its name
    config = broker.connection(by(named))
    assert not write(config, settings.kafka.topic)
    table = [acl.Right(identity="gateway", topic=settings.kafka.topic, operation="WRITE")]
    assert acl.apply(settings, table, principals={"gateway": "User:CN=gateway.example"}) == (1, 0)
    assert write(config, settings.kafka.topic) and not read(config, settings.kafka.topic)
    for wrong in (external(settings, **where), by(stranger)):
        with pytest.raises(Unavailable, match="expected to trust one another"):
            broker.wait_for(wrong, 3.0)
