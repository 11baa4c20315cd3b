"""A verdict made again from its evidence alone: no network, no model, no content. The same bytes, or what is not as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from truing.tasks.errors import DataError
from truing.tasks.evaluation.kept import EVALUATION, MANIFEST, decoded, manifest, unpack
from truing.tasks.records import Evaluation, Record, Verdict
from truing.tasks.seal import canonical, digest


class Rebuilt(Record, frozen=True):
    """`same`: the verdict made again has the bytes of the signed one and every part is the one that was kept.

    `faults`: what is not as it was, by name; `parts`: how many were compared.
    """

    same: bool
    faults: tuple[str, ...]
    parts: int
    rows: int
    verdict: Verdict | None
    made: dict[str, str]


def rebuild(files: Mapping[str, bytes], signed: Verdict) -> Rebuilt:
    """Work evaluation and verdict out again from the evidence, and compare with what was signed, byte for byte."""
    faults: list[str] = []
    parts: dict[str, str] = {}
    try:
        kept = decoded(files, EVALUATION, Evaluation)
        if digest(msgspec.structs.replace(kept, digest="")) != signed.evaluation or kept.digest != signed.evaluation:
            faults.append(f"{EVALUATION}: expected the evaluation {signed.evaluation[:12]} that was signed, got another")
        named = decoded(files, MANIFEST, dict[str, str])
        if digest(named) != kept.evidence:
            faults.append(f"{MANIFEST}: expected {kept.evidence[:12]} as the evaluation names it, got {digest(named)[:12]}")
        parts = manifest(files)
        for name in sorted({*named, *parts}):
            if named.get(name) != parts.get(name):
                faults.append(f"{name}: expected {_short(named.get(name))}, got {_short(parts.get(name))}")
        case = unpack(files)
        if case.policy.digest != signed.policy:
            faults.append(f"policy: expected {signed.policy[:12]} that was signed, got {case.policy.digest[:12]}")
        evaluation, verdict = case.conclude()
    except DataError as error:
        faults.append(str(error))
        return Rebuilt(same=False, faults=tuple(dict.fromkeys(faults)), parts=len(parts), rows=0, verdict=None, made={})
    if canonical(verdict) != canonical(signed):
        faults += [f"verdict.{line}" for line in differing(signed, verdict)]
        faults += [f"evaluation.{line}" for line in differing(kept, evaluation)]
    return Rebuilt(
        same=not faults, faults=tuple(dict.fromkeys(faults)), parts=len(parts), rows=len(case.answers.ids), verdict=verdict,
        made=case.decision.made,
    )  # fmt: skip


def differing(expected: Record, got: Record) -> list[str]:
    """The fields in which two records differ, each with both values in short."""
    one, two = (msgspec.to_builtins(record) for record in (expected, got))
    return [f"{name}: expected {_brief(one[name])}, got {_brief(two.get(name))}" for name in one if one[name] != two.get(name)]


def _brief(value: Any) -> str:
    text = canonical(value).decode()
    return text if len(text) <= 40 else f"{text[:24]}… ({digest(value)[:12]})"


def _short(text: str | None) -> str:
    return "none" if text is None else text[:12]
