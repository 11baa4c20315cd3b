"""The command line: one line per error, the right exit code, results on stdout only."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from truing.flows.cli.main import main
from truing.infra.keys import Keyring
from truing.infra.stack import Stack
from truing.tasks.errors import DataError
from truing.tasks.release.registry import Registry

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], settings_in: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run("send", …)` → (exit code, stdout, stderr) with a data folder of its own and free ports."""
    settings = settings_in(tmp_path)
    monkeypatch.setenv("TRUING_KAFKA__BOOTSTRAP", settings.kafka.bootstrap)
    for part in ("gateway", "registry", "prefect"):
        monkeypatch.setenv(f"TRUING_PORTS__{part.upper()}", str(getattr(settings.ports, part)))

    def go(*argv: str) -> tuple[int, str, str]:
        code = main([*argv, "--data", str(settings.data), "--problems", str(ROOT / "problems")])
        said = capsys.readouterr()
        return code, said.out, said.err

    go.settings = settings  # type: ignore[attr-defined]
    return go


def one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1 and "Traceback" not in text


def test_help_is_readable_and_light() -> None:
    script = """
import sys
from truing.flows.cli.main import main
code = main([])
print([name for name in ("prefect", "mlflow", "torch", "polars", "pydantic", "kafka") if name in sys.modules])
sys.exit(code)"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "approve a version's verdict" in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_status_of_nothing_says_so_and_exits_1(run: Any) -> None:
    code, out, err = run("status")
    assert code == 1 and out.startswith("down: nothing runs on") and err == ""
    assert not run.settings.data.exists()


def test_status_json_is_json(run: Any) -> None:
    code, out, _ = run("status", "--json")
    found = json.loads(out)
    assert code == 1 and found["up"] is False and found["problems"][0]["problem"] == "adult"


def test_down_of_nothing_is_done(run: Any) -> None:
    assert run("down")[:2] == (0, f"nothing runs on {run.settings.data}\n")


def test_init_makes_the_keys_and_checks_the_problems(run: Any) -> None:
    code, out, _ = run("init", "--json")
    assert code == 0 and json.loads(out)["problems"] == ["adult"]
    assert Keyring(run.settings.keys).source("adult", "outcomes")


def test_a_new_problem_is_valid_as_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["init", "loans", "--problems", str(tmp_path / "problems"), "--data", str(tmp_path / "data")]
    assert main(given) == 0
    assert (tmp_path / "problems" / "loans" / "policy.toml").exists()
    capsys.readouterr()
    assert main(given) == 2  # never overwrites
    assert one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["approve", "3"], 1, "found none; run `truing up` or `truing init` first"),
        (["improve", "--problem", "nothing"], 2, "--problem: expected one of adult, got nothing"),
        (["send", "nowhere.csv", "--source", "history"], 2, "expected a readable file, got: No such file"),
        (["send", "nowhere.txt", "--source", "history"], 2, "expected a file that ends in .csv"),
        (["send", "nowhere.csv", "--source", "stranger"], 2, "--source: expected one of history, backfill, outcomes"),
        (["verify"], 1, "run `truing up` or `truing init` first"),
        (["keys", "rotate"], 2, "keys rotate: expected the name of one"),
        (["keys", "rotate", "nobody"], 1, "expected a key or login of registry, gate, release"),
    ],
)
def test_errors_are_one_line_with_the_right_exit_code(run: Any, argv: list[str], code: int, says: str) -> None:
    got, out, err = run(*argv)
    assert (got, out) == (code, "") and says in err and one_line(err), err


def test_with_the_registry_away_an_approval_is_one_line(run: Any) -> None:
    run("init")
    code, out, err = run("approve", "3")
    assert (code, out) == (1, "") and "expected the registry at" in err and one_line(err)


def test_with_the_broker_away_a_request_is_one_line(run: Any) -> None:
    code, out, err = run("improve")
    assert (code, out) == (1, "") and one_line(err), err


def test_an_unknown_setting_names_its_key(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUING_PORTS__GATEWEY", "1")
    code, _, err = run("status")
    assert code == 2 and "ports.gatewey" in err and one_line(err)


# --- keys: who holds which, never what is in it -------------------------------------------------------------------------------


def test_keys_are_made_once_and_listed_without_what_is_in_them(run: Any) -> None:
    code, out, err = run("keys", "create", "--json")
    assert code == 0 and "steward/gate" in json.loads(out)["made"], err
    assert json.loads(run("keys", "create", "--json")[1])["made"] == []
    shown = run("keys", "list")[1]
    found = {one["key"]: one for one in json.loads(run("keys", "list", "--json")[1])}
    assert found["steward/gate"]["mode"] == "0600" and found["public/gate.pub"]["mode"] == "0644"
    assert {one["note"] for one in found.values()} == {""}
    password = Keyring(run.settings.keys).password("approver")
    assert password not in shown and password not in str(found)


def test_a_rotated_password_says_how_long_the_old_one_opens(run: Any) -> None:
    run("keys", "create")
    before = Keyring(run.settings.keys).password("approver")
    code, out, _ = run("keys", "rotate", "approver")
    after = Keyring(run.settings.keys).password("approver")
    assert code == 0 and before != after and "5 more minutes" in out and after not in out


def test_a_rotated_key_stays_trusted(run: Any) -> None:
    run("keys", "create")
    before = Keyring(run.settings.keys).public().gate
    code, out, _ = run("keys", "rotate", "gate", "--json")
    assert code == 0 and json.loads(out)["trusted"] == 2
    assert Keyring(run.settings.keys).public().gate[1:] == before
    found = {one["key"]: one["note"] for one in json.loads(run("keys", "list", "--json")[1])}
    assert found["public/gate.pub"] == "2 trusted, the newest first"


def test_a_key_that_others_can_read_is_pointed_out(run: Any) -> None:
    run("keys", "create")
    (run.settings.keys / "steward" / "release").chmod(0o644)
    found = {one["key"]: one["note"] for one in json.loads(run("keys", "list", "--json")[1])}
    assert found["steward/release"].startswith("open to others: `chmod 600 ")


# --- against the running stack ------------------------------------------------------------------------------------------------


@pytest.fixture
def live(stack: Stack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    kafka = stack.settings.kafka
    for name, value in (("BROKER", kafka.broker), ("BOOTSTRAP", kafka.bootstrap), ("CONTROLLER", kafka.controller)):
        if value is not None:
            monkeypatch.setenv(f"TRUING_KAFKA__{name}", str(value))
    for part in ("gateway", "registry", "prefect"):
        monkeypatch.setenv(f"TRUING_PORTS__{part.upper()}", str(getattr(stack.settings.ports, part)))

    def go(*argv: str) -> tuple[int, Any, str]:
        code = main([*argv, "--data", str(stack.settings.data), "--problems", str(stack.settings.problems), "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else None, said.err

    return go


@pytest.mark.services
def test_a_second_up_says_that_it_is_up(live: Any) -> None:
    code, found, _ = live("up")
    assert code == 0 and found["started"] is False and "healthy" in found
    assert until(lambda: live("status")[1]["healthy"])


@pytest.mark.services
def test_a_run_that_is_asked_for_can_be_awaited(live: Any) -> None:
    code, found, err = live("monitor", "--wait", "60")
    assert code == 0 and found["state"] == "COMPLETED", err


@pytest.mark.services
def test_a_refusal_is_one_line_and_exit_3(live: Any, stack: Stack) -> None:
    """The trainer is no approver: the guard's reason comes through."""
    registry = Registry(stack.settings.registry_url, "trainer", Keyring(stack.settings.keys).password("trainer"))
    with contextlib.suppress(DataError):  # another test was first
        registry.rest.send("POST", "/registered-models/create", name="adult")
    code, found, err = live("freeze", "--as", "trainer", "--reason", "I would rather not")
    assert code == 3 and found is None and one_line(err), err
