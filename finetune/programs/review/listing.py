"""The ranked list of doubted regions, and its forms as JSON and as a table."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

import finetune
from finetune.inference import Segmenter
from finetune.inference.doubts import Region
from finetune.labels.translation import Labels
from finetune.recipe import Recipe

VERSION = 1
"""Version of review.json; it changes when a key is renamed or changes its meaning."""
COLUMNS = (
    *("rank", "score", "id", "image", "mask", "labelled", "predicted", "doubt", "pixels"),
    *("left", "top", "width", "height"),
)
"""The columns of review.csv."""


@dataclass(frozen=True)
class Part:
    """Labels to review, and the model that reviews them.

    Attributes:
        model: a model folder or Hub id.
        recipe: its validation split is reviewed, which the model has not seen.
        on_train: review the training split instead.
    """

    model: str
    recipe: Recipe
    on_train: bool = False


@dataclass(frozen=True)
class Found:
    """A region with the image that it is in."""

    score: float
    part: int
    index: int
    """Of the sample in the part."""
    id: str
    image: str
    mask: str
    region: Region


@dataclass(frozen=True)
class Review:
    """Reviewed labels, and the doubted regions, the most doubtful first."""

    parts: tuple[Part, ...]
    labels: Labels
    segmenters: tuple[Segmenter, ...]
    samples: tuple[datasets.Dataset, ...]
    found: tuple[Found, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of review.json."""
        first = self.parts[0]
        data = first.recipe.data
        whole = first.on_train or len(self.parts) > 1
        return {
            "version": VERSION,
            "finetune": finetune.__version__,
            "name": first.recipe.name,
            "models": [part.model for part in self.parts],
            "split": data.train_split if whole else data.val_split,
            "held_out": not first.on_train,
            "images": sum(map(len, self.samples)),
            "images_with_doubts": len({(one.part, one.index) for one in self.found}),
            "classes": list(self.labels.names),
            "regions": [
                {
                    "rank": rank,
                    "score": round(one.score, 4),
                    "id": one.id,
                    "image": one.image,
                    "mask": one.mask,
                    **({"fold": one.part} if len(self.parts) > 1 else {}),
                    "labelled": self.labels.names[one.region.given],
                    "predicted": self.labels.names[one.region.predicted],
                    "doubt": round(one.region.doubt, 4),
                    "pixels": one.region.pixels,
                    "box": one.region.box,
                    "outlines": one.region.outlines,
                }
                for rank, one in enumerate(self.found, 1)
            ],
        }


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The content of review.csv, from the regions of review.json."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for row in rows:
        table.writerow([*(row[name] for name in COLUMNS[:-4]), *row["box"]])
    return text.getvalue()
