"""Forgetting a person: what is due, in which order, under whose account. `truing forget` begins it, the chief ends it.

    prepare   what is found is written down, beside the vault       ingest     nothing is changed yet
    erase     keys destroyed, tables rewritten, others rejoined     ingest     between two commits of the keepers
    outbox    events not yet trimmed at the gateway                 gateway
    topics    what landed is trimmed, where that is our way         ingest
    desk      predictions, evidence, plans; versions named; signed  steward
    tend      data files deleted once no reader is in mid-scan      ingest     by the chief, or by the next `truing forget`

Each step can be killed and run again. Where parts have accounts of their own, each runs as its account, started by root.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from truing.infra.settings import Settings
from truing.tasks.errors import DataError, TruingError, Unavailable
from truing.tasks.events import erasure
from truing.tasks.events.erasure import Traces
from truing.tasks.events.schema import pseudonym
from truing.tasks.problem import Problem, seconds
from truing.tasks.records import Record
from truing.tasks.seal import canonical, digest
from truing.tasks.tables.columns import OWNER
from truing.tasks.tables.lake import Lake, Vault
from truing.tasks.tables.subjects import day, no_commits

DAY_S = 86_400.0


class Act(Record, frozen=True):
    """One forgetting under way, as written down in `<vault>/.erasures`. `stage`: found, erased, told, done."""

    id: str
    kind: str  # subject | actor
    by: str
    reason: str
    at: float
    traces: tuple[Traces, ...]
    stage: str = "found"
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    files: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)  # to be deleted at `due`
    due: float = 0.0
    ends: dict[str, int] = msgspec.field(default_factory=dict)  # topic:partition → offset up to which it held the person


def folder(settings: Settings) -> Path:
    return settings.vault / ".erasures"


def acts(settings: Settings) -> list[Act]:
    """Those under way, oldest first. Raises DataError for one that does not read."""
    found = []
    for path in sorted(folder(settings).glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Act))
        except (OSError, msgspec.DecodeError) as error:
            raise DataError(f"{path}: expected a forgetting under way, got {error}; restore it or forget again") from None
    return sorted(found, key=lambda one: (one.at, one.id))


def _keep(settings: Settings, act: Act) -> Act:
    path = folder(settings) / f"{act.id}.json"
    path.parent.mkdir(mode=0o750, exist_ok=True)
    draft = path.with_suffix(".new")
    with draft.open("wb") as file:
        file.write(canonical(act))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return act


# --- ingest's steps -----------------------------------------------------------------------------------------------------------


def prepare(
    settings: Settings, problems: Mapping[str, Problem], name: str, *, kind: str, by: str, reason: str, now: float,
    salt: bytes, keep: bool = True,
) -> Act:  # fmt: skip
    """What there is of the person called `name`. With `keep` it is written down, and will be erased, whatever happens."""
    vault, lake = Vault(settings.vault), Lake(settings.lake)
    found = []
    for problem in problems:
        one = erasure.find(vault, lake, problem, pseudonym(salt, problem, name), words_only=kind == "actor")
        found.append(msgspec.structs.replace(one, dead=tuple(sorted(erasure.dead(vault, problem, name, one.rows)))))
    people = sorted((one.problem, one.person) for one in found)
    act = Act(
        id=digest([kind, people, now])[:24], kind=kind, by=by, reason=reason, at=now, traces=tuple(found),
    )  # fmt: skip
    return _keep(settings, act) if keep else act


def erase(settings: Settings, problems: Mapping[str, Problem], act: Act, *, split_salt: bytes, now: float) -> Act:
    """Keys first, then tables, with no commit in between. Repeated, it does what is left."""
    if act.stage != "found":
        return act
    vault, lake = Vault(settings.vault), Lake(settings.lake)
    counts = dict(act.counts)
    with no_commits(settings.vault):
        again = [erasure.find(vault, lake, one.problem, one.person, words_only=one.words_only) for one in act.traces]
        found = tuple(erasure.both(one, other) for one, other in zip(act.traces, again, strict=True))
        act = _keep(settings, msgspec.structs.replace(act, traces=found, ends=act.ends | _ends(found)))
        counts["keys"] = counts.get("keys", 0) + erasure.destroy(vault, lake, act.traces)
        for one in act.traces:
            if one.problem in problems:
                for name, count in erasure.erase(vault, lake, problems[one.problem], one, salt=split_salt).items():
                    counts[name] = counts.get(name, 0) + count
        files = erasure.leftovers({"vault": vault, "lake": lake})
    for one in act.traces:
        if one.vouched:  # a profile lists values; the next window is judged by one of the rows that are left
            (settings.lake / "expectations" / f"{one.problem}.json").unlink(missing_ok=True)
    for page in (settings.lake / "pages").glob("window-*.html"):  # curate draws the next one
        page.unlink(missing_ok=True)
    named = {name: tuple(some) for name, some in files.items()}
    due = now + settings.ingest.forget_after_s
    return _keep(settings, msgspec.structs.replace(act, stage="erased", counts=counts, files=named, due=due))


def _ends(traces: Iterable[Traces]) -> dict[str, int]:
    """topic:partition → offset up to which it held the person, in the newest of its logs that did."""
    newest: dict[str, tuple[int, int]] = {}
    for one in traces:
        for topic, partition, epoch, offset in (*one.events, *one.dead):
            key = f"{topic}:{partition}"
            newest[key] = max((epoch, offset + 1), newest.get(key, (0, 0)))
    return {key: offset for key, (_, offset) in newest.items()}


def tend(
    settings: Settings, problems: Mapping[str, Problem], *, split_salt: bytes, now: float, log: Callable[[str], None]
) -> None:
    """What is due of forgettings, and dead letters whose lifetime is over. Called by the chief now and then."""
    if folder(settings).exists():
        for act in acts(settings):
            if act.stage == "found" and now - act.at > 60.0:  # whoever began it was killed
                log(f"a forgetting of {act.kind} by {act.by} goes on where it was cut off")
                act = erase(settings, problems, act, split_salt=split_salt, now=now)
            if act.stage in ("erased", "told") and act.due <= now:
                swept(settings, act)
    _expire_dead(settings, now=now, log=log)


def swept(settings: Settings, act: Act) -> Act:
    """Delete the data files that held the person; the act is over once it was told, too."""
    gone = erasure.purge({"vault": Vault(settings.vault), "lake": Lake(settings.lake)}, act.files)
    act = msgspec.structs.replace(act, files={}, counts=act.counts | {"files": act.counts.get("files", 0) + gone})
    if act.stage == "told":
        (folder(settings) / f"{act.id}.json").unlink(missing_ok=True)
        return act
    return _keep(settings, act)


def told(settings: Settings, act: Act) -> Act:
    """The signed record stands: what is left are files that wait for their day."""
    act = msgspec.structs.replace(act, stage="told", traces=())
    if act.files:
        return _keep(settings, act)
    (folder(settings) / f"{act.id}.json").unlink(missing_ok=True)
    return act


def _expire_dead(settings: Settings, *, now: float, log: Callable[[str], None]) -> None:
    """Destroy the keys of days whose dead letters have lived long enough."""
    import polars as pl

    last = day(now - (settings.ingest.dead_days + 1) * DAY_S)
    mark = settings.vault / ".dead-until"
    with suppress(FileNotFoundError):
        if mark.read_text() >= last:
            return
    vault = Vault(settings.vault)
    if vault.version("landing") is None or vault.subjects is None:
        return
    with no_commits(settings.vault):
        found = vault.scan("landing").filter(pl.col("disposition") == "dead").select(OWNER.alias("day")).unique().collect()
        days = set(found["day"].drop_nulls())
        gone = sorted(one for one in days if one <= last)
        if gone and vault.sealing().destroy("dead", gone, days):
            log(f"dead letters of {gone[0]} to {gone[-1]}: their lifetime is over, their keys are destroyed")
    mark.write_text(last)


# --- the gateway's step -------------------------------------------------------------------------------------------------------


def outbox(settings: Settings, *, now: float) -> dict[str, float]:
    """When the gateway's outbox holds nothing of the person any more, at the latest, while the gateway runs.

    It empties itself: an event goes out within seconds and is deleted, with its segment, when it has landed; if no keeper lands
    it, `gateway.keep_most_s` after that.
    """
    place = settings.data / "outbox" / "gateway"
    held = any(path.stat().st_size for path in place.glob("*.log"))
    return {"outbox_gone_by": now + settings.gateway.keep_most_s + 10.0 if held else now}


# --- the steward's step -------------------------------------------------------------------------------------------------------


class Held(Record, frozen=True):
    """A registered model version that learned from rows of the person, itself or through a parent."""

    problem: str
    version: str
    dataset: str
    samples: int
    released: bool
    serving: bool
    retrain_by: float


class Erasure(Record, frozen=True):
    """What is signed: who asked, what went, what still holds something and until when. No name, no content."""

    id: str
    kind: str
    by: str
    reason: str
    at: float
    people: dict[str, str]  # problem → pseudonym
    counts: dict[str, int]
    datasets: dict[str, dict[str, int]]  # problem → dataset version → samples that it held
    versions: tuple[Held, ...]
    files_gone_by: float
    outbox_gone_by: float
    topics: dict[str, float | None]  # topic → when its last byte of the person is gone; null: nobody could say
    evidence: dict[str, str] = msgspec.field(default_factory=dict)  # verdict → digest of what is left of its evidence
    notes: tuple[str, ...] = ()


ERASURE_TYPE = "application/vnd.truing.erasure.v1+json"


def desk(
    settings: Settings, problems: Mapping[str, Problem], act: Act, *, outbox_gone_by: float,
    topics: dict[str, float | None], notes: list[str],
) -> Erasure:  # fmt: skip
    """Erase at the steward's desk, name the versions, sign. Repeated, it returns what was signed."""
    from truing.flows.erase_desk import left, scrub, versions
    from truing.infra.keys import keyring
    from truing.tasks.seal import sign

    place = settings.desk / "erasures"
    path = place / f"{act.id}.json"
    if path.exists():
        return opened(settings, path)
    counts = dict(act.counts)
    gate = keyring(settings).read("gate")
    for one in act.traces:
        for name, count in scrub(settings, one, act.id, gate=gate).items():
            counts[name] = counts.get(name, 0) + count
    held: list[Held] = []
    for one in act.traces:
        if one.datasets and one.problem in problems:
            held += versions(settings, one, retrain_by=act.at + seconds(problems[one.problem].retrain), notes=notes)
    said = Erasure(
        id=act.id, kind=act.kind, by=act.by, reason=act.reason, at=act.at,
        people={one.problem: one.person for one in act.traces if not one.empty},
        counts=counts, datasets={one.problem: one.datasets for one in act.traces if one.datasets},
        versions=tuple(held), files_gone_by=act.due, outbox_gone_by=outbox_gone_by,
        topics=topics, evidence=left(settings.desk, act.id), notes=tuple(notes),
    )  # fmt: skip
    place.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_bytes(canonical(sign(said, ERASURE_TYPE, gate)))
    draft.replace(path)
    return said


