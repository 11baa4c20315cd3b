"""`truing demo`: the whole loop on 48,842 real census rows, from an empty folder to signed releases.

What is simulated is the world outside: who asks, what becomes true, what people say (`world.py`), and the approver, unless you
approve yourself. Everything else is the stack as it is: the demo asks the gateway, sends events, requests runs and sets tags
like any application or person, and every number on screen is read back from lake, vault and registry.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from truing.flows.demo.adult import read_adult
from truing.flows.demo.world import Case, Scenario, World
from truing.flows.demo.world import Word as Said
from truing.infra.catalog import chosen
from truing.infra.client import Answer, Client, Word, correction, rating
from truing.infra.control import request
from truing.infra.keys import keyring
from truing.infra.ports import moved
from truing.infra.settings import Settings
from truing.infra.stack import Stack
from truing.infra.status import prefect_call
from truing.tasks.errors import Refused, TruingError, Unavailable
from truing.tasks.problem import seconds
from truing.tasks.records import Outcome

if TYPE_CHECKING:
    from rich.table import Table

    from truing.flows.demo.summary import Summary
    from truing.tasks.release.versions import Version

T = TypeVar("T")
PATIENCE_S = 240.0  # for any one thing that the stack does by itself
REPAIR_S = 60.0  # a repair takes a run of its own
BATCH = 1000  # rows in one question


# --- telling ------------------------------------------------------------------------------------------------------------------


class Teller:
    """Prints what happens, with the seconds since the start; colour on a terminal only."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = 140  # a file has no width: keep the tables whole
        self.begun = time.monotonic()

    def head(self, text: str) -> None:
        self.console.print(f"\n[bold]{text}[/bold]")

    def say(self, text: str, style: str = "") -> None:
        stamp = f"[dim]{time.monotonic() - self.begun:6.1f} s[/dim]  "
        self.console.print(stamp + (f"[{style}]{text}[/{style}]" if style else text))


def until(what: str, look: Callable[[], T | None], *, patience_s: float = PATIENCE_S, every_s: float = 0.25) -> T:
    """The first thing `look` finds. Raises Unavailable after `patience_s`; a part that restarts meanwhile is waited for."""
    end = time.monotonic() + patience_s
    last = ""
    while time.monotonic() < end:
        try:
            found = look()
        except Unavailable as error:
            found, last = None, f" ({error})"
        if found is not None and found is not False:
            return found
        time.sleep(every_s)
    raise Unavailable(f"expected {what} within {patience_s:.0f} s, it did not come{last}; see `truing status` and the logs")


def steadily(act: Callable[[], T]) -> T:
    """What `act` returns; tried again while a part that it needs is away, so it must be safe to repeat."""
    return until("an answer", lambda: (act(),), patience_s=120.0)[0]


# --- the demo -----------------------------------------------------------------------------------------------------------------


