"""`truing lineage --actor`, `--between`: asked of the lake's samples and the signed evaluations, answered in words."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

import msgspec

from truing.flows.cli.output import result, table

if TYPE_CHECKING:
    from truing.infra.past import Past
    from truing.infra.settings import Settings
    from truing.tasks.problem import Problem
    from truing.tasks.records import Estimate, Evaluation
    from truing.tasks.release.lineage import Family
    from truing.tasks.release.lineage_answers import Between, Change, Taught

SELECTED = "selection_rate"  # more of it is neither good nor bad
HASHED = re.compile(r"[0-9a-f]{32}")


# --- who taught ---------------------------------------------------------------------------------------------------------------


def actor(args: argparse.Namespace, settings: Settings, problem: Problem, found: Family) -> int:
    from truing.tasks.release.lineage_answers import learned_from

    name = hashed(settings, problem, args.actor)
    given, sent = _given(settings, problem, found, name)
    versions = learned_from(found, given)
    released = [one for one in versions if one.releases]
    data = {
        "problem": problem.name,
        "actor": name,
        "labels": sent,
        "versions": [msgspec.to_builtins(one) for one in versions],
        "released": [one.version for one in released],
    }
    shown = [
        (
            f"v{one.version}",
            one.state,
            ", ".join(map(str, one.releases)) or None,
            f"{one.taught.samples:,}" if one.through == one.version else f"through v{one.through}",
            f"{one.taught.weight:.2%}" if one.through == one.version else None,
            f"{one.taught.about:,}" if one.taught.about else None,
            f"{one.taught.erased:,}" if one.taught.erased else None,
        )
        for one in versions
    ]
    who = f"{problem.name}: {args.actor}" + (f" ({name})" if name != args.actor else "")
    if not versions:
        why = f"{sent:,} labels of theirs landed, none was taken into a dataset" if sent else "nothing of theirs is in the lake"
        text = f"{who}: no version learned from them; {why}"
    else:
        names = ", ".join(f"v{one.version}" for one in released) or "none"
        head = ("version", "state", "releases", "samples", "of its weight", "about them", "erased")
        text = f"{who}: released versions that learned from them: {names}\n{table(head, shown)}"
        if any(one.through != one.version for one in versions):
            text += "\nthrough: its own dataset holds nothing of theirs, but it was tuned from a version whose dataset does."
    result(data, text, as_json=args.json)
    return 0


def hashed(settings: Settings, problem: Problem, name: str) -> str:
    """The keyed hash of a person; 32 hex digits are taken as one. Raises Unavailable when this user can't read the salt."""
    from truing.infra.keys import keyring
    from truing.tasks.errors import Unavailable
    from truing.tasks.events.schema import pseudonym

    if HASHED.fullmatch(name):
        return name
    try:
        salt = keyring(settings).read("actor-salt")
    except Unavailable as error:
        raise Unavailable(f"--actor: expected a keyed hash (32 hex digits), for a name can't be hashed here: {error}") from None
    return pseudonym(salt, problem.name, name)


def _given(settings: Settings, problem: Problem, found: Family, name: str) -> tuple[dict[str, Taught], int]:
    """What the person gave to each dataset, and how many labels of theirs are the newest word on a row."""
    import polars as pl

    from truing.tasks.release.lineage_answers import Taught
    from truing.tasks.tables.lake import Lake

    lake = Lake(settings.lake)
    rows = lake.rows(problem.name)
    about = rows.filter(pl.col("subject") == name)["id"].to_list()
    samples = lake.read("samples", predicate=pl.col("problem") == problem.name)
    marked = samples.with_columns(theirs=(pl.col("actor") == name).fill_null(False), about=pl.col("row").is_in(about))
    each = marked.group_by("dataset").agg(
        samples=pl.col("theirs").sum(),
        weight=(pl.col("weight") * pl.col("theirs")).sum() / pl.col("weight").sum(),
        about=pl.col("about").sum(),
        rows=pl.col("row").filter(pl.col("theirs") | pl.col("about")),
    )
    gone = {one.taught.digest: set(one.taught.erased) for one in found.members if one.taught}
    given = {}
    for dataset, count, weight, mine, ids in each.iter_rows():
        if count or mine:
            erased = gone.get(dataset, set())
            missing = len(ids) if name in erased else len(erased & set(ids))
            given[dataset] = Taught(samples=int(count), weight=float(weight or 0.0), about=int(mine), erased=missing)
    return given, rows.filter(pl.col("actor") == name).height


