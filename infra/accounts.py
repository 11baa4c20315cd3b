"""Who owns which folder: laid out before anything starts, so that an office opens what is its own and nothing else.

Without accounts (a laptop) everything belongs to the user that starts it. With them `truing up` runs as root and hands each
folder to its account; the group of the lake is shared, and the steward reads the vault through the keeper's group.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import struct
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from truing.infra.keepers import PART, is_keeper
from truing.infra.keys import OFFICES, Keyring
from truing.infra.settings import Settings, child_environment
from truing.tasks.errors import SettingsError, Unavailable
from truing.tasks.problem import Problem

OFFICE_OF = {"runner": "trainer"}  # part → office, where the names differ


def office(part: str) -> str:
    """Whose keys and account a part runs with."""
    return PART if is_keeper(part) else OFFICE_OF.get(part, part)


def account(settings: Settings, part: str) -> str | None:
    """The Unix account of a part, None when all run as one."""
    found: str | None = getattr(settings.accounts, office(part))
    return found


def create_keys(settings: Settings, problems: dict[str, Problem]) -> None:
    """Every missing key, each folder owned by its office's account. Raises SettingsError, Unavailable."""
    sources = [f"{name}.{source}" for name, problem in problems.items() for source in problem.sources]
    owners = {name: _user(settings, name).pw_uid for name in OFFICES} if settings.accounts.separate else None
    broker = settings.kafka.broker == "kafka" and settings.kafka.security_protocol.startswith("SASL")
    Keyring(settings.keys).create(sources, approvers=settings.approvers, owners=owners, broker=broker)


_REACH = """
import os, sys
above, *read = sys.argv[1:]
for path, how in ((above, os.X_OK), *((path, os.R_OK) for path in read)):
    if not os.access(path, how):
        sys.exit(path)
"""


def reach(settings: Settings) -> None:
    """Can every account run this interpreter, import this code, read the problems and pass to the data folder?

    Raises Unavailable for the first that can't: its part would end with a traceback, or not start at all. SettingsError for
    an account that is root's or another office's.
    """
    if os.geteuid() != 0:
        raise Unavailable("accounts: expected to be started by root, which alone can become others; unset TRUING_ACCOUNTS__*")
    offices: dict[int, str] = {0: "root"}
    read = (Path(__file__).resolve(), settings.problems, *settings.problems.glob("*/*.toml"))
    tls, home = settings.tls, settings.kafka.home if settings.kafka.broker == "kafka" else None
    for name in type(settings.accounts).model_fields:
        user = _user(settings, name)
        shown = (tls.certificate, tls.key) if name in ("registry", "prefect", "gateway") else ()
        more = (*shown, home) if name == "broker" else (*shown, tls.ca)
        asked = [settings.data.resolve().parent, *read, *filter(None, more)]
        if user.pw_uid in offices:
            raise SettingsError(
                f"setting accounts.{name}: expected an account of its own, got that of {offices[user.pw_uid]}; name another"
            )
        offices[user.pw_uid] = name
        try:
            done = subprocess.run(  # noqa: S603 - our own interpreter
                [sys.executable, "-I", "-S", "-c", _REACH, *map(str, asked)],
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=os.getgrouplist(user.pw_name, user.pw_gid),
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
            )
        except PermissionError:
            raise Unavailable(_out_of_reach(user.pw_name, os.path.realpath(sys.executable))) from None
        if done.returncode:
            raise Unavailable(_out_of_reach(user.pw_name, (done.stderr.strip().splitlines() or ["its files"])[-1]))


def _out_of_reach(who: str, what: str) -> str:
    return f"accounts: expected {who} to reach {what}, it can't; move it to where other users may pass, or `chmod o+x` the way"


def prepare(settings: Settings, parts: Iterable[str], problems: dict[str, Problem]) -> None:
    """Keys and folders for these parts. Idempotent. Raises SettingsError, Unavailable in one line."""
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        create_keys(settings, problems)
        for part in parts:
            settings.scratch(part).mkdir(parents=True, exist_ok=True)
        settings.logs.mkdir(exist_ok=True)
        (settings.data / "prefect").mkdir(exist_ok=True)
        if settings.accounts.separate:
            _hand_over(settings, parts)
    except OSError as error:
        raise Unavailable(
            f"expected to lay out {error.filename or settings.data}, got: {error.strerror}; mend it or set TRUING_DATA"
        ) from None


def run_as(settings: Settings, office: str, command: list[str], given: bytes) -> bytes:
    """What a command of ours says on stdout, run by root as an office's account. Raises Unavailable with its own words."""
    if os.geteuid() != 0:
        raise Unavailable(f"expected to be root, who alone may act as {office}; run it as root")
    user = _user(settings, office)
    done = subprocess.run(  # noqa: S603 - our own interpreter
        command, input=given, user=user.pw_uid, group=user.pw_gid, extra_groups=os.getgrouplist(user.pw_name, user.pw_gid),
        cwd="/", env=child_environment(settings, TRUING_OFFICE=office), umask=0o007, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Unavailable((done.stderr.decode(errors="replace").strip().splitlines() or [f"{office}: ended early"])[-1])
    return done.stdout


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
    }
    for folder, name in own.items():
        _own(folder, _user(settings, name), 0o700)
    for part in parts:
        _own(settings.place(part), _user(settings, office(part)), 0o755)  # whoever likes may see its sign of life
        _own(settings.scratch(part), _user(settings, office(part)), 0o700)
    keeper, lake = _user(settings, "ingest"), _lake(settings)
    _own(settings.vault, keeper, 0o2750, group=_vault(settings))
    _own(settings.lake, keeper, 0o2770, group=lake)


def _own(folder: Path, user: pwd.struct_passwd, mode: int, *, group: int | None = None) -> None:
    """A folder of this account, and all in it when it was another's: a laptop's data folder goes on under accounts.

    Links are followed in root's own folders only: an account would like to own what it lets one point at. With `group`, what
    is made in it later has these rights too, whatever the umask of its maker.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = (user.pw_uid, user.pw_gid if group is None else group)
    theirs = folder.parent.stat().st_uid != 0
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | (os.O_NOFOLLOW if theirs else 0))
    try:
        facts = os.fstat(handle)
        if (facts.st_uid, facts.st_gid) != owner:
            for _, folders, files, inside in os.fwalk(".", dir_fd=handle):
                for name in (*folders, *files):
                    os.chown(name, *owner, dir_fd=inside, follow_symlinks=False)
                    if group is not None and not stat.S_ISLNK(os.stat(name, dir_fd=inside, follow_symlinks=False).st_mode):
                        os.chmod(name, mode if name in folders else mode & 0o660, dir_fd=inside)
                if group is not None:
                    _inherit(inside, mode)
            os.fchown(handle, *owner)
        os.fchmod(handle, mode)
        if group is not None:
            _inherit(handle, mode)
    finally:
        os.close(handle)


def _inherit(folder: int, mode: int) -> None:
    """Files and folders made in `folder` from now on get the rights of `mode`: a default ACL, where the file system has them.

    Where it has none, the parts' umask of 007 stands: then the steward could also write what it should only read.
    """
    entries = ((0x01, mode >> 6), (0x04, mode >> 3), (0x20, mode))  # owner, group, others (acl(5); linux/posix_acl_xattr.h)
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits & 7, 0xFFFFFFFF) for tag, bits in entries)
    with suppress(OSError, AttributeError):
        os.setxattr(folder, "system.posix_acl_default", packed)


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
