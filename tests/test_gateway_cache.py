"""What a gateway remembers when it is killed between any two steps of remembering: the old release or the new one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from cuts import cut
from serving import Bench

from truing.infra.gateway.cache import Cache, State
from truing.tasks import seal
from truing.tasks.kinds.model import Model
from truing.tasks.records import Cause, Release

KEEP = """
import msgspec
from truing.infra.gateway.cache import Cache, State
# ready
state, files = msgspec.msgpack.decode((folder.parent / "new").read_bytes(), type=tuple[State, dict[str, bytes] | None])
Cache(folder / "adult").keep(state, files)
say("kept")
"""


def state_of(release: Release, envelope: str) -> State:
    return State(
        floor=release.sequence,
        statement=seal.digest(release),
        version=release.version,
        payload=release.payload,
        envelope=envelope,
    )


@pytest.mark.parametrize("old", [0, 1], ids=["with nothing before", "over an older release"])
@pytest.mark.parametrize("cause", [Cause.PROMOTE, Cause.WITHDRAW])
def test_a_gateway_killed_at_any_line_of_keeping_boots_with_the_old_or_the_new(
    bench: Bench, models: list[Model], tmp_path: Path, old: int, cause: Cause
) -> None:
    """Every line of cache.py is a cut. After it, the floor is the old or the new one, what it names is whole, and the new
    release is served all the same when the registry shows it."""
    before, root = tmp_path / "before", tmp_path / "cuts"
    root.mkdir()
    if old:
        bench.release(models[0], 1)
        bench.look()
        (tmp_path / "cache").rename(before)
    release = bench.release(models[1], 2, cause=cause)
    shown = bench.shelf.shown
    assert shown is not None
    state = state_of(release, shown.release)
    files = models[1].to_files() if cause is Cause.PROMOTE else None
    (root / "new").write_bytes(msgspec.msgpack.encode((state, files)))
    folders = cut("gateway/cache.py", before, root, KEEP)
    assert len(folders) > 20
    seen = []
    for folder in folders:
        kept = Cache(folder / "adult").state()
        assert kept is None or kept.floor in (old, 2)
        seen.append(kept.floor if kept else 0)
        bench.folder = folder.parent / f"as-{folder.name}"
        bench.folder.mkdir()
        folder.rename(bench.folder / "cache")
        bench.boot()
        if cause is Cause.WITHDRAW and seen[-1] == 2:
            assert bench.sequence is None and bench.withdrawn
        else:
            assert bench.sequence == (seen[-1] or None) and not bench.refusal
        bench.look()
        assert bench.loader.floor("adult") == 2 and bool(bench.withdrawn) == (cause is Cause.WITHDRAW)
        left = {path.name for path in (bench.folder / "cache" / "adult").iterdir()}
        assert "state.json" in left and len(left) <= 3
    assert seen == sorted(seen) and seen[0] == old and seen[-1] == 2, "old until one line, new from then on"
    assert (folders[-1].with_suffix(".said")).read_text() == "kept\n"
    assert all(not path.read_text() for path in root.glob("*.said") if path.stem != folders[-1].name)


def test_drafts_of_a_process_that_died_are_swept_up(bench: Bench, models: list[Model]) -> None:
    bench.release(models[0], 1)
    bench.look()
    folder = bench.folder / "cache" / "adult"
    (folder / ".state.json.4711").write_text("{")
    bench.release(models[1], 2)
    bench.look()
    bench.release(models[0], 3, version="1")
    bench.look()
    bench.release(models[1], 4, version="2")
    bench.look()
    payloads = {f"{model.payload}.msgpack" for model in models}
    assert {path.name for path in folder.iterdir()} == {"state.json", *payloads}
