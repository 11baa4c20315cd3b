"""The family as a page: one self-contained HTML file without script, light or dark as its reader's screen is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

from truing.tasks.evaluation.style import STYLE
from truing.tasks.evaluation.wording import SPOKEN, amount
from truing.tasks.release.lineage import BLOCKED, SERVES, Family, Member, Served
from truing.tasks.release.lineage_axis import interval
from truing.tasks.release.lineage_picture import family_svg
from truing.tasks.release.lineage_strip import strip_svg

WHEN = "%Y-%m-%d %H:%M"
STRIP_FROM = 12  # versions from which the gap is also drawn over all of them at once

MORE = """
svg .edge { fill: none; stroke: var(--line); stroke-width: 2 }
svg .edge.main { stroke: var(--after); stroke-opacity: .45; stroke-width: 3 }
svg .paper { fill: var(--paper) }
svg .cross { fill: none; stroke-width: 3; stroke-linecap: round }
svg .ring { fill: none; stroke-width: 2 }
svg .hollow.after { stroke: var(--after) }
svg .faint { fill: var(--soft) }
svg .parent { stroke: var(--before); stroke-width: 2.5; fill: none }
svg .badge { fill: var(--soft); font-size: 11.5px; font-style: italic }
svg .band { fill: var(--after); fill-opacity: .15; stroke: none }
svg .way { fill: none; stroke: var(--after); stroke-width: 2 }
main.wide { max-width: 1184px }
main.wide svg { min-width: 940px }
td.text, th.text { text-align: left; white-space: normal; min-width: 15em }
details { border-top: 1px solid var(--line); padding: 6px 0 }
details summary { font-size: 15px; margin: 2px 0 }
details p, details table { margin-left: 20px; width: auto }
details table { margin-bottom: 16px }
"""


def family_html(family: Family, *, now: float) -> str:
    """The whole page. `now` (Unix seconds) is named as its moment."""
    parts = [
        f"<h1>{escape(family.title)}: where its versions come from</h1>",
        _headline(family),
        _facts(family),
        f"<h2>The gap over all versions</h2>\n<div class='scroll'>{strip_svg(family)}</div>"
        if len(family.members) >= STRIP_FROM
        else "",
        "<h2>Descent</h2>",
        _key(),
        f'<div class="scroll">{family_svg(family)}</div>',
        _note(family),
        _blocked(family),
        _releases(family.served),
        "<h2>Versions, newest first</h2>",
        *(_member(one, family) for one in reversed(family.members)),
    ]
    for note in family.notes:
        parts.append(f'<p class="note">{escape(note)}</p>')
    body = "\n".join(part for part in parts if part)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(family.problem)}: lineage</title>
<style>{STYLE}{MORE}</style></head><body><main class="wide">
{body}
<p class="note">As of {time.strftime(WHEN, time.gmtime(now))} UTC. Registrations, decisions and releases are from the registry's
signed audit and the steward's book, numbers from the evaluations that the signed verdicts bind. What is in a dataset, and whose
labels, is as the lake says, where the trainer writes.</p>
</main></body></html>
"""


def picture_file(family: Family) -> str:
    """The picture alone, as an SVG file with its own style."""
    return family_svg(family, style=STYLE.replace("body {", "svg {", 1) + MORE)


def _headline(family: Family) -> str:
    serving = next((one for one in family.members if one.state == SERVES), None)
    if serving is None:
        return '<p class="word">Nothing serves</p>'
    last = serving.served[-1]
    by = f" by {escape(' and '.join(last.by))}" if last.by else ""
    return (
        f'<p class="word">v{escape(serving.version)} serves</p>\n<p class="said">Release {last.sequence} '
        f"({escape(last.cause)}) since {time.strftime(WHEN, time.gmtime(last.at))} UTC{by}: {escape(last.reason)}</p>"
    )


def _facts(family: Family) -> str:
    anchor = next((one for one in family.members if one.anchor), None)
    serving = next((one for one in family.members if one.state == SERVES), None)
    gap = serving.gap(family.wanted) if serving else None
    group, metric = family.wanted
    facts = [
        ("Versions", str(len(family.members))),
        ("Releases", f"{len(family.served)}, {sum(one.cause == 'rollback' for one in family.served)} of them rollbacks"),
        ("Blocked", str(sum(one.state == BLOCKED for one in family.members))),
        ("Anchor", (f"v{anchor.version}" if anchor else "none pinned") + (", frozen" if family.frozen else "")),
        (f"{SPOKEN[metric]} by {group}, gap in points", interval(gap.gap) if gap else "–"),
    ]
    if gap is not None and serving is not None and not serving.anchor and gap.against_anchor.value is not None:
        facts[3] = ("Anchor", f"{facts[3][1]}; the gap changed by {_signed(gap.against_anchor.value)} since")
    return "<dl>" + "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in facts) + "</dl>"


def _key() -> str:
    return (
        '<p class="note"><span class="key"><i style="background:var(--after)"></i>released, ringed if it serves</span>'
        '<span class="key"><i style="border:2px solid var(--pass)"></i>passed, not released</span>'
        '<span class="key"><i style="border:2px solid var(--inconclusive)"></i>open</span>'
        '<span class="key"> &nbsp; <b style="color:var(--block)">✕</b> blocked</span> &nbsp; Released versions stand on the '
        "thick line, the others beside the version they were tuned from; ↩ is a rollback.</p>"
    )


