"""Runs, logged models and files: everybody writes their own, and nobody writes what a version holds."""

from __future__ import annotations

import posixpath
from pathlib import PurePosixPath

from truing.infra.registry_guard.acts import Act, normal, only
from truing.infra.registry_guard.books import OWNER
from truing.infra.registry_guard.rules import Rules
from truing.tasks.records import Refusal

_WRITERS = ("trainer", "steward")
FROZEN = Refusal(
    code="artifact.frozen",
    reason="these files belong to a registered version and stay as they are",
    remedy="register the changed bytes as a new version",
)


class AllRules(Rules):
    """The registry's rules and those of ownership."""

    def create_experiment(self, act: Act) -> Refusal | None:
        if act.role not in _WRITERS:
            return only("trainer or steward", "makes experiments")
        if act.body.artifact_location:
            return Refusal(
                code="experiment.location",
                reason="an experiment can't choose where its files lie",
                remedy="leave artifact_location out",
            )
        return None

    def tag_experiment(self, act: Act) -> Refusal | None:
        return None if act.role in _WRITERS else only("trainer or steward", "tags experiments")

    def create_run(self, act: Act) -> Refusal | None:
        return _writer(act, "makes runs") or _no_owner(act)

    def create_logged_model(self, act: Act) -> Refusal | None:
        return _writer(act, "logs models") or _no_owner(act)

    def own_run(self, act: Act) -> Refusal | None:
        refusal = _writer(act, "writes runs") or _no_owner(act)
        if refusal:
            return refusal
        run = act.body.run_id or getattr(act.body, "run_uuid", "")
        if self.books.run_owner(run) != act.user:
            return Refusal(code="run.owner", reason=f"run {run} is not yours", remedy="write into your own runs")
        return None

    def own_logged_model(self, act: Act) -> Refusal | None:
        refusal = _writer(act, "writes logged models") or _no_owner(act)
        if refusal:
            return refusal
        named = {act.path.get("model_id", ""), getattr(act.body, "model_id", "")} - {""}
        for model in named:
            if self.books.logged_model_owner(model) != act.user:
                return Refusal(code="model.owner", reason=f"logged model {model} is not yours", remedy="write into your own")
        return None

    def own_artifact(self, act: Act) -> Refusal | None:
        """Flask's artifact routes (delete, and put when MLflow does not serve it natively)."""
        root = self.artifact_root(act.user, act.path.get("artifact_path", ""))
        return root if isinstance(root, Refusal) else None

    def artifact_root(self, user: str, path: str) -> Refusal | str:
        """The folder of the run or logged model that `path` lies in, if this login may write there; else why not."""
        if user not in _WRITERS:
            return only("trainer or steward", "writes files")
        from mlflow.exceptions import MlflowException
        from mlflow.utils.uri import validate_path_is_safe

        nowhere = Refusal(
            code="artifact.path",
            reason=f"expected a file below a run or logged model of yours, got {path[:200]!r}",
            remedy="make a run or logged model, and upload below its artifact folder",
        )
        try:
            parts = PurePosixPath(posixpath.normpath(validate_path_is_safe(path))).parts
            if len(parts) >= 5 and parts[1] == "models" and parts[3] == "artifacts":
                root, owner = self.books.logged_model_root(parts[2]), self.books.logged_model_owner(parts[2])
            elif len(parts) >= 4 and parts[2] == "artifacts":
                root, owner = self.books.run_root(parts[1]), self.books.run_owner(parts[1])
            else:
                return nowhere
        except MlflowException:
            return nowhere
        if root is None or "/".join(parts[: root.count("/") + 1]) != root or owner != user:
            return nowhere
        if self.uploads.frozen(root):
            return FROZEN
        return root


def _writer(act: Act, what: str) -> Refusal | None:
    return None if act.role in _WRITERS else only("trainer or steward", what)


def _no_owner(act: Act) -> Refusal | None:
    """The stamp of ownership is the registry's: in no list of tags, and not as a single key."""
    keys = [tag.key for tag in getattr(act.body, "tags", ())]
    keys += [getattr(act.body, "key", ""), act.path.get("tag_key", "")]
    if any(normal(key) == OWNER for key in keys):
        return Refusal(code="tag.stamp", reason=f"the tag {OWNER} is set by the registry only", remedy="leave it out")
    return None
