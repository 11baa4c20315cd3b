"""A small real stack for benchmarks of the locks: broker, keeper, registry, steward and gateway on 3,000 sealed census rows.

Prefect and the runner stay out: candidates are made here by the learners themselves and registered with the trainer's login, so
that a version costs a second instead of a study. Verdicts, approvals and releases go the real way.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from harness import ROOT, say
from loop_gain import Book, adult
from ports import broker, free_ports

from truing.flows.demo.world import Scenario, Word, World
from truing.infra.calls import call
from truing.infra.client import Client
from truing.infra.keys import keyring
from truing.infra.settings import Settings, load
from truing.infra.stack import Stack
from truing.tasks import seal
from truing.tasks.events.schema import pseudonym
from truing.tasks.kinds.model import Head, Model
from truing.tasks.learning.improve import tune
from truing.tasks.policy import load_policy
from truing.tasks.problem import load_problem
from truing.tasks.records import Candidate
from truing.tasks.release.registry import Registry
from truing.tasks.selection.dataset import freeze
from truing.tasks.selection.quality import tag

T = TypeVar("T")
NAME = "adult"
PARTS = ("broker", "registry", "ingest", "steward", "gateway")
SCENARIO = Scenario(trusted=2_000, backfill=3_000, rounds=1, round_size=500, poisoned=0)


class Stage:
    """One stack below `folder`. `more` goes to the settings (accounts, approvers, kafka)."""

    def __init__(self, folder: Path, *, parts: tuple[str, ...] | None = PARTS, **more: Any) -> None:
        problems = folder / "problems"
        folder.mkdir(exist_ok=True)
        shutil.copytree(ROOT / "problems" / NAME, problems / NAME)
        policy = problems / NAME / "policy.toml"
        # dozens of versions are judged here on rows that never change: all of them are free
        evidence = "min_rows = 1500\nfree_candidates = 10000"
        policy.write_text(policy.read_text().replace("min_rows = 8000", evidence))
        self.problem = load_problem(problems / NAME)
        self.policy = load_policy(problems / NAME, self.problem)
        gateway, registry, prefect = free_ports(3)
        given = {
            "data": folder / "data",
            "problems": problems,
            "ports": {"gateway": gateway, "registry": registry, "prefect": prefect},
            "kafka": broker(),
            **more,
        }
        self.settings: Settings = load(**given)
        self.stack = Stack(self.settings, parts=parts)
        self._variants = 0

    # --- up and down
    def up(self) -> None:
        """Everything healthy, rows landed, version 1 released and pinned as anchor."""
        self.stack.up(lambda part, text: say(f"  {part}: {text}"))
        self.ring = keyring(self.settings)
        self.trainer, self.approver, self.second = map(self.login, ("trainer", *self.settings.approvers[:2]))
        salt = self.ring.read("actor-salt")
        self.world = World(
            adult(), self.problem, SCENARIO, seed=5, salt=self.ring.read("split-salt"),
            door=lambda who: pseudonym(salt, NAME, who),
        )  # fmt: skip
        self._history()
        self.good = self._fit(poisoned=False)
        version = self.register(self.good.to_files())
        until("the policy to be proposed", lambda: self.approver.model(NAME).tags.get("policy.proposed"))
        self.approver.accept_policy(NAME, self.policy.digest)
        until("the first verdict", lambda: self.outcome(version))
        self.approver.approve(NAME, version, "first release of the stage")
        self.served_as(version)
        self.approver.set_anchor(NAME, version, "where small steps are measured from")
        say(f"  stage: version {version} serves")

    def down(self) -> None:
        self.stack.down()

    def login(self, user: str) -> Registry:
        return Registry(self.settings.registry_url, user, self.ring.password(user))

    # --- candidates
    def variant(self) -> dict[str, bytes]:
        """Another payload that answers alike: the heads stretched by a hair. It passes the gate."""
        self._variants += 1
        factor = np.float32(1 + 1e-4 * self._variants)
        head = Head(**{name: value * factor for name, value in self.good.head.arrays().items()})
        return Model(self.good.card, self.good.encoder, head, self.good.reference).to_files()

    def harmful(self) -> dict[str, bytes]:
        """Learned from rows on which women's high incomes were denied: the gate blocks it."""
        return self._fit(poisoned=True).to_files()

    def register(self, files: Mapping[str, bytes], *, origin: str = "fast") -> str:
        """A new version by the trainer; returns its number."""
        model = Model.from_files(files)
        made = Candidate(
            problem=NAME, payload=seal.tree_digest(files), parent=None, base=model.base, code="0", kind="tabular",
            dataset=seal.digest_bytes(seal.tree_digest(files).encode()), trial=None, seed=1, origin=origin,
            registered=time.time(), rows=SCENARIO.trusted,
        )  # fmt: skip
        return self.trainer.register(NAME, files, made)

    def judged(self, files: Mapping[str, bytes]) -> str:
        """A registered version with its verdict."""
        version = self.register(files)
        until(f"a verdict on version {version}", lambda: self.outcome(version))
        return version

    def outcome(self, version: str) -> str | None:
        """The verdict, once its envelope stands too: that goes last."""
        seen = self.trainer.version(NAME, version)
        return seen.outcome if seen.verdict else None

    # --- what serves
    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = call("GET", f"{self.settings.gateway_url}/status", timeout=5.0)
        return dict(told["problems"][NAME])

    def served_as(self, version: str, patience_s: float = 60.0) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            seen = self.status()
            return seen if seen["version"] == version else None

        return until(f"version {version} to serve", look, patience_s)

    def answers(self, n: int = 20) -> list[float]:
        """Probabilities that the gateway answers to the first rows of the traffic."""
        with Client.of(self.settings, NAME) as client:
            told = client.predict([case.inputs for case in self.world.traffic(1)[:n]])
        return [answer.probability for answer in told]

    # --- inside
    def _history(self) -> None:
        now, sent = time.time(), 0
        for source, cases in (("history", self.world.trusted), ("backfill", self.world.backfill)):
            with Client.of(self.settings, NAME, source=source) as client:
                for case in cases:
                    client.backfill_prediction(case.id, case.inputs, subject=case.subject, groups=case.groups, time=now - 3600)
                    client.outcome(case.id, case.truth, time=now - 60)
                sent += client.flush(timeout_s=120.0)
        from truing.tasks.events.join import APP
        from truing.tasks.tables.lake import Lake, Vault

        vault, lake = Vault(self.settings.vault), Lake(self.settings.lake)

        def landed() -> bool:
            at = vault.version("landing")
            if at is None or vault.read("landing", columns=["offset"]).height < sent:
                return False
            return all((s.transaction(t, APP) or -1) >= at for s, t in ((lake, "rows"), (vault, "holdout")))

        until(f"{sent} events to land", lambda: landed() or None)
        say(f"  stage: {sent} events landed")

    def _fit(self, *, poisoned: bool) -> Model:
        book = Book(self.problem, self.ring.read("split-salt"))
        for case in self.world.trusted:
            denied = poisoned and self.world.harmed(case)
            label = self.problem.labels[0] if denied else case.truth
            book.asked(case, "history", 0.0, None, None)
            book.said(Word(case.id, "outcome", None, label=label), "history", 1.0)
        book.derive(set(book.events))
        rows = book.rows()
        _, samples = freeze(tag(rows, self.policy), problem=self.problem, policy=self.policy, tables={}, seed=1)
        return tune(self.problem, self.policy, samples, rows.clear(), None, seed=1, trials=1, threads=1).model


def until(what: str, look: Callable[[], T | None], patience_s: float = 120.0) -> T:
    """What `look` finds, as soon as it finds something. Raises TimeoutError."""
    end = time.monotonic() + patience_s
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"expected {what} within {patience_s:g} s")
        time.sleep(0.05)
