"""Region-phrase contrast: objects found in prompts, pooling of boxes, the loss."""

import pytest
import torch
from torch import Tensor

from vlad.losses.contrastive import multi_positive_loss
from vlad.losses.extra.region_phrase_contrast import RegionHead, Regions, find_regions, pool_regions, region_phrase_loss
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.types import ObjectBox

WHOLE = (0.0, 0.0, 1.0, 1.0)


def patches(rows: int = 2, height: int = 3, width: int = 4) -> Tensor:
    return torch.randn(rows, height, width, 5, generator=torch.Generator().manual_seed(0))


def pool(*box: float, row: int = 0, of: Tensor | None = None) -> Tensor:
    return pool_regions(patches() if of is None else of, torch.tensor([row]), torch.tensor([box]))[0]


def test_objects_are_found_by_their_words_in_their_own_prompt() -> None:
    prompts = [
        parse_prompt('a blue sign beside a tree that says "a cat"'),
        parse_prompt("a tree and a tree and a dog"),
        parse_prompt("a house"),
    ]
    boxes = [(0.0, 0.0, 0.1 * n, 1.0) for n in range(1, 6)]
    objects = [
        (ObjectBox("A  Blue sign", boxes[0]), ObjectBox("a cat", WHOLE), ObjectBox("a tree", boxes[1])),
        (ObjectBox("a tree", boxes[2]), ObjectBox("a tree", boxes[3]), ObjectBox("a tree", boxes[4])),
        (),
    ]

    regions = find_regions(prompts, objects)

    assert regions.rows.tolist() == [0, 0, 1, 1, 1]
    assert regions.phrases.tolist() == [0, 1, 0, 1, 1]
    torch.testing.assert_close(regions.boxes, torch.tensor(boxes))
    trees = regions.ids == regions.ids[1]
    assert trees.tolist() == [False, True, True, True, True]


def test_a_batch_without_objects_has_no_regions() -> None:
    regions = find_regions([parse_prompt("a tree")], [()])
    assert regions.boxes.shape == (0, 4)
    assert len(regions.rows) == len(regions.phrases) == len(regions.ids) == 0


def test_a_box_on_the_grid_is_the_mean_of_its_patches() -> None:
    torch.testing.assert_close(pool(*WHOLE, row=1), patches()[1].mean(dim=(0, 1)))
    torch.testing.assert_close(pool(0.25, 1 / 3, 0.75, 1.0), patches()[0, 1:, 1:3].mean(dim=(0, 1)))


def test_patches_are_weighted_by_their_overlap_with_the_box() -> None:
    box = (0.1, 0.2, 0.6, 0.45)
    fine = patches()[0].repeat_interleave(200, dim=0).repeat_interleave(200, dim=1)  # 600 x 800 points
    ys, xs = (torch.arange(600) + 0.5) / 600, (torch.arange(800) + 0.5) / 800
    inside = ((ys > box[1]) & (ys < box[3]))[:, None] & ((xs > box[0]) & (xs < box[2]))

    torch.testing.assert_close(pool(*box), fine[inside].mean(dim=0), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("box", "cell"),
    [((0.3, 0.1, 0.3, 0.1), (0, 1)), ((0.9, 0.5, 0.9, 0.5), (1, 3)), ((1.0, 1.0, 1.0, 1.0), (2, 3))],
)
def test_a_box_without_area_pools_the_patch_it_lies_on(box: tuple[float, ...], cell: tuple[int, int]) -> None:
    torch.testing.assert_close(pool(*box), patches()[0][cell])


def test_a_box_that_reaches_outside_is_cut_at_the_image_s_edge() -> None:
    torch.testing.assert_close(pool(0.5, 0.0, 1.5, 1.0), patches()[0, :, 2:].mean(dim=(0, 1)))
    assert pool(2.0, 2.0, 3.0, 3.0).isfinite().all()


def test_equal_phrases_match_each_other_s_regions() -> None:
    torch.manual_seed(0)
    phrases, regions = torch.randn(3, 5), torch.randn(3, 5)
    relations = torch.tensor([[1, -1, 1], [-1, 1, -1], [1, -1, 1]])

    loss = region_phrase_loss(phrases, regions, torch.tensor([7, 8, 7]), 0.2)

    torch.testing.assert_close(loss, multi_positive_loss(phrases, regions, 0.2, relations))


def test_the_head_compares_each_phrase_with_its_region_and_passes_gradients_to_both() -> None:
    torch.manual_seed(0)
    head = RegionHead(6, 5, width=4, temperature=0.2)
    local_states, of_patches = torch.randn(2, 3, 6, requires_grad=True), patches().requires_grad_()
    local_mask = torch.tensor([[True, True, False], [True, False, False]])
    regions = Regions(
        rows=torch.tensor([0, 1, 0, 0]),
        phrases=torch.tensor([1, 0, 0, 2]),  # the last was cut off with the end of its prompt
        boxes=torch.tensor([[0.0, 0.0, 0.5, 1.0], WHOLE, [0.5, 0.0, 1.0, 1.0], WHOLE]),
        ids=torch.tensor([1, 2, 3, 4]),
    )
    left, right = of_patches[0, :, :2].mean(dim=(0, 1)), of_patches[0, :, 2:].mean(dim=(0, 1))
    pooled = torch.stack([left, of_patches[1].mean(dim=(0, 1)), right])
    phrases = torch.stack([local_states[0, 1], local_states[1, 0], local_states[0, 0]])

    loss = head(local_states, local_mask, of_patches, regions)
    loss.backward()

    wanted = region_phrase_loss(head.from_phrase(phrases), head.from_patch(pooled), torch.arange(3), 0.2)
    torch.testing.assert_close(loss, wanted)
    assert head.temperature.item() == pytest.approx(0.2)
    assert local_states.grad is not None
    assert of_patches.grad is not None
    assert torch.equal(local_states.grad.abs().amax(dim=2) > 0, local_mask)
    assert of_patches.grad.abs().amax(dim=3).min() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())


def test_a_batch_without_regions_costs_nothing_and_still_has_gradients() -> None:
    head = RegionHead(6, 5)
    loss = head(torch.randn(1, 1, 6), torch.zeros(1, 1).bool(), patches(1), find_regions([parse_prompt("a")], [()]))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in head.parameters())