class Demo:
    """One run of it. Holds clients, and how much was sent, so that what landed can be held against it."""

    def __init__(self, settings: Settings, given: argparse.Namespace, tell: Teller) -> None:
        from truing.infra.logins import registry_as
        from truing.tasks.events.schema import pseudonym
        from truing.tasks.tables.lake import Lake, Vault

        self.settings, self.given, self.tell = settings, given, tell
        self.problem, self.policy = chosen(settings.problems, "adult")
        self.name = self.problem.name
        self.ring = keyring(settings)
        self.lake, self.vault = Lake(settings.lake), Vault(settings.vault)
        self.approver = registry_as(settings, settings.approvers[0])
        self.trainer = registry_as(settings, "trainer")
        scenario = Scenario() if given.rounds is None else Scenario(rounds=given.rounds, poisoned=min(3, given.rounds))
        salt = self.ring.read("actor-salt")
        self.world = World(
            read_adult(), self.problem, scenario,
            seed=given.seed, salt=self.ring.read("split-salt"), door=lambda who: pseudonym(salt, self.name, who),
        )  # fmt: skip
        self.app = Client.of(settings, self.name, timeout_s=60.0)
        self.answers: dict[str, Answer] = {}
        self.sent = 0  # events acknowledged by the gateway or the broker
        self.decided: set[str] = set()

    def model_page(self) -> str:
        """Where a person looks at the versions."""
        return f"{self.settings.registry_url}/#/models/{self.name}"

    # --- acts
    def history(self) -> None:
        world = self.world
        now = time.time()
        for source, cases in (("history", world.trusted), ("backfill", world.backfill)):
            with Client.of(self.settings, self.name, source=source) as client:
                for case in cases:
                    client.backfill_prediction(case.id, case.inputs, subject=case.subject, groups=case.groups, time=now - 3600)
                    client.outcome(case.id, case.truth, time=now - 60)
                self.sent += client.flush(timeout_s=120.0)
        self.tell.say(f"{len(world.trusted):,} trusted rows and {len(world.backfill):,} past cases sent by their sources")
        self.landed()
        judge = self.vault.holdout(self.name, now=time.time()).height
        self.tell.say(f"{self.sent:,} events landed; {judge:,} holdout rows may judge, and nothing else holds them")

    def landed(self) -> None:
        """Wait until everything sent has landed and is joined into rows."""
        from truing.tasks.events.join import APP

        def look() -> bool:
            landing = self.vault.version("landing")
            if landing is None or self.vault.read("landing", columns=["offset"]).height < self.sent:
                return False
            return all(
                (store.transaction(table, APP) or -1) >= landing
                for store, table in ((self.lake, "rows"), (self.vault, "holdout"))
            )

        until(f"{self.sent:,} events in the lake", lambda: look() or None)

    def improve(self) -> str:
        """Ask for a run, and wait for the candidate's verdict. Returns its version."""
        before = {version.version for version in steadily(lambda: self.trainer.versions(self.name))}
        asked = time.time()
        steadily(lambda: request(self.settings, "improve", self.name))

        def registered() -> str | None:
            versions = self.trainer.versions(self.name)
            fresh = [v.version for v in versions if v.version not in before and v.tags.get("origin") != "repair"]
            return fresh[-1] if fresh else None

        version = until("a candidate", registered)
        candidate = steadily(lambda: self.trainer.version(self.name, version)).candidate
        if candidate is None:
            raise Unavailable(f"expected version {version} to name its candidate, it does not; see `truing verify {version}`")
        begun = self.first_line(asked)
        self.tell.say(
            f"candidate v{version}: {candidate.rows:,} rows, {candidate.origin} learner, {time.time() - asked:.1f} s after the "
            f"request" + (f", which reached the flow in {begun:.1f} s" if begun is not None else "")
        )
        return self.verdict(version)

    def first_line(self, asked: float) -> float | None:
        """Seconds from the request to the start of the improve run that it caused, as Prefect has noted it."""
        since = {"start_time": {"after_": datetime.fromtimestamp(asked, UTC).isoformat()}}
        try:
            runs = prefect_call(
                self.settings,
                "POST",
                "/flow_runs/filter",
                {"flows": {"name": {"any_": ["improve"]}}, "flow_runs": since, "limit": 20},
            )
        except TruingError:  # told for interest only
            return None
        starts = [
            datetime.fromisoformat(str(run["start_time"]).replace("Z", "+00:00")) for run in runs if run.get("start_time")
        ]
        return min(starts).timestamp() - asked if starts else None

    def verdict(self, version: str) -> str:
        until(f"a verdict on v{version}", lambda: self.trainer.version(self.name, version).verdict)  # the envelope goes last
        judged = steadily(lambda: self.trainer.version(self.name, version))
        style = {"pass": "green", "block": "red"}.get(judged.outcome or "", "yellow")
        self.tell.say(f"verdict: [bold]{judged.outcome}[/bold]: {judged.tags.get('verdict.reason', '')}", style)
        return version

    def approve(self, version: str, reason: str) -> None:
        if self.given.approve_yourself:
            self.tell.say(
                f"your turn: {self.model_page()}/versions/{version}\n"
                f"          login {self.approver.user}, password in {self.settings.password_file(self.approver.user)}; "
                f"set the tag approval.reason, then approval = approved (or rejected)",
                "bold",
            )
            until("your decision", lambda: self.approver.version(self.name, version).stamp, patience_s=24 * 3600, every_s=1.0)
        else:
            steadily(lambda: self.approver.approve(self.name, version, reason))
            self.tell.say(f"v{version} approved through MLflow's API by the simulated approver: {reason}")
        start = time.monotonic()
        serving = until(f"v{version} to serve", lambda: self.serves(version))
        self.tell.say(f"release {serving} serves v{version}, {time.monotonic() - start:.1f} s after the approval", "green")

    def serves(self, version: str) -> int | None:
        from truing.infra.calls import call

        told: Any = call("GET", f"{self.settings.gateway_url}/status", timeout=5.0, ca=self.settings.tls.ca)
        state = told["problems"][self.name]
        return int(state["sequence"]) if state["version"] == version else None

    def genesis(self) -> None:
        version = self.improve()
        until("the policy to be proposed", lambda: self.approver.model(self.name).tags.get("policy.proposed"))
        if self.given.approve_yourself:
            self.tell.say(
                f"first accept the policy: tag policy.accepted = {self.policy.digest} on {self.model_page()}",
                "bold",
            )
            until("an accepted policy", lambda: self.approver.model(self.name).tags.get("policy.accepted"), patience_s=86_400)
        else:
            steadily(lambda: self.approver.accept_policy(self.name, self.policy.digest))
            self.tell.say(f"policy {self.policy.digest[:12]} accepted by the approver")
        self.approve(version, "first release: better than the prior predictor, nothing serves yet")
        why = "the first release is what small steps are measured from"
        steadily(lambda: self.approver.set_anchor(self.name, version, why))
        self.tell.say(f"anchor pinned at v{version}")

    def traffic(self, number: int) -> tuple[list[Case], dict[str, str]]:
        """Rows asked of the gateway in batches."""
        cases = self.world.traffic(number)
        for start in range(0, len(cases), BATCH):
            part = cases[start : start + BATCH]
            answers = steadily(partial(self.ask, part))
            self.answers.update({case.id: answer for case, answer in zip(part, answers, strict=True)})
        self.sent += len(cases)
        return cases, {case.id: self.answers[case.id].label for case in cases}

    def ask(self, cases: Sequence[Case]) -> list[Answer]:
        """One question; asked twice under the same ids it counts once."""
        return self.app.predict(
            [case.inputs for case in cases],
            subjects=[case.subject for case in cases],
            groups=[case.groups for case in cases],
            ids=[case.id for case in cases],
        )

    def round(self, number: int) -> None:
        hostile = number == self.world.scenario.poisoned
        if number <= self.world.scenario.rounds:
            twist = " · in this one a share of the raters send wrong corrections about women" if hostile else ""
            self.tell.head(f"Round {number}{twist}")
        asked = time.monotonic()
        cases, served = self.traffic(number)
        took = time.monotonic() - asked
        words = self.world.words(number, served)
        outcomes = [word for word in words if word.kind == "outcome"]
        people = [word for word in words if word.kind != "outcome"]
        self.feedback(people)
        corrections = sum(word.kind == "correction" for word in people)
        self.tell.say(
            f"{len(cases):,} rows answered in {took:.1f} s; people sent {corrections:,} corrections and "
            f"{len(people) - corrections:,} ratings"
        )
        maturity = seconds(self.problem.maturity.outcome)
        time.sleep(max(0.0, asked + took + maturity - time.monotonic()))
        self.outcomes(outcomes)
        self.landed()
        self.tell.say(
            f"{len(outcomes):,} outcomes came after a maturity of {maturity:g} s; event → landed row {self.latency()}"
        )

    def feedback(self, people: Sequence[Said]) -> None:
        words: list[Word] = []
        for said in people:
            answer = self.answers[said.case]
            actor = said.actor or "nobody"
            if said.kind == "correction" and said.label is not None:
                words.append(correction(answer, said.label, actor))
            elif said.value is not None:
                words.append(rating(answer, said.value, actor))
        receipt = steadily(lambda: self.app.feedback(words))  # words carry their times: sent twice they land once
        self.sent += receipt.accepted
        if receipt.refusals:
            self.tell.say(f"{len(receipt.refusals)} words not believed: {receipt.refusals[0].error}", "yellow")

    def outcomes(self, outcomes: Sequence[Said]) -> None:
        with Client.of(self.settings, self.name, source="outcomes") as client:
            for said in outcomes:
                if said.label is not None:
                    client.outcome(said.case, said.label)
            self.sent += client.flush(timeout_s=120.0)

    def latency(self) -> str:
        """From the time in the event to its row in the landing table, over the last minute."""
        import polars as pl

        seen = self.vault.read("landing", columns=["time", "landed_at", "source"])
        late = seen.filter(pl.col("time") > time.time() - 60, ~pl.col("source").is_in(["history", "backfill"]))
        waits = (late["landed_at"] - late["time"]).sort()
        p50, p95 = (waits.quantile(share) or 0.0 for share in (0.5, 0.95))
        return f"p50 {p50:.2f} s, p95 {p95:.2f} s over {late.height:,} events"

    def settle(self, version: str) -> None:
        """What follows a verdict: approval of a pass; of a block, the attempt to force it, and its refusal."""
        judged = steadily(lambda: self.trainer.version(self.name, version))
        if judged.outcome == Outcome.PASS:
            self.approve(version, "the gate passed; gaps and gains reviewed")
            return
        if judged.outcome == Outcome.BLOCK:
            try:
                steadily(lambda: self.trainer.move_champion(self.name, version))
            except Refused as refused:
                self.tell.say(f"moving champion to v{version} by hand is refused: {refused}", "red")
            else:
                raise TruingError(f"expected the registry to refuse champion = v{version}, it took it; the lock is open")
            steadily(lambda: self.approver.reject(self.name, version, "blocked by the gate"))
            self.repaired(version)
        self.tell.say(f"v{version} does not serve; the loop goes on with what serves now")

    def repaired(self, version: str) -> None:
        """What the trainer proposed by itself in the blocked one's place, and what the gate says of that. Left to people."""
        payload = steadily(lambda: self.trainer.version(self.name, version)).payload

        def proposed() -> Version | None:
            own = [one for one in self.trainer.versions(self.name) if one.candidate and one.candidate.repairs == payload]
            return own[-1] if own else None

        try:
            mended = until("a repair", proposed, patience_s=REPAIR_S)
        except Unavailable:  # nothing that did better, or the problem's policy wants none
            self.tell.say(f"no repair of v{version} was proposed within {REPAIR_S:.0f} s")
            return
        note = mended.candidate.note if mended.candidate else ""
        self.tell.say(f"candidate v{mended.version}, proposed by the trainer itself: {note}")
        self.verdict(mended.version)


