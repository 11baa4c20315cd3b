"""The house stands as drawn: imports go up only, light rooms stay light, and nothing speaks pickle."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    {"records", "errors"},
    {"contract", "flush", "problem", "policy", "plugins", "seal"},
    {"statistics"},
    {"kinds"},
    {"tables"},
    {"validation"},
    {"events"},
    {"selection"},
    {"learning"},
    {"evaluation"},
    {"release"},
    {"monitoring"},
]
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}


def modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.add("RELATIVE")
    return names


def at_import(path: Path) -> set[str]:
    """Top-level packages imported when the module is, outside functions and type-checking blocks."""
    found: set[str] = set()

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.If):
                if "TYPE_CHECKING" not in ast.dump(node.test):
                    visit(node.body)
                visit(node.orelse)
            elif isinstance(node, ast.Try):
                visit(node.body)

    visit(ast.parse(path.read_text()).body)
    return found


@pytest.mark.parametrize("path", modules("tasks"), ids=lambda p: str(p.relative_to(ROOT)))
def test_tasks_import_only_rooms_below_them(path: Path) -> None:
    room = path.relative_to(ROOT / "tasks").parts[0].removesuffix(".py")
    for name in imported(path):
        assert name != "RELATIVE", f"{path}: relative import"
        parts = name.split(".")
        assert parts[0] != "prefect", f"{path} imports prefect"
        if parts[0] != "truing":
            continue
        assert parts[1:2] != ["flows"] and parts[1:2] != ["infra"], f"{path} imports {name}"
        if len(parts) > 2 and parts[1] == "tasks" and parts[2] in FLOOR and room in FLOOR:
            assert FLOOR[parts[2]] <= FLOOR[room], f"{path} ({room}) imports {name}, which is downstream of it"


@pytest.mark.parametrize("path", modules("infra"), ids=lambda p: str(p.relative_to(ROOT)))
def test_infra_imports_no_flows_but_by_name(path: Path) -> None:
    assert not any(name.startswith("truing.flows") for name in imported(path)), f"{path} imports flows"


def test_only_settings_reads_the_environment() -> None:
    allowed = {"infra/settings.py", "infra/registry_guard/environment.py", "infra/workflow.py"}  # the others set, for a library
    readers = {
        str(path.relative_to(ROOT))
        for package in ("tasks", "flows", "infra")
        for path in modules(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    assert readers <= allowed, f"{sorted(readers - allowed)} read the environment; only {sorted(allowed)} may"


def test_no_hidden_clock_in_tasks() -> None:
    """Times are passed in as `now`; `time.perf_counter` may be passed in as a function, never called here."""
    for path in modules("tasks"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                called = f"{node.func.value.id}.{node.func.attr}"
                assert called not in ("time.time", "datetime.now", "datetime.utcnow", "random.random"), f"{path}: {called}"


def test_nothing_speaks_pickle() -> None:
    for package in ("tasks", "flows", "infra"):
        for path in modules(package):
            assert not at_import(path) & {"pickle", "cloudpickle", "joblib", "dill"}, path
            assert "import pickle" not in path.read_text(), path


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("truing.tasks.records", {"numpy", "polars", "torch", "mlflow", "prefect", "pydantic"}),
        ("truing.tasks.seal", {"numpy", "polars", "torch", "mlflow", "prefect", "pydantic"}),
        ("truing.tasks.kinds.model", {"polars", "torch", "mlflow", "prefect", "sklearn", "pandas"}),
        (
            "truing.client",
            {
                *("numpy", "polars", "torch", "mlflow", "prefect", "pandas", "deltalake", "pyarrow", "pydantic"),
                *("httpx", "kafka", "cryptography", "fastavro", "ssl"),
            },
        ),
        ("truing.infra.gateway.app", {"torch", "mlflow", "prefect", "pandas", "sklearn"}),
        ("truing.flows.cli.main", {"torch", "mlflow", "prefect", "pandas", "sklearn"}),
        ("truing.flows.improve", {"torch", "mlflow", "sklearn"}),
        ("truing.flows.monitor", {"torch", "mlflow", "sklearn"}),
        ("truing.flows.curate", {"torch", "mlflow", "sklearn", "great_expectations"}),
    ],
)
def test_light_rooms_stay_light(module: str, banned: set[str]) -> None:
    code = f"import sys, {module}; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & banned, f"{module} pulls in {sorted(loaded & banned)}"
