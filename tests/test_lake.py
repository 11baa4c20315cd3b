"""The lake and the vault: what is committed once is there once, whoever else writes and whenever the process dies."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from truing.tasks.errors import DataError, Unavailable
from truing.tasks.records import Alert, DatasetVersion
from truing.tasks.tables.columns import LANDING, ROWS
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.tables.store import Stale


def messages(first: int, last: int, *, partition: int = 0, epoch: int = 0, **columns: Any) -> pl.DataFrame:
    offsets = list(range(first, last))
    data = {"topic": "t", "partition": partition, "epoch": epoch, "disposition": "landed", "landed_at": 1.0, **columns}
    return pl.DataFrame({"offset": offsets, "event_id": [f"{partition}-{n}" for n in offsets]}).with_columns(
        [pl.lit(value).alias(name) for name, value in data.items()]
    )


def state(id: str, revision: int, **columns: Any) -> dict[str, Any]:
    base = {"id": id, "problem": "adult", "subject": "s", "split": "train", "asked_at": 1.0, "revision": revision}
    return base | columns


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def test_an_absent_table_reads_as_an_empty_frame_with_its_schema(vault: Vault, lake: Lake) -> None:
    assert vault.read("landing").schema == pl.Schema(LANDING)
    assert lake.rows("adult").schema == pl.Schema(ROWS)
    assert vault.holdout("adult", now=0.0).height == 0
    assert vault.positions("t") == {}
    assert vault.version("landing") is None
    assert lake.records("alerts", Alert) == []


def test_positions_of_several_partitions_ride_in_one_commit(vault: Vault) -> None:
    both = pl.concat([messages(0, 5), messages(10, 12, partition=1, epoch=2)])
    version = vault.append("landing", both, app=[("g:t:0:0", 5), ("g:t:1:2", 12)])
    assert vault.append("landing", messages(5, 6), app=[("g:t:0:0", 6)]) == version + 1
    assert vault.transaction("landing", "g:t:0:0") == 6
    assert vault.transaction("landing", "g:t:1:2") == 12
    assert vault.positions("t") == {(0, 0): 6, (1, 2): 12}


@pytest.mark.parametrize("fresh", [False, True], ids=["same handle", "fresh handle"])
def test_an_append_that_is_recorded_already_is_skipped(vault: Vault, fresh: bool) -> None:
    version = vault.append("landing", messages(0, 5), app=("g:t:0:0", 5))
    writer = Vault(vault.root) if fresh else vault
    assert writer.append("landing", messages(0, 5), app=("g:t:0:0", 5)) == version
    assert writer.append("landing", messages(0, 3), app=("g:t:0:0", 3)) == version
    assert vault.read("landing")["offset"].to_list() == [0, 1, 2, 3, 4]


def test_an_overlapping_owner_is_fenced_out(vault: Vault) -> None:
    """Another owner took 0..9; a writer that thought the position was 5 would double 5..9."""
    vault.append("landing", messages(0, 10), app=("g:t:0:0", 10))
    with pytest.raises(Stale, match="g:t:0:0 at 5, got 10; read the positions again"):
        vault.append("landing", messages(5, 15), app=("g:t:0:0", 15), expect={"g:t:0:0": 5})
    with pytest.raises(Stale, match="none or all"):
        vault.append("landing", messages(5, 15), app=[("g:t:0:0", 10), ("g:t:1:0", 1)])
    assert vault.read("landing").height == 10


def test_concurrent_writers_of_one_application_commit_each_batch_once(tmp_path: Path) -> None:
    """Four writers race with the same 25 batches of 4 messages: 100 rows, all different."""
    failures: list[Exception] = []

    def write(number: int) -> None:
        own = Vault(tmp_path / "vault")
        batch = 0
        while batch < 25:
            try:
                frame = messages(batch * 4, batch * 4 + 4)
                own.append("landing", frame, app=("g:t:0:0", batch * 4 + 4), expect={"g:t:0:0": batch * 4 or None})
                batch += 1
            except Stale:  # another one was ahead: go on where it stands
                batch = (own.transaction("landing", "g:t:0:0") or 0) // 4
            except Exception as error:  # noqa: BLE001 - shown by the test below
                failures.append(error)
                return

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(Vault(tmp_path / "vault").read("landing")["offset"].to_list()) == list(range(100))


def test_a_killed_writer_leaves_whole_commits_only(tmp_path: Path) -> None:
    """SIGKILL in mid-stream: what is there is a prefix of batches, and the recorded position is exactly its end."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_lake import messages\n"
        "from truing.tasks.tables.lake import Vault\n"
        "v = Vault(sys.argv[1])\n"
        "for n in range(100000):\n"
        "    v.append('landing', messages(n * 50, n * 50 + 50), app=('g:t:0:0', n * 50 + 50)); print(n, flush=True)\n"
    )
    folder = tmp_path / "vault"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 15:
            process.kill()
            break
    process.wait()
    process.stdout.close()
    vault = Vault(folder)
    offsets = sorted(vault.read("landing")["offset"].to_list())
    assert len(offsets) >= 16 * 50
    assert offsets == list(range(len(offsets)))
    assert vault.transaction("landing", "g:t:0:0") == len(offsets) == vault.positions("t")[0, 0]