def version_table(made: Summary) -> Table:
    """One line a version: where it comes from, what the gate and the approver said, what it did."""
    from rich.table import Table

    from truing.flows.demo.report import number, state

    first, second = made.buckets
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    columns = ("version", "parent", "learned", "verdict", "approved by", "release", "Brier on what followed", "accuracy, %")
    for name in (*columns, f"TPR {first} − {second}, points"):
        table.add_column(name, justify="right" if name == "learned" else "left", no_wrap=True)
    for line in made.lines:
        style = {"released": "green", "block": "red"}.get(state(line), "yellow")
        table.add_row(
            f"v{line.version}",
            f"v{line.parent}" if line.parent else "–",
            f"{line.rows:,}",
            f"[{style}]{line.outcome}[/{style}]",
            line.approver or "–",
            ", ".join(map(str, line.sequences)) or "–",
            number(line.followed.get("brier"), scale=1, digits=4),
            number(line.followed.get("accuracy")),
            number(line.gap, sign=True),
        )
    return table


def summary(demo: Demo) -> None:
    from truing.flows.demo.report import number, write
    from truing.flows.demo.summary import summarise

    made = summarise(demo.lake, demo.vault, demo.approver, demo.problem, keys=demo.ring.public(), now=time.time())
    person = demo.approver.user
    links = {
        f"MLflow (login {person}, password in {demo.settings.password_file(person)})": demo.model_page(),
        f"Prefect (login in {demo.ring.path('prefect-auth')})": demo.settings.prefect_url.removesuffix("/api"),
    }
    page = write(made, demo.given.report.resolve(), links=links if demo.given.keep else {}, now=time.time())
    out = demo.tell.console
    demo.tell.head("What happened")
    out.print(version_table(made))
    for line in made.lines:
        if line.outcome == Outcome.BLOCK:
            out.print(f"\n[red]v{line.version} was stopped:[/red] {line.reason}")
    if made.gain:
        out.print(
            f"\nSince the first update, against a model never updated, over the {made.gain['brier'].n:,} rows that followed:"
            f"\n  Brier better by {number(made.gain['brier'], scale=1000, digits=2, sign=True)} thousandths, "
            f"accuracy by {number(made.gain['accuracy'], sign=True, digits=2)} points"
        )
    events = made.events
    out.print(
        f"\nEvents: {demo.sent:,} acknowledged, {events.get('landed', 0):,} landed once, {events.get('duplicate', 0):,} resent "
        f"and dropped as duplicates, {events.get('dead', 0):,} dead letters"
    )
    if events.get("landed", 0) != demo.sent:
        raise TruingError(f"expected {demo.sent} landed events, got {events.get('landed', 0)}; see the landing table")
    out.print(f"\nOpen next: [bold]{near(page)}[/bold]")
    if demo.given.keep:
        for name, url in links.items():
            out.print(f"           {name}: {url}")
        out.print(f"           stop with: truing down --data {demo.settings.data}")


