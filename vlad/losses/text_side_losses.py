"""The losses that train the text side: L_align (Eq. 3, 8) and optional ones.

    L_text = w_align L_align + w_region L_region + w_match L_match + w_lm L_lm

All share one pass of the LVLM (t_g, {t_i}, token states) and one of the vision tower (v, patches).

Letters: B batch, K conditioning tokens, h w patches, T features of an image, D widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlad.losses.alignment_heads import AlignmentHeads
from vlad.losses.contrastive import AugmentedTexts, relations_from_ids, text_ids
from vlad.losses.extra.captioning import captioning_loss
from vlad.losses.extra.hard_negatives import vary_captions
from vlad.losses.extra.image_text_matching import image_text_matching_loss
from vlad.losses.extra.region_phrase_contrast import find_regions
from vlad.models.composition import TextSide
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.types import Batch, Conditioning, Prompt, TextStates

if TYPE_CHECKING:
    from vlad.losses.options import LossOptions


@dataclass(frozen=True)
class EncodedPrompts:
    """A batch's parsed captions, the LVLM's states of them, and t."""

    prompts: tuple[Prompt, ...]
    states: TextStates
    t: Conditioning


def parse_captions(batch: Batch) -> tuple[Prompt, ...]:
    """Parses a batch's captions; phrases of the objects that a shard lists are among the prompt's phrases."""
    # Captions from the web may have unclosed quotation marks: they count as plain characters.
    return tuple(
        parse_prompt(caption, strict=False, objects=[box.phrase for box in objects])
        for caption, objects in zip(batch.captions, batch.objects, strict=True)
    )


def encode_prompts(text_side: TextSide, batch: Batch) -> EncodedPrompts:
    """Parses a batch's captions, encodes them (or takes their cached states), and composes t."""
    prompts = parse_captions(batch)
    cached = None if batch.cached is None else batch.cached.text
    states = text_side.lvlm(prompts) if cached is None else cached
    return EncodedPrompts(prompts, states, text_side.compose(states, prompts))


def text_side_losses(
    text_side: TextSide, heads: AlignmentHeads, encoded: EncodedPrompts, batch: Batch, options: LossOptions
) -> dict[str, Tensor]:
    """The terms with a positive weight, unweighted, under their names in the logs."""
    terms: dict[str, Tensor] = {}
    features = _image_features(text_side, batch, options)
    ids = text_ids(encoded.prompts)  # B 2
    if options.align_weight:
        v = batch.cached.v if features is None and batch.cached is not None else heads.v(_present(features))
        needs_ids = options.alignment != "one-directional"
        augmented = _augment_captions(text_side, heads, batch, options)
        terms["align"] = heads.contrast(heads.t(encoded.t), _present(v), ids if needs_ids else None, augmented)
    if options.region_weight:
        assert heads.regions is not None
        patches = text_side.lvlm.patch_grid(_present(features))  # B h w D
        found = find_regions(encoded.prompts, batch.objects)
        terms["region"] = heads.regions(encoded.states.local_states, encoded.states.local_mask, patches, found)
    if options.matching_weight:
        assert heads.matching is not None
        image_features = _present(features)
        patches = image_features if image_features.ndim == 3 else image_features[:, None]  # B T D
        with torch.no_grad():
            t_embedded = heads.contrast.embed_texts(heads.t(encoded.t))
            v_embedded = heads.contrast.embed_images(heads.v(image_features))
            similarities = t_embedded @ v_embedded.T / heads.contrast.temperature  # B B, of this rank
        relations = relations_from_ids(ids).to(similarities.device)
        terms["match"] = image_text_matching_loss(
            heads.matching, encoded.t.tokens, encoded.t.mask, patches, similarities, relations
        )
    if options.captioning_weight:
        states, word_ids = encoded.states, _present(encoded.states.ids)
        terms["caption"] = captioning_loss(states.tokens, word_ids, states.mask, text_side.lvlm.output_matrix)
    return terms


def weighted_sum(terms: dict[str, Tensor], options: LossOptions, device: torch.device) -> Tensor:
    """L_text, see above; 0 without terms."""
    weights = {
        "align": options.align_weight,
        "region": options.region_weight,
        "match": options.matching_weight,
        "caption": options.captioning_weight,
    }
    return sum((weights[name] * term for name, term in terms.items()), start=torch.zeros((), device=device))


def _image_features(text_side: TextSide, batch: Batch, options: LossOptions) -> Tensor | None:
    """The vision tower's features of the images, B T D or B D; None if no loss needs them or v is cached."""
    needs_patches = bool(options.region_weight or options.matching_weight)
    cached_v = batch.cached is not None and batch.cached.v is not None
    if not needs_patches and (cached_v or not options.align_weight):
        return None
    return text_side.lvlm.image_features(batch.images)


def _augment_captions(
    text_side: TextSide, heads: AlignmentHeads, batch: Batch, options: LossOptions
) -> AugmentedTexts | None:
    """Rewordings and hard negatives of the batch's captions, encoded as these are; None if the options set none."""
    if not options.hard_negatives and not options.rewordings:
        return None
    seed = int(torch.randint(2**62, ()))  # torch's generator is seeded for each batch
    variants = vary_captions(batch.captions, seed, options.hard_negatives, options.rewordings)
    prompts = [parse_prompt(text, strict=False) for text in variants.texts]
    shape = variants.roles.shape  # B M
    return AugmentedTexts(
        heads.t(text_side(prompts)).unflatten(0, shape), variants.roles, text_ids(prompts)[:, 0].unflatten(0, shape)
    )


def _present(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
