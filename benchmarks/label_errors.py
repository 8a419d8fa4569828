"""`finetune review` on planted label errors: how many of them are high on its list.

    python -m benchmarks.label_errors camvid data.path=CamVid
    python -m benchmarks.label_errors camvid data.path=CamVid --folds 3

Trains the recipe, plants errors of four kinds into the masks of the validation split, and reviews
them. With --folds the errors are in the training split, and the models are trained on them. A
region on the list counts if most of its pixels have a planted label. An error counts once, however
many regions it has on the list. The same counts are made for the same regions in random order.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from finetune.disk import make_folder, write_whole
from finetune.errors import UserError
from finetune.pictures.encoding import as_png
from finetune.programs.review.listing import Part
from finetune.programs.review.review import fold_parts, review, write
from finetune.recipe import Recipe, load_recipe, recipe_from_values
from finetune.train import fit, quiet_libraries
from finetune.trainers.tasks import task_of

SWAPPED, MISSING = (0.005, 0.2), (0.003, 0.05)
"""Smallest and largest region of an error, as a share of the picture."""
SHIFT = (0.04, 0.08)
"""Shortest and longest way of a shifted mask, as a share of the picture's shorter side."""
LEAST_CHANGED = 0.3
"""Share of the pixels that another picture's mask must change: frames of a video look alike."""
RANDOM_ORDERS = 1000


class Planted(NamedTuple):
    """One error."""

    kind: str
    id: str
    """The sample."""
    mask: np.ndarray
    """The wrong mask, class ids (H, W)."""
    changed: np.ndarray
    """bool (H, W): the pixels whose label is another one."""


class Maker:
    """Makes wrong masks from right ones; each method gives None where it cannot.

    Args:
        masks: all masks of class ids, by sample.
        num_labels: number of classes.
        ignored: the id without a class.
        rng: draws everything.
    """

    def __init__(
        self,
        masks: Mapping[str, np.ndarray],
        num_labels: int,
        ignored: int,
        rng: np.random.Generator,
    ):
        self.masks, self.num_labels, self.ignored, self.rng = masks, num_labels, ignored, rng

    def swapped(self, mask: np.ndarray) -> np.ndarray | None:
        """A region with another class."""
        region = self._region(mask, SWAPPED)
        if region is None:
            return None
        own = int(mask[region][0])
        others = [label for label in range(self.num_labels) if label != own]
        return np.where(region, self.rng.choice(others), mask).astype(mask.dtype)

    def missing(self, mask: np.ndarray) -> np.ndarray | None:
        """An object filled with the class around it."""
        region = self._region(mask, MISSING)
        if region is None:
            return None
        ring = cv2.dilate(region.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool) & ~region
        around = np.bincount(mask[ring], minlength=1)
        around[self.ignored :] = 0
        return np.where(region, around.argmax(), mask).astype(mask.dtype) if any(around) else None

    def shifted(self, mask: np.ndarray) -> np.ndarray | None:
        """The whole mask moved; its edge is repeated where it leaves pixels free."""
        angle = self.rng.uniform(0, 2 * np.pi)
        way = self.rng.uniform(*SHIFT) * min(mask.shape)
        moved = np.array([[1, 0, way * np.cos(angle)], [0, 1, way * np.sin(angle)]])
        size = mask.shape[1], mask.shape[0]
        nearest, edge = cv2.INTER_NEAREST, cv2.BORDER_REPLICATE
        return cv2.warpAffine(mask, moved, size, flags=nearest, borderMode=edge)

    def of_another(self, mask: np.ndarray) -> np.ndarray | None:
        """The mask of another picture."""
        other = self.masks[self.rng.choice(sorted(self.masks))]
        differs = other.shape == mask.shape and np.mean(other != mask) >= LEAST_CHANGED
        return other if differs else None

    def _region(self, mask: np.ndarray, shares: tuple[float, float]) -> np.ndarray | None:
        """A connected region of one class, bool (H, W)."""
        low, high = (share * mask.size for share in shares)
        found = []
        for label in np.unique(mask[mask != self.ignored]):
            count, parts, stats, _ = cv2.connectedComponentsWithStats(
                (mask == label).view(np.uint8)
            )
            areas = stats[:, cv2.CC_STAT_AREA]
            found += [parts == i for i in range(1, count) if low <= areas[i] <= high]
        return found[self.rng.integers(len(found))] if found else None


def plant(
    masks: Mapping[str, np.ndarray], *, num_labels: int, ignored: int, each: int, seed: int
) -> list[Planted]:
    """Wrong masks of four kinds, `each` of them `each` times, in different samples.

    Raises:
        UserError: There are too few samples.
    """
    rng = np.random.default_rng(seed)
    maker = Maker(masks, num_labels, ignored, rng)
    kinds: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
        "region of another class": maker.swapped,
        "missing object": maker.missing,
        "shifted mask": maker.shifted,
        "mask of another image": maker.of_another,
    }
    planted: list[Planted] = []
    free = list(rng.permutation(sorted(masks)))
    for kind, made in kinds.items():
        left = each
        for name in list(free):
            wrong = made(masks[name]) if left else None
            if wrong is None or not np.any(changed := wrong != masks[name]):
                continue
            planted.append(Planted(kind, str(name), wrong, changed))
            free.remove(name)
            left -= 1
        if left:
            raise UserError(f"too few samples for {each} errors of each kind; take a larger split")
    return planted


