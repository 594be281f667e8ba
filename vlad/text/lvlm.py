"""The LVLM: prompts -> token states, t_g and {t_i}; pictures -> image embeddings v. P(Z_T | T) of the paper.

The only room that imports transformers. A tiny Qwen2.5-VL is built from its config when no path is given; a local
folder or hub id of any family of `families.py` loads through transformers' Auto classes.
Letters: B batch, L tokens, N phrases, D hidden width, H W pixels.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
)
from transformers.utils import cached_file

from vlad.errors import UserError, did_you_mean
from vlad.records import Prompt, TextStates
from vlad.text.families import FAMILIES, REMOTE_TEXT_NAMES, VISION_FAMILIES, Family, VisionFamily
from vlad.text.tokens import PromptTokens, TokenBatch, span_weights
from vlad.text.vision import HALF, fit_pictures, tower_side

SAFE_WEIGHTS, SAFE_INDEX, HEAD_KEY = "model.safetensors", "model.safetensors.index.json", "lm_head.weight"
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
    # Runs code from the hub; only with `revision` a full commit id, so that it cannot change.
    trust_remote_code: bool = False
    # A CLIP, SigLIP or DINOv2 for v, frozen, where the LVLM has no vision tower or another one is wanted.
    vision_path: str | None = None
    vision_revision: str | None = None
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    vision_hidden_size: int = 64
    vision_layers: int = 2
    vision_patch_pixels: int = 16
    # Pictures are scaled to this side before a vision tower that takes any (Qwen2-VL, Pixtral, DINOv2, ...).
    vision_pixels: int = 64
    max_tokens: int = 160
    # Around a prompt: the tokenizer's own special tokens, or its chat template (whose tokens give no states).
    template: Literal["plain", "chat"] = "plain"
    # The states: `last`, `layer:N` (from 1, or from the end: -1 is the last), or `normalised-average`: the mean over
    # all layers, each layer-normalised (Wang et al., CVPR 2025).
    states: str = "last"
    # t_g: the mean of all token states, or the last one (of a pretrained causal LVLM, the one that saw all).
    pooling: Literal["mean", "last"] = "mean"

    def __post_init__(self) -> None:
        if min(self.layers, self.vision_layers, self.vision_patch_pixels) < 1 or self.max_tokens < 8:
            raise UserError(
                "lvlm: layers, vision_layers and vision_patch_pixels must be at least 1, and max_tokens at least 8."
            )
        if self.vision_hidden_size < 8 or self.vision_hidden_size % 8:
            raise UserError(f"lvlm: vision_hidden_size must be a multiple of 8, not {self.vision_hidden_size}.")
        if self.path is None and self.vision_pixels < 2 * self.vision_patch_pixels:
            raise UserError(
                f"lvlm: vision_pixels ({self.vision_pixels}) must be at least two patches of vision_patch_pixels"
                f" ({self.vision_patch_pixels})."
            )
        if self.heads < 1 or self.hidden_size % (2 * self.heads) or self.hidden_size // self.heads < 8:
            raise UserError(
                f"lvlm: hidden_size ({self.hidden_size}) over heads ({self.heads}) must be an even width of at least 8."
            )
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise UserError(
                "lvlm.trust_remote_code runs code from the hub and needs lvlm.revision, the 40 digits of the commit"
                " that you have read."
            )
        if not re.fullmatch(r"last|normalised-average|layer:-?[1-9][0-9]*", self.states):
            raise UserError(
                f"lvlm.states is last, layer:N (such as layer:-2) or normalised-average, not {self.states!r}."
            )


@dataclass(frozen=True)
class Reading:
    """How a model is read, kept in its own config, so that it holds for a tower or a pipeline that is loaded later.

    `mean` and `std` are the vision tower's, of pixels in [0, 1].
    """

    family: str
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF


def note_reading(model: Any, reading: Reading) -> None:
    """Writes the reading into the model's config; `save_pretrained` keeps it."""
    model.config.vlad_reading = asdict(reading)


