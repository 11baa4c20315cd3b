"""The guard around MLflow's Flask app: before every request it asks the rules, after it the registry stamps what was done.

It never raises: an exception would become a 500, and MLflow's clients would try again for minutes. Guarded writes are taken one
at a time, so what a rule has read is still so when MLflow writes.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from truing.infra.keys import Keyring
from truing.infra.registry_guard.acts import Act, answer
from truing.infra.registry_guard.audit import Audit
from truing.infra.registry_guard.books import Books, Uploads
from truing.infra.registry_guard.ownership import FROZEN, AllRules
from truing.infra.registry_guard.routes import READS, RULED
from truing.infra.registry_guard.stamps import Stamps
from truing.tasks.errors import TruingError
from truing.tasks.records import Refusal

_log = logging.getLogger("truing.registry")
_SAFE = ("GET", "HEAD", "OPTIONS")
# runs and files are many and carry no power: only their refusals are audited (a version's bytes are bound by its payload)
_UNAUDITED = frozenset({"create_run", "own_run", "create_logged_model", "own_logged_model", "own_artifact", "graphql"})


class Guard:
    """One per server. `install` hooks it into MLflow's Flask app; `asgi.Gate` asks it about the routes Flask never sees."""

    def __init__(
        self, root: Path, keyring: Keyring, problems: Path, audit: Audit, *, clock: Callable[[], float] = time.time
    ) -> None:
        keys = keyring.public()
        self.books = Books(root / "artifacts", keys)
        self.uploads = Uploads({held.root for held in self.books.versions()})
        self.rules = AllRules(self.books, self.uploads)
        self.stamps = Stamps(self.books, keyring.read("registry"), problems)
        self.audit = audit
        self.clock = clock
        self._turn = threading.Lock()
        self._boot, self._changes = secrets.token_hex(4), 0
        self._mend()

    def _mend(self) -> None:
        """Stamp versions whose registration was cut short between MLflow's write and ours: only a trainer can make one."""
        for held in self.books.versions():
            if held.version.trainer is None:
                name, version = held.version.problem, held.version.version
                payload = self.books.payload(held.root) or ""
                self.books.stamp_version(name, version, {"payload": payload, "trainer": "trainer"})
                self.audit.add("registry", "version.mend", f"{name}/{version}", "done", f"payload {payload}", self.clock())

    def install(self) -> None:
        """Ask before MLflow's own permission check does: it answers without reasons, and nothing would be audited."""
        from mlflow.server import app
        from mlflow.server.auth import _before_request

        hooks = app.before_request_funcs.setdefault(None, [])
        hooks.insert(hooks.index(_before_request), self.before)
        app.after_request(self.after)
        app.teardown_request(self.release)

    def before(self) -> Any:
        """None lets the request pass; a response ends it."""
        from flask import g, request

        rule = request.url_rule
        function = rule.endpoint if rule else ""
        if function in READS or (rule is None and request.method in _SAFE) or request.method == "OPTIONS":
            return None
        user = _login()
        if user is None:
            return None  # MLflow's check comes next and answers 401
        if function not in RULED:
            what = function or request.path
            return self.refuse(
                user,
                f"{request.method} {request.path}",
                what,
                Refusal(code="route", reason="this part of MLflow is closed here", remedy="see docs: what the registry allows"),
            )
        if not self._turn.acquire(timeout=30):
            return _respond(409, "RESOURCE_CONFLICT", "the registry is busy with another write; try again")
        g.truing_turn = True
        return self._checked(lambda: self._ask(user, function))

    def _ask(self, user: str, function: str) -> Any:
        from flask import g, request

        act = Act(
            user=user,
            now=self.clock(),
            function=function,
            method=request.method,
            body=_body(function),
            path={key: str(value) for key, value in (request.view_args or {}).items()},
        )
        refusal = getattr(self.rules, RULED[function])(act)
        if refusal is not None:
            return self.refuse(user, function, act.target, refusal)
        g.truing_act = act
        if RULED[function] not in _UNAUDITED:
            self.audit.add(user, function, act.target, "allowed", "", act.now)
        return None

    def after(self, response: Any) -> Any:
        """Stamp and record what MLflow has just done."""
        from flask import g

        act = g.pop("truing_act", None)
        if act is None:
            return response
        if response.status_code >= 400:
            if RULED[act.function] not in _UNAUDITED:
                self.audit.add(act.user, act.function, act.target, "failed", response.get_data(as_text=True)[:300], act.now)
            return response
        stamped = self._checked(lambda: self._stamp(act, response)) or response
        if RULED[act.function] not in _UNAUDITED:
            self._changes += 1
        return stamped

    def _stamp(self, act: Act, response: Any) -> None:
        words = self.stamps.after(act, json.loads(response.get_data() or b"{}"))
        if words:
            self.audit.add(act.user, act.function, act.target, "done", words, act.now)

    def release(self, _error: BaseException | None = None) -> None:
        """The next write's turn, whatever became of this one."""
        from flask import g

        if g.pop("truing_turn", False):
            self._turn.release()

    def upload(self, user: str, path: str) -> Refusal | str:
        """May this login write this file? The folder to `end` afterwards, or why not. For `asgi.Gate`."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            root = self.rules.artifact_root(user, path)
        except (SQLAlchemyError, MlflowException, OSError, ValueError):
            _log.exception("could not check")
            return Refusal(code="artifact.unchecked", reason="the registry could not check this file", remedy="try again")
        if isinstance(root, Refusal) or self.uploads.begin(root):
            return root
        return FROZEN

    def note(self, user: str, act: str, target: str, refusal: Refusal) -> None:
        """A refusal into the audit."""
        self.audit.add(user, act, target, "refused", str(refusal), self.clock())

    def changes(self) -> str:
        """A word that changes with every guarded write and every start: who polls can ask this 100 times more cheaply."""
        return f"{self._boot}-{self._changes}"

    def refuse(self, user: str, act: str, target: str, refusal: Refusal) -> Any:
        """403 in MLflow's error format, and a line in the audit."""
        from flask import Response

        self.note(user, act, target, refusal)
        return Response(answer(refusal), status=403, mimetype="application/json")

    def _checked(self, step: Callable[[], Any]) -> Any:
        """Run a step; whatever goes wrong in it becomes a 4xx with one line."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return step()
        except MlflowException as error:
            status = error.get_http_status_code()
            if status < 500:
                return _respond(status, error.error_code, error.message)
            _log.error("could not check: %s", error)
        except (
            SQLAlchemyError,
            TruingError,
            msgspec.MsgspecError,
            OSError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        ):
            _log.exception("could not check")
        return _respond(409, "RESOURCE_CONFLICT", "the registry could not check this act and did not let it pass; see its log")


def _login() -> str | None:
    """The user whose password came with the request; None if it is missing or wrong."""
    from flask import Response
    from mlflow.server.auth import authenticate_request

    found = authenticate_request()
    return None if isinstance(found, Response) else str(found.username)


def _body(function: str) -> Any:
    """The request as MLflow's handler will parse it: its own message type, its own parser."""
    from flask import request
    from mlflow.exceptions import MlflowException
    from mlflow.protos import model_registry_pb2 as registry
    from mlflow.protos import service_pb2 as service
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
    from mlflow.server.handlers import _get_request_message

    raw = request.get_json(force=True, silent=True)
    if isinstance(raw, str):  # old clients encode twice, and MLflow reads that too
        with suppress(ValueError):
            raw = json.loads(raw)
    if raw is not None and not isinstance(raw, dict):
        raise MlflowException("expected a JSON object as body; send one", INVALID_PARAMETER_VALUE)
    name = "".join(word.capitalize() for word in function.split("_"))
    message = {
        "TransitionStage": "TransitionModelVersionStage",
        "LogLoggedModelParams": "LogLoggedModelParamsRequest",
    }.get(name, name)
    kind = getattr(registry, message, None) or getattr(service, message, None)
    return _get_request_message(kind()) if kind else raw or {}


def _respond(status: int, code: str, message: str) -> Any:
    from flask import Response

    return Response(json.dumps({"error_code": code, "message": message}), status=status, mimetype="application/json")
