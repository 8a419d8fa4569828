"""`finetune pack`: a data set as sharded Parquet, to be streamed from a disk or a bucket.

    OUT/data/train-00000-of-00040.parquet    image (the file as it was), mask (PNG of class ids), id
    OUT/index.json                           files with rows, sizes and checksums; the classes
    OUT/recipe.yaml                          the recipe, reading from OUT
    OUT/README.md                            what it is, in the form of a data set card

`datasets.load_dataset(OUT)` reads it as it stands, and so does the Hub. Labels are translated here,
once: masks hold class ids and the ignore id. Every sample is decoded before it is written, so that
nothing damaged gets in; the image's own bytes are kept, without another round of JPEG.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

import finetune
from finetune.checkpoint import measure
from finetune.data.files import Encoded
from finetune.data.labels import Labels
from finetune.data.samples import ReadSamples, reader_of
from finetune.data.shards import read_footers
from finetune.data.sources import open_split
from finetune.data.threads import in_order
from finetune.errors import UserError
from finetune.parallel import usable_cores
from finetune.recipe import Recipe, to_yaml
from finetune.tracking import progress_bar, write_whole

FORMAT = 1
SHARD = 512
"""Samples of a file: 30 MB at 60 kB each, 256 MB of large photographs."""
ROW_GROUP = 64
"""Samples that are read at once, at least."""

FEATURES = datasets.Features(
    {"id": datasets.Value("string"), "image": datasets.Image(), "mask": datasets.Image()}
)
_MARKER = ".pack.json"
_SOURCE = b"finetune.source"  # of a file's metadata: what it was made from


@dataclass(frozen=True)
class Packed:
    """What a pack holds: samples and bytes of each split, and how many files were there before."""

    samples: dict[str, int]
    bytes: dict[str, int]
    kept: int


def pack(recipe: Recipe, output: Path, *, workers: int | None = None) -> Packed:
    """Writes the training and the validation split of a recipe.

    What an earlier, unfinished call has written is kept where its sources have not changed.

    Args:
        recipe: Resolved; its data must be files or tables, not shapes or a stream.
        output: A new or empty folder, or one of an earlier call.
        workers: Threads; None: one a usable core.

    Raises:
        UserError: The folder holds something else; or a sample is bad, and is named. Then what is
            written stays, and the same call goes on from there.
    """
    data = recipe.data
    if data.source == "shapes" or data.streaming:
        what = "draws its pictures" if data.source == "shapes" else "is streamed"
        raise UserError(f"data.source: {data.source} {what}: there is nothing to pack.")
    labels = recipe.labels.build()
    splits = {
        name: open_split(data, labels, name, num_channels=recipe.model.num_channels)
        for name in (data.train_split, data.val_split)
    }
    _check_output(output, recipe)
    shards: dict[str, list[dict[str, Any]]] = {}
    kept = 0
    total = sum(len(rows) for rows in splits.values())
    with progress_bar(total=total, desc="packing", unit="image", show=True) as bar:
        for split, rows in splits.items():
            shards[split] = []
            for shard in _plan(split, rows):
                path = output / "data" / shard.name
                if _is_written(path, shard):
                    kept += 1
                    bar.update(len(shard.ids))
                else:
                    _write(path, shard, workers or usable_cores(), bar)
                shards[split].append(_entry(path, output))
    planned = {entry["file"] for entries in shards.values() for entry in entries}
    for path in (output / "data").glob("*-of-*.parquet"):
        if f"data/{path.name}" not in planned:  # of a call with other samples
            path.unlink()
    _describe(output, recipe, labels, shards)
    return Packed(
        {name: len(rows) for name, rows in splits.items()},
        {name: sum(entry["bytes"] for entry in entries) for name, entries in shards.items()},
        kept,
    )


@dataclass(frozen=True)
class _Shard:
    name: str
    reader: ReadSamples
    images: list[str]
    masks: list[str]
    ids: list[str]

    def source(self) -> str:
        """What the file is made from: names and states of its sources, and the labels' rules."""
        digest = hashlib.sha256(f"{FORMAT} {self.reader.labels} {self.reader.form!r}".encode())
        for image, mask, name in zip(self.images, self.masks, self.ids, strict=True):
            digest.update(f"\0{name}\0{image}\0{mask}".encode(errors="surrogateescape"))
            for file in (*self.reader.pictures.files(image), *self.reader.form.files(mask)):
                try:
                    stat = file.stat()
                except OSError:  # reading it says so better
                    continue
                digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
        return digest.hexdigest()


