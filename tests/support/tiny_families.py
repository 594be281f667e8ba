"""Every family of text encoders and LVLMs, tiny, from its own config class: 32 wide, 2 layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf

WORDS = 1024
IMAGE = 3  # the token that stands for an image
TEXT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
CLIP_VIT, SIGLIP_VIT = ({"model_type": f"{name}_vision_model", **VIT} for name in ("clip", "siglip"))
PIXTRAL_VIT = {"model_type": "pixtral", **VIT}
LLAMA, MISTRAL, QWEN2 = ({"model_type": name, **TEXT} for name in ("llama", "mistral", "qwen2"))
TILES = [[32, 64], [64, 32], [64, 64]]
QWEN_VIT: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN_TOKENS = {"image_token_id": IMAGE, "video_token_id": 4, "vision_start_token_id": 1, "vision_end_token_id": 2}


def rope(*sections: int) -> dict[str, Any]:
    return {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [*sections]}}


def t5(kind: str, words: int = WORDS) -> Any:
    """A model of the T5 kind: `kind` names the class."""
    config = getattr(tf, f"{kind}Config")(vocab_size=words, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
    return getattr(tf, f"{kind}Model")(config)


def blip2() -> Any:
    qformer = {**ENCODER, "encoder_hidden_size": 32, "cross_attention_frequency": 2, "use_qformer_text_input": True}
    opt = {"model_type": "opt", "vocab_size": WORDS, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1}
    config = tf.Blip2Config(
        vision_config=VIT,
        qformer_config=qformer,
        text_config={**opt, "num_attention_heads": 2, "word_embed_proj_dim": 32},
        num_query_tokens=4,
        image_text_hidden_size=24,
        image_token_index=IMAGE,
    )
    return tf.Blip2ForImageTextRetrieval(config)


def mllama() -> Any:
    vision = {
        "hidden_size": 32,
        "attention_heads": 2,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "intermediate_size": 48,
        "image_size": 32,
        "patch_size": 8,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 96,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1], [2, 2]],
    }
    text = {**TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    model = tf.MllamaModel(tf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE))
    for name, parameter in model.named_parameters():
        if "gate" in name:  # they start closed, and a closed gate stops the gradients behind it
            torch.nn.init.constant_(parameter, 0.5)
    return model


def molmo2() -> Any:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    adapter = {"hidden_size": 32, "intermediate_size": 48, "text_hidden_size": 32, **heads}
    config = tf.Molmo2Config(
        text_config={**TEXT, "head_dim": 16, "additional_vocab_size": 8},
        vision_config={**VIT, **heads, "image_size": [32, 32], "num_position_embeddings": 16},
        adapter_config={**adapter, "vision_feature_layer": [-1, -2]},
    )
    return tf.Molmo2Model(config)


VQ = {"embed_dim": 4, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}


def janus() -> Any:
    vision = {key: value for key, value in VIT.items() if key != "intermediate_size"}
    tokens = {**VQ, "num_embeddings": 16, "projection_dim": 32, "image_token_embed_dim": 32, "latent_channels": 8}
    config = tf.JanusConfig(
        text_config=LLAMA,
        vision_config={**vision, "mlp_ratio": 2, "projection_dim": 32},
        vq_config={**tokens, "num_patches": 4},
        image_token_id=IMAGE,
    )
    return tf.JanusModel(config)


def emu3() -> Any:
    names = {f"<|visual token {index:06d}|>": 900 + index for index in range(16)}
    tokens = {**VQ, "codebook_size": 16, "latent_channels": 4, "attn_resolutions": [], "hidden_size": 32}
    config = tf.Emu3Config(
        text_config=TEXT,
        vq_config={**tokens, "num_attention_heads": 2, "temporal_downsample_factor": 4},
        vocabulary_map={**names, "<|extra_200|>": 950, "<image>": 951},
    )
    return tf.Emu3Model(config)


def idefics2() -> Any:
    perceiver = {"hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2}
    perceiver |= {"resampler_head_dim": 16, "num_key_value_heads": 1}
    return tf.Idefics2Model(
        tf.Idefics2Config(
            vision_config=VIT, perceiver_config=perceiver, text_config=MISTRAL, image_token_id=IMAGE, use_cache=False
        )
    )


def llava(kind: str, vision: dict[str, Any], text: dict[str, Any], **more: Any) -> Any:
    """A model of the LLaVA kind: `kind` names the class."""
    config = getattr(tf, f"{kind}Config")(vision_config=vision, text_config=text, image_token_index=IMAGE, **more)
    return getattr(tf, f"{kind}Model")(config)


def aria() -> Any:
    experts = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    vision = {"model_type": "idefics3_vision", **VIT}
    return llava("Aria", vision, {**TEXT, **experts}, projector_patch_to_query_dict={16: 4})


def kosmos2() -> Any:
    text = {"vocab_size": WORDS, "embed_dim": 32, "ffn_dim": 48, "layers": 2, "attention_heads": 2, "pad_token_id": 0}
    return tf.Kosmos2Model(tf.Kosmos2Config(text_config=text, vision_config=VIT, latent_query_num=4))


def flava() -> Any:
    fused = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    return tf.FlavaModel(
        tf.FlavaConfig(
            text_config=ENCODER,
            image_config={**VIT, "vocab_size": 16},
            multimodal_config=fused,
            hidden_size=32,
            projection_dim=24,
        )
    )


def internvl() -> Any:
    vision = {**VIT, "image_size": [32, 32], "patch_size": [8, 8]}
    return tf.InternVLModel(tf.InternVLConfig(vision_config=vision, text_config=QWEN2, image_token_id=IMAGE))


def clip() -> Any:
    return tf.CLIPModel(tf.CLIPConfig(text_config=ENCODER, vision_config=VIT, projection_dim=24))


def siglip() -> Any:
    text = {**ENCODER, "projection_size": 32}
    return tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=VIT))


def siglip2() -> Any:
    text = {**ENCODER, "projection_size": 32}
    return tf.Siglip2Model(tf.Siglip2Config(text_config=text, vision_config={**VIT, "num_patches": 16}))


def idefics3(kind: str) -> Any:
    """A model of the Idefics 3 kind: `kind` names the class."""
    config = getattr(tf, f"{kind}Config")(
        vision_config=VIT, text_config=LLAMA, image_token_id=IMAGE, scale_factor=2, pad_token_id=0
    )
    return getattr(tf, f"{kind}Model")(config)


def qwen2_vl() -> Any:
    vision = {**QWEN_VIT, "embed_dim": 32, "mlp_ratio": 2}
    return tf.Qwen2VLModel(tf.Qwen2VLConfig(text_config=rope(2, 3, 3), vision_config=vision, **QWEN_TOKENS))


def qwen2_5_vl() -> Any:
    sizes = {"out_hidden_size": 32, "intermediate_size": 48, "window_size": 32, "fullatt_block_indexes": [1]}
    vision = {**QWEN_VIT, **sizes}
    return tf.Qwen2_5_VLModel(tf.Qwen2_5_VLConfig(text_config=rope(2, 3, 3), vision_config=vision, **QWEN_TOKENS))


def qwen3_vl() -> Any:
    sizes = {"out_hidden_size": 32, "intermediate_size": 48, "num_position_embeddings": 16}
    vision = {**QWEN_VIT, **sizes, "deepstack_visual_indexes": [0]}
    text = {**rope(4, 2, 2), "head_dim": 16}
    return tf.Qwen3VLModel(tf.Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_TOKENS))


def fuyu() -> Any:
    text = {"model_type": "persimmon", **TEXT}
    return tf.FuyuModel(tf.FuyuConfig(**TEXT, patch_size=8, image_size=32, text_config=text))


@dataclass(frozen=True)
class TinyFamily:
    """How a family's model is built, and in what its tests differ from a LLaVA's."""

    build: Callable[[], Any]
    # Whether it has a vision tower, and whether gradients pass from its v to the image.
    sees: bool = True
    seen_with_gradients: bool = True
    # Whether what its tower makes is a grid of the image's patches.
    grid: bool = True
    # What its attention's matrices are called.
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    # Its record in `FAMILIES`, where that has another name; None: it has none.
    record: str | None = ""
    # What its tower's weights are called on disk, where the library renames what it loads.
    tower_on_disk: tuple[str, ...] = ()


OUT_PROJ, T5, BERT = ("q_proj", "k_proj", "v_proj", "out_proj"), ("q", "k", "v", "o"), ("query", "key", "value")
TINY_FAMILIES = {
    "clip": TinyFamily(clip, targets=OUT_PROJ, grid=False),
    "siglip": TinyFamily(siglip, targets=OUT_PROJ, grid=False),
    "siglip2": TinyFamily(siglip2, targets=OUT_PROJ, grid=False),
    "t5": TinyFamily(lambda: t5("T5"), sees=False, targets=T5),
    "mt5": TinyFamily(lambda: t5("MT5"), sees=False, targets=T5),
    "umt5": TinyFamily(lambda: t5("UMT5"), sees=False, targets=T5),
    "byt5": TinyFamily(lambda: t5("T5", 384), sees=False, targets=T5, record="t5"),
    "blip-2": TinyFamily(blip2, targets=BERT, grid=False),
    "llava": TinyFamily(lambda: llava("Llava", CLIP_VIT, LLAMA)),
    "llava_next": TinyFamily(lambda: llava("LlavaNext", CLIP_VIT, LLAMA, image_grid_pinpoints=TILES)),
    "llava_onevision": TinyFamily(lambda: llava("LlavaOnevision", SIGLIP_VIT, QWEN2, image_grid_pinpoints=TILES)),
    "pixtral": TinyFamily(
        lambda: llava("Llava", PIXTRAL_VIT, MISTRAL, vision_feature_layer=-1, vision_feature_select_strategy="full"),
        record="llava",
    ),
    "mistral3": TinyFamily(
        lambda: llava("Mistral3", PIXTRAL_VIT, MISTRAL, spatial_merge_size=2, vision_feature_layer=-1)
    ),
    "idefics2": TinyFamily(idefics2, grid=False),
    "idefics3": TinyFamily(lambda: idefics3("Idefics3")),
    "smolvlm": TinyFamily(lambda: idefics3("SmolVLM")),
    "mllama": TinyFamily(mllama, grid=False),
    "qwen2_vl": TinyFamily(qwen2_vl),
    "qwen2_5_vl": TinyFamily(qwen2_5_vl),
    "qwen3_vl": TinyFamily(qwen3_vl),
    "molmo2": TinyFamily(molmo2, tower_on_disk=("vision_backbone",)),
    "janus": TinyFamily(janus),
    "emu3": TinyFamily(emu3, seen_with_gradients=False, grid=False),  # its images become tokens
    "aria": TinyFamily(aria, grid=False),
    "internvl": TinyFamily(internvl),
    "paligemma": TinyFamily(
        lambda: llava("PaliGemma", SIGLIP_VIT, {"model_type": "gemma", **TEXT, "head_dim": 16}, projection_dim=32)
    ),
    "gemma3": TinyFamily(lambda: llava("Gemma3", SIGLIP_VIT, {**TEXT, "head_dim": 16}, mm_tokens_per_image=4)),
    "fuyu": TinyFamily(fuyu, sees=False, targets=("query_key_value", "dense")),
    "kosmos-2": TinyFamily(kosmos2, targets=OUT_PROJ, grid=False),
    "git": TinyFamily(lambda: tf.GitModel(tf.GitConfig(vision_config=VIT, **ENCODER)), targets=BERT, grid=False),
    "flava": TinyFamily(flava, targets=BERT, grid=False),
    # Any causal language model, without a record.
    "qwen2": TinyFamily(lambda: tf.Qwen2Model(tf.Qwen2Config(**TEXT)), sees=False, record=None),
}
NAMES = tuple(TINY_FAMILIES)
SEEING = tuple(name for name, family in TINY_FAMILIES.items() if family.sees)
