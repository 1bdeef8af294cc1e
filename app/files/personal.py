"""What looks like personal data in a text: e-mail addresses, card numbers, bank accounts, telephone numbers."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

SHOWN = 2
"""Characters that a finding quotes, to be found again by."""


class PersonalDatum(NamedTuple):
    """The first of a kind in a text."""

    kind: str
    message: str
    """What is wrong and what to do, to be read after the name of the field. Never quotes what was found in full."""


def find(text: str) -> Iterator[PersonalDatum]:
    """One of each kind. Fast for the usual text, which has none."""
    if "@" in text:
        yield from _first("an e-mail address", _EMAIL, _is_somebodys, text)
    if "+" in text:
        yield from _first("a telephone number", _PHONE, _can_be_dialled, text)
    if _has_long_number(text):
        yield from _first("the number of a card", _CARD, _is_card, text)
        yield from _first("the number of a bank account", _IBAN, _is_iban, text)


def _first(
    kind: str, pattern: re.Pattern[str], holds: Callable[[re.Match[str]], bool], text: str
) -> Iterator[PersonalDatum]:
    for match in pattern.finditer(text):
        if holds(match):
            yield PersonalDatum(
                kind,
                f"has what looks like {kind} ({match[0][:SHOWN]}…). Replace it by a made-up one, unless the model shall"
                " learn it.",
            )
            return


_EMAIL = re.compile(
    r"(?<![\w.+%-])(?P<local>[\w.+%-]{1,64})@(?P<domain>(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,5}[A-Za-z]{2,24})"
    r"(?![\w-])"
)
_RESERVED = re.compile(
    # RFC 2606 and 6761, and what documentation writes in their place.
    r"(?:^|\.)(?:example|test|invalid|localhost|local)$|(?:^|[.-])example(?:-[a-z]+)?\.[a-z]{2,6}(?:\.[a-z]{2})?$"
    r"|^(?:your|my|the|our|some)?-?(?:domain|company|business|website|site|email|mail|server|host|organization|provider"
    r"|test|foo|bar|xyz|abc|acme)\.(?:com|org|net|io)$",
    re.IGNORECASE,
)
_FILES = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp", "js", "css", "py"})


def _is_somebodys(match: re.Match[str]) -> bool:
    """No placeholder, no `logo@2x.png`, no login of an address (`git@`, `https://user:password@`)."""
    domain = match["domain"]
    before = match.string[max(0, match.start() - 64) : match.start()]
    return (
        not _RESERVED.search(domain)
        and domain.rpartition(".")[2].lower() not in _FILES
        and match["local"].lower() != "git"
        and not re.search(r"://\S*$", before)
    )


_DIGITS_AS_ZEROS = bytes(48 if chr(byte).isdigit() and byte < 128 else byte for byte in range(256))


def _has_long_number(text: str) -> bool:
    """Eight digits on end but for blanks and hyphens, as in each card number and each IBAN; in less than 1 µs."""
    return b"00000000" in text.encode(errors="replace").translate(_DIGITS_AS_ZEROS, b" -")


_CARD = re.compile(
    r"(?<![\w.,+-])(?:[2-6][0-9]{3}([ -]?)[0-9]{4}\1[0-9]{4}\1[0-9]{4}"
    r"|3[0-9]{3}([ -]?)[0-9]{6}\2[0-9]{4,5})(?![\w-]|[.,][0-9])"
)
_ISSUERS = re.compile(
    # ISO/IEC 7812's ranges of Visa, Mastercard, Discover, JCB, UnionPay; American Express; Diners Club.
    r"4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|6(?:011|4[4-9]\d|5\d\d)\d{12}"
    r"|35(?:2[89]|[3-8]\d)\d{12}|62\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
)
_TEST_CARDS = frozenset(
    re.findall(
        r"\d+",
        # Printed in the documentation of those who take payments.
        "4111111111111111 4242424242424242 4012888888881881 4000056655665556 5555555555554444 5105105105105100"
        " 2223003122003222 6011111111111117 6011000990139424 3530111333300000 3566002020360505 378282246310005"
        " 371449635398431 30569309025904 38520000023237",
    )
)


def _is_card(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match[0])
    return bool(_ISSUERS.fullmatch(digits)) and digits not in _TEST_CARDS and len(set(digits)) > 4 and _luhn(digits)


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: from the right, each second digit doubled, all digits added up."""
    doubled = "".join(str(2 * int(digit)) if place % 2 else digit for place, digit in enumerate(reversed(digits)))
    return sum(map(int, doubled)) % 10 == 0


_IBAN = re.compile(r"(?<![\w-])[A-Z]{2}[0-9]{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?![\w-])")
_IBAN_LENGTHS = {
    country: int(length)
    # SWIFT's registry of IBAN formats.
    for country, length in re.findall(
        "([A-Z]{2})([0-9]{2})",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29"
        " ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28"
        " LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25"
        " QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20",
    )
}


def _is_iban(match: re.Match[str]) -> bool:
    """ISO 13616: the country's length, and 1 modulo 97 with letters as 10 to 35 and the first four at the end."""
    number = match[0].replace(" ", "")
    if len(number) != _IBAN_LENGTHS.get(number[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in number[4:] + number[:4])) % 97 == 1


_PHONE = re.compile(
    r"(?<![\w+)\]=.])(?<![0-9] )\+[1-9][0-9]{0,2}[ .-]?(?:\([0-9]{1,5}\)[ .-]?)?"
    r"[0-9](?:[ .-]?[0-9]){5,11}(?![\w-]|[.,][0-9])"
)
_NOBODYS = re.compile(r"123456|234567|(.)\1{5}|^1555|^1\d{3}55501")
"""Counted up or repeated digits, and what North America's plan keeps for films: 555-0100 to 555-0199."""
_NORTH_AMERICAN = re.compile(r"1[2-9]\d{2}[2-9]\d{6}")


def _can_be_dialled(match: re.Match[str]) -> bool:
    """With the country's code 8 to 13 digits: E.164 allows 15, but such are rarer than numbers that are added up."""
    digits = re.sub(r"\D", "", match[0])
    if not 8 <= len(digits) <= 13 or _NOBODYS.search(digits):
        return False
    return digits[0] != "1" or bool(_NORTH_AMERICAN.fullmatch(digits))
