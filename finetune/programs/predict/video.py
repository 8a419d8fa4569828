"""Predicts videos with PyAV (FFmpeg), frame by frame: a video of overlays and a table of areas."""

import csv
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import numpy as np

from finetune.errors import UserError
from finetune.inference import Segmenter
from finetune.pictures.drawing import overlay
from finetune.programs.predict.inputs import Item
from finetune.programs.predict.outputs import Outputs


def predict_video(
    segmenter: Segmenter,
    item: Item,
    outputs: Outputs,
    batch_size: Callable[[tuple[int, ...]], int],
    advance: Callable[[int], object],
) -> int:
    """Writes OUT/video/NAME.mp4 and NAME.csv, each whole or not at all.

    The overlay has the video's own frames, times and orientation, and no sound. The journal's line
    holds the areas of all frames together.

    Args:
        segmenter: The model.
        item: A video.
        outputs: The folder of its results.
        batch_size: Frames per batch, by their size.
        advance: Called with the number of frames done.

    Returns:
        The number of frames.

    Raises:
        UserError: The video cannot be read or written; the message names it.
    """
    av = _library()
    path = outputs.path("video", item.name)
    temp, table = path.with_name(f".{path.stem}.new.mp4"), path.with_suffix(".csv")
    temp_table = table.with_name(f".{table.name}.new")
    totals = np.zeros(len(segmenter.names), np.int64)
    count, size, end, base = 0, (0, 0), 0.0, Fraction(1, 25)
    outputs.begin(item)
    try:
        with ExitStack() as stack:
            try:
                source = stack.enter_context(av.open(item.where))
            except (av.FFmpegError, OSError) as error:
                raise UserError(f"{item.where}: cannot be read as a video ({error})") from error
            if not source.streams.video:
                raise UserError(f"{item.where}: holds no video")
            stream = source.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"err_detect": "explode"}  # no guesses at lost blocks
            length = _seconds(source, stream)
            target = stack.enter_context(av.open(str(temp), "w"))
            written = stack.enter_context(open(temp_table, "w", newline="", encoding="utf-8"))
            rows = csv.writer(written)
            rows.writerow(["frame", "seconds", "class_id", "class", "pixels", "share"])
            out: Any = None
            for frames in _batches(_frames(av, source, stream, item), batch_size, item):
                images = [image for _, image in frames]
                size = images[0].shape[0], images[0].shape[1]
                masks, _ = segmenter.masks(segmenter.views(images), size)
                for (frame, image), mask in zip(frames, masks, strict=True):
                    # H.264 halves the colours' resolution, so sides must be even.
                    odd = [(0, size[0] % 2), (0, size[1] % 2), (0, 0)]
                    drawn = np.pad(overlay(image, mask, outputs.colors), odd, mode="edge")
                    is_timed = frame.pts is not None and frame.time_base is not None
                    if out is None:
                        rate = Fraction(stream.average_rate or stream.base_rate or 25)
                        out = target.add_stream("libx264", rate=rate)
                        out.pix_fmt = "yuv420p"
                        out.height, out.width = drawn.shape[:2]
                        base = frame.time_base if is_timed else 1 / rate
                        out.codec_context.time_base = base
                    new = av.VideoFrame.from_ndarray(drawn, format="rgb24")
                    new.pts, new.time_base = frame.pts if is_timed else count, base
                    target.mux(out.encode(new))
                    counts = np.bincount(mask.ravel(), minlength=len(totals))
                    totals += counts
                    end = float(new.pts * base)
                    for label in np.flatnonzero(counts):
                        name, pixels = segmenter.names[label], counts[label]
                        share = f"{pixels / mask.size:.6f}"
                        rows.writerow([count, f"{end:.6f}", label, name, pixels, share])
                    count += 1
                advance(len(frames))
            if out is None:
                raise UserError(f"{item.where}: holds no frame that can be decoded")
            if stream.frames > count or length > end + 1:
                raise UserError(
                    f"{item.where}: is cut off or damaged: it holds {count} frames, {end:.1f} s, "
                    f"but states {stream.frames or 'no number'}, {length:.1f} s. Repair it"
                )
            target.mux(out.encode())
        temp_table.replace(table)
        temp.replace(path)
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temp.unlink(missing_ok=True)
        temp_table.unlink(missing_ok=True)
    outputs.enter_video(item, totals, size, count)
    return count


def _seconds(source: Any, stream: Any) -> float:
    """The length that a video states; 0 if it states none, or one that may be another stream's."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if source.duration is not None and len(source.streams) == 1:
        return source.duration / 1e6
    return 0.0


def num_frames(path: str) -> int:
    """The number of frames that the file states; 0 if it states none."""
    av = _library()
    try:
        with av.open(path) as source:
            return sum(stream.frames for stream in source.streams.video[:1])
    except (av.FFmpegError, OSError):  # reported when its turn comes
        return 0


def _library() -> Any:
    try:
        import av  # 35 MB of FFmpeg, for videos alone
    except ImportError as error:
        raise UserError("videos need av: pip install 'segformer-finetune[video]'") from error
    return av


def _frames(av: Any, source: Any, stream: Any, item: Item) -> Iterator[tuple[Any, np.ndarray]]:
    """Frames and their upright pixels, uint8 (H, W, 3)."""
    try:
        for frame in source.decode(stream):
            pixels = frame.to_ndarray(format="rgb24")
            turns = round(frame.rotation / 90) % 4  # phones store the rotation beside the pixels
            yield frame, np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
    except av.FFmpegError as error:
        raise UserError(f"{item.where}: cannot be decoded to its end ({error})") from error


def _batches(
    frames: Iterator[tuple[Any, np.ndarray]],
    batch_size: Callable[[tuple[int, ...]], int],
    item: Item,
) -> Iterator[list[tuple[Any, np.ndarray]]]:
    batch: list[tuple[Any, np.ndarray]] = []
    for frame in frames:
        if batch and batch[0][1].shape != frame[1].shape:
            raise UserError(f"{item.where}: the size of its frames changes; cut it into two videos")
        batch.append(frame)
        if len(batch) >= batch_size(frame[1].shape):
            yield batch
            batch = []
    if batch:
        yield batch
