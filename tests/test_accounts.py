"""The parts under accounts of their own: who owns what, who can open what, and that the whole story works all the same.

`other_users.sh` makes the accounts where nothing on the machine changes. Everything here is tried, not looked up: a file counts
as closed when the kernel refuses that account's own attempt to open it.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import psutil
import pytest
from pydantic import SecretStr
from test_ingest import ROW

from truing.flows.cli.runs import run_now
from truing.flows.demo.world import Scenario, World
from truing.infra.accounts import _own as own
from truing.infra.accounts import office
from truing.infra.calls import call
from truing.infra.catalog import chosen
from truing.infra.client import Client
from truing.infra.control import request
from truing.infra.keys import Keyring
from truing.infra.logins import registry_as
from truing.infra.running import FILE, as_running
from truing.infra.settings import Accounts, Settings, child_environment
from truing.infra.stack import Stack
from truing.infra.status import status
from truing.tasks import seal
from truing.tasks.errors import SettingsError, TruingError, Unavailable
from truing.tasks.events.schema import pseudonym
from truing.tasks.kinds.model import Head, Model
from truing.tasks.records import Candidate, Envelope, Release, Verdict
from truing.tasks.release.audit import verify
from truing.tasks.release.registry import Registry
from truing.tasks.tables.lake import Lake, Vault

In = Callable[..., Settings]
T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tests" / "other_users.sh"
NAME = "adult"
SMALL = Scenario(trusted=2_000, backfill=3_000, rounds=1, round_size=500, poisoned=0)
MAIL = "json://127.0.0.1:9/a-token-of-a-webhook"
SASL = "the-broker-s-own-password"

# account → folders below <data> of which it may open files for reading; what it may also write is marked
OPEN = {
    "registry": {"registry": "w", "guard": "w", "keys/registry": "w", "run/registry": "w"},
    "prefect": {"prefect": "w", "keys/prefect": "w", "run/prefect": "w"},
    "trainer": {"lake": "w", "studies": "w", "keys/trainer": "w", "run/runner": "w"},
    "ingest": {"vault": "w", "lake": "w", "keys/ingest": "w", "run/ingest": "w"},
    "steward": {"vault": "r", "lake": "w", "steward": "w", "keys/steward": "w", "run/steward": "w"},
    "gateway": {"gateway": "w", "outbox": "w", "keys/gateway": "w", "run/gateway": "w"},
    "broker": {"broker": "w", "keys/broker": "w", "run/broker": "w"},
    "attacker": {},
}
EVERYBODY = {"keys/public": "r", "run/settings.json": "r", "run/supervisor.conf": "r", "run/supervisor.pid": "r"} | {
    f"run/{part}/beat.json": "r" for part in ("runner", "ingest", "steward")
}

TRIES = """
who=$1; list=$2
setpriv --reuid="$who" --regid="$who" --init-groups -- bash -c '
while IFS= read -r file; do
  { : < "$file"; } 2> /dev/null && echo "r $file"
  { : >> "$file"; } 2> /dev/null && echo "w $file"
done < "$0"
exit 0' "$list"
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start parts as other users; CI runs as root")


def until(what: str, look: Callable[[], T | None], patience_s: float = 120.0) -> T:
    end = time.monotonic() + patience_s
    last = ""
    while time.monotonic() < end:
        try:
            found = look()
        except TruingError as error:
            found, last = None, f" ({error})"
        if found is not None and found is not False:
            return found
        time.sleep(0.1)
    raise AssertionError(f"expected {what} within {patience_s:g} s{last}")


