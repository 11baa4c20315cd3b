"""Keys and passwords: one folder an office below `<data>/keys`, one 0600 file each, made on first use by `truing up`.

An office is a job that runs under its own account where accounts differ (compose, Kubernetes, a server): it can open its own
folder and nothing else. On a laptop one user owns them all, and the banner says so. What two offices need lies twice.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from truing.tasks.errors import Unavailable
from truing.tasks.flush import flush
from truing.tasks.records import Record
from truing.tasks.seal import Keys, digest_bytes, new_key, public_key

if TYPE_CHECKING:
    from truing.infra.settings import Settings

OFFICES = ("broker", "registry", "prefect", "trainer", "ingest", "steward", "gateway")
PRIVATE = {"registry": "registry", "gate": "steward", "release": "steward"}  # Ed25519 key → office that signs with it
SERVICES = ("trainer", "steward", "gateway", "admin")  # logins of the registry beside the approvers; gateway only reads
APPROVERS = ("approver", "approver2")
SPEAKERS = ("ingest", "gateway", "steward", "trainer")  # offices that speak to the broker
GRACE_S = 300.0  # how long a password that was replaced still opens the registry: its holder reads the new one meanwhile

# name → folders that hold it, the first is its home
_SHARED = {
    "wire": ("ingest", "gateway"),
    "actor-salt": ("ingest",),
    "split-salt": ("ingest",),
    "control": ("sources", "ingest", "steward"),  # who holds it may ask for runs: see control.py
    "flask-secret": ("registry",),
    "prefect-auth": ("prefect", "trainer", "ingest", "steward"),
}


class Verifier(Record, frozen=True):
    """How the registry knows a login: sha256 over salt and password. The passwords are 144 random bits, so no slow hash helps.

    `before` is the verifier it replaced, good until `until` (Unix seconds).
    """

    salt: str
    hash: str
    before: str = ""
    until: float = 0.0

    def knows(self, password: str, now: float) -> bool:
        from hmac import compare_digest

        given = digest_bytes(self.salt.encode() + password.encode("utf-8", "replace"))
        return compare_digest(given, self.hash) or (now < self.until and compare_digest(given, self.before))


class Keyring:
    """Key files below one folder. With `office`, that office's own folder is read first: what a separated process uses.

    Reading a missing file raises Unavailable with the remedy; `create` makes all that are missing.
    """

    def __init__(self, folder: Path, office: str | None = None) -> None:
        self.folder, self.office = folder, office

    # --- making
    def create(
        self,
        sources: Iterable[str],
        *,
        approvers: Iterable[str] = APPROVERS,
        owners: Mapping[str, int] | None = None,
        broker: bool = False,
    ) -> None:
        """Make every missing key. `sources` are `problem.source` names, `owners` the uid of each office's folder. With `broker`
        everybody who speaks to it gets a password (`kafka-<identity>`, see acl.py), which the broker's office holds, too.

        Idempotent; never overwrites.
        """
        people = (*SERVICES, *approvers)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o711)
        for office in (*OFFICES, "public", "sources", *people):
            (self.folder / office).mkdir(exist_ok=True, mode=0o755 if office == "public" else 0o700)
        for name, folders in _SHARED.items():
            fresh = f"truing:{secrets.token_urlsafe(18)}".encode() if name == "prefect-auth" else secrets.token_bytes(32)
            self._spread(name, folders, fresh)
        for name, office in PRIVATE.items():
            self._spread(name, (office,), new_key())
            self._make(self.folder / "public" / f"{name}.pub", public_key((self.folder / office / name).read_bytes()), 0o644)
        sources = list(sources)
        for source in sources:
            self._spread(f"source-{source}", ("sources", "ingest"), secrets.token_bytes(32))
        if broker:
            speakers = {name: name for name in SPEAKERS} | {f"source-{one}": "sources" for one in sources}
            for name, office in {**speakers, "operator": "sources", "admin": "broker"}.items():
                self._spread(f"kafka-{name}", ("broker", office), secrets.token_urlsafe(24).encode())
        for login in people:
            self._spread("password", (login,), secrets.token_urlsafe(18).encode())
        self._verifiers(people)
        for office, uid in (owners or {}).items():
            self._give(self.folder / office, uid)

    def rotate(self, name: str, *, now: float) -> None:
        """A new key or password in the place of the old one, while everything runs.

        `name` is a login, or gate, release, registry. A replaced password opens the registry for GRACE_S more seconds; a
        replaced public key stays trusted, because what it signed is still needed. Raises Unavailable for an unknown name.

        The exception is prefect-auth: Prefect reads its login once, when it starts, and knows one at a time. Replace it while
        the stack is down.
        """
        if name == "prefect-auth":
            login = f"truing:{secrets.token_urlsafe(18)}".encode()
            for folder in _SHARED[name]:
                _replace(self.folder / folder / name, login)
            return
        if name in PRIVATE:
            private = new_key()
            public = self.folder / "public" / f"{name}.pub"
            _replace(public, public_key(private) + public.read_bytes())  # first: nobody may meet a signature without its key
            _replace(self.folder / PRIVATE[name] / name, private)
            return
        path = self.folder / name / "password"
        if not path.exists():
            known = ", ".join((*PRIVATE, *sorted(found.parent.name for found in self.folder.glob("*/password"))))
            raise Unavailable(f"expected a key or login of {known}, got {name!r}; name one")
        password = secrets.token_urlsafe(18)
        logins = self.logins()
        old = logins.get(name)
        salt = old.salt if old else secrets.token_hex(8)
        fresh = Verifier(
            salt=salt, hash=_mark(salt, password), before=old.hash if old else "", until=now + GRACE_S if old else 0.0
        )
        _replace(self.folder / "registry" / "logins", msgspec.json.encode({**logins, name: fresh}))
        _replace(path, password.encode())

    def _verifiers(self, people: Iterable[str]) -> None:
        """The registry's list of logins; a password that was changed by hand is followed."""
        path = self.folder / "registry" / "logins"
        before = self.logins() if path.exists() else {}
        logins = {}
        for login in people:
            password = _plain(self.folder / login / "password").decode()
            known = before.get(login)
            if known is None or not known.knows(password, 0.0):
                salt = secrets.token_hex(8)
                known = Verifier(salt=salt, hash=_mark(salt, password))
            logins[login] = known
        if logins != before:
            _replace(path, msgspec.json.encode(logins))

    def _spread(self, name: str, folders: Iterable[str], fresh: bytes) -> None:
        home, *copies = folders
        self._make(self.folder / home / name, fresh)
        for copy in copies:
            self._make(self.folder / copy / name, _plain(self.folder / home / name))

    def _make(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        if path.exists():
            return
        draft = _draft(path, data, mode)
        try:
            os.link(draft, path)  # fails if another process was first: its key stays
        except FileExistsError:
            return
        finally:
            draft.unlink()

    def _give(self, folder: Path, uid: int) -> None:
        for path in (folder, *folder.iterdir()):  # a link that an account laid there is not followed: it would get its target
            if path.lstat().st_uid != uid:
                os.chown(path, uid, -1, follow_symlinks=False)

    # --- reading
    def path(self, name: str) -> Path:
        """Where a name lies: in this office's folder if it holds a copy, else in its home."""
        if self.office is not None:
            mine = self.folder / self.office / name
            if mine.exists():
                return mine
        if name.endswith(".pub"):
            home = "public"
        elif name.startswith("source-"):
            home = "sources"
        elif name.startswith("kafka-"):
            home = "broker"
        else:
            home = PRIVATE.get(name) or _SHARED.get(name, (self.office or "registry",))[0]
        return self.folder / home / name

    def read(self, name: str) -> bytes:
        return _read(self.path(name))

    def source(self, problem: str, source: str) -> bytes:
        return self.read(f"source-{problem}.{source}")

    def password(self, login: str) -> str:
        return _read(self.folder / login / "password").decode()

    def logins(self) -> dict[str, Verifier]:
        """What the registry knows of its logins."""
        return msgspec.json.decode(_read(self.folder / "registry" / "logins"), type=dict[str, Verifier])

    def public(self) -> Keys:
        """The public keys of the three signers; several of one while it rotates, the newest first."""

        def several(name: str) -> tuple[bytes, ...]:
            data = self.read(f"{name}.pub")
            return tuple(data[at : at + 32] for at in range(0, len(data), 32))

        return Keys(gate=several("gate"), registry=several("registry"), release=several("release"))


def keyring(settings: Settings) -> Keyring:
    """The keys below `settings.keys`, read as the office of this process."""
    return Keyring(settings.keys, settings.office or None)


class Following:
    """A value read from files that may be replaced while this process runs; looked at again when a file is another one."""

    def __init__(self, read: Callable[[], Any], *paths: Path) -> None:
        self._read, self._paths = read, paths
        self._seen: tuple[Any, ...] = ()
        self._value: Any = None

    def __call__(self) -> Any:
        seen = tuple(_identity(path) for path in self._paths)
        if seen != self._seen:
            self._value, self._seen = self._read(), seen
        return self._value


def following_public(ring: Keyring) -> Callable[[], Keys]:
    """`Keyring.public`, followed through rotations."""
    return Following(ring.public, *(ring.path(f"{name}.pub") for name in PRIVATE))


def following_password(ring: Keyring, login: str) -> Callable[[], str]:
    """A login's password, followed through rotations."""
    return Following(lambda: ring.password(login), ring.folder / login / "password")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns


def _mark(salt: str, password: str) -> str:
    return digest_bytes(salt.encode() + password.encode())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Unavailable(f"expected the key {path}, found none; run `truing up` or `truing init` first") from None
    except PermissionError:
        raise Unavailable(f"the key {path} is not readable for this user; run as the user that holds it") from None


def _plain(path: Path) -> bytes:
    """A file that its office may have replaced, read by root: never what a link there points at."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Unavailable(f"expected the key {path}, got: {error.strerror}; restore it from a backup") from None
    with os.fdopen(handle, "rb") as file:
        return file.read()


def _draft(path: Path, data: bytes, mode: int, owner: tuple[int, int] | None = None) -> Path:
    """The data on the disk beside `path`, whole, or nothing: a full disk leaves no half key."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            if owner is not None:
                os.fchown(handle, *owner)
            file.write(data)
            file.flush()
            os.fsync(handle)
    except BaseException:
        draft.unlink()
        raise
    return draft


def _replace(path: Path, data: bytes) -> None:
    """One move, and the new file belongs to whom the old one (or its folder) belonged."""
    facts = (path if path.exists() else path.parent).lstat()
    owner = (facts.st_uid, facts.st_gid) if os.geteuid() == 0 else None
    draft = _draft(path, data, 0o644 if path.suffix == ".pub" else 0o600, owner)
    try:
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    flush(path.parent)  # on the disk before the next: a key must not outlive its public half
