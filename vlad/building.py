"""The parts of a run: built from a config, or taken from a finished run; and the pipeline that they make."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from vlad.config import Config
from vlad.diffusion.autoencoder import build_autoencoder, spatial_factor
from vlad.diffusion.noise import build_scheduler
from vlad.diffusion.unets import build_unet
from vlad.errors import UserError
from vlad.losses.contrastive import AlignmentHead
from vlad.pipeline import SampleOptions, VLADPipeline
from vlad.text.composition import CompositionModule, TextSide
from vlad.text.lora import LoraOptions, add_adapter
from vlad.text.lvlm import LVLMEncoder, load_lvlm, load_vision
from vlad.training.stages import Parts

ALIGNMENT = "alignment.safetensors"


def new_parts(config: Config) -> Parts:
    """The parts that the config describes, untrained but for what it names a path of."""
    aligned = config.losses.align_weight > 0
    model, tokenizer = load_lvlm(config.lvlm, with_vision=aligned)
    lvlm = LVLMEncoder(model, tokenizer, config.lvlm, load_vision(config.lvlm) if aligned else None)
    if config.lvlm.trained == "lora":
        if config.lvlm.path is None:
            raise UserError("lvlm.trained: lora adapts a pretrained LVLM; name one with lvlm.path, or set it to full.")
        _adapt_lvlm(lvlm, config.lora or LoraOptions(), config.lvlm.path, config.lvlm.revision)
    options = config.composition
    composition = CompositionModule(
        lvlm.width,
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
    autoencoder = build_autoencoder(config.autoencoder)
    channels = autoencoder.config.latent_channels
    levels = max(len(config.layout.unet.block_channels), len(config.refine.unet.block_channels))
    factor = spatial_factor(autoencoder)
    _check_shapes(config, factor, levels)
    side = config.data.picture_pixels
    with_layout = config.layout.kind != "none"
    width, cells = options.output_width, side // factor
    layout_unet = build_unet(config.layout.unet, channels, 0, width, cells) if with_layout else None
    refine_unet = build_unet(config.refine.unet, channels, channels if with_layout else 0, width, cells)
    alignment = AlignmentHead(width, lvlm.image_width if aligned else lvlm.width, kind=config.losses.alignment)
    parts = Parts(autoencoder, TextSide(lvlm, composition), alignment, layout_unet, refine_unet)
    if config.trainer.channels_last:
        for module in (parts.autoencoder, parts.layout_unet, parts.refine_unet):
            if module is not None:
                module.to(memory_format=torch.channels_last)
    return parts


def _check_shapes(config: Config, factor: int, levels: int) -> None:
    """Raises UserError for a training shape that the autoencoder and the UNets cannot divide."""
    unit = factor * 2 ** (levels - 1)
    sides = {config.data.picture_pixels}
    for shape in config.data.stream(0).shapes:
        sides |= {shape.width, shape.height}
    wrong = sorted(side for side in sides if side % unit)
    if wrong:
        option = "data.bucket_step_pixels" if config.data.max_aspect > 1 else "data.picture_pixels"
        raise UserError(
            f"{option}: pictures of {wrong[0]} pixels cannot be trained on; every side must be a multiple of {unit}:"
            f" {factor} pixels a latent cell, halved {levels - 1} times by the UNet."
        )


def _adapt_lvlm(lvlm: LVLMEncoder, lora: LoraOptions, base_id: str, revision: str | None = None) -> None:
    """Puts fresh adapters on the layers of the LVLM that t depends on."""
    lvlm.model = add_adapter(lvlm.model, lora, lora.lvlm_targets, base_id, revision, lvlm.text_modules())


def parts_of_base(config: Config) -> tuple[Parts, Config]:
    """The parts of a finished run, and the config with what they bring along: noise schedules, sampling defaults.

    With `lora`: adapters on the LVLM and the UNets, all else frozen.
    """
    assert config.base is not None
    folder = pipeline_folder(Path(config.base))
    base = VLADPipeline.from_pretrained(folder)
    if base.config.picture_pixels != config.data.picture_pixels:
        raise UserError(
            f"data.picture_pixels is {config.data.picture_pixels}, but the base {config.base} draws"
            f" {base.config.picture_pixels} pixels; set data.picture_pixels={base.config.picture_pixels}."
        )
    levels = len(base.refine_unet.config.block_out_channels)
    _check_shapes(config, spatial_factor(base.autoencoder), levels)
    text_side = base.text_side
    aligned = config.losses.align_weight > 0
    text_side.lvlm.vision = load_vision(config.lvlm) if aligned else None
    image_width = text_side.lvlm.image_width if aligned else text_side.lvlm.width
    output_width = base.composition.config.output_width
    alignment = AlignmentHead(output_width, image_width, kind=config.losses.alignment)
    stored = folder / ALIGNMENT
    if stored.is_file():
        load_alignment(alignment, stored)
    parts = Parts(base.autoencoder, text_side, alignment, base.layout_unet, base.refine_unet)
    if config.lora is not None:
        for module in (parts.autoencoder, text_side, alignment, parts.layout_unet, parts.refine_unet):
            if module is not None:
                module.requires_grad_(False)
        base_id, lora = str(config.base), config.lora
        _adapt_lvlm(text_side.lvlm, lora, base_id)
        if parts.layout_unet is not None:
            parts.layout_unet = add_adapter(parts.layout_unet, lora, lora.unet_targets, base_id)
        parts.refine_unet = add_adapter(parts.refine_unet, lora, lora.unet_targets, base_id)
    process = base.config.process  # the noise that was trained with, whatever solver the base samples with
    layout, refine = config.layout, replace(config.refine, noise=replace(config.refine.noise, **process["refine"]))
    if not base.uses_layout:
        layout = replace(layout, kind="none")
    else:
        layout = replace(layout, kind="latents", noise=replace(layout.noise, **process["layout"]))
    sample = SampleOptions(**{field.name: base.config[field.name] for field in fields(SampleOptions)})
    return parts, replace(config, layout=layout, refine=refine, sample=sample)


def load_alignment(alignment: AlignmentHead, path: Path) -> None:
    """The base's head, as far as it fits: kinds of L_align differ in their bias, encoders in the width of v."""
    stored, wanted = load_file(path), alignment.state_dict()
    fitting = {name: value for name, value in stored.items() if name in wanted and value.shape == wanted[name].shape}
    alignment.load_state_dict({**wanted, **fitting})


