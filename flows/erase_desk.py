"""Forgetting at the steward's desk: what it kept of the rows, which versions learned from them, what the topic still holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from truing.infra.settings import Settings
from truing.tasks.errors import TruingError
from truing.tasks.events.erasure import Traces

if TYPE_CHECKING:
    from truing.flows.erase import Held
    from truing.tasks.release.versions import Version


ERASED = "erased"  # file beside rows of evidence: ids of the acts that took rows out


def scrub(settings: Settings, traces: Traces, act: str, *, gate: bytes) -> dict[str, int]:
    """Lines about the person's rows out of predictions, evidence, plans and windows' reports; how many, by kind."""
    ids = frozenset(traces.rows)
    if traces.vouched:
        (settings.desk / "windows" / "expectations" / f"{traces.problem}.json").unlink(missing_ok=True)
    if not ids or not settings.desk.exists():
        return {}
    return {
        "predictions": _predictions(settings.desk, traces.problem, ids),
        "evidence": _evidence(settings.desk / "evidence", ids, act),
        "plans": _plans(settings.desk / "audits", traces.problem, ids, gate),
        "reports": _reports(settings.desk / "windows" / f"{traces.problem}.jsonl", ids),
    }


def _predictions(desk: Path, problem: str, ids: frozenset[str]) -> int:
    """Deleted, and the files too: nobody but the steward reads them, and it reads whole tables."""
    from truing.tasks.tables.predictions import Predictions

    store, count = Predictions(desk), 0
    of = "problem = '" + problem.replace("'", "''") + "'"
    named = sorted(ids)
    for at in range(0, len(named), 1000):
        some = ", ".join("'" + id.replace("'", "''") + "'" for id in named[at : at + 1000])
        count += store.rewrite("predictions", f"{of} AND row IN ({some})")
    store.purge("predictions", store.leftovers("predictions"))
    return count


def _evidence(place: Path, ids: frozenset[str], act: str) -> int:
    """Rows out of the evidence of verdicts. What was judged on them can't be made again byte for byte after that; the file
    `erased` beside them names the acts, and the signed erasure what is left (`excuse`)."""
    import polars as pl

    count = 0
    for path in sorted(place.glob("*/rows.parquet")):
        table = pl.read_parquet(path)
        kept = table.filter(~pl.col("id").is_in(sorted(ids)))
        if kept.height == table.height:
            continue
        mark = path.with_name(ERASED)
        known = _named(mark)
        if act not in known:
            mark.write_text("".join(f"{one}\n" for one in (*known, act)))
        draft = path.with_suffix(".new")
        kept.write_parquet(draft)
        draft.replace(path)
        count += table.height - kept.height
    return count


def _named(mark: Path) -> list[str]:
    return mark.read_text().split() if mark.exists() else []


def left(desk: Path, act: str) -> dict[str, str]:
    """Evidence that lost rows to this act, by the verdict's digest: the digest of what is left."""
    from truing.tasks.evaluation.kept import load, manifest
    from truing.tasks.seal import digest

    marks = sorted((desk / "evidence").glob(f"*/{ERASED}"))
    return {mark.parent.name: digest(manifest(load(mark.parent))) for mark in marks if act in _named(mark)}


def excuse(settings: Settings, verdict: str) -> str | None:
    """Why a verdict (by digest) can't be made again, if that is because people were forgotten; None if that explains it not.

    What is left must be, byte for byte, what the newest of those erasures signed.
    """
    from truing.flows.erase import erasures
    from truing.tasks.evaluation.kept import load, manifest
    from truing.tasks.seal import digest

    folder = settings.desk / "evidence" / verdict
    named = _named(folder / ERASED)
    signed = [one for one in erasures(settings) if one.id in named and verdict in one.evidence] if named else []
    if not signed or signed[-1].evidence[verdict] != digest(manifest(load(folder))):
        return None
    return f"people were forgotten since ({', '.join(one.id[:12] for one in signed)}); what is left is what was signed then"


def _plans(place: Path, problem: str, ids: frozenset[str], gate: bytes) -> int:
    """Rows out of audit plans, signed anew: a row that is gone will never have the label that the plan waits for."""
    from truing.tasks.evaluation.audit import PLAN_TYPE, Plan, keep_plan
    from truing.tasks.records import Refusal
    from truing.tasks.seal import digest, open_envelope, public_key

    count = 0
    for path in sorted((place / problem).glob("*.json")):
        plan = open_envelope(path.read_bytes(), Plan, PLAN_TYPE, [public_key(gate)])
        if isinstance(plan, Refusal) or not ids & plan.pool.keys():
            continue
        gone = {id: plan.pool[id] for id in ids & plan.pool.keys()}
        strata = [
            msgspec.structs.replace(
                one,
                rows=one.rows - sum(1 for at in gone.values() if at == number),
                drawn=one.drawn
                - sum(1 for id, at in gone.items() if at == number and (id in plan.drawn or one.kind == "labelled")),
            )
            for number, one in enumerate(plan.strata)
        ]
        fresh = msgspec.structs.replace(
            plan,
            strata=tuple(strata),
            pool={id: at for id, at in plan.pool.items() if id not in gone},
            drawn=tuple(id for id in plan.drawn if id not in gone),
            twice=tuple(id for id in plan.twice if id not in gone),
        )
        keep_plan(place, fresh, gate)
        heard = path.with_suffix(".heard")
        if heard.exists():
            (place / problem / f"{digest(fresh)}.heard").touch()
            heard.unlink()
        path.unlink()
        count += len(gone)
    return count


