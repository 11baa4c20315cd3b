"""The verdict as one self-contained page: no script, font or picture from elsewhere, so it opens from any disk or registry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from truing.tasks.evaluation.gaps import gaps
from truing.tasks.evaluation.picture import forest, gap_plot
from truing.tasks.evaluation.slices import spoken
from truing.tasks.evaluation.wording import NEXT, SPOKEN, amount, level
from truing.tasks.problem import Problem
from truing.tasks.records import Candidate, Cell, Estimate, Evaluation, Verdict
from truing.tasks.statistics.cells import METRICS

STYLE = """
:root { --ink:#1c2430; --soft:#667080; --line:#dfe3e8; --paper:#ffffff; --panel:#f6f7f9; --beyond:#fbeeec;
  --pass:#0b7a6b; --block:#b3261e; --inconclusive:#a86a00; --before:#8b94a1; --after:#2456c8; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ee; --soft:#9aa4b2; --line:#323a45; --paper:#14181e; --panel:#1c222a;
  --beyond:#2c1c1c; --pass:#3cc4b0; --block:#ff8a80; --inconclusive:#f0b352; --before:#8b94a1; --after:#86aaff; } }
* { box-sizing:border-box } body { margin:0; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif }
main { max-width:1008px; margin:0 auto; padding:32px 24px 56px } h1 { font-size:15px; font-weight:500; color:var(--soft);
margin:0 } h2 { font-size:17px; margin:40px 0 4px } p { margin:4px 0 12px; max-width:76ch } p.note { color:var(--soft);
font-size:13px } .word { font-size:34px; font-weight:700; line-height:1.2; margin:6px 0 } .said { font-size:17px;
max-width:72ch } .word.pass { color:var(--pass) } .word.block { color:var(--block) } .word.inconclusive {
color:var(--inconclusive) } dl { display:grid; grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); gap:1px;
background:var(--line); padding:1px;
  border-radius:8px; overflow:hidden; margin:24px 0 0 } dl div { background:var(--panel); padding:10px 14px }
