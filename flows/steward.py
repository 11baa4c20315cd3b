"""The steward: the warm process that judges, releases and rolls back. It alone holds the gate and release keys.

It looks at the registry every `settings.steward.poll_s`, does what is due and records each act as a Prefect run that it creates
itself; no deployment for them exists, so nobody can start a release from a work pool. When Prefect is away it acts all the same.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from truing.flows import loop
from truing.infra import settings as settings_module
from truing.infra.heartbeat import beat
from truing.infra.keys import Keyring
from truing.tasks import seal
from truing.tasks.errors import DataError, Refused, TruingError, Unavailable
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Cause, Outcome, Refusal, Release, Verdict

if TYPE_CHECKING:
    from truing.infra.settings import Settings
    from truing.tasks.events.lake import Lake, Vault
    from truing.tasks.release.registry import Registry, Version


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What the steward works with."""

    settings: Settings
    problems: dict[str, tuple[Problem, Policy]]
    lake: Lake
    vault: Vault
    registry: Registry
    offices: loop.Offices
    announce: Callable[[dict[str, Any]], None]


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} steward: {text}", file=sys.stderr, flush=True)  # noqa: T201 - supervisord keeps it


def turn(desk: Desk, *, said: set[str]) -> int:
    """One look at the registry; returns how many acts were done. `said` keeps refusals from being logged each time."""
    acts = 0
    for problem, policy in desk.problems.values():
        name = problem.name
        model = desk.registry.model(name)
        if model is None:
            continue
        if model.policy_proposed != policy.digest:
            desk.registry.propose_policy(name, policy)
            acts += 1
        versions = desk.registry.versions(name)
        serving = next((known for known in versions if known.version == model.champion), None)
        for version in versions:
            due = undecided(version, serving, policy)
            if due:
                acts += attempt(
                    desk, "gate", problem, version.version, lambda v=version: judged(desk, problem, policy, v), said
                )
        if model.frozen:
            continue
        for version in waiting(desk, problem, versions, serving):
            cause = Cause.GENESIS if serving is None else Cause.PROMOTE
            acts += attempt(
                desk, "release", problem, version.version, lambda v=version, c=cause: released(desk, problem, v, c), said
            )  # fmt: skip
            break  # one at a time: the next one's verdict is stale now
        if model.rollback_to is not None:
            acts += attempt(desk, "rollback", problem, model.rollback_to, lambda m=model: rolled_back(desk, problem, m), said)
    return acts


def undecided(version: Version, serving: Version | None, policy: Policy) -> bool:
    """No verdict yet, or one that another release or policy has made stale while nobody has blocked or rejected it."""
    if version.verdict is None:
        return version.candidate is not None
    if version.outcome is Outcome.BLOCK or version.approval == "rejected" or version.release is not None:
        return False
    stale = serving is not None and version.verdict_champion != serving.payload and int(version.version) > int(serving.version)
    changed = version.verdict_policy != policy.digest
    return (stale or changed) and version.looks < 20


def waiting(desk: Desk, problem: Problem, versions: list[Version], serving: Version | None) -> list[Version]:
    """Approved versions that no release stands for yet, oldest approval first."""
    done = {release.approval for release in desk.lake.records("releases", Release, problem=problem.name)}
    due = [
        version
        for version in versions
        if version.approval == "approved" and version.approval_digest is not None and version.approval_digest not in done
    ]
    return sorted(due, key=lambda version: version.approved_at or 0.0)


def attempt(desk: Desk, act: str, problem: Problem, version: str, do: Callable[[], str | None], said: set[str]) -> int:
    """Do one act as a Prefect run; a refusal or an absent part is logged once and tried again at the next turn."""
    try:
        told = as_run(desk, act, problem.name, version, do)
    except (Refused, Unavailable, DataError) as error:
        word = f"{act} {problem.name} v{version}: {error}"
        if word not in said:
            said.add(word)
            log(word)
        return 0
    if told is None:
        return 0
    log(f"{act} {problem.name} v{version}: {told}")
    return 1


def judged(desk: Desk, problem: Problem, policy: Policy, version: Version) -> str:
    verdict: Verdict = loop.decide(
        desk.vault, desk.lake, desk.registry, problem, policy, version,
        offices=desk.offices, now=time.time(), timer=time.perf_counter,
    )  # fmt: skip
    desk.announce(
        {"type": "model.ready", "problem": problem.name, "version": version.version, "outcome": str(verdict.outcome),
         "reason": verdict.reason}
    )  # fmt: skip
    return f"{verdict.outcome}: {verdict.reason}"


