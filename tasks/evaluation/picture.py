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
from truing.tasks.records import Clause, Estimate, Found

WIDTH, ROW, TOP = 960, 40, 46
GROUP = 34  # room above the watched clauses
LEFT, RIGHT = 290, 630  # the plotting area, in pixels
COLUMNS = (700, 846, 902)  # right edges of the numbers


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


def forest(clauses: Sequence[Clause]) -> str:
    """Every clause as a drop with its joint lower and own upper bound, on one axis: multiples of its limit."""
    ends = [v / one.limit for one in clauses for v in (one.delta.low, one.delta.high) if v is not None]
    axis = Axis(min(-0.5, max(-2.0, min(ends, default=0.0))), max(1.5, min(3.5, max(ends, default=0.0) * 1.05)))
    rows = sorted(clauses, key=lambda one: not one.deciding)
    watched = sum(not one.deciding for one in rows)
    split = 0 < watched < len(rows)
    bottom = TOP + ROW * len(rows) + (GROUP if split else 0)
    zero, limit = axis.x(0), axis.x(1)
    parts = [
        f'<rect x="{limit}" y="{TOP - 10}" width="{RIGHT - limit}" height="{bottom - TOP + 10}" class="beyond"/>',
        _line(zero, TOP - 10, zero, bottom, "axis"),
        _line(limit, TOP - 10, limit, bottom, "limit"),
        _text(zero, TOP - 18, "no change", "small", "middle"),
        _text(limit, TOP - 18, "limit", "small strong", "middle"),
        *_heads("drop", "between", "limit"),
    ]
    y = TOP + ROW / 2
    for i, one in enumerate(rows):
        if split and i == len(rows) - watched:
            parts.append(_line(0, y - ROW / 2 + 6, WIDTH, y - ROW / 2 + 6, "rule"))
            parts.append(_text(0, y - ROW / 2 + 27, "watched: may block, never holds a pass back", "small"))
            y += GROUP
        delta = one.delta
        numbers = ("–", "–") if delta.value is None else (amount(delta.value, one.metric, signed=True), bounds(one))
        parts += _names(one, f"{SPOKEN[one.metric]}, {spoken(one.slice)}, against the {AGAINST[one.against]}", y)
        parts += _estimate(one, axis, [None if v is None else v / one.limit for v in (delta.low, delta.value, delta.high)], y)
        parts += _numbers(one, (*numbers, amount(one.limit, one.metric)), y)
        y += ROW
    for tick in range(math.ceil(axis.low), math.floor(axis.high) + 1):
        parts.append(_text(axis.x(tick), bottom + 16, f"{tick}×".replace("-", "−"), "small", "middle"))
    parts += [
        _text(LEFT, bottom + 34, "← better", "small"),
        _text((LEFT + RIGHT) / 2, bottom + 34, "multiples of the limit", "small", "middle"),
        _text(RIGHT, bottom + 34, "worse →", "small", "end"),
    ]
    return _svg(bottom + 42, "Drops of all clauses with their bounds, against their limits", parts)


def floors(clauses: Sequence[Clause]) -> str:
    """Every floor as an improvement over the prior predictor with its bounds, on one axis: multiples of what is asked."""
    gains = [
        [None if v is None else v / one.limit for v in (one.delta.high, one.delta.value, one.delta.low)] for one in clauses
    ]
    ends = [v for gain in gains for v in gain if v is not None]
    axis = Axis(min(-0.2, max(-2.0, min(ends, default=0.0))), max(1.5, min(6.0, max(ends, default=0.0) * 1.05)))
    bottom = TOP + ROW * len(clauses)
    zero, asked = axis.x(0), axis.x(1)
    parts = [
        f'<rect x="{LEFT}" y="{TOP - 10}" width="{asked - LEFT}" height="{bottom - TOP + 10}" class="beyond"/>',
        _line(zero, TOP - 10, zero, bottom, "axis"),
        _line(asked, TOP - 10, asked, bottom, "limit"),
        _text(zero, TOP - 18, "prior", "small", "middle"),
        _text(asked, TOP - 18, "asked", "small strong", "middle"),
        *_heads("better by", "between", "asked"),
    ]
    for i, (one, gain) in enumerate(zip(clauses, gains, strict=True)):
        y = TOP + ROW * i + ROW / 2
        delta, numbers = one.delta, ("–", "–")
        if delta.value is not None and delta.low is not None and delta.high is not None:
            between = f"{amount(-delta.high, one.metric)} to {amount(-delta.low, one.metric)}"
            numbers = (amount(-delta.value, one.metric), between)
        parts += _names(one, f"{SPOKEN[one.metric]}, {spoken(one.slice)}", y)
        parts += _estimate(one, axis, gain, y)
        parts += _numbers(one, (*numbers, amount(-one.limit, one.metric)), y)
    return _svg(bottom + 8, "Improvements over the prior predictor, against what is asked", parts)


