"""UNet surgery: an extended UNet computes exactly what it did before, until the new layers are trained."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vlad.models.attention import DecoupledCrossAttnProcessor, set_attention, set_decoupled_attention
from vlad.models.options import StableDiffusionOptions
from vlad.models.stable_diffusion import StableDiffusion, load_stable_diffusion
from vlad.models.text_encoder.base_encoders import BaseTextEncoders
from vlad.models.unet import denoise
from vlad.models.unet_surgery import add_text_conditioning, added_parameters, extend_conv_in
from vlad.types import BaseTextStates, Conditioning, Prompt
from vlad.utils.errors import UserError

KINDS = pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
WIDTH = 40  # of t; no width of the stand-ins
TIMESTEPS = torch.tensor([10, 900])
SIZE = (64, 48)
TEXTS = ("a sign", 'a red poster that says "OPEN"')


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def load(stand_ins: Path, kind: str) -> StableDiffusion:
    return load_stable_diffusion(StableDiffusionOptions(str(stand_ins / kind)))


def base_states(found: StableDiffusion) -> BaseTextStates:
    assert found.base_text is not None
    return BaseTextEncoders(found.encoders, found.tokenizers, found.base_text)([Prompt(text, (), ()) for text in TEXTS])


def condition(base: BaseTextStates | None, seed: int = 0) -> Conditioning:
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    return Conditioning(random(2, 5, WIDTH, seed=seed), mask, random(2, WIDTH, seed=seed + 1), base, SIZE)


def original_prediction(unet: UNet2DConditionModel, x_t: Tensor, base: BaseTextStates) -> Tensor:
    """The original called as diffusers' pipelines do."""
    added = None
    if base.pooled is not None:
        added = {"text_embeds": base.pooled, "time_ids": torch.tensor([[*SIZE, 0, 0, *SIZE]] * 2)}
    return unet(x_t, TIMESTEPS, base.tokens, added_cond_kwargs=added).sample


@KINDS
@torch.no_grad()
def test_at_step_0_an_extended_unet_computes_exactly_what_it_did(stand_ins: Path, kind: str) -> None:
    found = load(stand_ins, kind)
    base, x_t = base_states(found), random(2, 4, 8, 6)
    before = original_prediction(found.unet, x_t, base)

    extend_conv_in(found.unet, 8)
    add_text_conditioning(found.unet, WIDTH, keep_base_text=True)
    set_decoupled_attention([found.unet])

    for seed in (0, 5):
        z = random(2, 4, 8, 6, seed=seed + 9)
        assert torch.equal(denoise(found.unet, x_t, TIMESTEPS, condition(base, seed), z), before)
    # The base text and SDXL's sizes still change the prediction.
    turned = base.map(lambda x: x.flip(0))
    assert not torch.equal(denoise(found.unet, x_t, TIMESTEPS, condition(turned), z), before)
    if kind == "sdxl":
        larger = replace(condition(base), size=(9, 9))
        assert not torch.equal(denoise(found.unet, x_t, TIMESTEPS, larger, z), before)


