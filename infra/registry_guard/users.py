"""The registry's logins: known by the key folder alone. MLflow's own table of passwords can be edited in its database, so a row
there opens nothing; it only has to exist, because MLflow looks permissions up by it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import Any

from truing.infra.keys import Following, Keyring, Verifier

_logins: dict[str, Following] = {}  # the one keyring of this process; MLflow calls `authenticate` by name, without arguments


def follow(keyring: Keyring) -> None:
    """Know the logins of this keyring from now on, through rotations."""
    _logins["now"] = Following(keyring.logins, keyring.path("logins"))


def authenticate() -> Any:
    """MLflow's `authorization_function`: the request's login if its password is right, else the 401 that asks for one."""
    from flask import request
    from mlflow.server.auth import make_basic_auth_response

    given = request.authorization
    if given is None or not given.username or given.password is None:
        return make_basic_auth_response()
    known: Verifier | None = _logins["now"]().get(given.username)
    return given if known is not None and known.knows(given.password, time.time()) else make_basic_auth_response()


def synchronise(logins: Iterable[str]) -> None:
    """A row in MLflow's table for each login, with a password that nobody has. Needs MLflow's auth store to be open."""
    from mlflow.server.auth import store

    for login in logins:
        if not store.has_user(login):
            store.create_user(login, secrets.token_urlsafe(32), is_admin=login == "admin")
