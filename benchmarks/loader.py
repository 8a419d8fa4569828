"""`loader`: from files to augmented batches, with our loader and with transformers' example script.

Both use torch's DataLoader with one worker of one thread. They end at normalised float batches in
the training's own process. Our side receives bytes there and normalises them, here on the CPU. Each
side's worker behaves as in a training: ours keeps freed memory, even if the other benchmarks do
not.
"""

import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
import transformers
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, TrainTransform
from finetune.data.cache import CachedSamples
from finetune.data.loader import Augmented, batches_of
from finetune.data.samples import as_samples
from finetune.errors import UserError
from finetune.inference.preprocessing import normalise
from finetune.labels.translation import Labels
from finetune.machine import take_turns
from finetune.pictures.reading import read_image
from finetune.pictures.references import IMAGE_SUFFIXES
from finetune.programs.benchmark.benchmark import Options, Result, ratios
from finetune.programs.benchmark.cases import IGNORE, Case, Work
from finetune.programs.benchmark.meters import machine

ROUNDS = 9
PICTURES = 16
"""Number of images, drawn or taken from a folder."""
BATCH = 4
BATCHES = 8
"""Batches per turn; the workers are idle before and after a turn."""
SIZE = (512, 683)
"""Height and width of a drawn picture: ADE20K's most frequent size."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE = (0.5, 2.0)

_CACHE = "FINETUNE_CACHE"


def case_of(options: Options, device: str) -> Case:
    """The one case of `loader`; a loader works on the CPU, in float32, whatever the device."""
    return Case("loader", None, options.size or (512, 512), 1, options.num_labels, "float32", "cpu")


def measure(case: Case, options: Options) -> Result:
    """Both sides in turns; ours with and without cached samples."""
    rounds = options.rounds or ROUNDS
    with one_thread(), picture_files(options.data, case.num_labels) as pairs:
        works = {
            "ours": load_ours(case, pairs, cached=False),
            "ours_cached": load_ours(case, pairs, cached=True),
        }
        if options.vs == "stock":
            works["stock"] = load_stock(case, pairs)
        seconds = take_turns(works, (), rounds=rounds, device="cpu")
        facts = machine("cpu", keeps_memory=options.keep_freed_memory)
    seconds = {side: value / (BATCH * BATCHES) for side, value in seconds.items()}
    return Result(case, rounds, facts, seconds, ratios(seconds), {})


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, as in a loader's worker."""
    threads, opencv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(opencv_threads)


@contextmanager
def picture_files(folder: Path | None, num_labels: int) -> Iterator[list[tuple[str, str]]]:
    """Pairs of an image and a mask; masks are always drawn, images only without a folder.

    Decoded samples are cached beside the masks until the end of the block.

    Raises:
        UserError: The folder holds no images, or one cannot be read.
    """
    with tempfile.TemporaryDirectory() as temporary, _cache_in(temporary):
        if folder is None:
            images = [Path(temporary) / f"{index}.jpg" for index in range(PICTURES)]
            for index, path in enumerate(images):
                Image.fromarray(draw_picture(index)).save(path, quality=90)
        else:
            found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            images = sorted(found)[:PICTURES]
        if not images:
            raise UserError(f"--data {folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
        pairs = []
        for index, path in enumerate(images):
            mask = Path(temporary) / f"{index}.png"
            size = read_image(path).shape[:2]  # names a file that it cannot read
            Image.fromarray(draw_mask(index, size, num_labels)).save(mask)
            pairs.append((str(path), str(mask)))
        yield pairs


@contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = folder
    try:
        yield
    finally:
        os.environ.pop(_CACHE)
        if before is not None:
            os.environ[_CACHE] = before


def draw_picture(index: int) -> np.ndarray:
    """uint8 (H, W, 3): noise whose amplitude falls with frequency as that of photographs does.

    Its JPEG is as long as a photograph's and as slow to decode (ADE20K's first pictures at quality
    90: 1.7 to 2.1 bits per pixel).
    """
    rng = np.random.default_rng([0, index])
    rows, columns = np.meshgrid(np.fft.fftfreq(SIZE[0]), np.fft.rfftfreq(SIZE[1]), indexing="ij")
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / max(SIZE)) ** 1.6
    planes = [
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal(SIZE)) * amplitude, SIZE) for _ in range(3)
    ]
    grey, *tints = (plane / plane.std() for plane in planes)
    channels = [grey, grey + 0.3 * tints[0], grey + 0.3 * tints[1]]
    return np.clip(np.stack(channels, 2) * 50 + 120, 0, 255).astype(np.uint8)


