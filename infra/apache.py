"""Apache Kafka as a part of the stack: one node, broker and controller in one (KRaft), from jars that the user brings.

    python -m truing.infra.apache

is what the supervisor runs. It writes the node's files below `<data>/broker`, formats its storage at the first start, and then
becomes java, so that the supervisor's signals reach the broker itself. Java runs in that folder and is told relative paths
only: the folder may be called anything. It gets none of our variables but the stack's marker, so no password either.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from truing.infra.keys import Keyring
from truing.infra.processes import MARKER, marker
from truing.infra.settings import Settings, child_environment, current
from truing.tasks.errors import SettingsError, TruingError, Unavailable

JAVA = 17  # Kafka 4's brokers don't start on an older one
KAFKA = 4  # the first without ZooKeeper and with log4j2
CONTROLLER_HOST = "127.0.0.1"  # nobody but the node itself speaks to its controller
_JAR = re.compile(r"kafka_2\.\d+-(\d+)\.(\d+)[^/]*\.jar")
_VERSION = re.compile(r'version "(?:1\.)?(\d+)')

LOG4J = """rootLogger.level=WARN
rootLogger.appenderRef.stderr.ref=stderr
appender.stderr.type=Console
appender.stderr.name=stderr
appender.stderr.target=SYSTEM_ERR
appender.stderr.layout.type=PatternLayout
appender.stderr.layout.pattern=%d{HH:mm:ss} %p %c{1}: %m%n
"""


def controller_port(settings: Settings) -> int:
    """`kafka.controller`, else the broker's port + 1. Raises SettingsError."""
    from truing.infra.broker import address

    return settings.kafka.controller or address(settings)[1] + 1


def check(settings: Settings) -> None:
    """Raises SettingsError or Unavailable, in one line, if Kafka can't be started with these settings on this machine."""
    kafka, tls = settings.kafka, settings.tls
    if kafka.security_protocol == "SSL" or kafka.sasl_mechanism != "PLAIN":
        got = f"{kafka.security_protocol} with {kafka.sasl_mechanism}"
        raise SettingsError(
            "setting kafka.security_protocol: expected PLAINTEXT, or SASL_PLAINTEXT or SASL_SSL with PLAIN, for a Kafka that "
            f"is started here, got {got}; unset it or use your own broker (TRUING_KAFKA_BOOTSTRAP)"
        )
    if kafka.security_protocol == "SASL_SSL" and (tls.certificate is None or tls.key is None):
        raise SettingsError(
            "setting tls.certificate: expected one for a Kafka that speaks SASL_SSL, got none; see TRUING_TLS__*"
        )
    controller_port(settings)
    jars(settings)
    java(settings)


def jars(settings: Settings) -> Path:
    """The folder that holds Kafka's jars: `kafka.home` or its `libs`. Raises SettingsError."""
    home = settings.kafka.home
    remedy = "set TRUING_KAFKA_HOME to an unpacked Apache Kafka or a folder of its jars"
    if home is None:
        raise SettingsError(f"setting kafka.home: expected a folder with broker=kafka, got none; {remedy}")
    for folder in (home / "libs", home):
        found = [match for path in folder.glob("kafka_2.*.jar") if (match := _JAR.fullmatch(path.name))]
        if found:
            if int(found[0][1]) < KAFKA:
                version = f"{found[0][1]}.{found[0][2]}"
                raise SettingsError(f"setting kafka.home: expected Kafka {KAFKA} or newer, got {version} in {folder}; {remedy}")
            return folder
    raise SettingsError(f"setting kafka.home: expected Kafka's jars (kafka_2.*.jar) in {home} or its libs/, got none; {remedy}")


