"""What the registry says about one version or one model, as plain records; nothing here is believed, only read."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from truing.tasks.records import Approval, Candidate, Record, Refusal, Release
from truing.tasks.seal import RELEASE_TYPE, Keys, open_envelope

POLICY_TYPE = "application/vnd.truing.policy.v1+json"  # an Approval whose `verdict` is the accepted policy's digest
_NUMBERED = re.compile(r"release\.(\d+)")


class Version(Record, frozen=True):
    """One registered model version with its tags. `artifacts` is its folder below the artifact root."""

    problem: str
    version: str
    created: float
    tags: dict[str, str]
    description: str = ""
    artifacts: str = ""
    aliases: tuple[str, ...] = ()
    status: str = "READY"

    @property
    def number(self) -> int:
        return int(self.version)

    @property
    def payload(self) -> str | None:
        return self.tags.get("payload")

    @property
    def parent(self) -> str | None:
        return self.tags.get("parent") or None

    @property
    def trainer(self) -> str | None:
        return self.tags.get("trainer")

    @property
    def verdict(self) -> str | None:
        """The envelope, as text."""
        return self.tags.get("verdict")

    @property
    def outcome(self) -> str | None:
        """pass, block or inconclusive, as the tag says; the envelope decides."""
        return self.tags.get("verdict.outcome")

    @property
    def approval(self) -> str | None:
        """What a person wrote: approved, rejected or revoked. The stamp decides."""
        return self.tags.get("approval")

    @property
    def stamp(self) -> str | None:
        """The approval's envelope, as text."""
        return self.tags.get("approval.stamp")

    @property
    def release(self) -> str | None:
        """The newest release statement of this version, as text."""
        return self.tags.get("release")

    @property
    def candidate(self) -> Candidate | None:
        raw = self.tags.get("candidate")
        try:
            return msgspec.json.decode(raw, type=Candidate) if raw else None
        except msgspec.DecodeError:
            return None

    def statements(self) -> dict[int, str]:
        """Every release statement of this version by sequence (a rollback adds another)."""
        return {int(match[1]): value for key, value in self.tags.items() if (match := _NUMBERED.fullmatch(key))}


class Model(Record, frozen=True):
    """The registered model of one problem: its tags and aliases."""

    problem: str
    tags: dict[str, str]
    aliases: dict[str, str]

    @property
    def champion(self) -> str | None:
        return self.aliases.get("champion")

    @property
    def anchor(self) -> str | None:
        return self.tags.get("anchor") or None

    @property
    def frozen(self) -> bool:
        return is_frozen(self.tags)


def is_frozen(tags: dict[str, str]) -> bool:
    """`frozen` holds whatever its words, unless it says no: a misspelt freeze must not be a thaw."""
    return tags.get("frozen", "false").strip().casefold() not in ("", "false", "no", "0")


def accepted_policy(problem: str, tags: dict[str, str], keys: Keys) -> str | None:
    """Digest of the accepted policy, if the registry's stamp on it holds: an edited tag alone is worth nothing."""
    accepted = tags.get("policy.accepted")
    stamp = open_envelope(tags.get("policy.stamp"), Approval, POLICY_TYPE, keys.registry)
    if isinstance(stamp, Refusal) or stamp.problem != problem or stamp.verdict != accepted or stamp.decision != "approved":
        return None
    return accepted


def open_releases(versions: list[Version], keys: Keys) -> list[Release]:
    """Every release statement on these versions whose signature holds, by rising sequence."""
    found: dict[int, Release] = {}
    for version in versions:
        for text in (*version.statements().values(), *([version.release] if version.release else [])):
            release = open_envelope(text, Release, RELEASE_TYPE, keys.release)
            if isinstance(release, Release) and (release.problem, release.version) == (version.problem, version.version):
                found[release.sequence] = release
    return [found[sequence] for sequence in sorted(found)]


def read_version(problem: str, raw: dict[str, Any]) -> Version:
    """MLflow's JSON of a model version."""
    return Version(
        problem=problem,
        version=str(raw["version"]),
        created=int(raw.get("creation_timestamp", 0)) / 1000.0,
        tags={tag["key"]: tag.get("value", "") for tag in raw.get("tags", [])},
        description=raw.get("description", ""),
        aliases=tuple(raw.get("aliases", ())),
        status=raw.get("status", "READY"),
    )


def read_model(problem: str, raw: dict[str, Any]) -> Model:
    """MLflow's JSON of a registered model."""
    return Model(
        problem=problem,
        tags={tag["key"]: tag.get("value", "") for tag in raw.get("tags", [])},
        aliases={alias["alias"]: str(alias["version"]) for alias in raw.get("aliases", [])},
    )