def _note(family: Family) -> str:
    return (
        '<p class="note">Each version was judged on the sealed rows of its own day, so gaps of different versions are not '
        "paired; the mark of the parent and the changes are: same rows, same labels. A change above 0 widens the gap.</p>"
        if any(one.gaps for one in family.members)
        else ""
    )


def _blocked(family: Family) -> str:
    found = [one for one in reversed(family.members) if one.state == BLOCKED]
    if not found:
        return ""
    rows = "".join(
        f'<tr><td class="first">v{one.version}</td><td class="text">{escape(", ".join(one.blocked_by))}</td>'
        f'<td class="text">{escape(one.reason)}</td></tr>'
        for one in found
    )
    return (
        "<h2>Blocked</h2>\n<div class='scroll'><table><thead><tr><th>Version</th><th class='text'>By</th>"
        f"<th class='text'>Why</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _releases(served: Sequence[Served]) -> str:
    if not served:
        return ""
    rows = "".join(
        f'<tr><td class="first">{one.sequence}</td><td>v{escape(one.version)}</td><td class="text">{escape(one.cause)}</td>'
        f"<td>{time.strftime(WHEN, time.gmtime(one.at))}</td><td>{_lasted(one)}</td>"
        f'<td class="text">{escape(" and ".join(one.by) or "–")}</td><td class="text">{escape(one.reason)}</td></tr>'
        for one in reversed(served)
    )
    return (
        "<h2>What served when</h2>\n<div class='scroll'><table><thead><tr><th>Release</th><th>Version</th>"
        "<th class='text'>Cause</th><th>Since (UTC)</th><th>For</th><th class='text'>By</th><th class='text'>Why</th></tr>"
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _lasted(one: Served) -> str:
    if one.ended is None:
        return "until now" if one.cause != "withdraw" else "–"
    hours = (one.ended - one.at) / 3600.0
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.0f} days"


def _member(one: Member, family: Family) -> str:
    parent = f"from v{one.parent}" if one.parent else "without a parent here"
    unproven = "" if one.vouched or not one.origin else " (the trainer's word, not yet judged)"
    lines = [
        f"<p>Registered {time.strftime(WHEN, time.gmtime(one.registered))} UTC by {escape(one.trained_by)}, {parent}, "
        f"{_learner(one)}{unproven}; payload <code>{escape(one.payload[:12])}</code>.</p>"
    ]
    if one.outcome:
        on = f" on {one.judged_rows:,} rows" if one.judged_rows else ""
        lines.append(f"<p><b>{escape(one.outcome)}</b>{on}: {escape(one.reason)}.</p>")
    for word in one.words:
        end = f", until {time.strftime(WHEN, time.gmtime(word.expires))}" if word.expires else ""
        lines.append(
            f"<p>{escape(word.decision.capitalize())} by {escape(' and '.join(word.by))} on "
            f"{time.strftime(WHEN, time.gmtime(word.at))} UTC{end}: {escape(word.reason)}.</p>"
        )
    if one.importance_shift is not None:
        lines.append(f"<p>Its inputs' importance shifted by {one.importance_shift:.1%} against its parent's.</p>")
    lines.append(_gaps(one))
    lines.append(_taught(one))
    opened = " open" if one.state == SERVES else ""
    return f"<details{opened}><summary>v{escape(one.version)}: {escape(one.state)}</summary>{''.join(lines)}</details>"


def _learner(one: Member) -> str:
    return f"made to repair v{one.repairs}" if one.repairs else f"{escape(one.origin or 'unknown')} learner"


def _gaps(one: Member) -> str:
    if not one.gaps:
        return ""
    rows = "".join(
        f"<tr><td>{escape(gap.group)}: {SPOKEN[gap.metric]}, {escape(gap.over)} over {escape(gap.under)}</td>"
        f"<td>{interval(gap.gap)}</td><td>{_change(gap.against_parent)}</td><td>{_change(gap.against_anchor)}</td></tr>"
        for gap in one.gaps
    )
    return (
        "<table><thead><tr><th>Gap, in points</th><th>This version</th><th>Against parent</th><th>Against anchor</th></tr>"
        f"</thead><tbody>{rows}</tbody></table>"
    )


def _taught(one: Member) -> str:
    if one.taught is None:
        return f"<p>Dataset <code>{escape(one.dataset[:12])}</code>.</p>" if one.dataset else ""
    taught = one.taught
    kept = ", ".join(f"{escape(name)} {count:,}" for name, count in sorted(taught.by_reason.items(), key=lambda each: -each[1]))
    groups = ", ".join(f"{escape(name)} {count:,}" for name, count in taught.by_group.items())
    most = sorted(taught.raters.items(), key=lambda each: -each[1])[:5]
    raters = ", ".join(f"<code>{escape(name[:12])}</code> {share:.1%}" for name, share in most)
    versions = ", ".join(f"{escape(name)} at version {number}" for name, number in taught.tables.items())
    return (
        f"<p>Dataset <code>{escape(taught.digest[:12])}</code>: {taught.samples:,} samples of {versions}.<br>"
        f"Rows seen, by what became of them: {kept}.<br>Samples by group: {groups or '–'}.<br>"
        f"Most active raters: {raters or 'none, sources only'}.</p>"
    )


def _change(change: object) -> str:
    value = getattr(change, "value", None)
    if value is None:
        return "–"
    low, high = getattr(change, "low", None), getattr(change, "high", None)
    text = _signed(value)
    return text if low is None or high is None else f"{text} ({amount(low, 'tpr')} to {amount(high, 'tpr')})"


def _signed(value: float) -> str:
    return amount(value, "tpr", signed=True)
