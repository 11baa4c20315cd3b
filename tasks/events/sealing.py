"""Landed events under the keys of whom they speak of, before they are committed."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from truing.tasks.events.subjects import Subjects, day, owner
from truing.tasks.problem import Problem, split_of
from truing.tasks.records import Split


def seal_landing(frame: pl.DataFrame, keys: Subjects, problems: Mapping[str, Problem], *, salt: bytes) -> pl.DataFrame:
    """Rows of `landing` (schema LANDING, all of one commit) with `data` sealed for its owner; duplicates keep none.

    Call it within `subjects.commits`, so that nobody's key is destroyed before the rows are committed.
    """
    families: list[str] = []
    owners: list[str] = []
    texts: list[bytes] = []
    places: list[int] = []
    columns = ("disposition", "problem", "subject", "actor", "source", "landed_at", "data")
    for at, (disposition, problem, subject, actor, source, landed_at, data) in enumerate(frame.select(columns).iter_rows()):
        if disposition == "duplicate":
            continue
        if disposition == "dead":
            families.append("dead")
            owners.append(day(landed_at))
        else:
            families.append("vault" if subject is None else family_of(subject, problems[problem], salt))
            owners.append(owner(subject, actor, source))
        texts.append(data or b"")
        places.append(at)
    data = [b""] * frame.height
    for at, blob in zip(places, keys.seal_many(families, owners, texts), strict=True):
        data[at] = blob
    return frame.with_columns(pl.Series("data", data, dtype=pl.Binary))


def family_of(subject: str, problem: Problem, salt: bytes) -> str:
    """Under whose keys a subject's texts are sealed: a holdout subject's are in the vault only."""
    return "holdout" if split_of(subject, salt, problem.splits) is Split.HOLDOUT else "trainable"
