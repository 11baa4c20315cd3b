"""The registry under a login of this process: its password followed through rotations, its server proved by our authority."""

from __future__ import annotations

from truing.infra.keys import following_password, keyring
from truing.infra.settings import Settings
from truing.tasks.release.registry import Registry


def registry_as(settings: Settings, user: str, *, timeout_s: float = 30.0) -> Registry:
    """Raises Unavailable when the login has no password here, or the authority's file does not read."""
    password = following_password(keyring(settings), user)
    password()
    return Registry(settings.registry_url, user, password, timeout_s=timeout_s, ca=settings.tls.ca)
