"""`truing verify` and `truing audit`: is what serves what was decided, and who did what? With our own keys, without a server.

Exit 0 when all of it holds, 3 when anything differs, 1 when this user can read nothing of it.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import flat, note, result, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from truing.infra.settings import Settings
    from truing.tasks.records import Verdict
    from truing.tasks.release.audit import Line
    from truing.tasks.release.proof import Check, Evidence


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    verify = verbs.add_parser("verify", parents=[common], help="check a release with our own keys and say what differs")
    verify.add_argument("version", nargs="?", help="number of the version (default: what serves)")
    verify.add_argument("--all", action="store_true", help="every version of every problem")
    verify.add_argument("--problem", help="which problem (default: the only one)")
    verify.add_argument("--as", dest="user", metavar="NAME", help="your login, where files can't be read (default: yours)")
    verify.set_defaults(do=do_verify)
    audit = verbs.add_parser("audit", parents=[common], help="is the record of acts whole? or show it")
    audit.add_argument("what", choices=["verify", "show"], help="check chain, signatures and findings; or print the acts")
    audit.add_argument("--as", dest="login", metavar="NAME", help="your login, where the file can't be read (default: yours)")
    audit.add_argument("--user", help="show: only this user's acts")
    audit.add_argument("--act", help="show: only this act, as `decision`")
    audit.add_argument("--outcome", help="show: only allowed, done, refused or failed")
    audit.add_argument("--last", type=int, metavar="N", help="show: only the last N")
    audit.set_defaults(do=do_audit)


# --- verify -------------------------------------------------------------------------------------------------------------------


def do_verify(args: argparse.Namespace, settings: Settings) -> int:
    """The registry's word counts for nothing here: bytes are hashed and envelopes opened with the keys in the keyring."""
    from truing.flows.cli.explain import proved
    from truing.infra.catalog import catalog, chosen
    from truing.infra.evidence import gather
    from truing.tasks.errors import UsageError
    from truing.tasks.release.proof import UNREAD, prove_problem
    from truing.tasks.release.proof_version import prove_version

    if args.all and args.version:
        raise UsageError(f"verify: expected a version or --all, got {args.version} and --all; leave one out")
    names = (
        list(catalog(settings.problems)) if args.all and not args.problem else [chosen(settings.problems, args.problem)[0].name]
    )
    seen, checks = gather(settings, names, user=args.user)
    now = time.time()
    for one in seen.values():
        checks += prove_problem(one, now=now)
        for version in _wanted(args, one):
            found = next((known for known in one.versions if known.version == version), None)
            checks += prove_version(one, found, now=now) if found else _gone(one, version)
            checks += proved(settings, one.problem, version, _booked(one, version))
    broken = [one for one in checks if one.broken]
    unread = [one for one in checks if one.state == UNREAD]
    about = names[0] if len(names) == 1 else f"{len(names)} problems"
    about += f" version {args.version}" if args.version else ""
    made = len(checks) - len(unread)
    head = f"{about}: {len(broken)} of {made} checks fail" if broken else f"{about}: all {made} checks hold"
    if not made:
        head = f"{about}: nothing could be checked"
    if unread:
        head += f"; {len(unread)} could not be made by this user"
    shown = [(one.about, one.name, one.state, _words(one)) for one in checks]
    text = f"{head}\n{table(('', 'check', '', ''), shown).partition(chr(10))[2]}"
    whole = {
        "problem": names[0] if len(names) == 1 else names,
        "version": args.version,
        "whole": not broken and made > 0,
        "unread": len(unread),
    }
    lines = [
        {name: getattr(one, name) for name in ("about", "name", "state", "expected", "got", "note")} | {"ok": not one.broken}
        for one in checks
    ]
    result(whole | {"checks": lines}, text, as_json=args.json)
    return 3 if broken else 0 if made else 1


def _wanted(args: argparse.Namespace, seen: Evidence) -> list[str]:
    if args.version:
        return [args.version]
    if args.all:
        return [one.version for one in seen.versions]
    issued = seen.issued()
    serving = issued[-1].version if issued else (seen.model.champion if seen.model else None)
    return [serving] if serving else []


