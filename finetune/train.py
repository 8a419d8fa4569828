"""The training loop: `fit`, read from top to bottom.

    accelerate launch finetune/train.py --recipe ade20k.yaml train.steps=1000
    python -m finetune.train --recipe shapes
    finetune train shapes                       # all local devices, exact exit status

Exit status: 0 done; 2 a mistake that the message names; 130 / 143 after SIGINT / SIGTERM, with the
state saved first, 143 at `train.max_minutes` too; 1 a defect of this package. (`accelerate launch`
itself turns a 2 into its own traceback and a 1.)
"""

if __name__ == "__main__":
    import signal
    import sys
    from pathlib import Path

    # Ctrl-C while libraries are imported ends the program silently: there is nothing to save.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not __package__:
        # Run as a script: Python put this file's folder first on its path, where our modules would
        # shadow others. The package lives in the folder above.
        sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import functools
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from finetune.errors import UserError
from finetune.optim import build_optimizer, build_scheduler
from finetune.recipe import Recipe, load_recipe, recipe_from_yaml
from finetune.run.background import BackgroundPush
from finetune.run.clock import Clock
from finetune.run.folder import RunFolder
from finetune.run.log import rows
from finetune.run.processes import agree, join, on_main, same_everywhere, synchronise_batch_norm
from finetune.run.screen import progress_bar, quiet_libraries, say, show_progress
from finetune.run.signals import StopSignals
from finetune.run.states import States
from finetune.run.window import Window, summed
from finetune.trainers import Batch, Share, Task
from finetune.trainers.results import finish, keep_models
from finetune.trainers.tasks import task_of

