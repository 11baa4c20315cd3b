"""The family as one SVG: who descends from whom at the left, what became of each, and the gap between groups with intervals.

Newest on top. Released versions stand on the main line, all others on a branch beside their parent. A few versions get two
lines each; hundreds get one, and runs of versions that were never released are folded into a line that counts them. Colours
are the page's CSS variables; shapes differ as well, so that nothing is said by hue alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from truing.tasks.evaluation.wording import amount
from truing.tasks.release.disparity import Disparity
from truing.tasks.release.lineage import BLOCKED, OPEN, PASSED, RELEASED, SERVES, Family, Member
from truing.tasks.release.lineage_axis import LEFT, TOP, WIDTH, Scale, cut, grid, interval, text

LANE = 20
NAME, SAID = 112, 276  # x of a version's name, and of what became of it
WIDE, NARROW = 8.3, 6.7  # pixels a letter takes at most, bold and small
MAIN = 30  # x of the main line
ROOMY, TIGHT, FOLDED = 48, 24, 26  # heights of a line
FEW = 40  # versions above which lines are tight and runs are folded
LAST = 8  # newest versions that are never folded
CLASS = {SERVES: "after", RELEASED: "after", BLOCKED: "block", PASSED: "pass", OPEN: "inconclusive"}
DAY = "%Y-%m-%d"


@dataclass(frozen=True)
class Place:
    """A line of the picture: one member, or a run of folded ones."""

    y: float
    height: float
    members: tuple[Member, ...]
    lane: int = 0

    @property
    def member(self) -> Member | None:
        return self.members[0] if len(self.members) == 1 else None

    @property
    def x(self) -> float:
        return MAIN + LANE * self.lane


def family_svg(family: Family, *, style: str = "") -> str:
    """The picture; with `style` as CSS inside, so that it stands alone as a file."""
    places = _places(family)
    gaps = [gap for one in places if one.member and (gap := one.member.gap(family.wanted))]
    axis = Scale.of([gap.gap for gap in gaps])
    height = (places[-1].y + places[-1].height / 2 if places else TOP) + 34
    parts = [*grid(axis, height - 30, gaps, family.wanted), *_edges(family, places)]
    for place in places:
        parts += _folded(place) if place.member is None else _line(place, place.member, family, axis)
    if not places:
        parts.append(text(MAIN, TOP + 20, "no version yet", "small"))
    head = f"<style>{style}</style>" if style else ""
    size = f'xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" ' if style else ""
    title = escape(f"{family.problem}: versions, releases and the gap between groups")
    body = "\n".join(parts)
    return f'<svg {size}viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{title}">{head}\n{body}\n</svg>'


# --- where things stand -------------------------------------------------------------------------------------------------------


def _places(family: Family) -> list[Place]:
    tight = len(family.members) > FEW
    height = TIGHT if tight else ROOMY
    lanes: dict[str, int] = {}
    for one in family.members:
        lanes[one.version] = 0 if one.served else min(lanes.get(one.parent or "", 0) + 1, 4)
    kept = {one.version for one in family.members if one.served or one.anchor or not tight}
    kept |= {one.parent for one in family.members if one.parent is not None}
    kept |= {one.version for one in family.members[-LAST:]}
    places: list[Place] = []
    run: list[Member] = []
    y = float(TOP)

    def put(members: Sequence[Member], room: float, lane: int) -> None:
        nonlocal y
        places.append(Place(y=y + room / 2, height=room, members=tuple(members), lane=lane))
        y += room

    def end_run() -> None:
        if run:
            put(run, *((height, lanes[run[0].version]) if len(run) == 1 else (FOLDED, 1)))
        run.clear()

    for one in reversed(family.members):
        if one.version not in kept:
            run.append(one)
            continue
        end_run()
        put([one], height, lanes[one.version])
    end_run()
    return places


def _edges(family: Family, places: Sequence[Place]) -> list[str]:
    """From parent to child: straight on the main line, an arc at the left where it passes others by, a branch to the right."""
    where = {one.member.version: one for one in places if one.member}
    main = [one for one in places if one.lane == 0 and one.member]
    parts = []
    for place in places:
        child = place.member
        parents = [child.parent] if child else [one.parent for one in place.members[-1:]]
        for parent in parents:
            above = where.get(parent or "")
            if above is None:
                continue
            between = [one for one in main if place.y < one.y < above.y]
            begin = f"M{above.x} {above.y:g}"
            if place.lane == above.lane == 0 and between:
                out = place.x - (22 if len(between) == 1 else 28)
                curve = f"{begin}C{out} {above.y - 30:g} {out} {place.y + 30:g} {place.x} {place.y:g}"
            elif place.lane == above.lane:
                curve = f"{begin}V{place.y:g}"
            else:
                turn = min(18.0, above.y - place.y)
                curve = f"{begin}Q{place.x} {above.y:g} {place.x} {above.y - turn:g}V{place.y:g}"
            parts.append(f'<path d="{curve}" class="edge{" main" if place.lane == 0 else ""}"/>')
    return parts


# --- one line -----------------------------------------------------------------------------------------------------------------


def _line(place: Place, one: Member, family: Family, axis: Scale) -> list[str]:
    roomy = place.height >= ROOMY
    y = place.y
    up, down = (y - 3, y + 13) if roomy else (y + 4, None)
    parts = [f"<g><title>{escape(_tip(one))}</title>", *_mark(one, place)]
    parts.append(text(NAME, up, f"v{one.version}", "name"))
    kind = CLASS.get(one.state, "")
    word = _word(one)
    at = float(SAID if roomy else NAME + 76)
    parts.append(text(at, up, word, f"outcome {kind}"))
    if one.anchor and roomy:
        parts.append(text(NAME + 20 + WIDE * len(one.version), up, "anchor", "badge"))
    if down is not None:
        learner = f"repairs v{one.repairs}" if one.repairs else f"{one.origin} learner" if one.origin else ""
        origin = " · ".join(filter(None, (learner, f"{one.rows:,} rows" if one.rows else "")))
        parts.append(text(NAME, down, origin or "–", "small"))
        parts.append(text(SAID, down, cut(_why(one), int((LEFT - 20 - SAID) / NARROW)), "small"))
    else:
        at += WIDE * len(word) + 12
        why = ("anchor · " if one.anchor else "") + _why(one)
        parts.append(text(at, up, cut(why, max(4, int((LEFT - 20 - at) / NARROW))), "small"))
    gap = one.gap(family.wanted)
    if gap is not None and gap.gap.value is not None:
        parts += _gap(one, gap, axis, y, up, down)
    else:
        parts.append(text(WIDTH, up, "not estimable" if one.outcome else "", "small", "end"))
    return [*parts, "</g>"]


def _gap(one: Member, gap: Disparity, axis: Scale, y: float, up: float, down: float | None) -> list[str]:
    low, value, high = gap.gap.low, float(gap.gap.value or 0.0), gap.gap.high
    kind = CLASS.get(one.state, "")
    parts = []
    if gap.parent.value is not None and one.parent is not None:
        x = axis.x(gap.parent.value)
        parts.append(f'<path d="M{x} {y - 8:g}V{y + 8:g}" class="parent"/>')
    if low is not None and high is not None:
        parts.append(f'<path d="M{axis.x(low)} {y:g}H{axis.x(high)}" class="whisker {kind}"/>')
    parts.append(f'<circle cx="{axis.x(value)}" cy="{y:g}" r="4.5" class="dot {kind}{"" if one.served else " hollow"}"/>')
    parts.append(text(WIDTH, up, interval(gap.gap), "number strong", "end"))
    changes = [
        f"{name} {amount(change.value, 'tpr', signed=True)}"
        for name, change, known in (
            ("parent", gap.against_parent, one.parent is not None),
            ("anchor", gap.against_anchor, not one.anchor),
        )
        if known and change.value is not None
    ]
    if down is not None and changes:
        parts.append(text(WIDTH, down, "against " + ", ".join(changes), "small", "end"))
    return parts


def _mark(one: Member, place: Place) -> list[str]:
    """What it became, by shape: full (released, ringed if it serves), cross (blocked), hollow (waits)."""
    x, y, kind = place.x, place.y, CLASS.get(one.state, "")
    if one.state == BLOCKED:
        return [
            f'<circle cx="{x}" cy="{y:g}" r="7" class="paper"/>',
            f'<path d="M{x - 4.5} {y - 4.5:g}l9 9M{x - 4.5} {y + 4.5:g}l9 -9" class="cross {kind}"/>',
        ]
    parts = [f'<circle cx="{x}" cy="{y:g}" r="6" class="dot {kind}{"" if one.served else " hollow"}"/>']
    if one.state == SERVES:
        parts.append(f'<circle cx="{x}" cy="{y:g}" r="9.5" class="ring {kind}"/>')
    return parts


def _folded(place: Place) -> list[str]:
    first, last = place.members[-1], place.members[0]
    counts = Counter(one.state for one in place.members)
    said = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return [
        f'<circle cx="{place.x}" cy="{place.y:g}" r="2" class="dot"/>',
        *(f'<circle cx="{place.x + 7 * k}" cy="{place.y:g}" r="1.6" class="faint"/>' for k in (1, 2)),
        text(NAME, place.y + 4, f"v{first.version} – v{last.version}: {said}", "small"),
    ]


def _word(one: Member) -> str:
    if one.served:
        numbers = ", ".join(f"{each.sequence}{' ↩' if each.cause == 'rollback' else ''}" for each in one.served[-4:])
        more = "… " if len(one.served) > 4 else ""
        return f"{'serves' if one.state == SERVES else 'released'} · release {more}{numbers}"
    return {PASSED: "passed, not released", OPEN: "open"}.get(one.state, one.state)


def _why(one: Member) -> str:
    if one.state == BLOCKED:
        return "by " + ", ".join(one.blocked_by) if one.blocked_by else one.reason
    if one.words:
        last = one.words[-1]
        return f"{last.decision} by {_by(last.by, last.reason)}" if not one.served else _by(last.by, last.reason)
    if one.served and one.served[-1].by:
        return _by(one.served[-1].by, one.served[-1].reason)
    return one.reason


def _by(persons: Sequence[str], reason: str) -> str:
    return f"{' and '.join(persons)}: {reason}"


def _tip(one: Member) -> str:
    when = time.strftime(DAY, time.gmtime(one.registered))
    parent = f"from v{one.parent}" if one.parent else "no parent"
    return f"v{one.version}, {when}, {parent}. {one.outcome or 'not judged'}: {one.reason}"
