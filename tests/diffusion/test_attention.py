"""Attention backends: which one runs is said, and all compute the same."""

import sys
import types

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlad.diffusion.attention import prove_xformers, set_attention
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
    monkeypatch.setattr("vlad.diffusion.attention.prove_xformers", lambda *_: pytest.fail("xformers was asked"))
    assert set_attention([build()], "sdpa", CPU) == "attention: torch SDPA"


def test_flash_runs_where_there_is_no_mask_and_is_refused_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[SDPBackend] = []

    def spy(backend: SDPBackend) -> object:
        used.append(backend)
        return sdpa_kernel(backend)

    monkeypatch.setattr("vlad.diffusion.attention.sdpa_kernel", spy)
    unet = build()
    line = set_attention([unet], "flash", CPU)
    assert line == "attention: torch's flash kernel where there is no mask (its kernel ran on this device)"
    used.clear()
    forward_and_gradients(unet)
    self_attentions = sum(name.endswith("attn1.processor") for name in unet.attn_processors)
    assert used == [SDPBackend.FLASH_ATTENTION] * self_attentions
    monkeypatch.setattr("vlad.diffusion.attention.F.scaled_dot_product_attention", refuse)
    with pytest.raises(UserError, match=r"flash was asked for, but its kernel does not run here in float16: no kernel"):
        set_attention([build()], "flash", CPU, torch.float16)


def refuse(*_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel")


def forward_and_gradients(unet: UNet2DConditionModel, device: torch.device = CPU) -> list[torch.Tensor]:
    """A prediction with masked tokens, and the gradients of all parameters."""
    torch.manual_seed(1)
    unet = unet.to(device)
    x_t, z = torch.randn(2, 2, 4, 8, 8).to(device)
    mask = torch.tensor([[True, True, False, False], [True] * 4], device=device)
    t = Conditioning(torch.randn(2, 4, 16).to(device), mask, torch.randn(2, 16).to(device))
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["sdpa", "xformers"])
def test_every_backend_of_a_gpu_computes_what_plain_attention_does(backend: str) -> None:
    if backend == "xformers" and (reason := prove_xformers(torch.device("cuda"), torch.float32)):
        pytest.skip(reason)
    compare(backend, torch.device("cuda"), 1e-3)
