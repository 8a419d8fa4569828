"""Semantic segmentation: the data, the loss, the metric and the pictures of a recipe."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedModel

from finetune.augment import TrainTransform
from finetune.data.folders import preflight
from finetune.data.loader import Batch, GlobalOrder, eval_loader, open_split, train_loader
from finetune.errors import UserError
from finetune.inference import Protocol, normalise, predict_mask, predict_scores
from finetune.metrics import MeanIoU
from finetune.parallel import all_sum
from finetune.publish import model_card, save_model_folder
from finetune.recipe import Recipe
from finetune.report import PanelRow, iou_table, panel
from finetune.segformer import SegformerConfig, SegformerForSemanticSegmentation
from finetune.segformer.functional import upsampled_argmax, upsampled_cross_entropy
from finetune.trainers import Evaluation

NUM_EXAMPLES = 4


class SegmentationTask:
    """The `Task` of semantic segmentation."""

    best_metric = "eval/mean_iou"

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.labels = recipe.labels.build()
        self.protocol = Protocol(**recipe.evaluation.model_dump(exclude={"batch_size"}))
        self.train_samples = open_split(recipe.data, self.labels, recipe.data.train_split)
        self.val_samples = open_split(recipe.data, self.labels, recipe.data.val_split)
        self.num_train_samples = len(self.train_samples)

    def check(self) -> None:
        """Reads every header and a few samples of both splits."""
        if self.recipe.data.source != "shapes":
            preflight(self.train_samples)
            preflight(self.val_samples)

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
        return _load(init, arguments)

    def train_batches(
        self, *, rank: int, world_size: int, first_step: int, pin_memory: bool
    ) -> Iterator[Batch]:
        """Augmented crops in the global order; see `finetune.data.loader`."""
        recipe, augment = self.recipe, self.recipe.augment
        micro_batch, accumulation = recipe.batch_split(world_size)
        transform = TrainTransform(
            augment.crop,
            base_size=augment.base_size,
            scale=augment.scale,
            cat_max_ratio=augment.cat_max_ratio,
            flip=augment.flip,
            photometric=augment.photometric,
            ignore_index=self.labels.ignore_index,
            image_fill=tuple(round(255 * mean) for mean in recipe.data.image_mean),
        )
        order = GlobalOrder(
            self.num_train_samples,
            seed=recipe.seed,
            micro_batch=micro_batch,
            accumulation=accumulation,
            rank=rank,
            world_size=world_size,
            first_step=first_step,
            last_step=recipe.train.steps,
        )
        return train_loader(
            self.train_samples,
            transform,
            order,
            workers=recipe.data.workers,
            pin_memory=pin_memory,
        )

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross entropy, summed over the pixels that count, and their number."""
        device = next(model.parameters()).device
        logits = model(self._pixel_values(batch, device)).logits
        labels = batch["labels"].to(device, non_blocking=True)
        total, weight = upsampled_cross_entropy(
            logits, labels, ignore_index=self.labels.ignore_index, reduction="sum"
        )
        return total, weight

    @torch.no_grad()
    def evaluate(
        self, model: Any, *, rank: int, world_size: int, stop: Callable[[], bool]
    ) -> Evaluation | None:
        """Mean IoU and loss on the validation split, every image once."""
        recipe = self.recipe
        device = next(model.parameters()).device
        metric = MeanIoU(self.labels.num_labels, self.labels.ignore_index)
        batches = eval_loader(
            self.val_samples,
            self.protocol,
            batch_size=recipe.evaluation.batch_size,
            rank=rank,
            world_size=world_size,
            workers=recipe.data.workers,
            pin_memory=device.type == "cuda",
        )
        was_training = model.training
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, weight, told to stop
        progress = tqdm(
            desc="evaluating",
            total=len(self.val_samples),
            unit="image",
            leave=False,
            disable=rank != 0,
        )
        for batch in batches:
            if stop():
                sums[2] = 1
                break
            labels = batch["labels"].to(device, non_blocking=True)
            scores = predict_scores(model, self._pixel_values(batch, device), self.protocol)
            size = (labels.shape[1], labels.shape[2])
            metric.add_batch(predictions=upsampled_argmax(scores, size), references=labels)
            total, weight = upsampled_cross_entropy(
                scores, labels, ignore_index=self.labels.ignore_index, reduction="sum"
            )
            sums[0] += total
            sums[1] += weight
            progress.update(len(batch["ids"]) * world_size)
        progress.close()
        model.train(was_training)
        all_sum(sums)
        confusion = all_sum(torch.from_numpy(metric.confusion).to(device))
        loss, weight, stopped = sums.tolist()
        if stopped:
            return None
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
            base_model=recipe.model.init,
            names=self.labels.names,
            results=results,
            per_class_iou=metrics["eval/per_class_iou"],
            protocol=self.protocol,
            facts={
                "size": recipe.model.variant.upper(),
                "started from": recipe.model.init or "random weights",
                "data": recipe.data.source,
                "steps": f"{step} of {recipe.train.steps}, {recipe.train.global_batch} images each",
            },
        )
        save_model_folder(
            folder,
            model,
            protocol=self.protocol,
            image_mean=recipe.data.image_mean,
            image_std=recipe.data.image_std,
            card=card,
            recipe=recipe.to_yaml(),
        )

    @torch.no_grad()
    def examples(self, model: Any, path: Path) -> None:
        """Image, truth, prediction and error of a few validation images, evenly spread."""
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        count = min(NUM_EXAMPLES, len(self.val_samples))
        rows = []
        for index in np.linspace(0, len(self.val_samples) - 1, count).astype(int):
            sample = self.val_samples[int(index)]
            truth = sample["mask"]
            image = self.protocol.resize(sample["image"])[None]
            pixel_values = self._normalised(torch.from_numpy(image.copy()).to(device))
            predicted = predict_mask(model, pixel_values, self.protocol, truth.shape)
            prediction = predicted[0].cpu().numpy()
            metric = MeanIoU(self.labels.num_labels, self.labels.ignore_index)
            metric.add_batch(predictions=prediction, references=truth)
            mean_iou = metric.compute()["mean_iou"]
            rows.append(PanelRow(sample["id"], sample["image"], truth, prediction, mean_iou))
        model.train(was_training)
        labels = self.labels
        panel(rows, labels.names, labels.colors, labels.ignore_index, path)

    def _pixel_values(self, batch: Batch, device: torch.device) -> Tensor:
        return self._normalised(batch["pixel_values"].to(device, non_blocking=True))

    def _normalised(self, pixels: Tensor) -> Tensor:
        data = self.recipe.data
        mean = torch.tensor(data.image_mean, device=pixels.device)
        std = torch.tensor(data.image_std, device=pixels.device)
        return normalise(pixels, mean, std)

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


