"""Autoencoders: the fitted projection is the PCA, and the scale factor is applied exactly once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from vlad.models.autoencoder import PatchAutoencoder, build_autoencoder, decode, encode, latent_moments, spatial_factor
from vlad.models.options import AutoencoderOptions
from vlad.training.stages import gradient_error
from vlad.utils.errors import UserError


def smooth_images(count: int = 64) -> Tensor:
    """Correlated images, count 3 16 16 in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    fine = torch.randn(count, 3, 16, 16, generator=generator)
    return (F.interpolate(coarse, (16, 16), mode="bilinear") * 0.5 + fine * 0.1 + 0.2).clamp(-1, 1)


def patches_of(pixels: Tensor) -> np.ndarray:
    """Patches of 4 x 4 pixels, n 48, written with plain slices."""
    rows = [
        image[:, y : y + 4, x : x + 4].reshape(-1)
        for image in pixels.double()
        for y in range(0, 16, 4)
        for x in range(0, 16, 4)
    ]
    return torch.stack(rows).numpy()


def fitted(channels: int) -> PatchAutoencoder:
    torch.manual_seed(0)
    autoencoder = PatchAutoencoder(patch_pixels=4, latent_channels=channels, decoder_width=16, decoder_layers=1)
    autoencoder.fit(smooth_images())
    return autoencoder


@torch.no_grad()
def test_fitted_latents_are_centred_uncorrelated_and_half_a_unit_wide() -> None:
    latents = fitted(channels=10).encode(smooth_images())

    assert latents.shape == (64, 10, 4, 4)
    components = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(components), 0.25 * torch.eye(10), atol=1e-4, rtol=0)
    torch.testing.assert_close(components.mean(dim=1), torch.zeros(10), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_decoder_of_several_levels_starts_as_the_linear_one_and_crosses_patches(tmp_path: Path) -> None:
    sizes = {"patch_pixels": 4, "latent_channels": 10, "decoder_width": 16, "decoder_layers": 1}
    one, two = PatchAutoencoder(**sizes), PatchAutoencoder(**sizes, decoder_levels=2)
    for autoencoder in (one, two):
        autoencoder.fit(smooth_images())
    latents = one.encode(smooth_images())
    torch.testing.assert_close(two.decode(latents), one.decode(latents), atol=1e-5, rtol=0)

    torch.nn.init.normal_(two.conv_out.weight)
    two.save_pretrained(tmp_path)
    changed = PatchAutoencoder.from_pretrained(tmp_path).decode(latents)
    assert changed.shape == (64, 3, 16, 16)
    assert not torch.allclose(changed, one.decode(latents), atol=1e-3)


@pytest.mark.parametrize(
    "sizes", [{"decoder_levels": 0}, {"decoder_levels": 5}, {"decoder_levels": 3, "decoder_width": 24}]
)
def test_decoders_that_cannot_be_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="decoder_levels"):
        AutoencoderOptions(**sizes)


@torch.no_grad()
def test_an_untrained_decoder_is_the_reconstruction_of_the_svd() -> None:
    images = smooth_images()
    patches = patches_of(images)
    mean = patches.mean(axis=0)
    _, spread, directions = np.linalg.svd(patches - mean, full_matrices=False)
    basis = directions[:10]
    wanted = (patches - mean) @ basis.T @ basis + mean

    autoencoder = PatchAutoencoder(patch_pixels=4, latent_channels=10, decoder_width=16, decoder_layers=1)
    share = autoencoder.fit(images)
    restored = autoencoder.decode(autoencoder.encode(images))

    np.testing.assert_allclose(patches_of(restored), wanted, atol=1e-4)
    assert share == pytest.approx((spread[:10] ** 2).sum() / (spread**2).sum(), abs=1e-6)


@torch.no_grad()
def test_all_components_restore_the_image() -> None:
    images = smooth_images()
    torch.testing.assert_close(decode(fitted(48), encode(fitted(48), images)), images, atol=1e-4, rtol=0)


def test_training_moves_the_decoder_and_never_the_projection() -> None:
    autoencoder = fitted(channels=10)
    torch.nn.init.normal_(autoencoder.conv_out.weight, std=0.1)  # at zero it hides the layers before it

    F.mse_loss(autoencoder.decode(autoencoder.encode(smooth_images())), smooth_images()).backward()

    still = {name for name, parameter in autoencoder.named_parameters() if parameter.grad is None}
    assert still == {"projection.weight", "projection.bias"}


