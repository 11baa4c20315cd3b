"""Prefect's server as our own process, and the login of those who talk to it: read from the key file, never handed down.

python -m uvicorn --factory truing.infra.workflow:create_app
"""

from __future__ import annotations

import os
from typing import Any

from truing.infra.keys import keyring
from truing.infra.settings import Settings, current
from truing.tasks.errors import TruingError


def log_in(settings: Settings) -> None:
    """Let this process and its children use Prefect's API. Call it before Prefect is imported."""
    auth = keyring(settings).read("prefect-auth").decode()
    os.environ["PREFECT_API_AUTH_STRING"] = auth
    os.environ["PREFECT_SERVER_API_AUTH_STRING"] = auth


def create_app() -> Any:
    """Prefect's server app, asking for that login. A missing key ends the process in one line."""
    try:
        log_in(current())
    except TruingError as error:
        raise SystemExit(f"prefect: {error}") from None
    from prefect.server.api.server import create_app as prefect_app

    return prefect_app()
