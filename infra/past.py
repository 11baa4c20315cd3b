"""What was judged and decided, from what is signed: the audit, its verdicts, and the evaluations that those bind by digest.

MLflow only keeps the bytes: an evaluation counts if it is the one that the signed verdict names, a candidate's own words
(parent, learner, rows) count as vouched for if they are those that the steward judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from truing.infra.evidence import audit_lines, gather, shelf
from truing.infra.settings import Settings
from truing.infra.stored import Shelf
from truing.tasks.errors import TruingError, Unavailable
from truing.tasks.records import Candidate, Evaluation, Release, Verdict
from truing.tasks.release.acts import DECISION, ROLLBACK, STANDING, Docket
from truing.tasks.release.audit import follow
from truing.tasks.release.proof import statements
from truing.tasks.release.registry import artifact_path
from truing.tasks.seal import VERDICT_TYPE, canonical, digest, digest_bytes, open_envelope

if TYPE_CHECKING:
    from truing.tasks.evaluation.kept import Case
    from truing.tasks.release.proof import Evidence
    from truing.tasks.release.registry import Registry
    from truing.tasks.release.versions import Version

ASKING = (DECISION, ROLLBACK, STANDING)  # acts that a release can come from


@dataclass(frozen=True, kw_only=True)
class Past:
    """One problem's history by version number as text. `vouched`: versions whose candidate is what the steward judged."""

    problem: str
    docket: Docket
    releases: list[Release]
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    vouched: frozenset[str] = frozenset()
    asked: Mapping[str, str] = field(default_factory=dict)  # digest of a done act's audit record → who did it
    notes: tuple[str, ...] = ()

    @property
    def versions(self) -> list[str]:
        return sorted(self.docket.versions, key=int)

    def judged(self) -> list[Evaluation]:
        """Evaluations in the order of their verdicts."""
        return [self.evaluations[one] for one in sorted(self.evaluations, key=lambda one: self.verdicts[one].at)]


def past(settings: Settings, problem: str, *, user: str | None = None) -> Past:
    """Raises Unavailable when this user can read no audit: without it nothing is known for certain."""
    seen = gather(settings, [problem], user=user)[0][problem]
    if seen.docket is None:
        raise Unavailable(seen.unread.get("audit", f"{settings.guard}: expected an audit to read, got none"))
    notes = [f"{name}: {why}" for name, why in seen.unread.items() if name in ("store", "book")]
    tags = {one.version: one for one in seen.versions}
    verdicts, evaluations, candidates, vouched = {}, {}, {}, set()
    place = shelf(settings, user, {})
    for version, known in seen.docket.versions.items():
        verdict = open_envelope(seen.docket.verdicts.get(version), Verdict, VERDICT_TYPE, seen.keys.gate)
        if isinstance(verdict, Verdict) and verdict.candidate == known.payload:
            verdicts[version] = verdict
        shown = tags.get(version)
        candidate = shown.candidate if shown else None
        if shown is not None and candidate is not None and candidate.payload == known.payload:
            candidates[version] = candidate
            judged = seen.book.verdict(problem, known.payload) if seen.book else None
            if judged is not None and judged.candidate == digest_bytes(shown.tags["candidate"].encode()):
                vouched.add(version)
        if version in verdicts:
            found = _evaluation(place, _run(seen, known.payload, shown), verdicts[version])
            if isinstance(found, Evaluation):
                evaluations[version] = found
            else:
                notes.append(f"version {version}: {found}")
    issued = {one.sequence: one for one in (*statements(seen.docket, seen.keys), *seen.issued())}  # a lost book is empty
    return Past(
        problem=problem,
        docket=seen.docket,
        releases=[issued[sequence] for sequence in sorted(issued)],
        verdicts=verdicts,
        evaluations=evaluations,
        candidates=candidates,
        vouched=frozenset(vouched),
        asked=_askers(settings, seen, problem, user),
        notes=tuple(notes),
    )


def _askers(settings: Settings, seen: Evidence, problem: str, user: str | None) -> dict[str, str]:
    """Who did each act with power, by the digest of its audit record: the name that a release gives it."""
    lines = follow(audit_lines(settings, user=user)[0], keys=seen.keys.registry)
    return {
        one.digest: one.entry.user
        for one in lines
        if one.entry.outcome == "done" and one.entry.facts.get("problem") == problem and one.entry.act in ASKING
    }


def _run(seen: Evidence, payload: str, shown: Version | None) -> str:
    """The run that keeps a verdict's files: as booked, else as MLflow says (its evaluation is checked either way)."""
    judged = seen.book.verdict(seen.problem, payload) if seen.book else None
    return (judged.run if judged else "") or (shown.tags.get("verdict.run", "") if shown else "")


def _evaluation(place: Shelf | Registry | None, run: str, verdict: Verdict) -> Evaluation | str:
    """The evaluation that the verdict binds; else why there is none."""
    if place is None or not run:
        return "its evaluation is not at hand: no run is known"
    try:
        if isinstance(place, Shelf):
            raw = place.run_file(run, "evaluation.json")
        else:
            info = place.rest.get("/runs/get", run_id=run)["run"]["info"]
            raw = place.rest.download(f"{artifact_path(info['artifact_uri'])}/evaluation.json")
        if raw is None:
            return f"its evaluation is not at hand: run {run[:12]} has no such file"
        return bound(raw, verdict.evaluation)
    except (TruingError, ValueError, LookupError) as error:
        return f"its evaluation is not at hand: {error}"


def evidence_of(settings: Settings, verdict: Verdict) -> Case | None:
    """The stored answers that a verdict was made of; None if none are kept, closed to this user, or not what was signed."""
    from truing.tasks.evaluation.kept import EVALUATION, load, unpack

    try:
        files = load(settings.desk / "evidence" / digest(verdict))
        case = unpack(files)
        return case if bound(files[EVALUATION], verdict.evaluation).evidence == case.digest else None
    except (TruingError, ValueError):
        return None


def bound(raw: bytes, name: str) -> Evaluation:
    """An evaluation's file as a record, if its content has the digest `name`. Raises ValueError.

    The digest is taken over what is written there: a record that has grown since would give another.
    """
    try:
        plain = msgspec.json.decode(raw)
        found = msgspec.convert(plain, Evaluation)
    except msgspec.MsgspecError as error:
        raise ValueError(f"expected an evaluation, got {error}") from None
    if canonical(plain) != raw or found.digest != name or digest(plain | {"digest": ""}) != name:
        raise ValueError(f"expected the evaluation {name[:12]} that the verdict names, got another; somebody changed it")
    return found
