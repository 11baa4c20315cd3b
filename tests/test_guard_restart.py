"""The registry killed and started again: what its audit holds stands, all else has no power, and the page is put right."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from guarded import World, serving
from ports import free_port

from truing.infra import settings as settings_module
from truing.infra.keys import Keyring
from truing.infra.registry_guard.audit import Audit
from truing.infra.settings import Settings
from truing.tasks.errors import Refused, Unavailable
from truing.tasks.records import Outcome
from truing.tasks.release.audit import verify
from truing.tasks.release.rest import NotFound

pytestmark = [pytest.mark.services, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One of its own: the session's must go on running."""
    with serving(tmp_path_factory.mktemp("restarted")) as made:
        yield made


def again(world: World) -> list[tuple[str, str]]:
    """Start it again; what it found to mend, as (target, words)."""
    before = sum(1 for _ in world.audit())
    world.server.start()
    world.trainer.wait(120)
    return [(line.entry.target, line.entry.reason) for line in world.audit()[before:] if line.entry.act == "view.mend"]


def again_without_edits(world: World) -> dict[str, str]:
    world.server.kill()
    return dict(again(world))


def forget(world: World, act: str) -> None:
    """Cut the audit before the last line of this act: as it is when the registry dies after MLflow's write, before its own."""
    path = world.data / "guard" / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    last = max(n for n, line in enumerate(world.audit()) if line.entry.act == act)
    path.write_bytes(b"".join(lines[:last]))


def test_a_decision_cut_short_before_its_line_never_was(world: World) -> None:
    problem, version = world.judged(Outcome.PASS)
    world.approver.approve(problem, version, "just before the crash")
    world.server.kill()
    forget(world, "decision")
    assert (f"{problem}/{version}", "tags put right by the audit: approval, approval.at, approval.by, approval.stamp") in again(
        world
    )
    seen = world.steward.version(problem, version)
    assert (seen.approval, seen.stamp) == (None, None)
    with pytest.raises(Refused, match="is not approved"):
        world.steward.move_champion(problem, version)
    world.approver.approve(problem, version, "once more")
    world.release(problem, version)


def test_a_registration_cut_short_before_its_line_is_no_version_and_can_be_done_again(world: World) -> None:
    problem = world.problem()
    version, files = world.candidate(problem)
    world.server.kill()
    forget(world, "version")
    assert any(target == f"{problem}/{version}" and "never recorded here" in words for target, words in again(world))
    with pytest.raises(NotFound):
        world.steward.move_champion(problem, version)
    redone = world.register(problem, files)
    assert (redone, world.docket(problem).versions.keys()) == ("2", {"2"})
    world.judge(problem, redone, Outcome.PASS)


def test_what_was_edited_while_it_was_down_is_put_right_and_told(world: World) -> None:
    problem, version = world.released()
    policy = world.steward.model(problem).tags["policy.accepted"]
    world.approver.set_anchor(problem, version, "first")
    world.approver.freeze(problem, "for the test")
    lost, _ = world.candidate(problem)
    world.server.kill()
    world.put(problem, version, "payload", "00" * 32)
    world.put(problem, version, "trainer", "approver")
    world.put_model(problem, "policy.accepted", "11" * 32)
    world.put_model(problem, "anchor", lost)
    world.put_model(problem, "frozen", "false")
    world.put_model(problem, "standing", '{"days":7,"max_drift":0.1,"per_day":9}')
    world.behind("delete from model_version_tags where name=? and version=?", problem, int(lost))
    world.behind("delete from model_versions where name=? and version=?", problem, int(lost))
    told = dict(again(world))
    assert told[f"{problem}/{version}"] == "tags put right by the audit: payload, trainer"
    assert told[problem] == "tags put right by the audit: anchor, frozen, policy.accepted, standing"
    assert "its row is gone" in told[f"{problem}/{lost}"]
    model, seen = world.steward.model(problem), world.steward.version(problem, version)
    assert (seen.trainer, model.tags["policy.accepted"], model.anchor, model.frozen) == ("trainer", policy, version, True)
    assert model.tags["standing"] == "revoked"
    assert world.docket(problem).frozen
    assert not [words for words in again_without_edits(world).values() if "put right" in words], "once is enough"


