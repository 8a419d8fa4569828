"""`finetune review`: the labels that a trained model doubts, as a ranked list.

    found = review([Part("runs/camvid/best", load_recipe("camvid"))], Path("out"))
    write(found, Path("out"))   # review.html, review.csv and review.json

`inference.doubts` finds regions and scores them, `listing` holds the list, `page` draws it. The
regions of an image are written to OUT/.review/regions.jsonl at once, under a digest of the model,
the image and its labels. So a stopped call resumes, and once some masks are mended, only these are
reviewed again.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.data.samples import reader_of
from finetune.data.threads import in_order
from finetune.disk import alone_in, make_folder, write_whole
from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.inference.doubts import Region, doubted_regions, scores_of
from finetune.inference.models import digest_of
from finetune.labels.translation import Labels
from finetune.machine import usable_cores
from finetune.programs.review import page
from finetune.programs.review.listing import Found, Part, Review, as_csv
from finetune.recipe import Recipe, recipe_from_values
from finetune.run.screen import printable, progress_bar
from finetune.trainers.tasks import task_of

NUM_SHOWN = 100
"""Regions on the page, unless asked otherwise."""
NUM_PRINTED = 10
MAX_WORKERS = 4
_CALL = ".review/call.json"


def fold_parts(recipe: Recipe, folds: int, output: Path) -> list[Part]:
    """A part for each fold of the training split, with a recipe that trains on the others.

    `finetune.train.fit(part.recipe)` trains the model of a part; a run that is finished stays.

    Args:
        recipe: what to train, on what and how.
        folds: their number.
        output: the runs are its folders fold-0, fold-1, ...

    Raises:
        UserError: the recipe's data cannot be cut into folds.
    """
    refuse_unreadable(recipe)
    data = recipe.data
    common = {
        "data.folds": folds,
        "data.val_fraction": None,
        "data.val_split": "held-out" if data.val_split == data.train_split else data.val_split,
    }
    parts = []
    for fold in range(folds):
        run = output / f"fold-{fold}"
        chosen = {**common, "data.fold": fold, "output": str(run)}
        own = recipe_from_values(recipe.model_dump(mode="json"), recipe.name, chosen)
        # Not `best`, which was chosen by the labels that are reviewed.
        parts.append(Part(str(run / "last"), own))
    return parts


def check_output(output: Path, parts: Sequence[Part]) -> None:
    """Raises a UserError unless a folder is free, or holds the review of the same parts."""
    call = output / _CALL
    there = {path.name for path in output.iterdir()} if output.is_dir() else set()
    is_ours = call.is_file() and call.read_text(encoding="utf-8", errors="replace") == _call_of(
        parts
    )
    if not is_ours and {name for name in there if not name.startswith("fold-")}:
        raise UserError(
            f"{output}: holds other files, or the review of another model or data set; choose "
            "another folder (--output), or remove it"
        )


def refuse_unreadable(recipe: Recipe) -> None:
    """Raises a UserError unless the recipe's labels lie in files that can be read in any order."""
    if recipe.data.is_drawn:
        raise UserError("data.source=shapes draws its labels, so there are none to review")
    if recipe.data.is_streamed:
        raise UserError(
            "data.streaming: review reads some samples again; set data.streaming=false, which "
            "first copies the data set to this machine"
        )


def review(
    parts: Sequence[Part],
    output: Path,
    *,
    device: str | None = None,
    show_progress: bool = False,
) -> Review:
    """Finds and ranks the regions of all parts.

    Args:
        parts: one, or those of `fold_parts`.
        output: a new folder, or that of an earlier call for the same models and data.
        device: of the models; None: the GPU if there is one.
        show_progress: draw a bar on stderr.

    Raises:
        UserError: a model or a sample cannot be read, they do not fit each other, or the folder
            holds something else.
        KeyboardInterrupt: after Ctrl-C; the same call resumes.
    """
    for part in parts:
        refuse_unreadable(part.recipe)
        if part.on_train:
            warnings.warn(
                "a model has learnt the labels that it was trained on, wrong ones too; review "
                "--folds 3 trains models that have not seen them",
                stacklevel=2,
            )
    segmenters, splits = [], []
    for part in parts:
        segmenters.append(Segmenter.load(part.model, device=device))
        task = task_of(part.recipe)
        task.check_model(segmenters[-1], f"model {part.model}")
        splits.append(task.train_samples if part.on_train else task.val_samples)
        task.check_split(splits[-1])
    labels = parts[0].recipe.labels.build()
    journal = _Journal(output, parts)
    rows, total = [], sum(map(len, splits))
    with (
        alone_in(journal.folder, f"{output}: another review is writing there"),
        progress_bar(total=total, desc="reviewing", unit="image", show=show_progress) as bar,
    ):
        for segmenter, samples in zip(segmenters, splits, strict=True):
            rows.append(list(_rows(segmenter, samples, labels, journal, bar.update)))
    found = _ranked(rows, splits, labels.num_labels)
    return Review(tuple(parts), labels, tuple(segmenters), tuple(splits), tuple(found))


