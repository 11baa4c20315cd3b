"""What all rules stand on: the ledger, MLflow's stores, the folders that are taken; and what `admit` is told of a version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from truing.infra.registry_guard.acts import Act
from truing.infra.registry_guard.books import Books, Uploads
from truing.infra.registry_guard.ledger import Ledger
from truing.tasks.policy import Policy
from truing.tasks.records import Refusal
from truing.tasks.release.acts import Decision
from truing.tasks.seal import Facts, Keys


@dataclass(frozen=True)
class Ground:
    """`policy` gives a policy by problem and digest, if its file is at hand."""

    books: Books
    ledger: Ledger
    uploads: Uploads
    policy: Callable[[str, str | None], Policy | None]

    @property
    def keys(self) -> Keys:
        return self.ledger.keys()

    def registered(self, problem: str, version: str) -> Refusal | None:
        """Only the audit makes a version. Raises MLflow's own 404 when its database has none either."""
        if version in self.ledger.of(problem).versions:
            return None
        self.books.version(problem, version)
        return Refusal(
            code="version.unknown",
            reason=f"version {version} of {problem} was never registered here, whatever the database says",
            remedy="register its files; see `truing audit show`",
        )

    def facts(self, act: Act, version: str, payload: str | None, decided: Decision | None) -> Facts:
        """What `admit` asks about a registered version; `payload` is of its bytes or as registered, whichever the act needs."""
        problem = act.body.name
        docket = self.ledger.of(problem)
        serving = self.ledger.champion(problem)
        policy = self.policy(problem, docket.policy)
        return Facts(
            problem=problem,
            version=version,
            payload=payload,
            verdict=docket.verdicts.get(version),
            approval=decided.envelope if decided else None,
            release=self.ledger.release_of(problem, version),
            policy=docket.policy,
            trainer=docket.versions[version].trainer,
            actor=act.user,
            decision=getattr(act.body, "value", None),
            reason=self.ledger.reason(act.user, problem, "approval.reason", version),
            roles=act.roles,
            frozen=docket.frozen,
            override=policy.approvals.block_persons if policy else 0,
            standing=docket.standing.envelope if docket.standing else None,
            champion=docket.versions[serving].payload if serving and serving != version else None,
        )
