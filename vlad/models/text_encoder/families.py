"""Supported families of text encoders, LVLMs and vision encoders: where their towers are, how their inputs look.

The defaults of `Family` describe the usual LVLM: a causal language model named `language_model`, a vision tower and a
projector, `get_image_features`. docs/encoders.md is the table for users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from vlad.models.text_encoder import vision_tower as towers


@dataclass(frozen=True)
class Family:
    """One family, by transformers' `model_type`.

    `text`: the text tower's name inside the model, "" if that is the model itself. `vision`: the modules that v needs,
    the tower first, then the projector, unless `projector` names modules inside the tower. `features`: images ->
    features, None without a vision tower.
    """

    model_type: str
    text: str = "language_model"
    vision: tuple[str, ...] = ("vision_tower", "multi_modal_projector")
    features: towers.Features | None = towers.from_pixels
    projector: tuple[str, ...] = ()
    # Its features are learned queries over the whole image, no grid of patches, even if their number is a square.
    queries: bool = False
    # The classes for text and images, and for text alone; None: AutoModel's choice.
    model_class: str | None = None
    text_class: str | None = None
    # Causal attention: tokens in front of the prompt do not depend on it.
    causal: bool = True
    # A causal model trained with bidirectional attention over the prompt (prefix-LM: PaliGemma).
    reads_both_ways: bool = False
    # Trained with every prompt padded to the context length, without a mask (SigLIP).
    fixed_length: bool = False
    # The vision tower takes images of any size: `lvlm.vision_pixels` decides.
    any_size: bool = False
    # Normalisation of pixels in [0, 1], for a folder without preprocessor_config.json.
    mean: tuple[float, ...] = towers.HALF
    std: tuple[float, ...] = towers.HALF
    # Runs the text path if no single module does: (model, input_ids=, attention_mask=, ...) -> output.
    run_text: Callable[..., Any] | None = None


def _run_blip2_text(model: Any, input_ids: Tensor, attention_mask: Tensor, **rest: Any) -> Any:
    """BLIP-2's Q-Former as a text encoder: word embeddings through its self-attention layers, without an image."""
    rest.pop("use_cache", None)
    return model.qformer(
        query_embeds=model.embeddings(input_ids=input_ids), query_length=0, attention_mask=attention_mask, **rest
    )


_CLIP: dict[str, Any] = {"mean": towers.CLIP_MEAN, "std": towers.CLIP_STD}
_T5: dict[str, Any] = {"text": "", "vision": (), "features": None, "causal": False}
_IDEFICS: dict[str, Any] = {
    "text": "text_model",
    "vision": ("vision_model", "connector"),
    "features": towers.from_idefics,
}
_QWEN: dict[str, Any] = {
    "vision": ("visual",),
    "projector": ("visual.merger", "visual.deepstack_merger_list"),
    "features": towers.from_qwen,
    "any_size": True,
}

