"""The stages of a run as Lightning modules: align, autoencoder, layout (TLG), refine (VFE).

    align    L = L_align                                   trains the text side
    layout   L = L_align + lambda L_diff(z | t)           trains the text side and the layout UNet
    refine   L = lambda L_diff(x_0 | t, z) [+ L_align]     trains the refine UNet [and the text side]

A stage is model + loss + optimiser. Letters: B batch, C latent channels, H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from vlad.config.training import OptimOptions
from vlad.diffusion.noise_schedule import Scheduler, signal_shares
from vlad.diffusion.options import NoiseOptions
from vlad.losses.alignment_heads import AlignmentHeads
from vlad.losses.diffusion_loss import diffusion_loss
from vlad.losses.extra.legibility_losses import LegibilityLosses
from vlad.losses.extra.line_weights import line_weights
from vlad.losses.options import LossOptions
from vlad.losses.text_side_losses import encode_prompts, text_side_losses, weighted_sum
from vlad.models.autoencoder import PatchAutoencoder, encode, sample_posterior, with_image_size
from vlad.models.composition import TextSide
from vlad.models.inpainting_inputs import inpainting_channels, inpainting_inputs
from vlad.training.fsdp import shard
from vlad.training.inpainting_batches import make_edits
from vlad.training.noise_levels import NoiseLevels
from vlad.training.optim import Schedule, build_optimizer
from vlad.training.parts import Parts
from vlad.types import Batch
from vlad.utils.distributed import local_shard
from vlad.utils.errors import UserError


class _Stage(L.LightningModule):
    """What the stages share: the optimiser, and checkpoints of the trained parameters alone."""

    def __init__(self, optim: OptimOptions) -> None:
        super().__init__()
        self.optim = optim
        self.learning_rates: Mapping[str, float] = {}
        self._trained: tuple[str, ...] | None = None
        self.strict_loading = False  # frozen parts are not in the file; `on_load_checkpoint` compares the rest

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        fused = self.trainer.precision != "16-mixed"  # a fused step would undo the loss's scale after clipping
        optimizer = build_optimizer(self, self.optim, self.trained_names(), self.learning_rates, fused)
        schedule = Schedule(optimizer, self.optim)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # trainer.strategy: fsdp
            shard(self, self.device_mesh["data_parallel"])

    def record_trained_parameters(self, learning_rates: Mapping[str, float] | None = None) -> None:
        """Declares that this stage trains what requires gradients now, whatever a phase freezes for a while.

        `learning_rates`: of the parameters that have another than the stage's.
        """
        self._trained = tuple(name for name, parameter in self.named_parameters() if parameter.requires_grad)
        self.learning_rates = learning_rates or {}

    def trained_names(self) -> list[str]:
        """The names of the parameters that this stage trains, in any phase."""
        if self._trained is None:
            self.record_trained_parameters()
        assert self._trained is not None
        return list(self._trained)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in self.trained_names()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        trained = set(self.trained_names())
        wanted = {name: tuple(local_shard(p).shape) for name, p in self.named_parameters() if name in trained}
        if stored != wanted:
            differing = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
            name = differing[0]
            raise UserError(
                f"The checkpoint does not fit this config: {len(differing)} parameters differ, the first is {name}"
                f" ({stored.get(name, 'missing')} in the checkpoint, {wanted.get(name, 'missing')} in the model);"
                " use the config it was trained with, or another run name."
            )

    def log_losses(self, **losses: Tensor) -> None:
        self.log_dict({name: value.detach() for name, value in losses.items()}, prog_bar=True)

    def log_learned_scalars(self, alignment: AlignmentHeads) -> None:
        """Logs temperatures and bias, which are on no progress bar."""
        self.log_dict(alignment.learned_scalars())


class AutoencoderStage(_Stage):
    """Trains the decoder of a PatchAutoencoder on images and glyph maps; the projection is fitted before."""

    def __init__(self, autoencoder: PatchAutoencoder, losses: LossOptions, optim: OptimOptions) -> None:
        super().__init__(optim)
        self.autoencoder = autoencoder
        self.losses = losses

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # One glyph map for three images: strokes on black are the easier half.
        pixels = torch.cat([batch.images, batch.glyph_maps[: max(1, len(batch.keys) // 3)]])  # B 3 H W
        latents = self.autoencoder.encode(pixels)  # B C h w
        strength = self.losses.latent_noise * torch.rand(len(latents), 1, 1, 1, device=self.device)
        restored = self.autoencoder.decode(latents + strength * torch.randn_like(latents)).float()
        errors = (restored - pixels).abs()
        loss = errors.mean() + errors.square().mean() + self.losses.contrast_weight * (contrast(pixels) * errors).mean()
        if self.losses.gradient_weight:
            loss = loss + self.losses.gradient_weight * gradient_error(restored, pixels)
        self.log_losses(loss=loss, pixel_error=errors.mean())
        return loss


def contrast(pixels: Tensor) -> Tensor:
    """The distance of each pixel from its image's median colour: B 3 H W -> B 1 H W, mean over the channels."""
    ground = pixels.flatten(2).median(dim=-1).values[:, :, None, None]
    return (pixels - ground).abs().mean(dim=1, keepdim=True)


