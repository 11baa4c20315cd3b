"""Approvals in advance: how small a step must be to go out without a fresh click, and how many may in a day.

`seal.admit` judges the approval itself: who gave it, for what, until when, and that the verdict is a pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from truing.tasks.records import Refusal, Release, Standing
from truing.tasks.release.book import Judged
from truing.tasks.seal import digest

DAY_S = 86_400.0


def small_enough(
    standing: Standing, judged: Judged, *, anchor: str | None, past: Sequence[Release], now: float
) -> Refusal | None:
    """Is this judged version within the standing approval? None = yes.

    `anchor` is the payload that is pinned now: a drift measured against another one says nothing. A version that was released
    once never comes back in this way: a person who rolled it back must not be overruled by an approval from before.
    """
    name = digest(standing)
    today = sum(release.approval == name and release.at > now - DAY_S for release in past)
    over: str | None = None
    if any(release.payload == judged.verdict.candidate for release in past):
        over = "it was released before"
    elif not judged.heads_only:
        over = "it is not a step of the fast learner on the champion's base"
    elif anchor is None or judged.anchor != anchor or judged.drift is None:
        over = "it was not measured against the anchor that is pinned now"
    elif judged.drift > standing.max_drift:
        over = f"it answers {judged.drift:.2%} otherwise than the anchor, allowed are {standing.max_drift:.2%}"
    elif today >= standing.per_day:
        over = f"{today} releases in 24 hours went out under it, allowed are {standing.per_day}"
    if over is None:
        return None
    return Refusal(
        code="standing.beyond",
        reason=f"the standing approval does not cover version {judged.version}: {over}",
        remedy="an approver decides on the version itself",
    )
