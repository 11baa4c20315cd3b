"""Improve: landed rows → a registered candidate, or "nothing new". Ends there: judging and releasing are the steward's.

Asked to repair a blocked version it does that instead, and registers what comes of it in the same way.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)


@flow(name="improve", flow_run_name="improve {problem}", persist_result=False, retries=1, retry_delay_seconds=10)
def improve(problem: str, repair: str | None = None) -> dict[str, Any]:
    """One turn of learning. `learn` knows what was learned already, so a trigger with nothing new ends at once.

    With `repair`, the number of a blocked version, that one is repaired, once; a version that can't be is told and left.
    """
    from truing.flows.loop import Study, learn
    from truing.flows.repair import mend
    from truing.infra.catalog import chosen
    from truing.infra.logins import registry_as
    from truing.infra.settings import current
    from truing.tasks.errors import Refused
    from truing.tasks.records import Trial
    from truing.tasks.tables.lake import Lake

    settings, log = current(), get_run_logger()
    spec, policy = chosen(settings.problems, problem)
    lake = Lake(settings.lake)
    registry = registry_as(settings, "trainer")
    if repair is not None:
        try:
            made = mend(lake, registry, spec, policy, repair, now=time.time(), progress=Shown(problem, 4, log))
        except Refused as refused:
            log.info("v%s is not repaired: %s", repair, refused)
            return {"candidate": None, "repairs": repair, "reason": str(refused)}
        if made is None:
            log.info("no correction makes v%s better", repair)
            return {"candidate": None, "repairs": repair, "reason": "no correction does better"}
        _show(problem, made, [])
        return {"candidate": made.payload, "repairs": repair, "origin": made.origin, "note": made.note}
    given = settings.learning
    study = Study(trials=given.trials, threads=given.threads, seed=given.seed, storage=settings.data / "studies")
    tried = len(lake.records("trials", Trial, problem=problem))

    candidate = learn(
        lake, registry, spec, policy, folder=settings.problems / problem,
        study=study, now=time.time(), progress=Shown(problem, given.trials + 4, log),
    )  # fmt: skip
    if candidate is None:
        log.info("nothing new")
        return {"candidate": None}
    trials = lake.records("trials", Trial, problem=problem)[tried:]
    _show(problem, candidate, trials)
    log.info("candidate %s: %d rows, %s learner", candidate.payload[:12], candidate.rows, candidate.origin)
    return {"candidate": candidate.payload, "rows": candidate.rows, "origin": candidate.origin}


class Shown:
    """Progress of one turn as a Prefect artifact, at most one update a second (each costs 0.2 s)."""

    def __init__(self, problem: str, steps: int, log: Any) -> None:
        self.problem, self.steps, self.log = problem, steps, log
        self.done = 0
        self.last = 0.0
        self.artifact: UUID | None = None

    def __call__(self, done: int, of: int, what: str) -> None:
        self.log.info("%s", what)
        self.done += 1
        share = 100.0 if what == "registered" else min(99.0, 100.0 * self.done / self.steps)
        at = time.monotonic()
        if self.artifact is None:
            made = create_progress_artifact(share, key=f"improve-{self.problem}", description=f"Learning {self.problem}")
            self.artifact = made if isinstance(made, UUID) else UUID(str(made))
        elif share == 100.0 or at - self.last >= 1.0:
            update_progress_artifact(self.artifact, share, description=what)
        else:
            return
        self.last = at


def _show(problem: str, candidate: Any, trials: list[Any]) -> None:
    lines = [
        {
            "trial": trial.number,
            "Brier (validation)": None if trial.score is None else round(trial.score, 5),
            "state": trial.state,
            "seconds": round(trial.seconds, 1),
            **{name: round(value, 5) for name, value in trial.params.items()},
        }
        for trial in trials
    ]
    if lines:
        create_table_artifact(lines, key=f"trials-{problem}", description=f"The study of {problem}; lower is better")
    text = f"""## Candidate of {problem}

| | |
|---|---|
| payload | `{candidate.payload[:12]}` |
| parent | `{(candidate.parent or "none")[:12]}` |
| learner | {candidate.origin} |
| samples | {candidate.rows} |
| dataset | `{candidate.dataset[:12]}` |

{candidate.note}

The steward judges it next; a person approves."""
    create_markdown_artifact(text, key=f"candidate-{problem}", description="What asks to be released")
