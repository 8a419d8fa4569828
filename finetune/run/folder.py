"""The run folder: whose it is, that nobody else writes there, and where to go on.

docs/training.md, "What a run leaves", lists its files.
"""

import json
from contextlib import ExitStack
from pathlib import Path

from finetune.disk import alone_in, recover, write_whole
from finetune.errors import UserError
from finetune.recipe import Recipe, recipe_from_yaml
from finetune.run import checkpoint
from finetune.run.environment import environment


def check_output(recipe: Recipe) -> None:
    """An output folder is empty, or it is this recipe's."""
    output = Path(recipe.output)
    if recipe.resume not in ("auto", "never"):
        _check_resume(Path(recipe.resume), recipe)
    try:
        # Hidden files are what a kill may leave; they are no reason to refuse a folder.
        if not output.exists() or all(path.name.startswith(".") for path in output.iterdir()):
            return
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"output={output!s}: not a usable folder ({error})") from error
    if not (output / "recipe.yaml").is_file():
        raise UserError(f"output={output}: holds other files; choose a new folder")
    if recipe.resume == "never":
        raise UserError(
            f"output={output}: holds an earlier run and resume=never; choose another folder "
            f"(output=...) or remove it"
        )
    differences = recipe_from_yaml(output / "recipe.yaml").differences(recipe)
    if differences:
        raise UserError(
            f"output={output}: holds the run of another recipe. Choose another folder "
            f"(output=...), or take these back:\n  " + "\n  ".join(differences)
        )


def open_output(recipe: Recipe, world_size: int, cleanup: ExitStack) -> None:
    """Makes the folder, locks it for this run, and says what the run is."""
    output = Path(recipe.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={output}: cannot be made ({error.strerror})") from error
    # A killed run's workers hold it a few seconds more.
    message = f"output={output}: another run is writing there"
    cleanup.enter_context(alone_in(output, message, patience=9))
    check_output(recipe)  # again: while this run waited, another may have made it its own
    for model in ("best", "last"):
        recover(output / model)
    write_whole(output / "recipe.yaml", recipe.to_yaml())
    facts = json.dumps(environment(world_size=world_size), indent=2)
    write_whole(output / "environment.json", facts + "\n")


def _check_resume(folder: Path, recipe: Recipe) -> None:
    """An explicit checkpoint: there, whole, of this recipe, and nothing later to run over."""
    if not folder.is_dir():
        raise UserError(f"resume={folder}: no such folder; name a checkpoint, auto or never")
    manifest = checkpoint.verify(folder)
    if manifest["recipe_hash"] != recipe.hash():
        raise UserError(f"resume={folder}: a checkpoint of another recipe")
    newest = checkpoint.latest(Path(recipe.output) / "checkpoints")
    if newest is not None and checkpoint.verify(newest)["step"] > manifest["step"]:
        raise UserError(
            f"resume={folder}: {recipe.output} goes on to {newest.name}. resume=auto goes on from "
            "there; to go back, choose another output, where the old one stays as it is"
        )


def checkpoint_to_resume(recipe: Recipe) -> Path | None:
    """Where to go on, or None to begin; a damaged checkpoint is named and passed over."""
    if recipe.resume == "never":
        return None
    if recipe.resume != "auto":
        return Path(recipe.resume)
    return checkpoint.latest(Path(recipe.output) / "checkpoints")
