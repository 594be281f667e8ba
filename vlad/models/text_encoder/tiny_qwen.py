"""The LVLM of runs that name none: a Qwen2.5-VL built from its config, its weights random, its tokenizer byte-level."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLModel

from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.families import EncoderInfo, store_encoder_info

SPECIAL_TOKENS = ("<|pad|>", "<|vision_start|>", "<|vision_end|>", "<|image|>", "<|video|>")
VOCABULARY_SIZE = 1024  # of the tiny LVLM; its tokenizer fills as much of it as its corpus has words for
# What prompts for images with text are made of. As bytes the same words take three times as many tokens, and a
# tiny LVLM trained from nothing has to find them first (docs/LOG.md).
TOKENIZER_CORPUS = """
a an the that which this it its is are says say saying reads read reading spells written painted printed with and or of
on in at to from by for over under above below near beside left right top middle bottom centre center side corner
sign signs card poster wall label cover banner book board paper picture photo text word words letters letter line lines
black white red green blue yellow orange purple brown pink grey gray gold silver dark light bright large small big bold
without two three one shop store street door window old new
"""


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE like Qwen's own, any script: the words of TOKENIZER_CORPUS are one token each, all else bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Each word as a prompt's first and as a later one: a space before it belongs to the token.
    words = TOKENIZER_CORPUS.split()
    tokenizer.train_from_iterator([*words, *(f" {word}" for word in words)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL_TOKENS[0], additional_special_tokens=list(SPECIAL_TOKENS[1:])
    )


def build_tiny_qwen(options: LVLMOptions) -> Qwen2_5_VLModel:
    """A Qwen2.5-VL of the given sizes with random weights, made for the byte tokenizer."""
    head_width = options.hidden_size // options.heads
    third = head_width // 2 // 3  # rotary channels of time, height and width add up to half a head
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": options.hidden_size,
            "intermediate_size": 2 * options.hidden_size,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads,
            "num_key_value_heads": options.heads,
            "max_position_embeddings": 1024,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [head_width // 2 - 2 * third, third, third],
            },
        },
        vision_config={
            "depth": options.vision_layers,
            "hidden_size": options.vision_hidden_size,
            "intermediate_size": 2 * options.vision_hidden_size,
            "num_heads": 4,
            "patch_size": options.vision_patch_pixels,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": options.vision_pixels,
            "fullatt_block_indexes": list(range(options.vision_layers)),
            "out_hidden_size": options.hidden_size,
        },
        image_token_id=3,
        video_token_id=4,
        vision_start_token_id=1,
        vision_end_token_id=2,
    )
    model = Qwen2_5_VLModel(config)
    # The library's 0.02 lets the context's average outweigh the token itself: "top" and "bottom" then look alike.
    nn.init.normal_(model.language_model.embed_tokens.weight, std=1.0)
    store_encoder_info(model, EncoderInfo("qwen2_5_vl"))
    return model
