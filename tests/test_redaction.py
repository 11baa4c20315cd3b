"""What names or finds a person is replaced at the door, in any disguise; what only looks a little like it stays."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ports import free_ports
from test_ingest import ROW, Site

from truing.infra.settings import Settings
from truing.tasks.contract import KINDS
from truing.tasks.errors import ProblemError
from truing.tasks.events.redaction import Redactor, luhn
from truing.tasks.problem import REDACTIONS, Redaction, load_problem
from truing.tasks.tables.lake import Vault

ALL = Redactor()
PROBLEMS = Path(__file__).parent.parent / "problems"
QUICK = settings(max_examples=150, deadline=None, derandomize=True)

# --- makers of true things ----------------------------------------------------------------------------------------------------


def check_digit(digits: str) -> str:
    """The digit that makes ISO/IEC 7812's sum a multiple of ten, by trying."""
    return next(digits + last for last in "0123456789" if luhn(digits + last))


def iban(country: str, account: str) -> str:
    """ISO 13616: check digits = 98 - (account + country + "00" as a number mod 97)."""
    number = int("".join(str(int(char, 36)) for char in f"{account}{country}00"))
    return f"{country}{98 - number % 97:02d}{account}"


def grouped(text: str, size: int, by: str) -> str:
    return by.join(text[at : at + size] for at in range(0, len(text), size))


cards = st.one_of(
    st.from_regex(r"4[0-9]{14}", fullmatch=True),
    st.from_regex(r"5[1-5][0-9]{13}", fullmatch=True),
    st.from_regex(r"3[47][0-9]{12}", fullmatch=True),
    st.from_regex(r"6011[0-9]{11}", fullmatch=True),
).map(check_digit)
ibans = st.one_of(
    st.from_regex(r"[0-9]{18}", fullmatch=True).map(lambda account: iban("DE", account)),
    st.from_regex(r"[A-Z]{4}[0-9]{14}", fullmatch=True).map(lambda account: iban("GB", account)),
    st.from_regex(r"[A-Z]{4}[0-9]{10}", fullmatch=True).map(lambda account: iban("NL", account)),
)
emails = st.from_regex(r"[a-z][a-z0-9._+]{0,10}[a-z0-9]@[a-z][a-z0-9-]{0,10}[a-z0-9]\.(com|org|co\.uk|de)", fullmatch=True)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6, network="2001:db8::/32")).map(str)
phones = st.one_of(
    st.from_regex(r"\+49 1[5-7][0-9] [0-9]{7}", fullmatch=True),
    st.from_regex(r"\([2-9][0-9]{2}\) [2-9][0-9]{2}-[0-9]{4}", fullmatch=True),
    st.from_regex(r"\+1-[2-9][0-9]{2}-[2-9][0-9]{2}-[0-9]{4}", fullmatch=True),
    st.from_regex(r"0[1-9][0-9]{2}/[1-9][0-9]{6}", fullmatch=True),
)
found = st.one_of(
    *(st.tuples(st.just(kind), of) for kind, of in (("card", cards), ("iban", ibans), ("email", emails), ("phone", phones))),
    st.tuples(st.just("ip"), addresses),
)

WIDE = {**{ord(char): ord(char) + 0xFEE0 for char in "0123456789@.:+()-"}, **{n: n + 0xFEE0 for n in range(65, 123)}}
SPACES = "\u00a0\u2007\u2009\u202f\u3000"
UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
CYRILLIC = str.maketrans("aeopcyxAEOPCTXHKMB", "аеорсухАЕОРСТХНКМВ")
DOTS = "。．｡․"


def disguised(text: str, how: int, rng: random.Random) -> str:
    """The same to the eye, or nearly."""
    if how == 0:
        return text.translate(WIDE)
    if how == 1:
        return "".join(char + (rng.choice(UNSEEN) if rng.random() < 0.4 else "") for char in text)
    if how == 2:
        return text.translate(CYRILLIC)
    if how == 3:
        return "".join(rng.choice(SPACES) if char == " " else char for char in text)
    if how == 4:
        return "".join(rng.choice(DOTS) if char == "." else char for char in text)
    return "".join(chr(0x0660 + int(char)) if char.isdigit() and char.isascii() else char for char in text)


# --- what is found ------------------------------------------------------------------------------------------------------------


@QUICK
@given(found, st.sampled_from(["{}", "write to {} please", "({})", "see {}.", "a, {}, b", "Zürich: {} ok", "\n{}\n"]))
def test_what_finds_a_person_is_replaced_and_the_rest_stays(one: tuple[str, str], around: str) -> None:
    kind, text = one
    assert ALL.text(around.format(text)) == around.format(f"[{kind}]")


