"""One turn of learning with the trainer's login: what `flows/improve.py` does, without Prefect around it.

python tests/crash/learn.py PROBLEM     as a process of its own; prints the payload of the candidate, or `nothing new`
"""

from __future__ import annotations

import sys
import time

from truing.flows.loop import Study, learn
from truing.infra.catalog import chosen
from truing.infra.keys import keyring
from truing.infra.settings import Settings, current, quiet
from truing.tasks.release.registry import Registry
from truing.tasks.tables.lake import Lake


def turn(settings: Settings, name: str) -> str | None:
    """The payload of the candidate that this turn registered, None when there was nothing new to learn."""
    problem, policy = chosen(settings.problems, name)
    candidate = learn(
        Lake(settings.lake),
        Registry(settings.registry_url, "trainer", keyring(settings).password("trainer")),
        problem,
        policy,
        folder=settings.problems / name,
        study=Study(trials=1, threads=2, seed=7, storage=settings.data / "studies"),
        now=time.time(),
    )
    return candidate.payload if candidate else None


if __name__ == "__main__":
    quiet()
    print(turn(current(), sys.argv[1]) or "nothing new")
