"""Announcements and requests on the control topic: what steward and monitor say, and `run.requested` for ingest, curate,
improve and monitor. Never for a gate, a release or a rollback.

    model.ready         a verdict stands: `outcome` pass and inconclusive wait for a person, block does not
    model.released      another version serves       model.rolled-back   an earlier one serves again
    model.withdrawn     nothing serves any more      approval.expiring   what serves stops at `expires`
    alert.raised        traffic, or a finding of the steward, that a person should look at
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from truing.infra.settings import Settings
from truing.tasks.errors import UsageError

RUNS = ("ingest", "curate", "improve", "monitor")
SAYS = (
    "run.requested",
    "model.ready",
    "model.released",
    "model.rolled-back",
    "model.withdrawn",
    "approval.expiring",
    "memory.updated",
    "alert.raised",
)


def announcer(settings: Settings) -> Callable[[dict[str, Any]], str]:
    """A function that publishes one message, acknowledged, and returns its id; `id` and `time` are added where absent.

    Raises UsageError for what the topic does not carry, Unavailable when the broker does not take it.
    """
    from truing.infra.broker import connection
    from truing.tasks.events.stream import Publisher

    publisher = Publisher(connection(settings), settings.kafka.control)

    def announce(message: dict[str, Any]) -> str:
        if message.get("type") not in SAYS:
            raise UsageError(f"control message: expected a type of {', '.join(SAYS)}, got {message.get('type')!r}; name one")
        if message["type"] == "run.requested" and message.get("run") not in RUNS:
            raise UsageError(f"run.requested: expected a run of {', '.join(RUNS)}, got {message.get('run')!r}; name one")
        whole = {"id": uuid.uuid4().hex, "time": time.time(), **message}
        publisher.publish([(str(whole.get("problem", "")).encode(), msgspec.json.encode(whole))])
        return str(whole["id"])

    return announce


def request(settings: Settings, run: str, problem: str, **facts: Any) -> str:
    """Ask for a run of a problem's deployment; the keeper starts it. Returns the message's id."""
    return announcer(settings)({"type": "run.requested", "run": run, "problem": problem, **facts})
