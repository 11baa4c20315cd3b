"""A problem is data: `problems/<name>/problem.toml`. What the model reads, what it answers, who may judge it."""

from __future__ import annotations

import hashlib
import itertools
import re
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from truing.tasks.errors import ProblemError
from truing.tasks.records import Record, Split

UNKNOWN = "unknown"
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h|d)$")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

T = TypeVar("T")


class Input(Record, frozen=True):
    """One column the model reads. Categories not seen in the trusted rows are encoded as unknown."""

    type: Literal["number", "category"]
    min: float | None = None
    max: float | None = None
    values: tuple[str, ...] | None = None
    optional: bool = False


class Group(Record, frozen=True):
    """A protected attribute: named buckets, or numeric edges that make buckets `<a`, `a-b`, `>=b`.

    `served`: it may stand among the inputs although it is protected. No encoder reads it there; thresholds by group may, where
    the policy allows them (`[repair] by_group_thresholds`).
    """

    values: tuple[str, ...] | None = None
    edges: tuple[float, ...] | None = None
    served: bool = False


class Source(Record, frozen=True):
    """A registered sender with a key of its own. `types` are the short event names it may send."""

    types: tuple[Literal["prediction", "outcome", "review", "attribute", "preference"], ...]
    split: Literal["trusted"] | None = None  # predictions of this source are vouched for by people


class Splits(Record, frozen=True):
    """Shares of subjects, by keyed hash. What is left is `train`."""

    holdout: float = 0.2
    validation: float = 0.1


class Cadence(Record, frozen=True):
    """When the loop turns: after this many newly labelled rows, or this long."""

    improve_after: int = 2000
    improve_every: str = "15m"
    curate_every: str = "1m"
    monitor_every: str = "1m"


class Maturity(Record, frozen=True):
    """How long after the question an outcome may judge, how long a token believes, how long credit waits."""

    outcome: str = "0s"
    token: str = "90d"  # noqa: S105 - a duration
    credit: str = "730d"


Run = Literal["ingest", "curate", "improve", "monitor"]  # what a message may ask for; never gate, release, rollback
Word = Literal["rating", "correction", "outcome", "review", "attribute", "interaction"]


class Parking(Record, frozen=True):
    """How words and predictions find one another. A type that is not named waits, and may be late, for `maturity.credit`.

    `wait`: how long a word that landed first waits for its prediction. `late`: how long after the question a word still
    counts, by the words' own times. `voices`: how many people's words count for one prediction, those who spoke first: its
    token proves that they may speak, not that they are different people.
    """

    wait: dict[Word, str] = msgspec.field(default_factory=dict)
    late: dict[Word, str] = msgspec.field(default_factory=dict)
    voices: int = 8


REDACTIONS: Final = ("email", "phone", "card", "iban", "ip")


class Redaction(Record, frozen=True):
    """What is replaced at the door, before anything is kept, in texts that people write: preferences, kinds of interactions,
    and the `inputs` named here. Inputs that are categories stay out of it unless named: the model answered to them as they
    were, and would learn something else. `custom` is {name: regex}, put as `[name]`.
    """

    kinds: tuple[Literal["email", "phone", "card", "iban", "ip"], ...] = REDACTIONS
    inputs: tuple[str, ...] = ()
    custom: dict[str, str] = msgspec.field(default_factory=dict)


