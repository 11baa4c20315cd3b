"""What a running stack was started with, so that every verb finds it, and no second `up` mixes two set-ups."""

from __future__ import annotations

import json
from typing import Any, cast

from pydantic import BaseModel

from truing.infra.settings import Settings
from truing.tasks.errors import Unavailable

FILE = "settings.json"  # below <data>/run while a stack runs
AUTO = "ports auto"


def remember(settings: Settings, parts: list[str], *, auto: bool = False) -> None:
    """Write the settings, without secrets, the names of the parts, and whether their ports were chosen for them."""
    path = settings.data / "run" / FILE
    draft = path.with_name(f".{FILE}")
    draft.write_text(json.dumps(_shown(settings, parts) | {AUTO: auto}))
    draft.replace(path)


def check_same(settings: Settings, parts: list[str]) -> None:
    """Raises Unavailable if the running stack was started with others."""
    known = _known(settings)
    differ = sorted(name for name, value in _shown(settings, parts).items() if known and known.get(name) != value)
    if differ:
        raise Unavailable(
            f"expected the settings of the running stack, got another {differ[0]}; run `truing down` first, then up"
        )


def on_its_ports(settings: Settings, *, auto: bool) -> Settings:
    """The settings with the ports of the running stack, where `auto` or its own start left their choice to us."""
    known = _known(settings)
    if known is None or not (auto or known.get(AUTO)):
        return settings
    there = as_running(settings)
    kafka = {name: getattr(there.kafka, name) for name in ("bootstrap", "controller")}
    return settings.model_copy(update={"ports": there.ports, "kafka": settings.kafka.model_copy(update=kafka)})


def as_running(settings: Settings) -> Settings:
    """The settings with what says where and how the stack that runs on this data folder answers, if one does.

    So `truing status --data FOLDER` finds a stack that was started on other ports, by other accounts, with certificates.
    """
    known = _known(settings)
    if known is None:
        return settings
    kafka = {**known.get("kafka", {}), "sasl_password": settings.kafka.sasl_password}  # secrets are not in the file
    try:
        found = {name: _read(getattr(settings, name), known[name]) for name in ("hosts", "ports", "tls", "accounts", "ingest")}
        found |= {"host": known["host"], "kafka": _read(settings.kafka, kafka)}
    except (KeyError, ValueError):  # started by another version
        return settings
    return settings.model_copy(update=found)


def _read(part: BaseModel, known: Any) -> BaseModel:
    return type(part).model_validate(known)


def _shown(settings: Settings, parts: list[str]) -> dict[str, Any]:
    return {**settings.model_dump(mode="json"), "parts": parts}


def _known(settings: Settings) -> dict[str, Any] | None:
    try:
        found = json.loads((settings.data / "run" / FILE).read_text())
    except (OSError, ValueError):
        return None
    return cast(dict[str, Any], found)