@torch.no_grad()
def test_a_saved_autoencoder_loads_with_equal_outputs(tmp_path: Path) -> None:
    autoencoder = fitted(channels=10)
    autoencoder.save_pretrained(tmp_path)

    loaded = PatchAutoencoder.from_pretrained(tmp_path)

    images = smooth_images(4)
    assert torch.equal(loaded.encode(images), autoencoder.encode(images))
    latents = torch.randn(2, 10, 4, 4)
    assert torch.equal(loaded.decode(latents), autoencoder.decode(latents))
    assert spatial_factor(loaded) == 4


@pytest.fixture
def kl_folder(tmp_path: Path) -> Path:
    """A tiny AutoencoderKL on disk, of a scale and a shift that cannot be mistaken for nothing."""
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@torch.no_grad()
def test_scale_and_shift_of_an_autoencoder_kl_are_applied_exactly_once(kl_folder: Path) -> None:
    autoencoder = build_autoencoder(AutoencoderOptions(path=str(kl_folder)))
    images = smooth_images(2)
    assert isinstance(autoencoder, AutoencoderKL)
    assert spatial_factor(autoencoder) == 2

    scaled = encode(autoencoder, images, torch.Generator().manual_seed(3))
    latents = autoencoder.encode(images).latent_dist.sample(torch.Generator().manual_seed(3))

    assert scaled.shape == (2, 4, 8, 8)
    torch.testing.assert_close(scaled, (latents - 0.25) * 0.5)
    torch.testing.assert_close(decode(autoencoder, scaled), autoencoder.decode(latents).sample.clamp(-1, 1))


@torch.no_grad()
def test_decoded_pixels_stay_in_range(kl_folder: Path) -> None:
    kl = build_autoencoder(AutoencoderOptions(path=str(kl_folder)))
    kl.decoder.conv_out.weight.mul_(1000)
    for autoencoder, channels in ((fitted(10), 10), (kl, 4)):
        pixels = decode(autoencoder, 100 * torch.randn(1, channels, 4, 4))
        assert pixels.min() == -1
        assert pixels.max() == 1


def test_a_path_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path, r"cannot be read \(.*; give an AutoencoderKL"),
        (tmp_path / "nowhere", "is neither a local folder nor"),
    ):
        with pytest.raises(UserError, match=rf"autoencoder\.path: .* {said}"):
            build_autoencoder(AutoencoderOptions(path=str(path)))


def test_the_gradient_error_is_of_edges_alone() -> None:
    image = torch.zeros(1, 3, 4, 4)
    assert gradient_error(image + 0.5, image) == 0
    edge = image.clone()
    edge[..., 2:] = 1.0  # one of three differences across, none down
    assert gradient_error(edge, image) == pytest.approx(1 / 3)


def test_a_decoder_with_adapters_encodes_and_decodes_as_its_base_does() -> None:
    from peft import LoraConfig, get_peft_model

    autoencoder, pixels = fitted(channels=10), smooth_images()
    latents = encode(autoencoder, pixels)
    restored = decode(autoencoder, latents)
    adapted = get_peft_model(autoencoder, LoraConfig(r=2, target_modules=["conv_in"]))
    torch.testing.assert_close(encode(adapted, pixels), latents)  # type: ignore[arg-type]
    torch.testing.assert_close(decode(adapted, latents), restored)  # type: ignore[arg-type]


@pytest.mark.parametrize("force_upcast", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_an_autoencoder_that_overflows_in_float16_computes_in_float32(force_upcast: bool, autocast: bool) -> None:
    torch.manual_seed(0)
    sizes: Any = {"block_out_channels": (32,), "norm_num_groups": 8, "sample_size": 16, "force_upcast": force_upcast}
    autoencoder = AutoencoderKL(**sizes)
    with torch.no_grad():  # activations past 65,504
        autoencoder.encoder.conv_in.weight.mul_(2e5)
        autoencoder.decoder.conv_in.weight.mul_(2e5)
    pixels = smooth_images(2)
    if not autocast:
        autoencoder.half()
        pixels = pixels.half()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
        mean, deviation = latent_moments(autoencoder, pixels)
        restored = decode(autoencoder, torch.ones_like(mean, dtype=pixels.dtype))
    assert deviation is not None
    assert bool(mean.isfinite().all() and restored.isfinite().all()) == force_upcast
