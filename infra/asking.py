"""The gateway over HTTP, as an application needs it: questions as tensors, answers as records, retries that are safe.

What is asked or said carries its own names (prediction ids, times), so asking twice counts once; that is why a request whose
answer got lost may simply be made again.
"""

from __future__ import annotations

import os
import threading
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from truing.infra.words import Answer, Scalar
from truing.tasks.errors import DataError, Unavailable


def pauses(first: float = 0.1, most: float = 2.0) -> Iterator[float]:
    """Seconds between tries: doubled up to `most`, each shortened by up to half at random, so that many don't come at once."""
    pause = first
    while True:
        yield pause * (0.5 + os.urandom(1)[0] / 510)
        pause = min(pause * 2, most)


class Asker:
    """One gateway. Safe to call from several threads."""

    def __init__(self, url: str, *, timeout_s: float, ca: Path | None = None) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._ca = ca
        self._http: Any = None
        self._guard = threading.Lock()

    def close(self) -> None:
        with self._guard:
            http, self._http = self._http, None
        if http is not None:
            http.close()

    def post(self, path: str, body: Any) -> Any:
        """The decoded answer. Raises DataError when the gateway refuses what was sent, Unavailable when there is no answer."""
        import httpx

        from truing.tasks.release.trust import untrusted

        client, content = self._client(), msgspec.json.encode(body)
        end, waits = clock.monotonic() + self._timeout_s, pauses()
        while True:
            try:
                response = client.post(path, content=content, headers={"Content-Type": "application/json"})
                break
            except httpx.HTTPError as error:
                if (doubt := untrusted(error)) is not None:
                    raise Unavailable(f"expected to trust the gateway at {self.url}, got: {doubt}; correct `ca`") from None
                pause = next(waits)
                if isinstance(error, httpx.TimeoutException) or clock.monotonic() + pause > end:
                    raise Unavailable(
                        f"expected an answer of the gateway at {self.url}, got {type(error).__name__}; see `truing status`"
                    ) from None
                clock.sleep(pause)
        if response.status_code == 200:
            return msgspec.json.decode(response.content)
        try:
            told = str(msgspec.json.decode(response.content, type=dict[str, Any])["error"])
        except (msgspec.DecodeError, KeyError):
            told = f"the gateway at {self.url} answered {response.status_code}; see `truing status`"
        raise (DataError if 400 <= response.status_code < 500 else Unavailable)(told)

    def _client(self) -> Any:
        import httpx

        from truing.tasks.release.trust import authority

        with self._guard:
            if self._http is None:
                verify = True if self._ca is None else authority(self._ca)
                self._http = httpx.Client(base_url=self.url, timeout=self._timeout_s, trust_env=False, verify=verify)
            return self._http


def tensor(name: str, data: list[Any]) -> dict[str, Any]:
    """A column with the datatype of its values; nulls take part in none."""
    kinds = {type(value) for value in data if value is not None}
    datatype = "BYTES" if kinds <= {str} else "INT64" if kinds <= {int} else "FP64"
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": data}


def tensors(rows: Sequence[Mapping[str, Scalar]], *, prefix: str = "") -> list[dict[str, Any]]:
    """Rows as columns. A key that some rows lack is null there; a column of nulls is left out."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return [tensor(prefix + name, data) for name, data in columns.items() if any(value is not None for value in data)]


def answers(told: Any) -> list[Answer]:
    """The response's tensors as records. Raises Unavailable when it is none of ours."""
    try:
        outputs = {one["name"]: one["data"] for one in told["outputs"]}
        names = ("prediction_id", "token", "label", "probability", "confidence")
        version, sequence = told["model_version"], told["parameters"]["sequence"]
        return [
            Answer(**dict(zip(names, row, strict=True)), version=version, sequence=sequence)
            for row in zip(*(outputs[name] for name in names), strict=True)
        ]
    except (KeyError, TypeError, ValueError):
        raise Unavailable(
            "expected label, probability and token of each row, got another answer; is this the gateway?"
        ) from None