# --- what changed -------------------------------------------------------------------------------------------------------------


def between(args: argparse.Namespace, settings: Settings, found: Family, known: Past) -> int:
    from truing.tasks.errors import DataError
    from truing.tasks.release.lineage_answers import changed

    old, new = (one.removeprefix("v") for one in args.between)
    for version in (old, new):
        if found.member(version) is None:
            names = ", ".join(one.version for one in found.members) or "none"
            raise DataError(f"--between: expected two of the versions {names}, got {version}; name another")
    samples = _samples(settings, found, (old, new))
    stored = _stored(settings, known, old, new)
    said = changed(found, old, new, evaluations=known.evaluations, samples=samples, stored=stored)
    result(msgspec.to_builtins(said), _told(found, said), as_json=args.json)
    return 0


def _stored(settings: Settings, known: Past, old: str, new: str) -> Evaluation | None:
    """Both on the rows on which both were asked, from the evidence of their verdicts, where it is kept and readable."""
    from truing.infra.past import evidence_of
    from truing.tasks.evaluation.meeting import meet

    cases = [evidence_of(settings, known.verdicts[one]) if one in known.verdicts else None for one in (old, new)]
    return meet(cases[0], cases[1]) if cases[0] is not None and cases[1] is not None else None


def _samples(settings: Settings, found: Family, versions: tuple[str, str]) -> dict[str, Any]:
    import polars as pl

    from truing.tasks.errors import TruingError
    from truing.tasks.tables.lake import Lake

    datasets = {one.version: one.dataset for one in found.members if one.version in versions and one.dataset}
    try:
        lines = Lake(settings.lake).read(
            "samples",
            columns=["dataset", "row", "target", "actor", "weight"],
            predicate=(pl.col("problem") == found.problem) & pl.col("dataset").is_in(list(datasets.values())),
        )
    except TruingError:
        return {}
    return {
        version: {row: (target, actor, weight) for row, target, actor, weight in part.drop("dataset").iter_rows()}
        for version, dataset in datasets.items()
        if (part := lines.filter(pl.col("dataset") == dataset)).height
    }


def _told(found: Family, said: Between) -> str:
    old, new = f"v{said.old}", f"v{said.new}"
    descent = (
        f"{new} descends from {old}: {' ← '.join(f'v{one}' for one in reversed(said.path))}"
        if said.path
        else (f"{new} does not descend from {old}")
    )
    parts = [f"{found.problem}: from {old} to {new}; {descent}"]
    if said.rows is not None:
        one = said.rows
        parts.append(
            f"Learned from {one.old:,} samples, then {one.new:,}: {one.added:,} added, {one.gone:,} gone, "
            f"{one.relabelled:,} with another label."
        )
    else:
        parts.append("Their samples are not both at hand.")
    for title, counts in (("rows by what became of them", said.reasons), ("samples by group", said.groups)):
        moved = [(name, f"{a:,}", f"{b:,}", f"{b - a:+,}") for name, (a, b) in counts.items() if a != b]
        if moved:
            parts.append(table((title, old, new, "change"), moved))
    raters = [(name[:12], f"{a:.2%}", f"{b:.2%}") for name, (a, b) in said.raters.items() if a != b]
    if raters:
        parts.append(table(("rater", old, new), raters))
    parts.append(_for_whom(said, old, new))
    inputs = sorted(said.importance.items(), key=lambda each: -abs(each[1][1] - each[1][0]))[:8]
    if inputs:
        parts.append(table(("input", old, new), [(name, f"{a:.1%}", f"{b:.1%}") for name, (a, b) in inputs]))
    if said.importance_shift is not None:
        parts.append(f"Importance shifted by {said.importance_shift:.1%} in all.")
    return "\n\n".join(parts)


