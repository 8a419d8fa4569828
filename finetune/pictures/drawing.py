"""Pictures that a person looks at: a panel of examples, overlays, legends, maps of numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from finetune.disk import write_whole
from finetune.labels.colors import WRONG

Color = tuple[int, int, int]

ROW_HEIGHT, MAX_WIDTH = 224, 448  # pixels into which a picture is scaled
GAP, MARGIN, CAPTION_WIDTH, LINE = 8, 20, 168, 26
INK, FAINT, PAPER = (28, 30, 33), (118, 122, 128), (255, 255, 255)
IGNORED: Color = (48, 48, 48)
_NARROWEST = 240  # pixels of a legend
COLUMNS = ("image", "truth", "prediction", "error")


@dataclass(frozen=True)
class PanelRow:
    """One picture of the panel.

    `image` is uint8 or uint16 (H, W, C); RGB, its first three channels or its first one are shown.
    `truth` and `prediction` are integer (H, W) class ids; the truth may hold the ignored id.
    `mean_iou` is this picture's own.
    """

    id: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    mean_iou: float


def panel(
    rows: Sequence[PanelRow],
    names: Sequence[str],
    colors: Sequence[Color],
    ignore_index: int,
    path: Path,
) -> None:
    """Writes a PNG with image, truth, prediction and error of each row (one or more), and a legend.

    In the error column, right pixels show the dimmed grey image, wrong ones are red and ignored
    ones dark grey. The legend holds the classes that occur. `names` and `colors` (R, G, B) are in
    the order of the class ids.
    """
    strips = [_strip(row, colors, ignore_index) for row in rows]
    column = max(strip[0].width for strip in strips)
    left = MARGIN + CAPTION_WIDTH
    width = left + len(COLUMNS) * (column + GAP) - GAP + MARGIN
    top = MARGIN + LINE
    bottom = top + sum(strip[0].height + GAP for strip in strips)
    entries = _legend(rows, names, colors, ignore_index)
    legend = _legend_strip(tuple(entries), width - 2 * (MARGIN - GAP))

    canvas = Image.new("RGB", (width, bottom + legend.height + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, title in enumerate(COLUMNS):
        middle = left + index * (column + GAP) + column // 2
        draw.text((middle, MARGIN), title, INK, _font(16), anchor="ma")
    for row, strip in zip(rows, strips, strict=True):
        middle = top + strip[0].height // 2
        caption = _elide(row.id, CAPTION_WIDTH - 2 * GAP)
        score = "-" if math.isnan(row.mean_iou) else f"{row.mean_iou:.1%}"
        draw.text((MARGIN, middle - 4), caption, INK, _font(14), anchor="ls")
        draw.text((MARGIN, middle + 4), f"mean IoU {score}", FAINT, _font(14), anchor="la")
        for index, picture in enumerate(strip):
            x = left + index * (column + GAP) + (column - picture.width) // 2
            canvas.paste(picture, (x, top))
        top += strip[0].height + GAP
    canvas.paste(legend, (MARGIN - GAP, bottom))

    buffer = BytesIO()
    canvas.save(buffer, "PNG")
    write_whole(path, buffer.getvalue())


def _strip(row: PanelRow, colors: Sequence[Color], ignore_index: int) -> list[Image.Image]:
    """The four pictures of a row, in one size."""
    height, width = row.truth.shape
    scale = min(ROW_HEIGHT / height, MAX_WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Nearest neighbour: nothing lies between two class ids. The error is that of the shown maps.
    truth, prediction = (_resize_ids(ids, size) for ids in (row.truth, row.prediction))
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    image = Image.fromarray(as_rgb(row.image)).resize(size, smooth)
    ignored = truth == ignore_index
    error = np.asarray(image.convert("L").convert("RGB")) // 3 + 80  # lighter than IGNORED
    error[prediction != truth] = WRONG
    error[ignored] = IGNORED
    return [
        image,
        Image.fromarray(colored(truth, colors)),
        Image.fromarray(colored(prediction, colors)),
        Image.fromarray(error),
    ]


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Any image as RGB to look at, uint8 (H, W, 3)."""
    channels = 3 if image.shape[2] >= 3 else 1
    shown = image[..., :channels]
    if image.dtype != np.uint8:  # sensors rarely fill 16 bit: stretch the values to the range
        low, high = np.percentile(shown, (1, 99))
        shown = np.clip((shown - low) * (255 / max(high - low, 1)), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))


def _resize_ids(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour on (H, W) ids of any integer dtype; `size` is (width, height)."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size[::-1], ids.shape, strict=True)
    )
    return ids[rows[:, None], columns].astype(np.int64)


