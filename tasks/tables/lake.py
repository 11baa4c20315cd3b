"""Two roots of Delta tables, parted so that file or bucket permissions can hold them apart.

    vault/  landing   every message with its disposition; Kafka positions ride in the same commit   (ingest writes)
            holdout   rows and labels of holdout subjects, and nothing else holds them              (steward reads)
    lake/   rows      trusted, train and validation rows                                            (the trainer reads)
            samples   which rows a dataset version holds
            releases, alerts, datasets, trials, windows   records as JSON beside their key columns

Tables only grow: `rows` and `holdout` hold append-only *states*, and the highest `revision` of an id wins. Each append can name
application transactions, `(app id, version)`, that Delta commits together with the data; an append whose transactions are
already recorded is skipped, so a crash neither loses nor doubles. What is recorded is looked up at the very version that the
commit comes next to: if somebody else commits in between, the commit is refused, and the look is repeated.

What a person said stands in one column a table (`landing.data`, `rows.content`, `holdout.content`), sealed under a key of that
person (subjects.py) from a file beside the tables. `rows`, `holdout` and `landing` give it opened; whoever scans opens it by
`opened`. A row whose key is destroyed is no row any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec
import polars as pl

from truing.tasks.errors import DataError
from truing.tasks.records import Origin, Record, Split
from truing.tasks.seal import canonical, digest
from truing.tasks.tables.columns import LANDING, OWNED_BY, OWNER, RECORDS, ROWS, SAMPLES, type_, winners
from truing.tasks.tables.store import TRIES, Stale, Store
from truing.tasks.tables.subjects import FAMILIES

R = TypeVar("R", bound=Record)


class Lake(Store):
    """The trainer's side: rows that may teach, and records of what was done."""

    tables: ClassVar[Mapping[str, Mapping[str, type_]]] = {"rows": ROWS, "samples": SAMPLES}
    families: ClassVar[tuple[str, ...]] = ("trainable",)

    def rows(
        self,
        problem: str,
        *,
        splits: Iterable[str] | None = None,
        labelled: bool | None = None,
        revision: int | None = None,
    ) -> pl.DataFrame:
        """The newest state of each row, schema ROWS; `revision` looks back at what was known by then.

        `content` is opened; a row whose key is destroyed is left out.
        """
        states = self.scan("rows").filter(pl.col("problem") == problem)
        if splits is not None:
            states = states.filter(pl.col("split").is_in([str(split) for split in splits]))
        if revision is not None:
            states = states.filter(pl.col("revision") <= revision)
        rows = winners(states)
        if labelled is not None:
            rows = rows.filter(pl.col("target").is_not_null() if labelled else pl.col("target").is_null())
        return self.living(self._collect("rows", rows))

    def record(self, table: str, records: Sequence[Record]) -> int:
        """Keep records as JSON; one that is there already is not written twice. Returns how many were new.

        A record's id is its `id` or `digest`, else the digest of all of it; of several with one id the newest counts.
        """
        if table in self.tables:
            raise DataError(f"{self.root}/{table}: expected a table of records, got a table of rows; use append")
        for _ in range(TRIES):
            last = self.transaction(table, "record")
            ids = [_id(record) for record in records]
            known = dict(self.read(table, predicate=pl.col("id").is_in(ids)).sort("seq").select("id", "json").iter_rows())
            fresh = [
                (name, one, text) for name, one in zip(ids, records, strict=True) if known.get(name) != (text := _json(one))
            ]
            if not fresh:
                return 0
            seq = (last or 0) + len(fresh)
            frame = pl.DataFrame(
                [
                    (getattr(one, "problem", None), name, seq - len(fresh) + n + 1, text)
                    for n, (name, one, text) in enumerate(fresh)
                ],
                schema=RECORDS,
                orient="row",
            )
            try:
                self.append(table, frame, app=("record", seq), expect={"record": last})
            except Stale:
                continue
            return len(fresh)
        raise self.crowded(table)

    def records(self, table: str, kind: type[R], *, problem: str | None = None) -> list[R]:
        """The newest record of each id, in the order in which they were written."""
        frame = self.read(table, predicate=None if problem is None else pl.col("problem") == problem)
        frame = frame.sort("seq").unique("id", keep="last", maintain_order=True)
        return [msgspec.json.decode(text, type=kind) for text in frame["json"]]


def _json(record: Record) -> str:
    return canonical(record).decode()


def _id(record: Record) -> str:
    for field in ("id", "digest"):
        value: Any = getattr(record, field, None)
        if isinstance(value, str) and value:
            return value
    return digest(record)


class Vault(Store):
    """The ingest keeper's and the steward's side: every message, and the rows that judge."""

    tables: ClassVar[Mapping[str, Mapping[str, type_]]] = {"landing": LANDING, "holdout": ROWS}
    families: ClassVar[tuple[str, ...]] = tuple(FAMILIES)

    def landing(
        self,
        problem: str | None = None,
        *,
        disposition: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Messages in the order of their positions; `disposition` = "dead" is the view of dead letters.

        `data` is opened: null where its key is destroyed.
        """
        wanted = [] if problem is None else [pl.col("problem") == problem]
        wanted += [] if disposition is None else [pl.col("disposition") == disposition]
        frame = self.scan("landing").filter(wanted) if wanted else self.scan("landing")
        frame = frame.sort("topic", "partition", "epoch", "offset")
        if columns is not None and "data" not in columns:
            return self._collect("landing", frame.select(columns))
        wanted_columns = list(LANDING) if columns is None else list(columns)
        found = self._collect("landing", frame.select(*dict.fromkeys((*wanted_columns, *OWNED_BY))))
        return self.opened(found, "data", OWNER).select(wanted_columns)

    def positions(self, topic: str) -> dict[tuple[int, int], int]:
        """{(partition, epoch): offset of the next message}: where to go on reading."""
        frame = (
            self.scan("landing")
            .filter(pl.col("topic") == topic)
            .group_by("partition", "epoch")
            .agg((pl.col("offset").max() + 1).alias("next"))
        )
        return {(partition, epoch): following for partition, epoch, following in self._collect("landing", frame).iter_rows()}

    def holdout(self, problem: str, *, now: float, matured: bool = True) -> pl.DataFrame:
        """The newest state of each holdout row, schema ROWS.

        With `matured` only those that may judge: target from an outcome or a blind review, and old enough at `now`.
        """
        rows = winners(self.scan("holdout").filter(pl.col("problem") == problem, pl.col("split") == str(Split.HOLDOUT)))
        if matured:
            may_judge = pl.col("origin").is_in([str(Origin.OUTCOME), str(Origin.REVIEW)])
            rows = rows.filter(may_judge, pl.col("target").is_not_null(), pl.col("matured_at") <= now)
        return self.living(self._collect("holdout", rows))
