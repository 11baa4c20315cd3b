"""`truing gate explain` and `truing gate rebuild`: a verdict in words and numbers; and made again from its evidence."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from truing.flows.cli.output import result, table

if TYPE_CHECKING:
    from truing.infra.past import Past
    from truing.infra.settings import Settings
    from truing.tasks.evaluation.rebuild import Rebuilt
    from truing.tasks.records import Evaluation, Verdict
    from truing.tasks.release.proof import Check


# --- explain ------------------------------------------------------------------------------------------------------------------


def explain(args: argparse.Namespace, settings: Settings) -> int:
    """The signed verdict and the evaluation that it names; without the latter, what the clauses say."""
    import msgspec

    from truing.infra.catalog import chosen
    from truing.infra.past import past

    problem, _ = chosen(settings.problems, args.problem)
    known = past(settings, problem.name, user=args.user)
    verdict = _verdict(known, args.version)
    evaluation = _kept(settings, verdict) or known.evaluations.get(args.version)
    data: dict[str, Any] = {
        "version": args.version,
        "verdict": msgspec.to_builtins(verdict),
        "evaluation": None if evaluation is None else msgspec.to_builtins(evaluation),
        "notes": [] if evaluation else [note for note in known.notes if note.startswith(f"version {args.version}:")],
    }
    lines = _told(f"{problem.name} version {args.version}", verdict, evaluation)
    result(data, "\n".join([*lines, *data["notes"]]), as_json=args.json)
    return 0


def _verdict(known: Past, version: str) -> Verdict:
    from truing.tasks.errors import DataError

    if version not in known.versions:
        there = ", ".join(known.versions) or "none"
        raise DataError(f"{known.problem}: expected one of the versions {there}, got {version}; name one")
    if version not in known.verdicts:
        raise DataError(f"{known.problem} version {version}: expected a signed verdict, got none yet; wait for the steward")
    return known.verdicts[version]


def _kept(settings: Settings, verdict: Verdict) -> Evaluation | None:
    """The evaluation beside the evidence, if it is there for this user and the one that was signed."""
    from truing.infra.past import bound
    from truing.tasks.errors import TruingError
    from truing.tasks.evaluation.kept import EVALUATION, load
    from truing.tasks.seal import digest

    try:
        return bound(load(settings.desk / "evidence" / digest(verdict))[EVALUATION], verdict.evaluation)
    except (TruingError, ValueError):
        return None


def _told(about: str, verdict: Verdict, evaluation: Evaluation | None) -> list[str]:
    from truing.tasks.evaluation import beyond
    from truing.tasks.evaluation.gaps import gaps
    from truing.tasks.evaluation.slices import spoken
    from truing.tasks.evaluation.wording import AGAINST, NEXT, SPOKEN, amount, bounds, found, points

    def block(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
        return ["", title, *(f"  {line}" for line in table(head, lines).splitlines())] if lines else []

    n = evaluation.n if evaluation else 0
    clauses = [
        (
            one.name, spoken(one.slice), AGAINST.get(one.against, one.against),
            "–" if one.delta.value is None else amount(one.delta.value, one.metric, signed=True), bounds(one),
            amount(one.limit, one.metric), f"{one.delta.n:,}", str(one.outcome) + ("" if one.deciding else " (watched)"),
        )
        for one in verdict.clauses
    ]  # fmt: skip
    columns = ("clause", "on", "against", "drop", "between", "limit", "rows", "says")
    said = [f"{about}: {verdict.outcome}", f"{verdict.reason[:1].upper()}{verdict.reason[1:]}.", NEXT[verdict.outcome]]
    said += block("Clauses, a drop above 0 being worse; points for rates, Brier scores raw", columns, clauses)
    said += ["", "Why", *(f"  {one.reason}." for one in verdict.clauses)]
    needs = [f"  {one.name}: {text}" for one in verdict.clauses if (text := beyond.wanted(one, n))]
    said += ["", "Rows needed", *needs] if needs else []
    if evaluation is None:
        return said
    said += ["", "What it rests on", *(f"  {one}." for one in beyond.evidence(evaluation))]
    between = [
        (one.group, SPOKEN[one.metric], f"{one.highest} over {one.lowest}", points(one.champion), points(one.candidate),
         points(one.change, signed=True))
        for one in gaps(evaluation)
    ]  # fmt: skip
    said += block("Gaps between groups, in points", ("of", "metric", "between", "champion", "candidate", "change"), between)
    unequal = ("of", "between all groups", "champion", "candidate", "change")
    said += block("All groups of an attribute at once", unequal, beyond.disparities(evaluation))
    ranks = ("slice", "AUROC champion", "candidate", "drop", "ECE champion", "candidate")
    said += block("Ranking and calibration, per hundred", ranks, beyond.rankings(evaluation))
    if evaluation.worst:
        said += [
            "",
            "Where it loses most, on people who took no part in finding it",
            *(f"  {found(o)}." for o in evaluation.worst),
        ]
    said += block("Had the person been another", ("swapped", "what is seen", "how much"), beyond.swaps(evaluation))
    goes_by = ", ".join(f"{name} {share:.0%}" for name, share in beyond.weights(evaluation))
    if goes_by:
        moved = evaluation.importance_shift
        tail = "" if moved is None else f"; {moved:.0%} has moved to other inputs since its parent"
        said += ["", f"It goes by {goes_by}{tail}."]
    far = beyond.moved_inputs(evaluation)
    return [*said, f"Inputs are distributed otherwise than in training: {far}."] if far else said


# --- rebuild ------------------------------------------------------------------------------------------------------------------


def rebuild(args: argparse.Namespace, settings: Settings) -> int:
    """Exit 0 when the same bytes come out, 3 when anything is not as it was; the network and the models are not asked."""
    from truing.flows.erase_desk import excuse
    from truing.infra.catalog import chosen
    from truing.infra.past import past
    from truing.tasks.seal import digest

    problem, _ = chosen(settings.problems, args.problem)
    verdict = _verdict(past(settings, problem.name, user=args.user), args.version)
    begun = time.perf_counter()
    again = _again(settings, verdict)
    took = time.perf_counter() - begun
    about = f"{problem.name} version {args.version}"
    head = f"{about}: the same verdict, byte for byte ({verdict.outcome}), from {again.rows:,} rows and {again.parts} parts"
    if not again.same:
        head = f"{about}: not the verdict that was signed; {len(again.faults)} things are not as they were"
    lines = [f"{head}, in {took:.1f} s", *(f"  {fault}" for fault in again.faults)]
    if not again.same and (why := excuse(settings, digest(verdict))):
        lines.append(f"  {why}")
    if not again.same and again.made:
        lines.append("  it was made with " + ", ".join(f"{name} {version}" for name, version in again.made.items()))
    data = {
        "problem": problem.name, "version": args.version, "verdict": digest(verdict), "outcome": str(verdict.outcome),
        "same": again.same, "faults": list(again.faults), "parts": again.parts, "rows": again.rows, "made": again.made,
        "seconds": round(took, 2),
    }  # fmt: skip
    result(data, "\n".join(lines), as_json=args.json)
    return 0 if again.same else 3


def _again(settings: Settings, verdict: Verdict) -> Rebuilt:
    from truing.tasks.evaluation.kept import load
    from truing.tasks.evaluation.rebuild import rebuild as made_again
    from truing.tasks.seal import digest

    return made_again(load(settings.desk / "evidence" / digest(verdict)), verdict)


def proved(settings: Settings, problem: str, version: str, verdict: Verdict | None) -> list[Check]:
    """For `truing verify`: is the verdict that counts on a version the one that its evidence gives?

    Nothing is said where no evidence is kept below this desk (judged before evidence was kept) or this user may not look.
    """
    import os

    from truing.flows.erase_desk import excuse
    from truing.tasks.errors import TruingError
    from truing.tasks.release.proof import DIFFERS, OK, Check
    from truing.tasks.seal import digest

    folder = settings.desk / "evidence" / digest(verdict) if verdict else None
    if verdict is None or folder is None or not os.access(folder, os.R_OK | os.X_OK):
        return []
    about = f"version {version}"
    try:
        again = _again(settings, verdict)
    except TruingError as error:
        return [Check(about=about, name="evidence", state=DIFFERS, expected="the verdict's evidence", got=str(error))]
    if not again.same and (why := excuse(settings, digest(verdict))):
        return [Check(about=about, name="evidence", state=OK, note=why)]
    if not again.same:
        return [Check(about=about, name="evidence", state=DIFFERS, expected="the verdict that was signed", got=again.faults[0])]
    return [Check(about=about, name="evidence", state=OK, note=f"{again.rows:,} rows give the same verdict, byte for byte")]
