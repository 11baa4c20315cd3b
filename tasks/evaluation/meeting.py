"""Two versions that were judged on different days, compared on the rows on which both were asked: from their stored answers.

No model is asked again and no row is looked at that no verdict was made of. Labels are the newer verdict's.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from truing.tasks.evaluation.answers import Answers
from truing.tasks.evaluation.comparison import assess
from truing.tasks.evaluation.kept import Case
from truing.tasks.records import Evaluation
from truing.tasks.statistics.paired import Codes


def meet(old: Case, new: Case) -> Evaluation | None:
    """The newer candidate against the older one as its champion, on the rows of both.

    None where they share no row, or where either's labels are a sample: its weights hold for its own pool only.
    """
    if old.answers.weights is not None or new.answers.weights is not None or old.problem.name != new.problem.name:
        return None
    known = {id: at for at, id in enumerate(old.answers.ids)}
    rows = np.array([at for at, id in enumerate(new.answers.ids) if id in known], dtype=np.int64)
    if not len(rows):
        return None
    there = np.array([known[new.answers.ids[at]] for at in rows], dtype=np.int64)
    return assess(_together(old.answers, new.answers, there, rows), new.problem, new.policy)[0]


def _together(old: Answers, new: Answers, there: Codes, rows: Codes) -> Answers:
    """The rows `rows` of the newer answers, which are the rows `there` of the older ones."""
    payloads = {"candidate": new.facts.payloads["candidate"], "champion": old.facts.payloads["candidate"]}
    return replace(
        new,
        ids=[new.ids[at] for at in rows],
        subjects=new.subjects[rows],
        groups=[new.groups[at] for at in rows],
        positive=new.positive[rows],
        judged=new.judged[rows],
        due=new.due[rows],
        held=new.held[rows],
        probability={"candidate": new.probability["candidate"][rows], "champion": old.probability["candidate"][there]},
        label={"candidate": new.label["candidate"][rows], "champion": old.label["candidate"][there]},
        facts=msgspec.structs.replace(new.facts, payloads=payloads, found=(), coverage=None),
        found=[],
    )