def _ranked(
    rows: Sequence[Sequence[Mapping[str, Any]]], splits: Sequence[datasets.Dataset], num_labels: int
) -> list[Found]:
    """The regions in the journal's rows of each part, the most doubtful first."""
    confusion = np.zeros((num_labels, num_labels), np.int64)
    for given, predicted, count in (pair for own in rows for row in own for pair in row["pairs"]):
        confusion[given, predicted] += count
    found = []
    for place, samples in enumerate(splits):
        reader, names = reader_of(samples), samples.with_format(None)
        for index, row in enumerate(rows[place]):
            regions = [Region(**values) for values in row["regions"]]
            for region, score in zip(regions, scores_of(regions, confusion), strict=True):
                image = reader.pictures.name(names[index]["image"])
                mask = reader.form.name(names[index]["mask"]) or image
                name = names[index]["id"]
                found.append(Found(score, place, index, name, image, mask, region))
    return sorted(found, key=lambda one: (-one.score, one.part, one.index))


def write(found: Review, folder: Path, num_shown: int = NUM_SHOWN) -> tuple[Path, Path, Path]:
    """Writes review.html, review.csv and review.json, each whole or not at all.

    Args:
        found: the list.
        folder: that of `review`.
        num_shown: regions on the page; the other files have all of them.

    Raises:
        UserError: the folder cannot be written to, or an image cannot be read any more.
    """
    facts = found.to_json()
    html, table, whole = (folder / f"review.{end}" for end in ("html", "csv", "json"))
    write_whole(whole, json.dumps(facts, allow_nan=False) + "\n")
    write_whole(table, as_csv(facts["regions"]))
    write_whole(html, page.draw(facts, found, num_shown))
    return html, table, whole


def show(facts: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Prints the first regions of review.json, and where the files are."""
    found = facts["regions"]
    print(
        f"{facts['images']:,} images of {facts['split']}: {len(found):,} doubted regions in "
        f"{facts['images_with_doubts']:,} of them"
    )
    table = Table(header_style="bold", box=None)
    table.add_column("score", justify="right")
    for title in ("labelled", "predicted", "id"):
        table.add_column(title, overflow="fold")
    for row in found[:NUM_PRINTED]:
        texts = (f"{row['score']:.2f}", row["labelled"], row["predicted"], row["id"])
        table.add_row(*(Text(printable(text)) for text in texts))
    if found:
        Console().print(table)
    print(f"Written: {', '.join(map(str, files))}")


def _rows(
    segmenter: Segmenter,
    samples: datasets.Dataset,
    labels: Labels,
    journal: "_Journal",
    advance: Callable[[], object],
) -> Iterator[dict[str, Any]]:
    """The journal's row of each sample, in order."""
    reader, names = reader_of(samples), samples.with_format(None)
    weights = digest_of(segmenter.model) + repr(segmenter.preprocessing)

    def read(index: int) -> tuple[np.ndarray, np.ndarray, str]:
        image, truth = reader.read(names[index]["image"], names[index]["mask"])
        digest = hashlib.blake2b(weights.encode(), digest_size=16)
        for pixels in (image, truth):
            digest.update(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).data)
        return image, truth, digest.hexdigest()

    workers = min(MAX_WORKERS, usable_cores())
    for image, truth, key in in_order(read, range(len(samples)), workers):
        row = journal.known.get(key)
        if row is None:
            ids, doubts = segmenter.doubts(segmenter.views([image]), truth[None])
            regions = doubted_regions(ids[0], doubts[0], truth)
            counted = truth != labels.ignore_index
            pairs = truth[counted].astype(np.int64) * labels.num_labels + ids[0][counted]
            row = {
                "key": key,
                "regions": [asdict(region) for region in regions],
                "pairs": [
                    [*divmod(int(pair), labels.num_labels), int(count)]
                    for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True)
                ],
            }
            journal.enter(row)
        advance()
        yield row


class _Journal:
    """The folder of a review, with one line for each image that is done.

    Raises:
        UserError: the folder holds other files or another review, or cannot be written.
    """

    def __init__(self, output: Path, parts: Sequence[Part]):
        check_output(output, parts)
        self.folder, self._lines = output / ".review", output / ".review/regions.jsonl"
        make_folder(self.folder)
        write_whole(output / _CALL, _call_of(parts))
        self.known: dict[str, dict[str, Any]] = {}
        if self._lines.is_file():
            for line in self._lines.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):  # a kill or a crash may have cut off or spoilt lines
                    row = json.loads(line)
                    if isinstance(row, dict) and row.keys() >= {"key", "regions", "pairs"}:
                        self.known[row["key"]] = row

    def enter(self, row: dict[str, Any]) -> None:
        """Adds a line."""
        try:
            with open(self._lines, "a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(row)}\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self._lines}: {error.strerror}; free some space"
            ) from error


def _call_of(parts: Sequence[Part]) -> str:
    """The facts that two calls for one folder must share."""
    facts = {
        "models": [part.model for part in parts],
        "data": parts[0].recipe.data.model_dump(
            mode="json", include={"source", "path", "train_split", "val_split"}
        ),
        "on_train": parts[0].on_train,
    }
    return json.dumps(facts, indent=1) + "\n"
