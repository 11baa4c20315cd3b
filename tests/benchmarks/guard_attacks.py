"""Can a thief of three logins, with write access to MLflow's store, get a wrong model served? And is he found?

The attacker holds the trainer's, one approver's and the registry admin's passwords and may write MLflow's databases and
artifacts, under a Unix account of his own. An attack succeeds when the gateway answers with an unapproved, blocked, altered or
outdated version. It is found when a line in the registry's audit or a finding of the steward's reconcile tells of it. Beside it
the same list with one shared account, where every key is within reach. Needs root: the parts run under accounts of their own.

    --only NAME,NAME   some of the attacks (names as in attacks.py)
    --apart            without the list with one account
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import polars as pl
from attacks import ATTACKS, Attack
from harness import ROOT, Measured, main, say
from ports import free_ports
from stage import NAME, Stage, until

from truing.infra.accounts import office
from truing.infra.calls import call
from truing.infra.client import Client
from truing.infra.programs import environment, own
from truing.tasks import seal
from truing.tasks.errors import Refused, TruingError
from truing.tasks.kinds.model import Model
from truing.tasks.release.audit import read
from truing.tasks.release.findings import open_findings
from truing.tasks.tables.lake import Vault

HERE = Path(__file__).resolve().parent
WATCH_S = 5.0  # more than one full look of steward (each second here) and gateway (4 s)
OUTSIDE = {  # with one account these reach beyond MLflow's store: the whole folder is put back after them
    "read_registry_key", "swap_public_key", "gateway_cache", "policy_file", "audit_cut", "file_upload_link", "plant_code",
}  # fmt: skip
QUICK = ("alias_blocked", "approve_blocked", "put_after", "db_alias_blocked", "db_downgrade_fresh", "file_serving")


@dataclass
class Fate:
    """What became of one attack. `wrong` = the gateway answered with what it must not; `found` = where it is told."""

    attack: Attack
    did: bool
    told: str
    wrong: str = ""
    found: str = ""


@dataclass
class Scene:
    """A stage with the versions that attacks speak about, and who plays the attacker."""

    stage: Stage
    account: str | None  # None: the attacker is the user that runs everything
    folder: Path
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, Mapping[str, bytes]] = field(default_factory=dict)  # by payload
    stamps: dict[str, str] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.stage.settings.store

    # --- set up
    def set(self) -> None:
        stage = self.stage
        stage.up()
        self.keep("old", "1", stage.good.to_files())
        self.heads["older"] = self.model_tag("release.head")
        self.copy_database(self.folder / "older.db")
        self.release("good")
        self.judge("blocked", stage.harmful())
        if (outcome := stage.outcome(self.versions["blocked"])) != "block":
            raise TruingError(f"expected the harmful candidate to be blocked, got {outcome}")
        for name in ("pending", "rejected", "revoked", "spare"):
            self.judge(name, stage.variant())
        stage.approver.reject(NAME, self.versions["rejected"], "not wanted")
        stage.approver.freeze(NAME, "while the stage is set")
        stage.approver.approve(NAME, self.versions["revoked"], "looked fine")
        self.stamps["revoked"] = stage.trainer.version(NAME, self.versions["revoked"]).stamp or ""
        stage.approver.revoke(NAME, self.versions["revoked"], "it was not")
        stage.approver.thaw(NAME)
        self.open_store()

    def keep(self, name: str, version: str, files: Mapping[str, bytes]) -> None:
        self.versions[name] = version
        self.files[seal.tree_digest(files)] = files

    def judge(self, name: str, files: Mapping[str, bytes]) -> None:
        self.keep(name, self.stage.judged(files), files)

    def release(self, name: str) -> None:
        self.judge(name, self.stage.variant())
        self.stage.second.approve(NAME, self.versions[name], "the gate passed")
        self.stage.served_as(self.versions[name])

    def open_store(self) -> None:
        """The attacker may write MLflow's databases and artifacts: that is what he stole."""
        if self.account is None:
            return
        for path in (self.store, *self.store.rglob("*")):
            path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666))

    def model_tag(self, key: str) -> str:
        return until(f"the tag {key}", lambda: self.stage.trainer.model(NAME).tags.get(key))

    # --- the store before and after
    def copy_database(self, target: Path) -> None:
        source, copy = sqlite3.connect(self.store / "mlflow.db", timeout=20), sqlite3.connect(target)
        source.backup(copy)
        source.close()
        copy.close()
        target.chmod(0o644)

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Databases and artifacts are put back at the end."""
        kept = Path(tempfile.mkdtemp(dir=self.folder))
        for base in ("mlflow.db", "auth.db"):
            _backup(self.store / base, kept / base)
        shutil.copytree(self.store / "artifacts", kept / "artifacts", symlinks=True)
        try:
            yield
        finally:
            for base in ("mlflow.db", "auth.db"):
                _backup(kept / base, self.store / base)
            self.restore_artifacts(kept / "artifacts")
            shutil.rmtree(kept)

    def restore_artifacts(self, kept: Path) -> None:
        now = self.store / "artifacts"
        shutil.rmtree(now)
        shutil.copytree(kept, now, symlinks=True)
        if self.account is not None:
            owner = pwd.getpwnam(str(self.stage.settings.accounts.registry))
            for path in (now, *now.rglob("*")):
                os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
        self.open_store()

    # --- what serves
    def good_payload(self) -> str:
        return str(self.stage.status()["payload"])

    def look(self, legal: set[str], url: str | None = None) -> str:
        """Why what is answered now is wrong; "" if it is right, or if nothing is answered."""
        url = url or self.stage.settings.gateway_url
        rows = [case.inputs for case in self.stage.world.traffic(1)[:5]]
        try:
            told: Any = call("GET", f"{url}/status", timeout=5.0)
            with Client(NAME, gateway=url) as client:
                got = [answer.probability for answer in client.predict(rows)]
        except TruingError:
            return ""
        seen = told["problems"][NAME]
        if seen["payload"] is not None and seen["payload"] not in legal:
            name = next((name for name, version in self.versions.items() if version == seen["version"]), "?")
            return f"served {name} ({seen['payload'][:8]})"
        for one in legal:
            model = Model.from_files(self.files[one])
            if _close(model.predict(rows).probabilities[:, model.positive].tolist(), got):
                return ""
        return "answers of no legal version"

    def watch(self, legal: set[str], seconds: float, url: str | None = None) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            wrong = self.look(legal, url)
            if wrong:
                return wrong
            time.sleep(0.2)
        return ""

    # --- one attack
    def run(self, attack: Attack) -> Fate:
        lines, findings, asked = self.audit_length(), self.findings(), self.requests()
        legal = {self.good_payload()}
        meanwhile = self.before(attack, legal)
        with self.as_it_was() if attack.below and attack.setting != "approve" else _nothing():
            fate = self.strike(attack, meanwhile)
            fate.wrong = self.watch(legal, WATCH_S)
            if attack.setting == "replica" and not fate.wrong:
                with self.replica() as url:
                    fate.wrong = self.watch(legal, WATCH_S, url)
                    if not fate.wrong:
                        fate.told += " · a fresh gateway too"
            fate.found = self.found(lines, findings, asked)
        self.afterwards(attack, fate)
        self.quiet()
        return fate

    def quiet(self) -> None:
        """Nothing found any more: the next attack's traces are its own."""
        path, keys = self.stage.settings.desk / "findings.jsonl", self.stage.ring.public()
        with suppress(TimeoutError, TruingError):  # what can't be put back (a version that was registered) stays open
            until("no open finding", lambda: not open_findings(path, keys) or None, 15.0)

    def before(self, attack: Attack, legal: set[str]) -> Any:
        """What the stage does around it; returns what to do while the attack runs."""
        stage = self.stage
        if attack.setting == "approve":
            files = stage.variant()
            self.judge("racing", files)
            self.open_store()
            legal.add(seal.tree_digest(files))
            return self.approve_racing
        if attack.setting == "frozen":
            self.judge("racing", stage.variant())
            self.open_store()
            stage.approver.freeze(NAME, "an incident")
            stage.second.approve(NAME, self.versions["racing"], "to be released after the thaw")
        if attack.setting == "restart":
            stage.stack._rpc().stopProcess("registry", True)
            return lambda: None
        return lambda: None

    def approve_racing(self) -> None:
        """A person who tries again for a while when the registry says that the bytes are not those that were judged."""
        time.sleep(1.5)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            try:
                self.stage.second.approve(NAME, self.versions["racing"], "in the middle of a race")
                return
            except Refused:
                time.sleep(0.01)

    def strike(self, attack: Attack, meanwhile: Any) -> Fate:
        settings = self.stage.settings
        context = {
            "problem": NAME,
            "registry": settings.registry_url,
            "gateway": settings.gateway_url,
            "kafka": settings.kafka.bootstrap,
            "store": str(self.store),
            "problems": str(settings.problems),
            "older": str(self.folder / "older.db"),
            "versions": self.versions,
            "stamps": self.stamps,
            "heads": self.heads,
            "passwords": {user: self.stage.ring.password(user) for user in ("trainer", settings.approvers[0], "admin")},
        }
        command = [sys.executable, str(HERE / "attacks.py"), attack.name]
        if self.account is not None:
            command = ["setpriv", f"--reuid={self.account}", f"--regid={self.account}", "--init-groups", *command]
        home = tempfile.gettempdir()
        quiet = {"HOME": home, "PATH": os.environ["PATH"], "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet, cwd=home
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(context))
        process.stdin.close()
        process.stdin = None
        meanwhile()
        out, error = process.communicate(timeout=120)
        if process.returncode:
            raise TruingError(f"attack {attack.name} broke: {error.strip().splitlines()[-1] if error.strip() else '?'}")
        told = json.loads(out.splitlines()[-1])
        return Fate(attack, bool(told["did"]), str(told["told"]))

    def afterwards(self, attack: Attack, fate: Fate) -> None:
        stage = self.stage
        if attack.setting == "restart":
            stage.stack._rpc().startProcess("registry", True)
            until("the registry to answer", lambda: stage.trainer.rest.alive() or None)
        if attack.setting == "restart-gateway":
            legal = {self.good_payload()}
            with self.as_it_was():
                stage.stack._rpc().stopProcess("gateway", True)
                stage.stack._rpc().startProcess("gateway", True)
                until("the gateway to answer", self.alive)
                fate.wrong = fate.wrong or self.watch(legal, WATCH_S)
        if attack.setting == "frozen":
            stage.approver.reject(NAME, self.versions["racing"], "the incident is over, the version too")
            stage.approver.thaw(NAME)
        if attack.setting == "approve" and not fate.wrong and stage.trainer.version(NAME, self.versions["racing"]).approval:
            stage.served_as(self.versions["racing"])  # its bytes are right again
            self.versions["good"] = self.versions["racing"]
        self.open_store()

    def alive(self) -> bool | None:
        try:
            call("GET", f"{self.stage.settings.gateway_url}/v2/health/live", timeout=2.0)
        except TruingError:
            return None
        return True

    @contextmanager
    def replica(self) -> Iterator[str]:
        """A gateway that starts with nothing, under the gateway's account; its address."""
        settings = self.stage.settings
        data = Path(tempfile.mkdtemp(dir=self.folder))
        keys = data / "keys"
        keys.mkdir()
        for name in ("gateway", "public"):
            shutil.copytree(settings.keys / name, keys / name)
        port = free_ports(1)[0]
        env = environment(settings) | own(settings, "gateway") | {
            "TRUING_DATA": str(data), "TRUING_PORTS__GATEWAY": str(port), "HOME": str(data), "TRUING_STACK": "replica",
        }  # fmt: skip
        command = [sys.executable, "-m", "uvicorn", "--factory", "--port", str(port), "--log-level", "warning",
                   "truing.infra.gateway.app:create_app"]  # fmt: skip
        account = getattr(settings.accounts, office("gateway"))
        if account:
            owner = pwd.getpwnam(account)
            for path in (data, *data.rglob("*")):
                os.chown(path, owner.pw_uid, owner.pw_gid)
            command = ["setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups", *command]
        with (self.folder / "replica.log").open("ab") as log:
            process = subprocess.Popen(command, env=env, cwd=data, stdout=log, stderr=log)
            url = f"http://{settings.host}:{port}"
            try:
                until("the replica to live", lambda: _answers(f"{url}/v2/health/live"))
                yield url
            finally:
                process.terminate()
                process.wait(20)
                shutil.rmtree(data, ignore_errors=True)

    # --- traces
    def audit_length(self) -> int:
        return sum(1 for _ in read(self.stage.settings.guard / "audit.jsonl"))

    def findings(self) -> int:
        """How many were ever opened."""
        return sum(line.entry.act == "open" for line in read(self.stage.settings.desk / "findings.jsonl"))

    def requests(self) -> int:
        """How many messages on the control topic the keeper has refused and noted."""
        noted = Vault(self.stage.settings.vault).read("requests", ["json"])
        return noted.filter(pl.col("json").str.contains('"act":"refused"', literal=True)).height

    def found(self, lines: int, findings: int, asked: int) -> str:
        """Where the attack is told of: the audit's new refusals, the steward's new findings, the keeper's notes of requests."""
        where = []
        with suppress(TruingError):
            new = list(read(self.stage.settings.guard / "audit.jsonl"))[lines:]
            if any(line.entry.outcome in ("refused", "failed") for line in new):
                where.append("audit")
        if self.findings() > findings:
            where.append("reconcile")
        if self.requests() > asked:
            where.append("keeper's notes")
        return " + ".join(where)


