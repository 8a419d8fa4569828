"""Large TIFFs row by row, and masks with the georeference of their image.

GeoTIFF 1.1 (OGC 19-008r4) says with six tags where on Earth the pixels lie; a mask of the same size
lies there too. Files of satellites are larger than memory, so rows are decoded when they are asked
for, and written as they come.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from finetune.pictures.opening import named
from finetune.pictures.references import Picture
from finetune.pictures.tiffs import TiffForm, is_tiff, orientation_tag, tiff_form

# Scale, tie points, transformation, keys, and their numbers and texts (GeoTIFF 1.1, section 7).
_GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
_TILE = 256  # rows and columns that are compressed together
_LARGEST_PART = 2**28  # bytes of a strip or tile, which is decoded whole

Georeference: TypeAlias = tuple[tuple[int, int, int, Any, bool], ...]
"""The tags in tifffile's form for writing: code, type, number, value, first page only."""


def georeference(picture: Picture) -> Georeference | None:
    """Where on Earth a GeoTIFF lies; None for any other picture, or one that is turned.

    Raises:
        UserError: It cannot be read.
    """
    if not isinstance(picture, Path) or not is_tiff(picture):
        return None
    import tifffile  # slow to import

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its exceptions say the same
    with named(picture), tifffile.TiffFile(picture) as file:
        page = file.pages.first
        if orientation_tag(page) != 1:
            return None
        tags = [page.tags[code] for code in _GEO_TAGS if code in page.tags]
        found = []
        for tag in tags:
            value = tag.value
            if isinstance(value, str):  # the keys count its bytes, which need not be ASCII
                file.filehandle.seek(tag.valueoffset)
                value = file.filehandle.read(tag.valuebytecount)
            found.append((tag.code, int(tag.dtype), tag.count, value, True))
        return tuple(found) or None


def write_mask_tiff(
    path: Path,
    bands: Iterable[np.ndarray],
    size: tuple[int, int],
    dtype: np.dtype,
    where: Georeference,
    colors: Sequence[tuple[int, int, int]],
) -> None:
    """Writes class ids as a compressed GeoTIFF, with a palette if they are uint8.

    Args:
        path: The file; the caller renames it when it is whole.
        bands: (h, W) from top to bottom, of any heights.
        size: (H, W).
        dtype: uint8 or uint16.
        where: The image's.
        colors: Of the classes, for viewers.
    """
    import tifffile

    palette: dict[str, Any] = {"photometric": "minisblack"}
    if dtype == np.uint8:
        colormap = np.zeros((3, 256), np.uint16)
        colormap[:, : len(colors)] = np.array(colors, np.uint16).T * 257
        palette = {"photometric": "palette", "colormap": colormap}
    is_big = size[0] * size[1] * dtype.itemsize > 2**31  # if nothing could be compressed
    with tifffile.TiffWriter(path, bigtiff=is_big) as file:
        file.write(
            _tiles(bands, size[1]),
            shape=size,
            dtype=dtype,
            tile=(_TILE, _TILE),
            compression="zlib",
            extratags=where,
            metadata=None,
            software=False,
            **palette,
        )


def _tiles(bands: Iterable[np.ndarray], width: int) -> Iterator[np.ndarray]:
    """Cuts bands of any heights into tiles, from left to right and from the top."""
    across = -(-width // _TILE)
    left: list[np.ndarray] = []
    for band in itertools.chain(bands, [None]):
        if band is not None:
            left.append(band)
        while (height := sum(map(len, left))) >= _TILE or (band is None and height):
            rows = np.concatenate(left)
            left = [rows[_TILE:]]
            missing = (0, max(0, _TILE - len(rows))), (0, across * _TILE - width)
            yield from np.split(np.pad(rows[:_TILE], missing), across, axis=1)


class TiffRows:
    """The pixels of a large TIFF, decoded when their rows are asked for.

    Args:
        path: The file.
        num_channels: As for `read_image`.

    Attributes:
        shape: (H, W, C).
        dtype: uint8, or uint16 if C is not 3 and the file holds 16 bit.
    """

    def __init__(self, path: Path, form: TiffForm, num_channels: int):
        self._path, self._form = path, form
        self.shape = *form.size, num_channels
        is_deep = form.dtype == np.uint16 and num_channels != 3
        self.dtype = np.dtype(np.uint16 if is_deep else np.uint8)

    @classmethod
    def of(cls, picture: Picture, num_channels: int) -> "TiffRows | None":
        """A TIFF that can be read so; None for any other picture.

        Those in pages, turned, in one piece, of another compression or in other colours are not.

        Raises:
            UserError: It cannot be read.
        """
        if not isinstance(picture, Path) or not is_tiff(picture):
            return None
        form = tiff_form(picture)
        channels = form.samples - form.has_alpha if num_channels == 3 else form.samples
        is_known = form.is_plain and form.photometric in ("MINISBLACK", "RGB")
        is_simple = form.pages == 1 and not form.missing and not form.is_turned
        is_cut = form.largest_part <= _LARGEST_PART
        is_read = is_known and is_simple and is_cut and channels == num_channels
        return cls(picture, form, num_channels) if is_read else None

    def rows(self, rows: slice) -> np.ndarray:
        """Some rows, (r, W, C).

        Raises:
            UserError: The file is damaged there.
        """
        import tifffile

        height, width = self._form.size
        pixels = np.zeros((rows.stop - rows.start, width, self._form.samples), self._form.dtype)
        with named(self._path), tifffile.TiffFile(self._path) as file:
            page = file.pages.first
            tall = page.tilelength if page.is_tiled else page.rowsperstrip
            across = -(-width // page.tilewidth) if page.is_tiled else 1
            down = -(-height // tall)
            for index, (offset, number) in enumerate(
                zip(page.dataoffsets, page.databytecounts, strict=True)
            ):
                top = index // across % down * tall
                if top >= rows.stop or top + tall <= rows.start or not number:
                    continue
                file.filehandle.seek(offset)
                data = file.filehandle.read(number)
                segment, place, _ = page.decode(data, index, jpegtables=page.jpegtables)
                assert segment is not None, "there are bytes"
                first, last = max(top, rows.start), min(top + tall, rows.stop, height)
                part = segment[0, first - top : last - top, : width - place[3]]
                columns = slice(place[3], place[3] + part.shape[1])
                samples = slice(place[0], place[0] + part.shape[2])
                pixels[first - rows.start : last - rows.start, columns, samples] = part
        pixels = pixels[..., : self.shape[2]]
        if self.dtype == np.uint8 and pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        return np.ascontiguousarray(pixels)
