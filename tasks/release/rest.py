"""MLflow's REST protocol in one small client: httpx instead of the MLflow package, which takes 2 s and 200 MB to import.

Errors come back as ours: no answer → Unavailable, 403 → Refused with the guard's reason, the rest → DataError or Unavailable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from truing.tasks.errors import DataError, Refused, TruingError, Unavailable
from truing.tasks.records import Refusal
from truing.tasks.release.audit import Line
from truing.tasks.release.trust import authority, untrusted

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"


class _Page(msgspec.Struct):
    lines: list[Line]


class Login(httpx.Auth):
    """HTTP basic auth with a password that is asked for at each request: it may be replaced while this process runs."""

    def __init__(self, user: str, password: Callable[[], str]) -> None:
        self._user, self._password = user, password

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        yield from httpx.BasicAuth(self._user, self._password()).auth_flow(request)


class Rest:
    """One login at one MLflow server. Safe to share between threads."""

    def __init__(
        self, url: str, user: str, password: str | Callable[[], str], *, timeout_s: float = 30.0, ca: Path | None = None
    ) -> None:
        """`password` may be a function, called for each request. `ca`: the PEM authority that an https server must prove by.

        Raises Unavailable when `ca` does not read.
        """
        self.url, self.user = url.rstrip("/"), user
        login = Login(user, password) if callable(password) else httpx.BasicAuth(user, password)
        # trust_env would read proxy variables: the registry is named by the settings alone
        self._http = httpx.Client(
            base_url=self.url, auth=login, timeout=timeout_s, trust_env=False, verify=True if ca is None else authority(ca)
        )
        self._date = "Thu, 01 Jan 1970 00:00:00 GMT"

    def clock(self) -> float:
        """The server's time at its last answer (Unix seconds): what its page shows, and no clock of ours."""
        return parsedate_to_datetime(self._date).timestamp()

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        return _json(self._send("GET", API + path, params=params))

    def send(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """A write: POST, PATCH or DELETE with a JSON body."""
        return _json(self._send(method, API + path, json=body))

    def upload(self, path: str, data: bytes) -> None:
        """One file into the artifact store; `path` is relative to its root."""
        self._send("PUT", f"{ARTIFACTS}/{quote(path)}", content=data)

    def download(self, path: str) -> bytes:
        return self._send("GET", f"{ARTIFACTS}/{quote(path)}").content

    def tree(self, path: str) -> dict[str, bytes]:
        """Every file below `path` as {path relative to it: bytes}."""
        found: dict[str, bytes] = {}
        folders = [""]
        while folders:
            folder = folders.pop()
            listing = _json(self._send("GET", ARTIFACTS, params={"path": f"{path}/{folder}".rstrip("/")}))
            for entry in listing.get("files", []):
                name = f"{folder}/{entry['path']}".lstrip("/")
                if entry.get("is_dir"):
                    folders.append(name)
                else:
                    found[name] = self.download(f"{path}/{name}")
        return found

    def changes(self, since: str = "", wait_s: float = 0.0) -> str:
        """The guard's word for "as it was": the same as before means that no guarded write has happened since.

        With `since` and `wait_s` the server answers at the next write, or after `wait_s` seconds with the same word.
        """
        params = {"since": since, "wait": wait_s} if wait_s else {}
        return str(_json(self._send("GET", "/truing/changes", params=params)).get("changes", ""))

    def audit(self, after: int, until: int | None = None) -> list[Line]:
        """Audit records with a number above `after`, unchecked (`audit.follow` checks), in pages as the server gives them.

        With `until` no page is asked for beyond that number.
        """
        found: list[Line] = []
        while True:
            content = self._send("GET", "/truing/audit", params={"after": after}).content
            page = msgspec.json.decode(content, type=_Page).lines
            found += page
            if not page or (until is not None and page[-1].entry.n >= until):
                return found
            after = page[-1].entry.n

    def alive(self) -> bool:
        """Does the server answer, logged in as this user?"""
        try:
            self.get("/experiments/search", max_results=1)
        except Unavailable:
            return False
        return True

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TimeoutException:
            raise Unavailable(
                f"expected the registry at {self.url} to answer in time, it did not; see `truing status`"
            ) from None
        except httpx.HTTPError as error:
            if (doubt := untrusted(error)) is not None:
                raise Unavailable(
                    f"expected to trust the registry at {self.url}, got: {doubt}; correct TRUING_TLS__CA"
                ) from None
            raise Unavailable(
                f"expected the registry at {self.url}, got {type(error).__name__}; start it with `truing up`"
            ) from None
        if response.status_code >= 400:
            raise failure(response, self.url, self.user)
        self._date = response.headers.get("date", self._date)
        return response


class NotFound(DataError):
    """What was asked for is not in the registry."""


def failure(response: httpx.Response, url: str, user: str) -> TruingError:
    """The right exception for an answer of 400 and above."""
    try:
        body = msgspec.json.decode(response.content, type=dict[str, Any])
    except msgspec.DecodeError:
        body = {}
    message = str(body.get("message") or response.text[:300]).replace("\n", " ").strip() or "no reason given"
    status = response.status_code
    if status == 401:
        return Unavailable(f"the registry at {url} does not know {user} with this password; see `truing keys list`")
    if status == 403:
        detail = body.get("refusal")
        if isinstance(detail, dict):
            return Refused(Refusal(code=str(detail["code"]), reason=str(detail["reason"]), remedy=str(detail["remedy"])))
        return Refused(Refusal(code="registry.forbidden", reason=message, remedy="act as the user whose office this is"))
    if body.get("error_code") == "RESOURCE_DOES_NOT_EXIST" or status == 404:
        return NotFound(f"the registry has no such thing: {message}; check name and version")
    if status in (409, 429) or status >= 500:
        return Unavailable(f"the registry at {url} answered {status}: {message}; try again")
    return DataError(f"the registry refused the request as written ({status}): {message}; mend it")


def _json(response: httpx.Response) -> dict[str, Any]:
    if not response.content:
        return {}
    try:
        return msgspec.json.decode(response.content, type=dict[str, Any])
    except msgspec.DecodeError:
        raise Unavailable(f"expected JSON from {response.url.host}, got something else; is this the registry?") from None
