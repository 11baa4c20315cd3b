"""The broker: its command if `truing up` starts it, its topics, and how it is reached. One of three, by `kafka.broker`.

`kafka` is a single Apache Kafka from jars of yours (`TRUING_KAFKA_HOME`, see apache.py), `external` a cluster of your own
(`TRUING_KAFKA_BOOTSTRAP`). `embedded` (noida-db, a single binary of 6 MiB) is for laptops and tests. What it does not promise:
it writes its log to disk about once a second, so a SIGKILL forgets what it acknowledged in the last one; it never evicts a
killed member of a group; it ignores byte limits of a fetch, so reading slows down over long backlogs. Everything here keeps
clear of these: readers `assign()`, positions live in the lake, producers send again, and a log that became shorter is read as a
new epoch.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from truing.infra.keys import SPEAKERS, keyring
from truing.infra.settings import Settings
from truing.infra.tls import distrust
from truing.tasks.errors import ProblemError, SettingsError, Unavailable
from truing.tasks.problem import seconds

_TALKATIVE = ("kafka.protocol.parser", "kafka.net.connection")  # kafka-python 3.0.12 writes passwords to its log at DEBUG


def address(settings: Settings) -> tuple[str, int]:
    """Host and port of the (first) broker. Raises SettingsError."""
    first = settings.kafka.bootstrap.split(",")[0].strip()
    host, _, port = first.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"setting kafka.bootstrap: expected host:port, got {settings.kafka.bootstrap!r}; correct it")
    return host.strip("[]"), int(port)


def command(settings: Settings) -> list[str]:
    """How our broker is started; it runs in the foreground, with the settings in its environment, and ends well on SIGTERM.

    Makes the embedded one's data folder. Raises SettingsError when the settings name an external broker, Unavailable when the
    binary is not installed or the folder can't be made.
    """
    if settings.kafka.broker == "external":
        raise SettingsError("setting kafka.broker: expected embedded or kafka, got 'external'; yours is started by you")
    if settings.kafka.broker == "kafka":
        return [sys.executable, "-m", "truing.infra.apache"]
    host, port = address(settings)
    if find_spec("noida_db") is None:
        raise Unavailable("expected the embedded broker (package noida-db), found none; install truing[loop] or name your own")
    binary = Path(str(files("noida_db").joinpath("noida-db")))
    folder = settings.data / "broker"
    try:
        binary.chmod(0o755) if not binary.stat().st_mode & 0o100 else None  # wheels may lose the bit
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Unavailable(f"expected to use {error.filename}, got: {error.strerror}; check its permissions") from None
    return [
        str(binary),
        "start",
        "--only",
        "kafka",
        "--kafka-port",
        str(port),
        "--host",
        host,
        "--data-dir",
        str(folder),
    ]


def check_free(settings: Settings) -> None:
    """Raises Unavailable, in one line, when something else has our broker's port."""
    host, port = address(settings)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Unavailable(
                f"port {port} of the broker: expected it free on {host}, got: {error.strerror}; "
                "stop what uses it or set TRUING_KAFKA__BOOTSTRAP"
            ) from None


def connection(settings: Settings, identity: str | None = None) -> dict[str, Any]:
    """What every Kafka client of ours is given: addresses, security, and how fast it comes back after a broker's restart.

    On a Kafka that we start with SASL each part has a name and a password of its own (acl.py): `identity`, else that of this
    process. Raises Unavailable where its password is not to be read.
    """
    kafka = settings.kafka
    config: dict[str, Any] = {
        "bootstrap_servers": [one.strip() for one in kafka.bootstrap.split(",") if one.strip()],
        "security_protocol": kafka.security_protocol,
        "reconnect_backoff_ms": 50,
        "reconnect_backoff_max_ms": 1000,
    }
    if kafka.security_protocol.endswith("SSL"):
        ca = kafka.ssl_ca or settings.tls.ca
        files = {"ssl_cafile": ca, "ssl_certfile": kafka.ssl_certificate, "ssl_keyfile": kafka.ssl_key}
        config |= {name: str(path) for name, path in files.items() if path is not None}
    if kafka.security_protocol.startswith("SASL"):
        name, password = kafka.sasl_username, kafka.sasl_password.get_secret_value() if kafka.sasl_password else None
        if kafka.broker == "kafka" and (identity is not None or name is None):
            name = identity or (settings.office if settings.office in SPEAKERS else "operator")
            password = keyring(settings).read(f"kafka-{name}").decode()
        for logger in _TALKATIVE:
            logging.getLogger(logger).setLevel(logging.INFO)
        config |= {"sasl_mechanism": kafka.sasl_mechanism, "sasl_plain_username": name, "sasl_plain_password": password}
    return config


def wait_for(settings: Settings, seconds: float) -> None:
    """Return once the broker answers a metadata request. Raises Unavailable after `seconds`: one line."""
    _admin(settings, seconds).close()


