"""Brings the released model of each problem into memory, if `seal.admit` lets it.

The registry is only asked what it shows: the alias `champion`, the `release` statement on that version, the payload's bytes,
and the steward's head where no floor is remembered. Nothing of it is believed beyond signature and digest, and no code comes
from it. The bytes that were hashed are the bytes the model is built from; a file is never read again in between. What is
refused leaves the model before it in place; only an admitted withdrawal, or a key that is trusted no more, takes it away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from truing.infra.gateway.cache import Cache, State
from truing.infra.gateway.freshness import outdated
from truing.infra.gateway.served import Look, Served, Shelf, Shown
from truing.infra.gateway.watch import Watch
from truing.tasks import seal
from truing.tasks.errors import TruingError, Unavailable
from truing.tasks.kinds.model import Model
from truing.tasks.problem import Problem
from truing.tasks.records import Cause, Refusal, Release

RETRY_S = 10.0  # a refused statement is looked at again after this long: bytes may have been restored


class Loader:
    """One thread that follows. `served` is safe to call from any thread: a request keeps the model it began with."""

    def __init__(
        self,
        problems: dict[str, Problem],
        shelf: Shelf,
        *,
        keys: Callable[[], seal.Keys],
        folder: Path,
        poll_s: float,
        clock: Callable[[], float],
        log: Callable[[str], None],
    ) -> None:
        """`keys` is asked before each use, so a rotation needs no restart. `poll_s` counts while changes can't be heard of."""
        self.problems = problems
        self.registry_error: str | None = None
        self._shelf = shelf
        self._keys = keys
        self._caches = {name: Cache(folder / name) for name in problems}
        self._clock = clock
        self._log = log
        self._looks = {name: Look() for name in problems}
        self._stop = threading.Event()
        self._watch = Watch(shelf.changes, poll_s=poll_s, stop=self._stop)
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def served(self, problem: str) -> Served | None:
        return self._looks[problem].served

    def floor(self, problem: str) -> int:
        state = self._looks[problem].state
        return state.floor if state else 0

    def withdrawn(self, problem: str) -> str | None:
        """`withdrawn by release N: reason`, or None."""
        release = self._looks[problem].withdrawn
        return f"withdrawn by release {release.sequence}: {release.reason or 'no reason given'}" if release else None

    def refusal(self, problem: str) -> str | None:
        """Why what the registry shows is not served, or why something newer is missing there."""
        look = self._looks[problem]
        return look.refusal or look.freshness.said

    def start(self) -> None:
        """Serve what the cache holds, if it still proves itself, then follow the registry."""
        for name in self.problems:
            self.boot(name)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Returns when nothing is being loaded any more; a question held open by the registry is not waited for."""
        self._stop.set()
        end = time.monotonic() + 5.0
        while self._thread.is_alive() and not self._watch.asleep and time.monotonic() < end:
            self._thread.join(0.05)

    def boot(self, problem: str) -> None:
        """Load from the cache: hashed and admitted again like anything that comes over the wire."""
        look, cache = self._looks[problem], self._caches[problem]
        try:
            state = cache.state()
            if state is not None:
                self._take(problem, Shown(version=state.version, release=state.envelope), partial(remembered, cache, state))
        except Unavailable as error:
            self._refuse(problem, str(error))
        look.refused = None  # whatever the cache lacked, the registry is asked at once

    def look(self, problem: str) -> bool:
        """Ask the registry once; True if another release stands afterwards. Raises Unavailable when it does not answer."""
        look = self._looks[problem]
        self._distrust(problem)
        shown = self._shelf.champion(problem)
        moved = False
        if shown is not None and shown == look.current:
            look.refusal, look.refused = None, None
        elif shown is not None and (look.refused != shown or self._clock() >= look.again):
            moved = self._take(problem, shown, lambda: self._shelf.payload(problem, shown.version))
        if look.state is not None and look.freshness.compare(
            look.state.floor, problem, lambda: self._shelf.head(problem), keys=self._keys(), now=self._clock()
        ):
            self._log(f"{problem}: {look.freshness.said or 'the registry shows the newest release again'}")
        return moved

    def _take(self, problem: str, shown: Shown, fetch: Callable[[], dict[str, bytes]]) -> bool:
        """Open, fetch, hash, admit, build, keep, swap: in this order, and nothing in between."""
        look, cache = self._looks[problem], self._caches[problem]
        try:
            before = look.state = look.state or cache.state()  # what this process knows can't be lowered on its disk
            keys = self._keys()
        except Unavailable as error:
            return self._refuse(problem, str(error), shown)
        release = seal.open_envelope(shown.release or None, Release, seal.RELEASE_TYPE, keys.release)
        if isinstance(release, Refusal):
            return self._refuse(problem, str(release), shown)
        statement = seal.digest(release)
        floor = 0 if before is None else before.floor + (statement != before.statement)

        def refused(payload: str) -> Refusal | None:
            facts = seal.Facts(problem=problem, version=shown.version, payload=payload, release=shown.release)
            return seal.admit(facts, "serve", keys=keys, now=self._clock(), floor_sequence=floor)

        refusal = refused(release.payload)  # as if the bytes were right: nothing is fetched for what can't be served
        if refusal is not None:
            return self._refuse(problem, str(refusal), shown)
        if before is None:
            refusal = outdated(self._shelf.head(problem), release, keys=keys, now=self._clock())
            if refusal is not None:
                return self._refuse(problem, str(refusal))  # without `shown`: the next look asks again
        state = State(
            floor=release.sequence, statement=statement, version=shown.version, payload=release.payload, envelope=shown.release
        )
        if release.cause is Cause.WITHDRAW:
            return self._withdraw(problem, release, state, shown, keys)
        known = self._at_hand(look, release) or cache_hit(cache, release)
        files = known or fetch()
        refusal = refused(seal.tree_digest(files))
        if refusal is not None:
            return self._refuse(problem, str(refusal), shown)
        model = self._built(problem, release, files)
        if isinstance(model, str):
            return self._refuse(problem, model, shown)
        if state != before or known is None:
            try:
                cache.keep(state, files)
            except Unavailable as error:
                return self._refuse(problem, str(error), shown)
        look.served = Served(self.problems[problem], model, release, files, self._clock())
        look.withdrawn = None
        self._stands(problem, release, state, shown, keys)
        return True

    def _built(self, problem: str, release: Release, files: dict[str, bytes]) -> Model | str:
        """The model of these bytes, or why there is none."""
        try:
            model = Model.from_files(files)
            labels = tuple(model.problem_labels)
        except (TruingError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            return f"release {release.sequence} does not load: {error}; release another version"
        if labels != self.problems[problem].labels:
            return (
                f"release {release.sequence} answers {', '.join(labels)}, problem.toml names "
                f"{', '.join(self.problems[problem].labels)}; train with this problem file"
            )
        return model

    def _withdraw(self, problem: str, release: Release, state: State, shown: Shown, keys: seal.Keys) -> bool:
        """Stop answering, then write it down: a full disk must not keep a model alive that was taken back."""
        look = self._looks[problem]
        again, cache = look.withdrawn == release, self._caches[problem]
        look.withdrawn, look.served, look.current, look.state = release, None, None, state
        try:
            if cache.state() != state:
                cache.keep(state, None)
        except Unavailable as error:
            self._refuse(problem, f"{self.withdrawn(problem)}; not remembered yet: {error}", shown)
            return not again
        self._stands(problem, release, state, shown, keys)
        return not again

    def _stands(self, problem: str, release: Release, state: State, shown: Shown, keys: seal.Keys) -> None:
        look = self._looks[problem]
        look.state, look.current, look.keys, look.refusal, look.refused = state, shown, keys, None, None
        kind = "model.withdrawn" if look.withdrawn else "model.serving"
        said = {"type": kind, "problem": problem, "release": f"{problem}@{release.sequence}", "version": release.version}
        self._log(msgspec.json.encode(said | {"payload": release.payload, "cause": release.cause}).decode())

    def _at_hand(self, look: Look, release: Release) -> dict[str, bytes] | None:
        """The bytes in memory, when the new statement is over the same payload."""
        served = look.served
        return served.files if served is not None and served.release.payload == release.payload else None

    def _distrust(self, problem: str) -> None:
        """When the trusted keys have changed, what serves has to prove itself again."""
        look = self._looks[problem]
        keys = self._keys()
        if look.served is None or look.current is None or keys == look.keys:
            return
        look.keys = keys
        release = seal.open_envelope(look.current.release, Release, seal.RELEASE_TYPE, keys.release)
        if isinstance(release, Refusal):
            shown, look.served, look.current = look.current, None, None
            self._refuse(problem, str(release), shown)

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
            self._watch.wait()

    def _without(self, why: str) -> None:
        """What is served goes on; say it once."""
        if self.registry_error is None:
            self._log(f"going on without the registry: {why}")
        self.registry_error = why


def cache_hit(cache: Cache, release: Release) -> dict[str, bytes] | None:
    """Cached files of that payload if their hash says so: a rollback then needs no download."""
    files = cache.payload(release.payload)
    return files if files is not None and seal.tree_digest(files) == release.payload else None


def remembered(cache: Cache, state: State) -> dict[str, bytes]:
    """The cached files of that state, unproven. Raises Unavailable when they are gone."""
    files = cache.payload(state.payload)
    if files is None:
        raise Unavailable(f"the cached payload of release {state.floor} is gone; it comes back from the registry")
    return files
