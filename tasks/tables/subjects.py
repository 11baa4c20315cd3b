"""Keys of people: what is sealed for one owner can be read as long as that owner's key exists, and never again after.

A key a person would mean a look-up and an insert for every event. So a secret is kept for each of 65,536 *buckets* of owners,
and an owner's key is derived from it:

    key(owner) = BLAKE2b-256(owner, keyed by secret[family, bucket(owner), generation])

(keyed BLAKE2b is a PRF as HMAC is, RFC 7693, at 0.6 instead of 2.2 µs.) To destroy one owner's key, the derived keys of its
*neighbours* (others in the bucket who have something sealed) are written down, the bucket's secret is deleted, and a new
generation serves what is sealed from then on. Nothing of the destroyed key is left in the file: it is rewritten, its journal
overwritten. What a disk or a backup kept of older files is beyond this: keep backups no longer than you may remember people.

Families: "trainable" and "holdout" (subjects by split), "vault" (owners that are no subject: actors, sources), "dead" (dead
letters, owner = UTC day). Beside the vault lies a file with all four, beside the lake one with "trainable" only (`mirror`).

Sealed: 0x01 | family, 1 byte | generation, 2 bytes | nonce, 12 bytes | AES-256-GCM of the text, tag 16 bytes last; the owner is
authenticated along, so nothing sealed for one person can be passed off as another's. JSON never begins with 0x01: what was
written before there were keys still reads. Nonces are random: up to 2^32 texts an owner (NIST SP 800-38D).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import stat
import threading
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from truing.tasks.errors import DataError, Unavailable
from truing.tasks.tables.aead import Whose, encrypt_many

FILE: Final = "subjects.sqlite"
FAMILIES: Final = {"trainable": b"t", "holdout": b"h", "vault": b"v", "dead": b"d"}
OVERHEAD: Final = 32  # bytes that sealing adds
_DOOR, _COMMITS = ".door", ".commits"  # locks in the vault's folder
_MARK: Final = b"\x01"
_MARK_AT: Final = 1
_NAMES: Final = {code[0]: name for name, code in FAMILIES.items()}
_BLOCK: Final = 64  # buckets whose secrets are made together: 1,024 transactions at most, and small files stay small
_REMEMBERED: Final = 250_000  # keys of owners at hand, a family: about 70 MB
_WAIT_S: Final = 10.0  # for whoever holds the file
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS secrets(
    family TEXT, bucket INTEGER, generation INTEGER, secret BLOB, at INTEGER,
    PRIMARY KEY(family, bucket, generation)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept(
    family TEXT, bucket INTEGER, generation INTEGER, owner TEXT, key BLOB, at INTEGER,
    PRIMARY KEY(family, bucket, generation, owner)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts(name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
INSERT OR IGNORE INTO facts VALUES ('changed', 0), ('destroyed', 0), ('unscrubbed', 0), ('mirrored', 0);
"""


def bucket(owner: str) -> int:
    """0..65535. Owners are keyed hashes, sources and days: nobody outside chooses them, so a checksum spreads them well."""
    return zlib.crc32(owner.encode()) & 0xFFFF


def owner(subject: str | None, actor: str | None, source: str) -> str:
    """Whose key a landed event's data is sealed under."""
    return subject or actor or f"source {source}"


def day(at: float) -> str:
    """The owner of dead letters that landed at `at` (Unix seconds): their UTC day, destroyed when its lifetime is over."""
    return time.strftime("%Y-%m-%d", time.gmtime(at))