def looked(path: Path) -> os.stat_result | None:
    """None for what is gone again: the house is at work meanwhile."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


class House:
    """A whole stack with separate accounts, and what the story left: version 1 serves."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.environment = child_environment(settings)
        self.ring = Keyring(settings.keys)

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command as root where the accounts exist."""
        return subprocess.run(
            ["bash", str(SCRIPT), *command], env=self.environment, capture_output=True, text=True, check=False
        )

    def pids(self) -> dict[str, int]:
        return {name: state["pid"] for name, state in Stack(self.settings).states().items()}

    def login(self, user: str) -> Registry:
        return Registry(self.settings.registry_url, user, self.ring.password(user))

    def served(self) -> dict[str, Any]:
        told: dict[str, Any] = call("GET", f"{self.settings.gateway_url}/status", timeout=5.0)["problems"][NAME]
        return told


@pytest.fixture(scope="module")
def house(settings_in: Callable[..., Settings]) -> Iterator[House]:
    folder = Path(tempfile.mkdtemp(prefix="truing-accounts-"))  # pytest's own folders let nobody else pass
    folder.chmod(0o755)
    try:
        problems = folder / "problems"
        shutil.copytree(ROOT / "problems" / NAME, problems / NAME)
        policy = problems / NAME / "policy.toml"
        policy.write_text(policy.read_text().replace("min_rows = 8000", "min_rows = 1500"))
        settings = settings_in(folder, problems=problems, learning={"trials": 1}, notify={"urls": [MAIL]})
        kafka = settings.kafka.model_copy(update={"sasl_password": SecretStr(SASL)})
        made = House(folder, settings.model_copy(update={"kafka": kafka}))
        done = made.inside(sys.executable, "-m", "truing.flows.cli.main", "up")
        if done.returncode == 77:
            pytest.skip(done.stderr.strip())
        try:
            assert done.returncode == 0, done.stderr
            made.settings = as_running(made.settings)
            yield made
        finally:
            Stack(made.settings).down()
    finally:
        shutil.copytree() if os.environ.get("KEEP") else None
        shutil.rmtree(folder, ignore_errors=True)


# --- the layout, on its own ---------------------------------------------------------------------------------------------------


@needs_root
def test_a_link_in_an_accounts_folder_gives_it_nothing(tmp_path: Path) -> None:
    """The trainer lays a link to the steward's key among its own files; the next `up` would hand the target over."""
    ring, uid = Keyring(tmp_path / "keys"), 54321
    ring.create([], owners={"trainer": uid})
    key = tmp_path / "keys" / "steward" / "gate"
    (tmp_path / "keys" / "trainer" / "mine").symlink_to(key)
    ring.create([], owners={"trainer": uid})
    assert key.stat().st_uid == 0 and (tmp_path / "keys" / "trainer" / "password").stat().st_uid == uid


@needs_root
def test_a_link_in_the_place_of_a_shared_key_is_not_copied_to_the_others(tmp_path: Path) -> None:
    ring = Keyring(tmp_path)
    ring.create([])
    for holder in ("prefect", "trainer"):
        (tmp_path / holder / "prefect-auth").unlink()
    (tmp_path / "prefect" / "prefect-auth").symlink_to(tmp_path / "steward" / "gate")
    with pytest.raises(Unavailable, match=r"expected the key .*prefect-auth, got: .*symbolic links"):
        ring.create([])
    assert not (tmp_path / "trainer" / "prefect-auth").exists()


