"""An act of the steward as a Prefect run that it creates itself: seen in Prefect, and never started from there."""

from __future__ import annotations

from collections.abc import Callable

from truing.infra.calls import call
from truing.infra.settings import Settings
from truing.tasks.errors import TruingError, Unavailable

ODD = (TruingError, ArithmeticError, LookupError, TypeError, ValueError)  # what bytes and rows written by others may lead to


def as_run(settings: Settings, act: str, problem: str, version: str, do: Callable[[], str]) -> str:
    """`do` as a Prefect run named after the act, or plainly while Prefect does not answer. `do` runs once at most."""
    if not prefect_answers(settings):
        return do()
    from prefect import flow
    from prefect.artifacts import create_markdown_artifact

    begun = False
    raised: Exception | None = None

    @flow(name=act, flow_run_name=f"{act} {problem} v{version}", validate_parameters=False, persist_result=False, retries=0)
    def run(problem: str, version: str) -> str:
        nonlocal begun, raised
        begun = True
        try:
            told = do()
        except ODD as error:
            raised = error
            raise
        create_markdown_artifact(f"**{act} {problem} v{version}**\n\n{told}", key=f"{act}-{problem}-v{version}")
        return told

    try:
        return str(run(problem, version))
    except Exception as error:  # noqa: BLE001 - Prefect raises many kinds when its server goes away; the act must not wait for it
        if raised is not None:
            raise raised from None
        if begun:
            raise Unavailable(f"Prefect went away during {act} ({type(error).__name__}: {error}); looking again") from None
        return do()


def prefect_answers(settings: Settings) -> bool:
    try:
        call("GET", f"{settings.prefect_url}/health", timeout=1.0, ca=settings.tls.ca)
    except TruingError:
        return False
    return True
