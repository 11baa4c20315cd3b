"""The one settings face: every value that differs between a laptop and a cluster, each with a default that needs no set-up.

Priority: command line > environment (`TRUING_KAFKA__BOOTSTRAP`) > truing.toml > default. Two short forms say which broker:
`TRUING_KAFKA_BOOTSTRAP` yours, `TRUING_KAFKA_HOME` an Apache Kafka started here; with `TRUING_KAFKA__BROKER` they only fill in.
Only this file reads the environment. Gate thresholds are policy, not settings.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from truing.tasks.errors import SettingsError

_OFFICES = ("admin", "trainer", "steward", "gateway", "registry", "ingest", "prefect", "broker", "public", "sources")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Kafka(_Part):
    broker: Literal["embedded", "kafka", "external"] = Field(
        "embedded", description="embedded, or kafka (Apache Kafka from kafka.home): `truing up` starts them; external: yours"
    )
    bootstrap: str = Field("127.0.0.1:8492", description="host:port of the broker")
    topic: str = Field("user-events", description="events in")
    control: str = Field("truing-control", description="announcements out, run.requested in")
    dead: str = Field("user-events-dead", description="dead letters out, each once")
    partitions: int = Field(3, ge=1, description="partitions when the topic is created here")
    home: Path | None = Field(None, description="Apache Kafka 4 or newer, for broker=kafka: unpacked, or a folder of its jars")
    java: str = Field("java", description="Java 17 or newer for it: a name on the path, or a file")
    heap: str = Field("512m", pattern=r"^[1-9][0-9]*[kKmMgG]$", description="its Java heap")
    controller: int | None = Field(None, ge=1, le=65535, description="its controller's port on loopback; else bootstrap's + 1")
    trim: bool | None = Field(
        None, description="delete what has landed, embedded at once, else after the problem's retention; default: if it is ours"
    )
    group: str = Field("truing", description="name of the reader in the lake's app transactions")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field("PLAINTEXT", description="as in Kafka")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field("PLAIN", description="how a password is shown")
    sasl_username: str | None = Field(None, description="for SASL; on a Kafka that is started here each part has its own")
    sasl_password: SecretStr | None = Field(None, description="for SASL; likewise")
    ssl_ca: Path | None = Field(None, description="PEM of the broker's authority for SSL; default tls.ca, else public ones")
    ssl_certificate: Path | None = Field(None, description="PEM chain that our clients show to a broker that asks")
    ssl_key: Path | None = Field(None, description="its PEM key")
    schema_registry: str | None = Field(None, description="URL of a Confluent-compatible schema registry: sources write Avro")
    schema_subject: str | None = Field(None, description="whose schemas are events'; default: the topic's name and -value")
    schema_registry_user: str | None = Field(None, description="login there, if it asks")
    schema_registry_password: SecretStr | None = Field(None, description="its password")

    @property
    def trims(self) -> bool:
        return self.broker != "external" if self.trim is None else self.trim


class Ports(_Part):
    gateway: int = Field(8480, ge=1, le=65535, description="where predictions are asked")
    registry: int = Field(8481, ge=1, le=65535, description="MLflow with the guard")
    prefect: int = Field(8482, ge=1, le=65535, description="Prefect API and UI")


class Hosts(_Part):
    """Where clients find a server that is not at `host`: in containers each has a name, and `host` is what it binds."""

    gateway: str | None = Field(None, description="host name of the gateway")
    registry: str | None = Field(None, description="host name of MLflow")
    prefect: str | None = Field(None, description="host name of Prefect; its page in a browser asks there too")


class Accounts(_Part):
    """Unix accounts that `truing up`, run as root, starts the parts under. All or none: half a lock is none."""

    registry: str | None = Field(None, description="MLflow and its guard")
    prefect: str | None = Field(None, description="Prefect's server")
    trainer: str | None = Field(None, description="the runner of curate, improve and monitor")
    ingest: str | None = Field(None, description="the keeper: wire, vault, lake")
    steward: str | None = Field(None, description="verdicts and releases")
    gateway: str | None = Field(None, description="answers")
    broker: str | None = Field(None, description="the broker that we start")

    @property
    def separate(self) -> bool:
        return self.registry is not None


class Tls(_Part):
    """Certificates for every server of ours (registry, Prefect, gateway). With `certificate` set, all speak https only."""

    certificate: Path | None = Field(None, description="PEM chain that our servers show")
    key: Path | None = Field(None, description="its PEM key")
    ca: Path | None = Field(None, description="PEM of the authority that our clients trust, if it is not a public one")


class Notify(_Part):
    """Where a pending approval, a release or a finding is told, beside the control topic and Prefect's events."""

    urls: tuple[SecretStr, ...] = Field((), description='Apprise URLs as JSON: ["slack://…", "mailto://…", "json://host/hook"]')


