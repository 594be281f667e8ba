"""Editing: the UNet's inputs for masked images, its added channels, and pasting into the edited image."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from vlad.diffusion.guidance import guided_prediction
from vlad.layout.image_edits import Edit
from vlad.models.autoencoder import PatchAutoencoder
from vlad.models.inpainting_inputs import inpainting_channels, inpainting_inputs
from vlad.models.options import UNetOptions
from vlad.models.unet import build_unet, denoise
from vlad.models.unet_surgery import extend_conv_in
from vlad.pipeline.edits import edit_conditioning, paste_edits
from vlad.types import Conditioning

CHANNELS = 4


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def autoencoder() -> PatchAutoencoder:
    result = PatchAutoencoder(8, CHANNELS, 16, 1)
    result.fit(torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1)
    return result


def test_the_inputs_hold_the_mask_and_hide_the_masked_pixels(autoencoder: PatchAutoencoder) -> None:
    pixels = seeded(2, 3, 32, 32).clamp(-1, 1)
    mask = torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:16, 8:20] = 1  # one cell whole, the next one half
    before = inpainting_inputs(autoencoder, pixels, mask)
    assert before.shape == (2, inpainting_channels(CHANNELS), 4, 4)
    assert before[0, 0, 1].tolist() == [0, 1, 0.5, 0]
    assert before[0, 0, [0, 2, 3]].abs().max() == 0
    hidden = torch.where(mask.bool(), seeded(2, 3, 32, 32, seed=1), pixels)
    assert torch.equal(inpainting_inputs(autoencoder, hidden, mask), before)
    shown = torch.where(mask.bool(), pixels, seeded(2, 3, 32, 32, seed=1))
    assert not torch.equal(inpainting_inputs(autoencoder, shown, mask), before)


@torch.no_grad()
def test_an_extended_unet_predicts_the_same_while_its_new_channels_have_zero_weights() -> None:
    torch.manual_seed(0)
    old = build_unet(UNetOptions((32, 32), 1, 2, True, 2, True), CHANNELS, CHANNELS, 16, 4).eval()
    new = copy.deepcopy(old)
    extend_conv_in(new, old.config.in_channels + inpainting_channels(CHANNELS))
    assert new.config.in_channels == new.conv_in.in_channels == old.config.in_channels + 1 + CHANNELS
    x_t, z, edit = seeded(2, CHANNELS, 4, 4), seeded(2, CHANNELS, 4, 4, seed=1), seeded(2, 1 + CHANNELS, 4, 4, seed=2)
    t = Conditioning(seeded(2, 5, 16), torch.ones(2, 5, dtype=torch.bool), seeded(2, 16))
    timesteps = torch.tensor([10, 900])
    wanted = denoise(old, x_t, timesteps, t, z)
    assert torch.allclose(denoise(new, x_t, timesteps, t, z, edit), wanted, atol=1e-5)
    step = torch.tensor(10)
    guided = [
        guided_prediction(partial(denoise, unet), unet.dtype, t, z, 3.0, 2.0, edit=given)(x_t, step)
        for unet, given in ((old, None), (new, edit))
    ]
    assert torch.allclose(guided[0], guided[1], atol=1e-4)
    torch.nn.init.normal_(new.conv_in.weight[:, -edit.shape[1] :])
    assert not torch.allclose(denoise(new, x_t, timesteps, t, z, edit), wanted, atol=1e-3)
    # The new channels are the last: those of x_t, z and the positions have kept their weights.
    nothing = torch.zeros_like(edit)
    assert torch.allclose(denoise(new, x_t, timesteps, t, z, nothing), wanted, atol=1e-5)


def test_pixels_outside_the_mask_are_kept_bit_for_bit(autoencoder: PatchAutoencoder) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = rng.random((32, 32)) < 0.5
    generated = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    result = paste_edits(generated, [Edit(image, mask), None])
    assert torch.equal(result[1], generated[1])
    as_bytes = (result[0].permute(1, 2, 0) * 255).round().byte().numpy()
    assert (as_bytes[~mask] == image[~mask]).all()
    assert torch.equal(result[0][:, torch.from_numpy(mask)], generated[0][:, torch.from_numpy(mask)])


def test_rows_without_an_edit_are_zero_and_edits_do_not_affect_each_other(autoencoder: PatchAutoencoder) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    edit = Edit(image, np.ones((32, 32), dtype=bool))
    half = Edit(image, np.arange(32)[:, None].repeat(32, axis=1) < 16)
    cells, cpu = (CHANNELS, 4, 4), torch.device("cpu")
    together = edit_conditioning(autoencoder, [edit, None, half], cells, cpu)
    assert together[1].abs().max() == 0
    assert torch.equal(together[2:], edit_conditioning(autoencoder, [half], cells, cpu))