def test_the_highest_revision_of_a_row_wins(lake: Lake) -> None:
    lake.append("rows", pl.DataFrame([state("a", 1), state("b", 1, asked_at=0.5)]))
    lake.append("rows", pl.DataFrame([state("a", 2, target=">50K"), state("x", 2, problem="other")]))
    rows = lake.rows("adult")
    assert rows["id"].to_list() == ["b", "a"]  # by time of asking
    assert rows["revision"].to_list() == [1, 2]
    assert lake.rows("adult", labelled=True)["id"].to_list() == ["a"]
    assert lake.rows("adult", labelled=False)["id"].to_list() == ["b"]
    assert lake.rows("adult", splits=["validation"]).height == 0
    assert lake.rows("adult", revision=1)["target"].to_list() == [None, None]


def test_only_matured_outcomes_and_reviews_judge(vault: Vault) -> None:
    judge = {"split": "holdout", "target": "x", "matured_at": 10.0}
    states = [
        state("outcome", 1, origin="outcome", **judge),
        state("review", 1, origin="review", **judge),
        state("correction", 1, origin="correction", **judge),
        state("early", 1, origin="outcome", **judge | {"matured_at": 11.0}),
        state("silent", 1, split="holdout"),
        state("train", 1, origin="outcome", **judge | {"split": "train"}),
    ]
    vault.append("holdout", pl.DataFrame(states))
    assert set(vault.holdout("adult", now=10.0)["id"]) == {"outcome", "review"}
    assert vault.holdout("adult", now=10.0, matured=False).height == 5


def test_compaction_keeps_rows_positions_and_transactions(vault: Vault) -> None:
    for n in range(12):
        vault.append("landing", messages(n, n + 1), app=("g:t:0:0", n + 1))
    assert vault.compact(above=20) == {}
    assert vault.compact(above=10) == {"landing": 12}
    other = Vault(vault.root)
    assert other.landing()["offset"].to_list() == list(range(12))
    assert other.positions("t") == {(0, 0): 12}
    before = other.version("landing")
    assert other.append("landing", messages(11, 12), app=("g:t:0:0", 12)) == before