class Ingest(_Part):
    keepers: int = Field(1, ge=1, le=64, description="processes that share the partitions; more than partitions are idle")
    number: int = Field(0, ge=0, lt=64, description="which of them a container's part `ingest` is: its pod's index")
    batch: int = Field(20_000, ge=1, description="most messages in one commit")
    linger_ms: int = Field(100, ge=0, description="how long a commit waits for more messages when the topic is quiet")
    batches: bool = Field(True, description="read a fetch as one buffer; false: record by record, slower, the same rows")
    sync: bool = Field(True, description="a commit waits until the disk has it (fsync): tables open after a power cut")
    join_every_s: float = Field(0.15, gt=0, description="seconds between joins of landed events into rows")
    segment_s: float = Field(3600.0, gt=0, description="length of one ingest run in Prefect")
    forget_after_s: float = Field(
        900.0, ge=0, description="how long data files outlive the person in them, for readers in mid-scan"
    )
    dead_days: int = Field(30, ge=1, description="days that dead letters can be read; then their key is destroyed")


class Learning(_Part):
    trials: int = Field(6, ge=1, le=64, description="Optuna trials of one study")
    threads: int = Field(2, ge=1, description="torch threads")
    seed: int = Field(7, description="seed of studies and fits")


class Steward(_Part):
    poll_s: float = Field(0.5, gt=0, description="seconds between looks at the registry")
    round_s: float = Field(10.0, gt=0, description="seconds between full rounds, which find edits behind the guard's back")


class Gateway(_Part):
    poll_s: float = Field(0.5, gt=0, description="seconds between looks while the registry can't tell of changes")
    sync: bool = Field(True, description="an answer waits until the disk has its event (fsync): it survives a power cut")
    keep_s: float = Field(60.0, ge=0, description="how long acknowledged events stay in the outbox if no keeper ever told")
    keep_most_s: float = Field(86_400.0, ge=0, description="how long at most, landed or not: the outbox holds people's data")
    max_rows: int = Field(50_000, ge=1, description="most rows in one request")


