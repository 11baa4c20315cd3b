"""MLflow's registry as it lies on this disk, read without MLflow.

Its database may have been written by anybody, so it is opened read-only, with plain SELECTs, no functions of its schema and a
limit on time; artifacts are read only below the artifact folder, and nothing through a link.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from truing.tasks.errors import Unavailable
from truing.tasks.release.versions import Model, Version
from truing.tasks.seal import read_tree

QUERY_S = 20.0  # a view or trigger planted in the database can't hold us longer
_STORE = "mlflow-artifacts:/"

T = TypeVar("T")


class Shelf:
    """MLflow's registry as it lies on this disk."""

    def __init__(self, folder: Path) -> None:
        self.database, self.artifacts = folder / "mlflow.db", folder / "artifacts"

    def model(self, problem: str) -> Model | None:
        """None if there is no such model. Raises Unavailable at what does not read."""
        with self._open() as rows:
            if not rows("SELECT 1 FROM registered_models WHERE name = ?", problem):
                return None
            tags = rows("SELECT key, value FROM registered_model_tags WHERE name = ?", problem)
            aliases = rows("SELECT alias, version FROM registered_model_aliases WHERE name = ?", problem)
        return Model(
            problem=problem,
            tags={str(key): str(value or "") for key, value in tags},
            aliases={str(alias): str(version) for alias, version in aliases},
        )

    def versions(self, problem: str) -> list[Version]:
        """All versions by rising number, their artifact folder as MLflow names it."""
        with self._open() as rows:
            found = rows(
                "SELECT version, creation_time, description, coalesce(storage_location, source), status FROM model_versions "
                "WHERE name = ? AND current_stage != 'Deleted_Internal' ORDER BY version",
                problem,
            )
            tags: dict[str, dict[str, str]] = {}
            for version, key, value in rows("SELECT version, key, value FROM model_version_tags WHERE name = ?", problem):
                tags.setdefault(str(version), {})[str(key)] = str(value or "")
        return [
            Version(
                problem=problem,
                version=str(int(version)),
                created=int(created or 0) / 1000.0,
                tags=tags.get(str(version), {}),
                description=str(description or ""),
                artifacts=str(location or ""),
                status=str(status),
            )
            for version, created, description, location, status in found
        ]

    def files(self, version: Version) -> dict[str, bytes]:
        """The bytes that lie where MLflow says. Raises ValueError for a place outside the artifact folder, or a link."""
        return self._read(version.artifacts, read_tree)

    def run_file(self, run: str, name: str) -> bytes | None:
        """One file of a run, None if there is no such. Raises ValueError for a place outside the artifact folder, or a link."""
        with self._open() as rows:
            found = rows("SELECT artifact_uri FROM runs WHERE run_uuid = ?", run)

        def read(folder: Path) -> bytes | None:
            path = folder / name
            if path.is_symlink() or path.resolve() != path.absolute():
                raise ValueError(f"expected a plain file, got {name!r} as a link")
            return path.read_bytes() if path.exists() else None

        return self._read(str(found[0][0]), read) if found else None

    def _read(self, place: str, read: Callable[[Path], T]) -> T:
        """What `read` makes of the folder that MLflow calls `place`."""
        if not place.startswith(_STORE):
            raise ValueError(f"expected a place below {_STORE}, got {place[:60]!r}")
        folder = self.artifacts / place.removeprefix(_STORE).strip("/")
        try:
            if self.artifacts.resolve() not in folder.resolve().parents or folder.resolve() != folder.absolute():
                raise ValueError(f"expected a plain folder below {self.artifacts}, got {place[:60]!r}")
            return read(folder)
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError to pathlib
            raise ValueError(f"{place[:60]!r} does not read: {error}") from None

    @contextmanager
    def _open(self) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
        """`rows(select, *values)` on the open database."""
        try:
            with closing(sqlite3.connect(f"{self.database.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as database:
                database.text_factory = lambda raw: raw.decode("utf-8", "replace")
                end = time.monotonic() + QUERY_S
                database.set_progress_handler(lambda: time.monotonic() > end, 10_000)
                database.execute("PRAGMA trusted_schema = OFF")
                yield lambda select, *values: database.execute(select, values).fetchall()
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise Unavailable(f"expected MLflow's database {self.database} to read, got: {error}; restore it") from None
