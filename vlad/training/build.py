"""Builds the models of a run from its config, a base or a Stable Diffusion; and the pipeline from the models."""

from __future__ import annotations

import copy
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file

from vlad.config.schema import Config
from vlad.diffusion.noise_schedule import build_scheduler, noise_options_from
from vlad.losses.alignment_heads import AlignmentHeads, AttentionPool, TokenPool
from vlad.losses.contrastive import AlignmentHead
from vlad.losses.extra.image_text_matching import MatchingHead
from vlad.losses.extra.region_phrase_contrast import RegionHead
from vlad.models.attention import set_decoupled_attention
from vlad.models.autoencoder import build_autoencoder, latent_differences, spatial_factor
from vlad.models.composition import CompositionModule, TextSide
from vlad.models.inpainting_inputs import inpainting_channels
from vlad.models.options import StableDiffusionOptions
from vlad.models.stable_diffusion import load_stable_diffusion
from vlad.models.text_encoder.base_encoders import BaseTextEncoders
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.models.text_encoder.lvlm_loading import check_same_lvlm, load_lm_head, load_lvlm, load_vision_encoder
from vlad.models.unet import build_unet
from vlad.models.unet_surgery import add_text_conditioning, added_parameters, extend_conv_in
from vlad.models.weight_files import load_complete
from vlad.pipeline.folders import ALIGNMENT_FILE, read_pipeline, reporting_damage, vlad_pipeline_folder
from vlad.pipeline.options import SampleOptions
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.training.add_adapters import adapt_decoder, adapt_text_side, adapt_unets
from vlad.training.parts import Parts
from vlad.utils.distributed import is_main_process
from vlad.utils.errors import UserError

TEXT, LVLM, COMPOSITION = "text", "lvlm", "composition"  # the text side of a run of L_align alone


def build_parts(config: Config) -> tuple[Parts, Config]:
    """The parts that a run begins with, and the config with what a base brings along."""
    if config.base is not None:
        return parts_of_base(config)
    if config.stable_diffusion is not None:
        return _parts_of_stable_diffusion(config, config.stable_diffusion)
    return new_parts(config), config


def new_text_side(config: Config) -> tuple[TextSide, AlignmentHeads]:
    """Builds the text side that the config describes; models with a path are loaded."""
    training = config.text_training
    if config.text_base is not None:
        text_folder = text_folder_of(Path(config.text_base))
        pinned = config.lvlm.revision if config.lvlm.trust_remote_code else None
        config = replace(config, lvlm=replace(config.lvlm, path=str(text_folder / LVLM), revision=pinned))
    model, tokenizer = load_lvlm(
        config.lvlm,
        with_vision=needs_vision_tower(config),
        full=not {"lvlm", "projector", "vision_tower"}.isdisjoint(training.components("full")),
    )
    vision = load_vision_encoder(config.lvlm) if needs_vision_tower(config) else None
    head = load_lm_head(config.lvlm, model) if config.losses.captioning_weight else None
    lvlm = LVLMEncoder(model, tokenizer, config.lvlm, vision, head)
    if config.text_base is None:
        composition = _new_composition(config, lvlm.width)
    else:
        label, remedy = f"text_base: {text_folder / COMPOSITION}", "copy it here again, or train it anew"
        composition = load_complete(CompositionModule, text_folder / COMPOSITION, label, remedy)
    text_side = TextSide(lvlm, composition)
    base_id = config.text_base or config.lvlm.path
    if base_id is not None:
        adapt_text_side(text_side, config, needs_vision_tower(config), base_id, config.lvlm.revision)
    alignment = _alignment_heads(config, text_side)
    if config.text_base is not None:
        with reporting_damage(text_folder):
            fitted = load_file(text_folder / ALIGNMENT_FILE)
        alignment.load_compatible(fitted)
    return text_side, alignment


