"""Semantic segmentation: the data, the order of its samples, and the loss of a recipe."""

import functools
import os
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetune.augment import TrainTransform
from finetune.data.cache import CachedSamples, describe
from finetune.data.loader import Batch as LoadedBatch
from finetune.data.loader import Samples, eval_loader, train_loader
from finetune.data.order import GlobalOrder, StreamOrder
from finetune.data.samples import check_one_depth, first_dtype, preflight, warn_of_shared_files
from finetune.data.sources.opening import open_split, stream_split
from finetune.data.stream import Streamed
from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.inference.preprocessing import Preprocessing
from finetune.labels.presets import official_names
from finetune.labels.translation import Labels
from finetune.losses import LOSSES, Term
from finetune.publish import model_card, save_model_folder
from finetune.publish.facts import base_model_of, data_set_of, start_of
from finetune.recipe import HubData, LossTerm, Recipe
from finetune.trainers import Batch, Evaluation, Share
from finetune.trainers.segmentation_scores import evaluation_of, example_pictures
from finetune.weights.starting import starting_model


class SegmentationTask:
    """The `Task` of semantic segmentation."""

    best_metric = "eval/mean_iou"
    pipeline = "image-segmentation"

    def __init__(self, recipe: Recipe, preprocessing: Preprocessing | None = None):
        self.recipe = recipe
        self.labels = recipe.labels.build()
        self._preprocessing = preprocessing
        self.terms = {
            term.name: (_built(term, self.labels), term.options.weight) for term in recipe.loss
        }
        self._saved: dict[str, int] = {}  # state from a checkpoint
        self._world_size = 1
        self._stray: Tensor | int = 0
        self._licence = ""  # licence of the starting weights
        self._caches: dict[int, CachedSamples] = {}  # by the id() of the split, which stays alive

    @functools.cached_property
    def train_samples(self) -> datasets.Dataset | Streamed:
        """The training split, opened at first use, since evaluations do not need it."""
        return self._open(self.recipe.data.train_split)

    @functools.cached_property
    def val_samples(self) -> datasets.Dataset | Streamed:
        """The validation split."""
        return self._open(self.recipe.data.val_split)

    def _open(self, split: str) -> datasets.Dataset | Streamed:
        data, channels = self.recipe.data, self.recipe.model.num_channels
        if isinstance(data, HubData) and data.streaming:
            return stream_split(data, self.labels, split, num_channels=channels)
        return open_split(data, self.labels, split, num_channels=channels)

    @functools.cached_property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of evaluations and of the saved model."""
        if self._preprocessing is not None:
            return self._preprocessing
        data = self.recipe.data
        return Preprocessing(
            self.recipe.evaluation.protocol,
            tuple(data.image_mean),
            tuple(data.image_std),
            int(np.iinfo(self._dtype(self.val_samples)).max),
        )

    @property
    def num_train_samples(self) -> int:
        """Images in an epoch; a stream drops an incomplete last global batch."""
        count, batch = len(self.train_samples), self.recipe.train.global_batch
        return count // batch * batch if self.recipe.data.is_streamed else count

    def check(self) -> None:
        """Reads every header and a few samples of both splits, and opens the cache of both.

        It also warns of images that occur in both splits. `finetune doctor` reads all samples.
        """
        if not self.num_train_samples:
            raise UserError(
                f"train.global_batch: {self.recipe.train.global_batch} images, but the split that "
                f"is streamed has {len(self.train_samples)}. Take a smaller batch, or "
                "data.streaming=false."
            )
        self.check_split(self.train_samples)
        self.check_split(self.val_samples)
        data = self.recipe.data
        is_files = not data.is_drawn and not data.is_streamed
        if is_files and os.environ.get("RANK", "0") == "0":
            warn_of_shared_files(self.train_samples, self.val_samples)
        depths = [self._dtype(split) for split in (self.train_samples, self.val_samples)]
        check_one_depth(
            depths, [f"the split {name}" for name in (data.train_split, data.val_split)]
        )
        self._cached(self.train_samples, self.val_samples)

    def check_split(self, samples: datasets.Dataset | Streamed) -> None:
        """Reads every header and a few samples of a split; drawn splits need no check."""
        if isinstance(samples, Streamed):
            samples.check()
        elif not self.recipe.data.is_drawn:
            preflight(samples)

    def check_model(self, segmenter: Segmenter, what: str) -> None:
        """Raises a UserError unless a model has the recipe's classes and channels.

        Args:
            segmenter: the model.
            what: its name in the message.
        """
        found, channels = segmenter.preprocessing.num_channels, self.recipe.model.num_channels
        if found != channels:
            raise UserError(
                f"{what}: reads images of {found} channels, but the recipe's model.num_channels is "
                f"{channels}"
            )
        # Models store names without spaces around them.
        names, wanted = segmenter.names, [name.strip() for name in self.recipe.labels.names]
        if official_names(names) != official_names(wanted):
            raise UserError(
                f"{what}: its {len(names)} classes ({', '.join(names[:3])}, ...) are not the "
                f"{len(wanted)} of the recipe's labels ({', '.join(wanted[:3])}, ...)"
            )

    def build(self) -> PreTrainedModel:
        """SegFormer for the recipe's labels."""
        arguments = {
            **self.recipe.model.config_arguments(),
            "id2label": self.labels.id2label,
            "label2id": self.labels.label2id,
            "semantic_loss_ignore_index": self.labels.ignore_index,
        }
        model, self._licence = starting_model(self.recipe.model.init, arguments)
        return model

    def batches(self, share: Share, first_step: int) -> Generator[Batch, None, None]:
        """Augmented crops in the global order; see `finetune.data.loader`."""
        self._go_on(share, first_step)
        recipe, augment = self.recipe, self.recipe.augment
        micro_batch, accumulation = recipe.batch_split(share.world_size)
        full = np.iinfo(self._dtype(self.train_samples)).max
        transform = TrainTransform(
            augment.crop,
            base_size=augment.base_size,
            scale=augment.scale,
            cat_max_ratio=augment.cat_max_ratio,
            flip=augment.flip,
            photometric=augment.photometric,
            ignore_index=self.labels.ignore_index,
            image_fill=tuple(round(full * mean) for mean in recipe.data.image_mean),
        )
        samples = self._cached(self.train_samples)[0]
        new_order: Callable[..., GlobalOrder | StreamOrder] = GlobalOrder
        if isinstance(samples, Streamed):
            new_order = functools.partial(StreamOrder, workers=recipe.data.workers)
        order = new_order(
            len(samples),
            seed=recipe.seed,
            micro_batch=micro_batch,
            accumulation=accumulation,
            rank=share.rank,
            world_size=share.world_size,
            first_step=first_step,
            last_step=recipe.train.steps,
        )
        loader = train_loader(
            samples,
            transform,
            order,
            workers=recipe.data.workers,
            pin_memory=share.device.type == "cuda",
        )
        return _on_device(loader, share.device)

    def state_dict(self) -> dict[str, int]:
        """The facts that fix the order of samples besides recipe, step and processes."""
        samples = self.train_samples
        state = {"num_samples": len(samples), "num_val_samples": len(self.val_samples)}
        if isinstance(samples, Streamed):
            state["files"] = samples.identity
            state["workers"] = self.recipe.data.workers
            state["world_size"] = self._world_size
        return state

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Keeps the state until `batches`, which takes the step to resume from."""
        self._saved = state

    def _go_on(self, share: Share, step: int) -> None:
        """Raises a UserError in mid-epoch if a stream is now shared between processes differently.

        It warns of all other changes of the order of samples.
        """
        self._world_size = share.world_size
        now, saved = self.state_dict(), self._saved
        changed = [key for key in now if key != "num_val_samples" and saved.get(key) != now[key]]
        if not saved or not changed:
            return
        what = ", ".join(
            "other files" if key == "files" else f"{key} {saved.get(key)} -> {now[key]}"
            for key in changed
        )
        if not self.recipe.data.is_streamed:
            warnings.warn(
                f"the training split has changed ({what}): samples come in another order",
                stacklevel=2,
            )
            return
        batch = self.recipe.train.global_batch
        per_epoch = {count // batch for count in (saved["num_samples"], now["num_samples"])}
        if any(step % steps for steps in per_epoch):
            raise UserError(
                f"data.streaming: step {step} is in the middle of an epoch ({max(per_epoch)} "
                f"steps), and the shares of processes and workers have changed: {what}. Resume "
                "with the old settings, or from a checkpoint at the end of an epoch (resume=...)."
            )
        warnings.warn(
            f"the shares of a new epoch have changed ({what}): the same samples in other batches",
            stacklevel=2,
        )

    def _cached(self, *splits: datasets.Dataset | Streamed) -> list[Samples | Streamed]:
        """Splits in their cached form for loaders; the main process prints a line about it."""
        # Drawing shapes is faster than reading them; streams are too large for a cache.
        if self.recipe.data.is_drawn or self.recipe.data.is_streamed:
            return list(splits)
        fresh = [split for split in splits if id(split) not in self._caches]
        for split in fresh:
            self._caches[id(split)] = CachedSamples(split, self.recipe.data.cache)
        line = describe(*(self._caches[id(split)] for split in fresh))
        if line and os.environ.get("RANK", "0") == "0":
            print(line, file=sys.stderr)
        return [self._caches[id(split)] for split in splits]

    def _dtype(self, split: datasets.Dataset | Streamed) -> np.dtype:
        """The images' dtype: uint8 for RGB, else that of the files."""
        if self.recipe.model.num_channels == 3:
            return np.dtype(np.uint8)
        if isinstance(split, Streamed):
            return split.dtype
        return first_dtype(split)

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """The weight of the pixels that count, for each term."""
        return {name: term.weight(batch["labels"]) for name, (term, _) in self.terms.items()}

    def losses(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The terms, summed over the pixels that count, times their factors in the recipe."""
        logits = model(self.preprocessing.normalise(batch["pixel_values"])).logits
        losses = {}
        for name, (term, factor) in self.terms.items():
            found = term.sums(logits, batch["labels"])
            losses[name] = found.loss * factor
        self._stray = self._stray + found.stray  # all terms see the same labels
        return losses

    def problem(self) -> str:
        """Invalid labels since the last call, counted on a GPU; a CPU raises at once."""
        count, self._stray = int(self._stray), 0
        if not count:
            return ""
        return (
            f"labels: {count} pixels of the last training batches hold neither a class id (0 to "
            f"{self.labels.num_labels - 1}) nor {self.labels.ignore_index}, and were left out"
        )

    def evaluate(self, model: Any, share: Share, stop: Callable[[], bool]) -> Evaluation | None:
        """Mean IoU and loss on the validation split, every image once."""
        batches = eval_loader(
            self._cached(self.val_samples)[0],
            self.preprocessing.protocol,
            batch_size=self.recipe.evaluation.batch_size,
            rank=share.rank,
            world_size=share.world_size,
            workers=self.recipe.data.workers,
            pin_memory=next(model.parameters()).device.type == "cuda",
        )
        return evaluation_of(
            model,
            batches,
            num_images=len(self.val_samples),
            preprocessing=self.preprocessing,
            labels=self.labels,
            terms=self.terms,
            share=share,
            stop=stop,
        )

    def save(self, folder: Path, model: PreTrainedModel, evaluation: Evaluation, step: int) -> None:
        """Writes the model folder, with the evaluation's results in its card."""
        recipe, metrics = self.recipe, evaluation.metrics
        results = {
            "mean IoU": metrics["eval/mean_iou"],
            "mean accuracy": metrics["eval/mean_accuracy"],
            "overall accuracy": metrics["eval/overall_accuracy"],
        }
        card = model_card(
            name=recipe.name,
            base_model=base_model_of(recipe.model.init),
            licence=self._licence,
            names=self.labels.names,
            results=results,
            per_class_iou=metrics["eval/per_class_iou"],
            protocol=self.preprocessing.protocol,
            num_channels=recipe.model.num_channels,
            data_set=data_set_of(recipe.data),
            facts={
                "size": recipe.model.variant.upper(),
                "started from": start_of(recipe.model.init),
                "data": recipe.data.source,
                "steps": f"{step} of {recipe.train.steps}, {recipe.train.global_batch} images each",
            },
        )
        save_model_folder(
            folder,
            model,
            preprocessing=self.preprocessing,
            colors=self.labels.colors,
            card=card,
            recipe=recipe.to_yaml(),
        )

    def examples(self, model: Any, path: Path) -> None:
        """Writes image, truth, prediction and error of evenly spread validation images."""
        example_pictures(model, self.val_samples, self.preprocessing, self.labels, path)


def _built(term: LossTerm, labels: Labels) -> Term:
    """Builds a term of the recipe's loss; class weights by name become a list by id."""
    options = term.options.model_dump(exclude={"weight"})
    if given := options.pop("class_weights", None):
        options["class_weights"] = [given.get(name, 1.0) for name in labels.names]
    return LOSSES[term.name](labels.num_labels, labels.ignore_index, **options)


def _on_device(
    batches: Generator[LoadedBatch, None, None], device: torch.device
) -> Generator[Batch, None, None]:
    """Moves batches to a device; pixels and labels stay integers."""
    with closing(batches):  # else workers survive an error and wait for ever
        for batch in batches:
            pixels, labels = (
                batch[key].to(device, non_blocking=True) for key in ("pixel_values", "labels")
            )
            yield {**batch, "pixel_values": pixels, "labels": labels}
