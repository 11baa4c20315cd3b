"""Brings the released model of each problem into memory, if `seal.admit` lets it.

The registry is only asked what it shows: the alias `champion`, the `release` statement on that version, the payload's bytes.
Nothing of it is believed beyond signature and digest, and no code comes from it. The bytes that were hashed are the bytes the
model is built from; a file is never read again in between. What is refused leaves the model before it in place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from truing.infra.gateway.cache import Cache, State
from truing.tasks import seal
from truing.tasks.errors import TruingError, Unavailable
from truing.tasks.kinds.model import Model
from truing.tasks.problem import Problem
from truing.tasks.records import Record, Refusal, Release

RETRY_S = 10.0  # a refused statement is looked at again after this long: bytes may have been restored


class Shown(Record, frozen=True):
    """What the registry shows as champion. `release` is the envelope's JSON, "" if none is attached."""

    version: str
    release: str


class Shelf(Protocol):
    """The registry as the gateway sees it. Both raise Unavailable when it does not answer."""

    def champion(self, problem: str) -> Shown | None: ...

    def payload(self, problem: str, version: str) -> dict[str, bytes]: ...


@dataclass(frozen=True)
class Served:
    """One admitted release with the model built from its bytes."""

    problem: Problem
    model: Model
    release: Release
    envelope: str
    files: dict[str, bytes]
    since: float

    @property
    def name(self) -> str:
        return f"{self.problem.name}@{self.release.sequence}"

    def expired(self, now: float) -> bool:
        return self.release.expires is not None and self.release.expires <= now


@dataclass
class Look:
    """What the loader knows of one problem beside what it serves."""

    served: Served | None = None
    state: State | None = None
    refusal: str | None = None  # why the statement seen last is not served
    refused: Shown | None = None
    again: float = 0.0


class Loader:
    """One thread that polls. `served` is safe to call from any thread: a request keeps the model it began with."""

    def __init__(
        self,
        problems: dict[str, Problem],
        shelf: Shelf,
        *,
        keys: seal.Keys,
        folder: Path,
        poll_s: float,
        clock: Callable[[], float],
        log: Callable[[str], None],
    ) -> None:
        self.problems = problems
        self.registry_error: str | None = None
        self._shelf = shelf
        self._keys = keys
        self._caches = {name: Cache(folder / name) for name in problems}
        self._poll_s = poll_s
        self._clock = clock
        self._log = log
        self._looks = {name: Look() for name in problems}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def served(self, problem: str) -> Served | None:
        return self._looks[problem].served

    def floor(self, problem: str) -> int:
        state = self._looks[problem].state
        return state.floor if state else 0

    def refusal(self, problem: str) -> str | None:
        return self._looks[problem].refusal

    def start(self) -> None:
        """Serve what the cache holds, if it still proves itself, then follow the registry."""
        for name in self.problems:
            self.boot(name)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def boot(self, problem: str) -> None:
        """Load from the cache: hashed and admitted again like anything that comes over the wire."""
        look, cache = self._looks[problem], self._caches[problem]
        try:
            state = look.state = cache.state()
        except Unavailable as error:
            self._refuse(problem, str(error))
            return
        if state is None:
            return
        files = cache.payload(state.payload)
        if files is None:
            self._refuse(problem, f"the cached payload of release {state.floor} is gone; it comes back from the registry")
            return
        self._take(problem, Shown(version=state.version, release=state.envelope), lambda: files)
        look.refused = None  # whatever the cache lacked, the registry is asked at once

    def look(self, problem: str) -> bool:
        """Ask the registry once; True if another release is served afterwards. Raises Unavailable when it does not answer."""
        look = self._looks[problem]
        shown = self._shelf.champion(problem)
        if shown is None:
            return False
        served = look.served
        if served is not None and served.envelope == shown.release and served.release.version == shown.version:
            look.refusal, look.refused = None, None
            return False
        if look.refused == shown and self._clock() < look.again:
            return False
        return self._take(problem, shown, lambda: self._shelf.payload(problem, shown.version))

    def _take(self, problem: str, shown: Shown, fetch: Callable[[], dict[str, bytes]]) -> bool:
        """Open, fetch, hash, admit, build, keep, swap: in this order, and nothing in between."""
        look, cache = self._looks[problem], self._caches[problem]
        try:
            before = look.state = cache.state()
        except Unavailable as error:
            return self._refuse(problem, str(error), shown)
        release = seal.open_envelope(shown.release or None, Release, seal.RELEASE_TYPE, self._keys.release)
        if isinstance(release, Refusal):
            return self._refuse(problem, str(release), shown)
        statement = seal.digest(release)
        floor = 0 if before is None else before.floor + (statement != before.statement)
        known = self._at_hand(look, release) or cache_hit(cache, release)
        files = known or fetch()
        facts = seal.Facts(problem=problem, version=shown.version, payload=seal.tree_digest(files), release=shown.release)
        refusal = seal.admit(facts, "serve", keys=self._keys, now=self._clock(), floor_sequence=floor)
        if refusal is not None:
            return self._refuse(problem, str(refusal), shown)
        try:
            model = Model.from_files(files)
            labels = tuple(model.problem_labels)
        except (TruingError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            return self._refuse(problem, f"release {release.sequence} does not load: {error}; release another version", shown)
        if labels != self.problems[problem].labels:
            return self._refuse(
                problem,
                f"release {release.sequence} answers {', '.join(labels)}, problem.toml names "
                f"{', '.join(self.problems[problem].labels)}; train with this problem file",
                shown,
            )
        state = State(
            floor=release.sequence,
            statement=statement,
            version=shown.version,
            payload=release.payload,
            envelope=shown.release,
        )
        if state != before or known is None:
            try:
                cache.keep(state, files)
            except Unavailable as error:
                return self._refuse(problem, str(error), shown)
        look.served = Served(self.problems[problem], model, release, shown.release, files, self._clock())
        look.state, look.refusal, look.refused = state, None, None
        said = {"type": "model.serving", "problem": problem, "release": look.served.name, "version": release.version}
        self._log(msgspec.json.encode(said | {"payload": release.payload, "cause": release.cause}).decode())
        return True

    def _at_hand(self, look: Look, release: Release) -> dict[str, bytes] | None:
        """The bytes in memory, when the new statement is over the same payload."""
        served = look.served
        return served.files if served is not None and served.release.payload == release.payload else None

    def _refuse(self, problem: str, why: str, shown: Shown | None = None) -> bool:
        look = self._looks[problem]
        if look.refusal != why:
            self._log(f"{problem}: not served: {why}")
        look.refusal, look.refused, look.again = why, shown, self._clock() + RETRY_S
        return False

    def _run(self) -> None:
        while not self._stop.is_set():
            for name in self.problems:
                try:
                    self.look(name)
                    self.registry_error = None
                except Unavailable as error:
                    self._without(str(error))
                except (TruingError, LookupError, TypeError, ValueError, msgspec.MsgspecError) as error:
                    self._without(f"its answer does not read ({type(error).__name__}: {error}); is this the registry?")
            self._stop.wait(self._poll_s)

    def _without(self, why: str) -> None:
        """What is served goes on; say it once."""
        if self.registry_error is None:
            self._log(f"going on without the registry: {why}")
        self.registry_error = why


def cache_hit(cache: Cache, release: Release) -> dict[str, bytes] | None:
    """Cached files of that payload if their hash says so: a rollback then needs no download."""
    files = cache.payload(release.payload)
    return files if files is not None and seal.tree_digest(files) == release.payload else None
