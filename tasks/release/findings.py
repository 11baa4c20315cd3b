"""The steward's findings: opened once each, closed when what was found is gone. A chain like the audit, in its own folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from truing.tasks.records import Record
from truing.tasks.release.audit import Line, follow
from truing.tasks.release.chain import Chain, whole_lines
from truing.tasks.release.reconcile import Finding
from truing.tasks.seal import Keys


class Findings:
    """Open findings and the file behind them. Not safe between threads."""

    def __init__(self, path: Path, *, key: Callable[[], bytes], keys: Keys) -> None:
        self._chain = Chain(path, user="steward", key=key, keys=keys.release)
        self._suspects: dict[tuple[str, str], Finding] = {}
        self.open: dict[str, Finding] = {}
        for line in self._chain.take():
            _apply(self.open, line)

    def settle(
        self, found: list[Finding], *, looked: Callable[[Finding], bool], at: float, sure: bool = False
    ) -> tuple[list[Finding], list[Finding]]:
        """Take in one look: (findings opened now, findings closed now).

        A difference counts when two looks in a row saw it (`sure`: at once), for a look can fall between two writes of one act.
        `looked` says which findings this look would have seen; only those can be closed by it.
        """
        now = {(one.key, one.got): one for one in found}
        opened = []
        for name, one in now.items():
            known = self.open.get(one.key)
            if known is not None and known.got == one.got:
                continue
            if sure or name in self._suspects:
                self._add("open", one, at)
                opened.append(one)
        keys = {one.key for one in found}
        closed = [one for one in self.open.values() if one.key not in keys and looked(one)]
        for one in closed:
            self._add("close", one, at)
        told = {(one.key, one.got) for one in self.open.values()}
        elsewhere = {name: one for name, one in self._suspects.items() if not looked(one)}
        self._suspects = elsewhere | {name: one for name, one in now.items() if name not in told}
        return opened, closed

    @property
    def suspects(self) -> list[Finding]:
        """Seen once: look again soon."""
        return list(self._suspects.values())

    def close(self) -> None:
        self._chain.close()

    def _add(self, act: str, one: Finding, at: float) -> None:
        _apply(self.open, self._chain.add(act, one.key, _facts(one), at=at, reason=one.what))


def open_findings(path: Path, keys: Keys) -> list[Finding]:
    """What is still open, oldest first; [] without a file. Raises Unavailable, Broken."""
    found: dict[str, Finding] = {}
    for line in follow(whole_lines(path), keys=keys.release):
        _apply(found, line)
    return list(found.values())


def _apply(found: dict[str, Finding], line: Line) -> None:
    facts = {**line.entry.facts}
    one = Finding(**{name: facts[name] for name in _TEXTS}, at=float(facts["at"]))
    found.pop(one.key, None)
    if line.entry.act == "open":
        found[one.key] = one


_TEXTS = ("problem", "version", "part", "what", "expected", "got")


def _facts(one: Record) -> dict[str, str]:
    return {name: str(getattr(one, name)) for name in (*_TEXTS, "at")}
