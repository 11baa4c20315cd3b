"""The artifact folder, as a place where somebody else may write too.

MLflow opens files there by name, so a link put in its way would make the registry read its own key or write into its own audit.
Here every component of a path is opened from the one before it and never through a link (`openat`, O_NOFOLLOW), only plain
files with a single name count, and what is hashed is what is read: nothing is looked at by name twice.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from truing.tasks.seal import digest

CHUNK = 1 << 20
DRAFT = ".artifact.uploading."  # MLflow's own prefix: such files are in no listing, and in no digest
DEPTH, MOST = 32, 10_000  # folders in folders, and entries below one root: more is no model
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a FIFO must not hold us


class Unsafe(ValueError):
    """What lies there is a link, has several names or is no plain file: nothing is read or written through it."""


class IsFolder(ValueError):
    """A folder, where a file was expected."""


@dataclass(frozen=True)
class Entry:
    name: str
    folder: bool
    size: int


@dataclass(frozen=True)
class Opened:
    """An open plain file; whoever gets it closes it."""

    handle: int
    size: int
    changed: float

    def chunks(self) -> Iterator[bytes]:
        """All of its bytes, CHUNK at a time."""
        while data := os.read(self.handle, CHUNK):
            yield data

    def close(self) -> None:
        os.close(self.handle)


def parts(path: str) -> tuple[str, ...]:
    """The components of a relative path. Raises ValueError at one that climbs, and at no path at all."""
    found = tuple(part for part in path.split("/") if part not in ("", "."))
    if not found or len(found) > DEPTH or any(part == ".." or "\0" in part or len(os.fsencode(part)) > 255 for part in found):
        raise ValueError(f"expected a path below the artifact root, got {path[:200]!r}; name it plainly")
    return found


class Files:
    """One local artifact root. It may be put in another's place while we run (a restore), so it is opened anew each time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, path: tuple[str, ...]) -> Opened:
        """A file's bytes. Raises FileNotFoundError, IsFolder, Unsafe."""
        with self._folder(path[:-1]) as above:
            return _open(path[-1], above)

    def listing(self, path: tuple[str, ...]) -> list[Entry]:
        """What lies in a folder, by name; [] if there is none. Links and the like are left out: they are not served either."""
        found = []
        with suppress(FileNotFoundError, NotADirectoryError), self._folder(path) as folder:
            for name in sorted(os.listdir(folder)):
                if name.startswith(DRAFT) or not _readable(name):
                    continue
                with suppress(FileNotFoundError):
                    facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    if stat.S_ISDIR(facts.st_mode) or (stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1):
                        found.append(Entry(name, stat.S_ISDIR(facts.st_mode), facts.st_size))
        return found

    def digest(self, path: tuple[str, ...], *, settle: bool = False) -> str | None:
        """`seal.tree_digest` of all files below a folder; None if there are none. With `settle` they are on the disk after it.

        Raises Unsafe at anything but plain files and folders.
        """
        marks: dict[str, str] = {}
        try:
            with self._folder(path) as folder:
                _walk(folder, "", marks, settle=settle)
        except (FileNotFoundError, NotADirectoryError):
            return None
        plain = {name: mark for name, mark in marks.items() if mark}
        return digest(plain) if plain else None

    @contextmanager
    def writing(self, path: tuple[str, ...]) -> Iterator[Draft]:
        """A draft that becomes the file when the block ends well, in one move; else it is gone. Folders are made as needed."""
        if path[-1].startswith(DRAFT):
            raise ValueError(f"expected a file name without {DRAFT}, which marks drafts, got {path[-1]!r}; choose another")
        with self._folder(path[:-1], make=True) as folder:
            draft = Draft(folder)
            try:
                yield draft
                draft.become(path[-1])
            finally:
                draft.drop()

    @contextmanager
    def _folder(self, path: tuple[str, ...], *, make: bool = False) -> Iterator[int]:
        """A handle on a folder below the root, each step taken from the one before it."""
        above = os.open(self.root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in (self.root.name, *path):
                below = _step(name, above, make=make)
                os.close(above)
                above = below
            yield above
        finally:
            os.close(above)


class Draft:
    """A new file under a name of its own, in the folder where it shall end up."""

    def __init__(self, folder: int) -> None:
        self._folder, self._name = folder, DRAFT + secrets.token_hex(8)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._handle = os.open(self._name, flags, 0o666, dir_fd=folder)
        self._done = False

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._handle, view) :]

    def become(self, name: str) -> None:
        os.replace(self._name, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._done = True

    def drop(self) -> None:
        os.close(self._handle)
        if not self._done:
            with suppress(FileNotFoundError):
                os.unlink(self._name, dir_fd=self._folder)


def below_root(uri: str) -> str | None:
    """`mlflow-artifacts:/1/models/m-x/artifacts` → `1/models/m-x/artifacts`; None for any other place, or one that climbs."""
    match = _URI.fullmatch(uri)
    return None if match is None or ".." in match[1].split("/") else match[1]


_URI = re.compile(r"mlflow-artifacts:/([A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)")


def _step(name: str, above: int, *, make: bool) -> int:
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=above)
    try:
        return os.open(name, _FOLDER, dir_fd=above)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and _is_link(name, above):
            raise Unsafe(f"{name} is a link, and nothing is read or written through links") from None
        raise


def _open(name: str, above: int) -> Opened:
    if name.startswith(DRAFT):
        raise FileNotFoundError(errno.ENOENT, "a draft is no file yet", name)
    try:
        handle = os.open(name, _FILE, dir_fd=above)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Unsafe(f"{name} is no plain file: a link, a socket or the like") from None
        raise
    facts = os.fstat(handle)
    if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1:
        return Opened(handle, facts.st_size, facts.st_mtime)
    os.close(handle)
    if stat.S_ISDIR(facts.st_mode):
        raise IsFolder(f"{name} is a folder")
    # a second name may lie where others can't look: they would read through us what only we may
    raise Unsafe(f"{name} " + ("has several names (hard links)" if stat.S_ISREG(facts.st_mode) else "is no plain file"))


def _walk(folder: int, prefix: str, marks: dict[str, str], *, settle: bool) -> None:
    """Put {path: sha256} of every file into `marks`; a folder stands there with an empty mark, so that it is counted too."""
    if prefix.count("/") > DEPTH:
        raise Unsafe(f"folders lie more than {DEPTH} deep")
    for name in sorted(os.listdir(folder)):
        if name.startswith(DRAFT):
            continue
        if len(marks) >= MOST or not _readable(name):
            raise Unsafe(f"expected at most {MOST} files with names in UTF-8, got {name!a} beside {len(marks)}")
        path = prefix + name
        if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            marks[f"{path}/"] = ""
            below = _step(name, folder, make=False)
            try:
                _walk(below, f"{path}/", marks, settle=settle)
            finally:
                os.close(below)
            continue
        file = _open(name, folder)
        try:
            mark = hashlib.sha256()
            for chunk in file.chunks():
                mark.update(chunk)
            if settle:
                os.fsync(file.handle)
        finally:
            file.close()
        marks[path] = mark.hexdigest()


def _is_link(name: str, above: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _readable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
