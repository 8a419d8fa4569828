"""The files written for each picture, and the journal of finished pictures.

    OUT/ids/NAME.png           class ids, 8 bit, or 16 from 257 classes on: always, and last;
                               NAME.tif, in the same place on Earth, for a GeoTIFF
    OUT/overlay/NAME.jpg       picture, mask and legend
    OUT/palette/NAME.png       the ids with a palette: the classes' colours in any viewer
    OUT/confidence/NAME.png    the probability of each pixel's class, 255 is 1
    OUT/predict.json           the model, its preprocessing, counts, failures
    OUT/areas.csv, areas.json  pixels and share per picture and class
    OUT/coco.json              COCO's RLE, one annotation per class and picture
    OUT/coco-polygons.json     COCO's polygons, one annotation per region
    OUT/cvat.xml               CVAT's masks, one per class and picture
    OUT/label-studio.json      Label Studio's tasks with brushes; label_config.xml beside it
    OUT/labelme/NAME.json      labelme's polygons, one per region

Every file is written aside and renamed, `ids/NAME.png` as the last of its picture: a picture with
this file is finished, whatever killed the program. The tables cover all that is in OUT. They are
built at the end from the journals in `OUT/.predict`, one per process.
"""

import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.writers.classes import Classes
from finetune.data.writers.forms import FORMS, Form
from finetune.disk import alone_in, make_folder, no_room, write_lines, write_whole
from finetune.errors import UserError
from finetune.pictures.drawing import Color, overlay, with_legend
from finetune.pictures.encoding import as_jpeg, as_png
from finetune.pictures.geotiff import Georeference, georeference, write_mask_tiff
from finetune.pictures.reading import read_mask
from finetune.programs.predict.inputs import Item
from finetune.programs.predict.summaries import TABLES

WRITES = ("overlay", "palette", "confidence", "areas", *FORMS)
"""The possible outputs besides the ids."""
_SUFFIXES = {
    "overlay": ".jpg",
    "video": ".mp4",
    "labelme": ".json",
}  # of files in these folders; others hold PNG


@dataclass(frozen=True)
class Prediction:
    """The prediction for one picture."""

    item: Item
    mask: np.ndarray
    """(H, W) uint8 or uint16."""
    confidence: np.ndarray | None
    """(H, W) float16."""
    shown: np.ndarray | None
    """uint8 (H, W, 3), the base of an overlay."""


