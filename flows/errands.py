"""What the keeper does beside landing: it reads the control topic, starts deployments, and remembers both in the vault.

Every control message becomes one row of `vault/requests`, and its offset rides in that commit. A request is recorded only after
Prefect has accepted the run under the key of its (signed) id, so a crash in between, or a copy of it, starts no second run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import msgspec
import polars as pl

from truing.infra.calls import call
from truing.infra.control import RUNS, Askers, Request
from truing.infra.keys import keyring
from truing.infra.settings import Settings
from truing.tasks.errors import Unavailable
from truing.tasks.events.intake import app_of
from truing.tasks.events.stream import Place
from truing.tasks.records import Record
from truing.tasks.tables.lake import Vault

TABLE = "requests"
STALE_S = 3600.0  # a request older than this is history, not a wish
SETTLE_S = 1.0  # no new label for so long: the burst is over, learn from all of it
SURGE = 3
STEWARD = ("gate", "release", "rollback")  # the steward's acts: never startable by a message


class Start(Protocol):
    """Starts a deployment once per key; raises Unavailable when it can't be reached now.

    `parameters` stand beside those that the deployment has anyway.
    """

    def __call__(self, deployment: str, key: str, parameters: Mapping[str, Any] | None = None) -> str: ...


class Asked(Record, frozen=True):
    """What one control message comes to. `deployment` is what to start, or None; `act` and `word` say what was made of it."""

    problem: str
    act: str  # start | refused | ignored | noted
    word: str
    deployment: str | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    key: str = ""  # under which Prefect starts it once, however often it is asked


def decide(value: bytes | None, problems: Collection[str], *, askers: Askers, now: float) -> Asked:
    """A control message → what to do about it. Never raises for what was sent; never starts gate, release or rollback.

    What would start something is refused unless `askers` believe it.
    """
    try:
        message = msgspec.json.decode(value or b"", type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Asked(problem="", act="ignored", word=f"a control message does not read: {' '.join(str(error).split())[:150]}")
    problem = message.problem if message.problem in problems else ""
    asked = _decide(message, problem, problems, now)
    if asked.deployment is None:
        return asked
    if why := askers.refuse(message, now=now):
        return Asked(problem=problem, act="refused", word=f"{message.type}: {why}")
    return msgspec.structs.replace(asked, key=f"asked:{message.by}:{message.id[:64]}")


def _decide(message: Request, problem: str, problems: Collection[str], now: float) -> Asked:
    """What it comes to if it is believed."""
    if message.type == "model.ready" and message.outcome == "block" and problem and _number(message.version):
        return _repair(problem, message.version, f"v{message.version} of {problem} was blocked", message.time, now)
    if message.type != "run.requested":
        return Asked(problem=problem, act="noted", word=message.type[:60])
    run = message.run[:60]
    if run not in RUNS:
        why = "is the steward's act" if run in STEWARD else "is no run"
        return Asked(problem=problem, act="refused", word=f"run.requested: expected {', '.join(RUNS)}; {run!r} {why}")
    if run != "ingest" and not problem:
        return Asked(
            problem="", act="refused", word=f"run.requested {run}: expected a problem of {', '.join(sorted(problems))}"
        )
    if message.repair and run == "improve":
        if not _number(message.repair):
            return Asked(problem=problem, act="refused", word="run.requested improve: expected repair to be a version's number")
        return _repair(problem, message.repair, f"a repair of v{message.repair} was asked for", message.time, now)
    if message.time is not None and now - message.time > STALE_S:
        return Asked(problem=problem, act="ignored", word=f"run.requested {run}: asked {(now - message.time) / 3600:.1f} h ago")
    deployment = "ingest/all" if run == "ingest" else f"{run}/{problem}"
    return Asked(problem=problem, act="start", word=f"{deployment} was asked for", deployment=deployment)


def _repair(problem: str, version: str, word: str, asked: float | None, now: float) -> Asked:
    """Improve with a version to repair: whether there is anything to repair is found out there."""
    if asked is not None and now - asked > STALE_S:
        return Asked(problem=problem, act="ignored", word=f"{word}, {(now - asked) / 3600:.1f} h ago")
    return Asked(
        problem=problem, act="start", word=f"improve/{problem}: {word}", deployment=f"improve/{problem}",
        parameters={"repair": version},
    )  # fmt: skip


def _number(version: str) -> bool:
    return version.isascii() and version.isdigit() and len(version) < 10


def prefect(settings: Settings) -> Start:
    """Starts deployments through Prefect's API: no client library, no retries that would hold up the keeper."""
    user, _, password = keyring(settings).read("prefect-auth").decode().partition(":")
    ids: dict[str, str] = {}

    def start(deployment: str, key: str, parameters: Mapping[str, Any] | None = None) -> str:
        login = (user, password)
        if deployment not in ids:
            flow, _, name = deployment.partition("/")
            url = f"{settings.prefect_url}/deployments/name/{flow}/{name}"
            found = call("GET", url, login=login, timeout=3.0, missing=True, ca=settings.tls.ca)
            if found is None:
                raise Unavailable(f"expected the deployment {deployment} in Prefect, found none; is the runner up?")
            ids[deployment] = found["id"]
        body = {"state": {"type": "SCHEDULED"}, "idempotency_key": key, "tags": ["requested"], "parameters": parameters or {}}
        url = f"{settings.prefect_url}/deployments/{ids[deployment]}/create_flow_run"
        made = call("POST", url, body, login=login, timeout=5.0, missing=True, ca=settings.tls.ca)
        if made is None:
            ids.pop(deployment)
            raise Unavailable(f"expected the deployment {deployment} in Prefect, it is gone; is the runner up?")
        return str(made["id"])

    return start


