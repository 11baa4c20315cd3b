"""A judged window for people: Markdown for a Prefect artifact, and one self-contained page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import UTC, datetime

from truing.tasks.validation.expectations import Finding, WindowReport

_MOST = 200  # failing rows on the page


def summary(report: WindowReport) -> str:
    """The window in Markdown, for a Prefect artifact."""
    lines = [
        f"**Window {report.id}**: {'admitted' if report.success else 'rejected'}, {report.rows:,} rows, "
        f"{len(report.failed):,} failed alone, judged {_when(report.at)}" + (f". {report.reason}" if report.reason else "."),
        "",
    ]
    bad = [finding for finding in report.findings if not finding.success]
    if bad:
        lines += ["| column | expected | got | failing rows |", "|---|---|---|---:|"]
        lines += [f"| {f.column or 'window'} | {_cell(f.expected)} | {_cell(f.observed)} | {_count(f)} |" for f in bad]
    else:
        lines.append(f"All {report.asked} expectations hold." if report.asked else "All expectations hold.")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|") or "-"


def _count(finding: Finding) -> str:
    return f"{finding.failed:,}" if finding.failed else "-"


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


_STYLE = (
    ":root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#d9dee6;--paper:#fff;--bad:#a4262c;--good:#1d6b3a;"
    "--badbg:#fbeceb;--goodbg:#e9f5ee}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa5b4;--line:#333c48;--paper:#161b22;--bad:#ff8f8a;"
    "--good:#7bd49a;--badbg:#3a1d1d;--goodbg:#16311f}}"
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:var(--ink);"
    "background:var(--paper)}h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2rem 0 .25rem}"
    ".soft{color:var(--soft)}.box{border-radius:.5rem;padding:.75rem 1rem;margin:1rem 0}.box.bad{background:var(--badbg)}"
    ".box.good{background:var(--goodbg)}.box ul{margin:.25rem 0 0;padding-left:1.25rem}"
    ".figures{display:flex;gap:2.5rem;margin:1rem 0;flex-wrap:wrap}.figures b{display:block;font-size:1.6rem;font-weight:600;"
    "font-variant-numeric:tabular-nums}"
    "table{border-collapse:collapse;width:100%;margin:.5rem 0}td,th{border-bottom:1px solid var(--line);"
    "padding:.35rem .6rem .35rem 0;text-align:left;vertical-align:top}td.w{overflow-wrap:anywhere}"
    "td:first-child{white-space:nowrap}"
    "th{font-weight:600;color:var(--soft);font-size:.85rem}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;"
    "white-space:nowrap}b.bad,td b.bad{color:var(--bad)}b.good,td b.good{color:var(--good);font-weight:500}"
    "details{margin:1rem 0}summary{cursor:pointer;color:var(--soft)}code{font-size:.9em}"
)


def page(report: WindowReport, before: Sequence[WindowReport] = ()) -> str:
    """The window as one self-contained HTML page: no script, nothing loaded from elsewhere. `before`: earlier judgements."""
    text = html.escape
    word, kind = ("admitted", "good") if report.success else ("rejected", "bad")
    why = "".join(f"<li>{text(reason)}</li>" for reason in report.reason.split("; ") if reason)
    said = f"<ul>{why}</ul>" if why else ""
    figures = "".join(
        f"<div><b>{value}</b><span class=soft>{name}</span></div>"
        for value, name in (
            (f"{report.rows:,}", "rows"),
            (f"{len(report.failed):,}", "failed alone"),
            (f"{report.asked - len(_bad(report)):,} of {report.asked:,}", "expectations hold"),
        )
    )
    good = [finding for finding in report.findings if finding.success]
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Window {text(report.id)}</title><style>{_STYLE}</style></head><body><h1>Window {text(report.id)}</h1>"
        f"<p class=soft>Rows of {text(report.problem)} that landed with versions {report.first} to {report.last}, judged "
        f"{_when(report.at)} by suite {text(report.suite)}.</p>"
        f'<div class="box {kind}"><b class={kind}>{word}</b>{said}</div><div class=figures>{figures}</div>'
    ]
    if _bad(report):
        parts.append(f"<h2>What does not hold</h2>{_table(_bad(report))}")
    if good:
        parts.append(f"<details><summary>{len(good)} expectations that hold</summary>{_table(good)}</details>")
    if report.failed:
        rows = "".join(
            f"<tr><td><code>{text(name)}</code></td><td class=w>{text(reason)}</td></tr>"
            for name, reason in list(report.failed.items())[:_MOST]
        )
        more = f"<p class=soft>and {len(report.failed) - _MOST:,} more</p>" if len(report.failed) > _MOST else ""
        parts.append(f"<h2>Rows that failed alone</h2><table><tr><th>row<th>because</tr>{rows}</table>{more}")
    if before:
        lines = "".join(
            f"<tr><td>{_when(one.at)}</td><td><b class={'good' if one.success else 'bad'}>"
            f"{'admitted' if one.success else 'rejected'}</b></td><td class=w>{text(one.reason)}</td></tr>"
            for one in reversed(before)
        )
        parts.append(f"<h2>Judged before</h2><table><tr><th>when<th>verdict<th>because</tr>{lines}</table>")
    return "".join(parts) + "</body></html>"


def _bad(report: WindowReport) -> list[Finding]:
    return [finding for finding in report.findings if not finding.success]


def _table(findings: Sequence[Finding]) -> str:
    text = html.escape
    lines = "".join(
        f"<tr><td>{text(f.column) or 'window'}</td><td class=w>{text(f.expected)}</td>"
        f"<td class=w>{text(f.observed) or '-'}</td>"
        f"<td class=n>{_count(f)}</td></tr>"
        for f in findings
    )
    return f"<table><tr><th>column<th>expected<th>got<th class=n>failing rows</tr>{lines}</table>"
