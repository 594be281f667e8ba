"""L_diff against its formula with the same random numbers."""

import pytest
import torch
from torch import Tensor

from vlad.diffusion.noise_schedule import build_scheduler, draw_timesteps
from vlad.diffusion.options import NoiseOptions
from vlad.losses.diffusion_loss import diffusion_loss
from vlad.models.options import UNetOptions
from vlad.models.unet import build_unet, denoise
from vlad.types import Conditioning

X_0, Z = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def condition() -> Conditioning:
    generator = torch.Generator().manual_seed(2)
    return Conditioning(
        torch.randn(4, 3, 16, generator=generator),
        torch.ones(4, 3, dtype=torch.bool),
        torch.randn(4, 16, generator=generator),
    )


def build() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_unet(UNetOptions((32,), heads=2), 4, 4, 16, 8).eval()


def left_half(value: float) -> Tensor:
    """Weights of 32 x 32 pixels, `value` on the left half and 1 on the right: cells are 4 x 4 pixels."""
    weights = torch.ones(4, 1, 32, 32)
    weights[..., :16] = value
    return weights


@pytest.mark.parametrize("gamma", [None, 5.0])
@torch.no_grad()
def test_the_loss_is_equation_9_written_out(gamma: float | None) -> None:
    unet, t = build(), condition()
    options = NoiseOptions(prediction="epsilon", min_snr_gamma=gamma, timestep_bias="high")
    scheduler = build_scheduler(options)

    torch.manual_seed(7)
    loss, rows, timesteps = diffusion_loss(unet, scheduler, options, X_0, t, Z)

    torch.manual_seed(7)
    epsilon = torch.randn_like(X_0)
    drawn = draw_timesteps(options, 4, X_0.device)
    wanted = []
    for row in range(4):
        kept = scheduler.alphas_cumprod[drawn[row]]
        x_t = kept.sqrt() * X_0[row] + (1 - kept).sqrt() * epsilon[row]
        one = t.select(torch.tensor([row]))
        guess = denoise(unet, x_t[None], drawn[row : row + 1], one, Z[row : row + 1])[0]
        snr = kept / (1 - kept)
        weight = 1.0 if gamma is None else float(snr.clamp(max=gamma) / snr)
        wanted.append(weight * float((epsilon[row] - guess).square().mean()))

    assert torch.equal(timesteps, drawn)
    torch.testing.assert_close(rows, torch.tensor(wanted), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss, rows.mean())


def loss_of(x_0: Tensor, weights: Tensor | None) -> Tensor:
    """The rows' losses of a UNet that always says zero, for predictions of x_0: the plain square of x_0."""
    unet = build()
    for parameter in unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    options = NoiseOptions(prediction="sample")
    return diffusion_loss(unet, build_scheduler(options), options, x_0, condition(), Z, weights)[1]


@torch.no_grad()
def test_pixels_of_weight_zero_are_left_out() -> None:
    other_left = X_0.clone()
    other_left[..., :4] += 3
    other_right = X_0.clone()
    other_right[..., 4:] += 3

    assert torch.equal(loss_of(other_left, left_half(0.0)), loss_of(X_0, left_half(0.0)))
    assert (loss_of(other_right, left_half(0.0)) > loss_of(X_0, left_half(0.0)) + 1).all()
    torch.testing.assert_close(loss_of(X_0, left_half(0.0)), X_0[..., 4:].square().sum(dim=(1, 2, 3)) / X_0[0].numel())


@torch.no_grad()
def test_weights_within_a_cell_are_averaged_and_ones_change_nothing() -> None:
    torch.testing.assert_close(loss_of(X_0, left_half(1.0)), loss_of(X_0, None))
    checked = torch.ones(4, 1, 32, 32)
    checked[..., ::2] = 0  # half the pixels of every cell
    torch.testing.assert_close(loss_of(X_0, checked), loss_of(X_0, None) / 2)


def test_gradients_reach_the_unet_and_the_conditioning() -> None:
    unet, t = build(), condition()
    tokens = t.tokens.clone().requires_grad_()
    options = NoiseOptions(prediction="flow")

    loss, rows, _ = diffusion_loss(
        unet, build_scheduler(options), options, X_0, Conditioning(tokens, t.mask, t.pooled), Z
    )
    loss.backward()

    assert not rows.requires_grad
    assert tokens.grad is not None
    assert tokens.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in unet.parameters())
