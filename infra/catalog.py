"""The problems that this stack keeps true: every folder below `settings.problems` that holds a problem.toml."""

from __future__ import annotations

from pathlib import Path

from truing.tasks.errors import ProblemError
from truing.tasks.policy import Policy, load_policy
from truing.tasks.problem import Problem, load_problem


def catalog(folder: Path) -> dict[str, tuple[Problem, Policy]]:
    """All problems with their policies, by name. Raises ProblemError at the first that does not read, or if there are none."""
    try:
        found = sorted(path.parent for path in folder.glob("*/problem.toml"))
    except OSError as error:
        raise ProblemError(f"{folder}: can't be read ({error.strerror}); check its permissions") from None
    if not found:
        raise ProblemError(
            f"{folder}: expected <name>/problem.toml below it, found none; run `truing init` or set TRUING_PROBLEMS"
        )
    problems = {}
    for path in found:
        problem = load_problem(path)
        problems[problem.name] = (problem, load_policy(path, problem))
    return problems


def chosen(folder: Path, name: str | None) -> tuple[Problem, Policy]:
    """The problem of that name, or the only one there is. Raises ProblemError."""
    problems = catalog(folder)
    if name is None and len(problems) == 1:
        return next(iter(problems.values()))
    if name is None or name not in problems:
        raise ProblemError(f"--problem: expected one of {', '.join(problems)}, got {name or 'none'}; name one")
    return problems[name]
