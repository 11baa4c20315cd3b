"""Fixtures that more than one room needs. One server of each kind a session; everything lives in temporary folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings as drawn
from ports import broker, free_ports

from truing.infra import settings as settings_module
from truing.infra.keys import Keyring
from truing.infra.settings import Settings
from truing.tasks.errors import TruingError
from truing.tasks.policy import Policy, load_policy
from truing.tasks.problem import Problem, load_problem

if TYPE_CHECKING:
    from guarded import World
    from serving import Bench

    from truing.infra.stack import Stack
    from truing.tasks.kinds.model import Model

ROOT = Path(__file__).resolve().parent.parent
settings_module.quiet()
drawn.register_profile("suite", deadline=None, derandomize=True)  # the same cases on every machine, however slow
drawn.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-browser", action="store_true", help="a missing chromium is a failure, not a skip")
    parser.addoption("--pictures", metavar="FOLDER", help="keep screenshots of MLflow's page here (the README's are made so)")


SOAK = {"test_accounts", "test_crashes", "test_fire", "test_kills", "test_releases", "test_survival"}  # whole stacks under fire


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SOAK:
            item.add_marker(pytest.mark.soak)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--require-browser") and not (shutil.which("chromium") or shutil.which("chromium-browser")):
        raise pytest.UsageError("expected chromium on the path, found none; install Debian's package chromium")


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


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The registry behind its guard, once a session. Tests make problems of their own in it and leave it running."""
    from guarded import problems_with_two_eyes, serving

    problems = problems_with_two_eyes(tmp_path_factory.mktemp("problems"))
    with serving(tmp_path_factory.mktemp("registry"), problems=problems) as world:
        yield world


@pytest.fixture(scope="session")
def models(problem: Problem, adult: list[dict[str, Any]]) -> list[Model]:
    """Two small models of the same people that answer differently."""
    from serving import small_models

    return small_models(problem, adult)


@pytest.fixture
def bench(problem: Problem, keyring: Keyring, tmp_path: Path) -> Bench:
    """The gateway's loader over a registry that is a folder."""
    from serving import Bench

    return Bench(problem, keyring, tmp_path)


@pytest.fixture(scope="session")
def settings_in() -> Callable[..., Settings]:
    """Settings for a stack of its own below a folder, on free ports: `settings_in(folder, **more)`."""

    def make(folder: Path, **more: Any) -> Settings:
        gateway, registry, prefect = free_ports(3)
        given = {
            "data": folder / "data",
            "problems": ROOT / "problems",
            "ports": {"gateway": gateway, "registry": registry, "prefect": prefect},
            "kafka": broker(),
            **more,
        }
        return settings_module.load(**given)

    return make


def no_apache() -> str | None:
    """Why Apache Kafka can't be started here, None if it can: it is not ours to install, so TRUING_KAFKA_HOME names one."""
    from truing.infra import apache

    try:
        apache.check(settings_module.load(kafka={"broker": "kafka"}))
    except TruingError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def on_apache(settings_in: Callable[..., Settings]) -> Callable[..., Settings]:
    """`settings_in` with an Apache Kafka that is started here."""
    reason = no_apache()
    if reason:
        pytest.skip(reason)

    def make(folder: Path, **more: Any) -> Settings:
        port, controller = free_ports(2)
        kafka = {"broker": "kafka", "bootstrap": f"127.0.0.1:{port}", "controller": controller}
        return settings_in(folder, kafka=kafka, **more)

    return make


@pytest.fixture(params=["embedded", "kafka"])
def on_each_broker(request: pytest.FixtureRequest, settings_in: Callable[..., Settings]) -> Callable[..., Settings]:
    """`settings_in`, once with each broker that `truing up` starts."""
    if request.param == "kafka":
        made: Callable[..., Settings] = request.getfixturevalue("on_apache")
        return made

    def make(folder: Path, **more: Any) -> Settings:
        kafka = {"broker": "embedded", "bootstrap": f"127.0.0.1:{free_ports(1)[0]}"}
        return settings_in(folder, kafka=kafka, **more)

    return make


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, settings_in: Callable[..., Settings]) -> Iterator[Stack]:
    """The whole stack, healthy, once a session; ended with it. Tests may use it and must leave it running."""
    from truing.infra.stack import Stack

    whole = Stack(settings_in(tmp_path_factory.mktemp("stack")))
    whole.up(lambda part, text: print(f"{part}: {text}"))
    try:
        yield whole
    finally:
        whole.down()
