"""A verdict for people: the registry's description (markdown), its tags, and the page with pictures (`page.verdict_html`)."""

from __future__ import annotations

import re

from truing.tasks.evaluation import beyond
from truing.tasks.evaluation.gaps import Gap, gaps
from truing.tasks.evaluation.page import verdict_html
from truing.tasks.evaluation.slices import spoken
from truing.tasks.evaluation.wording import AGAINST, NEXT, SPOKEN, amount, bounds, found, points, unit
from truing.tasks.problem import Problem
from truing.tasks.records import Candidate, Clause, Evaluation, Verdict

__all__ = ["describe", "indicators", "verdict_html"]


def describe(verdict: Verdict, evaluation: Evaluation, candidate: Candidate, problem: Problem) -> str:
    """Markdown for the version's description: outcome and reason first, then clauses, gaps, and where it comes from."""
    lines = [
        f"**{verdict.outcome.value.capitalize()}.** {_cell(verdict.reason)}.",
        "",
        NEXT[verdict.outcome],
        "",
        "| Clause | On | Against | Drop | Between | Limit | Rows | Says |\n|---|---|---|---:|---:|---:|---:|---|\n"
        + "\n".join(_row(clause) for clause in verdict.clauses),
        "",
        f"A drop above 0 is worse; rates in points (hundredths), Brier scores raw. *Between*: joint lower bound (all clauses "
        f"together) and own upper bound. {evaluation.n:,} holdout rows judged ({evaluation.coverage:.0%} of those due), "
        f"look {evaluation.look}; {evaluation.flips:.1%} of the answers differ.",
    ]
    between = gaps(evaluation)
    if between:
        lines += [
            "",
            "| Gap | Between | Champion | Candidate | Change |\n|---|---|---:|---:|---:|\n"
            + "\n".join(
                f"| {one.group}: {SPOKEN[one.metric]} | {_cell(one.highest)} over {_cell(one.lowest)} "
                f"| {points(one.champion)} | {points(one.candidate)} | {points(one.change, signed=True)} |"
                for one in between
            ),
            "",
            "In points, with 95 % intervals; a change above 0 widens the gap.",
        ]
    lines += _beyond(evaluation)
    lines += ["", origin(verdict, candidate)]
    return "\n".join(lines)


def _beyond(evaluation: Evaluation) -> list[str]:
    """What is told besides clauses and gaps, shortly: the page has it all."""
    said = [f"{found(one)}." for one in evaluation.worst if one.confirmed]
    lines = ["", "Where it loses most: " + _cell(" ".join(said))] if said else []
    unequal = [line for line in beyond.disparities(evaluation) if line[-1] != "–" or "÷" not in line[1]]
    if unequal:
        lines += [
            "",
            "| Of | Between all groups | Champion | Candidate | Change |\n|---|---|---:|---:|---:|\n"
            + "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in unequal),
        ]
    said = [f"{name} {much}" for name, what, much in beyond.swaps(evaluation) if what.startswith("answers")]
    if said:
        lines += ["", f"Answers that turn when only the attribute is swapped, per hundred: {_cell('; '.join(said))}."]
    if evaluation.importance_shift is not None:
        lines += ["", f"{evaluation.importance_shift:.0%} of what it goes by has moved to other inputs since its parent."]
    return lines


def origin(verdict: Verdict, candidate: Candidate) -> str:
    """Where a candidate comes from, in one line of short digests."""
    learned = f"{candidate.rows:,} samples of " if candidate.rows else ""
    return (
        f"Payload {_short(candidate.payload)}, tuned from {_short(candidate.parent)} ({_cell(candidate.origin)} learner) "
        f"on {learned}dataset {_short(candidate.dataset)}; champion {_short(verdict.champion)}, "
        f"policy {_short(verdict.policy)}, evaluation {_short(verdict.evaluation)}."
    )


def _short(payload: str | None) -> str:
    """A digest's first twelve digits as code; a trainer wrote some of them, so nothing else gets through."""
    return f"`{re.sub('[^0-9A-Za-z]', '', payload)[:12]}`" if payload else "nothing"


def indicators(evaluation: Evaluation, verdict: Verdict) -> dict[str, str]:
    """The verdict's bias indicators, one short line each; the registry shows them as one tag.

    `clause.<name>`: drop, bounds, limit and outcome. `<attribute>.<metric>`: the gap between buckets for champion and
    candidate, and its change, with 95 % intervals.
    """
    lines = {
        "rows": f"{evaluation.n} rows, coverage {evaluation.coverage:.0%}, look {evaluation.look}",
        "flips": f"{evaluation.flips:.1%} of the answers differ"
        + (f", {evaluation.forgetting.value:.1%} of those right before are wrong now" if evaluation.forgetting.value else ""),
    }
    for clause in verdict.clauses:
        suffix = "" if clause.against == "champion" else f".{clause.against}"
        lines[f"clause.{slug(clause.name)}{suffix}"] = (
            f"{clause.outcome.value}: drop {_between(clause)}, limit {amount(clause.limit, clause.metric)}{unit(clause.metric)}"
            + ("" if clause.deciding else " (watched)")
        )
    for one in gaps(evaluation):
        lines[f"{slug(one.group)}.{one.metric}"] = _gap_line(one)
    for key, value in evaluation.indicators.items():
        name, _, rest = key.partition(":")
        if key.startswith("auroc:all:") or (name.endswith("_difference") and rest.endswith((":candidate", ":change"))):
            lines[f"{name}.{slug(rest)}"] = points(value)
    lines |= {f"found.{i + 1}": found(one) for i, one in enumerate(evaluation.worst) if one.confirmed}
    lines |= {f"counterfactual.{slug(key)}": points(value) for key, value in evaluation.counterfactual.items()}
    return lines


def _gap_line(one: Gap) -> str:
    text = f"{one.highest} over {one.lowest}: candidate {points(one.candidate)}"
    if one.champion.value is not None:
        text += f", champion {points(one.champion)}, change {points(one.change, signed=True)}"
    return text + " points"


def _row(clause: Clause) -> str:
    says = clause.outcome.value + ("" if clause.deciding else " (watched)")
    drop = "–" if clause.delta.value is None else amount(clause.delta.value, clause.metric, signed=True)
    return (
        f"| {_cell(clause.name)} | {_cell(spoken(clause.slice))} | {AGAINST[clause.against]} | {drop} | {bounds(clause)} "
        f"| {amount(clause.limit, clause.metric)} | {clause.delta.n:,} | {'**' + says + '**' if clause.deciding else says} |"
    )


def _between(clause: Clause) -> str:
    value = clause.delta.value
    return "not estimable" if value is None else f"{amount(value, clause.metric, signed=True)} ({bounds(clause)})"


def slug(text: str) -> str:
    """A name as part of a tag's key: `women's TPR` → `womens-tpr`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("'", "").replace("’", "")).strip("-") or "unnamed"


def _cell(text: str) -> str:
    """Text that stays inside its table cell and shows as it is."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
