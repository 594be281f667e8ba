"""Traced memory of a step: against counts by hand and against real tensors."""

from __future__ import annotations

import gc

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from vlad.models.attention import set_decoupled_attention
from vlad.models.unet import denoise
from vlad.models.unet_surgery import add_text_conditioning, extend_conv_in
from vlad.training.memory_trace import LiveBytes, StepShape, saved_bytes, traced_step_bytes
from vlad.types import BaseTextStates, Conditioning

BATCH, CELLS, TOKENS, WIDTH, OWN = 4, 32, 20, 24, 7


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=CELLS,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    extend_conv_in(unet, 8)
    add_text_conditioning(unet, WIDTH, keep_base_text=True)
    set_decoupled_attention([unet])
    return unet


def shape(**changes: object) -> StepShape:
    return StepShape(
        **{
            "batch": BATCH,
            "height": CELLS,
            "width": CELLS,
            "tokens": TOKENS,
            "text_width": WIDTH,
            "base_tokens": OWN,
            **changes,
        }
    )  # type: ignore[arg-type]


def test_bytes_are_counted_while_they_live() -> None:
    x = torch.zeros(1000)
    with LiveBytes() as live:
        a = x + 1
        assert (live.now, live.peak) == (4000, 4000)
        b = a.double()  # 8000 beside
        a.mul_(2).view(10, 100)  # in place, and a view: nothing new
        assert live.now == 12_000
        seen = [x[:500], x.view(10, 100).t(), x.detach()]  # nor is a view of what was there before
        assert live.now == 12_000
        del a, seen
        c = b[:10].clone()
        assert (live.now, live.peak) == (8080, 12_000)
        del b, c
    assert (live.now, live.peak) == (0, 12_000)


class Ring:
    """Holds itself, and something large: only a sweep frees it."""

    def __init__(self, held: torch.Tensor) -> None:
        self.held, self.ring = held, self


@pytest.mark.parametrize(("sweeps", "peak"), [(False, 12_000_000), (True, 8_000_000)])
def test_reference_cycles_are_collected_before_a_peak_counts(sweeps: bool, peak: int) -> None:
    x = torch.zeros(1_000_000)
    gc.collect()
    gc.disable()
    try:
        with LiveBytes(sweeps) as live:
            rings = [Ring(x + 1), Ring(x + 1)]
            del rings[0]
            rings.append(Ring(x + 1))
        assert live.peak == peak
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()


def test_saved_tensors_are_counted() -> None:
    layers = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    x = torch.randn(3, 10)
    # x for the first matrix, the ReLU's result for itself and for the second; the matrices are not counted.
    assert saved_bytes(lambda: [layers(x)], layers) == 4 * (3 * 10 + 3 * 20)
    layers.requires_grad_(False)
    assert saved_bytes(lambda: [layers(x)], layers) == 0


@pytest.mark.parametrize("recompute", [False, True])
def test_a_traced_step_counts_the_bytes_of_a_real_one(recompute: bool) -> None:
    unet = small_unet().train()
    if recompute:
        unet.enable_gradient_checkpointing()
    own = torch.randn(BATCH, OWN, 16)
    t = Conditioning(
        torch.randn(BATCH, TOKENS, WIDTH),
        torch.ones(BATCH, TOKENS, dtype=torch.bool),
        torch.randn(BATCH, WIDTH),
        BaseTextStates(own, None, own, None),
    )
    x, z = torch.randn(2, BATCH, 4, CELLS, CELLS)
    gc.collect()
    with LiveBytes(sweeps=recompute) as live:
        loss = denoise(unet, x, torch.zeros(BATCH, dtype=torch.long), t, z).float().square().mean()
        loss.backward()
    traced = traced_step_bytes(unet, shape(recompute=recompute))
    assert traced == pytest.approx(live.peak, rel=0.03)
    assert all(not parameter.is_meta and parameter.grad is not None for parameter in unet.parameters())


def test_memory_options_make_the_trace_smaller() -> None:
    unet = small_unet()
    gradients = sum(parameter.nbytes for parameter in unet.parameters())
    whole = traced_step_bytes(unet, shape())
    assert traced_step_bytes(unet, shape(recompute=True)) < 0.7 * whole
    assert traced_step_bytes(unet, shape(autocast=torch.bfloat16)) < 0.8 * whole
    quarter = traced_step_bytes(unet, shape(batch=1))
    assert quarter < 0.5 * whole
    # Gradients that are there already come on top of a forward pass.
    assert traced_step_bytes(unet, shape(has_gradients=True)) > whole + 0.5 * gradients
    unet.requires_grad_(False)
    unet.conv_in.requires_grad_(True)
    assert traced_step_bytes(unet, shape()) < whole - 0.5 * gradients
