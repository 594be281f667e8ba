"""Detection of text lines at any angle: regions of ink linked to their nearest neighbours form chains.

The links are the edges of a minimum spanning tree over the regions. A link's length is measured in the sizes of its
regions and increased where the direction changes, as the letters of a line follow each other in one direction. The
longest links are cut until there are as many chains as lines. A line's angle is the one at which its ink is lowest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from vlad.types import Polygon

MAX_REGIONS = 400
ANGLE_STEP_DEGREES = 1.0


@dataclass(frozen=True)
class _Region:
    """A connected region of ink: its pixels (N 2, x y), the centre of its box, and the box's longer side."""

    points: np.ndarray
    centre: np.ndarray
    size: float


def detect_tilted_lines(labels: np.ndarray, count: int) -> list[Polygon] | None:
    """Quads (0..1, clockwise from the top left of the text) around the ink of exactly `count` chains of regions.

    `labels`: H W, 0 for the background, else a region's number. None where there are fewer regions than lines, or too
    many to be letters.
    """
    regions = _regions(labels)
    if not count <= len(regions) <= MAX_REGIONS:
        return None
    groups = _link_regions(regions, count)
    height, width = labels.shape
    angles = [_angle_of(group) for group in groups]
    # One or two letters have no reliable angle.
    known = [angle for angle, group in zip(angles, groups, strict=True) if len(group) > 2]
    common = float(np.median(known)) if known else 0.0
    return [
        _quad(group, angle if len(group) > 2 else common, width, height)
        for group, angle in zip(groups, angles, strict=True)
    ]


def _regions(labels: np.ndarray) -> list[_Region]:
    ys, xs = np.nonzero(labels)
    numbers = labels[ys, xs]
    order = np.argsort(numbers, kind="stable")
    points = np.stack([xs, ys], axis=1)[order].astype(np.float64)
    borders = np.flatnonzero(np.diff(numbers[order])) + 1
    regions = []
    for part in np.split(points, borders) if len(points) else []:
        lower, upper = part.min(axis=0), part.max(axis=0) + 1
        regions.append(_Region(part, (lower + upper) / 2, float((upper - lower).max())))
    return regions


def _link_regions(regions: list[_Region], count: int) -> list[list[_Region]]:
    """The regions in `count` groups: the minimum spanning tree of the links without its longest edges."""
    centres = np.array([region.centre for region in regions])
    sizes = np.array([region.size for region in regions])
    offsets = centres[:, None] - centres[None]
    scale = np.maximum(sizes[:, None], sizes[None])
    lengths = np.hypot(offsets[..., 0], offsets[..., 1]) / scale
    # A letter next to a much larger one belongs to another line; a dot belongs to its letter, which is close.
    size_ratio = np.maximum(sizes[:, None], sizes[None]) / np.minimum(sizes[:, None], sizes[None])
    lengths = lengths * np.where((size_ratio > 1.6) & (lengths > 0.9), size_ratio, 1.0)
    lengths = _penalise_turns(lengths, offsets)
    tree = _spanning_tree(lengths)
    kept = sorted(tree, key=lambda link: lengths[link])[: len(regions) - count]
    parents = list(range(len(regions)))

    def root(index: int) -> int:
        while parents[index] != index:
            index = parents[index]
        return index

    for first, second in kept:
        parents[root(first)] = root(second)
    groups: dict[int, list[_Region]] = {}
    for index, region in enumerate(regions):
        groups.setdefault(root(index), []).append(region)
    return list(groups.values())


def _penalise_turns(lengths: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Lengthens links, up to double, that deviate from the direction of their ends' nearest links."""
    count = len(lengths)
    if count < 3:
        return lengths
    blocked = lengths + np.diag(np.full(count, np.inf))
    nearest = np.argsort(blocked, axis=1)[:, : min(2, count - 1)]
    turns = np.zeros_like(lengths)
    angle = np.arctan2(offsets[..., 1], offsets[..., 0])
    for index in range(count):
        own = angle[index, nearest[index]]
        # sin^2 of the angle to the closest of the region's own links, regardless of direction.
        turn = np.min(np.sin(angle[index][:, None] - own[None]) ** 2, axis=1)
        turns[index] = np.maximum(turns[index], turn)
    return lengths * (1 + np.maximum(turns, turns.T))


def _spanning_tree(lengths: np.ndarray) -> list[tuple[int, int]]:
    """The minimum spanning tree by Prim's algorithm."""
    count = len(lengths)
    inside = np.zeros(count, dtype=bool)
    inside[0] = True
    best, origin = lengths[0].copy(), np.zeros(count, dtype=int)
    links = []
    for _ in range(count - 1):
        following = int(np.argmin(np.where(inside, np.inf, best)))
        links.append((int(origin[following]), following))
        inside[following] = True
        nearer = lengths[following] < best
        best[nearer], origin[nearer] = lengths[following][nearer], following
    return links


def _angle_of(group: list[_Region]) -> float:
    """Radians in (-pi/2, pi/2]: near the chain's principal direction, the angle at which its ink is lowest."""
    centres = np.array([region.centre for region in group])
    if len(group) < 2:
        return 0.0
    centred = centres - centres.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    x, y = directions[0]
    rough = math.atan2(y, x) if x > 0 or (x == 0 and y > 0) else math.atan2(-y, -x)
    hull = cv2.convexHull(np.concatenate([region.points for region in group]).astype(np.float32))[:, 0]
    steps = np.radians(np.arange(-12, 12 + ANGLE_STEP_DEGREES / 2, ANGLE_STEP_DEGREES)) + rough
    across = hull @ np.stack([-np.sin(steps), np.cos(steps)])
    angle = float(steps[np.argmin(np.ptp(across, axis=0))])
    if abs(angle) < math.radians(2.5):  # too little for a tilted line; a single descender causes it
        return 0.0
    return angle


def _quad(group: list[_Region], angle: float, width: int, height: int) -> Polygon:
    """The box at an angle around a group's ink, in image coordinates."""
    points = np.concatenate([region.points for region in group])
    corners = np.concatenate([points + offset for offset in ((0, 0), (1, 0), (1, 1), (0, 1))])  # of each pixel
    along, down = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    u, v = corners @ along, corners @ down
    # In a tilted box a pixel's corner reaches past its ink.
    slack = (abs(math.sin(angle)) + abs(math.cos(angle)) - 1) / 2
    left, right, top, bottom = u.min() + slack, u.max() - slack, v.min() + slack, v.max() - slack
    places = (left * along + top * down, right * along + top * down, right * along + bottom * down)
    last = left * along + bottom * down
    return tuple((float(x) / width, float(y) / height) for x, y in (*places, last))
