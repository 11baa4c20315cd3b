"""`truing keys create | rotate | list | acl`: who holds which key, and who may do what on the broker. No key is ever shown."""

from __future__ import annotations

import argparse
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import result, span, table

if TYPE_CHECKING:
    from truing.infra.settings import Settings


def add(verbs: Any, common: argparse.ArgumentParser) -> None:
    keys = verbs.add_parser("keys", parents=[common], help="make what is missing, replace one, or list who holds which")
    keys.add_argument("act", choices=["create", "rotate", "list", "acl"], help="what to do")
    keys.add_argument(
        "name", nargs="?", help="rotate: a login, or gate, release, registry; prefect-auth while the stack is down"
    )
    keys.add_argument("--commands", action="store_true", help="acl: as lines for Kafka's kafka-acls.sh")
    keys.add_argument("--apply", action="store_true", help="acl: give them to your broker, as who the settings say we are")
    keys.add_argument(
        "--principal",
        action="append",
        default=[],
        metavar="NAME=PRINCIPAL",
        help="acl: another principal, like ingest=User:CN=ingest",
    )
    keys.set_defaults(do=do_keys)


def do_keys(args: argparse.Namespace, settings: Settings) -> int:
    from truing.tasks.errors import UsageError

    if (args.act == "rotate") != bool(args.name):
        raise UsageError(f"keys {args.act}: expected {'the name of one' if args.act == 'rotate' else 'no name'}; see --help")
    if args.act != "acl" and (args.commands or args.apply or args.principal):
        raise UsageError(f"keys {args.act}: expected --commands, --apply and --principal with acl only; see --help")
    return {"create": do_create, "rotate": do_rotate, "list": do_list, "acl": do_acl}[args.act](args, settings)


def do_acl(args: argparse.Namespace, settings: Settings) -> int:
    """The table is applied by `truing up` on a Kafka that it starts with SASL; here it is shown, or given to one of yours."""
    from truing.infra import acl
    from truing.infra.catalog import catalog
    from truing.tasks.errors import UsageError

    problems = {name: problem for name, (problem, _) in catalog(settings.problems).items()}
    found, known = [*acl.rights(settings, problems), *acl.marks(settings, problems)], acl.identities(problems)
    principals = dict(one.partition("=")[::2] for one in args.principal)
    if wrong := sorted(name for name, principal in principals.items() if name not in known or not principal):
        raise UsageError(f"keys acl --principal: expected NAME=PRINCIPAL with a name of {', '.join(known)}, got {wrong}")
    lines = [
        {
            "principal": principals.get(one.identity, f"User:{one.identity}"),
            "topic": one.topic if one.kind == "topic" else f"{one.topic} (group)",
            "may": one.operation,
            "why": one.why,
        }
        for one in found
    ]
    if args.apply:
        added, _ = acl.apply(settings, found, principals=principals)
        text = f"{added} rights given at {settings.kafka.bootstrap}, {len(found) - added} were there"
        result({"added": added, "rights": lines}, text, as_json=args.json)
        return 0
    if args.commands:
        text = "\n".join(acl.commands(found, settings, principals))
    else:
        text = table(("principal", "topic", "may", ""), [list(one.values()) for one in lines])
    result(lines, text, as_json=args.json)
    return 0


def do_create(args: argparse.Namespace, settings: Settings) -> int:
    """Idempotent; never overwrites."""
    from truing.infra.accounts import create_keys
    from truing.infra.catalog import catalog
    from truing.tasks.errors import Unavailable

    before = {one["key"] for one in held(settings)}
    try:
        create_keys(settings, {name: problem for name, (problem, _) in catalog(settings.problems).items()})
    except OSError as error:
        raise Unavailable(f"expected to write {settings.keys}, got: {error.strerror}; run as its owner") from None
    made = [one["key"] for one in held(settings) if one["key"] not in before]
    text = f"{len(made)} made in {settings.keys}" if made else f"all keys are there, in {settings.keys}"
    result({"keys": str(settings.keys), "made": made}, text, as_json=args.json)
    return 0