def released(desk: Desk, problem: Problem, version: Version, cause: Cause) -> str:
    return _release(desk, problem, version, cause, version.approval_reason or "")


def rolled_back(desk: Desk, problem: Problem, model: Any) -> str | None:
    """Serve an old payload again as a new release; a request that was carried out is not carried out twice."""
    done = desk.lake.records("releases", Release, problem=problem.name)
    request = model.rollback_request
    if any(release.cause is Cause.ROLLBACK and release.approval == request for release in done):
        return None
    version = next(known for known in desk.registry.versions(problem.name) if known.version == model.rollback_to)
    return _release(desk, problem, version, Cause.ROLLBACK, model.rollback_reason or "")


def _release(desk: Desk, problem: Problem, version: Version, cause: Cause, reason: str) -> str:
    statement = loop.release(
        desk.lake, desk.registry, problem, version,
        cause=cause, reason=reason, environment=desk.settings.environment, offices=desk.offices, now=time.time(),
    )  # fmt: skip
    if isinstance(statement, Refusal):
        raise Refused(statement)
    kind = "model.rolled-back" if cause is Cause.ROLLBACK else "model.released"
    desk.announce(
        {"type": kind, "problem": problem.name, "version": statement.version, "sequence": statement.sequence,
         "payload": statement.payload}
    )  # fmt: skip
    return f"release {statement.sequence} ({statement.cause})"


# --- runs in Prefect ----------------------------------------------------------------------------------------------------------


def as_run(desk: Desk, act: str, problem: str, version: str, do: Callable[[], str | None]) -> str | None:
    """`do` as a Prefect run named after the act, or plainly while Prefect does not answer. `do` runs once at most."""
    if not prefect_answers(desk.settings.prefect_url):
        return do()
    from prefect import flow
    from prefect.artifacts import create_markdown_artifact

    begun = False
    refused: list[TruingError] = []

    @flow(name=act, flow_run_name=f"{act} {problem} v{version}", validate_parameters=False, persist_result=False, retries=0)
    def run(problem: str, version: str) -> str | None:
        nonlocal begun
        begun = True
        told = do()
        create_markdown_artifact(f"**{act} {problem} v{version}**\n\n{told}", key=f"{act}-{problem}-v{version}")
        return told

    try:
        result: str | None = run(problem, version)
        return result
    except TruingError:
        raise
    except Exception as error:  # noqa: BLE001 - Prefect raises many kinds when its server goes away; the act must not wait for it
        if begun:
            raise Unavailable(f"Prefect went away during {act} ({type(error).__name__}: {error}); looking again") from None
        del refused
        return do()


def prefect_answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/health", timeout=1.0).is_success
    except httpx.HTTPError:
        return False


# --- process ------------------------------------------------------------------------------------------------------------------


def open_desk(settings: Settings) -> Desk:
    from truing.infra.catalog import catalog
    from truing.tasks.events.lake import Lake, Vault
    from truing.tasks.events.stream import announcer
    from truing.tasks.release.registry import Registry

    ring = Keyring(settings.keys)
    return Desk(
        settings=settings,
        problems=catalog(settings.problems),
        lake=Lake(settings.lake),
        vault=Vault(settings.vault),
        registry=Registry(settings.registry_url, "steward", ring.password("steward")),
        offices=loop.Offices(gate=ring.read("gate"), release=ring.read("release"), public=ring.public()),
        announce=announcer(settings.kafka),
    )


def warm() -> None:
    """Import now what a verdict needs, so that the first one does not wait for it."""
    import truing.tasks.evaluation.comparison
    import truing.tasks.evaluation.gate
    import truing.tasks.evaluation.report
    import truing.tasks.kinds.model  # noqa: F401


def main() -> int:
    settings_module.quiet()
    settings = settings_module.current()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    desk = open_desk(settings)
    warm()
    said: set[str] = set()
    away = False
    beaten = 0.0
    log(f"watching {', '.join(desk.problems)} at {settings.registry_url}")
    while not stop.is_set():
        try:
            acts = turn(desk, said=said)
            away = False
        except Unavailable as error:
            acts = 0
            if not away:
                log(str(error))
            away = True
        if time.time() - beaten > 2.0:
            beaten = time.time()
            beat(settings, "steward", now=beaten)
        if not acts:
            stop.wait(settings.steward.poll_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
