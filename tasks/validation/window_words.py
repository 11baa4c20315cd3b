"""What an expectation wants and what a window had, in plain words. Those not listed speak in their own type and kwargs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truing.tasks.validation.rules import BETWEEN, IN_SET, LENGTH, LENGTHS, NOT_IN_SET, NOT_NULL, NOT_REGEX, NULL, REGEX, TYPES

_NUMBERS = {
    "expect_column_mean_to_be_between": "a mean",
    "expect_column_median_to_be_between": "a median",
    "expect_column_stdev_to_be_between": "a standard deviation",
    "expect_column_min_to_be_between": "a smallest value",
    "expect_column_max_to_be_between": "a largest value",
    "expect_column_sum_to_be_between": "a sum",
}
_SHARES = {
    "expect_column_proportion_of_non_null_values_to_be_between": "given values",
    "expect_column_proportion_of_unique_values_to_be_between": "values that occur once",
}
_COUNTS = {
    "expect_table_row_count_to_be_between": "rows",
    "expect_column_unique_value_count_to_be_between": "different values",
}
_TYPES = {"int": "a whole number", "float": "a number", "str": "a text"}
QUANTILES = "expect_column_quantile_values_to_be_between"
DIVERGENCE = "expect_column_kl_divergence_to_be_less_than"


def wanted(kind: str, kwargs: Mapping[str, Any]) -> str:
    """What comes after "expected"."""
    mostly = float(kwargs.get("mostly", 1))
    text = _wanted(kind, kwargs)
    return text if mostly >= 1 else f"{text} in at least {mostly:.4g} of the rows"


def _wanted(kind: str, kwargs: Mapping[str, Any]) -> str:
    if kind in _NUMBERS:
        return f"{_NUMBERS[kind]} {_range(kwargs)}"
    if kind in _SHARES:
        return f"a share of {_SHARES[kind]} {_range(kwargs)}"
    if kind in _COUNTS:
        return f"{_range(kwargs)} {_COUNTS[kind]}".removeprefix("of ")
    if kind == BETWEEN:
        return f"values {_range(kwargs)}"
    if kind == LENGTHS:
        return f"texts {_range(kwargs)} characters"
    if kind == LENGTH:
        return f"texts of {kwargs.get('value')} characters"
    if kind == QUANTILES:
        asked = kwargs.get("quantile_ranges", {})
        pairs = zip(asked.get("quantiles", ()), asked.get("value_ranges", ()), strict=False)
        return ", ".join(
            f"quantile {share:g} {_range(dict(zip(('min_value', 'max_value'), ends, strict=False)))}" for share, ends in pairs
        )
    if kind == DIVERGENCE:
        return f"the profiled mix of values (divergence at most {kwargs.get('threshold', 0):g})"
    if kind in TYPES:
        return " or ".join(_TYPES.get(name, name) for name in kwargs.get("type_list") or [str(kwargs.get("type_"))])
    plain = {
        NOT_NULL: "a value", NULL: "no value", IN_SET: "one of its listed values", NOT_IN_SET: "none of the excluded values",
        REGEX: f"a match of {kwargs.get('regex')}", NOT_REGEX: f"no match of {kwargs.get('regex')}",
    }  # fmt: skip
    if kind in plain:
        return plain[kind]
    said = ", ".join(f"{k} {_short(v)}" for k, v in kwargs.items() if k != "mostly")
    return kind.removeprefix("expect_").removeprefix("column_").replace("_", " ") + (f" ({said})" if said else "")


def observed(kind: str, result: Mapping[str, Any], success: bool, *, mostly: float = 1.0) -> str:
    """What comes after "got"; "" when the failing rows say it all. Of `mostly` below 1 the share of rows that hold."""
    if not result and not success:
        return "nothing: it could not be computed on this column"
    value = result.get("observed_value")
    if value is None and (share := result.get("unexpected_percent_nonmissing", result.get("unexpected_percent"))) is not None:
        return "" if success or mostly >= 1 else f"{(100 - share) / 100:.3g}"
    if isinstance(value, Mapping) and "values" in value:  # quantiles
        return ", ".join(_short(one) for one in value["values"])
    if value is None:
        return "" if success else "none"
    return _short(value)


def _range(kwargs: Mapping[str, Any]) -> str:
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    above, below = kwargs.get("strict_min"), kwargs.get("strict_max")
    if low is not None and high is not None and not above and not below:
        return f"of {_short(low)} to {_short(high)}"
    ends = [f"{'above' if above else 'at least'} {_short(low)}"] if low is not None else []
    ends += [f"{'below' if below else 'at most'} {_short(high)}"] if high is not None else []
    return "of " + (" and ".join(ends) or "any size")


def _short(value: Any) -> str:
    """A number with four digits that count, anything else cut to one short line."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = " ".join(str(value).split())
        return text if len(text) <= 80 else text[:79] + "…"
    if abs(value) < 1e7 and float(value).is_integer():
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}" if abs(value) < 1e12 else f"{value:.4g}"
