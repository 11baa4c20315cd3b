"""Fixtures that more than one room needs. One server of each kind a session; everything lives in temporary folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from truing.infra import settings as settings_module
from truing.infra.keys import Keyring
from truing.tasks.policy import Policy, load_policy
from truing.tasks.problem import Problem, load_problem

ROOT = Path(__file__).resolve().parent.parent
settings_module.quiet()


@pytest.fixture(scope="session")
def problem() -> Problem:
    return load_problem(ROOT / "problems" / "adult")


@pytest.fixture(scope="session")
def policy(problem: Problem) -> Policy:
    return load_policy(ROOT / "problems" / "adult", problem)


@pytest.fixture(scope="session")
def keyring(tmp_path_factory: pytest.TempPathFactory, problem: Problem) -> Keyring:
    ring = Keyring(tmp_path_factory.mktemp("keys"))
    ring.create([f"{problem.name}.{source}" for source in problem.sources])
    return ring


@pytest.fixture(scope="session")
def adult() -> list[dict[str, Any]]:
    from truing.flows.demo.adult import read_adult

    return read_adult()
