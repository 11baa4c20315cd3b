"""The steward: the warm process that judges, releases, rolls back and takes out of service. It alone holds the gate and release
keys.

It wakes when somebody writes into the registry, reads the audit on, does what is due and records each act as a Prefect run that
it creates itself; no deployment for them exists, so nobody can start a release from a work pool. When Prefect is away it acts
all the same. What it decides on is the audit and its own book; what MLflow shows it checks on its rounds.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from truing.flows import audits, loop, release
from truing.flows.desk import Desk, close_desk, log, open_desk
from truing.flows.due import asked_back, unjudged, waiting
from truing.flows.patience import Patience
from truing.flows.recovery import recover
from truing.flows.runs import ODD, as_run
from truing.infra import settings as settings_module
from truing.infra.heartbeat import beat
from truing.infra.workflow import log_in
from truing.tasks import seal
from truing.tasks.errors import Refused, TruingError, Unavailable
from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import Envelope, Refusal, Release
from truing.tasks.release.book import Issued, Judged, head_of
from truing.tasks.release.promotion import taken_back

if TYPE_CHECKING:
    from truing.tasks.evaluation.audit import Plan
    from truing.tasks.release.acts import Asked, Decision, Docket

HEAD_EVERY_S = 300.0  # a head is signed anew after each release and so often
HEAD_LASTS_S = 3600.0
BOOKED_EVERY_S = 3600.0  # a head that says nothing new goes into the book only so often
BACK_S = 60.0  # seconds between looks into the audit's history
AWAY_S = 3.0  # longest wait for a part that does not answer
AUDITS_S = 10.0  # seconds between looks for labels that audit plans wait for
JUMP_S = 60.0  # a step of the clock that is said, and that makes the heads' times worthless


def words(error: Exception) -> str:
    return str(error) if isinstance(error, TruingError) else f"{type(error).__name__}: {error}"


# --- one turn -----------------------------------------------------------------------------------------------------------------


def turn(desk: Desk, *, woken: bool = True) -> int:
    """Read the audit on, do one thing that is due for each problem, look around. Returns how many acts were done.

    Unless `woken` the audit is read only now and then: nobody has written.

    While the audit does not hold nothing is decided, only looked at again. Raises Unavailable when the registry is away.
    """
    desk.book.keys = desk.offices().public
    round_s = desk.settings.steward.round_s
    news = desk.watch.catch_up() if woken or desk.watch.broken or desk.every("audit", round_s) else 0
    desk.rounds.audit(desk.watch.broken, now=time.time())
    if desk.watch.broken:
        return 0
    mind_the_clock(desk)
    if desk.watch.people != desk.heard:  # somebody has decided something: what was refused may go now
        desk.heard, desk.patience = desk.watch.people, Patience(1.0, 300.0)
    acts = 0
    for problem, policy in desk.problems.values():
        docket = desk.watch.acts.of(problem.name)
        if problem.name not in desk.recovered:
            recover(desk.book, desk.registry, desk.lake, docket, problem.name, now=time.time())
            desk.recovered.add(problem.name)
        acts += any(attempt(desk, each) for each in due(desk, problem, policy, docket))
        if docket.versions and desk.every(f"head/{problem.name}", HEAD_EVERY_S):
            attempt(desk, Due("head", problem.name, "", "", partial(headed, desk, problem)), quiet=True)
    if not acts:
        look_around(desk, news=bool(news))
    return acts


def mind_the_clock(desk: Desk) -> None:
    """After a jump of the clock (or a sleep of the machine) heads are signed anew: the old ones end too early or too late."""
    offset = time.time() - time.monotonic()
    if abs(offset - desk.clock) > JUMP_S:
        log(f"the clock jumped by {offset - desk.clock:+.0f} s; heads are signed anew")
        desk.clock = offset
        for key in [key for key in desk.at if key.startswith("head/")]:
            del desk.at[key]


@dataclass(frozen=True)
class Due:
    """One act that is due: `name` tells it from an earlier one of its kind."""

    act: str
    problem: str
    version: str
    name: str
    do: Callable[[], str]
    slow: bool = False  # a verdict: made on the bench

    @property
    def key(self) -> str:
        return f"{self.act}/{self.problem}/{self.version}/{self.name}"


def due(desk: Desk, problem: Problem, policy: Policy, docket: Docket) -> Iterator[Due]:
    """What has to be done now, the most urgent first: what serves and must not, what was begun, back, forward, verdicts."""
    book, name, registry, where = desk.book, problem.name, desk.registry, desk.settings.environment
    revoked = taken_back(docket, book.releases(name))
    if revoked is not None:

        def out(decision: Decision = revoked) -> Release:
            return release.withdrawal(registry, problem, decision, docket=docket, book=book, environment=where, now=time.time())

        yield Due("withdraw", name, revoked.approval.version, revoked.line, partial(released, desk, problem, out))
        return
    for one in book.unfinished(name):
        if isinstance(one, Judged):
            yield Due("gate", name, one.version, str(one.n), partial(shown, desk, problem, one), slow=True)
        else:
            yield Due("release", name, one.release.version, str(one.n), partial(served, desk, problem, one))
    asked = docket.rollback
    if asked is not None and asked_back(docket, book, name):

        def back(asked: Asked = asked) -> Release | Refusal:
            return release.rollback(registry, problem, asked, docket=docket, book=book, environment=where, now=time.time())

        yield from planned(desk, problem, "rollback", asked.version, asked.line, back)
    for version, act in () if docket.frozen else waiting(docket, book, name):

        def forward(version: str = version) -> Release | Refusal:
            return release.promotion(
                registry, problem, policy, version,
                docket=docket, book=book, offices=desk.offices(), environment=where, now=time.time(),
            )  # fmt: skip

        yield from planned(desk, problem, "release", version, act, forward)
    for version in unjudged(docket, book, name, policy.digest):
        yield Due("gate", name, version, policy.digest, partial(judged, desk, problem, policy, version, docket), slow=True)
    if desk.every(f"audits/{name}", AUDITS_S):
        for version, plan in heard_of(desk, problem, docket):
            told = partial(judged_again, desk, problem, policy, version, docket, plan)
            yield Due("gate", name, version, seal.digest(plan), told, slow=True)


def planned(
    desk: Desk, problem: Problem, act: str, version: str, name: str, plan: Callable[[], Release | Refusal]
) -> Iterator[Due]:
    """The act, if its plan is not refused: a refusal is logged once and makes no run in Prefect."""
    told = Due(act, problem.name, version, name, str)
    if not desk.patience.ready(told.key):
        return
    try:
        made = plan()
        if isinstance(made, Refusal):
            raise Refused(made)
    except ODD as error:
        desk.patience.failed(told.key, most_s=AWAY_S if isinstance(error, Unavailable) else None)
        desk.say(f"{act} {problem.name} v{version}: {words(error)}")
        return
    yield Due(act, problem.name, version, name, partial(released, desk, problem, lambda: made))


def attempt(desk: Desk, each: Due, *, quiet: bool = False) -> bool:
    """Do one act, as a Prefect run unless `quiet`. What fails is logged once and tried again, ever less often.

    A slow one goes to the bench, one at a time, and counts as none here: what it writes wakes the steward.
    """
    if not desk.patience.ready(each.key):
        return False
    if each.slow and desk.aside:
        if desk.bench is None or not desk.bench.is_alive():
            desk.bench = threading.Thread(target=attempt, args=(desk, replace(each, slow=False)), name="bench", daemon=True)
            desk.bench.start()
        return False
    try:
        told = each.do() if quiet else as_run(desk.settings, each.act, each.problem, each.version, each.do)
    except ODD as error:
        desk.patience.failed(each.key, most_s=AWAY_S if isinstance(error, Unavailable) else None)
        desk.say(f"{each.act} {each.problem} v{each.version}: {words(error)}")
        return False
    desk.patience.done(each.key)
    if not quiet:
        log(f"{each.act} {each.problem} v{each.version}: {told}")
    return True


# --- acts ---------------------------------------------------------------------------------------------------------------------


def judged(desk: Desk, problem: Problem, policy: Policy, version: str, docket: Docket) -> str:
    seen = desk.registry.version(problem.name, version)
    docket = replace(docket, versions=dict(docket.versions))  # as it is now: the audit is read on meanwhile
    made = loop.decide(
        desk.vault, desk.lake, desk.registry, problem, policy, seen,
        docket=docket, book=desk.book, offices=desk.offices(), ledger=desk.settings.desk / "looks" / f"{problem.name}.jsonl",
        desk=desk.settings.desk, folder=desk.settings.problems / problem.name, now=time.time(), timer=time.perf_counter,
    )  # fmt: skip
    return shown(desk, problem, made)


def heard_of(desk: Desk, problem: Problem, docket: Docket) -> Iterator[tuple[str, Plan]]:
    """Versions whose audit plan has all its labels, and no verdict on them yet."""
    serving = desk.book.champion(problem.name)
    for plan in audits.landed(
        desk.vault, problem, desk=desk.settings.desk, offices=desk.offices(), champion=serving.payload if serving else None,
        now=time.time(),
    ):  # fmt: skip
        for version, known in docket.versions.items():
            if known.payload == plan.candidate:
                yield version, plan


def judged_again(desk: Desk, problem: Problem, policy: Policy, version: str, docket: Docket, plan: Plan) -> str:
    told = judged(desk, problem, policy, version, docket)
    audits.heard(desk.settings.desk, plan)
    return told


def shown(desk: Desk, problem: Problem, made: Judged) -> str:
    """Put a booked verdict before the people, and say so. Comes again after a crash, under the same id."""
    loop.show(desk.registry, problem, made, seen=desk.registry.version(problem.name, made.version))
    verdict = made.verdict
    desk.announce(
        {"id": seal.digest(verdict)[:32], "type": "model.ready", "problem": problem.name, "version": made.version,
         "outcome": str(verdict.outcome), "reason": verdict.reason}
    )  # fmt: skip
    desk.book.finish(made, at=time.time())
    return f"{verdict.outcome}: {verdict.reason}"


def released(desk: Desk, problem: Problem, plan: Callable[[], Release]) -> str:
    """Sign and book what was planned, then have it served."""
    issued = release.issue(plan(), book=desk.book, offices=desk.offices(), audit=desk.watch.acts.mark.n, now=time.time())
    if isinstance(issued, Refusal):
        raise Refused(issued)
    return served(desk, problem, issued)


def served(desk: Desk, problem: Problem, issued: Issued) -> str:
    """Have a booked release served, recorded and announced. What is through already in this process is not written again."""
    if issued.n not in desk.shown:
        release.serve(desk.registry, issued, book=desk.book, head=countersigned(desk, problem))
        desk.shown.add(issued.n)
    release.finish(desk.lake, issued, book=desk.book, announce=desk.announce, now=time.time())
    return f"release {issued.release.sequence} ({issued.release.cause})"


def headed(desk: Desk, problem: Problem) -> str:
    desk.registry.attach_head(problem.name, countersigned(desk, problem))
    return "head"


def countersigned(desk: Desk, problem: Problem) -> Envelope:
    """A fresh head over the last release and the audit as far as it was read. What is new in it is booked first."""
    name, now = problem.name, time.time()
    head = head_of(desk.book, name, desk.watch.acts.mark, now=now, lasts_s=HEAD_LASTS_S)
    envelope = seal.sign(head, seal.HEAD_TYPE, desk.offices().release)
    before = desk.book.head(name)
    if before is None or before.sequence != head.sequence or desk.every(f"booked/{name}", BOOKED_EVERY_S):
        desk.at[f"booked/{name}"] = time.monotonic()
        desk.book.add_head(envelope, at=now)
    desk.rounds.heads[name] = seal.canonical(envelope).decode()
    desk.at[f"head/{name}"] = time.monotonic()
    return envelope


# --- looking around -----------------------------------------------------------------------------------------------------------


def look_around(desk: Desk, *, news: bool) -> None:
    """The rounds: after a write, or every few seconds; and the proposal of the policy that verdicts are made under."""
    if not desk.every("round", 1.0 if news or desk.rounds.hurried else desk.settings.steward.round_s):
        return
    if desk.every("back", BACK_S):
        desk.watch.look_back()
    for problem, policy in desk.problems.values():
        docket = desk.watch.acts.of(problem.name)
        view = desk.rounds.walk(problem.name, docket, now=time.time())
        if view.model is not None and docket.versions and view.model.tags.get("policy.proposed") != policy.digest:
            each = Due("policy", problem.name, "", policy.digest, partial(proposed, desk, problem, policy))
            attempt(desk, each, quiet=True)
        warn(desk, problem)


def proposed(desk: Desk, problem: Problem, policy: Policy) -> str:
    desk.registry.propose_policy(problem.name, policy.digest)
    return policy.digest


def warn(desk: Desk, problem: Problem) -> None:
    """Say once that what serves will stop soon: when three days are left, or half its time if that is less."""
    serving = desk.book.champion(problem.name)
    if serving is None or serving.expires is None:
        return
    left = serving.expires - time.time()
    key = f"expiring/{serving.name}"
    if key in desk.at or left > min(3 * 86_400.0, (serving.expires - serving.at) / 2):
        return
    try:
        desk.announce(
            {"id": seal.digest(serving)[:31] + "e", "type": "approval.expiring", "problem": problem.name,
             "version": serving.version, "sequence": serving.sequence, "expires": serving.expires}
        )  # fmt: skip
        desk.at[key] = time.monotonic()
    except Unavailable as error:  # said again at the next round
        desk.say(f"{problem.name}: its end is near, and not announced: {error}")


# --- process ------------------------------------------------------------------------------------------------------------------


def warm() -> None:
    """Import now what a verdict needs, so that the first one does not wait for it."""
    import truing.flows.judging
    import truing.tasks.evaluation.gate
    import truing.tasks.evaluation.kept
    import truing.tasks.evaluation.report
    import truing.tasks.kinds.model  # noqa: F401


def main() -> int:
    settings_module.quiet()
    settings = settings_module.current()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log_in(settings)
    try:
        desk = open_desk(settings)
    except TruingError as error:
        log(str(error))
        return error.exit_code
    warm()
    away, woken = "", True
    log(f"watching {', '.join(desk.problems)} at {settings.registry_url}")
    while not stop.is_set():
        acts = 0
        try:
            acts = turn(desk, woken=woken)
            away = ""
        except (*ODD, msgspec.MsgspecError) as error:  # the registry is away, or shows what it should not: say it once
            if words(error) != away:
                log(words(error))
            away = words(error)
            stop.wait(settings.steward.poll_s)
        if desk.every("beat", 2.0):
            beat(settings, "steward", now=time.time())
        woken = bool(acts or away) or desk.watch.wait(settings.steward.poll_s * 4, pause=stop.wait)
    close_desk(desk)
    return 0


if __name__ == "__main__":
    sys.exit(main())
