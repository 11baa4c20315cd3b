"""Gathers what `tasks.release.proof` checks: from the files of this data folder, without a running part; what this user can't
open there, from the registry and the gateway over HTTP.

MLflow's database may have been written by anybody, so it is opened read-only, with plain SELECTs, no functions of its schema
and a limit on time; artifacts are read only below the artifact folder, and nothing through a link.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from truing.infra.calls import call
from truing.infra.gateway.cache import Cache
from truing.infra.keys import keyring
from truing.infra.logins import registry_as
from truing.infra.settings import Settings
from truing.tasks.errors import DataError, TruingError, Unavailable
from truing.tasks.records import Record
from truing.tasks.release.acts import STANDING, Acts
from truing.tasks.release.audit import Broken, Line, Mark, follow, read
from truing.tasks.release.book import Book, read_book
from truing.tasks.release.chain import whole_lines
from truing.tasks.release.findings import open_findings
from truing.tasks.release.proof import DIFFERS, MISSING, OK, Check, Evidence, Remembered
from truing.tasks.release.reconcile import Finding
from truing.tasks.release.registry import Registry
from truing.tasks.release.versions import Model, Version
from truing.tasks.seal import Keys, read_tree

QUERY_S = 20.0  # a view or trigger planted in the database can't hold us longer
_STORE = "mlflow-artifacts:/"


class Shelf:
    """MLflow's registry as it lies on this disk."""

    def __init__(self, folder: Path) -> None:
        self.database, self.artifacts = folder / "mlflow.db", folder / "artifacts"

    def model(self, problem: str) -> Model | None:
        """None if there is no such model. Raises Unavailable at what does not read."""
        with self._open() as rows:
            if not rows("SELECT 1 FROM registered_models WHERE name = ?", problem):
                return None
            tags = rows("SELECT key, value FROM registered_model_tags WHERE name = ?", problem)
            aliases = rows("SELECT alias, version FROM registered_model_aliases WHERE name = ?", problem)
        return Model(
            problem=problem,
            tags={str(key): str(value or "") for key, value in tags},
            aliases={str(alias): str(version) for alias, version in aliases},
        )

    def versions(self, problem: str) -> list[Version]:
        """All versions by rising number, their artifact folder as MLflow names it."""
        with self._open() as rows:
            found = rows(
                "SELECT version, creation_time, description, coalesce(storage_location, source), status FROM model_versions "
                "WHERE name = ? AND current_stage != 'Deleted_Internal' ORDER BY version",
                problem,
            )
            tags: dict[str, dict[str, str]] = {}
            for version, key, value in rows("SELECT version, key, value FROM model_version_tags WHERE name = ?", problem):
                tags.setdefault(str(version), {})[str(key)] = str(value or "")
        return [
            Version(
                problem=problem,
                version=str(int(version)),
                created=int(created or 0) / 1000.0,
                tags=tags.get(str(version), {}),
                description=str(description or ""),
                artifacts=str(location or ""),
                status=str(status),
            )
            for version, created, description, location, status in found
        ]

    def files(self, version: Version) -> dict[str, bytes]:
        """The bytes that lie where MLflow says. Raises ValueError for a place outside the artifact folder, or a link."""
        if not version.artifacts.startswith(_STORE):
            raise ValueError(f"expected a place below {_STORE}, got {version.artifacts[:60]!r}")
        folder = self.artifacts / version.artifacts.removeprefix(_STORE).strip("/")
        try:
            if self.artifacts.resolve() not in folder.resolve().parents or folder.resolve() != folder.absolute():
                raise ValueError(f"expected a plain folder below {self.artifacts}, got {version.artifacts[:60]!r}")
            return read_tree(folder)
        except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError to pathlib
            raise ValueError(f"{version.artifacts[:60]!r} does not read: {error}") from None

    @contextmanager
    def _open(self) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
        """`rows(select, *values)` on the open database."""
        try:
            with closing(sqlite3.connect(f"{self.database.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as database:
                database.text_factory = lambda raw: raw.decode("utf-8", "replace")
                end = time.monotonic() + QUERY_S
                database.set_progress_handler(lambda: time.monotonic() > end, 10_000)
                database.execute("PRAGMA trusted_schema = OFF")
                yield lambda select, *values: database.execute(select, values).fetchall()
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise Unavailable(f"expected MLflow's database {self.database} to read, got: {error}; restore it") from None


def visitor(
    settings: Settings,
    user: str | None = None,
    *,
    others: Iterable[str] = ("trainer", "gateway", "admin"),
    timeout_s: float = 30.0,
) -> Registry:
    """The registry under this login, or under the first approver, else of the `others`, whose password this user can read.

    Raises Unavailable, about the first of them.
    """
    first: TruingError | None = None
    for login in [user] if user else [*settings.approvers, *others]:
        try:
            return registry_as(settings, login, timeout_s=timeout_s)
        except Unavailable as error:
            first = first or error
    raise first or Unavailable("expected a login of the registry, got none; run `truing keys list`")


def gather(settings: Settings, problems: Iterable[str], *, user: str | None = None) -> tuple[dict[str, Evidence], list[Check]]:
    """The evidence of each problem, and what is to be said of audit, book and store themselves."""
    keys = keyring(settings).public()
    unread: dict[str, str] = {}
    checks: list[Check] = []
    book = _book(settings, keys, unread, checks)
    lines = _audit(settings, keys, user, book, unread, checks)
    acts, standing = Acts(keys.registry), list[tuple[str, str]]()
    for line in lines or ():
        acts.apply(line)
        if line.entry.act == STANDING and line.entry.outcome == "done":
            standing.append((line.entry.facts.get("problem", ""), line.entry.facts.get("envelope", "")))
    found = {}
    for problem in problems:
        own = dict(unread)
        shelf, gateway = _shelf(settings, user, own), _gateway(settings, problem, own)
        model, versions = _taken(shelf, problem, checks)
        found[problem] = Evidence(
            problem=problem,
            keys=keys,
            model=model,
            versions=versions,
            files=_files(shelf),
            docket=None if lines is None else acts.of(problem),
            book=book,
            standing=[text for name, text in standing if name == problem],
            gateway=gateway,
            unread=own,
        )
    begun = any(one.versions or (one.gateway and one.gateway.floor) for one in found.values())
    if not begun and not lines and (book is None or not book.marks):  # nothing has happened yet, so nothing can be missing
        checks = [
            msgspec.structs.replace(one, state=OK, expected="", got="", note="nothing recorded yet")
            if one.state == MISSING
            else one
            for one in checks
        ]
    return found, checks


class Examined(Record, frozen=True):
    """What `truing audit verify` found: `broken` is the first break in one line, or empty."""

    broken: str
    text: str
    data: dict[str, Any]


def examine(settings: Settings, *, user: str | None = None) -> Examined:
    """Chain, signatures, every audit head that the steward countersigned, its book, and its open findings."""
    keys = keyring(settings).public()
    unread: dict[str, str] = {}
    checks: list[Check] = []
    book = _book(settings, keys, unread, checks)
    lines = _audit(settings, keys, user, book, unread, checks)
    if lines is None:
        raise Unavailable(unread["audit"])
    fresh = not settings.desk.exists() and not lines  # nothing has begun yet
    opened, closed = _findings(settings, keys, unread, checks)
    first = next((one for one in checks if one.broken and not fresh), None)
    broken = f"{first.about}'s {first.name}: expected {first.expected}, got {first.got}" if first else ""
    if opened and not broken:
        one = opened[0]
        broken = f"finding {one.key}: expected {one.expected}, got {one.got} ({len(opened)} open; see `truing status`)"
    marks = book.marks if book else []
    data = {
        "whole": not broken,
        "records": len(lines),
        "countersigned": len(marks),
        "until": marks[-1].n if marks else 0,
        "findings": [{**msgspec.structs.asdict(one), "key": one.key} for one in opened],
        "findings_closed": closed,
        "broken": broken,
        "unread": unread,
    }
    text = f"audit whole: {len(lines)} records, chained and signed"
    if book is None:
        text += "; the steward's countersigned heads could not be read: run as root or as its account"
    else:
        text += f"; {len(marks)} heads countersigned by the steward, the last at {marks[-1].n if marks else 0}"
        text += "" if "findings" in unread else f"; no open findings, {closed} put right so far"
    return Examined(broken=broken, text=text, data=data)


def _book(settings: Settings, keys: Keys, unread: dict[str, str], checks: list[Check]) -> Book | None:
    path = settings.desk / "book.jsonl"
    if _closed(path):
        unread["book"] = f"{path}: not readable for this user; run as root or as the steward's account"
        return None
    try:
        book = read_book(path, keys)
    except Broken as error:
        checks.append(Check(about="steward", name="book", state=DIFFERS, expected="a whole chain", got=str(error)))
        return None
    if not path.exists():
        checks.append(Check(about="steward", name="book", state=MISSING, expected=str(path), got="no such file"))
    else:
        checks.append(Check(about="steward", name="book", state=OK, note=f"whole, {len(book.marks)} audit heads countersigned"))
    return book


def _findings(settings: Settings, keys: Keys, unread: dict[str, str], checks: list[Check]) -> tuple[list[Finding], int]:
    """What the steward found to differ and is still so, oldest first; and how many it found that are gone."""
    path = settings.desk / "findings.jsonl"
    if _closed(path):
        unread["findings"] = f"{path}: not readable for this user; run as root or as the steward's account"
        return [], 0
    try:
        return open_findings(path, keys), sum(line.entry.act == "close" for line in whole_lines(path))
    except Broken as error:
        checks.append(Check(about="steward", name="findings", state=DIFFERS, expected="a whole chain", got=str(error)))
        return [], 0


def _audit(
    settings: Settings, keys: Keys, user: str | None, book: Book | None, unread: dict[str, str], checks: list[Check]
) -> list[Line] | None:
    """The checked lines; up to the break of a broken chain. None if nobody lets us read it."""
    try:
        lines, source = audit_lines(settings, user=user)
    except Unavailable as error:
        unread["audit"] = str(error)
        return None
    found: list[Line] = []
    why = ""
    try:
        for line in checked(lines, keys.registry, book.marks if book else ()):
            found.append(line)
    except Broken as error:
        why = str(error)
    if why or not found:
        state = DIFFERS if why else MISSING
        checks.append(Check(about="registry", name="audit", state=state, expected="a whole chain", got=why or "no record"))
    else:
        checks.append(
            Check(about="registry", name="audit", state=OK, note=f"{len(found)} records, chained and signed, {source}")
        )
    return found


def audit_lines(settings: Settings, *, user: str | None = None) -> tuple[Iterable[Line], str]:
    """The audit's lines, unchecked, and where they come from. Raises Unavailable if nobody lets this user read them."""
    path = settings.guard / "audit.jsonl"
    if not _closed(path):
        return read(path), "read here"
    try:
        return visitor(settings, user).rest.audit(0), "read over HTTP"
    except TruingError as error:
        raise Unavailable(f"{path}: not readable for this user, and the registry gives none: {error}") from None


def standing_acts(settings: Settings, *, user: str | None = None) -> Acts:
    """What stands now, folded from the checked audit. Raises Unavailable, Broken."""
    keys = keyring(settings).public()
    acts = Acts(keys.registry)
    for line in follow(audit_lines(settings, user=user)[0], keys=keys.registry):
        acts.apply(line)
    return acts


def checked(lines: Iterable[Line], keys: Iterable[bytes], heads: Iterable[Mark]) -> Iterator[Line]:
    """`audit.verify` that hands the lines out: each chained, signed, and the one that was countersigned. Raises Broken."""
    wanted = {head.n: head.digest for head in heads if head.n}
    last = 0
    for line in follow(lines, keys=keys):
        last = line.entry.n
        if wanted.pop(last, line.digest) != line.digest:
            raise Broken(f"audit record {last} is another one than was countersigned; the audit was rewritten: restore it")
        yield line
    if wanted:
        raise Broken(
            f"expected audit record {max(wanted)}, which was countersigned, got {last} as last: the tail was cut; restore it"
        )


def _shelf(settings: Settings, user: str | None, unread: dict[str, str]) -> Shelf | Registry | None:
    shelf = Shelf(settings.store)
    if not _closed(shelf.database) and shelf.database.exists():
        return shelf
    try:
        registry = visitor(settings, user)
        registry.rest.get("/experiments/search", max_results=1)
    except TruingError as error:
        unread["store"] = f"{shelf.database}: not readable for this user or not there, and the registry says nothing: {error}"
        return None
    return registry


def _taken(shelf: Shelf | Registry | None, problem: str, checks: list[Check]) -> tuple[Model | None, list[Version]]:
    try:
        if shelf is not None:
            return shelf.model(problem), shelf.versions(problem)
    except DataError:  # no such model yet
        pass
    except Unavailable as error:
        checks.append(Check(about=problem, name="store", state=DIFFERS, expected="a database that reads", got=str(error)))
    return None, []


def _files(shelf: Shelf | Registry | None) -> Callable[[Version], Mapping[str, bytes]]:
    def files(version: Version) -> Mapping[str, bytes]:
        if isinstance(shelf, Shelf):
            return shelf.files(version)
        return shelf.payload(version.problem, version.version) if shelf is not None else {}

    return files


def _gateway(settings: Settings, problem: str, unread: dict[str, str]) -> Remembered | None:
    """What its cache says, else what it answers."""
    folder = settings.data / "gateway" / problem
    if not _closed(folder / "state.json"):
        try:
            state = Cache(folder).state()
        except Unavailable as error:
            unread["gateway"] = str(error)
            return None
        if state is not None:
            return Remembered(floor=state.floor, statement=state.statement)
    try:
        told = call("GET", f"{settings.gateway_url}/status", timeout=3.0)["problems"][problem]
        return Remembered(floor=int(told["floor"]))
    except (TruingError, LookupError, TypeError, ValueError):
        unread["gateway"] = "it remembers nothing here, and none answers"
        return None


def _closed(path: Path) -> bool:
    """Is it there, or may it be there, and this user can't open it?"""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except PermissionError:
        return True
    except OSError:
        return False
    return False
