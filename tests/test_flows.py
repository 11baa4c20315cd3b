"""Deployments under a real Prefect server: schedules make runs, requests start them, and nothing can start a release."""

from __future__ import annotations

from typing import Any

import pytest
from waiting import until

from truing.flows.cli.runs import run_now
from truing.flows.serve import deployments
from truing.infra.stack import Stack
from truing.infra.status import prefect_call
from truing.tasks.problem import Problem, seconds


def runs(stack: Stack, flow: str, *states: str) -> list[dict[str, Any]]:
    wanted: dict[str, Any] = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC"}
    if states:
        wanted["flow_runs"] = {"state": {"type": {"any_": list(states)}}}
    return list(prefect_call(stack.settings, "POST", "/flow_runs/filter", wanted))


def test_every_problem_has_its_deployments_and_none_can_release(problem: Problem) -> None:
    found = deployments({problem.name: problem})
    assert {one.full_name for one in found} == {"ingest/all", "curate/adult", "improve/adult", "monitor/adult"}
    for one in found:
        assert one.entrypoint is not None and one.entrypoint.startswith("truing.flows.") and ":" not in one.entrypoint
        assert one.work_pool_name is None
    scheduled = {one.flow_name: one.schedules[0].schedule.interval.total_seconds() for one in found if one.schedules}
    cadence = problem.cadence
    wanted = {"curate": cadence.curate_every, "improve": cadence.improve_every, "monitor": cadence.monitor_every}
    assert scheduled == {flow: seconds(every) for flow, every in wanted.items()}


@pytest.mark.services
def test_an_interval_schedule_really_creates_runs(stack: Stack) -> None:
    """With unfitting versions of fastapi or SQLAlchemy the scheduler silently creates none: this sees it."""
    for flow in ("curate", "improve", "monitor"):
        assert until(lambda flow=flow: runs(stack, flow, "SCHEDULED")), f"no Scheduled run of {flow}"


@pytest.mark.services
def test_a_request_on_the_control_topic_runs_monitor(stack: Stack) -> None:
    assert run_now(stack.settings, "monitor", "adult", patience_s=90)["state"] == "COMPLETED"


@pytest.mark.services
def test_improve_and_curate_with_nothing_new_end_at_once(stack: Stack) -> None:
    for flow in ("curate", "improve"):
        assert run_now(stack.settings, flow, "adult", patience_s=90)["state"] == "COMPLETED"


@pytest.mark.services
def test_no_deployment_of_gate_release_or_rollback_exists(stack: Stack) -> None:
    flows = {flow["id"]: flow["name"] for flow in prefect_call(stack.settings, "POST", "/flows/filter", {})}
    found = {flows[one["flow_id"]] for one in prefect_call(stack.settings, "POST", "/deployments/filter", {})}
    assert found == {"ingest", "curate", "improve", "monitor"}
    assert prefect_call(stack.settings, "POST", "/work_pools/filter", {}) == []
