"""The steward does what is due, once: which versions it judges, which approvals it releases; the audit and its book say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clerk import Clerk

from truing.flows.due import asked_back, unjudged, waiting
from truing.flows.patience import Patience
from truing.flows.watch import STRETCH, Watch
from truing.tasks import seal
from truing.tasks.records import Cause, Outcome, Refusal, Release, Verdict
from truing.tasks.release.audit import Line
from truing.tasks.release.book import Book, head_of, open_book
from truing.tasks.release.promotion import facts_of, plan_promotion

REGISTRY, GATE, RELEASE = (seal.new_key() for _ in range(3))
POLICY = "p" * 64


def payload(number: int) -> str:
    return f"{number:064d}"


def verdict(number: int, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "problem": "adult", "outcome": Outcome.PASS, "clauses": (), "candidate": payload(number), "evaluation": "e",
        "policy": POLICY, "dataset": "d", "champion": payload(3), "look": 1, "at": 1.0, "key": "k",
    }  # fmt: skip
    return Verdict(**{**fields, **changes})


class Office:
    """An audit and a book that fit together: version 3 serves as release 1, and 4 may be registered, judged, decided on."""

    def __init__(self, folder: Path) -> None:
        self.clerk = Clerk(REGISTRY, GATE, RELEASE)
        self.book: Book = open_book(folder / "book.jsonl", key=lambda: RELEASE, keys=self.clerk.public)
        self.clerk.write("policy", policy=POLICY)
        self.clerk.version("3", payload(3))
        self.judge(3, champion=None, outcome=Outcome.INCONCLUSIVE)
        self.release(3, sequence=1)

    def judge(self, number: int, **changes: Any) -> Verdict:
        made = verdict(number, **changes)
        self.book.add_verdict(seal.sign(made, seal.VERDICT_TYPE, GATE), at=1.0, version=str(number))
        return made

    def register(self, number: int, **changes: Any) -> Verdict:
        self.clerk.version(str(number), payload(number))
        return self.judge(number, **changes)

    def release(self, number: int, sequence: int, **changes: Any) -> Release:
        fields: dict[str, Any] = {
            "problem": "adult", "name": f"adult@{sequence}", "version": str(number), "sequence": sequence,
            "payload": payload(number), "verdict": "v", "approval": "a", "dataset": "d", "policy": POLICY, "environment": {},
            "cause": Cause.PROMOTE, "replaces": None, "at": 1.0, "expires": None,
        }  # fmt: skip
        made = Release(**{**fields, **changes})
        self.book.add_release(seal.sign(made, seal.RELEASE_TYPE, RELEASE), audit=self.clerk.mark.n, at=1.0)
        return made

    def unjudged(self, policy: str = POLICY) -> list[str]:
        return unjudged(self.clerk.docket(), self.book, "adult", policy)

    def waiting(self) -> list[str]:
        return [version for version, _ in waiting(self.clerk.docket(), self.book, "adult")]


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


# --- what is judged -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "due"),
    [
        ({}, False),  # judged against what serves, under this policy
        ({"champion": "x" * 64}, True),  # another release came in between
        ({"champion": None}, True),
        ({"policy": "q" * 64}, True),  # the rules changed
        ({"champion": "x" * 64, "outcome": Outcome.BLOCK}, False),  # a block is not tried again
    ],
)
def test_what_is_judged_again(office: Office, change: dict[str, Any], due: bool) -> None:
    office.register(4, **change)
    assert office.unjudged() == (["4"] if due else [])


def test_only_registered_versions_are_judged_and_only_the_book_knows_verdicts(office: Office) -> None:
    office.clerk.version("4", payload(4))
    assert office.unjudged() == ["4"]
    office.clerk.write("verdict", "steward", version="4", envelope="whatever a tag may say")
    assert office.unjudged() == ["4"]
    office.judge(9)
    assert office.unjudged() == ["4"], "a verdict on bytes that nobody registered changes nothing"


@pytest.mark.parametrize("word", ["rejected", "revoked"])
def test_what_a_person_turned_down_is_not_judged_again(office: Office, word: str) -> None:
    old = office.register(4, champion="x" * 64)
    office.clerk.decide("4", old, word)
    assert office.unjudged() == []


def test_what_served_or_is_older_than_the_last_release_is_not_judged_again(office: Office) -> None:
    office.register(4, champion="x" * 64)
    office.register(5)
    office.release(5, sequence=2)
    office.register(6)
    assert office.unjudged() == ["6"], "4 is older, 5 has served"


def test_after_a_withdrawal_what_is_open_is_judged_against_nothing(office: Office) -> None:
    office.release(3, sequence=2, cause=Cause.WITHDRAW)
    office.register(4)
    assert office.unjudged() == ["4"]
    office.judge(4, champion=None, outcome=Outcome.INCONCLUSIVE)
    assert office.unjudged() == []


def test_other_bytes_under_a_known_number_are_another_version(office: Office) -> None:
    """A model deleted and made again in the database counts from 1 anew; what was released under that number stays apart."""
    office.clerk.version("3", payload(33))
    assert office.unjudged() == ["3"]


# --- what is released ---------------------------------------------------------------------------------------------------------


def test_approvals_wait_in_the_order_of_the_audit_whatever_their_clocks_say(office: Office) -> None:
    for number, at in ((5, 9.0), (4, 3.0), (6, 1.0)):
        office.clerk.decide(str(number), office.register(number), at=at)
    assert office.waiting() == ["5", "4", "6"]


def test_only_the_last_word_on_a_version_counts(office: Office) -> None:
    made = office.register(4)
    office.clerk.decide("4", made)
    office.clerk.decide("4", made, "revoked")
    assert office.waiting() == []
    office.clerk.decide("4", made, at=5.0)
    assert office.waiting() == ["4"]


def test_an_approval_that_was_carried_out_does_not_wait(office: Office) -> None:
    office.clerk.decide("4", office.register(4))
    word = office.clerk.docket().decision("4")
    assert word is not None
    office.release(4, sequence=2, approval="another")
    assert office.waiting() == ["4"]
    office.release(4, sequence=3, approval=seal.digest(word.approval))
    assert office.waiting() == []


def test_a_standing_approval_lets_passed_versions_wait_that_nobody_decided_on(office: Office) -> None:
    office.register(4)
    office.register(5, outcome=Outcome.INCONCLUSIVE)
    office.clerk.decide("6", office.register(6), "rejected")
    assert office.waiting() == []
    office.clerk.stand()
    assert office.waiting() == ["4"]
    office.register(7)
    office.release(7, sequence=2)
    assert office.waiting() == [], "4 is older than what serves now"


def test_a_rollback_is_due_until_its_release_is_booked(office: Office) -> None:
    assert not asked_back(office.clerk.docket(), office.book, "adult")
    line = office.clerk.ask_back("3")
    assert asked_back(office.clerk.docket(), office.book, "adult")
    office.release(3, sequence=2, cause=Cause.ROLLBACK, asked=line.digest)
    assert not asked_back(office.clerk.docket(), office.book, "adult")
    office.clerk.ask_back("3")
    assert asked_back(office.clerk.docket(), office.book, "adult"), "asked again is another act"


# --- what is known of a version -----------------------------------------------------------------------------------------------


def plan(office: Office, version: str = "4", policy: str = POLICY, override: int = 0) -> Release | Refusal:
    facts = facts_of("adult", version, docket=office.clerk.docket(), book=office.book, policy=policy, override=override)
    if isinstance(facts, Refusal):
        return facts
    past, keys = office.book.releases("adult"), office.clerk.public
    return plan_promotion(facts, past=past, keys=keys, environment={}, now=10.0, floor=office.book.floor("adult"))


def code(found: Release | Refusal) -> str:
    return found.code if isinstance(found, Refusal) else f"release {found.sequence}"


def test_acts_and_book_alone_make_a_release(office: Office) -> None:
    made = office.register(4)
    assert code(plan(office)) == "approval.missing"
    office.clerk.decide("4", made)
    assert code(plan(office)) == "release 2"


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("never registered", "version.unknown"),
        ("steward has another policy", "policy.changed"),
        ("nobody accepted a policy", "policy.unaccepted"),
        ("other bytes registered since", "verdict.missing"),
        ("frozen", "frozen"),
        ("judged again", "approval.other"),
        ("book is older than the audit", "verdict.older"),
        ("approved by its trainer", "approval.self"),
        ("another champion", "verdict.stale"),
    ],
)
def test_what_acts_and_book_do_not_bear_out_is_refused(office: Office, what: str, expected: str) -> None:
    made = office.register(4)
    office.clerk.decide("4", made, by=("trainer",) if what == "approved by its trainer" else ("approver",))
    version, policy = "4", POLICY
    match what:
        case "never registered":
            version = "7"
        case "steward has another policy":
            policy = "q" * 64
        case "nobody accepted a policy":
            office.clerk.write("policy", policy="")
        case "other bytes registered since":
            office.clerk.version("4", payload(44))
        case "frozen":
            office.clerk.write("frozen", value="true", reason="")
        case "judged again":
            office.judge(4, look=2)
        case "book is older than the audit":
            later = office.clerk.envelope(verdict(4, look=2, outcome=Outcome.BLOCK), seal.VERDICT_TYPE, GATE)
            office.clerk.write("verdict", "steward", version="4", envelope=later)
        case "another champion":
            office.release(5, sequence=2)
    assert code(plan(office, version, policy)) == expected


def test_a_blocked_version_needs_the_policys_override_and_two_persons(office: Office) -> None:
    made = office.register(4, outcome=Outcome.BLOCK)
    office.clerk.decide("4", made, override=True, expires=99.0, by=("approver",))
    assert code(plan(office)) == "verdict.block"
    assert code(plan(office, override=2)) == "approval.persons"
    office.clerk.decide("4", made, override=True, expires=99.0, by=("approver", "approver2"))
    assert code(plan(office, override=2)) == "release 2"


def test_an_approval_in_advance_is_named_by_the_release_it_carries(office: Office) -> None:
    office.register(4)
    office.clerk.stand()
    allowed = office.clerk.docket().standing
    assert allowed is not None
    made = plan(office)
    assert isinstance(made, Release)
    assert made.approval == seal.digest(allowed.standing)


# --- following the audit ------------------------------------------------------------------------------------------------------


class Pages:
    """The registry's audit as a list: what `Watch` reads of a registry."""

    user = "steward"

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines

    def audit(self, after: int, until: int | None = None) -> list[Line]:
        return [line for line in self.lines if line.entry.n > after]


