"""What a stack lives through: Ctrl-C at any moment, a power cut, a hung supervisor, a full disk, a clock that is set."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from waiting import until

from truing.infra.heartbeat import age, beat, last_beat
from truing.infra.interrupts import deferred, raised
from truing.infra.processes import living
from truing.infra.programs import Program, socket_path
from truing.infra.running import as_running
from truing.infra.settings import Settings, child_environment
from truing.infra.stack import Stack
from truing.tasks.errors import Unavailable

In = Callable[..., Settings]
ROOT = Path(__file__).resolve().parent.parent


def verb(settings: Settings, *words: str) -> subprocess.Popen[str]:
    """`truing …` as a process of its own, as a shell starts it."""
    command = [sys.executable, "-m", "truing.flows.cli.main", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=child_environment(settings), text=True, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]


def ports(settings: Settings) -> list[int]:
    return [settings.ports.registry, settings.ports.gateway, int(settings.kafka.bootstrap.rpartition(":")[2])]


def nothing_left(settings: Settings) -> None:
    """No process, socket, port, lock or temporary file of this stack."""
    assert not living(settings.data)
    assert not socket_path(settings).exists()
    run = settings.data / "run"
    assert not run.exists() or [path.name for path in run.iterdir()] == []
    for port in ports(settings):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))


@pytest.fixture
def small(tmp_path: Path, settings_in: In) -> Iterator[Stack]:
    """Broker and gateway: they stand for all parts, under the same supervisor."""
    stack = Stack(settings_in(tmp_path), parts=("broker", "gateway"))
    try:
        yield stack
    finally:
        stack.down()


# --- Ctrl-C -------------------------------------------------------------------------------------------------------------------


def test_a_signal_waits_for_a_deferred_block_and_ends_a_raised_one() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        done.append("whole")
    assert done == ["whole"]
    for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)):
        with pytest.raises(kind), raised():
            os.kill(os.getpid(), number)
            time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_signal_does_not_disturb_the_cleaning_up_after_the_first() -> None:
    cleaned = []
    for first in (deferred, raised):
        with pytest.raises(KeyboardInterrupt), raised():
            try:
                with first():
                    os.kill(os.getpid(), signal.SIGINT)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                cleaned.append(first)
    assert cleaned == [deferred, raised]


@pytest.mark.services
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up_that_is_interrupted_leaves_nothing_running(tmp_path: Path, settings_in: In, number: signal.Signals) -> None:
    """At random moments, twice in a row as impatient people do; the next `up` finds all keys whole."""
    rng = random.Random(int(number))
    settings = settings_in(tmp_path)
    for _ in range(3):
        process = verb(settings, "up", "--only", "broker,gateway")
        assert until(lambda: (settings.data / "run").exists())
        time.sleep(rng.uniform(0.0, 2.5))
        for _ in range(2):
            if process.poll() is None:
                os.killpg(process.pid, number)
                time.sleep(0.05)
        out, said = process.communicate(timeout=90)
        assert "Traceback" not in said, said
        if out.startswith("up in"):  # the signal came too late for it
            Stack(settings).down()
        nothing_left(settings)
        shutil.rmtree(settings.data / "run", ignore_errors=True)
    stack = Stack(settings, parts=("broker", "gateway"))
    assert stack.up() is True and stack.down() is True
    files = [path for path in settings.keys.rglob("*") if path.is_file()]
    assert files and not [path for path in files if path.name.startswith(".") or not path.stat().st_size]


@pytest.mark.services
def test_down_that_is_interrupted_goes_on_to_its_end(small: Stack) -> None:
    small.up()
    process = verb(small.settings, "down")
    assert until(lambda: {state["statename"] for state in small.states().values()} != {"RUNNING"})
    for _ in range(3):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.05)
    process.communicate(timeout=90)
    nothing_left(small.settings)


@pytest.mark.services
def test_in_the_foreground_it_ends_with_its_terminal(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    for number in (signal.SIGINT, signal.SIGHUP):
        process = verb(settings, "up", "--only", "broker", "--foreground")
        assert until(lambda: Stack(settings).states().get("broker", {}).get("statename") == "RUNNING")
        assert process.stdout is not None and process.stdout.readline().startswith("up in")
        assert process.poll() is None
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0 and said.endswith("down\n"), said
        nothing_left(settings)


@pytest.mark.services
def test_in_the_foreground_a_killed_supervisor_is_said(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    process = verb(settings, "up", "--only", "broker", "--foreground")
    assert process.stdout is not None and process.stdout.readline().startswith("up in")
    psutil.Process(int((settings.data / "run" / "supervisor.pid").read_text())).kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "expected the stack to stay, its supervisor is gone" in said
    nothing_left(settings)


# --- other ports --------------------------------------------------------------------------------------------------------------


@pytest.mark.services
def test_ports_auto_are_remembered_by_every_verb(tmp_path: Path, settings_in: In) -> None:
    """Both ports are taken; a second `up`, with and without the option, says that it is up; `down` needs no option."""
    settings = settings_in(tmp_path)
    with socket.socket() as one, socket.socket() as other:
        for held, port in ((one, settings.ports.gateway), (other, int(settings.kafka.bootstrap.rpartition(":")[2]))):
            held.bind(("127.0.0.1", port))
            held.listen()
        refused = verb(settings, "up", "--only", "broker,gateway")
        _, said = refused.communicate(timeout=60)
        assert refused.returncode == 1 and said.endswith("or use --ports auto\n")
        first = verb(settings, "up", "--only", "broker,gateway", "--ports", "auto")
        out, said = first.communicate(timeout=90)
        try:
            assert first.returncode == 0, said
            there = as_running(settings)
            assert there.gateway_url in out and there.kafka.bootstrap in out
            assert there.ports.gateway != settings.ports.gateway and there.kafka.bootstrap != settings.kafka.bootstrap
            for more in (("--ports", "auto"), ()):
                again = verb(settings, "up", "--only", "broker,gateway", *more)
                out, said = again.communicate(timeout=60)
                assert again.returncode == 0 and out.startswith("up already") and there.gateway_url in out, said
            topic = settings.kafka.model_copy(update={"topic": "another"})
            with pytest.raises(Unavailable, match=r"got another kafka; run `truing down` first"):
                Stack(settings.model_copy(update={"kafka": topic}), parts=("broker", "gateway")).up()
        finally:
            Stack(settings).down()
    nothing_left(there)


# --- power cuts, reused pids, a supervisor that hangs -------------------------------------------------------------------------


@pytest.mark.services
def test_after_a_power_cut_stale_files_name_nobody(small: Stack) -> None:
    """All is killed at once and its pids go to others. `up` believes no file that names a pid, and no stranger is ended."""
    settings, run = small.settings, small.settings.data / "run"
    small.up()
    for process in living(settings.data):
        process.kill()
    assert until(lambda: not living(settings.data))
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    try:
        assert socket_path(settings).exists() and (run / "supervisor.pid").exists(), "as a power cut leaves them"
        (run / "supervisor.pid").write_text(f"{stranger.pid}\n")
        (run / "gateway" / "beat.json").write_text(f'{{"pid": {stranger.pid}, "at": 1e12, "up": 1e12}}')
        assert small.states() == {}
        assert small.up() is True
        assert stranger.pid not in {state["pid"] for state in small.states().values()}
        for process in living(settings.data):
            process.kill()
        assert until(lambda: not living(settings.data))
        (run / "supervisor.pid").write_text(f"{stranger.pid}\n")
        assert small.down() is False  # nothing of ours ran
        assert stranger.poll() is None
        nothing_left(settings)
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.services
def test_a_supervisor_that_hangs_is_ended_with_its_parts(small: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    small.up()
    monkeypatch.setattr("truing.infra.supervisor.ANSWER_S", 1.0)
    psutil.Process(int((small.settings.data / "run" / "supervisor.pid").read_text())).suspend()
    assert small.down() is True
    nothing_left(small.settings)


# --- logs ---------------------------------------------------------------------------------------------------------------------


def settled(logs: Path) -> bool:
    """Three files, and half a second later the same three of the same size: rotating gives them other names and sizes."""

    def sizes() -> dict[str, int]:
        try:
            return {path.name: path.stat().st_size for path in logs.glob("gateway.log*")}
        except OSError:  # renamed between the listing and the look
            return {}

    before = sizes()
    time.sleep(0.5)
    return len(before) == 3 and sizes() == before


@pytest.mark.services
def test_logs_are_rotated_and_the_supervisors_too(small: Stack) -> None:
    """A part that says 60 MB leaves three files of some 10 MB; the supervisor's own log has a limit as well."""
    chatty = "import sys, time; sys.stdout.writelines(['x' * 99 + chr(10)] * 600_000); print(flush=True); time.sleep(600)"
    small.parts = (*small.parts[:1], Program(name="gateway", command=(sys.executable, "-c", chatty)))
    logs = small.settings.logs
    try:
        small.healthy = lambda part, state: state.get("statename") == "RUNNING"  # type: ignore[method-assign]
        small.up()
        assert until(lambda: settled(logs)), "the writer is done"
        assert len(list(logs.glob("gateway.log*"))) == 3
        assert all(path.stat().st_size < 12_000_000 for path in logs.glob("gateway.log*"))
    finally:
        small.down()
    text = small.settings.data.joinpath("logs", "supervisor.log").stat()
    assert text.st_size < 2_000_000


