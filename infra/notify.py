"""Tells people what the steward announces: as a Prefect event, and through the Apprise URLs of `settings.notify` (webhooks,
Slack, mail and some 150 more).

Beside the steward, never in its way: each door has a thread and a queue of its own, and a door that is shut is tried again
while the others go on. What Apprise itself logs can hold a token of a URL, so it is kept silent; a failure is one line of ours
that names the door by place and kind.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from truing.infra.announced import Message, event, words
from truing.infra.settings import Settings
from truing.tasks.errors import TruingError

WAITS_S = (1.0, 5.0, 30.0, 120.0, 600.0)  # before each further try
MOST = 500  # messages that wait at one door; the oldest goes first
REMEMBERED = 2000  # ids that are not told twice

Log = Callable[[str], None]

_log = logging.getLogger("truing.notify").warning


@dataclass(frozen=True, kw_only=True)
class Door:
    """One place where things are told. `send` returns False or raises TruingError when the message was not taken."""

    name: str
    send: Callable[[Message], bool]
    wants: Callable[[Message], bool] = lambda message: True


def teller(settings: Settings, *, log: Log = _log) -> Callable[[Message], None]:
    """A function that tells a message at every door. It returns at once and raises nothing."""
    doors = [prefect_door(settings), *apprise_doors(settings, log=log)]
    return Teller(doors, log=log)


def heard(announce: Callable[[Message], str], tell: Callable[[Message], None]) -> Callable[[Message], str]:
    """Announce on the control topic and tell at the doors, under one id; a broker that is away keeps nobody from hearing it."""
    turn = threading.Lock()

    def both(message: Message) -> str:
        whole = {"id": uuid.uuid4().hex, "time": time.time(), **message}
        tell(whole)
        with turn:  # the steward and the watch on approvals share one producer
            return announce(whole)

    return both


class Teller:
    """A queue and a thread for each door. Messages keep their order at a door; one that no try brings through is given up."""

    def __init__(self, doors: list[Door], *, log: Log, waits_s: tuple[float, ...] = WAITS_S) -> None:
        self._log, self._waits = log, waits_s
        self._stop = threading.Event()
        self._seen: deque[str] = deque(maxlen=REMEMBERED)
        self._turn = threading.Lock()
        self._queues = [_Queue(door) for door in doors]
        self._threads = [
            threading.Thread(target=self._run, args=(queue,), name=f"tell {queue.door.name}", daemon=True)
            for queue in self._queues
        ]
        for thread in self._threads:
            thread.start()

    def __call__(self, message: Message) -> None:
        id = str(message.get("id", ""))
        with self._turn:
            if id and id in self._seen:
                return
            self._seen.append(id)
        for queue in self._queues:
            if queue.door.wants(message) and queue.put(message):
                self._log(f"{queue.door.name}: expected it to take messages, {MOST} wait; the oldest was dropped")

    def close(self, patience_s: float = 2.0) -> None:
        """Give what waits a last moment, then stop trying."""
        end = time.monotonic() + patience_s
        while any(queue.waiting for queue in self._queues) and time.monotonic() < end:
            time.sleep(0.02)
        self._stop.set()
        for queue, thread in zip(self._queues, self._threads, strict=True):
            queue.wake()
            thread.join(max(0.0, end - time.monotonic()))

    def _run(self, queue: _Queue) -> None:
        while not self._stop.is_set():
            message = queue.take()
            if message is None:
                continue
            for wait in (*self._waits, None):
                why = _tried(queue.door, message)
                if why is None:
                    break
                if wait is None:
                    tries = len(self._waits) + 1
                    self._log(f"{queue.door.name}: {message.get('type')} was not taken in {tries} tries: {why}; not told there")
                elif self._stop.wait(wait):
                    return
            queue.done()


class _Queue:
    """What waits at one door; `waiting` counts the one that is being told too."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self._messages: deque[Message] = deque(maxlen=MOST)
        self._busy = 0
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        return len(self._messages) + self._busy

    def put(self, message: Message) -> bool:
        """True if an older one had to go."""
        with self._changed:
            full = len(self._messages) == MOST
            self._messages.append(message)
            self._changed.notify()
        return full

    def take(self) -> Message | None:
        """The oldest, once there is one; None after a wake or a minute."""
        with self._changed:
            if not self._messages:
                self._changed.wait(60.0)
            if not self._messages:
                return None
            self._busy = 1
            return self._messages.popleft()

    def done(self) -> None:
        self._busy = 0

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _tried(door: Door, message: Message) -> str | None:
    """One try: None when it was taken, else why not, in words that hold no secret."""
    try:
        return None if door.send(message) else "it said no"
    except TruingError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - 150 kinds of services raise what they like, and their text may hold the URL
        return type(error).__name__


# --- doors --------------------------------------------------------------------------------------------------------------------


def prefect_door(settings: Settings) -> Door:
    """Prefect's events, over its API: while the server is away, its client's worker drops what waits and delays the end."""
    from truing.infra.status import prefect_call

    def send(message: Message) -> bool:
        prefect_call(settings, "POST", "/events", [event(message)])
        return True

    return Door(name="Prefect", send=send, wants=lambda message: message.get("type") != "run.requested")


def apprise_doors(settings: Settings, *, log: Log = _log) -> Iterator[Door]:
    """One door for each URL that Apprise understands; of the others only place and kind are named."""
    if not settings.notify.urls:
        return
    logging.getLogger("apprise").addHandler(logging.NullHandler())
    logging.getLogger("apprise").propagate = False
    import apprise

    for number, secret in enumerate(settings.notify.urls):
        url = secret.get_secret_value()
        name = f"notify.urls[{number}] ({url.partition(':')[0][:20] if '://' in url else 'no kind'})"
        service = apprise.Apprise()
        if not service.add(url):
            log(f"{name}: expected a URL that Apprise understands, got another; see https://appriseit.com/services/")
            continue

        def send(message: Message, service: Any = service) -> bool:
            said = words(message, settings)
            return said is None or bool(
                service.notify(body=said.text, title=" ".join(said.title.split()), notify_type=said.level, body_format="text")
            )

        yield Door(name=name, send=send, wants=lambda message: words(message, settings) is not None)
