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

    # Ctrl-C while libraries are imported, before there is anything to save, ends it in silence.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not __package__:
        # Run as a script: Python put this file's folder first on its path, where our modules would
        # shadow others; the folder above is where the package lives.
        sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import functools
import math
import os
import shlex
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from rich.console import Console
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from finetune.data.loader import Batch
from finetune.errors import UserError
from finetune.machine import device, keep_freed_memory, set_threads
from finetune.optim import build_optimizer, build_scheduler
from finetune.recipe import Recipe, load_recipe
from finetune.run import checkpoint
from finetune.run.background import BackgroundPush
from finetune.run.folder import check_output, checkpoint_to_resume, open_output
from finetune.run.log import MetricsLog, rows
from finetune.run.processes import agree, all_sum, on_main, synchronise_batch_norm
from finetune.run.report import html_report
from finetune.run.screen import progress_bar
from finetune.run.signals import StopSignals
from finetune.trainers import Evaluation, Task
from finetune.trainers.segmentation import SegmentationTask

TRAINERS = {"segmentation": SegmentationTask}


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
        output: its folder.
        step: the one that it reached.
        metrics: its last evaluation's row of metrics.jsonl; empty if there was none yet.
        finished: False if `train.max_minutes` stopped it: the same recipe goes on.
    """

    output: Path
    step: int
    metrics: dict[str, Any]
    finished: bool = True


def fit(recipe: Recipe) -> Result:
    """Trains, evaluates and saves as the recipe says; goes on where an earlier run stopped.

    Every process of a launch calls it. Files go into `recipe.output`; docs/training.md, "What a
    run leaves", lists them.

    Args:
        recipe: resolved, from `finetune.recipe.load_recipe`.

    Returns:
        The run folder, the last step, the metrics of the last evaluation, and whether the run came
        to its end: `train.max_minutes` stops it before, the state saved.

    Raises:
        UserError: the recipe, a file or the launch is at fault; names it and the remedy.
        KeyboardInterrupt: after SIGINT, the state saved.
        SystemExit: with status 143 after SIGTERM, the state saved.
    """
    begun = time.monotonic()
    with StopSignals() as signals, ExitStack() as cleanup:
        train = recipe.train
        set_threads(train.threads)
        accelerator = _accelerator(recipe)
        set_threads(train.threads)  # again: accelerate has an idea of its own
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        rank, world_size = accelerator.process_index, accelerator.num_processes
        _, accumulation = recipe.batch_split(world_size)
        output = Path(recipe.output)

        # What can be known to be wrong is known before anything is built.
        on_main(lambda: check_output(recipe))
        task: Task = TRAINERS[recipe.task](recipe)
        on_main(task.check)
        _same_samples(task, world_size, accelerator.device)
        on_main(lambda: open_output(recipe, world_size, cleanup))
        pushes = _background_push(recipe, rank)
        if pushes is not None:
            cleanup.callback(pushes.close)

        # Model, optimiser and schedule. The same seed everywhere gives the same fresh weights;
        # from then on each rank draws its own dropout.
        set_seed(recipe.seed)
        module = task.build().to(accelerator.device)
        synchronise_batch_norm(module)
        set_seed(recipe.seed + 1 + rank)
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

        # Everything that a checkpoint must bring back.
        states = _States(module, optimizer, schedule, accelerator)
        progress = _Progress()
        folder = checkpoint_to_resume(recipe)
        if folder is not None:
            manifest, saved = checkpoint.load(folder, rank)
            states.load(saved)
            progress = _Progress(**saved["metrics"], step=manifest["step"])
            sampler = saved.get("sampler", {})
            remark = task.load_sampler_state(sampler, world_size=world_size, step=progress.step)
            _say(rank, remark)
            if (manifest["world_size"], manifest["threads"]) != (
                world_size,
                torch.get_num_threads(),
            ):
                _say(
                    rank,
                    f"saved with {manifest['world_size']} process(es) of {manifest['threads']} "
                    f"thread(s), going on with {world_size} of {torch.get_num_threads()}: not the "
                    "same bits",
                )
            _say(rank, f"resumed {folder} at step {progress.step}")
        log = MetricsLog(output / "metrics.jsonl")
        on_main(lambda: log.cut(progress.step))
        step, evaluation = progress.step, None
        evaluated = {row["step"] for row in rows(log.path) if task.best_metric in row}

        def save_checkpoint() -> None:
            meta: checkpoint.Meta = {
                "samples_seen": step * train.global_batch,
                "world_size": world_size,
                "threads": torch.get_num_threads(),
                "recipe_hash": recipe.hash(),
            }
            checkpoint.save(
                output / "checkpoints",
                step,
                {
                    **states.dump(),
                    "sampler": task.sampler_state(world_size),
                    "metrics": progress.dump(),
                },
                meta=meta,
                rank=rank,
                agree=agree,
            )
            on_main(lambda: checkpoint.prune(output / "checkpoints", train.keep_checkpoints))

        batches = task.train_batches(
            rank=rank,
            world_size=world_size,
            first_step=step,
            pin_memory=accelerator.device.type == "cuda",
        )
        cleanup.callback(batches.close)  # or the workers outlive a failure, and wait for ever
        bar = progress_bar(
            total=train.steps, initial=step, desc=recipe.name, unit="step", show=rank == 0
        )
        cleanup.callback(bar.close)
        # A constant near the sum of the weights keeps fp16 gradients in range; the true weight is
        # known only after the step's last micro-batch, and divided by then.
        nominal = float(train.global_batch * math.prod(recipe.augment.crop))
        model.train()
        saved_step = step if folder is not None else -1
        stopped = False
        stray = ""  # what the device found wrong with the data, looked at when it is waited for
        first_step, deadline = step, begun + 60 * (train.max_minutes or math.inf)
        tick = time.monotonic()

        def told_to_stop() -> bool:
            # After one step at least: who calls again and again gets to the end.
            timed_out = time.monotonic() > deadline and step > first_step
            return signals.received is not None or timed_out

        while True:
            # This step's micro-batches, or why there are none, and whether to stop: what one
            # process met, all know.
            last_step = step == train.steps
            micro_batches: list[Batch] = []
            problem = ""
            if not last_step:
                micro_batches, problem = _take(batches, accumulation)
            mistake: UserError | None = None
            try:
                stopping = agree(problem or stray, stop=told_to_stop())
            except UserError as error:  # on every process: a bad file costs no work done
                stopping, mistake = step > 0, error
            due = step > 0 and (last_step or step % _checkpoint_every(train) == 0)
            evaluation_due = (
                step > 0 and (last_step or step % train.eval_every == 0) and step not in evaluated
            )

            # a) The state first: nothing that follows can lose it.
            if (due or evaluation_due or stopping) and step != saved_step:
                _refuse_not_finite(progress.loss, step, output, train.precision)
                progress.seconds += time.monotonic() - tick
                save_checkpoint()
                saved_step, tick = step, time.monotonic()
            if mistake is not None:
                raise mistake
            if stopping:
                stopped = True
                break

            # b) How good is it? The best and the last model as stock folders.
            if evaluation_due:
                progress.seconds += time.monotonic() - tick
                evaluation = task.evaluate(
                    module,
                    rank=rank,
                    world_size=world_size,
                    stop=told_to_stop,
                )
                if evaluation is None:  # told to stop; evaluated again after the resume
                    stopped = True
                    break
                publish = functools.partial(_publish, task, module, evaluation, step, recipe, log)
                is_best = on_main(publish)
                if pushes is not None and is_best and not last_step:
                    pushes.newest(output / "best", step)
                evaluated.add(step)
                tick = time.monotonic()
            if last_step:
                break

            # c) One optimiser step over the global batch.
            totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
            for turn, batch in enumerate(micro_batches):
                with _gradients_kept(accelerator, model, turn < accumulation - 1):
                    total, weight = task.loss(forward, batch)
                    accelerator.backward(total / nominal)
                totals += torch.stack([total.detach(), weight.detach()]).double()
            all_sum(totals)
            # DDP took the mean over the processes: back to the sum, then over the true weight.
            factor = nominal * world_size / totals[1].clamp(min=1)
            _scale_gradients(accelerator, optimizer, module, factor)
            if train.clip_norm is not None:
                # Not accelerate's, which would unscale fp16 gradients a second time.
                torch.nn.utils.clip_grad_norm_(module.parameters(), train.clip_norm)
            learning_rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            progress.step = step
            progress.loss = progress.loss + totals[0]
            progress.weight = progress.weight + totals[1]
            progress.steps += 1
            bar.update()

            # d) Say how it goes.
            if step % train.log_every == 0 or step == train.steps:
                loss = float(progress.loss) / max(float(progress.weight), 1.0)
                stray = task.stray()
                _refuse_not_finite(loss, step, output, train.precision)
                now = time.monotonic()
                seconds = progress.seconds + now - tick
                speed = progress.steps * train.global_batch / max(seconds - progress.logged, 1e-9)
                line = {
                    "step": step,
                    "epoch": step * train.global_batch / task.num_train_samples,
                    "seconds": seconds,
                    "train/loss": loss,
                    "train/lr": learning_rate,
                    "train/images_per_second": speed,
                }
                on_main(functools.partial(log.write, line))
                bar.set_postfix(  # shown with the bar's next refresh
                    {"loss": f"{loss:.4f}", "lr": f"{learning_rate:.2e}", "img/s": f"{speed:.1f}"},
                    refresh=False,
                )
                progress.start_window(seconds)
                if pushes is not None:
                    pushes.poll()

        bar.close()
        if stopped:
            _stop(signals.received, rank, output, recipe, step)
        else:
            on_main(lambda: _finish(task, module, recipe, log.path))
        accelerator.wait_for_everyone()
        if pushes is not None and not stopped:  # nobody waits for this process any more
            pushes.finish(stop=lambda: signals.received is not None)
            if signals.received is not None:
                _leave(signals.received)
        evaluations = [row for row in rows(log.path) if task.best_metric in row]
    return Result(output, step, evaluations[-1] if evaluations else {}, finished=not stopped)


# ----------------------------------------------------------------------------- state of the loop


class _Progress:
    """What has been summed up since the last line of metrics.jsonl, and the time so far."""

    def __init__(
        self,
        step: int = 0,
        seconds: float = 0.0,
        logged: float = 0.0,
        steps: int = 0,
        loss: Any = 0.0,
        weight: Any = 0.0,
    ):
        self.step = step
        self.seconds = seconds  # of training steps, over all parts of the run
        self.logged = logged  # of them, up to the last line
        self.steps = steps
        self.loss = loss  # a tensor while it grows: reading it would wait for the device
        self.weight = weight

    def start_window(self, seconds: float) -> None:
        """Begins the next line."""
        self.logged, self.steps, self.loss, self.weight = seconds, 0, 0.0, 0.0

    def dump(self) -> dict[str, Any]:
        """For a checkpoint, where the step stands by itself."""
        return {
            "seconds": self.seconds,
            "logged": self.logged,
            "steps": self.steps,
            "loss": float(self.loss),
            "weight": float(self.weight),
        }


class _States:
    """The named states of a checkpoint, together."""

    def __init__(self, module: Any, optimizer: Any, schedule: Any, accelerator: Accelerator):
        self.parts = {"model": module, "optimizer": optimizer, "schedule": schedule}
        if accelerator.scaler is not None:
            self.parts["scaler"] = accelerator.scaler

    def dump(self) -> dict[str, Any]:
        """Everything but where the loop is."""
        rng = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state()
        return {**{name: part.state_dict() for name, part in self.parts.items()}, "rng": rng}

    def load(self, saved: dict[str, Any]) -> None:
        """Brings it all back; a rank that was not there when it was saved keeps its fresh RNG."""
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        rng = saved.get("rng", {})
        if "cpu" in rng:
            torch.set_rng_state(rng["cpu"])
        if "cuda" in rng and torch.cuda.is_available():
            torch.cuda.set_rng_state(rng["cuda"])


# ------------------------------------------------------------------------------ before the loop


def _accelerator(recipe: Recipe) -> Accelerator:
    cpu = device().type == "cpu"
    # accelerate sets threads on the CPU where this is missing, and fails where it cannot count.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    if recipe.train.precision == "fp16" and cpu:
        raise UserError("train.precision=fp16 needs a GPU; on a CPU take fp32 or bf16")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # the launcher always sets it
    wanted = {"fp32": "no"}.get(recipe.train.precision, recipe.train.precision)
    if launched not in ("no", wanted):
        warnings.warn(
            f"the launcher asked for {launched}, the recipe for train.precision="
            f"{recipe.train.precision}: the recipe decides",
            stacklevel=2,
        )
    # accelerate remembers the precision of a process's first Accelerator for ever; in a notebook
    # the next recipe may want another. The processes stay joined.
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=wanted,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    accelerator.gradient_accumulation_steps = 1  # the loop does it; the environment may say other
    wanted_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted_processes:
        raise UserError(
            f"started as {wanted_processes} processes, but accelerate joined "
            f"{accelerator.num_processes}: they would train apart. Use `finetune train`, torchrun, "
            "or `accelerate launch --multi_gpu --num_processes N`."
        )
    return accelerator


def _best_so_far(path: Path, task: Task) -> float | None:
    scores = [row.get(task.best_metric) for row in rows(path)]
    return max((score for score in scores if score is not None), default=None)


def _background_push(recipe: Recipe, rank: int) -> BackgroundPush | None:
    if recipe.hub.repo is None or rank != 0:
        return None
    return BackgroundPush(
        Path(recipe.output),
        recipe.hub.repo,
        private=recipe.hub.private,
        say=functools.partial(_say, rank),
    )


def _same_samples(task: Task, world_size: int, device: torch.device) -> None:
    """Each process opens the data for itself: what one cannot, all hear of; all see the same."""
    problem, state = "", [0]
    try:
        state = [*task.sampler_state(world_size).values(), task.num_val_samples]
    except UserError as error:
        problem = str(error)
    agree(problem)
    sums = all_sum(torch.tensor(state, dtype=torch.int64, device=device))
    if sums.tolist() != [value * world_size for value in state]:
        problem = "the processes find different data: let no file come or go while they start"
    agree(problem)


# -------------------------------------------------------------------------------- in the loop


def _checkpoint_every(train: Any) -> int:
    return train.checkpoint_every or train.eval_every


def _take(batches: Iterator[Batch], count: int) -> tuple[list[Batch], str]:
    """The next `count` micro-batches, or what is wrong with one."""
    try:
        return [next(batches) for _ in range(count)], ""
    except UserError as error:
        return [], str(error)


def _gradients_kept(accelerator: Accelerator, model: Any, keep: bool) -> AbstractContextManager:
    """DDP reduces the gradients with a step's last micro-batch only."""
    return accelerator.no_sync(model) if keep else nullcontext()


