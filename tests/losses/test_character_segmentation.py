"""Character segmentation loss: labels, the formula, and a segmenter that learns letters."""

import pytest
import torch
from torch.nn import functional as F

from vlad.data.collate import collate
from vlad.data.options import SyntheticOptions
from vlad.data.signs import render_sign
from vlad.layout.polygons import box_polygon
from vlad.losses.extra.character_segmentation import (
    CLASSES,
    IGNORED,
    UPSCALE,
    CharacterSegmenter,
    character_labels,
    character_segmentation_loss,
    fit_segmenter,
)
from vlad.types import Batch, Layout, TextLine

LAYOUT = Layout((TextLine("AB", box_polygon(0.0, 0.0, 0.5, 0.5)),))


def test_each_letter_has_its_cell() -> None:
    labels = character_labels((LAYOUT, Layout(())), 32, 32)
    assert labels.shape == (2, 32, 32)
    assert labels[0, 4, 3] == ord("A") - 32 + 1
    assert labels[0, 4, 12] == ord("B") - 32 + 1
    assert labels[0, 20, 20] == labels[1].max() == 0
    assert (labels[0] == ord("A") - 32 + 1).sum() == pytest.approx(8 * 16, abs=24)


def test_illegible_lines_and_unknown_characters_are_ignored() -> None:
    unreadable = Layout((TextLine("AB", LAYOUT.lines[0].polygon, valid=False),))
    foreign = Layout((TextLine("A文", LAYOUT.lines[0].polygon),))
    labels = character_labels((unreadable, foreign), 32, 32)
    assert set(labels[0].unique().tolist()) == {0, IGNORED}
    assert set(labels[1].unique().tolist()) == {0, ord("A") - 32 + 1, IGNORED}


def test_the_loss_is_the_formula_and_has_a_gradient() -> None:
    torch.manual_seed(0)
    segmenter = CharacterSegmenter(4)
    latents = torch.randn(2, 4, 8, 8, requires_grad=True)
    unreadable = Layout((TextLine("AB", LAYOUT.lines[0].polygon, valid=False),))
    loss = character_segmentation_loss(segmenter, latents, (LAYOUT, unreadable))
    scores = segmenter(latents)
    assert scores.shape == (2, CLASSES, 8 * UPSCALE, 8 * UPSCALE)
    labels = character_labels((LAYOUT, unreadable), 32, 32)
    kept = labels != IGNORED
    each = -F.log_softmax(scores, dim=1).gather(1, labels.where(kept, torch.zeros(()).long())[:, None])[:, 0]
    torch.testing.assert_close(loss, each[kept].mean())
    loss.backward()
    assert latents.grad is not None and latents.grad.abs().max() > 0


def test_a_segmenter_learns_letters_and_keeps_the_random_state() -> None:
    options = SyntheticOptions(size_pixels=32, max_letters=3, line_shares=(1.0, 0.0, 0.0), ground_share=0.0)
    batch = collate([render_sign(options, index) for index in range(8)])

    def latents_of(read: Batch) -> torch.Tensor:
        return F.pixel_unshuffle(read.images, 4)  # 48 channels, 8 x 8 cells

    torch.manual_seed(5)
    before = torch.get_rng_state()
    fitted, right = fit_segmenter(latents_of, lambda _: batch, 48, steps=90, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert right > 0.6  # of 36 letters and digits
    assert not any(parameter.requires_grad for parameter in fitted.parameters())
    torch.manual_seed(0)
    untrained = character_segmentation_loss(CharacterSegmenter(48), latents_of(batch), batch.layouts)
    assert character_segmentation_loss(fitted, latents_of(batch), batch.layouts) < untrained / 3
