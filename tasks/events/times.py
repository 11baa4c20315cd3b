"""Times of many messages at once: RFC 3339 as nearly all write it, `2026-11-23T03:40:00.123456Z`, read by numpy."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from truing.tasks.contract import TIME

CHARS = 27  # of a time as nearly all write it
_SIGNS = {4: "-", 7: "-", 10: "T", 13: ":", 16: ":", 19: ".", 26: "Z"}
_FIELDS = {"year": (0, 4), "month": (5, 7), "day": (8, 10), "hour": (11, 13), "minute": (14, 16), "second": (17, 19)}


def unix_times(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Unix seconds, bit for bit what `datetime.timestamp` says; NaN for what is no time with a zone."""
    found = np.full(len(texts), np.nan)
    if set(map(len, texts)) == {CHARS} and (joined := "".join(texts)).isascii():
        found = usual_times(np.frombuffer(joined.encode(), np.uint8).reshape(-1, CHARS))
    elif usual := [n for n, text in enumerate(texts) if len(text) == CHARS and text.isascii()]:
        found[usual] = usual_times(np.frombuffer("".join([texts[n] for n in usual]).encode(), np.uint8).reshape(-1, CHARS))
    for n in np.flatnonzero(np.isnan(found)).tolist():
        found[n] = _single(texts[n])
    return found


def _single(text: str) -> float:
    try:
        return float(msgspec.convert(text, TIME).timestamp())
    except (msgspec.ValidationError, OverflowError, ValueError):
        return float("nan")


def usual_times(chars: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Rows of 27 characters → Unix seconds; NaN where one is out of its range."""
    chars = np.ascontiguousarray(chars.T)
    sure = np.ones(chars.shape[1], bool)
    for at, sign in _SIGNS.items():
        sure &= chars[at] == ord(sign)
    digits = chars - np.uint8(ord("0"))  # what is no digit wraps around to more than 9
    for start, stop in (*_FIELDS.values(), (20, 26)):
        sure &= digits[start:stop].max(axis=0) <= 9
    digits[:, ~sure] = 1  # 1111-11-11, out of the way of what follows
    field = {name: _number(digits[start:stop]) for name, (start, stop) in _FIELDS.items()}
    months = (field["year"] - 1970) * 12 + field["month"] - 1
    first = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    following = (months + 1).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    sure &= (field["year"] >= 1) & (field["month"] >= 1) & (field["month"] <= 12)
    sure &= (field["day"] >= 1) & (field["day"] <= following - first)
    sure &= (field["hour"] <= 23) & (field["minute"] <= 59) & (field["second"] <= 59)
    seconds = ((first + field["day"] - 1) * 24 + field["hour"]) * 3600 + field["minute"] * 60 + field["second"]
    return np.where(sure, (seconds * 1_000_000 + _number(digits[20:26])) / 1e6, np.nan)


def _number(digits: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    value = np.zeros(digits.shape[1], np.int64)
    for place in digits:
        value = value * 10 + place
    return value