PUSH = [sys.executable, "-m", "finetune.programs.push"]
"""Pushes to the Hub beside the training."""


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        output: the run folder.
        step: the last step.
        metrics: the last evaluation's row of metrics.jsonl; empty before the first one.
        finished: False if `train.max_minutes` stopped the run; its state is saved, and the same
            recipe resumes it.
    """

    output: Path
    step: int
    metrics: dict[str, Any]
    finished: bool = True


def fit(recipe: Recipe) -> Result:
    """Trains, evaluates and saves as the recipe says; resumes an earlier run.

    Every process of a launch calls it. Files go into `recipe.output`; docs/training.md, "What a
    run leaves", lists them.

    Args:
        recipe: resolved, from `finetune.recipe.load_recipe`.

    Raises:
        UserError: the recipe, a file or the launch is at fault; the message names the remedy.
        KeyboardInterrupt: after SIGINT; the state is saved.
        SystemExit: with status 143 after SIGTERM; the state is saved.
    """
    train = recipe.train
    with StopSignals(train.max_minutes) as signals, ExitStack() as cleanup:
        accelerator = join(train.precision, train.threads)
        share = Share(accelerator.process_index, accelerator.num_processes, accelerator.device)
        _, accumulation = recipe.batch_split(share.world_size)
        folder = folder_of(recipe)

        # Mistakes in recipe and data are reported before anything is built.
        on_main(folder.check)
        task: Task = task_of(recipe)
        on_main(task.check)
        same_everywhere(task.state_dict, share.device)
        set_seed(recipe.seed)
        module = task.build()  # reads the weights that a recipe names
        on_main(lambda: folder.open(share.world_size, cleanup))
        pushes: BackgroundPush | None = None
        if recipe.hub.repo is not None and share.rank == 0:
            pushes = BackgroundPush(
                folder.path, recipe.hub.repo, command=PUSH, private=recipe.hub.private, say=say
            )
            cleanup.callback(pushes.close)

        # The same seed gave all ranks the same fresh weights; now each draws its own dropout.
        module = module.to(accelerator.device)
        synchronise_batch_norm(module)
        set_seed(recipe.seed + 1 + share.rank)
        plain_optimizer = build_optimizer(
            module,
            lr=train.lr,
            weight_decay=train.weight_decay,
            head_lr_multiplier=train.head_lr_multiplier,
        )
        schedule = build_scheduler(  # not prepared: accelerate would step it once a process
            plain_optimizer,
            schedule=train.schedule,
            steps=train.steps,
            warmup_steps=train.warmup_steps,
            power=train.power,
        )
        model, optimizer = accelerator.prepare(module, plain_optimizer)
        forward = torch.compile(model) if train.compile else model

        # The states that a checkpoint restores.
        parts = {"model": module, "optimizer": optimizer, "schedule": schedule, "task": task}
        if accelerator.scaler is not None:
            parts["scaler"] = accelerator.scaler
        states = States(
            parts,
            folder,
            rank=share.rank,
            world_size=share.world_size,
            global_batch=train.global_batch,
            keep=train.keep_checkpoints,
        )
        step, saved_step, clock, window = 0, -1, Clock(), Window()
        if (path := folder.checkpoint()) is not None:
            step, loop = states.resume(path)
            saved_step, clock = step, Clock(loop["seconds"])
            window.load_state_dict(loop["window"], share.device)
        on_main(lambda: folder.log.cut(step))
        evaluated = {row["step"] for row in rows(folder.log.path) if task.best_metric in row}
        batches = task.batches(share, step)
        cleanup.callback(batches.close)
        bar = progress_bar(
            total=train.steps, initial=step, desc=recipe.name, unit="step", show=share.rank == 0
        )
        cleanup.callback(bar.close)
        model.train()
        problem = ""  # found by the device; read only where the loop waits for it anyway

        while True:
            # This step's micro-batches or the error in reading them, and whether to stop. All
            # processes agree on both.
            last_step, stopping = step == train.steps, False
            micro_batches: list[Batch] = []
            mistake: UserError | None = None
            try:
                if not last_step:
                    micro_batches = [next(batches) for _ in range(accumulation)]
            except UserError as error:
                problem = problem or str(error)
            try:
                stopping = agree(problem, stop=signals.told())
            except UserError as error:  # on every process: a bad file costs no work done
                stopping, mistake = step > 0, error
            every = train.checkpoint_every or train.eval_every
            evaluate = step > 0 and (last_step or step % train.eval_every == 0)
            evaluate = evaluate and step not in evaluated
            save = step > 0 and (last_step or step % every == 0)

            # a) Save the state first: no later failure can lose it.
            if (save or evaluate or stopping) and step != saved_step:
                with clock.paused():
                    window.gather(step, folder.checkpoints, train.precision)
                    loop = {"seconds": clock.seconds, "window": window.state_dict()}
                    states.save(step, loop)
                saved_step = step
            if mistake is not None:
                raise mistake
            if stopping:
                break

            # b) Evaluate; save the best and the last model as stock folders.
            if evaluate:
                with clock.paused():
                    evaluation = task.evaluate(module, share, signals.told)
                    if evaluation is None:  # told to stop; evaluated again after the resume
                        stopping = True
                        break
                    title = f"{recipe.name}, step {step} of {train.steps}"
                    keep = functools.partial(
                        keep_models, task, module, evaluation, step, title, folder
                    )
                    is_best = on_main(keep)
                    if pushes is not None and is_best and not last_step:
                        pushes.newest(folder.best, step)
                    evaluated.add(step)
            if last_step:
                break

            # c) One optimiser step. Each term of the loss is its mean over the global batch. Its
            # weight depends on the labels alone, so the sum is divided before the backward pass.
            weights = summed([task.weights(batch) for batch in micro_batches])
            for turn, batch in enumerate(micro_batches, start=1):
                last = turn == accumulation
                # DDP reduces the gradients with the last micro-batch of a step only.
                with nullcontext() if last else accelerator.no_sync(model):
                    losses = task.losses(forward, batch)
                    # Without counted pixels the mean is 0, not NaN.
                    means = [losses[name] / weights[name].clamp(min=1e-6) for name in losses]
                    # DDP takes the mean over the processes; times their number it is the sum.
                    accelerator.backward(torch.stack(means).sum() * share.world_size)
                window.add(losses, weights if last else {})
            if train.clip_norm is not None:
                accelerator.clip_grad_norm_(module.parameters(), train.clip_norm)
            learning_rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            signals.may_time_out = True
            bar.update()

            # d) Log.
            if step % train.log_every == 0 or step == train.steps:
                loss = window.gather(step, folder.checkpoints, train.precision)
                problem = task.problem()
                seconds = clock.seconds
                images = window.steps * train.global_batch
                line = {
                    "step": step,
                    "epoch": step * train.global_batch / task.num_train_samples,
                    "seconds": seconds,
                    "train/loss": loss,
                    "train/lr": learning_rate,
                    "train/images_per_second": images / max(seconds - window.since, 1e-9),
                }
                on_main(functools.partial(folder.log.write, line))
                show_progress(bar, line)
                window.open(seconds)
                if pushes is not None:
                    pushes.poll()

        bar.close()
        if stopping:
            received = agree(stop=signals.received is not None)
            reason = "" if received else f" (train.max_minutes={train.max_minutes:g})"
            say(
                f"stopped at step {step} of {train.steps}{reason}; the state is saved in "
                f"{folder.checkpoints}. The same command (resume=auto) goes on from there."
            )
            if received:
                signals.leave()
        else:
            on_main(lambda: finish(task, module, recipe, folder))
        accelerator.wait_for_everyone()
        if pushes is not None and not stopping:  # no other process waits for this one now
            pushes.finish(stop=lambda: signals.received is not None)
            if signals.received is not None:
                signals.leave()
        evaluations = [row for row in rows(folder.log.path) if task.best_metric in row]
    return Result(folder.path, step, evaluations[-1] if evaluations else {}, finished=not stopping)


def folder_of(recipe: Recipe) -> RunFolder:
    """The run folder of a recipe; nothing on disk is read yet."""
    return RunFolder(
        recipe.output,
        resume=recipe.resume,
        recipe=recipe.to_yaml(),
        recipe_hash=recipe.hash(),
        differences=lambda file: recipe_from_yaml(file).differences(recipe),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="finetune/train.py",
        description="Fine-tune SegFormer from a recipe.",
        epilog="Example: accelerate launch finetune/train.py --recipe shapes train.steps=100. "
        "All keys: `finetune show --keys`.",
    )
    parser.add_argument(
        "--recipe", required=True, help="a YAML file, or the name of a shipped recipe"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides, such as train.lr=1e-4"
    )
    options = parser.parse_args(arguments)
    return run(options.recipe, options.overrides)


def run(name: str, overrides: Sequence[str]) -> int:
    """Loads a recipe and trains; returns the exit status and prints an error as one message."""
    main_process = os.environ.get("RANK", "0") == "0"
    quiet_libraries(main_process)
    try:
        if not fit(load_recipe(name, overrides)).finished:
            return 128 + signal.SIGTERM
    except UserError as error:
        if main_process:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
