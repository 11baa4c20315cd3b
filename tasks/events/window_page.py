"""A judged window for people: Markdown for a Prefect artifact, and one self-contained page."""

from __future__ import annotations

import html

from truing.tasks.events.expectations import WindowReport


def summary(report: WindowReport) -> str:
    """The window in Markdown, for a Prefect artifact."""
    lines = [
        f"**Window {report.id}**: {'admitted' if report.success else 'rejected'}, {report.rows} rows, "
        f"{len(report.failed)} failed alone" + (f". {report.reason}" if report.reason else "."),
        "",
    ]
    bad = [finding for finding in report.findings if not finding.success]
    if bad:
        lines += ["| column | expectation | failing rows | observed |", "|---|---|---:|---|"]
        lines += [f"| {f.column or 'window'} | {f.type} {_cell(f.expected)} | {f.failed} | {_cell(f.observed)} |" for f in bad]
    else:
        lines.append(f"All {len(report.findings)} expectations hold.")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1c2430}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0}td,th{border-bottom:1px solid #d5dbe3;padding:.35rem .5rem;"
    "text-align:left;vertical-align:top}.bad{color:#a4262c;font-weight:600}.good{color:#1d6b3a;font-weight:600}"
)


def page(report: WindowReport) -> str:
    """The window as one self-contained HTML page: no script, nothing loaded from elsewhere."""

    def row(*cells: str, tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    def word(success: bool) -> str:
        return '<span class="good">holds</span>' if success else '<span class="bad">fails</span>'

    text = html.escape
    findings = "".join(
        row(text(f.column or "window"), text(f.type), text(f.expected), word(f.success), str(f.failed), text(f.observed))
        for f in report.findings
    )
    failing = "".join(row(text(name), text(why)) for name, why in list(report.failed.items())[:200])
    more = f"<p>and {len(report.failed) - 200} more</p>" if len(report.failed) > 200 else ""
    verdict = '<span class="good">admitted</span>' if report.success else '<span class="bad">rejected</span>'
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Window {text(report.id)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>Window {text(report.id)}</h1>"
        f"<p>{verdict}: {report.rows} rows of {text(report.problem)}, {len(report.failed)} failed alone.</p>"
        f"<p>{text(report.reason)}</p>"
        f"<table>{row('column', 'expectation', 'expected', '', 'failing rows', 'observed', tag='th')}{findings}</table>"
        + (f"<h2>Rows that failed alone</h2><table>{row('row', 'reason', tag='th')}{failing}</table>{more}" if failing else "")
        + "</body></html>"
    )
