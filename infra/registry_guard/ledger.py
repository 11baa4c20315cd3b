"""What stands, as far as the guard is concerned: the fold of its own audit, and of nothing else.

`release.acts` is the part that the steward reads too. The rest here is what only the guard asks: which folders are taken, who
gave which reason, what the steward has put on the page.
"""

from __future__ import annotations

from collections.abc import Callable

from truing.tasks.records import Cause, Release
from truing.tasks.release import acts
from truing.tasks.release.acts import Acts, Docket
from truing.tasks.release.audit import Line
from truing.tasks.seal import RELEASE_TYPE, Keys, digest_bytes, open_envelope

# acts of ours that carry facts, beside those of `release.acts`
PROPOSAL = "proposal"  # problem, policy
CHAMPION = "champion"  # problem, version
REASON = "reason"  # problem, version (or ""), key, text
SHOWN = "shown"  # problem, version, key (a tag, or `description`), mark (sha256 of its text)
HEAD = "head"  # problem, sequence, audit (how far it goes)
FOLDER = "folder"  # a fact of acts.VERSION: where the bytes lie below the artifact root


class Ledger:
    """Take in every checked line in order (`apply`); ask anything between two of them. `keys` are those of the moment."""

    def __init__(self, keys: Callable[[], Keys]) -> None:
        self.keys = keys
        self.acts = Acts(keys().registry)
        self.folders: set[str] = set()
        self.proposed: dict[str, str] = {}
        self.heads: dict[str, tuple[int, int]] = {}
        self.frozen_at: dict[str, float] = {}
        self.requests: dict[str, tuple[str, str]] = {}  # digest of a rollback request's line → problem, version
        self._champions: dict[str, str] = {}
        self._reasons: dict[tuple[str, str, str], str] = {}
        self._shown: dict[tuple[str, str], dict[str, str]] = {}

    def of(self, problem: str) -> Docket:
        return self.acts.of(problem)

    def apply(self, line: Line) -> None:
        entry, facts = line.entry, line.entry.facts
        if "envelope" in facts:
            self.acts.keys = tuple(self.keys().registry)
        self.acts.apply(line)
        if entry.outcome != "done" or "problem" not in facts:
            return
        problem, version = facts["problem"], facts.get("version", "")
        match entry.act:
            case acts.VERSION:
                self.folders.add(facts.get(FOLDER, ""))
            case acts.DECISION:
                self._reasons.pop((entry.user, f"{problem}/{version}", "approval.reason"), None)
            case acts.ANCHOR | acts.ROLLBACK | acts.FROZEN | acts.STANDING:
                self._reasons.pop((entry.user, f"{problem}/", f"{entry.act}.reason"), None)
                if entry.act == acts.FROZEN:
                    self.frozen_at[problem] = entry.at
                elif entry.act == acts.ROLLBACK:
                    self.requests[line.digest] = (problem, version)
            case "proposal":
                self.proposed[problem] = facts["policy"]
            case "champion":
                self._champions[problem] = version
            case "reason":
                self._reasons[entry.user, f"{problem}/{version}", facts["key"]] = facts["text"]
            case "shown":
                self._shown.setdefault((problem, version), {})[facts["key"]] = facts["mark"]
            case "head":
                self.heads[problem] = int(facts["sequence"]), int(facts["audit"])

    # --- asking
    def champion(self, problem: str) -> str | None:
        """The version that serves, by the steward's last move; None if none does, or what served was withdrawn."""
        moved = self._champions.get(problem)
        newest = (
            self.release_of(problem, moved) if moved else None
        )  # its own: the next release is attached before the alias moves
        opened = open_envelope(newest, Release, RELEASE_TYPE, self.keys().release) if newest else None
        return None if isinstance(opened, Release) and opened.cause is Cause.WITHDRAW else moved

    def reason(self, user: str, problem: str, key: str, version: str = "") -> str:
        """What this person gave as reason since the last act of that kind; a reason counts once, and only its giver's."""
        return self._reasons.get((user, f"{problem}/{version}", key), "").strip()

    def newest(self, problem: str, version: str | None = None) -> int:
        """The highest sequence that was attached, of all or of one version; 0 if none was."""
        released = self.of(problem).released
        return max((number for number, made in released.items() if version in (None, made.version)), default=0)

    def released(self, problem: str) -> set[str]:
        """Versions that were released at least once."""
        return {made.version for made in self.of(problem).released.values()}

    def release_of(self, problem: str, version: str) -> str | None:
        """The newest statement of a version, as text."""
        newest = self.newest(problem, version)
        return self.of(problem).released[newest].envelope if newest else None

    def altered(self, problem: str, version: str, page: dict[str, str]) -> list[str]:
        """Of what the steward put on a version's page (tags, `description`): the keys that say something else now."""
        wanted = self._shown.get((problem, version), {})
        return sorted(key for key, mark in wanted.items() if digest_bytes(page.get(key, "").encode()) != mark)
