"""Semantic segmentation: the data, the loss, the metric and the pictures of a recipe."""

import functools
import os
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
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
from finetune.data.loader import Batch, Samples, eval_loader, train_loader
from finetune.data.order import GlobalOrder, StreamOrder
from finetune.data.samples import (
    check_one_depth,
    first_dtype,
    preflight,
    warn_of_shared_files,
)
from finetune.data.sources.opening import open_split, stream_split
from finetune.data.stream import Streamed
from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.inference.models import load_config, load_model
from finetune.inference.preprocessing import Preprocessing
from finetune.inference.scores import score_bands
from finetune.labels.presets import official_names
from finetune.metrics import MeanIoU
from finetune.pictures.drawing import PanelRow, panel
from finetune.pictures.protocol import Protocol
from finetune.publish import DataSet, hub_id, model_card, save_model_folder
from finetune.recipe import Recipe
from finetune.run.processes import agree, all_sum
from finetune.run.report import iou_table
from finetune.run.screen import progress_bar
from finetune.segformer import SegformerConfig, SegformerForSemanticSegmentation
from finetune.segformer.functional import (
    CrossEntropySums,
    cross_entropy_sums,
    upsampled_argmax,
)
from finetune.trainers import Evaluation
from finetune.weights import is_checkpoint_file, licence_of, read_weights, variant_of

NUM_EXAMPLES = 4
DATA_SETS = {
    "shapes": "procedural shapes",
    "camvid": "CamVid",
    "ade20k": "ADE20K",
    "cityscapes": "Cityscapes",
    "voc": "Pascal VOC 2012",
    "coco-stuff": "COCO-Stuff 164k",
}
"""What people call the sources that are one set."""


