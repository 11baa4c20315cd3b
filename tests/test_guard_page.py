"""The approver's way through MLflow's own page, in a real browser: the page reads, approves, and shows the guard's reasons."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from truing.infra import settings as settings_module
from truing.infra.keys import Keyring
from truing.infra.settings import Settings
from truing.tasks.records import Approval, Candidate, Outcome, Verdict
from truing.tasks.release.registry import Registry
from truing.tasks.seal import APPROVAL_TYPE, VERDICT_TYPE, canonical, open_envelope, sign, tree_digest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.services,
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian: apt install chromium)"),
]
POLICY = "ab" * 32


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Page:
    """One tab over the DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._ids = socket, itertools.count(1)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        mine = next(self._ids)
        await self._socket.send(json.dumps({"id": mine, "method": method, "params": params}))
        while True:
            answer = json.loads(await self._socket.recv())
            if answer.get("id") == mine:
                found: dict[str, Any] = answer.get("result", {})
                return found

    async def js(self, code: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        return found.get("result", {}).get("value")

    async def until(self, code: str, seconds: float = 60) -> None:
        for _ in range(int(seconds * 5)):
            if await self.js(f"!!({code})"):
                return
            await asyncio.sleep(0.2)
        pytest.fail(f"the page never came to: {code}\n{await self.js('document.body.innerText')}")

    async def tag(self, name: str, value: str) -> None:
        """Fill in the form below the tag table and press Add."""
        for field, text in (("name", name), ("value", value)):
            await self.js(f"document.querySelector('[data-testid=tags-form-input-{field}]').focus()")
            await self.js("document.activeElement.select()")
            await self.call("Input.insertText", text=text)
        await self.js("document.querySelector('[data-testid=add-tag-button]').click()")


async def walk(port: int, url: str, password: str, problem: str) -> str:
    """Approve version 1 by hand; then try a tag that is not the approver's. Returns what the page says at the end."""
    from websockets.asyncio.client import connect

    for _ in range(150):
        try:
            tabs = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5))
            break
        except OSError:
            await asyncio.sleep(0.2)
    else:
        pytest.fail("the browser did not start")
    address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
    async with connect(address, max_size=None) as socket:
        page = Page(socket)
        host = url.removeprefix("http://")
        # MLflow's page can't fetch from an address that carries the login, so log in first, then open it plain
        await page.call("Page.navigate", url=f"http://approver:{password}@{host}/version")
        await page.until("document.body && document.body.innerText.startsWith('3.')")
        await page.call("Page.navigate", url=f"{url}/#/models/{problem}/versions/1")
        await page.until("document.querySelector('[data-testid=tags-form-input-name]')")
        await page.tag("approval.reason", "read it all")
        await page.until("document.body.innerText.includes('read it all')")
        await page.tag("approval", "approved")
        await page.until("[...document.querySelectorAll('*')].some(e => e.innerText === 'approved')")
        await page.tag("release", "mine")
        await page.until("document.body.innerText.includes('only the steward')")
        return str(await page.js("document.body.innerText"))


def test_a_person_approves_in_the_browser_and_reads_why_not(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    keyring.create([])
    port, debug = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--factory", "truing.infra.registry_guard.app:create_app", "--port", str(port)],
            env=settings_module.child_environment(Settings(data=tmp_path)), cwd=tmp_path, stdout=log, stderr=log,
        )  # fmt: skip
        browser = subprocess.Popen(
            [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", f"--remote-debugging-port={debug}",
             f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1400,1000", "about:blank"],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            steward = Registry(url, "steward", keyring.password("steward"))
            steward.wait(120)
            trainer = Registry(url, "trainer", keyring.password("trainer"))
            approver = Registry(url, "approver", keyring.password("approver"))
            steward.propose_policy("adult", POLICY)
            approver.accept_policy("adult")
            files = {"model.json": b"{}"}
            made = Candidate(
                problem="adult", payload=tree_digest(files), parent=None, base="b", code="0", kind="tabular", dataset="d",
                trial=None, seed=1, origin="fast", registered=1.0,
            )  # fmt: skip
            version = trainer.register("adult", files, made)
            verdict = Verdict(
                problem="adult", outcome=Outcome.INCONCLUSIVE, clauses=(), candidate=made.payload, evaluation="e",
                policy=POLICY, dataset="d", champion=None, look=1, at=1.0, key="k", reason="no champion",
            )  # fmt: skip
            envelope = sign(verdict, VERDICT_TYPE, keyring.read("gate"))
            steward.set_tag("adult", version, "verdict", canonical(envelope).decode())
            text = asyncio.run(walk(debug, url, keyring.password("approver"), "adult"))
            stamp = open_envelope(steward.version("adult", version).stamp, Approval, APPROVAL_TYPE, keyring.public().registry)
        finally:
            browser.terminate()
            server.terminate()
            browser.wait(20)
            server.wait(20)
    assert "only the steward writes the tag release" in text
    assert isinstance(stamp, Approval)
    assert (stamp.by, stamp.reason, stamp.decision) == (("approver",), "read it all", "approved")
