"""The registry's logins: known by the key folder alone, their offices by the settings.

MLflow's own tables of users, roles and permissions can be edited in its database, so a row there opens nothing; it only has to
exist, because MLflow's page asks for it.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from truing.infra.keys import SERVICES, Following, Keyring, Verifier

OFFICES = (*SERVICES, "approver")


@dataclass
class _Known:
    logins: Following
    approvers: frozenset[str]


_known: dict[str, _Known] = {}  # the one keyring of this process; MLflow calls `authenticate` by name, without arguments


def follow(keyring: Keyring, approvers: Iterable[str]) -> None:
    """Know the logins of this keyring from now on, through rotations, and who of them decides."""
    _known["now"] = _Known(Following(keyring.logins, keyring.path("logins")), frozenset(approvers))


def office(login: str) -> str:
    """trainer, steward, gateway, admin or approver; a login that is none of them may only read."""
    if login in SERVICES:
        return login
    return "approver" if login in _known["now"].approvers else "reader"


def knows(login: str | None, password: str | None) -> bool:
    """Is this the login's password?"""
    if not login or password is None:
        return False
    verifier: Verifier | None = _known["now"].logins().get(login)
    return verifier is not None and verifier.knows(password, time.time())


def login_of(header: str | None) -> str | None:
    """Whose password came in this Authorization header; None if it is missing or wrong."""
    given = claimed(header)
    return given[0] if given and knows(*given) else None


def claimed(header: str | None) -> tuple[str, str] | None:
    """Login and password as the header gives them, unchecked."""
    scheme, _, value = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        login, colon, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (login, password) if colon else None


def authenticate() -> Any:
    """MLflow's `authorization_function`: the request's login if its password is right, else the 401 that asks for one."""
    from flask import request
    from mlflow.server.auth import make_basic_auth_response

    given = request.authorization
    return given if given is not None and knows(given.username, given.password) else make_basic_auth_response()


def synchronise(logins: Iterable[str]) -> None:
    """A row in MLflow's table for each login, with a password that nobody has. Needs MLflow's auth store to be open."""
    from mlflow.server.auth import store

    for login in logins:
        if not store.has_user(login):
            store.create_user(login, secrets.token_urlsafe(32), is_admin=login == "admin")