def colored(ids: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Class ids (H, W) to uint8 (H, W, 3); other ids are dark grey."""
    palette = np.array([*colors, IGNORED], dtype=np.uint8)
    if ids.dtype == np.uint8:  # a fourth of the time
        table = palette[np.minimum(np.arange(256), len(colors))]
        return cv2.LUT(cv2.merge([ids, ids, ids]), table[None])
    return palette[np.where((ids >= 0) & (ids < len(colors)), ids, len(colors))]


def overlay(image: np.ndarray, ids: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """An image, uint8 (H, W, 3), under its mask of integer class ids (H, W); the same shape."""
    return cv2.addWeighted(image, 0.4, colored(ids, colors), 0.6, 0)


def with_legend(picture: np.ndarray, entries: Sequence[tuple[str, Color]]) -> Image.Image:
    """A picture, uint8 (H, W, 3), with a legend of names and (R, G, B) below it."""
    height, width = picture.shape[:2]
    legend = _legend_strip(tuple(entries), max(width, _NARROWEST))
    canvas = Image.new("RGB", (legend.width, height + legend.height), PAPER)
    canvas.paste(Image.fromarray(picture), (0, 0))
    canvas.paste(legend, (0, height))
    return canvas


def heat(values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Numbers (H, W), not negative, as colours, uint8 (H, W, 3): viridis.

    0 is dark blue, and `largest` (None: the largest of `values`) is yellow.
    """
    top = float(values.max()) if largest is None else largest
    levels = np.clip(values * (255 / max(top, 1e-30)), 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    captions: Sequence[str] = (),
    *,
    side: int = 160,
) -> Image.Image:
    """Pictures, uint8 (h, w, 3), in rows of equal length, each scaled to a longer side of `side`.

    Cells of small maps stay squares. Titles stand above the columns, in one line or several;
    captions stand left of the rows.
    """
    titles_height = MARGIN + 18 * max(title.count("\n") + 1 for title in titles)
    left = MARGIN + max((GAP + math.ceil(_width(caption)) for caption in captions), default=0)
    column = max(side, *(math.ceil(_width(title)) for title in titles)) + GAP
    width = left + len(titles) * column - GAP + MARGIN
    canvas = Image.new("RGB", (width, titles_height + len(rows) * (side + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for index, title in enumerate(titles):
        middle = left + index * column + (column - GAP) // 2
        draw.multiline_text(
            (middle, titles_height - GAP), title, INK, _font(14), anchor="md", align="center"
        )
    for index, row in enumerate(rows):
        top = titles_height + index * (side + GAP)
        if captions:
            edge = (left - GAP, top + side // 2)
            draw.multiline_text(edge, captions[index], INK, _font(14), anchor="rm", align="right")
        for place, picture in enumerate(row):
            shown = _scaled(picture, side)
            x = left + place * column + (column - GAP - shown.width) // 2
            canvas.paste(shown, (x, top + (side - shown.height) // 2))
    return canvas


def _scaled(picture: np.ndarray, side: int) -> Image.Image:
    scale = side / max(picture.shape[:2])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    smooth = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    return Image.fromarray(picture).resize(size, smooth)


def _width(text: str) -> float:
    return max(_font(14).getlength(line) for line in text.splitlines())


@functools.lru_cache(maxsize=256)
def _legend_strip(entries: tuple[tuple[str, Color], ...], width: int) -> Image.Image:
    """Cached, because setting text takes longer than an overlay, and a set's legends are alike."""
    x = y = GAP
    places = []
    for text, _ in entries:
        needed = 24 + math.ceil(_font(14).getlength(text)) + 20
        if x > GAP and x + needed > width - GAP:
            x, y = GAP, y + LINE
        places.append((x, y))
        x += needed
    strip = Image.new("RGB", (width, y + LINE + GAP), PAPER)
    draw = ImageDraw.Draw(strip)
    for (text, color), (x, y) in zip(entries, places, strict=True):
        draw.rounded_rectangle((x, y, x + 16, y + 16), 3, color, outline=FAINT)
        draw.text((x + 24, y + 8), text, INK, _font(14), anchor="lm")
    return strip


def _legend(
    rows: Sequence[PanelRow], names: Sequence[str], colors: Sequence[Color], ignore_index: int
) -> list[tuple[str, Color]]:
    present = {int(label) for row in rows for label in np.unique(row.truth)}
    shown = present | {int(label) for row in rows for label in np.unique(row.prediction)}
    classes = enumerate(zip(names, colors, strict=True))
    entries = [entry for label, entry in classes if label in shown - {ignore_index}]
    if ignore_index in present:
        entries.append(("ignored", IGNORED))
    return [*entries, ("wrong", WRONG)]


def _elide(text: str, width: int) -> str:
    """Cut out the middle, where file names differ least, until it fits."""
    shown, keep = text, len(text)
    while keep > 2 and _font(14).getlength(shown) > width:
        keep -= 1
        shown = f"{text[: keep // 3]}...{text[len(text) - (keep - keep // 3) :]}"
    return shown


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
