"""`truing ingest | curate | improve | monitor`: ask for a run. The keeper hears it on the control topic and starts it."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import note, result

if TYPE_CHECKING:
    from truing.infra.settings import Settings

HELP = {
    "ingest": "ask for a fresh ingest segment",
    "curate": "ask for validation of the rows that landed",
    "improve": "ask for a turn of learning",
    "monitor": "ask for a look at the traffic",
}
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    for verb, text in HELP.items():
        one = verbs.add_parser(verb, parents=[common], help=text)
        one.add_argument("--problem", help="which problem (default: the only one)")
        one.add_argument("--wait", type=float, nargs="?", const=900.0, metavar="SECONDS", help="wait until the run has ended")
        one.set_defaults(do=do_run)


def do_run(args: argparse.Namespace, settings: Settings) -> int:
    """Exit 0 when asked for (with --wait: when it completed), 1 when the run failed."""
    from truing.infra.catalog import chosen
    from truing.infra.control import request

    problem, _ = chosen(settings.problems, args.problem)
    found: dict[str, Any] = {"run": args.verb, "problem": problem.name}
    if args.wait is None:
        found["id"] = request(settings, args.verb, problem.name)
        result(found, f"{args.verb} of {problem.name} is asked for; see `truing status`", as_json=args.json)
        return 0
    run = run_now(settings, args.verb, problem.name, patience_s=args.wait)
    found |= run
    result(found, f"{args.verb} of {problem.name}: {run['state'].lower()} after {run['seconds']:.0f} s", as_json=args.json)
    return 0 if run["state"] == "COMPLETED" else 1


def run_now(settings: Settings, run: str, problem: str, *, patience_s: float) -> dict[str, Any]:
    """Ask for a run and return its id, final state and seconds. Raises Unavailable after `patience_s`.

    A run that was dropped because another one of the same deployment was on is asked for again.
    """
    from truing.infra.control import request

    begun = time.time()
    while True:
        asked = time.time()
        request(settings, run, problem)
        found = await_run(settings, run, problem, since=asked, patience_s=patience_s - (asked - begun))
        if found["state"] != "CANCELLED":
            return found | {"seconds": round(time.time() - begun, 1)}
        time.sleep(1.0)


def await_run(settings: Settings, run: str, problem: str, *, since: float, patience_s: float) -> dict[str, Any]:
    """The first run of that deployment that was due after `since`, once it has ended. Raises Unavailable after `patience_s`."""
    from truing.infra.status import prefect_call
    from truing.tasks.errors import Unavailable

    name = "all" if run == "ingest" else problem
    wanted = {
        "flows": {"name": {"any_": [run]}},
        "deployments": {"name": {"any_": [name]}},
        "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED"]}}, "expected_start_time": {"after_": _iso(since)}},
        "sort": "EXPECTED_START_TIME_ASC",
        "limit": 1,
    }
    shown = ""
    while time.time() - since < patience_s:
        found = prefect_call(settings, "POST", "/flow_runs/filter", wanted)
        if found:
            one = found[0]
            if one["state_type"] != shown:
                shown = one["state_type"]
                note(f"{one['name']}: {shown.lower()}")
            if shown in FINAL:
                return {"run_id": one["id"], "state": shown, "seconds": round(time.time() - since, 1)}
        time.sleep(0.5)
    raise Unavailable(f"expected {run} of {problem} to end within {patience_s:.0f} s, it has not; see `truing status`")


def _iso(at: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).isoformat()
