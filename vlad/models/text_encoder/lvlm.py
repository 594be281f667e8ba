"""The LVLM encoder: prompts -> token states, t_g and {t_i}; images -> image embeddings v. P(Z_T | T) of the paper.

    lvlm_loading.py   a folder or hub id -> model and tokenizer    tiny_qwen.py      the same, tiny, random weights
    families.py       the supported families                       tokenization.py   prompts -> token ids with offsets
    vision_tower.py   images -> each family's features

Letters: B batch, L tokens of a prompt, R tokens with those around the prompt, N phrases, D hidden width, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.families import (
    FAMILIES,
    VISION_FAMILIES,
    Family,
    VisionFamily,
    stored_encoder_info,
    text_tower,
)
from vlad.models.text_encoder.tokenization import PromptTokens, TokenBatch, span_weights
from vlad.models.text_encoder.vision_tower import fit_images, tower_side
from vlad.types import Prompt, TextStates
from vlad.utils.errors import UserError


class LVLMEncoder(nn.Module):
    """Encodes prompts with an LVLM, and images with its vision tower or a separate encoder `vision`.

    `head`: the LM head, for the captioning loss, of a model that does not tie it to its input embeddings.

    Raises UserError when the options ask for a chat template or a layer that the model does not have.
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
        self.model: Any = model  # transformers' model, or peft's wrapper around one
        self.vision: Any = vision
        self.head: Any = head
        self.tokenizer = tokenizer
        self.options = options
        self.info = stored_encoder_info(model)
        self.family = FAMILIES.get(self.info.family) or Family(self.info.family, text="", features=None)
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
            # Mllama's layers with cross-attention to images are skipped for text.
            layers = config.num_hidden_layers - len(getattr(config, "cross_attention_layers", None) or ())
            number = int(options.states.removeprefix("layer:"))
            if abs(number) > layers:
                raise UserError(f"lvlm.states: layer:{number} is none of the {layers} layers of this model.")

    def train(self, mode: bool = True) -> LVLMEncoder:
        """Sets train mode, but keeps frozen parts in eval mode: their dropout would only be noise."""
        super().train(mode)
        for part in (self.model, self.vision):
            if part is not None and not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    @property
    def _base(self) -> Any:
        """The model without peft's wrapper; its adapters stay in place."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def _text_config(self) -> Any:
        config = text_tower(self._base, self.family).config
        return config.qformer_config if self.family.text_class is not None else config.get_text_config()

    @property
    def width(self) -> int:
        """D, the width of the token states."""
        return self._text_config.hidden_size

    def text_modules(self) -> frozenset[str]:
        """The names, inside the model, of the modules with weights that t depends on: those that adapters may go on."""
        read = self.parameters_used(with_images=False)
        owners = {name.rpartition(".")[0] for name in read if name.startswith("model.")}
        return frozenset(name.removeprefix("model.") for name in owners)

    def forward(self, prompts: Sequence[Prompt]) -> TextStates:
        """Token states of the prompts, t_g and {t_i} (one for each phrase; there may be none)."""
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
        """The states of every token, B R D, of the layers that `options.states` names."""
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
        if family.run_text is not None:
            output = family.run_text(base, **arguments, output_hidden_states=all_layers)
        else:
            output = text_tower(base, family)(**arguments, output_hidden_states=all_layers)
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
        """v, B D, of images B 3 H W in [-1, 1]. Raises UserError as `image_features` does."""
        return pooled_features(self.image_features(pixels))

    def image_features(self, pixels: Tensor) -> Tensor:
        """The vision tower's features of images B 3 H W in [-1, 1]: B T D, or B D of a tower that pools.

        Raises UserError when there is neither a tower nor a separate encoder.
        """
        family: Family | VisionFamily = self.family
        model, reading = self._base, self.info
        if self.vision is not None:
            model, reading = self.vision, stored_encoder_info(self.vision)
            family = VISION_FAMILIES[reading.family]
        features = family.features
        if features is None or (self.vision is None and not hasattr(model, self.family.vision[0])):
            raise UserError(
                f"This {self.info.family} model has no vision tower; name a vision encoder with lvlm.vision_path,"
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
        images = fit_images(pixels, side, reading.mean, reading.std).to(model.dtype)
        return features(model, images)

    def patch_grid(self, features: Tensor) -> Tensor:
        """Reshapes image features (B T D) to the grid of the image's patches, B h w D.

        Raises UserError for features that are no such grid: pooled ones, queries, or with a class token.
        """
        side = math.isqrt(features.shape[1]) if features.ndim == 3 else 0
        if side == 0 or side**2 != features.shape[1] or (self.vision is None and self.family.queries):
            name = self.info.family if self.vision is None else stored_encoder_info(self.vision).family
            raise UserError(
                f"losses.region_weight: the vision tower of this {name} model gives no grid of patches; choose one that"
                " does (Qwen2.5-VL, LLaVA, Idefics 3, InternVL, PaliGemma), or set losses.region_weight=0."
            )
        return features.unflatten(1, (side, side))

    def check_captioning(self) -> None:
        """Raises UserError if the states do not predict the next token, which the captioning loss needs."""
        if not self.family.causal or self.family.reads_both_ways or self.family.run_text is not None:
            raise UserError(
                f"losses.captioning_weight: a {self.info.family} model is no causal language model; set it to 0."
            )
        if self.options.states != "last":
            raise UserError("losses.captioning_weight needs lvlm.states: last, the states that predict the next token.")

    @property
    def output_matrix(self) -> Tensor:
        """V D: the matrix from states to the next token's logits: the LM head's, or the input embeddings if tied."""
        if self.head is not None:
            return self.head.weight
        return text_tower(self._base, self.family).get_input_embeddings().weight

    @property
    def image_width(self) -> int:
        """The width of v: measured on one grey image."""
        with _evaluating(self), torch.no_grad():
            device = next(self.parameters()).device
            return self.image_embeddings(torch.zeros(1, 3, 32, 32, device=device)).shape[1]

    def parameters_used(self, with_images: bool) -> frozenset[str]:
        """The names of the parameters that t, and `with_images` v, depend on: those that can be trained.

        Found by walking the autograd graph of one prompt and one image: models have layers, heads and decoders that
        are not used here and get no gradient.
        """
        parameters = dict(self.named_parameters())
        wanted = {name: parameter.requires_grad for name, parameter in parameters.items()}
        with _evaluating(self), torch.enable_grad():
            self.requires_grad_(True)
            device = next(iter(parameters.values())).device
            outputs = [self([Prompt("a sign", (), ())]).tokens]
            if with_images:
                outputs.append(self.image_embeddings(torch.zeros(1, 3, 32, 32, device=device)))
            reached = _leaves(outputs)
        for name, parameter in parameters.items():
            parameter.requires_grad_(wanted[name])
        return frozenset(name for name, parameter in parameters.items() if id(parameter) in reached)


def pooled_features(features: Tensor) -> Tensor:
    """v, B D: the mean of image features B T D; features that are pooled already, unchanged."""
    return features.mean(dim=1) if features.ndim == 3 else features


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block (no dropout); afterwards every module is in its mode of before."""
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
