"""When the gateway looks at the registry: at each write, every few seconds, and never in a hot loop."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from serving import Bench, until

from truing.infra.gateway.watch import FULL_S, GAP_S, Watch
from truing.tasks.errors import Unavailable
from truing.tasks.kinds.model import Model


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def watch(clock: Clock, changes: Callable[[str, float], str]) -> Watch:
    return Watch(changes, poll_s=0.5, stop=threading.Event(), pause=clock.pause, timer=lambda: clock.now)


def test_a_write_ends_the_wait_and_many_in_a_row_are_one_look() -> None:
    clock, words = Clock(), iter("abcd")

    def changes(since: str, wait_s: float) -> str:
        return next(words)

    waiting = watch(clock, changes)
    clock.now += 1
    waiting.wait()
    assert clock.pauses == [], "after a quiet second, at once"
    for _ in range(3):
        waiting.wait()
    assert clock.pauses == pytest.approx([GAP_S] * 3)


def test_without_a_write_a_full_look_comes_all_the_same() -> None:
    clock, asked = Clock(), list[float]()

    def changes(since: str, wait_s: float) -> str:
        asked.append(wait_s)
        clock.now += wait_s
        return since

    waiting = watch(clock, changes)
    for _ in range(5):
        waiting.wait()
    assert asked == [FULL_S] * 5 and clock.pauses == [] and clock.now == 5 * FULL_S


def test_a_registry_that_answers_at_once_is_asked_each_poll_and_looked_at_when_due() -> None:
    """An older registry knows the word but holds no question open."""
    clock, asked = Clock(), list[str]()

    def changes(since: str, wait_s: float) -> str:
        asked.append(since)
        return since

    waiting = watch(clock, changes)
    waiting.wait()
    assert clock.pauses == [0.5] * int(FULL_S / 0.5) and len(asked) == len(clock.pauses)


def test_a_registry_that_cannot_tell_is_looked_at_each_poll() -> None:
    clock = Clock()

    def changes(since: str, wait_s: float) -> str:
        raise Unavailable("no such page")

    waiting = watch(clock, changes)
    for _ in range(4):
        waiting.wait()
    assert clock.pauses == [0.5] * 4


def test_the_word_is_older_than_the_look_so_nothing_is_missed() -> None:
    """What is written during a look makes the next wait end at once, because it asks with the word from before the look."""
    clock, written = Clock(), [1]

    def changes(since: str, wait_s: float) -> str:
        if str(written[0]) == since:
            clock.now += wait_s
        return str(written[0])

    waiting = watch(clock, changes)
    waiting.wait()
    written[0] += 1
    clock.now += 1
    before = clock.now
    waiting.wait()
    assert clock.now == before
    waiting.wait()
    assert clock.now == before + FULL_S


def test_the_loader_hears_of_a_release_and_stops_without_waiting_for_the_registry(bench: Bench, models: list[Model]) -> None:
    """Real threads over a shelf that holds questions open; with one that does not (deaf) it finds the release too."""
    bench.loader.start()
    bench.release(models[0], 1)
    until(lambda: bench.sequence == 1)
    bench.shelf.deaf = True
    bench.release(models[1], 2)
    until(lambda: bench.sequence == 2)
    bench.shelf.deaf = False
    bench.loader.stop()
