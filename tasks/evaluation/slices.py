"""Which slices a problem is looked at in, and how they are called where people read."""

from __future__ import annotations

from collections.abc import Sequence

from truing.tasks.problem import Problem
from truing.tasks.statistics.cells import ALL, Bools, slice_masks


def known_buckets(problem: Problem) -> dict[str, list[str]]:
    """Every bucket that each protected attribute can have, `unknown` left out: group → buckets."""
    known: dict[str, list[str]] = {}
    for name, group in problem.groups.items():
        if group.values:
            known[name] = list(group.values)
        elif group.edges:
            points = [group.edges[0] - 1.0, *group.edges]
            known[name] = [problem.bucket(name, point) for point in points]
    return known


def slices_of(groups: Sequence[str | None], problem: Problem) -> dict[str, Bools]:
    """`all`, each bucket of each named group (empty or not), and `unknown` where a row is in it: name → mask (n,)."""
    masks = slice_masks(groups, known_buckets(problem))
    named = set(problem.groups)
    return {name: mask for name, mask in masks.items() if name == ALL or name.partition("=")[0] in named}


def spoken(name: str) -> str:
    """A slice as people say it: `sex=Female` → `sex Female`, `age=>=60` → `age ≥60`, `all` → `everyone`; others as they are."""
    if name == ALL:
        return "everyone"
    group, equals, bucket = name.partition("=")
    if not equals:
        return name
    return f"{group} {bucket.replace('>=', '≥')}"
