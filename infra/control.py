"""Announcements and requests on the control topic: what steward and monitor say, and `run.requested` for ingest, curate,
improve and monitor. Never for a gate, a release or a rollback.

Whoever can write the topic can write anything, so what starts a run is believed for a proof, as an event is: `by` names who
asks and `proof` is `mac:` + HMAC-SHA256 over all that is used. "operator" holds the stack's control key and may ask for all of
them; so does the steward, whose blocked versions start a repair; a source signs with its own key and may ask for what
`[control]` in problem.toml lets it. The id is signed too, and names the run in Prefect: who repeats a request starts nothing.

    model.ready         a verdict stands: `outcome` pass and inconclusive wait for a person, block does not
    model.released      another version serves       model.rolled-back   an earlier one serves again
    model.withdrawn     nothing serves any more      approval.expiring   what serves stops at `expires`
    alert.raised        traffic, or a finding of the steward, that a person should look at
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, get_args

import msgspec

from truing.infra.keys import Keyring, keyring
from truing.infra.settings import Settings
from truing.tasks import seal
from truing.tasks.errors import Unavailable, UsageError
from truing.tasks.problem import Problem, Run
from truing.tasks.records import Record

OPERATOR = "operator"
AHEAD_S = 300.0  # how far the clock of who asks may run ahead
RUNS: tuple[str, ...] = get_args(Run)
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


class Request(msgspec.Struct, frozen=True):
    """A control message as far as it may start something."""

    type: str
    problem: str = ""
    run: str = ""
    id: str = ""
    time: float | None = None
    repair: str = ""  # run.requested improve: the number of a blocked version to repair
    version: str = ""  # model.ready: the version judged, and what the gate said
    outcome: str = ""
    by: str = ""
    proof: str = ""


class Askers(Record, frozen=True):
    """Who may ask: the operator's key, and {problem: {source: (key, runs)}}."""

    operator: bytes
    sources: dict[str, dict[str, tuple[bytes, frozenset[str]]]]

    @classmethod
    def of(cls, ring: Keyring, problems: Mapping[str, Problem]) -> Askers:
        found: dict[str, dict[str, tuple[bytes, frozenset[str]]]] = {}
        for name, problem in problems.items():
            names = {source for asking in problem.control.values() for source in asking}
            found[name] = {
                one: (ring.source(name, one), frozenset(run for run, asking in problem.control.items() if one in asking))
                for one in sorted(names)
            }
        return cls(operator=ring.read("control"), sources=found)

    def refuse(self, asked: Request, *, now: float) -> str | None:
        """Why this message may start nothing, in a few words; None if it may. `now` is the reader's clock, Unix seconds."""
        if not asked.by or not asked.proof:
            return "expected it signed by the operator or a source, got no proof"
        if not asked.id or asked.time is None:
            return "expected an id and a time in what is signed, got none"
        if asked.by == OPERATOR:
            key, runs = self.operator, frozenset(RUNS)
        else:
            known = self.sources.get(asked.problem, {}).get(asked.by)
            if known is None:
                return "expected the operator or a source that [control] of the problem names, got another"
            key, runs = known
        if not seal.mac_matches(key, asked.proof.removeprefix("mac:"), *_signed(asked)):
            return f"the proof is not by the key of {asked.by}, or the message was altered"
        if asked.type == "run.requested" and asked.run not in runs:
            return f"{asked.by} may ask for {', '.join(sorted(runs))}, not for this"
        if asked.type != "run.requested" and asked.by != OPERATOR:
            return f"{asked.by} may ask for runs, not announce a verdict"
        if asked.time > now + AHEAD_S:
            return f"its time is {asked.time - now:.0f} s ahead of the reader's clock"
        return None


def signed(message: Mapping[str, Any], key: bytes, by: str = OPERATOR) -> dict[str, Any]:
    """The message with its proof; `id` and `time` are added where absent."""
    whole = {"id": uuid.uuid4().hex, "time": time.time(), **message, "by": by}
    asked = msgspec.convert(whole, Request)
    return whole | {"proof": "mac:" + seal.mac(key, *_signed(asked))}


def _signed(asked: Request) -> tuple[str, ...]:
    """All that is used, for the MAC; "control" keeps it apart from events, which share the sources' keys."""
    at = "" if asked.time is None else f"{asked.time:.6f}"
    names = (asked.type, asked.problem, asked.run, asked.repair, asked.version, asked.outcome)
    return ("control", asked.by, asked.id, at, *names)


def announcer(settings: Settings) -> Callable[[dict[str, Any]], str]:
    """A function that publishes one message, acknowledged, and returns its id; `id` and `time` are added where absent.

    Who holds the control key signs what it says; of others (a monitor's alert) nothing is started, so nothing need be proven.
    Raises UsageError for what the topic does not carry, Unavailable when the broker does not take it.
    """
    from truing.infra.broker import connection
    from truing.tasks.events.stream import Publisher

    key: bytes | None = None
    with suppress(Unavailable):
        key = keyring(settings).read("control")
    publisher = Publisher(connection(settings), settings.kafka.control)

    def announce(message: dict[str, Any]) -> str:
        if message.get("type") not in SAYS:
            raise UsageError(f"control message: expected a type of {', '.join(SAYS)}, got {message.get('type')!r}; name one")
        if message["type"] == "run.requested" and message.get("run") not in RUNS:
            raise UsageError(f"run.requested: expected a run of {', '.join(RUNS)}, got {message.get('run')!r}; name one")
        whole = {"id": uuid.uuid4().hex, "time": time.time(), **message}
        if key is not None:
            whole = signed(whole, key)
        publisher.publish([(str(whole.get("problem", "")).encode(), msgspec.json.encode(whole))])
        return str(whole["id"])

    return announce


def request(settings: Settings, run: str, problem: str, **facts: Any) -> str:
    """Ask, as the operator, for a run of a problem's deployment; the keeper starts it. Returns the message's id.

    Raises Unavailable without the control key, which `truing up` made.
    """
    keyring(settings).read("control")
    return announcer(settings)({"type": "run.requested", "run": run, "problem": problem, **facts})
