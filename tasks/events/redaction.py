"""At the door: what names or finds a person in free text is replaced by what it was, before anything is kept.

    "write to anna＠exаmple.com or +49 171 2345678"  →  "write to [email] or [phone]"

Only texts that people write are read: preferences, interactions, and inputs that `[redaction] inputs` names. Categories stay as
they were served: a replaced category would teach the model something else than what it answered to.

Look-alikes are folded first (full-width and other scripts' digits and letters, Cyrillic and Greek homoglyphs, zero-width
characters, exotic spaces, dots and dashes) with a map back to the original characters. What has a checksum is checked (card:
Luhn, ISO/IEC 7812, and a known issuer's length; IBAN: ISO 13616 mod 97 and its country's length); phone numbers must look like
one, with a country code, an area code or a word like "tel", so that dates, prices and amounts stay.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from truing.tasks.problem import REDACTIONS, Problem

_Spans = Iterator[tuple[int, int]]

# --- what there is to find, in folded text; "\xa0" stands for every exotic space ----------------------------------------------

_S: Final = r"[ \xa0]"
_AT: Final = re.compile(rf"@|{_S}?[\[({{]{_S}?at{_S}?[\])}}]{_S}?", re.IGNORECASE)
_LOCAL: Final = re.compile(r"[\w!#$%&'*+/=?^`{|}~.-]+\xa0?$")
_DOMAIN: Final = re.compile(
    rf"\xa0?[\w-]{{1,63}}(?:(?:\xa0?\.\xa0?|{_S}?[\[({{]dot[\])}}]{_S}?)[\w-]{{1,63}}){{1,8}}", re.IGNORECASE
)
_CARD: Final = re.compile(r"(?<!\d)(?<!\d[.,])\d{3,}(?:[ \xa0.-]?\d{3,})*(?:[ \xa0.-]?\d{1,2})?(?!\d)")
_ISSUERS: Final = re.compile(
    r"4\d{12}(?:\d{3}){0,2}"  # 13, 16, 19
    r"|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11,16}|35(?:2[89]|[3-8]\d)\d{12,15}"
    r"|6(?:011|4[4-9]\d|5\d\d)\d{12,15}|62\d{14,17}|(?:50|5[6-9]|6[37])\d{11,17}"
)
_IBAN: Final = re.compile(rf"(?<![^\W_])[A-Z]{{2}}\d\d(?:{_S}?-?[A-Z0-9]){{11,30}}", re.IGNORECASE)
_COUNTRIES: Final = {  # length → countries, from SWIFT's registry of IBANs
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "DZ IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_LENGTHS: Final = {country: length for length, some in _COUNTRIES.items() for country in some.split()}
_IP4: Final = re.compile(
    r"(?<![\w.])(?<!v )(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)){3}(?![\d]|\.\d)"
)
_IP6: Final = re.compile(r"(?<![\w:.])[0-9a-f:]{2,39}(?:(?<=:)\d{1,3}(?:\.\d{1,3}){3})?(?![\w:]|\.\d)", re.IGNORECASE)
_DATE: Final = re.compile(r"\d{1,2}([./-])\d{1,2}\1\d{2,4}|\d{4}([./-])\d{1,2}\2\d{1,2}")
_P: Final = r"[ \xa0./()-]"
_PHONES: Final = (
    re.compile(
        rf"(?<![\w+.])(?:\+|(?<!\d[ \xa0])00(?=[1-9](?:{_P}{{0,2}}\d){{9}})){_P}{{0,2}}[1-9](?:{_P}{{0,3}}\d){{6,14}}(?!\d)"
    ),
    re.compile(r"(?<![\w.,])(?<!\d-)(?:1[ .-])?(?:\([2-9]\d\d\)[ \xa0]?|[2-9]\d\d[.-])[2-9]\d\d[ \xa0.-]\d{4}(?![\d-]|[.,]\d)"),
    re.compile(rf"(?<![\w,:+/-])(?<!\d[. ])\(?0[1-9]\d{{0,4}}\)?(?:{_P}{{1,3}}\d{{2,8}}){{1,5}}(?!\d|[.,:]\d)"),
    re.compile(r"(?<![\w.,:+/-])(?<!\d )0[1-9]\d{8,9}(?!\d|[.,:]\d)"),
)
_CUED: Final = re.compile(
    rf"\b(?:tel|telefon|telephone|telefono|phone|mobile|mob|cell|handy|fax|call|ring|whatsapp|signal|sms|text)"
    rf"(?:{_S}(?:me|us|is|at|on|no|nr|number)){{0,3}}[.:=#\s]{{0,3}}(\(?\d(?:{_P}{{0,2}}\d){{6,14}})(?!\d)",
    re.IGNORECASE,
)


def _emails(text: str) -> _Spans:
    for at in _AT.finditer(text):
        before = _LOCAL.search(text, max(0, at.start() - 64), at.start())
        after = _DOMAIN.match(text, at.end())
        if before is None or after is None:
            continue
        start, end = before.start(), after.end()
        while end > after.start() and not text[end - 1].isalnum():
            end -= 1
        last = re.split(r"[^\w-]", text[after.start() : end])[-1].removeprefix("xn--")
        if len(last) >= 2 and any(char.isalpha() for char in last):
            yield start, end


def _digits(text: str) -> str:
    return "".join(char for char in text if char.isdigit())


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: does the last digit check the others?"""
    odd = [int(char) for char in digits[-1::-2]]
    even = [2 * int(char) for char in digits[-2::-2]]
    return (sum(odd) + sum(n - 9 if n > 9 else n for n in even)) % 10 == 0


