"""What the gateway serves and what it refuses: the loader over a registry that is a folder, with a clock to turn."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from serving import Bench, head_over, keys_in, release_over, signed, statement

from truing.tasks import seal
from truing.tasks.errors import Unavailable
from truing.tasks.kinds.model import Model
from truing.tasks.problem import Problem
from truing.tasks.records import Cause, Release

# --- what may be served -------------------------------------------------------------------------------------------------------


def test_an_admitted_release_is_served(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1, cause=Cause.GENESIS)
    assert bench.look() and bench.sequence == 1
    assert not bench.look(), "the same statement is not loaded twice"
    assert "model.serving" in bench.said[-1]


def test_tampered_bytes_are_refused_at_load_and_the_old_model_goes_on(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1)
    bench.look()
    bench.release(models[1], 2)
    head = bench.shelf.root / "2" / "head.safetensors"
    honest = head.read_bytes()
    head.write_bytes(honest[:-1] + bytes([honest[-1] ^ 1]))
    assert not bench.look() and bench.sequence == 1
    assert "release.payload" in bench.refusal and "\n" not in bench.refusal
    head.write_bytes(honest)
    assert not bench.look(), "a refused statement is not fetched again at every look"
    bench.now += 60
    assert bench.look() and bench.sequence == 2 and not bench.refusal


def test_one_more_file_is_another_payload(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1)
    (bench.shelf.root / "1" / "extra.py").write_text("print('hello')")
    assert not bench.look() and "release.payload" in bench.refusal


def test_a_lower_sequence_is_refused(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 5)
    bench.look()
    bench.release(models[1], 4)
    assert not bench.look() and bench.sequence == 5 and "release.sequence" in bench.refusal


def test_a_second_statement_with_a_served_sequence_is_refused(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 5)
    bench.look()
    bench.release(models[1], 5, version="6")
    assert not bench.look() and bench.sequence == 5 and "release.sequence" in bench.refusal


def test_a_release_by_another_key_is_refused(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1, key=seal.new_key())
    assert not bench.look() and bench.sequence is None and "envelope.signature" in bench.refusal
    assert bench.shelf.downloads == 0, "nothing is fetched for a statement that nobody signed"


def test_an_expired_release_is_refused(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1, expires=bench.now)
    assert not bench.look() and "release.expired" in bench.refusal


def test_the_statement_of_another_version_or_none_is_refused(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1)
    shown = bench.shelf.shown
    assert shown is not None
    bench.shelf.put("2", models[0].to_files(), shown.release)
    assert not bench.look() and "release.other" in bench.refusal
    bench.shelf.put("3", models[0].to_files(), "")
    assert not bench.look() and "envelope.missing" in bench.refusal


def test_signed_bytes_that_are_no_model_are_refused(bench: Bench, models: list[Model]) -> None:
    """The steward signs digests; what can't be built is still not served."""
    bench.release(models[0], 1)
    bench.look()
    files = {"model.json": b"{}", "head.safetensors": b"\x00" * 16}
    bench.shelf.put("2", files, statement(bench.problem, files, bench.keyring.read("release"), 2))
    assert not bench.look() and bench.sequence == 1 and "does not load" in bench.refusal


def test_a_rollback_is_a_new_release_over_an_old_payload(bench: Bench, models: list[Model]) -> None:
    """Version 1 comes back with sequence 3: the statement tells them apart, and the bytes at hand need no download."""
    bench.release(models[0], 1)
    bench.look()
    bench.release(models[1], 2)
    bench.look()
    downloads = bench.shelf.downloads
    bench.release(models[0], 3, version="1", cause=Cause.ROLLBACK)
    assert bench.look() and bench.sequence == 3 and bench.shelf.downloads == downloads
    served = bench.loader.served(bench.problem.name)
    assert served is not None and served.model.payload == models[0].payload


def test_it_boots_from_its_cache_with_the_registry_away(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 7)
    bench.look()
    bench.shelf.away = True
    again = bench.another()
    again.boot(bench.problem.name)
    served = again.served(bench.problem.name)
    assert served is not None and served.release.sequence == 7
    with pytest.raises(Unavailable):
        again.look(bench.problem.name)
    assert again.served(bench.problem.name) is served


def test_a_tampered_cache_is_refused_at_boot(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 7)
    bench.look()
    (blob,) = (bench.folder / "cache" / bench.problem.name).glob("*.msgpack")
    files = msgspec.msgpack.decode(blob.read_bytes(), type=dict[str, bytes])
    files["head.safetensors"] = models[1].to_files()["head.safetensors"]
    blob.write_bytes(msgspec.msgpack.encode(files))
    bench.boot()
    assert bench.sequence is None and "release.payload" in bench.refusal
    assert bench.look() and bench.sequence == 7, "the honest bytes come back from the registry"


def test_the_floor_outlives_the_process(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 7)
    bench.look()
    bench.loader = bench.another()
    bench.release(models[1], 6)
    bench.now += 60
    bench.loader.boot(bench.problem.name)
    assert not bench.look() and bench.sequence == 7 and bench.loader.floor(bench.problem.name) == 7


