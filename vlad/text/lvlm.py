"""The LVLM: prompts -> token states, t_g and {t_i}; pictures -> image embeddings v. P(Z_T | T) of the paper.

The only room that imports transformers. A tiny Qwen2.5-VL is built from its config when no path is given;
a local folder or hub id loads through the same class.
Letters: B batch, L tokens, N phrases, D hidden width, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
)

from vlad.errors import UserError
from vlad.records import Prompt, TextStates

SPECIAL_TOKENS = ("<|pad|>", "<|vision_start|>", "<|vision_end|>", "<|image|>", "<|video|>")
VOCABULARY_SIZE = 1024  # of the tiny LVLM; its tokenizer fills as much of it as its corpus has words for
# What prompts for pictures with text are made of. As bytes the same words take three times as many tokens, and a
# tiny LVLM trained from nothing has to find them first (docs/LOG.md).
TOKENIZER_CORPUS = """
a an the that which this it its is are says say saying reads read reading spells written painted printed with and or of
on in at to from by for over under above below near beside left right top middle bottom centre center side corner
sign signs card poster wall label cover banner book board paper picture photo text word words letters letter line lines
black white red green blue yellow orange purple brown pink grey gray gold silver dark light bright large small big bold
without two three one shop store street door window old new
"""


@dataclass(frozen=True)
class LVLMOptions:
    """Which LVLM, and how it is read.

    `path` is a local folder or hub id; with None a tiny Qwen2.5-VL is built from the sizes below, its weights
    random, its tokenizer byte-level.
    """

    path: str | None = None
    revision: str | None = None
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    vision_hidden_size: int = 64
    vision_layers: int = 2
    vision_patch_pixels: int = 16
    # Pictures are scaled to this side before the vision tower.
    vision_pixels: int = 64
    max_tokens: int = 160
    # t_g: the mean of all token states, or the last one (of a pretrained causal LVLM, the one that saw all).
    pooling: Literal["mean", "last"] = "mean"
    trained: Literal["full", "lora", "frozen"] = "full"

    def __post_init__(self) -> None:
        if self.heads < 1 or self.hidden_size % (2 * self.heads) or self.hidden_size // self.heads < 8:
            raise UserError(
                f"lvlm: hidden_size ({self.hidden_size}) over heads ({self.heads}) must be an even width of at least 8."
            )


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
    return model


def load_lvlm(options: LVLMOptions) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The model and its tokenizer. Raises UserError when the path holds none, or the hub cannot be reached."""
    if options.path is None:
        return build_tiny_qwen(options), build_byte_tokenizer()
    path = options.path
    try:
        config = AutoConfig.from_pretrained(path, revision=options.revision)
        if getattr(config, "vision_config", None) is None:
            raise UserError(
                f"lvlm.path: {path} is a {config.model_type} model without a vision tower; L_align needs image"
                " embeddings, so name a vision-language model such as Qwen/Qwen2.5-VL-3B-Instruct."
            )
        if config.model_type != "qwen2_5_vl":
            raise UserError(f"lvlm.path: {path} is a {config.model_type} model; known: qwen2_5_vl.")
        # Trainable weights must be float32 whatever the folder stores (transformers 5 keeps its dtype).
        dtype = torch.float32 if options.trained == "full" else "auto"
        model = AutoModel.from_pretrained(path, revision=options.revision, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=options.revision)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        kind = (
            "holds no model that transformers can load"
            if Path(path).exists()
            else "is neither a folder here nor in reach on the hub"
        )
        raise UserError(f"lvlm.path: {path} {kind}; give a folder made by save_pretrained or a hub id.") from error
    return model, tokenizer


class LVLMEncoder(nn.Module):
    """Reads prompts and pictures with one LVLM."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, options: LVLMOptions) -> None:
        super().__init__()
        self.model: Any = model  # a Qwen2_5_VLModel, or peft's wrapper around one
        self.tokenizer = tokenizer
        self.options = options

    @property
    def width(self) -> int:
        """D, of the token states and of v alike."""
        return self.model.config.text_config.hidden_size

    def forward(self, prompts: Sequence[Prompt]) -> TextStates:
        """Token states of the prompts, t_g and {t_i} (one a phrase; none is allowed)."""
        encoded = self.tokenizer(
            [prompt.text for prompt in prompts],
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self.options.max_tokens,
            return_offsets_mapping=True,
            split_special_tokens=True,  # a caption that says <|image|> is text like any other
            return_tensors="pt",
        )
        device = next(self.model.parameters()).device
        mask = encoded["attention_mask"].to(device)
        output = self.model(input_ids=encoded["input_ids"].to(device), attention_mask=mask, use_cache=False)
        tokens, mask = output.last_hidden_state, mask.bool()  # B L D, B L
        spans, local_mask = phrase_weights(prompts, encoded["offset_mapping"])  # B N L, B N
        local_states = spans.to(tokens) @ tokens  # B N D
        return TextStates(tokens, mask, self._pool(tokens, mask), local_states, local_mask.to(device))

    def _pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.options.pooling == "last":
            last = mask.sum(dim=1) - 1
            return tokens[torch.arange(len(tokens), device=tokens.device), last]  # B D
        weights = mask.to(tokens.dtype)
        return (tokens * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)  # B D

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """v, B D: the mean over the vision tower's merged patches, of pictures B 3 H W in [-1, 1]."""
        vision = self.model.config.vision_config
        patches, grid = qwen_patches(
            pixels, self.options.vision_pixels, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        )
        merged = self.model.visual(patches, grid_thw=grid).pooler_output  # (B n) D
        return merged.unflatten(0, (len(pixels), -1)).mean(dim=1)  # B D


def phrase_weights(prompts: Sequence[Prompt], offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Averaging weights B N L from tokens to phrases, and the mask B N of phrases that exist.

    A token belongs to a phrase when their character spans meet. `offsets` is B L 2, in characters. N is at least 1.
    """
    count = max(1, *(len(prompt.phrases) for prompt in prompts))
    weights = torch.zeros(len(prompts), count, offsets.shape[1])
    mask = torch.zeros(len(prompts), count, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        for column, phrase in enumerate(prompt.phrases):
            inside = (offsets[row, :, 0] < phrase.end) & (offsets[row, :, 1] > phrase.start)
            if inside.any():  # a phrase behind the truncation has no tokens
                weights[row, column] = inside / inside.sum()
                mask[row, column] = True
    return weights, mask


def qwen_patches(pixels: Tensor, side: int, patch: int, merge: int, frames: int) -> tuple[Tensor, Tensor]:
    """Pictures B 3 H W as Qwen2-VL's flat patches (B n, 3 frames patch patch) and their grid (B 3).

    The order is the family's own: the patches of one merged group follow each other. Done in tensors, so that
    it runs on the device and inside training, where the processor of the library would need uint8 pictures.
    """
    side = side // (patch * merge) * (patch * merge)
    if pixels.shape[-2:] != (side, side):
        pixels = nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    groups = side // (patch * merge)
    x = pixels.unflatten(2, (groups, merge, patch)).unflatten(5, (groups, merge, patch))
    # B 3 gh mh ph gw mw pw -> B gh gw mh mw 3 ph pw
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.unsqueeze(6).expand(*x.shape[:6], frames, patch, patch)  # a still picture fills every frame
    grid = torch.tensor([[1, groups * merge, groups * merge]], device=pixels.device).expand(len(pixels), 3)
    return x.reshape(-1, 3 * frames * patch * patch), grid
