"""Triton kernels of the upsampled cross entropy: value and gradient without full-size logits.

There are two passes, both in registers. The first reads the four neighbours of every output pixel,
mostly from the caches, and writes the pixel's logsumexp and its coefficients of the gradient. Each
program of the second takes a tile of the small logits, walks the output pixels that the tile
reaches, takes their softmax again and writes every gradient once. There are no atomic additions
and no autotuning, so equal inputs give equal bits.

Cost, to first order, for N = B K h w logits and M = B H W labels. Memory: 4 N bytes of gradient,
and 8 M bytes between the passes (12 M with smoothing); stock holds the 4 K M bytes of the
full-size logits several times over. DRAM: the logits are read twice, the gradient is written once,
and each label costs some 30 bytes, if the caches serve the pixels around a logit. Arithmetic: K M
exponentials in the first pass and 2.25 K M in the second, with 25 to 40 instructions each (machine
code for sm_90). So arithmetic is the limit, not memory.

The kernels are checked with Triton's interpreter, and compiled to machine code for sm_75, sm_80 and
sm_90, where no registers spill. They have not yet run on a GPU. The block sizes follow from
registers and instruction counts, not from timings.

Both passes and their launcher are in one file: the passes share helpers and constants, the second
reads what the first leaves, and the launcher chooses the tile sizes of both.
"""
# ruff: noqa: N803, N806  # constants of a kernel's compilation are in capitals, as in Triton's own

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .bands import LossOptions

# Only torch's builds for CUDA contain Triton. The `try` hides the import from transformers, which
# demands every package that a model's own code imports at its top.
try:
    import triton
    import triton.language as tl

    _FOUND = True
except ImportError:
    _FOUND = False