# --- remembering --------------------------------------------------------------------------------------------------------------


def remember(vault: Vault, id: str, problem: str, seq: int, what: Mapping[str, Any], app: tuple[str, int]) -> None:
    """One line of `vault/requests` with its transaction; repeated, it does nothing."""
    row = {"problem": [problem], "id": [id], "seq": [seq], "json": [msgspec.json.encode(what, order="sorted").decode()]}
    vault.append(TABLE, pl.DataFrame(row), app=app)


def control_places(vault: Vault, group: str, topic: str) -> dict[int, Place]:
    """Where to go on in the control topic."""
    found: dict[int, Place] = {}
    for id in vault.read(TABLE, ["id"])["id"]:
        if id.startswith(f"{topic}:"):
            partition, epoch = (int(part) for part in id.rsplit(":", 3)[1:3])
            following = vault.transaction(TABLE, app_of(group, topic, partition, epoch))
            if following is not None and (partition not in found or found[partition].epoch < epoch):
                found[partition] = Place(epoch=epoch, offset=following)
    return found


# --- the trigger of improve ---------------------------------------------------------------------------------------------------


class Trigger:
    """Counts newly labelled trainable rows of one problem and says when an improve is due. Its mark lives in the vault."""

    def __init__(self, vault: Vault, problem: str, *, after: int, labelled: int) -> None:
        self.vault = vault
        self.problem = problem
        self.after = after
        self.labelled = labelled  # trainable rows with a target, ever
        self.mark = vault.transaction(TABLE, self.app) or 0
        self._last = (labelled, 0.0)  # labelled, since when

    @property
    def app(self) -> str:
        return f"improve:{self.problem}"

    @property
    def waiting(self) -> int:
        return self.labelled - self.mark

    def pull(self, start: Callable[[str, str], Any], *, now: float) -> bool:
        """Start an improve if enough rows wait and their burst is over, or is SURGE times as long. `now` is any steady clock.

        The key is the old mark, so a crash before it is moved starts no second run. Raises Unavailable: pull again.
        """
        now_at = self.labelled
        if now_at != self._last[0]:
            self._last = (now_at, now)
        settled = now - self._last[1] >= SETTLE_S or self.waiting >= SURGE * self.after
        if self.waiting < self.after or not settled:
            return False
        start(f"improve/{self.problem}", f"improve:{self.problem}:{self.mark}")
        what = {"act": "start", "deployment": f"improve/{self.problem}", "rows": now_at - self.mark}
        remember(self.vault, f"improve:{self.problem}:{self.mark}", self.problem, now_at, what, (self.app, now_at))
        self.mark = now_at
        return True
