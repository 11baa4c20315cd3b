"""The artifact folder, where an attacker may write: nothing is read, written or hashed through what he lays there."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from guarded import World, refused

from truing.infra.registry_guard.files import DRAFT, Files, IsFolder, Unsafe, below_root, parts
from truing.tasks.errors import Refused
from truing.tasks.records import Outcome
from truing.tasks.seal import read_tree, tree_digest

ART = "/api/2.0/mlflow-artifacts/artifacts"


@pytest.fixture(scope="session")
def world(registry: World) -> World:
    return registry


@pytest.fixture
def files(tmp_path: Path) -> Files:
    (tmp_path / "store" / "artifacts").mkdir(parents=True)
    return Files(tmp_path / "store" / "artifacts")


def put(files: Files, path: str, data: bytes) -> None:
    with files.writing(parts(path)) as draft:
        draft.write(data)


def got(files: Files, path: str) -> bytes:
    file = files.open(parts(path))
    try:
        return b"".join(file.chunks())
    finally:
        file.close()


def open_handles() -> int:
    gc.collect()  # what earlier tests left open in circles goes now, not between two counts
    return len(os.listdir("/proc/self/fd"))


# --- the walk -----------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_hashed_like_everywhere_else(files: Files) -> None:
    tree = {"model.json": b"{}", "deep/er/w.safetensors": os.urandom(3_000_000), "empty": b"", "größe.txt": b"x"}
    before = open_handles()
    for name, data in tree.items():
        put(files, f"1/{name}", data)
    assert {name: got(files, f"1/{name}") for name in tree} == tree
    assert files.digest(("1",), settle=True) == tree_digest(tree) == tree_digest(read_tree(files.root / "1"))
    assert [(one.name, one.folder) for one in files.listing(("1",))] == [
        ("deep", True), ("empty", False), ("größe.txt", False), ("model.json", False),
    ]  # fmt: skip
    assert (files.digest(("2",)), files.listing(("2",)), files.listing(("1", "empty"))) == (None, [], [])
    with pytest.raises(IsFolder):
        got(files, "1/deep")
    with pytest.raises(FileNotFoundError):
        got(files, "1/none")
    assert open_handles() == before


def _link(path: Path, goal: Path) -> None:
    path.symlink_to(goal)


def _second_name(path: Path, goal: Path) -> None:
    path.hardlink_to(goal)


def _fifo(path: Path, goal: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, goal: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


@pytest.mark.parametrize("lay", [_link, _second_name, _fifo, _socket])
def test_only_a_plain_file_with_one_name_is_read(files: Files, tmp_path: Path, lay: Callable[[Path, Path], None]) -> None:
    secret = tmp_path / "key"
    secret.write_bytes(b"secret")
    put(files, "1/model.json", b"{}")
    lay(files.root / "1" / "other", secret)
    before = open_handles()
    with pytest.raises(Unsafe):
        got(files, "1/other")
    with pytest.raises(Unsafe):
        files.digest(("1",))
    assert [one.name for one in files.listing(("1",))] == ["model.json"]
    assert open_handles() == before
    put(files, "1/other", b"mine")  # a new file in its place, never through it
    assert (got(files, "1/other"), secret.read_bytes()) == (b"mine", b"secret")


@pytest.mark.parametrize("level", ["1", "1/2", "1/2/3"])
def test_no_folder_on_the_way_may_be_a_link(files: Files, tmp_path: Path, level: str) -> None:
    goal = tmp_path / "guard"
    (goal / "2" / "3").mkdir(parents=True)
    (goal / "3").mkdir()
    (files.root / level).parent.mkdir(parents=True, exist_ok=True)
    (files.root / level).symlink_to(goal)
    for act in (
        lambda: put(files, "1/2/3/auth.ini", b"evil"),
        lambda: got(files, "1/2/3/auth.ini"),
        lambda: files.digest(parts("1/2/3")),
        lambda: files.listing(parts("1/2/3")),
    ):
        with pytest.raises(Unsafe):
            act()
    assert not list(goal.rglob("auth.ini"))


def test_the_root_may_be_put_anew_but_not_as_a_link(files: Files, tmp_path: Path) -> None:
    put(files, "1/a", b"first")
    files.root.rename(tmp_path / "was")
    with pytest.raises(FileNotFoundError):
        got(files, "1/a")
    files.root.mkdir()
    put(files, "1/a", b"restored")
    assert got(files, "1/a") == b"restored"
    files.root.rename(tmp_path / "again")
    files.root.symlink_to(tmp_path / "was")
    with pytest.raises(Unsafe):
        got(files, "1/a")


def test_a_write_is_whole_or_not_at_all(files: Files) -> None:
    put(files, "1/a", b"old")
    with pytest.raises(ConnectionError), files.writing(parts("1/a")) as draft:
        draft.write(b"half")
        raise ConnectionError
    assert got(files, "1/a") == b"old"
    assert sorted(os.listdir(files.root / "1")) == ["a"]
    with files.writing(parts("1/a")) as draft:
        draft.write(b"new")
        assert [one.name for one in files.listing(("1",))] == ["a"], "a draft is in no listing"
        assert files.digest(("1",)) == tree_digest({"a": b"old"}), "and in no digest"
        name = next(name for name in os.listdir(files.root / "1") if name.startswith(DRAFT))
        with pytest.raises(FileNotFoundError):
            got(files, f"1/{name}")
    with pytest.raises(ValueError, match="marks drafts"):
        put(files, f"1/{DRAFT}x", b"")
    with pytest.raises(OSError, match="directory"):
        put(files, "1", b"")


def test_what_is_hashed_is_what_lies_there_whoever_swaps_it_meanwhile(files: Files) -> None:
    """A file exchanged for a link and back, thousands of times: the digest is of the file, or there is none."""
    right, secret = {"model.json": b"right" * 1000}, files.root.parent / "secret"
    secret.write_bytes(b"evil" * 1000)
    put(files, "1/model.json", right["model.json"])
    kept, target = files.root / "kept", files.root / "1" / "model.json"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            target.rename(kept)
            target.symlink_to(secret)
            target.unlink()
            kept.rename(target)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(3000):
            try:
                seen.add(files.digest(("1",)))
            except (Unsafe, FileNotFoundError):
                seen.add("refused")
    finally:
        stop.set()
        thread.join()
    assert seen <= {tree_digest(right), None, "refused"}
    assert files.digest(("1",)) == tree_digest(right), "the file lies in its place again"


@pytest.mark.parametrize("path", ["", "/", "..", "a/..", "../a", "a/../../b", "a\0b", "x" * 300, "a/" * 40 + "b"])
def test_a_path_that_climbs_or_is_none_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="expected a path below"):
        parts(path)


def test_only_plain_places_below_the_root_count() -> None:
    assert below_root("mlflow-artifacts:/1/models/m-0a/artifacts") == "1/models/m-0a/artifacts"
    for uri in (
        "mlflow-artifacts:/../../guard", "mlflow-artifacts:/1/../2", "mlflow-artifacts://host/1/2", "mlflow-artifacts:/",
        "mlflow-artifacts:/1/%2e%2e/x", "mlflow-artifacts:/1?x=/..", "mlflow-artifacts:/1#x", "mlflow-artifacts:/.ssh/x",
        "mlflow-artifacts:/1//2", "mlflow-artifacts:/1/\n", "file:///etc", "/etc", "s3://b/x", "", "models:/adult/1",
    ):  # fmt: skip
        assert below_root(uri) is None, uri


# --- over HTTP ----------------------------------------------------------------------------------------------------------------


def mine(world: World) -> tuple[str, str, Path]:
    """A fresh logged model of the trainer: its id, its root, and its folder."""
    problem = world.problem()
    body = {"experiment_id": world.trainer.experiment(problem), "name": "x"}
    info = world.trainer.rest.send("POST", "/logged-models", **body)["model"]["info"]
    root = info["artifact_uri"].split(":/")[1]
    world.trainer.rest.upload(f"{root}/model.json", b"{}")
    return info["model_id"], root, world.data / "registry" / "artifacts" / root


@pytest.mark.services
def test_a_link_in_the_store_is_neither_fetched_nor_listed_nor_registered(world: World) -> None:
    problem = world.problem()
    model, root, folder = mine(world)
    goals = (world.data / "keys" / "registry" / "registry", world.data / "guard" / "audit.jsonl", Path("/proc/self/environ"))
    for number, goal in enumerate(goals):
        (folder / f"link{number}").symlink_to(goal)
    (folder / "guard").symlink_to(world.data / "guard")
    secrets = [goal.read_bytes()[:20] for goal in goals[:2]]
    audit = len(world.audit())
    with world.http("trainer") as http:
        for number in range(3):
            assert "a link" in refused(http.get(f"{ART}/{root}/link{number}"))
        refused(http.get(f"{ART}/{root}/guard/auth.ini"))
        refused(http.put(f"{ART}/{root}/guard/auth.ini", content=b"[mlflow]\n"))
        refused(http.put(f"{ART}/{root}/guard/new/x", content=b"x"))
        run = world.trainer.log_run(problem, "x", {}, {}, files={"a.txt": b"a"})
        place = world.trainer.rest.get("/runs/get", run_id=run)["run"]["info"]["artifact_uri"].split(":/")[1]
        (world.data / "registry" / "artifacts" / place / "link").symlink_to(goals[0])
        answers = [
            http.get("/get-artifact", params={"run_id": run, "path": "link"}),
            http.get(f"/ajax-api/2.0/mlflow/logged-models/{model}/artifacts/files", params={"artifact_file_path": "link0"}),
            http.head(f"{ART}/{root}/link0"),
        ]
        assert [answer.status_code for answer in answers] == [403, 403, 403]
        assert not any(secret in answer.content for secret in secrets for answer in answers)
        listed = http.get(ART, params={"path": root}).json()["files"]
        assert [one["path"] for one in listed] == ["model.json"]
        body = {"name": problem, "source": f"models:/{model}", "model_id": model}
        assert "a link" in refused(http.post("/api/2.0/mlflow/model-versions/create", json=body))
    assert not (world.data / "guard" / "new").exists()
    assert b"database_uri" in (world.data / "guard" / "auth.ini").read_bytes()
    told = [line.entry for line in world.audit()[audit:] if line.entry.outcome == "refused"]
    assert len(told) >= 7, "each of them is in the audit"


@pytest.mark.services
@pytest.mark.parametrize("place", ["file://{keys}", "{keys}", "mlflow-artifacts:/../../keys/registry", "http://127.0.0.1:9/x"])
def test_a_place_that_the_database_names_outside_the_store_is_not_read(world: World, place: str) -> None:
    """The attacker edits where a run's and a version's files lie, then asks the registry for its own key."""
    problem, version = world.judged(Outcome.PASS)
    run = world.trainer.log_run(problem, "x", {}, {})
    model = world.mlflow_model(problem, version)
    keys = world.data / "keys" / "registry"
    secret = (keys / "registry").read_bytes()
    uri = place.format(keys=keys)
    world.behind("update runs set artifact_uri=? where run_uuid=?", uri, run)
    world.behind("update model_versions set storage_location=?, source=? where name=?", uri, uri, problem)
    world.behind("update logged_models set artifact_location=? where model_id=?", uri, model)
    with world.http("trainer") as http:
        for path, query in (
            ("/get-artifact", {"run_id": run, "path": "registry"}),
            ("/model-versions/get-artifact", {"name": problem, "version": version, "path": "registry"}),
            (f"/ajax-api/2.0/mlflow/logged-models/{model}/artifacts/files", {"artifact_file_path": "registry"}),
            ("/api/2.0/mlflow/artifacts/list", {"run_id": run}),
            (f"/api/2.0/mlflow/logged-models/{model}/artifacts/directories", {}),
        ):
            answer = http.get(path, params=query)
            assert 400 <= answer.status_code < 500, (path, answer.status_code, answer.text)
            assert secret not in answer.content
        query = f'{{ mlflowListArtifacts(input: {{runId: "{run}"}}) {{ files {{ path }} apiError {{ message }} }} }}'
        assert "registry" not in http.post("/graphql", json={"query": query}).text.replace("mlflow-artifacts", "")
        body = {"name": problem, "version": version, "key": "approval", "value": "approved"}
        with world.http("approver") as person:
            refused(person.post("/api/2.0/mlflow/model-versions/set-tag", json=body))


@pytest.mark.services
def test_files_come_as_mlflow_sends_them(world: World) -> None:
    """Type, name and length, by the API, by the page's own routes, and by MLflow's client."""
    problem = world.problem()
    names = {
        "report.html": "text/html",
        "model.json": "text/plain",
        "w.bin": "application/octet-stream",
        "größe.csv": "text/",
    }
    tree = {name: os.urandom(2_500_000) if name == "w.bin" else name.encode() for name in names}
    run = world.steward.log_run(problem, "x", {}, {}, files=tree)
    root = world.steward.rest.get("/runs/get", run_id=run)["run"]["info"]["artifact_uri"].split(":/")[1]
    with world.http("trainer") as http:
        for name, kind in names.items():
            ours = http.get(f"{ART}/{root}/{name}")
            pages = http.get("/get-artifact", params={"run_id": run, "path": name})
            assert ours.content == pages.content == tree[name]
            for header in ("type", "disposition", "length"):
                assert ours.headers[f"content-{header}"] == pages.headers[f"content-{header}"], header
            assert ours.headers["x-content-type-options"] == "nosniff"
            assert ours.headers["content-type"].startswith(kind)
        assert http.get(f"{ART}/{root}").status_code == 400
        assert http.get(f"{ART}/{root}/none").json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"
        assert http.get(f"{ART}/{root}/../x").status_code in (400, 404)
    assert httpx.get(f"{world.url}{ART}/{root}/w.bin", trust_env=False).status_code == 401
    with world.mlflow("trainer") as client:
        folder = Path(client.download_artifacts(run, ""))
        assert read_tree(folder) == tree


@pytest.mark.services
def test_an_upload_that_breaks_off_leaves_nothing(world: World) -> None:
    _, root, folder = mine(world)
    host, port = world.url.removeprefix("http://").split(":")
    import base64

    login = base64.b64encode(f"trainer:{world.keyring.password('trainer')}".encode()).decode()
    head = f"PUT {ART}/{root}/big.bin HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Basic {login}\r\n"
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"{head}Content-Length: 9000000\r\n\r\n".encode() + os.urandom(3_000_000))
    world.trainer.rest.upload(f"{root}/small.bin", b"x")
    for _ in range(100):
        if sorted(os.listdir(folder)) == ["model.json", "small.bin"]:
            break
        threading.Event().wait(0.1)
    assert sorted(os.listdir(folder)) == ["model.json", "small.bin"]
    body = {"name": world.problem(), "source": f"models:/{root.split('/')[2]}", "model_id": root.split("/")[2]}
    assert world.trainer.rest.send("POST", "/model-versions/create", **body)["model_version"]["version"] == "1"
    for path in ("model.json", "small.bin", "new", "deep/er"):
        with pytest.raises(Refused, match="belong to a registered version"):
            world.trainer.rest.upload(f"{root}/{path}", b"y")


@pytest.mark.services
def test_a_folder_that_the_database_moves_into_a_versions_stays_frozen(world: World) -> None:
    """Named one level deeper, so that its own root is not the frozen one."""
    problem, version = world.judged(Outcome.PASS)
    held = world.mlflow_model(problem, version)
    root = world.trainer.rest.get("/model-versions/get-download-uri", name=problem, version=version)["artifact_uri"]
    world.behind("update logged_models set artifact_location=? where model_id=?", f"{root}/deep", held)
    before: Any = world.trainer.payload(problem, version)
    with pytest.raises(Refused):
        world.trainer.rest.upload(f"{root.split(':/')[1]}/deep/evil.json", b"x")
    assert world.trainer.payload(problem, version) == before
