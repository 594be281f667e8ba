"""Image-text matching: sampled hard negatives, and the loss over them."""

import math

import torch
from torch import Tensor

from vlad.losses.contrastive import diagonal_relations
from vlad.losses.extra.image_text_matching import MatchingHead, image_text_matching_loss, sample_hard_negatives


def head() -> MatchingHead:
    torch.manual_seed(0)
    return MatchingHead(6, 5, width=8, heads=2)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Text tokens with their mask, and patches, of three samples."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    return torch.randn(3, 3, 6, generator=generator), mask, torch.randn(3, 4, 5, generator=generator)


def test_negatives_are_sampled_with_the_softmax_of_the_similarities() -> None:
    torch.manual_seed(0)
    similarities = torch.tensor([[9.0, 0.0, 1.0, 2.0, 9.0]]).repeat(20000, 1)
    relations = torch.tensor([[1, -1, -1, -1, 0]]).repeat(20000, 1)

    columns, present = sample_hard_negatives(similarities, relations)

    assert present.all()
    wanted = torch.tensor([0.0, *torch.tensor([0.0, 1.0, 2.0]).softmax(0).tolist(), 0.0])
    torch.testing.assert_close(columns.bincount(minlength=5) / len(columns), wanted, atol=0.015, rtol=0)


def test_a_row_that_matches_everything_has_no_negative() -> None:
    relations = torch.tensor([[1, 0, 1], [-1, 1, 0], [0, 0, 1]])
    columns, present = sample_hard_negatives(torch.randn(3, 3), relations)
    assert present.tolist() == [False, True, False]
    assert columns[1] == 0


def test_the_head_attends_to_every_unmasked_token_and_patch() -> None:
    tokens, mask, patches = batch()
    matching = head()
    tokens.requires_grad_()
    patches.requires_grad_()

    logits = matching(tokens, mask, patches)
    logits.sum().backward()

    assert logits.shape == (3,)
    assert tokens.grad is not None
    assert patches.grad is not None
    assert torch.equal(tokens.grad.abs().amax(dim=2) > 0, mask)
    assert patches.grad.abs().amax(dim=2).min() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in matching.parameters())
    changed = tokens.detach().masked_fill(~mask[..., None], 9.0)
    torch.testing.assert_close(matching(changed, mask, patches), logits)


def test_the_loss_is_the_binary_cross_entropy_of_pairs_and_hard_negatives() -> None:
    tokens, mask, patches = batch()
    matching = head()
    # Each row's nearest is so near that it is always sampled: text 0 samples image 1, and so on.
    similarities = 1000 * torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 2.0], [2.0, 1.0, 0.0]])
    images, texts = [1, 2, 0], [2, 0, 1]
    total = 0.0
    for i in range(3):
        for text, image, wanted in ((i, i, 1), (i, images[i], 0), (texts[i], i, 0)):
            logit = matching(tokens[[text]], mask[[text]], patches[[image]]).item()
            p = 1 / (1 + math.exp(-logit))
            total -= math.log(p if wanted else 1 - p)

    loss = image_text_matching_loss(matching, tokens, mask, patches, similarities, diagonal_relations(3))

    torch.testing.assert_close(loss, torch.tensor(total / 9))


def test_pairs_that_are_no_negatives_are_never_sampled() -> None:
    tokens, mask, patches = batch()
    matching = head()
    logits = matching(tokens, mask, patches)
    loss = image_text_matching_loss(matching, tokens, mask, patches, torch.randn(3, 3), torch.ones(3, 3))
    torch.testing.assert_close(loss, -logits.sigmoid().log().mean())


def test_a_head_learns_which_texts_describe_which_images() -> None:
    torch.manual_seed(0)
    matching = MatchingHead(8, 8, width=16, heads=2)
    optimizer = torch.optim.Adam(matching.parameters(), lr=3e-3)
    mask = torch.ones(16, 1, dtype=torch.bool)
    for _ in range(200):
        meaning = torch.randn(16, 1, 8)
        loss = image_text_matching_loss(
            matching, meaning, mask, meaning.expand(-1, 2, -1), torch.zeros(16, 16), diagonal_relations(16)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh = torch.randn(200, 1, 8)
    there = torch.ones(200, 1, dtype=torch.bool)
    right = matching(fresh, there, fresh) > 0
    wrong = matching(fresh, there, fresh.roll(1, dims=0)) > 0
    # Always saying no, or always yes, is right for half of them.
    assert (right.float().mean() + 1 - wrong.float().mean()) / 2 > 0.75