def _scale_gradients(
    accelerator: Accelerator, optimizer: Any, module: Any, factor: torch.Tensor
) -> None:
    accelerator.unscale_gradients(optimizer)
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))


def _refuse_not_finite(loss: Any, step: int, output: Path, precision: str) -> None:
    if not math.isfinite(float(loss)):
        remedy = "lower train.lr or set train.clip_norm=1"
        if precision == "fp16":
            remedy += ", or take train.precision=bf16"
        raise UserError(
            f"the loss is {float(loss)} near step {step}: {remedy}, with another output. The "
            f"checkpoints in {output / 'checkpoints'} are from before."
        )


# ------------------------------------------------------------------------------- after the loop


def _publish(
    task: Task, module: Any, evaluation: Evaluation, step: int, recipe: Recipe, log: MetricsLog
) -> bool:
    """Shows an evaluation and keeps the model as `last`, and as `best` if it is; whether it is."""
    with tqdm.external_write_mode(sys.stdout):
        console = Console()
        title = f"\n{recipe.name}, step {step} of {recipe.train.steps}"
        console.print(title, style="bold", highlight=False, markup=False)
        console.print(evaluation.table)
    output = Path(recipe.output)
    task.save(output / "last", module, evaluation, step)
    score, best = evaluation.metrics[task.best_metric], _best_so_far(log.path, task)
    is_best = score is not None and (best is None or score > best)
    if is_best:
        task.save(output / "best", module, evaluation, step)
    # Last: a run killed before this line is evaluated and saved again.
    log.write({"step": step, **evaluation.metrics})
    return is_best


