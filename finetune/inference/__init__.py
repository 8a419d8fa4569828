"""From a picture to its mask.

    from finetune.inference import segment

    found = segment("runs/camvid/best", "picture.jpg")
    found.mask, found.areas(), found.overlay()

`preprocessing` resizes and normalises a picture, `scores` runs the model, `models` reads folders.
"""

from finetune.inference.preprocessing import Preprocessing
from finetune.inference.segmentation import Segmentation
from finetune.inference.segmenter import Segmenter, segment
from finetune.recipe import InferenceProtocol

__all__ = ["InferenceProtocol", "Preprocessing", "Segmentation", "Segmenter", "segment"]
