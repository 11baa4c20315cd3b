"""A key for each person: what is sealed reads while the key exists, and a destroyed key is nowhere any more."""

from __future__ import annotations

import os
import random
import secrets
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from truing.tasks.errors import DataError, Unavailable
from truing.tasks.tables.subjects import FAMILIES, OVERHEAD, Subjects, bucket, sealed

ALL = tuple(FAMILIES)


def neighbours(count: int, seed: int = 1) -> list[str]:
    """Owners of one bucket."""
    rng = random.Random(seed)
    home: int | None = None
    found: list[str] = []
    while len(found) < count:
        owner = f"{rng.getrandbits(128):032x}"
        home = bucket(owner) if home is None else home
        if bucket(owner) == home:
            found.append(owner)
    return found


def keys(path: Path) -> Subjects:
    return Subjects.open(path, ALL, create=True)


def secret_of(path: Path, family: str, owner: str) -> bytes:
    with sqlite3.connect(path) as file:
        found = file.execute(
            "SELECT secret FROM secrets WHERE family = ? AND bucket = ? ORDER BY generation DESC", (family, bucket(owner))
        ).fetchone()[0]
    file.close()
    assert isinstance(found, bytes)
    return found


def on_disk(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_what_is_sealed_reads_again_here_and_by_a_reader(tmp_path: Path) -> None:
    mine = keys(tmp_path / "k")
    owners = [secrets.token_hex(16) for _ in range(300)]
    texts = [os.urandom(n) for n in range(300)]
    families = [ALL[n % 4] for n in range(300)]
    blobs = mine.seal_many(families, owners, texts)
    assert all(sealed(blob) and len(blob) == len(text) + OVERHEAD for blob, text in zip(blobs, texts, strict=True))
    assert len(set(mine.seal_many(families, owners, texts)) & set(blobs)) == 0  # never the same twice
    for reader in (mine, keys(tmp_path / "k"), Subjects.open(tmp_path / "k", ALL)):
        assert reader.open_many(blobs, owners) == texts


def test_plain_rows_and_absent_ones_stay_as_they_are(tmp_path: Path) -> None:
    mine = keys(tmp_path / "k")
    assert mine.open_many([b'{"age":4}', b"", None], ["a", "a", None]) == [b'{"age":4}', b"", None]
    assert not sealed(b'{"age":4}')


def test_nothing_opens_altered_or_as_somebody_elses(tmp_path: Path) -> None:
    mine = keys(tmp_path / "k")
    one, other = neighbours(2)
    (blob,) = mine.seal_many(["vault"], [one], [b"hello"])
    for wrong, owner in ((blob[:-1] + bytes([blob[-1] ^ 1]), one), (blob, other)):
        with pytest.raises(DataError, match="altered one or another's"):
            mine.open_many([wrong], [owner])


def test_a_destroyed_key_is_gone_and_its_neighbours_still_read(tmp_path: Path) -> None:
    mine = keys(tmp_path / "k")
    reader = Subjects.open(tmp_path / "k", ALL)
    gone, *others = neighbours(4)
    blobs = mine.seal_many(["trainable"] * 4, [gone, *others], [b"g", b"1", b"2", b"3"])
    assert reader.open_many(blobs, [gone, *others]) == [b"g", b"1", b"2", b"3"]
    assert mine.destroy("trainable", [gone], [gone, *others, "elsewhere"]) == 1
    for eyes in (mine, reader, Subjects.open(tmp_path / "k", ALL)):  # also where it was in memory
        assert eyes.open_many(blobs, [gone, *others]) == [None, b"1", b"2", b"3"]
    again = mine.seal_many(["trainable"] * 2, [gone, others[0]], [b"back", b"more"])  # a new generation
    assert reader.open_many([*again, blobs[0], blobs[1]], [gone, others[0], gone, others[0]]) == [b"back", b"more", None, b"1"]
    assert mine.destroy("trainable", [others[0]], [gone, *others]) == 1  # kept keys go too
    assert reader.open_many([*blobs, *again], [gone, *others, gone, others[0]]) == [None, None, b"2", b"3", b"back", None]
    assert mine.destroy("trainable", [others[0]], [gone, *others[1:]]) == 0  # again: nothing left to do


def test_other_families_of_the_same_owner_are_other_keys(tmp_path: Path) -> None:
    mine = keys(tmp_path / "k")
    blobs = mine.seal_many(["vault", "holdout"], ["a", "a"], [b"word", b"row"])
    mine.destroy("vault", ["a"], [])
    assert mine.open_many(blobs, ["a", "a"]) == [None, b"row"]


def test_not_one_byte_of_a_destroyed_secret_stays_on_the_disk(tmp_path: Path) -> None:
    """Pages were split over and over by then, and the journal held the old ones."""
    mine = keys(tmp_path / "k")
    rng = random.Random(3)
    owners = [f"{rng.getrandbits(128):032x}" for _ in range(400)]
    for owner in owners:
        mine.seal_many([rng.choice(ALL)], [owner], [b"x"])
    mine.seal_many(["holdout"] * 400, owners, [b"x"] * 400)
    victims = owners[:20]
    doomed = [secret_of(tmp_path / "k", "holdout", owner) for owner in victims]
    held = on_disk(tmp_path)
    assert all(secret in held for secret in doomed)
    mine.destroy("holdout", victims, owners)
    left = on_disk(tmp_path)
    assert not any(secret in left for secret in doomed)


def test_the_lakes_file_has_trainable_keys_only_and_follows(tmp_path: Path) -> None:
    mine = keys(tmp_path / "vault")
    lake = Subjects.open(tmp_path / "lake", ["trainable"], create=True)
    gone, other = neighbours(2)
    blobs = mine.seal_many(["trainable", "trainable", "holdout"], [gone, other, gone], [b"g", b"o", b"secret"])
    assert mine.mirror(lake) > 0
    assert mine.mirror(lake) == 0
    trainer = Subjects.open(tmp_path / "lake", ["trainable"])
    assert trainer.open_many(blobs[:2], [gone, other]) == [b"g", b"o"]
    with pytest.raises(Unavailable, match="open it with the vault"):
        trainer.open_many(blobs[2:], [gone])
    secret, hidden = secret_of(tmp_path / "vault", "trainable", gone), secret_of(tmp_path / "vault", "holdout", gone)
    file = tmp_path / "lake"
    assert secret in file.read_bytes() and hidden not in file.read_bytes()
    mine.destroy("trainable", [gone], [gone, other])
    mine.mirror(lake)
    assert trainer.open_many(blobs[:2], [gone, other]) == [None, b"o"]
    assert secret not in b"".join(one.read_bytes() for one in tmp_path.glob("lake*"))
    more = mine.seal_many(["trainable"], [gone], [b"back"])
    mine.mirror(lake)
    assert trainer.open_many(more, [gone]) == [b"back"]
    with sqlite3.connect(tmp_path / "vault") as one, sqlite3.connect(tmp_path / "lake") as two:
        for table in ("secrets", "kept"):
            rows = f"SELECT * FROM {table} WHERE family = 'trainable'"  # noqa: S608
            assert one.execute(rows).fetchall() == two.execute(rows).fetchall()
    one.close()
    two.close()


def test_a_process_killed_while_it_destroys_ends_the_same_when_run_again(tmp_path: Path) -> None:
    """Killed after the commit and before the file is rewritten: the next one who opens it for writing does that."""
    path = tmp_path / "k"
    mine = keys(path)
    gone, other = neighbours(2)
    blobs = mine.seal_many(["vault"] * 2, [gone, other], [b"g", b"o"])
    secret = secret_of(path, "vault", gone)
    mine.close()
    script = (
        "import os, sys; from pathlib import Path; from truing.tasks.tables.subjects import Subjects\n"
        "Subjects.scrub = lambda self: os._exit(9)\n"
        f"Subjects.open(Path({str(path)!r}), ['vault'], create=True).destroy('vault', [{gone!r}], [{other!r}])\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert secret in on_disk(tmp_path)  # in the journal
    again = Subjects.open(path, ["vault"], create=True)
    assert secret not in on_disk(tmp_path)
    assert again.open_many(blobs, [gone, other]) == [None, b"o"]
    assert again.destroy("vault", [gone], [other]) == 0


def test_two_keepers_make_one_secret(tmp_path: Path) -> None:
    one, two = keys(tmp_path / "k"), keys(tmp_path / "k")
    owners = [secrets.token_hex(16) for _ in range(50)]
    first = one.seal_many(["trainable"] * 50, owners, [b"1"] * 50)
    second = two.seal_many(["trainable"] * 50, owners, [b"2"] * 50)
    assert one.open_many([*first, *second], owners * 2) == [b"1"] * 50 + [b"2"] * 50


def test_keys_that_are_missing_are_no_erasure(tmp_path: Path) -> None:
    """A file restored from an older backup must not read as if everybody had been forgotten."""
    mine, other = keys(tmp_path / "k"), keys(tmp_path / "older")
    blobs = mine.seal_many(["vault"], ["a"], [b"x"])
    with pytest.raises(Unavailable, match="older than the tables"):
        other.open_many(blobs, ["a"])
    with pytest.raises(Unavailable, match="found none"):
        Subjects.open(tmp_path / "absent", ALL)
    with pytest.raises(Unavailable, match="the keeper seals"):
        Subjects.open(tmp_path / "k", ALL).seal_many(["vault"], ["b" * 9], [b"x"])