def _heads(*heads: str) -> list[str]:
    return [_text(x, TOP - 18, head, "small", "end") for x, head in zip(COLUMNS, heads, strict=False)]


def _names(one: Clause, where: str, y: float) -> list[str]:
    return [_text(0, y - 1, one.name, "name" if one.deciding else "name light"), _text(0, y + 14, where, "small")]


def _estimate(one: Clause, axis: Axis, ends: Sequence[float | None], y: float) -> list[str]:
    low, value, high = ends
    if low is None or value is None or high is None:
        return [_text((LEFT + RIGHT) / 2, y + 4, "not estimable", "small", "middle")]
    kind = one.outcome.value if one.deciding else f"{one.outcome.value} hollow"
    dot = f'<circle cx="{axis.x(value)}" cy="{y}" r="5.5" class="dot {kind}"/>'
    return [*_whisker(axis, low, high, y, one.outcome.value), dot]


def _numbers(one: Clause, texts: Sequence[str], y: float) -> list[str]:
    kinds = ("number strong", "number", "number")
    word = {"inconclusive": "open"}.get(one.outcome.value, one.outcome.value)
    return [
        *(_text(x, y + 4, text, kind, "end") for x, text, kind in zip(COLUMNS, texts, kinds, strict=False)),
        _text(WIDTH, y + 4, word, f"outcome {one.outcome.value}", "end"),
    ]