def new_parts(config: Config) -> Parts:
    """Builds the parts that the config describes; models with a path are loaded."""
    text_side, alignment = new_text_side(config)
    autoencoder = build_autoencoder(config.autoencoder)
    channels = autoencoder.config.latent_channels
    levels = max(len(config.layout.unet.block_channels), len(config.refine.unet.block_channels))
    factor = spatial_factor(autoencoder)
    _check_shapes(config, factor, levels)
    side = config.data.image_pixels
    with_layout = config.layout.kind != "none"
    width, cells = text_side.composition.config.output_width, side // factor
    layout_unet = build_unet(config.layout.unet, channels, 0, width, cells) if with_layout else None
    edits = config.refine.editing_share > 0
    extra = (channels if with_layout else 0) + (inpainting_channels(channels) if edits else 0)
    refine_unet = build_unet(config.refine.unet, channels, extra, width, cells)
    return _in_memory_format(Parts(autoencoder, text_side, alignment, layout_unet, refine_unet, edits), config)


def _in_memory_format(parts: Parts, config: Config) -> Parts:
    if config.trainer.channels_last:
        for module in (parts.autoencoder, parts.layout_unet, parts.refine_unet):
            if module is not None:
                module.to(memory_format=torch.channels_last)
    return parts


def _parts_of_stable_diffusion(config: Config, options: StableDiffusionOptions) -> tuple[Parts, Config]:
    """Both UNets from one Stable Diffusion, extended without a change at step 0; its autoencoder, text encoders, noise.

    With `lora`: adapters on the UNets; the added inputs are trained in full, as nothing was learned there before.
    """
    found = load_stable_diffusion(options)
    autoencoder = found.autoencoder if config.autoencoder.path is None else build_autoencoder(config.autoencoder)
    channels = autoencoder.config.latent_channels
    if differing := latent_differences(autoencoder, found.autoencoder):
        raise UserError(
            f"autoencoder.path: the latents of {config.autoencoder.path} are not those that the UNet of {options.path}"
            f" was trained on ({differing}); leave it out to take the model's own."
        )
    _check_shapes(config, spatial_factor(autoencoder), len(found.unet.config.block_out_channels))
    text_side, alignment = new_text_side(config)
    if found.base_text is not None:
        text_side.base_encoders = BaseTextEncoders(found.encoders, found.tokenizers, found.base_text)
    with_layout = config.layout.kind != "none"
    add_text_conditioning(found.unet, text_side.composition.config.output_width, text_side.base_encoders is not None)
    layout_unet = copy.deepcopy(found.unet) if with_layout else None
    edits = config.refine.editing_share > 0
    # z beside x_t, and what editing takes
    extend_conv_in(found.unet, channels * (1 + with_layout) + (inpainting_channels(channels) if edits else 0))
    parts = Parts(autoencoder, text_side, alignment, layout_unet, found.unet, edits)
    if (lora := config.lora) is not None:
        found.unet.requires_grad_(False)
        if layout_unet is not None:
            layout_unet.requires_grad_(False)
        adapt_unets(parts, lora, options.path, options.revision)
        for unet in (parts.layout_unet, parts.refine_unet):
            for parameter in () if unet is None else added_parameters(unet):
                parameter.requires_grad_(True)
    set_decoupled_attention([parts.layout_unet, parts.refine_unet])
    layout = replace(config.layout, noise=noise_options_from(found.scheduler, config.layout.noise))
    refine = replace(config.refine, noise=noise_options_from(found.scheduler, config.refine.noise))
    return _in_memory_format(parts, config), replace(config, layout=layout, refine=refine)


def needs_vision_tower(config: Config) -> bool:
    """Whether some loss compares texts with the images that the LVLM's vision tower sees."""
    losses = config.losses
    return bool(losses.align_weight or losses.region_weight or losses.matching_weight)


def _new_composition(config: Config, lvlm_width: int) -> CompositionModule:
    options = config.composition
    return CompositionModule(
        lvlm_width,
        options.kind,
        options.width,
        options.layers,
        options.heads,
        options.output_width,
        options.spelling,
        options.max_characters,
        options.max_strings,
        options.locals,
        options.slots,
        options.queries,
    )


