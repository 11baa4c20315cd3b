"""How the supervisor is spoken to: XML-RPC over its Unix socket, with patience that ends. One that hangs counts as gone."""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from pathlib import Path
from typing import Any

ANSWER_S = 20.0  # for one word of its
GONE = (OSError, http.client.HTTPException, xmlrpc.client.Error)  # what a call raises when it is not there, or does not do it


def supervisor(path: Path) -> Any:
    """Its RPC interface (supervisord.org/api.html). Every call may raise one of GONE."""
    return xmlrpc.client.ServerProxy("http://supervisor", transport=_Transport(str(path))).supervisor


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        made = self._connection[1] or _Connection(self._path)
        self._connection = host, made
        return made


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(self._path)
