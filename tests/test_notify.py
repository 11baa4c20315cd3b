"""What the steward announces reaches people: a real webhook, a mail server, Prefect's own events. Nothing waits for them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_string, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from truing.infra import announced, notify
from truing.infra.control import SAYS
from truing.infra.settings import Settings
from truing.infra.stack import Stack
from truing.infra.status import prefect_call
from truing.tasks.errors import Unavailable

READY = {
    "id": "0" * 31 + "1", "time": 1.0, "type": "model.ready", "problem": "adult", "version": "4", "outcome": "inconclusive",
    "reason": "too few rows",
}  # fmt: skip
RELEASED = {"id": "0" * 31 + "2", "time": 2.0, "type": "model.released", "problem": "adult", "version": "4", "sequence": 3}


class Hook:
    """A webhook that keeps what is posted; `refuse` is how many times it answers 503 first."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.refuse, self.asked = 0, 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.asked += 1
                if hook.asked > hook.refuse:
                    hook.got.append(json.loads(body))
                self.send_response(200 if hook.asked > hook.refuse else 503)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"json://ops:s3cr3t@127.0.0.1:{self.server.server_address[1]}/t0ken"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    one = Hook()
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def told_in(tmp_path: Path, settings_in: Callable[..., Settings]) -> Iterator[Callable[..., Any]]:
    """`told_in(urls, waits_s=…)` → a teller with only these doors, and its log; closed afterwards."""
    opened: list[notify.Teller] = []

    def make(*urls: str, waits_s: tuple[float, ...] = (0.01,) * 5) -> tuple[notify.Teller, list[str]]:
        settings, log = settings_in(tmp_path, notify={"urls": urls}), []
        opened.append(notify.Teller(list(notify.apprise_doors(settings, log=log.append)), log=log.append, waits_s=waits_s))
        return opened[-1], log

    yield make
    for one in opened:
        one.close(0.0)


def test_a_waiting_version_is_posted_with_what_to_do(hook: Hook, told_in: Any) -> None:
    tell, log = told_in(hook.url)
    tell(READY)
    assert until(lambda: len(hook.got) == 1) and log == []
    assert hook.got[0]["title"] == "adult version 4 waits for an approver: inconclusive"
    assert "too few rows" in hook.got[0]["message"] and "truing approve 4 --problem adult" in hook.got[0]["message"]


def test_a_door_that_is_shut_is_tried_again_and_order_is_kept(hook: Hook, told_in: Any) -> None:
    hook.refuse = 3
    tell, log = told_in(hook.url)
    tell(READY)
    tell(RELEASED)
    assert until(lambda: len(hook.got) == 2) and log == []
    assert [one["type"] for one in hook.got] == ["info", "success"] and hook.asked == 5


def test_the_same_message_is_told_once(hook: Hook, told_in: Any) -> None:
    tell, _ = told_in(hook.url)
    for message in (READY, READY, RELEASED):
        tell(message)
    assert until(lambda: len(hook.got) == 2)
    tell.close()
    assert len(hook.got) == 2


def test_what_waits_for_nobody_is_not_told(hook: Hook, told_in: Any) -> None:
    tell, _ = told_in(hook.url)
    for message in (READY | {"id": "a", "outcome": "block"}, {"id": "b", "type": "run.requested", "run": "improve"}, RELEASED):
        tell(message)
    assert until(lambda: len(hook.got) == 1) and hook.got[0]["title"] == "adult serves version 4"


