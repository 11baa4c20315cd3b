"""The loader's nouns: what the registry shows, what is served of it, and what is known of one problem."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from truing.infra.gateway.cache import State
from truing.infra.gateway.freshness import Freshness
from truing.tasks import seal
from truing.tasks.kinds.model import Model
from truing.tasks.problem import Problem
from truing.tasks.records import Record, Release


class Shown(Record, frozen=True):
    """What the registry shows as champion. `release` is the envelope's JSON, "" if none is attached."""

    version: str
    release: str


class Shelf(Protocol):
    """The registry as the gateway sees it. All raise Unavailable when it does not answer."""

    def champion(self, problem: str) -> Shown | None: ...

    def payload(self, problem: str, version: str) -> dict[str, bytes]: ...

    def head(self, problem: str) -> str:
        """The head's envelope as JSON, "" if none is attached."""
        ...

    def changes(self, since: str, wait_s: float) -> str:
        """Another word than `since` once something was written, the same one after `wait_s` seconds."""
        ...


@dataclass(frozen=True)
class Served:
    """One admitted release with the model built from its bytes."""

    problem: Problem
    model: Model
    release: Release
    files: dict[str, bytes]
    since: float

    @property
    def name(self) -> str:
        return f"{self.problem.name}@{self.release.sequence}"

    def expired(self, now: float) -> bool:
        return self.release.expires is not None and self.release.expires <= now


@dataclass
class Look:
    """What the loader knows of one problem. `current` is what the registry showed when the present state came about."""

    served: Served | None = None
    withdrawn: Release | None = None
    current: Shown | None = None
    keys: seal.Keys | None = None  # that were trusted then
    state: State | None = None
    refusal: str | None = None  # why the statement seen last is not served
    refused: Shown | None = None
    again: float = 0.0  # when that one is looked at once more
    freshness: Freshness = field(default_factory=Freshness)