class Problem(Record, frozen=True):
    """Everything that scopes one kept-true model. Durations are like `5s`, `15m`, `24h`, `90d`."""

    name: str
    kind: str
    label: str  # the head's name
    labels: tuple[str, ...]
    positive: str
    inputs: dict[str, Input]
    title: str = ""
    primary_metric: str = "brier"
    groups: dict[str, Group] = msgspec.field(default_factory=dict)
    sources: dict[str, Source] = msgspec.field(default_factory=dict)
    splits: Splits = Splits()
    cadence: Cadence = Cadence()
    maturity: Maturity = Maturity()
    parking: Parking = Parking()
    control: dict[Run, tuple[str, ...]] = msgspec.field(default_factory=dict)  # run → sources that may ask for it, too
    interactions: dict[str, float] = msgspec.field(default_factory=dict)  # kinds that confirm the answer → their least value
    redaction: Redaction = Redaction()
    retention: str = "24h"
    retrain: str = "30d"  # how long a model may go on with what a person taught it who was forgotten
    # protected attribute → input → what its values would be for somebody else: {"sex": {"relationship": {"Wife": "Husband"}}}
    counterfactual: dict[str, dict[str, dict[str, str]]] = msgspec.field(default_factory=dict)

    @property
    def unread(self) -> tuple[str, ...]:
        """Inputs that no encoder reads: protected attributes that are served for thresholds by group only."""
        return tuple(name for name in self.inputs if name in self.groups and self.groups[name].served)

    def wait_s(self, kind: str) -> float:
        """Seconds that a word of this type waits for its prediction."""
        return seconds(self.parking.wait.get(kind, self.maturity.credit))  # type: ignore[call-overload]

    def late_s(self, kind: str) -> float:
        """Seconds after the question in which a word of this type counts."""
        return seconds(self.parking.late.get(kind, self.maturity.credit))  # type: ignore[call-overload]

    def bucket(self, group: str, value: Any) -> str:
        """The bucket of a protected attribute's raw value; anything absent or unforeseen is `unknown`."""
        spec = self.groups[group]
        if value is None or value == "":
            return UNKNOWN
        if spec.edges:
            try:
                number = float(value)
            except (TypeError, ValueError):
                return UNKNOWN
            edges = spec.edges
            if number < edges[0]:
                return f"<{edges[0]:g}"
            for low, high in itertools.pairwise(edges):
                if low <= number < high:
                    return f"{low:g}-{high:g}"
            return f">={edges[-1]:g}"
        return str(value) if spec.values and str(value) in spec.values else UNKNOWN

    def buckets(self, raw: dict[str, Any]) -> dict[str, str]:
        """All protected attributes of one row as buckets."""
        return {name: self.bucket(name, raw.get(name)) for name in self.groups}


def seconds(duration: str) -> float:
    """`90d` → 7776000.0. Raises ProblemError on anything else than number + s, m, h or d."""
    match = _DURATION.match(duration)
    if not match:
        raise ProblemError(f"expected a duration like 30s, 15m, 24h or 90d, got {duration!r}; write number and unit")
    return float(match[1]) * _SECONDS[match[2]]


def split_of(subject: str, salt: bytes, splits: Splits) -> Split:
    """Where a subject's rows belong: a keyed hash, so nobody outside can choose it, and the same for ever."""
    point = int.from_bytes(hashlib.blake2b(subject.encode(), key=salt[:64], digest_size=8).digest(), "big") / 2**64
    if point < splits.holdout:
        return Split.HOLDOUT
    if point < splits.holdout + splits.validation:
        return Split.VALIDATION
    return Split.TRAIN


def read_toml(path: Path, kind: type[T]) -> T:
    """A TOML file as a record. Raises ProblemError: file, key, expected, got."""
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except FileNotFoundError:
        raise ProblemError(f"{path}: expected a file, found none; run `truing init` or name another problem") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProblemError(f"{path}: expected TOML, got {error}; mend that line") from None
    except OSError as error:
        raise ProblemError(f"{path}: can't be read ({error.strerror}); check its permissions") from None
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        where = str(error)
        message, _, at = where.partition(" - at `$")
        key = at.rstrip("`").lstrip(".") or "the top level"
        raise ProblemError(f"{path}: {key}: {message[:1].lower() + message[1:]}; mend that key") from None