def do_rotate(args: argparse.Namespace, settings: Settings) -> int:
    """The old password opens the registry a little longer; what the old key signed stays valid."""
    from truing.infra.keys import GRACE_S, PRIVATE, Keyring
    from truing.infra.stack import Stack
    from truing.tasks.errors import Unavailable

    ring = Keyring(settings.keys)
    if args.name == "prefect-auth" and Stack(settings).states():
        raise Unavailable("prefect-auth: expected the stack to be down, since Prefect reads it at its start; run `truing down`")
    try:
        ring.rotate(args.name, now=time.time())
    except OSError as error:
        raise Unavailable(f"expected to replace {args.name} in {settings.keys}, got: {error.strerror}; run as root") from None
    found: dict[str, Any] = {"rotated": args.name}
    if args.name in PRIVATE:
        trusted = len(getattr(ring.public(), args.name))
        found |= {"kind": "key", "trusted": trusted, "holder": PRIVATE[args.name]}
        text = f"{args.name}: a new key, held by {PRIVATE[args.name]}; {trusted} are trusted now: what the older signed counts"
    elif args.name == "prefect-auth":
        found |= {"kind": "login", "file": str(ring.path(args.name))}
        text = f"{args.name}: a new login of Prefect in {ring.path(args.name)}, from the next `truing up` on"
    else:
        path = settings.password_file(args.name)
        found |= {"kind": "password", "file": str(path), "grace_s": GRACE_S}
        text = f"{args.name}: a new password in {path}; the old one opens the registry for {GRACE_S / 60:.0f} more minutes"
    result(found, text, as_json=args.json)
    return 0


def do_list(args: argparse.Namespace, settings: Settings) -> int:
    found = held(settings)
    now = time.time()
    shown = [
        (
            one["office"],
            one["name"],
            one["owner"],
            one["mode"],
            None if one["at"] is None else span(now - one["at"]),
            one["note"],
        )
        for one in found
    ]
    head = ("office", "name", "owner", "mode", "age", "")
    result(
        found, table(head, shown) if shown else f"no keys yet in {settings.keys}; run `truing keys create`", as_json=args.json
    )
    return 0


def held(settings: Settings) -> list[dict[str, Any]]:
    """Every key file: office, name, owner, rights, when it was made (Unix seconds), and what is odd about it."""
    found = []
    for office in _offices(settings):
        try:
            files = sorted(path for path in office.iterdir() if not path.name.startswith("."))
        except PermissionError:
            found.append(_line(office, "", "closed to you"))
            continue
        found += [_line(path, path.name, _odd(path)) for path in files]
    return found


def _offices(settings: Settings) -> list[Path]:
    """The folders in the key folder; where that one can't be listed (others may only pass it), those that should be there."""
    from truing.infra.keys import OFFICES, SERVICES

    try:
        return sorted(path for path in settings.keys.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []
    except PermissionError:
        names = sorted({*OFFICES, *SERVICES, *settings.approvers, "public", "sources"})
        return [settings.keys / name for name in names if (settings.keys / name).is_dir()]


def _line(path: Path, name: str, note: str) -> dict[str, Any]:
    facts = path.lstat()
    office = path.parent.name if name else path.name
    return {
        "key": f"{office}/{name}",
        "office": office,
        "name": name or None,
        "owner": owner(facts.st_uid),
        "mode": f"{stat.S_IMODE(facts.st_mode):04o}",
        "at": facts.st_mtime if name else None,
        "note": note,
    }


def _odd(path: Path) -> str:
    facts = path.lstat()
    if stat.S_ISLNK(facts.st_mode):
        return "a link: expected a plain file"
    if path.suffix == ".pub":
        count = facts.st_size // 32
        return "" if count == 1 else f"{count} trusted, the newest first"
    return f"open to others: `chmod 600 {path}`" if stat.S_IMODE(facts.st_mode) & 0o077 else ""


def owner(uid: int) -> str:
    """The account's name, or its number where it has none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
