"""The outbox: no event is lost between an answer and the broker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cuts import cut
from serving import until

from truing.infra.disk import Disk
from truing.infra.outbox import Outbox
from truing.infra.sender import Message
from truing.infra.watermark import Mark
from truing.tasks.errors import DataError, Unavailable


class Collector:
    """A publisher into a list, which can be away."""

    def __init__(self) -> None:
        self.taken: list[Message] = []
        self.away = False

    def publish(self, messages: Any) -> None:
        if self.away:
            raise Unavailable("the broker is away")
        self.taken += messages

    def close(self) -> None:
        pass


def outbox(folder: Path, publisher: Any, keep_s: float = 60.0, said: list[str] | None = None) -> Outbox:
    return Outbox(folder, publisher, keep_s=keep_s, log=(said if said is not None else []).append)


def test_what_was_not_acknowledged_is_sent_by_the_next_process(tmp_path: Path) -> None:
    publisher = Collector()
    publisher.away = True
    box = outbox(tmp_path, publisher)
    box.start()
    box.append([(b"k%d" % i, b"v%d" % i) for i in range(2500)])
    until(lambda: box.last_error is not None)
    box.close(timeout_s=0)
    publisher.away = False
    box = outbox(tmp_path, publisher)
    assert box.waiting == 2500
    box.start()
    until(lambda: box.waiting == 0)
    box.close()
    assert publisher.taken == [(b"k%d" % i, b"v%d" % i) for i in range(2500)]


def test_a_torn_write_is_left_out_and_said(tmp_path: Path) -> None:
    """Three whole frames, then half of a fourth: its answer never went out."""
    box = outbox(tmp_path, Collector())
    box.append([(b"k", b"v%d" % i) for i in range(4)])
    box.close(timeout_s=0)
    (path,) = tmp_path.glob("*.log")
    path.write_bytes(path.read_bytes()[:-1])
    publisher, said = Collector(), list[str]()
    box = outbox(tmp_path, publisher, said=said)
    box.start()
    until(lambda: box.waiting == 0)
    box.close()
    assert [value for _, value in publisher.taken] == [b"v0", b"v1", b"v2"] and "no whole event" in said[0]


def test_acknowledged_events_are_kept_for_the_grace_then_dropped(tmp_path: Path) -> None:
    publisher = Collector()
    for keep_s, left in ((60.0, 1), (0.0, 0)):
        box = outbox(tmp_path / str(keep_s), publisher, keep_s=keep_s)
        box.start()
        box.append([(b"k", b"v")])
        until(lambda box=box: box.waiting == 0)
        box.close()
        box = outbox(tmp_path / str(keep_s), publisher, keep_s=keep_s)
        box.start()  # a new process opens a new file; the old one may go once it is acknowledged again
        until(lambda box=box: box.waiting == 0)
        until(lambda box=box, left=left: (box.kept_bytes > 0) == bool(left))
        box.close()


class Broker(Collector):
    """Says where what it took stands: one partition, offsets from 0 on."""

    def publish(self, messages: Any) -> dict[int, int]:
        super().publish(messages)
        return {0: len(self.taken)}


def test_what_has_landed_goes_and_what_has_not_stays(tmp_path: Path) -> None:
    """Three events, two of them below the watermark: all of the file stays; with the third it goes."""
    upto = [2]
    box = Outbox(tmp_path, Broker(), keep_s=0.0, watermark=lambda: {0: Mark(0, upto[0], "a")}, log=[].append)
    box.start()
    box.append([(b"k", b"v%d" % n) for n in range(3)])
    until(lambda: box.waiting == 0 and box._landed is not None and box._landed.told)
    box._more.set()
    assert box.kept == 3 and box.kept_bytes > 0
    upto[0] = 3
    until(lambda: box.kept == 0 and box.kept_bytes == 0)
    box.append([(b"k", b"next")])
    until(lambda: box.waiting == 0)
    assert box.kept == 1 and len(list(tmp_path.glob("*.log"))) == 1
    box.close()


@pytest.mark.parametrize("limit", [{"most_s": 0.0}, {"most_bytes": 0}])
def test_what_never_lands_goes_at_the_limit(tmp_path: Path, limit: dict[str, Any]) -> None:
    box = Outbox(tmp_path, Broker(), keep_s=60.0, watermark=lambda: {0: Mark(0, 0, "a")}, log=[].append, **limit)
    box.start()
    box.append([(b"k", b"v")])
    until(lambda: box.waiting == 0 and box.kept == 0)
    box.close()


def test_while_nobody_tells_the_grace_counts(tmp_path: Path) -> None:
    def away() -> dict[int, Mark]:
        raise Unavailable("no rights")

    for keep_s, left in ((60.0, 1), (0.0, 0)):
        box = Outbox(tmp_path / str(keep_s), Broker(), keep_s=keep_s, watermark=away, log=[].append)
        box.start()
        box.append([(b"k", b"v")])
        until(lambda box=box, left=left: box.waiting == 0 and box.kept == left)
        box.close()


def test_what_was_acknowledged_while_nobody_watched_the_broker_is_sent_again(tmp_path: Path) -> None:
    """Acknowledged, and the broker may have died before the first silent connection to it stood."""
    publisher = Collector()
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))  # bound, and nobody listens yet: a connection is refused
        address = door.getsockname()
        box = Outbox(tmp_path, publisher, keep_s=60.0, sentinel=address, log=lambda _: None)
        box.start()
        box.append([(b"k", b"v")])
        until(lambda: publisher.taken == [(b"k", b"v")])
        door.listen()
        until(lambda: publisher.taken == [(b"k", b"v")] * 2)
        box.append([(b"k", b"w")])
        until(lambda: publisher.taken[2:] == [(b"k", b"w")] and box.waiting == 0)
        box.close()
    assert len(publisher.taken) == 3, "watched: nothing goes twice"


def test_two_processes_cannot_share_an_outbox(tmp_path: Path) -> None:
    box = outbox(tmp_path, Collector())
    with pytest.raises(Unavailable, match="another process holds it"):
        outbox(tmp_path, Collector())
    box.close(timeout_s=0)


def test_an_oversized_event_is_refused_before_it_is_written(tmp_path: Path) -> None:
    box = outbox(tmp_path, Collector())
    with pytest.raises(DataError, match="at most"):
        box.append([(b"k", b"v"), (b"k", b"v" * 300_000)])
    assert box.waiting == 0 and box.kept_bytes == 0
    box.close(timeout_s=0)


# --- on the disk --------------------------------------------------------------------------------------------------------------

ANSWER = """
from truing.infra import outbox
from truing.infra.sender import Sender
# ready
outbox._ROTATE_BYTES = 0  # a new file for each answer
box = outbox.Outbox(folder, Sender("nowhere", {}), keep_s=60, log=print)
for at in range(2):
    box.append([(b"k", b"first of %d" % at), (b"k", b"second of %d" % at)])
    say(at)