def _load(init: str, arguments: dict[str, Any]) -> PreTrainedModel:
    """Starts from a checkpoint; a head for other labels is drawn anew, and said so."""
    try:
        found = AutoConfig.from_pretrained(init)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.init={init}: not a model folder or Hub id ({reason})") from error
    if found.model_type != "segformer":
        raise UserError(f"model.init={init}: a {found.model_type}, not a segformer")
    for key in ("depths", "hidden_sizes", "num_attention_heads"):
        if list(getattr(found, key)) != list(arguments[key]):
            raise UserError(
                f"model.init={init}: {key} are {list(getattr(found, key))}, but the recipe says "
                f"{list(arguments[key])}. Set model.variant to the size of the checkpoint."
            )
    config = SegformerConfig(**{**found.to_dict(), **arguments})
    model: PreTrainedModel
    info: dict[str, Any]
    try:
        model, info = SegformerForSemanticSegmentation.from_pretrained(  # type: ignore[misc]
            init,
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.init={init}: its weights cannot be read ({reason})") from error
    fresh = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    lost = [key for key in fresh if key.startswith("segformer.")]
    if lost:
        raise UserError(
            f"model.init={init}: {len(lost)} weights of the encoder are missing, "
            f"{lost[0]} among them. This is not a SegFormer checkpoint."
        )
    if fresh:
        tqdm.write(f"{init}: encoder loaded; drawn anew: {', '.join(fresh)}")
    return model.float()


def _number(value: float) -> float | None:
    """A plain float; None for NaN, which JSON does not know."""
    return None if np.isnan(value) else float(value)