def java(settings: Settings) -> str:
    """The file of a Java that is new enough. Raises Unavailable."""
    named = settings.kafka.java
    remedy = f"install Java {JAVA} or newer (Debian: openjdk-17-jre-headless) or name one by TRUING_KAFKA__JAVA"
    found = shutil.which(named)
    if found is None:
        raise Unavailable(f"Apache Kafka: expected {named!r} on the path, found none; {remedy}")
    try:
        said = subprocess.run(  # noqa: S603 - a file of the user's choice; without the flag it leaves a folder in /tmp
            [found, "-XX:-UsePerfData", "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"Apache Kafka: expected {found} to run, got: {error}; {remedy}") from None
    version = _VERSION.search(said.stderr + said.stdout)
    if version is None or int(version[1]) < JAVA:
        got = f"Java {version[1]}" if version else " ".join((said.stderr + said.stdout).split())[:100] or "no word"
        raise Unavailable(f"Apache Kafka: expected Java {JAVA} or newer, got {got} from {found}; {remedy}")
    return found


def properties(settings: Settings) -> str:
    """server.properties: one node on the broker's address, topics made explicitly, and no more threads and buffers than a
    laptop's traffic needs."""
    from truing.infra.broker import address

    host, port = address(settings)
    protocol = settings.kafka.security_protocol
    listener = f"{protocol}://{f'[{host}]' if ':' in host else host}:{port}"
    controller = f"{CONTROLLER_HOST}:{controller_port(settings)}"
    values = {
        "node.id": 1,
        "process.roles": "broker,controller",
        "controller.quorum.voters": f"1@{controller}",
        "listeners": f"{listener},CONTROLLER://{controller}",
        "advertised.listeners": listener,
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": protocol,
        "listener.security.protocol.map": f"{protocol}:{protocol},CONTROLLER:PLAINTEXT",
        "log.dirs": "log",
        "auto.create.topics.enable": "false",
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        # the topics it keeps for itself: nobody here joins a group or a transaction, but another client may
        **{f"{topic}.replication.factor": 1 for topic in ("offsets.topic", "transaction.state.log")},
        "share.coordinator.state.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 3,
        "transaction.state.log.num.partitions": 3,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # small: segments go one by one when their time is over, and an index is a file of its full size from the start
        "log.segment.bytes": 128 << 20,
        "log.index.size.max.bytes": 1 << 20,
        "log.cleaner.dedupe.buffer.size": 8 << 20,
        # a killed node is taken back once its old session is over; there is no other node to take its place meanwhile
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 1000,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
    }
    if protocol != "PLAINTEXT":
        values |= _locked(settings, protocol)
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _locked(settings: Settings, protocol: str) -> dict[str, str | int]:
    """With SASL: a password for everybody, rights by table (acl.py), and the controller's door is no way around them."""
    ring = Keyring(settings.keys, "broker")
    names = sorted(path.name.removeprefix("kafka-") for path in (settings.keys / "broker").glob("kafka-*"))
    passwords = {name: ring.read(f"kafka-{name}").decode() for name in {*names, "admin"}}
    module = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    mine = f'username="admin" password="{passwords["admin"]}"'
    users = " ".join(f'user_{name}="{password}"' for name, password in sorted(passwords.items()))
    found: dict[str, str | int] = {
        "listener.security.protocol.map": f"{protocol}:{protocol},CONTROLLER:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.mechanism.controller.protocol": "PLAIN",
        f"listener.name.{protocol.lower()}.plain.sasl.jaas.config": f"{module} {mine} {users};",
        "listener.name.controller.plain.sasl.jaas.config": f'{module} {mine} user_admin="{passwords["admin"]}";',
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:admin",
        "allow.everyone.if.no.acl.found": "false",
    }
    if protocol == "SASL_SSL":
        found |= {"ssl.keystore.type": "PEM", "ssl.keystore.location": "keystore.pem"}
    return found


def prepare(settings: Settings) -> list[str]:
    """Write the files, format the storage unless that was done, and return java's command; it runs in `<data>/broker`.

    Raises SettingsError, Unavailable.
    """
    check(settings)
    folder = settings.data / "broker"
    heap = settings.kafka.heap
    run = [
        java(settings),
        f"-Xmx{heap}",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",  # up sooner and smaller; the client library is slower than either compiler's code
        "-XX:+ExitOnOutOfMemoryError",  # the supervisor starts it again
        "-XX:-UsePerfData",  # else a file in /tmp
        "-Djava.io.tmpdir=tmp",
        "-Dlog4j2.configurationFile=log4j2.properties",
        "-cp",
        str(jars(settings) / "*"),
    ]
    try:
        for one in (folder, folder / "tmp"):
            one.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(folder / "server.properties", properties(settings).encode())
        if settings.kafka.security_protocol == "SASL_SSL" and settings.tls.certificate and settings.tls.key:
            _write(folder / "keystore.pem", settings.tls.key.read_bytes() + b"\n" + settings.tls.certificate.read_bytes())
        (folder / "log4j2.properties").write_text(LOG4J)
    except OSError as error:
        raise Unavailable(f"expected to write {error.filename}, got: {error.strerror}; check its permissions") from None
    if not (folder / "log" / "meta.properties").exists():
        _format(settings, run, folder)
    return [*run, "kafka.Kafka", "server.properties"]


def _write(path: Path, data: bytes) -> None:
    """A file with passwords or a key in it, for its owner alone from its first byte on."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def _format(settings: Settings, run: list[str], folder: Path) -> None:
    """Give the storage its identity. What a killed attempt left holds no record yet and goes first."""
    shutil.rmtree(folder / "log", ignore_errors=True)
    command = [*run, "kafka.tools.StorageTool", "format", f"--cluster-id={_cluster()}", "--config=server.properties"]
    done = subprocess.run(command, cwd=folder, env=_environment(settings), capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        shutil.rmtree(folder / "log", ignore_errors=True)
        words = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise Unavailable(f"expected Kafka to format {folder / 'log'}, got: {words[:200]}; check folder and kafka.home")


def _cluster() -> str:
    """A cluster id: 16 random bytes as 22 characters."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _environment(settings: Settings) -> dict[str, str]:
    """Variables of a part without ours, but for the marker, and a locale in which java reads any folder's name."""
    ours = ("TRUING_", "PREFECT_", "MLFLOW_")
    kept = {name: value for name, value in child_environment(settings).items() if not name.startswith(ours)}
    return kept | {MARKER: marker(settings.data), "LC_ALL": "C.UTF-8"}


def main() -> int:
    try:
        settings = current()
        command = prepare(settings)
        os.chdir(settings.data / "broker")
        os.execve(command[0], command, _environment(settings))  # noqa: S606
    except TruingError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"expected to start {command[0]}, got: {error.strerror}\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