def _answers(url: str) -> bool | None:
    try:
        call("GET", url, timeout=2.0)
    except TruingError:
        return None
    return True


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _backup(source: Path, target: Path) -> None:
    """Copy one SQLite file into another while it is in use."""
    origin, copy = sqlite3.connect(source, timeout=20), sqlite3.connect(target, timeout=20)
    origin.backup(copy)
    origin.close()
    copy.close()


def _close(mine: list[float], theirs: list[float]) -> bool:
    return len(mine) == len(theirs) and all(abs(a - b) < 1e-9 for a, b in zip(mine, theirs, strict=True))


# --- both lists ---------------------------------------------------------------------------------------------------------------


def play(names: list[str], *, separate: bool, folder: Path) -> list[Fate]:
    """All attacks one after the other on one stage."""
    accounts = {}
    if separate:
        accounts = {"accounts": {name: f"truing-{name}" for name in
                                 ("registry", "prefect", "trainer", "ingest", "steward", "gateway", "broker")}}  # fmt: skip
    folder.chmod(0o755)
    stage = Stage(folder, steward={"round_s": 1.0}, **accounts)
    scene = Scene(stage, "truing-attacker" if separate else None, folder)
    kept = folder / "kept"
    versions: dict[str, str] = {}
    fates = []
    try:
        scene.set()
        if not separate:
            stage.stack.down()
            shutil.copytree(stage.settings.data, kept, symlinks=True)
            stage.stack.up()
            versions = dict(scene.versions)
        for name in names:
            fate = scene.run(ATTACKS[name])
            fates.append(fate)
            act = "done" if fate.did else "refused"
            say(f"  {name:<22} {act:<8} {fate.wrong or 'right':<28} {fate.found or '-':<18} {fate.told[:90]}")
            if not separate and (fate.wrong or (fate.did and name in OUTSIDE)):
                put_back(stage, kept)
                scene.versions = dict(versions)
    finally:
        stage.down()
    return fates


