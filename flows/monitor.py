"""Monitor: windows of served traffic → quality, group gaps, drift → alerts. Light enough to run every minute."""

from __future__ import annotations

import time
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

MOST = 120  # windows whose numbers are taken in one run


@flow(name="monitor", flow_run_name="monitor {problem}", persist_result=False, retries=1, retry_delay_seconds=5)
def monitor(problem: str) -> dict[str, Any]:
    """Take the numbers of every window that got rows or labels since the last look. Counts of windows and alerts."""
    from truing.infra.catalog import chosen
    from truing.infra.settings import current
    from truing.tasks.monitoring.alerts import examine, fold
    from truing.tasks.monitoring.windows import Mark, Window, due, inputs, window
    from truing.tasks.problem import seconds
    from truing.tasks.records import Alert
    from truing.tasks.tables.lake import Lake

    settings, now, log = current(), time.time(), get_run_logger()
    spec, policy = chosen(settings.problems, problem)
    lake, every = Lake(settings.lake), seconds(spec.cadence.monitor_every)

    last = next(iter(lake.records("marks", Mark, problem=problem)), None)
    mark, spans, traffic = due(lake, problem, mark=last, every_s=every, now=now, most=MOST)
    reference = inputs(lake.rows(problem, splits=["trusted"]), spec) if spans else None
    taken = [window(traffic, reference, spec, start=start, end=end, now=now) for start, end in spans]
    lake.record("traffic", taken)
    lake.record("marks", [mark])
    windows = sorted(lake.records("traffic", Window, problem=problem), key=lambda one: one.start)

    known = lake.records("alerts", Alert, problem=problem)
    alerts, new = fold(known, examine(windows, spec, policy), problem=problem, now=now)
    lake.record("alerts", alerts)
    _announce(problem, new, now)
    if taken or alerts:
        _show(problem, windows, alerts)
    opened = [alert for alert in alerts if alert.closed_at is None]
    for alert in new:
        log.warning("%s %s: observed %s, expected %s; %s", alert.level, alert.key, alert.observed, alert.expected, alert.act)
    log.info("%d of %d windows taken, %d alerts open, %d new", len(taken), len(windows), len(opened), len(new))
    return {"taken": len(taken), "windows": len(windows), "open": len(opened), "new": len(new)}


def _announce(problem: str, alerts: list[Any], now: float) -> None:
    if alerts:
        from truing.infra.control import announcer
        from truing.infra.settings import current

        say = announcer(current())
        for alert in alerts:
            say({"type": "alert.raised", "problem": problem, "key": alert.key, "level": alert.level, "time": now})


def _show(problem: str, windows: list[Any], alerts: list[Any]) -> None:
    lines = [
        {
            "from": time.strftime("%H:%M:%S", time.gmtime(one.start)),
            "release": one.release or "",
            "rows": one.rows,
            "labelled": one.labelled,
            **{name: told(value) for name, value in one.metrics.items()},
            "moved": ", ".join(column.column for column in one.moved if column.moved),
        }
        for one in windows[-20:]
        if one.rows
    ]
    create_table_artifact(lines, key=f"traffic-{problem}", description="Served traffic, times in UTC, 95 % intervals")
    newest = next((one for one in reversed(windows) if one.rows), None)
    gaps = [f"| {g.group} | {g.first} − {g.second} | {g.metric} | {told(g.delta)} |" for g in (newest.gaps if newest else ())]
    told_alerts = [f"- **{one.level}** {one.key}: {one.act}" for one in alerts if one.closed_at is None] or ["none"]
    text = "\n".join(
        ["## Open alerts", *told_alerts, "", "## Group gaps", "| group | between | metric | gap |", "|---|---|---|---|", *gaps]
    )
    create_markdown_artifact(text, key=f"monitor-{problem}", description=f"Alerts and group gaps of {problem}")


def told(one: Any) -> str:
    """An estimate for people: `0.123 (0.110-0.136)`."""
    if one.value is None:
        return "-"
    return f"{one.value:.3f}" + (f" ({one.low:.3f} to {one.high:.3f})" if one.low is not None else "")