@KINDS
def test_every_added_layer_learns_from_the_first_steps(stand_ins: Path, kind: str) -> None:
    found = load(stand_ins, kind)
    base, x_t, z = base_states(found), random(2, 4, 8, 6), random(2, 4, 8, 6, seed=3)
    extend_conv_in(found.unet, 8)
    add_text_conditioning(found.unet, WIDTH, keep_base_text=True)
    set_decoupled_attention([found.unet])
    found.unet.requires_grad_(False)
    added = list(added_parameters(found.unet))
    for parameter in added:
        parameter.requires_grad_(True)
    before = [parameter.detach().clone() for parameter in added]
    optimizer = torch.optim.Adam(added, lr=1e-2)
    losses = []
    for _ in range(4):
        loss = (denoise(found.unet, x_t, TIMESTEPS, condition(base), z) - random(2, 4, 8, 6, seed=8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0]
    assert len(added) == 8  # weights and biases of conv_in, encoder_hid_proj and the two layers of class_embedding
    assert all(not torch.equal(old, new) for old, new in zip(before, added, strict=True))
    extra = found.unet.conv_in.weight[:, 4:], found.unet.encoder_hid_proj.weight[:, -WIDTH:]
    assert all(part.abs().min() > 0 for part in extra)
    with torch.no_grad():  # now t changes the prediction, and its masked tokens do not
        t = condition(base)
        now = denoise(found.unet, x_t, TIMESTEPS, t, z)
        other = Conditioning(t.tokens + 1, t.mask, t.pooled, base, SIZE)
        assert (denoise(found.unet, x_t, TIMESTEPS, other, z) - now).abs().amax(dim=(1, 2, 3)).min() > 1e-6
        rubbish = Conditioning(t.tokens.masked_fill(~t.mask[..., None], 9.0), t.mask, t.pooled, base, SIZE)
        torch.testing.assert_close(denoise(found.unet, x_t, TIMESTEPS, rubbish, z), now, atol=1e-6, rtol=0)


@torch.no_grad()
def test_without_base_text_an_extended_unet_reads_t_alone(stand_ins: Path) -> None:
    found = load(stand_ins, "sdxl")
    add_text_conditioning(found.unet, WIDTH, keep_base_text=False)
    x_t = random(2, 4, 8, 6)
    now = denoise(found.unet, x_t, TIMESTEPS, condition(None))

    t = condition(None)
    projected = found.unet.encoder_hid_proj(t.tokens)
    assert projected.shape == (2, 5, found.unet.config.cross_attention_dim)
    original = load(stand_ins, "sdxl").unet
    added = {"text_embeds": torch.zeros(2, 24), "time_ids": torch.tensor([[*SIZE, 0.0, 0.0, *SIZE]] * 2)}
    wanted = original(x_t, TIMESTEPS, projected, encoder_attention_mask=t.mask, added_cond_kwargs=added).sample
    assert torch.equal(now, wanted)


@torch.no_grad()
def test_channels_are_added_in_any_number_and_never_removed(stand_ins: Path) -> None:
    unet = load(stand_ins, "sd15").unet
    tokens, x_t = random(2, 3, 32), random(2, 4, 8, 8)
    before = unet(x_t, TIMESTEPS, tokens).sample
    for channels in (8, 13):  # z; z, a mask and the masked image
        extend_conv_in(unet, channels)
        extra = random(2, channels - 4, 8, 8, seed=channels)
        assert torch.equal(unet(torch.cat([x_t, extra], dim=1), TIMESTEPS, tokens).sample, before)
        assert unet.config.in_channels == unet.conv_in.in_channels == channels
    with pytest.raises(UserError, match="13 input channels and cannot be reduced to 4"):
        extend_conv_in(unet, 4)


@torch.no_grad()
def test_an_extended_unet_is_saved_and_loaded(stand_ins: Path, tmp_path: Path) -> None:
    found = load(stand_ins, "sdxl")
    extend_conv_in(found.unet, 8)
    add_text_conditioning(found.unet, WIDTH, keep_base_text=True)
    for parameter in added_parameters(found.unet):
        parameter.add_(0.01 * random(*parameter.shape))
    set_decoupled_attention([found.unet])
    base, x_t, z = base_states(found), random(2, 4, 8, 6), random(2, 4, 8, 6, seed=3)
    before = denoise(found.unet, x_t, TIMESTEPS, condition(base), z)

    found.unet.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    for backend in ("sdpa", "auto"):
        set_attention([again], backend, torch.device("cpu"))
        assert all(isinstance(processor, DecoupledCrossAttnProcessor) for processor in again.attn_processors.values())
        assert torch.equal(denoise(again, x_t, TIMESTEPS, condition(base), z), before)


def test_a_unet_whose_text_or_class_inputs_are_in_use_is_refused(stand_ins: Path) -> None:
    unet = load(stand_ins, "sd15").unet
    for options, named in (
        ({"num_class_embeds": 7}, "num_class_embeds: 7"),
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim: 8"),
        ({"class_embed_type": "timestep"}, "class_embed_type: timestep"),
    ):
        taken = UNet2DConditionModel.from_config({**unet.config, **options})
        with pytest.raises(UserError, match=named):
            add_text_conditioning(taken, WIDTH, keep_base_text=True)
    with pytest.raises(UserError, match=r"composition\.output_width: 100 is wider than the pooled text .* \(72\)"):
        add_text_conditioning(copy.deepcopy(load(stand_ins, "sdxl").unet), 100, keep_base_text=True)
