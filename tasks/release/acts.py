"""What stands now, folded from the registry's audit: who registered what, who decided what, what is frozen, pinned, asked for.

Guard and steward decide from this and from nothing else: MLflow's tags can be edited in its database, an audit line can't.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from truing.tasks.records import Approval, Envelope, Record, Refusal, Release, Standing
from truing.tasks.release.audit import Line, Mark
from truing.tasks.seal import APPROVAL_TYPE, STANDING_TYPE, open_envelope

# acts with power, as `Entry.act` of a line with outcome "done"; each with its `Entry.facts`
VERSION = "version"  # problem, version, payload, trainer
DECISION = "decision"  # problem, version, envelope (an Approval signed by the registry)
POLICY = "policy"  # problem, policy (its digest)
ANCHOR = "anchor"  # problem, version, reason
ROLLBACK = "rollback"  # problem, version, reason
FROZEN = "frozen"  # problem, value (true or false), reason
STANDING = "standing"  # problem, envelope (a Standing signed by the registry; decision "revoked" ends it)
VERDICT = "verdict"  # problem, version, envelope (by the gate key: the registry has opened it)
RELEASE = "release"  # problem, version, envelope (by the release key: the registry has opened it)


class Registered(Record, frozen=True):
    version: str
    payload: str
    trainer: str
    at: float
    n: int


class Decision(Record, frozen=True):
    """A person's word on a version. `line` is the digest of its audit record: the name of the act."""

    approval: Approval
    envelope: str
    n: int
    line: str


class Pinned(Record, frozen=True):
    version: str
    by: str
    reason: str
    at: float


class Asked(Record, frozen=True):
    """A person's request to serve an earlier version again."""

    version: str
    by: str
    reason: str
    at: float
    n: int
    line: str


class Allowed(Record, frozen=True):
    """A standing approval as given."""

    standing: Standing
    envelope: str
    n: int
    line: str


class Released(Record, frozen=True):
    """A release statement as it was attached; whoever needs more than its number opens the envelope."""

    version: str
    sequence: int
    envelope: str
    n: int


@dataclass
class Docket:
    """One problem's acts. Of decisions on a version the last counts; the ones before stay for the history.

    `verdicts` holds the envelope attached last, `released` the first statement of each sequence: there is no second one.
    """

    versions: dict[str, Registered] = field(default_factory=dict)
    decisions: dict[str, list[Decision]] = field(default_factory=dict)
    policy: str | None = None
    policies: list[tuple[str, str, float]] = field(default_factory=list)  # digest, by, at
    anchor: Pinned | None = None
    rollback: Asked | None = None
    frozen: bool = False
    frozen_by: str = ""
    standing: Allowed | None = None
    verdicts: dict[str, str] = field(default_factory=dict)
    released: dict[int, Released] = field(default_factory=dict)

    def decision(self, version: str) -> Decision | None:
        """The word that counts on a version."""
        return self.decisions[version][-1] if self.decisions.get(version) else None


class Acts:
    """The fold. `mark` is how far it has come; `keys` are the registry's public keys."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self.keys = tuple(keys)
        self.mark = Mark()
        self._dockets: dict[str, Docket] = {}

    def of(self, problem: str) -> Docket:
        return self._dockets.setdefault(problem, Docket())

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(sorted(self._dockets))

    def apply(self, line: Line) -> None:
        """Take in one checked line (`audit.follow`), in order. Lines that carry no power change nothing but the mark."""
        entry, facts = line.entry, line.entry.facts
        self.mark = Mark(n=entry.n, digest=line.digest)
        if entry.outcome != "done" or "problem" not in facts:
            return
        docket = self.of(facts["problem"])
        match entry.act:
            case "version":
                docket.versions[facts["version"]] = Registered(
                    version=facts["version"], payload=facts["payload"], trainer=facts["trainer"], at=entry.at, n=entry.n
                )
            case "decision":
                approval = open_envelope(facts["envelope"], Approval, APPROVAL_TYPE, self.keys)
                if not isinstance(approval, Refusal) and approval.version == facts["version"]:
                    decided = Decision(approval=approval, envelope=facts["envelope"], n=entry.n, line=line.digest)
                    docket.decisions.setdefault(facts["version"], []).append(decided)
            case "policy":
                docket.policy = facts["policy"]
                docket.policies.append((facts["policy"], entry.user, entry.at))
            case "anchor":
                docket.anchor = Pinned(version=facts["version"], by=entry.user, reason=facts["reason"], at=entry.at)
            case "rollback":
                docket.rollback = Asked(
                    version=facts["version"], by=entry.user, reason=facts["reason"], at=entry.at, n=entry.n, line=line.digest
                )
            case "frozen":
                docket.frozen, docket.frozen_by = facts["value"] != "false", entry.user
            case "standing":
                standing = open_envelope(facts["envelope"], Standing, STANDING_TYPE, self.keys)
                if not isinstance(standing, Refusal):
                    given = Allowed(standing=standing, envelope=facts["envelope"], n=entry.n, line=line.digest)
                    docket.standing = given if standing.decision == "approved" else None
            case "verdict":
                docket.verdicts[facts["version"]] = facts["envelope"]
            case "release":
                statement = _statement(facts["envelope"])
                if statement is not None and statement.version == facts["version"]:
                    made = Released(
                        version=statement.version, sequence=statement.sequence, envelope=facts["envelope"], n=entry.n
                    )
                    docket.released.setdefault(statement.sequence, made)


def _statement(text: str) -> Release | None:
    """The release in an envelope, unchecked: the registry has checked it before it wrote the line."""
    envelope = envelope_of(text)
    try:
        return None if envelope is None else msgspec.json.decode(base64.b64decode(envelope.payload), type=Release)
    except (msgspec.DecodeError, ValueError):
        return None


def envelope_of(text: str) -> Envelope | None:
    """An envelope from its JSON text, None if it is none."""
    try:
        return msgspec.json.decode(text, type=Envelope)
    except msgspec.DecodeError:
        return None
