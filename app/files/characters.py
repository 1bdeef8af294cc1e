"""Characters out of place in a text: controls, lost ones, invisible ones, and UTF-8 that was read as Windows-1252."""

import re
from collections.abc import Iterator
from typing import NamedTuple

SHOWN_AROUND = 10
"""Characters before and after, in the excerpt that a finding quotes."""


class Oddity(NamedTuple):
    """The first of a kind in a text."""

    kind: str
    message: str
    """What is wrong and what to do, to be read after the name of the field."""


def find(text: str) -> Iterator[Oddity]:
    """One of each kind. Fast for the usual text, which has none."""
    # Each control and each invisible character is unprintable; of what ASCII prints none is odd.
    printable = text.replace("\n", " ").isprintable()
    if printable and text.isascii():
        return
    garbled = None if text.isascii() else _garbled(text)
    if garbled is not None:
        yield garbled
    if not printable:
        # Bytes 80 to 9F belong to what was read wrongly, and are said once.
        if match := (_ASCII_CONTROL if garbled else _CONTROL).search(text):
            yield Oddity(
                "control",
                f"has the control character U+{ord(match[0]):04X} in {_excerpt(text, match)}. Remove it, or replace"
                " it by what it stands for.",
            )
        if match := _INVISIBLE.search(text):
            yield Oddity(
                "invisible",
                f"has the invisible character U+{ord(match[0]):04X} in {_excerpt(text, match)}, which becomes a token"
                " of its own. Remove it.",
            )
    if match := _LOST.search(text):
        yield Oddity(
            "lost",
            f"has U+FFFD in {_excerpt(text, match)}, where a character was lost in decoding. Convert the source again,"
            " in its right encoding.",
        )


_ASCII_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LOST = re.compile("\N{REPLACEMENT CHARACTER}")
# A zero-width space shows where lines may break in scripts without spaces; within Latin words it has no business.
# Joiners and non-joiners are spelling in many scripts, and make one emoji of several.
_INVISIBLE = re.compile("\ufeff|(?<=[A-Za-z])\u200b|\u200b(?=[A-Za-z])")


def _byte_of(character: str) -> int:
    """The byte that Windows-1252 reads as this character; Latin-1's where it has none."""
    try:
        return character.encode("cp1252")[0]
    except UnicodeEncodeError:
        return character.encode("latin-1")[0]


# What the bytes 80 to BF look like, of which all of a UTF-8 character but the first consists.
_AS_1252 = bytes(range(0x80, 0xC0)).decode("cp1252", "ignore")
_NEXT = "\x80-\x9f" + _AS_1252
# Of these, what does follow a letter in well-read text: `CAFÉ…`, `jusqu’à\xa0»`.
_ENDS = "\xa0…’”“‘»›–—™®°"
_RARE = "\x80-\x9f" + "".join(sorted(set(_AS_1252) - set(_ENDS)))
_MAY_BE_GARBLED = re.compile(f"[\xc2-\xf4][{_NEXT}]")
_GARBLED = re.compile(
    # Two and more characters on end, in any script: `Ð¿Ñ€`, `ä¸\xadæ–‡`.
    f"(?:[\xc2-\xdf][{_NEXT}]|[\xe0-\xef][{_NEXT}]{{2}}|[\xf0-\xf4][{_NEXT}]{{3}}){{2,}}"
    # One alone, where nothing else is spelt so: `25Â°`, `Ã©`, `Ä‡`, `Å‚` (but Å², a unit), `â€™`, `ï¿½`, an emoji.
    f"|\xc2[\xa0-\xbf]|\xc3(?:[\xa0{_RARE}]|[{_ENDS}](?=\\w))|\xc4[{_RARE}]|\xc5(?![²³¹·±])[{_RARE}]"
    f"|\xe2[{_RARE}][{_NEXT}]|\xef[¬»¿][{_NEXT}]|\xf0Ÿ[{_NEXT}]{{2}}"
)


def _garbled(text: str) -> Oddity | None:
    if not _MAY_BE_GARBLED.search(text):
        return None
    for match in _GARBLED.finditer(text):
        try:
            meant = bytes(map(_byte_of, match[0])).decode()
        except UnicodeDecodeError:
            continue
        return Oddity(
            "garbled",
            f"has {match[0][:20]!r} where {meant[:20]!r} was meant: UTF-8 that was read as Windows-1252 or Latin-1."
            " Convert the source again, in its right encoding.",
        )
    return None


def _excerpt(text: str, match: re.Match[str]) -> str:
    return ascii(text[max(0, match.start() - SHOWN_AROUND) : match.end() + SHOWN_AROUND])