def opened(settings: Settings, path: Path) -> Erasure:
    """A signed erasure. Raises DataError for one that the gate's key did not sign."""
    from truing.infra.keys import keyring
    from truing.tasks.records import Refusal
    from truing.tasks.seal import open_envelope

    try:
        found = open_envelope(path.read_bytes(), Erasure, ERASURE_TYPE, keyring(settings).public().gate)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}; run as root or as the steward's account") from None
    if isinstance(found, Refusal):
        raise DataError(f"{path}: {found}")
    return found


def erasures(settings: Settings) -> list[Erasure]:
    """All that were signed, oldest first."""
    found = [opened(settings, path) for path in (settings.desk / "erasures").glob("*.json")]
    return sorted(found, key=lambda one: (one.at, one.id))


# --- steps under their accounts -----------------------------------------------------------------------------------------------


def step(settings: Settings, name: str, given: Mapping[str, Any]) -> bytes:
    """One step as JSON in and out: in this process, or under accounts as a process of the office that may do it."""
    office = {"outbox": "gateway", "desk": "steward"}.get(name, "ingest")
    if not settings.accounts.separate:
        return do(settings, name, given)
    from truing.infra.accounts import run_as

    return run_as(settings, office, [sys.executable, "-m", "truing.flows.erase", name], canonical(dict(given)))


