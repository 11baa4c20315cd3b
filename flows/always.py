"""The process that keeps ingest on: the keeper's loops, and beside them one Prefect run after another that shows them.

    python -m truing.flows.always [NUMBER]        keeper NUMBER of `ingest.keepers`, else 0

Intake never waits for Prefect: segments run on a thread of their own, and while no server answers there are none. SIGTERM
finishes the commit in flight, ends the run and exits 0.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from truing.flows.errands import prefect
from truing.flows.keeper import Keeper
from truing.infra import settings as settings_module
from truing.infra.broker import quiet_client
from truing.infra.keepers import part
from truing.infra.settings import Settings
from truing.infra.status import prefect_call
from truing.infra.workflow import log_in
from truing.tasks.errors import Refused, TruingError, Unavailable, UsageError

AGAIN_S = 2.0  # before Prefect is asked again
LAST_S = 6.0  # how long the last run may take to end after the keeper has


def log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} ingest: {text}\n")
    sys.stderr.flush()


def tag(number: int) -> str:
    """By which the runs of one keeper are known in Prefect."""
    return part(number).replace("ingest", "keeper")


def begin(settings: Settings, number: int = 0) -> dict[str, Any]:
    """A new run of `ingest/all` for this keeper, as Prefect's JSON. Runs that an earlier one left behind become Crashed.

    The run is Pending from the start: a runner only takes Scheduled ones. Raises Unavailable.
    """
    left = {"flow_runs": {"tags": {"all_": [tag(number)]}, "state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}}}}
    for run in prefect_call(settings, "POST", "/flow_runs/filter", left):
        state = {"type": "CRASHED", "name": "Crashed", "message": "its keeper is gone"}
        prefect_call(settings, "POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
    found = prefect_call(settings, "GET", "/deployments/name/ingest/all", missing=True)
    if found is None:
        raise Unavailable("expected the deployment ingest/all in Prefect, found none; is the runner up?")
    wanted = {"state": {"type": "PENDING"}, "name": time.strftime("segment %d %b %H:%M:%S"), "tags": [tag(number)]}
    made: dict[str, Any] = prefect_call(settings, "POST", f"/deployments/{found['id']}/create_flow_run", wanted)
    return made


def segments(keeper: Keeper) -> None:
    """One run after another while the keeper lives."""
    said = ""
    while not keeper.stop.is_set():
        try:
            made = begin(keeper.settings, keeper.number or 0)
            if said:
                said = ""
                log("Prefect answers again")
            segment(keeper, made)
        except (Unavailable, Refused) as error:
            if str(error) != said:
                said = str(error)
                log(f"{said}; ingest goes on without it")
            keeper.stop.wait(AGAIN_S)


def segment(keeper: Keeper, made: dict[str, Any]) -> None:
    """Run the flow for that run, on this thread. Raises Unavailable when Prefect goes away in its course."""
    import httpx
    from prefect.client.schemas.objects import FlowRun
    from prefect.exceptions import PrefectException
    from prefect.flow_engine import run_flow
    from prefect.settings import get_current_settings

    from truing.flows.ingest import attach, ingest

    if get_current_settings().api.url is None:  # else the client would start a server of its own
        raise Unavailable(
            f"expected PREFECT_API_URL={keeper.settings.prefect_url} in the environment, got none; use `truing up`"
        )
    attach(keeper)
    logging.getLogger("prefect.FlowRunSuspendingObserver").setLevel(logging.CRITICAL)  # a traceback a second while it is away
    try:
        run_flow(ingest, flow_run=FlowRun.model_validate(made), parameters={})
    except (PrefectException, httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise Unavailable(
            f"a run of ingest ended early: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from None


def numbered(arguments: Sequence[str]) -> int:
    """The keeper's number. Raises UsageError."""
    if len(arguments) > 1 or not all(one.isascii() and one.isdigit() for one in arguments):
        raise UsageError(f"expected a keeper's number, got {' '.join(arguments)}; 0 is the first")
    return int(arguments[0]) if arguments else 0


def main() -> int:
    settings_module.quiet()
    quiet_client()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        number = numbered(sys.argv[1:])
        settings = settings_module.current()
        log_in(settings)
        keeper = Keeper(settings, start=prefect(settings), log=log, number=number)
    except TruingError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: keeper.stop.set())
    witness = threading.Thread(target=segments, args=(keeper,), name="segments", daemon=True)
    witness.start()
    log(f"keeping {', '.join(keeper.problems)}: {settings.kafka.topic} at {settings.kafka.bootstrap} into {settings.data}")
    try:
        keeper.run()
        code = 0
    except TruingError as error:
        log(str(error))
        code = error.exit_code
    log("all that was read has landed")
    witness.join(LAST_S)
    hard = threading.Timer(LAST_S, os._exit, (code,))  # Prefect's own threads may wait for a server that is gone
    hard.daemon = True
    hard.start()
    if witness.is_alive():
        os._exit(code)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
