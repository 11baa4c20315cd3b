"""The runner: one process that registers the deployments of every problem and runs what is due or asked for.

No deployment of the gate, of a release or of a rollback exists here or anywhere: those are the steward's acts. Flows are found
by module path, so a run imports the installed package and never a file that happens to lie in the working folder; results
are JSON, never pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from truing.flows.aftermath import repeat, settle
from truing.infra import settings as settings_module
from truing.infra.catalog import catalog
from truing.infra.heartbeat import beat
from truing.infra.settings import Settings
from truing.infra.workflow import log_in
from truing.tasks.errors import TruingError
from truing.tasks.problem import Problem, seconds

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

AT_ONCE = 2  # flow runs of this runner; each deployment runs one at a time
BEAT_EVERY_S = 3.0
PREFECT_PATIENCE_S = 180.0


def deployments(problems: dict[str, Problem]) -> list[RunnerDeployment]:
    """`curate/<problem>`, `improve/<problem>` and `monitor/<problem>` with their schedules, and `ingest/all` without one.

    Schedules that fall due while a run is on are dropped for curate and monitor (the next one sees the same), and wait for
    improve, which ends at once when there is nothing new. The keeper creates its own runs of ingest.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import EntrypointType

    from truing.flows.curate import curate
    from truing.flows.improve import improve
    from truing.flows.ingest import ingest
    from truing.flows.monitor import monitor

    drop = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    wait = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    by_module: dict[str, Any] = {"entrypoint_type": EntrypointType.MODULE_PATH}
    found = [ingest.to_deployment("all", tags=["truing"], **by_module)]
    for name, problem in problems.items():
        cadence = problem.cadence
        for flow, every, limit in (
            (curate, cadence.curate_every, drop),
            (improve, cadence.improve_every, wait),
            (monitor, cadence.monitor_every, drop),
        ):
            found.append(
                flow.to_deployment(
                    name,
                    interval=seconds(every),
                    parameters={"problem": name},
                    tags=["truing", name],
                    concurrency_limit=limit,
                    **by_module,
                )
            )
    return found


async def serve(settings: Settings, wanted: list[RunnerDeployment]) -> None:
    """Register `wanted` and run until SIGTERM. Waits for Prefect first; later the runner itself waits for it."""
    from prefect.runner import Runner

    await _prefect(settings)
    runner = Runner(name="truing", limit=AT_ONCE, pause_on_shutdown=False)
    for deployment in wanted:
        await runner.aadd_deployment(deployment)
    for name in await asyncio.to_thread(settle, settings):
        sys.stderr.write(f"runner: {name} was left open by a process that is gone; now Crashed\n")
    beating = asyncio.create_task(_beat(settings, [deployment.full_name for deployment in wanted]))
    try:
        await runner.start()
    finally:
        beating.cancel()


async def _beat(settings: Settings, names: list[str]) -> None:
    while True:
        beat(settings, "runner", now=time.time(), deployments=names)
        with contextlib.suppress(TruingError):  # Prefect is away: what crashed is asked for later
            await asyncio.to_thread(repeat, settings, now=time.time())
        await asyncio.sleep(BEAT_EVERY_S)


async def _prefect(settings: Settings) -> None:
    from truing.infra.calls import call

    end = time.monotonic() + PREFECT_PATIENCE_S
    while True:
        try:
            await asyncio.to_thread(call, "GET", f"{settings.prefect_url}/health", timeout=2.0, ca=settings.tls.ca)
            return
        except TruingError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.2)


def main() -> int:
    settings_module.quiet()
    settings = settings_module.current()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        log_in(settings)
        # made before the loop runs: inside one, `to_deployment` gives a coroutine
        wanted = deployments({name: problem for name, (problem, _) in catalog(settings.problems).items()})
        asyncio.run(serve(settings, wanted))
    except TruingError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
