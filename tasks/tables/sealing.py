"""Which family of keys a subject's texts are sealed under: decided once, by the split."""

from __future__ import annotations

from truing.tasks.problem import Problem, split_of
from truing.tasks.records import Split


def family_of(subject: str, problem: Problem, salt: bytes) -> str:
    """A holdout subject's keys are in the vault only; `salt` parts subjects into splits."""
    return "holdout" if split_of(subject, salt, problem.splits) is Split.HOLDOUT else "trainable"