@QUICK
@given(found, st.integers(0, 5), st.integers(0, 999))
def test_look_alikes_do_not_hide_it(one: tuple[str, str], how: int, seed: int) -> None:
    """Full-width, zero-width between, Cyrillic letters, exotic spaces, other dots, Arabic digits."""
    kind, text = one
    hidden = disguised(text, how, random.Random(seed))
    assert ALL.text(f"ask {hidden} now") == f"ask [{kind}] now"


@QUICK
@given(cards, st.sampled_from([" ", "-", "\u2009", "."]))
def test_a_card_in_groups_is_one(digits: str, by: str) -> None:
    assert ALL.text(f"paid by {grouped(digits, 4, by)} today") == "paid by [card] today"


@QUICK
@given(ibans, st.booleans())
def test_an_iban_in_groups_ends_where_its_country_says(code: str, lower: bool) -> None:
    text = grouped(code, 4, " ")
    assert ALL.text(f"{text.lower() if lower else text} by Friday") == "[iban] by Friday"


def test_words_around_make_a_number_a_phone() -> None:
    assert ALL.text("call me 555 123 4567") == "call me [phone]"
    assert ALL.text("Tel.: 089/12 34 56") == "Tel.: [phone]"


def test_several_in_one_text_are_all_found_and_custom_rules_come_first() -> None:
    mine = Redactor(REDACTIONS, custom={"case": r"CASE-\d{4}", "staff": r"[a-z]+@ours\.example"})
    assert mine.text("CASE-1234 by anna@ours.example, cc bob@example.com, 10.1.2.3") == "[case] by [staff], cc [email], [ip]"
    assert mine.text("ＣＡＳＥ-1234") == "[case]"  # custom rules see the folded text
    assert Redactor(["email"]).text("bob@example.com 10.1.2.3") == "[email] 10.1.2.3"
    assert Redactor([]).text("bob@example.com") == "bob@example.com"


# --- what stays ---------------------------------------------------------------------------------------------------------------

dates = st.datetimes().flatmap(
    lambda at: st.sampled_from(
        [at.isoformat(), f"{at:%Y-%m-%d}", f"{at:%d.%m.%Y %H:%M}", f"{at:%m/%d/%Y}", f"{at:%d-%m-%Y}", f"{at:%H:%M:%S}"]
    )
)
prices = st.integers(0, 10**9).flatmap(
    lambda n: st.sampled_from([f"${n / 100:,.2f}", f"{n // 100:,} EUR".replace(",", "."), f"{n / 100:.2f} €", f"-{n}%"])
)
numbers = st.one_of(
    st.integers(1, 10**12).map(str),
    st.floats(0, 1e9).map(repr),
    st.floats(0, 1).map(repr),
    st.lists(st.integers(1, 9), min_size=3, max_size=20).map(lambda several: " ".join(map(str, several))),
    st.lists(st.integers(1900, 2100), min_size=1, max_size=4).map(lambda several: " ".join(map(str, several))),
)


@QUICK
@given(st.one_of(dates, prices, numbers), st.sampled_from(["{}", "it was {} then", "({})", "{}, and so on"]))
@example("2026-11-23T03:40:00.123456Z", "{}")
@example("01.02.2026 10:30", "on {}")
def test_numbers_dates_and_prices_stay(text: str, around: str) -> None:
    whole = around.format(text)
    assert ALL.text(whole) is whole


@QUICK
@given(cards)
def test_a_wrong_check_digit_is_no_card(digits: str) -> None:
    wrong = digits[:-1] + str((int(digits[-1]) + 1) % 10)
    assert "[card]" not in ALL.text(f"no {wrong} here")


@QUICK
@given(ibans)
def test_a_wrong_check_sum_is_no_iban(code: str) -> None:
    wrong = code[:-1] + str((int(code[-1]) + 1) % 10)
    assert "[iban]" not in ALL.text(f"no {wrong} here")


@pytest.mark.parametrize(
    "text",
    ["HS-grad", "std::vector and a::b", "v1.2.3.4", "version 10.0.0.1", "10.0.0.256", "1.2.3.4.5", "@handle", "user@host",
     "00:1A:2B:3C:4D:5E", "ratio 3:1:2", "+12.345.678", "order 123456789012", "1763899200000", "3.14159265358979",
     "tel 01/02/2026", "Straße über 3 Brücken", "{a: [1, 2, 3]}", ""],
)  # fmt: skip
def test_what_only_looks_a_little_like_it_stays(text: str) -> None:
    assert ALL.text(text) is text