@contextmanager
def commits(root: Path) -> Iterator[None]:
    """Held by whoever seals, from the sealing until the commit: nobody's key is destroyed in between. Many may hold it.

    A lock that the kernel drops with its process; `root` is the vault's folder. A destroyer that waits comes first.
    """
    with _locked(root / _DOOR, fcntl.LOCK_SH) as door, _locked(root / _COMMITS, fcntl.LOCK_SH):
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@contextmanager
def no_commits(root: Path) -> Iterator[None]:
    """Held by whoever destroys: waits for the commits in flight, and none begins before this ends."""
    with _locked(root / _DOOR, fcntl.LOCK_EX), _locked(root / _COMMITS, fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[int]:
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"{path}: expected to lock it, got: {error.strerror}; check the folder's permissions") from None
    try:
        fcntl.flock(handle, how)
        yield handle
    finally:
        os.close(handle)


def sealed(text: bytes | None) -> bool:
    """Was this sealed? Else it is plain."""
    return bool(text) and text[0] == _MARK_AT  # type: ignore[index]


class Subjects:
    """One file of keys. Safe among threads and processes; a process that may only read it opens what others seal."""

    def __init__(self, path: Path, families: Collection[str], *, writes: bool) -> None:
        unknown = sorted(set(families) - set(FAMILIES))
        if unknown:
            raise DataError(f"{path}: expected families of {list(FAMILIES)}, got {unknown}; name one of them")
        self.path = path
        self.families = frozenset(families)
        self.writes = writes
        self._lock = threading.RLock()
        self._file: sqlite3.Connection | None = None
        self._forget_cached()
        self._destroyed = -1

    @classmethod
    def open(cls, path: Path, families: Collection[str], *, create: bool = False) -> Subjects:
        """The keys at `path`; with `create` the file is made if need be and may be written. Raises Unavailable."""
        made = cls(path, families, writes=create)
        if create:
            with made._reading() as file:  # finish what a killed process began
                unscrubbed = _fact(file, "unscrubbed")
            if unscrubbed:
                made.scrub()
        elif not path.exists():
            raise Unavailable(f"expected the keys {path}, found none; restore them from the backup that holds the tables")
        return made

    # --- sealing and opening
    def seal_many(self, families: Sequence[str], owners: Sequence[str], texts: Sequence[bytes]) -> list[bytes]:
        """Each text sealed for its owner, in order; one of no family ("") has no text, and stays empty.

        Missing secrets are made, and are on the disk before this returns.
        """
        whose: list[Whose] = []
        add = whose.append
        with self._lock:
            self._follow()
            known = self._known
            for family, owner in zip(families, owners, strict=True):
                if not family:
                    continue
                try:
                    add(known[family][owner])
                except KeyError:
                    add(self._learn(family, owner, families, owners))
        if len(whose) == len(texts):
            return encrypt_many(whose, texts)
        sealed = iter(encrypt_many(whose, [text for text, of in zip(texts, families, strict=True) if of]))
        return [next(sealed) if family else b"" for family in families]

    def _learn(self, family: str, owner: str, families: Sequence[str], owners: Sequence[str]) -> Whose:
        """What an owner's texts are sealed with, remembered: who comes once comes again, and deriving takes a µs.

        The secrets of all others that are to be sealed are made along, where there are none.
        """
        name = owner.encode()
        where = zlib.crc32(name) & 0xFFFF
        if where not in self._current.get(family, ()):
            needed = {bucket(one) for one, of in zip(owners, families, strict=True) if of == family}
            self._make(family, needed.difference(self._current.get(family, ())))
        header, secret = self._current[family][where]
        known = self._known[family]
        if len(known) >= _REMEMBERED:
            known.clear()
        known[owner] = found = header, _derived(secret, name), name
        return found

    def open_many(self, blobs: Sequence[bytes | None], owners: Sequence[str | None]) -> list[bytes | None]:
        """Each text as it was before it was sealed; None where its key is destroyed. What is plain comes back as it is.

        Raises DataError when a text was altered or is another owner's, Unavailable when its key was never in this file.
        """
        out: list[bytes | None] = []
        add = out.append
        with self._lock:
            self._follow()
            for blob, owner in zip(blobs, owners, strict=True):
                if not blob or blob[0] != _MARK_AT:
                    add(blob)
                    continue
                name = (owner or "").encode()
                header = blob[:4]
                key = self._kept.get((header, name)) if self._kept else None
                if key is None:
                    where = zlib.crc32(name) & 0xFFFF
                    if (header, where) not in self._secrets:
                        self._load(header, blobs, owners)
                        self._expect(header, where)
                        key = self._kept.get((header, name))
                    secret = self._secrets[header, where]
                    if key is None and secret is not None:
                        key = _derived(secret, name)
                if key is None:
                    add(None)
                    continue
                try:
                    add(AESGCM(key).decrypt(blob[4:16], blob[16:], name))
                except InvalidTag:
                    raise DataError(
                        f"{self.path}: expected a text sealed for {(owner or '')[:12]}…, got an altered one or another's; "
                        "restore the table from a backup"
                    ) from None
        return out

    # --- secrets
    def _make(self, family: str, buckets: set[int]) -> None:
        """The newest generation of these buckets, made where there is none; their whole blocks with them."""
        if not self.writes or family not in self.families:
            raise Unavailable(f"{self.path}: expected to seal for {family}, but these keys are for reading; the keeper seals")
        wanted = sorted({block + n for block in {where - where % _BLOCK for where in buckets} for n in range(_BLOCK)})
        newest: dict[int, tuple[int, bytes | None]] = {}
        with self._writing() as file:
            for some in _chunks(wanted):
                found = file.execute(
                    f"SELECT bucket, generation, secret FROM secrets WHERE family = ? AND bucket IN ({_marks(some)}) "  # noqa: S608
                    "ORDER BY generation",
                    (family, *some),
                )
                newest.update((where, (generation, secret)) for where, generation, secret in found)
            fresh = []
            for where in wanted:
                generation, secret = newest.get(where, (0, None))
                if secret is None:
                    if generation == 0xFFFF:
                        raise Unavailable(
                            f"{self.path}: bucket {where} of {family} was renewed 65,535 times; start a new vault"
                        )
                    newest[where] = generation + 1, os.urandom(32)
                    fresh.append((family, where, *newest[where]))
            if fresh:
                at = _change(file)
                file.executemany("INSERT INTO secrets VALUES (?, ?, ?, ?, ?)", [(*row, at) for row in fresh])
        current = self._current.setdefault(family, {})
        for where, (generation, secret) in newest.items():
            if secret is not None:
                current[where] = _header(family, generation), secret

    def _load(self, header: bytes, blobs: Sequence[bytes | None], owners: Sequence[str | None]) -> None:
        """All generations and kept keys of the buckets that these texts of one family need."""
        family = _NAMES.get(header[1], "?")
        if family not in self.families:
            raise Unavailable(
                f"{self.path}: expected texts of {sorted(self.families)}, got one of {family}; open it with the vault"
            )
        wanted = {
            bucket(owner or "") for blob, owner in zip(blobs, owners, strict=True) if blob and blob[:2] == header[:2]
        }  # fmt: skip
        with self._reading() as file:
            for some in _chunks(sorted(wanted)):
                where = f"WHERE family = ? AND bucket IN ({_marks(some)})"
                given = (family, *some)
                for at, generation, secret in file.execute(
                    f"SELECT bucket, generation, secret FROM secrets {where}",  # noqa: S608
                    given,
                ):
                    self._secrets[_header(family, generation), at] = secret
                for generation, owner, key in file.execute(
                    f"SELECT generation, owner, key FROM kept {where}",  # noqa: S608
                    given,
                ):
                    self._kept[_header(family, generation), owner.encode()] = key

    def _expect(self, header: bytes, where: int) -> None:
        if (header, where) not in self._secrets:
            raise Unavailable(
                f"{self.path}: expected the key of bucket {where} of {_NAMES[header[1]]}, found none: the keys are "
                "older than the tables; restore both from one backup"
            )

    # --- destroying
    def destroy(self, family: str, owners: Collection[str], others: Iterable[str]) -> int:
        """Make all that is sealed for `owners` unreadable for ever; returns how many secrets went.

        `others` are all who have anything sealed in this family (only the neighbours among them matter): whoever is left out
        loses theirs, so call it where nobody seals or commits meanwhile. Repeated, it does what is left to do.
        """
        gone = set(owners)
        touched = {bucket(owner) for owner in gone}
        neighbours: dict[int, list[str]] = {}
        for other in set(others) - gone:
            if (where := bucket(other)) in touched:
                neighbours.setdefault(where, []).append(other)
        count = 0
        with self._writing() as file:
            at = _change(file)
            for owner in sorted(gone):
                file.execute(
                    "UPDATE kept SET key = NULL, at = ? WHERE family = ? AND bucket = ? AND owner = ? AND key IS NOT NULL",
                    (at, family, bucket(owner), owner),
                )
            for where in sorted(touched):
                living = file.execute(
                    "SELECT generation, secret FROM secrets WHERE family = ? AND bucket = ? AND secret IS NOT NULL",
                    (family, where),
                ).fetchall()
                for generation, secret in living:
                    keys = [
                        (family, where, generation, other, _derived(secret, other.encode()), at)
                        for other in neighbours.get(where, ())
                    ]
                    file.executemany("INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?)", keys)
                    file.execute(
                        "UPDATE secrets SET secret = NULL, at = ? WHERE family = ? AND bucket = ? AND generation = ?",
                        (at, family, where, generation),
                    )
                    count += 1
            file.execute("UPDATE facts SET value = value + 1 WHERE name = 'destroyed'")
            file.execute("UPDATE facts SET value = 1 WHERE name = 'unscrubbed'")
        self.scrub()
        return count

    def scrub(self) -> None:
        """Rewrite the file and overwrite its journal: a deleted secret may still stand where a page once was split."""
        with self._lock:
            self._forget_cached()
            file = self._connected()
            with self._translated():
                file.execute("VACUUM")  # its copy stays in memory
                file.execute("BEGIN IMMEDIATE")  # nobody else writes a journal now
                try:
                    _blank(self.path.with_name(self.path.name + "-journal"))
                finally:
                    file.execute("ROLLBACK")
            with self._writing() as file:
                file.execute("UPDATE facts SET value = 0 WHERE name = 'unscrubbed'")

    def mirror(self, other: Subjects, family: str = "trainable") -> int:
        """Bring the other file's keys of a family up to ours; returns how many changed. Before rows are written, always.

        The other file is ours alone to write, so what changed here since the last time is all there is to do.
        """
        with self._reading() as file:
            changed = _fact(file, "changed")
        with other._reading() as theirs:
            mirrored = _fact(theirs, "mirrored")
        if mirrored == changed:
            return 0
        since = (family, mirrored if mirrored < changed else 0)  # a backup of ours is older than theirs: look at all
        with self._reading() as file:
            file.execute("BEGIN")  # one view of all tables
            try:
                changed = _fact(file, "changed")
                secrets = file.execute("SELECT * FROM secrets WHERE family = ? AND at > ?", since).fetchall()
                kept = file.execute("SELECT * FROM kept WHERE family = ? AND at > ?", since).fetchall()
            finally:
                file.execute("ROLLBACK")
        gone = any(row[-2] is None for row in (*secrets, *kept))
        with other._writing() as theirs:
            theirs.executemany("INSERT OR REPLACE INTO secrets VALUES (?, ?, ?, ?, ?)", secrets)
            theirs.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?, ?, ?)", kept)
            theirs.execute("UPDATE facts SET value = ? WHERE name IN ('mirrored', 'changed')", (changed,))
            if gone:
                theirs.execute("UPDATE facts SET value = value + 1 WHERE name = 'destroyed'")
                theirs.execute("UPDATE facts SET value = 1 WHERE name = 'unscrubbed'")
        if gone:
            other.scrub()
        return len(secrets) + len(kept)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
            self._forget_cached()

    # --- the file
    def _forget_cached(self) -> None:
        self._current: dict[str, dict[int, tuple[bytes, bytes]]] = {name: {} for name in FAMILIES}  # bucket → header, secret
        self._known: dict[str, dict[str, Whose]] = {name: {} for name in FAMILIES}
        self._secrets: dict[tuple[bytes, int], bytes | None] = {}  # header, bucket → secret
        self._kept: dict[tuple[bytes, bytes], bytes | None] = {}  # header, owner → key

    def _follow(self) -> None:
        """What was destroyed by anybody since must not live on in this process's memory."""
        with self._reading() as file:
            destroyed = _fact(file, "destroyed")
        if destroyed != self._destroyed:
            self._forget_cached()
            self._destroyed = destroyed

    def _connected(self) -> sqlite3.Connection:
        if self._file is None:
            if self.writes:
                if not self.path.exists():  # where a folder is shared by its group, so are the keys: for reading
                    shared = self.path.parent.stat().st_mode & stat.S_ISGID
                    handle = os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600)
                    os.fchmod(handle, 0o640 if shared else 0o600)
                    os.close(handle)
                self._file = self._connect("rwc")
                self._file.executescript(_TABLES)
            else:
                self._file = self._connect("ro")
        return self._file

    def _connect(self, mode: str) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        file = sqlite3.connect(uri, uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        file.execute("PRAGMA temp_store = MEMORY")
        if mode != "ro":
            file.execute("PRAGMA secure_delete = ON")
            file.execute("PRAGMA journal_mode = PERSIST")  # kept and overwritten: a deleted file could not be
        return file

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            file = self._connected()
            if not self.writes:
                self._recover(file)
            yield file

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk when it ends."""
        if not self.writes:
            raise Unavailable(f"{self.path}: these keys were opened for reading; only the keeper's account writes them")
        with self._lock, self._translated():
            file = self._connected()
            file.execute("BEGIN IMMEDIATE")
            try:
                yield file
            except BaseException:
                file.execute("ROLLBACK")
                raise
            file.execute("COMMIT")

    def _recover(self, file: sqlite3.Connection) -> None:
        """A writer that was killed leaves a journal that only somebody who may write can roll back."""
        until = time.monotonic() + _WAIT_S
        while True:
            try:
                _fact(file, "destroyed")
                return
            except sqlite3.OperationalError as error:
                if "no such table" in str(error) or time.monotonic() > until:
                    raise
                if os.access(self.path, os.W_OK):
                    writer = self._connect("rw")
                    try:
                        _fact(writer, "destroyed")
                    finally:
                        writer.close()
                time.sleep(0.05)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise Unavailable(
                f"{self.path}: expected the file of keys, got: {' '.join(str(error).split())[:150]}; "
                "check the folder, its permissions and the space left"
            ) from None


def _derived(secret: bytes, owner: bytes) -> bytes:
    return hashlib.blake2b(owner, key=secret, digest_size=32).digest()


def _header(family: str, generation: int) -> bytes:
    return _MARK + FAMILIES[family] + generation.to_bytes(2, "big")


def _fact(file: sqlite3.Connection, name: str) -> int:
    return int(file.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0])


def _change(file: sqlite3.Connection) -> int:
    """The number of a change, within its transaction: what `mirror` goes by."""
    file.execute("UPDATE facts SET value = value + 1 WHERE name = 'changed'")
    return _fact(file, "changed")


def _chunks(wanted: Sequence[int]) -> Iterator[list[int]]:
    rest = iter(wanted)
    while some := list(islice(rest, 500)):
        yield some


def _marks(some: Sequence[int]) -> str:
    return ",".join("?" * len(some))


def _blank(path: Path) -> None:
    """Overwrite a file with zeros, on the disk."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return
    with path.open("r+b") as file:
        file.write(bytes(size))
        file.flush()
        os.fsync(file.fileno())
