"""The tiny LVLM of runs without `lvlm.path`: a Qwen2.5-VL with random weights and a byte-level tokenizer."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLModel

from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.families import EncoderInfo, store_encoder_info

SPECIAL_TOKENS = ("<|pad|>", "<|vision_start|>", "<|vision_end|>", "<|image|>", "<|video|>")
VOCABULARY_SIZE = 1024  # an upper bound: the tokenizer has as many tokens as its corpus gives
# The usual words of prompts for images with text. As bytes they take three times as many tokens, and a tiny LVLM
# trained from scratch has to learn them first (docs/LOG.md).
TOKENIZER_CORPUS = """
a an the that which this it its is are says say saying reads read reading spells written painted printed with and or of
on in at to from by for over under above below near beside left right top middle bottom centre center side corner
sign signs card poster wall label cover banner book board paper picture photo text word words letters letter line lines
black white red green blue yellow orange purple brown pink grey gray gold silver dark light bright large small big bold
without two three one shop store street door window old new
"""


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE like Qwen's, for any script: a token for each word of TOKENIZER_CORPUS, bytes for the rest."""
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
    # Each word without and with the space before it, which belongs to the token.
    words = TOKENIZER_CORPUS.split()
    tokenizer.train_from_iterator([*words, *(f" {word}" for word in words)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL_TOKENS[0], additional_special_tokens=list(SPECIAL_TOKENS[1:])
    )


def build_tiny_qwen(options: LVLMOptions) -> Qwen2_5_VLModel:
    """A Qwen2.5-VL of the given sizes with random weights, for the tokenizer of `build_byte_tokenizer`."""
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
    # With transformers' 0.02 the average of the context outweighs the token: "top" and "bottom" become alike.
    nn.init.normal_(model.language_model.embed_tokens.weight, std=1.0)
    store_encoder_info(model, EncoderInfo("qwen2_5_vl"))
    return model