def test_what_was_merged_away_is_deleted_once_no_reader_can_need_it(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truing.tasks.tables.store.MERGED_AWAY", "interval 3 seconds")
    for n in range(12):
        vault.append("landing", messages(n, n + 1))
    vault.compact(above=10)
    folder = Path(vault.root) / "landing"
    assert len(list(folder.glob("*.parquet"))) == 13, "a reader in mid-scan finds what it began with"
    time.sleep(3.1)
    for n in range(12, 24):
        vault.append("landing", messages(n, n + 1))
    vault.compact(above=10)
    assert len(list(folder.glob("*.parquet"))) == 14  # one file made of 13, and the 13 that it was made of just now
    assert Vault(vault.root).landing()["offset"].sort().to_list() == list(range(24))


def test_what_was_added_since_a_version_is_found(vault: Vault) -> None:
    first = vault.append("landing", messages(0, 3))
    newest, frame, exact = vault.since("landing", first)
    assert (newest, frame.collect().height, exact) == (first, 0, True)
    vault.append("landing", messages(3, 5))
    newest, frame, exact = vault.since("landing", first)
    assert (newest, frame.collect()["offset"].to_list(), exact) == (first + 1, [3, 4], True)
    vault.compact(above=1)
    newest, frame, exact = Vault(vault.root).since("landing", first)
    assert {3, 4} <= set(frame.collect()["offset"])
    assert not exact
    assert (vault.since("landing", first)[1].collect()["offset"].to_list(), vault.since("landing", first)[2]) == ([3, 4], True)
    vault.rewrite("landing", "event_id = '0-1'", {"detail": "'changed'"})
    newest, frame, exact = vault.since("landing", first)
    assert {3, 4} <= set(frame.collect()["offset"])
    assert not exact


def test_dead_letters_are_a_view_of_what_landed(vault: Vault) -> None:
    vault.append("landing", messages(0, 2))
    vault.append("landing", messages(2, 3, disposition="dead", reason="json", data=b"{"))
    assert vault.landing(disposition="dead", columns=["offset", "reason", "data"]).rows() == [(2, "json", b"{")]
    assert vault.landing().height == 3


def alert(**changes: Any) -> Alert:
    fields: dict[str, Any] = dict(problem="adult", key="k", kind="shift", level="info", subject="s", slice="all", since=1.0)
    rest: dict[str, Any] = dict(observed=1.0, expected=2.0, closed_at=None, folded=0, act="look", runbook="r")
    return Alert(id="a", **fields | rest | changes)


def test_a_record_is_kept_once_and_its_newest_version_counts(lake: Lake) -> None:
    assert lake.record("alerts", [alert()]) == 1
    assert lake.record("alerts", [alert()]) == 0
    assert lake.record("alerts", [alert(folded=2), msgspec.structs.replace(alert(), id="b", problem="other")]) == 2
    assert [one.folded for one in lake.records("alerts", Alert, problem="adult")] == [2]
    assert [one.id for one in lake.records("alerts", Alert)] == ["a", "b"]


def test_records_of_concurrent_writers_all_arrive(tmp_path: Path) -> None:
    def write(number: int) -> None:
        own = Lake(tmp_path / "lake")
        for n in range(5):
            version = DatasetVersion(
                digest=f"{number}-{n}",
                problem="adult",
                tables={},
                samples=n,
                by_reason={},
                by_label={},
                by_group={},
                raters={},
                selection="",
                seed=0,
            )
            own.record("datasets", [version])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lake = Lake(tmp_path / "lake")
    assert len(lake.records("datasets", DatasetVersion)) == 15
    assert sorted(lake.read("datasets")["seq"].to_list()) == list(range(1, 16))


def test_unknown_columns_and_wrong_types_are_refused_in_one_line(lake: Lake) -> None:
    with pytest.raises(DataError, match=r"got also \['colour'\]; leave them out"):
        lake.append("rows", pl.DataFrame({"id": ["a"], "colour": ["red"]}))
    with pytest.raises(DataError, match="expected the types of its schema") as caught:
        lake.append("rows", pl.DataFrame({"id": ["a"], "revision": ["first"]}))
    assert "\n" not in str(caught.value)
    assert lake.version("rows") is None


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(Unavailable, match="expected to write it") as caught:
        Lake(tmp_path / "file" / "lake").append("rows", pl.DataFrame([state("a", 1)]))
    assert "\n" not in str(caught.value)


def test_a_root_without_its_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="expected the data folder") as caught:
        Vault(tmp_path / "nowhere" / "vault").landing()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["two words", "über", "a+b=c"])
def test_odd_folder_names_work(tmp_path: Path, name: str) -> None:
    lake = Lake(tmp_path / name)
    lake.append("rows", pl.DataFrame([state("a", 1)]))
    assert Lake(tmp_path / name).rows("adult").height == 1


@pytest.mark.parametrize("name", ["a[1]", "50%20"])
def test_a_folder_name_that_delta_cannot_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="move or rename it"):
        Lake(tmp_path / name)