@pytest.fixture
def watching(office: Office) -> Callable[[], tuple[Watch, Pages]]:
    def make() -> tuple[Watch, Pages]:
        pages = Pages(office.clerk.lines)
        return Watch(pages, office.book, lambda: office.clerk.public), pages  # type: ignore[arg-type]

    return make


def countersign(office: Office) -> None:
    head = head_of(office.book, "adult", office.clerk.mark, now=1.0, lasts_s=60.0)
    office.book.add_head(seal.sign(head, seal.HEAD_TYPE, RELEASE), at=1.0)


def test_the_audit_is_read_on_from_where_it_was(office: Office, watching: Callable[[], tuple[Watch, Pages]]) -> None:
    watch, _ = watching()
    assert watch.catch_up() == office.clerk.mark.n
    assert watch.catch_up() == 0
    office.clerk.write("frozen", value="true", reason="")
    assert watch.catch_up() == 1
    assert watch.acts.of("adult").frozen
    assert (watch.broken, watch.people) == (None, office.clerk.mark.n)


def test_a_cut_tail_or_another_history_stops_everything_until_it_is_mended(
    office: Office, watching: Callable[[], tuple[Watch, Pages]]
) -> None:
    whole = list(office.clerk.lines)
    watch, pages = watching()
    watch.catch_up()
    pages.lines = whole[:-1]
    watch.catch_up()
    assert watch.broken and "tail was cut" in watch.broken
    other = Clerk(REGISTRY, GATE, RELEASE)  # the registry's own key, another story of the same length
    for number in range(1, len(whole) + 2):
        other.version(str(number), "f" * 64)
    pages.lines = other.lines
    watch.catch_up()
    assert watch.broken and "rewritten" in watch.broken
    pages.lines = []
    watch.catch_up()
    assert watch.broken
    pages.lines = whole
    watch.catch_up()
    assert watch.broken is None


