import polars as pl
import pytest
from truing.tasks.events.lake import LANDING, ROWS, Lake, Stale, Vault


def test_x(tmp_path):
    v = Vault(tmp_path / "va ult")
    assert v.read("landing").schema == pl.Schema(LANDING)
    f = pl.DataFrame({"topic": ["t"] * 3, "partition": [0, 0, 1], "offset": [1, 2, 5], "epoch": [0] * 3, "data": [b"{}"] * 3})
    assert v.append("landing", f, app=[("g:t:0:0", 3), ("g:t:1:0", 6)]) == 1
    assert v.append("landing", f, app=[("g:t:0:0", 3), ("g:t:1:0", 6)]) == 1
    assert v.positions("t") == {(0, 0): 3, (1, 0): 6}
    with pytest.raises(Stale):
        v.append("landing", f, app=[("g:t:0:0", 3), ("g:t:1:0", 7)])
    assert Vault(v.root).append("landing", f, app=[("g:t:0:0", 3), ("g:t:1:0", 6)]) == 1
    assert v.version("landing") == 1
    lake = Lake(tmp_path / "lake")
    assert lake.rows("adult").schema == pl.Schema(ROWS)
