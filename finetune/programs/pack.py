"""`finetune pack`: writes a data set as sharded Parquet, for streaming from a disk or a bucket.

    OUT/data/train-00000-of-00040.parquet    image (the file as it was), mask (PNG of class ids), id
    OUT/index.json                           files with rows, sizes and checksums; the classes
    OUT/recipe.yaml                          the recipe, reading from OUT
    OUT/README.md                            a data set card

`datasets.load_dataset(OUT)` reads it as it stands, and so does the Hub. Labels are translated here,
once: masks hold class ids and the ignore id. Every sample is decoded before it is written, which
keeps damaged ones out. The image's own bytes are kept, without another round of JPEG.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

import finetune
from finetune.data.samples import ReadSamples, reader_of
from finetune.data.sources.opening import open_split
from finetune.data.threads import in_order
from finetune.disk import alone_in, check_folder, make_folder, measure, write_whole
from finetune.errors import UserError
from finetune.labels.translation import Labels
from finetune.machine import usable_cores
from finetune.pictures.encoding import as_png
from finetune.pictures.numbers import is_npy
from finetune.pictures.opening import npy_as_png
from finetune.pictures.references import Encoded
from finetune.publish.markdown import escaped
from finetune.recipe import Recipe, to_yaml
from finetune.run.screen import progress_bar

FORMAT = 1
SHARD = 512
"""Samples per file: 30 MB at 60 kB each, 256 MB of large photographs."""
ROW_GROUP = 64
"""Fewest samples that are read at once."""

FEATURES = datasets.Features(
    {"id": datasets.Value("string"), "image": datasets.Image(), "mask": datasets.Image()}
)
_MARKER = ".pack.json"


@dataclass(frozen=True)
class Packed:
    """Samples and bytes of each split, and the number of files that were there before."""

    samples: dict[str, int]
    bytes: dict[str, int]
    kept: int


def pack(recipe: Recipe, output: Path, *, workers: int | None = None) -> Packed:
    """Writes the training and the validation split of a recipe.

    Files of an earlier, unfinished call are kept if their sources have not changed.

    Args:
        recipe: Resolved; its data must be files or tables, not shapes or a stream.
        output: A new or empty folder, or one of an earlier call.
        workers: Threads; None: one per usable core.

    Raises:
        UserError: The folder holds something else; or a sample is bad, and the message names it.
            Written files stay then, and the same call resumes.
    """
    check_folder(output)
    data = recipe.data
    if data.is_drawn or data.is_streamed:
        what = "draws its pictures" if data.is_drawn else "is streamed"
        raise UserError(f"data.source: {data.source} {what}, so there is nothing to pack.")
    labels = recipe.labels.build()
    for key in ("train_split", "val_split"):
        if not re.fullmatch(r"\w+(\.\w+)*", getattr(data, key)):  # `datasets` takes no other
            raise UserError(
                f"data.{key}: {getattr(data, key)!r} cannot name a split of a pack; letters, "
                "digits and underscores can."
            )
    splits = {
        name: open_split(data, labels, name, num_channels=recipe.model.num_channels)
        for name in (data.train_split, data.val_split)
    }
    total = sum(len(rows) for rows in splits.values())
    with _journal(output, recipe) as journal:
        plan = [(split, shard) for split, rows in splits.items() for shard in _plan(split, rows)]
        names = {shard.name for _, shard in plan}
        whole = {shard.name for _, shard in plan if journal.has(shard)}
        if whole != names or journal.files.keys() != names:
            # Until the end the folder holds no data set, and nobody may take it for one.
            (output / "index.json").unlink(missing_ok=True)
            journal.keep_only(names)
        with progress_bar(total=total, desc="packing", unit="image", show=True) as bar:
            for _, shard in plan:
                if shard.name in whole:
                    bar.update(len(shard.ids))
                else:
                    source = shard.source()  # read first: later changes are written again
                    row_groups = _write(journal.path(shard), shard, workers or usable_cores(), bar)
                    journal.enter(shard, source, row_groups)
        entries = {split: [journal.entry(s) for own, s in plan if own == split] for split in splits}
        _describe(output, recipe, labels, entries)
    return Packed(
        {name: len(rows) for name, rows in splits.items()},
        {name: sum(entry["bytes"] for entry in found) for name, found in entries.items()},
        len(whole),
    )


@dataclass(frozen=True)
class _Shard:
    name: str
    reader: ReadSamples
    images: list[str]
    masks: list[str]
    ids: list[str]

    def source(self) -> str:
        """The sources of the file: their names and states, and the labels' rules."""
        reader = self.reader
        how = (FORMAT, reader.labels, reader.form, reader.pictures, reader.num_channels)
        digest = hashlib.sha256(repr(how).encode())
        for image, mask, name in zip(self.images, self.masks, self.ids, strict=True):
            digest.update(f"\0{name}\0{image}\0{mask}".encode(errors="surrogateescape"))
            for file in (*reader.pictures.files(image), *reader.form.files(mask)):
                try:
                    stat = file.stat()
                except OSError:  # reading it gives the better message
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


