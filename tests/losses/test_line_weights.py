"""Line weights against their formula: every line adds the same to the loss, whatever its area."""

import pytest
import torch

from vlad.layout.polygons import box_polygon
from vlad.losses.extra.line_weights import MAX_WEIGHT, line_weights
from vlad.types import Layout, TextLine

LARGE = TextLine("A", box_polygon(0.0, 0.0, 0.5, 0.5))
SMALL = TextLine("B", box_polygon(0.5, 0.75, 0.75, 0.875))


def test_the_weights_are_the_formula() -> None:
    height, width, weight = 16, 32, 0.1
    found = line_weights((Layout((LARGE, SMALL)), Layout(())), weight, height, width)
    assert found.shape == (2, 1, height, width)
    wanted = torch.ones(height, width)
    wanted[:8, :16] += weight / 0.25
    wanted[12:14, 16:24] += weight / (0.25 * 0.125)
    torch.testing.assert_close(found[0, 0], wanted)
    assert (found[1] == 1).all()


def test_each_line_adds_the_mean_of_its_own_region() -> None:
    errors = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    weights = line_weights((Layout((LARGE, SMALL)),), 0.05, 16, 16)
    regions = errors[0, 0, :8, :8].mean() + errors[0, 0, 12:14, 8:12].mean()
    torch.testing.assert_close((weights * errors).mean(), errors.mean() + 0.05 * regions)


def test_illegible_lines_add_nothing_and_tiny_ones_a_bounded_weight() -> None:
    unreadable = TextLine("?", LARGE.polygon, valid=False)
    assert (line_weights((Layout((unreadable,)),), 0.5, 8, 8) == 1).all()
    speck = TextLine("i", box_polygon(0.5, 0.5, 0.53, 0.53))
    assert line_weights((Layout((speck,)),), 0.5, 64, 64).max() == MAX_WEIGHT


def test_a_tilted_line_weighs_in_its_own_quad_only() -> None:
    diamond = TextLine("A", ((0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)))
    found = line_weights((Layout((diamond,)),), 0.5, 16, 16)[0, 0]
    assert found[8, 8] == pytest.approx(1 + 0.5 / 0.5, abs=0.05)
    assert found[0, 0] == found[-1, -1] == 1