def test_what_a_full_disk_does_not_let_into_the_audit_counts_for_nothing(world: World) -> None:
    """A limit on the size of files stands in for it. The audit is made longer than the database, so it alone is hit."""
    problem, version = world.judged(Outcome.PASS)
    world.server.stop()
    ring = world.keyring
    log = Audit(world.data / "guard" / "audit.jsonl", lambda: ring.read("registry"), lambda: ring.public().registry)
    size = (world.data / "registry" / "mlflow.db").stat().st_size
    for n in range(size // 1000):
        line = log.put("registry", "padding", str(n), "done", "x" * 2000, 1.0)
    log.settle(line)
    log.close()
    again(world)
    assert world.server.process is not None

    def limit(more: int) -> None:
        size = (world.data / "guard" / "audit.jsonl").stat().st_size + more if more else resource.RLIM_INFINITY
        resource.prlimit(world.server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    before = len(world.audit())
    limit(100)
    for act in (
        lambda: world.approver.set_tag(problem, version, "approval", "approved"),
        lambda: world.approver.freeze(problem, "full"),
        lambda: world.candidate(problem),
        lambda: world.trainer.set_tag(problem, version, "approval", "approved"),
    ):
        with pytest.raises((Unavailable, Refused), match=r"could not be recorded|is not an approver"):
            act()
    assert (world.steward.version(problem, version).approval, world.steward.model(problem).frozen) == (None, False)
    assert [seen.version for seen in world.steward.versions(problem)] == [version]
    limit(0)
    assert len(world.audit()) == before
    world.approver.approve(problem, version)
    world.candidate(problem)
    world.release(problem, version)


def test_a_registry_that_is_told_to_end_answers_who_waits_and_ends(world: World) -> None:
    word = world.steward.changes()
    told: list[str] = []
    waiting = threading.Thread(target=lambda: told.append(world.steward.rest.changes(since=word, wait_s=28)))
    waiting.start()
    world.steward.versions("none")
    threading.Event().wait(3.0)  # it is held open by then, also where the machine is slow
    world.server.stop()  # raises after 20 s
    waiting.join(20)
    assert told == [word]
    world.server.start()
    world.trainer.wait(120)
    assert world.steward.changes() != word, "a restart is a change"
    assert verify(world.data / "guard" / "audit.jsonl", world.keys.registry).n == len(world.audit())


@pytest.mark.parametrize(
    ("name", "words"),
    [("audit", "was changed"), ("link", "expected .*mlflow.db itself, got a link"), ("garbage", "expected MLflow's databases")],
)
def test_a_registry_on_a_spoilt_folder_says_so_in_one_line(tmp_path: Path, name: str, words: str) -> None:
    Keyring(tmp_path / "keys").create([])
    store, guard = tmp_path / "registry", tmp_path / "guard"
    store.mkdir()
    guard.mkdir()
    if name == "link":
        (store / "mlflow.db").symlink_to(guard / "elsewhere.db")
    elif name == "garbage":
        (store / "mlflow.db").write_bytes(b"no database at all" * 100)
    else:
        ring = Keyring(tmp_path / "keys")
        log = Audit(guard / "audit.jsonl", lambda: ring.read("registry"), lambda: ring.public().registry)
        log.add("trainer", "version", "adult/1", "done", "", 1.0)
        log.close()
        path = guard / "audit.jsonl"
        path.write_bytes(path.read_bytes().replace(b"adult/1", b"adult/2"))
    command = [sys.executable, "-m", "uvicorn", "--factory", "truing.infra.registry_guard.app:create_app"]
    done = subprocess.run(
        [*command, "--port", str(free_port())], env=settings_module.child_environment(Settings(data=tmp_path)), cwd=tmp_path,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(words, done.stderr.splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr
    assert not (guard / "elsewhere.db").exists()