def noted_reading(model: Any) -> Reading:
    """What `note_reading` has written, else the defaults for the model's type."""
    noted = getattr(model.config, "vlad_reading", None)
    if noted is None:
        return Reading(model.config.model_type)
    return Reading(noted["family"], tuple(noted["mean"]), tuple(noted["std"]))


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
    note_reading(model, Reading("qwen2_5_vl"))
    return model


# --- loading -------------------------------------------------------------------------------------------------------


def load_lvlm(
    options: LVLMOptions, with_vision: bool = True, full: bool = True
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The model and its tokenizer. Without `with_vision`, or with a `vision_path`, the text path's weights alone.

    In float32 where weights of its own are to be trained (`full`), else as stored.
    Raises UserError when the path holds none, its family is not known, it has no vision tower where one is wanted,
    or the hub cannot be reached.
    """
    if options.path is None:
        return build_tiny_qwen(options), build_byte_tokenizer()
    path, source = options.path, _source(options)
    with _told_as("lvlm.path", path):
        config = AutoConfig.from_pretrained(path, **source)
        family = _family_of(config, options)
        own_vision = with_vision and options.vision_path is None
        if own_vision and family.features is None:
            raise UserError(
                f"lvlm.path: {path} is a {config.model_type} model without a vision tower; L_align needs image"
                " embeddings, so name a vision encoder with lvlm.vision_path, a vision-language model such as"
                " Qwen/Qwen2.5-VL-3B-Instruct, or set losses.align_weight=0."
            )
        dtype = torch.float32 if full else "auto"
        model_class = _model_class(config, family, own_vision)
        if not own_vision and model_class is not AutoModel:
            keep, drop = family.text, family.vision
            model_class = _without(model_class, lambda name: name != keep if keep else name in drop)
        model = _load_whole(model_class, "lvlm.path", path, dtype=dtype, **source)
        if not own_vision and family.text:
            tower = _text_tower(model, family)
            if hasattr(transformers, type(tower).__name__):  # a pipeline can only hold what it can load again
                model = tower
        mean, std = _normalisation(path, source, config, (family.mean, family.std))
        note_reading(model, Reading(family.model_type, mean, std))
    with _told_as("lvlm.path", path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, **source)
        # Where its files are missing the library builds an empty one, which reads nothing, without a word.
        if set(tokenizer("a sign", add_special_tokens=False)["input_ids"]) <= {tokenizer.unk_token_id}:
            raise OSError(f"the tokenizer of {path} is empty")
    return model, tokenizer


def check_same_lvlm(options: LVLMOptions, model: Any) -> None:
    """Raises UserError where `path` names another LVLM than the one that a base has, by the shapes of their text."""
    if options.path is None:
        return
    with _told_as("lvlm.path", options.path):
        named = AutoConfig.from_pretrained(options.path, **_source(options)).get_text_config()
    had = model.config.get_text_config()
    differing = [
        f"{name} {getattr(named, name, None)}, not {getattr(had, name, None)}"
        for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
        if getattr(named, name, None) != getattr(had, name, None)
    ]
    if differing:
        raise UserError(
            f"lvlm.path: {options.path} is another LVLM than the one that the base was trained with"
            f" ({'; '.join(differing)}); leave it out, the base brings its own."
        )


def load_vision(options: LVLMOptions) -> nn.Module | None:
    """The separate vision encoder of `vision_path`, frozen; None without one. Raises UserError as `load_lvlm` does."""
    path = options.vision_path
    if path is None:
        return None
    source: dict[str, Any] = {"revision": options.vision_revision}
    with _told_as("lvlm.vision_path", path):
        config = AutoConfig.from_pretrained(path, **source)
        family = VISION_FAMILIES.get(config.model_type)
        if family is None:
            raise UserError(
                f"lvlm.vision_path: {path} is a {config.model_type} model; known: {', '.join(VISION_FAMILIES)}."
            )
        model_class = _without(getattr(transformers, family.model_class), lambda name: name in family.unread)
        model = _load_whole(model_class, "lvlm.vision_path", path, **source)
        mean, std = _normalisation(path, source, config, (family.mean, family.std))
        note_reading(model, Reading(config.model_type, mean, std))
    return model.requires_grad_(False).eval()


def load_head(options: LVLMOptions, model: Any) -> nn.Linear | None:
    """The LM head of a pretrained LVLM, frozen; None where it is tied to the input embeddings.

    Raises UserError when the folder or repository holds none.
    """
    path = options.path
    if model.config.get_text_config().tie_word_embeddings:
        return None
    if path is None:
        raise UserError(
            "losses.captioning_weight: name the folder of the base's LVLM with lvlm.path: it has the LM head."
        )
    with _told_as("lvlm.path", path):
        revision = options.revision
        index = cached_file(path, SAFE_INDEX, revision=revision, _raise_exceptions_for_missing_entries=False)
        if index is not None:
            files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            key = next((key for key in files if key.endswith(HEAD_KEY)), None)
            file = None if key is None else cached_file(path, files[key], revision=revision)
        else:
            file = cached_file(path, SAFE_WEIGHTS, revision=revision, _raise_exceptions_for_missing_entries=False)
        if file is not None:
            with safe_open(file, framework="pt") as stored:
                key = next((key for key in stored.keys() if key.endswith(HEAD_KEY)), None)  # noqa: SIM118
                if key is not None:
                    weight = stored.get_tensor(key)
                    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
                    head.weight = nn.Parameter(weight, requires_grad=False)
                    return head
    raise UserError(
        f"lvlm.path: {path} holds no LM head ({HEAD_KEY} in safetensors), which losses.captioning_weight needs; give a"
        " folder with the whole model, or set it to 0."
    )


@contextmanager
def _told_as(option: str, path: str, what: str = "model") -> Iterator[None]:
    """What the library raises for a path, as one sentence of ours; its retries without a network are not reported."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        if "trust_remote_code" in str(error):
            sentence = (
                "needs code of its own; read it, then set lvlm.trust_remote_code=true and lvlm.revision to the commit"
                " you have read"
            )
        elif Path(path).exists():
            sentence = f"holds no {what} that transformers can load; give a folder made by save_pretrained or a hub id"
        else:
            sentence = (
                "is neither a folder here nor in reach on the hub; check the name and the network, or download it"
                " elsewhere (hf download NAME --local-dir FOLDER) and give that folder"
            )
        raise UserError(f"{option}: {path} {sentence}.") from error
    finally:
        hub.setLevel(level)


def _source(options: LVLMOptions) -> dict[str, Any]:
    return {"revision": options.revision, "trust_remote_code": options.trust_remote_code}


def _family_of(config: Any, options: LVLMOptions) -> Family:
    """The record for a config: of its family, of any causal language model, or of code from the hub."""
    kind = config.model_type
    if kind in FAMILIES:
        return FAMILIES[kind]
    if options.trust_remote_code or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return Family(kind, text="", vision=(), features=None)
    raise UserError(
        f"lvlm.path: {options.path} is a {kind} model; known: {', '.join(sorted(FAMILIES))} and any causal language"
        f" model.{did_you_mean(kind, FAMILIES)}"
    )


def _model_class(config: Any, family: Family, with_vision: bool) -> Any:
    name = family.model_class if with_vision or family.text_class is None else family.text_class
    if name is None:
        return MODEL_MAPPING.get(type(config), AutoModel)
    stored = config.architectures or [name]
    if family.text_class is not None and not {family.model_class, family.text_class} & set(stored):
        raise UserError(
            f"lvlm.path: a {family.model_type} model is read through its Q-Former, and {stored[0]} has none for text;"
            " give an image-text retrieval model such as Salesforce/blip2-itm-vit-g."
        )
    return getattr(transformers, name)


def _without(model_class: Any, dropped: Callable[[str], bool]) -> Any:
    """The model's class without the parts whose names are dropped: their weights are never read from disk.

    It keeps its name and module: by them the library finds the renamings of older checkpoints.
    """

    def build(self: Any, config: Any, *rest: Any, **options: Any) -> None:
        model_class.__init__(self, config, *rest, **options)
        for name, _ in (*self.named_children(), *self.named_parameters(recurse=False)):
            if dropped(name):
                delattr(self, name)

    def initialise(self: Any, module: nn.Module) -> None:
        if module is not self:  # what it would initialise of its own is gone
            model_class._init_weights(self, module)

    body = {"__init__": build, "_init_weights": initialise, "_keys_to_ignore_on_load_unexpected": [".*"]}
    return type(model_class.__name__, (model_class,), {**body, "__module__": model_class.__module__})


def _load_whole(model_class: Any, option: str, path: str, **arguments: Any) -> Any:
    """The model from its folder or the hub. The library would draw missing weights at random: UserError instead."""
    model, report = model_class.from_pretrained(path, output_loading_info=True, **arguments)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{option}: {path} lacks {len(missing)} weights of its model, the first is {missing[0]}; give a folder that"
            " holds the whole model."
        )
    return model