def _alignment_heads(config: Config, text_side: TextSide) -> AlignmentHeads:
    """The heads that the losses need. Raises UserError where the LVLM cannot give what an extra loss needs."""
    losses, lvlm, composition = config.losses, text_side.lvlm, text_side.composition
    image_width = lvlm.image_width if needs_vision_tower(config) else lvlm.width
    width = composition.config.output_width
    contrast = AlignmentHead(width, image_width, kind=losses.alignment)
    if losses.captioning_weight:
        lvlm.check_captioning()
    if losses.region_weight:
        with torch.no_grad():
            grey = torch.zeros(1, 3, 32, 32, device=next(lvlm.parameters()).device)
            lvlm.patch_grid(lvlm.image_features(grey))
    return AlignmentHeads(
        contrast,
        RegionHead(lvlm.width, image_width) if losses.region_weight else None,
        MatchingHead(width, image_width) if losses.matching_weight else None,
        AttentionPool(image_width) if losses.image_pooling == "attention" else None,
        TokenPool(width) if losses.text_pooling == "tokens" else None,
    )


def _check_shapes(config: Config, factor: int, levels: int) -> None:
    """Raises UserError for a training shape that the autoencoder and the UNets cannot divide."""
    unit = factor * 2 ** (levels - 1)
    sides = {config.data.image_pixels}
    for shape in config.data.stream(0).shapes:
        sides |= {shape.width, shape.height}
    wrong = sorted(side for side in sides if side % unit)
    if wrong:
        option = "data.bucket_step_pixels" if config.data.max_aspect > 1 else "data.image_pixels"
        raise UserError(
            f"{option}: images of {wrong[0]} pixels cannot be trained on; every side must be a multiple of {unit}:"
            f" {factor} pixels a latent cell, halved {levels - 1} times by the UNet."
        )


def parts_of_base(config: Config) -> tuple[Parts, Config]:
    """The parts of a finished run, and the config with what they bring along: noise schedules, sampling defaults.

    With `lora`: adapters on the LVLM and the UNets, all else frozen.
    """
    assert config.base is not None
    folder = vlad_pipeline_folder(Path(config.base))
    base = read_pipeline(folder, "base")
    stored = folder / ALIGNMENT_FILE
    if config.losses.align_weight and not stored.is_file():
        # Heads that nobody has trained, and that stay as they are, would lead adapters nowhere; whole runs train them.
        if config.makes_adapter:
            config = replace(config, losses=replace(config.losses, align_weight=0.0))
        if is_main_process():
            what = "trained without L_align" if config.makes_adapter else "those of L_align begin anew"
            print(f"{config.base} comes without its alignment heads: {what}", file=sys.stderr)
    _check_base(config, base)
    text_side = base.text_side
    check_same_lvlm(config.lvlm, text_side.lvlm.model)
    text_side.lvlm.vision = load_vision_encoder(config.lvlm) if needs_vision_tower(config) else None
    text_side.lvlm.head = load_lm_head(config.lvlm, text_side.lvlm.model) if config.losses.captioning_weight else None
    alignment = _alignment_heads(config, text_side)
    if stored.is_file():
        with reporting_damage(folder):
            fitted = load_file(stored)
        alignment.load_compatible(fitted)
    parts = Parts(base.autoencoder, text_side, alignment, base.layout_unet, base.refine_unet, base.config.edits)
    if config.refine.editing_share and not parts.edits:
        if config.lora is not None:
            raise UserError(
                f"refine.editing_share: an adapter has no input channels to learn, and the base {config.base} has none"
                " for editing; leave lora out, or take a base that edits."
            )
        unet = parts.refine_unet
        extend_conv_in(unet, unet.config.in_channels + inpainting_channels(unet.config.out_channels))
        parts.edits = True
    base_id = str(config.base)
    if config.lora is not None:
        for module in (parts.autoencoder, text_side, alignment, parts.layout_unet, parts.refine_unet):
            if module is not None:
                module.requires_grad_(False)
        adapt_unets(parts, config.lora, base_id)
        adapt_decoder(parts, config.lora, base_id)
    adapt_text_side(text_side, config, needs_vision_tower(config), base_id)
    process = base.config.process  # the noise that was trained with, whatever solver the base samples with
    layout, refine = config.layout, replace(config.refine, noise=replace(config.refine.noise, **process["refine"]))
    if not base.uses_layout:
        layout = replace(layout, kind="none")
    else:
        layout = replace(layout, kind="latents", noise=replace(layout.noise, **process["layout"]))
    sample = SampleOptions(**{field.name: base.config[field.name] for field in fields(SampleOptions)})
    return parts, replace(config, layout=layout, refine=refine, sample=sample)


