"""Where an application's events wait for the broker: in memory, or in a folder that outlives the process and the broker.

Both are filled by any thread. What waits in memory is sent when enough of it waits, and by `flush`; what lies in a folder is on
the disk before the call returns, and a thread sends it on.
"""

from __future__ import annotations

import logging
import threading
import time as clock
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from truing.infra.asking import Asker, pauses
from truing.infra.sender import Message, Sender
from truing.infra.words import Declined, Receipt, Word
from truing.tasks.errors import DataError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from truing.infra.outbox import Outbox

CHUNK = 2000  # messages sent at once
log = logging.getLogger("truing.client")


class Queue(Protocol):
    """`put` takes a message for good, or raises. `flush` returns when the other side has all, with how many since the last."""

    def put(self, messages: Sequence[Message]) -> None: ...

    def flush(self, timeout_s: float) -> int: ...

    @property
    def waiting(self) -> int: ...

    def close(self) -> None: ...


class InMemory:
    """Lost with the process. After a failure what was not acknowledged waits on, so `flush` can be called again."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._guard = threading.RLock()
        self._waiting: list[Message] = []
        self._done = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def put(self, messages: Sequence[Message]) -> None:
        with self._guard:
            self._waiting += messages
            while len(self._waiting) >= CHUNK:
                self._push()

    def flush(self, timeout_s: float) -> int:
        end, waits = clock.monotonic() + timeout_s, pauses(0.2)
        with self._guard:
            while self._waiting:
                try:
                    self._push()
                except Unavailable as error:
                    pause = next(waits)
                    if clock.monotonic() + pause > end:
                        raise Unavailable(f"{error} ({len(self._waiting)} events wait; call flush again)") from None
                    clock.sleep(pause)
            done, self._done = self._done, 0
            return done

    def _push(self) -> None:
        chunk = self._waiting[:CHUNK]
        self._sender.publish(chunk)
        del self._waiting[: len(chunk)]
        self._done += len(chunk)

    def close(self) -> None:
        try:
            self.flush(30.0)
        finally:
            self._sender.close()


class OnDisk:
    """An outbox with a thread that sends. One process a folder."""

    def __init__(self, box: Outbox) -> None:
        self.box = box
        self._told = 0
        box.start()

    @property
    def waiting(self) -> int:
        return self.box.waiting

    def put(self, messages: Sequence[Message]) -> None:
        self.box.append(messages)

    def flush(self, timeout_s: float) -> int:
        end = clock.monotonic() + timeout_s
        while self.box.waiting:
            if not self.box.alive or clock.monotonic() > end:
                why = self.box.last_error or "they are on their way"
                raise Unavailable(f"{why} ({self.box.waiting} events wait in {self.box.folder}; they are sent when it works)")
            clock.sleep(0.02)
        done, self._told = self.box.published - self._told, self.box.published
        return done

    def close(self) -> None:
        self.box.close()


def on_disk(folder: Path, publisher: Any, **options: Any) -> OnDisk:
    """A queue in that folder. Raises Unavailable when it can't be written, or another process has it."""
    from truing.infra.outbox import Outbox

    return OnDisk(Outbox(folder, publisher, log=log.info, **options))


class WordsOut:
    """Sends people's words to the gateway's door; what it does not believe is remembered with its reason, not sent again."""

    def __init__(self, asker: Asker) -> None:
        self.refused: deque[tuple[Word, Declined]] = deque(maxlen=1000)
        self._asker = asker

    def publish(self, messages: Sequence[Message]) -> Mapping[int, int] | None:
        """Raises Unavailable."""
        words = [value for _, value in messages]
        try:
            told = msgspec.convert(self._asker.post("/feedback", [msgspec.Raw(word) for word in words]), Receipt)
            refusals = told.refusals
        except DataError as error:
            refusals = [Declined(item, "data", str(error)) for item in range(len(words))]
        for one in refusals:
            self.refused.append((msgspec.json.decode(words[one.item], type=Word), one))
            log.warning("the gateway does not believe a word: %s", one.error)
        return None

    def close(self) -> None:
        self._asker.close()
