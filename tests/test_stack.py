"""The stack: what is checked beforehand, what survives a kill, and that nothing stays behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from waiting import until, well

from truing.infra.heartbeat import beat, last_beat
from truing.infra.keys import Keyring
from truing.infra.ports import moved
from truing.infra.preflight import alone
from truing.infra.processes import MARKER, living, marker, reap
from truing.infra.programs import configuration, environment, programs, socket_path
from truing.infra.running import as_running, check_same, remember
from truing.infra.settings import Settings, child_environment
from truing.infra.stack import Stack
from truing.tasks.errors import ProblemError, Unavailable

In = Callable[..., Settings]


# --- what can be wrong beforehand: one line, nothing written ------------------------------------------------------------------


def test_a_taken_port_names_its_part_and_its_setting_and_nothing_is_written(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.ports.registry))
        other.listen()
        with pytest.raises(Unavailable) as caught:
            Stack(settings).up()
    said = str(caught.value)
    assert said.startswith(f"port {settings.ports.registry} (registry): expected it free")
    assert f"pid {os.getpid()}" in said and "\n" not in said
    assert said.endswith("stop it, set TRUING_PORTS__REGISTRY, or use --ports auto")
    assert not settings.data.exists()


def test_two_parts_can_not_have_one_port(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    twice = settings.model_copy(update={"ports": settings.ports.model_copy(update={"prefect": settings.ports.registry})})
    with pytest.raises(Unavailable, match=r"expected one part on it, got registry and prefect; set TRUING_PORTS__PREFECT"):
        Stack(twice).up()
    assert not settings.data.exists()


def test_a_data_folder_that_can_not_be_written_is_one_line(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    settings.data.write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match=r"expected a folder to write to at .*; mend it or set TRUING_DATA"):
        Stack(settings).up()
    assert settings.data.read_text().startswith("a file")


def test_a_bad_problem_file_stops_up_before_anything_is_made(tmp_path: Path, settings_in: In) -> None:
    shutil.copytree(Path(__file__).parent.parent / "problems", tmp_path / "problems")
    path = tmp_path / "problems" / "adult" / "problem.toml"
    path.write_text(path.read_text().replace('kind = "tabular"', 'kid = "tabular"'))
    settings = settings_in(tmp_path, problems=tmp_path / "problems")
    with pytest.raises(ProblemError, match=r"problem\.toml: .*`kind`|problem\.toml: .*`kid`"):
        Stack(settings).up()
    assert not settings.data.exists()


def test_an_external_broker_that_is_away_is_one_line(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    away = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"broker": "external"})})
    with pytest.raises(Unavailable, match=r"expected a Kafka broker at 127\.0\.0\.1:\d+, got no answer; start it"):
        Stack(away).up()
    assert not settings.data.exists()


def test_two_ups_at_once_do_not_mix(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    with alone(settings.data), pytest.raises(Unavailable, match=r"expected to be alone with .*; wait for it"):
        Stack(settings).up()


def test_an_unknown_part_is_named(tmp_path: Path, settings_in: In) -> None:
    with pytest.raises(Unavailable, match=r"--only: expected parts out of broker, registry, .*, got kettle"):
        Stack(settings_in(tmp_path), parts=("broker", "kettle"))


# --- what parts run with ------------------------------------------------------------------------------------------------------


def test_the_configuration_on_disk_holds_no_secret(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    ring = Keyring(settings.keys)
    ring.create([])
    text = configuration(settings, programs(settings))
    told = "\n".join(environment(settings).values())
    for secret in (ring.read("prefect-auth").decode(), ring.password("admin"), ring.password("approver")):
        assert secret not in text
        assert secret not in told, "each part reads its own"


def test_parts_do_not_inherit_another_servers_settings(
    tmp_path: Path, settings_in: In, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://elsewhere.example/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://elsewhere.example")
    monkeypatch.setenv("TRUING_PORTS__GATEWAY", "1")
    monkeypatch.setenv("NO_PROXY", "mine.example")
    settings = settings_in(tmp_path)
    found = child_environment(settings)
    assert not [name for name, value in found.items() if "elsewhere.example" in value]
    assert found["TRUING_PORTS__GATEWAY"] == str(settings.ports.gateway)
    assert found["NO_PROXY"].split(",")[0] == "mine.example" and "127.0.0.1" in found["NO_PROXY"]


def test_a_child_reads_the_very_settings_of_its_stack(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path, steward={"poll_s": 0.25})
    script = "from truing.infra.settings import current; print(current().model_dump_json())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=child_environment(settings, **{MARKER: marker(settings.data)}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == settings.model_dump_json()


def test_a_deep_data_folder_still_gets_a_socket(tmp_path: Path, settings_in: In) -> None:
    deep = socket_path(settings_in(tmp_path / ("d" * 60) / ("e" * 60)))
    assert len(str(deep).encode()) < 107
    assert deep != socket_path(settings_in(tmp_path / ("d" * 60) / ("f" * 60)))


def test_a_sign_of_life_is_replaced_whole(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    assert last_beat(settings, "ingest") is None
    beat(settings, "ingest", now=5.0, rows=7)
    beat(settings, "ingest", now=6.0)
    found = last_beat(settings, "ingest")
    assert found is not None and (found["pid"], found["at"]) == (os.getpid(), 6.0) and "rows" not in found
    assert [path.name for path in (settings.data / "run").iterdir()] == ["ingest"]


def test_a_sign_of_life_is_a_plain_file(tmp_path: Path, settings_in: In) -> None:
    """Root reads it in a folder of the part's account: a pipe there would hold `truing status` for ever."""
    settings = settings_in(tmp_path)
    beat(settings, "ingest", now=5.0)
    path = settings.place("ingest") / "beat.json"
    aside = path.rename(tmp_path / "aside.json")
    path.symlink_to(aside)
    assert last_beat(settings, "ingest") is None
    path.unlink()
    os.mkfifo(path)
    assert last_beat(settings, "ingest") is None


