"""First form: no rules yet."""

from __future__ import annotations

from pathlib import Path

from truing.infra.keys import Keyring


class Guard:
    def __init__(self, root: Path, keyring: Keyring, problems: Path) -> None:
        self.root = root

    def install(self) -> None:
        from mlflow.server.handlers import _get_model_registry_store, _get_tracking_store

        _get_tracking_store()
        _get_model_registry_store()
