"""Words and predictions find one another within what the problem allows; what does not is set aside where people see it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from test_join import DAY, SALT, TOY, asked, event, frame, said, stores, taught

from truing.flows.cli.main import main
from truing.flows.cli.telling import told
from truing.infra.settings import load
from truing.infra.status import parking
from truing.tasks.errors import ProblemError
from truing.tasks.events.join import HISTORY, derive, join
from truing.tasks.events.parking import counts, set_aside
from truing.tasks.problem import Maturity, Parking, Problem, load_problem
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.tables.whereabouts import Whereabouts

LONG = msgspec.structs.replace(
    TOY,
    maturity=Maturity(outcome="10s", credit="730d"),
    parking=Parking(wait={"correction": "30d"}, late={"rating": "90d"}, voices=3),
    interactions={"click": 0.0, "dwell": 10.0},
)


def state(*events: dict[str, Any], problem: Problem = LONG) -> dict[str, Any]:
    return join(frame(list(events)), problem, salt=SALT, revision=1).row(0, named=True)


def unused(row: dict[str, Any]) -> dict[str, int]:
    return msgspec.json.decode(row["feedback"]).get("unused", {})


def test_each_type_waits_for_its_prediction_as_long_as_the_problem_says() -> None:
    """The word lands at 100; its prediction 30 days later, or a second after that."""
    for kind, landed, joins in (
        ("correction", 100.0 + 30 * DAY, True),
        ("correction", 101.0 + 30 * DAY, False),
        ("outcome", 101.0 + 30 * DAY, True),
        ("outcome", 100.0 + 730 * DAY, True),
    ):
        row = state(said(kind, "p", 100.0, "yes", landed_at=100.0), asked("p", 100.0, landed_at=landed))
        assert (row["target"] == "yes") is joins, (kind, landed)
        assert unused(row) == ({} if joins else {"waited": 1})


def test_each_type_may_be_as_late_as_the_problem_says() -> None:
    for kind, days, value, counts_ in (("rating", 90, 1.0, True), ("rating", 90.1, 1.0, False), ("outcome", 729, "yes", True)):
        row = state(asked("p"), said(kind, "p", 100.0 + days * DAY, value))
        assert (row["target"] is not None) is counts_, (kind, days)
        assert unused(row) == ({} if counts_ else {"late": 1})


def test_a_word_that_does_not_count_stands_in_no_history_and_a_duplicate_is_not_counted_twice() -> None:
    late = said("rating", "p", 100.0 + 91 * DAY, 1.0)
    row = state(asked("p"), said("correction", "p", 101.0, "yes"), late, late | {"offset": 10**9})
    feedback = msgspec.json.decode(row["feedback"])
    assert [line[0] for line in feedback["history"]] == ["correction"] and feedback["unused"] == {"late": 1}


def test_derive_counts_what_is_newly_set_aside(tmp_path: Path) -> None:
    vault, lake = stores(tmp_path)
    vault.append("landing", frame([asked("p"), said("rating", "p", 100.0 + 91 * DAY, 1.0)]))
    assert derive(vault, lake, [LONG], salt=SALT, now=1e9).unused == {"toy": {"late": 1}}
    vault.append("landing", frame([said("rating", "p", 101.0 + n + 91 * DAY, 1.0) for n in range(2)]))
    assert derive(vault, lake, [LONG], salt=SALT, now=1e9).unused == {"toy": {"late": 2}}
    vault.append("landing", frame([said("outcome", "p", 105.0, "yes")]))
    assert derive(vault, lake, [LONG], salt=SALT, now=1e9).unused == {}


def test_what_has_no_row_is_listed_with_its_reason_and_nothing_else_is(tmp_path: Path) -> None:
    """Every landed word either stands in its row's history or in the view, never in both, never in neither."""
    vault, lake = stores(tmp_path)
    again = said("outcome", "good", 105.0, "yes", landed_at=100.0)
    events = [
        asked("good", landed_at=90.0),
        again,
        again | {"offset": 10**9, "landed_at": 200.0},
        asked("slow", landed_at=100.0 + 31 * DAY),
        said("correction", "slow", 100.0, "yes", landed_at=100.0),
        said("rating", "good", 100.0 + 91 * DAY, 1.0, landed_at=101.0),
        *(said("rating", "good", 101.0 + n, 1.0, f"actor {n}", landed_at=110.0 + n) for n in range(5)),
        said("rating", "good", 120.0, 0.9, "actor 0", landed_at=130.0),  # who is heard may speak again
        said("correction", "never", 100.0, "yes", landed_at=100.0),
        said("outcome", "never", 100.0, "yes", landed_at=100.0),
    ]
    vault.append("landing", frame(events))
    derive(vault, lake, [LONG], salt=SALT, now=100.0 + 31 * DAY)
    found = set_aside(vault, {"toy": LONG}, now=100.0 + 31 * DAY)
    assert counts(found) == {"toy": {"expired": 1, "late": 1, "parked": 1, "twice": 1, "voices": 2, "waited": 1}}
    reasons = {(one["prediction_id"], one["type"]): one["reason"] for one in found.iter_rows(named=True)}
    assert reasons["never", "correction"] == "expired" and reasons["never", "outcome"] == "parked"
    assert set(found.filter(reason="voices")["actor"]) == {"actor 3", "actor 4"}
    details = dict(found.select("reason", "detail").iter_rows())
    assert details["expired"] == "no prediction came within 30.0 days"
    rows = pl.concat([lake.rows("toy"), vault.holdout("toy", now=0.0, matured=False)])
    heard = sum(len(msgspec.json.decode(feedback).get("history", [])) for feedback in rows["feedback"])
    assert heard + found.height == len([one for one in events if one["type"] != "prediction"])


