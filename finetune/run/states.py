"""Saves the named states of a run to a checkpoint, and loads them."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.run import checkpoint
from finetune.run.folder import RunFolder
from finetune.run.processes import on_main
from finetune.run.screen import say

_LOOP = "metrics"  # the state of the loop itself: its window and its clock


@dataclass
class States:
    """The states that a checkpoint restores."""

    parts: Mapping[str, Any]
    """Name -> an object with `state_dict` and `load_state_dict`, such as the model."""
    folder: RunFolder
    _: KW_ONLY
    rank: int
    world_size: int
    global_batch: int
    """Samples per step."""
    keep: int
    """Number of checkpoints to keep."""

    def save(self, step: int, loop: Mapping[str, Any]) -> None:
        """Writes the checkpoint of a step; every process calls it.

        `loop` holds the loop's own numbers, which `resume` returns.
        """
        rng = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state()
        meta: checkpoint.Meta = {
            "samples_seen": step * self.global_batch,
            "world_size": self.world_size,
            "threads": torch.get_num_threads(),
            "recipe_hash": self.folder.recipe_hash,
        }
        states = {name: part.state_dict() for name, part in self.parts.items()}
        states |= {"rng": rng, _LOOP: dict(loop)}
        root = self.folder.checkpoints
        checkpoint.save(root, step, states, meta=meta, rank=self.rank)
        on_main(lambda: checkpoint.prune(root, self.keep))

    def resume(self, path: Path) -> tuple[int, dict[str, Any]]:
        """Restores all states; returns the step, and the `loop` that `save` took.

        A rank that did not exist before keeps its fresh random state.

        Raises:
            UserError: the checkpoint is damaged, or another version of this package wrote it.
        """
        manifest, saved = checkpoint.load(path, self.rank)
        if missing := sorted({*self.parts, _LOOP} - saved.keys()):
            raise checkpoint.DamagedError(path, f"it holds no state of {', '.join(missing)}")
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        rng = saved.get("rng", {})
        if "cpu" in rng:
            torch.set_rng_state(rng["cpu"])
        if "cuda" in rng and torch.cuda.is_available():
            torch.cuda.set_rng_state(rng["cuda"])
        before = manifest["world_size"], manifest["threads"]
        if before != (now := (self.world_size, torch.get_num_threads())):
            say(
                f"saved with {before[0]} process(es) of {before[1]} thread(s), going on with "
                f"{now[0]} of {now[1]}: not the same bits"
            )
        say(f"resumed {path} at step {manifest['step']}")
        return manifest["step"], saved[_LOOP]
