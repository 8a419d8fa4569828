"""Pictures by reference: files, or encoded bytes out of a table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".pjpeg", ".pjp")
IMAGE_SUFFIXES = (*JPEG_SUFFIXES, ".png", ".webp", ".tif", ".tiff", ".bmp", ".npy")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".npy")  # lossless: JPEG changes ids
LOSSY_SUFFIXES = (*JPEG_SUFFIXES, ".webp")
COLOR_MASK_SUFFIXES = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *MASK_SUFFIXES)))


@dataclass(frozen=True)
class Encoded:
    """The bytes of a picture without a file of its own."""

    name: str
    """Its name in messages."""
    data: bytes

    def __str__(self) -> str:
        return self.name


Picture: TypeAlias = Path | Encoded


class Pictures(Protocol):
    """Finds pictures by references, such as the strings in the rows of a data set. Picklable."""

    def open(self, reference: Any) -> Picture:
        """The picture, not yet decoded."""

    def name(self, reference: Any) -> str:
        """Its name in messages."""

    def files(self, reference: Any) -> list[Path]:
        """The files that it is read from; empty if they never change."""


@dataclass(frozen=True)
class PathPictures:
    """Pictures whose references are paths."""

    def open(self, reference: str) -> Picture:
        return Path(reference)

    def name(self, reference: str) -> str:
        return reference

    def files(self, reference: str) -> list[Path]:
        return [Path(reference)]


PATHS = PathPictures()


def encoded_bytes(picture: Picture) -> bytes:
    """The file's bytes, or the bytes themselves."""
    return picture.data if isinstance(picture, Encoded) else picture.read_bytes()


def is_lossy(picture: Picture) -> bool:
    """Whether its first bytes are those of JPEG, WebP or AVIF, whatever its name."""
    if isinstance(picture, Encoded):
        head = picture.data[:16]
    else:
        with picture.open("rb") as file:
            head = file.read(16)
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return head[:3] == b"\xff\xd8\xff" or is_webp or head[4:12] in (b"ftypavif", b"ftypavis")
