"""The verdict's two pictures as SVG text: a forest plot of the clauses, and the gaps between groups.

Drawn by hand so that the page is self-contained, sharp at any size, and follows the reader's light or dark theme (colours
are the page's CSS variables).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from truing.tasks.evaluation.gaps import Gap
from truing.tasks.evaluation.slices import spoken
from truing.tasks.evaluation.wording import AGAINST, SPOKEN, amount, bounds, points
from truing.tasks.records import Clause, Estimate

WIDTH, ROW, TOP = 960, 40, 46
LEFT, RIGHT = 290, 640  # the plotting area, in pixels


class Axis:
    """A linear axis from `low` to `high` over the plotting area."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def x(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(LEFT + share * (RIGHT - LEFT), 1)


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{kind}"/>'


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">\n{body}\n</svg>'


def _whisker(axis: Axis, low: float, high: float, y: float, kind: str) -> list[str]:
    """An interval with end ticks; an end outside the axis gets an arrow head instead."""
    a, b = axis.x(low), axis.x(high)
    parts = [_line(a, y, b, y, f"whisker {kind}")]
    for end, value, out in ((a, low, low < axis.low), (b, high, high > axis.high)):
        if out:
            step = 6 if value < axis.low else -6
            parts.append(f'<path d="M{end + step} {y - 4.5}L{end} {y}L{end + step} {y + 4.5}" class="whisker {kind}"/>')
        else:
            parts.append(_line(end, y - 4.5, end, y + 4.5, f"whisker {kind}"))
    return parts


def _in_limits(clause: Clause, value: float) -> float:
    """A drop in multiples of its limit: 1 is on the limit. For a floor, 1 is exactly what is asked, 2 the prior predictor."""
    if clause.against == "absolute":
        return 1.0 + (value - clause.limit) / abs(clause.limit) if clause.limit else 1.0 + value
    return value / clause.limit


def forest(clauses: Sequence[Clause]) -> str:
    """Every clause as a drop with its joint lower and own upper bound, on one axis: multiples of its limit."""
    ends = [_in_limits(one, v) for one in clauses for v in (one.delta.low, one.delta.high) if v is not None]
    axis = Axis(min(-0.5, max(-2.0, min(ends, default=0.0))), max(1.5, min(3.5, max(ends, default=0.0))))
    rows = sorted(clauses, key=lambda one: not one.deciding)
    watched = sum(not one.deciding for one in rows)
    bottom = TOP + ROW * len(rows) + (26 if 0 < watched < len(rows) else 0)
    zero, limit = axis.x(0), axis.x(1)
    parts = [
        f'<rect x="{limit}" y="{TOP - 10}" width="{RIGHT - limit}" height="{bottom - TOP + 10}" class="beyond"/>',
        _line(zero, TOP - 10, zero, bottom, "axis"),
        _line(limit, TOP - 10, limit, bottom, "limit"),
        _text(zero, TOP - 18, "no change", "small", "middle"),
        _text(limit, TOP - 18, "limit", "small strong", "middle"),
        _text(LEFT, TOP - 18, "← better", "small"),
        _text(RIGHT, TOP - 18, "worse →", "small", "end"),
        _text(712, TOP - 18, "drop", "small", "end"),
        _text(852, TOP - 18, "between", "small", "end"),
        _text(910, TOP - 18, "limit", "small", "end"),
    ]
    y = TOP + ROW / 2
    for i, one in enumerate(rows):
        if 0 < watched < len(rows) and i == len(rows) - watched:
            parts.append(_line(0, y - ROW / 2 + 6, WIDTH, y - ROW / 2 + 6, "rule"))
            parts.append(_text(0, y - ROW / 2 + 25, "watched: may block, never holds a pass back", "small"))
            y += 26
        parts += _clause(one, axis, y)
        y += ROW
    for tick in range(math.ceil(axis.low), math.floor(axis.high) + 1):
        parts.append(_text(axis.x(tick), bottom + 16, f"{tick}×".replace("-", "−"), "small", "middle"))
    parts.append(_text((LEFT + RIGHT) / 2, bottom + 34, "drop in multiples of the clause's own limit", "small", "middle"))
    return _svg(bottom + 42, "Drops of all clauses with their bounds, against their limits", parts)


