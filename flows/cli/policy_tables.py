"""The tables of `truing gate check-policy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from truing.flows.cli.output import table
from truing.tasks.evaluation.wording import rows as about

if TYPE_CHECKING:
    from truing.tasks.evaluation.dryrun import Rehearsal
    from truing.tasks.evaluation.power import Need, Traffic


def cost(found: list[Need], traffic: Traffic, churn: float | None) -> str:
    from truing.tasks.evaluation.slices import spoken
    from truing.tasks.evaluation.wording import amount

    head = (
        "clause",
        "on",
        "share",
        "base rate",
        "against",
        "limit",
        "there",
        "passes now",
        "rows",
        "days",
        "aimed labels",
        "days",
    )
    shown = [
        (
            one.name if one.deciding else f"{one.name} (watched)",
            spoken(one.slice),
            _percent(one.seen.share),
            _percent(one.seen.base_rate),
            one.against,
            amount(one.limit, one.metric),
            f"{one.there:,}" if one.rows is not None else None,
            _chance(one.chance),
            None if one.rows is None else f"{'' if one.seen.how == 'seen' else '~'}{about(one.rows)}",
            _whole(one.days),
            None if one.labels is None else about(one.labels),
            _whole(one.pool_days),
        )
        for one in found
    ]
    coming = "no traffic in the last 7 days" if traffic.holdout is None else f"{traffic.holdout:,.0f} holdout rows a day"
    moved = "not known: judge a first candidate or give --churn" if churn is None else f"{churn:.1%} of the answers"
    chances = [one.chance for one in found if one.deciding and one.chance is not None]
    together = max(0.0, 1.0 - sum(1.0 - one for one in chances))
    notes = [
        f"An equal candidate changes {moved}; {traffic.judging:,} rows may judge, {coming}, "
        f"{traffic.labelled:.0%} get an outcome.",
        "rows: judging rows, drawn at random, from which such a candidate passes the clause with its power; aimed labels: of a",
        "targeted audit, mostly on rows where the models disagree, over a pool of as many rows (perfect reviewers assumed).",
        "~: nothing of the kind was judged yet; worked out from the churn, half of whose rows are taken to be positive.",
    ]
    if chances:
        notes.append(f"On the rows there now it passes all deciding clauses with a chance of {_chance(together)} or more.")
    return f"{table(head, shown)}\n" + "\n".join(notes)


def before(tried: list[Rehearsal]) -> str:
    if not tried:
        return "No version was judged yet, so there is nothing to try the policy on."
    shown = [
        (
            f"v{one.version}",
            one.then,
            " or ".join(one.possible) or "can't be told",
            "other" if one.changes else "",
            one.how,
            _cut(one.reason),
        )
        for one in tried
    ]
    text = table(("version", "got", "would get", "", "known from", "because"), shown)
    if any(one.how == "cells" for one in tried):
        text += (
            "\nFrom cells: bounds by normal approximation of stored intervals; a joint bound between that of one clause and "
            "Bonferroni's.\nWhat lies between, or within 5 % of a limit, is left open."
        )
    return text


def _percent(value: float | None, digits: int = 1) -> str | None:
    return None if value is None else f"{100 * value:.{digits}f} %"


def _chance(value: float | None) -> str | None:
    """Whole percent, never a certainty."""
    return None if value is None else "> 99 %" if value > 0.99 else "< 1 %" if value < 0.01 else f"{100 * value:.0f} %"


def _whole(days: float | None) -> str | None:
    return None if days is None else "0" if days == 0 else f"{days:,.1f}" if days < 10 else f"{days:,.0f}"


def _cut(text: str, most: int = 90) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
