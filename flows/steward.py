"""The steward: the warm process that judges, releases and rolls back. It alone holds the gate and release keys.

It looks at the registry every `settings.steward.poll_s`, does what is due and records each act as a Prefect run that it
creates itself; no deployment for them exists, so nobody can start a release from a work pool. When Prefect is away it acts all
the same.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from truing.flows import loop
from truing.infra import settings as settings_module
from truing.infra.heartbeat import beat
from truing.infra.keys import keyring
from truing.infra.workflow import log_in
from truing.tasks import seal
from truing.tasks.errors import DataError, Refused, TruingError, Unavailable
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Approval, Cause, Outcome, Refusal, Release, Verdict

if TYPE_CHECKING:
    from truing.infra.settings import Settings
    from truing.tasks.events.lake import Lake, Vault
    from truing.tasks.release.registry import Registry
    from truing.tasks.release.versions import Model, Rollback, Version


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What the steward works with."""

    settings: Settings
    problems: dict[str, tuple[Problem, Policy]]
    lake: Lake
    vault: Vault
    registry: Registry
    offices: loop.Offices
    announce: Callable[[dict[str, Any]], str]


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} steward: {text}", file=sys.stderr, flush=True)  # noqa: T201 - supervisord keeps it


def turn(desk: Desk, *, said: set[str]) -> int:
    """One look at the registry; returns how many acts were done. `said` keeps refusals from being logged each time."""
    acts = 0
    for problem, policy in desk.problems.values():
        versions = desk.registry.versions(problem.name)
        if not versions:
            continue
        model = desk.registry.model(problem.name)
        if model.tags.get("policy.proposed") != policy.digest:
            desk.registry.propose_policy(problem.name, policy.digest)
            acts += 1
        for act, version, do in due(desk, problem, policy, model, versions):
            acts += attempt(desk, act, problem, version, do, said)
    return acts


def due(
    desk: Desk, problem: Problem, policy: Policy, model: Model, versions: list[Version]
) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """What has to be done now, as (act, version, what does it): verdicts, then one release, then one rollback."""
    serving = next((known for known in versions if known.version == model.champion), None)
    for version in versions:
        if undecided(version, serving, policy, desk.offices.public):
            yield "gate", version.version, partial(judged, desk, problem, policy, version)
    if model.frozen:
        return
    finished = desk.lake.records("releases", Release, problem=problem.name)
    approved = waiting(versions, finished, desk.offices.public)
    if approved:  # one at a time: when it serves, the next one's verdict is stale
        yield "release", approved[0].version, partial(released, desk, problem, approved[0].version)
    asked = model.rollback
    if asked is not None and not any(
        one.cause is Cause.ROLLBACK and one.version == asked.version and one.at >= asked.at for one in finished
    ):
        yield "rollback", asked.version, partial(released, desk, problem, asked.version, asked)


def undecided(version: Version, serving: Version | None, policy: Policy, keys: seal.Keys) -> bool:
    """No verdict that counts yet; or one that another release or another policy has overtaken while it was still open."""
    if version.candidate is None:
        return False
    verdict = seal.open_envelope(version.verdict, Verdict, seal.VERDICT_TYPE, keys.gate)
    if isinstance(verdict, Refusal):
        return True
    if verdict.outcome is Outcome.BLOCK or version.approval in ("rejected", "revoked") or version.release is not None:
        return False
    newer = serving is None or version.number > serving.number
    overtaken = serving is not None and verdict.champion != serving.payload
    return newer and (overtaken or verdict.policy != policy.digest)


def waiting(versions: list[Version], finished: list[Release], keys: seal.Keys) -> list[Version]:
    """Approved versions that no finished release stands for yet, oldest approval first."""
    done = {release.approval for release in finished}
    found = []
    for version in versions:
        approval = seal.open_envelope(version.stamp, Approval, seal.APPROVAL_TYPE, keys.registry) if version.stamp else None
        if isinstance(approval, Approval) and approval.decision == "approved" and seal.digest(approval) not in done:
            found.append((approval.at, version.number, version))
    return [version for _, _, version in sorted(found, key=lambda each: each[:2])]


def attempt(desk: Desk, act: str, problem: Problem, version: str, do: Callable[[], str], said: set[str]) -> int:
    """Do one act as a Prefect run; a refusal or an absent part is logged once and tried again at the next turn."""
    try:
        told = as_run(desk.settings, act, problem.name, version, do)
    except (Refused, Unavailable, DataError) as error:
        word = f"{act} {problem.name} v{version}: {error}"
        if word not in said:
            said.add(word)
            log(word)
        return 0
    log(f"{act} {problem.name} v{version}: {told}")
    return 1


def judged(desk: Desk, problem: Problem, policy: Policy, version: Version) -> str:
    verdict = loop.decide(
        desk.vault, desk.lake, desk.registry, problem, policy, version,
        offices=desk.offices, ledger=desk.settings.desk / "looks" / f"{problem.name}.jsonl", now=time.time(),
        timer=time.perf_counter,
    )  # fmt: skip
    desk.announce(
        {"type": "model.ready", "problem": problem.name, "version": version.version, "outcome": str(verdict.outcome),
         "reason": verdict.reason}
    )  # fmt: skip
    return f"{verdict.outcome}: {verdict.reason}"


def released(desk: Desk, problem: Problem, version: str, asked: Rollback | None = None) -> str:
    """Release an approved version, or with `asked` serve an earlier one again."""
    statement = loop.release(
        desk.lake, desk.registry, problem, version,
        asked=asked, environment=desk.settings.environment, offices=desk.offices, now=time.time(),
    )  # fmt: skip
    if isinstance(statement, Refusal):
        raise Refused(statement)
    kind = "model.rolled-back" if statement.cause is Cause.ROLLBACK else "model.released"
    desk.announce(
        {"type": kind, "problem": problem.name, "version": statement.version, "sequence": statement.sequence,
         "payload": statement.payload}
    )  # fmt: skip
    return f"release {statement.sequence} ({statement.cause})"


# --- runs in Prefect ----------------------------------------------------------------------------------------------------------


def as_run(settings: Settings, act: str, problem: str, version: str, do: Callable[[], str]) -> str:
    """`do` as a Prefect run named after the act, or plainly while Prefect does not answer. `do` runs once at most."""
    if not prefect_answers(settings.prefect_url):
        return do()
    from prefect import flow
    from prefect.artifacts import create_markdown_artifact

    begun = False

    @flow(name=act, flow_run_name=f"{act} {problem} v{version}", validate_parameters=False, persist_result=False, retries=0)
    def run(problem: str, version: str) -> str:
        nonlocal begun
        begun = True
        told = do()
        create_markdown_artifact(f"**{act} {problem} v{version}**\n\n{told}", key=f"{act}-{problem}-v{version}")
        return told

    try:
        return str(run(problem, version))
    except TruingError:
        raise
    except Exception as error:  # noqa: BLE001 - Prefect raises many kinds when its server goes away; the act must not wait for it
        if begun:
            raise Unavailable(f"Prefect went away during {act} ({type(error).__name__}: {error}); looking again") from None
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
    from truing.infra.control import announcer
    from truing.tasks.events.lake import Lake, Vault
    from truing.tasks.release.registry import Registry

    ring = keyring(settings)
    return Desk(
        settings=settings,
        problems=catalog(settings.problems),
        lake=Lake(settings.lake),
        vault=Vault(settings.vault),
        registry=Registry(settings.registry_url, "steward", ring.password("steward")),
        offices=loop.Offices(gate=ring.read("gate"), release=ring.read("release"), public=ring.public()),
        announce=announcer(settings),
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
    log_in(settings)
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
