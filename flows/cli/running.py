"""`truing up`, `down`, `status`: the whole system on this machine."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import ago, flat, note, result, table
from truing.flows.cli.telling import told

if TYPE_CHECKING:
    from truing.infra.settings import Settings
    from truing.infra.stack import Stack

SHOWN = 50  # parked words in a table
Verbs = Any  # argparse's sub-parsers have no public type


def add(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    up = verbs.add_parser("up", parents=[common], help="start everything and wait until it is healthy")
    up.add_argument("--only", metavar="PARTS", help="only these parts, separated by commas (a machine of several)")
    up.add_argument("--ports", choices=["auto"], help="take free ports where the usual ones are taken")
    up.add_argument("--foreground", action="store_true", help="stay, and stop everything at Ctrl-C or SIGTERM")
    up.set_defaults(do=do_up)
    down = verbs.add_parser("down", parents=[common], help="stop everything; nothing stays behind but the data")
    down.set_defaults(do=do_down)
    status = verbs.add_parser("status", parents=[common], help="health, served release, what waits for a person, lag, runs")
    status.add_argument("--parked", action="store_true", help="instead: words without a row, and why, the newest first")
    status.set_defaults(do=do_status)


def do_up(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.interrupts import raised
    from truing.infra.stack import Stack

    begun, started = time.monotonic(), False
    parts = tuple(name.strip() for name in args.only.split(",")) if args.only else None
    stack = Stack(settings, parts=parts, auto=args.ports == "auto")
    with raised():
        try:
            started = stack.up(lambda part, text: note(f"  {part:<9} {text}"))
            _tell_up(args, stack, started, begun)
            if args.foreground:
                _stay(stack)
        except (KeyboardInterrupt, SystemExit):
            if started or args.foreground:  # until its word is out it is not up
                stack.down()
            if not args.foreground:
                raise
            note("down")
    return 0


def _tell_up(args: argparse.Namespace, stack: Stack, started: bool, begun: float) -> None:
    from truing.infra.keys import keyring
    from truing.infra.status import locks, status

    settings = stack.settings
    found = status(settings, light=True)
    seconds = time.monotonic() - begun
    said = f"up in {seconds:.0f} s" if started else "up already"
    person = settings.approvers[0]
    where = [
        f"  models, approvals  {settings.registry_url}  login {person}, password in {settings.password_file(person)}",
        f"  runs               {settings.prefect_url.removesuffix('/api')}  login in {keyring(settings).path('prefect-auth')}",
        f"  answers            {settings.gateway_url}",
        f"  events             Kafka at {settings.kafka.bootstrap}",
    ]
    note(locks(settings))
    text = "\n".join([said, *where] if started else [said, told(found)])
    result(found | {"started": started, "seconds": round(seconds, 1)}, text, as_json=args.json)


def _stay(stack: Stack) -> None:
    """Until somebody ends it. Raises Unavailable when the stack has ended by itself."""
    from truing.tasks.errors import Unavailable

    sys.stdout.flush()
    note("Ctrl-C stops everything")
    while stack.states():
        time.sleep(1.0)
    stack.down()  # what a killed supervisor has left
    raise Unavailable(f"expected the stack to stay, its supervisor is gone; see {stack.settings.logs / 'supervisor.log'}")


def do_down(args: argparse.Namespace, settings: Settings) -> int:
    from truing.infra.stack import Stack

    begun = time.monotonic()
    stopped = Stack(settings).down()
    seconds = time.monotonic() - begun
    text = f"down in {seconds:.0f} s" if stopped else f"nothing runs on {settings.data}"
    result({"stopped": stopped, "seconds": round(seconds, 1)}, text, as_json=args.json)
    return 0


def do_status(args: argparse.Namespace, settings: Settings) -> int:
    """Exit 0 if all is healthy, 1 if not."""
    if args.parked:
        return do_parked(args, settings)
    from truing.infra.status import status

    found = status(settings)
    result(found, told(found), as_json=args.json)
    return 0 if found["healthy"] else 1


def do_parked(args: argparse.Namespace, settings: Settings) -> int:
    """What waits for its prediction, and what was set aside. Nothing of what was said is shown."""
    from truing.infra.catalog import catalog
    from truing.tasks.events.parking import set_aside
    from truing.tasks.tables.lake import Vault

    problems = {name: problem for name, (problem, _) in catalog(settings.problems).items()}
    if not settings.vault.exists():
        result([], "nothing has landed yet", as_json=args.json)
        return 0
    found = set_aside(Vault(settings.vault), problems, now=time.time()).sort("landed_at", descending=True)
    names = ("problem", "reason", "type", "prediction_id", "source", "landed_at", "detail")
    lines = list(found.head(SHOWN).select(names).iter_rows(named=True))
    now = time.time()
    shown = [[ago(one[name], now) if name == "landed_at" else flat(str(one[name])) for name in names] for one in lines]
    text = table(("problem", "reason", "type", "prediction", "source", "landed", ""), shown) if lines else "nothing is parked"
    more = f"\nthe newest {SHOWN:,} of {found.height:,}; all with --json" if found.height > SHOWN else ""
    result(list(found.iter_rows(named=True)) if args.json else None, text + more, as_json=args.json)
    return 0
