"""Runs whose process is gone: settled as Crashed when the runner starts, and learning that crashed is asked for once more.

A killed runner, machine or stack leaves runs in Running or Pending; each holds its deployment's only slot until its lease ends,
so every later run would be dropped. A run whose process lives on (a killed runner's orphan) is left alone: it ends by itself.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from truing.infra.processes import living, variable
from truing.infra.settings import Settings
from truing.infra.status import prefect_call

FLOWS = ("curate", "improve", "monitor")
REPEATED = ("curate", "improve")  # monitor comes again by itself
TRIES = 2  # repeats of one run that keeps crashing
RECENT_S = 900.0


def settle(settings: Settings) -> list[str]:
    """Force the runs of our deployments that no process carries to Crashed; their names. Raises Unavailable."""
    alive = carried(settings)
    open_states = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    gone = [run for run in _runs(settings, FLOWS, open_states) if run["id"] not in alive]
    for run in gone:
        state = {"type": "CRASHED", "message": "Its process is gone."}
        prefect_call(settings, "POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
    return [str(run["name"]) for run in gone]


def carried(settings: Settings) -> set[str]:
    """Ids of the flow runs that living processes of this stack carry."""
    found = {variable(process, "PREFECT__FLOW_RUN_ID") for process in living(settings.data)}
    return {run for run in found if run is not None}


def repeat(settings: Settings, *, now: float) -> list[str]:
    """Ask anew for learning and validation that crashed lately, at most twice in a row; ids of the runs asked for.

    Both can be repeated safely, and the key makes asking twice the same as once. Raises Unavailable.
    """
    since = datetime.fromtimestamp(now - RECENT_S, UTC).isoformat()
    crashed = _runs(settings, REPEATED, {"state": {"type": {"any_": ["CRASHED"]}}, "end_time": {"after_": since}})
    asked = []
    for run in crashed:
        tries = sum(1 for tag in run["tags"] if tag.startswith("again-"))
        if tries >= TRIES or run["deployment_id"] is None:
            continue
        tags = [tag for tag in run["tags"] if tag.startswith("again-")] + [f"again-{tries + 1}"]
        body = {"state": {"type": "SCHEDULED"}, "idempotency_key": f"again:{run['id']}", "tags": tags,
                "parameters": run.get("parameters") or {}}  # fmt: skip
        made = prefect_call(settings, "POST", f"/deployments/{run['deployment_id']}/create_flow_run", body)
        asked.append(str(made["id"]))
    return asked


def _runs(settings: Settings, flows: tuple[str, ...], wanted: dict[str, Any]) -> list[dict[str, Any]]:
    body = {"flows": {"name": {"any_": list(flows)}}, "flow_runs": wanted, "limit": 200}
    return list(prefect_call(settings, "POST", "/flow_runs/filter", body))