_RECORDS = (
    # Dual encoders and text encoders.
    Family(
        "clip",
        text="text_model",
        vision=("vision_model", "visual_projection"),
        causal=False,  # its mask is causal, but it was trained on its end-of-text state
        **_CLIP,
    ),
    Family("siglip", text="text_model", vision=("vision_model",), causal=False, fixed_length=True),
    Family(
        "siglip2",
        text="text_model",
        vision=("vision_model",),
        features=towers.from_siglip2,
        causal=False,
        fixed_length=True,
        any_size=True,
    ),
    Family("t5", model_class="T5EncoderModel", **_T5),  # and ByT5
    Family("mt5", model_class="MT5EncoderModel", **_T5),
    Family("umt5", model_class="UMT5EncoderModel", **_T5),
    Family(
        "flava",
        text="text_model",
        vision=("image_model", "image_projection"),
        features=towers.from_flava,
        causal=False,
        **_CLIP,
    ),
    Family(
        "blip-2",
        text="",
        vision=("vision_model", "vision_projection"),
        queries=True,
        features=towers.from_blip2,
        model_class="Blip2ForImageTextRetrieval",
        text_class="Blip2TextModelWithProjection",
        causal=False,
        run_text=_run_blip2_text,
        **_CLIP,
    ),
    Family(
        "git",
        text="",
        vision=("image_encoder", "visual_projection"),
        features=towers.from_git,
        **_CLIP,
    ),
    Family(
        "kosmos-2",
        text="text_model",
        vision=("vision_model", "image_to_text_projection"),
        queries=True,
        **_CLIP,
    ),
    # LVLMs around a causal language model.
    Family("llava", features=towers.from_llava, **_CLIP),  # and Pixtral
    Family("llava_next", features=towers.from_base_view, **_CLIP),
    Family("llava_onevision", features=towers.from_base_view),
    Family("idefics2", any_size=True, queries=True, **_IDEFICS),
    Family("idefics3", **_IDEFICS),
    Family("smolvlm", **_IDEFICS),
    Family("mllama", vision=("vision_model", "multi_modal_projector"), features=towers.from_mllama),
    Family("qwen2_vl", **_QWEN, **_CLIP),
    Family("qwen2_5_vl", **_QWEN, **_CLIP),
    Family("qwen3_vl", **_QWEN),
    Family("mistral3", features=towers.from_pixels_with_sizes, any_size=True, **_CLIP),
    Family("molmo2", features=towers.from_molmo2),
    Family("janus", vision=("vision_model", "aligner")),
    # Emu3's images become tokens of its own vocabulary: v is the mean of their embeddings.
    Family(
        "emu3", text="text_model", vision=("vqmodel",), features=towers.from_pixels_with_sizes, any_size=True, **_CLIP
    ),
    Family("aria", queries=True),
    Family("internvl", mean=towers.IMAGENET_MEAN, std=towers.IMAGENET_STD),
    Family("paligemma", reads_both_ways=True),
    Family("gemma3"),
    # Has no vision tower, only a linear map of patches.
    Family("fuyu", vision=("vision_embed_tokens",), features=None),
)
FAMILIES = {record.model_type: record for record in _RECORDS}

# Names of the language model inside a model with remote code (trust_remote_code).
REMOTE_TEXT_NAMES = ("language_model", "text_model")


@dataclass(frozen=True)
class VisionFamily:
    """A vision encoder for `lvlm.vision_path`, by its `model_type`. `unread`: modules that are not loaded."""

    model_class: str
    features: towers.Features = towers.from_tower
    unread: tuple[str, ...] = ()
    any_size: bool = False
    mean: tuple[float, ...] = towers.HALF
    std: tuple[float, ...] = towers.HALF


_DINO: dict[str, Any] = {"any_size": True, "mean": towers.IMAGENET_MEAN, "std": towers.IMAGENET_STD}
VISION_FAMILIES = {
    "clip": VisionFamily("CLIPModel", towers.from_pixels, ("text_model", "text_projection"), **_CLIP),
    "clip_vision_model": VisionFamily("CLIPVisionModel", **_CLIP),
    "siglip": VisionFamily("SiglipVisionModel"),
    "siglip_vision_model": VisionFamily("SiglipVisionModel"),
    "siglip2": VisionFamily("Siglip2VisionModel", towers.from_siglip2, any_size=True),
    "siglip2_vision_model": VisionFamily("Siglip2VisionModel", towers.from_siglip2, any_size=True),
    "dinov2": VisionFamily("Dinov2Model", **_DINO),
    "dinov2_with_registers": VisionFamily("Dinov2WithRegistersModel", **_DINO),
}


# --- one model's family and normalisation --------------------------------------------------------------------------


@dataclass(frozen=True)
class EncoderInfo:
    """A model's family and its vision tower's normalisation (of pixels in [0, 1]).

    Stored in the model's config, so that a tower saved alone, or a pipeline, is loaded with them.
    """

    family: str
    mean: tuple[float, ...] = towers.HALF
    std: tuple[float, ...] = towers.HALF


def store_encoder_info(model: Any, info: EncoderInfo) -> None:
    """Writes the info into the model's config; `save_pretrained` keeps it."""
    model.config.vlad_reading = asdict(info)


def stored_encoder_info(model: Any) -> EncoderInfo:
    """What `store_encoder_info` has written, else the defaults for the model's type."""
    stored = getattr(model.config, "vlad_reading", None)
    if stored is None:
        return EncoderInfo(model.config.model_type)
    return EncoderInfo(stored["family"], tuple(stored["mean"]), tuple(stored["std"]))


def text_tower(model: Any, family: Family) -> Any:
    """The text tower: the module that the family names, or the model itself (also one that was saved alone)."""
    names = (family.text,) if family.model_type in FAMILIES else REMOTE_TEXT_NAMES
    return next((getattr(model, name) for name in names if name and hasattr(model, name)), model)
