"""Events that must not get lost: written to a local file before the call returns, published from there, kept until they landed.

The files are the truth and the publisher is a cursor over them: sending, resending after a restart and resending after a broker
lost its tail are the same walk from a place in the files. The reader of the topic drops doubles by event id, so walking twice
is harmless. A segment goes when the lake has all of it (`watermark`); where nobody tells, `keep_s` after it was acknowledged:
an embedded broker that is killed forgets up to a second of what it had acknowledged, and gets it again from here.

Frame of a record: length of the body (u32), its CRC-32 (u32), length of the key (u32), key, value. A torn frame at the end is
a write whose answer never went out. With `sync` the answer waits until the disk itself has the event, so that it survives a
power cut too; answers that wait at the same time share one fsync. Without, it survives whatever leaves the kernel running.
"""

from __future__ import annotations

import fcntl
import math
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from truing.infra.disk import Disk
from truing.infra.landed import Landed
from truing.infra.sender import Message
from truing.infra.sentinel import Sentinel
from truing.infra.watermark import Mark
from truing.tasks.errors import DataError, Unavailable
from truing.tasks.events.schema import MAX_BYTES

_FRAME = struct.Struct("<III")
_CHUNK = 1000  # messages sent before their acknowledgements are awaited
_ROTATE_S = 5.0
_ROTATE_BYTES = 16 << 20


class Publisher(Protocol):
    """What sends. `publish` returns when the broker has acknowledged all of them, else raises Unavailable.

    It may tell where they stand: the offset behind the last of them, by partition.
    """

    def publish(self, messages: Sequence[Message]) -> Mapping[int, int] | None: ...

    def close(self) -> None: ...


@dataclass
class Segment:
    number: int
    path: Path
    size: int = 0  # bytes of whole frames
    count: int = 0
    opened: float = 0.0
    acknowledged: float | None = None  # when its last frame was
    places: dict[int, int] = field(default_factory=dict)  # by partition, the offset behind its last message there
    placed: bool = True  # of all its messages it is known where they stand


