"""A repaired candidate beside the blocked one that it is to mend: the same clauses, both verdicts, for those who decide."""

from __future__ import annotations

import re
from typing import NamedTuple

from truing.tasks.evaluation.wording import AGAINST, amount, bounds, unit
from truing.tasks.records import Clause, Outcome, Verdict


class Side(NamedTuple):
    """One clause in both verdicts; None where one of them did not ask it."""

    name: str
    against: str
    before: Clause | None
    after: Clause | None


def sides(before: Verdict, after: Verdict | None) -> list[Side]:
    """Every clause of either verdict, in the order of the first one."""
    old = {(one.name, one.against): one for one in before.clauses}
    new = {(one.name, one.against): one for one in after.clauses} if after else {}
    return [Side(*key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new])]


def lines(before: Verdict, after: Verdict | None) -> list[tuple[str, ...]]:
    """Cells for a table: clause, against, limit, the blocked one's drop and outcome, the repaired one's."""
    found: list[tuple[str, ...]] = []
    for one in sides(before, after):
        known = one.before or one.after
        limit = f"{amount(known.limit, known.metric)}{unit(known.metric)}" if known else "–"
        found.append((one.name, AGAINST.get(one.against, one.against), limit, said(one.before), said(one.after)))
    return found


def said(one: Clause | None) -> str:
    """`block 28.7 (23.3 to 33.9)`: outcome and drop with its bounds."""
    if one is None:
        return "–"
    if one.delta.value is None:
        return str(one.outcome)
    return f"{one.outcome} {amount(one.delta.value, one.metric)} ({bounds(one)})"


def mended(description: str, version: str, note: str, before: Verdict, after: Verdict) -> str:
    """A repaired version's description: after outcome and next step, what was repaired, at what cost, and both verdicts.

    Only the clauses that blocked, or that say something else now, are set beside each other here. `note` is the trainer's.
    """
    shown = [
        one
        for one in sides(before, after)
        if one.before and (one.before.outcome is Outcome.BLOCK or (one.after and one.after.outcome is not one.before.outcome))
    ]
    table = [f"| Clause | Limit | Blocked version {plain(version)} | This repair |", "|---|---:|---:|---:|"]
    for one in shown:
        known = one.before or one.after
        if known is not None:
            name = plain(one.name) + ("" if one.against == "champion" else f" ({AGAINST.get(one.against, one.against)})")
            table.append(f"| {name} | {amount(known.limit, known.metric)} | {said(one.before)} | {said(one.after)} |")
    text = f"A repair of version {plain(version)}, which was {before.outcome.value}ed. The trainer on it: {plain(note)}."
    head, rest = description.split("\n\n")[:2], description.split("\n\n")[2:]
    return "\n\n".join([*head, text, "\n".join(table), *rest])


def plain(text: str) -> str:
    """What others wrote as plain words: nothing in it makes a table, a link or markup."""
    return " ".join(re.sub(r"[|`*_<>\[\]\\#~!]", " ", text).split())
