"""The registry: MLflow's own server app with basic auth, behind the guard, as one uvicorn process.

    python -m uvicorn --factory truing.infra.registry_guard.app:create_app

`mlflow server` would be two processes and twice the memory. MLflow reads its configuration from environment variables when it is
imported, so they are set here, in `_configure`, and nowhere else. Everything lies below `<data>/registry`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.infra.keys import Keyring
from truing.infra.settings import Settings, current, quiet
from truing.tasks.errors import Unavailable

if TYPE_CHECKING:
    from truing.infra.registry_guard.guard import Guard

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def create_app() -> App:
    """The app of this process's settings: users made from the keyring, the guard in front of every route."""
    quiet()
    settings = current()
    return build(settings, Keyring(settings.keys))


def build(settings: Settings, keyring: Keyring) -> App:
    """The guarded app. One per process: MLflow keeps its Flask app and its stores in module globals."""
    from truing.infra.registry_guard.asgi import Gate

    return Gate(*guarded(settings, keyring))


def guarded(settings: Settings, keyring: Keyring) -> tuple[Any, Guard]:
    """MLflow's FastAPI app with the guard's Flask hooks in place, and the guard."""
    root = folder(settings)
    _configure(root, keyring, settings)
    from mlflow.server.auth import create_app as mlflow_app
    from truing.infra.registry_guard.guard import Guard
    from truing.infra.registry_guard.users import synchronise

    app = mlflow_app()
    os.environ.pop("MLFLOW_AUTH_ADMIN_PASSWORD", None)  # children and /proc need not show it any longer
    synchronise(keyring, root / "users.json")
    guard = Guard(root, keyring, settings.problems)
    guard.install()
    return app, guard


def folder(settings: Settings) -> Path:
    """`<data>/registry`, made if missing. Raises Unavailable in one line when it can't be written."""
    root = settings.data / "registry"
    try:
        for path in (root, root / "artifacts", root / "audit"):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Unavailable(f"expected a writable folder {root}, got {error.strerror}; choose another with TRUING_DATA") from None
    return root


def _configure(root: Path, keyring: Keyring, settings: Settings) -> None:
    """Every variable MLflow's server reads at import. Cached logins keep a request at 5 ms instead of 1 s of password hashing."""
    ini = root / "auth.ini"
    ini.write_text(
        "[mlflow]\n"
        "default_permission = MANAGE\n"  # roles are the guard's: it answers with reasons, MLflow only says no
        f"database_uri = sqlite:///{root / 'auth.db'}\n"
        "admin_username = admin\n"
        "auth_cache_ttl_seconds = 600\n"
    )
    store = f"sqlite:///{root / 'mlflow.db'}"
    os.environ.update(
        {
            "_MLFLOW_SERVER_FILE_STORE": store,
            "_MLFLOW_SERVER_REGISTRY_STORE": store,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": (root / "artifacts").as_uri(),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SGI_NAME": "uvicorn",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_AUTH_CONFIG_PATH": str(ini),
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": keyring.password("admin"),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": keyring.read("flask-secret").hex(),
            "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }
    )
    if settings.host not in ("127.0.0.1", "localhost"):
        os.environ.setdefault("MLFLOW_SERVER_ALLOWED_HOSTS", f"localhost:*,127.0.0.1:*,{settings.host}:*,registry:*")
