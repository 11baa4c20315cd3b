"""The only artifact store that MLflow's handlers get in this process: the local root, behind `files`.

Where a run's, a model's or a trace's files lie stands in MLflow's database, as a URI. Whoever can edit it could name any folder
of this machine, or any host; so every URI but one at or below the root gives a store that refuses.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact import artifact_repository_registry
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import get_uri_scheme, validate_path_is_safe

from truing.infra.registry_guard.files import Files, IsFolder, Unsafe, parts


def wall(files: Files) -> None:
    """From now on every repository that MLflow makes here is a Walled one."""

    def walled(uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> ArtifactRepository:
        return Walled(files, _inside(files.root, uri), uri)

    artifact_repository_registry._artifact_repository_registry.get_artifact_repository = walled


class Walled(ArtifactRepository):  # type: ignore[misc]  # MLflow is untyped
    """Reads and listings below one folder of the root. Writes come through the door (`native`), never through here."""

    def __init__(self, files: Files, below: tuple[str, ...], uri: str) -> None:
        super().__init__(uri)
        self._files, self._below = files, below

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        inner = self._path(path) if path else ()
        found = _told(lambda: self._files.listing(self._below + inner))
        return [FileInfo("/".join((*inner, one.name)), one.folder, None if one.folder else one.size) for one in found]

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
        """A copy of one file below `dst_path`; handlers send that and remove it."""
        if dst_path is None:
            raise MlflowException("expected a folder to copy to, got none; name one", INVALID_PARAMETER_VALUE)
        path = self._path(artifact_path)
        target = Path(dst_path) / path[-1]
        self._download_file("/".join(path), str(target))
        return str(target)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        file = _told(lambda: self._files.open(self._below + self._path(remote_file_path)))
        try:
            with open(local_path, "wb") as copy:
                for chunk in file.chunks():
                    copy.write(chunk)
            os.utime(local_path, (file.changed, file.changed))
        finally:
            file.close()

    def _is_directory(self, artifact_path: str) -> bool:
        return bool(self.list_artifacts(artifact_path))

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        raise _closed("files are uploaded through the artifact route")

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        raise _closed("files are uploaded through the artifact route")

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        raise _closed("files are kept")

    def download_trace_data(self) -> dict[str, Any]:
        raise _closed("traces are not kept here")

    def _path(self, path: str) -> tuple[str, ...]:
        try:
            return parts(str(validate_path_is_safe(path)))
        except ValueError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None


def _inside(root: Path, uri: str) -> tuple[str, ...]:
    """The components of a local URI below the root."""
    if get_uri_scheme(uri) in ("", "file"):
        path = local_file_uri_to_path(uri)
        if path == str(root):
            return ()
        if path.startswith(f"{root}/"):
            try:
                return parts(path[len(str(root)) + 1 :])
            except ValueError:
                raise _closed("these files lie outside the artifact root") from None
    raise _closed("these files lie outside the artifact root")


def _told(step: Any) -> Any:
    """What goes wrong with a file, in MLflow's words and with its statuses."""
    try:
        return step()
    except FileNotFoundError as error:
        raise MlflowException(f"No such artifact: '{error.filename}'", RESOURCE_DOES_NOT_EXIST) from None
    except IsFolder as error:
        raise MlflowException(f"Artifact path refers to a directory, not a file: {error}", INVALID_PARAMETER_VALUE) from None
    except Unsafe as error:
        raise _closed(str(error)) from None
    except OSError as error:
        raise MlflowException(f"could not read it: {error.strerror}", RESOURCE_DOES_NOT_EXIST) from None


def _closed(why: str) -> MlflowException:
    return MlflowException(f"{why} [artifact.closed]", PERMISSION_DENIED)
