"""Delta tables below one root: rows are added once, read back, merged, erased.

A local table's commits are our own (follow.py), at a cost that does not grow with its log; delta-rs makes the others, merges,
erases and writes checkpoints.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import unquote

import polars as pl
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from truing.tasks.errors import DataError, TruingError, Unavailable
from truing.tasks.flush import flush
from truing.tasks.tables import follow
from truing.tasks.tables.columns import PERSONAL, RECORD_TABLES, RECORDS, conform, type_
from truing.tasks.tables.follow import Log
from truing.tasks.tables.kept import SMALL, Kept
from truing.tasks.tables.subjects import FILE, Subjects, sealed
from truing.tasks.tables.whereabouts import Whereabouts

_COLOUR = re.compile(r"\x1b\[[0-9;]*m|↳")  # delta-rs draws its errors for a terminal
# Delta's own default is 7 days: at 200 events a second four million files on the disk, and as many lines in each checkpoint.
MERGED_AWAY = "interval 2 hours"
# what is sealed does not compress, and to try takes half of a commit's time; `compact` compresses as delta-rs is wont to
_COMPRESSION: dict[str, Literal["uncompressed"]] = dict.fromkeys(("landing", "rows", "holdout"), "uncompressed")
_TINY = 64 << 10  # bytes of a data file that is read whole where a column of it is asked for
_LOG_S = 30 * 86_400.0  # of a table whose log nobody trims sooner
TRIES = 20  # commit attempts against concurrent writers; each loser re-reads and checks again


class Stale(TruingError):
    """Somebody else wrote what this writer was about to: its transactions are recorded in part, or not as it expected."""


class Store:
    """Delta tables below one root: a folder or an `s3://…` prefix (then with `storage_options` as in delta-rs).

    Safe among threads and processes. Raises Unavailable, in one line, when the root is missing or can't be written.
    """

    tables: ClassVar[Mapping[str, Mapping[str, type_]]] = {}  # schemas of the known tables; any other holds records
    families: ClassVar[tuple[str, ...]] = ()  # of keys in the file beside the tables

    def __init__(
        self, root: str | Path, *, storage_options: Mapping[str, str] | None = None, keys: Path | None = None, sync: bool = True
    ) -> None:
        """`keys` is the file of keys; without, it lies in the root, where that is a folder. Without `sync` an append does not
        wait for the disk: after a power cut a table may not open.
        """
        self.remote = "://" in str(root)
        self.root = str(root).rstrip("/") if self.remote else str(Path(root).absolute())
        if not self.remote and set("[]%") & set(self.root):  # delta-rs reads these as parts of a URL, or dies on them
            raise DataError(f"expected a folder without [, ] or % in its path, got {self.root}; move or rename it")
        self._options = dict(storage_options or {})
        self._sync = sync
        self._keys_at = keys if keys is not None or self.remote else Path(self.root) / FILE
        self._keys: Subjects | None = None
        self._open: dict[str, DeltaTable] = {}
        self._logs: dict[str, Log] = {}
        self._kept: dict[str, Kept] = {}
        self._whereabouts: dict[tuple[str, str], Whereabouts] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root!r})"

    def schema(self, table: str) -> Mapping[str, type_]:
        return self.tables.get(table, RECORDS)

    # --- keys
    @property
    def subjects(self) -> Subjects | None:
        """The keys, for reading; None while nobody has made any: then all there is is plain."""
        with self._lock:
            if self._keys is None and self._keys_at is not None and self._keys_at.exists():
                self._keys = Subjects.open(self._keys_at, self.families)
            return self._keys

    def sealing(self) -> Subjects:
        """The keys, for sealing: made if there are none. Only the keeper's account may. Raises Unavailable."""
        with self._lock:
            if self._keys_at is None:
                raise Unavailable(f"{self.root}: expected a local file of keys for a remote store, got none; name one")
            if self._keys is None or not self._keys.writes:
                self._keys_at.parent.mkdir(parents=True, exist_ok=True)
                self._keys = Subjects.open(self._keys_at, self.families, create=True)
            return self._keys

    def opened(self, frame: pl.DataFrame, column: str, owner: str | pl.Expr) -> pl.DataFrame:
        """The frame with a sealed column opened: null where the key is destroyed; what is plain stays.

        `owner` is the column of owners, or an expression that gives them. Raises Unavailable when the keys are missing.
        """
        blobs = frame[column].to_list()
        if not any(map(sealed, blobs)):
            return frame
        keys = self.subjects
        if keys is None:
            raise Unavailable(
                f"expected the keys {self._keys_at}, found none; restore them from the backup that holds the tables"
            )
        owners = frame.select((pl.col(owner) if isinstance(owner, str) else owner).alias("owner"))["owner"].to_list()
        return frame.with_columns(pl.Series(column, keys.open_many(blobs, owners), dtype=pl.Binary))

    def living(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows (with `content` and `subject`) opened, without those whose key is destroyed."""
        found = self.opened(rows, "content", "subject")
        return found if found is rows else found.filter(found["content"].is_not_null() | rows["content"].is_null())

    # --- writing
    def append(
        self,
        table: str,
        frame: pl.DataFrame,
        *,
        app: tuple[str, int] | Sequence[tuple[str, int]] = (),
        expect: Mapping[str, int | None] | None = None,
    ) -> int:
        """Add the rows in one commit and return the table's version; skip them if all of `app` is recorded already.

        `app` names one or several application transactions, recorded in the same commit: a transaction counts as recorded
        when the table holds its version or a higher one. `expect` names versions that must be the recorded ones still
        (None = none yet). It is checked first and fences out an overlapping owner, who would be skipped otherwise.

        Columns absent from `frame` are null. An empty frame commits too, if it has transactions to record. Raises DataError
        on unknown columns or wrong types, Stale when `app` is recorded in part or `expect` does not hold (then nothing is
        written), Unavailable when the folder can't be written.
        """
        several: Any = [app] if app and isinstance(app[0], str) else app
        transactions: list[tuple[str, int]] = [(str(name), int(version)) for name, version in several]
        data = conform(frame, self.schema(table), where=f"{self.root}/{table}")
        with self._lock:
            if not self.remote:
                try:
                    return self._link(table, data, transactions, expect or {})
                except (OSError, pl.exceptions.PolarsError) as error:
                    raise self._unavailable(table, "write", error) from None
            for _ in range(TRIES):
                handle = self._handle(table, writing=True) or self._create(table)
                try:
                    if transactions and self._recorded(handle, table, transactions, expect or {}):
                        return int(handle.version())
                    if data.height or transactions:
                        properties = CommitProperties(app_transactions=[Transaction(*pair) for pair in transactions])
                        write_deltalake(handle, data, mode="append", commit_properties=properties)
                    return int(handle.version())
                except CommitFailedError:
                    self._open.pop(table, None)  # somebody else was first: look again at what is recorded now
                except (DeltaError, OSError) as error:
                    self._open.pop(table, None)
                    raise self._unavailable(table, "write", error) from None
        raise self.crowded(table)

    def _link(
        self, table: str, data: pl.DataFrame, transactions: Sequence[tuple[str, int]], expect: Mapping[str, int | None]
    ) -> int:
        """`append` to a local table. Call it with the lock. Raises OSError and PolarsError when nothing could be written."""
        file: Path | None = None
        try:
            for _ in range(TRIES):
                log = self._log(table, [*(one for one, _ in transactions), *expect], writing=True)
                if log is None:
                    self._create(table)
                    continue
                if file is not None and str(file) in log.files:  # it was ours after all
                    return log.version
                if strange := sorted(set(data.columns) - log.columns):
                    raise DataError(
                        f"{self.root}/{table}: expected a table with {strange}, got one of an earlier version without; "
                        "start in a new data folder, or add them by Delta's ALTER TABLE"
                    )
                if transactions and self._recorded(log, table, transactions, expect):
                    break
                if not (data.height or transactions):
                    break
                if data.height and file is None:
                    file = log.folder / f"part-{uuid.uuid4()}.parquet"
                    data.write_parquet(file, compression=_COMPRESSION.get(table, "zstd"), statistics=False)
                if log.commit("" if file is None else file.name, data.height, transactions, sync=self._sync):
                    file = None
                    if (log.version + 1) % follow.CHECKPOINT == 0:
                        self._checkpoint(table)
                    return log.version + 1
            else:
                raise self.crowded(table)
        except Exception:  # not what interrupts: the commit may be made by then, and a file that none names is swept anyway
            if file is not None:
                file.unlink(missing_ok=True)
            raise
        if file is not None:
            file.unlink(missing_ok=True)
        return log.version

    def _recorded(
        self, handle: DeltaTable | Log, table: str, transactions: Sequence[tuple[str, int]], expect: Mapping[str, int | None]
    ) -> bool:
        for name, version in expect.items():
            recorded = handle.transaction_version(name)
            if recorded != version:
                raise Stale(
                    f"{self.root}/{table}: expected {name} at {version}, got {recorded}; "
                    "read the positions again and resume there"
                )
        have = {name: handle.transaction_version(name) for name, _ in transactions}
        done = [(at := have[name]) is not None and at >= version for name, version in transactions]
        if all(done):
            return True
        if any(done):
            raise Stale(
                f"{self.root}/{table}: expected none or all of {dict(transactions)} to be recorded, got {have}; "
                "read the positions again and resume there"
            )
        return False

    def _create(self, table: str) -> DeltaTable:
        schema = pl.DataFrame(schema=dict(self.schema(table)))
        try:
            write_deltalake(
                self._uri(table), schema, mode="ignore", configuration=self._settings(table),
                storage_options=self._options or None,
            )  # fmt: skip
        except CommitFailedError:
            pass  # created by somebody else in this moment
        except (DeltaError, OSError) as error:
            raise self._unavailable(table, "write", error) from None
        handle = self._handle(table)
        if handle is None:
            raise Unavailable(f"{self.root}/{table}: expected the table just created, found none; is the folder being deleted?")
        return handle

    def compact(self, *, above: int = 100, target_bytes: int = 16 << 20, vacuum: bool = True) -> dict[str, int]:
        """Merge the small files of every known table that has more than `above`; {table: files removed}.

        Files of `target_bytes` are left alone, so what one compaction rewrites does not grow with the table.
        Old files stay for MERGED_AWAY, so a reader in mid-scan is never cut off. Without `vacuum` they stay for good: to look
        for them takes longer than to compact where there are many.
        """
        done: dict[str, int] = {}
        for table in (*self.tables, *RECORD_TABLES):
            with self._lock:
                handle = self._handle(table)
                if handle is None or len(handle.file_uris()) <= above:
                    continue
                try:
                    done[table] = int(handle.optimize.compact(target_size=target_bytes)["numFilesRemoved"])
                    self._settled(table, handle)
                    if vacuum:
                        handle.vacuum(dry_run=False)
                except CommitFailedError:
                    self._open.pop(table, None)  # somebody else compacts
                except (DeltaError, OSError) as error:
                    raise self._unavailable(table, "compact", error) from None
        return done

    def _settings(self, table: str) -> dict[str, str | None]:
        """The log keeps smallest and largest values of each file for ever: not of what people said, nor of who they are."""
        columns = [name for name, dtype in self.schema(table).items() if name not in PERSONAL and dtype != pl.Binary]
        return {"delta.dataSkippingStatsColumns": ",".join(columns), "delta.deletedFileRetentionDuration": MERGED_AWAY}

    # --- erasing
    def rewrite(self, table: str, predicate: str, updates: Mapping[str, str] | None = None) -> int:
        """Change the rows that match, or without `updates` delete them, in one commit; returns how many. Repeated, it does 0.

        Predicate and updates are SQL of DataFusion; the predicate stays in the log, so name ids in it, not people. Files that
        held the rows stay on the disk for readers in mid-scan: `leftovers`, then `purge`.
        """
        with self._lock:
            for _ in range(TRIES):
                handle = self._handle(table)
                if handle is None:
                    return 0
                try:
                    if updates is None:
                        changed = int(handle.delete(predicate)["num_deleted_rows"] or 0)
                    else:
                        changed = int(handle.update(updates=dict(updates), predicate=predicate)["num_updated_rows"] or 0)
                    self._settled(table, handle)
                    return changed
                except CommitFailedError:
                    self._open.pop(table, None)
                except (DeltaError, OSError) as error:
                    self._open.pop(table, None)
                    raise self._unavailable(table, "erase from", error) from None
        raise self.crowded(table)

    def leftovers(self, table: str) -> list[str]:
        """Data files below a table that its newest version does not hold: of older versions, or of writers that died."""
        handle = self._handle(table)
        if handle is None or self.remote:
            return []
        living = {Path(file).name for file in self._files(handle)}
        return sorted(file.name for file in Path(self._uri(table)).glob("*.parquet") if file.name not in living)

    def purge(self, table: str, files: Iterable[str]) -> int:
        """Delete these data files but for what the newest version holds; returns how many went. Once nobody reads them."""
        gone = set(files) & set(self.leftovers(table))
        for name in gone:
            (Path(self._uri(table)) / name).unlink(missing_ok=True)
        return len(gone)

    def _settled(self, table: str, handle: DeltaTable) -> None:
        """Wait until the disk has what delta-rs wrote for the newest version: it does not wait. Raises OSError."""
        if self.remote:
            return
        folder = Path(self._uri(table))
        log = follow.entry(folder, handle.version())
        with suppress(FileNotFoundError):  # merged, trimmed or vacuumed since
            for name in follow.added_by(log):
                flush(folder / name)
            for path in (folder, log, log.parent):
                flush(path)

    def _checkpoint(self, table: str) -> None:
        """So that who opens the table need not read its whole log. One that fails is made up for by the next."""
        try:
            if (handle := self._handle(table)) is not None:
                handle.create_checkpoint()
                if not self.remote:
                    folder = Path(self._uri(table))
                    now = follow.entry(folder, int(handle.version())).stat().st_mtime  # the file system's clock
                    follow.trim(folder, before=now - _LOG_S)
        except (DeltaError, OSError, TruingError):
            self._open.pop(table, None)

    def trim_log(self, table: str, *, before: float) -> int:
        """Delete what only those need of a local table's log who ask `since` a version from before `before` (Unix seconds)."""
        return 0 if self.remote else follow.trim(Path(self._uri(table)), before=before)

    # --- reading
    def version(self, table: str) -> int | None:
        """Delta version of a table, None while it does not exist."""
        look = self._look(table)
        return None if look is None else look[0]

    def transaction(self, table: str, app_id: str) -> int | None:
        """The version recorded for an application, or None."""
        return self.transactions(table, [app_id])[app_id]

    def transactions(self, table: str, app_ids: Iterable[str]) -> dict[str, int | None]:
        """The same of several at one version of the table."""
        wanted = list(app_ids)
        if self.remote:
            handle = self._handle(table)
            return {app_id: None if handle is None else handle.transaction_version(app_id) for app_id in wanted}
        with self._lock:
            log = self._log(table, wanted)
            return {app_id: None if log is None else log.told[app_id] for app_id in wanted}

    def scan(self, table: str) -> pl.LazyFrame:
        """The whole table at its newest version, lazily; an absent table is an empty frame with the schema."""
        look = self._look(table)
        return self._frame(table, [] if look is None else look[1])

    def holding(self, table: str, column: str, values: pl.Series) -> pl.LazyFrame:
        """The rows whose `column` is one of `values`, lazily, from those files only that hold any: see whereabouts.py."""
        with self._lock:
            look = self._look(table)
            files = [] if look is None else look[1]

            def one(file: str) -> pl.Series:
                known = self._small(table, file, _TINY)
                return self._frame(table, [file]).select(column).collect()[column] if known is None else known[column]

            try:
                if table in self._kept:
                    self._kept[table].only(set(files))
                files = self._whereabouts.setdefault((table, column), Whereabouts(one)).holding(files, values)
                return self._gathered(table, files).filter(pl.col(column).is_in(values.implode()))
            except OSError as error:
                raise self._unavailable(table, "read", error) from None

    def read(self, table: str, columns: Sequence[str] | None = None, predicate: pl.Expr | None = None) -> pl.DataFrame:
        """Chosen columns of the rows that match; both are pushed down into the files."""
        frame = self.scan(table)
        if predicate is not None:
            frame = frame.filter(predicate)
        if columns is not None:
            frame = frame.select(columns)
        return self._collect(table, frame)

    def since(self, table: str, version: int | None) -> tuple[int | None, pl.LazyFrame, bool]:
        """What was added after `version` (None = from the start): newest version, lazy frame of the files added, exact?

        When rows were changed in between, or the log of `version` has expired, old rows come along and exact is False; after a
        compaction too, unless this very store has watched it.
        """
        with self._lock:
            look = self._look(table)
            if look is None:
                return None, self._frame(table, []), True
            newest, files = look
            if version is None or version >= newest:
                return newest, self._frame(table, files if version is None else []), True
            log = self._logs.get(table)
            try:
                if log is not None and (added := log.added(version)) is not None:
                    return newest, self._gathered(table, added, small=_TINY), True
                old = set(self._files(DeltaTable(self._uri(table), version=version, storage_options=self._options or None)))
            except (DeltaError, OSError):
                return newest, self._frame(table, files), False
            return newest, self._frame(table, [file for file in files if file not in old]), old.issubset(files)

    def forget_gone(self) -> None:
        """Drop from memory what no table holds any more."""
        with self._lock:
            for table, kept in self._kept.items():
                look = self._look(table)
                kept.only(set() if look is None else set(look[1]))

    def _look(self, table: str) -> tuple[int, list[str]] | None:
        """A table's newest version and its data files, as paths for polars; None while it does not exist."""
        with self._lock:
            if self.remote:
                handle = self._handle(table)
                return None if handle is None else (int(handle.version()), self._files(handle))
            log = self._log(table)
            return None if log is None else (log.version, list(log.files))

    def _log(self, table: str, apps: Sequence[str] = (), *, writing: bool = False) -> Log | None:
        """A local table's log at its newest version, with what it records of these applications; None while it does not exist.

        Call it with the lock.
        """
        log = self._logs.get(table)
        if log is None or not log.follow():
            self._logs.pop(table, None)
            handle = self._handle(table, writing=writing)
            if handle is None:
                return None
            columns = [field.name for field in handle.schema().fields]
            log = Log(Path(self._uri(table)), int(handle.version()), self._files(handle), columns)
            log.follow()
            self._logs[table] = log
        unknown = [app for app in apps if app not in log.told]
        if unknown:
            handle = self._handle(table, writing=writing)
            if handle is None:
                return None
            if not log.follow(int(handle.version())) or log.version != handle.version():
                log = self._logs[table] = Log(log.folder, int(handle.version()), self._files(handle), log.columns)
                unknown = list(apps)
            log.told.update({app: handle.transaction_version(app) for app in unknown})
        return log

    def _small(self, table: str, file: str, small: int) -> pl.DataFrame | None:
        """All of a small file, from memory if it was read before; None when it is larger than `small` bytes."""
        if self.remote:
            return None
        return self._kept.setdefault(table, Kept(lambda one: self._frame(table, [one]).collect())).frame(file, small=small)

    def _gathered(self, table: str, files: Sequence[str], *, small: int = SMALL) -> pl.LazyFrame:
        """The rows of these files, of the small ones from memory. Raises OSError."""
        frames = {file: self._small(table, file, small) for file in files}
        large = [file for file in files if frames[file] is None]
        found = [frame for frame in frames.values() if frame is not None]
        if not found:
            return self._frame(table, large)
        here = pl.concat(found, rechunk=False).lazy()
        return pl.concat([here, self._frame(table, large)]) if large else here

    def _files(self, handle: DeltaTable) -> list[str]:
        """The data files of a handle's version, as paths for polars: delta-rs percent-encodes local ones."""
        return [file if self.remote else unquote(file.removeprefix("file://")) for file in handle.file_uris()]

    def _frame(self, table: str, files: list[str]) -> pl.LazyFrame:
        schema = dict(self.schema(table))
        if not files:
            return pl.LazyFrame(schema=schema)
        return pl.scan_parquet(
            files, schema=schema, glob=False, missing_columns="insert", storage_options=self._options if self.remote else None
        )

    def _collect(self, table: str, frame: pl.LazyFrame) -> pl.DataFrame:
        try:
            return frame.collect()
        except OSError as error:
            raise self._unavailable(table, "read", error) from None

    # --- handles
    def _uri(self, table: str) -> str:
        return f"{self.root}/{table}"

    def _handle(self, table: str, *, writing: bool = False) -> DeltaTable | None:
        """The table's handle at its newest version, or None while it does not exist.

        A root not made yet is a store without tables, as long as the folder around it exists.
        """
        with self._lock:
            handle = self._open.get(table)
            try:
                if handle is not None:
                    handle.update_incremental()
                    return handle
                handle = DeltaTable(self._uri(table), storage_options=self._options or None)
            except TableNotFoundError:
                self._open.pop(table, None)
                above = Path(self.root).parent
                if not writing and not self.remote and not above.is_dir():
                    raise Unavailable(f"expected the data folder {above}, found none; run `truing up`, or name it") from None
                return None
            except (DeltaError, OSError) as error:
                self._open.pop(table, None)
                raise self._unavailable(table, "read", error) from None
            self._open[table] = handle
            return handle

    def crowded(self, table: str) -> Unavailable:
        """What to raise when every try to commit met somebody else's commit."""
        return Unavailable(
            f"{self.root}/{table}: expected a commit within {TRIES} tries, got conflicts; too many writers at once"
        )

    def _unavailable(self, table: str, verb: str, error: Exception) -> Unavailable:
        cause = " ".join(_COLOUR.sub("", str(error)).split())[:200]
        return Unavailable(
            f"{self.root}/{table}: expected to {verb} it, got {cause}; check the folder, its permissions and the space left"
        )
