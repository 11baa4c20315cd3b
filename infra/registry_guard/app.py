"""The registry: MLflow's own server app with basic auth, behind the guard, as one uvicorn process.

    python -m uvicorn --factory truing.infra.registry_guard.app:create_app

(`mlflow server` would be two processes and twice the memory.) MLflow stores below `<data>/registry`, the guard below
`<data>/guard`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.infra.keys import Keyring, keyring
from truing.infra.settings import Settings, current, quiet
from truing.tasks.errors import TruingError, Unavailable

if TYPE_CHECKING:
    from truing.infra.registry_guard.asgi import Gate
    from truing.infra.registry_guard.guard import Guard


def create_app() -> Gate:
    """The app of this process's settings: users made from the keyring, the guard in front of every route.

    What can't work (a missing key, a read-only folder, a second registry on it) ends the process with one line.
    """
    from truing.infra.registry_guard.asgi import Gate

    quiet()
    try:
        settings = current()
        return Gate(*guarded(settings, keyring(settings)))
    except TruingError as error:
        raise SystemExit(str(error)) from None


def guarded(settings: Settings, keyring: Keyring) -> tuple[Any, Guard]:
    """MLflow's FastAPI app with the guard's Flask hooks in place, and the guard.

    One per process: MLflow keeps its Flask app and its stores in module globals.
    """
    from truing.infra.registry_guard import environment
    from truing.infra.registry_guard.audit import Audit
    from truing.infra.registry_guard.users import follow, synchronise

    root = folder(settings)
    audit = Audit(
        settings.guard / "audit.jsonl", keyring.read("registry")
    )  # first: a second server ends before it touches anything
    follow(keyring)
    environment.configure(keyring, settings)
    from mlflow.server.auth import create_app as mlflow_app

    from truing.infra.registry_guard.guard import Guard

    app = mlflow_app()
    environment.forget()
    synchronise(keyring.logins())
    guard = Guard(root, keyring, settings.problems, audit)
    guard.install()
    return app, guard


def folder(settings: Settings) -> Path:
    """`<data>/registry` and `<data>/guard`, made if missing. Raises Unavailable in one line when it can't be written."""
    root = settings.store
    try:
        for path in (root, root / "artifacts", settings.guard):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Unavailable(f"expected a writable folder {root}, got {error.strerror}; choose another with TRUING_DATA") from None
    return root