def _write(path: Path, shard: _Shard, workers: int, bar: "tqdm[Any]") -> list[int]:
    """Writes one file aside and renames it into place; returns the rows of its row groups."""
    schema = FEATURES.arrow_schema
    row_groups: list[int] = []
    new = path.with_name(f".{path.name}.new")

    def encoded(number: int) -> dict[str, Any]:
        return _encoded(shard.reader, shard.images[number], shard.masks[number], shard.ids[number])

    try:
        with pq.ParquetWriter(new, schema, compression="none") as writer:  # already compressed
            rows = in_order(encoded, range(len(shard.ids)), workers)
            while group := list(islice(rows, ROW_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, schema))
                row_groups.append(len(group))
                bar.update(len(group))
        with open(new, "rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        reason = str(error.strerror or error).partition(". Detail")[0]
        raise UserError(
            f"{path}: cannot be written ({reason}). Make room and run the same command again; "
            "finished files are kept."
        ) from error
    finally:
        new.unlink(missing_ok=True)
    return row_groups


def _encoded(reader: ReadSamples, image: str, mask: str, name: str) -> dict[str, Any]:
    _, class_ids = reader.read(image, mask)
    picture = reader.pictures.open(image)
    if is_npy(picture):  # no other program reads these in a table
        suffix, content = ".png", npy_as_png(picture)
    elif isinstance(picture, Encoded):
        suffix, content = "", picture.data
    else:
        suffix = picture.suffix.lower()
        try:
            content = picture.read_bytes()
        except OSError as error:
            raise UserError(f"{picture}: cannot be read ({error.strerror}).") from error
    return {
        "id": name,
        "image": {"bytes": content, "path": f"{Path(name).name}{suffix}"},
        "mask": {"bytes": as_png(class_ids), "path": f"{Path(name).name}.png"},
    }


@dataclass
class _Journal:
    """The written files with their sources and checksums, in a file of the folder.

    Only entered files count: each was whole when it was entered.
    """

    output: Path
    identity: dict[str, Any]
    files: dict[str, Any]

    def path(self, shard: _Shard) -> Path:
        return self.output / "data" / shard.name

    def has(self, shard: _Shard) -> bool:
        """Whether a file is there as it was written, from the same sources."""
        entry, path = self.files.get(shard.name), self.path(shard)
        if entry is None or entry["source"] != shard.source() or not path.is_file():
            return False
        return measure(path) == (entry["bytes"], entry["sha256"])

    def enter(self, shard: _Shard, source: str, row_groups: list[int]) -> None:
        size, checksum = measure(self.path(shard))
        self.files[shard.name] = {
            "source": source,
            "num_samples": len(shard.ids),
            "row_groups": row_groups,
            "bytes": size,
            "sha256": checksum,
        }
        self.save()

    def keep_only(self, names: set[str]) -> None:
        """Removes the files of calls with other samples."""
        for path in (self.output / "data").iterdir():
            if path.name not in names and re.fullmatch(r"\..*\.new|.*-of-\d+\.parquet", path.name):
                path.unlink()
        self.files = {name: entry for name, entry in self.files.items() if name in names}
        self.save()

    def entry(self, shard: _Shard) -> dict[str, Any]:
        own = {key: value for key, value in self.files[shard.name].items() if key != "source"}
        return {"file": f"data/{shard.name}", **own}

    def save(self) -> None:
        content = {"identity": self.identity, "files": self.files}
        write_whole(self.output / _MARKER, json.dumps(content))


@contextmanager
def _journal(output: Path, recipe: Recipe) -> Iterator[_Journal]:
    """The journal of a folder that is new, empty or of an earlier call; locked meanwhile."""
    marker, identity = output / _MARKER, _identity(recipe)
    make_folder(output)
    with alone_in(output, f"{output}: another `finetune pack` is writing there."):
        files: dict[str, Any] = {}
        if marker.is_file():
            try:
                earlier = json.loads(marker.read_text(encoding="utf-8"))
                changed = _changes(earlier["identity"], identity)
                files = dict(earlier["files"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{marker}: is damaged ({error!r}). Remove {output}, or choose another folder."
                ) from error
            if changed:
                raise UserError(
                    f"{output}: holds a pack of something else ({', '.join(changed)} differs). "
                    "Choose another folder."
                )
        elif other := next(output.iterdir(), None):
            raise UserError(f"{output}: holds other files ({other.name}). Choose a new folder.")
        make_folder(output / "data")
        journal = _Journal(output, identity, files)
        journal.save()
        yield journal


def _identity(recipe: Recipe) -> dict[str, Any]:
    """The facts that decide the content of a pack."""
    left_out = {"workers", "cache", "image_mean", "image_std"}
    data = recipe.data.model_dump(mode="json", exclude=left_out)
    data["path"] = str(Path(data["path"]).expanduser().absolute())
    labels = recipe.labels.model_dump(mode="json")
    channels = recipe.model.num_channels
    return {"format": FORMAT, "data": data, "labels": labels, "model": {"num_channels": channels}}


def _changes(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changed = [] if earlier["format"] == now["format"] else ["format"]
    return changed + [
        f"{section}.{key}"
        for section in ("data", "labels", "model")
        for key in now[section]
        if earlier[section].get(key) != now[section][key]
    ]


def _describe(
    output: Path, recipe: Recipe, labels: Labels, shards: dict[str, list[dict[str, Any]]]
) -> None:
    """Writes the files that mark a pack as whole: recipe, card and, last, the index."""
    block = {
        "names": list(labels.names),
        "colors": [list(color) for color in labels.colors],
        "ignore": [labels.ignore_index],
    }
    kept = recipe.data.model_dump(
        mode="json", include={"train_split", "val_split", "image_mean", "image_std", "workers"}
    )
    sections = recipe.model_dump(mode="json", exclude={"data", "labels", "output", "resume"})
    path = str(output.absolute())
    sections["data"] = {"source": "hub", "path": path, "id_column": "id", **kept}
    sections["labels"] = block
    sections["name"] = f"{recipe.name}-packed"  # its runs differ from those on the files
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
    configs = [{"config_name": "default", "data_files": files}]
    header = to_yaml({"task_categories": ["image-segmentation"], "configs": configs})
    sizes = ", ".join(f"{count} in {split}" for split, count in counts.items())
    classes = "\n".join(f"| {i} | {escaped(name)} |" for i, name in enumerate(labels.names))
    return f"""---
{header}---

# {escaped(name)}

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
