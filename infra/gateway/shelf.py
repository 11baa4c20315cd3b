"""The registry as the gateway reads it: two questions over HTTP, with a login that only reads."""

from __future__ import annotations

from truing.infra.gateway.loader import Shown
from truing.tasks.errors import DataError, Refused, Unavailable
from truing.tasks.release.registry import Registry
from truing.tasks.release.versions import read_version


class RegistryShelf:
    """`Shelf` over MLflow's REST. Raises Unavailable for whatever keeps it from answering."""

    def __init__(self, url: str, login: tuple[str, str], *, timeout_s: float = 10.0) -> None:
        self._registry = Registry(url, *login, timeout_s=timeout_s)

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