def test_without_a_readable_floor_nothing_is_served(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 7)
    bench.look()
    (bench.folder / "cache" / bench.problem.name / "state.json").write_text("{")
    bench.boot()
    bench.now += 60
    assert not bench.look() and bench.sequence is None and "floor" in bench.refusal


def test_the_floor_stands_though_its_file_is_taken_away_below_us(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 7)
    bench.look()
    shutil.rmtree(bench.folder / "cache")
    bench.release(models[1], 6)
    assert not bench.look() and bench.sequence == 7 and "release.sequence" in bench.refusal
    bench.release(models[1], 8)
    assert bench.look() and bench.sequence == 8
    bench.boot()
    assert bench.sequence == 8


# --- heads --------------------------------------------------------------------------------------------------------------------


def other(release: Release) -> Release:
    """Another statement with the same number."""
    return msgspec.structs.replace(release, reason="other")


STALE: dict[str, tuple[Callable[[Release, bytes, float], str], str]] = {
    "none": (lambda release, key, now: "", "no signed head is attached"),
    "expired": (lambda release, key, now: head_over(release, key, now=now - 3600), "has expired"),
    "of another problem": (lambda release, key, now: head_over(release, key, now=now, problem="else"), "about else"),
    "by another key": (lambda release, key, now: head_over(release, seal.new_key(), now=now), "by a trusted key"),
    "a release in its place": (lambda release, key, now: signed(release, key), "expected a signed head"),
    "no envelope": (lambda release, key, now: "{", "not a signed envelope"),
    "newer than what is shown": (lambda release, key, now: head_over(release, key, now=now, sequence=6), "older release than"),
    "of another statement": (lambda release, key, now: head_over(other(release), key, now=now), "another statement"),
}


@pytest.mark.parametrize("case", STALE)
def test_who_remembers_no_floor_serves_under_a_fresh_head_only(bench: Bench, models: list[Model], case: str) -> None:
    """A registry of last month shows a signed release as well; nothing of it is fetched, and the next head is waited for."""
    make, why = STALE[case]
    key = bench.keyring.read("release")
    release = bench.release(models[0], 5, head="")
    bench.shelf.newest = make(release, key, bench.now)
    assert not bench.look() and bench.sequence is None and bench.shelf.downloads == 0
    assert why in bench.refusal and "\n" not in bench.refusal and "; " in bench.refusal
    bench.boot()
    assert bench.sequence is None and bench.loader.floor(bench.problem.name) == 0
    bench.shelf.newest = head_over(release, key, now=bench.now)
    assert bench.look() and bench.sequence == 5 and not bench.refusal


def test_a_missing_head_is_said_as_what_was_expected_and_asked_for_at_the_next_look(bench: Bench, models: list[Model]) -> None:
    release = bench.release(models[0], 1, head="")
    for _ in range(2):
        assert not bench.look() and bench.refusal.startswith("expected a fresh head signed by the steward")
    assert sum("fresh head" in line for line in bench.said) == 1, "said once"
    bench.shelf.newest = head_over(release, bench.keyring.read("release"), now=bench.now)
    assert bench.look() and bench.sequence == 1


def test_a_release_newer_than_the_head_is_served(bench: Bench, models: list[Model]) -> None:
    """The head proves that nothing newer than 4 was released when it was signed; 5 came since."""
    head = head_over(release_over(bench.problem, models[1].to_files(), 4), bench.keyring.read("release"), now=bench.now)
    bench.release(models[0], 5, head=head)
    assert bench.look() and bench.sequence == 5


def test_who_remembers_a_floor_needs_no_head(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1)
    bench.look()
    bench.release(models[1], 2, head="")
    bench.boot()
    assert bench.sequence == 1 and bench.look() and bench.sequence == 2


def test_the_head_is_asked_for_now_and_then_only(bench: Bench, models: list[Model]) -> None:
    """Once to begin with nothing, once for the release that came of it, then every half minute."""
    bench.release(models[0], 1)
    for _ in range(20):
        bench.look()
    assert bench.shelf.heads == 2
    bench.now += 30
    for _ in range(20):
        bench.look()
    assert bench.shelf.heads == 3


def later(bench: Bench, seconds: int) -> None:
    for _ in range(seconds):
        bench.now += 1
        bench.look()


def test_a_registry_that_is_behind_the_head_is_spoken_of_and_the_model_goes_on(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 5)
    bench.look()
    newest = release_over(bench.problem, models[1].to_files(), 7)
    bench.shelf.newest = head_over(newest, bench.keyring.read("release"), now=bench.now)
    later(bench, 60)
    assert bench.sequence == 5 and "older release than the steward's head (5, not 7)" in bench.refusal
    assert sum("older release" in line for line in bench.said) == 1, "said once"
    bench.release(models[1], 7)
    bench.look()
    assert bench.sequence == 7 and not bench.refusal