def put_back(stage: Stage, kept: Path) -> None:
    """The whole folder as it was when the stage was set."""
    stage.stack.down()
    shutil.rmtree(stage.settings.data)
    shutil.copytree(kept, stage.settings.data, symlinks=True)
    shutil.rmtree(stage.settings.problems)
    shutil.copytree(ROOT / "problems" / NAME, stage.settings.problems / NAME)
    policy = stage.settings.problems / NAME / "policy.toml"
    policy.write_text(policy.read_text().replace("min_rows = 8000", "min_rows = 1500"))
    import sysconfig

    (Path(sysconfig.get_path("purelib")) / "truing_evil.pth").unlink(missing_ok=True)
    stage.stack.up()


def measure(arguments: argparse.Namespace) -> Measured:
    if os.geteuid() != 0:
        say("guard_attacks: expected root, which starts the parts under accounts of their own; run it with sudo")
        raise SystemExit(1)
    if not os.environ.get("TRUING_ACCOUNTS__REGISTRY"):  # once more, where those accounts exist
        os.execvp("bash", ["bash", str(ROOT / "tests" / "other_users.sh"), sys.executable, *sys.argv])  # noqa: S606
    for name in list(os.environ):
        if name.startswith("TRUING_ACCOUNTS__"):
            del os.environ[name]
    names = arguments.only.split(",") if arguments.only else list(QUICK if arguments.quick else ATTACKS)
    with tempfile.TemporaryDirectory(prefix="attacks-") as folder:
        Path(folder).chmod(0o755)
        apart, shared = Path(folder) / "apart", Path(folder) / "shared"
        apart.mkdir()
        shared.mkdir()
        say(f"{len(names)} attacks, accounts apart")
        fates = play(names, separate=True, folder=apart)
        say(f"{len(names)} attacks, one account")
        beside = [] if arguments.quick or arguments.apart else play(names, separate=False, folder=shared)
    return told(fates, beside)


