"""One turn of learning as a plain process with the trainer's login: what `flows/improve.py` does, without Prefect around it.

python tests/crash/learn.py PROBLEM     prints the payload of the candidate, or `nothing new`
"""

from __future__ import annotations

import sys
import time

from truing.flows.loop import Study, learn
from truing.infra.catalog import chosen
from truing.infra.keys import keyring
from truing.infra.settings import current, quiet
from truing.tasks.events.lake import Lake
from truing.tasks.release.registry import Registry

quiet()
settings = current()
problem, policy = chosen(settings.problems, sys.argv[1])
candidate = learn(
    Lake(settings.lake),
    Registry(settings.registry_url, "trainer", keyring(settings).password("trainer")),
    problem,
    policy,
    folder=settings.problems / problem.name,
    study=Study(trials=1, threads=2, seed=7, storage=settings.data / "studies"),
    now=time.time(),
)
print(candidate.payload if candidate else "nothing new")