def write_planted(
    recipe: Recipe, split: str, folder: Path, *, each: int, seed: int
) -> tuple[Recipe, list[Planted]]:
    """Plants errors into a split and writes it as PNGs below `folder`.

    Returns:
        The recipe for which this is the split, and the errors.
    """
    task = task_of(recipe)
    samples = task.train_samples if split == recipe.data.train_split else task.val_samples
    labels = recipe.labels.build()
    masks = {
        sample["id"]: sample["mask"] for sample in map(samples.__getitem__, range(len(samples)))
    }
    planted = plant(
        masks, num_labels=labels.num_labels, ignored=labels.ignore_index, each=each, seed=seed
    )
    masks |= {error.id: error.mask for error in planted}
    for index in range(len(samples)):
        sample = samples[index]
        image, mask = (
            folder / kind / split / f"{sample['id']}.png" for kind in ("images", "masks")
        )
        for path in (image, mask):
            make_folder(path.parent)
        bgr = np.ascontiguousarray(sample["image"][..., ::-1])
        write_whole(image, as_png(bgr))
        write_whole(mask, as_png(masks[sample["id"]]))
    values = recipe.model_dump(mode="json")
    values["labels"] = {"names": list(labels.names), "colors": [list(c) for c in labels.colors]}
    data = {"source": "folder", "path": str(folder), "workers": recipe.data.workers}
    means = {"image_mean": recipe.data.image_mean, "image_std": recipe.data.image_std}
    other = {"train_split": recipe.data.train_split, "val_split": recipe.data.val_split}
    values["data"] = {**data, **means, **other}
    return recipe_from_values(values, recipe.name), planted


def counted(regions: Sequence[Mapping[str, Any]], planted: Sequence[Planted]) -> list[int | None]:
    """For each region the number of the error that most of its pixels belong to, or None."""
    numbers = {error.id: number for number, error in enumerate(planted)}
    found: list[int | None] = []
    for region in regions:
        number = numbers.get(region["id"])
        if number is not None:
            drawn = np.zeros(planted[number].changed.shape, np.uint8)
            cv2.fillPoly(drawn, [np.array(outline) for outline in region["outlines"]], 1)
            if planted[number].changed[drawn > 0].mean() < 0.5:
                number = None
        found.append(number)
    return found


def figures(found: Sequence[int | None], planted: Sequence[Planted]) -> dict[str, Any]:
    """Precision at 20 and 40 and recall at 100, of all errors and of each kind."""
    seen = {number for number in found[:100] if number is not None}
    kinds = {error.kind: 0 for error in planted}
    for number in seen:
        kinds[planted[number].kind] += 1
    precision = {f"precision at {k}": np.mean([n is not None for n in found[:k]]) for k in (20, 40)}
    return {**precision, "recall at 100": len(seen) / len(planted), "found": kinds}


def at_random(found: Sequence[int | None], planted: Sequence[Planted], seed: int) -> dict[str, Any]:
    """The mean of `figures` over random orders of the same regions."""
    rng = np.random.default_rng(seed)
    orders = [[found[i] for i in rng.permutation(len(found))] for _ in range(RANDOM_ORDERS)]
    rows = [figures(order, planted) for order in orders]
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "found"}


def measure(
    recipe: Recipe, output: Path, *, model: str | None, folds: int | None, each: int, seed: int
) -> dict[str, Any]:
    """Trains unless there is a model, plants, reviews and counts; a second call goes on."""
    data = recipe.data
    split = data.val_split if folds is None else data.train_split
    folder = output / f"planted-{split}"
    planted_recipe, planted = write_planted(recipe, split, folder, each=each, seed=seed)
    if folds is not None:
        parts = fold_parts(planted_recipe, folds, output / "review-folds")
        for part in parts:
            fit(part.recipe)
    else:
        if model is None:
            model = str(output / "model" / "last")
            fit(recipe.model_copy(update={"output": str(output / "model")}))
        parts = [Part(model, planted_recipe)]
    folder = output / ("review" if folds is None else "review-folds")
    found = review(parts, folder, show_progress=True)
    write(found, folder)
    regions = found.to_json()["regions"]
    numbers = counted(regions, planted)
    return {
        "images": sum(map(len, found.samples)),
        "regions": len(regions),
        "errors": len(planted),
        "ranked": figures(numbers, planted),
        "at random": at_random(numbers, planted, seed),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--model", help="a model folder, trained on the training split as it is")
    parser.add_argument("--output", type=Path, default=Path("runs/label-errors"))
    parser.add_argument("--folds", type=int, help="plant into the training split, train on folds")
    parser.add_argument("--each", type=int, default=10, help="errors of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the errors")
    options = parser.parse_intermixed_args(arguments)
    quiet_libraries(main_process=True)
    try:
        found = measure(
            load_recipe(options.recipe, options.overrides),
            options.output,
            model=options.model,
            folds=options.folds,
            each=options.each,
            seed=options.seed,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = json.dumps(found, indent=1)
    write_whole(
        options.output / f"figures{f'-{options.folds}-folds' if options.folds else ''}.json", text
    )
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
