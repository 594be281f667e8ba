"""Lines at any angle, from regions of ink: letters linked to their nearest neighbours make chains.

The links are those of a minimum spanning tree over the regions, a link's length measured in the regions' own sizes, and
turned links made longer: letters of a line follow each other in one direction. The longest are cut until there are as
many chains as lines. A line's angle is the one under which its ink is lowest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from vlad.types import Polygon

MOST_REGIONS = 400
ANGLE_STEP_DEGREES = 1.0


@dataclass(frozen=True)
class _Region:
    """Connected ink: its pixels (N 2, x y), middle and size."""

    points: np.ndarray
    middle: np.ndarray
    size: float


def detect_tilted_lines(labels: np.ndarray, count: int) -> list[Polygon] | None:
    """Quads (0..1, clockwise from the top left of the text) around the ink of exactly `count` chains of regions.

    `labels`: H W, 0 for the ground, else a region's number. None where there are fewer regions than lines, or so many
    that they are no letters.
    """
    regions = _regions(labels)
    if not count <= len(regions) <= MOST_REGIONS:
        return None
    groups = _chains(regions, count)
    height, width = labels.shape
    angles = [_angle_of(group) for group in groups]
    # One letter or two have no angle of their own.
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


def _chains(regions: list[_Region], count: int) -> list[list[_Region]]:
    """The regions in `count` groups: the spanning tree of the links without its longest."""
    middles = np.array([region.middle for region in regions])
    sizes = np.array([region.size for region in regions])
    apart = middles[:, None] - middles[None]
    scale = np.maximum(sizes[:, None], sizes[None])
    lengths = np.hypot(apart[..., 0], apart[..., 1]) / scale
    # A letter beside a much larger one belongs to another line; a dot belongs to its letter, which is near.
    unlike = np.maximum(sizes[:, None], sizes[None]) / np.minimum(sizes[:, None], sizes[None])
    lengths = lengths * np.where((unlike > 1.6) & (lengths > 0.9), unlike, 1.0)
    lengths = _along(lengths, apart)
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


def _along(lengths: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Links longer by up to double where they leave the direction of both ends' own nearest links."""
    count = len(lengths)
    if count < 3:
        return lengths
    blocked = lengths + np.diag(np.full(count, np.inf))
    nearest = np.argsort(blocked, axis=1)[:, : min(2, count - 1)]
    turns = np.zeros_like(lengths)
    angle = np.arctan2(apart[..., 1], apart[..., 0])
    for index in range(count):
        own = angle[index, nearest[index]]
        # sin^2 of the angle to the nearest of the own links, direction aside.
        turn = np.min(np.sin(angle[index][:, None] - own[None]) ** 2, axis=1)
        turns[index] = np.maximum(turns[index], turn)
    return lengths * (1 + np.maximum(turns, turns.T))


def _spanning_tree(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Prim's minimum spanning tree."""
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
    """Radians, in (-pi/2, pi/2]: the chain's own direction, then near it the one under which the ink is lowest."""
    middles = np.array([region.middle for region in group])
    if len(group) < 2:
        return 0.0
    centred = middles - middles.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    x, y = directions[0]
    rough = math.atan2(y, x) if x > 0 or (x == 0 and y > 0) else math.atan2(-y, -x)
    hull = cv2.convexHull(np.concatenate([region.points for region in group]).astype(np.float32))[:, 0]
    steps = np.radians(np.arange(-12, 12 + ANGLE_STEP_DEGREES / 2, ANGLE_STEP_DEGREES)) + rough
    across = hull @ np.stack([-np.sin(steps), np.cos(steps)])
    angle = float(steps[np.argmin(np.ptp(across, axis=0))])
    if abs(angle) < math.radians(2.5):  # nobody tilts a line by so little; a tail below one letter does
        return 0.0
    return angle


def _quad(group: list[_Region], angle: float, width: int, height: int) -> Polygon:
    """The box around a group's ink at an angle, in shares of the image."""
    points = np.concatenate([region.points for region in group])
    corners = np.concatenate([points + offset for offset in ((0, 0), (1, 0), (1, 1), (0, 1))])  # pixels have an extent
    along, down = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    u, v = corners @ along, corners @ down
    # A pixel's corner reaches past its ink in a tilted box.
    slack = (abs(math.sin(angle)) + abs(math.cos(angle)) - 1) / 2
    left, right, top, bottom = u.min() + slack, u.max() - slack, v.min() + slack, v.max() - slack
    places = (left * along + top * down, right * along + top * down, right * along + bottom * down)
    last = left * along + bottom * down
    return tuple((float(x) / width, float(y) / height) for x, y in (*places, last))
