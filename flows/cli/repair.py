"""`truing repair VERSION`: a version that a fairness clause blocked and what was made of it, both verdicts side by side."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import flat, note, result, table

if TYPE_CHECKING:
    from truing.infra.settings import Settings
    from truing.tasks.policy import Policy
    from truing.tasks.release.registry import Registry
    from truing.tasks.release.versions import Version


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    one = verbs.add_parser("repair", parents=[common], help="repair a version that a fairness clause blocked")
    one.add_argument("version", help="number of the blocked version")
    one.add_argument("--problem", help="which problem (default: the only one)")
    one.add_argument("--wait", type=float, nargs="?", const=300.0, metavar="SECONDS", help="wait for the repair's verdict")
    one.set_defaults(do=do_repair)


def do_repair(args: argparse.Namespace, settings: Settings) -> int:
    """Shows the repair if there is one, else asks for it. Exit 0, or 3 where there is nothing to repair."""
    from truing.infra.catalog import chosen
    from truing.infra.control import request
    from truing.infra.evidence import visitor

    problem, policy = chosen(settings.problems, args.problem)
    registry = visitor(settings)
    blocked = registry.version(problem.name, args.version)
    mended = find(registry, blocked, policy)
    if mended is None:
        request(settings, "improve", problem.name, repair=blocked.version)
        note(f"a repair of v{blocked.version} is asked for")
    if args.wait is not None:
        mended = wait(registry, settings, blocked, policy, patience_s=args.wait)
    show(blocked, mended, as_json=args.json)
    return 0


def find(registry: Registry, blocked: Version, policy: Policy) -> Version | None:
    """The version that repairs this one. Raises Refused where there is none and none can be asked for."""
    from truing.flows.repair import repair_of, repairable

    known = repair_of(registry.versions(blocked.problem), blocked.payload or "")
    if known is None:
        repairable(blocked, policy)
    return known


def wait(registry: Registry, settings: Settings, blocked: Version, policy: Policy, *, patience_s: float) -> Version | None:
    """The repair, once it is judged; None when the run has ended and found none. Raises Unavailable after `patience_s`."""
    from truing.tasks.errors import Unavailable

    end, asked = time.monotonic() + patience_s, time.time()
    while time.monotonic() < end:
        known = find(registry, blocked, policy)
        if known is not None and known.outcome:
            return known
        if known is None and ended(settings, blocked, since=asked):
            return find(registry, blocked, policy)
        time.sleep(0.5)
    raise Unavailable(f"expected a repair of v{blocked.version} within {patience_s:.0f} s, got none; see `truing status`")


def ended(settings: Settings, blocked: Version, *, since: float) -> bool:
    """Has a run that was to repair this version come to its end since then?"""
    from datetime import datetime

    from truing.infra.status import prefect_call

    wanted = {
        "flows": {"name": {"any_": ["improve"]}},
        "deployments": {"name": {"any_": [blocked.problem]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
        "sort": "END_TIME_DESC",
        "limit": 20,
    }
    for run in prefect_call(settings, "POST", "/flow_runs/filter", wanted):
        over = datetime.fromisoformat(run["end_time"].replace("Z", "+00:00")).timestamp() if run.get("end_time") else 0.0
        if run.get("parameters", {}).get("repair") == blocked.version and over >= since:
            return True
    return False


def show(blocked: Version, mended: Version | None, *, as_json: bool) -> None:
    from truing.flows.repair import verdict_of
    from truing.tasks.evaluation.beside import lines

    before, after = verdict_of(blocked), verdict_of(mended) if mended else None
    found: dict[str, Any] = {
        "problem": blocked.problem,
        "blocked": blocked.version,
        "repair": mended.version if mended else None,
        "note": mended.candidate.note if mended and mended.candidate else None,
        "before": outcome(before),
        "after": outcome(after),
    }
    if mended is None:
        result(found, f"v{blocked.version} has no repair yet; ask again, or with --wait", as_json=as_json)
        return
    said = f"the gate says {after.outcome}: {after.reason}" if after else "the gate has not judged it yet"
    text = f"v{mended.version} repairs v{blocked.version}; {said}\n{found['note'] or ''}"
    if before is not None:
        names = ("clause", "against", "limit", f"v{blocked.version}", f"v{mended.version}")
        text += "\n\n" + table(names, lines(before, after))
        found["clauses"] = [
            {"clause": one[0], "against": one[1], "limit": one[2], "before": one[3], "after": one[4]}
            for one in lines(before, after)
        ]
    result(found, "\n".join(flat(line) if line else "" for line in text.split("\n")), as_json=as_json)


def outcome(verdict: Any) -> dict[str, str] | None:
    return None if verdict is None else {"outcome": str(verdict.outcome), "reason": verdict.reason}
