"""Who owns which folder: laid out before anything starts, so that an office opens what is its own and nothing else.

Without accounts (a laptop) everything belongs to the user that starts it. With them `truing up` runs as root and hands each
folder to its account; the group of the lake is shared, and the steward reads the vault through the keeper's group.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable
from pathlib import Path

from truing.infra.keys import OFFICES, Keyring
from truing.infra.settings import Settings
from truing.tasks.errors import SettingsError, Unavailable
from truing.tasks.problem import Problem

OFFICE_OF = {"runner": "trainer"}  # part → office, where the names differ


def office(part: str) -> str:
    """Whose keys and account a part runs with."""
    return OFFICE_OF.get(part, part)


def account(settings: Settings, part: str) -> str | None:
    """The Unix account of a part, None when all run as one."""
    found: str | None = getattr(settings.accounts, office(part))
    return found


def create_keys(settings: Settings, problems: dict[str, Problem]) -> None:
    """Every missing key, each folder owned by its office's account. Raises SettingsError, Unavailable."""
    sources = [f"{name}.{source}" for name, problem in problems.items() for source in problem.sources]
    owners = {name: _user(settings, name).pw_uid for name in OFFICES} if settings.accounts.separate else None
    Keyring(settings.keys).create(sources, approvers=settings.approvers, owners=owners)


def prepare(settings: Settings, parts: Iterable[str], problems: dict[str, Problem]) -> None:
    """Keys and folders for these parts. Idempotent. Raises SettingsError, Unavailable in one line."""
    if settings.accounts.separate and os.geteuid() != 0:
        raise Unavailable("accounts: expected to be started by root, which alone can become others; unset TRUING_ACCOUNTS__*")
    settings.data.mkdir(parents=True, exist_ok=True)
    create_keys(settings, problems)
    for part in parts:
        settings.place(part).mkdir(parents=True, exist_ok=True)
    settings.logs.mkdir(exist_ok=True)
    (settings.data / "prefect").mkdir(exist_ok=True)
    if settings.accounts.separate:
        _hand_over(settings, parts)


def _hand_over(settings: Settings, parts: Iterable[str]) -> None:
    for folder in (settings.data, settings.data / "run"):
        folder.chmod(0o711)
    settings.logs.chmod(0o700)
    own = {
        settings.store: "registry",
        settings.guard: "registry",
        settings.data / "prefect": "prefect",
        settings.data / "studies": "trainer",
        settings.desk: "steward",
        settings.data / "gateway": "gateway",
        settings.data / "outbox": "gateway",
        settings.data / "broker": "broker",
        **{settings.place(part): office(part) for part in parts},
    }
    for folder, name in own.items():
        _own(folder, _user(settings, name), 0o755 if folder.parent.name == "run" else 0o700)
    keeper, lake = _user(settings, "ingest"), _lake(settings)
    _own(settings.vault, keeper, 0o2750, group=_vault(settings))
    _own(settings.lake, keeper, 0o2770, group=lake)


def _own(folder: Path, user: pwd.struct_passwd, mode: int, *, group: int | None = None) -> None:
    """A folder of this account. What lies in it already is left alone: it belongs to whoever wrote it."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, user.pw_uid, user.pw_gid if group is None else group)
    folder.chmod(mode)


def _user(settings: Settings, name: str) -> pwd.struct_passwd:
    wanted = getattr(settings.accounts, name)
    try:
        return pwd.getpwnam(wanted)
    except KeyError:
        raise SettingsError(
            f"setting accounts.{name}: expected a Unix account of this machine, got {wanted!r}; make it or name another"
        ) from None


def _vault(settings: Settings) -> int:
    """The keeper's own group, which the steward has to be in: it reads the vault, and nobody else does."""
    keeper = _user(settings, "ingest")
    _member(settings, "steward", keeper.pw_gid)
    return keeper.pw_gid


def _lake(settings: Settings) -> int:
    """The trainer's own group, which keeper and steward have to be in: all three write the lake."""
    group = _user(settings, "trainer").pw_gid
    for name in ("ingest", "steward"):
        _member(settings, name, group)
    return group


def _member(settings: Settings, name: str, group: int) -> None:
    user = _user(settings, name)
    if group not in os.getgrouplist(user.pw_name, user.pw_gid):
        raise SettingsError(
            f"setting accounts.{name}: expected {user.pw_name} to be in the group {grp.getgrgid(group).gr_name}, it is not; "
            f"run `usermod -aG {grp.getgrgid(group).gr_name} {user.pw_name}`"
        )
