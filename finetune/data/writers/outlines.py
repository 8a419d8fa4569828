"""The outlines of a mask as polygons that draw back to the same mask.

They run along the edges of pixels: the pixel in row 0 and column 0 is the square from (0, 0) to
(1, 1). COCO's rule for edges (`finetune.data.objects`) fills exactly the pixels inside.
"""

from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np


def outlines(binary: np.ndarray) -> list[np.ndarray]:
    """One polygon per region of a bool mask (H, W); pixels that touch at a corner are one region.

    A polygon cannot have holes. Therefore a cut without width leads to each hole, around it and
    back; it encloses no pixel, by the even-odd rule and by the nonzero rule.

    Returns:
        Arrays of x and y, int32 (points, 2), closed without repeating the first point.
    """
    rows, columns = (np.flatnonzero(binary.any(axis)) for axis in (1, 0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    part = binary[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    # cv2 traces centres of pixels. Of pixels that are cut in four, those at i tell the edge i.
    rings, tree = cv2.findContours(
        part.repeat(2, 0).repeat(2, 1), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    edges = [_corners((ring[:, 0] + 1) // 2) + np.array([left, top]) for ring in rings]
    holes = defaultdict(list)
    for ring, parent in zip(edges, tree[0, :, 3], strict=True):
        if parent >= 0:
            holes[parent].append(ring)
    return [
        _joined([ring, *holes[i]]).astype(np.int32)
        for i, ring in enumerate(edges)
        if tree[0, i, 3] < 0
    ]


def area_of(outline: np.ndarray) -> int:
    """The pixels that an outline encloses."""
    x, y = outline.astype(np.int64).T
    return abs(int(x @ np.roll(y, -1) - y @ np.roll(x, -1))) // 2


def _corners(ring: np.ndarray) -> np.ndarray:
    """A ring without repeated points and points on straight lines."""
    ring = ring[(ring != np.roll(ring, 1, 0)).any(1)]
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """The first ring with cuts to the others, its holes.

    A cut begins at the first point of a hole on the left and ends at the next edge on its left.
    That edge belongs to the outer ring or to a hole that begins further left: there is no circle.
    """
    if len(rings) == 1:
        return rings[0]
    holes = (np.roll(hole, -np.lexsort((hole[:, 1], hole[:, 0]))[0], 0) for hole in rings[1:])
    rings = [rings[0], *holes]
    ends = np.cumsum([len(ring) for ring in rings])
    points, after = np.concatenate(rings), np.concatenate([np.roll(r, -1, 0) for r in rings])
    at = _edges_on_the_left(points, after, np.array([hole[0] for hole in rings[1:]]))
    owners = np.searchsorted(ends, at, side="right")
    inserted: dict[int, list[tuple[int, int, list[np.ndarray]]]] = defaultdict(list)

    def path(number: int) -> list[np.ndarray]:
        ring, begin, parts = rings[number], 0, []
        for position, _, cut in sorted(inserted.pop(number, []), key=lambda entry: entry[:2]):
            parts += [ring[begin : position + 1], *cut]
            begin = position + 1
        return [*parts, ring[begin:]]

    for number in sorted(range(1, len(rings)), key=lambda number: -rings[number][0, 0]):
        edge, owner, start = at[number - 1], owners[number - 1], rings[number][:1]
        foot = np.array([[points[edge, 0], start[0, 1]]])
        position = edge - (ends[owner] - len(rings[owner]))
        distance = abs(start[0, 1] - points[edge, 1])
        inserted[owner].append((position, distance, [foot, *path(number), start, foot]))
    ring = np.concatenate(path(0))
    return ring[(ring != np.roll(ring, 1, 0)).any(1)]


def _edges_on_the_left(points: np.ndarray, after: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """For each start the upright edge, from `points` to `after`, next to it in its row of pixels.

    Returns:
        Indices of points.
    """
    lowest = np.minimum(points[:, 1], after[:, 1])
    lengths = np.where(points[:, 0] == after[:, 0], np.abs(after - points)[:, 1], 0)
    edge = np.repeat(np.arange(len(points)), lengths)
    row = lowest[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    width = points[:, 0].max() + 1
    keys = row * width + points[edge, 0]
    order = np.argsort(keys)
    return edge[order[np.searchsorted(keys[order], starts[:, 1] * width + starts[:, 0]) - 1]]