def _stop(received: int | None, rank: int, output: Path, recipe: Recipe, step: int) -> None:
    """Says where it goes on; leaves by what was received, and returns if the time was up."""
    timed_out = recipe.train.max_minutes is not None and not agree(stop=received is not None)
    reason = f" (train.max_minutes={recipe.train.max_minutes:g})" if timed_out else ""
    _say(
        rank,
        f"stopped at step {step} of {recipe.train.steps}{reason}; the state is saved in "
        f"{output / 'checkpoints'}. The same command (resume=auto) goes on from there.",
    )
    if not timed_out:
        _leave(received)


def _leave(received: int | None) -> NoReturn:
    if received == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signal.SIGTERM)


def _finish(task: Task, module: Any, recipe: Recipe, log: Path) -> None:
    """Pictures, report, and one screen that says what there is and what to type next."""
    output = Path(recipe.output)
    task.examples(module, output / "panel.png")
    html_report(output)
    evaluations = [row for row in rows(log) if task.best_metric in row]
    best = max(evaluations, key=lambda row: row[task.best_metric] or 0.0)
    seconds = max((row.get("seconds") or 0.0 for row in rows(log)), default=0.0)
    images = recipe.train.steps * recipe.train.global_batch
    key = task.best_metric.removeprefix("eval/")
    # Runnable as they stand, also from an environment that is not activated.
    command = "finetune" if shutil.which("finetune") else f"{sys.executable} -m finetune.cli"
    python = "python" if shutil.which("finetune") else sys.executable
    last_score, best_score = (_score(row[task.best_metric]) for row in (evaluations[-1], best))
    with tqdm.external_write_mode(sys.stdout):
        print(
            f"""
{recipe.name}: {recipe.train.steps} steps, {images} images, {seconds / 60:.1f} minutes
  {key}: {last_score} at the end, {best_score} at its best (step {best["step"]})

  pictures   {output / "panel.png"}
  report     {output / "report.html"}
  model      {output / "best"}   (a stock Hugging Face folder; the last one: {output / "last"})

Next:
  {command} eval {shlex.quote(f"{output}/best")} --recipe {shlex.quote(f"{output}/recipe.yaml")}
  {python} -c "from transformers import pipeline; \
print(pipeline('image-segmentation', '{output / "best"}')('picture.jpg'))"
"""
        )


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _say(rank: int, text: str) -> None:
    if rank == 0 and text:
        tqdm.write(text, file=sys.stderr)


# --------------------------------------------------------------------------------------- program


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
    """Loads a recipe, trains, and turns what happens into an exit status and one message."""
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


def quiet_libraries(main_process: bool) -> None:
    """One line a warning, from one process; no progress bars of other libraries."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if main_process:
            tqdm.write(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show


if __name__ == "__main__":
    sys.exit(main())
