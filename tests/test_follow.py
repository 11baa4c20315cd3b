"""A table's log followed entry by entry says what delta-rs says, and what is committed by it is there once."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from truing.tasks.errors import DataError, TruingError, Unavailable
from truing.tasks.tables import follow
from truing.tasks.tables.columns import conform
from truing.tasks.tables.kept import Kept
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.tables.store import Stale


def messages(first: int, last: int) -> pl.DataFrame:
    offsets = list(range(first, last))
    names = [f"p{n}" for n in offsets]
    return pl.DataFrame({"offset": offsets, "event_id": names, "prediction_id": names}).with_columns(topic=pl.lit("t"))


def offsets(vault: Vault) -> list[int]:
    return vault.scan("landing").select("offset").collect()["offset"].sort().to_list()


def newest(vault: Vault, *apps: str) -> tuple[int, set[str], dict[str, int | None]]:
    """What delta-rs says, opened anew."""
    table = DeltaTable(f"{vault.root}/landing")
    files = {file.removeprefix("file://") for file in table.file_uris()}
    return table.version(), files, {app: table.transaction_version(app) for app in apps}


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault")


def test_a_followed_log_says_what_delta_says(vault: Vault) -> None:
    """Whoever wrote, and however: appends, merges, changes, deletions, checkpoints; before and after one began to follow."""
    other = Vault(vault.root)
    steps = [
        lambda n: other.append("landing", messages(10 * n, 10 * n + 9), app=[("a", n + 1), ("b", 7 * n + 1)]),
        lambda n: vault.append("landing", messages(10 * n, 10 * n + 9), app=[("a", n + 1)]),
        lambda n: other.append("landing", messages(10 * n, 10 * n), app=[("c", n)]),
        lambda n: other.compact(above=1, vacuum=False),
        lambda n: other.rewrite("landing", f"offset = {10 * (n - 3)}"),
        lambda n: other.rewrite("landing", f"offset = {10 * (n - 5) + 1}", {"detail": "'x'"}),
        lambda n: other._handle("landing").create_checkpoint(),  # type: ignore[union-attr]
    ]
    for n in range(21):
        steps[n % len(steps)](n)
        look = vault._look("landing")
        assert look is not None
        version, files, told = newest(vault, "a", "b", "c", "nobody")
        assert (look[0], set(look[1])) == (version, files)
        assert vault.transactions("landing", ["a", "b", "c", "nobody"]) == told
        late = Vault(vault.root)
        assert late.transactions("landing", ["a", "b", "c"]) == {app: told[app] for app in ("a", "b", "c")}
    assert len(offsets(vault)) == vault.scan("landing").select("offset").unique().collect().height == 6 * 9 - 3


def test_what_was_put_is_put_once_and_its_place_is_checked(vault: Vault) -> None:
    first = vault.append("landing", messages(0, 3), app=[("a", 3)], expect={"a": None})
    assert vault.append("landing", messages(0, 3), app=[("a", 3)], expect={"a": 3}) == first
    assert Vault(vault.root).append("landing", messages(0, 3), app=[("a", 3)]) == first
    with pytest.raises(Stale, match="expected a at 2, got 3"):
        vault.append("landing", messages(3, 5), app=[("a", 5)], expect={"a": 2})
    with pytest.raises(Stale, match="none or all"):
        vault.append("landing", messages(3, 5), app=[("a", 3), ("b", 5)])
    assert offsets(vault) == [0, 1, 2]
    assert vault.leftovers("landing") == []


def test_many_writers_at_once_lose_and_double_nothing(vault: Vault) -> None:
    """Four of ours, two that know delta-rs alone, one that merges: all on one table, each with its own handles."""
    vault.append("landing", messages(0, 1))
    failed: list[Exception] = []

    def theirs(frame: pl.DataFrame, app: tuple[str, int]) -> None:
        for _ in range(50):
            try:
                properties = CommitProperties(app_transactions=[Transaction(*app)])
                write_deltalake(f"{vault.root}/landing", frame, mode="append", commit_properties=properties)
            except CommitFailedError:
                continue
            return
        raise Unavailable("fifty others were first")

    def write(number: int) -> None:
        mine = Vault(vault.root)
        try:
            for n in range(12):
                at, app = 1000 * number + n, (f"writer {number}", n + 1)
                if number >= 5:
                    theirs(conform(messages(at, at + 1), mine.schema("landing")), app)
                else:
                    mine.append("landing", messages(at, at + 1), app=app)
        except (TruingError, DeltaError, OSError) as error:
            failed.append(error)

    def merge() -> None:
        mine = Vault(vault.root)
        for _ in range(4):
            mine.compact(above=3, vacuum=False)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 7)] + [threading.Thread(target=merge)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert offsets(vault) == [0, *(1000 * number + n for number in range(1, 7) for n in range(12))]
    assert vault.leftovers("landing") == [] or vault.version("landing") == newest(vault)[0]


def test_of_two_who_saw_the_same_only_one_writes_what_both_would(vault: Vault) -> None:
    vault.append("landing", messages(0, 2), app=[("a", 2)])
    one, two = Vault(vault.root), Vault(vault.root)
    barrier = threading.Barrier(2)
    stale: list[Stale] = []

    def write(mine: Vault) -> None:
        assert mine.transaction("landing", "a") == 2
        barrier.wait()
        try:
            mine.append("landing", messages(2, 4), app=[("a", 4)], expect={"a": 2})
        except Stale as error:
            stale.append(error)

    threads = [threading.Thread(target=write, args=(mine,)) for mine in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert offsets(vault) == [0, 1, 2, 3]
    assert len(stale) == 1


def test_killed_between_file_and_entry_there_is_no_row(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    vault.append("landing", messages(0, 2), app=[("a", 2)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", kill)
        with pytest.raises(Killed):
            vault.append("landing", messages(2, 4), app=[("a", 4)])
    again = Vault(vault.root)
    assert (offsets(again), again.transaction("landing", "a")) == ([0, 1], 2)
    again.append("landing", messages(2, 4), app=[("a", 4)])
    assert offsets(vault) == offsets(again) == [0, 1, 2, 3]


def test_where_there_are_no_hard_links_that_is_said_in_one_line_and_nothing_is_left(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.append("landing", messages(0, 2), app=[("a", 2)])

    def none(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    with pytest.raises(Unavailable, match=r"^[^\n]+landing: expected to write it, got [^\n]*not permitted[^\n]*$"):
        vault.append("landing", messages(2, 4), app=[("a", 4)], expect={"a": 2})
    assert (offsets(vault), vault.transaction("landing", "a"), vault.leftovers("landing")) == ([0, 1], 2, [])


@pytest.mark.parametrize("error", [FileExistsError(17, "File exists"), OSError(5, "Input/output error")])
def test_a_link_whose_answer_got_lost_is_a_commit(vault: Vault, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """As a file system over a network may answer a repeated request."""
    vault.append("landing", messages(0, 2), app=[("a", 2)])
    link = os.link

    def lost(*names: Path) -> None:
        link(*names)
        raise error

    monkeypatch.setattr(os, "link", lost)
    version = vault.append("landing", messages(2, 4), app=[("a", 4)])
    assert version == newest(vault)[0] and offsets(vault) == [0, 1, 2, 3] and vault.leftovers("landing") == []


def test_who_thinks_somebody_else_was_first_finds_its_own_commit(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """It slept behind its commit until the log was trimmed. With or without a transaction, it writes nothing twice."""
    vault.append("landing", messages(0, 1))
    commit, answers = follow.Log.commit, [False, True, False]

    def slept(log: follow.Log, *arguments: Any, **more: Any) -> bool:
        return commit(log, *arguments, **more) and answers.pop(0)

    monkeypatch.setattr(follow.Log, "commit", slept)
    first = vault.append("landing", messages(1, 2))
    assert vault.append("landing", messages(2, 3)) == first + 1
    vault.append("landing", messages(3, 4), app=[("a", 1)])
    assert offsets(vault) == [0, 1, 2, 3] and answers == [] and vault.leftovers("landing") == []


def test_who_is_interrupted_after_its_commit_has_not_taken_it_back(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.append("landing", messages(0, 2), app=[("a", 2)])
    flush, done = follow.flush, []

    def interrupted(path: Path) -> None:
        flush(path)
        done.append(path.name)
        if path.name == "_delta_log":
            raise KeyboardInterrupt

    monkeypatch.setattr(follow, "flush", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vault.append("landing", messages(2, 4), app=[("a", 4)])
    monkeypatch.undo()
    assert done[-1] == "_delta_log" and offsets(Vault(vault.root)) == [0, 1, 2, 3]
    vault.append("landing", messages(2, 4), app=[("a", 4)])
    assert offsets(vault) == [0, 1, 2, 3]


def test_a_table_of_an_earlier_version_takes_no_columns_that_it_does_not_know(vault: Vault) -> None:
    write_deltalake(f"{vault.root}/landing", messages(0, 1).select("topic", "offset"))
    with pytest.raises(DataError, match=r"^[^\n]+landing: expected a table with \[[^\n]+$"):
        vault.append("landing", messages(1, 2))
    assert vault.leftovers("landing") == []


def test_a_trimmed_log_stops_nobody(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stands behind the oldest entry left goes on from the checkpoint: who reads, who appends, who asks `since`."""
    monkeypatch.setattr(follow, "CHECKPOINT", 5)
    vault.append("landing", messages(0, 1), app=[("a", 1)])
    asleep = [Vault(vault.root) for _ in range(3)]
    first = asleep[0].version("landing")
    for one in asleep:
        one._handle("landing")
    for n in range(1, 12):
        vault.append("landing", messages(n, n + 1), app=[("a", n + 1)])
    assert vault.trim_log("landing", before=time.time() - 60.0) == 0, "what is young stays"
    assert vault.trim_log("landing", before=time.time() + 1.0) > 5
    entries = sorted(int(path.stem) for path in Path(vault.root, "landing/_delta_log").glob("*.json"))
    assert entries == list(range(entries[0], int(vault.version("landing") or 0) + 1))
    assert entries[0] > (first or 0) + 1
    assert offsets(asleep[0]) == list(range(12))
    assert asleep[0].transaction("landing", "a") == 12
    told, frame, exact = asleep[0].since("landing", first)
    assert (told, exact, set(frame.collect()["offset"]) >= set(range(1, 12))) == (vault.version("landing"), False, True)
    assert asleep[1].append("landing", messages(12, 13), app=("b", 1)) == (told or 0) + 1
    assert asleep[2].append("landing", messages(13, 14), app=[("b", 2)]) == (told or 0) + 2
    assert offsets(Vault(vault.root)) == list(range(14))


