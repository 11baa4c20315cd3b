"""The gateway: Open Inference Protocol v2 over HTTP, and a door for feedback.

An answer goes out only when its event is on disk (`outbox`), and only from a release that proved itself (`loader`). Protected
attributes travel with the event and never reach the model. Started by uvicorn: `--factory truing.infra.gateway.app:create_app`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from truing.infra.gateway.served import Shelf
from truing.infra.gateway.service import Service
from truing.infra.gateway.tensors import metadata
from truing.infra.settings import Settings, current, quiet
from truing.tasks.errors import DataError, TruingError, Unavailable
from truing.tasks.problem import Problem

MAX_BODY = 64 << 20  # bytes


def reply(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def refusal(error: Exception, status: int) -> Response:
    return reply({"error": " ".join(str(error).split())}, status)


async def body_of(request: Request) -> bytes:
    """The whole body, or 413. Read in pieces, so that a huge one is not kept."""
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY:
            raise HTTPException(413, f"expected at most {MAX_BODY >> 20} MiB, got more; split the batch")
        pieces.append(piece)
    return b"".join(pieces)


def named(service: Service, request: Request) -> Problem:
    """The problem in the path, or 404."""
    name = request.path_params["name"]
    if name not in service.problems:
        raise HTTPException(404, f"expected a model of {', '.join(service.problems)}, got {name!r}; name one of them")
    return service.problems[name]


def routes(service: Service) -> list[Route]:
    """Every route with its handler. Work that computes or writes runs in a thread, so health checks never wait for it."""

    async def server(request: Request) -> Response:
        return reply({"name": "truing", "version": service.version, "extensions": []})

    async def live(request: Request) -> Response:
        alive = service.alive()
        return reply({"live": alive}, 200 if alive else 503)

    async def ready(request: Request) -> Response:
        every = all(service.ready(name) for name in service.problems)
        return reply({"ready": every}, 200 if every else 503)

    async def model(request: Request) -> Response:
        problem = named(service, request)
        served = service.loader.served(problem.name)
        return reply(metadata(problem, [served.release.version] if served else []))

    async def model_ready(request: Request) -> Response:
        name = named(service, request).name
        return reply({"name": name, "ready": service.ready(name)}, 200 if service.ready(name) else 503)

    async def infer(request: Request) -> Response:
        problem = named(service, request)
        answer = await to_thread.run_sync(partial(service.infer, problem, await body_of(request)))
        return Response(answer, media_type="application/json")

    async def feedback(request: Request) -> Response:
        return reply(await to_thread.run_sync(partial(service.feedback, await body_of(request))))

    async def status(request: Request) -> Response:
        return reply(service.status())

    return [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2/models/{name}", model),
        Route("/v2/models/{name}/ready", model_ready),
        Route("/v2/models/{name}/infer", infer, methods=["POST"]),
        Route("/feedback", feedback, methods=["POST"]),
        Route("/status", status),
    ]


def handlers(service: Service) -> dict[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    """Every failure is one line of JSON: 400 the question, 404 no such thing, 503 not now, 500 ours."""

    def answer(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def handle(request: Request, error: Exception) -> Response:
            service.failed(status)
            return refusal(error, status)

        return handle

    async def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        detail = error.detail if isinstance(error, HTTPException) else str(error)
        service.failed(status)
        if status in (404, 405) and detail in ("Not Found", "Method Not Allowed"):
            detail = (
                f"expected one of the Open Inference Protocol's routes, got {request.method} {request.url.path}; see GET /v2"
            )
        return reply({"error": detail}, status)

    async def broken(request: Request, error: Exception) -> Response:
        service.failed(500)
        return reply({"error": f"the gateway failed ({type(error).__name__}); see its log"}, 500)

    return {DataError: answer(400), Unavailable: answer(503), TruingError: answer(500), HTTPException: http, Exception: broken}


def create_app(settings: Settings | None = None, *, shelf: Shelf | None = None) -> Starlette:
    """The application of `settings`, by default this process's. A missing key or folder ends the process in one line.

    `shelf` is where releases are looked for; by default the registry of the settings.
    """
    quiet()
    log = logging.getLogger("truing.gateway")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    try:
        service = Service(settings or current(), clock=time.time, log=log.info, shelf=shelf)
    except TruingError as error:
        raise SystemExit(f"gateway: {error}") from None

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await to_thread.run_sync(service.stop)

    app = Starlette(routes=routes(service), exception_handlers=handlers(service), lifespan=lifespan)
    app.state.service = service
    return app
