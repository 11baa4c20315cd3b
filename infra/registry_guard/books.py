"""MLflow's own stores in this process, as the guard uses them: to find where bytes lie, and to write the view that people read.

Nothing read here is believed. Stamps of ours ride along in MLflow's own insert, so that a row is never seen without them.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from typing import Any

from truing.infra.registry_guard.files import Files, below_root
from truing.tasks.records import Record
from truing.tasks.release.versions import Version

OWNER = "truing.by"  # tag of a run or logged model: the login that made it
_KEPT = 50_000  # owners kept in memory


class Held(Record, frozen=True):
    """A version as MLflow's database has it, and the folder below the artifact root that it names ("" for none of ours)."""

    version: Version
    root: str


class Owned(Record, frozen=True):
    """Who made a run or logged model, and where its files go below the artifact root; None for any other place."""

    user: str | None
    root: str | None


class Books:
    """One per server: MLflow keeps its stores in module globals."""

    def __init__(self, files: Files) -> None:
        from mlflow.server.handlers import _get_model_registry_store, _get_tracking_store

        self.files = files
        self.tracking: Any = _get_tracking_store()
        self.registry: Any = _get_model_registry_store()
        self._owned: dict[str, Owned] = {}
        self._ride_along()

    # --- versions and models
    def version(self, problem: str, version: str) -> Held:
        """Raises MlflowException when there is none."""
        raw = self.registry.get_model_version(problem, version)
        root = below_root(self.registry.get_model_version_download_uri(problem, version))
        return Held(version=_read(raw), root=root or "")

    def versions(self) -> list[Version]:
        """All versions of all problems."""
        found: list[Version] = []
        token = None
        while True:
            page = self.registry.search_model_versions(None, max_results=1000, page_token=token)
            found += [_read(raw) for raw in page]
            token = page.token
            if not token:
                return found

    def highest(self, problem: str) -> int:
        """The highest version number that the database knows of a problem; 0 if none."""
        newest = self.registry.search_model_versions(f"name='{problem}'", max_results=1, order_by=["version_number DESC"])
        return int(newest[0].version) if newest else 0

    def model(self, problem: str) -> dict[str, str]:
        """The tags of one registered model. Raises MlflowException when there is none."""
        return dict(self.registry.get_registered_model(problem).tags)

    def models(self) -> dict[str, dict[str, str]]:
        """The tags of every registered model."""
        found: dict[str, dict[str, str]] = {}
        token = None
        while True:
            page = self.registry.search_registered_models(None, max_results=1000, page_token=token)
            found |= {raw.name: dict(raw.tags) for raw in page}
            token = page.token
            if not token:
                return found

    def payload(self, root: str, *, settle: bool = False) -> str | None:
        """Digest of the bytes that lie below `root` now; None if there are none. Raises Unsafe at a link and the like."""
        return self.files.digest(tuple(root.split("/")), settle=settle) if root else None

    def forget_version(self, problem: str, version: str) -> None:
        self.registry.delete_model_version(problem, version)

    # --- the view
    def show_version(self, problem: str, version: str, tags: dict[str, str | None]) -> None:
        """Write these tags; None takes one away."""
        from mlflow.entities.model_registry import ModelVersionTag

        for key, value in tags.items():
            if value is None:
                self.registry.delete_model_version_tag(problem, version, key)
            else:
                self.registry.set_model_version_tag(problem, version, ModelVersionTag(key, value))

    def show_model(self, problem: str, tags: dict[str, str | None]) -> None:
        from mlflow.entities.model_registry import RegisteredModelTag

        for key, value in tags.items():
            if value is None:
                self.registry.delete_registered_model_tag(problem, key)
            else:
                self.registry.set_registered_model_tag(problem, RegisteredModelTag(key, value))

    # --- runs and logged models: they carry no power, so what was seen of them once is good enough
    def run(self, run: str) -> Owned:
        """Raises MlflowException when there is none."""
        if run not in self._owned:
            raw = self.tracking.get_run(run)
            self._keep(run, Owned(user=raw.data.tags.get(OWNER), root=below_root(raw.info.artifact_uri)))
        return self._owned[run]

    def logged_model(self, model: str) -> Owned:
        if model not in self._owned:
            raw = self.tracking.get_logged_model(model)
            self._keep(model, Owned(user=raw.tags.get(OWNER), root=below_root(raw.artifact_location)))
        return self._owned[model]

    def _keep(self, name: str, owned: Owned) -> None:
        if len(self._owned) >= _KEPT:
            self._owned.clear()
        self._owned[name] = owned

    # --- stamps
    def _ride_along(self) -> None:
        """MLflow's handlers call these three; from now on they bring the stamp of the request's act."""
        from mlflow.entities import LoggedModelTag, RunTag
        from mlflow.entities.model_registry import ModelVersionTag

        create_run, create_model = self.tracking.create_run, self.tracking.create_logged_model
        create_version = self.registry.create_model_version

        def run(experiment_id: str, user_id: str, start_time: int, tags: list[Any], run_name: str) -> Any:
            made = create_run(experiment_id, user_id, start_time, [*tags, *(RunTag(*pair) for pair in _stamps())], run_name)
            self._keep(made.info.run_id, Owned(user=_user(), root=below_root(made.info.artifact_uri)))
            return made

        def model(*args: Any, tags: list[Any] | None = None, **more: Any) -> Any:
            made = create_model(*args, tags=[*(tags or ()), *(LoggedModelTag(*pair) for pair in _stamps())], **more)
            self._keep(made.model_id, Owned(user=_user(), root=below_root(made.artifact_location)))
            return made

        def version(*args: Any, tags: list[Any] | None = None, **more: Any) -> Any:
            stamps = _stamps()
            given = [tag for tag in tags or () if tag.key not in {key for key, _ in stamps}]
            return create_version(*args, tags=[*given, *(ModelVersionTag(*pair) for pair in stamps)], **more)

        self.tracking.create_run, self.tracking.create_logged_model = run, model
        self.registry.create_model_version = version


def _read(raw: Any) -> Version:
    return Version(
        problem=raw.name,
        version=str(raw.version),
        created=raw.creation_timestamp / 1000.0,
        tags=dict(raw.tags),
        description=raw.description or "",
        aliases=tuple(raw.aliases or ()),
    )


def _stamps() -> list[tuple[str, str]]:
    """What the act of this request stamps on the row that it makes: its rule has said so."""
    act = _act()
    return list(act.found.get("stamps", {}).items()) if act else []


def _user() -> str | None:
    act = _act()
    return act.user if act else None


def _act() -> Any:
    from flask import g, has_request_context

    return g.get("truing_act") if has_request_context() else None


class Uploads:
    """Which artifact folders are frozen because a version holds them, and which are being written right now.

    One lock decides between the two, so no upload that began before a registration can end after it.
    """

    def __init__(self, frozen: set[str]) -> None:
        self._lock = threading.Lock()
        self._frozen = frozen
        self._busy: Counter[str] = Counter()

    def begin(self, root: str, path: tuple[str, ...]) -> bool:
        """False if the file at `path`, somewhere below `root`, is in a frozen folder; else `root` is busy until `end`."""
        with self._lock:
            if any("/".join(path[:length]) in self._frozen for length in range(1, len(path) + 1)):
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
