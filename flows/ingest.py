"""Ingest as Prefect sees it: a run is one segment of the keeper's work, with its counts as table, text and progress.

Inside the keeper's process the run watches the keeper (which goes on whether Prefect answers or not). Anywhere else, on the
runner or by hand, it lands and joins everything that is there now, unless a keeper does so already.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect import flow, get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

if TYPE_CHECKING:
    from truing.flows.keeper import Keeper

SHOW_S = 5.0  # seconds between updates of the progress (each costs the server 0.2 s)
QUIET_S = 1.0  # a segment that is over ends once nothing has landed for so long
_attached: list[Keeper] = []


def attach(keeper: Keeper) -> None:
    """Runs in this process show that keeper's work."""
    _attached[:] = [keeper]


@flow(name="ingest", persist_result=False)
def ingest() -> dict[str, int]:
    """One segment. Returns what landed in it: by disposition, by type, by reason, and rows joined."""
    counts = watch(_attached[0]) if _attached else once()
    show(counts)
    get_run_logger().info("%s", sentence(counts))
    return counts


def watch(keeper: Keeper) -> dict[str, int]:
    """Follow the keeper for `ingest.segment_s`, then until it is quiet, or until it stops."""
    before, seen = Counter(keeper.tally), Counter(keeper.tally)
    begun = changed = shown = time.monotonic()
    length = keeper.settings.ingest.segment_s
    progress = _begin_progress()
    while not keeper.stop.wait(0.25):
        at = time.monotonic()
        tally = Counter(keeper.tally)
        if tally != seen:
            changed, seen = at, tally
            if at - shown > SHOW_S:
                shown = at
                _progress(progress, min(99.0, 100 * (at - begun) / length), sentence(_difference(seen, before)))
        if (at - begun > length and at - changed > QUIET_S) or at - begun > 2 * length:
            break
    counts = _difference(Counter(keeper.tally), before)
    _progress(progress, 100.0, sentence(counts))
    return counts


def once() -> dict[str, int]:
    """Land and join all that is there, in this process."""
    from truing.flows.errands import prefect
    from truing.flows.keeper import Busy, Keeper, drain
    from truing.infra.settings import current

    settings, log = current(), get_run_logger()
    try:
        keeper = Keeper(settings, start=prefect(settings), log=log.info, number=None)
    except Busy as error:
        log.info("%s", error)
        return {}
    try:
        return drain(keeper)
    finally:
        keeper.close()


def _difference(now: Counter[str], before: Counter[str]) -> dict[str, int]:
    return {name: count - before[name] for name, count in sorted(now.items()) if count != before[name]}


def sentence(counts: dict[str, int]) -> str:
    """The counts in words."""
    if not counts:
        return "nothing new"
    words = (
        ("landed", "landed"),
        ("dead", "dead letters"),
        ("duplicate", "duplicates"),
        ("rows", "rows"),
        ("labelled", "labelled"),
    )
    told = [f"{counts.get(name, 0)} {word}" for name, word in words]
    aside = sum(count for name, count in counts.items() if name.startswith("set aside "))
    rare = (("parked", counts.get("parked", 0), "before their prediction"), ("aside", aside, "words set aside"))
    return ", ".join([*told, *(f"{count} {word}" for _, count, word in rare if count)])


def show(counts: dict[str, int]) -> None:
    """Table and text of a segment. A Prefect that went away meanwhile is no reason to fail."""
    try:
        types = [{"what": name, "count": count} for name, count in counts.items()]
        create_table_artifact(
            types or [{"what": "nothing new", "count": 0}], key="ingest-segment", description="Landed in this segment"
        )
        dead = {name.removeprefix("reason "): count for name, count in counts.items() if name.startswith("reason ")}
        dead |= {name: count for name, count in counts.items() if name.startswith("set aside ")}
        lines = [f"| `{name}` | {count} |" for name, count in dead.items()]
        text = (
            "\n".join(
                [f"**{sentence(counts)}**", "", "| dead letters because of, words set aside | count |", "|---|---|", *lines]
            )
            if lines
            else ""
        )
        create_markdown_artifact(text or f"**{sentence(counts)}**", key="ingest", description="The last segment")
    except (httpx.HTTPError, PrefectException, OSError) as error:
        get_run_logger().info("not shown: %s", type(error).__name__)


def _begin_progress() -> UUID | None:
    try:
        made: Any = create_progress_artifact(0.0, key="ingest-progress", description="This segment")
        return made if isinstance(made, UUID) else UUID(str(made))
    except (httpx.HTTPError, PrefectException, OSError):
        return None


def _progress(artifact: UUID | None, share: float, text: str) -> None:
    if artifact is None:
        return
    try:
        update_progress_artifact(artifact, share, description=text)
    except (httpx.HTTPError, PrefectException, OSError) as error:
        get_run_logger().info("not shown: %s", type(error).__name__)
