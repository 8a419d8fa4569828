"""Exact and near duplicates of pictures, which make scores on held-back images worthless."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from PIL import Image

HASH_BITS = 64
_SAMPLE = 4096  # bytes of a file compared before the whole
_BLOCK = 4096  # hashes at once: 64 MB of distances


def digest(array: np.ndarray) -> bytes:
    """16 bytes that differ if shape, type or values differ."""
    head = f"{array.shape}{array.dtype}".encode()
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16, key=head).digest()


def perceptual_hash(image: np.ndarray) -> bytes:
    """The 64 bits of `imagehash.phash` of uint8 (H, W, 3), as 8 bytes.

    Signs of the low frequencies of the grey image. They survive changes of size, brightness and
    compression (https://www.hackerfactor.com/blog/index.php?/archives/432-.html).
    """
    import imagehash  # here, because loaders import this module and never hash

    return np.packbits(imagehash.phash(Image.fromarray(image)).hash).tobytes()


def groups(keys: Iterable[Hashable | None]) -> list[list[int]]:
    """The places of each key that occurs more than once; None equals nothing."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        if key is not None:
            places[key].append(place)
    return [found for found in places.values() if len(found) > 1]


def nearest(
    train: Sequence[bytes], val: Sequence[bytes], distance: int
) -> list[tuple[int, int, int, int]]:
    """For each perceptual hash of `val` the nearest one of `train`, at most `distance` bits away.

    Returns:
        Place in `val`, place in `train` (the first of several), number of differing bits, number of
        hashes in `train` that are near enough.
    """
    if not train or not val:
        return []
    # With bits as +1 and -1, a product of two hashes is 64 less twice the bits that differ.
    known, asked = _signs(train), _signs(val)
    found = []
    for start in range(0, len(val), _BLOCK):
        part = asked[start : start + _BLOCK]
        best = np.full(len(part), HASH_BITS + 1)
        where, count = np.zeros(len(part), int), np.zeros(len(part), int)
        for first in range(0, len(train), _BLOCK):
            differing = (HASH_BITS - part @ known[first : first + _BLOCK].T) / 2
            count += (differing <= distance).sum(1)
            place = differing.argmin(1)
            value = differing[np.arange(len(part)), place].astype(int)
            where = np.where(value < best, place + first, where)
            best = np.minimum(best, value)
        near = np.flatnonzero(best <= distance)
        found += [(start + int(i), int(where[i]), int(best[i]), int(count[i])) for i in near]
    return found


def _signs(hashes: Sequence[bytes]) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1), axis=1)
    return bits.astype(np.float32) * 2 - 1


def same_files(train: Sequence[str], val: Sequence[str]) -> list[tuple[str, str]]:
    """Files of both lists with the same bytes: (first of train, one of val), in val's order.

    Sizes are compared first, then some bytes from the middle; few files are read whole. Files that
    cannot be read equal no other.
    """
    paths = [*train, *val]
    candidates = list(range(len(paths)))
    for key in (_size, _middle, _content):
        keys = {place: key(paths[place]) for place in candidates}
        both = {keys[p] for p in candidates if p < len(train)}
        both &= {keys[p] for p in candidates if p >= len(train)}
        candidates = [p for p in candidates if keys[p] in both and keys[p] is not None]
    first: dict[Hashable, str] = {}
    for place in candidates:
        if place < len(train):
            first.setdefault(keys[place], paths[place])
    return [(first[keys[p]], paths[p]) for p in candidates if p >= len(train)]


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size or None  # empty files are another fault
    except OSError:
        return None


def _middle(path: str) -> Hashable | None:
    size = _size(path)
    content = _content(path, max(0, size - _SAMPLE) // 2, _SAMPLE) if size else None
    return content and (size, content)


def _content(path: str, start: int = 0, count: int = -1) -> bytes | None:
    """A digest of a file's bytes from `start` on, all or `count` of them."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return hashlib.blake2b(file.read(count), digest_size=16).digest()
    except OSError:
        return None
