"""The axis on which the gaps of a family are drawn, and its lettering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from truing.tasks.evaluation.wording import SPOKEN, amount
from truing.tasks.records import Estimate
from truing.tasks.release.disparity import Disparity

WIDTH, TOP = 1120, 72
LEFT, RIGHT = 654, 896  # where gaps are drawn


@dataclass(frozen=True)
class Scale:
    """A linear axis over the plotting area, in steps that read well."""

    low: float
    high: float
    step: float

    @classmethod
    def of(cls, estimates: Sequence[Estimate]) -> Scale:
        ends = [v for one in estimates for v in (one.low, one.value, one.high) if v is not None]
        low, high = min([0.0, *ends]), max([0.0, *ends])
        width = max(high - low, 0.02)
        step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if width / step <= 6 or step == 0.5)
        return cls(low=step * (low // step), high=step * -(-max(high, step) // step), step=step)

    def x(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(LEFT + share * (RIGHT - LEFT), 1)

    def ticks(self) -> list[float]:
        return [self.low + k * self.step for k in range(round((self.high - self.low) / self.step) + 1)]


def grid(axis: Scale, bottom: float, gaps: Sequence[Disparity], wanted: tuple[str, str]) -> list[str]:
    title = f"{SPOKEN[wanted[1]]} by {wanted[0]}, gap in points"
    if gaps:
        title = f"{SPOKEN[wanted[1]]}: {gaps[0].over} over {gaps[0].under}, in points".replace(">=", "≥")
    parts = [text(LEFT, 18, title, "name"), text(WIDTH, 18, "gap (95 %)", "small", "end")]
    parts += [text(LEFT, 35, "● this version   | its parent, same rows", "small")] if gaps else []
    for value in axis.ticks() if gaps else ():
        kind = "axis" if abs(value) < 1e-9 else "grid"
        x = axis.x(value)
        parts.append(f'<path d="M{x} {TOP - 10}V{bottom:g}" class="{kind}"/>')
        for y in (TOP - 14, bottom + 14):
            parts.append(text(x, y, amount(value, "tpr").removesuffix(".0"), "small", "middle"))
    return parts


def interval(one: Estimate) -> str:
    """`8.9 (3.1 to 14.6)`, in points."""
    if one.value is None:
        return "–"
    text = amount(one.value, "tpr")
    return text if one.low is None or one.high is None else f"{text} ({amount(one.low, 'tpr')} to {amount(one.high, 'tpr')})"


def text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