def do(settings: Settings, name: str, given: Mapping[str, Any]) -> bytes:
    """The step in this process. `given` is plain data, as it came over a pipe."""
    from truing.infra.catalog import catalog
    from truing.infra.keys import keyring

    problems = {key: problem for key, (problem, _) in catalog(settings.problems).items()}
    if given.get("problem"):
        problems = {given["problem"]: problems[given["problem"]]}
    ring, now = keyring(settings), float(given["now"])
    if name == "prepare":
        salt = ring.read("actor-salt")
        about = {key: given[key] for key in ("kind", "by", "reason", "keep")}
        return canonical(prepare(settings, problems, given["name"], now=now, salt=salt, **about))
    if name == "acts":
        return canonical(acts(settings))
    act = msgspec.convert(given["act"], Act)
    if name == "erase":
        return canonical(erase(settings, problems, act, split_salt=ring.read("split-salt"), now=now))
    if name == "outbox":
        return canonical(outbox(settings, now=now))
    if name == "topics":
        from truing.flows.erase_desk import topics

        notes: list[str] = []
        return canonical({"topics": topics(settings, act.ends, notes=notes, now=now), "notes": notes})
    if name == "desk":
        known = {key: given[key] for key in ("outbox_gone_by", "topics", "notes")}
        return canonical(desk(settings, problems, act, **known))
    if name == "told":
        return canonical(told(settings, act))
    if name == "swept":
        return canonical(swept(settings, act))
    raise DataError(f"expected a step of forgetting, got {name!r}")


def finish(settings: Settings, act: Act, *, now: float) -> Erasure:
    """All steps after `prepare`, from wherever the act stands."""

    def plain(one: Act) -> Any:
        return msgspec.to_builtins(one)

    act = msgspec.json.decode(step(settings, "erase", {"act": plain(act), "now": now}), type=Act)
    gone = msgspec.json.decode(step(settings, "outbox", {"act": plain(act), "now": now}), type=dict[str, Any])
    gone |= msgspec.json.decode(step(settings, "topics", {"act": plain(act), "now": now}))
    said = msgspec.json.decode(step(settings, "desk", {"act": plain(act), "now": now} | gone), type=Erasure)
    step(settings, "told", {"act": plain(act), "now": now})
    return said


def main(arguments: Sequence[str]) -> int:
    from truing.infra.settings import current

    try:
        sys.stdout.buffer.write(do(current(), arguments[0], msgspec.json.decode(sys.stdin.buffer.read())))
    except TruingError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    os.umask(0o007)
    raise SystemExit(main(sys.argv[1:]))
