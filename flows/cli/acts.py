"""A person's acts: approve, reject, revoke, accept a policy, pin the anchor, roll back, freeze, thaw.

Each names person and reason. The registry's guard decides; a refusal comes back with its reason and exit code 3.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import result

if TYPE_CHECKING:
    from truing.infra.settings import Settings
    from truing.tasks.release.registry import Registry


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    person = argparse.ArgumentParser(add_help=False, parents=[common])
    person.add_argument("--problem", help="which problem (default: the only one)")
    person.add_argument("--as", dest="user", default="approver", metavar="NAME", help="your login (default: approver)")

    for verb, text in (
        ("approve", "approve a version's verdict, so that the steward releases it"),
        ("reject", "reject a version"),
        ("revoke", "take an approval back"),
    ):
        one = verbs.add_parser(verb, parents=[person], help=text)
        one.add_argument("version", help="number of the version")
        one.add_argument("--reason", default="", help="why (an inconclusive verdict needs one)", required=verb != "approve")
        one.add_argument(
            "--wait", type=float, metavar="SECONDS", help="wait until it is released"
        ) if verb == "approve" else None
        one.set_defaults(do=do_decide)

    policy = verbs.add_parser("policy", parents=[person], help="accept the policy that the steward proposes")
    policy.add_argument("act", choices=["accept", "show"], help="accept it, or show what is proposed and accepted")
    policy.add_argument("--digest", help="only if the proposed one begins with this")
    policy.set_defaults(do=do_policy)

    anchor = verbs.add_parser("anchor", parents=[person], help="pin the version against which small steps are summed")
    anchor.add_argument("act", choices=["set"])
    anchor.add_argument("version", help="number of the version")
    anchor.add_argument("--reason", required=True)
    anchor.set_defaults(do=do_anchor)

    back = verbs.add_parser("rollback", parents=[person], help="serve an earlier version again, as a new release")
    back.add_argument("--to", metavar="VERSION", help="which (default: the one released before the champion)")
    back.add_argument("--reason", required=True)
    back.add_argument("--wait", type=float, metavar="SECONDS", help="wait until it is served again")
    back.set_defaults(do=do_rollback)

    freeze = verbs.add_parser("freeze", parents=[person], help="let nothing be promoted until `truing thaw`")
    freeze.add_argument("--reason", required=True)
    freeze.set_defaults(do=do_freeze)
    thaw = verbs.add_parser("thaw", parents=[person], help="end a freeze")
    thaw.add_argument("--reason", default="")
    thaw.set_defaults(do=do_freeze)


def opened(args: argparse.Namespace, settings: Settings) -> tuple[str, Registry]:
    """The problem's name and the registry under this person's login."""
    from truing.infra.catalog import chosen
    from truing.infra.logins import registry_as

    problem, _ = chosen(settings.problems, args.problem)
    return problem.name, registry_as(settings, args.user)


def do_decide(args: argparse.Namespace, settings: Settings) -> int:
    problem, registry = opened(args, settings)
    act = {"approve": registry.approve, "reject": registry.reject, "revoke": registry.revoke}[args.verb]
    version = act(problem, args.version, args.reason)
    found: dict[str, Any] = {
        "problem": problem,
        "version": version.version,
        "decision": version.approval,
        "by": args.user,
        "reason": args.reason,
        "outcome": version.outcome,
    }
    text = f"{problem} version {version.version}: {version.approval} by {args.user}"
    if args.verb == "approve" and args.wait:
        _until(args.wait, f"version {version.version} to be released", lambda: registry.champion(problem) == version.version)
        found["released"] = True
        text += ", released"
    result(found, text, as_json=args.json)
    return 0


def do_policy(args: argparse.Namespace, settings: Settings) -> int:
    from truing.tasks.errors import Refused
    from truing.tasks.records import Refusal

    problem, registry = opened(args, settings)
    tags = registry.model(problem).tags
    proposed, accepted = tags.get("policy.proposed"), tags.get("policy.accepted")
    if args.act == "accept":
        if args.digest and not (proposed or "").startswith(args.digest):
            raise Refused(
                Refusal(
                    code="policy.other",
                    reason=f"expected the policy {args.digest} to be proposed, got {proposed or 'none'}",
                    remedy="read problems/<name>/policy.toml and `truing policy show`",
                )
            )
        accepted = registry.accept_policy(problem, proposed)
    found = {"problem": problem, "proposed": proposed, "accepted": accepted}
    text = f"{problem}: proposed {(proposed or '-')[:12]}, accepted {(accepted or '-')[:12]}"
    result(found, text, as_json=args.json)
    return 0


def do_anchor(args: argparse.Namespace, settings: Settings) -> int:
    problem, registry = opened(args, settings)
    registry.set_anchor(problem, args.version, args.reason)
    found = {"problem": problem, "anchor": args.version, "by": args.user, "reason": args.reason}
    result(found, f"{problem}: anchor is version {args.version}", as_json=args.json)
    return 0


def do_rollback(args: argparse.Namespace, settings: Settings) -> int:
    problem, registry = opened(args, settings)
    before = _sequence(settings, registry, problem)
    to = args.to or _previous(settings, registry, problem)
    registry.request_rollback(problem, to, args.reason)
    found: dict[str, Any] = {"problem": problem, "to": to, "by": args.user, "reason": args.reason}
    text = f"{problem}: rollback to version {to} is asked for"
    if args.wait:
        _until(args.wait, f"version {to} to be served again", lambda: _sequence(settings, registry, problem) > before)
        found["released"] = True
        text = f"{problem}: version {to} is served again"
    result(found, text, as_json=args.json)
    return 0


def do_freeze(args: argparse.Namespace, settings: Settings) -> int:
    problem, registry = opened(args, settings)
    if args.verb == "freeze":
        registry.freeze(problem, args.reason)
    else:
        registry.thaw(problem)
    found = {"problem": problem, "frozen": args.verb == "freeze", "by": args.user, "reason": args.reason}
    result(found, f"{problem}: {'frozen' if found['frozen'] else 'thawed'} by {args.user}", as_json=args.json)
    return 0


def _sequence(settings: Settings, registry: Registry, problem: str) -> int:
    from truing.infra.keys import keyring

    return max((one.sequence for one in registry.releases(problem, keyring(settings).public())), default=0)


def _previous(settings: Settings, registry: Registry, problem: str) -> str:
    """The version released before the one now served."""
    from truing.infra.keys import keyring
    from truing.tasks.errors import DataError

    champion = registry.champion(problem)
    released = registry.releases(problem, keyring(settings).public())
    for one in sorted(released, key=lambda one: -one.sequence):
        if one.version != champion:
            return one.version
    raise DataError(f"{problem}: expected an earlier release to go back to, found none; name a version with --to")


def _until(patience_s: float, what: str, done: Callable[[], bool]) -> None:
    from truing.tasks.errors import Unavailable

    end = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > end:
            raise Unavailable(
                f"expected {what} within {patience_s:.0f} s, it was not; see `truing status` and the steward's log"
            )
        time.sleep(0.2)
