"""The registry: MLflow's own server app with basic auth, behind the guard, as one uvicorn process.

    python -m uvicorn --factory truing.infra.registry_guard.app:create_app

(`mlflow server` would be two processes and twice the memory.) MLflow stores below `<data>/registry`, the guard below
`<data>/guard`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.infra.keys import Following, Keyring, following_public, keyring
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

    One per process: MLflow keeps its Flask app and its stores in module globals. Raises Unavailable in one line.
    """
    from truing.infra.registry_guard import environment
    from truing.infra.registry_guard.audit import Audit
    from truing.infra.registry_guard.ledger import Ledger
    from truing.infra.registry_guard.users import follow, synchronise

    artifacts = folders(settings)
    keys = following_public(keyring)
    ledger = Ledger(keys)
    key = Following(lambda: keyring.read("registry"), keyring.path("registry"))
    # first: a second server ends before it touches anything, and one whose audit was altered decides nothing
    audit = Audit(settings.guard / "audit.jsonl", key, lambda: keys().registry, ledger.apply)
    follow(keyring, settings.approvers)
    environment.configure(keyring, settings)
    from sqlalchemy.exc import SQLAlchemyError

    try:
        from mlflow.server.auth import create_app as mlflow_app

        from truing.infra.registry_guard.files import Files
        from truing.infra.registry_guard.guard import Guard
        from truing.infra.registry_guard.repository import wall

        files = Files(artifacts)
        wall(files)
        app = mlflow_app()
        environment.forget()
        environment.silence()
        synchronise(keyring.logins())
        guard = Guard(files, keyring, settings.problems, audit, ledger)
    except SQLAlchemyError as error:
        words = str(error).splitlines()[0]
        raise Unavailable(
            f"expected MLflow's databases below {settings.store}, got: {words}; restore them from a backup"
        ) from None
    guard.install()
    return app, guard


def folders(settings: Settings) -> Path:
    """`<data>/registry` and `<data>/guard`, made if missing; returns the artifact root.

    Raises Unavailable in one line when they can't be written, or when a database or the artifact root is a link: these lie
    where others may write, and a link would lead the registry elsewhere.
    """
    artifacts = settings.store / "artifacts"
    try:
        for path in (settings.store, settings.guard):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        artifacts.mkdir(exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"expected a writable folder {settings.store}, got {error.strerror}; choose another with TRUING_DATA"
        ) from None
    for path in (artifacts, settings.store / "mlflow.db", settings.store / "auth.db"):
        if path.is_symlink():
            raise Unavailable(f"expected {path} itself, got a link; mount another disk there instead")
    return artifacts
