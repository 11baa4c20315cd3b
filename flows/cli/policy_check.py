"""`truing gate check-policy`: the policy in words, in rows and days, and on past versions."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from truing.flows.cli.output import result

if TYPE_CHECKING:
    from truing.infra.settings import Settings


def check_policy(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.catalog import chosen
    from truing.tasks.evaluation.plainly import clause_words, floor_words, rules_words

    problem, policy = chosen(settings.problems, args.problem)
    said = [clause_words(one, policy) for one in policy.clause] + [floor_words(one) for one in policy.absolute]
    names = [one.name for one in policy.clause] + [one.name for one in policy.absolute]
    found = {"problem": problem.name, "policy": policy.digest, "words": dict(zip(names, said, strict=True))}
    lines = [f"{problem.name}: policy {policy.digest[:12]}", *rules_words(policy), *said]
    result(found, "\n".join(lines), as_json=args.json)
    return 0
