"""`truing gate check-policy`: the policy in words, in rows and days, and on past versions.

Exit 0 when every deciding clause can be decided in the time given (warnings included), 1 when one can't: its slice has no rows,
or more are needed than the traffic brings.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from truing.flows.cli.output import result, table
from truing.tasks.evaluation.wording import rows as about

if TYPE_CHECKING:
    import polars as pl

    from truing.infra.past import Past
    from truing.infra.settings import Settings
    from truing.tasks.evaluation.dryrun import Rehearsal
    from truing.tasks.evaluation.power import Need, Traffic
    from truing.tasks.policy import Policy
    from truing.tasks.problem import Problem
    from truing.tasks.records import Evaluation

    Shares = dict[str, tuple[float, float | None]]

DAY = 86_400.0
LOOK_BACK = 7 * DAY
ENOUGH = 1000  # judging rows among which a slice of a deciding clause should have shown itself
UNLIKELY = 0.5


@dataclass(frozen=True)
class Worry:
    """Something a person should know before accepting. `fatal`: a deciding clause that can't be decided in time."""

    name: str
    text: str
    fatal: bool = False


def check_policy(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.catalog import chosen
    from truing.tasks.errors import UsageError
    from truing.tasks.evaluation.plainly import clause_words, floor_words, rules_words
    from truing.tasks.evaluation.power import churn_of, needs
    from truing.tasks.problem import seconds

    if args.churn is not None and not 0.0 < args.churn <= 1.0:
        raise UsageError(f"--churn: expected a share above 0 and at most 1, got {args.churn}; say it as 0.05")
    within = seconds(args.within) / DAY
    problem, policy = chosen(settings.problems, args.problem)
    now = time.time()
    past = _past(settings, problem, args.user)
    judged = past.judged() if past else []
    traffic, shares, unread = _traffic(settings, problem, judged, per_day=args.traffic, now=now)
    anchored = past is not None and past.docket.anchor is not None
    found = needs(policy, judged, traffic, shares=shares, churn=args.churn, anchored=anchored)
    tried = _rehearsed(past, policy)
    worries = _worries(found, policy, traffic, within)
    accepted, standing = _accepted(past, policy)
    said = [(one.name, clause_words(one, policy)) for one in policy.clause]
    said += [(one.name, floor_words(one)) for one in policy.absolute]
    churn = args.churn if args.churn is not None else churn_of(judged)
    data = {
        "problem": problem.name,
        "policy": policy.digest,
        "accepted": accepted,
        "rules": rules_words(policy),
        "clauses": [{"name": name, "says": text} for name, text in said],
        "churn": churn,
        "traffic": msgspec.to_builtins(traffic),
        "within_days": within,
        "needs": [msgspec.to_builtins(one) for one in found],
        "worries": [{"clause": one.name, "text": one.text, "fatal": one.fatal} for one in worries],
        "past": [msgspec.to_builtins(one) | {"changes": one.changes} for one in tried],
        "unread": unread,
    }
    text = "\n\n".join(
        part
        for part in (
            f"{problem.name}: policy {policy.digest[:12]}, {standing}",
            "\n".join(f"  {line}" for line in data["rules"]),
            "\n".join(f"  {name}: {words}." for name, words in said),
            _cost(found, traffic, churn, within),
            "\n".join(f"{'not decidable' if one.fatal else 'mind'}: {one.name}: {one.text}" for one in worries),
            _before(tried),
            "\n".join(unread),
        )
        if part
    )
    result(data, text, as_json=args.json)
    return 1 if any(one.fatal for one in worries) else 0


# --- what is known ------------------------------------------------------------------------------------------------------------


def _past(settings: Settings, problem: Problem, user: str | None) -> Past | None:
    from truing.infra.past import past
    from truing.tasks.errors import Unavailable

    try:
        return past(settings, problem.name, user=user)
    except Unavailable:
        return None


def _accepted(past: Past | None, policy: Policy) -> tuple[bool | None, str]:
    if past is None:
        return None, "and no audit can be read that says whether it was accepted"
    docket = past.docket
    known = next((one for one in reversed(docket.policies) if one[0] == policy.digest), None)
    if docket.policy == policy.digest and known:
        return True, f"accepted by {known[1]} on {time.strftime('%Y-%m-%d', time.gmtime(known[2]))}"
    if docket.policy is None:
        return False, "not accepted by anybody yet: nothing can be released under it (`truing policy accept`)"
    return False, f"not accepted: {docket.policy[:12]} is; verdicts change only after `truing policy accept`"


def _traffic(
    settings: Settings, problem: Problem, judged: list[Evaluation], *, per_day: float | None, now: float
) -> tuple[Traffic, Shares | None, list[str]]:
    """What came in the last week by the gateway's own questions (a load of past cases is no traffic), and the slices in it."""
    import polars as pl

    from truing.tasks.errors import TruingError
    from truing.tasks.evaluation.power import Traffic
    from truing.tasks.events.lake import Vault
    from truing.tasks.problem import seconds

    held = None if per_day is None else per_day * problem.splits.holdout
    try:
        rows = Vault(settings.vault).holdout(problem.name, now=now, matured=False)
    except TruingError as error:
        newest = judged[-1] if judged else None
        n = newest.n if newest else 0
        known = Traffic(holdout=held, labelled=newest.coverage if newest else 1.0, judging=n, pool=n)
        return known, None, [f"The vault does not read here, so rows are those of the last verdict ({error})."]
    due = rows.filter(pl.col("asked_at") + seconds(problem.maturity.outcome) <= now)
    may = pl.col("origin").is_in(["outcome", "review"]) & pl.col("target").is_not_null() & (pl.col("matured_at") <= now)
    judging = rows.filter(may)
    live = rows.filter(pl.col("release").is_not_null(), pl.col("asked_at") >= now - LOOK_BACK)
    if held is None and live.height:
        first = float(live["asked_at"].min())  # type: ignore[arg-type]
        held = live.height / max((now - first) / DAY, 1.0 / 24.0)
    labelled = due.filter(may).height / due.height if due.height else 1.0
    traffic = Traffic(holdout=held, labelled=labelled, judging=judging.height, pool=rows.height)
    return traffic, _shares(judging, problem) if judging.height else None, []


def _shares(judging: pl.DataFrame, problem: Problem) -> Shares:
    """Each slice's share of the judging rows, and how many of its rows are positive."""
    from truing.tasks.evaluation.slices import slices_of

    positive = (judging["target"] == problem.positive).to_numpy()
    masks = slices_of(judging["groups"].to_list(), problem)
    return {name: (float(mask.mean()), float(positive[mask].mean()) if mask.any() else None) for name, mask in masks.items()}


def _rehearsed(past: Past | None, policy: Policy) -> list[Rehearsal]:
    from truing.tasks.evaluation.dryrun import rehearse

    if past is None:
        return []
    return [
        rehearse(one, past.verdicts[one], past.evaluations.get(one), policy) for one in past.versions if one in past.verdicts
    ]


# --- what to mind -------------------------------------------------------------------------------------------------------------


def _worries(found: list[Need], policy: Policy, traffic: Traffic, within: float) -> list[Worry]:
    worries = []
    for one in found:
        name = one.name if one.against == "champion" else f"{one.name} (anchor)"
        if one.note.startswith("counts as points"):
            worries.append(Worry(name, f"the relative limit {one.note}"))
        if one.rows is None:
            if one.deciding and one.seen.share == 0.0 and traffic.judging >= ENOUGH:
                worries.append(Worry(name, f"none of {traffic.judging:,} judging rows is in {one.slice}", fatal=True))
            continue
        if one.deciding and one.days is not None and one.days > within:
            worries.append(Worry(name, _late(one, policy, within), fatal=not _aimed_in_time(one, policy, within)))
        elif one.deciding and one.days is None:
            worries.append(
                Worry(name, f"about {about(one.rows)} rows are needed, {traffic.judging:,} are there, and none come in")
            )
        elif not one.deciding and one.against == "champion" and one.harm is not None and one.harm < UNLIKELY:
            what = f"on the {one.there:,} rows there, twice the limit would be blocked in {one.harm:.0%} only"
            worries.append(Worry(name, f"watched and too small: {what}"))
        if one.exit == "targeted" and one.labels is not None and one.labels > policy.audit.budget:
            worries.append(
                Worry(name, f"its targeted audit needs about {about(one.labels)} labels, the budget is {policy.audit.budget:,}")
            )
    return worries


def _late(one: Need, policy: Policy, within: float) -> str:
    text = f"about {about(one.rows)} rows are needed, {one.days:,.0f} days at the present traffic, more than {within:,.0f}"
    if one.labels and one.pool_days is not None and one.pool_days <= within:
        text += f"; a targeted audit of about {about(one.labels)} labels would do after {one.pool_days:,.0f} days"
        if one.exit != "targeted":
            text += ' (exit = "targeted")'
    return text


def _aimed_in_time(one: Need, policy: Policy, within: float) -> bool:
    """Its exit is a targeted audit that the budget and the traffic allow."""
    return (
        one.exit == "targeted"
        and one.labels is not None
        and one.labels <= policy.audit.budget
        and one.pool_days is not None
        and one.pool_days <= within
    )


# --- tables -------------------------------------------------------------------------------------------------------------------


def _cost(found: list[Need], traffic: Traffic, churn: float | None, within: float) -> str:
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


def _before(tried: list[Rehearsal]) -> str:
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