def _cards(text: str) -> _Spans:
    for found in _CARD.finditer(text):
        digits = _digits(found[0])
        if len(found[0]) == len(digits) + 1 and "." in found[0]:  # a decimal fraction
            continue
        if 13 <= len(digits) <= 19 and _ISSUERS.fullmatch(digits) and luhn(digits):
            yield found.span()
        elif len(digits) > 19 or (len(digits) > 13 and len(found[0]) > len(digits)):
            yield from _within(found[0], found.start())


def _within(text: str, offset: int) -> _Spans:
    """A card among other groups of digits: "invoice 1234 4111 1111 1111 1111 077"."""
    groups = [(one.start(), one.end()) for one in re.finditer(r"\d+", text)]
    for n, (start, _) in enumerate(groups):
        for _, end in groups[n : n + 6]:
            digits = _digits(text[start:end])
            if 13 <= len(digits) <= 19 and _ISSUERS.fullmatch(digits) and luhn(digits):
                yield offset + start, offset + end
                break


def _ibans(text: str) -> _Spans:
    for found in _IBAN.finditer(text):
        wanted = _LENGTHS.get(found[0][:2].upper())
        if wanted is None:
            continue
        places = [at for at in range(*found.span()) if text[at].isalnum()]
        if len(places) < int(wanted):
            continue
        end = places[int(wanted) - 1] + 1
        code = "".join(text[at] for at in places[: int(wanted)]).upper()
        if end < len(text) and text[end].isalnum():
            continue
        if code.isascii() and int("".join(str(int(char, 36)) for char in code[4:] + code[:4])) % 97 == 1:
            yield found.start(), end


def _addresses(text: str) -> _Spans:
    for found in _IP4.finditer(text):
        if not re.search(r"version\s*$", text[max(0, found.start() - 9) : found.start()], re.IGNORECASE):
            yield found.span()
    for found in _IP6.finditer(text):
        said = found[0]
        groups = [group for group in said.split(":") if group]
        if said.count(":") < 2 or len(groups) < 2 or not any(char.isdigit() for char in said):
            continue
        try:
            ipaddress.IPv6Address(said)
        except ValueError:
            continue
        yield found.span()