# --- at the door --------------------------------------------------------------------------------------------------------------


def read(kind: str, data: dict[str, Any]) -> tuple[bytes, Any]:
    raw = msgspec.json.encode(data)
    return raw, msgspec.json.decode(raw, type=KINDS[kind])


def test_free_texts_are_read_and_categories_only_where_the_problem_names_them() -> None:
    told = {"prompt": "who is bob@example.com?", "chosen": "no idea", "rejected": "call (212) 555-1234"}
    raw, body = read("preference", told)
    assert msgspec.json.decode(ALL.event("preference", raw, body)) == {
        "prompt": "who is [email]?", "chosen": "no idea", "rejected": "call [phone]",
    }  # fmt: skip
    asked = {"inputs": {"job": "x@y.org", "note": "from 10.1.2.3", "age": 4}, "release": "x@y.org"}
    raw, body = read("prediction", asked)
    assert ALL.event("prediction", raw, body) is raw
    named = Redactor(inputs=["note", "age", "absent"])
    assert msgspec.json.decode(named.event("prediction", raw, body)) == {
        "inputs": {"job": "x@y.org", "note": "from [ip]", "age": 4}, "release": "x@y.org",
    }  # fmt: skip
    raw, body = read("rating", {"value": 1.0})
    assert named.event("rating", raw, body) is raw


def test_what_is_clean_comes_back_as_the_same_object() -> None:
    raw, body = read("preference", {"prompt": "a", "chosen": "b", "rejected": "c"})
    assert ALL.event("preference", raw, body) is raw


def test_a_long_hostile_text_ends() -> None:
    """Searching these 200,000 characters quadratically would take hours."""
    for text in ("a" * 200_000 + "@", "0" * 200_000, "1:" * 100_000, "(" * 200_000, "DE89 " * 40_000, "a@" * 100_000):
        assert ALL.text(text) is text
    assert ALL.text("1 " * 100_000 + "bob@example.com").endswith(" [email]")


def test_a_problem_says_what_is_redacted_and_a_wrong_rule_is_named(tmp_path: Path) -> None:
    text = (PROBLEMS / "adult" / "problem.toml").read_text()
    folder = tmp_path / "adult"
    folder.mkdir()
    (folder / "problem.toml").write_text(text)
    assert load_problem(folder).redaction == Redaction()
    given = '[redaction]\nkinds = ["email"]\ninputs = ["occupation"]\n[redaction.custom]\n'
    (folder / "problem.toml").write_text(text + given + "staff = 'S-\\d+'\n")
    mine = Redactor.of(load_problem(folder))
    assert mine.text("S-12 bob@example.com") == "[staff] [email]"
    assert mine.reads == {"prediction", "preference", "interaction"}
    for wrong, said in (
        ("staff = '('", "expected a regex"),
        ("staff = 'x*'", "match some text"),
        ("'A B' = 'x'", "expected names"),
    ):
        (folder / "problem.toml").write_text(text + given + wrong + "\n")
        with pytest.raises(ProblemError, match=said):
            load_problem(folder)
    (folder / "problem.toml").write_text(text + given.replace("occupation", "shoes"))
    with pytest.raises(ProblemError, match="shoes"):
        load_problem(folder)


def test_a_rule_that_is_added_while_the_keeper_runs_holds_from_then_on(
    tmp_path: Path, settings_in: Callable[..., Settings]
) -> None:
    """Before, the name stays; then `problem.toml` names the column, and what lands has it no more."""
    shutil.copytree(PROBLEMS, tmp_path / "problems")
    file = tmp_path / "problems" / "adult" / "problem.toml"
    kafka = {"broker": "embedded", "bootstrap": f"127.0.0.1:{free_ports(1)[0]}"}
    site = Site(settings_in(tmp_path, problems=tmp_path / "problems", kafka=kafka), load_problem(file.parent))
    keeper = site.keeper()
    try:
        for n in range(2):
            site.send(site.prediction(n, inputs=ROW | {"occupation": "bob@example.com"}))
            keeper.landing.drain()
            file.write_text(file.read_text() + '\n[redaction]\ninputs = ["occupation"]\n' if n == 0 else file.read_text())
            keeper.landing.refresh_checks()
    finally:
        keeper.close()
        site.close()
    before, after = Vault(site.settings.vault).landing(columns=["data"])["data"]
    assert b"bob@example.com" in before and b"bob@example.com" not in after and b"[email]" in after
