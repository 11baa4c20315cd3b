"""The verdict as one self-contained page: no script, font or picture from elsewhere, so it opens from any disk or registry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from truing.tasks.evaluation import beyond
from truing.tasks.evaluation.gaps import gaps
from truing.tasks.evaluation.picture import bars, floors, forest, found_plot, gap_plot
from truing.tasks.evaluation.slices import spoken
from truing.tasks.evaluation.style import STYLE
from truing.tasks.evaluation.wording import NEXT, SPOKEN, amount, level
from truing.tasks.problem import Problem
from truing.tasks.records import Candidate, Cell, Estimate, Evaluation, Verdict
from truing.tasks.statistics.cells import METRICS

KEY = (
    "with 95 % intervals. A change above 0 widens the gap. "
    '<span class="key"><i style="background:var(--before)"></i>champion<i style="background:var(--after)"></i>candidate</span>'
    "</p>"
)


def verdict_html(verdict: Verdict, evaluation: Evaluation, candidate: Candidate, problem: Problem) -> str:
    """The page: verdict and reason, what it rests on, a forest plot of the clauses, the gaps, and every slice as a table."""
    title = problem.title or problem.name
    version = f", version {escape(candidate.version)}" if candidate.version else ""
    found = gaps(evaluation)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(problem.name)}{version}: {verdict.outcome.value}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>{escape(title)}{version}</h1>",
        f'<div class="word {verdict.outcome.value}">{_word(verdict)}</div>',
        f'<p class="said">{escape(_sentence(verdict.reason))}</p><p class="note">{_code(NEXT[verdict.outcome])}</p>',
        _facts(verdict, evaluation, candidate),
    ]
    asked = [clause for clause in verdict.clauses if clause.against != "absolute" and clause.limit > 0.0]
    least = [clause for clause in verdict.clauses if clause.against == "absolute"]
    if asked:
        parts += [
            "<h2>Drops and their limits</h2>",
            "<p class='note'>Each line is a paired comparison on the same holdout rows. Its left end is the joint lower bound, "
            "which holds for all lines together: right of “no change”, with the dot beyond the limit, the line blocks. Its "
            "right end is the line's own upper bound: inside the limit, the line passes.</p>",
            f'<div class="scroll">{forest(asked)}</div>',
        ]
    if least:
        parts += [
            "<h2>Floors</h2>",
            "<p class='note'>How much better the candidate is than answering everyone with the base rate.</p>",
            f'<div class="scroll">{floors(least)}</div>',
        ]
    if found:
        parts += [
            "<h2>Gaps between groups</h2>",
            "<p class='note'>The candidate's highest rate among the groups minus its lowest"
            + (f", and the champion's between the same two, {KEY}" if verdict.champion else ", with 95 % intervals.</p>"),
            f'<div class="scroll">{gap_plot(found)}</div>',
        ]
    parts += _beyond(evaluation)
    parts += [
        "<details open><summary>Why</summary><ol>",
        *(f"<li>{escape(_sentence(clause.reason))}</li>" for clause in verdict.clauses),
        "</ol></details>",
        "<details open><summary>What it rests on</summary><ul>",
        *(f"<li>{escape(_sentence(one))}</li>" for one in beyond.evidence(evaluation)),
        "</ul></details>",
        f'<details><summary>Every slice</summary><div class="scroll">{_table(evaluation.cells)}</div></details>',
        "</main></body></html>",
    ]
    return "\n".join(parts)


def _beyond(evaluation: Evaluation) -> list[str]:
    """Slices found, disparities, rankings, counterfactuals and what the candidate goes by; only what was measured."""
    parts: list[str] = []
    if evaluation.worst:
        parts += [
            "<h2>Where it loses most</h2>",
            "<p class='note'>Slices that nobody named: found on one half of the people, tested on the other, from which these "
            "numbers are. Left ends hold for all of them together; right of “no change” the loss is confirmed.</p>",
            f'<div class="scroll">{found_plot(evaluation.worst)}</div>',
        ]
    unequal, ranks, swapped = beyond.disparities(evaluation), beyond.rankings(evaluation), beyond.swaps(evaluation)
    if unequal:
        parts += [
            "<h2>All groups of an attribute at once</h2>",
            "<p class='note'>In points, ratios as they are. Intervals hold although the extremes were picked after looking. "
            "A change above 0 is worse.</p>",
            _plain(("attribute", "between all its groups", "champion", "candidate", "change"), unequal, words=2),
        ]
    if ranks:
        parts += [
            "<h2>Ranking and calibration</h2>",
            "<p class='note'>AUROC: how often a positive scores above a negative, per hundred pairs. ECE: how far "
            "probabilities are off on average, in points, with what noise adds taken out.</p>",
            _plain(("slice", "AUROC champion", "candidate", "drop", "ECE champion", "candidate"), ranks),
        ]
    if swapped:
        parts += [
            "<h2>Had the person been another</h2>",
            "<p class='note'>The same rows asked again with only the protected column (and what goes with it) swapped.</p>",
            _plain(("swapped", "what is seen", "how much"), swapped, words=2),
        ]
    if evaluation.importance:
        far = evaluation.importance_shift
        parts += [
            "<h2>What it goes by</h2>",
            "<p class='note'>Share of each input in what the answers depend on (permutation importance)"
            + ("" if far is None else f"; {far:.0%} of it has moved to other inputs since its parent")
            + ".</p>",
            f'<div class="scroll">{bars(beyond.weights(evaluation))}</div>',
        ]
    moved = beyond.moved_inputs(evaluation)
    if moved:
        parts.append(f"<p class='note'>Inputs are distributed otherwise than in training: {escape(moved)}.</p>")
    return parts


def _plain(head: Sequence[str], lines: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """A table whose first `words` columns are words and the others numbers; a word is not said twice in a row."""
    marks = ['class="text"' if i < words else "" for i in range(len(head))]
    parts = ['<div class="scroll"><table><thead><tr>']
    parts += [f"<th {mark}>{escape(name)}</th>".replace(" >", ">") for mark, name in zip(marks, head, strict=True)]
    parts.append("</tr></thead><tbody>")
    before = ""
    for line in lines:
        texts = ["" if i == 0 and text == before else text for i, text in enumerate(line)]
        before = line[0]
        cells = [f"<td {mark}>{escape(text)}</td>".replace(" >", ">") for mark, text in zip(marks, texts, strict=True)]
        parts.append(f"<tr>{''.join(cells)}</tr>")
    return "".join([*parts, "</tbody></table></div>"])


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
        *beyond.facts(evaluation).items(),
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