def _reports(path: Path, ids: frozenset[str]) -> int:
    from truing.tasks.validation.expectations import WindowReport

    if not path.exists():
        return 0
    count, lines = 0, []
    for line in path.read_bytes().splitlines():
        try:
            report = msgspec.json.decode(line, type=WindowReport)
        except msgspec.DecodeError:  # cut short by a crash: that window is judged again
            continue
        kept = {id: why for id, why in report.failed.items() if id not in ids}
        count += len(report.failed) - len(kept)
        lines.append(msgspec.json.encode(msgspec.structs.replace(report, failed=kept)))
    if count:
        draft = path.with_suffix(".new")
        draft.write_bytes(b"".join(line + b"\n" for line in lines))
        draft.replace(path)
    return count


# --- models -------------------------------------------------------------------------------------------------------------------


def versions(settings: Settings, traces: Traces, *, retrain_by: float, notes: list[str]) -> list[Held]:
    """Versions whose dataset held rows of the person, and their descendants: a parent's weights are where they began."""
    from truing.flows.erase import Held
    from truing.infra.evidence import shelf, steward_book
    from truing.infra.keys import keyring
    from truing.tasks.errors import DataError

    unread: dict[str, str] = {}
    place = shelf(settings, "steward", unread)
    try:
        known = [] if place is None else place.versions(traces.problem)
    except DataError:  # no such model
        known = []
    except TruingError as error:
        known, unread["store"] = [], str(error)
    notes += [f"{traces.problem}: versions could not be read, so none is named: {why}" for why in unread.values()]
    held = _descent(known, frozenset(traces.datasets))
    book = steward_book(settings, keyring(settings).public(), {}, [])
    released = {one.version for one in book.releases(traces.problem)} if book else set()
    serving = book.champion(traces.problem) if book else None
    return [
        Held(
            problem=traces.problem,
            version=one.version,
            dataset=one.tags.get("dataset", ""),
            samples=traces.datasets.get(one.tags.get("dataset", ""), 0),
            released=one.version in released,
            serving=serving is not None and serving.version == one.version,
            retrain_by=retrain_by,
        )
        for one in held
    ]


def _descent(known: Iterable[Version], datasets: frozenset[str]) -> list[Version]:
    ordered = sorted(known, key=lambda one: one.number)
    payloads: set[str] = set()
    held = []
    for one in ordered:
        if one.tags.get("dataset") in datasets or one.parent in payloads:
            held.append(one)
            if one.payload:
                payloads.add(one.payload)
    return held


# --- the topic ----------------------------------------------------------------------------------------------------------------


def topics(settings: Settings, ends: Mapping[str, int], *, notes: list[str], now: float) -> dict[str, float | None]:
    """When the last byte of the person is gone from each topic: now where it could be trimmed, else by its retention."""
    names = sorted({key.rpartition(":")[0] for key in ends})
    if not names:
        return {}
    from kafka import KafkaAdminClient, TopicPartition
    from kafka.errors import KafkaError

    from truing.infra.broker import connection, quiet_client

    quiet_client()
    found: dict[str, float | None] = {}
    try:
        admin = KafkaAdminClient(**connection(settings), bootstrap_timeout_ms=3000, request_timeout_ms=5000)
    except (KafkaError, OSError) as error:
        notes.append(f"the broker does not answer, so its topics still hold what they held: {error}")
        return dict.fromkeys(names)
    try:
        for name in names:
            if settings.kafka.trims and settings.kafka.broker == "embedded":  # elsewhere what landed goes when its time is over
                upto = {
                    TopicPartition(name, int(key.rpartition(":")[2])): offset
                    for key, offset in ends.items()
                    if key.rpartition(":")[0] == name
                }
                admin.delete_records(upto, timeout_ms=5000)
                found[name] = now
                continue
            found[name] = _retained(admin, name, now)
    except (KafkaError, OSError, ValueError) as error:
        notes.append(f"the broker could not be asked: {' '.join(str(error).split())[:150]}")
    finally:
        admin.close()
    return dict.fromkeys(names) | found


def _retained(admin: object, name: str, now: float) -> float | None:
    """Retention, and the time that a segment stays open: Kafka deletes whole segments."""
    from kafka.admin import ConfigResource, ConfigResourceType

    told = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")  # type: ignore[attr-defined]
    try:
        values = told["topic"][name]
        kept, open_for = (int(values[key]["value"]) for key in ("retention.ms", "segment.ms"))
    except (KeyError, TypeError, ValueError):
        return None
    return None if kept < 0 else now + (kept + open_for) / 1000