def _phones(text: str) -> _Spans:
    for pattern in _PHONES:
        for found in pattern.finditer(text):
            said = found[0]
            digits = len(_digits(said))
            if not 8 <= digits <= 17 or (pattern is _PHONES[2] and digits < 9) or _DATE.match(said.strip("( +")):
                continue
            if re.fullmatch(r"\+?\d{1,3}(?:\.\d{3})+", said):  # +12.345.678: a number with thousands
                continue
            opens = said.startswith("(") and ")" not in said  # a bracket around it, not around its area code
            yield found.start() + opens, found.end()
    for found in _CUED.finditer(text):
        if not _DATE.match(found[1]):
            yield found.span(1)


_FINDERS: Final[dict[str, Callable[[str], _Spans]]] = {
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "ip": _addresses,
    "phone": _phones,
}

# --- folding ------------------------------------------------------------------------------------------------------------------

_LOOKS_LIKE: Final = str.maketrans(
    "аеорсухіјѕһԁԛԝәАВЕКМНОРСТХЅІЈҮԌԚԜοναικρτυχϲεΑΒΕΖΗΙΚΜΝΟΡΤΥΧϹɡɑıℓ",
    "aeopcyxijshdqweABEKMHOPCTXSIJYGQWovaikptuxceABEZHIKMNOPTYXCgail",
)
_DOTS: Final = "。․｡‧∙⸱ꓸ"  # full stops of other scripts and leaders; full-width ones fold by NFKC
_AT_SIGNS: Final = "＠﹫"


def _folded(char: str) -> str:
    """What one character stands for: "" if it can't be seen, an ASCII look-alike where there is one."""
    category = unicodedata.category(char)
    if category == "Cf" or char in "\u034f\u115f\u1160\u3164\uffa0" or "\ufe00" <= char <= "\ufe0f" or char >= "\U000e0100":
        return ""
    if category == "Zs":
        return "\xa0"
    if category == "Pd" or char == "−":
        return "-"
    if char in _DOTS:
        return "."
    if category == "Nd":
        return str(unicodedata.digit(char))
    if category == "Mn":  # an accent laid over a letter: the letter alone still reads
        return ""
    return unicodedata.normalize("NFKC", char).translate(_LOOKS_LIKE)


class _Fold(dict[int, str]):
    """Code point → what it stands for; filled as characters come."""

    def __missing__(self, point: int) -> str:
        return self.setdefault(point, chr(point) if point < 128 else _folded(chr(point)))


_FOLD: Final = _Fold()


def _mapped(text: str) -> tuple[str, list[int]]:
    """The folded text, and for each of its characters the place of the original one."""
    out: list[str] = []
    places: list[int] = []
    for at, char in enumerate(text):
        for folded in _FOLD[ord(char)]:
            out.append(folded)
            places.append(at)
    return "".join(out), places


# --- the door -----------------------------------------------------------------------------------------------------------------

_SEVEN: Final = re.compile(r"\d(?:\D{0,3}\d){6}")  # digits of the shortest phone number
_DOTTED: Final = re.compile(r"\d\.\d+\.\d+\.\d")
_HEX: Final = re.compile(r"[0-9A-Fa-f]:[0-9A-Fa-f]{0,4}:")
_AROUND_AT: Final = re.compile(r"[\[({][ \xa0]?at[ \xa0]?[\])}]", re.IGNORECASE)
_CLEAN: Final = 8192  # short texts remembered as clean: categories come again and again
_APART: Final = "\0\0\0\0"  # more than may lie between the digits of one number
_FREE: Final = {"preference": ("prompt", "chosen", "rejected"), "interaction": ("kind",)}


def _suspicious(text: str) -> bool:
    """A quick look: can anything be in this folded text?"""
    return (
        "@" in text
        or _SEVEN.search(text) is not None
        or _DOTTED.search(text) is not None
        or (":" in text and _HEX.search(text) is not None)
        or (("(" in text or "[" in text or "{" in text) and _AROUND_AT.search(text) is not None)
    )


