"""What an evaluation says beyond its clauses, as lines for people: page, description and `truing gate explain` share them.

All amounts are in points (hundredths) with 95 % intervals; what was not measured gives no lines.
"""

from __future__ import annotations

from collections.abc import Mapping

from truing.tasks.evaluation.slices import spoken
from truing.tasks.evaluation.wording import amount, points, rows
from truing.tasks.records import Clause, Estimate, Evaluation, Outcome

Lines = list[tuple[str, ...]]

NAMES = {
    "demographic_parity_difference": "selection rates: highest − lowest",
    "demographic_parity_ratio": "selection rates: lowest ÷ highest",
    "equalized_odds_difference": "TPR or FPR: highest − lowest",
    "equalized_odds_ratio": "TPR or FPR: lowest ÷ highest",
    "error_difference": "error rates: highest − lowest",
}
WHY = {
    "audit": "labels are a random audit of all traffic, weighted by how likely each row was to be drawn",
    "plan": "labels were drawn where the models disagree, and weighted by how likely each row was to be drawn",
    "worst": "labels came only from those who gave one; every other row counts as the worst label there could be",
}


def disparities(evaluation: Evaluation) -> Lines:
    """(attribute, what, champion, candidate, change), attribute by attribute; a change above 0 is worse."""
    found: Lines = []
    for key, own in evaluation.indicators.items():
        name, _, rest = key.partition(":")
        group, _, side = rest.rpartition(":")
        if name not in NAMES or side != "candidate":
            continue
        other, change = (evaluation.indicators.get(f"{name}:{group}:{which}") for which in ("champion", "change"))
        show = share if name.endswith("_ratio") else points
        found.append(
            (group, NAMES[name], show(other) if other else "–", show(own), points(change, signed=True) if change else "–")
        )
    return found


def rankings(evaluation: Evaluation) -> Lines:
    """(slice, champion's AUROC, candidate's, drop, champion's ECE, candidate's)."""
    found: Lines = []
    for key, own in evaluation.indicators.items():
        if not key.startswith("auroc:") or not key.endswith(":candidate"):
            continue
        name = key.removeprefix("auroc:").removesuffix(":candidate")
        champion, drop, before, after = (
            evaluation.indicators.get(k)
            for k in (f"auroc:{name}:champion", f"auroc:{name}:drop", f"ece:{name}:champion", f"ece:{name}:candidate")
        )
        found.append(
            (
                spoken(name), _bare(champion), _bare(own), points(drop, signed=True) if drop else "–",
                _bare(before), points(after) if after else "–",
            )
        )  # fmt: skip
    return found


def swaps(evaluation: Evaluation) -> Lines:
    """(attribute or bucket, what happens, how much) when only who it is about is swapped."""
    found: Lines = []
    for key, one in evaluation.counterfactual.items():
        kind, _, name = key.partition(":")
        if kind == "flip":
            found.append((name, "answers that turn when it is swapped, per hundred", points(one)))
        elif kind == "shift":
            found.append((spoken(name), "mean change of the score as somebody else, in points", points(one, signed=True)))
    return found


def weights(evaluation: Evaluation, most: int = 8) -> list[tuple[str, float]]:
    """The inputs that the candidate goes by most, with their share (0..1) of the permutation importance."""
    return sorted(evaluation.importance.items(), key=lambda one: (-one[1], one[0]))[:most]


def moved_inputs(evaluation: Evaluation, least: float = 0.1) -> str:
    """Inputs whose distribution on the judging rows differs from the rows learned from, by PSI; "" if none does."""
    far = sorted(((v, k) for k, v in evaluation.shift.items() if v >= least), reverse=True)
    return ", ".join(f"{name} (PSI {value:.2f})" for value, name in far)


def evidence(evaluation: Evaluation) -> list[str]:
    """What the verdict rests on, a sentence each."""
    said = [f"{evaluation.n:,} holdout rows judged, {evaluation.coverage:.0%} of those due"]
    sample = evaluation.sampled
    if sample is not None:
        said.append(f"{WHY.get(sample.why, sample.why)}: {sample.labelled:,} labels for a pool of {sample.pool:,} rows")
        if sample.drawn:
            said.append(f"{sample.drawn:,} rows were drawn by chance, {sample.read:,} of them are read")
        if sample.unreachable:
            said.append(f"{sample.unreachable:,} rows nobody could have drawn count as the worst label there could be")
        if sample.twice:
            said.append(f"of {sample.twice:,} rows read by two reviewers they differed on {sample.differed / sample.twice:.1%}")
    said.append(f"look {evaluation.look} at this candidate, which is number {evaluation.looks} since the champion was released")
    if evaluation.unseen is not None:
        held = "every deciding clause passes" if evaluation.unseen.holds else "not every deciding clause passes"
        said.append(f"on the {evaluation.unseen.n:,} rows that no verdict had shown, {held}")
    return said


def wanted(clause: Clause, n: int) -> str:
    """How many rows an open clause asks for; "" where that is not known or not needed."""
    if clause.outcome is Outcome.PASS or clause.rows_needed is None:
        return ""
    return f"{rows(clause.rows_needed)} rows of the present mix ({n:,} are there)"


def facts(evaluation: Evaluation) -> Mapping[str, str]:
    """Short facts for the head of the page."""
    sample = evaluation.sampled
    kind = (
        "each counts once" if sample is None else {"audit": "random audit", "plan": "targeted audit"}.get(sample.why, "given")
    )
    found = {"labels": kind, "candidates so far": f"{evaluation.looks}"}
    if sample is not None and sample.twice:
        found["reviewers differ"] = f"{sample.differed / sample.twice:.1%}"
    return found


def share(one: Estimate) -> str:
    """A ratio with its interval: `0.82 (0.71 to 0.93)`."""
    if one.value is None:
        return "–"
    return f"{one.value:.2f}" + ("" if one.low is None or one.high is None else f" ({one.low:.2f} to {one.high:.2f})")


def _bare(one: Estimate | None) -> str:
    return "–" if one is None or one.value is None else amount(one.value, "tpr")
