"""`truing gate …`: what the policy means, what it costs in rows and days, and what it would have said of past versions."""

from __future__ import annotations

import argparse
import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truing.infra.settings import Settings


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    gate = verbs.add_parser("gate", parents=[common], help="what the policy means and costs, and how a verdict came about")
    acts = gate.add_subparsers(dest="act", metavar="ACT", title="acts", required=True)
    inner = copy.deepcopy(common)
    for action in inner._actions:  # given before the act, an option counts as well: no default of the act's overwrites it
        action.default = argparse.SUPPRESS

    check = acts.add_parser(
        "check-policy", parents=[inner], help="the policy in words, rows and days; and on past versions",
        description="Exit 1 when a deciding clause can't be decided in the time given: its slice has no rows, or the traffic "
        "brings too few; warnings leave it at 0.",
    )  # fmt: skip
    check.add_argument("--problem", help="which problem (default: the only one)")
    check.add_argument("--churn", type=float, metavar="SHARE", help="answers an equal candidate changes (default: as seen)")
    check.add_argument("--traffic", type=float, metavar="N", help="predictions a day (default: as seen in the last 7 days)")
    check.add_argument("--within", default="90d", metavar="TIME", help="a deciding clause should be decided in (default: 90d)")
    check.add_argument("--again", type=int, default=20, metavar="N", help="judge the N newest anew if stored (default: 20)")
    check.add_argument("--as", dest="user", metavar="NAME", help="your login, where files can't be read (default: yours)")
    check.set_defaults(do=do_check_policy)

    explain = acts.add_parser(
        "explain", parents=[inner], help="a verdict in words: numbers, bounds, rows needed, what it rests on"
    )
    rebuild = acts.add_parser("rebuild", parents=[inner], help="make a verdict again from its evidence, offline; same bytes?")
    for act, do in ((explain, do_explain), (rebuild, do_rebuild)):
        act.add_argument("version", help="number of the version")
        act.add_argument("--problem", help="which problem (default: the only one)")
        act.add_argument("--as", dest="user", metavar="NAME", help="your login, where files can't be read (default: yours)")
        act.set_defaults(do=do)


def do_check_policy(args: argparse.Namespace, settings: Settings) -> int:
    from truing.flows.cli.policy_check import check_policy

    return check_policy(args, settings)


def do_explain(args: argparse.Namespace, settings: Settings) -> int:
    from truing.flows.cli.explain import explain

    return explain(args, settings)


def do_rebuild(args: argparse.Namespace, settings: Settings) -> int:
    from truing.flows.cli.explain import rebuild

    return rebuild(args, settings)
