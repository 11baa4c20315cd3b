"""Two real models on Adult as a population for the gate: eight groups (sex × age), real churn, exact true drops.

Two gradient-boosted models learn from overlapping samples; what they answer on the 30,000 people that neither has seen is the
population that data sets are drawn from. Which of both is called champion is decided row by row by a coin, so that every true
drop of an equal candidate is exactly zero while the rows on which they disagree are the real ones.
"""

from __future__ import annotations

import eight_groups as eight
import msgspec
import numpy as np
from eight_groups import Floats, Harm

from truing.flows.demo.adult import NUMBERS, read_adult
from truing.tasks.policy import Policy

AGES = (30.0, 45.0, 60.0)
NAMES = tuple(f"{sex}, {age}" for sex in ("women", "men") for age in ("under 30", "30 to 44", "45 to 59", "60 and older"))
LEARNED = 18_000  # people of whom each model sees two thirds


def population(seed: int = 0) -> Floats:
    """P(group, truth, champion's answer, candidate's answer), (8, 2, 2, 2), of an equal candidate."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.preprocessing import OrdinalEncoder

    people = read_adult()
    names = [name for name in people[0] if name != "income"]
    words = [name for name in names if name not in NUMBERS]
    numbers = np.array([[one[name] for name in names if name in NUMBERS] for one in people], dtype=float)
    codes = OrdinalEncoder().fit_transform([[str(one[name]) for name in words] for one in people])
    x, y = np.hstack([numbers, codes]), np.array([">50K" in one["income"] for one in people])
    group = np.digitize([one["age"] for one in people], AGES) + 4 * np.array([one["sex"] == "Male" for one in people])
    order = np.random.default_rng(seed).permutation(len(y))
    unseen, part = order[LEARNED:], LEARNED // 3
    answers = [
        HistGradientBoostingClassifier(random_state=seed).fit(x[order[some]], y[order[some]]).predict(x[unseen])
        for some in (slice(0, 2 * part), slice(part, LEARNED))
    ]
    table = np.zeros((8, 2, 2, 2))
    np.add.at(table, (group[unseen], y[unseen].astype(int), answers[0].astype(int), answers[1].astype(int)), 1.0)
    return np.asarray((table + table.transpose(0, 1, 3, 2)) / 2.0 / len(unseen))


def harmed(table: Floats, harm: Harm) -> Floats:
    found = table.copy()
    eight.plant(found[eight.GROUPS.index(harm.group)], harm)
    return found


def policy(table: Floats) -> Policy:
    """The 32 clauses; accuracy decides in groups of at least 10 %, TPR where their positives are at least 1.5 % of all rows."""
    rows, positives = table.sum(axis=(1, 2, 3)), table[:, 1].sum(axis=(1, 2))
    clauses = []
    for one in eight.clauses():
        g = eight.GROUPS.index(one.slice[-1])
        enough = rows[g] >= eight.DECIDING_FROM and (one.metric == "accuracy" or positives[g] >= 0.015)
        clauses.append(msgspec.structs.replace(one, deciding=bool(one.metric in ("accuracy", "tpr") and enough)))
    return msgspec.structs.replace(eight.policy(), clause=tuple(clauses))
