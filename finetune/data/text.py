"""Text files of others: UTF-8 or UTF-16, or the one older encoding that their bytes allow."""

import codecs
import itertools
import re
from contextlib import suppress
from pathlib import Path

from finetune.errors import UserError

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16's mark
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OLDER = ("cp1252", "cp1250", "cp1254", "cp1257", "mac_roman")
"""Encodings of Latin letters. Of Latin-1, cp1252 holds all letters at the same bytes."""
_LAST_LATIN = "\u017f"


def read_text(file: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        UserError: It cannot be read, is no text, or its bytes mean different letters in different
            encodings.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from error
    text = decoded(data, str(file))
    if "\0" in text:
        raise UserError(f"{file}: is not a text file. Replace it.")
    return text


def decoded(data: bytes, name: str) -> str:
    """The text of some bytes; `name` is that of their file, for the message.

    Raises:
        UserError: As for `read_text`.
    """
    encodings = [encoding for mark, encoding in _MARKS.items() if data.startswith(mark)][:1]
    if not encodings and b"\0" in data:  # UTF-16 without a mark
        encodings = [e for i, e in ((1, "utf-16-le"), (0, "utf-16-be")) if not any(data[i::2])]
        if len(data) % 2 or len(encodings) != 1:
            raise UserError(f"{name}: is not a text file, or in an unknown encoding. {_REMEDY}")
    try:
        return data.decode(encodings[0] if encodings else "utf-8")
    except UnicodeDecodeError as error:
        if encodings:
            raise UserError(f"{name}: cannot be read as {encodings[0]} ({error}).") from error
    readings: dict[str, str] = {}
    for encoding in _OLDER:
        with suppress(UnicodeDecodeError):
            if _is_plausible(text := data.decode(encoding)):
                readings.setdefault(text, encoding)
    if len(readings) == 1:
        return next(iter(readings))
    lines = itertools.zip_longest(*(text.splitlines() for text in readings))
    differing = next((line for line in lines if len(set(line)) > 1), ())
    pairs = zip(differing, readings.values(), strict=False)
    shown = ", ".join(f"{text!r} as {encoding}" for text, encoding in pairs)
    raise UserError(
        f"{name}: is not UTF-8, and its bytes do not tell its encoding"
        f"{f' ({shown})' if shown else ''}. {_REMEDY}"
    )


_REMEDY = "Save it as UTF-8."


def _is_plausible(text: str) -> bool:
    """Whether the letters beyond ASCII are Latin and stand, one at a time, in words of ASCII."""
    for word in re.findall(r"[^\W\d_]+", text):
        beyond = [character for character in word if not character.isascii()]
        if beyond and (
            2 * len(beyond) > len(word)
            or max(beyond) > _LAST_LATIN
            or any(
                one.islower() and not other.isascii() and other.isupper()
                for one, other in itertools.pairwise(word)
            )
        ):
            return False
    others = {
        character for character in text if not character.isascii() and not character.isalpha()
    }
    return others <= set("\xa0°²³€\u2013\u2014\u2018\u2019\u201c\u201d\u201e\u2026")