def gap_plot(gaps: Sequence[Gap]) -> str:
    """Champion's and candidate's gap between the same two buckets, with 95 % intervals, in points."""
    ends = [v for one in gaps for e in (one.champion, one.candidate) for v in (e.low, e.high) if v is not None]
    step = 0.1 if max([abs(v) for v in ends] or [0.0]) > 0.25 else 0.05
    low = min(0.0, step * (min(ends, default=0.0) // step))
    high = step * -(-max(ends, default=step) // step)
    axis = Axis(low, high)
    row = ROW + 8
    bottom = TOP + row * len(gaps)
    paired = any(one.champion.value is not None for one in gaps)
    parts = [_text(LEFT, TOP - 18, "gap in points", "small")]
    if paired:
        parts.append(_text(775, TOP - 18, "champion → candidate", "small", "end"))
    parts.append(_text(WIDTH, TOP - 18, "change" if paired else "candidate", "small", "end"))
    for k in range(round((high - low) / step) + 1):
        value = low + k * step
        parts.append(_line(axis.x(value), TOP - 8, axis.x(value), bottom, "axis" if abs(value) < 1e-9 else "grid"))
        parts.append(_text(axis.x(value), bottom + 16, amount(value, "tpr").removesuffix(".0"), "small", "middle"))
    for i, one in enumerate(gaps):
        y = TOP + row * i + row / 2
        parts.append(_text(0, y - 1, f"{SPOKEN[one.metric]} by {one.group}", "name"))
        parts.append(_text(0, y + 14, f"{one.highest} over {one.lowest}".replace(">=", "≥"), "small"))
        for estimate, kind, shift in ((one.champion, "before", -7), (one.candidate, "after", 7 if paired else 0)):
            if estimate.value is None or estimate.low is None or estimate.high is None:
                continue
            parts += _whisker(axis, estimate.low, estimate.high, y + shift, kind)
            parts.append(f'<circle cx="{axis.x(estimate.value)}" cy="{y + shift}" r="4.5" class="dot {kind}"/>')
        if paired:
            parts.append(_text(775, y + 4, f"{_short(one.champion)} → {_short(one.candidate)}", "number", "end"))
        said = points(one.change, signed=True) if paired else points(one.candidate)
        parts.append(_text(WIDTH, y + 4, said, "number strong", "end"))
    return _svg(bottom + 24, "Gaps between groups for champion and candidate", parts)


def found_plot(found: Sequence[Found]) -> str:
    """Slices found by themselves: the drop in accuracy on the rows held back, with its bounds, in points."""
    ends = [v for one in found for v in (one.drop.low, one.drop.high) if v is not None]
    reach = max([abs(v) for v in ends] or [0.05])
    step = next(size for size in (0.02, 0.05, 0.1, 0.2) if reach <= 6 * size or size == 0.2)
    low = min(-step, max(-4 * step, step * math.floor(min(ends, default=0.0) / step)))
    axis = Axis(low, max(step, min(6 * step, step * math.ceil(max(ends, default=step) / step))))
    bottom = TOP + ROW * len(found)
    parts = _heads("drop", "between", "rows")
    for k in range(round(axis.low / step), round(axis.high / step) + 1):
        parts.append(_line(axis.x(k * step), TOP - 10, axis.x(k * step), bottom, "axis" if k == 0 else "grid"))
        label = "no change" if k == 0 else amount(k * step, "tpr").removesuffix(".0")
        parts.append(_text(axis.x(k * step), bottom + 16, label, "small", "middle"))
    for i, one in enumerate(found):
        y, drop = TOP + ROW * (i + 0.5), one.drop
        kind = "block" if one.confirmed else "before"
        parts.append(_text(0, y - 1, _fitting(one.slice), "name" if one.confirmed else "name light"))
        parts.append(_text(0, y + 14, f"{one.share:.1%} of the rows, {amount(one.seen, 'tpr')} where it was found", "small"))
        texts = ["–", "–", f"{one.n:,}"]
        if drop.value is not None and drop.low is not None and drop.high is not None:
            parts += _whisker(axis, drop.low, drop.high, y, kind)
            parts.append(f'<circle cx="{axis.x(drop.value)}" cy="{y}" r="5.5" class="dot {kind}"/>')
            between = f"{amount(drop.low, 'tpr')} to {amount(drop.high, 'tpr')}"
            texts = [amount(drop.value, "tpr", signed=True), between, f"{one.n:,}"]
        for x, text, form in zip(COLUMNS, texts, ("number strong", "number", "number"), strict=False):
            parts.append(_text(x, y + 4, text, form, "end"))
        word = ("holds", "outcome block") if one.confirmed else ("open", "outcome")
        parts.append(_text(WIDTH, y + 4, *word, "end"))
    parts.append(_text(RIGHT, bottom + 34, "points of accuracy lost →", "small", "end"))
    return _svg(bottom + 42, "Slices in which the candidate loses most, with bounds", parts)


def _fitting(text: str) -> str:
    return text if len(text) <= 44 else text[:43] + "…"


def bars(weights: Sequence[tuple[str, float]]) -> str:
    """Shares (0..1) as horizontal bars, the largest first."""
    row, most = 24, max([share for _, share in weights] or [1.0])
    parts = []
    for i, (name, share) in enumerate(weights):
        y = row * i + row / 2
        width = round((RIGHT - LEFT) * share / most, 1)
        parts.append(_text(0, y + 4, _fitting(name)))
        parts.append(f'<rect x="{LEFT}" y="{y - 7}" width="{width}" height="14" rx="2" class="bar"/>')
        parts.append(_text(LEFT + width + 8, y + 4, f"{share:.0%}", "number"))
    return _svg(row * len(weights) + 4, "What the candidate goes by, by share of importance", parts)


def _short(one: Estimate) -> str:
    return "–" if one.value is None else amount(one.value, "tpr")