def cross_entropy(
    logits: Tensor,  # (B, K, h, w) float32, float16 or bfloat16, strided in any way
    labels: Tensor,  # (B, H, W) integers: class ids or `ignore_index`; H < h is allowed
    weight: Tensor | None,  # (K,), of the classes; None: equal ones
    options: LossOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of the cross entropies of logits that are bilinearly upsampled to the size of the labels.

    It equals `F.cross_entropy(F.interpolate(logits.float(), (H, W)), labels, reduction="sum")` with
    the focal factor (1 - p)^gamma on each pixel's loss. The call never waits for the device, so a
    CUDA graph can hold it (after a first call outside, which compiles).

    Returns:
        As `cross_entropy_in_bands`, the sums in float32; the gradient is float32 in the memory
        format of the logits.
    """
    assert logits.dtype in (torch.float32, torch.float16, torch.bfloat16)
    ignore_index, label_smoothing, focal_gamma, with_grad = options
    batch, num_labels, height, width = logits.shape
    full_height, full_width = labels.shape[1:]
    labels = labels.contiguous()
    if weight is None:
        weights = weight_total = logits  # not read
    else:
        weights = weight.to(torch.float32).contiguous()
        weight_total = weights.sum()

    channels_last = logits.stride(1) == 1
    first, second = _tilings(num_labels, channels_last=channels_last)
    scales = (height / full_height, width / full_width) if labels.numel() else (1.0, 1.0)
    sizes = (num_labels, height, width, full_height, full_width, labels.numel(), *scales)
    constants = {
        "WEIGHTED": weight is not None,
        "SMOOTH": label_smoothing > 0,
        # The fastest axis in memory is the fastest of a block, for coalesced reads.
        "CLASS_AXIS": int(channels_last),
        "INDEX": tl.int64 if _span(logits) >= 2**31 else tl.int32,
    }

    tiles = _ceil(full_height, first["TILE_H"]) * _ceil(full_width, first["TILE_W"])
    partial_loss, partial_weight = torch.empty(2, batch, tiles, device=logits.device)
    partial_stray = torch.empty(batch, tiles, dtype=torch.int32, device=logits.device)
    # Per output pixel: logsumexp, coefficient of the target and, with smoothing, of each class.
    maps = 0 if not with_grad else 3 if label_smoothing > 0 else 2
    pixels = torch.empty(maps, *labels.shape, device=logits.device)
    grad = torch.empty(0, device=logits.device)
    tensors = (logits, labels, weights, weight_total, pixels)

    with torch.cuda.device_of(logits):
        if tiles and batch:
            _forward[(tiles, batch)](
                *tensors,
                *(partial_loss, partial_weight, partial_stray),
                *logits.stride(),
                *sizes,
                *(ignore_index, label_smoothing, focal_gamma),
                **constants,
                FOCAL=focal_gamma != 0,
                GRAD=with_grad,
                **first,
            )
        if with_grad:
            grad = torch.empty_like(logits, dtype=torch.float32)
            across = _ceil(num_labels, second["BLOCK_K"]) * _ceil(width, second["TILE"])
            grid = (across, _ceil(height, second["ROWS"]), batch)
            if grad.numel():
                strides = (*logits.stride(), *grad.stride())
                _backward[grid](*tensors, grad, *strides, *sizes, **constants, **second)
    return (
        partial_loss.sum(dtype=torch.float64).float(),
        partial_weight.sum(dtype=torch.float64).float(),
        partial_stray.sum(),  # int64
        grad,
    )


def _tilings(num_labels: int, *, channels_last: bool) -> tuple[dict[str, int], dict[str, int]]:
    """The block sizes of both passes, chosen for registers (no spills) and instructions.

    A program of the first pass takes TILE_H x TILE_W output pixels, and BLOCK_K classes at a time;
    one of the second takes TILE source pixels, BLOCK_K classes, and ROWS rows one after another.
    """
    most = 1 << (num_labels - 1).bit_length()
    if channels_last:  # neighbouring threads hold classes; each holds a pixel's numbers
        classes, back, warps, back_warps = min(most, 32), min(most, 64), 8, 1
        tile, back_tile = 256 // classes, 128 // back
    else:
        classes, back, warps, back_warps = min(most, 8), min(most, 8), 4, 2
        tile, back_tile = 32, 32
    first = {"TILE_H": 4, "TILE_W": tile, "BLOCK_K": classes, "num_warps": warps}
    second = {"ROWS": 8, "TILE": back_tile, "BLOCK_K": back, "num_warps": back_warps}
    return first, {**second, "num_stages": 1}


def _ceil(size: int, block: int) -> int:
    return -(-size // block)


def _span(logits: Tensor) -> int:
    """The largest memory offset inside one image."""
    steps = zip(logits.shape[1:], logits.stride()[1:], strict=True)
    return sum((size - 1) * stride for size, stride in steps)


# Compiled once for all sizes: the pictures of an evaluation have hundreds of sizes.
_SIZES = ["height", "width", "full_height", "full_width", "num_pixels", "size"]


def _jit(function: Callable) -> Any:
    return triton.jit(function, do_not_specialize=_SIZES) if _FOUND else function


@_jit
def _source(index, scale, size):
    """The position of output pixel `index` among `size` source pixels, as in `F.interpolate`.

    `F.interpolate` clamps the second neighbour. A clamp of the position gives the same, since any
    mixture of a pixel with itself is the pixel. The product is written so that all compilers round
    it alike.
    """
    position = tl.fma(index + 0.5, scale, -0.5)
    return tl.minimum(tl.maximum(position, 0.0), size - 1.0)


@_jit
def _bilinear(a, b, c, d, down, right):
    """Mixes a, b in one row and c, d in the row below, in float32."""
    a, b, c, d = a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), d.to(tl.float32)
    a += down * (c - a)
    b += down * (d - b)
    return a + right * (b - a)


@_jit
def _first_row(cell, scale, height, full_height):
    """The first output row at or after source row `cell`, up to rounding by an ulp.

    Every program computes the same row, so that each output row belongs to one cell.
    """
    row = tl.ceil((cell + 0.5) / scale - 0.5).to(tl.int32)
    row = tl.minimum(tl.maximum(row, 0), full_height)
    return tl.where(cell <= 0, 0, tl.where(cell >= height, full_height, row))


@_jit
def _forward(
    logits,
    labels,
    weight,
    weight_total,
    pixels,
    partial_loss,
    partial_weight,
    partial_stray,
    stride_b,
    stride_k,
    stride_h,
    stride_w,
    num_labels,
    height,
    width,
    full_height,
    full_width,
    num_pixels,
    scale_y,
    scale_x,
    ignore_index,
    smoothing,
    gamma,
    WEIGHTED: tl.constexpr,
    SMOOTH: tl.constexpr,
    CLASS_AXIS: tl.constexpr,
    INDEX: tl.constexpr,
    FOCAL: tl.constexpr,
    GRAD: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Losses of one tile of output pixels, and each pixel's numbers for the second pass.

    With P = TILE_H * TILE_W, blocks of logits are (P, BLOCK_K), or (BLOCK_K, P) for NCHW.
    """
    PIXELS: tl.constexpr = TILE_H * TILE_W
    PIXEL_AXIS: tl.constexpr = 1 - CLASS_AXIS
    tile = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    tiles_x = (full_width + TILE_W - 1) // TILE_W
    lane = tl.arange(0, PIXELS)
    row = tile // tiles_x * TILE_H + lane // TILE_W  # (P,)
    column = tile % tiles_x * TILE_W + lane % TILE_W
    inside = (row < full_height) & (column < full_width)
    pixel = (image * full_height + row) * full_width + column  # int64

    label = tl.load(labels + pixel, mask=inside, other=0).to(tl.int64)
    wanted = inside & (label != ignore_index)
    counted = wanted & (label >= 0) & (label < num_labels)

    # Pixels beyond the edge are clamped onto it, so that reads need no mask.
    y = _source(row.to(tl.float32), scale_y, height)
    x = _source(column.to(tl.float32), scale_x, width)
    above, before = y.to(tl.int32), x.to(tl.int32)
    below, after = tl.minimum(above + 1, height - 1), tl.minimum(before + 1, width - 1)
    down, right = y - above, x - before
    above, below = above.to(INDEX) * stride_h, below.to(INDEX) * stride_h
    before, after = before.to(INDEX) * stride_w, after.to(INDEX) * stride_w
    logits += image * stride_b

    # Each (pixel, place in the block) has its own running maximum and sum of exponentials, so that
    # threads need not wait for each other. A step takes one exponential, of minus the distance.
    SHAPE: tl.constexpr = (PIXELS, BLOCK_K) if CLASS_AXIS == 1 else (BLOCK_K, PIXELS)
    largest = tl.full(SHAPE, float("-inf"), tl.float32)
    total = tl.full(SHAPE, 0.0, tl.float32)
    spread = tl.full(SHAPE, 0.0, tl.float32)  # the weighted sum of the logits
    for start in range(0, num_labels, BLOCK_K):
        classes = start + tl.arange(0, BLOCK_K)
        known = classes < num_labels
        present = tl.expand_dims(known, PIXEL_AXIS)
        planes = logits + tl.expand_dims(classes.to(INDEX) * stride_k, PIXEL_AXIS)
        a = tl.load(planes + tl.expand_dims(above + before, CLASS_AXIS), mask=present, other=0)
        b = tl.load(planes + tl.expand_dims(above + after, CLASS_AXIS), mask=present, other=0)
        c = tl.load(planes + tl.expand_dims(below + before, CLASS_AXIS), mask=present, other=0)
        d = tl.load(planes + tl.expand_dims(below + after, CLASS_AXIS), mask=present, other=0)
        z = _bilinear(
            a, b, c, d, tl.expand_dims(down, CLASS_AXIS), tl.expand_dims(right, CLASS_AXIS)
        )
        if SMOOTH:
            if WEIGHTED:
                share = tl.load(weight + classes, mask=known, other=0)
                spread += tl.expand_dims(share, PIXEL_AXIS) * z
            else:
                spread += z  # absent classes are 0
        smaller = tl.exp(-tl.abs(z - largest))
        added = tl.where(z > largest, total * smaller + 1.0, total + smaller)
        total = tl.where(present, added, total)
        largest = tl.where(present, tl.maximum(largest, z), largest)
    peak = tl.max(largest, CLASS_AXIS)  # (P,)
    lse = tl.sum(total * tl.exp(largest - tl.expand_dims(peak, CLASS_AXIS)), CLASS_AXIS)
    lse = peak + tl.log(lse)

    plane = logits + label * stride_k
    a = tl.load(plane + above + before, mask=counted, other=0)
    b = tl.load(plane + above + after, mask=counted, other=0)
    c = tl.load(plane + below + before, mask=counted, other=0)
    d = tl.load(plane + below + after, mask=counted, other=0)
    nll = lse - _bilinear(a, b, c, d, down, right)
    if WEIGHTED:
        own = tl.load(weight + label, mask=counted, other=0)
        all_weights = tl.load(weight_total)
    else:
        own = tl.where(counted, 1.0, 0.0)
        all_weights = num_labels * 1.0
    own_share = (1.0 - smoothing) * own
    loss = own_share * nll
    common = lse * 0.0 + smoothing / num_labels  # each class's share
    if SMOOTH:
        loss += common * (all_weights * lse - tl.sum(spread, CLASS_AXIS))
    if FOCAL:
        p = tl.exp(-nll)
        # Not 0: the slope of x ** gamma at 0 is infinite for gamma below 1. The eps of float32.
        doubt = tl.maximum(1.0 - p, 1.1920929e-07)
        factor = tl.exp2(gamma * tl.log2(doubt))
        slope = tl.where(1.0 - p >= 1.1920929e-07, gamma * p * factor / doubt, 0.0)
        own_share = factor * own_share + slope * loss
        common *= factor
        loss *= factor
    if GRAD:
        # d loss / d z_k = own_share (p_k - [k = label]) + common (p_k all_weights - w_k)
        size = tl.cast(num_pixels, tl.int64)
        tl.store(pixels + pixel, lse, mask=inside)
        tl.store(pixels + size + pixel, tl.where(counted, own_share, 0.0), mask=inside)
        if SMOOTH:
            tl.store(pixels + 2 * size + pixel, tl.where(counted, common, 0.0), mask=inside)

    program = image * tl.num_programs(0) + tile
    tl.store(partial_loss + program, tl.sum(tl.where(counted, loss, 0.0), 0))
    tl.store(partial_weight + program, tl.sum(own, 0))
    tl.store(partial_stray + program, tl.sum((wanted & ~counted).to(tl.int32), 0))


@_jit
def _backward(
    logits,
    labels,
    weight,
    weight_total,
    pixels,
    grad,
    stride_b,
    stride_k,
    stride_h,
    stride_w,
    grad_stride_b,
    grad_stride_k,
    grad_stride_h,
    grad_stride_w,
    num_labels,
    height,
    width,
    full_height,
    full_width,
    num_pixels,
    scale_y,
    scale_x,
    WEIGHTED: tl.constexpr,
    SMOOTH: tl.constexpr,
    CLASS_AXIS: tl.constexpr,
    INDEX: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Gradients of ROWS source rows for TILE columns and BLOCK_K classes.

    A cell lies between two neighbouring source rows. Its output rows contribute to both and are
    visited once: the part of the lower row is carried to the next cell. Columns are not carried: an
    output pixel is visited by both source columns beside it. At a distance of t columns, its logit
    is the column's logit plus t times the difference to the neighbour on that side, and the
    column's weight is 1 - |t|. Tiles are (TILE, BLOCK_K), or (BLOCK_K, TILE) for NCHW.
    """
    PIXEL_AXIS: tl.constexpr = 1 - CLASS_AXIS
    SHAPE: tl.constexpr = (TILE, BLOCK_K) if CLASS_AXIS == 1 else (BLOCK_K, TILE)
    blocks = (num_labels + BLOCK_K - 1) // BLOCK_K
    first_row = tl.program_id(1) * ROWS
    image = tl.program_id(2).to(tl.int64)
    columns = tl.program_id(0) // blocks * TILE + tl.arange(0, TILE)
    classes = tl.program_id(0) % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    known = classes < num_labels
    own_class = tl.expand_dims(classes, PIXEL_AXIS)
    present = tl.expand_dims(known, PIXEL_AXIS)
    size = tl.cast(num_pixels, tl.int64)
    labels += image * full_height * full_width
    pixels += image * full_height * full_width

    # Output columns less than one source column away. The slack covers rounding; columns at a
    # distance of one or more are masked below.
    place = columns.to(tl.float32)
    left_end = tl.ceil((place - 0.5) / scale_x - 0.51).to(tl.int32)
    right_end = tl.floor((place + 1.5) / scale_x - 0.49).to(tl.int32)
    left_end = tl.maximum(left_end, 0)
    right_end = tl.minimum(right_end, full_width - 1)
    visits = tl.max(right_end - left_end, 0) + 1

    # (TILE, BLOCK_K) offsets of the column and its neighbours; clamped neighbours have weight 0.
    planes = tl.expand_dims(classes.to(INDEX) * stride_k, PIXEL_AXIS)
    middle = tl.minimum(columns, width - 1)
    before, after = tl.maximum(columns - 1, 0), tl.minimum(columns + 1, width - 1)
    before = tl.minimum(before, width - 1)
    planes_before = planes + tl.expand_dims(before.to(INDEX) * stride_w, CLASS_AXIS)
    planes_middle = planes + tl.expand_dims(middle.to(INDEX) * stride_w, CLASS_AXIS)
    planes_after = planes + tl.expand_dims(after.to(INDEX) * stride_w, CLASS_AXIS)
    logits += image * stride_b

    grad += image * grad_stride_b
    grad_offset = tl.expand_dims(classes.to(tl.int64) * grad_stride_k, PIXEL_AXIS)
    grad_offset += tl.expand_dims(columns.to(tl.int64) * grad_stride_w, CLASS_AXIS)
    writable = present & tl.expand_dims(columns < width, CLASS_AXIS)
    if SMOOTH:
        if WEIGHTED:
            share = tl.expand_dims(tl.load(weight + classes, mask=known, other=0), PIXEL_AXIS)
            all_weights = tl.load(weight_total)
        else:
            share = 1.0
            all_weights = num_labels * 1.0

    upper = tl.full(SHAPE, 0.0, tl.float32)
    for cell in range(first_row - 1, tl.minimum(first_row + ROWS, height)):
        cell = tl.cast(cell, tl.int32)  # a plain int in the interpreter
        above = logits + tl.maximum(cell, 0).to(INDEX) * stride_h
        below = logits + tl.minimum(cell + 1, height - 1).to(INDEX) * stride_h
        a = tl.load(above + planes_before, mask=present, other=0).to(tl.float32)
        b = tl.load(above + planes_middle, mask=present, other=0).to(tl.float32)
        c = tl.load(above + planes_after, mask=present, other=0).to(tl.float32)
        a_below = tl.load(below + planes_before, mask=present, other=0).to(tl.float32) - a
        b_below = tl.load(below + planes_middle, mask=present, other=0).to(tl.float32) - b
        c_below = tl.load(below + planes_after, mask=present, other=0).to(tl.float32) - c
        lower = tl.full(SHAPE, 0.0, tl.float32)
        begin = _first_row(cell, scale_y, height, full_height)
        end = _first_row(cell + 1, scale_y, height, full_height)
        for row in range(begin, end):
            row = tl.cast(row, tl.int64)
            down = _source(row.to(tl.float32), scale_y, height) - cell
            here = b + down * b_below
            to_left = here - (a + down * a_below)
            to_right = c + down * c_below - here
            line = row * full_width
            across = tl.full(SHAPE, 0.0, tl.float32)
            for visit in range(visits):
                column = left_end + visit
                t = _source(column.to(tl.float32), scale_x, width) - place
                tent = 1.0 - tl.abs(t)
                near = (column <= right_end) & (tent > 0)
                label = tl.load(labels + line + column, mask=near, other=0).to(tl.int32)
                lse = tl.load(pixels + line + column, mask=near, other=float("inf"))
                own = tl.load(pixels + size + line + column, mask=near, other=0) * tent
                tilt = tl.expand_dims(t, CLASS_AXIS)
                z = here + tilt * tl.where(tilt < 0, to_left, to_right)
                p = tl.exp(z - tl.expand_dims(lse, CLASS_AXIS))
                own = tl.expand_dims(own, CLASS_AXIS)
                across -= tl.where(own_class == tl.expand_dims(label, CLASS_AXIS), own, 0.0)
                if SMOOTH:
                    common = tl.load(pixels + 2 * size + line + column, mask=near, other=0) * tent
                    common = tl.expand_dims(common, CLASS_AXIS)
                    across += (own + common * all_weights) * p - common * share
                else:
                    across += own * p
            upper += (1.0 - down) * across
            lower += down * across
        if cell >= first_row:
            line_out = grad + cell.to(tl.int64) * grad_stride_h
            tl.store(line_out + grad_offset, upper, mask=writable)
        upper = lower
    # The last `lower` belongs to the next strip, which computes it; below the last row it is 0.
