"""Autoencoders (VAE): pixels <-> scaled latents. No other module knows a scale factor.

    pixels [-1, 1]  --encode-->  latents  --scale-->  scaled latents  (what schedules, UNets and samplers see)

Two kinds train and sample: diffusers' `AutoencoderKL` (Stable Diffusion's), and `PatchAutoencoder`, which is small
enough to train on two cores. Any other of diffusers' encodes and decodes too (`read_autoencoder`). Letters: B batch,
C latent channels, H W pixels, h w cells (H/f, W/f).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import diffusers
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from vlad.models.options import AutoencoderOptions
from vlad.models.weight_files import load_complete
from vlad.types import Conditioning
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors
from vlad.utils.hub import check_reachable


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)  # starts as the identity
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_out(F.silu(self.conv_in(F.silu(self.norm(x)))))


# Of a PatchAutoencoder, by the ends of their names.
DECODER_LAYERS = ("linear_out", "conv_in", "conv_out")


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """A linear encoder fitted in closed form (PCA of patches) and a convolutional decoder trained on its latents.

    The encoder projects each patch of f x f pixels on its `latent_channels` leading principal components, each scaled
    to a standard deviation of 0.5: isotropic latents, no training, no collapse. The decoder starts as the projection's
    transpose and learns to restore from the neighbouring patches what the projection lost. It is trained on noisy
    latents, to be robust to a sampler's residual noise. With several levels it doubles the resolution and halves its
    width from one to the next, and only the last upsampling, by f / 2^(levels - 1), has no convolution over its seams.
    """

    @register_to_config
    def __init__(
        self,
        patch_pixels: int = 8,
        latent_channels: int = 24,
        decoder_width: int = 128,
        decoder_layers: int = 2,
        decoder_levels: int = 1,
    ) -> None:
        super().__init__()
        AutoencoderOptions(  # a stranger's config, too, is within the limits
            *(None, None, patch_pixels, latent_channels, decoder_width, decoder_layers, decoder_levels)
        )
        patch_values = 3 * patch_pixels**2
        self.projection = nn.Conv2d(3, latent_channels, patch_pixels, stride=patch_pixels)
        self.projection.requires_grad_(False)  # fitted, never trained
        self.linear_out = nn.Conv2d(latent_channels, patch_values, 1)
        self.conv_in = nn.Conv2d(latent_channels, decoder_width, 3, padding=1)
        widths = [decoder_width // 2**level for level in range(decoder_levels)]
        blocks: list[nn.Module] = []
        for level, width in enumerate(widths):
            if level:
                blocks += [nn.Conv2d(widths[level - 1], 4 * width, 3, padding=1), nn.PixelShuffle(2)]
            blocks += [_ResidualBlock(width) for _ in range(decoder_layers)]
        self.blocks = nn.Sequential(*blocks)
        self.conv_out = nn.Conv2d(widths[-1], patch_values // 4 ** (decoder_levels - 1), 1)
        nn.init.zeros_(self.conv_out.weight)  # the decoder starts as the linear one
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def fit(self, pixels: Tensor) -> float:
        """Fits the projection to images (B 3 H W in [-1, 1]); returns the share of their variance that it keeps."""
        f, channels = self.config.patch_pixels, self.config.latent_channels
        patches = F.unfold(pixels.double(), f, stride=f).transpose(1, 2).flatten(0, 1)  # n, 3 f f
        mean = patches.mean(dim=0)
        variances, directions = torch.linalg.eigh(torch.cov((patches - mean).T))
        kept, basis = variances.flip(0)[:channels].clamp_min(1e-8), directions.flip(1)[:, :channels]
        # A component's sign is arbitrary: fix it, so that a fit does not depend on the linear algebra library.
        basis = basis * torch.where(basis.sum(dim=0) < 0, -1.0, 1.0)
        encoder = basis.T * (0.5 / kept.sqrt())[:, None]
        self.projection.weight.copy_(encoder.reshape(channels, 3, f, f))
        self.projection.bias.copy_(-encoder @ mean)  # type: ignore[union-attr]
        self.linear_out.weight.copy_((basis * (kept.sqrt() / 0.5))[:, :, None, None])
        self.linear_out.bias.copy_(mean)  # type: ignore[union-attr]
        return float(kept.sum() / variances.sum())

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels B 3 H W in [-1, 1] -> latents B C h w."""
        return self.projection(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents B C h w -> pixels B 3 H W, about [-1, 1]."""
        linear, features = self.linear_out(latents), F.silu(self.blocks(self.conv_in(latents)))
        if self.config.decoder_levels == 1:
            return F.pixel_shuffle(linear + self.conv_out(features), self.config.patch_pixels)
        last_factor = self.config.patch_pixels // 2 ** (self.config.decoder_levels - 1)
        restored = F.pixel_shuffle(self.conv_out(features), last_factor)
        return F.pixel_shuffle(linear, self.config.patch_pixels) + restored


def build_autoencoder(options: AutoencoderOptions) -> PatchAutoencoder | AutoencoderKL:
    """The autoencoder of the options: an AutoencoderKL loaded from `path`, or a new PatchAutoencoder, not yet fitted.

    Raises UserError when there is no AutoencoderKL at the path, or its weights do not fit its config.
    """
    if options.path is not None:
        check_reachable("autoencoder.path", options.path, options.revision, "config.json")
        label, remedy = f"autoencoder.path: {options.path}", "give an AutoencoderKL in diffusers' format, or a hub id"
        return load_complete(AutoencoderKL, options.path, label, remedy, revision=options.revision)
    return PatchAutoencoder(
        options.patch_pixels,
        options.latent_channels,
        options.decoder_width,
        options.decoder_layers,
        options.decoder_levels,
    )


ImageAutoencoder: TypeAlias = PatchAutoencoder | AutoencoderKL | AutoencoderTiny | AutoencoderDC


def read_autoencoder(folder: Path) -> ImageAutoencoder:
    """The autoencoder of a folder that save_pretrained has made, of our class or any of diffusers'.

    Raises UserError where it is damaged or incomplete, or holds another kind of model.
    """
    remedy = "copy it here again"
    with user_errors(str(folder), unreadable=remedy):
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
        known: Any = PatchAutoencoder if kind == PatchAutoencoder.__name__ else getattr(diffusers, str(kind), None)
        is_model = inspect.isclass(known) and issubclass(known, ModelMixin)
        if not (is_model and hasattr(known, "encode")):
            raise UserError(f"{folder} holds no autoencoder that diffusers knows ({kind}); name the folder of one.")
    autoencoder: ImageAutoencoder = load_complete(known, folder, str(folder), remedy).eval()
    return autoencoder


def _has_patches(autoencoder: ImageAutoencoder) -> TypeGuard[PatchAutoencoder]:
    """Whether it is a PatchAutoencoder, also one inside a PeftModel (`lora.decoder`), which shows its base's config."""
    return hasattr(autoencoder.config, "patch_pixels")


def spatial_factor(autoencoder: PatchAutoencoder | AutoencoderKL) -> int:
    """Pixels per latent cell, along one side."""
    if not isinstance(autoencoder, AutoencoderKL):
        return autoencoder.config.patch_pixels
    return 2 ** (len(autoencoder.config.block_out_channels) - 1)


def latent_differences(one: PatchAutoencoder | AutoencoderKL, other: AutoencoderKL) -> str:
    """The differences in shape and scale of their latents, with both values; empty if a UNet can take either's."""

    def latent_format(autoencoder: AutoencoderKL) -> dict[str, Any]:
        config = autoencoder.config
        return {
            "channels": config.latent_channels,
            "pixels per cell": spatial_factor(autoencoder),
            "scaling_factor": config.scaling_factor,
            "shift_factor": config.shift_factor or 0.0,
            "latents_mean": config.latents_mean,
            "latents_std": config.latents_std,
        }

    assert isinstance(one, AutoencoderKL)
    a, b = latent_format(one), latent_format(other)
    return ", ".join(f"{name} {a[name]}, not {b[name]}" for name in a if a[name] != b[name])


def with_image_size(t: Conditioning, autoencoder: PatchAutoencoder | AutoencoderKL, latents: Tensor) -> Conditioning:
    """t with the size in pixels of the images that these latents (B C h w) are of."""
    factor, (height, width) = spatial_factor(autoencoder), latents.shape[-2:]
    return replace(t, size=(height * factor, width * factor))


def latent_moments(autoencoder: ImageAutoencoder, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Pixels B 3 H W in [-1, 1] -> mean and standard deviation of the scaled latents, B C h w each.

    The deviation is None for a deterministic autoencoder.
    """
    if _has_patches(autoencoder):
        return autoencoder.encode(pixels), None
    with _wide_enough(autoencoder, pixels) as values:
        encoded = autoencoder.encode(values)[0]
    if isinstance(encoded, Tensor):  # of an AutoencoderTiny or AutoencoderDC
        scale, shift = _scale_and_shift(autoencoder, encoded)
        return (encoded - shift) * scale, None
    scale, shift = _scale_and_shift(autoencoder, encoded.mean)
    return (encoded.mean - shift) * scale, encoded.std * scale


def sample_posterior(mean: Tensor, deviation: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
    """Scaled latents B C h w sampled from the posterior with these moments."""
    if deviation is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + deviation * noise


def encode(
    autoencoder: PatchAutoencoder | AutoencoderKL, pixels: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Pixels B 3 H W in [-1, 1] -> scaled latents B C h w; an AutoencoderKL's are sampled from its posterior."""
    return sample_posterior(*latent_moments(autoencoder, pixels), generator)


def decode(autoencoder: ImageAutoencoder, scaled_latents: Tensor) -> Tensor:
    """Scaled latents B C h w -> pixels B 3 H W, clipped to [-1, 1]."""
    if _has_patches(autoencoder):
        return autoencoder.decode(scaled_latents).clamp(-1, 1)
    scale, shift = _scale_and_shift(autoencoder, scaled_latents)
    with _wide_enough(autoencoder, scaled_latents / scale + shift) as latents:
        decoded: Any = autoencoder.decode(latents)
    return decoded.sample.clamp(-1, 1)


@contextmanager
def _wide_enough(autoencoder: ImageAutoencoder, values: Tensor) -> Iterator[Tensor]:
    """The values in the precision that the autoencoder computes in: never float16 where its config says that this
    overflows (`force_upcast`, SDXL's does), neither its weights nor autocast's."""
    device = values.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values.dtype
    if not autoencoder.config.get("force_upcast", False) or torch.float16 not in (narrow, autoencoder.dtype):
        yield values
        return
    if autoencoder.dtype == torch.float16:
        autoencoder.to(dtype=torch.float32)
    with torch.autocast(device, enabled=False):
        yield values.float()


def _scale_and_shift(autoencoder: ImageAutoencoder, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """scaled latents = (latents - shift) * scale, by the autoencoder's config: one pair for all channels, or each
    channel's mean and deviation."""
    config = autoencoder.config
    scale, shift = config.get("scaling_factor", 1.0), config.get("shift_factor") or 0.0
    means, deviations = config.get("latents_mean"), config.get("latents_std")
    if means is None or deviations is None:
        return scale, shift
    mean, deviation = (like.new_tensor(values).view(1, -1, 1, 1) for values in (means, deviations))
    return scale / deviation, mean