def test_an_interaction_confirms_only_what_the_problem_says_and_only_where_nobody_said_more() -> None:
    def did(kind: str, value: float | None = None) -> dict[str, Any]:
        return event("interaction", "p", 105.0, {"kind": kind, "value": value}, actor="ann")

    assert taught(state(asked("p"), did("click"))) == ("no", "interaction", "ann", 105.0)
    assert taught(state(asked("p"), did("dwell", 10.0)))[1] == "interaction"
    for kind, value in (("dwell", 9.9), ("dwell", None), ("scroll", 100.0)):
        assert taught(state(asked("p"), did(kind, value)))[0] is None
    assert taught(state(asked("p"), did("click"), problem=TOY))[0] is None  # unless a problem says so, none does
    assert taught(state(asked("p"), did("click"), said("rating", "p", 101.0, 0.1)))[0] is None
    assert taught(state(asked("p"), did("click"), said("correction", "p", 101.0, "yes")))[:2] == ("yes", "correction")
    assert taught(state(asked("p", label=None), did("click")))[0] is None


def test_an_interaction_is_no_label_that_improve_waits_for(tmp_path: Path) -> None:
    vault, lake = stores(tmp_path)
    ids = [f"p{n}" for n in range(40)]
    clicks = [event("interaction", one, 105.0, {"kind": "click"}, actor="ann") for one in ids]
    vault.append("landing", frame([asked(one) for one in ids] + clicks))
    assert derive(vault, lake, [LONG], salt=SALT, now=1e6).labelled == {}
    vault.append("landing", frame([said("outcome", one, 106.0, "yes") for one in ids]))
    done = derive(vault, lake, [LONG], salt=SALT, now=1e6)
    assert done.labelled["toy"] + done.judged["toy"] == 40


