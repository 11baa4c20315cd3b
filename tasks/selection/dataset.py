"""A dataset version: exactly which rows, with which content and target, a candidate learned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec
import polars as pl

from truing.tasks.policy import Policy
from truing.tasks.problem import Problem
from truing.tasks.records import DatasetVersion
from truing.tasks.seal import digest

RATERS = 5  # how many of the most active actors are named (by their keyed hash)


def freeze(
    tagged: pl.DataFrame, *, problem: Problem, policy: Policy, tables: Mapping[str, int], seed: int
) -> tuple[DatasetVersion, pl.DataFrame]:
    """Tagged rows (see `quality.tag`) → the record and the kept rows, ordered by id.

    The digest covers what is learned: id, content hash, target and weight of every kept row, the selection rules and the seed.
    The Delta versions ride along in `tables` but not in the digest: a commit that teaches nothing makes no new dataset.
    `by_reason` counts all tagged rows, so it also says why the others were left out; `by_label` and `by_group` count the kept.
    """
    kept = tagged.filter(pl.col("keep")).sort("id")
    chosen = kept.select("id", "content_hash", "target", "weight")
    selection = digest(policy.selection)
    name = digest({"problem": problem.name, "samples": list(chosen.iter_rows()), "selection": selection, "seed": seed})
    decoder = msgspec.json.Decoder(dict[str, str])
    groups = Counter(
        f"{group}={bucket}" for buckets in kept["groups"] for group, bucket in decoder.decode(buckets or "{}").items()
    )
    raters = kept.filter(pl.col("actor").is_not_null()).group_by("actor").len().sort("len", "actor", descending=[True, False])
    return (
        DatasetVersion(
            digest=name,
            problem=problem.name,
            tables=dict(tables),
            samples=kept.height,
            by_reason=_counts(tagged["reason"]),
            by_label=_counts(kept["target"]),
            by_group=dict(sorted(groups.items())),
            raters={actor: count / kept.height for actor, count in raters.head(RATERS).iter_rows()},
            selection=selection,
            seed=seed,
        ),
        kept,
    )


def _counts(column: pl.Series) -> dict[str, int]:
    return dict(sorted((str(value), count) for value, count in Counter(column.to_list()).items()))
