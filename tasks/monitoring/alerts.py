"""What a person should look at. What is found again folds into the alert of its key; what is no longer found closes it."""

from __future__ import annotations

from collections.abc import Sequence

from truing.tasks.monitoring.windows import Window
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem, seconds
from truing.tasks.records import Alert, Estimate, Record
from truing.tasks.seal import digest
from truing.tasks.statistics.cells import HIGHER_IS_BETTER

RUNBOOK = "README.md#alerts"
BASE_WINDOWS = 10  # earlier windows that a new one is compared with


class Finding(Record, frozen=True):
    """One thing out of order now. `key` says which; two findings of one key are the same matter."""

    key: str
    kind: str
    level: str  # info | warning | critical
    slice: str
    observed: float | None
    expected: float | None
    act: str


def examine(windows: Sequence[Window], problem: Problem, policy: Policy) -> list[Finding]:
    """What the newest window that can say something shows, against the pooled ones before it; `windows` by rising time.

    Labels come late, so quality is judged on the newest window with an interval, which need not be the newest of all.
    """
    judged = [one for one in windows if one.rows]
    if not judged:
        return []
    found = _quality(judged, problem) + _gaps(judged)
    found += [
        Finding(
            key=f"drift:{one.column}",
            kind="drift",
            level="warning",
            slice=one.column,
            observed=one.psi,
            expected=one.limit,
            act=f"look at {one.column}: its distribution has left that of the training rows",
        )
        for one in judged[-1].moved
        if one.moved
    ]
    wait = seconds(problem.maturity.outcome)
    old = [one for one in judged if one.at - one.end > max(2 * wait, one.end - one.start)]
    if old and old[-1].coverage < policy.evidence.min_coverage:
        found.append(
            Finding(
                key="coverage",
                kind="coverage",
                level="info",
                slice="all",
                observed=old[-1].coverage,
                expected=policy.evidence.min_coverage,
                act="outcomes are missing: no candidate can pass without them; look at their source",
            )
        )
    return found


def _split(known: Sequence[Estimate]) -> tuple[Estimate, Estimate] | None:
    """(the newest estimate with an interval, those before it pooled), or None without both."""
    usable = [one for one in known if one.low is not None]
    base = pooled(usable[-1 - BASE_WINDOWS : -1])
    return (usable[-1], base) if base is not None else None


def _quality(windows: Sequence[Window], problem: Problem) -> list[Finding]:
    metric = problem.primary_metric
    both = _split([one.metrics[metric] for one in windows if metric in one.metrics])
    if both is None or not _worse(*both, higher=HIGHER_IS_BETTER[metric]):
        return []
    return [
        Finding(
            key=f"quality:{metric}",
            kind="quality",
            level="critical",
            slice="all",
            observed=both[0].value,
            expected=both[1].value,
            act="quality has dropped beyond chance: `truing status`, then `truing rollback` or `truing improve`",
        )
    ]


def _gaps(windows: Sequence[Window]) -> list[Finding]:
    series: dict[tuple[str, str, str, str], list[Estimate]] = {}
    for one in windows[-1 - 2 * BASE_WINDOWS :]:
        for gap in one.gaps:
            series.setdefault((gap.group, gap.first, gap.second, gap.metric), []).append(gap.delta)
    found = []
    for (group, first, second, metric), known in series.items():
        both = _split(known)
        if both is None:
            continue
        now, base = both
        sign = 1.0 if (base.value or 0.0) >= 0 else -1.0
        if _worse(_times(now, sign), _times(base, sign), higher=False):
            found.append(
                Finding(
                    key=f"gap:{group}:{metric}",
                    kind="gap",
                    level="critical",
                    slice=f"{group}: {first} − {second}",
                    observed=now.value,
                    expected=base.value,
                    act=f"the {metric} gap of {group} has widened beyond chance: consider `truing rollback`",
                )
            )
    return found


def pooled(estimates: Sequence[Estimate]) -> Estimate | None:
    """Precision-weighted mean of independent estimates with its 95 % interval; None if none has an interval."""
    usable = [
        (one.value, (one.high - one.low) / 2)
        for one in estimates
        if one.value is not None and one.low is not None and one.high is not None
    ]
    usable = [(value, half) for value, half in usable if half > 0]
    if not usable:
        return None
    weights = [1 / half**2 for _, half in usable]
    total = sum(weights)
    value = sum(value * weight for (value, _), weight in zip(usable, weights, strict=True)) / total
    half = total**-0.5
    return Estimate(value=value, low=value - half, high=value + half, n=sum(one.n for one in estimates))


def _worse(now: Estimate, base: Estimate, *, higher: bool) -> bool:
    """Are the two 95 % intervals apart, on the bad side? (Chance alone: about 3 in 1,000 looks.)"""
    if now.low is None or now.high is None or base.low is None or base.high is None:
        return False
    return now.high < base.low if higher else now.low > base.high


def _times(one: Estimate, sign: float) -> Estimate:
    if one.value is None or one.low is None or one.high is None:
        return one
    low, high = sorted((one.low * sign, one.high * sign))
    return Estimate(value=one.value * sign, low=low, high=high, n=one.n)


def fold(known: Sequence[Alert], found: Sequence[Finding], *, problem: str, now: float) -> tuple[list[Alert], list[Alert]]:
    """(alerts to write, those of them that are new). An open alert of a key absorbs what is found again; others close."""
    still = {alert.key: alert for alert in known if alert.closed_at is None}
    written, new = [], []
    for one in found:
        old = still.pop(one.key, None)
        alert = Alert(
            id=old.id if old else digest([problem, one.key, now])[:16],
            problem=problem,
            key=one.key,
            kind=one.kind,
            level=one.level,
            subject=problem,
            slice=one.slice,
            observed=one.observed,
            expected=one.expected,
            since=old.since if old else now,
            closed_at=None,
            folded=old.folded + 1 if old else 0,
            act=one.act,
            runbook=RUNBOOK,
        )
        written.append(alert)
        if old is None:
            new.append(alert)
    written += [_closed(alert, now) for alert in still.values()]
    return written, new


def _closed(alert: Alert, now: float) -> Alert:
    import msgspec

    return msgspec.structs.replace(alert, closed_at=now)
