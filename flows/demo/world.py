"""The outside world of the demo and of its benchmark: who asks, what becomes true, what people say. Data only, seeded.

The people are Adult's. 2,000 of them are the history that the owner vouches for; a further share, all of holdout subjects,
are past cases loaded by the backfill source; the rest come as traffic in rounds, holdout subjects among them. Every row that
judges (holdout) or chooses (validation) is followed up until its outcome is known, of the others a share. Beside that, users of
the service speak up: they rate an answer they think right and correct one they think wrong, and err now and then.

In one round some of the users are hostile: when a woman in truth earns above 50,000 they correct it to "<=50K", on that round's
cases and on those of earlier rounds that they still hold a token for. On all other cases they behave like everybody else, so
neither their number of votes nor their agreement with others on men gives them away. The outcome source is never poisoned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from truing.flows.demo.adult import subject
from truing.tasks.errors import DataError
from truing.tasks.problem import Problem, split_of
from truing.tasks.records import Split


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How much of everything. Shares are 0..1. The defaults come from simulations of whole demos (benchmark loop_gain)."""

    trusted: int = 2_000
    backfill: int = 12_000  # past cases of holdout subjects, outcomes known
    rounds: int = 4
    round_size: int = 5_000
    poisoned: int = 3  # which round; 0 = none
    outcomes: float = 0.15  # share of the teachable rows whose outcome becomes known
    voices: float = 0.95  # share of all rows on which a user says something
    raters: int = 50
    lukewarm: float = 0.15  # share of users' words too faint to teach: a middling rating, or a low one without a label
    errors: float = 0.03  # share of users' words that take right for wrong, or wrong for right
    hostile: float = 0.9  # share of the users who turn hostile in the poisoned round
    revisit: float = 1.0  # share of women's positive cases of earlier rounds that hostile users come back to


class Case(NamedTuple):
    """One person before the model. `row` counts Adult's, `truth` what becomes true; `split` as the door will see it."""

    id: str
    row: int
    subject: str
    inputs: dict[str, Any]
    groups: dict[str, Any]
    truth: str
    split: Split


class Word(NamedTuple):
    """What comes back about a case: `kind` outcome, correction (then `label`) or rating (then `value` 0..1); `actor` None = the
    outcome source."""

    case: str
    kind: str
    actor: str | None
    label: str | None = None
    value: float | None = None


class World:
    """`door` is the keyed hash that subjects pass at the door (identity if none), `salt` the key of the split.

    Round r of `traffic` is 1 … rounds; one more follows, in which nothing is learned and the last release is measured.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        problem: Problem,
        scenario: Scenario,
        *,
        seed: int,
        salt: bytes,
        door: Callable[[str], str] = str,
    ) -> None:
        self.problem = problem
        self.scenario = scenario
        self.seed = seed
        self._rows = rows
        self._splits = [split_of(door(subject(i)), salt, problem.splits) for i in range(len(rows))]
        order = [int(i) for i in np.random.default_rng([seed, 0]).permutation(len(rows))]
        holdout = [i for i in order if self._splits[i] is Split.HOLDOUT]
        others = [i for i in order if self._splits[i] is not Split.HOLDOUT]
        past, vouched = holdout[: scenario.backfill], others[: scenario.trusted]
        taken = {*past, *vouched}
        rest = [i for i in order if i not in taken]
        # anew: in `order` the holdout subjects that are left all come last
        self._traffic = [rest[at] for at in np.random.default_rng([seed, 1 << 20]).permutation(len(rest))]
        wanted = (scenario.rounds + 1) * scenario.round_size
        if len(past) < scenario.backfill or len(vouched) < scenario.trusted or len(self._traffic) < wanted:
            raise DataError(
                f"expected {scenario.backfill} holdout, {scenario.trusted} trusted and {wanted} other rows, got {len(past)}, "
                f"{len(vouched)} and {len(self._traffic)}; ask for smaller rounds"
            )
        self.trusted = [self._case(i) for i in vouched]
        self.backfill = [self._case(i) for i in past]

    def traffic(self, number: int) -> list[Case]:
        """The cases of one round, 1 … rounds + 1."""
        size = self.scenario.round_size
        return [self._case(i) for i in self._traffic[(number - 1) * size : number * size]]

    def words(self, number: int, answers: Mapping[str, str]) -> list[Word]:
        """All that comes back after round `number`; `answers` are the labels served in it by case id.

        Outcomes first, then what users say. Hostile revisits concern cases of earlier rounds.
        """
        rules, rng = self.scenario, np.random.default_rng([self.seed, number])
        cases = self.traffic(number)
        draws = rng.random((len(cases), 5))
        raters = rng.integers(rules.raters, size=len(cases))
        outcomes, said = [], []
        for case, draw, rater in zip(cases, draws, raters, strict=True):
            if case.split in (Split.HOLDOUT, Split.VALIDATION) or draw[0] < rules.outcomes:
                outcomes.append(Word(case.id, "outcome", None, label=case.truth))
            if draw[1] < rules.voices and case.id in answers:
                said.append(self._word(case, answers[case.id], draw, int(rater), hostile=self._hostile(number, int(rater))))
        return outcomes + said + (self._revisits(number, rng) if number == rules.poisoned else [])

    def harmed(self, case: Case) -> bool:
        """Whether hostile users aim at this case: a woman who earns above 50,000."""
        return case.groups.get("sex") == "Female" and case.truth == self.problem.positive

    def _hostile(self, number: int, rater: int) -> bool:
        return number == self.scenario.poisoned and rater < self.scenario.hostile * self.scenario.raters

    def _word(self, case: Case, answer: str, draw: np.ndarray, rater: int, *, hostile: bool) -> Word:
        actor = f"user-{rater:03d}"
        if hostile and self.harmed(case):
            return Word(case.id, "correction", actor, label=self._other(case.truth))
        believed = case.truth if draw[2] >= self.scenario.errors else self._other(case.truth)
        faint = draw[3] < self.scenario.lukewarm
        if answer == believed:
            value = 0.55 + 0.2 * draw[4] if faint else 0.8 + 0.2 * draw[4]
            return Word(case.id, "rating", actor, value=round(float(value), 2))
        if faint:
            return Word(case.id, "rating", actor, value=round(float(0.4 * draw[4]), 2))
        return Word(case.id, "correction", actor, label=believed)

    def _revisits(self, number: int, rng: np.random.Generator) -> list[Word]:
        hostile = max(1, int(self.scenario.hostile * self.scenario.raters))
        earlier = [case for n in range(1, number) for case in self.traffic(n) if self.harmed(case)]
        return [
            Word(case.id, "correction", f"user-{int(rng.integers(hostile)):03d}", label=self._other(case.truth))
            for case in earlier
            if rng.random() < self.scenario.revisit
        ]

    def _other(self, label: str) -> str:
        return next(other for other in self.problem.labels if other != label)

    def _case(self, index: int) -> Case:
        row = self._rows[index]
        return Case(
            id=f"case-{index:05d}",
            row=index,
            subject=subject(index),
            inputs={name: row[name] for name in self.problem.inputs if row.get(name) is not None},
            groups={name: row[name] for name in self.problem.groups if row.get(name) is not None},
            truth=row[self.problem.label],
            split=self._splits[index],
        )
