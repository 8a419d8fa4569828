"""What remains of an evaluation and of a run: models, pictures, report, screen."""

from typing import Any

from finetune.recipe import Recipe
from finetune.run.folder import RunFolder
from finetune.run.log import rows
from finetune.run.report import html_report
from finetune.run.screen import show_end, show_table
from finetune.trainers import Evaluation, Task


def keep_models(
    task: Task, module: Any, evaluation: Evaluation, step: int, title: str, folder: RunFolder
) -> bool:
    """Shows an evaluation, saves the model as `last` and, if it is the best, as `best`.

    Returns:
        Whether it is the best.
    """
    show_table(title, evaluation.table)
    task.save(folder.last, module, evaluation, step)
    scores = [row.get(task.best_metric) for row in rows(folder.log.path)]
    score = evaluation.metrics[task.best_metric]
    is_best = score is not None and all(before is None or score > before for before in scores)
    if is_best:
        task.save(folder.best, module, evaluation, step)
    # Log last: a run that is killed before this line evaluates and saves again on resume.
    folder.log.write({"step": step, **evaluation.metrics})
    return is_best


def finish(task: Task, module: Any, recipe: Recipe, folder: RunFolder) -> None:
    """Writes the pictures and the report, and shows the closing screen."""
    task.examples(module, folder.path / "panel.png")
    html_report(folder.path)
    show_end(
        folder.path,
        recipe.name,
        steps=recipe.train.steps,
        images=recipe.train.steps * recipe.train.global_batch,
        rows=rows(folder.log.path),
        key=task.best_metric,
        pipeline=task.pipeline,
    )
