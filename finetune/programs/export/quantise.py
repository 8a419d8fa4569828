"""The 8 bit form: weights and activations with ranges from the recipe's own images."""

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from finetune.inference import Segmenter
from finetune.inference.scores import score_bands
from finetune.programs.export.check import StandIn
from finetune.programs.export.graph import facts, quietly, with_facts
from finetune.recipe import Recipe
from finetune.run.screen import progress_bar
from finetune.trainers.tasks import task_of


def quantise(source: Path, target: Path, segmenter: Segmenter, recipe: Recipe, count: int) -> None:
    """Static quantisation (QDQ, one scale per channel of the weights) through ONNX Runtime.

    The convolutions become 8 bit: the patch merging, both products of Mix-FFN and the layers
    between them, the sequence reduction and the head. The attention's products stay in float32: in
    8 bit they cost ONNX Runtime more time than all the rest saves.

    Args:
        source: `onnx/model.onnx`.
        target: the file to write.
        segmenter: the model and its preprocessing.
        recipe: its training images are shown; validation images would flatter the score.
        count: number of images.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    images = _shown(segmenter, recipe, count)

    class Reader(CalibrationDataReader):
        """The images, one at a time: their sizes may differ."""

        def get_next(self) -> dict[str, np.ndarray] | None:
            shown = next(images, None)
            return None if shown is None else {"pixel_values": shown}

    # ONNX Runtime would print advice that is followed already.
    with TemporaryDirectory() as folder, closing(images), quietly():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # 7 bit of weights: processors without VNNI saturate the sum of two 8 bit products.
            reduce_range=True,
        )
    target.write_bytes(with_facts(onnx.load(target), facts(segmenter, "logits")))


def _shown(segmenter: Segmenter, recipe: Recipe, count: int) -> Generator[np.ndarray, None, None]:
    """Training images, evenly spread, as the model sees them: (1, C, H, W) float32.

    The evaluation's code asks for them, so they are padded, in windows and mirrored as there.
    """
    config, heard = segmenter.model.config, list[np.ndarray]()

    def listen(pixel_values: Tensor) -> Tensor:
        heard.append(np.ascontiguousarray(pixel_values.numpy()))
        batch, _, height, width = pixel_values.shape
        return torch.zeros(batch, config.num_labels, -(-height // 4), -(-width // 4))

    listener = StandIn(listen, config)
    samples = task_of(recipe, segmenter.preprocessing).train_samples
    places = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int))
    bar = progress_bar(total=len(places), desc="calibrating", unit="image", show=True, leave=False)
    with closing(bar):
        for place in places:
            image = samples[int(place)]["image"]
            size = image.shape[0], image.shape[1]
            views = segmenter.views([image])
            for _ in score_bands(listener, views, segmenter.preprocessing, size):
                while heard:
                    yield heard.pop(0)
            bar.update()
