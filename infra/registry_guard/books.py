"""What the guard looks up for itself: MLflow's own stores in this process, and the artifact bytes on this disk."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from truing.tasks.records import Record, Release
from truing.tasks.release.versions import Version, accepted_policy, is_frozen, open_releases
from truing.tasks.seal import Facts, Keys, read_tree, tree_digest

OWNER = "truing.by"  # tag of a run or logged model: the login that made it, stamped here


class Held(Record, frozen=True):
    """A registered version and where its bytes lie below the artifact root."""

    version: Version
    root: str


class Books:
    """Reads and stamps. `artifacts` is the local artifact root."""

    def __init__(self, artifacts: Path, keys: Keys) -> None:
        from mlflow.server.handlers import _get_model_registry_store, _get_tracking_store

        self.artifacts, self.keys = artifacts, keys
        self.tracking: Any = _get_tracking_store()
        self.registry: Any = _get_model_registry_store()

    # --- versions and models
    def version(self, problem: str, version: str) -> Held:
        """Raises MlflowException when there is none."""
        return self._held(self.registry.get_model_version(problem, version))

    def versions(self, problem: str | None = None) -> list[Held]:
        """All versions of one problem, or of all, by rising number."""
        found: list[Held] = []
        token = None
        while True:
            page = self.registry.search_model_versions(
                f"name='{problem}'" if problem else None, max_results=1000, page_token=token
            )
            found += [self._held(raw) for raw in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda held: held.version.number)

    def model_tags(self, problem: str) -> dict[str, str]:
        return dict(self.registry.get_registered_model(problem).tags)

    def champion(self, problem: str) -> str | None:
        aliases = self.registry.get_registered_model(problem).aliases
        return str(aliases["champion"]) if "champion" in aliases else None

    def releases(self, problem: str) -> list[Release]:
        """Releases whose signature holds, by rising sequence."""
        return open_releases([held.version for held in self.versions(problem)], self.keys)

    def payload(self, root: str) -> str | None:
        """Digest of the bytes that lie below `root` now; None if there are none. Raises ValueError at a link."""
        files = read_tree(self.artifacts / root)
        return tree_digest(files) if files else None

    def facts(
        self, held: Held, *, actor: str, roles: frozenset[str], decision: str | None = None, reason: str | None = None
    ) -> Facts:
        """Everything `admit` asks about a version, from the bytes and tags as they are at this moment."""
        version = held.version
        tags = self.model_tags(version.problem)
        serving = self.champion(version.problem)
        return Facts(
            problem=version.problem,
            version=version.version,
            payload=self.payload(held.root),
            verdict=version.verdict,
            approval=version.stamp,
            release=version.release,
            policy=accepted_policy(version.problem, tags, self.keys),
            trainer=version.trainer,
            actor=actor,
            decision=decision,
            reason=version.tags.get("approval.reason", "") if reason is None else reason,
            roles=roles,
            frozen=is_frozen(tags),
            champion=None
            if serving in (None, version.version)
            else self.version(version.problem, str(serving)).version.payload,
        )

    def stamp_version(self, problem: str, version: str, tags: dict[str, str]) -> None:
        from mlflow.entities.model_registry import ModelVersionTag

        for key, value in tags.items():
            self.registry.set_model_version_tag(problem, version, ModelVersionTag(key, value))

    def stamp_model(self, problem: str, tags: dict[str, str]) -> None:
        from mlflow.entities.model_registry import RegisteredModelTag

        for key, value in tags.items():
            self.registry.set_registered_model_tag(problem, RegisteredModelTag(key, value))

    def _held(self, raw: Any) -> Held:
        location = self.registry.get_model_version_download_uri(raw.name, raw.version)
        return Held(
            version=Version(
                problem=raw.name,
                version=str(raw.version),
                created=raw.creation_timestamp / 1000.0,
                tags=dict(raw.tags),
                aliases=tuple(raw.aliases or ()),
            ),
            root=below_root(location) or "",
        )

    # --- runs and logged models
    def run_owner(self, run: str) -> str | None:
        owner: str | None = self.tracking.get_run(run).data.tags.get(OWNER)
        return owner

    def logged_model_owner(self, model: str) -> str | None:
        owner: str | None = self.tracking.get_logged_model(model).tags.get(OWNER)
        return owner

    def logged_model_root(self, model: str) -> str | None:
        return below_root(self.tracking.get_logged_model(model).artifact_location)

    def run_root(self, run: str) -> str | None:
        return below_root(self.tracking.get_run(run).info.artifact_uri)

    def own_run(self, run: str, user: str) -> None:
        from mlflow.entities import RunTag

        self.tracking.set_tag(run, RunTag(OWNER, user))

    def own_logged_model(self, model: str, user: str) -> None:
        from mlflow.entities import LoggedModelTag

        self.tracking.set_logged_model_tags(model, [LoggedModelTag(OWNER, user)])


def below_root(uri: str) -> str | None:
    """`mlflow-artifacts:/1/models/m-x/artifacts` → `1/models/m-x/artifacts`; None for any other store."""
    scheme, _, path = uri.partition(":")
    return path.strip("/") if scheme == "mlflow-artifacts" and path.strip("/") else None


class Uploads:
    """Which artifact folders are frozen because a version holds them, and which are being written right now.

    One lock decides between the two, so no upload that began before a registration can end after it.
    """

    def __init__(self, frozen: set[str]) -> None:
        self._lock = threading.Lock()
        self._frozen = frozen
        self._busy: Counter[str] = Counter()

    def frozen(self, root: str) -> bool:
        with self._lock:
            return root in self._frozen

    def begin(self, root: str) -> bool:
        """False if the folder is frozen; else it counts as busy until `end`."""
        with self._lock:
            if root in self._frozen:
                return False
            self._busy[root] += 1
            return True

    def end(self, root: str) -> None:
        with self._lock, suppress(KeyError):
            self._busy[root] -= 1
            if self._busy[root] <= 0:
                del self._busy[root]

    def freeze(self, root: str) -> bool:
        """False while somebody still writes there. Frozen for the life of the server, even if the registration fails later."""
        with self._lock:
            if self._busy.get(root):
                return False
            self._frozen.add(root)
            return True
