"""Pretrained encoders that images are judged by: CLIP for CLIPScore, any vision encoder for distances, any text
encoder for how alike descriptions are.

Only from folders on this machine (as `save_pretrained` or `hf download` leave them): nothing is fetched. Images are
prepared as the folder's preprocessor_config.json says, with Pillow.
"""

from __future__ import annotations

import inspect
import json
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
from vlad.utils.errors import UserError, reason_of
from vlad.utils.hardware import best_device
from vlad.utils.hub import without_bars

# Words, in the forms in which transformers keeps them.
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class Preparation:
    """An image on its way to an encoder: its shorter side scaled to `edge`, the middle `side` x `side` cut out,
    normalised with `mean` and `std` of pixels in [0, 1]."""

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
    try:
        with without_bars():
            model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # damaged weights and configs of wrong values raise errors of their own kinds
        raise UserError(
            f"{folder} holds no model that transformers can load ({reason_of(error)}); give a whole folder."
        ) from error
    model.requires_grad_(False).eval()
    return model.to(best_device())


def _tokenizer(folder: Path) -> Any:
    # Without its files transformers makes some classes' tokenizers all the same, of no words: each text would be alike.
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder} holds no tokenizer ({', '.join(TOKENIZER_FILES)}); give a whole folder.")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers' own errors are plain ones
        raise UserError(
            f"{folder} holds no tokenizer that transformers can load ({reason_of(error)}); give a whole folder."
        ) from error


def _preparation(folder: Path, default_side: int) -> Preparation:
    path = folder / "preprocessor_config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not isinstance(said, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); give a whole folder.") from error

    def length(value: Any, default: int) -> int:
        if isinstance(value, dict):
            value = value.get("shortest_edge", value.get("height"))
        return int(value) if value else default

    side = length(said.get("crop_size"), default_side)
    edge = max(side, length(said.get("size"), side))
    return Preparation(edge, side, tuple(said.get("image_mean") or CLIP_MEAN), tuple(said.get("image_std") or CLIP_STD))


class CLIPEncoder:
    """A CLIP: how alike texts and images are. Raises UserError when the folder holds none."""

    def __init__(self, folder: Path) -> None:
        self.model = _load(folder)
        if self.model.config.model_type != "clip":
            raise UserError(f"{folder} holds a {self.model.config.model_type} model, and CLIPScore needs a CLIP.")
        self.name = folder.name
        self.tokenizer = _tokenizer(folder)
        self.prepare = _preparation(folder, self.model.config.vision_config.image_size)

    @torch.no_grad()
    def similarity(self, texts: Sequence[str], images: Sequence[np.ndarray]) -> Tensor:
        """The cosine of each text and its image (B); texts beyond the context are cut."""
        return torch.cosine_similarity(self.embed_texts(texts), self.embed_images(images), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> B D, in the space of images; those beyond the context are cut."""
        most = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        found = self.model.get_text_features(
            input_ids=tokens["input_ids"].to(self.model.device),
            attention_mask=tokens["attention_mask"].to(self.model.device),
        )
        return found.pooler_output.cpu()

    @torch.no_grad()
    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (H W 3, uint8, of any sizes) -> B D, in the space of texts."""
        prepared = self.prepare(images).to(self.model.device)
        return self.model.get_image_features(pixel_values=prepared).pooler_output.cpu()


class VisionEncoder:
    """Any vision encoder of transformers: DINOv2, ViT, SigLIP, or CLIP's own tower. Its pooled output, or else its
    first token's, is what images are compared by. Raises UserError when the folder holds none."""

    def __init__(self, folder: Path) -> None:
        model = _load(folder)
        self.model = getattr(model, "vision_model", model)
        taken = inspect.signature(self.model.forward).parameters
        # One that takes words too waits for them.
        if "pixel_values" not in taken or "input_ids" in taken:
            raise UserError(
                f"{folder} holds a {model.config.model_type} model, which takes no images alone; give a vision"
                " encoder's folder (DINOv2, ViT, SigLIP or CLIP)."
            )
        config = getattr(model.config, "vision_config", model.config)
        side = getattr(config, "image_size", 224)
        self.name = folder.name
        self.prepare = _preparation(folder, int(side[0] if isinstance(side, list | tuple) else side))

    @torch.no_grad()
    def features(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (H W 3, uint8) -> B D."""
        found = self.model(pixel_values=self.prepare(images).to(next(self.model.parameters()).device))
        pooled = getattr(found, "pooler_output", None)
        return (found.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1).cpu()


class SentenceEncoder:
    """Any text encoder of transformers; a sentence is the mean of its tokens' last states, as Sentence-BERT has it
    (arXiv 1908.10084). Raises UserError when the folder holds none."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = _load(folder), _tokenizer(folder)
        try:
            self.similarity(["a sign"], ["a sign"])
        except Exception as error:  # each class has its own way to miss images, or a second text
            raise UserError(
                f"{folder} holds a {self.model.config.model_type} model that encodes no texts alone"
                f" ({reason_of(error)}); give a sentence encoder's folder."
            ) from error

    @torch.no_grad()
    def similarity(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
        """The cosine of each sentence of `a` and its fellow of `b`; what goes beyond the context is cut."""
        return [float(torch.cosine_similarity(self._mean(x), self._mean(y), dim=-1)) for x, y in zip(a, b, strict=True)]

    def _mean(self, sentence: str) -> Tensor:
        most = getattr(self.model.config, "max_position_embeddings", None)
        tokens = self.tokenizer(sentence, truncation=most is not None, max_length=most, return_tensors="pt")
        states = self.model(
            input_ids=tokens["input_ids"].to(self.model.device),
            attention_mask=tokens["attention_mask"].to(self.model.device),
        ).last_hidden_state
        return states.float().mean(dim=1)[0]
