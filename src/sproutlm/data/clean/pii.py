"""Mask what names a person: e-mail addresses, public IPv4 addresses, Chinese mobile and identity numbers; counted."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections import Counter
from collections.abc import Callable

from ...config.clean import PiiStep

# ASCII classes throughout: an address stands between Chinese characters without a space, and \b and \w would take
# those for a part of it.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_IP = re.compile(r"(?<![0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\.?[0-9])")
# Not inside a longer number, nor behind a decimal point: 3.13912345678 is no telephone.
_PHONE = re.compile(
    r"(?<![0-9.])(?:(?:\+|00)86[ -]?|(?<![0-9])86-)?1[3-9][0-9]([ -]?)[0-9]{4}\1[0-9]{4}(?![0-9]|\.[0-9])"
)
_ID = re.compile(r"(?<![0-9A-Za-z])[1-8][0-9]{16}[0-9Xx](?![0-9A-Za-z])")
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def is_identity_number(number: str) -> bool:
    """Whether 18 characters are a Chinese identity number (GB 11643): a birth date and the right check digit."""
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    rest = sum(int(digit) * weight for digit, weight in zip(number[:17], _ID_WEIGHTS, strict=True)) % 11
    return 1850 < born.year < 2100 and number[17].upper() == "10X98765432"[rest]


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def mask(text: str, step: PiiStep, counts: Counter[str]) -> str:
    """``text`` with the step's texts in place of what it masks; each kind is counted in ``counts``."""
    if "@" in text:
        text = _replace(text, _EMAIL, step.email, "email", counts)
    # A look for digits first: most text has none, and the patterns cost more than the look.
    if _DIGITS.search(text):
        text = _replace(text, _ID, step.id_number, "id_number", counts, is_identity_number)
        text = _replace(text, _PHONE, step.phone, "phone", counts)
        text = _replace(text, _IP, step.ip, "ip", counts, _is_public)
    return text


_DIGITS = re.compile(r"[0-9]{3}|[0-9]\.[0-9]")


def _replace(
    text: str,
    pattern: re.Pattern[str],
    written: str | None,
    kind: str,
    counts: Counter[str],
    holds: Callable[[str], bool] = lambda found: True,
) -> str:
    if written is None:
        return text

    def put(match: re.Match[str]) -> str:
        if not holds(match[0]):
            return match[0]
        counts[kind] += 1
        return written

    return pattern.sub(put, text)
