"""The four logins of the registry, kept equal to the keyring at every start."""

from __future__ import annotations

import json
from pathlib import Path

from truing.infra.keys import USERS, Keyring
from truing.tasks.seal import mac


def synchronise(keyring: Keyring, marks: Path) -> None:
    """Make missing users and follow changed passwords.

    Checking four password hashes takes seconds, so `marks` remembers a keyed mark of each password that was set here; an
    unchanged mark of an existing user needs no hashing. Needs MLflow's auth store to be open.
    """
    from mlflow.server.auth import store

    secret = keyring.read("flask-secret")
    known = json.loads(marks.read_text()) if marks.exists() else {}
    now = {user: mac(secret, user, keyring.password(user)) for user in USERS}
    for user in USERS:
        exists = store.has_user(user)
        if exists and known.get(user) == now[user]:
            continue
        if exists:
            store.update_user(user, password=keyring.password(user), is_admin=user == "admin")
        else:
            store.create_user(user, keyring.password(user), is_admin=user == "admin")
    draft = marks.with_suffix(".draft")
    draft.write_text(json.dumps(now))
    draft.chmod(0o600)
    draft.replace(marks)
