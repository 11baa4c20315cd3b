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

from truing.flows.cli.output import Bar, result
from truing.flows.cli.policy_tables import before, cost
from truing.tasks.evaluation.wording import rows as about

if TYPE_CHECKING:
    import polars as pl

    from truing.infra.past import Past
    from truing.infra.settings import Settings
    from truing.tasks.evaluation.dryrun import Rehearsal
    from truing.tasks.evaluation.power import Need, Traffic
    from truing.tasks.policy import Policy
    from truing.tasks.problem import Problem
    from truing.tasks.records import Evaluation, Verdict

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
    tried = _rehearsed(settings, past, policy, again=args.again)
    minded = worries(found, policy, traffic, within)
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
        "worries": [{"clause": one.name, "text": one.text, "fatal": one.fatal} for one in minded],
        "past": [msgspec.to_builtins(one) | {"changes": one.changes} for one in tried],
        "unread": unread,
    }
    text = "\n\n".join(
        part
        for part in (
            f"{problem.name}: policy {policy.digest[:12]}, {standing}",
            "\n".join(f"  {line}" for line in data["rules"]),
            "\n".join(f"  {name}: {words}." for name, words in said),
            cost(found, traffic, churn),
            "\n".join(f"{'not decidable' if one.fatal else 'mind'}: {one.name}: {one.text}" for one in minded),
            before(tried),
            "\n".join(unread),
        )
        if part
    )
    result(data, text, as_json=args.json)
    return 1 if any(one.fatal for one in minded) else 0


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
    from truing.tasks.problem import seconds
    from truing.tasks.tables.lake import Vault

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


def _rehearsed(settings: Settings, past: Past | None, policy: Policy, *, again: int) -> list[Rehearsal]:
    """Every judged version; the `again` newest whose answers are stored are judged anew, the others from their cells."""
    from truing.tasks.evaluation.dryrun import rehearse, rejudged

    if past is None:
        return []
    judged = [one for one in past.versions if one in past.verdicts]
    bar, found = Bar(len(judged), "judging anew"), []
    for at, one in enumerate(judged):
        verdict, evaluation = past.verdicts[one], past.evaluations.get(one)
        anew = None
        if verdict.policy != policy.digest and at >= len(judged) - again:
            anew = _anew(settings, verdict, policy)
        found.append(rejudged(one, verdict, anew) if anew else rehearse(one, verdict, evaluation, policy))
        bar(at + 1)
    return found


def _anew(settings: Settings, verdict: Verdict, policy: Policy) -> Verdict | None:
    """What the gate says under this policy of the answers stored with a verdict, if they are those that it was made of."""
    from truing.infra.past import evidence_of

    case = evidence_of(settings, verdict)
    return None if case is None else case.conclude(policy)[1]


# --- what to mind -------------------------------------------------------------------------------------------------------------


def worries(found: list[Need], policy: Policy, traffic: Traffic, within: float) -> list[Worry]:
    said = _exits(policy)
    for one in found:
        name = one.name if one.against == "champion" else f"{one.name} (anchor)"
        if one.note.startswith("counts as points"):
            said.append(Worry(name, f"the relative limit {one.note}"))
        if one.rows is None:
            if one.deciding and one.seen.share == 0.0 and traffic.judging >= ENOUGH:
                said.append(Worry(name, f"none of {traffic.judging:,} judging rows is in {one.slice}", fatal=True))
            continue
        if one.deciding and one.days is not None and one.days > within:
            said.append(Worry(name, _late(one, policy, within), fatal=not _aimed_in_time(one, policy, within)))
        elif one.deciding and one.days is None and one.rows is not None:
            said.append(
                Worry(name, f"about {about(one.rows)} rows are needed, {traffic.judging:,} are there, and none come in")
            )
        elif not one.deciding and one.against == "champion" and one.harm is not None and one.harm < UNLIKELY:
            what = f"on the {one.there:,} rows there, twice the limit would be blocked in {one.harm:.0%} only"
            said.append(Worry(name, f"watched and too small: {what}"))
        if one.deciding and one.exit == "targeted" and one.labels is not None and one.labels > policy.audit.budget:
            said.append(
                Worry(name, f"its targeted audit needs about {about(one.labels)} labels, the budget is {policy.audit.budget:,}")
            )
    return said


def _late(one: Need, policy: Policy, within: float) -> str:
    text = f"about {about(one.rows or 0)} rows are needed, {one.days:,.0f} days at the present traffic, more than {within:,.0f}"
    if one.labels and one.pool_days is not None and one.pool_days <= within:
        text += f"; a targeted audit of about {about(one.labels)} labels would do after {one.pool_days:,.0f} days"
        if one.labels > policy.audit.budget:
            text += f" (audit.budget is {policy.audit.budget:,})"
    return text


def _aimed_in_time(one: Need, policy: Policy, within: float) -> bool:
    """A targeted audit that budget, looks and traffic allow decides it."""
    return (
        policy.evidence.max_looks > 1
        and one.labels is not None
        and one.labels <= policy.audit.budget
        and one.pool_days is not None
        and one.pool_days <= within
    )


def _exits(policy: Policy) -> list[Worry]:
    """Exits that lead nowhere as things are."""
    worries = []
    if policy.audit.budget and policy.evidence.max_looks < 2:
        worries.append(
            Worry("audit.budget", "a targeted audit is a second look, and evidence.max_looks = 1 pays for one; set 2")
        )
    for one in policy.clause:
        if one.exit == "canary":
            worries.append(Worry(one.name, 'exit = "canary", but no canary runs here yet: until then it waits'))
    return worries