def _clause(one: Clause, axis: Axis, y: float) -> list[str]:
    kind, delta = one.outcome.value, one.delta
    where = f"{SPOKEN[one.metric]}, {spoken(one.slice)}, against the {AGAINST[one.against]}"
    parts = [_text(0, y - 1, one.name, "name" if one.deciding else "name soft"), _text(0, y + 14, where, "small")]
    if delta.value is None or delta.low is None or delta.high is None:
        return [*parts, _text((LEFT + RIGHT) / 2, y + 4, "not estimable", "small", "middle")]
    parts += _whisker(axis, _in_limits(one, delta.low), _in_limits(one, delta.high), y, kind)
    fill = kind if one.deciding else f"{kind} hollow"
    parts.append(f'<circle cx="{axis.x(_in_limits(one, delta.value))}" cy="{y}" r="5.5" class="dot {fill}"/>')
    parts.append(_text(712, y + 4, amount(delta.value, one.metric, signed=True), "number strong", "end"))
    parts.append(_text(852, y + 4, bounds(one), "number", "end"))
    parts.append(_text(910, y + 4, amount(one.limit, one.metric), "number", "end"))
    parts.append(_text(WIDTH, y + 4, {"inconclusive": "open"}.get(kind, kind), f"outcome {kind}", "end"))
    return parts


def gap_plot(gaps: Sequence[Gap]) -> str:
    """Champion's and candidate's gap between the same two buckets, with 95 % intervals, in points."""
    ends = [v for one in gaps for e in (one.champion, one.candidate) for v in (e.low, e.high) if v is not None]
    step = 0.1 if max([abs(v) for v in ends] or [0.0]) > 0.25 else 0.05
    low = min(0.0, step * (min(ends, default=0.0) // step))
    high = step * -(-max(ends, default=step) // step)
    axis = Axis(low, high)
    row = ROW + 8
    bottom = TOP + row * len(gaps)
    parts = [_text(LEFT, TOP - 18, "gap in points", "small"), _text(WIDTH, TOP - 18, "change", "small", "end")]
    parts.append(_text(806, TOP - 18, "champion → candidate", "small", "end"))
    for k in range(round((high - low) / step) + 1):
        value = low + k * step
        parts.append(_line(axis.x(value), TOP - 8, axis.x(value), bottom, "axis" if abs(value) < 1e-9 else "grid"))
        parts.append(_text(axis.x(value), bottom + 16, amount(value, "tpr").removesuffix(".0"), "small", "middle"))
    for i, one in enumerate(gaps):
        y = TOP + row * i + row / 2
        parts.append(_text(0, y - 1, f"{SPOKEN[one.metric]} by {one.group}", "name"))
        parts.append(_text(0, y + 14, f"{one.highest} over {one.lowest}".replace(">=", "≥"), "small"))
        for estimate, kind, shift in ((one.champion, "before", -7), (one.candidate, "after", 7)):
            if estimate.value is None or estimate.low is None or estimate.high is None:
                continue
            parts += _whisker(axis, estimate.low, estimate.high, y + shift, kind)
            parts.append(f'<circle cx="{axis.x(estimate.value)}" cy="{y + shift}" r="4.5" class="dot {kind}"/>')
        parts.append(_text(806, y + 4, f"{_short(one.champion)} → {_short(one.candidate)}", "number", "end"))
        parts.append(_text(WIDTH, y + 4, points(one.change, signed=True), "number strong", "end"))
    return _svg(bottom + 24, "Gaps between groups for champion and candidate", parts)


def _short(one: Estimate) -> str:
    return "–" if one.value is None else amount(one.value, "tpr")