def _check_base(config: Config, base: VLADPipeline) -> None:
    """Raises UserError for data that the base was not trained for: its size, its glyph maps, its shapes."""
    if base.config.image_pixels != config.data.image_pixels:
        raise UserError(
            f"data.image_pixels is {config.data.image_pixels}, but the base {config.base} generates"
            f" {base.config.image_pixels} pixels; set data.image_pixels={base.config.image_pixels}."
        )
    if base.config.glyph_font != config.data.glyph_font:
        raise UserError(
            f"data.glyph_font is {config.data.glyph_font}, but the base {config.base} was trained with"
            f" {base.config.glyph_font}; set data.glyph_font={base.config.glyph_font}."
        )
    levels = len(base.refine_unet.config.block_out_channels)
    _check_shapes(config, spatial_factor(base.autoencoder), levels)


def text_folder_of(path: Path) -> Path:
    """The folder of a run's published text side. Raises UserError when there is none."""
    for folder in (path / TEXT, path):
        if (folder / ALIGNMENT_FILE).is_file() and (folder / COMPOSITION).is_dir():
            return folder
    raise UserError(
        f"text_base: there is no text side at {path}; name a finished run of align_stage: only, such as one of"
        " configs/align_tiny.yaml."
    )


def build_pipeline(config: Config, parts: Parts) -> VLADPipeline:
    options, encoders = config.sample, parts.text_side.base_encoders
    of_base: dict[str, Any] = {}
    if encoders is not None:
        for suffix, encoder, tokenizer in zip(("", "_2"), encoders.encoders, encoders.tokenizers, strict=False):
            of_base |= {f"own_text_encoder{suffix}": encoder, f"own_tokenizer{suffix}": tokenizer}
        of_base["own_text"] = asdict(encoders.options)
    return VLADPipeline(
        lvlm=parts.text_side.lvlm.model,
        tokenizer=parts.text_side.lvlm.tokenizer,
        composition=parts.text_side.composition,
        autoencoder=parts.autoencoder,
        layout_unet=parts.layout_unet,
        layout_scheduler=build_scheduler(config.layout.noise) if parts.layout_unet is not None else None,
        refine_unet=parts.refine_unet,
        refine_scheduler=build_scheduler(config.refine.noise),
        image_pixels=config.data.image_pixels,
        with_layout=config.layout.kind != "none",
        edits=parts.edits,
        pooling=parts.text_side.lvlm.options.pooling,
        states=parts.text_side.lvlm.options.states,
        template=parts.text_side.lvlm.options.template,
        glyph_font=config.data.glyph_font,
        max_tokens=parts.text_side.lvlm.options.max_tokens,
        vision_pixels=parts.text_side.lvlm.options.vision_pixels,
        steps=options.steps,
        text_scale=options.text_scale,
        layout_scale=options.layout_scale,
        planning_scale=options.planning_scale,
        refit=options.refit,
        batch_size=options.batch_size,
        **of_base,
    )


def seeded_parts(config: Config) -> tuple[Parts, Config]:
    """Seeds all generators, then `build_parts`: the same seed gives the same new weights."""
    L.seed_everything(config.seed, verbose=False)
    return build_parts(config)
