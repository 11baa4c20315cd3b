"""A person in MLflow's own page, in a real browser: her approval serves, and what she may not approve says why.

`--pictures FOLDER` keeps the screenshots; the README's are made that way.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from browser import BROWSER, Page, browser, tab
from stage import NAME, Stage

from truing.tasks.records import Approval
from truing.tasks.seal import APPROVAL_TYPE, open_envelope

pytestmark = [
    pytest.mark.services,
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("page") / "stage")
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = Path(request.config.getoption("--pictures") or tmp_path / "pictures")
    folder.mkdir(exist_ok=True)
    return folder


def test_an_approval_by_hand_serves_and_a_blocked_version_says_why_not(stage: Stage, tmp_path: Path, pictures: Path) -> None:
    passed, blocked = stage.judged(stage.variant()), stage.judged(stage.harmful())
    assert (stage.outcome(passed), stage.outcome(blocked)) == ("pass", "block")
    person, url = stage.settings.approvers[0], stage.settings.registry_url
    before = stage.status()["sequence"]

    async def approve(page: Page) -> None:
        await page.log_in(url, person, stage.ring.password(person))
        await page.open_version(url, NAME, passed)
        await page.says("women's TPR")  # the verdict's table, before she decides
        await page.close_panel()
        await page.picture(pictures / "verdict.png")
        await page.tag("release", "mine")
        await page.says("only the steward writes the tag release")
        await page.tag("approval.reason", "gaps and gains reviewed")
        await page.says("gaps and gains reviewed")
        await page.tag("approval", "approved")
        await page.says("approval.by")
        await page.picture(pictures / "approve.png")

    async def try_blocked(page: Page) -> str:
        await page.log_in(url, person, stage.ring.password(person))
        await page.open_version(url, NAME, blocked)
        await page.says("women's TPR")
        await page.close_panel()
        await page.tag("approval", "approved")
        await page.says("is blocked:")
        await page.picture(pictures / "refused.png")
        return await page.text()

    async def walk(act: Callable[[Page], Coroutine[Any, Any, Any]]) -> Any:
        async with tab(port) as page:
            return await act(page)

    with browser(tmp_path) as port:
        asyncio.run(walk(approve))
        served = stage.served_as(passed)
        text = str(asyncio.run(walk(try_blocked)))
    assert served["sequence"] == before + 1
    stamp = stage.trainer.version(NAME, passed).stamp
    approval = open_envelope(stamp, Approval, APPROVAL_TYPE, stage.ring.public().registry)
    assert isinstance(approval, Approval)
    assert (approval.by, approval.reason, approval.decision) == ((person,), "gaps and gains reviewed", "approved")
    reason = stage.trainer.version(NAME, blocked).tags["verdict.reason"]
    assert f"version {blocked} is blocked: {reason}" in text
    assert stage.trainer.version(NAME, blocked).approval is None
    assert stage.status()["version"] == passed
    for name in ("verdict", "approve", "refused"):
        assert (pictures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