def draw_mask(index: int, size: tuple[int, int], num_labels: int) -> np.ndarray:
    """uint8 (H, W): the regions nearest to twelve points, one class per region."""
    rng = np.random.default_rng([1, index])
    points = rng.uniform(0, 1, (12, 2)) * size
    rows, columns = np.indices(size)
    nearest = np.argmin([(rows - r) ** 2 + (columns - c) ** 2 for r, c in points], axis=0)
    return rng.integers(0, num_labels, len(points)).astype(np.uint8)[nearest]


def load_ours(case: Case, pairs: Sequence[tuple[str, str]], *, cached: bool) -> Work:
    """The training's own loader; its bytes are then normalised.

    With `cached` decoded samples are kept, as from the second epoch on: the first run fills the
    cache, and the timed runs read from memory.
    """
    images, masks = zip(*pairs, strict=True)
    labels = Labels.build([str(i) for i in range(case.num_labels)])
    ids = [str(i) for i in range(len(pairs))]
    data = as_samples([Path(image) for image in images], masks, ids, labels)
    kept = CachedSamples(data, "disk" if cached else "none")
    transform = TrainTransform(
        case.size,
        scale=SCALE,
        ignore_index=IGNORE,
        image_fill=tuple(round(255 * mean) for mean in MEAN),
    )
    loader = batches_of(
        kept,
        Augmented(transform, 0),
        _Turns(len(pairs)),
        workers=1,
        pin_memory=False,
        persistent_workers=True,
    )
    mean, std = torch.tensor(MEAN), torch.tensor(STD)

    def run() -> None:
        for batches in loader:
            if isinstance(batches, UserError):
                raise batches
            for batch in batches:
                normalise(batch["pixel_values"], mean, std)

    return Work(run, lambda: {})


def load_stock(case: Case, pairs: Sequence[tuple[str, str]]) -> Work:
    """The loader of transformers' run_semantic_segmentation.py, with the published transforms."""
    loader = DataLoader(
        _StockSamples(case, pairs),
        batch_sampler=_Turns(len(pairs)),
        num_workers=1,
        collate_fn=transformers.default_data_collator,
        persistent_workers=True,
    )

    def run() -> None:
        for _ in loader:
            pass

    return Work(run, lambda: {})


class _Turns(Sampler[list[tuple[int, int]]]):
    """Passes of BATCHES lists of (position, index); no position comes twice."""

    def __init__(self, count: int):
        self.count = count
        self._positions = itertools.count()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for _ in range(BATCHES):
            positions = itertools.islice(self._positions, BATCH)
            yield [(position, position % self.count) for position in positions]

    def __len__(self) -> int:
        return BATCHES


class _StockSamples(Dataset[dict[str, Tensor]]):
    """The example's data set and transforms, by (position, index).

    ColorJitter changes all four properties half the time; ours changes each of the four half the
    time. Crops of one class are not drawn again.
    """

    def __init__(self, case: Case, pairs: Sequence[tuple[str, str]]):
        import albumentations as A  # after finetune.augment, which turns off its network request
        from albumentations.pytorch import ToTensorV2

        self.pairs = pairs
        height, width = case.size
        self.compose = A.Compose(
            [
                A.RandomScale((SCALE[0] - 1, SCALE[1] - 1), p=1),
                A.PadIfNeeded(height, width, fill_mask=IGNORE),
                A.RandomCrop(height, width),
                A.HorizontalFlip(p=0.5),
                A.ColorJitter(
                    brightness=(1 - BRIGHTNESS / 255, 1 + BRIGHTNESS / 255),
                    contrast=CONTRAST,
                    saturation=SATURATION,
                    hue=(-HUE / 180, HUE / 180),
                    p=0.5,
                ),
                A.Normalize(mean=MEAN, std=STD),
                ToTensorV2(),
            ],
            seed=0,
        )

    def __getitem__(self, address: tuple[int, int]) -> dict[str, Tensor]:
        image_path, mask_path = self.pairs[address[1]]
        with Image.open(image_path) as image, Image.open(mask_path) as mask:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            out = self.compose(image=np.array(upright), mask=np.array(mask))
        return {"pixel_values": out["image"].float(), "labels": out["mask"].long()}
