"""A Confluent-compatible schema registry, over the few REST calls that events need, and the codec that the settings ask for.

Calls: `GET /subjects/S/versions`, `GET /subjects/S/versions/N`, `POST /subjects/S/versions` (Confluent's documented API, which
Karapace, Redpanda and Apicurio serve too). Only schemas of the topic's own subject are believed; withdrawn (soft-deleted) ones
still read, because their messages may still lie in the topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from truing.infra.calls import call
from truing.tasks.errors import Refused, SettingsError, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from truing.infra.settings import Settings
    from truing.tasks.events.avro import Codec

VERSIONS = 500  # of a subject that are looked at, the newest
TIMEOUT_S = 5.0


class Registry:
    """One subject of one registry. `login` is a user and a password, if it asks for them."""

    def __init__(self, url: str, subject: str, *, login: tuple[str, str] | None = None, ca: Path | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise SettingsError(
                "setting kafka.schema_registry: expected http(s)://host:port without a login, got another; correct it"
            )
        self._base = urlunsplit(
            (parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/subjects/{quote(subject, safe='')}", "", "")
        )
        self._subject, self._login, self._ca = subject, login, ca
        self._known: dict[int, tuple[int, str]] = {}  # version → id, schema: neither ever changes

    def versions(self) -> Mapping[int, str]:
        """All schemas of the subject by id, as JSON text. Raises Unavailable."""
        listed = self._call("GET", "/versions?deleted=true", missing=True) or []
        for version in sorted(listed)[-VERSIONS:]:
            if version not in self._known:
                told = self._call("GET", f"/versions/{int(version)}?deleted=true", missing=True)
                if isinstance(told, dict):
                    form = told.get("schemaType") or "AVRO"
                    text = str(told["schema"]) if form == "AVRO" and not told.get("references") else '"another kind"'
                    self._known[version] = int(told["id"]), text
        return dict(self._known.values())

    def register(self, text: str) -> int:
        """The schema's id, new or not. Raises Unavailable, also when the registry refuses it as incompatible."""
        told = self._call("POST", "/versions", {"schema": text, "schemaType": "AVRO"})
        return int(told["id"])

    def _call(self, method: str, path: str, body: Any = None, *, missing: bool = False) -> Any:
        where = urlsplit(self._base).netloc
        try:
            return call(method, self._base + path, body, login=self._login, timeout=TIMEOUT_S, missing=missing, ca=self._ca)
        except Refused as error:
            raise Unavailable(f"schema registry {where}: {error}; correct its login") from None
        except Unavailable as error:
            raise Unavailable(f"schema registry {where}, subject {self._subject}: {_short(error)}") from None


def codec_of(settings: Settings) -> Codec | None:
    """What reads and writes Avro, if the settings name a registry. Raises Unavailable without fastavro."""
    kafka = settings.kafka
    if kafka.schema_registry is None:
        return None
    from truing.tasks.events.avro import Codec

    secret = kafka.schema_registry_password
    login = (
        (kafka.schema_registry_user or "", secret.get_secret_value() if secret else "") if kafka.schema_registry_user else None
    )
    subject = kafka.schema_subject or f"{kafka.topic}-value"
    registry = Registry(kafka.schema_registry, subject, login=login, ca=settings.tls.ca)
    return Codec(registry.versions, registry.register)


def _short(error: Exception) -> str:
    return str(error).removesuffix("; run `truing up` or `truing status`").removesuffix("; see `truing status`")