def test_who_slept_between_look_and_commit_fills_no_gap_of_a_trimmed_log(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number is free again, and a commit there would be seen by nobody."""
    monkeypatch.setattr(follow, "CHECKPOINT", 5)
    vault.append("landing", messages(0, 1))
    sleeper, link = Vault(vault.root), os.link
    slept: list[bool] = []

    def sleep_first(draft: Path, entry: Path) -> None:
        if not slept:
            slept.append(True)
            for n in range(1, 12):
                vault.append("landing", messages(n, n + 1))
            vault.trim_log("landing", before=time.time() + 1.0)
        link(draft, entry)

    monkeypatch.setattr(os, "link", sleep_first)
    sleeper.append("landing", messages(50, 51), app=[("a", 1)])
    assert offsets(Vault(vault.root)) == [*range(12), 50]
    assert Vault(vault.root).transaction("landing", "a") == 1


def test_another_table_in_its_place_is_read_anew(vault: Vault, tmp_path: Path) -> None:
    """As a restored backup is: the same numbers, other entries."""
    vault.append("landing", messages(0, 2), app=[("a", 2)])
    vault.append("landing", messages(2, 4), app=[("a", 4)])
    other = Vault(tmp_path / "other")
    other.append("landing", messages(10, 11), app=[("a", 11)])
    other.append("landing", messages(11, 12), app=[("a", 12)])
    assert offsets(vault) == [0, 1, 2, 3]
    time.sleep(0.01)
    Path(vault.root, "landing").rename(tmp_path / "old")
    Path(other.root, "landing").rename(Path(vault.root, "landing"))
    vault._open.clear()  # delta-rs itself does not notice
    assert (offsets(vault), vault.transaction("landing", "a")) == ([10, 11], 12)


def test_what_a_table_holds_no_more_is_forgotten(vault: Vault) -> None:
    for n in range(3):
        vault.append("landing", messages(10 * n, 10 * n + 10))
    wanted = pl.Series(["p3", "p13", "p23"])
    assert vault.holding("landing", "prediction_id", wanted).collect().height == 3
    kept = vault._kept["landing"]
    assert len(kept._frames) == 3
    Vault(vault.root).rewrite("landing", "prediction_id = 'p13'")
    vault.forget_gone()
    assert len(kept._frames) == 2
    assert kept._bytes == sum(frame.estimated_size() for frame in kept._frames.values())
    assert vault.holding("landing", "prediction_id", wanted).collect()["offset"].sort().to_list() == [3, 23]


def test_no_more_is_kept_in_memory_than_may_be(tmp_path: Path) -> None:
    frame = pl.DataFrame({"n": range(1000)})
    for name in "abc":
        frame.write_parquet(tmp_path / name)
    read: list[str] = []

    def one(file: str) -> pl.DataFrame:
        read.append(Path(file).name)
        return pl.read_parquet(file)

    kept = Kept(one, most=int(2.5 * frame.estimated_size()))
    for name in "abacab":
        found = kept.frame(str(tmp_path / name))
        assert found is not None and found.equals(frame)
    assert read == ["a", "b", "c", "b"], "the one not asked for longest goes"
    assert kept.frame(str(tmp_path / "c"), small=10) is None


def test_states_that_stand_in_merged_files_are_joined_as_any(tmp_path: Path) -> None:
    """`holding` gives the same whether its files are in memory, merged meanwhile, or too large for it."""
    lake = Lake(tmp_path / "lake")
    rows = pl.DataFrame({"id": [f"r{n}" for n in range(40)], "problem": "toy", "revision": 1})
    for some in rows.iter_slices(10):
        lake.append("rows", some)
    wanted = pl.Series(["r5", "r25", "nobody"])
    assert lake.holding("rows", "id", wanted).collect()["id"].sort().to_list() == ["r25", "r5"]
    Lake(lake.root).compact(above=1, vacuum=False)
    assert lake.holding("rows", "id", wanted).collect()["id"].sort().to_list() == ["r25", "r5"]
    lake.append("rows", pl.DataFrame({"id": ["r5"], "problem": ["toy"], "revision": [2]}))
    assert lake.holding("rows", "id", wanted).collect().sort("id", "revision")["revision"].to_list() == [1, 1, 2]


def test_the_disk_has_data_and_entry_before_the_entry_has_its_name(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.append("landing", messages(0, 1))
    done: list[tuple[str, str]] = []
    link, fsync = os.link, os.fsync

    def linked(old: Path, new: Path) -> None:
        done.append(("link", new.name))
        link(old, new)

    def flushed(handle: int) -> None:
        fsync(handle)
        done.append(("flush", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))

    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(os, "fsync", flushed)
    version = vault.append("landing", messages(1, 3))
    (data,) = {Path(file).name for file in newest(vault)[1]} & {name for _, name in done}
    draft = done[2][1]
    assert done == [
        ("flush", data), ("flush", "landing"), ("flush", draft), ("link", f"{version:020}.json"), ("flush", "_delta_log")
    ]  # fmt: skip
    assert draft.startswith("_commit_")
    done.clear()
    Vault(vault.root, sync=False).append("landing", messages(3, 4))
    assert [what for what, _ in done] == ["link"]
