"""What did not become a row or may not teach: dead letters of the last day by reason, windows that validation rejected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from truing.infra.settings import Settings

DAY_S = 86_400.0


def refused(settings: Settings, problems: Iterable[str], *, now: float) -> dict[str, Any]:
    """{"dead": {reason: letters open since a day}, "windows": {problem: {"judged", "rejected", "rows"}}}. Raises Unavailable.

    `rows` counts those that failed alone in windows that are in.
    """
    from truing.tasks.events.dead import counted, letters
    from truing.tasks.tables.lake import Lake, Vault
    from truing.tasks.validation.suite import reports

    dead = counted(letters(Vault(settings.vault), since=now - DAY_S)) if settings.vault.exists() else {}
    windows = {}
    for name in problems if settings.lake.exists() else ():
        known = reports(Lake(settings.lake), name)
        out = sum(1 for one in known if not one.success)
        alone = sum(len(one.failed) for one in known if one.success)
        windows[name] = {"judged": len(known), "rejected": out, "rows": alone}
    return {"dead": dict(dead), "windows": windows}