"""


@pytest.mark.parametrize("file", ["infra/outbox.py", "infra/disk.py"])
def test_a_gateway_killed_at_any_line_has_the_events_of_each_answer_that_went_out(file: str, tmp_path: Path) -> None:
    """And of the one it was killed in: all of its events, or none."""
    root = tmp_path / "cuts"
    root.mkdir()
    folders = cut(file, tmp_path / "before", root, ANSWER)
    assert len(folders) > 30
    for folder in folders:
        said = folder.with_suffix(".said")
        given = said.read_text().split() if said.exists() else []
        publisher = Collector()
        box = outbox(folder, publisher)
        box.start()
        until(lambda box=box: box.waiting == 0)
        box.close()
        kept = [value.decode() for _, value in publisher.taken]
        whole = [f"{word} of {at}" for at in range(2) for word in ("first", "second")]
        assert kept in (whole[: 2 * len(given)], whole[: 2 * len(given) + 2])
    assert len(kept) == 4


def test_one_fsync_serves_all_who_wait(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with (tmp_path / "1.log").open("wb") as file:
        tickets = [disk.wrote(file.fileno()) for _ in range(5)]
        disk.wait(tickets[3])
        assert disk.fsyncs == 1
        for ticket in tickets:
            disk.wait(ticket)
        assert disk.fsyncs == 1, "the first covered what was written before it began"
        disk.wait(disk.wrote(file.fileno()))
        assert disk.fsyncs == 2


def test_a_failed_fsync_is_told_to_all_whose_events_it_held_and_to_nobody_else(tmp_path: Path) -> None:
    """A kernel reports it once and forgets the pages: a second one that succeeds proves nothing. A pipe can't be fsynced."""
    disk = Disk(tmp_path)
    reader, writer = os.pipe()
    lost = [disk.wrote(writer) for _ in range(2)]
    with pytest.raises(Unavailable, match="the disk failed"):
        disk.wait(lost[0])
    with (tmp_path / "1.log").open("wb") as file:
        later = disk.wrote(file.fileno())
        disk.wait(later)
        for ticket in lost:
            with pytest.raises(Unavailable, match="the disk failed"):
                disk.wait(ticket)
        disk.wait(later)
    os.close(reader)
    os.close(writer)


def test_a_full_disk_takes_no_part_of_an_answer(tmp_path: Path) -> None:
    """A limit on the file's size stands for the full disk: the write breaks off in the middle and is taken back."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from truing.infra.outbox import Outbox\n"
        "from truing.infra.sender import Sender\n"
        "from truing.tasks.errors import Unavailable\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "box = Outbox(Path(sys.argv[1]), Sender('nowhere', {}), keep_s=60, log=print)\n"
        "box.append([(b'k', b'v' * 100)])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    box.append([(b'k', b'w' * 400)] * 4)\n"
        "except Unavailable as error:\n"
        "    print(error)\n"
        "box.append([(b'k', b'x' * 100)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "can't be recorded" in done.stdout, done.stderr
    publisher = Collector()
    box = outbox(tmp_path, publisher)
    box.start()
    until(lambda: box.waiting == 0)
    box.close()
    assert [value[:1] for _, value in publisher.taken] == [b"v", b"x"]
