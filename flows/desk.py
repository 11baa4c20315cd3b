"""The steward's desk: its keys, its book, its eyes on the registry, and what it remembers between two turns."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from truing.flows import loop
from truing.flows.patience import Patience
from truing.flows.rounds import Rounds
from truing.flows.watch import Watch
from truing.infra.keys import Following, keyring
from truing.infra.logins import registry_as
from truing.tasks.errors import TruingError
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.release.book import Book, open_book
from truing.tasks.release.findings import Findings
from truing.tasks.release.reconcile import Finding

if TYPE_CHECKING:
    from truing.infra.settings import Settings
    from truing.tasks.release.registry import Registry
    from truing.tasks.tables.lake import Lake, Vault


@dataclass(kw_only=True)
class Desk:
    """What the steward works with, and what it remembers between two turns. Times in `at` are monotonic."""

    settings: Settings
    problems: dict[str, tuple[Problem, Policy]]
    lake: Lake
    vault: Vault
    registry: Registry
    offices: Callable[[], loop.Offices]
    announce: Callable[[dict[str, Any]], str]
    book: Book
    watch: Watch
    rounds: Rounds
    patience: Patience = field(default_factory=lambda: Patience(1.0, 300.0))
    heard: int = 0
    recovered: set[str] = field(default_factory=set)
    shown: set[int] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    bench: threading.Thread | None = None  # where a verdict is made, so that a way back never waits for one
    aside: bool = True
    clock: float = field(default_factory=lambda: time.time() - time.monotonic())
    at: dict[str, float] = field(default_factory=dict)

    def every(self, name: str, seconds: float) -> bool:
        """Is it time again? The first time it is."""
        now = time.monotonic()
        if name in self.at and now - self.at[name] < seconds:
            return False
        self.at[name] = now
        return True

    def say(self, word: str) -> None:
        """Log it, once."""
        if word not in self.said:
            if len(self.said) > 1000:
                self.said.clear()
            self.said.add(word)
            log(word)


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} steward: {text}", file=sys.stderr, flush=True)  # noqa: T201 - supervisord keeps it


def offices(settings: Settings) -> Callable[[], loop.Offices]:
    """The steward's own keys and everybody's public ones, followed through rotations."""
    ring = keyring(settings)

    def read() -> loop.Offices:  # the public ones last: a key that signs is never ahead of them
        return loop.Offices(gate=ring.read("gate"), release=ring.read("release"), public=ring.public())

    return Following(read, *(ring.path(name) for name in ("gate", "release", "gate.pub", "release.pub", "registry.pub")))


def open_desk(settings: Settings) -> Desk:
    """Raises Unavailable when another steward is at it, or the book does not hold."""
    from truing.infra.catalog import catalog
    from truing.infra.control import announcer
    from truing.infra.notify import heard, teller
    from truing.tasks.tables.lake import Lake, Vault

    holders, registry = offices(settings), registry_as(settings, "steward")

    def key() -> bytes:
        return holders().release

    book = open_book(settings.desk / "book.jsonl", key=key, keys=holders().public)
    findings = Findings(settings.desk / "findings.jsonl", key=key, keys=holders().public)
    announce = heard(announcer(settings), teller(settings, log=log))
    return Desk(
        settings=settings,
        problems=catalog(settings.problems),
        lake=Lake(settings.lake),
        vault=Vault(settings.vault),
        registry=registry,
        offices=holders,
        announce=announce,
        book=book,
        watch=Watch(registry, book, lambda: holders().public),
        rounds=Rounds(registry, book, findings, partial(told, announce)),
    )


def close_desk(desk: Desk) -> None:
    """A verdict on the bench has a few seconds to be finished; else it is made again after the next start."""
    if desk.bench is not None:
        desk.bench.join(5.0)
    desk.book.close()
    desk.rounds.findings.close()
    desk.registry.close()


def told(announce: Callable[[dict[str, Any]], str], one: Finding, opened: bool) -> None:
    """A finding in the log and, while it is open, on the control topic. The file has it already."""
    where = f"{one.problem} v{one.version}" if one.version else one.problem or "registry"
    log(f"{'found' if opened else 'gone'}: {where}: {one.what}: expected {one.expected}, got {one.got}")
    if not opened:
        return
    try:
        announce(
            {"type": "alert.raised", "problem": one.problem, "key": one.key, "level": "critical", "what": one.what,
             "expected": one.expected, "got": one.got}
        )  # fmt: skip
    except TruingError as error:
        log(f"{one.key}: not announced: {error}")