def _booked(seen: Evidence, version: str) -> Verdict | None:
    """The verdict that counts on a version, by the steward's book."""
    known = seen.docket.versions.get(version) if seen.docket else None
    judged = seen.book.verdict(seen.problem, known.payload) if seen.book and known else None
    return judged.verdict if judged else None


def _gone(seen: Evidence, version: str) -> list[Check]:
    """A version that MLflow does not show: known to the audit, or to nobody."""
    from truing.tasks.errors import DataError
    from truing.tasks.release.proof import MISSING, UNREAD, Check

    if "store" in seen.unread:
        return [Check(about=f"version {version}", name="files", state=UNREAD, note="MLflow's store could not be read")]
    if seen.docket is None or version not in seen.docket.versions:
        known = ", ".join(one.version for one in seen.versions) or "none"
        raise DataError(f"{seen.problem}: expected one of the versions {known}, got {version}; name one")
    return [Check(about=f"version {version}", name="registration", state=MISSING, expected="a version in MLflow", got="none")]


def _words(check: Check) -> str:
    return f"expected {check.expected}, got {check.got}" if check.broken else check.note


# --- audit --------------------------------------------------------------------------------------------------------------------


def do_audit(args: argparse.Namespace, settings: Settings) -> int:
    return _verify_audit(args, settings) if args.what == "verify" else _show_audit(args, settings)


def _verify_audit(args: argparse.Namespace, settings: Settings) -> int:
    """Chain, signatures, every countersigned head, the steward's book and its open findings; the first break in one line."""
    from truing.infra.examined import examine

    found = examine(settings, user=args.login)
    if found.broken:
        if args.json:
            result(found.data, "", as_json=True)
        note(f"truing audit: {found.broken}")
        return 3
    result(found.data, found.text, as_json=args.json)
    return 0


def _show_audit(args: argparse.Namespace, settings: Settings) -> int:
    """Oldest first. What follows a break is not shown."""
    from truing.infra.evidence import audit_lines
    from truing.infra.keys import keyring
    from truing.tasks.errors import UsageError
    from truing.tasks.release.audit import Broken, follow

    if args.last is not None and args.last < 1:
        raise UsageError(f"--last: expected 1 or more, got {args.last}; leave it out to see all")
    lines, _ = audit_lines(settings, user=args.login)
    kept, broken = [], ""
    try:
        for line in follow(lines, keys=keyring(settings).public().registry):
            if _asked_for(line, args):
                kept.append(line)
    except Broken as error:
        broken = str(error)
    kept = kept[-args.last :] if args.last else kept
    found = [
        {"n": one.entry.n, "at": one.entry.at, "user": one.entry.user, "act": one.entry.act, "target": one.entry.target,
         "outcome": one.entry.outcome, "reason": one.entry.reason, "facts": one.entry.facts, "digest": one.digest}
        for one in kept
    ]  # fmt: skip
    result(found, _shown(kept), as_json=args.json)
    if broken:
        note(f"truing audit: {broken}; nothing after it is shown")
        return 3
    return 0


def _asked_for(line: Line, args: argparse.Namespace) -> bool:
    entry = line.entry
    pairs = ((args.user, entry.user), (args.act, entry.act), (args.outcome, entry.outcome))
    return all(wanted is None or wanted == got for wanted, got in pairs)


def _shown(lines: Iterable[Line]) -> str:
    rows = [
        (
            one.entry.n,
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(one.entry.at)),
            _plain(one.entry.user, 20),
            _plain(one.entry.act, 34),
            _plain(one.entry.target, 44),
            one.entry.outcome,
            _plain(one.entry.reason, 100),
        )
        for one in lines
    ]
    return table(("n", "when (UTC)", "who", "act", "target", "outcome", "reason"), rows) if rows else "no act recorded"


def _plain(text: str, most: int) -> str:
    """One line of at most so many characters."""
    line = flat(text)
    return line if len(line) <= most else line[: most - 1] + "…"