class Outputs:
    """A folder of predictions of one model.

    Args:
        folder: New, empty, or of an earlier call for the same model.
        model: Its name in predict.json.
        identity: The facts that the results depend on, for JSON.
        writes: Some of `WRITES`.
        names: Of the classes.
        colors: Of the classes.
        rank: Of this process.

    Raises:
        UserError: The folder holds something else, or cannot be written; or another process of this
            rank is writing there.
    """

    def __init__(
        self,
        folder: Path,
        model: str,
        identity: Mapping[str, Any],
        writes: Sequence[str],
        names: Sequence[str],
        colors: Sequence[Color],
        *,
        rank: int,
    ):
        if "palette" in writes and len(names) > 256:
            raise UserError(
                f"--write palette: a palette holds 256 colours, but the model has {len(names)} "
                "classes; leave palette out"
            )
        self.folder, self.model, self.writes = folder, model, tuple(writes)
        self.names, self.colors = tuple(names), tuple(colors)
        self._classes = Classes(self.names, self.colors)
        shown = {"names": list(names), "colors": [list(color) for color in colors]}
        self.identity = {**identity, **shown, "write": sorted(writes)}
        self._hidden = folder / ".predict"
        self._journal = self._hidden / f"rank-{rank}.jsonl"
        self._own = self._hidden / f"rank-{rank}"
        self._palette = b"".join(bytes(color) for color in self.colors[:256])

    def __enter__(self) -> "Outputs":
        with ExitStack() as stack:  # which unlocks if the folder cannot be taken
            self._open(stack)
            try:
                with open(self._journal, "a") as file:
                    if file.tell():  # a kill may have cut off the last line; this ends it
                        file.write("\n")
            except OSError as error:
                raise no_room(self._journal, error) from error
            self._cleanup = stack.pop_all()
        self._begun = {row["name"]: row for row in self._lines() if "begun" in row}
        self._done = {row["name"] for row in self._rows() if "pixels" in row}
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def check(self, items: Iterable[Item]) -> None:
        """Refuses pictures whose names belong to results of other pictures.

        Raises:
            UserError: There are results of such a name; the message names both pictures.
        """
        for item in items:
            known = self._begun.get(item.name)
            path = self._result(item)
            if known is not None and known["source"] != item.source and path.is_file():
                raise UserError(
                    f"{path}: belongs to {known['source']}, not to {item.source}. Choose another "
                    "folder."
                )

    def is_done(self, item: Item) -> bool:
        """Whether it is unchanged and its results are there; adds a missing journal line."""
        known = self._begun.get(item.name)
        if known is None or (known["source"], known["begun"]) != (item.source, item.state()):
            return False
        try:
            if not self._result(item).stat().st_size:  # a crash of the machine may leave it empty
                return False
        except OSError:
            return False
        if item.is_video or item.name in self._done:
            return item.name in self._done
        try:  # killed between the last file of a picture and its line
            mask = read_mask(self._result(item))
        except UserError:
            return False
        self.enter(self.row(item, mask))
        return True

    def begin(self, item: Item) -> None:
        """Announces in the journal that a picture's files will be written."""
        row = {"name": item.name, "source": item.source, "begun": item.state()}
        self.enter(row)
        self._begun[item.name] = row

    def write(self, prediction: Prediction) -> dict[str, Any]:
        """Writes the files of a picture, in any thread; returns its line, which `enter` takes.

        Raises:
            UserError: A file cannot be written.
        """
        name, mask = prediction.item.name, prediction.mask
        if "confidence" in self.writes:
            assert prediction.confidence is not None
            grey = (prediction.confidence.astype(np.float32) * 255 + 0.5).astype(np.uint8)
            write_whole(self.path("confidence", name), as_png(grey))
        if "palette" in self.writes:
            image = Image.fromarray(mask, "P")
            image.putpalette(self._palette)
            buffer = io.BytesIO()
            image.save(buffer, "PNG", compress_level=1)
            write_whole(self.path("palette", name), buffer.getvalue())
        if "overlay" in self.writes:
            assert prediction.shown is not None
            drawn = overlay(prediction.shown, mask, self.colors)
            present = [
                (self.names[i], self.colors[i]) for i in np.flatnonzero(np.bincount(mask.ravel()))
            ]
            drawn = np.asarray(with_legend(drawn, present))
            write_whole(self.path("overlay", name), as_jpeg(drawn))
        for what, form in self._forms():
            if form.file is not None:
                text = form.file(self._described(what, prediction.item, mask))
                write_whole(self.path(what, name), text)
        row = self.row(prediction.item, mask)
        if where := georeference(prediction.item.open()):
            self._write_tiff(name, [mask], mask.shape, where)
        else:
            write_whole(self.path("ids", name), as_png(mask))
        return row

    def write_large(
        self, item: Item, bands: Iterable[np.ndarray], size: tuple[int, int]
    ) -> dict[str, Any]:
        """Writes the ids of a picture larger than memory as a TIFF, and nothing else.

        Args:
            item: The picture.
            bands: Its class ids, (h, W) from the top.
            size: (H, W).

        Raises:
            UserError: The file cannot be written.
        """
        counts = np.zeros(len(self.names), np.int64)

        def counted() -> Iterator[np.ndarray]:
            nonlocal counts
            for band in bands:
                counts += np.bincount(band.ravel(), minlength=len(counts))
                yield band

        self._write_tiff(item.name, counted(), size, georeference(item.open()) or ())
        return self._row(item, size, counts)

    def _write_tiff(
        self, name: str, bands: Iterable[np.ndarray], size: tuple[int, ...], where: Georeference
    ) -> None:
        path = self.folder / "ids" / f"{name}.tif"
        make_folder(path.parent)
        temp = path.with_name(f".{path.name}.tmp")
        dtype = np.dtype(np.uint8 if len(self.names) <= 256 else np.uint16)
        try:
            write_mask_tiff(temp, bands, (size[0], size[1]), dtype, where, self.colors)
            temp.replace(path)
        except OSError as error:
            raise no_room(path, error) from error
        finally:
            temp.unlink(missing_ok=True)

    def row(self, item: Item, mask: np.ndarray) -> dict[str, Any]:
        """The journal's line for a picture."""
        row = self._row(item, mask.shape, np.bincount(mask.ravel()))
        for what, form in self._forms():
            if form.tables:
                row[what] = self._described(what, item, mask)
        return row

    def _forms(self) -> Iterator[tuple[str, Form]]:
        yield from ((what, FORMS[what]) for what in self.writes if what in FORMS)

    def _described(self, what: str, item: Item, mask: np.ndarray) -> dict[str, Any]:
        """A picture in a form. Tools know it by its path below the input, labelme from its file."""
        image = item.name
        if what == "coco":
            image = item.where
        elif item.state() is not None:  # a file, and not a row of a table
            image += os.path.splitext(item.source)[1]
            if what == "labelme":
                image = os.path.relpath(item.source, self.path(what, item.name).parent)
        return FORMS[what].of_picture(mask, image, self._classes)

    def _row(self, item: Item, size: Iterable[int], counts: np.ndarray) -> dict[str, Any]:
        return {
            "name": item.name,
            "source": item.source,
            "image": item.where,
            "size": [int(side) for side in size],
            "pixels": {str(i): int(counts[i]) for i in np.flatnonzero(counts)},
        }

    def enter(self, row: Mapping[str, Any]) -> None:
        """Adds a line to the journal, such as `write` returns once a picture's files are there."""
        try:
            with open(self._journal, "a", encoding="utf-8") as file:
                file.write(json.dumps({**row, "time": time.time()}) + "\n")
        except OSError as error:
            raise no_room(self._journal, error) from error

    def enter_video(
        self, item: Item, counts: np.ndarray, size: tuple[int, int], frames: int
    ) -> None:
        """Enters a video whose files are there; counts are pixels of all frames by class."""
        self.enter({**self._row(item, size, counts), "frames": frames})

    def fail(self, item: Item, reason: str) -> None:
        """Enters a picture that cannot be predicted; the next call tries it again."""
        self.enter({"name": item.name, "source": item.source, "image": item.where, "error": reason})

    def path(self, folder: str, name: str) -> Path:
        """The path of a file of a picture or video; makes its folder."""
        path = self.folder / folder / f"{name}{_SUFFIXES.get(folder, '.png')}"
        make_folder(path.parent)
        return path

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The latest result of each picture in all journals."""
        last: dict[str, tuple[float, int]] = {}
        for number, row in enumerate(self._lines()):
            if "image" in row:
                at = row.get("time", 0.0), number
                last[row["name"]] = max(at, last.get(row["name"], at))
        for number, row in enumerate(self._lines()):
            if last.get(row["name"], (0, -1))[1] == number:
                yield row

    def _lines(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self._hidden.glob("rank-*.jsonl")):
            with open(path, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    try:
                        row = json.loads(line)
                    except ValueError:  # a line that a kill cut off
                        continue
                    if isinstance(row, dict) and row.keys() >= {"name", "source"}:
                        yield row

    def summarise(self, wanted: set[str]) -> dict[str, Any]:
        """Writes the tables from all finished pictures; returns the content of predict.json.

        Args:
            wanted: Names of all pictures of this call.

        Raises:
            UserError: A table cannot be written.
        """
        done = of_these = 0
        failed: dict[str, str] = {}
        message = f"{self.folder}: another process has been writing its tables for ten minutes"
        with alone_in(self._hidden, message, patience=600):
            for row in self._rows():
                if "pixels" in row:
                    done += 1
                    of_these += row["name"] in wanted
                elif row["name"] in wanted:
                    failed[row["name"]] = f"{row['image']}: {row['error']}"
            for name, lines in TABLES.items() if "areas" in self.writes else ():
                predicted = (row for row in self._rows() if "pixels" in row)
                write_lines(self.folder / name, lines(predicted, self.names))
            for what, form in self._forms():
                for name, of_all in form.tables.items():
                    pictures = (row[what] for row in self._rows() if what in row)
                    write_lines(self.folder / name, of_all(pictures, self._classes))
            content = {
                "model": self.model,
                **self.identity,
                "done": done,
                "missing": len(wanted) - of_these - len(failed),
                "failed": failed,
            }
            write_whole(self.folder / "predict.json", json.dumps(content, indent=1) + "\n")
        return content

    def _open(self, stack: ExitStack) -> None:
        marker = self._hidden / "identity.json"
        if not marker.exists():
            self._refuse_others()
        make_folder(self._own)
        message = f"{self.folder}: another `finetune predict` is writing there"
        stack.enter_context(alone_in(self._own, message))
        with alone_in(self._hidden, message, patience=60):
            if not marker.exists():
                self._refuse_others()
                write_whole(marker, json.dumps(self.identity))
        try:
            earlier = json.loads(marker.read_text(encoding="utf-8"))
            if not isinstance(earlier, dict):
                raise ValueError("holds no object")
        except (OSError, ValueError) as error:
            raise UserError(f"{marker}: is damaged ({error}). Choose another folder.") from error
        now = json.loads(json.dumps(self.identity))
        if changed := [key for key in now if earlier.get(key) != now[key]]:
            raise UserError(
                f"{self.folder}: holds predictions of another call ({', '.join(changed)} differs). "
                "Choose another folder."
            )

    def _refuse_others(self) -> None:
        """Refuses a folder without a journal of ours: it is somebody else's."""
        try:
            others = [path.name for path in self.folder.iterdir() if path != self._hidden]
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be used ({error.strerror})") from error
        if others:
            raise UserError(f"{self.folder}: holds other files ({others[0]}). Choose a new folder.")

    def _result(self, item: Item) -> Path:
        """The last of a picture's files to be written."""
        folder = "video" if item.is_video else "ids"
        tiff = self.folder / folder / f"{item.name}.tif"
        if tiff.exists():
            return tiff
        return self.folder / folder / f"{item.name}{_SUFFIXES.get(folder, '.png')}"