# --- a full disk --------------------------------------------------------------------------------------------------------------


@pytest.mark.services
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="only root can mount a small disk; CI runs as root"
)
def test_a_full_disk_is_said_in_one_line_and_lived_through(tmp_path: Path, settings_in: In) -> None:
    """Nothing is corrupted and no part dies: what can't be done is refused or waits, and goes on once there is space."""
    settings = settings_in(tmp_path, data=tmp_path / "disk" / "data", min_free_mb=20)
    settings.data.parent.mkdir()
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, str(ROOT / "tests" / "full_disk.py")]
    done = subprocess.run(
        [*command, str(settings.data.parent)], env=child_environment(settings), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sent"] == "", "the broker holds it in memory meanwhile"
    assert found["rotated"].startswith("OSError: [Errno 28]") and found["broken keys"] == []
    assert found["judged"].startswith("Unavailable: ") and "\n" not in found["judged"]
    assert not found["full"]["ingest"] and found["full"]["gateway"]
    assert found["recovered"] and found["restarted"] == [] and found["landed"] and found["rotated then"] == ""
    assert found["down"] is True and found["left"] == 0
    assert found["up again"].startswith("Unavailable: ") and "expected 20 MB free, got 0 MB; free some" in found["up again"]
    assert found["left then"] == 0 and found["up at last"] == ""
    assert not living(settings.data)


# --- a clock that is set ------------------------------------------------------------------------------------------------------


def test_the_age_of_a_sign_of_life_knows_no_wall_clock(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path)
    beat(settings, "steward", now=-1e9, steady=1000.0)
    found = last_beat(settings, "steward")
    assert age(found, steady=1004.0) == 4.0
    assert age(found, steady=3.0) is None, "said before the machine was last started"
    assert age(None) is None and age({"pid": 1, "at": 5.0}) is None


@pytest.mark.services
@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler (cc) for set_clock.c"
)
def test_a_clock_that_is_set_makes_no_living_part_look_dead(
    tmp_path: Path, settings_in: In, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day back, then three days on, while parts run that only say that they live."""
    library, shift = tmp_path / "set_clock.so", tmp_path / "shift"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(ROOT / "tests" / "set_clock.c")], check=True)
    shift.write_text("0")
    stack = Stack(settings_in(tmp_path), parts=("broker", "ingest", "steward"))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("SHIFT_FILE", str(shift))
    try:
        stack.up()
        pids = {name: state["pid"] for name, state in stack.states().items()}
        for seconds in (-86_400, 2 * 86_400):
            shift.write_text(str(seconds))
            for part in ("ingest", "steward"):
                wanted = time.time() + seconds
                assert until(lambda part=part, wanted=wanted: abs((last_beat(stack.settings, part) or {})["at"] - wanted) < 120)
            assert stack.up() is False
            states = stack.states()
            assert all(stack.healthy(part, states[part.name]) for part in stack.parts)
        assert {name: state["pid"] for name, state in stack.states().items()} == pids, "none was restarted"
    finally:
        stack.down()
