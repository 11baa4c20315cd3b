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

    check = acts.add_parser("check-policy", parents=[inner], help="the policy in words, rows and days; and on past versions")
    check.add_argument("--problem", help="which problem (default: the only one)")
    check.add_argument("--churn", type=float, metavar="SHARE", help="answers an equal candidate changes (default: as seen)")
    check.add_argument("--traffic", type=float, metavar="N", help="predictions a day (default: as seen in the last 7 days)")
    check.add_argument("--within", default="90d", metavar="TIME", help="a deciding clause should be decided in (default: 90d)")
    check.add_argument("--again", type=int, default=20, metavar="N", help="judge the N newest anew if stored (default: 20)")
    check.add_argument("--as", dest="user", metavar="NAME", help="your login, where files can't be read (default: yours)")
    check.set_defaults(do=do_check_policy)


def do_check_policy(args: argparse.Namespace, settings: Settings) -> int:
    from truing.flows.cli.policy_check import check_policy

    return check_policy(args, settings)