class SegmentationTask:
    """The `Task` of semantic segmentation."""

    best_metric = "eval/mean_iou"

    def __init__(self, recipe: Recipe, preprocessing: Preprocessing | None = None):
        """Of a recipe; an evaluation may show images in another way than it says."""
        self.recipe = recipe
        self.labels = recipe.labels.build()
        self._preprocessing = preprocessing
        self._stray: Tensor | int = 0
        self._licence = ""  # of the weights that training starts from
        self._caches: dict[int, CachedSamples] = {}  # by the identity of the split, which stays

    @functools.cached_property
    def train_samples(self) -> datasets.Dataset | Streamed:
        """The training split; opened when first asked for, which an evaluation never does."""
        return self._open(self.recipe.data.train_split)

    @functools.cached_property
    def val_samples(self) -> datasets.Dataset | Streamed:
        """The validation split."""
        return self._open(self.recipe.data.val_split)

    def _open(self, split: str) -> datasets.Dataset | Streamed:
        data, channels = self.recipe.data, self.recipe.model.num_channels
        open_it = stream_split if data.streaming else open_split
        return open_it(data, self.labels, split, num_channels=channels)

    @functools.cached_property
    def preprocessing(self) -> Preprocessing:
        """How images are shown to the model in evaluations, and later."""
        if self._preprocessing is not None:
            return self._preprocessing
        data = self.recipe.data
        return Preprocessing(
            protocol_of(self.recipe),
            tuple(data.image_mean),
            tuple(data.image_std),
            int(np.iinfo(self._dtype(self.val_samples)).max),
        )

    @property
    def num_train_samples(self) -> int:
        """Images in an epoch; of a stream without those that do not fill a last global batch."""
        count, batch = len(self.train_samples), self.recipe.train.global_batch
        return count // batch * batch if self.recipe.data.streaming else count

    @property
    def num_val_samples(self) -> int:
        """Images of an evaluation."""
        return len(self.val_samples)

    def check(self) -> None:
        """Reads every header and a few samples of both splits, and opens the cache of both.

        What `finetune doctor` finds by reading everything is left to it, but for images that are
        held back and trained on.
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
        is_files = data.source != "shapes" and not data.streaming
        if is_files and os.environ.get("RANK", "0") == "0":
            warn_of_shared_files(self.train_samples, self.val_samples)
        depths = [self._dtype(split) for split in (self.train_samples, self.val_samples)]
        check_one_depth(
            depths, [f"the split {name}" for name in (data.train_split, data.val_split)]
        )
        self._cached(self.train_samples, self.val_samples)

    def check_split(self, samples: datasets.Dataset | Streamed) -> None:
        """Reads every header and a few samples of one split; drawn ones have nothing to check."""
        if isinstance(samples, Streamed):
            samples.check()
        elif self.recipe.data.source != "shapes":
            preflight(samples)

    def build(self) -> PreTrainedModel:
        """SegFormer for the recipe's labels."""
        arguments = {
            **self.recipe.model.config_arguments(),
            "id2label": self.labels.id2label,
            "label2id": self.labels.label2id,
            "semantic_loss_ignore_index": self.labels.ignore_index,
        }
        init = self.recipe.model.init
        if init is None:
            return SegformerForSemanticSegmentation(SegformerConfig(**arguments))
        load = _load_file if is_checkpoint_file(init) else _load
        model, self._licence = load(init, arguments)
        return model

    def train_batches(
        self, *, rank: int, world_size: int, first_step: int, pin_memory: bool
    ) -> Generator[Batch, None, None]:
        """Augmented crops in the global order; see `finetune.data.loader`."""
        recipe, augment = self.recipe, self.recipe.augment
        micro_batch, accumulation = recipe.batch_split(world_size)
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
        sharing = {
            "seed": recipe.seed,
            "micro_batch": micro_batch,
            "accumulation": accumulation,
            "rank": rank,
            "world_size": world_size,
            "first_step": first_step,
            "last_step": recipe.train.steps,
        }
        order: GlobalOrder | StreamOrder
        if isinstance(samples, Streamed):
            order = StreamOrder(len(samples), workers=recipe.data.workers, **sharing)
        else:
            order = GlobalOrder(len(samples), **sharing)
        return train_loader(
            samples, transform, order, workers=recipe.data.workers, pin_memory=pin_memory
        )

    def sampler_state(self, world_size: int) -> dict[str, int]:
        """What the order of samples depends on besides the recipe and the step."""
        samples = self.train_samples
        state = {"num_samples": len(samples)}
        if isinstance(samples, Streamed):
            state["files"] = samples.identity
            state["world_size"] = world_size
            state["workers"] = self.recipe.data.workers
            state["micro_batch"] = self.recipe.batch_split(world_size)[0]
        return state

    def load_sampler_state(self, saved: dict[str, int], *, world_size: int, step: int) -> str:
        """Refuses to go on in the middle of an epoch of a stream that is shared otherwise now."""
        now = self.sampler_state(world_size)
        if not saved or saved == now:
            return ""
        keys = [key for key in now if saved.get(key) != now[key]]
        what = ", ".join(
            "other files" if key == "files" else f"{key} {saved.get(key)} -> {now[key]}"
            for key in keys
        )
        if not self.recipe.data.streaming:
            return f"the training split has changed ({what}): samples come in another order"
        batch = self.recipe.train.global_batch
        per_epoch = {count // batch for count in (saved["num_samples"], now["num_samples"])}
        if any(step % steps for steps in per_epoch):
            raise UserError(
                f"data.streaming: step {step} is in the middle of an epoch ({max(per_epoch)} "
                f"steps), and what processes and workers read has changed: {what}. Go on as it "
                "was, or from a checkpoint at the end of an epoch (resume=...)."
            )
        return f"a new epoch begins, shared otherwise ({what}): the same samples in other batches"

    def _cached(self, *splits: datasets.Dataset | Streamed) -> list[Samples | Streamed]:
        """Splits as loaders read them: from the cache, about which the main process says a line."""
        # Shapes are drawn in less time than they would be read; streams are for what has no room.
        if self.recipe.data.source == "shapes" or self.recipe.data.streaming:
            return list(splits)
        fresh = [split for split in splits if id(split) not in self._caches]
        for split in fresh:
            self._caches[id(split)] = CachedSamples(split, self.recipe.data.cache)
        line = describe(*(self._caches[id(split)] for split in fresh))
        if line and os.environ.get("RANK", "0") == "0":
            print(line, file=sys.stderr)
        return [self._caches[id(split)] for split in splits]

    def _dtype(self, split: datasets.Dataset | Streamed) -> np.dtype:
        """Of the images, which are all of one: RGB in bytes, or as the files have it."""
        if self.recipe.model.num_channels == 3:
            return np.dtype(np.uint8)
        if isinstance(split, Streamed):
            return split.dtype
        return first_dtype(split)

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy, summed over the pixels that count, and the sum of their weights."""
        device = next(model.parameters()).device
        logits = model(self._pixel_values(batch, device)).logits
        sums = self._loss(logits, batch["labels"].to(device, non_blocking=True))
        self._stray = self._stray + sums.stray
        return sums.loss, sums.weight

    def stray(self) -> str:
        """Labels on a GPU that are neither a class nor ignored; on a CPU they raise at once."""
        count, self._stray = int(self._stray), 0
        if not count:
            return ""
        return (
            f"labels: {count} pixels of the last training batches hold neither a class id (0 to "
            f"{self.labels.num_labels - 1}) nor {self.labels.ignore_index}, and were left out"
        )

    @torch.no_grad()
    def evaluate(
        self, model: Any, *, rank: int, world_size: int, stop: Callable[[], bool]
    ) -> Evaluation | None:
        """Mean IoU and loss on the validation split, every image once."""
        recipe = self.recipe
        device = next(model.parameters()).device
        metric = MeanIoU(self.labels.num_labels, self.labels.ignore_index)
        batches = eval_loader(
            self._cached(self.val_samples)[0],
            self.preprocessing.protocol,
            batch_size=recipe.evaluation.batch_size,
            rank=rank,
            world_size=world_size,
            workers=recipe.data.workers,
            pin_memory=device.type == "cuda",
        )
        was_training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss and weight
        problem, stopped = "", False
        progress = progress_bar(
            total=len(self.val_samples),
            desc="evaluating",
            unit="image",
            show=rank == 0,
            leave=False,
        )
        with closing(progress), closing(batches):
            try:
                for batch in batches:
                    stopped = stop()
                    if stopped:
                        break
                    labels = batch["labels"].to(device, non_blocking=True)
                    views = [batch["pixel_values"], *batch["other_scales"]]
                    size = (labels.shape[1], labels.shape[2])
                    for rows, scores in score_bands(model, views, self.preprocessing, size):
                        truth = labels[:, rows]
                        predicted = upsampled_argmax(scores, (truth.shape[1], truth.shape[2]))
                        metric.add_batch(predictions=predicted, references=truth)
                        sums += torch.stack(self._loss(scores, truth)[:2])
                    progress.update(len(batch["ids"]) * world_size)
            except UserError as error:  # a bad file in this process's share
                problem = str(error)
        model.train(was_training)
        if agree(problem, stop=stopped):
            return None
        loss, weight = all_sum(sums).tolist()
        confusion = all_sum(torch.from_numpy(metric.confusion).to(device))
        metric.reset()
        metric.merge(confusion)
        return self._evaluation(metric, loss / weight if weight else float("nan"))

    def save(self, folder: Path, model: PreTrainedModel, evaluation: Evaluation, step: int) -> None:
        """Writes the model folder, with a card that holds this evaluation's results."""
        recipe, metrics = self.recipe, evaluation.metrics
        results = {
            "mean IoU": metrics["eval/mean_iou"],
            "mean accuracy": metrics["eval/mean_accuracy"],
            "overall accuracy": metrics["eval/overall_accuracy"],
        }
        card = model_card(
            name=recipe.name,
            base_model=base_model_of(recipe),
            licence=self._licence,
            names=self.labels.names,
            results=results,
            per_class_iou=metrics["eval/per_class_iou"],
            protocol=self.preprocessing.protocol,
            num_channels=recipe.model.num_channels,
            data_set=data_set_of(recipe),
            facts={
                "size": recipe.model.variant.upper(),
                "started from": _start_of(recipe),
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

    @torch.no_grad()
    def examples(self, model: Any, path: Path) -> None:
        """Image, truth, prediction and error of a few validation images, evenly spread."""
        was_training = model.training
        segmenter = Segmenter(
            model,
            self.preprocessing,
            names=self.labels.names,
            device=next(model.parameters()).device,
        )
        count = min(NUM_EXAMPLES, len(self.val_samples))
        rows = []
        for index in np.linspace(0, len(self.val_samples) - 1, count).astype(int):
            sample = self.val_samples[int(index)]
            truth = sample["mask"]
            masks, _ = segmenter.masks(segmenter.views([sample["image"]]), truth.shape)
            prediction = masks[0]
            metric = MeanIoU(self.labels.num_labels, self.labels.ignore_index)
            metric.add_batch(predictions=prediction, references=truth)
            mean_iou = metric.compute()["mean_iou"]
            rows.append(PanelRow(sample["id"], sample["image"], truth, prediction, mean_iou))
        model.train(was_training)
        labels = self.labels
        panel(rows, labels.names, labels.colors, labels.ignore_index, path)

    def _loss(self, logits: Tensor, labels: Tensor) -> CrossEntropySums:
        loss = self.recipe.loss
        return cross_entropy_sums(
            logits,
            labels,
            ignore_index=self.labels.ignore_index,
            weight=self._class_weights(logits.device),
            label_smoothing=loss.label_smoothing,
            focal_gamma=loss.focal_gamma,
        )

    @functools.lru_cache(maxsize=1)  # noqa: B019 - a task lives as long as its run
    def _class_weights(self, device: torch.device) -> Tensor | None:
        given = self.recipe.loss.class_weights
        if not given:
            return None
        return torch.tensor([given.get(name, 1.0) for name in self.labels.names], device=device)

    def _pixel_values(self, batch: Batch, device: torch.device) -> Tensor:
        pixels = batch["pixel_values"].to(device, non_blocking=True)
        return self.preprocessing.normalise(pixels)

    def _evaluation(self, metric: MeanIoU, loss: float) -> Evaluation:
        result = metric.compute()
        names = self.labels.names
        row = {
            "eval/mean_iou": _number(result["mean_iou"]),
            "eval/mean_accuracy": _number(result["mean_accuracy"]),
            "eval/overall_accuracy": _number(result["overall_accuracy"]),
            "eval/loss": _number(loss),
            "eval/per_class_iou": {
                name: _number(iou)
                for name, iou in zip(names, result["per_category_iou"], strict=True)
            },
        }
        pixels = metric.confusion.sum(1).tolist()
        return Evaluation(row, iou_table(result, names, pixels))


def protocol_of(recipe: Recipe) -> Protocol:
    """How a recipe's evaluations show images."""
    return Protocol(**recipe.evaluation.model_dump(exclude={"batch_size"}))


def base_model_of(recipe: Recipe) -> str | None:
    """The Hub id that a recipe's training starts from, to which a card may link: nothing local."""
    init = recipe.model.init
    return None if init is None or is_checkpoint_file(init) else hub_id(init)


def _start_of(recipe: Recipe) -> str:
    """What training starts from, for a card that others may read: no path of this machine."""
    init = recipe.model.init
    return base_model_of(recipe) or (Path(init).resolve().name if init else "random weights")


def data_set_of(recipe: Recipe) -> DataSet:
    """What a recipe trains and evaluates on, as a card says it."""
    data = recipe.data
    name = DATA_SETS.get(data.source) or Path(data.path or "").expanduser().resolve().name
    split = data.val_split
    if data.val_fraction is not None:
        split = f"{data.val_fraction:.0%} of {data.train_split}, held back"
    found = hub_id(data.path) if data.source == "hub" else None
    return DataSet(
        name=found or name,
        split=split,
        train_split=data.train_split,
        kind=data.source,
        id=found,
        subset=data.subset,
        revision=data.revision,
    )


def check_same_task(segmenter: Segmenter, recipe: Recipe, what: str) -> None:
    """Raises a UserError if a model is not of a recipe's classes and channels.

    Args:
        segmenter: the model.
        recipe: resolved.
        what: the model, for the message.
    """
    found, channels = segmenter.preprocessing.num_channels, recipe.model.num_channels
    if found != channels:
        raise UserError(
            f"{what}: reads images of {found} channels, but the recipe's model.num_channels is "
            f"{channels}"
        )
    # Spaces around a name do not go into a model.
    names, wanted = segmenter.names, [name.strip() for name in recipe.labels.names]
    if official_names(names) != official_names(wanted):
        raise UserError(
            f"{what}: its {len(names)} classes ({', '.join(names[:3])}, ...) are not the "
            f"{len(wanted)} of the recipe's labels ({', '.join(wanted[:3])}, ...)"
        )


_FIRST = "segformer.encoder.patch_embeddings.0.proj.weight"


def _load(init: str, arguments: dict[str, Any]) -> tuple[PreTrainedModel, str]:
    """Starts from a folder or Hub id; a head for other labels is drawn anew, and said so.

    Returns:
        The model, and what is known about the licence.
    """
    what = f"model.init={init}"
    found = load_config(init, what)
    _check_size(found.to_dict(), arguments, what, ("num_attention_heads",))
    config = SegformerConfig(**{**found.to_dict(), **arguments})
    model, fresh = load_model(init, what, config)
    is_other_image = found.num_channels != config.num_channels
    lost = [key for key in fresh if key.startswith("segformer.")]
    if is_other_image and _FIRST in lost:
        lost.remove(_FIRST)
    if lost:
        raise UserError(
            f"{what}: {len(lost)} weights of the encoder are missing, {lost[0]} among them. This "
            "is not a SegFormer checkpoint."
        )
    if fresh:
        loaded = _but_for_channels("the encoder is loaded", found.num_channels, config)
        warnings.warn(f"{what}: {loaded}, new are {', '.join(fresh)}", stacklevel=3)
    return model, licence_of(init)


def _load_file(init: str, arguments: dict[str, Any]) -> tuple[PreTrainedModel, str]:
    """As `_load`, from a file of weights; always says what it took of it."""
    what = f"model.init={init}"
    weights = read_weights(
        Path(init),
        what,
        heads=arguments["num_attention_heads"],
        check_size=lambda found: _check_size(found, arguments, what),
    )
    shapes = {key: value for key, value in weights.arguments.items() if key != "num_labels"}
    config = SegformerConfig(**{**shapes, **arguments})
    model = SegformerForSemanticSegmentation(config)
    own = model.state_dict()
    taken = {
        name: tensor
        for name, tensor in weights.state.items()
        if name in own and own[name].shape == tensor.shape
    }
    model.load_state_dict(taken, strict=False)
    fresh = sorted(own.keys() - taken.keys())
    has_head = any(name.startswith("decode_head.") for name in taken)
    loaded = "the encoder and the head are" if has_head and not fresh else "the encoder is"
    said = f"{weights.describe()}: {loaded} loaded"
    said = _but_for_channels(said, weights.arguments["num_channels"], config)
    if fresh:
        said += f", new are {', '.join(fresh)}"
    if weights.lost_head:
        said += f" ({weights.lost_head})"
    warnings.warn(f"{what}: {said}", stacklevel=3)
    if weights.licence:
        warnings.warn(f"{what}: {weights.licence}", stacklevel=3)
    return model, weights.licence


def _check_size(
    found: dict[str, Any], wanted: dict[str, Any], what: str, more: tuple[str, ...] = ()
) -> None:
    """A checkpoint's encoder is of the size that the recipe says."""
    for key in ("depths", "hidden_sizes", *more):
        if list(found[key]) != list(wanted[key]):
            size = variant_of(found["depths"], found["hidden_sizes"])
            remedy = f"model.variant={size}"
            if key == "num_attention_heads":
                remedy = f"model.{key}={_list(found[key])}"
            elif size is None:
                sizes = [f"model.{k}={_list(found[k])}" for k in ("depths", "hidden_sizes")]
                heads = "model.num_attention_heads, a number a stage that divides its width"
                remedy = f"{' '.join(sizes)} and {heads}"
                if "num_attention_heads" in found:
                    remedy = f"{' '.join(sizes)} model.num_attention_heads="
                    remedy += _list(found["num_attention_heads"])
            raise UserError(
                f"{what}: {key} are {list(found[key])}, but the recipe says {list(wanted[key])}. "
                f"Set {remedy}."
            )


def _list(values: Sequence[int]) -> str:
    """As a command line takes it, without spaces."""
    return str(list(values)).replace(" ", "")


def _but_for_channels(loaded: str, channels: int, config: SegformerConfig) -> str:
    if channels == config.num_channels:
        return loaded
    return (
        f"{loaded} but for its first convolution, which reads {config.num_channels} channels here "
        f"and {channels} there"
    )


def _number(value: float) -> float | None:
    """A plain float; None for NaN, which JSON does not know."""
    return None if np.isnan(value) else float(value)
