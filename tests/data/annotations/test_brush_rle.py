import numpy as np
import pytest

from finetune.data.annotations.brush_rle import decode, encode

RANDOM = np.random.default_rng(7)
MASKS = [
    np.ones((1, 1), bool),
    np.zeros((3, 5), bool),
    np.ones((200, 300), bool),  # a run longer than the longest count
    *(RANDOM.random((23, 31)) < share for share in (0.02, 0.5, 0.97)),
    np.kron(RANDOM.random((9, 7)) < 0.5, np.ones((11, 13), bool)),
]


def packed(values, sizes=(3, 4, 8, 16), word=8):
    """The stream, written bit by bit: runs, and chunks of values that are not repeated."""
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value and runs[-1][1] < 1 << max(sizes):
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    groups: list[tuple[int, list[int], int]] = []
    for value, count in runs:
        if count == 1 and groups and not groups[-1][0] and len(groups[-1][1]) < 1 << max(sizes):
            groups[-1][1].append(value)
        else:
            groups.append((int(count > 1), [value], count))
    text = f"{len(values):032b}{word - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    for is_run, words, count in groups:
        length = count if is_run else len(words)
        choice = min((i for i in range(4) if length <= 1 << sizes[i]), key=lambda i: sizes[i])
        text += f"{is_run}{choice:02b}{length - 1:0{sizes[choice]}b}"
        text += "".join(f"{value:0{word}b}" for value in words)
    text += "0" * (8 - len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def unpacked(rle):
    """The values of a stream, read bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def take(count):
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        is_run = take(1)
        count = take(sizes[take(2)]) + 1
        values += [take(word)] * count if is_run else [take(word) for _ in range(count)]
    return values


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{mask.shape}")
def test_what_is_written_is_read_by_the_description_and_by_us(mask):
    written = encode(mask)
    assert unpacked(written) == [255 * value for value in mask.ravel() for _ in range(4)]
    read = decode(written, mask.shape)
    assert read.dtype == bool
    np.testing.assert_array_equal(read, mask)


@pytest.mark.parametrize(
    ("sizes", "word"), [((3, 4, 8, 16), 8), ((1, 2, 3, 9), 8), ((1, 2, 5, 10), 11)]
)
def test_alpha_is_read_whatever_the_colours_and_the_sizes(sizes, word):
    pixels = RANDOM.integers(0, 256, (17, 19, 4))
    pixels[4:9] = (0, 128, 255, 0)  # colours without alpha are not painted
    pixels[9:12, :, 3] = 1  # an edge that is nearly transparent is
    pixels[12:, :, 3] = RANDOM.choice([0, 200], (5, 19))
    read = decode(packed(pixels.ravel().tolist(), sizes, word), (17, 19))
    np.testing.assert_array_equal(read, pixels[..., 3] > 0)
    assert 0 < read.mean() < 1


@pytest.mark.parametrize(
    "rle",
    [
        [0, 0, 4, 0, 17, 27, 255, 1, 255, 18, 24, 212, 78, 24, 5, 134, 68, 227, 82, 30, 3, 196, 0],
        [0, 0, 4, 0, 16, 9, 199, 255, 140, 134, 234, 206, 96, 89, 150, 119, 89, 15, 241, 0],
    ],
    ids=["sizes 3 4 8 16", "sizes 1 2 4 9"],
)
def test_the_streams_of_the_formats_own_test(rle):
    """github.com/thi-ng/umbrella, packages/rle-pack/test/main.test.ts: 1024 values of 3 bits."""
    values = np.zeros(1024, int)
    values[512:541] = [*[1] * 5, *[2] * 4, *[3] * 3, 4, 4, 5, 4, 4, *[3] * 3, *[2] * 4, *[1] * 5]
    assert unpacked(rle) == values.tolist()
    np.testing.assert_array_equal(decode(rle, (16, 16)), values[3::4].reshape(16, 16) > 0)


WHOLE = encode(MASKS[3])


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ([], "does not hold four values for each of 31 x 23 pixels"),
        (encode(MASKS[0]), "does not hold four values"),
        (WHOLE[: len(WHOLE) // 2], "ends in the middle"),
        ([*WHOLE[:6], *[255] * 90], "has more values"),
        ([256, *WHOLE[1:]], "not a list of bytes"),
        (["x"], "not a list of bytes"),
        ({"counts": "1"}, "not a list of bytes"),
        ([WHOLE, WHOLE], "not a list of bytes"),
    ],
)
def test_other_bytes_are_refused(rle, message):
    with pytest.raises(ValueError, match=message):
        decode(rle, (23, 31))