def test_a_head_that_is_signed_before_the_alias_moves_is_no_alarm(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1)
    later(bench, 60)
    second = release_over(bench.problem, models[1].to_files(), 2)
    bench.shelf.newest = head_over(second, bench.keyring.read("release"), now=bench.now)
    later(bench, 5)
    assert not bench.refusal
    bench.release(models[1], 2)
    later(bench, 60)
    assert bench.sequence == 2 and not any("older release" in line for line in bench.said)


def test_a_steward_that_fell_silent_is_spoken_of(bench: Bench, models: list[Model]) -> None:
    """A registry that is held at an old state shows its old head too; the head runs out."""
    bench.release(models[0], 1)
    bench.look()
    later(bench, 3600)
    assert not bench.refusal, "it may only have started anew"
    later(bench, 200)
    assert bench.sequence == 1 and "nothing says that the registry shows the newest release" in bench.refusal
    bench.release(models[0], 1)
    later(bench, 60)
    assert not bench.refusal


# --- withdrawal ---------------------------------------------------------------------------------------------------------------


def withdraw(bench: Bench, model: Model, sequence: int, version: str, **other: bytes) -> None:
    """As the steward does when an approval is revoked and nothing else stands: the bytes may be gone by then."""
    bench.release(model, sequence, version=version, cause=Cause.WITHDRAW, reason="revoked by anna: it harms", **other)
    shutil.rmtree(bench.shelf.root / version)


def test_a_withdrawal_stops_the_answers_and_raises_the_floor(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1)
    bench.look()
    downloads = bench.shelf.downloads
    withdraw(bench, models[0], 2, "1")
    assert bench.look() and bench.sequence is None and bench.shelf.downloads == downloads
    assert bench.withdrawn == "withdrawn by release 2: revoked by anna: it harms"
    assert not bench.look() and bench.loader.floor(bench.problem.name) == 2
    assert sum("model.withdrawn" in line for line in bench.said) == 1
    bench.boot()
    assert bench.sequence is None and bench.withdrawn and not bench.look(), "it outlives the process"
    bench.release(models[0], 1)
    bench.now += 60
    assert not bench.look() and bench.sequence is None and "release.sequence" in bench.refusal
    bench.release(models[1], 3, cause=Cause.ROLLBACK)
    assert bench.look() and bench.sequence == 3 and not bench.withdrawn


def test_a_gateway_that_starts_with_nothing_honours_a_withdrawal_under_a_fresh_head(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 2, version="1", cause=Cause.WITHDRAW, head="")
    assert not bench.look() and not bench.withdrawn and "expected a fresh head" in bench.refusal
    withdraw(bench, models[0], 2, "1")
    bench.now += 60
    assert bench.look() and bench.withdrawn and bench.sequence is None


def test_a_withdrawal_that_the_steward_did_not_sign_or_signed_long_ago_takes_nothing_away(
    bench: Bench, models: list[Model]
) -> None:
    bench.release(models[0], 5)
    bench.look()
    withdraw(bench, models[0], 6, "5", key=seal.new_key())
    assert not bench.look() and bench.sequence == 5 and not bench.withdrawn
    withdraw(bench, models[0], 4, "5")
    assert not bench.look() and bench.sequence == 5 and not bench.withdrawn


def test_a_disk_that_takes_nothing_does_not_keep_a_withdrawn_model_alive(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1)
    bench.look()
    cache = bench.folder / "cache" / bench.problem.name
    aside = cache.rename(cache.with_name("aside"))
    cache.write_text("in the way")
    withdraw(bench, models[0], 2, "1")
    assert bench.look() and bench.sequence is None and "not remembered yet" in bench.refusal
    bench.release(models[0], 1)
    bench.now += 60
    assert not bench.look() and bench.sequence is None, "the floor is in memory"
    cache.unlink()
    aside.rename(cache)
    withdraw(bench, models[0], 2, "1")
    bench.now += 60
    bench.look()
    assert not bench.refusal
    bench.boot()
    assert bench.sequence is None and bench.withdrawn


# --- keys ---------------------------------------------------------------------------------------------------------------------


def test_a_new_release_key_is_trusted_without_a_restart_and_a_removed_one_no_more(
    problem: Problem, models: list[Model], tmp_path: Path
) -> None:
    keyring = keys_in(tmp_path / "keys", problem)
    bench = Bench(problem, keyring, tmp_path)
    bench.release(models[0], 1)
    bench.look()
    keyring.rotate("release", now=bench.now)
    assert not bench.look() and bench.sequence == 1, "what the old key signed is still trusted"
    bench.release(models[1], 2)
    assert bench.look() and bench.sequence == 2
    bench.boot()
    assert bench.sequence == 2
    keyring.rotate("release", now=bench.now)
    public = tmp_path / "keys" / "public" / "release.pub"
    draft = public.with_suffix(".new")
    draft.write_bytes(public.read_bytes()[:32])
    draft.replace(public)
    assert not bench.look() and bench.sequence is None and "envelope.signature" in bench.refusal
    bench.release(models[1], 3)
    assert bench.look() and bench.sequence == 3
