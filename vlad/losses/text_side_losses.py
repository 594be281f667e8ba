"""The terms of Eq. 8 that train the text side: L_align, and the weighted extras beside it.

    L_text = w_align L_align + w_region L_region + w_match L_match + w_lm L_lm

One pass of the LVLM gives t_g, {t_i} and the token states that all of them read; one of the vision tower gives v and
the patches. Letters: B batch, K conditioning tokens, h w patches, T features of an image, D widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlad.losses.alignment_heads import AlignmentHeads
from vlad.losses.contrastive import AugmentedTexts, relations_of_texts, text_ids
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
    """The captions of a batch taken apart, the LVLM's states of them, and t."""

    prompts: tuple[Prompt, ...]
    states: TextStates
    t: Conditioning


def parse_captions(batch: Batch) -> tuple[Prompt, ...]:
    """A batch's captions taken apart; where a shard names objects, their phrases are among the prompt's."""
    # Captions from the wild have quotation marks that nobody closed: read them as plain characters.
    return tuple(
        parse_prompt(caption, strict=False, objects=[thing.phrase for thing in objects])
        for caption, objects in zip(batch.captions, batch.objects, strict=True)
    )


def encode_prompts(text_side: TextSide, batch: Batch) -> EncodedPrompts:
    """Reads a batch's captions."""
    prompts = parse_captions(batch)
    cached = None if batch.cached is None else batch.cached.text
    states = text_side.lvlm(prompts) if cached is None else cached
    return EncodedPrompts(prompts, states, text_side.compose(states, prompts))


def text_side_losses(
    text_side: TextSide, heads: AlignmentHeads, read: EncodedPrompts, batch: Batch, options: LossOptions
) -> dict[str, Tensor]:
    """The terms whose weight is positive, unweighted, under their names in the logs."""
    terms: dict[str, Tensor] = {}
    features = _image_features(text_side, batch, options)
    ids = text_ids(read.prompts)  # B 2
    if options.align_weight:
        v = batch.cached.v if features is None and batch.cached is not None else heads.v(_present(features))
        needs_ids = options.alignment != "one-directional"
        augmented = _augment_captions(text_side, heads, batch, options)
        terms["align"] = heads.contrast(heads.t(read.t), _present(v), ids if needs_ids else None, augmented)
    if options.region_weight:
        assert heads.regions is not None
        patches = text_side.lvlm.patch_grid(_present(features))  # B h w D
        found = find_regions(read.prompts, batch.objects)
        terms["region"] = heads.regions(read.states.local_states, read.states.local_mask, patches, found)
    if options.matching_weight:
        assert heads.matching is not None
        features_of_images = _present(features)
        patches = features_of_images if features_of_images.ndim == 3 else features_of_images[:, None]  # B T D
        with torch.no_grad():
            t_embedded = heads.contrast.embed_texts(heads.t(read.t))
            v_embedded = heads.contrast.embed_images(heads.v(features_of_images))
            similarities = t_embedded @ v_embedded.T / heads.contrast.temperature  # B B, of this rank
        relations = relations_of_texts(ids).to(similarities.device)
        terms["match"] = image_text_matching_loss(
            heads.matching, read.t.tokens, read.t.mask, patches, similarities, relations
        )
    if options.captioning_weight:
        states, word_ids = read.states, _present(read.states.ids)
        terms["caption"] = captioning_loss(states.tokens, word_ids, states.mask, text_side.lvlm.output_matrix)
    return terms


def weighted_sum(terms: dict[str, Tensor], options: LossOptions, device: torch.device) -> Tensor:
    """L_text of the module's formula; zero without terms."""
    weights = {
        "align": options.align_weight,
        "region": options.region_weight,
        "match": options.matching_weight,
        "caption": options.captioning_weight,
    }
    return sum((weights[name] * term for name, term in terms.items()), start=torch.zeros((), device=device))


def _image_features(text_side: TextSide, batch: Batch, options: LossOptions) -> Tensor | None:
    """What the vision tower makes of the images, B T D or B D; None where nothing asks for it, or v is cached."""
    needs_patches = bool(options.region_weight or options.matching_weight)
    cached_v = batch.cached is not None and batch.cached.v is not None
    if not needs_patches and (cached_v or not options.align_weight):
        return None
    return text_side.lvlm.image_features(batch.images)


def _augment_captions(
    text_side: TextSide, heads: AlignmentHeads, batch: Batch, options: LossOptions
) -> AugmentedTexts | None:
    """The batch's captions reworded and with something swapped, read like the captions themselves."""
    if not options.hard_negatives and not options.rewordings:
        return None
    seed = int(torch.randint(2**62, ()))  # torch's generator is seeded anew for each batch
    variants = vary_captions(batch.captions, seed, options.hard_negatives, options.rewordings)
    prompts = [parse_prompt(text, strict=False) for text in variants.texts]
    shape = variants.roles.shape  # B M
    return AugmentedTexts(
        heads.t(text_side(prompts)).unflatten(0, shape), variants.roles, text_ids(prompts)[:, 0].unflatten(0, shape)
    )


def _present(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
