"""JSON over HTTP to our own servers: no proxy, no retries that hide a failure, no heavy import.

MLflow's and Prefect's own clients take seconds to import and retry for minutes; a command line and a health check need neither.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from truing.tasks.errors import Refused, Unavailable
from truing.tasks.records import Refusal
from truing.tasks.release.trust import authority

_REFUSAL = re.compile(r"^(?P<reason>.*); (?P<remedy>[^;]*) \[(?P<code>[a-z0-9_.-]+)\]$", re.DOTALL)


def call(
    method: str,
    url: str,
    body: Any = None,
    *,
    login: tuple[str, str] | None = None,
    timeout: float = 10.0,
    missing: bool = False,
    ca: Path | None = None,
) -> Any:
    """The decoded JSON answer (text if it is not JSON, None if empty).

    Raises Unavailable when nothing answers or the server breaks, Refused on 403 with the server's words. With `missing`, a 404
    is None instead of an error. An https server proves itself by the PEM authority `ca`, or else by a public one.
    """
    parts = urlsplit(url)
    connection = _connection(parts, timeout, ca)
    headers = {"Accept": "application/json"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if login is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(login).encode()).decode()
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request(method, target, None if body is None else json.dumps(body).encode(), headers)
        answer = connection.getresponse()
        raw = answer.read()
    except (OSError, http.client.HTTPException) as error:
        where = f"{parts.hostname}:{parts.port}"
        if isinstance(error, ssl.SSLCertVerificationError):
            raise Unavailable(f"expected to trust {where}, got: {error.verify_message}; correct TRUING_TLS__CA") from None
        raise Unavailable(f"expected an answer from {where}, got {_words(error)}; run `truing up` or `truing status`") from None
    finally:
        connection.close()
    try:
        data = json.loads(raw) if raw else None
    except ValueError:
        data = raw.decode("utf-8", "replace")
    if answer.status < 400:
        return data
    if answer.status == 404 and missing:
        return None
    text = _message(data)
    if answer.status == 403:
        raise Refused(refusal(text))
    raise Unavailable(f"expected {method} {target} to work, got {answer.status}: {text}; see `truing status`")


def _connection(parts: SplitResult, timeout: float, ca: Path | None) -> http.client.HTTPConnection:
    host = parts.hostname or "127.0.0.1"
    if parts.scheme != "https":
        return http.client.HTTPConnection(host, parts.port, timeout=timeout)
    context = ssl.create_default_context() if ca is None else authority(ca)
    return http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=context)


def refusal(text: str) -> Refusal:
    """A Refusal from the one line that the registry answered (`reason; remedy [code]`)."""
    match = _REFUSAL.match(text.strip())
    if match:
        return Refusal(code=match["code"], reason=match["reason"], remedy=match["remedy"])
    return Refusal(code="refused", reason=text.strip() or "the server refused", remedy="ask who holds that right")


def _words(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "no listener"
    if isinstance(error, TimeoutError):
        return "silence"
    return str(error) or type(error).__name__


def _message(data: Any) -> str:
    if isinstance(data, dict):
        for key in ("message", "detail", "error", "exception_message"):
            if isinstance(data.get(key), str):
                return " ".join(data[key].split())
        return json.dumps(data)[:300]
    return " ".join(str(data or "").split())[:300]