def _plan(split: str, dataset: datasets.Dataset) -> Iterator[_Shard]:
    reader, rows = reader_of(dataset), dataset.with_format(None)
    count = -(-len(rows) // SHARD)
    for number in range(count):
        part = rows[number * SHARD : (number + 1) * SHARD]
        name = f"{split}-{number:05d}-of-{count:05d}.parquet"
        yield _Shard(name, reader, part["image"], part["mask"], part["id"])


def _is_written(path: Path, shard: _Shard) -> bool:
    """Whether a file is there, whole, and of the same sources."""
    if not path.is_file():
        return False
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return False
    found = (metadata.metadata or {}).get(_SOURCE, b"").decode()
    return metadata.num_rows == len(shard.ids) and found == shard.source()


def _write(path: Path, shard: _Shard, workers: int, bar: "tqdm[Any]") -> None:
    """Writes one file aside and renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = FEATURES.arrow_schema
    schema = schema.with_metadata({**schema.metadata, _SOURCE: shard.source().encode()})
    new = path.with_name(f".{path.name}.new")

    def encoded(number: int) -> dict[str, Any]:
        return _encoded(shard.reader, shard.images[number], shard.masks[number], shard.ids[number])

    try:
        with pq.ParquetWriter(new, schema, compression="none") as writer:  # they are compressed
            group: list[dict[str, Any]] = []
            for row in in_order(encoded, range(len(shard.ids)), workers):
                group.append(row)
                bar.update()
                if len(group) == ROW_GROUP:
                    writer.write_table(pa.Table.from_pylist(group, schema))
                    group = []
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema))
        with open(new, "rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}). What is packed stays; make room, and "
            "the same command goes on."
        ) from error
    finally:
        new.unlink(missing_ok=True)


def _encoded(reader: ReadSamples, image: str, mask: str, name: str) -> dict[str, Any]:
    """The row of a sample that can be read."""
    _, class_ids = reader.read(image, mask)
    picture = reader.pictures.open(image)
    if isinstance(picture, Encoded):
        suffix, content = "", picture.data
    else:
        suffix, content = picture.suffix.lower(), picture.read_bytes()
    found, png = cv2.imencode(".png", class_ids)
    assert found, "class ids are 8 or 16 bit, which PNG holds"
    return {
        "id": name,
        "image": {"bytes": content, "path": f"{Path(name).name}{suffix}"},
        "mask": {"bytes": png.tobytes(), "path": f"{Path(name).name}.png"},
    }


def _entry(path: Path, output: Path) -> dict[str, Any]:
    """A file in the index."""
    (shard,) = read_footers([str(path)])
    size, checksum = measure(path)
    return {
        "file": path.relative_to(output).as_posix(),
        "num_samples": shard.num_rows,
        "row_groups": list(shard.row_groups),
        "bytes": size,
        "sha256": checksum,
    }


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What decides what a pack holds."""
    data = recipe.data.model_dump(mode="json", exclude={"path", "workers", "cache"})
    return {"format": FORMAT, "data": data, "labels": recipe.labels.model_dump(mode="json")}


def _check_output(output: Path, recipe: Recipe) -> None:
    """Takes a new folder, an empty one, or one of an earlier call for the same data and labels."""
    marker, identity = output / _MARKER, _identity(recipe)
    try:
        output.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in output.iterdir() if path.name != _MARKER]
    except OSError as error:
        raise UserError(f"{output}: cannot be made a folder ({error.strerror}).") from error
    if marker.is_file():
        earlier = json.loads(marker.read_text(encoding="utf-8"))
        changed = [
            f"{section}.{key}"
            for section in ("data", "labels")
            for key in identity[section]
            if earlier.get(section, {}).get(key) != identity[section][key]
        ]
        if changed or earlier.get("format") != FORMAT:
            raise UserError(
                f"{output}: holds a pack of something else ({', '.join(changed) or 'its format'} "
                "differs). Choose another folder."
            )
    elif others:
        raise UserError(f"{output}: holds other files ({others[0]}). Choose a new folder.")
    write_whole(marker, json.dumps(identity))


def _describe(
    output: Path, recipe: Recipe, labels: Labels, shards: dict[str, list[dict[str, Any]]]
) -> None:
    """Writes what says that the pack is whole: recipe, card and, last, the index."""
    block = {
        "names": list(labels.names),
        "colors": [list(color) for color in labels.colors],
        "ignore": [labels.ignore_index],
    }
    data = recipe.data
    sections = recipe.model_dump(mode="json", exclude={"data", "labels", "output", "resume"})
    sections["data"] = {
        "source": "hub",
        "path": str(output.absolute()),
        "id_column": "id",
        "train_split": data.train_split,
        "val_split": data.val_split,
        "image_mean": data.image_mean,
        "image_std": data.image_std,
        "workers": data.workers,
    }
    sections["labels"] = block
    write_whole(
        output / "recipe.yaml",
        "# Written by `finetune pack`. Moved, or in a bucket: override data.path. What does not\n"
        "# fit a disk: data.streaming=true.\n" + to_yaml(sections),
    )
    counts = {split: sum(e["num_samples"] for e in entries) for split, entries in shards.items()}
    write_whole(output / "README.md", _card(recipe.name, labels, counts))
    index = {
        "format": FORMAT,
        "finetune": finetune.__version__,
        "labels": block,
        "splits": {
            split: {"num_samples": counts[split], "shards": entries}
            for split, entries in shards.items()
        },
    }
    write_whole(output / "index.json", json.dumps(index, indent=1, ensure_ascii=False) + "\n")


def _card(name: str, labels: Labels, counts: dict[str, int]) -> str:
    """The card of a data set: https://huggingface.co/docs/hub/datasets-cards."""
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in counts]
    header = to_yaml(
        {
            "task_categories": ["image-segmentation"],
            "configs": [{"config_name": "default", "data_files": files}],
        }
    )
    sizes = ", ".join(f"{count} in {split}" for split, count in counts.items())
    classes = "\n".join(f"| {i} | {_escaped(name)} |" for i, name in enumerate(labels.names))
    return f"""---
{header}---

# {_escaped(name)}

Images with masks of class ids ({sizes}), packed by `finetune pack`.
Columns: `image`, the files as they were; `mask`, PNG of class ids, {labels.ignore_index} where a
pixel does not count; `id`.

```python
import datasets

data = datasets.load_dataset("path/of/this/folder", split="{next(iter(counts))}", streaming=True)
```

| id | class |
|---|---|
{classes}
"""


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)
