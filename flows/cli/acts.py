"""A person's acts: approve, reject, revoke, accept a policy, pin the anchor, roll back, freeze, thaw, approve in advance.

Each names person and reason. The registry's guard decides; a refusal comes back with its reason and exit code 3.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import ahead, result
from truing.flows.cli.standing import add as add_standing

if TYPE_CHECKING:
    from truing.infra.settings import Settings
    from truing.tasks.policy import Policy
    from truing.tasks.release.registry import Registry
    from truing.tasks.release.versions import Version


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    person = argparse.ArgumentParser(add_help=False, parents=[common])
    person.add_argument("--problem", help="which problem (default: the only one)")
    person.add_argument(
        "--as", dest="user", metavar="NAME", help="your login (default: the first approver's that you can read)"
    )

    for verb, text in (
        ("approve", "approve a version's verdict, so that the steward releases it"),
        ("reject", "reject a version"),
        ("revoke", "take an approval back; what serves under it goes"),
    ):
        one = verbs.add_parser(verb, parents=[person], help=text)
        one.add_argument("version", help="number of the version")
        one.add_argument("--reason", default="", help="why (an inconclusive verdict needs one)", required=verb != "approve")
        if verb != "reject":
            what = "released" if verb == "approve" else "gone, if it serves"
            one.add_argument("--wait", type=float, metavar="SECONDS", help=f"wait until it is {what}")
        one.set_defaults(do=do_revoke if verb == "revoke" else do_decide, wait=None)

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
    back.add_argument("--to", metavar="VERSION", help="which (default: the newest earlier one whose approval stands)")
    back.add_argument("--reason", required=True)
    back.add_argument("--wait", type=float, metavar="SECONDS", help="wait until it is served again")
    back.set_defaults(do=do_rollback)

    freeze = verbs.add_parser("freeze", parents=[person], help="let nothing be promoted until `truing thaw`")
    freeze.add_argument("--reason", required=True)
    freeze.set_defaults(do=do_freeze)
    thaw = verbs.add_parser("thaw", parents=[person], help="end a freeze")
    thaw.add_argument("--reason", default="")
    thaw.set_defaults(do=do_freeze)
    add_standing(verbs, person)


def opened(args: argparse.Namespace, settings: Settings) -> tuple[str, Policy, Registry]:
    """The problem's name, its policy as the file says, and the registry under this person's login."""
    from truing.infra.catalog import chosen
    from truing.infra.evidence import visitor

    problem, policy = chosen(settings.problems, args.problem)
    return problem.name, policy, visitor(settings, args.user, others=())


def do_decide(args: argparse.Namespace, settings: Settings) -> int:
    problem, policy, registry = opened(args, settings)
    before = _sequence(settings, registry, problem) if args.wait else 0
    act = {"approve": registry.approve, "reject": registry.reject}[args.verb]
    version = act(problem, args.version, args.reason)
    by, wanted, ends = _persons(settings, version, policy)
    found: dict[str, Any] = {
        "problem": problem,
        "version": version.version,
        "decision": version.approval,
        "by": registry.user,
        "all": by,
        "wanted": wanted,
        "expires": ends,
        "reason": args.reason,
        "outcome": version.outcome,
    }
    text = f"{problem} version {version.version}: {version.approval} by {' and '.join(by) or registry.user}"
    if wanted > len(by):
        text += f"; {len(by)} of {wanted} approvals: another approver has to"
    elif ends is not None:
        text += f"; it ends {ahead(ends, time.time())}, and nothing serves under it after that"
    elif args.verb == "reject" and version.release is not None:
        text += "; it was released already: if it serves, `truing revoke` takes it back"
    if args.wait and wanted <= len(by):
        _until(args.wait, f"version {version.version} to be released", lambda: _sequence(settings, registry, problem) > before)
        found["released"] = True
        text += ", released"
    result(found, text, as_json=args.json)
    return 0


def _persons(settings: Settings, version: Version, policy: Policy) -> tuple[list[str], int, float | None]:
    """Who stands behind the decision, how many have to (1 but for a blocked version), and when it ends (Unix seconds)."""
    from truing.infra.keys import keyring
    from truing.tasks.records import Approval
    from truing.tasks.seal import APPROVAL_TYPE, open_envelope

    approval = open_envelope(version.stamp, Approval, APPROVAL_TYPE, keyring(settings).public().registry)
    if not isinstance(approval, Approval):
        return [], 1, None
    wanted = max(policy.approvals.block_persons, 2) if approval.override else 1
    return list(approval.by), wanted, approval.expires


def do_revoke(args: argparse.Namespace, settings: Settings) -> int:
    """Says beforehand what the steward will do about it: nothing, a rollback, or a withdrawal."""
    problem, _, registry = opened(args, settings)
    serves, back = _falls_to(settings, registry, problem, args.version)
    before = _sequence(settings, registry, problem)
    registry.revoke(problem, args.version, args.reason)
    found: dict[str, Any] = {
        "problem": problem, "version": args.version, "decision": "revoked", "by": registry.user, "reason": args.reason,
        "serves": serves, "next": back,
    }  # fmt: skip
    text = f"{problem} version {args.version}: revoked by {registry.user}"
    if not serves:
        text += "; it does not serve, and can't be released any more"
    elif back:
        text += f"; it serves: the steward goes back to version {back}, the newest earlier one whose approval stands"
    else:
        text += (
            "; it serves and no earlier approval stands: the steward withdraws it, and nothing serves until another is released"
        )
    if args.wait and serves:
        _until(args.wait, f"version {args.version} to go", lambda: _sequence(settings, registry, problem) > before)
        found["gone"] = True
        text += ". Done"
    result(found, text, as_json=args.json)
    return 0


def do_policy(args: argparse.Namespace, settings: Settings) -> int:
    from truing.tasks.errors import Refused
    from truing.tasks.records import Refusal

    problem, _, registry = opened(args, settings)
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
    problem, _, registry = opened(args, settings)
    registry.set_anchor(problem, args.version, args.reason)
    found = {"problem": problem, "anchor": args.version, "by": registry.user, "reason": args.reason}
    result(found, f"{problem}: anchor is version {args.version}", as_json=args.json)
    return 0


def do_rollback(args: argparse.Namespace, settings: Settings) -> int:
    problem, _, registry = opened(args, settings)
    before = _sequence(settings, registry, problem)
    to = args.to or _previous(settings, registry, problem)
    registry.request_rollback(problem, to, args.reason)
    found: dict[str, Any] = {"problem": problem, "to": to, "by": registry.user, "reason": args.reason}
    text = f"{problem}: rollback to version {to} is asked for"
    if args.wait:
        _until(args.wait, f"version {to} to be served again", lambda: _sequence(settings, registry, problem) > before)
        found["released"] = True
        text = f"{problem}: version {to} is served again"
    result(found, text, as_json=args.json)
    return 0


def do_freeze(args: argparse.Namespace, settings: Settings) -> int:
    problem, _, registry = opened(args, settings)
    if args.reason:
        registry.set_model_tag(problem, "frozen.reason", args.reason)
    if args.verb == "freeze":
        registry.freeze(problem, "true")
    else:
        registry.thaw(problem)
    found = {"problem": problem, "frozen": args.verb == "freeze", "by": registry.user, "reason": args.reason}
    result(found, f"{problem}: {'frozen' if found['frozen'] else 'thawed'} by {registry.user}", as_json=args.json)
    return 0


def _sequence(settings: Settings, registry: Registry, problem: str) -> int:
    from truing.infra.keys import keyring

    return max((one.sequence for one in registry.releases(problem, keyring(settings).public())), default=0)


def _previous(settings: Settings, registry: Registry, problem: str) -> str:
    """The newest earlier release's version whose approval stands."""
    from truing.tasks.errors import DataError

    _, back = _falls_to(settings, registry, problem, None)
    if back is None:
        raise DataError(f"{problem}: expected an earlier release to go back to, found none; name a version with --to")
    return back


def _falls_to(settings: Settings, registry: Registry, problem: str, version: str | None) -> tuple[bool, str | None]:
    """Does `version` serve, and what comes back when the newest release falls? From the audit, as the steward decides it."""
    from truing.infra.evidence import standing_acts
    from truing.infra.keys import keyring
    from truing.tasks.records import Cause
    from truing.tasks.release.promotion import fallbacks
    from truing.tasks.release.proof import statements

    docket = standing_acts(settings, user=registry.user).of(problem)
    past = statements(docket, keyring(settings).public())
    serves = bool(past) and past[-1].cause is not Cause.WITHDRAW and past[-1].version == version
    back = fallbacks(docket, past)
    return serves, back[0].version if back else None


def _until(patience_s: float, what: str, done: Callable[[], bool]) -> None:
    from truing.tasks.errors import Unavailable

    end = time.monotonic() + patience_s
    while not done():
        if time.monotonic() > end:
            raise Unavailable(
                f"expected {what} within {patience_s:.0f} s, it was not; see `truing status` and the steward's log"
            )
        time.sleep(0.2)