# The broker's clock decides what is old. By the senders', which is Kafka's default, a batch that calls itself old is deleted
# unread, and one from the future stays. Segments go whole, so they are closed hourly: Kafka's default is a week.
STAMPED = {"message.timestamp.type": "LogAppendTime"}
OURS = {**STAMPED, "segment.ms": str(3_600_000)}
WEEK_S = 7 * 86_400.0


def ensure_topics(settings: Settings, seconds: float = 20.0) -> None:
    """Make the topics of events and of control messages unless they are there. Control has one partition: its order counts.

    On Apache Kafka they have the broker's time on each record; on the one that we start also a retention of 7 days or
    the problems' if longer, for what nobody has landed: what has landed is given up after theirs (`Landing.trim`). What a
    person set otherwise stays.

    Raises Unavailable when the broker does not answer within `seconds` or refuses.
    """
    from kafka.errors import KafkaError, TopicAlreadyExistsError

    admin = administrator(settings, seconds)
    try:
        present = set(admin.list_topics())
        wanted = {settings.kafka.topic: settings.kafka.partitions, settings.kafka.control: 1, settings.kafka.dead: 1}
        kind = settings.kafka.broker
        configs = {} if kind == "embedded" else ours(settings) if kind == "kafka" else STAMPED
        for name, partitions in wanted.items():
            if name in present:
                continue
            topic = {"num_partitions": partitions, "replication_factor": -1 if _external(settings) else 1, "configs": configs}
            try:
                admin.create_topics({name: topic})
            except TopicAlreadyExistsError:  # somebody else was first
                continue
        if kind == "kafka":
            _configure(admin, sorted(present & set(wanted)), configs)
    except KafkaError as error:
        raise Unavailable(
            f"{_who(settings)}: expected to make its topics, got {_short(error)}; check its rights and logs"
        ) from None
    finally:
        admin.close()


def ours(settings: Settings) -> dict[str, str]:
    """What topics have on the Kafka that we start."""
    from truing.infra.catalog import catalog

    try:
        longest = max(seconds(problem.retention) for problem, _ in catalog(settings.problems).values())
    except ProblemError:  # said where problems are read
        longest = 0.0
    return {**OURS, "retention.ms": str(int(max(WEEK_S, longest) * 1000))}


def _configure(admin: Any, topics: Sequence[str], configs: Mapping[str, str]) -> None:
    """Topics of an earlier start, where nobody set anything else. Raises KafkaError."""
    from kafka.admin import ConfigResource, ConfigResourceType
    from kafka.errors import KafkaError

    for name in topics:
        told = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)]).get("topic", {}).get(name, {})
        if missing := {key: value for key, value in configs.items() if key not in told}:
            done = admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, missing)])
            if (word := done["topic"][name]) != "OK":
                raise KafkaError(f"{name}: {word}")


def administrator(settings: Settings, seconds: float = 20.0) -> Any:
    """A connected admin client within `seconds`, on a broker of ours with SASL as its super user. Raises Unavailable."""
    ours = settings.kafka.broker == "kafka" and settings.kafka.security_protocol.startswith("SASL")
    return _admin(settings, seconds, connection(settings, "admin" if ours else None))


def _admin(settings: Settings, seconds: float, config: dict[str, Any] | None = None) -> Any:
    """A connected admin client within `seconds`."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    quiet_client()
    host, port = address(settings)
    end = time.monotonic() + seconds
    cause = "no answer"
    while True:
        left = end - time.monotonic()
        try:  # a port that refuses is told apart at once; the client alone would wait out its whole patience
            socket.create_connection((host, port), max(0.05, left)).close()
            patience = int(max(0.5, min(left, 5.0)) * 1000)
            return KafkaAdminClient(
                **(config or connection(settings)), bootstrap_timeout_ms=patience, request_timeout_ms=max(patience, 5000)
            )
        except KafkaError as error:
            cause = f"{_short(error)}: is it a Kafka broker"
            if settings.kafka.security_protocol.endswith("SSL") and (doubt := distrust(host, port, connection(settings))):
                raise Unavailable(
                    f"{_who(settings)}: expected to trust one another, got: {doubt}; correct TRUING_KAFKA__SSL_*"
                ) from None
        except OSError as error:
            cause = str(error.strerror or error).lower()
        if time.monotonic() >= end:
            remedy = "start it or correct TRUING_KAFKA_BOOTSTRAP" if _external(settings) else "run `truing up`"
            raise Unavailable(f"{_who(settings)}: expected an answer within {seconds:g} s, got {cause}; {remedy}")
        time.sleep(0.05)


def quiet_client() -> None:
    """The client library logs each failed connection attempt; our own one-line errors say it once."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)


def _external(settings: Settings) -> bool:
    return settings.kafka.broker == "external"


def _who(settings: Settings) -> str:
    return f"the Kafka broker at {settings.kafka.bootstrap}"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