class Redactor:
    """What one problem's `[redaction]` asks for, compiled. `reads` are the event kinds that have text to look at."""

    def __init__(
        self, kinds: Sequence[str] = REDACTIONS, *, custom: Mapping[str, str] | None = None, inputs: Sequence[str] = ()
    ) -> None:
        self.kinds = tuple(kind for kind in _FINDERS if kind in kinds)
        self.custom = {name: re.compile(pattern) for name, pattern in (custom or {}).items()}
        self.inputs = tuple(inputs)
        found = bool(self.kinds or self.custom)
        self.reads: frozenset[str] = frozenset((*_FREE, *(("prediction",) if self.inputs else ())) if found else ())
        self._clean: set[str] = set()

    @classmethod
    def of(cls, problem: Problem) -> Redactor:
        rules = problem.redaction
        return cls(rules.kinds, custom=rules.custom, inputs=rules.inputs)

    def clean(self, texts: Collection[str]) -> bool:
        """True when there is surely nothing in any of them; else ask `text` about each."""
        whole = _APART.join(texts)
        return not self.custom and whole.isascii() and not _suspicious(whole)

    def text(self, text: str) -> str:
        """The text with everything found replaced by `[kind]`; the same object when there is nothing."""
        if text in self._clean:
            return text
        if text.isascii():
            if not self.custom and not _suspicious(text):
                return self._remember(text)
            folded, places = text, None
        else:
            folded = text.translate(_FOLD)
            if not self.custom and not _suspicious(folded):
                return self._remember(text)
            folded, places = _mapped(text)
        spans = sorted(self._spans(folded))
        if not spans:
            return self._remember(text)
        out: list[str] = []
        done = 0
        for start, end, kind in spans:
            if places is None:
                first, behind = start, end
            else:  # what can't be seen goes along
                first, behind = places[start], places[end] if end < len(places) else len(text)
            out += text[done:first], f"[{kind}]"
            done = behind
        return "".join((*out, text[done:]))

    def event(self, kind: str, raw: bytes, body: Any) -> bytes:
        """The raw `data` of one event with its texts redacted; the same object when nothing was found.

        `body` is `raw` decoded (a type of `contract`); decode again what comes back changed.
        """
        if kind not in self.reads:
            return raw
        if kind == "prediction":
            inputs = body.inputs
            clean = self._clean
            if all(
                value in clean or self.text(value) is value for name in self.inputs if type(value := inputs.get(name)) is str
            ):
                return raw
            whole = msgspec.json.decode(raw)
            found = whole["inputs"]
            whole["inputs"] = found | {name: self.text(found[name]) for name in self.inputs if type(found.get(name)) is str}
            return msgspec.json.encode(whole)
        fields = {name: getattr(body, name) for name in _FREE[kind]}
        changed = {name: new for name, old in fields.items() if (new := self.text(old)) is not old}
        return msgspec.json.encode(msgspec.json.decode(raw) | changed) if changed else raw

    def _spans(self, text: str) -> list[tuple[int, int, str]]:
        """What was found, without overlaps: custom rules first, then what is checked more strictly."""
        taken: list[tuple[int, int, str]] = []
        finders: list[tuple[str, Callable[[str], _Spans]]] = [
            *((name, _matches(pattern)) for name, pattern in self.custom.items()),
            *((kind, _FINDERS[kind]) for kind in self.kinds),
        ]
        for kind, find in finders:
            for start, end in find(text):
                if start < end and not any(start < other_end and other < end for other, other_end, _ in taken):
                    taken.append((start, end, kind))
        return taken

    def _remember(self, text: str) -> str:
        if len(text) <= 64:
            if len(self._clean) >= _CLEAN:
                self._clean.clear()
            self._clean.add(text)
        return text


def _matches(pattern: re.Pattern[str]) -> Callable[[str], _Spans]:
    return lambda text: (found.span() for found in pattern.finditer(text))
