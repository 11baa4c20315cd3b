"""Runs, logged models and files: everybody writes their own, and nobody writes what a version holds."""

from __future__ import annotations

from truing.infra.registry_guard.acts import Act, normal, only
from truing.infra.registry_guard.books import OWNER
from truing.infra.registry_guard.files import parts
from truing.infra.registry_guard.ground import Ground
from truing.tasks.records import Record, Refusal

_WRITERS = ("trainer", "steward")
FROZEN = Refusal(
    code="artifact.frozen",
    reason="these files belong to a registered version and stay as they are",
    remedy="register the changed bytes as a new version",
)


class Place(Record, frozen=True):
    """Where an upload goes: the file, and the folder of the run or logged model that it is in."""

    path: tuple[str, ...]
    root: str


class Ownership:
    def __init__(self, ground: Ground) -> None:
        self._ground = ground

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
        act.found["stamps"] = {OWNER: act.user}
        return _writer(act, "makes runs") or _no_owner(act)

    def create_logged_model(self, act: Act) -> Refusal | None:
        act.found["stamps"] = {OWNER: act.user}
        return _writer(act, "logs models") or _no_owner(act)

    def run(self, act: Act) -> Refusal | None:
        refusal = _writer(act, "writes runs") or _no_owner(act)
        if refusal:
            return refusal
        run = act.body.run_id or getattr(act.body, "run_uuid", "")
        if self._ground.books.run(run).user != act.user:
            return Refusal(code="run.owner", reason=f"run {run} is not yours", remedy="write into your own runs")
        return None

    def logged_model(self, act: Act) -> Refusal | None:
        refusal = _writer(act, "writes logged models") or _no_owner(act)
        if refusal:
            return refusal
        named = {act.path.get("model_id", ""), getattr(act.body, "model_id", "")} - {""}
        for model in named:
            if self._ground.books.logged_model(model).user != act.user:
                return Refusal(code="model.owner", reason=f"logged model {model} is not yours", remedy="write into your own")
        return None

    def upload(self, user: str, role: str, path: str) -> Place | Refusal:
        """Where this login's file at `path` goes, if it may; else why not."""
        if role not in _WRITERS:
            return only("trainer or steward", "writes files")
        from mlflow.exceptions import MlflowException
        from mlflow.utils.uri import validate_path_is_safe

        nowhere = Refusal(
            code="artifact.path",
            reason=f"expected a file below a run or logged model of yours, got {path[:200]!r}",
            remedy="make a run or logged model, and upload below its artifact folder",
        )
        books = self._ground.books
        try:
            found = parts(str(validate_path_is_safe(path)))
            if len(found) >= 5 and found[1] == "models" and found[3] == "artifacts":
                owned = books.logged_model(found[2])
            elif len(found) >= 4 and found[2] == "artifacts":
                owned = books.run(found[1])
            else:
                return nowhere
        except (MlflowException, ValueError):
            return nowhere
        if owned.root is None or owned.user != user or "/".join(found[: owned.root.count("/") + 1]) != owned.root:
            return nowhere
        return Place(path=found, root=owned.root)


def _writer(act: Act, what: str) -> Refusal | None:
    return None if act.role in _WRITERS else only("trainer or steward", what)


def _no_owner(act: Act) -> Refusal | None:
    """The stamp of ownership is the registry's: in no list of tags, and not as a single key."""
    keys = [tag.key for tag in getattr(act.body, "tags", ())]
    keys += [getattr(act.body, "key", ""), act.path.get("tag_key", "")]
    if any(normal(key) == OWNER for key in keys):
        return Refusal(code="tag.stamp", reason=f"the tag {OWNER} is set by the registry only", remedy="leave it out")
    return None
