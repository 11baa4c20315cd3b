"""An announcement in other words: for people, and as an event of Prefect."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from truing.infra.settings import Settings
from truing.tasks.records import Record

Message = dict[str, Any]


class Words(Record, frozen=True):
    """A message for people. `level`: info, success, warning or failure, as Apprise names them."""

    title: str
    text: str
    level: str


def event(message: Message) -> dict[str, Any]:
    """A message as Prefect's event: `truing.model.ready` about the resource `truing.problem.adult`."""
    problem = str(message.get("problem") or "registry")
    resource = {"prefect.resource.id": f"truing.problem.{problem}", "prefect.resource.name": problem}
    resource |= {f"truing.{name}": str(message[name]) for name in ("version", "sequence", "outcome") if name in message}
    return {
        "id": str(uuid.UUID(hex=str(message["id"]))),  # the same at every try
        "occurred": datetime.fromtimestamp(float(message["time"]), UTC).isoformat(),
        "event": f"truing.{message['type']}",
        "resource": resource,
        "related": [],
        "payload": message,
    }


def words(message: Message, settings: Settings) -> Words | None:
    """What a person is told, or None for what waits for nobody (a block, a run that was asked for)."""
    get, problem = message.get, message.get("problem") or "registry"
    version, reason = get("version", "?"), str(get("reason") or "").strip()
    page = f"{settings.registry_url}/#/models/{problem}/versions/{version}"
    match get("type"):
        case "model.ready" if get("outcome") in ("pass", "inconclusive"):
            act = f"truing approve {version} --problem {problem} --reason …  (or reject; or the tag approval at {page})"
            return Words(
                title=f"{problem} version {version} waits for an approver: {get('outcome')}",
                text="\n".join(filter(None, [reason, act])),
                level="info",
            )
        case "model.released":
            return Words(title=f"{problem} serves version {version}", text=_release(message, reason), level="success")
        case "model.rolled-back":
            title = f"{problem} was rolled back to version {version}"
            return Words(title=title, text=_release(message, reason), level="warning")
        case "model.withdrawn":
            return Words(
                title=f"{problem} was withdrawn: nothing serves",
                text=f"{_release(message, reason)}\nApprove another version, or `truing rollback --to V`.",
                level="failure",
            )
        case "approval.expiring":
            return Words(
                title=f"{problem}: the approval of version {version} ends {_date(get('expires'))}",
                text=f"Nothing serves after that. Approve it again (`truing approve {version} --problem {problem} --reason …`) "
                f"or release another version.\n{page}",
                level="failure",
            )
        case "alert.raised":
            seen = [f"expected {get('expected')}, got {get('got')}"] if "got" in message else []
            return Words(
                title=f"{problem}: found: {get('what') or get('key') or 'an alert'}",
                text="\n".join([*seen, *filter(None, [reason]), "See `truing status` and `truing audit verify`."]),
                level="failure" if get("level") != "info" else "info",
            )
    return None


def _release(message: Message, reason: str) -> str:
    return f"release {message.get('sequence', '?')}" + (f": {reason}" if reason else "")


def _date(at: Any) -> str:
    return f"at {datetime.fromtimestamp(float(at), UTC):%Y-%m-%d %H:%M} UTC" if at is not None else "soon"
