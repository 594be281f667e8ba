"""Pretrained encoders for metrics: CLIP (CLIPScore), vision encoders (FID-like distances), sentence encoders.

Loaded from local folders only (made by `save_pretrained` or `hf download`). Images are preprocessed with Pillow by the
folder's preprocessor_config.json.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from vlad.models.text_encoder.vision_tower import CLIP_MEAN, CLIP_STD
from vlad.models.weight_files import load_complete
from vlad.utils.errors import UserError, reason_of
from vlad.utils.hardware import best_device
from vlad.utils.json_objects import read_object

# Vocabularies, in the formats of transformers.
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class Preprocessing:
    """Scales an image's shorter side to `edge`, crops the central `side` x `side` and normalises with `mean` and `std`
    of pixels in [0, 1]."""

    edge: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (H W 3, uint8) of any sizes -> B 3 S S, float32."""
        return torch.stack([self._one(image) for image in images])

    def _one(self, image: np.ndarray) -> Tensor:
        height, width = image.shape[:2]
        scale = self.edge / min(height, width)
        size = max(self.edge, int(width * scale)), max(self.edge, int(height * scale))
        resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        resized = resized.crop((left, top, left + self.side, top + self.side))
        pixels = (np.asarray(resized, dtype=np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)


def _load(folder: Path) -> Any:
    remedy = "give a complete model folder"
    model = load_complete(
        AutoModel, folder, str(folder), remedy, heads_allowed=True, local_files_only=True, dtype=torch.float32
    )
    model.requires_grad_(False).eval()
    return model.to(best_device())


def _tokenizer(folder: Path) -> Any:
    # Without these files transformers builds some tokenizers with an empty vocabulary: all texts would be the same.
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder} holds no tokenizer ({', '.join(TOKENIZER_FILES)}); give a complete model folder.")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise UserError(
            f"{folder} holds no tokenizer that transformers loads ({reason_of(error)}); give a complete model folder."
        ) from error


def _preprocessing(folder: Path, default_side: int) -> Preprocessing:
    path = folder / "preprocessor_config.json"
    try:
        config = read_object(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); give a complete model folder.") from error

    def length(value: Any, default: int) -> int:
        if isinstance(value, dict):
            value = value.get("shortest_edge", value.get("height"))
        return int(value) if value else default

    side = length(config.get("crop_size"), default_side)
    edge = max(side, length(config.get("size"), side))
    mean, std = config.get("image_mean") or CLIP_MEAN, config.get("image_std") or CLIP_STD
    return Preprocessing(edge, side, tuple(mean), tuple(std))


class CLIPEncoder:
    """CLIP: similarity of texts and images. Raises UserError for a folder that holds another model."""

    def __init__(self, folder: Path) -> None:
        self.model = _load(folder)
        if self.model.config.model_type != "clip":
            raise UserError(f"{folder} holds a {self.model.config.model_type} model, and CLIPScore needs a CLIP.")
        self.name = folder.name
        self.tokenizer = _tokenizer(folder)
        self.preprocess = _preprocessing(folder, self.model.config.vision_config.image_size)

    @torch.no_grad()
    def similarity(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> Tensor:
        """The cosine similarity of each text and its image (B). Texts are cut to the context."""
        return torch.cosine_similarity(self.embed_texts(texts), self.embed_images(images), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> B D, in the space of images. Texts are cut to the context."""
        most = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        output = self.model.get_text_features(
            input_ids=tokens["input_ids"].to(self.model.device),
            attention_mask=tokens["attention_mask"].to(self.model.device),
        )
        return output.pooler_output.cpu()

    @torch.no_grad()
    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (H W 3, uint8, of any sizes) -> B D, in the space of texts."""
        pixels = self.preprocess(images).to(self.model.device)
        return self.model.get_image_features(pixel_values=pixels).pooler_output.cpu()


class VisionEncoder:
    """Any vision encoder of transformers (DINOv2, ViT, SigLIP, CLIP's vision tower): its pooled output, or else its
    first token's. Raises UserError for a folder that holds another model."""

    def __init__(self, folder: Path) -> None:
        model = _load(folder)
        self.model = getattr(model, "vision_model", model)
        taken = inspect.signature(self.model.forward).parameters
        # A model that also takes text cannot run without it.
        if "pixel_values" not in taken or "input_ids" in taken:
            raise UserError(
                f"{folder} holds a {model.config.model_type} model, which takes no images alone; give a vision"
                " encoder's folder (DINOv2, ViT, SigLIP or CLIP)."
            )
        config = getattr(model.config, "vision_config", model.config)
        side = getattr(config, "image_size", 224)
        self.name = folder.name
        self.preprocess = _preprocessing(folder, int(side[0] if isinstance(side, list | tuple) else side))

    @torch.no_grad()
    def features(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (H W 3, uint8) -> B D."""
        output = self.model(pixel_values=self.preprocess(images).to(next(self.model.parameters()).device))
        pooled = getattr(output, "pooler_output", None)
        return (output.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1).cpu()


class SentenceEncoder:
    """Any text encoder of transformers: the mean of the tokens' last states, as in Sentence-BERT (arXiv 1908.10084).

    Raises UserError for a folder that holds another model.
    """

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = _load(folder), _tokenizer(folder)
        try:
            self.similarity(["a sign"], ["a sign"])
        except Exception as error:  # each class fails in its own way without images or a second text
            raise UserError(
                f"{folder} holds a {self.model.config.model_type} model that encodes no texts alone"
                f" ({reason_of(error)}); give a sentence encoder's folder."
            ) from error

    @torch.no_grad()
    def similarity(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
        """The cosine similarity of each sentence of `a` and the one of `b`. Sentences are cut to the context."""
        return [float(torch.cosine_similarity(self._mean(x), self._mean(y), dim=-1)) for x, y in zip(a, b, strict=True)]

    def _mean(self, sentence: str) -> Tensor:
        most = getattr(self.model.config, "max_position_embeddings", None)
        tokens = self.tokenizer(sentence, truncation=most is not None, max_length=most, return_tensors="pt")
        states = self.model(
            input_ids=tokens["input_ids"].to(self.model.device),
            attention_mask=tokens["attention_mask"].to(self.model.device),
        ).last_hidden_state
        return states.float().mean(dim=1)[0]
