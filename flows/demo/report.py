"""The summary as a page to look at: one self-contained HTML file, without script and loading nothing, with one picture."""

from __future__ import annotations

import html
import io
from datetime import UTC, datetime
from pathlib import Path

from truing.flows.demo.summary import Line, Summary
from truing.tasks.records import Estimate

COLOURS = {"released": "#1b7f5c", "block": "#c0392b", "inconclusive": "#b9770e", "pass": "#5d6d7e", "undecided": "#5d6d7e"}
GROUPS = ("#7d3c98", "#2471a3")  # first and second bucket: told apart in grey and by the colour-blind too, markers differ
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1c2833;max-width:70rem;margin:2rem auto;padding:0 1rem;background:#fdfefe}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2rem}.small{color:#5d6d7e;font-size:.9rem}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:.45rem .6rem;border-bottom:1px solid #e5e8e8;vertical-align:top}
th{color:#5d6d7e;font-weight:600}td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
.tag{display:inline-block;border-radius:.7rem;padding:.05rem .6rem;color:#fff;font-size:.85rem}.wide{width:100%;height:auto}
@media(prefers-color-scheme:dark){body{background:#17202a;color:#eaeded}th,.small{color:#aab7b8}th,td{border-color:#34495e}
figure{background:#fff;border-radius:.5rem;padding:.5rem}}figure{margin:1rem 0}figcaption{color:#5d6d7e;font-size:.9rem}
"""


def state(line: Line) -> str:
    """released, or what the gate said."""
    return "released" if line.sequences else line.outcome


def number(estimate: Estimate | None, *, scale: float = 100.0, digits: int = 1, sign: bool = False) -> str:
    """`71.4 (66.0 to 76.2)`; points unless scaled otherwise."""
    if estimate is None or estimate.value is None:
        return "–"
    form = f"{'+' if sign else ''}.{digits}f"
    text = format(estimate.value * scale, form)
    if estimate.low is not None and estimate.high is not None:
        text += f" ({format(estimate.low * scale, form)} to {format(estimate.high * scale, form)})"
    return text.replace("-", "−")


def picture(summary: Summary) -> str:
    """Two panels as SVG: each group's true positive rate on holdout rows, and the gain of each release on what followed it."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update(
        {"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "truing", "font.size": 10}
    )
    lines = [line for line in summary.lines if line.groups]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.3), gridspec_kw={"width_ratios": [1.35, 1], "wspace": 0.36})
    for offset, marker, bucket, colour in zip((-0.1, 0.1), "os", summary.buckets, GROUPS, strict=True):
        for at, line in enumerate(lines):
            value = line.groups[bucket]
            if value.value is None or value.low is None or value.high is None:
                continue
            blocked = state(line) == "block"
            left.errorbar(
                at + offset, 100 * value.value, yerr=[[100 * (value.value - value.low)], [100 * (value.high - value.value)]],
                fmt=marker, color=colour, mfc="white" if blocked else colour, ms=8, capsize=3, lw=1.4,
                label=bucket if at == 0 else None,
            )  # fmt: skip
    served = [at for at, line in enumerate(lines) if line.sequences]
    for bucket, colour in zip(summary.buckets, GROUPS, strict=True):
        points = [(at, lines[at].groups[bucket].value) for at in served]
        left.plot([at for at, _ in points], [100 * (v or 0) for _, v in points], color=colour, lw=1, alpha=0.35)
    for at, line in enumerate(lines):
        if state(line) == "block":
            left.axvspan(at - 0.4, at + 0.4, color=COLOURS["block"], alpha=0.08, lw=0)
            left.text(at, 0.985, "blocked", transform=left.get_xaxis_transform(), ha="center", va="top", color=COLOURS["block"])
        if line.sequences:
            name = "release " + ", ".join(map(str, line.sequences))
            left.text(at, 0.985, name, transform=left.get_xaxis_transform(), ha="center", va="top", color=COLOURS["released"])
    left.set_xticks(range(len(lines)), [f"v{line.version}" for line in lines])
    left.set_xlim(-0.6, len(lines) - 0.4)
    low, high = left.get_ylim()
    left.set_ylim(low, high + 0.12 * (high - low))
    left.set_title(f"True positive rate by {summary.group}, same {summary.judged:,} sealed rows", loc="left", fontsize=11)
    left.set_ylabel("% of true positives found")
    left.legend(loc="lower left", frameon=False, ncols=2)
    _gains(right, [line for line in summary.lines if line.gained])
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y" if axis is left else "x", alpha=0.25)
    figure.subplots_adjust(left=0.065, right=0.985, top=0.9, bottom=0.12)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _gains(axis: object, lines: list[Line]) -> None:
    from matplotlib.axes import Axes

    if not isinstance(axis, Axes):
        return
    drawn = [
        (f"release {line.sequences[-1]}\nagainst {other}", line.gained[f"brier against {other}"], colour)
        for line in lines
        for other, colour in (("parent", "#1b7f5c"), ("never updated", "#95a5a6"))
        if f"brier against {other}" in line.gained
    ]
    if not drawn:
        axis.text(0.5, 0.5, "no update was released", ha="center", va="center", transform=axis.transAxes)
        return
    for at, (_, value, colour) in enumerate(reversed(drawn)):
        if value.value is not None and value.low is not None and value.high is not None:
            axis.errorbar(
                1e3 * value.value, at, xerr=[[1e3 * (value.value - value.low)], [1e3 * (value.high - value.value)]],
                fmt="o", color=colour, capsize=3, ms=7, lw=1.6,
            )  # fmt: skip
    axis.axvline(0, color="#1c2833", lw=0.8)
    axis.set_yticks(range(len(drawn)), [name for name, _, _ in reversed(drawn)], fontsize=8.5)
    axis.set_ylim(-0.7, len(drawn) - 0.3)
    axis.set_title("Brier gain on the traffic that followed (× 1000)", loc="left", fontsize=11)
    axis.set_xlabel("right of 0: better than what would have served instead")


def page(summary: Summary, *, links: dict[str, str], now: float) -> str:
    """The whole page."""
    rows = "\n".join(_row(line) for line in summary.lines)
    first, second = summary.buckets
    events = " · ".join(f"{count:,} {name}" for name, count in sorted(summary.events.items(), reverse=True))
    splits = " · ".join(f"{count:,} {name}" for name, count in summary.rows.items())
    gain = summary.gain
    overall = (
        f"<p>All traffic after the first update, against the model that was never updated: Brier better by "
        f"<b>{number(gain['brier'], scale=1000, digits=2, sign=True)}</b> thousandths, accuracy by "
        f"<b>{number(gain['accuracy'], sign=True)}</b> points over {gain['brier'].n:,} rows.</p>"
        if gain
        else ""
    )
    seen = "".join(
        f'<li>{html.escape(name)}: <a href="{html.escape(url)}">{html.escape(url)}</a></li>' for name, url in links.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Truing: {summary.problem}</title>
<style>{STYLE}</style></head><body>
<h1>{html.escape(summary.title)}</h1>
<p class="small">{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC · events: {events} · rows: {splits}</p>
{overall}
<figure>{picture(summary)}<figcaption>Intervals are 95 %. Hollow marks: a candidate the gate stopped.
Left: every version on the same sealed holdout rows. Right: what each release did on rows it answered itself,
scored by the outcomes that came later.</figcaption></figure>
<h2>Versions</h2>
<table><thead><tr><th>Version</th><th>Verdict and reason</th><th>Approved by</th><th>Rows learned</th>
<th>Brier, accuracy on following traffic</th>
<th>TPR {html.escape(first)} − {html.escape(second)}, points</th></tr></thead><tbody>
{rows}
</tbody></table>
<h2>Open next</h2><ul>{seen}</ul>
</body></html>
"""


def _row(line: Line) -> str:
    name = state(line)
    colour = COLOURS.get(name, COLOURS["undecided"])
    serves = f"release {', '.join(map(str, line.sequences))}" if line.sequences else ""
    followed = (
        f"{number(line.followed['brier'], scale=1, digits=4)}<br>{number(line.followed['accuracy'])} %"
        f"<br><span class=small>{line.followed['brier'].n:,} rows</span>"
        if line.followed
        else "–"
    )
    parent = f"from v{line.parent}" if line.parent else "genesis"
    return (
        f"<tr><td class=n><b>v{line.version}</b> <span class=small>{parent}<br>{html.escape(line.learner)} learner</span></td>"
        f'<td><span class=tag style="background:{colour}">{html.escape(line.outcome)}</span> {html.escape(line.reason)}</td>'
        f"<td>{html.escape(line.approver or '–')}<br><span class=small>{serves}</span></td>"
        f"<td class=n>{line.rows:,}</td><td class=n>{followed}</td><td class=n>{number(line.gap, sign=True)}</td></tr>"
    )


def write(summary: Summary, path: Path, *, links: dict[str, str], now: float) -> Path:
    """The page at `path`, and the picture alone beside it as SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(summary, links=links, now=now), encoding="utf-8")
    path.with_suffix(".svg").write_text(picture(summary), encoding="utf-8")
    return path
