"""The tasks by the name that a recipe gives them."""

from collections.abc import Callable

from finetune.inference import Preprocessing
from finetune.recipe import Recipe
from finetune.trainers import Task
from finetune.trainers.segmentation import SegmentationTask

TRAINERS: dict[str, Callable[[Recipe, Preprocessing | None], Task]] = {
    "segmentation": SegmentationTask
}


def task_of(recipe: Recipe, preprocessing: Preprocessing | None = None) -> Task:
    """The task of a resolved recipe; an evaluation may replace the recipe's preprocessing."""
    return TRAINERS[recipe.task](recipe, preprocessing)
