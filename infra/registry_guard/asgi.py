"""The outermost door: routes that FastAPI serves itself, past Flask and its hooks. Uploads come through here.

Everything else is handed on to Flask, where `guard.Guard` waits.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from truing.infra.registry_guard.acts import answer
from truing.infra.registry_guard.guard import Guard
from truing.infra.registry_guard.routes import NATIVE_READS, NATIVE_RULED
from truing.tasks.records import Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Native:
    """One native route: its methods, its path and the function behind it."""

    def __init__(self, methods: frozenset[str], path: str, function: str) -> None:
        from starlette.routing import compile_path

        self.methods, self.path, self.function = methods, path, function
        self.pattern: re.Pattern[str] = compile_path(path)[0]


def native_routes(app: Any) -> list[Native]:
    """All routes of MLflow's FastAPI app but the mounted Flask app, in the order in which they are tried."""
    from starlette.routing import Mount

    found: list[Native] = []
    for route in app.routes:
        if isinstance(route, Mount):
            continue
        inner = route.effective_route_contexts() if hasattr(route, "effective_route_contexts") else [route]
        found += [Native(frozenset(each.methods or ()), each.path, getattr(each.endpoint, "__name__", "")) for each in inner]
    return found


class Gate:
    """Pure ASGI, so bodies stream through untouched."""

    def __init__(self, app: Any, guard: Guard) -> None:
        from mlflow.server.auth import _native_fastapi_routes, _scope_matches_native_route

        self.app, self.guard = app, guard
        self._routes = native_routes(app)
        outer = _native_fastapi_routes(app)
        self._is_native: Callable[[Scope], bool] = lambda scope: _scope_matches_native_route(outer, scope)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] == "http" and scope["path"] == "/truing/changes":
            from starlette.responses import JSONResponse

            await JSONResponse({"changes": self.guard.changes()})(scope, receive, send)
            return
        if scope["type"] != "http" or not self._is_native(scope):
            await self.app(scope, receive, send)
            return
        function, values = self._named(scope)
        if function in NATIVE_READS:
            await self.app(scope, receive, send)
            return
        await self._guarded(function, values, scope, receive, send)

    async def _guarded(self, function: str, values: dict[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        from anyio import to_thread
        from mlflow.server.auth import _authenticate_fastapi_request
        from starlette.requests import Request
        from starlette.responses import Response

        user = await to_thread.run_sync(_authenticate_fastapi_request, Request(scope))
        if user is None:
            await self.app(scope, receive, send)  # MLflow answers 401
            return
        root: Refusal | str = Refusal(
            code="route", reason="this part of MLflow is closed here", remedy="see docs: what the registry allows"
        )
        if function in NATIVE_RULED:
            root = await to_thread.run_sync(self.guard.upload, user.username, values.get("artifact_path", ""))
        if isinstance(root, Refusal):
            await to_thread.run_sync(self.guard.note, user.username, f"{scope['method']} {function}", scope["path"][:300], root)
            await Response(answer(root), status_code=403, media_type="application/json")(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            self.guard.uploads.end(root)

    def _named(self, scope: Scope) -> tuple[str, dict[str, str]]:
        """The function that will serve this request, and the parts of its path; "" if none of those known."""
        for route in self._routes:
            match = route.pattern.match(scope["path"])
            if match and scope["method"] in route.methods:
                return route.function, match.groupdict()
        return "", {}
