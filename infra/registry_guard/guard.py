"""The guard around MLflow's Flask app: before every request it asks the rules, after it the registry records what was done.

It stands in the place of MLflow's own permission check, which believes tables that others may write. It never raises: an
exception would become a 500, and MLflow's clients would try again for minutes. Acts on one problem are taken one at a time, so
what a rule has read is still so when MLflow writes; an act counts from the moment its line is in the audit, and not before.
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

from truing.infra.keys import Following, Keyring
from truing.infra.registry_guard import users
from truing.infra.registry_guard.acts import Act, answer
from truing.infra.registry_guard.audit import Audit
from truing.infra.registry_guard.books import Books, Uploads
from truing.infra.registry_guard.deeds import Deed, Deeds
from truing.infra.registry_guard.files import Files, Unsafe
from truing.infra.registry_guard.ground import Ground
from truing.infra.registry_guard.knocks import Knocks
from truing.infra.registry_guard.ledger import Ledger
from truing.infra.registry_guard.ownership import FROZEN, Place
from truing.infra.registry_guard.routes import PUBLIC, READS, RULED, UNAUDITED
from truing.infra.registry_guard.rules import CLOSED, Rules
from truing.infra.registry_guard.view import View
from truing.tasks.errors import TruingError
from truing.tasks.records import Refusal
from truing.tasks.release import acts

_log = logging.getLogger("truing.registry")
_SAFE = ("GET", "HEAD")
_SHOWN = (acts.DECISION, acts.POLICY, acts.ANCHOR, acts.ROLLBACK, acts.FROZEN, acts.STANDING)  # stamped on MLflow's page
SAID = "X-Truing-Audited"  # on answers whose refusal is in the audit already


class Guard:
    """One per server. `install` hooks it into MLflow's Flask app; `asgi.Gate` asks it about the routes Flask never sees."""

    def __init__(
        self,
        files: Files,
        keyring: Keyring,
        problems: Path,
        audit: Audit,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        key = Following(lambda: keyring.read("registry"), keyring.path("registry"))
        self.files, self.audit, self.ledger, self.clock = files, audit, ledger, clock
        self.books = Books(files)
        self.deeds = Deeds(ledger, key, problems)
        self.view = View(self.books, ledger, key)
        for target, words in self.view.mend():
            self.audit.add("registry", "view.mend", target, "done", words, self.clock())
        self.uploads = Uploads(set(ledger.folders))
        self.rules = Rules(Ground(self.books, ledger, self.uploads, self.deeds.policy))
        self.knocks = Knocks(self._knocked)
        self._turns = [threading.Lock() for _ in range(64)]
        self._boot = secrets.token_hex(4)

    def install(self) -> None:
        """Take the place of MLflow's own check and of what it does after a request: rows in its tables of permissions."""
        from mlflow.server import app
        from mlflow.server.auth import _after_request, _before_request

        hooks = app.before_request_funcs[None]
        hooks[hooks.index(_before_request)] = self.before
        hooks = app.after_request_funcs[None]
        hooks[hooks.index(_after_request)] = self.after
        app.teardown_request(self.release)
        app.register_error_handler(Exception, self.broken)

    # --- around a request
    def before(self) -> Any:
        """None lets the request pass; a response ends it."""
        return self._checked(self._before)

    def _before(self) -> Any:
        from flask import g, request

        rule = request.url_rule
        function = rule.endpoint if rule else ""
        if function in PUBLIC or (request.method == "OPTIONS" and getattr(rule, "provide_automatic_options", True)):
            return None
        given = users.authenticate()
        if not hasattr(given, "username"):
            return given  # a 401: `after` tells the audit
        user = g.mlflow_authenticated_user = str(given.username)
        if function in READS or (rule is None and request.method in _SAFE):
            return None
        if function not in RULED:
            if request.method in _SAFE:
                return _refusal(CLOSED)
            return self.refuse(user, f"{request.method} {request.path}", function or request.path, CLOSED)
        return self._ask(user, function)

    def _ask(self, user: str, function: str) -> Any:
        from flask import g, request

        act = Act(
            user=user,
            role=users.office(user),
            now=self.clock(),
            function=function,
            method=request.method,
            body=_body(function),
            path={key: str(value) for key, value in (request.view_args or {}).items()},
        )
        if function not in UNAUDITED:
            turn = self._turns[hash(act.matter) % len(self._turns)]
            if not turn.acquire(timeout=30):
                return _respond(409, "RESOURCE_CONFLICT", "the registry is busy with another write; try again")
            g.truing_turn = turn
        try:
            refusal = self.rules.named(RULED[function])(act)
        except Unsafe as error:
            refusal = unsafe(error)
        if refusal is not None:
            return self.refuse(user, function, act.target, refusal)
        g.truing_act = act
        return None

    def after(self, response: Any) -> Any:
        """Record what MLflow has just done, or refused by itself."""
        from flask import g

        act = g.pop("truing_act", None)
        if act is None:
            if response.status_code in (401, 403) and SAID not in response.headers:
                self._checked(lambda: self._refused_by_mlflow(response))
            return response
        if act.function in UNAUDITED:
            return response
        return self._checked(lambda: self._record(act, response)) or response

    def _record(self, act: Act, response: Any) -> Any:
        """One line, and with it the act has power; then the view. Returns another answer when it can't be kept."""
        if response.status_code >= 400:
            words = response.get_data(as_text=True)[:300]
            self.audit.add(act.user, act.function, act.target, "failed", words, act.now)
            return None
        told = json.loads(response.get_data() or b"{}")
        if act.function == "_create_model_version":
            number = str(told["model_version"]["version"])
            refusal = self.rules.versions.renumbered(act.body.name, int(number))
            if refusal:
                self.books.forget_version(act.body.name, number)
                return self.refuse(act.user, act.function, act.target, refusal)
        try:
            self._keep(self.deeds.of(act, told), act)
        except OSError as error:  # a full disk: it counts for nothing, and the page shall not say otherwise
            _log.error("could not audit %s %s by %s: %s", act.function, act.target, act.user, error.strerror)
            self._checked(lambda: self._undo(act, told))
            return _respond(
                409, "RESOURCE_CONFLICT", f"this act could not be recorded ({error.strerror}) and counts for nothing"
            )
        return None

    def _keep(self, deed: Deed, act: Act) -> None:
        line = (act.user, deed.act, deed.target or act.target, "done", deed.words, act.now, deed.facts)
        if deed.act in _SHOWN:
            self.audit.add(*line)  # now it counts; a view that can't be written waits for `mend`
            self._checked(lambda: self._show(act, deed.act))
            return
        written = self.audit.put(*line)
        self.release()  # the next act may begin while this line settles: its own comes after it
        self.audit.settle(written)

    def _undo(self, act: Act, told: dict[str, Any]) -> None:
        """Take out of the view what MLflow has just written there."""
        match act.function:
            case "_create_model_version":
                self.books.forget_version(act.body.name, str(told["model_version"]["version"]))
            case "_set_model_version_tag":
                self.view.mend_version(self.books.version(act.body.name, act.body.version).version)
            case "_set_registered_model_tag":
                self.view.mend_model(act.body.name, self.books.model(act.body.name))

    def _show(self, act: Act, deed: str) -> None:
        if deed == acts.DECISION:
            self.view.decided(act.body.name, act.body.version)
        else:
            self.view.acted(act.body.name, deed)

    def _refused_by_mlflow(self, response: Any) -> None:
        from flask import g, request

        function = request.url_rule.endpoint if request.url_rule else request.path
        if response.status_code == 401:
            self.unknown(request.method, request.path, request.headers.get("Authorization"))
        else:
            user = g.get("mlflow_authenticated_user", "?")
            words = response.get_data(as_text=True)[:300] if response.is_sequence else "MLflow said no"
            self.audit.add(user, f"{request.method} {function}", request.path, "refused", words, self.clock())
        response.headers[SAID] = "1"

    def release(self, _error: BaseException | None = None) -> None:
        """The next write's turn, whatever became of this one."""
        from flask import g

        turn = g.pop("truing_turn", None)
        if turn is not None:
            turn.release()

    def broken(self, error: Exception) -> Any:
        """MLflow came to grief over an edited row or a fault of its own: 4xx all the same, for its clients' sake."""
        from werkzeug.exceptions import HTTPException

        if isinstance(error, HTTPException):
            return error
        _log.error("MLflow could not answer", exc_info=error)
        return _respond(409, "RESOURCE_CONFLICT", "MLflow could not answer this request; see the registry's log")

    # --- for the door in front of Flask
    def upload(self, user: str, path: str) -> Refusal | Place:
        """May this login write this file? Where it goes (its folder is busy until `uploads.end`), or why not."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            place = self.rules.own.upload(user, users.office(user), path)
        except (SQLAlchemyError, MlflowException, OSError, ValueError):
            _log.exception("could not check")
            return Refusal(code="artifact.unchecked", reason="the registry could not check this file", remedy="try again")
        return place if isinstance(place, Refusal) or self.uploads.begin(place.root, place.path) else FROZEN

    def note(self, user: str, act: str, target: str, refusal: Refusal | str) -> None:
        """A refusal into the audit. One that can't be kept there (a full disk) stays a refusal."""
        try:
            self.audit.add(user, act, target, "refused", str(refusal), self.clock())
        except OSError as error:
            _log.error("could not audit %s %s by %s: %s", act, target, user, error.strerror)

    def unknown(self, method: str, path: str, header: str | None) -> None:
        """A request without a login that counts."""
        claimed = users.claimed(header)
        self.knocks.knock(f"{method} {path[:200]}" + (f" as {claimed[0][:60]!a}" if claimed else " without a login"))

    def _knocked(self, count: int, first: str) -> None:
        self.note("?", "login", first, f"{count} without a login that counts")

    def changes(self) -> str:
        """A word that changes with every line of the audit and every start: who polls can ask this 100 times more cheaply."""
        return f"{self._boot}-{self.audit.settled}"

    # --- answers
    def refuse(self, user: str, act: str, target: str, refusal: Refusal) -> Any:
        """403 in MLflow's error format, and a line in the audit."""
        self.note(user, act, target, refusal)
        return _refusal(refusal)

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
        return _respond(409, "RESOURCE_CONFLICT", "the registry could not check or record this act; it counts for nothing")


def _refusal(refusal: Refusal) -> Any:
    """The answer, without a line in the audit: MLflow's page looks at closed parts each time it is opened."""
    from flask import Response

    return Response(answer(refusal), status=403, mimetype="application/json", headers={SAID: "1"})


def unsafe(error: Unsafe) -> Refusal:
    return Refusal(code="artifact.unsafe", reason=str(error), remedy="put the plain file there again, see `truing audit show`")


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
