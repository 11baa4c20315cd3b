"""MLflow's tags as they should read, computed from the ledger: a view for people and old readers, never the other way round."""

from __future__ import annotations

from collections.abc import Callable

from truing.infra.registry_guard.books import Books
from truing.infra.registry_guard.deeds import terms
from truing.infra.registry_guard.ledger import Ledger
from truing.tasks.records import Approval
from truing.tasks.release.acts import Docket
from truing.tasks.release.versions import POLICY_TYPE, Version, is_frozen
from truing.tasks.seal import canonical, sign

_OF_VERSION = ("payload", "trainer", "approval", "approval.by", "approval.at", "approval.stamp")
_OF_MODEL = (
    "policy.accepted", "policy.by", "policy.at", "policy.stamp", "anchor", "anchor.by", "anchor.at", "frozen.by", "frozen.at",
    "rollback.to", "rollback.by", "rollback.at", "standing.by", "standing.at",
    "standing.stamp",
)  # fmt: skip


class View:
    """`key` gives the registry's private key of the moment."""

    def __init__(self, books: Books, ledger: Ledger, key: Callable[[], bytes]) -> None:
        self.books, self.ledger, self._key = books, ledger, key

    # --- after one act
    def decided(self, problem: str, version: str) -> None:
        """The stamps beside a decision that has just been recorded."""
        tags = self._version(self.ledger.of(problem), version)
        self.books.show_version(problem, version, {key: tags[key] for key in ("approval.by", "approval.at", "approval.stamp")})

    def acted(self, problem: str, kind: str) -> None:
        """The stamps beside an act on a model: `kind` is the first word of its tags."""
        tags = {key: value for key, value in self._model(problem).items() if key.split(".")[0] == kind}
        self.books.show_model(problem, {key: value for key, value in tags.items() if key.endswith((".by", ".at", ".stamp"))})

    # --- all of it, when the server starts
    def mend(self) -> list[tuple[str, str]]:
        """Put every tag right that the audit knows better. Returns what was found: (problem or version, words).

        A newest version without a record is a registration that a crash cut short: it is undone, and can be repeated.
        """
        found: list[tuple[str, str]] = []
        seen: set[str] = set()
        for version in self.books.versions():
            docket = self.ledger.of(version.problem)
            target = f"{version.problem}/{version.version}"
            if version.verdict is None and version.number > max(map(int, docket.versions), default=0):
                self.books.forget_version(version.problem, version.version)  # else it would stand there for ever
                found.append((target, "a version that was never recorded here: cut short, or put in; taken out"))
                continue
            wrong = self.mend_version(version)
            seen.add(target)
            if version.version not in docket.versions:
                found.append((target, "a version that was never recorded here: cut short, or put in; it counts for nothing"))
            elif wrong:
                found.append((target, f"tags put right by the audit: {', '.join(wrong)}"))
        for problem, tags in self.books.models().items():
            wrong = self.mend_model(problem, tags)
            if wrong:
                found.append((problem, f"tags put right by the audit: {', '.join(wrong)}"))
        for problem in self.ledger.acts.problems:
            for number in self.ledger.of(problem).versions:
                if f"{problem}/{number}" not in seen:
                    found.append((f"{problem}/{number}", "its row is gone from the database; restore it from a backup"))
        return found

    def mend_version(self, version: Version) -> list[str]:
        """Put one version's tags right; the keys that were wrong."""
        wrong = _differences(version.tags, self._version(self.ledger.of(version.problem), version.version))
        self.books.show_version(version.problem, version.version, wrong)
        return sorted(wrong)

    def mend_model(self, problem: str, tags: dict[str, str]) -> list[str]:
        wrong = _differences(tags, self._model(problem) | self._words(problem, tags))
        self.books.show_model(problem, wrong)
        return sorted(wrong)

    def _words(self, problem: str, have: dict[str, str]) -> dict[str, str | None]:
        """Tags in a person's own words are left as they are, unless they say the contrary of what was recorded."""
        docket = self.ledger.of(problem)
        words: dict[str, str | None] = {}
        if is_frozen(have) != docket.frozen:
            words["frozen"] = "true" if docket.frozen else "false"
        if (have.get("standing", "revoked") != "revoked") != (docket.standing is not None):
            words["standing"] = terms(docket.standing.standing) if docket.standing else "revoked"
        return words

    # --- what should stand
    def _version(self, docket: Docket, version: str) -> dict[str, str | None]:
        wanted: dict[str, str | None] = dict.fromkeys(_OF_VERSION)
        registered, decision = docket.versions.get(version), docket.decision(version)
        if registered:
            wanted |= {"payload": registered.payload, "trainer": registered.trainer}
        if registered and decision:
            wanted |= {
                "approval": decision.approval.decision,
                "approval.by": ", ".join(decision.approval.by),
                "approval.at": repr(decision.approval.at),
                "approval.stamp": decision.envelope,
            }
        return wanted

    def _model(self, problem: str) -> dict[str, str | None]:
        docket = self.ledger.of(problem)
        wanted: dict[str, str | None] = dict.fromkeys(_OF_MODEL)
        if docket.policies:
            policy, by, at = docket.policies[-1]
            stamp = Approval(
                problem=problem, version="", verdict=policy, decision="approved", by=(by,), at=at, expires=None, reason="policy"
            )
            envelope = canonical(sign(stamp, POLICY_TYPE, self._key())).decode()
            wanted |= {"policy.accepted": policy, "policy.by": by, "policy.at": repr(at), "policy.stamp": envelope}
        if docket.anchor:
            pinned = docket.anchor
            wanted |= {"anchor": pinned.version, "anchor.by": pinned.by, "anchor.at": repr(pinned.at)}
        if docket.rollback:
            asked = docket.rollback
            wanted |= {"rollback.to": asked.version, "rollback.by": asked.by, "rollback.at": repr(asked.at)}
        if problem in self.ledger.frozen_at:
            wanted |= {"frozen.by": docket.frozen_by, "frozen.at": repr(self.ledger.frozen_at[problem])}
        if docket.standing:
            given = docket.standing
            wanted |= {
                "standing.by": ", ".join(given.standing.by),
                "standing.at": repr(given.standing.at),
                "standing.stamp": given.envelope,
            }
        return wanted


def _differences(have: dict[str, str], wanted: dict[str, str | None]) -> dict[str, str | None]:
    """The tags to write, None for one to take away."""
    return {key: value for key, value in wanted.items() if have.get(key) != value}