def test_verbs_find_a_stack_on_other_ports(tmp_path: Path, settings_in: In) -> None:
    here, there = settings_in(tmp_path), settings_in(tmp_path)
    assert as_running(here) == here
    (here.data / "run").mkdir(parents=True)
    remember(there, ["broker"])
    assert as_running(here) == there
    with pytest.raises(Unavailable, match=r"got another kafka; run `truing down` first, then up"):
        check_same(here, ["broker"])


def test_ports_auto_moves_what_is_taken_and_nothing_else(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.ports.registry))
        found = moved(settings)
    assert found.ports.registry % 100 == settings.ports.registry % 100 and found.ports.registry > settings.ports.registry
    assert (found.ports.gateway, found.ports.prefect) == (settings.ports.gateway, settings.ports.prefect)
    assert found.kafka == settings.kafka
    same = settings.ports.model_copy(update={"prefect": settings.ports.gateway, "registry": settings.ports.gateway})
    apart = moved(settings.model_copy(update={"ports": same})).ports
    assert len({apart.gateway, apart.registry, apart.prefect}) == 3
    external = settings.kafka.model_copy(update={"broker": "external"})
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(settings.kafka.bootstrap.rpartition(":")[2])))
        assert moved(settings).kafka.bootstrap != settings.kafka.bootstrap
        assert moved(settings.model_copy(update={"kafka": external})).kafka == external, (
            "a broker of your own stays where it is"
        )


# --- orphans ------------------------------------------------------------------------------------------------------------------


def test_orphans_are_known_by_their_marker_and_strangers_live_on(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    orphan = subprocess.Popen(command, env={**os.environ, MARKER: marker(mine)}, start_new_session=True)
    stranger = subprocess.Popen(command, env={**os.environ, MARKER: marker(other)})
    try:
        assert until(lambda: [process.pid for process in living(mine)] == [orphan.pid])
        assert reap(mine) == 1
        assert until(lambda: orphan.poll() is not None)
        assert not living(mine) and stranger.poll() is None
    finally:
        for process in (orphan, stranger):
            process.kill()
            process.wait()


# --- the running thing --------------------------------------------------------------------------------------------------------


@pytest.mark.services
def test_kills_are_survived_and_down_leaves_nothing(tmp_path: Path, settings_in: In) -> None:
    """Broker and registry stand for all parts here: they run under the same supervisor with the same configuration."""
    settings = settings_in(tmp_path)
    stack = Stack(settings, parts=("broker", "registry"))
    try:
        assert stack.up() is True
        assert stack.up() is False  # a second one finds it up

        first = stack.states()["broker"]["pid"]
        psutil.Process(first).kill()
        assert until(lambda: stack.states()["broker"]["pid"] not in (0, first))
        assert stack.up() is False
        assert until(lambda: all(stack.healthy(part, stack.states()[part.name]) for part in stack.parts))

        supervisor = int((settings.data / "run" / "supervisor.pid").read_text())
        before = {state["pid"] for state in stack.states().values()}
        psutil.Process(supervisor).kill()
        assert until(lambda: not stack.states())
        assert {process.pid for process in living(settings.data)} >= before  # orphans, ports still taken
        assert stack.up() is True
        assert not before & {process.pid for process in living(settings.data)}

        psutil.Process(int((settings.data / "run" / "supervisor.pid").read_text())).kill()
        assert stack.down() is True  # ends orphans too
    finally:
        stack.down()
    assert not living(settings.data)
    assert not socket_path(settings).exists()
    assert list((settings.data / "run").iterdir()) == []
    for port in (settings.ports.registry, int(settings.kafka.bootstrap.rpartition(":")[2])):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    assert stack.down() is False


@pytest.mark.services
def test_a_part_that_can_not_stay_up_ends_up_with_its_last_words(tmp_path: Path, settings_in: In) -> None:
    """A file where the broker's folder should be: it can't start, and `up` leaves nothing running."""
    settings = settings_in(tmp_path)
    stack = Stack(settings, parts=("broker",))
    broken = stack.parts[0]
    stack.parts = (
        type(broken)(name="broker", command=(sys.executable, "-c", "raise SystemExit('no such disk')"), port=broken.port),
    )
    with pytest.raises(Unavailable, match=r"broker: expected it to stay up, got: .*no such disk.*; see .*broker\.log"):
        stack.up()
    assert not living(settings.data)


@pytest.mark.services
def test_the_whole_stack_is_healthy(stack: Stack) -> None:
    found = until(lambda: well(stack.settings))
    assert {part["part"] for part in found["parts"]} == {
        "broker",
        "registry",
        "prefect",
        "runner",
        "ingest",
        "steward",
        "gateway",
    }
    assert found["lag"]["behind"] == 0
    assert {run["run"] for run in found["runs"]} >= {"curate/adult", "improve/adult", "monitor/adult", "ingest/all"}
    assert "locks not separated" in found["locks"]
