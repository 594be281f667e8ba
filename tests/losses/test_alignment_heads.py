"""Heads of the text-side losses: pooling of t and v."""

import pytest
import torch

from vlad.losses.alignment_heads import AlignmentHeads, AttentionPool, TokenPool, sincos_positions
from vlad.losses.contrastive import AlignmentHead
from vlad.types import Conditioning


@pytest.mark.parametrize(("points", "side"), [(4, 4), (4, 8), (4, 3), (8, 8)])
def test_a_position_is_most_similar_to_its_neighbours(points: int, side: int) -> None:
    asked, there = sincos_positions(points, side, 64), sincos_positions(side, side, 64)

    nearest = (asked @ there.T).argmax(dim=1)

    middles = (torch.arange(points) + 0.5) / points
    for index, found in enumerate(nearest.tolist()):
        row, column = middles[index // points], middles[index % points]
        for wanted, got in ((row, found // side), (column, found % side)):
            assert abs(float(wanted) - (got + 0.5) / side) <= 0.5 / side + 1e-6


@pytest.mark.parametrize("width", [6, 64])
def test_attention_pooling_keeps_positions_and_the_mean_loses_them(width: int) -> None:
    torch.manual_seed(0)
    pool = AttentionPool(width)
    features = torch.randn(2, 16, width)
    features[1] = features[0].roll(4, dims=0)  # the same patches a row lower

    v = pool(features)

    assert v.shape == (2, width)
    torch.testing.assert_close(features[0].mean(dim=0), features[1].mean(dim=0))
    assert (v[0] - v[1]).abs().max() > 0.1
    torch.testing.assert_close(pool(features[1:])[0], v[1])


def test_each_query_starts_at_its_own_position() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(64)
    pool.to_value.weight.data.zero_()
    pool.to_value.bias.data.zero_()
    pool.to_value.weight.data[0, 0] = 1.0
    features = torch.zeros(16, 16, 64)
    features[torch.arange(16), torch.arange(16), 0] = 1.0  # image k has something in cell k alone
    seen: list[torch.Tensor] = []
    pool.to_v.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].unflatten(1, (16, -1))[..., 0]))

    pool(features)
    pool(torch.zeros(1, 16, 64))

    changes = seen[0] - seen[1]  # image, query
    assert changes.argmax(dim=1).tolist() == list(range(16))


def test_features_that_form_no_grid_get_no_positions() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(32)
    features = torch.randn(1, 17, 32)  # a class token before 4 x 4 patches

    torch.testing.assert_close(pool(features), pool(features.flip(1)))


def conditioning() -> Conditioning:
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    return Conditioning(torch.randn(2, 3, 8), mask, torch.randn(2, 8))


def test_t_is_the_pooled_vector_plus_the_sum_of_unmasked_tokens() -> None:
    t = conditioning()
    pool = TokenPool(8)
    of = pool.of_token(t.tokens)
    sums = torch.stack([of[0, 0] + of[0, 1], of[1, 0] + of[1, 1] + of[1, 2]])

    torch.testing.assert_close(pool(t), t.pooled + pool.norm(sums))
    other = Conditioning(t.tokens.masked_fill(~t.mask[..., None], 7.0), t.mask, t.pooled)
    assert torch.equal(pool(other), pool(t))


def test_heads_use_the_pools_they_have() -> None:
    t, features = conditioning(), torch.randn(2, 4, 8)
    plain = AlignmentHeads(AlignmentHead(8, 8))
    pooling = AlignmentHeads(AlignmentHead(8, 8), pool=AttentionPool(8), text_pool=TokenPool(8))

    assert torch.equal(plain.t(t), t.pooled)
    assert torch.equal(plain.v(features), features.mean(dim=1))
    assert torch.equal(pooling.v(features[:, 0]), features[:, 0])  # pooled by the tower
    loss = pooling.contrast(pooling.t(t), pooling.v(features))
    loss.backward()
    assert all(parameter.grad is not None for parameter in pooling.parameters())
