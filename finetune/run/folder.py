"""The run folder: its owner, its lock, and the checkpoint to resume.

docs/training.md, "What a run leaves", lists its files.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from finetune.disk import alone_in, check_folder, recover, write_whole
from finetune.errors import UserError
from finetune.run import checkpoint
from finetune.run.environment import environment
from finetune.run.log import MetricsLog

_BEGUN = {"recipe.yaml", "environment.json"}
"""The files of a run that ended before its first step; any recipe may take its place."""


class RunFolder:
    """The folder of a run. Nothing on disk changes before `open`.

    `resume` is "auto", "never", or a checkpoint's folder; `recipe`, the resolved one as YAML;
    `differences` gives those between the recipe in a file and this one, as lines.
    """

    def __init__(
        self,
        path: str,
        *,
        resume: str,
        recipe: str,
        recipe_hash: str,
        differences: Callable[[Path], Sequence[str]],
    ):
        self.path = Path(path)
        self.best, self.last = self.path / "best", self.path / "last"
        self.checkpoints = self.path / "checkpoints"
        self.log = MetricsLog(self.path / "metrics.jsonl")
        self.recipe_hash = recipe_hash
        self._resume = resume
        self._recipe = recipe
        self._differences = differences

    def check(self) -> None:
        """Raises a UserError unless the folder is empty or belongs to this recipe."""
        output = self.path
        if self._resume not in ("auto", "never"):
            self._check_resume(Path(self._resume))
        try:
            check_folder(output)
            # A kill may leave hidden files, which do not matter.
            found = {path.name for path in output.iterdir()} if output.exists() else set()
            if {name for name in found if not name.startswith(".")} in (set(), _BEGUN):
                return
        except (OSError, UserError) as error:
            raise UserError(f"output={output}: cannot be used as a folder ({error})") from error
        if not (output / "recipe.yaml").is_file():
            raise UserError(f"output={output}: holds other files; choose a new folder")
        if self._resume == "never":
            raise UserError(
                f"output={output}: holds an earlier run, but resume=never; choose another folder "
                "(output=...) or remove it"
            )
        if differences := self._differences(output / "recipe.yaml"):
            raise UserError(
                f"output={output}: holds the run of another recipe. Choose another folder "
                "(output=...), or take these back:\n  " + "\n  ".join(differences)
            )

    def open(self, world_size: int, cleanup: ExitStack) -> None:
        """Makes the folder, locks it until `cleanup` closes, and writes the run's description."""
        output = self.path
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"output={output}: cannot be made ({error.strerror}); choose another folder"
            ) from error
        # The workers of a killed run hold the lock for a few seconds.
        message = f"output={output}: another run is writing there"
        cleanup.enter_context(alone_in(output, message, patience=9))
        self.check()  # again: another run may have taken the folder in the meantime
        for model in (self.best, self.last):
            recover(model)
        write_whole(output / "recipe.yaml", self._recipe)
        facts = json.dumps(environment(world_size=world_size), indent=2)
        write_whole(output / "environment.json", facts + "\n")

    def checkpoint(self) -> Path | None:
        """The checkpoint to resume, or None; warns of damaged checkpoints and skips them."""
        if self._resume == "auto":
            return checkpoint.latest(self.checkpoints)
        return None if self._resume == "never" else Path(self._resume)

    def _check_resume(self, folder: Path) -> None:
        """Raises a UserError unless a checkpoint is whole, of this recipe, and the last one."""
        if not folder.is_dir():
            raise UserError(f"resume={folder}: does not exist; name a checkpoint, auto or never")
        manifest = checkpoint.verify(folder)
        if manifest["recipe_hash"] != self.recipe_hash:
            raise UserError(f"resume={folder}: belongs to another recipe; choose another output")
        newest = checkpoint.latest(self.checkpoints)
        if newest is not None and checkpoint.verify(newest)["step"] > manifest["step"]:
            raise UserError(
                f"resume={folder}: {self.path} also holds the later {newest.name}. Set resume=auto "
                "to go on from there, or choose another output to go back"
            )