def gradient_error(restored: Tensor, pixels: Tensor) -> Tensor:
    """The mean absolute error of the differences between neighbouring pixels, across and down: B 3 H W -> scalar."""
    errors = restored - pixels
    return errors.diff(dim=-1).abs().mean() + errors.diff(dim=-2).abs().mean()


class AlignStage(_Stage):
    """L_align alone (Eq. 3), with the extra losses: trains the text side before, or without, the UNets."""

    def __init__(
        self, text_side: TextSide, alignment: AlignmentHeads, losses: LossOptions, optim: OptimOptions
    ) -> None:
        super().__init__(optim)
        self.text_side, self.alignment, self.losses = text_side, alignment, losses

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms = text_side_losses(
            self.text_side, self.alignment, encode_prompts(self.text_side, batch), batch, self.losses
        )
        loss = weighted_sum(terms, self.losses, self.device)
        self.log_losses(loss=loss, **terms)
        self.log_learned_scalars(self.alignment)
        return loss


class LayoutStage(_Stage):
    """TLG: prompt -> z, the latent of the glyph map (Eq. 6), and the alignment of the text side (Eq. 3)."""

    def __init__(
        self, parts: Parts, scheduler: Scheduler, noise: NoiseOptions, losses: LossOptions, optim: OptimOptions
    ) -> None:
        super().__init__(optim)
        assert parts.layout_unet is not None
        self.autoencoder, self.text_side, self.alignment = parts.autoencoder, parts.text_side, parts.alignment
        self.unet = parts.layout_unet
        self.scheduler, self.noise, self.losses = scheduler, noise, losses
        self.noise_levels = NoiseLevels(noise.train_timesteps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        z = _glyph_latents(self.autoencoder, batch)  # B C h w
        read = encode_prompts(self.text_side, batch)
        terms = text_side_losses(self.text_side, self.alignment, read, batch, self.losses)
        t = with_image_size(read.t, self.autoencoder, z).unconditional_unless(
            _keep_mask(len(z), self.losses.text_dropout, self.device)
        )
        diffusion, rows, timesteps = diffusion_loss(
            self.unet, self.scheduler, self.noise, z, t, pixel_weights=_pixel_weights(batch, self.losses)
        )
        self.noise_levels.add(rows, timesteps)
        # Eq. 8: L = L_align + lambda L_diff
        loss = weighted_sum(terms, self.losses, self.device) + self.losses.diffusion_weight * diffusion
        self.log_losses(loss=loss, **terms, diffusion=diffusion)
        if terms:
            self.log_learned_scalars(self.alignment)
        return loss

    def held_out_loss(self, batch: Batch) -> Tensor:
        """L_diff of a batch without dropout; the mean over its rows."""
        z = _glyph_latents(self.autoencoder, batch)
        t = with_image_size(encode_prompts(self.text_side, batch).t, self.autoencoder, z)
        return diffusion_loss(self.unet, self.scheduler, self.noise, z, t, pixel_weights=batch.pixel_weights)[0]


class RefineStage(_Stage):
    """VFE: (prompt, z) -> image, x_t and z concatenated (Eq. 5, 7). z=None is the ablation of Table II."""

    def __init__(
        self,
        parts: Parts,
        scheduler: Scheduler,
        noise: NoiseOptions,
        losses: LossOptions,
        optim: OptimOptions,
        with_layout: bool,
        editing_share: float = 0.0,
        legibility: LegibilityLosses | None = None,
    ) -> None:
        super().__init__(optim)
        self.autoencoder, self.text_side, self.alignment = parts.autoencoder, parts.text_side, parts.alignment
        self.unet = parts.refine_unet
        self.scheduler, self.noise, self.losses = scheduler, noise, losses
        self.noise_levels = NoiseLevels(noise.train_timesteps)
        self.with_layout = with_layout
        self.edits, self.editing_share = parts.edits, editing_share
        self.trains_text = any(parameter.requires_grad for parameter in self.text_side.parameters())  # in some phase
        self.legibility = legibility

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x_0 = _image_latents(self.autoencoder, batch)  # B C h w
        batch, edit = self._edited(batch, x_0)
        with torch.set_grad_enabled(self.trains_text):
            read = encode_prompts(self.text_side, batch)
        terms = text_side_losses(self.text_side, self.alignment, read, batch, self.losses) if self.trains_text else {}
        t = with_image_size(read.t, self.autoencoder, x_0).unconditional_unless(
            _keep_mask(len(x_0), self.losses.text_dropout, self.device)
        )
        diffusion, rows, timesteps = diffusion_loss(
            self.unet,
            self.scheduler,
            self.noise,
            x_0,
            t,
            self._layout(batch),
            _pixel_weights(batch, self.losses),
            edit,
            None if self.legibility is None else partial(self._legibility, batch, x_0),
        )
        self.noise_levels.add(rows, timesteps)
        # Eq. 8: L = L_align + lambda L_diff
        loss = weighted_sum(terms, self.losses, self.device) + self.losses.diffusion_weight * diffusion
        self.log_losses(loss=loss, **terms, diffusion=diffusion)
        if terms:
            self.log_learned_scalars(self.alignment)
        return loss

    def held_out_loss(self, batch: Batch) -> Tensor:
        """L_diff (Eq. 9) of a batch with t and the true z, without dropout, layout noise or edits; the rows' mean."""
        x_0 = _image_latents(self.autoencoder, batch)
        z = _glyph_latents(self.autoencoder, batch) if self.with_layout else None
        t = with_image_size(encode_prompts(self.text_side, batch).t, self.autoencoder, x_0)
        edit = self._no_edits(x_0) if self.edits else None
        return diffusion_loss(self.unet, self.scheduler, self.noise, x_0, t, z, batch.pixel_weights, edit)[0]

    def _legibility(self, batch: Batch, x_0: Tensor, predicted: Tensor, timesteps: Tensor) -> Tensor:
        """The weighted legibility losses of the predicted x_0, divided by lambda, which multiplies L_diff later."""
        assert self.legibility is not None
        terms = self.legibility(batch, x_0, predicted, signal_shares(self.scheduler, timesteps))
        self.log_losses(**terms)
        weights = {"ocr": self.losses.ocr_weight, "segmentation": self.losses.segmentation_weight}
        total = sum((weights[name] * term for name, term in terms.items()), start=torch.zeros((), device=self.device))
        return total / self.losses.diffusion_weight

    def _no_edits(self, x_0: Tensor) -> Tensor:
        batch_size, channels, height, width = x_0.shape
        return x_0.new_zeros(batch_size, inpainting_channels(channels), height, width)

    def _edited(self, batch: Batch, x_0: Tensor) -> tuple[Batch, Tensor | None]:
        """The batch with a share of its samples made edits, and the UNet's inputs for them: B 1+C h w, else zero."""
        if not self.edits:
            return batch, None
        if not self.editing_share:
            return batch, self._no_edits(x_0)
        made = make_edits(batch, self.editing_share)
        with torch.autocast(x_0.device.type, enabled=False):
            edit = inpainting_inputs(self.autoencoder, batch.images, made.masks)
        return made.batch, edit * made.chosen[:, None, None, None]

    def _layout(self, batch: Batch) -> Tensor | None:
        """z with noise of up to sigma (Eq. 6), zero where dropped."""
        if not self.with_layout:
            return None
        z = _glyph_latents(self.autoencoder, batch)  # B C h w
        strength = self.losses.layout_noise * torch.rand(len(z), 1, 1, 1, device=self.device)
        z = z + strength * torch.randn(z.shape, device=z.device, dtype=z.dtype)  # the same whatever the memory format
        return z * _keep_mask(len(z), self.losses.layout_dropout, self.device)[:, None, None, None]


Stage = AlignStage | AutoencoderStage | LayoutStage | RefineStage


@torch.no_grad()
def _encode_frozen(autoencoder: PatchAutoencoder | AutoencoderKL, pixels: Tensor) -> Tensor:
    with torch.autocast(pixels.device.type, enabled=False):  # latents are targets: full precision
        return encode(autoencoder, pixels)


def _image_latents(autoencoder: PatchAutoencoder | AutoencoderKL, batch: Batch) -> Tensor:
    """x_0, B C h w."""
    if batch.cached is not None:
        return sample_posterior(*batch.cached.image_moments)
    return _encode_frozen(autoencoder, batch.images)


def _glyph_latents(autoencoder: PatchAutoencoder | AutoencoderKL, batch: Batch) -> Tensor:
    """z, B C h w."""
    if batch.cached is not None:
        return sample_posterior(*batch.cached.glyph_moments)
    return _encode_frozen(autoencoder, batch.glyph_maps)


def _pixel_weights(batch: Batch, losses: LossOptions) -> Tensor | None:
    """The loss weight of each pixel, B 1 H W (of cells with cached states); None where all are 1."""
    kept = batch.pixel_weights
    if not losses.line_weight:
        return kept
    height, width = (batch.cached.image_mean if batch.cached is not None else batch.images).shape[-2:]
    device = batch.cached.image_mean.device if batch.cached is not None else batch.images.device
    weights = line_weights(batch.layouts, losses.line_weight, height, width).to(device)
    return weights if kept is None else kept * weights


def _keep_mask(batch: int, dropout: float, device: torch.device) -> Tensor:
    return torch.rand(batch, device=device) >= dropout


def set_modes(stage: nn.Module) -> None:
    """Train mode for every child module with trained parameters, eval mode for frozen ones."""
    stage.train()
    for child in stage.children():
        if not any(parameter.requires_grad for parameter in child.parameters()):
            child.eval()