dt { color:var(--soft); font-size:12px } dd { margin:0; font-variant-numeric:tabular-nums } code { font-size:13px }
.scroll { overflow-x:auto } svg { display:block; width:100%; min-width:760px; height:auto; margin-top:8px }
svg text { fill:var(--ink); font-size:13px } svg .small { fill:var(--soft); font-size:11.5px } svg .name { font-weight:600 }
svg .soft { font-weight:400 } svg .strong { font-weight:600; fill:var(--ink) } svg .number { font-variant-numeric:tabular-nums }
svg .axis { stroke:var(--soft); stroke-width:1 } svg .grid,svg .rule { stroke:var(--line) } svg .beyond { fill:var(--beyond) }
svg .limit { stroke:var(--block); stroke-width:1.5; stroke-dasharray:5 4 } svg .whisker { stroke-width:2; fill:none }
svg .whisker.pass { stroke:var(--pass) } svg .whisker.block { stroke:var(--block) }
svg .whisker.inconclusive { stroke:var(--inconclusive) } svg .whisker.before { stroke:var(--before) }
svg .whisker.after { stroke:var(--after) } svg .dot { stroke:var(--paper); stroke-width:1.5 }
svg .pass { fill:var(--pass) } svg .block { fill:var(--block) } svg .inconclusive { fill:var(--inconclusive) }
svg .before { fill:var(--before) } svg .after { fill:var(--after) } svg .outcome { font-weight:700 }
svg .whisker { fill:none } svg .dot.hollow { fill:var(--paper); stroke-width:2 } svg .dot.hollow.pass { stroke:var(--pass) }
svg .dot.hollow.block { stroke:var(--block) } svg .dot.hollow.inconclusive { stroke:var(--inconclusive) }
.key span { display:inline-block; width:10px; height:10px; border-radius:50%; margin:0 6px 0 14px }
table { border-collapse:collapse; width:100%; font-size:13px; margin-top:12px; font-variant-numeric:tabular-nums }
th,td { padding:5px 10px 5px 0; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap }
th:first-child,td:first-child { text-align:left } th { color:var(--soft); font-weight:500 } ol { padding-left:20px }
summary { cursor:pointer; margin-top:32px; font-weight:600; font-size:17px } li { margin:3px 0 } td.first { font-weight:600 }
"""


def verdict_html(verdict: Verdict, evaluation: Evaluation, candidate: Candidate, problem: Problem) -> str:
    """The page: verdict and reason, what it rests on, a forest plot of the clauses, the gaps, and every slice as a table."""
    title = problem.title or problem.name
    version = f", version {candidate.version}" if candidate.version else ""
    found = gaps(evaluation)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(problem.name)}{version}: {verdict.outcome.value}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>{escape(title)}{version}</h1>",
        f'<div class="word {verdict.outcome.value}">{_word(verdict)}</div>',
        f'<p class="said">{escape(_sentence(verdict.reason))}</p><p class="note">{_code(NEXT[verdict.outcome])}</p>',
        _facts(verdict, evaluation, candidate),
        "<h2>What the policy asks</h2>",
        "<p class='note'>Each line is a paired comparison on the same holdout rows. Its left end is the joint lower bound, which "
        "holds for all lines together: right of “no change”, with the dot beyond the limit, the line blocks. Its right end is the "
        "line's own upper bound: inside the limit, the line passes.</p>",
        f'<div class="scroll">{forest(verdict.clauses)}</div>',
    ]
    if found:
        parts += [
            "<h2>Gaps between groups</h2>",
            "<p class='note'>The candidate's highest rate among the groups minus its lowest, and the champion's between the same two, "
            "with 95 % intervals. A change above 0 widens the gap."
            '<span class="key"><span style="background:var(--before)"></span>champion'
            '<span style="background:var(--after)"></span>candidate</span></p>',
            f'<div class="scroll">{gap_plot(found)}</div>',
        ]
    parts += [
        "<details open><summary>Why</summary><ol>",
        *(f"<li>{escape(_sentence(clause.reason))}</li>" for clause in verdict.clauses),
        "</ol></details>",
        f'<details><summary>Every slice</summary><div class="scroll">{_table(evaluation.cells)}</div></details>',
        "</main></body></html>",
    ]
    return "\n".join(parts)


def _word(verdict: Verdict) -> str:
    return {"pass": "Passes", "block": "Blocked", "inconclusive": "Inconclusive"}[verdict.outcome.value]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _code(text: str) -> str:
    """Backquoted words as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _facts(verdict: Verdict, evaluation: Evaluation, candidate: Candidate) -> str:
    lost = evaluation.forgetting.value
    facts = [
        ("holdout rows", f"{evaluation.n:,}"),
        ("coverage", f"{evaluation.coverage:.1%}"),
        ("answers changed", f"{evaluation.flips:.1%}"),
        ("newly wrong", "–" if lost is None else f"{lost:.1%}"),
        ("look", f"{evaluation.look}"),
        ("learned from", f"{candidate.rows:,} samples" if candidate.rows else "–"),
        ("learner", candidate.origin),
        ("size", f"{evaluation.size_mb:.2f} MB" if evaluation.size_mb else "–"),
        ("1,000 rows in", f"{evaluation.latency_ms:.1f} ms" if evaluation.latency_ms else "–"),
        ("judged at", datetime.fromtimestamp(verdict.at, UTC).strftime("%Y-%m-%d %H:%M") + "Z"),
    ]
    digests = [
        ("candidate", verdict.candidate),
        ("champion", verdict.champion),
        ("anchor", evaluation.anchor),
        ("dataset", verdict.dataset),
        ("policy", verdict.policy),
    ]
    shown = [(name, escape(text)) for name, text in facts]
    shown += [(name, f"<code>{escape(text[:12])}</code>" if text else "none") for name, text in digests]
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in shown) + "</dl>"


def _table(cells: Sequence[Cell]) -> str:
    """All cells: one line a slice and metric."""
    order = {metric: i for i, metric in enumerate(METRICS)}
    slices = {name: i for i, name in enumerate(dict.fromkeys(cell.slice for cell in cells))}
    head = ("slice", "metric", "rows", "champion", "candidate", "no update", "anchor", "drop", "95 % interval")
    lines = ["<table><thead><tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr></thead><tbody>"]
    for cell in sorted(cells, key=lambda one: (slices[one.slice], order[one.metric])):
        first = cell.metric == METRICS[0]
        values = [level(value, cell.metric) for value in (cell.champion, cell.candidate, cell.none, cell.anchor)]
        drop, interval = _drop(cell.delta, cell.metric)
        texts = [spoken(cell.slice) if first else "", SPOKEN[cell.metric], f"{cell.n:,}", *values, drop, interval]
        marks = ['<td class="first">', *["<td>"] * (len(texts) - 1)]
        row = "".join(f"{mark}{escape(text)}</td>" for mark, text in zip(marks, texts, strict=True))
        lines.append(f"<tr>{row}</tr>")
    return "".join([*lines, "</tbody></table>"])


def _drop(delta: Estimate, metric: str) -> tuple[str, str]:
    if delta.value is None or delta.low is None or delta.high is None:
        return "–", "–"
    return amount(delta.value, metric, signed=True), f"{amount(delta.low, metric)} to {amount(delta.high, metric)}"
