"""Gathers what `tasks.release.proof` checks: from the files of this data folder, without a running part; what this user can't
open there, from the registry and the gateway over HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from truing.infra.calls import call
from truing.infra.gateway.cache import Cache
from truing.infra.keys import keyring
from truing.infra.logins import registry_as
from truing.infra.settings import Settings
from truing.infra.stored import Shelf
from truing.tasks.errors import DataError, TruingError, Unavailable
from truing.tasks.release.acts import STANDING, Acts
from truing.tasks.release.audit import Broken, Line, Mark, follow, read
from truing.tasks.release.book import Book, read_book
from truing.tasks.release.proof import DIFFERS, MISSING, OK, Check, Evidence, Remembered
from truing.tasks.release.registry import Registry
from truing.tasks.release.versions import Model, Version
from truing.tasks.seal import Keys


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
    book = steward_book(settings, keys, unread, checks)
    lines = read_audit(settings, keys, user, book, unread, checks)
    acts, standing = Acts(keys.registry), list[tuple[str, str]]()
    for line in lines or ():
        acts.apply(line)
        if line.entry.act == STANDING and line.entry.outcome == "done":
            standing.append((line.entry.facts.get("problem", ""), line.entry.facts.get("envelope", "")))
    found = {}
    for problem in problems:
        own = dict(unread)
        place, gateway = shelf(settings, user, own), _gateway(settings, problem, own)
        model, versions = _taken(place, problem, checks)
        found[problem] = Evidence(
            problem=problem,
            keys=keys,
            model=model,
            versions=versions,
            files=_files(place),
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


def steward_book(settings: Settings, keys: Keys, unread: dict[str, str], checks: list[Check]) -> Book | None:
    path = settings.desk / "book.jsonl"
    if closed(path):
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


def read_audit(
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
    if not closed(path):
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


def shelf(settings: Settings, user: str | None, unread: dict[str, str]) -> Shelf | Registry | None:
    """MLflow's store: as it lies here, else over HTTP; None, and why in `unread`, where neither can be had."""
    here = Shelf(settings.store)
    if not closed(here.database) and here.database.exists():
        return here
    try:
        registry = visitor(settings, user)
        registry.rest.get("/experiments/search", max_results=1)
    except TruingError as error:
        unread["store"] = f"{here.database}: not readable for this user or not there, and the registry says nothing: {error}"
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
    if not closed(folder / "state.json"):
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


def closed(path: Path) -> bool:
    """Is it there, or may it be there, and this user can't open it?"""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except PermissionError:
        return True
    except OSError:
        return False
    return False
