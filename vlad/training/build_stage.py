"""The stages of a run in order, and each one's Lightning module with exactly its trained parameters unfrozen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vlad.config.schema import Config
from vlad.config.training import OptimOptions
from vlad.data.collate import collate
from vlad.data.dataset import first_samples
from vlad.data.shard_sets import ShardSets
from vlad.diffusion.noise_schedule import build_scheduler
from vlad.lora.inject import has_adapter
from vlad.models.autoencoder import PatchAutoencoder
from vlad.training.build import needs_vision_tower
from vlad.training.callbacks.phases import TextPhases
from vlad.training.legibility_models import build_legibility
from vlad.training.parts import Parts
from vlad.training.stages import AlignStage, AutoencoderStage, LayoutStage, RefineStage, Stage

# The projection of a PatchAutoencoder is fitted to this many images, fewer where they are larger than 64 x 64 pixels.
FIT_IMAGES, FIT_PIXELS = 3000, 3000 * 64**2


@dataclass(frozen=True)
class BuiltStage:
    """A stage's module, and the callback that freezes its text side phase by phase (None: it trains no text)."""

    module: Stage
    phases: TextPhases | None = None


def stage_names(config: Config, parts: Parts) -> list[str]:
    """The stages of a run in order."""
    if config.align_stage == "only":
        return ["align"]
    names = ["refine"] if parts.layout_unet is None or config.train.layout.steps == 0 else ["layout", "refine"]
    if config.makes_adapter and config.lora is not None:
        adapted = {
            "layout": config.lora.layout_unet or trains_text(config, parts, "layout"),
            "refine": config.lora.refine_unet or trains_text(config, parts, "refine"),
        }
        names = [name for name in names if adapted[name]]
    is_new_autoencoder = config.base is None and isinstance(parts.autoencoder, PatchAutoencoder)
    if is_new_autoencoder or has_adapter(parts.autoencoder):
        names.insert(0, "autoencoder")
    return ["align", *names] if config.align_stage == "first" else names


def trains_text(config: Config, parts: Parts, name: str) -> bool:
    """Whether a stage trains the text side."""
    if config.text_training.is_frozen:
        return False
    if name == "refine":
        return config.refine.train_text or parts.layout_unet is None
    return name in ("align", "layout")


def build_stage(config: Config, parts: Parts, name: str, shards: ShardSets, label: str = "") -> BuiltStage:
    """Builds the stage `name` on the parts. `shards`: for what is fitted before training; `label`: for messages."""
    if name == "autoencoder":
        return BuiltStage(_autoencoder_stage(config, parts, shards))
    optim: OptimOptions = getattr(config.train, name)
    for module in (parts.autoencoder, parts.text_side, parts.alignment):
        module.requires_grad_(False)
    phases = None
    if trains_text(config, parts, name):
        with_images, first_step = needs_vision_tower(config), _text_steps_before(config, parts, name)
        phases = TextPhases(parts.text_side, config.text_training, with_images, label, first_step)
        phases.unfreeze_all()
        parts.alignment.requires_grad_(with_images and not config.makes_adapter)
    stage: Stage
    if name == "align":
        stage = AlignStage(parts.text_side, parts.alignment, config.losses, optim)
    elif name == "layout":
        noise = config.layout.noise
        stage = LayoutStage(parts, build_scheduler(noise), noise, config.losses, optim)
    else:
        noise = config.refine.noise
        stage = RefineStage(
            parts,
            build_scheduler(noise),
            noise,
            config.losses,
            optim,
            with_layout=config.layout.kind != "none",
            editing_share=config.refine.editing_share,
            legibility=build_legibility(config, parts, shards),
        )
    stage.record_trained_parameters({} if phases is None else phases.learning_rates("text_side."))
    return BuiltStage(stage, phases)


def _autoencoder_stage(config: Config, parts: Parts, shards: ShardSets) -> AutoencoderStage:
    """Adapters on a base's decoder; of a new autoencoder the decoder, after its projection was fitted to images."""
    if not has_adapter(parts.autoencoder):
        assert isinstance(parts.autoencoder, PatchAutoencoder)
        parts.autoencoder.requires_grad_(True)
        parts.autoencoder.projection.requires_grad_(False)
        count = min(FIT_IMAGES, max(1, FIT_PIXELS // config.data.image_pixels**2))
        batch = collate(first_samples(shards, config.data.stream(config.seed), count))
        parts.autoencoder.fit(torch.cat([batch.images, batch.glyph_maps]))
    stage = AutoencoderStage(parts.autoencoder, config.losses, config.train.autoencoder)
    stage.record_trained_parameters()
    return stage


def _text_steps_before(config: Config, parts: Parts, name: str) -> int:
    """For how many steps the stages before this one train the text side."""
    names = stage_names(config, parts)
    before = [other for other in names[: names.index(name)] if trains_text(config, parts, other)]
    return sum(getattr(config.train, other).steps for other in before)