def _for_whom(said: Between, old: str, new: str) -> str:

    if not said.changes:
        return "No evaluation of both is at hand, so nothing is known of quality."
    if not said.met:
        values = [_values(one) for one in said.changes if one.metric in ("accuracy", "tpr", "selection_rate")]
        text = table(("on", "metric", "rows", old, new), values)
        return (
            f"{text}\nThey were never judged on the same rows: each value is of its own day, and their difference says little."
        )
    sure = [one for one in said.changes if one.sure]
    kept = [*sorted(sure, key=lambda one: (one.metric, one.sure)), *(one for one in said.changes if _plain(one))]
    text = table(
        ("on", "metric", "rows", old, new, "gain (95 %)", ""), [(*_values(one), _gain(one), _word(one)) for one in kept]
    )
    verdicts = [
        f"{title}: {_people(found) or 'nobody for sure'}."
        for title, found in (
            ("Worse for", [one for one in sure if one.metric != SELECTED and one.sure < 0]),
            ("Better for", [one for one in sure if one.metric != SELECTED and one.sure > 0]),
            ("Answered positively more often", [one for one in sure if one.metric == SELECTED and one.sure > 0]),
            ("Answered positively less often", [one for one in sure if one.metric == SELECTED and one.sure < 0]),
        )
    ]
    chance = len(said.changes) * 0.05
    return (
        f"On the same rows{_how(said, new)}:\n{text}\n" + "\n".join(verdicts) + f"\n{len(said.changes)} slices and "
        f"metrics were looked at, 95 % each: about {chance:.0f} may seem sure by chance. The rest can't be told apart."
    )


def _how(said: Between, new: str) -> str:
    from truing.tasks.release.lineage_answers import STORED

    return ", by the answers stored with both verdicts" if said.met == STORED else f", as {said.met} of {new}"


def _plain(one: Change) -> bool:
    """Not sure, and of everyone: told all the same."""
    return one.slice == "all" and not one.sure


def _word(one: Change) -> str:
    words = ("", "more", "fewer") if one.metric == SELECTED else ("", "better", "worse")
    return words[one.sure]


def _people(changes: list[Change]) -> str:
    """`everyone (TPR), sex Female (TPR, FPR)`."""
    from truing.tasks.evaluation.slices import spoken
    from truing.tasks.evaluation.wording import SPOKEN

    metrics: dict[str, list[str]] = {}
    for one in sorted(changes, key=lambda one: (one.slice != "all", one.slice)):
        metrics.setdefault(one.slice, []).append(SPOKEN[one.metric])
    return ", ".join(f"{spoken(name)} ({', '.join(several)})" for name, several in metrics.items())


def _values(one: Change) -> tuple[str, str, str, str, str]:
    from truing.tasks.evaluation.slices import spoken
    from truing.tasks.evaluation.wording import SPOKEN, level

    return (
        spoken(one.slice), SPOKEN[one.metric], f"{one.n:,}", level(one.old.value, one.metric), level(one.new.value, one.metric)
    )  # fmt: skip


def _gain(one: Change) -> str:
    from truing.tasks.evaluation.wording import amount

    gain: Estimate | None = one.gain
    if gain is None or gain.value is None or gain.low is None or gain.high is None:
        return "–"
    low, high = amount(gain.low, one.metric), amount(gain.high, one.metric)
    return f"{amount(gain.value, one.metric, signed=True)} ({low} to {high})"
