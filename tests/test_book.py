"""The steward's book: what it signed stands, in order, through crashes, rotations and restores; nobody else writes into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from truing.tasks import seal
from truing.tasks.errors import Unavailable
from truing.tasks.records import Cause, Envelope, Head, Outcome, Release, Verdict
from truing.tasks.release.audit import Broken, Mark
from truing.tasks.release.book import HIGHEST, Book, Issued, Judged, head_of, marks, open_book, read_book

GATE, RELEASE, OTHER = (seal.new_key() for _ in range(3))
KEYS = seal.Keys(gate=(seal.public_key(GATE),), release=(seal.public_key(RELEASE),))
NOW = 1000.0


def opened(path: Path, keys: seal.Keys = KEYS) -> Book:
    return open_book(path, key=lambda: RELEASE, keys=keys)


def release(sequence: int, key: bytes = RELEASE, **changes: Any) -> Envelope:
    fields: dict[str, Any] = {
        "problem": "adult", "name": f"adult@{sequence}", "version": str(sequence), "sequence": sequence, "payload": "a" * 64,
        "verdict": "v", "approval": "a", "dataset": "d", "policy": "p", "environment": {}, "cause": Cause.PROMOTE,
        "replaces": None, "at": NOW, "expires": None,
    }  # fmt: skip
    return seal.sign(Release(**{**fields, **changes}), seal.RELEASE_TYPE, key)


def verdict(payload: str = "a" * 64, look: int = 1) -> Envelope:
    made = Verdict(
        problem="adult", outcome=Outcome.PASS, clauses=(), candidate=payload, evaluation="e", policy="p", dataset="d",
        champion=None, look=look, at=NOW, key="k",
    )  # fmt: skip
    return seal.sign(made, seal.VERDICT_TYPE, GATE)


def text(envelope: Envelope) -> str:
    return seal.canonical(envelope).decode()


def test_the_last_release_serves_and_after_a_withdrawal_nothing_does(tmp_path: Path) -> None:
    book = opened(tmp_path / "book.jsonl")
    assert (book.champion("adult"), book.floor("adult")) == (None, 0)
    for sequence in (1, 2):
        book.add_release(release(sequence), audit=sequence, at=NOW)
    assert [one.sequence for one in book.releases("adult")] == [1, 2]
    serving = book.champion("adult")
    assert serving is not None
    assert serving.sequence == 2
    book.add_release(release(3, cause=Cause.WITHDRAW), audit=3, at=NOW)
    assert book.champion("adult") is None
    assert book.floor("adult") == 3
    assert book.releases("other") == []


def test_the_last_verdict_on_the_same_bytes_counts(tmp_path: Path) -> None:
    book = opened(tmp_path / "book.jsonl")
    book.add_verdict(verdict(), at=NOW, version="4", description="first")
    book.add_verdict(verdict(look=2), at=NOW, version="4", description="second", drift="0.01", heads_only="true")
    found = book.verdict("adult", "a" * 64)
    assert isinstance(found, Judged)
    assert (found.verdict.look, found.description, found.drift, found.heads_only) == (2, "second", 0.01, True)
    assert book.verdict("other", "a" * 64) is None


def test_a_book_read_again_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    book = opened(path)
    book.add_verdict(verdict(), at=NOW, version="1")
    issued = book.add_release(release(1), audit=7, at=NOW)
    book.add_head(
        seal.sign(head_of(book, "adult", Mark(n=7, digest="f"), now=NOW, lasts_s=60), seal.HEAD_TYPE, RELEASE), at=NOW
    )
    book.close()
    again = opened(path)
    assert again.issued("adult") == [issued]
    assert again.marks == marks(path, KEYS) == [Mark(n=7, digest="f")]
    head = again.head("adult")
    assert isinstance(head, Head)
    assert (head.sequence, head.release, head.expires) == (1, seal.digest(issued.release), NOW + 60)
    assert not again.fresh


def test_what_was_not_finished_is_still_to_do_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    book = opened(path)
    first = book.add_verdict(verdict(), at=NOW, version="1")
    second = book.add_release(release(1), audit=1, at=NOW)
    book.finish(first, at=NOW)
    book.close()
    book = opened(path)
    left = book.unfinished("adult")
    assert left == [second]
    assert isinstance(left[0], Issued)
    book.finish(left[0], at=NOW)
    assert book.unfinished("adult") == []


def test_a_torn_last_line_is_cut_and_the_book_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    book = opened(path)
    book.add_release(release(1), audit=1, at=NOW)
    book.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"entry": {"n": 2, ')
    assert read_book(path, KEYS).floor("adult") == 1
    book = opened(path)
    book.add_release(release(2), audit=1, at=NOW)
    book.close()
    assert read_book(path, KEYS).floor("adult") == 2


@pytest.mark.parametrize("how", ["changed", "dropped", "foreign"])
def test_a_book_that_was_tampered_with_does_not_open(tmp_path: Path, how: str) -> None:
    path = tmp_path / "book.jsonl"
    book = opened(path)
    for sequence in (1, 2, 3):
        book.add_release(release(sequence), audit=1, at=NOW)
    book.close()
    lines = path.read_bytes().splitlines(keepends=True)
    if how == "changed":
        path.write_bytes(b"".join(lines).replace(b'"audit":"1"', b'"audit":"9"', 1))
    elif how == "dropped":
        path.write_bytes(lines[0] + lines[2])
    keys = msgspec.structs.replace(KEYS, release=(seal.public_key(OTHER),)) if how == "foreign" else KEYS
    with pytest.raises(Broken, match="move it away"):
        opened(path, keys)


def test_two_stewards_never_share_a_book(tmp_path: Path) -> None:
    book = opened(tmp_path / "book.jsonl")
    with pytest.raises(Unavailable, match="another steward"):
        opened(tmp_path / "book.jsonl")
    book.close()
    opened(tmp_path / "book.jsonl").close()


def test_a_sequence_is_given_once(tmp_path: Path) -> None:
    book = opened(tmp_path / "book.jsonl")
    book.add_release(release(1), audit=1, at=NOW)
    with pytest.raises(ValueError, match="is free"):
        book.add_release(release(1, version="9"), audit=1, at=NOW)


def test_a_lost_book_takes_back_what_it_signed_and_nothing_else(tmp_path: Path) -> None:
    book = opened(tmp_path / "book.jsonl")
    assert book.fresh
    assert book.adopt(text(release(3)), problem="adult", audit=8, at=NOW)
    assert not book.adopt(text(release(3)), problem="adult", audit=8, at=NOW), "it is there already"
    assert not book.adopt(text(release(4, OTHER)), problem="adult", audit=8, at=NOW)
    assert not book.adopt(text(release(5)), problem="other", audit=8, at=NOW)
    assert not book.adopt("junk", problem="adult", audit=8, at=NOW)
    assert book.adopt(text(release(1)), problem="adult", audit=2, at=NOW)
    assert [one.sequence for one in book.releases("adult")] == [1, 3]
    assert book.unfinished("adult") == [], "it was out long ago"


def test_a_verdict_comes_back_once_and_never_over_a_later_one(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    book = opened(path)
    first, second = text(verdict()), text(verdict(look=2))
    assert book.adopt_verdict(first, problem="adult", version="4", at=NOW)
    found = book.verdict("adult", "a" * 64)
    assert found is not None
    assert (found.version, found.run, found.heads_only, book.unfinished("adult")) == ("4", "", False, [])
    book.add_verdict(verdict(look=2), at=NOW, version="4", run="r")
    assert not book.adopt_verdict(first, problem="adult", version="4", at=NOW), "the later one was not shown yet"
    assert not book.adopt_verdict(second, problem="other", version="4", at=NOW)
    book.close()
    found = opened(path).verdict("adult", "a" * 64)
    assert found is not None
    assert found.verdict.look == 2


def test_the_floor_only_rises_and_stays_within_reason(tmp_path: Path) -> None:
    book = opened(tmp_path / "book.jsonl")
    for sequence, floor in ((5, 5), (3, 5), (HIGHEST, 5), (7, 7)):
        book.raise_floor("adult", sequence, at=NOW)
        assert book.floor("adult") == floor
    book.close()
    assert opened(tmp_path / "book.jsonl").floor("adult") == 7


def test_a_rotated_release_key_goes_on_with_the_same_book(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    book = opened(path)
    book.add_release(release(1), audit=1, at=NOW)
    book.close()
    both = msgspec.structs.replace(KEYS, release=(seal.public_key(OTHER), seal.public_key(RELEASE)))
    book = open_book(path, key=lambda: OTHER, keys=both)
    book.add_release(release(2, OTHER), audit=1, at=NOW)
    book.close()
    assert read_book(path, both).floor("adult") == 2


def test_a_verdict_by_a_gate_key_that_counts_no_more_is_none(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    book = opened(path)
    book.add_verdict(verdict(), at=NOW, version="1")
    book.close()
    assert read_book(path, msgspec.structs.replace(KEYS, gate=(seal.public_key(OTHER),))).verdict("adult", "a" * 64) is None


def test_a_book_that_was_only_read_takes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="open_book"):
        read_book(tmp_path / "none.jsonl", KEYS).add_release(release(1), audit=1, at=NOW)
