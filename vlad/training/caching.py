"""Cached latents and LVLM states of a run: computing them, and the fingerprint that ties a cache to its run."""

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
from vlad.training.parts import Parts
from vlad.types import Batch, CachedStates


def cache_fingerprint(config: Config, parts: Parts, sets: ShardSets) -> Fingerprint:
    """Everything that cached states depend on: data and shapes, the autoencoder's weights, and a frozen LVLM's."""
    fingerprint = data_fingerprint(sets, config.data.stream(config.seed))
    fingerprint["autoencoder"] = weights_digest(parts.autoencoder)
    if config.text_training.freezes_lvlm:
        lvlm = parts.text_side.lvlm
        fingerprint["lvlm"] = weights_digest(lvlm)
        fingerprint["lvlm_options"] = json.loads(json.dumps(asdict(lvlm.options)))
    return fingerprint


def cache_encoder(config: Config, parts: Parts, device: torch.device) -> Callable[[Batch], CachedStates]:
    """A function that runs the frozen models on a batch."""
    for module in (parts.autoencoder, parts.text_side):
        module.to(device).eval()

    @torch.no_grad()
    def encode_batch(batch: Batch) -> CachedStates:
        batch = batch.to(device)
        image_mean, image_deviation = latent_moments(parts.autoencoder, batch.images)
        glyph_mean, glyph_deviation = latent_moments(parts.autoencoder, batch.glyph_maps)
        text = v = None
        if config.text_training.freezes_lvlm:
            lvlm = parts.text_side.lvlm
            text = lvlm(parse_captions(batch))
            v = lvlm.image_embeddings(batch.images) if config.losses.align_weight else None
        return CachedStates(image_mean, image_deviation, glyph_mean, glyph_deviation, text, v)

    return encode_batch


def cached_sets(config: Config, parts: Parts, sets: ShardSets) -> ShardSets:
    """The cache of a config. Raises UserError where its fingerprint is another run's."""
    assert config.data.cache is not None
    return open_cache(config.data.cache, cache_fingerprint(config, parts, sets))
