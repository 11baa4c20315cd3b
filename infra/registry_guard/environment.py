"""What MLflow's server reads from the environment when it is imported: set here, and nowhere else."""

from __future__ import annotations

import os
import secrets

from truing.infra.keys import Keyring
from truing.infra.settings import Settings

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def configure(keyring: Keyring, settings: Settings) -> None:
    """Set them for a server whose stores lie below `settings.store`.

    Logins are ours (`users.authenticate`): MLflow's table can be edited in its database, and it hashes slowly (1 s a request).
    """
    root, ini = settings.store, settings.guard / "auth.ini"
    ini.write_text(
        "[mlflow]\n"
        "default_permission = MANAGE\n"  # roles are the guard's: it answers with reasons, MLflow only says no
        f"database_uri = sqlite:///{root / 'auth.db'}\n"
        "admin_username = admin\n"
        "authorization_function = truing.infra.registry_guard.users:authenticate\n"
    )
    store = f"sqlite:///{root / 'mlflow.db'}"
    os.environ.pop("_MLFLOW_INTERNAL_GATEWAY_AUTH_TOKEN", None)  # a password for any login: no job of MLflow's runs here
    os.environ.update(
        {
            "_MLFLOW_SERVER_FILE_STORE": store,
            "_MLFLOW_SERVER_REGISTRY_STORE": store,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": (root / "artifacts").as_uri(),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SGI_NAME": "uvicorn",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_ENABLE_WORKSPACES": "false",
            "MLFLOW_AUTH_CONFIG_PATH": str(ini),
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_urlsafe(32),  # of the row, which opens nothing
            "MLFLOW_FLASK_SERVER_SECRET_KEY": keyring.read("flask-secret").hex(),
            "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }
    )
    if settings.host not in _LOOPBACK:  # MLflow refuses unknown Host headers
        os.environ.setdefault("MLFLOW_SERVER_ALLOWED_HOSTS", f"localhost:*,127.0.0.1:*,{settings.host}:*,registry:*")


def silence() -> None:
    """No webhook is delivered: a row in MLflow's table would have the registry call whatever address it names."""
    from mlflow.server import handlers

    handlers.deliver_webhook = lambda **_: None


def forget() -> None:
    """Take the admin's password out again once MLflow has read it."""
    os.environ.pop("MLFLOW_AUTH_ADMIN_PASSWORD", None)