class Settings(BaseSettings):
    """All settings. Frozen: a process lives with what it started with."""

    model_config = SettingsConfigDict(
        env_prefix="TRUING_", env_nested_delimiter="__", frozen=True, extra="forbid", toml_file="truing.toml"
    )

    data: Path = Field(Path(".truing"), description="folder of keys, vault, lake, registry and logs")
    problems: Path = Field(Path("problems"), description="folder of problem folders")
    host: str = Field("127.0.0.1", description="address that servers bind and clients use")
    office: str = Field("", description="whose keys this process reads; the stack sets it for each part")
    environment: str = Field("laptop", description="name put into release statements")
    min_free_mb: int = Field(500, ge=0, description="what `truing up` wants free on the data folder's disk")
    approvers: Annotated[tuple[str, ...], NoDecode] = Field(
        ("approver", "approver2"),
        description="logins of the people who decide, comma-separated; each has its own password",
    )
    accounts: Accounts = Accounts()
    tls: Tls = Tls()
    notify: Notify = Notify()
    kafka: Kafka = Kafka()
    ports: Ports = Ports()
    hosts: Hosts = Hosts()
    ingest: Ingest = Ingest()
    learning: Learning = Learning()
    steward: Steward = Steward()
    gateway: Gateway = Gateway()

    @field_validator("approvers", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, (one.strip() for one in value.split(",")))) if isinstance(value, str) else value

    @field_validator("approvers")
    @classmethod
    def _people(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [one for one in value if not re.fullmatch(r"[a-z][a-z0-9._-]{1,62}", one) or one in _OFFICES]
        if wrong or not value or len(set(value)) != len(value):
            raise ValueError(f"expected different logins of a-z, 0-9, . _ and -, none of {', '.join(_OFFICES)}")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Settings:
        given = [getattr(self.accounts, name) for name in type(self.accounts).model_fields]
        if any(given) and not all(given):
            raise ValueError("accounts: expected an account for every office or for none; name the missing ones")
        if (self.tls.certificate is None) != (self.tls.key is None):
            raise ValueError("tls: expected certificate and key together; name the other one")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    # --- where things lie and answer
    @property
    def keys(self) -> Path:
        return self.data / "keys"

    def password_file(self, login: str) -> Path:
        return self.keys / login / "password"

    @property
    def vault(self) -> Path:
        return self.data / "vault"

    @property
    def lake(self) -> Path:
        return self.data / "lake"

    @property
    def store(self) -> Path:
        """MLflow's databases and artifacts. Nobody believes what lies here."""
        return self.data / "registry"

    @property
    def guard(self) -> Path:
        """The registry's audit and what configures it."""
        return self.data / "guard"

    @property
    def desk(self) -> Path:
        """What the steward alone writes: its book, its looks, its findings."""
        return self.data / "steward"

    def place(self, part: str) -> Path:
        """Heartbeat and lock of one part; its account alone writes there."""
        return self.data / "run" / part

    def scratch(self, part: str) -> Path:
        """Temporary files of one part."""
        return self.place(part) / "tmp"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def scheme(self) -> str:
        return "https" if self.tls.certificate else "http"

    @property
    def registry_url(self) -> str:
        return f"{self.scheme}://{self.hosts.registry or self.host}:{self.ports.registry}"

    @property
    def prefect_url(self) -> str:
        return f"{self.scheme}://{self.hosts.prefect or self.host}:{self.ports.prefect}/api"

    @property
    def gateway_url(self) -> str:
        return f"{self.scheme}://{self.hosts.gateway or self.host}:{self.ports.gateway}"


def load(**overrides: Any) -> Settings:
    """Settings of this process; `overrides` come from the command line. Raises SettingsError in one line."""
    overrides["kafka"] = _short_forms(dict(overrides.get("kafka", {})))
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        secret = not key or key.startswith(("notify", "kafka.sasl", "kafka.schema_registry"))
        got = "" if secret else f", got {first.get('input')!r}"
        where = f"setting {key}: " if key else ""
        raise SettingsError(f"{where}{first['msg'].lower()}{got}; see `truing up --help` or truing.toml") from None
    found: dict[str, Any] = {"data": settings.data.resolve(), "problems": settings.problems.resolve()}
    for name in ("kafka", "tls"):  # parts run in the data folder
        part = getattr(settings, name)
        paths = {key: value.expanduser().resolve() for key, value in part if isinstance(value, Path)}
        found[name] = part.model_copy(update=paths)
    return settings.model_copy(update=found)


def _short_forms(kafka: dict[str, Any]) -> dict[str, Any]:
    """`kafka` of the command line, filled up from the short forms: naming a broker means using it. Raises SettingsError."""
    bootstrap, home = os.environ.get("TRUING_KAFKA_BOOTSTRAP"), os.environ.get("TRUING_KAFKA_HOME")
    if not (kafka.get("broker") or os.environ.get("TRUING_KAFKA__BROKER")):
        if bootstrap and home:
            raise SettingsError(
                "expected TRUING_KAFKA_BOOTSTRAP (your own broker) or TRUING_KAFKA_HOME (a Kafka that is started here), got "
                "both; unset one, or say which by TRUING_KAFKA__BROKER=external or kafka"
            )
        if bootstrap or home:
            kafka["broker"] = "external" if bootstrap else "kafka"
    for name, value in (("bootstrap", bootstrap), ("home", home)):
        if value:
            kafka.setdefault(name, value)
    return kafka


@lru_cache(maxsize=1)
def current() -> Settings:
    """The settings of this process, read once."""
    return load()


def quiet_environment() -> dict[str, str]:
    """Variables that every process of ours runs with: no telemetry of any dependency, nothing looked up outside."""
    return {
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "GX_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "GIT_PYTHON_REFRESH": "quiet",
    }


_PLAIN = {
    *("PATH", "PYTHONPATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "JAVA_HOME", "CUDA_VISIBLE_DEVICES"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NO_PROXY", "no_proxy"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"),
}


def child_environment(settings: Settings, **more: str) -> dict[str, str]:
    """What a part of the stack runs with: this process's environment, our quiet one, all settings, and `more` (which wins).

    Other people's PREFECT_*, MLFLOW_* and TRUING_* are left out: a profile of another server must not reach our parts. Where
    parts are other users, root's own environment stays with root but for what names no secret. Loopback never goes through a
    proxy.
    """
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "_MLFLOW_", "TRUING_"))}
    if settings.accounts.separate:
        mine = {name: value for name, value in mine.items() if name in _PLAIN or name.startswith("LC_")}
    for name in ("NO_PROXY", "no_proxy"):
        mine[name] = ",".join(filter(None, (mine.get(name), settings.host, "127.0.0.1", "localhost")))
    return mine | quiet_environment() | {"PYTHONUNBUFFERED": "1"} | dict(_flatten("TRUING", settings)) | more


def _flatten(prefix: str, part: BaseModel) -> Iterator[tuple[str, str]]:
    """Fields as environment variables; nested parts join with two underscores, the prefix with one. None is left out."""
    joint = "_" if prefix == "TRUING" else "__"
    for name in type(part).model_fields:
        value = getattr(part, name)
        key = f"{prefix}{joint}{name.upper()}"
        if isinstance(value, BaseModel):
            yield from _flatten(key, value)
        elif isinstance(value, SecretStr):
            yield key, value.get_secret_value()
        elif key == "TRUING_NOTIFY__URLS":
            yield key, json.dumps([one.get_secret_value() for one in value])
        elif isinstance(value, tuple):
            yield key, ",".join(value)
        elif value is not None:
            yield key, str(value)


def quiet() -> None:
    """Set them in this process, before any heavy import. Existing values stay."""
    for name, value in quiet_environment().items():
        os.environ.setdefault(name, value)