@needs_root
def test_a_folder_of_an_account_is_not_followed_through_its_own_link(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    target, place = tmp_path / "target", tmp_path / "place"
    target.mkdir()
    own(place, nobody, 0o755)
    (place / "tmp").symlink_to(target)
    with pytest.raises(OSError, match=r"symbolic|directory"):
        own(place / "tmp", nobody, 0o700)
    assert target.stat().st_uid == 0


@needs_root
def test_a_laptops_folder_goes_on_under_an_account(tmp_path: Path) -> None:
    """All in it changes hands once, but never what a link points at; later files of others in it are left alone."""
    nobody, aside = pwd.getpwnam("nobody"), tmp_path / "aside"
    aside.write_text("root's")
    folder = tmp_path / "lake"
    (folder / "rows").mkdir(parents=True)
    (folder / "rows" / "0.parquet").write_bytes(b"x")
    (folder / "rows" / "link").symlink_to(aside)
    own(folder, nobody, 0o2770, group=nobody.pw_gid)
    owners = {path.name: path.lstat().st_uid for path in (folder, *folder.rglob("*"))}
    assert set(owners.values()) == {nobody.pw_uid} and aside.stat().st_uid == 0
    assert stat.S_IMODE((folder / "rows").stat().st_mode) == 0o2770
    (folder / "later").touch()
    own(folder, nobody, 0o2770, group=nobody.pw_gid)
    assert (folder / "later").stat().st_uid == 0


@needs_root
def test_root_is_no_account_for_a_part(tmp_path: Path, settings_in: In) -> None:
    settings = settings_in(tmp_path, accounts=dict.fromkeys(Accounts.model_fields, "root"))
    with pytest.raises(
        SettingsError, match=r"accounts\.registry: expected an account of its own, got that of root; name another"
    ):
        Stack(settings).up()
    assert not settings.data.exists()


# --- the running thing --------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.services
def test_every_part_runs_as_its_office_and_the_supervisor_as_root(house: House) -> None:
    listed = house.inside("getent", "passwd").stdout.splitlines()
    uids = {line.split(":")[0]: int(line.split(":")[2]) for line in listed}
    pids = house.pids()
    assert set(pids) == {"broker", "registry", "prefect", "runner", "ingest", "steward", "gateway"}
    found = {name: set(psutil.Process(pid).uids()) for name, pid in pids.items()}
    assert found == {name: {uids[f"truing-{office(name)}"]} for name in pids}
    assert len({*map(frozenset, found.values())}) == 7 and {0} not in found.values()
    text = (house.settings.logs / "supervisor.log").read_text()
    assert "running as root" not in text
    shown = until("the stack to be healthy", lambda: (found := status(house.settings))["healthy"] and found)
    assert "not separated" not in shown["locks"], shown["notes"]


@needs_root
@pytest.mark.services
def test_the_whole_story_works_between_accounts(house: House, adult: list[dict[str, Any]]) -> None:
    """Sources send, the keeper lands, a run of improve registers, the steward judges and releases, the gateway answers."""
    settings, ring = house.settings, house.ring
    salt = ring.read("actor-salt")
    problem, policy = chosen(settings.problems, NAME)
    world = World(adult, problem, SMALL, seed=5, salt=ring.read("split-salt"), door=lambda who: pseudonym(salt, NAME, who))
    now, sent = time.time(), 0
    for source, cases in (("history", world.trusted), ("backfill", world.backfill)):
        with Client.of(settings, NAME, source=source) as client:
            for case in cases:
                client.backfill_prediction(case.id, case.inputs, subject=case.subject, groups=case.groups, time=now - 3600)
                client.outcome(case.id, case.truth, time=now - 60)
            sent += client.flush(timeout_s=120.0)
    until("all to land", lambda: (status(settings)["lag"] or {}).get("landed") == sent)
    until("rows to be joined", lambda: Lake(settings.lake).scan("rows").collect().height >= len(world.trusted))
    request(settings, "improve", NAME)
    trainer, approver = house.login("trainer"), house.login("approver")
    version = until("a candidate", lambda: next(iter(trainer.versions(NAME)), None)).version
    until("the policy to be proposed", lambda: approver.model(NAME).tags.get("policy.proposed"))
    approver.accept_policy(NAME, policy.digest)
    until("a verdict", lambda: trainer.version(NAME, version).verdict)
    approver.approve(NAME, version, "the first release between accounts")
    until("it to serve", lambda: house.served()["version"] == version)
    with Client.of(settings, NAME) as client:
        answer = client.predict([world.traffic(1)[0].inputs])[0]
    assert answer.version == version and answer.sequence == 1
    for name in ("curate", "monitor"):
        assert run_now(settings, name, NAME, patience_s=120)["state"] == "COMPLETED"


@needs_root
@pytest.mark.services
def test_an_account_opens_what_is_its_own_and_nothing_else(house: House) -> None:
    """After the story, every file below the data folder is tried for reading and for writing, by every account."""
    files = [path for path in house.settings.data.rglob("*") if (at := looked(path)) and stat.S_ISREG(at.st_mode)]
    listing = house.folder / "files.txt"
    listing.write_text("".join(f"{path}\n" for path in files))
    listing.chmod(0o644)
    script = house.folder / "tries.sh"
    script.write_text(TRIES)
    for who, folders in OPEN.items():
        done = house.inside("bash", str(script), f"truing-{who}", str(listing))
        assert done.returncode == 0, done.stderr
        allowed = folders | EVERYBODY
        opened: dict[str, set[str]] = {}
        for line in done.stdout.splitlines():
            how, _, path = line.partition(" ")
            inside = str(Path(path).relative_to(house.settings.data))
            homes = [name for name in allowed if inside == name or inside.startswith(f"{name}/")]
            home = min(homes, key=lambda name: allowed[name] == "r", default=None)
            assert home is not None, f"{who} may {how} {inside}"
            assert how == "r" or allowed[home] == "w", f"{who} may write {inside}"
            opened.setdefault(home, set()).add(how)
        still = [path.relative_to(house.settings.data) for path in files if path.exists()]
        filled = {name for name in folders if any(path.is_relative_to(name) for path in still)}
        assert filled <= set(opened), f"{who} misses {filled - set(opened)}"


@needs_root
@pytest.mark.services
@pytest.mark.parametrize(
    ("who", "what"),
    [
        *[("trainer", f"keys/{path}") for path in ("steward/gate", "steward/release", "steward/password", "approver/password")],
        *[("trainer", path) for path in ("keys/registry/logins", "keys/ingest/wire", "guard/audit.jsonl", "vault")],
        *[("gateway", f"keys/{path}") for path in ("steward/gate", "steward/release", "registry/registry")],
        ("attacker", "keys/steward"), ("attacker", "keys/gateway/wire"), ("attacker", "run/supervisor.sock"),
        ("trainer", "vault/subjects.sqlite"), ("gateway", "vault/subjects.sqlite"), ("gateway", "lake/subjects.sqlite"),
        ("registry", "keys/steward/release"), ("registry", "steward"), ("ingest", "keys/steward/gate"),
    ],
)  # fmt: skip
def test_what_must_stay_closed_is_refused_by_the_kernel(house: House, who: str, what: str) -> None:
    path = house.settings.data / what
    assert path.exists()
    act = "ls" if path.is_dir() else "cat"
    tried = house.inside("setpriv", f"--reuid=truing-{who}", f"--regid=truing-{who}", "--init-groups", act, str(path))
    assert tried.returncode != 0 and tried.stdout == ""
    assert "Permission denied" in tried.stderr or "No such device" in tried.stderr, tried.stderr


@needs_root
@pytest.mark.services
def test_keys_of_people_are_the_keepers_and_open_to_those_who_read_the_tables(house: House) -> None:
    """The trainer's file has no key of a holdout subject; the steward reads both; neither may write either."""
    for who, path, may in (
        ("trainer", "lake/subjects.sqlite", "r"), ("steward", "lake/subjects.sqlite", "r"),
        ("steward", "vault/subjects.sqlite", "r"), ("ingest", "vault/subjects.sqlite", "rw"),
    ):  # fmt: skip
        asked = "[ -r $0 ] && echo -n r; [ -w $0 ] && echo -n w; true"
        as_them = ("setpriv", f"--reuid=truing-{who}", f"--regid=truing-{who}", "--init-groups", "bash", "-c", asked)
        assert house.inside(*as_them, str(house.settings.data / path)).stdout == may, f"{who} at {path}"
    with sqlite3.connect(house.settings.lake / "subjects.sqlite") as file:
        assert {family for (family,) in file.execute("SELECT DISTINCT family FROM secrets")} == {"trainable"}
    file.close()


@needs_root
@pytest.mark.services
def test_root_forgets_through_each_office_and_the_parts_go_on(house: House) -> None:
    before = house.pids()
    rows = Lake(house.settings.lake).read("rows", ["id", "subject"])
    words = ("forget", "--subject", "somebody else", "--reason", "asked to", "--json")
    done = house.inside(sys.executable, "-m", "truing.flows.cli.main", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["people"] == {}
    with Client.of(house.settings, NAME, source="backfill") as client:
        client.backfill_prediction("vera-1", ROW, subject="Vera", groups={}, time=time.time() - 60)
        client.outcome("vera-1", "<=50K", time=time.time() - 30)
        client.flush(timeout_s=60.0)
    salt = house.ring.read("actor-salt")
    vera = pseudonym(salt, NAME, "Vera")
    places = ((Lake(house.settings.lake), "rows"), (Vault(house.settings.vault), "holdout"))
    until("Vera's row", lambda: any(vera in set(store.read(table, ["subject"])["subject"]) for store, table in places))
    done = house.inside(sys.executable, "-m", "truing.flows.cli.main", *("Vera" if w == "somebody else" else w for w in words))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["people"] == {NAME: vera} and told["counts"]["landing"] == 2 and told["by"] == "approver"
    assert not any(vera in set(store.read(table, ["subject"])["subject"]) for store, table in places)
    assert Lake(house.settings.lake).read("rows", ["id", "subject"]).height == rows.height
    owners = {at.st_uid for path in house.settings.vault.rglob("*") if (at := looked(path))}
    assert owners == {house.settings.vault.stat().st_uid}
    assert house.pids() == before


@needs_root
@pytest.mark.services
def test_no_process_carries_a_key_in_its_environment(house: House) -> None:
    """`/proc/PID/environ` of every part and of what it started. Exceptions: the broker's SASL password, where a part talks to
    the broker, and the steward's notification URLs. (A run of the runner is given Prefect's login by Prefect: not a part.)"""
    keys = house.settings.keys
    secrets = {path: path.read_bytes() for path in keys.rglob("*") if path.is_file() and "public" not in path.parts}
    del secrets[keys / "registry" / "logins"]
    for part, pid in house.pids().items():
        told = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"TRUING_STACK=" in told
        for path, secret in secrets.items():
            for form in (secret, secret.hex().encode(), base64.b64encode(secret)):
                assert form not in told, f"{part} carries {path.relative_to(keys)}"
        assert (SASL.encode() in told) == (part not in ("registry", "prefect")), part
        assert (MAIL.encode() in told) == (part == "steward"), part
    text = (house.settings.data / "run" / "supervisor.conf").read_text() + (house.settings.data / "run" / FILE).read_text()
    assert SASL not in text and MAIL not in text


@needs_root
@pytest.mark.services
def test_passwords_and_keys_rotate_while_everything_runs(house: House) -> None:
    """Nobody who asks meanwhile gets a failed answer, no part restarts, and what is signed next is signed by the new keys."""
    settings, ring, name = house.settings, house.ring, NAME
    pids, before = house.pids(), ring.public()
    old = {user: ring.password(user) for user in ("trainer", "approver", "steward", "gateway")}
    first = house.login("trainer").version(name, "1")
    trainer, approver = registry_as(settings, "trainer"), registry_as(settings, "approver")
    with asking(
        gateway=lambda: call("GET", f"{settings.gateway_url}/v2/models/{name}/ready"),
        trainer=lambda: trainer.versions(name),
        approver=lambda: approver.model(name),
    ) as told:
        for one in (*old, "release", "gate", "registry"):
            ring.rotate(one, now=time.time())
            asked = {who: told[who].count for who in told}
            until("everybody to ask again", lambda asked=asked: all(told[who].count > asked[who] + 3 for who in told))
        for user, password in old.items():
            assert ring.password(user) != password
            Registry(settings.registry_url, user, password).model(name)  # the old one opens for five more minutes
        with pytest.raises(Unavailable, match="does not know trainer with this password"):
            Registry(settings.registry_url, "trainer", "a wrong one").model(name)

        version = trainer.register(name, *stretched(trainer.payload(name, "1"), first.candidate))
        until("its verdict", lambda: trainer.version(name, version).verdict)
        approver.approve(name, version, "the same model, a hair apart")
        until("it to serve", lambda: house.served()["version"] == version)
    assert {who: one.failed for who, one in told.items()} == {who: [] for who in told}
    assert house.pids() == pids, "no part was restarted"

    after, now = ring.public(), trainer.version(name, version)
    for key, envelope in (("gate", now.verdict), ("registry", now.stamp), ("release", now.release)):
        newest, *older = getattr(after, key)
        assert older == list(getattr(before, key))
        assert [one.key for one in msgspec.json.decode(envelope, type=Envelope).signatures] == [seal.key_id(newest)], key
    assert isinstance(seal.open_envelope(first.release, Release, seal.RELEASE_TYPE, after.release), Release)
    audited = verify(settings.guard / "audit.jsonl", after.registry)
    assert audited.n > 0 and isinstance(seal.open_envelope(first.verdict, Verdict, seal.VERDICT_TYPE, after.gate), Verdict)


def test_prefects_login_is_replaced_in_all_its_places(tmp_path: Path) -> None:
    """Prefect reads it at its start: the command line refuses while the stack is up (test_cli), the keyring replaces all."""
    ring = Keyring(tmp_path)
    ring.create([])
    before = ring.read("prefect-auth")
    ring.rotate("prefect-auth", now=0.0)
    found = {path.read_bytes() for path in tmp_path.glob("*/prefect-auth")}
    assert len(found) == 1 and before not in found and len(list(tmp_path.glob("*/prefect-auth"))) == 4


class Asker:
    """One client that asks again and again. `failed` holds what it was told instead of an answer."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self.ask, self.count, self.failed = ask, 0, list[str]()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self.stop.wait(0.02):
            try:
                self.ask()
            except TruingError as error:
                self.failed.append(str(error))
            self.count += 1


@contextmanager
def asking(**asks: Callable[[], Any]) -> Iterator[dict[str, Asker]]:
    told = {who: Asker(ask) for who, ask in asks.items()}
    for one in told.values():
        one.thread.start()
    try:
        yield told
    finally:
        for one in told.values():
            one.stop.set()
        for one in told.values():
            one.thread.join(30.0)


def stretched(files: dict[str, bytes], candidate: Candidate | None) -> tuple[dict[str, bytes], Candidate]:
    """The same model with its heads a hair apart: another payload that answers alike."""
    assert candidate is not None
    model = Model.from_files(files)
    head = Head(**{name: value * np.float32(1.0001) for name, value in model.head.arrays().items()})
    made = Model(model.card, model.encoder, head, model.reference).to_files()
    payload = seal.tree_digest(made)
    fresh = msgspec.structs.replace(
        candidate, payload=payload, parent=candidate.payload, base=model.base, dataset=seal.digest_bytes(payload.encode()),
        registered=time.time(),
    )  # fmt: skip
    return made, fresh