def _text_tower(model: Any, family: Family) -> Any:
    """The module that reads text: named by the family, or the model itself (also a tower that is loaded alone)."""
    names = (family.text,) if family.model_type in FAMILIES else REMOTE_TEXT_NAMES
    return next((getattr(model, name) for name in names if name and hasattr(model, name)), model)


def _normalisation(
    path: str, source: dict[str, Any], config: Any, default: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the pictures that a model was trained on: as noted, as its processor says, or `default`."""
    noted = getattr(config, "vlad_reading", None)
    if noted is not None:
        return tuple(noted["mean"]), tuple(noted["std"])
    for name in ("preprocessor_config.json", "processor_config.json"):
        found = cached_file(
            path,
            name,
            revision=source["revision"],
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is None:
            continue
        stored = json.loads(Path(found).read_text(encoding="utf-8"))
        stored = stored.get("image_processor", stored)
        if "image_mean" in stored and "image_std" in stored:
            return tuple(stored["image_mean"]), tuple(stored["image_std"])
    return default


# --- reading -------------------------------------------------------------------------------------------------------


class LVLMEncoder(nn.Module):
    """Reads prompts with one LVLM, and pictures with its vision tower or with a separate encoder `vision`.

    `head` is the LM head of a model that does not tie it to its input embeddings, where captions are predicted.

    Raises UserError when the options do not go with the model: a chat template or a layer that it does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        options: LVLMOptions,
        vision: nn.Module | None = None,
        head: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model  # a model of the library's, or peft's wrapper around one
        self.vision: Any = vision
        self.head: Any = head
        self.tokenizer = tokenizer
        self.options = options
        self.reading = noted_reading(model)
        self.family = FAMILIES.get(self.reading.family) or Family(self.reading.family, text="", features=None)
        config = self._text_config
        context = getattr(config, "max_position_embeddings", None) or options.max_tokens
        self._tokens = PromptTokens(
            tokenizer,
            context if self.family.fixed_length else min(options.max_tokens, context),
            options.template,
            keep_special=not self.family.causal,
            fixed_length=self.family.fixed_length,
        )
        if options.states.startswith("layer:"):
            # Layers that only look at a picture (Mllama) are passed over.
            layers = config.num_hidden_layers - len(getattr(config, "cross_attention_layers", None) or ())
            number = int(options.states.removeprefix("layer:"))
            if abs(number) > layers:
                raise UserError(f"lvlm.states: layer:{number} is none of the {layers} layers of this model.")

    def train(self, mode: bool = True) -> LVLMEncoder:
        """Train mode for what is trained. What is frozen stays in eval mode: its dropout would only be noise."""
        super().train(mode)
        for part in (self.model, self.vision):
            if part is not None and not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    @property
    def _base(self) -> Any:
        """The model without peft's wrapper (its adapters stay in place)."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def _text_config(self) -> Any:
        config = _text_tower(self._base, self.family).config
        return config.qformer_config if self.family.text_class is not None else config.get_text_config()

    @property
    def width(self) -> int:
        """D, of the token states."""
        return self._text_config.hidden_size

    def text_modules(self) -> frozenset[str]:
        """The names, inside the model, of the modules whose own weights t depends on: where adapters belong."""
        read = self.parameters_read(with_pictures=False)
        owners = {name.rpartition(".")[0] for name in read if name.startswith("model.")}
        return frozenset(name.removeprefix("model.") for name in owners)

    def forward(self, prompts: Sequence[Prompt]) -> TextStates:
        """Token states of the prompts, t_g and {t_i} (one a phrase; none is allowed)."""
        batch = self._tokens(prompts)
        device = next(self.model.parameters()).device
        states = self._read(batch, device)[:, batch.first :]  # B L D
        mask = batch.mask.to(device)
        tokens = states[:, : mask.shape[1]]
        spans, local_mask = span_weights([prompt.phrases for prompt in prompts], batch.offsets)  # B N L, B N
        local_states = spans.to(tokens) @ tokens  # B N D
        ids = batch.ids[:, batch.first : batch.first + mask.shape[1]].to(device)
        return TextStates(tokens, mask, self._pool(tokens, mask), local_states, local_mask.to(device), ids)

    def _read(self, batch: TokenBatch, device: torch.device) -> Tensor:
        """The states of every token, B R D, of the layers that the options name."""
        base, family = self._base, self.family
        attention: Tensor | None = batch.attention.to(device)
        if family.fixed_length:
            attention = None
        elif family.reads_both_ways:
            seen = batch.attention.bool().to(device)
            attention = seen[:, None, None, :].expand(-1, 1, seen.shape[1], -1)  # B 1 R R
        all_layers = self.options.states != "last"
        arguments: dict[str, Any] = {"input_ids": batch.ids.to(device), "attention_mask": attention}
        if family.causal:
            arguments["use_cache"] = False
        if family.read is not None:
            output = family.read(base, **arguments, output_hidden_states=all_layers)
        else:
            output = _text_tower(base, family)(**arguments, output_hidden_states=all_layers)
        if not all_layers:
            return output.last_hidden_state
        layers = output.hidden_states[1:]  # without the embeddings
        if self.options.states == "normalised-average":
            return torch.stack([F.layer_norm(layer, layer.shape[-1:]) for layer in layers]).mean(dim=0)
        number = int(self.options.states.removeprefix("layer:"))
        return layers[number - 1 if number > 0 else number]

    def _pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.options.pooling == "last":
            last = mask.sum(dim=1) - 1
            return tokens[torch.arange(len(tokens), device=tokens.device), last]  # B D
        weights = mask.to(tokens.dtype)
        return (tokens * weights[..., None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)  # B D

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """v, B D, of pictures B 3 H W in [-1, 1]. Raises UserError as `image_features` does."""
        return pooled_features(self.image_features(pixels))

    def image_features(self, pixels: Tensor) -> Tensor:
        """What the vision tower makes of pictures B 3 H W in [-1, 1]: B T D, or B D of a tower that pools by itself.

        Raises UserError when there is neither a tower nor a separate encoder.
        """
        family: Family | VisionFamily = self.family
        model, reading = self._base, self.reading
        if self.vision is not None:
            model, reading = self.vision, noted_reading(self.vision)
            family = VISION_FAMILIES[reading.family]
        features = family.features
        if features is None or (self.vision is None and not hasattr(model, self.family.vision[0])):
            raise UserError(
                f"This {self.reading.family} model has no vision tower; name a vision encoder with lvlm.vision_path,"
                " or set losses.align_weight=0."
            )
        config = next(
            (
                getattr(model.config, name)
                for name in ("vision_config", "image_config", "vq_config")
                if getattr(model.config, name, None) is not None
            ),
            model.config,
        )
        side = tower_side(config, self.options.vision_pixels, family.any_size)
        pictures = fit_pictures(pixels, side, reading.mean, reading.std).to(model.dtype)
        return features(model, pictures)

    def patch_grid(self, features: Tensor) -> Tensor:
        """Image features (B T D) as the grid of the picture's patches, B h w D.

        Raises UserError for a tower whose features are no such grid: pooled ones, queries, or with a class token.
        """
        side = math.isqrt(features.shape[1]) if features.ndim == 3 else 0
        if side == 0 or side**2 != features.shape[1] or (self.vision is None and self.family.queries):
            name = self.reading.family if self.vision is None else noted_reading(self.vision).family
            raise UserError(
                f"losses.region_weight: the vision tower of this {name} model gives no grid of patches; choose one that"
                " does (Qwen2.5-VL, LLaVA, Idefics 3, InternVL, PaliGemma), or set losses.region_weight=0."
            )
        return features.unflatten(1, (side, side))

    def check_captioning(self) -> None:
        """Raises UserError where the states do not predict the next token, as a captioning loss needs it."""
        if not self.family.causal or self.family.reads_both_ways or self.family.read is not None:
            raise UserError(
                f"losses.captioning_weight: a {self.reading.family} model is no causal language model; set it to 0."
            )
        if self.options.states != "last":
            raise UserError("losses.captioning_weight needs lvlm.states: last, the states that predict the next token.")

    @property
    def output_matrix(self) -> Tensor:
        """V D: what makes the next token's logits of a state. The LM head's, or the input embeddings it is tied to."""
        if self.head is not None:
            return self.head.weight
        return _text_tower(self._base, self.family).get_input_embeddings().weight

    @property
    def image_width(self) -> int:
        """The width of v: measured on one grey picture."""
        with _evaluating(self), torch.no_grad():
            device = next(self.parameters()).device
            return self.image_embeddings(torch.zeros(1, 3, 32, 32, device=device)).shape[1]

    def parameters_read(self, with_pictures: bool) -> frozenset[str]:
        """The names of the parameters that t, and `with_pictures` v, depend on: what training can reach.

        Found by following the gradient of one prompt and one picture, without computing it: towers hold layers,
        heads and decoders that nobody reads here, and training them would be wrong in every optimiser.
        """
        parameters = dict(self.named_parameters())
        wanted = {name: parameter.requires_grad for name, parameter in parameters.items()}
        with _evaluating(self), torch.enable_grad():
            self.requires_grad_(True)
            device = next(iter(parameters.values())).device
            outputs = [self([Prompt("a sign", (), ())]).tokens]
            if with_pictures:
                outputs.append(self.image_embeddings(torch.zeros(1, 3, 32, 32, device=device)))
            reached = _leaves(outputs)
        for name, parameter in parameters.items():
            parameter.requires_grad_(wanted[name])
        return frozenset(name for name, parameter in parameters.items() if id(parameter) in reached)


def pooled_features(features: Tensor) -> Tensor:
    """v, B D: the mean of image features B T D, or already pooled ones as they are."""
    return features.mean(dim=1) if features.ndim == 3 else features


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the while: nothing is drawn at random. Every module gets its own mode back."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True


def _leaves(outputs: Sequence[Tensor]) -> set[int]:
    """The ids of the tensors that a backward pass from `outputs` would give gradients to."""
    leaves: set[int] = set()
    waiting, seen = [output.grad_fn for output in outputs], set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        waiting.extend(parent for parent, _ in node.next_functions)
    return leaves