def test_a_dead_door_costs_nobody_time_and_says_one_line_without_its_secret(
    hook: Hook, told_in: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of two doors one refuses for good: the other gets the message, the caller goes on, and no token reaches a log."""
    dead = Hook()
    dead.refuse = 10**9
    try:
        tell, log = told_in(dead.url, "slack://T1JJ3T3L2/s3cr3t", hook.url, waits_s=(0.01, 0.01))
        assert log == ["notify.urls[1] (slack): expected a URL that Apprise understands, got another; see "
                       "https://appriseit.com/services/"]  # fmt: skip
        tell(READY)
        assert until(lambda: len(hook.got) == 1 and len(log) == 2)
        assert log[1] == "notify.urls[0] (json): model.ready was not taken in 3 tries: it said no; not told there"
        said = capfd.readouterr()
        assert not any(secret in text for secret in ("s3cr3t", "t0ken") for text in (*log, said.out, said.err))
    finally:
        dead.close()


def test_a_queue_that_is_full_drops_the_oldest_and_says_so() -> None:
    log: list[str] = []
    gate, begun, sent = threading.Event(), threading.Event(), []

    def send(message: dict[str, Any]) -> bool:
        begun.set()
        gate.wait(20.0)
        sent.append(message["id"])
        return True

    tell = notify.Teller([notify.Door(name="slow", send=send)], log=log.append)
    tell({"id": "first", "type": "model.released"})
    begun.wait(20.0)  # it is at the door, not in the queue
    for n in range(notify.MOST + 1):
        tell({"id": str(n), "type": "model.released"})
    assert log == ["slow: expected it to take messages, 500 wait; the oldest was dropped"]
    gate.set()
    assert until(lambda: len(sent) == notify.MOST + 1) and sent[:2] == ["first", "1"]
    tell.close()


def test_a_broker_that_is_away_keeps_nobody_from_hearing_it() -> None:
    told: list[dict[str, Any]] = []

    def announce(message: dict[str, Any]) -> str:
        raise Unavailable("no broker")

    with pytest.raises(Unavailable):
        notify.heard(announce, told.append)({"type": "model.released", "problem": "adult"})
    assert told[0]["type"] == "model.released" and told[0]["id"] and told[0]["time"]


@contextmanager
def mail_server() -> Iterator[tuple[int, list[str]]]:
    """A mail server that takes everything (RFC 5321, as much of it as a sender needs): its port and the messages."""
    mails: list[str] = []
    ready: list[int] = []
    loop = asyncio.new_event_loop()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := (await reader.readline()).decode().strip():
            verb = line.upper().split(" ", 1)[0]
            if verb == "DATA":
                writer.write(b"354 go\r\n")
                mails.append((await reader.readuntil(b"\r\n.\r\n")).decode()[:-3])
            writer.write(b"221 bye\r\n" if verb == "QUIT" else b"250 ok\r\n")
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        ready.append(server.sockets[0].getsockname()[1])

    loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield ready[0], mails
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5.0)


def test_a_release_arrives_as_mail(told_in: Any) -> None:
    with mail_server() as (port, mails):
        tell, log = told_in(f"mailto://localhost:{port}/ops@example.org?from=truing@example.org&mode=insecure")
        tell(RELEASED | {"reason": "gaps <reviewed> & gains"})
        assert until(lambda: len(mails) == 1), log
    mail = message_from_string(mails[0], policy=policy.default)
    assert mail["to"] == "ops@example.org" and mail["subject"] == "adult serves version 4"
    body = mail.get_body(("html",))
    assert body is not None and "&lt;reviewed&gt;" in body.get_content()


def test_every_announcement_has_words_or_waits_for_nobody(tmp_path: Path, settings_in: Callable[..., Settings]) -> None:
    settings = settings_in(tmp_path)
    silent = {"run.requested", "memory.updated"}
    for kind in SAYS:
        message = {"type": kind, "problem": "adult", "version": "4", "outcome": "pass", "expires": 3600.0, "key": "champion"}
        assert (announced.words(message, settings) is None) == (kind in silent), kind


@pytest.mark.services
def test_prefect_shows_it_as_an_event(stack: Stack) -> None:
    tell = notify.teller(stack.settings)
    message = READY | {"id": "7" * 32, "time": time.time()}
    tell(message)

    def shown() -> list[dict[str, Any]]:
        wanted = {"filter": {"event": {"name": ["truing.model.ready"]}}}
        found: list[dict[str, Any]] = prefect_call(stack.settings, "POST", "/events/filter", wanted)["events"]
        return [one for one in found if one["payload"].get("id") == "7" * 32]

    assert until(lambda: len(shown()) == 1)
    assert shown()[0]["resource"]["prefect.resource.id"] == "truing.problem.adult"
    assert shown()[0]["resource"]["truing.version"] == "4"
