"""Cached states of a run: what is cached, what it depends on, and the proof that a cache is the run's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import torch

from vlad.config.schema import Config
from vlad.data.latent_cache.precompute import Fingerprint, data_fingerprint, open_cache, weights_digest
from vlad.data.shard_sets import ShardSets
from vlad.losses.text_side_losses import parse_captions
from vlad.models.autoencoder import latent_moments
from vlad.training.build import build_parts
from vlad.training.parts import Parts
from vlad.types import Batch, CachedStates
from vlad.utils.errors import UserError


def cache_fingerprint(config: Config, parts: Parts, sets: ShardSets) -> Fingerprint:
    """All that cached states depend on: data and shapes, the autoencoder's weights, and a frozen LVLM's."""
    fingerprint = data_fingerprint(sets, config.data.stream(config.seed))
    fingerprint["autoencoder"] = weights_digest(parts.autoencoder)
    if caches_text(config):
        lvlm = parts.text_side.lvlm
        fingerprint["lvlm"] = weights_digest(lvlm)
        fingerprint["lvlm_options"] = json.loads(json.dumps(asdict(lvlm.options)))
    return fingerprint


def caches_text(config: Config) -> bool:
    """Whether the LVLM never changes in this run, so that what it says of captions and images can be cached."""
    training = config.text_training
    moving = {*training.components("lora"), *training.components("full")}
    return moving.isdisjoint({"lvlm", "projector", "vision_tower"})


def cache_encoder(config: Config, parts: Parts, device: torch.device) -> Callable[[Batch], CachedStates]:
    """What frozen models say of a batch."""
    for module in (parts.autoencoder, parts.text_side):
        module.to(device).eval()

    @torch.no_grad()
    def encode_batch(batch: Batch) -> CachedStates:
        batch = batch.to(device)
        image_mean, image_deviation = latent_moments(parts.autoencoder, batch.images)
        glyph_mean, glyph_deviation = latent_moments(parts.autoencoder, batch.glyph_maps)
        text = v = None
        if caches_text(config):
            lvlm = parts.text_side.lvlm
            text = lvlm(parse_captions(batch))
            v = lvlm.image_embeddings(batch.images) if config.losses.align_weight else None
        return CachedStates(image_mean, image_deviation, glyph_mean, glyph_deviation, text, v)

    return encode_batch


def cacheable_parts(config: Config) -> Parts:
    """The parts that a config's cache is made with. Raises UserError where the run trains its own autoencoder."""
    _refuse_own_autoencoder(config)
    return build_parts(config)[0]


def _refuse_own_autoencoder(config: Config) -> None:
    if config.base is None and config.autoencoder.path is None and config.stable_diffusion is None:
        raise UserError(
            "data.cache: this run trains its own autoencoder, so there are no latents to cache; name a finished run as"
            " base, or an autoencoder.path."
        )


def cached_sets(config: Config, parts: Parts, sets: ShardSets) -> ShardSets:
    """The cache of a config, proven to be its own. Raises UserError where it is another's, or cannot do."""
    assert config.data.cache is not None
    return open_cache(config.data.cache, cache_fingerprint(config, parts, sets))


def check_cache(config: Config, sets: ShardSets) -> None:
    """Raises UserError for a cache that cannot be this run's, as far as that is known before anything is trained."""
    if config.data.cache is None:
        return
    _refuse_own_autoencoder(config)
    open_cache(config.data.cache, data_fingerprint(sets, config.data.stream(config.seed)), partly=True)
    if config.losses.align_weight and not caches_text(config):
        raise UserError(
            "data.cache holds no images, and L_align wants them for a vision tower that is trained; set"
            " trainable.lvlm=frozen, losses.align_weight=0, or leave data.cache out."
        )
    losses = config.losses
    wants = {
        "region_weight": losses.region_weight,
        "matching_weight": losses.matching_weight,
        "captioning_weight": losses.captioning_weight if caches_text(config) else 0.0,
        "image_pooling=attention": float(losses.image_pooling == "attention" and losses.align_weight > 0),
    }
    for name, wanted in wants.items():
        if wanted:
            raise UserError(f"losses.{name}: a cache keeps neither patches nor token ids; leave data.cache out.")
