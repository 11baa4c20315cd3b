"""The registry as the gateway reads it: four questions over HTTP, with a login that only reads."""

from __future__ import annotations

from truing.infra.gateway.served import Shown
from truing.tasks.errors import DataError, Refused, Unavailable
from truing.tasks.release.registry import Registry
from truing.tasks.release.versions import read_version


class RegistryShelf:
    """`Shelf` over MLflow's REST. Raises Unavailable for whatever keeps it from answering."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def champion(self, problem: str) -> Shown | None:
        """One request, so that version and statement are of the same moment. None before the first release."""
        try:
            raw = self._registry.rest.get("/registered-models/alias", name=problem, alias="champion")["model_version"]
        except (DataError, Refused):  # no such alias, or no such model yet: MLflow calls an unknown model forbidden
            return None
        version = read_version(problem, raw)
        return Shown(version=version.version, release=version.release or "")

    def payload(self, problem: str, version: str) -> dict[str, bytes]:
        try:
            return self._registry.payload(problem, version)
        except (DataError, Refused) as error:
            raise Unavailable(str(error)) from None

    def head(self, problem: str) -> str:
        try:
            return self._registry.model(problem).tags.get("release.head", "")
        except (DataError, Refused):
            return ""

    def changes(self, since: str, wait_s: float) -> str:
        return self._registry.rest.changes(since, wait_s)
