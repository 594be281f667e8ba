"""`denoise` and the UNets: input channels add up, every input counts, masked tokens do not."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vlad.models.options import UNetOptions
from vlad.models.unet import build_unet, denoise, position_features
from vlad.types import Conditioning
from vlad.utils.errors import UserError

WIDTH, CELLS, CHANNELS = 16, 8, 4
X_T = torch.randn(2, CHANNELS, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
Z = torch.randn(2, CHANNELS, CELLS, CELLS, generator=torch.Generator().manual_seed(1))
TIMESTEPS = torch.tensor([10, 900])
BOTH_WAYS_UP = pytest.mark.parametrize("up_attention", [True, False])


def build(
    extra: int = CHANNELS, frequencies: int = 2, pooled: bool = True, up_attention: bool = True
) -> UNet2DConditionModel:
    torch.manual_seed(0)
    options = UNetOptions((32, 64), 1, 2, 0, up_attention, frequencies, pooled)
    return build_unet(options, CHANNELS, extra, WIDTH, CELLS).eval()


def condition(seed: int = 0) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    return Conditioning(torch.randn(2, 5, WIDTH, generator=generator), mask, torch.randn(2, WIDTH, generator=generator))


def changed_rows(first: Tensor, second: Tensor) -> list[bool]:
    return ((first - second).abs().amax(dim=(1, 2, 3)) > 1e-4).tolist()


@pytest.mark.parametrize("frequencies", [0, 2])
@pytest.mark.parametrize("with_z", [True, False])
@torch.no_grad()
def test_channels_add_up(with_z: bool, frequencies: int) -> None:
    unet = build(CHANNELS if with_z else 0, frequencies)

    assert unet.config.in_channels == CHANNELS * (1 + with_z) + 4 * frequencies
    assert unet.config.out_channels == CHANNELS
    assert denoise(unet, X_T, TIMESTEPS, condition(), Z if with_z else None).shape == X_T.shape


@BOTH_WAYS_UP
@torch.no_grad()
def test_every_input_changes_its_row_alone(up_attention: bool) -> None:
    unet = build(up_attention=up_attention)
    t = condition()
    before = denoise(unet, X_T, TIMESTEPS, t, Z)
    first_row = torch.tensor([1.0, 0.0])

    def moved(x: Tensor) -> Tensor:
        return x + first_row.view(-1, *[1] * (x.ndim - 1)) * torch.linspace(-1, 1, x.shape[-1])

    for name, after in {
        "x_t": denoise(unet, moved(X_T), TIMESTEPS, t, Z),
        "z": denoise(unet, X_T, TIMESTEPS, t, moved(Z)),
        "timesteps": denoise(unet, X_T, torch.tensor([11, 900]) * 1, t, Z),
        "tokens": denoise(unet, X_T, TIMESTEPS, Conditioning(moved(t.tokens), t.mask, t.pooled), Z),
        "pooled": denoise(unet, X_T, TIMESTEPS, Conditioning(t.tokens, t.mask, moved(t.pooled)), Z),
    }.items():
        assert changed_rows(before, after) == [True, False], name


@BOTH_WAYS_UP
@pytest.mark.parametrize("first", [0, 1, 2])
def test_attention_begins_at_the_level_that_is_named(first: int, up_attention: bool) -> None:
    options = UNetOptions((32, 32, 64), heads=2, attention_from_level=first, up_attention=up_attention)
    unet = build_unet(options, CHANNELS, 0, WIDTH, CELLS)
    attended = [hasattr(block, "attentions") for block in unet.down_blocks]
    assert attended == [level >= first for level in range(3)]
    assert [hasattr(block, "attentions") for block in reversed(unet.up_blocks)] == [
        up_attention and a for a in attended
    ]


@pytest.mark.parametrize("first", [-1, 2])
def test_attention_begins_at_a_level_that_there_is(first: int) -> None:
    with pytest.raises(UserError, match=r"unet.attention_from_level must be one of the 2 levels"):
        UNetOptions((32, 64), attention_from_level=first)


@BOTH_WAYS_UP
@torch.no_grad()
def test_masked_tokens_do_not_matter(up_attention: bool) -> None:
    unet = build(up_attention=up_attention)
    t = condition()
    rubbish = Conditioning(t.tokens.masked_fill(~t.mask[..., None], 9.0), t.mask, t.pooled)
    cut = t.select(torch.tensor([0]))
    cut = Conditioning(cut.tokens[:, :3], cut.mask[:, :3], cut.pooled)

    before = denoise(unet, X_T, TIMESTEPS, t, Z)

    assert not torch.equal(rubbish.tokens, t.tokens)
    torch.testing.assert_close(denoise(unet, X_T, TIMESTEPS, rubbish, Z), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(denoise(unet, X_T[:1], TIMESTEPS[:1], cut, Z[:1]), before[:1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_pooled_the_pooled_vector_is_not_used() -> None:
    unet = build(pooled=False)
    t, other = condition(), condition(seed=5)

    before = denoise(unet, X_T, TIMESTEPS, t, Z)

    assert torch.equal(denoise(unet, X_T, TIMESTEPS, Conditioning(t.tokens, t.mask, other.pooled), Z), before)


def test_every_parameter_takes_part() -> None:
    unet = build()
    (denoise(unet, X_T, TIMESTEPS, condition(), Z) * torch.randn(X_T.shape)).sum().backward()
    assert [name for name, parameter in unet.named_parameters() if parameter.grad is None] == []


def test_position_features_are_the_waves_at_the_centres_of_the_cells() -> None:
    features = position_features(8, torch.zeros(3, 1, 4, 6))

    assert features.shape == (3, 8, 4, 6)
    assert features.abs().max() <= 1
    for row in range(4):
        for column in range(6):
            y, x = (row + 0.5) / 4, (column + 0.5) / 6
            wanted = [wave(math.pi * k * place) for place in (y, x) for wave in (math.sin, math.cos) for k in (1, 2)]
            torch.testing.assert_close(features[1, :, row, column], torch.tensor(wanted), atol=1e-6, rtol=0)


def test_no_two_cells_have_the_same_position() -> None:
    cells = position_features(4, torch.zeros(1, 1, 8, 8))[0].flatten(1).T
    distances = torch.cdist(cells, cells) + 10 * torch.eye(64)
    assert distances.min() > 0.05


@pytest.mark.parametrize("channels", [(), (33,), (32, 48)])
def test_channels_that_group_norm_cannot_split_are_refused(channels: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"unet\.block_channels must be positive multiples of 32"):
        UNetOptions(block_channels=channels)
