"""A data folder as a stack leaves it, made without one: MLflow's own database and artifacts, the audit, the steward's book and
the gateway's cache, all signed by real keys. Who reads it can't tell the difference; each piece can be tampered with.
"""

from __future__ import annotations

import base64
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from truing.flows.cli.main import main
from truing.infra.gateway.cache import Cache, State
from truing.infra.keys import Keyring
from truing.infra.settings import Settings
from truing.tasks import seal
from truing.tasks.policy import Policy
from truing.tasks.records import Approval, Outcome, Release, Verdict
from truing.tasks.release.audit import Entry, Line, Mark, seal_line
from truing.tasks.release.book import head_of, open_book
from truing.tasks.release.manifest import release_name, release_of

ROOT = Path(__file__).resolve().parent.parent
HOUR = 3600.0
PROBLEM = "adult"
VERSIONS = {"1": Outcome.INCONCLUSIVE, "2": Outcome.PASS, "3": Outcome.PASS, "4": Outcome.BLOCK}


class Folder:
    """Versions 1 and 2 released, 3 judged and waiting, 4 blocked."""

    def __init__(self, settings: Settings, policy: Policy, template: Path, *, now: float | None = None) -> None:
        self.settings, self.policy, self.now = settings, policy, time.time() if now is None else now
        self.ring = Keyring(settings.keys)
        self.ring.create([])
        self.lines: list[Line] = []
        self.verdicts: dict[str, Verdict] = {}
        self.approvals: dict[str, Approval] = {}
        settings.guard.mkdir(parents=True)
        shutil.copytree(template, settings.store)
        self.book = open_book(settings.desk / "book.jsonl", key=lambda: self.ring.read("release"), keys=self.ring.public())
        self.note("approver", "policy", {"policy": policy.digest})
        self.model_tag("policy.accepted", policy.digest)
        for version, outcome in VERSIONS.items():
            self.register(version)
            self.judge(version, outcome)
            if version in ("1", "2"):
                self.approve(version)
                self.release(version)
        self.head()
        self.book.close()

    # --- what the parts write
    def register(self, version: str) -> None:
        folder = self.files(version)
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(f'{{"version": {version}}}')
        (folder / "heads.safetensors").write_bytes(bytes(range(int(version), 200)))
        payload = seal.tree_digest(seal.read_tree(folder))
        self.note("trainer", "version", {"version": version, "payload": payload, "trainer": "trainer"})
        self.tag(version, payload=payload, trainer="trainer")

    def judge(self, version: str, outcome: Outcome) -> None:
        payload = self.payload(version)
        verdict = Verdict(
            problem=PROBLEM, outcome=outcome, clauses=(), candidate=payload, evaluation="e" * 64, policy=self.policy.digest,
            dataset="d" * 64, champion=None, look=1, at=self.now - 5 * HOUR, key="gate", reason=f"{outcome} because",
        )  # fmt: skip
        envelope = seal.sign(verdict, seal.VERDICT_TYPE, self.ring.read("gate"))
        judged = self.book.add_verdict(envelope, at=self.now, version=version)
        self.book.finish(judged, at=self.now)
        self.note("steward", "verdict", {"version": version, "envelope": text(envelope)})
        self.tag(version, verdict=text(envelope), **{"verdict.outcome": str(outcome), "verdict.reason": verdict.reason})
        self.verdicts[version] = verdict

    def approve(self, version: str, *, decision: str = "approved", expires: float | None = None, **more: Any) -> Approval:
        verdict = self.verdicts[version]
        if verdict.outcome is not Outcome.PASS and expires is None and decision == "approved":
            expires = self.now + 20 * 24 * HOUR
        facts = {"by": ("approver",), "at": self.now - 4 * HOUR, "reason": "fine"} | more
        approval = Approval(
            problem=PROBLEM, version=version, verdict=seal.digest(verdict), decision=decision, expires=expires, **facts
        )
        envelope = text(seal.sign(approval, seal.APPROVAL_TYPE, self.ring.read("registry")))
        self.note(approval.by[-1], "decision", {"version": version, "envelope": envelope})
        self.tag(version, approval=decision, **{"approval.stamp": envelope})
        self.approvals[version] = approval
        return approval

    def release(self, version: str) -> Release:
        past = self.book.releases(PROBLEM)
        sequence = past[-1].sequence + 1 if past else 1
        release = release_of(
            self.verdicts[version], self.approvals[version], version=version, name=release_name(PROBLEM, sequence), past=past,
            environment={"name": "test"}, now=self.now - 3 * HOUR,
        )  # fmt: skip
        envelope = seal.sign(release, seal.RELEASE_TYPE, self.ring.read("release"))
        self.book.finish(self.book.add_release(envelope, audit=len(self.lines), at=self.now), at=self.now)
        self.note("steward", "release", {"version": version, "envelope": text(envelope)})
        self.tag(version, release=text(envelope), **{f"release.{release.sequence}": text(envelope)})
        self.note("steward", "champion", {"version": version})
        self.serve(release, text(envelope), version)
        return release

    def serve(self, release: Release, envelope: str, version: str) -> None:
        self.sql(
            "INSERT OR REPLACE INTO registered_model_aliases (name, alias, version, workspace) "
            "VALUES (?, 'champion', ?, 'default')",
            PROBLEM, int(version),
        )  # fmt: skip
        state = State(floor=release.sequence, statement=seal.digest(release), version=version, payload=release.payload,
                      envelope=envelope)  # fmt: skip
        Cache(self.settings.data / "gateway" / PROBLEM).keep(state, seal.read_tree(self.files(version)))

    def head(self, *, now: float | None = None) -> None:
        mark = Mark(n=self.lines[-1].entry.n, digest=self.lines[-1].digest)
        head = head_of(self.book, PROBLEM, mark, now=self.now if now is None else now, lasts_s=HOUR)
        envelope = seal.sign(head, seal.HEAD_TYPE, self.ring.read("release"))
        self.book.add_head(envelope, at=self.now)
        self.model_tag("release.head", text(envelope))

    def note(self, user: str, act: str, facts: dict[str, str], outcome: str = "done", reason: str = "") -> Line:
        """One audit record."""
        previous = self.lines[-1] if self.lines else None
        entry = Entry(
            n=len(self.lines) + 1, at=self.now - 6 * HOUR + len(self.lines), user=user, act=act,
            target=f"{PROBLEM}/{facts.get('version', '')}", outcome=outcome, reason=reason,
            previous=previous.digest if previous else Mark().digest, facts={"problem": PROBLEM, **facts},
        )  # fmt: skip
        self.lines.append(seal_line(entry, self.ring.read("registry")))
        self.write_audit(self.lines)
        return self.lines[-1]

    # --- places, and what an attacker may write
    def files(self, version: str) -> Path:
        return self.settings.store / "artifacts" / "1" / "models" / f"m-{version}" / "artifacts"

    def payload(self, version: str) -> str:
        return seal.tree_digest(seal.read_tree(self.files(version)))

    def write_audit(self, lines: list[Line]) -> None:
        import msgspec

        (self.settings.guard / "audit.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.settings.store / "mlflow.db")) as database, database:
            return database.execute(statement, values).fetchall()

    def tag(self, version: str, **tags: str) -> None:
        for key, value in tags.items():
            self.sql(
                "INSERT OR REPLACE INTO model_version_tags (name, version, key, value, workspace) "
                "VALUES (?, ?, ?, ?, 'default')",
                PROBLEM, int(version), key, value,
            )  # fmt: skip

    def read_tag(self, version: str, key: str) -> str:
        found = self.sql("SELECT value FROM model_version_tags WHERE version = ? AND key = ?", int(version), key)
        return str(found[0][0])

    def model_tag(self, key: str, value: str) -> None:
        self.sql("INSERT OR REPLACE INTO registered_model_tags (name, key, value, workspace) VALUES (?, ?, ?, 'default')",
                 PROBLEM, key, value)  # fmt: skip


def template(folder: Path) -> Path:
    """MLflow's store with the model and its versions, empty, written by MLflow itself."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    folder.mkdir(parents=True, exist_ok=True)
    store = SqlAlchemyStore(f"sqlite:///{folder / 'mlflow.db'}")
    store.create_registered_model(PROBLEM)
    for version in VERSIONS:
        store.create_model_version(PROBLEM, f"mlflow-artifacts:/1/models/m-{version}/artifacts")
    store.engine.dispose()
    return folder


def command_line(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """`go("verify", …)` → (exit code, stdout, stderr) on that folder; nothing runs at its ports, whatever runs elsewhere."""
    for part in ("gateway", "registry", "prefect"):
        monkeypatch.setenv(f"TRUING_PORTS__{part.upper()}", str(getattr(settings.ports, part)))

    def go(*argv: str) -> tuple[int, str, str]:
        code = main([*argv, "--data", str(settings.data), "--problems", str(ROOT / "problems")])
        said = capsys.readouterr()
        return code, said.out, said.err

    return go


def text(envelope: Any) -> str:
    return seal.canonical(envelope).decode()


def inside(envelope: str, **changed: Any) -> str:
    """The envelope with its record changed and its signature left as it was."""
    import msgspec

    outer = msgspec.json.decode(envelope, type=dict[str, Any])
    record = msgspec.json.decode(base64.b64decode(outer["payload"])) | changed
    return text(outer | {"payload": base64.b64encode(seal.canonical(record)).decode()})
