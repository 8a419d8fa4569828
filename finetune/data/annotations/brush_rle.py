"""The run lengths of Label Studio's brush: a stream of bits, kept as a list of bytes.

The form is that of https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack, the highest
bit first: 32 bits with the number of values, 5 with the bits of a value less 1, and four times 4
with a size less 1. Then come groups. A group is one bit, 2 bits that choose a size, and a count
less 1 of that size. After a bit of 1 follows one value, which is repeated; after 0 follow as many
values. The values are the pixels of an RGBA image, row by row, four to a pixel.
"""

from collections.abc import Sequence

import numpy as np

_SIZES = (3, 4, 8, 16)  # bits of a count; those that Label Studio writes
_WORD = 8  # bits of a value


def decode(rle: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The painted pixels, those whose alpha is not 0, as the tool's own converter has it.

    Args:
        rle: The bytes, 0 to 255.
        size: Height and width of the image, in pixels.

    Returns:
        Booleans of shape (height, width).

    Raises:
        ValueError: The bytes are no such stream, or one of another size. The message says what is
            wrong; the caller says where.
    """
    height, width = size
    try:
        data = bytes(rle)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("its RLE is not a list of bytes, 0 to 255") from error
    if len(data) < 8 or int.from_bytes(data[:4], "big") != 4 * height * width:
        raise ValueError(
            f"its RLE does not hold four values for each of {width} x {height} pixels "
            "(width x height)"
        )
    values, counts = _groups(data, 4 * height * width)
    return np.repeat(values, counts)[3::4].reshape(size)


def _groups(data: bytes, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each value is above 0, and how often it is repeated; together `total`."""
    header = int.from_bytes(data[4:8], "big")
    word = (header >> 27) + 1
    sizes = [(header >> shift & 15) + 1 for shift in (23, 19, 15, 11)]
    # Zeros after the end let a last group be read as four bytes; the check is below.
    padded, bits, at, done = data + bytes(8), np.unpackbits(np.frombuffer(data, np.uint8)), 53, 0

    def read(start: int, count: int) -> int:
        chunk = int.from_bytes(padded[start // 8 : start // 8 + 5], "big")
        return chunk >> (40 - start % 8 - count) & ((1 << count) - 1)

    values: list[int] = []
    counts: list[int] = []
    while done < total:
        is_run, bits_of_count = read(at, 1), sizes[read(at + 1, 2)]
        count = read(at + 3, bits_of_count) + 1
        at += 3 + bits_of_count
        end = at + word * (1 if is_run else count)
        done += count
        if end > len(bits) or done > total:
            raise ValueError("its RLE ends in the middle, or has more values than its image")
        if is_run:
            values.append(read(at, word))
            counts.append(count)
        else:  # a value is painted if one of its bits is
            values.extend(bits[at:end].reshape(count, word).max(axis=1).tolist())
            counts.extend([1] * count)
        at = end
    return np.array(values, dtype=bool), np.array(counts)


def encode(mask: np.ndarray) -> list[int]:
    """The bytes of a mask of shape (height, width), as a brush's `rle`; painted where not 0.

    All four values of a painted pixel are 255, as those that the tool's own converter writes.
    """
    flat = np.asarray(mask).ravel() != 0
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = 4 * np.diff(starts, append=flat.size)
    text = [f"{4 * flat.size:032b}{_WORD - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for length, value in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        for done in range(0, length, 1 << _SIZES[-1]):
            count = min(length - done, 1 << _SIZES[-1])
            choice = next(i for i, size in enumerate(_SIZES) if count <= 1 << size)
            text.append(f"1{choice:02b}{count - 1:0{_SIZES[choice]}b}{255 * value:0{_WORD}b}")
    stream = "".join(text)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))
