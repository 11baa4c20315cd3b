"""Keys and passwords: one 0600 file each below `<data>/keys`, made on first use by `truing up`.

Who may read which file is in the README's table; on a laptop all processes run as one user, and the banner says so.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from truing.tasks.errors import Unavailable
from truing.tasks.seal import Keys, new_key, public_key

PRIVATE = ("gate", "registry", "release")  # Ed25519: verdicts, approvals, releases
USERS = ("admin", "trainer", "steward", "approver", "gateway")  # logins of the registry; gateway only reads


class Keyring:
    """Files below one folder. Reading a missing one raises Unavailable with the remedy; `create` makes all that are missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, sources: list[str]) -> None:
        """Make every missing key. `sources` are `problem.source` names. Idempotent; never overwrites."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("wire", "actor-salt", "split-salt", "flask-secret"):
            self._make(name, secrets.token_bytes(32))
        for name in PRIVATE:
            self._make(name, new_key())
            self._make(f"{name}.pub", public_key(self.read(name)))
        for user in USERS:
            self._make(f"password-{user}", secrets.token_urlsafe(18).encode())
        self._make("prefect-auth", f"truing:{secrets.token_urlsafe(18)}".encode())
        for source in sources:
            self._make(f"source-{source}", secrets.token_bytes(32))

    def _make(self, name: str, data: bytes) -> None:
        path = self.folder / name
        if path.exists():
            return
        draft = path.with_name(f".{name}.{os.getpid()}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            os.link(draft, path)  # fails if another process was first: its key stays
        except FileExistsError:
            pass
        finally:
            draft.unlink()

    def read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise Unavailable(f"expected the key {path}, found none; run `truing up` or `truing init` first") from None
        except PermissionError:
            raise Unavailable(f"the key {path} is not readable for this user; run as the user that holds it") from None

    def source(self, problem: str, source: str) -> bytes:
        return self.read(f"source-{problem}.{source}")

    def password(self, user: str) -> str:
        return self.read(f"password-{user}").decode()

    def public(self) -> Keys:
        """The public keys of the three offices."""
        return Keys(gate=(self.read("gate.pub"),), registry=(self.read("registry.pub"),), release=(self.read("release.pub"),))
