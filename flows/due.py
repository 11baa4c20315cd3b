"""What is due for one problem, read from the audit's acts and the steward's book: pure, and the same after any crash.

Clocks decide nothing here: acts come in the order of the audit, releases in the order of their sequence.
"""

from __future__ import annotations

from truing.tasks.records import Outcome
from truing.tasks.release.acts import Docket
from truing.tasks.release.book import Book
from truing.tasks.seal import digest


def unjudged(docket: Docket, book: Book, problem: str, policy: str) -> list[str]:
    """Versions without a verdict that counts, oldest first: never judged, or overtaken by a release or a policy while open.

    A block is not tried again, nor is what a person turned down, what was released, or what is older than the last release.
    """
    released = {(one.version, one.payload) for one in book.releases(problem)}
    serving, last = book.champion(problem), book.last(problem)
    since = docket.versions[last.release.version].n if last and last.release.version in docket.versions else 0
    found = []
    for registered in sorted(docket.versions.values(), key=lambda each: each.n):
        if (registered.version, registered.payload) in released:
            continue
        judged, decision = book.verdict(problem, registered.payload), docket.decision(registered.version)
        if judged is None:
            found.append(registered.version)
            continue
        verdict = judged.verdict
        if verdict.outcome is Outcome.BLOCK or (decision and decision.approval.decision != "approved"):
            continue
        overtaken = verdict.champion != (serving.payload if serving else None)
        if registered.n > since and (overtaken or verdict.policy != policy):
            found.append(registered.version)
    return found


def waiting(docket: Docket, book: Book, problem: str) -> list[tuple[str, str]]:
    """(version, name of the act) for every approval that no release stands for yet, in the order in which they were given.

    With a standing approval also the versions nobody decided on, newer than the last release and passed, by age.
    """
    done = {release.approval for release in book.releases(problem)}
    approved = [
        (word.n, version, word.line)
        for version, words in docket.decisions.items()
        if (word := words[-1]).approval.decision == "approved" and digest(word.approval) not in done
    ]
    found = [(version, line) for _, version, line in sorted(approved)]
    if docket.standing is None:
        return found
    last = book.last(problem)
    since = docket.versions[last.release.version].n if last and last.release.version in docket.versions else 0
    for registered in sorted(docket.versions.values(), key=lambda each: each.n):
        judged = book.verdict(problem, registered.payload)
        passed = judged is not None and judged.verdict.outcome is Outcome.PASS
        if passed and registered.n > since and docket.decision(registered.version) is None:
            found.append((registered.version, f"{docket.standing.line}/{registered.version}"))
    return found


def asked_back(docket: Docket, book: Book, problem: str) -> bool:
    """Has a person asked for a rollback that no release stands for yet?"""
    asked = docket.rollback
    return asked is not None and all(release.asked != asked.line for release in book.releases(problem))
