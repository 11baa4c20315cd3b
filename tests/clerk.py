"""Acts written by hand: a registry's audit without the registry, signed and chained as it would be."""

from __future__ import annotations

from typing import Any

from truing.tasks import seal
from truing.tasks.records import Approval, Record, Release, Standing, Verdict
from truing.tasks.release.acts import Acts, Docket
from truing.tasks.release.audit import Entry, Line, Mark, follow, seal_line


class Clerk:
    """Writes lines of one problem. `keys` are private: registry, gate and release."""

    def __init__(self, registry: bytes, gate: bytes, release: bytes, problem: str = "adult") -> None:
        self.registry, self.gate, self.release, self.problem = registry, gate, release, problem
        self.lines: list[Line] = []
        self.public = seal.Keys(
            gate=(seal.public_key(gate),), registry=(seal.public_key(registry),), release=(seal.public_key(release),)
        )

    @property
    def mark(self) -> Mark:
        return Mark(n=self.lines[-1].entry.n, digest=self.lines[-1].digest) if self.lines else Mark()

    def write(self, act: str, user: str = "approver", *, at: float = 1.0, outcome: str = "done", **facts: str) -> Line:
        entry = Entry(
            n=self.mark.n + 1, at=at, user=user, act=act, target="", outcome=outcome, reason="", previous=self.mark.digest,
            facts={"problem": self.problem, **facts} if facts else {},
        )  # fmt: skip
        self.lines.append(seal_line(entry, self.registry))
        return self.lines[-1]

    def envelope(self, record: Record, kind: str, key: bytes) -> str:
        return seal.canonical(seal.sign(record, kind, key)).decode()

    def version(self, version: str, payload: str, trainer: str = "trainer") -> Line:
        return self.write("version", trainer, version=version, payload=payload, trainer=trainer)

    def decide(self, version: str, verdict: Verdict, decision: str = "approved", **changes: Any) -> Line:
        fields: dict[str, Any] = {
            "problem": self.problem, "version": version, "verdict": seal.digest(verdict), "decision": decision,
            "by": ("approver",), "at": 1.0, "expires": None, "reason": "wanted",
        }  # fmt: skip
        approval = Approval(**{**fields, **changes})
        return self.write(
            "decision", version=version, envelope=self.envelope(approval, seal.APPROVAL_TYPE, self.registry), at=approval.at
        )

    def stand(self, **changes: Any) -> Line:
        fields: dict[str, Any] = {
            "problem": self.problem, "decision": "approved", "by": ("approver",), "at": 1.0, "expires": 1e12, "max_drift": 0.02,
            "per_day": 2, "reason": "small steps",
        }  # fmt: skip
        standing = Standing(**{**fields, **changes})
        return self.write("standing", envelope=self.envelope(standing, seal.STANDING_TYPE, self.registry))

    def ask_back(self, version: str, reason: str = "complaints", *, at: float = 1.0) -> Line:
        return self.write("rollback", version=version, reason=reason, at=at)

    def attach(self, release: Release) -> Line:
        text = self.envelope(release, seal.RELEASE_TYPE, self.release)
        return self.write("release", "steward", version=release.version, envelope=text)

    def acts(self) -> Acts:
        found = Acts(self.public.registry)
        for line in follow(self.lines, keys=self.public.registry):
            found.apply(line)
        return found

    def docket(self) -> Docket:
        return self.acts().of(self.problem)
