"""Attention backends: which one runs is said, and all compute the same."""

import sys
import types

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from vlad.diffusion.attention import set_attention
from vlad.diffusion.unets import UNetOptions, build_unet, denoise
from vlad.errors import UserError
from vlad.records import Conditioning

CPU = torch.device("cpu")


def build() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_unet(UNetOptions((32, 64), heads=2), 4, 4, 16, 8).eval()


def with_xformers(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    """As if xformers were, or were not, installed here."""
    package = types.ModuleType("xformers")
    package.ops = types.ModuleType("xformers.ops")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package if installed else None)
    monkeypatch.setitem(sys.modules, "xformers.ops", package.ops if installed else None)


REASONS = pytest.mark.parametrize(
    ("installed", "reason"), [(False, "xformers is not installed"), (True, "xformers has no kernels for cpu")]
)


@REASONS
def test_auto_falls_back_to_sdpa_and_says_why(monkeypatch: pytest.MonkeyPatch, installed: bool, reason: str) -> None:
    with_xformers(monkeypatch, installed)
    unet = build()
    unet.set_attn_processor(AttnProcessor())

    line = set_attention([unet], "auto", CPU)

    assert line.startswith(f"attention: torch SDPA ({reason}")
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor2_0}


@REASONS
def test_xformers_asked_for_where_it_cannot_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, installed: bool, reason: str
) -> None:
    with_xformers(monkeypatch, installed)
    with pytest.raises(UserError, match=rf"trainer\.attention: xformers was asked for, but {reason}.*use auto or sdpa"):
        set_attention([build()], "xformers", CPU)


def test_sdpa_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlad.diffusion.attention.prove_xformers", lambda _: pytest.fail("xformers was asked"))
    assert set_attention([build()], "sdpa", CPU) == "attention: torch SDPA"


@torch.no_grad()
def test_sdpa_and_plain_attention_agree_also_on_masks() -> None:
    unet = build()
    x_t, z = torch.randn(2, 2, 4, 8, 8)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    t = Conditioning(torch.randn(2, 4, 16), mask, torch.randn(2, 16))

    unet.set_attn_processor(AttnProcessor())
    plain = denoise(unet, x_t, torch.tensor([3, 700]), t, z)
    set_attention([unet], "sdpa", CPU)
    sdpa = denoise(unet, x_t, torch.tensor([3, 700]), t, z)

    torch.testing.assert_close(sdpa, plain, atol=1e-5, rtol=1e-5)
