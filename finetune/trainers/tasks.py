"""The tasks by the name that a recipe gives them."""

from finetune.inference import Preprocessing
from finetune.recipe import Recipe
from finetune.trainers.segmentation import SegmentationTask

TRAINERS = {"segmentation": SegmentationTask}


def task_of(recipe: Recipe, preprocessing: Preprocessing | None = None) -> SegmentationTask:
    """The task of a resolved recipe; an evaluation may replace the recipe's preprocessing."""
    return TRAINERS[recipe.task](recipe, preprocessing)