# --- one run ------------------------------------------------------------------------------------------------------------------


def near(path: Path) -> Path:
    """The path as a person standing here would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def emptied(settings: Settings) -> None:
    """The demo's folder without what an earlier demo left. Raises UsageError rather than delete a folder that is not one."""
    from truing.tasks.errors import UsageError

    mark = settings.data / ".demo"
    if settings.data.exists() and any(settings.data.iterdir()) and not mark.exists():
        raise UsageError(f"--data: expected an empty folder or an earlier demo's, got {settings.data}; name another")
    if settings.data.exists():
        Stack(settings).down()
        shutil.rmtree(settings.data)
    settings.data.mkdir(parents=True)
    mark.touch()


def story(demo: Demo) -> None:
    """The acts in their order. Each waits for what the stack does by itself."""
    rounds = demo.world.scenario.rounds
    demo.tell.head("History and genesis")
    demo.history()
    demo.genesis()
    for number in range(1, rounds + 1):
        demo.round(number)
        demo.settle(demo.improve())
    demo.tell.head("One more round of traffic, to see what the last release does")
    demo.round(rounds + 1)


def play(given: argparse.Namespace, settings: Settings) -> int:
    """The whole demo in `settings.data`, which is emptied first. Raises TruingError in one line."""
    tell = Teller()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stack goes down with the demo
    emptied(settings)
    settings = moved(settings)  # a demo need not wait for another stack
    stack = Stack(settings)
    tell.console.print(f"[bold]Truing[/bold] · census income, 48,842 people · everything lies in {near(settings.data)}")
    tell.head("The stack")
    done = False
    try:
        stack.up(lambda part, text: tell.say(f"{part:<9} {text}"))
        tell.say("locks not separated: all parts run as you; whoever reads the key files can do anything", "dim")
        demo = Demo(settings, given, tell)
        story(demo)
        summary(demo)
        done = True
    finally:
        if not (given.keep and done):
            try:
                stack.down()
            except TruingError as error:  # must not hide what went wrong before
                tell.say(f"the stack is still up: {error}", "yellow")
    return 0