def test_after_a_start_every_countersigned_record_has_to_be_there(
    office: Office, watching: Callable[[], tuple[Watch, Pages]]
) -> None:
    countersign(office)
    office.clerk.version("4", payload(4))
    countersign(office)
    watch, _ = watching()
    watch.catch_up()
    assert watch.broken is None
    cut, pages = watching()
    pages.lines = office.clerk.lines[:-1]
    cut.catch_up()
    assert cut.broken and "countersigned" in cut.broken
    rewritten, pages = watching()
    other = Clerk(REGISTRY, GATE, RELEASE)
    for line in office.clerk.lines[:-1]:
        other.write(line.entry.act, line.entry.user, **{k: v for k, v in line.entry.facts.items() if k != "problem"})
    other.version("4", payload(44))
    pages.lines = other.lines
    rewritten.catch_up()
    assert rewritten.broken and "countersigned" in rewritten.broken


def test_a_record_that_does_not_read_breaks_the_audit_and_not_the_steward(
    office: Office, watching: Callable[[], tuple[Watch, Pages]]
) -> None:
    office.clerk.write("version", version="9")
    watch, _ = watching()
    watch.catch_up()
    assert watch.broken and "does not read" in watch.broken


def test_history_is_read_again_in_turn(office: Office, watching: Callable[[], tuple[Watch, Pages]]) -> None:
    for number in range(4, 2 * STRETCH + 10):
        office.clerk.version(str(number), payload(number))
    watch, pages = watching()
    watch.catch_up()
    whole = pages.lines
    for _ in range(3):
        watch.look_back()
    assert watch.broken is None
    changed = msgspec.structs.replace(whole[5], entry=msgspec.structs.replace(whole[5].entry, user="nobody"))
    pages.lines = [*whole[:5], changed, *whole[6:]]
    watch.look_back()
    watch.look_back()
    assert watch.broken and "rewritten" in watch.broken
    watch.catch_up()
    assert watch.broken, "reading on does not heal it"
    pages.lines = whole
    watch.look_back()
    assert watch.broken is None


# --- trying again -------------------------------------------------------------------------------------------------------------


def test_what_fails_is_tried_ever_less_often() -> None:
    now = 0.0
    patience = Patience(1.0, 8.0, clock=lambda: now)
    tried = []
    for second in range(40):
        now = float(second)
        if patience.ready("x"):
            tried.append(second)
            patience.failed("x")
    assert tried == [0, 1, 3, 7, 15, 23, 31, 39]
    assert patience.ready("y")
    patience.done("x")
    assert patience.ready("x")
