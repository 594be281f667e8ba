"""Adds new LoRA adapters to the models of a run, as `lora` and `trainable` say."""

from __future__ import annotations

import torch
from torch import nn

from vlad.config.schema import Config
from vlad.lora.inject import add_adapter, match_targets
from vlad.lora.options import LoraOptions
from vlad.models.autoencoder import DECODER_LAYERS, PatchAutoencoder
from vlad.models.composition import TextSide
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.training.parts import Parts
from vlad.training.trainable import component_of, linear_modules
from vlad.utils.errors import UserError


def adaptable_modules(parts: Parts) -> dict[str, nn.Module | None]:
    """The modules that may carry adapters, by the names of their folders."""
    return {
        "lvlm": parts.text_side.lvlm.model,
        "composition": parts.text_side.composition,
        "autoencoder": parts.autoencoder,
        "layout_unet": parts.layout_unet,
        "refine_unet": parts.refine_unet,
    }


def published_adapters(config: Config, parts: Parts) -> dict[str, nn.Module | None]:
    """The modules whose adapters a run publishes.

    Not those of a Stable Diffusion's UNets, which need the inputs that were added beside them: the pipeline has them.
    """
    leaves_out = config.stable_diffusion is not None
    return {name: m for name, m in adaptable_modules(parts).items() if not (leaves_out and name.endswith("_unet"))}


def adapt_text_side(
    text_side: TextSide, config: Config, with_images: bool, base_id: str, revision: str | None = None
) -> None:
    """Adds adapters to the components of the text side that some phase trains through them.

    In the LVLM proper to `lora.lvlm_targets`, in the others to every linear layer; only to layers that t or v depends
    on: `with_images` says whether some loss uses the vision tower.
    """
    lora = config.lora or LoraOptions()
    adapted = set(config.text_training.components("lora"))
    lvlm = text_side.lvlm
    if of_lvlm := adapted & {"lvlm", "projector", "vision_tower"}:
        candidates = _modules_read(lvlm, with_images) & set(linear_modules(lvlm.model))
        besides = [
            name for name in sorted(candidates) if component_of(f"lvlm.model.{name}", text_side) in of_lvlm - {"lvlm"}
        ]
        targets = lora.lvlm_targets if "lvlm" in adapted else ()
        if targets or besides:
            options = lora.of_part("lvlm")
            lvlm.model = add_adapter(lvlm.model, options, targets, base_id, revision, lvlm.text_modules(), besides)
    if of_composition := adapted & {"composition", "spelling"}:
        names = [
            name
            for name in linear_modules(text_side.composition)
            if component_of(f"composition.{name}", text_side) in of_composition
        ]
        if lora.composition_targets:
            names = match_targets(names, lora.composition_targets)
        # torch's fast path reads the weights of a transformer layer itself and would bypass its adapters.
        torch.backends.mha.set_fastpath_enabled(False)
        options = lora.of_part("composition")
        text_side.composition = add_adapter(text_side.composition, options, (), base_id, extra=names)


def _modules_read(lvlm: LVLMEncoder, with_images: bool) -> set[str]:
    """The names, inside the model, of the modules whose own weights t or v depends on."""
    read = lvlm.parameters_used(with_images)
    return {name.removeprefix("model.").rpartition(".")[0] for name in read if name.startswith("model.")}


def adapt_unets(parts: Parts, lora: LoraOptions, base_id: str, revision: str | None = None) -> None:
    """Adds adapters to the UNets, as `lora` says."""
    if parts.layout_unet is not None and lora.layout_unet:
        options = lora.of_part("layout_unet")
        parts.layout_unet = add_adapter(parts.layout_unet, options, lora.unet_targets, base_id, revision)
    if lora.refine_unet:
        options = lora.of_part("refine_unet")
        parts.refine_unet = add_adapter(parts.refine_unet, options, lora.unet_targets, base_id, revision)


def adapt_decoder(parts: Parts, lora: LoraOptions, base_id: str) -> None:
    """Adds adapters to a PatchAutoencoder's decoder where `lora.decoder` is set.

    An AutoencoderKL was trained on images of all kinds and gets none. Raises UserError where nothing else is adapted.
    """
    if not lora.decoder:
        return
    if not isinstance(parts.autoencoder, PatchAutoencoder):
        if not lora.layout_unet and not lora.refine_unet:
            raise UserError(
                f"lora.decoder: the autoencoder of {base_id} is an AutoencoderKL, which carries no adapters here; set"
                " lora.refine_unet=true."
            )
        return
    parts.autoencoder = add_adapter(parts.autoencoder, lora.of_part("autoencoder"), DECODER_LAYERS, base_id)
