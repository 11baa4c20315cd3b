"""What MLflow shows is held against audit and book: every edit is a finding of its own, and an untouched page has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clerk import Clerk

from truing.tasks import seal
from truing.tasks.errors import Unavailable
from truing.tasks.records import Cause, Outcome, Release, Verdict
from truing.tasks.release.book import Book, Judged, open_book
from truing.tasks.release.findings import Findings, open_findings
from truing.tasks.release.reconcile import Finding, View, reconcile
from truing.tasks.release.versions import Model, Version

REGISTRY, GATE, RELEASE = (seal.new_key() for _ in range(3))
HEAD = "the head attached last"


def payload(number: int) -> str:
    return f"{number:064d}"


class Page:
    """One problem as it should be: versions 1 and 2 judged and approved, 2 serves after 1; 3 was only registered."""

    def __init__(self, folder: Path) -> None:
        self.clerk = Clerk(REGISTRY, GATE, RELEASE)
        self.book: Book = open_book(folder / "book.jsonl", key=lambda: RELEASE, keys=self.clerk.public)
        self.clerk.write("policy", policy="p" * 64)
        self.versions: dict[str, Version] = {}
        for number in (1, 2, 3):
            self.register(number)
        for number in (1, 2):
            self.judge(number)
            self.release(number, sequence=number)
        self.clerk.write("anchor", version="1", reason="first")
        tags = {"policy.accepted": "p" * 64, "anchor": "1", "frozen": "false", "release.head": HEAD}
        self.model = Model(problem="adult", tags=tags, aliases={"champion": "2"})

    def register(self, number: int) -> None:
        self.clerk.version(str(number), payload(number))
        tags = {"payload": payload(number), "trainer": "trainer", "candidate": f"candidate {number}"}
        self.versions[str(number)] = Version(problem="adult", version=str(number), created=0.0, tags=tags)

    def judge(self, number: int) -> None:
        made = Verdict(
            problem="adult", outcome=Outcome.PASS, clauses=(), candidate=payload(number), evaluation="e", policy="p" * 64,
            dataset="d", champion=None, look=1, at=1.0, key="k", reason="all clauses inside",
        )  # fmt: skip
        judged = self.book.add_verdict(
            seal.sign(made, seal.VERDICT_TYPE, GATE), at=1.0, version=str(number), description="**Pass.**",
            indicators='{"rows":"9"}', run="r", candidate=seal.digest_bytes(f"candidate {number}".encode()),
        )  # fmt: skip
        self.book.finish(judged, at=1.0)
        self.clerk.decide(str(number), made)
        word = self.clerk.docket().decision(str(number))
        assert word is not None
        self.tag(
            str(number), **{"verdict": judged.envelope, "verdict.outcome": "pass", "verdict.reason": "all clauses inside",
            "verdict.indicators": '{"rows":"9"}', "approval": "approved", "approval.stamp": word.envelope,
            "approval.by": ", ".join(word.approval.by), "approval.at": repr(word.approval.at)},
        )  # fmt: skip
        self.versions[str(number)] = msgspec.structs.replace(self.versions[str(number)], description="**Pass.**")

    def release(self, number: int, sequence: int, *, finish: bool = True, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "problem": "adult", "name": f"adult@{sequence}", "version": str(number), "sequence": sequence,
            "payload": payload(number), "verdict": "v", "approval": "a", "dataset": "d", "policy": "p", "environment": {},
            "cause": Cause.PROMOTE, "replaces": None, "at": 1.0, "expires": None,
        }  # fmt: skip
        made = seal.sign(Release(**{**fields, **changes}), seal.RELEASE_TYPE, RELEASE)
        issued = self.book.add_release(made, audit=1, at=1.0)
        if finish:
            self.book.finish(issued, at=1.0)
            self.tag(str(number), **{"release": issued.envelope, f"release.{sequence}": issued.envelope})

    def tag(self, version: str, **tags: str | None) -> None:
        known = self.versions[version]
        kept = {key: value for key, value in {**known.tags, **tags}.items() if value is not None}
        self.versions[version] = msgspec.structs.replace(known, tags=kept)

    def mark(self, **tags: str | None) -> None:
        kept = {key: value for key, value in {**self.model.tags, **tags}.items() if value is not None}
        self.model = msgspec.structs.replace(self.model, tags=kept)

    def found(self, **changes: Any) -> list[str]:
        fields: dict[str, Any] = {
            "model": self.model, "versions": tuple(self.versions.values()), "bytes": {str(n): payload(n) for n in (1, 2, 3)}
        }  # fmt: skip
        view = View(**{**fields, **changes})
        return [one.key for one in reconcile("adult", view, self.clerk.docket(), self.book, head=HEAD, at=5.0)]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(tmp_path)


def alias(page: Page, **aliases: str) -> None:
    page.model = msgspec.structs.replace(page.model, aliases=aliases)


def drop(page: Page, version: str) -> None:
    del page.versions[version]


def add(page: Page, version: str) -> None:
    page.versions[version] = msgspec.structs.replace(page.versions["2"], version=version)


def describe(page: Page, version: str, text: str) -> None:
    page.versions[version] = msgspec.structs.replace(page.versions[version], description=text)


def test_an_untouched_page_has_no_finding(page: Page) -> None:
    assert page.found() == []


@pytest.mark.parametrize(
    ("edit", "keys"),
    [
        (lambda p: alias(p, champion="1"), ["adult/champion"]),
        (lambda p: alias(p), ["adult/champion"]),
        (lambda p: alias(p, champion="2", Champion="1"), ["adult/alias.Champion"]),
        (lambda p: p.mark(**{"policy.accepted": "q" * 64}), ["adult/policy"]),
        (lambda p: p.mark(anchor="2"), ["adult/anchor"]),
        (lambda p: p.mark(anchor=None), ["adult/anchor"]),
        (lambda p: p.mark(frozen="true"), ["adult/frozen"]),
        (lambda p: p.mark(**{"rollback.to": "1"}), ["adult/rollback"]),
        (lambda p: p.mark(standing='{"days":7}'), ["adult/standing"]),
        (lambda p: p.mark(**{"release.head": "an older one"}), ["adult/head"]),
        (lambda p: drop(p, "1"), ["adult/1/row"]),
        (lambda p: add(p, "9"), ["adult/9/row"]),
        (lambda p: p.tag("2", payload=payload(7)), ["adult/2/payload"]),
        (lambda p: p.tag("2", trainer="approver"), ["adult/2/trainer"]),
        (lambda p: p.tag("3", approval="approved"), ["adult/3/approval"]),
        (lambda p: p.tag("2", approval="revoked"), ["adult/2/approval"]),
        (lambda p: p.tag("2", **{"approval.stamp": p.versions["1"].tags["approval.stamp"]}), ["adult/2/stamp"]),
        (lambda p: p.tag("2", **{"approval.by": "somebody"}), ["adult/2/approval.by"]),
        (lambda p: p.tag("2", **{"approval.at": "1.5"}), ["adult/2/approval.at"]),
        (lambda p: p.tag("3", **{"verdict.outcome": "pass"}), ["adult/3/verdict"]),
        (lambda p: p.tag("2", verdict=p.versions["1"].tags["verdict"]), ["adult/2/verdict"]),
        (lambda p: p.tag("2", **{"verdict.reason": "all is well"}), ["adult/2/verdict.shown"]),
        (lambda p: p.tag("2", **{"verdict.indicators": "{}"}), ["adult/2/verdict.shown"]),
        (lambda p: p.tag("2", candidate="another dataset"), ["adult/2/candidate"]),
        (lambda p: describe(p, "2", "**Pass.** Trust me."), ["adult/2/description"]),
        (lambda p: p.tag("2", **{"release.2": None}), ["adult/2/release.2"]),
        (lambda p: p.tag("2", release=p.versions["1"].tags["release"]), ["adult/2/release"]),
        (lambda p: p.tag("3", **{"release.7": "a statement"}), ["adult/3/release.7"]),
    ],
)  # fmt: skip
def test_each_edit_is_found(page: Page, edit: Callable[[Page], None], keys: list[str]) -> None:
    edit(page)
    assert page.found() == keys


def test_files_are_compared_where_they_were_looked_at(page: Page) -> None:
    assert page.found(bytes={"1": payload(1), "2": payload(7), "3": None}) == ["adult/2/bytes", "adult/3/bytes"]
    assert page.found(bytes={}) == []


def test_a_deleted_model_is_one_finding(page: Page) -> None:
    assert page.found(model=None, versions=()) == ["adult/model"]
    assert reconcile("other", View(model=None, versions=()), Clerk(REGISTRY, GATE, RELEASE).docket(), page.book, at=1.0) == []


def test_what_the_steward_is_about_to_show_is_no_finding(page: Page) -> None:
    page.release(1, sequence=3, finish=False, cause=Cause.ROLLBACK)
    assert page.found() == []
    unfinished = page.book.unfinished("adult")[0]
    page.book.finish(unfinished, at=2.0)
    assert page.found() == ["adult/champion", "adult/1/release.3", "adult/1/release"]


def test_after_a_withdrawal_the_alias_stays_where_the_withdrawal_is(page: Page) -> None:
    page.release(2, sequence=3, cause=Cause.WITHDRAW)
    assert page.found() == []
    assert isinstance(page.book.verdict("adult", payload(2)), Judged)


# --- the file of findings -----------------------------------------------------------------------------------------------------


def finding(part: str = "champion", got: str = "1", version: str = "") -> Finding:
    return Finding(problem="adult", version=version, part=part, what="the alias", expected="2", got=got, at=5.0)


def test_a_difference_counts_when_two_looks_saw_it_and_once(tmp_path: Path) -> None:
    clerk = Clerk(REGISTRY, GATE, RELEASE)
    book = Findings(tmp_path / "findings.jsonl", key=lambda: RELEASE, keys=clerk.public)
    look = {"looked": lambda one: True, "at": 6.0}
    assert book.settle([finding()], **look) == ([], [])
    assert [one.part for one in book.suspects] == ["champion"]
    assert book.settle([finding()], **look) == ([finding()], [])
    assert book.settle([finding()], **look) == ([], [])
    assert book.settle([finding(got="3")], **look) == ([], []), "another value is another finding"
    opened, _ = book.settle([finding(got="3")], **look)
    assert [one.got for one in opened] == ["3"]
    book.close()
    path = tmp_path / "findings.jsonl"
    assert [one.got for one in open_findings(path, clerk.public)] == ["3"]
    book = Findings(path, key=lambda: RELEASE, keys=clerk.public)
    opened, closed = book.settle([], **look)
    assert (opened, [one.got for one in closed]) == ([], ["3"])
    assert open_findings(path, clerk.public) == []


def test_a_passing_difference_is_none(tmp_path: Path) -> None:
    book = Findings(tmp_path / "findings.jsonl", key=lambda: RELEASE, keys=Clerk(REGISTRY, GATE, RELEASE).public)
    for found in ([finding()], [], [finding()], []):
        assert book.settle(found, looked=lambda one: True, at=6.0) == ([], [])


def test_a_look_elsewhere_closes_nothing_and_forgets_no_suspicion(tmp_path: Path) -> None:
    book = Findings(tmp_path / "findings.jsonl", key=lambda: RELEASE, keys=Clerk(REGISTRY, GATE, RELEASE).public)
    book.settle([finding()], looked=lambda one: True, at=6.0, sure=True)
    book.settle([finding("bytes", version="4")], looked=lambda one: one.part == "bytes", at=6.0)
    assert book.settle([], looked=lambda one: one.problem == "other", at=6.0) == ([], [])
    assert [one.part for one in book.suspects] == ["bytes"]
    opened, _ = book.settle([finding("bytes", version="4")], looked=lambda one: one.part == "bytes", at=6.0)
    assert [one.key for one in opened] == ["adult/4/bytes"]
    assert set(book.open) == {"adult/champion", "adult/4/bytes"}


def test_findings_that_were_edited_do_not_open(tmp_path: Path) -> None:
    path, keys = tmp_path / "findings.jsonl", Clerk(REGISTRY, GATE, RELEASE).public
    book = Findings(path, key=lambda: RELEASE, keys=keys)
    book.settle([finding()], looked=lambda one: True, at=6.0, sure=True)
    book.close()
    path.write_bytes(path.read_bytes().replace(b"champion", b"chompian"))
    with pytest.raises(Unavailable, match="changed"):
        open_findings(path, keys)
