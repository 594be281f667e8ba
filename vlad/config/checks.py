"""Checks across options: contradictions that a config shows by itself, found without torch, in under a second.

What depends on machine, data or run directory stands in `vlad/training/validate.py`, which calls this first.
"""

from __future__ import annotations

from vlad.config.schema import Config
from vlad.config.training import STAGES
from vlad.utils.errors import UserError


def check_config(config: Config) -> None:
    """Raises UserError for the first options that contradict each other."""
    _check_bases(config)
    _check_align_stage(config)
    _check_adapters(config)
    _check_steps(config)
    _check_prior(config)
    if config.data.cache is not None:
        _check_cache(config)


def _check_bases(config: Config) -> None:
    if config.base is not None and config.stable_diffusion is not None:
        raise UserError("stable_diffusion: the base brings UNets of its own; leave one of the two out.")
    if config.base is not None and config.text_base is not None:
        raise UserError("text_base: the base brings its own text side; leave one of the two out.")


def _check_align_stage(config: Config) -> None:
    if config.align_stage == "none":
        return
    if not config.losses.align_weight:
        raise UserError(f"align_stage: {config.align_stage} has nothing to train with losses.align_weight: 0.")
    if config.text_training.is_frozen:
        raise UserError(f"align_stage: {config.align_stage} has nothing to train: trainable freezes every component.")
    if config.align_stage == "only" and config.base is not None:
        raise UserError("align_stage: only makes a text side, and a base brings one; name it as text_base instead.")


def _check_adapters(config: Config) -> None:
    adapted = config.text_training.components("lora")  # refuses what an adapter run cannot train
    if config.base is None and config.text_base is None:
        for component in adapted:
            if config.lvlm.path is None or component in ("composition", "spelling"):
                raise UserError(
                    f"trainable.{component}: lora adapts what is trained already; name an LVLM with lvlm.path, for the"
                    " rest a base or a text_base, or set it to full."
                )
    lora = config.lora
    if lora is None or adapted:
        return
    if config.base is None and config.stable_diffusion is None:
        raise UserError("lora: adapters need a base; add base=runs/NAME, a finished run, or set trainable.lvlm=lora.")
    if config.base is not None and not (lora.layout_unet or lora.refine_unet or lora.decoder):
        raise UserError("lora: no part carries adapters; set lora.refine_unet=true, or another part's.")


def _check_steps(config: Config) -> None:
    for name in STAGES:
        if getattr(config.train, name).steps == 0 and (name != "layout" or config.base is None or config.lora):
            raise UserError(
                f"train.{name}.steps must be at least 1; 0 is for the layout stage alone, of a run with a base and"
                " without lora."
            )


def _check_prior(config: Config) -> None:
    prior, data = config.prior, config.data
    if not prior.images:
        return
    if config.base is None:
        raise UserError("prior.images: there is no base to generate them; add base=runs/NAME, or set prior.images=0.")
    if prior.images < data.batch_size:
        raise UserError(
            f"prior.images: {prior.images} are fewer than a batch; set at least data.batch_size={data.batch_size}."
        )
    if prior.prompts is None and data.trigger_word is None:
        raise UserError(
            "prior.images: without a trigger word your captions would ask for your images and for the base's alike;"
            " set data.trigger_word, or name other prompts with prior.prompts=FILE."
        )


def _check_cache(config: Config) -> None:
    """Options that need images, which a cache does not hold, or another choice of samples than all."""
    if config.base is None and config.autoencoder.path is None and config.stable_diffusion is None:
        raise UserError(
            "data.cache: this run trains its own autoencoder, so there are no latents to cache; name a finished run as"
            " base, or an autoencoder.path."
        )
    data, losses = config.data, config.losses
    changed = {
        "validation.share": bool(config.validation.share),
        "data.trigger_word": data.trigger_word is not None,
        "data.repeats": data.repeats > 1,
        "prior.images": config.prior.images > 0,
    }
    for name, is_set in changed.items():
        if is_set:
            raise UserError(f"{name} does not go with data.cache, which holds all samples as they are; leave one out.")
    if config.lora is not None and config.lora.decoder:
        raise UserError("lora.decoder: a cache holds no images to restore; leave out data.cache, or lora.decoder.")
    if config.refine.editing_share:
        raise UserError(
            "refine.editing_share: a cache holds no images to hide a part of; leave data.cache out, or set it to 0."
        )
    lvlm_is_frozen = config.text_training.freezes_lvlm
    if losses.align_weight and not lvlm_is_frozen:
        raise UserError(
            "data.cache holds no images, and L_align needs them for a vision tower that is trained; set"
            " trainable.lvlm=frozen, losses.align_weight=0, or leave data.cache out."
        )
    uncached = {
        "region_weight": bool(losses.region_weight),
        "matching_weight": bool(losses.matching_weight),
        "captioning_weight": bool(losses.captioning_weight) and lvlm_is_frozen,
        "image_pooling=attention": losses.image_pooling == "attention" and losses.align_weight > 0,
    }
    for name, is_set in uncached.items():
        if is_set:
            raise UserError(f"losses.{name}: a cache keeps neither patches nor token ids; leave data.cache out.")
