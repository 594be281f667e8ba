"""Attention backends: the choice and its reason are reported, and all compute the same."""

import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlad.models.attention import XformersAttnProcessor, set_attention, try_xformers
from vlad.models.options import UNetOptions
from vlad.models.unet import build_unet, denoise
from vlad.types import Conditioning
from vlad.utils.errors import UserError

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
def test_auto_falls_back_to_sdpa_and_reports_why(monkeypatch: pytest.MonkeyPatch, installed: bool, reason: str) -> None:
    with_xformers(monkeypatch, installed)
    unet = build()
    unet.set_attn_processor(AttnProcessor())

    line = set_attention([unet], "auto", CPU)

    assert line.startswith(f"attention: torch SDPA ({reason}")
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor2_0}


@REASONS
def test_xformers_is_refused_if_it_cannot_run(monkeypatch: pytest.MonkeyPatch, installed: bool, reason: str) -> None:
    with_xformers(monkeypatch, installed)
    with pytest.raises(UserError, match=rf"trainer\.attention: xformers cannot run: {reason}.*use auto or sdpa"):
        set_attention([build()], "xformers", CPU)


def test_sdpa_does_not_try_xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlad.models.attention.try_xformers", lambda *_: pytest.fail("xformers was asked"))
    assert set_attention([build()], "sdpa", CPU) == "attention: torch SDPA"


def test_flash_runs_without_a_mask_and_is_refused_if_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[SDPBackend] = []

    def spy(backend: SDPBackend) -> object:
        used.append(backend)
        return sdpa_kernel(backend)

    monkeypatch.setattr("vlad.models.attention.sdpa_kernel", spy)
    unet = build()
    line = set_attention([unet], "flash", CPU)
    assert line == "attention: torch's flash kernel where there is no mask (its kernel ran on this device)"
    used.clear()
    forward_and_gradients(unet)
    self_attentions = sum(name.endswith("attn1.processor") for name in unet.attn_processors)
    assert used == [SDPBackend.FLASH_ATTENTION] * self_attentions
    monkeypatch.setattr("vlad.models.attention.F.scaled_dot_product_attention", refuse)
    told = r"flash cannot run: its kernel does not run here in float16 with heads of 16: no kernel"
    with pytest.raises(UserError, match=told):
        set_attention([build()], "flash", CPU, torch.float16)


def refuse(*_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel")


def forward_and_gradients(unet: UNet2DConditionModel, device: torch.device = CPU) -> list[torch.Tensor]:
    """A prediction with masked tokens (an odd number of them), and the gradients of all parameters."""
    torch.manual_seed(1)
    unet = unet.to(device)
    x_t, z = torch.randn(2, 2, 4, 8, 8).to(device)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5], device=device)
    t = Conditioning(torch.randn(2, 5, 16).to(device), mask, torch.randn(2, 16).to(device))
    unet.zero_grad()
    prediction = denoise(unet, x_t, torch.tensor([3, 700], device=device), t, z)
    prediction.square().sum().backward()
    return [prediction.detach(), *(p.grad for p in unet.parameters() if p.grad is not None)]


def compare(backend: str, device: torch.device, tolerance: float) -> None:
    unet = build()
    unet.set_attn_processor(AttnProcessor())
    plain = forward_and_gradients(unet, device)
    set_attention([unet], backend, device)
    found = forward_and_gradients(unet, device)
    assert len(plain) == len(found) > 50
    scale = max(float(value.abs().max()) for value in plain)
    for value, wanted in zip(found, plain, strict=True):
        torch.testing.assert_close(value, wanted, atol=tolerance * scale, rtol=tolerance)


@pytest.mark.parametrize("backend", ["sdpa", "flash"])
def test_every_backend_computes_what_plain_attention_does(backend: str) -> None:
    compare(backend, CPU, 1e-5)


def strict_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_bias: torch.Tensor | None = None, scale: float | None = None
) -> torch.Tensor:
    """What xformers' kernels compute, with what they refuse (B L heads D)."""
    if attn_bias is not None:
        assert attn_bias.shape == (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        if attn_bias.dtype != q.dtype:
            raise RuntimeError("invalid dtype for bias - should match query's dtype")
        alignment = 128 // torch.finfo(q.dtype).bits
        if any(stride % alignment for stride in attn_bias.stride()[:-1]):
            raise NotImplementedError(f"attn_bias.stride() = {attn_bias.stride()}, not multiples of {alignment}")
    turned = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*turned, attn_mask=attn_bias, scale=scale).transpose(1, 2)


def test_xformers_gets_masks_that_its_kernels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    with_xformers(monkeypatch, True)
    sys.modules["xformers.ops"].memory_efficient_attention = strict_attention  # type: ignore[attr-defined]
    unet = build()
    unet.set_attn_processor(AttnProcessor())
    plain = forward_and_gradients(unet)
    unet.set_attn_processor(XformersAttnProcessor())
    for value, wanted in zip(forward_and_gradients(unet), plain, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):  # the UNet's masks stay float32
        forward_and_gradients(unet)


def test_a_kernel_is_tried_with_a_mask_and_for_every_head_width(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.device, torch.dtype, list[int]]] = []

    def prove(*given: object) -> str:
        asked.append(given)  # type: ignore[arg-type]
        return "no kernel"

    monkeypatch.setattr("vlad.models.attention.try_xformers", prove)
    set_attention([build()], "auto", CPU, torch.bfloat16)
    assert asked == [(CPU, torch.bfloat16, [16, 32])]

    def no_masks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_bias: torch.Tensor | None = None) -> object:
        if attn_bias is not None:
            raise NotImplementedError("no operator takes a mask")
        return strict_attention(q, k, v)

    with_xformers(monkeypatch, True)
    sys.modules["xformers.ops"].memory_efficient_attention = no_masks  # type: ignore[attr-defined]
    told = "its kernel does not run here in float32 with heads of 40: no operator takes a mask"
    fake = types.SimpleNamespace(type="cuda")  # a device of which only the name is asked for
    with monkeypatch.context() as patch:
        randn = torch.randn

        def on_the_cpu(shape: tuple[int, ...], device: object, **options: Any) -> torch.Tensor:
            return randn(shape, **options)

        patch.setattr(torch, "Generator", lambda _: None)
        patch.setattr(torch, "randn", on_the_cpu)
        patch.setattr(torch.cuda, "synchronize", lambda _: None)
        assert try_xformers(fake, torch.float32, [40]) == told  # type: ignore[arg-type]
        sys.modules["xformers.ops"].memory_efficient_attention = strict_attention  # type: ignore[attr-defined]
        assert try_xformers(fake, torch.bfloat16, [40, 64]) is None  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["sdpa", "xformers"])
def test_every_backend_of_a_gpu_computes_what_plain_attention_does(backend: str) -> None:
    if backend == "xformers" and (reason := try_xformers(torch.device("cuda"), torch.float32)):
        pytest.skip(reason)
    compare(backend, torch.device("cuda"), 1e-3)