def pipeline_folder(path: Path) -> Path:
    """The pipeline of a run directory, or the folder itself if it is one. Raises UserError when there is none."""
    for folder in (path / "pipeline", path):
        if (folder / "model_index.json").is_file():
            return folder
    if (path / "config.yaml").is_file():
        raise UserError(
            f"The run {path} is not finished; run the command that started it again to train it to its end."
        )
    raise UserError(f"There is no run or pipeline at {path}; train one with: python train.py configs/tiny.yaml.")


def build_pipeline(config: Config, parts: Parts) -> VLADPipeline:
    options = config.sample
    return VLADPipeline(
        lvlm=parts.text_side.lvlm.model,
        tokenizer=parts.text_side.lvlm.tokenizer,
        composition=parts.text_side.composition,
        autoencoder=parts.autoencoder,
        layout_unet=parts.layout_unet,
        layout_scheduler=build_scheduler(config.layout.noise) if parts.layout_unet is not None else None,
        refine_unet=parts.refine_unet,
        refine_scheduler=build_scheduler(config.refine.noise),
        picture_pixels=config.data.picture_pixels,
        with_layout=config.layout.kind != "none",
        pooling=parts.text_side.lvlm.options.pooling,
        states=parts.text_side.lvlm.options.states,
        template=parts.text_side.lvlm.options.template,
        max_tokens=parts.text_side.lvlm.options.max_tokens,
        vision_pixels=parts.text_side.lvlm.options.vision_pixels,
        steps=options.steps,
        text_scale=options.text_scale,
        layout_scale=options.layout_scale,
        planning_scale=options.planning_scale,
        refit=options.refit,
        batch_size=options.batch_size,
    )
