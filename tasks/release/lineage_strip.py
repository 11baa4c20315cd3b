"""The gap of every version at one glance, oldest at the left: how three hundred of them went."""

from __future__ import annotations

from html import escape

from truing.tasks.evaluation.wording import amount
from truing.tasks.records import Estimate
from truing.tasks.release.lineage import BLOCKED, Family, Member
from truing.tasks.release.lineage_picture import CLASS

WIDTH, HEIGHT, TOP, BOTTOM, LEFT, RIGHT = 1120, 230, 16, 196, 44, 1110


def strip_svg(family: Family) -> str:
    """Released versions as a line with the band of their 95 % intervals; blocked ones as crosses, all others hollow."""
    known = [(one, gap.gap) for one in family.members if (gap := one.gap(family.wanted)) and gap.gap.value is not None]
    ends = [v for one, gap in known for v in ((gap.low, gap.high) if one.served else ()) if v is not None]
    ends += [gap.value for _, gap in known if gap.value is not None]
    low, high = min([0.0, *ends]), max([0.02, *ends])
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / step <= 6 or step == 0.5)
    low, high = step * (low // step), step * -(-high // step)
    index = {one.version: at for at, one in enumerate(family.members)}
    most = max(len(family.members) - 1, 1)

    def x(one: Member) -> float:
        return round(LEFT + 8 + (RIGHT - LEFT - 16) * index[one.version] / most, 1)

    def y(value: float) -> float:
        return round(BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP), 1)

    parts = []
    for k in range(round((high - low) / step) + 1):
        value = low + k * step
        parts.append(f'<path d="M{LEFT} {y(value)}H{RIGHT}" class="{"axis" if abs(value) < 1e-9 else "grid"}"/>')
        parts.append(_text(LEFT - 8, y(value) + 4, amount(value, "tpr").removesuffix(".0"), "small", "end"))
    served = [(one, gap) for one, gap in known if one.served]
    if len(served) > 1:
        up = [f"{x(one)} {y(gap.high if gap.high is not None else gap.value or 0.0)}" for one, gap in served]
        down = [f"{x(one)} {y(gap.low if gap.low is not None else gap.value or 0.0)}" for one, gap in reversed(served)]
        parts.append(f'<path d="M{"L".join(up + down)}Z" class="band"/>')
        parts.append(f'<path d="M{"L".join(f"{x(one)} {y(gap.value or 0.0)}" for one, gap in served)}" class="way"/>')
    for each, estimate in known:
        parts.append(_dot(each, estimate, x(each), y(estimate.value or 0.0)))
    every = max(1, -(-len(family.members) // 14))
    for at, one in enumerate(family.members):
        if at % every == 0 or at == len(family.members) - 1 > at - at % every + every // 2:
            parts.append(_text(x(one), BOTTOM + 20, f"v{one.version}", "small", "middle"))
    title = escape(f"{family.problem}: the gap of every version")
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">\n{body}\n</svg>'


def _dot(one: Member, gap: Estimate, x: float, y: float) -> str:
    kind = CLASS.get(one.state, "")
    tip = f"<title>v{escape(one.version)}, {escape(one.state)}: {amount(gap.value or 0.0, 'tpr')} points</title>"
    if one.state == BLOCKED:
        return f'<path d="M{x - 3.5} {y - 3.5}l7 7M{x - 3.5} {y + 3.5}l7 -7" class="cross {kind}">{tip}</path>'
    size, look = (4, "dot") if one.served else (3, "dot hollow")
    return f'<circle cx="{x}" cy="{y}" r="{size}" class="{look} {kind}">{tip}</circle>'


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
