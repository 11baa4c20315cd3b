"""`truing standing allow | revoke | show`: approve small steps in advance, for some days."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import ago, ahead, result

if TYPE_CHECKING:
    from truing.infra.settings import Settings


def add(verbs: Any, person: argparse.ArgumentParser) -> None:
    standing = verbs.add_parser("standing", parents=[person], help="approve small steps in advance, for some days")
    standing.add_argument("act", choices=["allow", "revoke", "show"], help="give it, end it, or show what stands")
    standing.add_argument("--days", type=float, default=7.0, help="allow: how long (default: 7)")
    standing.add_argument(
        "--max-drift", type=float, default=0.02, metavar="SHARE",
        help="allow: at most this share of answers may differ from the anchor's (default: 0.02)",
    )  # fmt: skip
    standing.add_argument("--per-day", type=int, default=3, metavar="N", help="allow: releases in 24 hours (default: 3)")
    standing.add_argument("--reason", default="", help="why (allow and revoke need one)")
    standing.set_defaults(do=do_standing)


def do_standing(args: argparse.Namespace, settings: Settings) -> int:
    """A version goes out under it only if its verdict is a pass, it is the fast learner's on the champion's base, and small."""
    from truing.flows.cli.acts import opened
    from truing.tasks.errors import UsageError

    if args.act == "show":
        return show(args, settings)
    if not args.reason.strip():
        raise UsageError(f"standing {args.act}: expected --reason, got none; say why")
    problem, _, registry = opened(args, settings)
    registry.set_model_tag(problem, "standing.reason", args.reason)
    if args.act == "revoke":
        registry.set_model_tag(problem, "standing", "revoked")
        found = {"problem": problem, "standing": None, "by": registry.user, "reason": args.reason}
        result(found, f"{problem}: no standing approval any more, by {registry.user}", as_json=args.json)
        return 0
    terms = {"days": args.days, "max_drift": args.max_drift, "per_day": args.per_day}
    registry.set_model_tag(problem, "standing", json.dumps(terms))
    found = {"problem": problem, "standing": terms, "by": registry.user, "reason": args.reason}
    text = f"{problem}: for {args.days:g} days a pass of the fast learner goes out without a click, by {registry.user}; "
    result(found, text + _terms(args.max_drift, args.per_day), as_json=args.json)
    return 0


def show(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.catalog import chosen
    from truing.infra.evidence import standing_acts

    problem, _ = chosen(settings.problems, args.problem)
    given = standing_acts(settings, user=args.user).of(problem.name).standing
    now = time.time()
    if given is None or given.standing.expires <= now:
        ended = "" if given is None else f"; the last one ended {ago(given.standing.expires, now)}"
        result({"problem": problem.name, "standing": None}, f"{problem.name}: no standing approval{ended}", as_json=args.json)
        return 0
    one = given.standing
    found = {
        "by": list(one.by), "at": one.at, "expires": one.expires, "max_drift": one.max_drift, "per_day": one.per_day,
        "reason": one.reason,
    }  # fmt: skip
    text = f"{problem.name}: standing approval by {' and '.join(one.by)}, ends {ahead(one.expires, now)}; "
    text += f"{_terms(one.max_drift, one.per_day)}: {one.reason}"
    result({"problem": problem.name, "standing": found}, text, as_json=args.json)
    return 0


def _terms(max_drift: float, per_day: int) -> str:
    return f"answers differ from the anchor's on at most {max_drift:.1%} of the rows, at most {per_day} releases in 24 hours"