def told(fates: list[Fate], beside: list[Fate]) -> Measured:
    with_one = {fate.attack.name: fate for fate in beside}
    table = [
        "| attack | below HTTP | the act itself | the gateway answers | found in | with one account |",
        "|---|---|---|---|---|---|",
    ]
    broken = []
    for fate in fates:
        other = with_one.get(fate.attack.name)
        alone = "–" if other is None else other.wrong or ("right" if not other.found else f"right; {other.found}")
        table.append(
            f"| {fate.attack.title} | {'yes' if fate.attack.below else ''} | {'done' if fate.did else 'refused'} | "
            f"{fate.wrong or 'right'} | {fate.found or ('nowhere' if fate.did else 'refused by the system')} | {alone} |"
        )
        if fate.wrong:
            broken.append(f"{fate.attack.name}: {fate.wrong}")
        if fate.did and not fate.found:
            broken.append(f"{fate.attack.name} was done and nothing tells of it")
    below = [fate for fate in fates if fate.attack.below]
    return Measured(
        figures={
            "attacks": len(fates),
            "stopped": sum(not fate.wrong for fate in fates),
            "audited": sum("audit" in fate.found or "reconcile" in fate.found for fate in fates),
            "refused_by_the_system": sum(not fate.found and not fate.did for fate in fates),
            "below_http": len(below),
        },
        beside={
            "one shared account: attacks that got through": sum(bool(fate.wrong) for fate in beside) if beside else None,
            "one shared account: done without a trace": sum(fate.did and not fate.found for fate in beside) if beside else None,
        },
        table=table,
        broken=broken,
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--apart", action="store_true", help="leave out the same list with one account")
    parser.add_argument("--only", help="names of attacks, comma-separated")


if __name__ == "__main__":
    raise SystemExit(main("guard_attacks", measure, options=options))