class Outbox:
    """One folder, one process (a lock file says so), one publishing thread. `append` may be called from any thread."""

    def __init__(
        self,
        folder: Path,
        publisher: Publisher,
        *,
        keep_s: float,
        sentinel: tuple[str, int] | None = None,
        watermark: Callable[[], Mapping[int, Mark]] | None = None,
        most_s: float = math.inf,
        most_bytes: int = 1 << 30,
        sync: bool = True,
        log: Callable[[str], None],
    ) -> None:
        """`sentinel` is the address of a broker whose death can lose acknowledged events: a silent connection to it is held,
        and when it breaks, everything still kept is sent again. `watermark` tells up to where the lake has the topic; with it
        `keep_s` only counts while it was never told. What was acknowledged `most_s` ago, and beyond `most_bytes` the oldest
        of what was acknowledged, goes landed or not. Raises Unavailable when another process holds the folder."""
        self.folder = folder
        self.keep_s = keep_s
        self.last_publish: float | None = None
        self.last_error: str | None = None
        self.published = 0
        self._publisher = publisher
        self._sentinel = Sentinel(sentinel) if sentinel else None
        self._landed = Landed(watermark, forgetful=sentinel is not None) if watermark else None
        self._most_s, self._most_bytes = most_s, most_bytes
        self._log = log
        self._guard = threading.Lock()
        self._disk = Disk(folder) if sync else None
        self._more = threading.Event()
        self._stop = threading.Event()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise Unavailable(
                f"expected {folder} to be free, another process holds it; stop that one or name another folder"
            ) from None
        except OSError as error:
            raise Unavailable(f"expected a writable folder {folder}, got: {error.strerror}; check its permissions") from None
        self._segments = [self._scan(path) for path in sorted(folder.glob("*.log"))]
        self._cursor = (0, 0)  # index of the segment, byte in it
        self._waiting = sum(segment.count for segment in self._segments)
        self._handle = -1
        self._open()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Messages not acknowledged yet (or to be sent again)."""
        return self._waiting

    @property
    def kept(self) -> int:
        """Messages that stand here still: the lake does not have them, as far as is known."""
        return sum(segment.count for segment in list(self._segments))

    @property
    def kept_bytes(self) -> int:
        return sum(segment.size for segment in list(self._segments))

    def append(self, messages: Sequence[Message]) -> None:
        """On the disk when this returns. Raises Unavailable when it does not take them, DataError (and nothing is written) for
        a message that no reader would take.

        A write that fails is taken back. After a failed fsync the events may still go out: nobody got their answer.
        """
        frames = bytearray()
        for key, value in messages:
            if len(value) > MAX_BYTES:
                raise DataError(f"expected at most {MAX_BYTES} bytes in one row, got {len(value)}; shorten its texts")
            body = key + value
            frames += _FRAME.pack(len(body), zlib.crc32(body), len(key)) + body
        with self._guard:
            segment = self._segments[-1]
            now = time.monotonic()
            if segment.size > _ROTATE_BYTES or (segment.count and now - segment.opened > _ROTATE_S):
                segment = self._open()
            try:
                done = os.write(self._handle, frames)
                while done < len(frames):
                    done += os.write(self._handle, memoryview(frames)[done:])
            except OSError as error:
                os.ftruncate(self._handle, segment.size)
                raise Unavailable(f"events can't be recorded in {self.folder}: {error.strerror}; free some space") from None
            segment.size += len(frames)
            segment.count += len(messages)
            self._waiting += len(messages)
            ticket = self._disk.wrote(self._handle) if self._disk else 0
        self._more.set()
        if self._disk:
            self._disk.wait(ticket)

    def close(self, timeout_s: float = 5.0) -> None:
        """Publish what is left for at most `timeout_s`; the rest stays on disk for the next start."""
        deadline = time.monotonic() + timeout_s
        while self._thread.is_alive() and self._waiting and self.last_error is None and time.monotonic() < deadline:
            time.sleep(0.02)
        self._stop.set()
        self._more.set()
        if self._thread.is_alive():
            self._thread.join(2.0)
        self._publisher.close()
        self._leave(self._handle)
        if self._disk:
            self._disk.close()
        os.close(self._lock)

    def _open(self) -> Segment:
        number = self._segments[-1].number + 1 if self._segments else 1
        path = self.folder / f"{number:012d}.log"
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        except OSError as error:
            raise Unavailable(
                f"expected a writable folder {self.folder}, got: {error.strerror}; check space and permissions"
            ) from None
        if self._handle >= 0:
            self._leave(self._handle)
        self._handle = handle
        segment = Segment(number=number, path=path, opened=time.monotonic())
        self._segments.append(segment)
        return segment

    def _leave(self, handle: int) -> None:
        """Done with a file: closed once the disk has it."""
        if self._disk:
            self._disk.left(handle)
        else:
            os.close(handle)

    def _scan(self, path: Path) -> Segment:
        """A segment left by an earlier process: only its whole frames count."""
        data = path.read_bytes()
        segment = Segment(number=int(path.stem), path=path)
        for _, end in _frames(data, 0, len(data)):
            segment.size = end
            segment.count += 1
        if segment.size < len(data):
            self._log(f"{path}: {len(data) - segment.size} bytes at the end are no whole event: their answer never went out")
        return segment

    # --- the publishing thread
    def _run(self) -> None:
        pause = 0.1
        while not self._stop.is_set():
            try:
                self._steady()
                messages, cursor = self._next()
                if messages:
                    places = self._publisher.publish(messages)
                    if self._sentinel is not None:
                        self._sentinel.unwatched()
                    self._acknowledge(len(messages), cursor, places)
                    pause, self.last_error = 0.1, None
                    continue
                self._look()
                self._trim()
            except (Unavailable, OSError) as error:
                if self.last_error is None:
                    self._log(f"publishing waits: {error}")
                self.last_error = str(error)
                self._stop.wait(pause)
                pause = min(pause * 2, 2.0)
                continue
            self._more.wait(1.0)
            self._more.clear()

    def _next(self) -> tuple[list[Message], tuple[int, int]]:
        """Up to a chunk of messages from the cursor on, and the cursor behind them."""
        index, at = self._cursor
        messages: list[Message] = []
        while len(messages) < _CHUNK:
            with self._guard:
                segment, last = self._segments[index], index == len(self._segments) - 1
                size = segment.size
            if at < size:
                with segment.path.open("rb") as file:
                    file.seek(at)
                    data = file.read(min(size - at, 4 << 20))
                before = at
                for message, end in _frames(data, 0, len(data)):
                    messages.append(message)
                    at = before + end
                    if len(messages) == _CHUNK:
                        break
                if at == before:
                    raise Unavailable(
                        f"{segment.path}: expected an event at byte {at}, got none that is whole; restore the file"
                    )
                continue
            if last:
                break
            index, at = index + 1, 0
        return messages, (index, at)

    def _acknowledge(self, count: int, cursor: tuple[int, int], places: Mapping[int, int] | None) -> None:
        with self._guard:
            now = time.monotonic()
            for segment in self._segments[self._cursor[0] : cursor[0] + 1]:
                segment.acknowledged = now
                segment.placed = segment.placed and places is not None
                for partition, offset in (places or {}).items():
                    segment.places[partition] = max(offset, segment.places.get(partition, 0))
            self._cursor = cursor
            self._waiting -= count
            self.published += count
            self.last_publish = time.time()
        self._look()
        self._trim()

    def _look(self) -> None:
        """Ask, at most once a second, what has landed. A log that is another one than we wrote to gets everything again."""
        if self._landed is None or not self._landed.due(time.monotonic()) or not any(one.places for one in self._segments):
            return
        try:
            if self._landed.look(time.monotonic(), self._steady):
                self._rewind()
        except Unavailable:  # the broker is away, or won't tell: nothing goes meanwhile
            return

    def _steady(self) -> bool:
        """Is the broker, for certain, the process it was? If it died, all that is kept goes out again, once it is back."""
        if self._sentinel is None:
            return True
        watched = self._sentinel.watching
        again = self._sentinel.broken()
        if again or (watched and not self._sentinel.watching):
            self._publisher.close()  # it counts on what died with the broker, and would try until its time is up
        if again:
            if self._landed:
                self._landed.doubt()
            self._rewind()
            return False
        return self._sentinel.watching

    def _trim(self) -> None:
        """Drop segments, oldest first, as far as they have landed; the open one is closed for it."""
        if not self._steady():  # where they stand may be another's place now
            return
        with self._guard:
            now, kept = time.monotonic(), self.kept_bytes
            while self._segments[0].count and self._gone(self._segments[0], now, kept):
                oldest, index = self._segments[0], self._cursor[0]
                if len(self._segments) == 1:
                    if self._cursor[1] < oldest.size:
                        return
                    self._open()
                    index = 1
                elif not index:
                    if self._cursor[1] < oldest.size:
                        return
                    index = 1
                oldest.path.unlink(missing_ok=True)
                kept -= oldest.size
                del self._segments[0]
                self._cursor = (index - 1, self._cursor[1] if index == self._cursor[0] else 0)
            while len(self._segments) > 1 and not self._segments[0].count and self._cursor[0] > 0:
                self._segments.pop(0).path.unlink(missing_ok=True)
                self._cursor = (self._cursor[0] - 1, self._cursor[1])

    def _gone(self, segment: Segment, now: float, kept: int) -> bool:
        """May it go? Only what was acknowledged whole; the cursor says so."""
        if segment.acknowledged is None:
            return False
        if self._landed is None or not segment.placed or not self._landed.told:
            return segment.acknowledged <= now - self.keep_s
        over = kept > self._most_bytes or segment.acknowledged <= now - self._most_s
        return over or self._landed.has(segment.places)

    def _rewind(self) -> None:
        """The broker died: what it acknowledged lately may be gone with it. Send all that is kept again."""
        with self._guard:
            self._cursor = (0, 0)
            self._waiting = sum(segment.count for segment in self._segments)
            for segment in self._segments:
                segment.acknowledged, segment.placed = None, True
                segment.places.clear()
        self._log(f"the broker's log is not the one that was written; sending {self._waiting} kept events again")


def _frames(data: bytes, at: int, end: int) -> Iterator[tuple[Message, int]]:
    """Whole, intact frames of `data[at:end]` with the byte behind each."""
    while at + _FRAME.size <= end:
        length, crc, key = _FRAME.unpack_from(data, at)
        start = at + _FRAME.size
        if start + length > end or key > length:
            break
        body = data[start : start + length]
        if zlib.crc32(body) != crc:
            break
        at = start + length
        yield (body[:key], body[key:]), at
