"""Pictures by reference: files, or encoded bytes out of a table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")  # lossless only: JPEG changes ids
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
COLOR_MASK_SUFFIXES = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *MASK_SUFFIXES)))


@dataclass(frozen=True)
class Encoded:
    """The bytes of a picture that is no file of its own."""

    name: str
    """What messages call it."""
    data: bytes

    def __str__(self) -> str:
        return self.name


Picture: TypeAlias = Path | Encoded


class Pictures(Protocol):
    """Finds pictures by references, such as the strings in the rows of a data set. Picklable."""

    def open(self, reference: Any) -> Picture:
        """The picture, not yet decoded."""

    def name(self, reference: Any) -> str:
        """What messages call it."""

    def files(self, reference: Any) -> list[Path]:
        """The files that it is read from and that may change; none, if they cannot."""


@dataclass(frozen=True)
class Files:
    """Pictures whose references are paths."""

    def open(self, reference: str) -> Picture:
        """The file."""
        return Path(reference)

    def name(self, reference: str) -> str:
        """The path."""
        return reference

    def files(self, reference: str) -> list[Path]:
        """The file."""
        return [Path(reference)]


FILES = Files()


def encoded_bytes(picture: Picture) -> bytes:
    """The file's bytes, or the bytes themselves."""
    return picture.data if isinstance(picture, Encoded) else picture.read_bytes()