def load_problem(folder: Path) -> Problem:
    """`folder/problem.toml`, checked beyond types. Raises ProblemError."""
    path = folder / "problem.toml"
    problem = read_toml(path, Problem)
    if problem.name != folder.name:
        raise ProblemError(f"{path}: name: expected {folder.name!r} like its folder, got {problem.name!r}; rename one of them")
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", problem.name):
        raise ProblemError(f"{path}: name: expected a-z, 0-9, - and _, got {problem.name!r}; rename the folder and the key")
    if len(problem.labels) < 2 or len(set(problem.labels)) != len(problem.labels):
        raise ProblemError(f"{path}: labels: expected two or more different labels, got {list(problem.labels)}; list each once")
    if problem.positive not in problem.labels:
        raise ProblemError(f"{path}: positive: expected one of {list(problem.labels)}, got {problem.positive!r}")
    if not problem.inputs:
        raise ProblemError(f"{path}: inputs: expected at least one column, got none; add [inputs]")
    both = sorted(set(problem.inputs) & set(problem.groups))
    for name, group in problem.groups.items():
        if bool(group.values) == bool(group.edges):
            raise ProblemError(f"{path}: groups.{name}: expected values or edges, got {'both' if group.values else 'neither'}")
        if group.edges and list(group.edges) != sorted(set(group.edges)):
            raise ProblemError(f"{path}: groups.{name}.edges: expected rising numbers, got {list(group.edges)}")
    if any(problem.groups[name].values and not problem.groups[name].served for name in both):
        raise ProblemError(
            f"{path}: inputs: {both} are protected groups; expected them in [groups] only, not in [inputs], or marked served"
        )
    for name, beside in problem.counterfactual.items():
        if name not in problem.groups:
            raise ProblemError(f"{path}: counterfactual: expected groups of {sorted(problem.groups)}, got {name!r}; rename it")
        strange = sorted(
            column for column in beside if column not in problem.inputs or problem.inputs[column].type != "category"
        )
        if strange:
            raise ProblemError(f"{path}: counterfactual.{name}: expected inputs that are categories, got {strange}; drop them")
    if not 0 < problem.splits.holdout < 1 or not 0 < problem.splits.validation < 1 - problem.splits.holdout:
        raise ProblemError(f"{path}: splits: expected shares above 0 that leave room for train, got {problem.splits}")
    for section in (problem.cadence, problem.maturity):
        for field in section.__struct_fields__:
            value = getattr(section, field)
            if isinstance(value, str):
                try:
                    seconds(value)
                except ProblemError as error:
                    raise ProblemError(f"{path}: {field}: {error}") from None
    _check_parking(path, problem)
    _check_redaction(path, problem)
    return problem


def _check_redaction(path: Path, problem: Problem) -> None:
    rules = problem.redaction
    strange = sorted(set(rules.inputs) - set(problem.inputs))
    if strange:
        raise ProblemError(f"{path}: redaction.inputs: expected inputs of {sorted(problem.inputs)}, got {strange}; drop them")
    for name, pattern in rules.custom.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", name):
            raise ProblemError(f"{path}: redaction.custom: expected names of a-z, 0-9, - and _, got {name!r}; rename it")
        try:
            empty = re.compile(pattern).match("")
        except re.error as error:
            raise ProblemError(f"{path}: redaction.custom.{name}: expected a regex, got {pattern!r}; {error}") from None
        if empty is not None:
            raise ProblemError(f"{path}: redaction.custom.{name}: expected to match some text, got {pattern!r}; mend it")
    for key in ("retention", "retrain"):
        try:
            seconds(getattr(problem, key))
        except ProblemError as error:
            raise ProblemError(f"{path}: {key}: {error}") from None


def _check_parking(path: Path, problem: Problem) -> None:
    for name, given in (("wait", problem.parking.wait), ("late", problem.parking.late)):
        for kind, duration in given.items():
            where = f"{path}: parking.{name}.{kind}"
            try:
                span = seconds(duration)
            except ProblemError as error:
                raise ProblemError(f"{where}: {error}") from None
            if span > seconds(problem.maturity.credit):
                raise ProblemError(
                    f"{where}: expected at most maturity.credit ({problem.maturity.credit}), got {duration}; shorten it"
                )
    for run, names in problem.control.items():
        if strange := sorted(set(names) - set(problem.sources)):
            known = ", ".join(sorted(problem.sources)) or "none"
            raise ProblemError(f"{path}: control.{run}: expected sources out of {known}, got {strange}; register them")
    if problem.parking.voices < 1:
        raise ProblemError(f"{path}: parking.voices: expected at least 1, got {problem.parking.voices}; raise it")