def test_one_token_that_says_thousands_of_things_leaves_a_row_of_bounded_size() -> None:
    words = [said("rating", "p", 101.0 + n / 1000, 0.5, event_id=f"w{n}") for n in range(2000)]
    row = state(asked("p"), said("outcome", "p", 100.5, "yes"), *words)
    history = msgspec.json.decode(row["feedback"])["history"]
    assert len(history) == HISTORY + 1 and history[0][0] == "outcome" and history[-1][1] == 101.0 + 1.999


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("[parking.wait]\nrating = '900d'", r"parking\.wait\.rating: expected at most maturity\.credit \(730d\), got 900d"),
        ("[parking.late]\nrating = 'soon'", r"parking\.late\.rating: expected a duration"),
        ("[parking]\nvoices = 0", r"parking\.voices: expected at least 1, got 0"),
        ("[parking.wait]\nprediction = '1d'", r"parking\.wait"),
    ],
)
def test_a_wrong_policy_of_parking_is_one_line(tmp_path: Path, lines: str, says: str) -> None:
    folder = tmp_path / "adult"
    folder.mkdir()
    known = Path(__file__).resolve().parent.parent / "problems" / "adult" / "problem.toml"
    (folder / "problem.toml").write_text(f"{known.read_text()}\n{lines}\n")
    with pytest.raises(ProblemError, match=says) as caught:
        load_problem(folder)
    assert "\n" not in str(caught.value)


def test_a_small_batch_reads_the_files_that_hold_its_predictions_and_no_other(tmp_path: Path) -> None:
    vault, lake = stores(tmp_path)
    for n in range(12):
        vault.append("landing", frame([asked(f"p{n}-{k}") for k in range(50)]))
        derive(vault, lake, [TOY], salt=SALT, now=1e6)
    files = vault._files(vault._handle("landing"))  # type: ignore[arg-type]
    read: list[str] = []

    def one(file: str) -> pl.Series:
        read.append(file)
        return pl.read_parquet(file, columns=["prediction_id"])["prediction_id"]

    known = Whereabouts(one)
    assert known.holding(files, pl.Series(["p3-7"])) == [file for file in files if "p3-7" in set(one(file))]
    assert known.holding(files, pl.Series(["nobody"])) == [] == known.holding(files, pl.Series([], dtype=pl.String))
    read.clear()
    vault.append("landing", frame([said("outcome", "p3-7", 105.0, "yes"), said("outcome", "p9-1", 105.0, "yes")]))
    more = vault._files(vault._handle("landing"))  # type: ignore[arg-type]
    assert len(known.holding(more, pl.Series(["p3-7", "p9-1"]))) == 3 and len(read) == 1  # what is known is not read again
    derive(vault, lake, [TOY], salt=SALT, now=1e6)
    vault.compact(above=2)
    assert vault.holding("landing", "prediction_id", pl.Series(["p3-7"])).collect().height == 2
    assert Lake(lake.root).holding("rows", "id", pl.Series(["p3-7"])).collect().height in (0, 2)  # 0: it is in the vault


def test_people_see_what_is_parked_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`truing status` counts it, `truing status --parked` lists it; what was said is not shown."""
    known = Path(__file__).resolve().parent.parent / "problems"
    settings = load(data=tmp_path, problems=known)
    vault = Vault(settings.vault)
    tmp_path.joinpath("vault").mkdir()
    now = time.time()
    words = [
        said("outcome", "never seen", now, ">50K", problem="adult", landed_at=now),
        said("outcome", "never came", now, ">50K", problem="adult", landed_at=now - 731 * DAY),
    ]
    vault.append("landing", frame(words))
    assert parking(settings) == {"adult": {"expired": 1, "parked": 1}}
    found = {"parts": [], "up": True, "problems": [], "findings": [], "lag": None, "runs": None, "memory_mb": 0, "notes": []}
    found |= {"disk": {"used_mb": 0, "free_mb": 0}, "data": "here", "locks": "", "parking": parking(settings)}
    assert "adult: words that wait for their prediction 1, set aside 1 (1 expired); `truing status --parked`" in told(found)
    assert main(["status", "--parked", "--data", str(tmp_path), "--problems", str(known)]) == 0
    text = capsys.readouterr().out
    assert "no prediction came within 730.0 days" in text and "waits for its prediction" in text and ">50K" not in text
