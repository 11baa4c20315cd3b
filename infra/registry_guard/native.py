"""What we answer ourselves, before MLflow sees it: files in and out, the audit, and the word for "something was written".

Bodies stream; every blocking step runs in a thread, and a small file takes one hop there.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import ExitStack
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs

from anyio import to_thread

from truing.infra.registry_guard import users
from truing.infra.registry_guard.acts import answer
from truing.infra.registry_guard.bell import Bell
from truing.infra.registry_guard.files import CHUNK, Draft, IsFolder, Opened, Unsafe, parts
from truing.infra.registry_guard.guard import Guard, unsafe
from truing.infra.registry_guard.ownership import Place
from truing.tasks.errors import TruingError
from truing.tasks.records import Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASK = "You are not authenticated: expected a login of this registry and its password; see `truing keys`"


class Native:
    def __init__(self, guard: Guard, bell: Bell) -> None:
        self.guard, self.bell = guard, bell

    # --- the guard's own
    async def changes(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        word = await self.bell.wait(query.get("since", [""])[0], _number(query.get("wait", ["0"])[0]), lambda: _gone(receive))
        await reply(send, 200, json.dumps({"changes": word}).encode())

    async def audit(self, scope: Scope, send: Send) -> None:
        if await self.login(scope, send) is None:
            return
        query = parse_qs(scope["query_string"].decode("latin-1"))
        after = _number(query.get("after", ["0"])[0])
        await reply(send, 200, await _thread(lambda: self.guard.audit.page(int(after))))

    # --- files
    async def download(self, path: str, scope: Scope, send: Send) -> None:
        user = await self.login(scope, send)
        if user is None:
            return
        try:
            name, file, data = await _thread(lambda: self._open(path))
        except FileNotFoundError:
            return await fail(send, 404, "RESOURCE_DOES_NOT_EXIST", f"No such artifact: '{path[:300]}'")
        except IsFolder:
            return await fail(
                send, 400, "INVALID_PARAMETER_VALUE", f"Artifact path refers to a directory, not a file: '{path}'"
            )
        except Unsafe as error:
            return await self.refuse(user, scope, "download_artifact", unsafe(error), send)
        except (OSError, ValueError) as error:
            return await fail(send, 400, "INVALID_PARAMETER_VALUE", f"could not read this artifact: {str(error)[:200]}")
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _headers(name, file)})
            left = file.size - len(data)
            while data and left > 0:
                await send({"type": "http.response.body", "body": data, "more_body": True})
                data = await to_thread.run_sync(_piece, file, left)
                left -= len(data)
            await send({"type": "http.response.body", "body": data})
        finally:
            file.close()

    async def upload(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        user = await self.login(scope, send)
        if user is None:
            return
        place = await _thread(lambda: self.guard.upload(user, path))
        if isinstance(place, Refusal):
            return await self.refuse(user, scope, "upload_artifact", place, send)
        try:
            whole = await _take(receive, _Writer(self.guard, place))
        except Unsafe as error:
            return await self.refuse(user, scope, "upload_artifact", unsafe(error), send)
        except (OSError, ValueError) as error:
            return await fail(send, 409, "RESOURCE_CONFLICT", f"the file could not be stored: {str(error)[:200]}")
        finally:
            self.guard.uploads.end(place.root)
        if whole:
            await reply(send, 200, b"", kind="text/plain")

    # --- logins and refusals
    async def login(self, scope: Scope, send: Send) -> str | None:
        """Who asks; None when that is answered already, with a 401."""
        header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        try:
            user = users.login_of(header)
        except TruingError as error:  # the key folder could not be read just now
            await fail(send, 409, "RESOURCE_CONFLICT", str(error))
            return None
        if user is None:
            await _thread(lambda: self.guard.unknown(scope["method"], scope["path"], header))
            await reply(send, 401, ASK.encode(), kind="text/plain", more=((b"www-authenticate", b'Basic realm="mlflow"'),))
        return user

    async def refuse(self, user: str, scope: Scope, function: str, refusal: Refusal, send: Send) -> None:
        act = f"{scope['method']} {function}"
        await _thread(lambda: self.guard.note(user, act, scope["path"][:300], refusal))
        await reply(send, 403, answer(refusal).encode())

    def _open(self, path: str) -> tuple[str, Opened, bytes]:
        """The file, its name, and its first piece."""
        found = parts(_decoded(path))
        file = self.guard.files.open(found)
        try:
            return found[-1], file, _piece(file, file.size)
        except OSError:
            file.close()
            raise


class _Writer:
    """A draft that is opened with its first piece, in the thread that writes it."""

    def __init__(self, guard: Guard, place: Place) -> None:
        self._guard, self._place = guard, place
        self._stack = ExitStack()
        self._draft: Draft | None = None

    def write(self, data: bytes, last: bool) -> None:
        if self._draft is None:
            self._draft = self._stack.enter_context(self._guard.files.writing(self._place.path))
        self._draft.write(data)
        if last:
            self._stack.close()

    def drop(self) -> None:
        """The client went away, or the disk is full: nothing was uploaded."""
        self._stack.__exit__(ConnectionError, ConnectionError("upload cut short"), None)


async def _take(receive: Receive, writer: _Writer) -> bool:
    """The whole body into the file. False if the client left in the middle; then there is no file."""
    pieces: list[bytes] = []
    size, whole = 0, False
    try:
        while not whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            last = not message.get("more_body", False)
            if last or size >= CHUNK:
                data = b"".join(pieces)
                pieces, size = [], 0
                await to_thread.run_sync(writer.write, data, last)
            whole = last
        return True
    finally:
        if not whole:
            await _thread(writer.drop)


def _piece(file: Opened, left: int) -> bytes:
    return os.read(file.handle, min(CHUNK, left)) if left > 0 else b""


def _headers(name: str, file: Opened) -> list[tuple[bytes, bytes]]:
    """As MLflow sends them."""
    from mlflow.server.handlers import _content_disposition_attachment
    from mlflow.utils.mime_type_utils import _guess_mime_type

    return [
        (b"content-type", str(_guess_mime_type(name)).encode()),
        (b"content-disposition", str(_content_disposition_attachment(name)).encode("latin-1", "replace")),
        (b"content-length", str(file.size).encode()),
        (b"last-modified", formatdate(file.changed, usegmt=True).encode()),
        (b"x-content-type-options", b"nosniff"),
    ]


def _decoded(path: str) -> str:
    """MLflow decodes what is still encoded in a path, and refuses one that climbs. Raises ValueError."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.uri import validate_path_is_safe

    try:
        return str(validate_path_is_safe(path))
    except MlflowException as error:
        raise ValueError(error.message) from None


async def reply(
    send: Send, status: int, body: bytes, *, kind: str = "application/json", more: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def fail(send: Send, status: int, code: str, message: str) -> None:
    await reply(send, status, json.dumps({"error_code": code, "message": message}).encode())


async def _thread(step: Callable[[], Any]) -> Any:
    return await to_thread.run_sync(step)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def _number(text: str) -> float:
    """A number of the query, 0 for anything else."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) and abs(value) < 1e15 else 0.0
