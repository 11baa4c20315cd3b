"""A real headless Chromium, one tab over the DevTools protocol: what tests need of it to act like a person in MLflow's page."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-device-scale-factor=1",
)  # fmt: skip


class Page:
    """One tab. Every wait fails the test with what the page shows then."""

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
        pytest.fail(f"the page never came to: {code}\n{await self.text()}")

    async def text(self) -> str:
        return str(await self.js("document.body.innerText"))

    async def says(self, words: str) -> None:
        await self.until(f"document.body.innerText.includes({json.dumps(words)})")

    async def log_in(self, url: str, user: str, password: str) -> None:
        """MLflow's page can't fetch from an address that carries the login, so log in first, then open it plain."""
        await self.call("Page.navigate", url=f"http://{user}:{password}@{url.removeprefix('http://')}/version")
        await self.until("document.body && document.body.innerText.startsWith('3.')")

    async def open_version(self, url: str, problem: str, version: str) -> None:
        await self.call("Page.navigate", url="about:blank")
        await self.call("Page.navigate", url=f"{url}/#/models/{problem}/versions/{version}")
        await self.until("document.querySelector('[data-testid=tags-form-input-name]')")

    async def tag(self, name: str, value: str) -> None:
        """Fill in the form below the tag table and press Add."""
        for field, text in (("name", name), ("value", value)):
            await self.js(f"document.querySelector('[data-testid=tags-form-input-{field}]').focus()")
            await self.js("document.activeElement.select()")
            await self.call("Input.insertText", text=text)
        await self.js("document.querySelector('[data-testid=add-tag-button]').click()")

    async def close_panel(self) -> None:
        """MLflow opens a panel of its own at the right on the first visit; away with it, as a person would."""
        button = "[...document.querySelectorAll('button')].find(b => { const r = b.getBoundingClientRect();"
        button += " return r.width > 0 && r.left > innerWidth - 80 && r.top < 70; })"
        await self.js(f"{button}?.click()")

    async def picture(self, path: Path) -> None:
        """What a person sees now, as PNG. Waits a moment for what is still sliding in."""
        await asyncio.sleep(1.0)
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(folder: Path, *, size: str = "1400,1000") -> Iterator[int]:
    """A running browser with an empty profile below `folder`; its DevTools port."""
    port = free_port()
    command = [str(BROWSER), *QUIET, f"--remote-debugging-port={port}", f"--user-data-dir={folder / 'profile'}",
               f"--window-size={size}", "about:blank"]  # fmt: skip
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield port
        finally:
            process.terminate()
            process.wait(20)


@asynccontextmanager
async def tab(port: int) -> AsyncIterator[Page]:
    """The browser's tab."""
    from websockets.asyncio.client import connect

    for _ in range(150):
        try:
            tabs = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5))
            break
        except OSError:
            await asyncio.sleep(0.2)
    else:
        pytest.fail("the browser did not start")
    address = next(one["webSocketDebuggerUrl"] for one in tabs if one["type"] == "page")
    async with connect(address, max_size=None) as connection:
        yield Page(connection)
