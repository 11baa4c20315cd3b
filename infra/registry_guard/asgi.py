"""The outermost door. Each request goes one of three ways: to what we answer ourselves (`native`), to a route that FastAPI
serves past Flask's hooks, or straight to Flask, where `guard.Guard` waits.

MLflow's FastAPI app has Flask mounted behind three middlewares that concern its native routes only; Flask has its own checks of
host and origin. So what is Flask's goes there directly.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from anyio import to_thread

from truing.infra.registry_guard import users
from truing.infra.registry_guard.acts import answer
from truing.infra.registry_guard.bell import Bell
from truing.infra.registry_guard.guard import Guard
from truing.infra.registry_guard.native import Native, Receive, Scope, Send, fail, reply
from truing.infra.registry_guard.routes import NATIVE_READS
from truing.infra.registry_guard.rules import CLOSED
from truing.tasks.errors import TruingError

_log = logging.getLogger("truing.registry")
_FILE = re.compile(r"/(?:ajax-)?api/2\.0/mlflow-artifacts/artifacts/(.+)", re.DOTALL)


class Route:
    """One native route: its methods, its path and the function behind it."""

    def __init__(self, methods: frozenset[str], path: str, function: str) -> None:
        from starlette.routing import compile_path

        self.methods, self.path, self.function = methods, path, function
        self.pattern: re.Pattern[str] = compile_path(path)[0]


def native_routes(app: Any) -> list[Route]:
    """All routes of MLflow's FastAPI app but the mounted Flask app, in the order in which they are tried."""
    from starlette.routing import Mount

    found: list[Route] = []
    for route in app.routes:
        if isinstance(route, Mount):
            continue
        inner = route.effective_route_contexts() if hasattr(route, "effective_route_contexts") else [route]
        found += [Route(frozenset(each.methods or ()), each.path, getattr(each.endpoint, "__name__", "")) for each in inner]
    return found


class Gate:
    """Pure ASGI, so bodies stream through untouched."""

    def __init__(self, app: Any, guard: Guard) -> None:
        from starlette.routing import Mount

        self.app, self.guard = app, guard
        self.flask = next(route.app for route in app.routes if isinstance(route, Mount))
        self.bell = Bell(guard.changes)
        guard.audit.heard = self.bell.ring
        self.native = Native(guard, self.bell)
        self.ours = secured(self._ours)
        self._routes = native_routes(app)
        self._starts = tuple({route.path.split("{", 1)[0] for route in self._routes})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "lifespan":
            self.bell.start()
            await self.app(scope, receive, send)
        elif _is_ours(scope):
            await self.ours(scope, receive, send)
        else:
            await self._mlflow(scope, receive, send)

    async def _mlflow(self, scope: Scope, receive: Receive, send: Send) -> None:
        function = self._named(scope["path"], scope["method"])
        if not function:
            await self.flask(scope, receive, send)
        elif function in NATIVE_READS:
            await self.app(scope, receive, self._listening(scope, send))
        elif (user := await self.native.login(scope, send)) is not None:
            if scope["method"] == "GET":  # MLflow's page looks there each time it is opened
                await reply(send, 403, answer(CLOSED).encode())
            else:
                await self.native.refuse(user, scope, function, CLOSED, send)

    async def _ours(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Never a 500: what goes wrong before the answer has begun is said in one line."""
        begun = False

        async def noted(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._answer(scope, receive, noted)
        except (OSError, ValueError, TruingError) as error:
            if begun:
                raise
            _log.error("could not answer %s: %s", scope["path"], error)
            await fail(send, 409, "RESOURCE_CONFLICT", "the registry could not answer this request; see its log")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/truing/changes":
            await self.native.changes(scope, receive, send)
        elif scope["path"] == "/truing/audit":
            await self.native.audit(scope, send)
        elif match := _FILE.fullmatch(scope["path"]):
            if scope["method"] == "PUT":
                await self.native.upload(match[1], scope, receive, send)
            else:
                await self.native.download(match[1], scope, send)

    def _named(self, path: str, method: str) -> str:
        """The function that FastAPI would serve this request with; "" if it is Flask's."""
        if not path.startswith(self._starts):
            return ""
        return next((route.function for route in self._routes if method in route.methods and route.pattern.match(path)), "")

    def _listening(self, scope: Scope, send: Send) -> Send:
        """MLflow's own 401 and 403 on native routes, into the audit."""

        async def heard(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] in (401, 403):
                header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
                if message["status"] == 401:
                    await to_thread.run_sync(self.guard.unknown, scope["method"], scope["path"], header)
                else:
                    act = f"{scope['method']} {self._named(scope['path'], scope['method'])}"
                    user = users.login_of(header) or "?"
                    await to_thread.run_sync(self.guard.note, user, act, scope["path"][:300], "MLflow said no")
            await send(message)

        return heard


def _is_ours(scope: Scope) -> bool:
    path, method = scope["path"], scope["method"]
    if method == "GET" and path in ("/truing/changes", "/truing/audit"):
        return True
    return method in ("GET", "PUT") and _FILE.fullmatch(path) is not None


def secured(inner: Any) -> Any:
    """Our own answers behind MLflow's checks of Host and Origin, as its native routes have them."""
    from mlflow.server import fastapi_security as security

    hosts, origins = security.get_allowed_hosts(), security.get_allowed_origins()
    app = security.SecurityHeadersMiddleware(inner)
    if "*" not in origins:
        app = security.CORSBlockingMiddleware(app, allowed_origins=origins)
    return app if "*" in hosts else security.HostValidationMiddleware(app, allowed_hosts=hosts)
