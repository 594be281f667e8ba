"""Image captioning with a vision-language model: any image-text-to-text model of transformers.

The importers check its captions: exactly the recognised strings have to be quoted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PROCESSOR_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    ProcessorMixin,
)
from transformers.utils import PushToHubMixin

from vlad.models.weight_files import load_complete
from vlad.utils.errors import UserError, reason_of
from vlad.utils.hardware import best_device

INSTRUCTION = "Describe this picture in one sentence: what is shown, its style and its colours."
QUOTING = "The picture says {strings}. Quote this text in the sentence, in double quotation marks."
QUESTION = (
    "Describe this picture: which objects, how many, in which colours, and where they stand. If there is text in it,"
    " quote it exactly, in double quotation marks."
)
SILENT = "There is no legible text in it; do not mention any."


class LVLMCaptioner:
    """Writes a sentence about each image, by greedy decoding.

    `path` is a local folder or hub id. `device` "auto": a GPU if there is one. Raises UserError, naming `option`, for a
    model that cannot be loaded or is of another kind.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        device: str = "auto",
        max_new_tokens: int = 96,
        option: str = "--captioner",
    ) -> None:
        self.name = path if revision is None else f"{path} at {revision}"
        self._max_new_tokens = max_new_tokens
        self._processor = load_checked_processor(path, revision, option)
        remedy = "name a folder or hub id of an image-text-to-text model, with its processor"
        label = f"{option} {self.name}"
        model = load_complete(AutoModelForImageTextToText, path, label, remedy, heads_allowed=True, revision=revision)
        with _load_errors(option, self.name):
            chosen = best_device() if device == "auto" else device
            self._model = model.to(chosen).eval()
        tokenizer = self._processor.tokenizer
        self._special_tokens: list[str] = tokenizer.all_special_tokens
        # Left padding: all answers begin at the same column.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @torch.inference_mode()
    def describe(self, images: list[np.ndarray], strings: list[tuple[str, ...]] | None = None) -> list[str]:
        """A description of every image (H W 3, uint8); "" where the model's answer is empty.

        `strings`: the text in each image, for a caption that quotes it; None: the model gets the image alone.
        """
        questions = [QUESTION] * len(images) if strings is None else [instruction(quoted) for quoted in strings]
        inputs = self._processor(
            images=[Image.fromarray(image) for image in images],
            text=[self._prompt(question) for question in questions],
            padding=True,
            return_tensors="pt",
        ).to(self._model.device, self._model.dtype)
        tokens = self._model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=self._max_new_tokens)
        answers = self._processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [first_paragraph(answer) for answer in answers]

    def _prompt(self, text: str) -> str:
        # The text in an image may be "<image>", which the model would take for another image.
        for token in self._special_tokens:
            text = text.replace(token, " ")
        return _question_text(self._processor, text)


def _question_text(processor: Any, text: str) -> str:
    """The instruction in the model's chat template; without one, plainly after the image token."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    image_token = getattr(processor, "image_token", "")
    return f"{image_token}\n{text}\n" if image_token else text


@contextmanager
def _load_errors(option: str, name: str) -> Iterator[None]:
    """Inside the block an error of transformers becomes a UserError."""
    try:
        yield
    except Exception as error:  # damaged weights and wrong configs raise errors of many classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{option} {name} cannot be used as an image-text-to-text model ({reason[:200]}); name a folder or hub id"
            " of one, with its processor."
        ) from error


def load_checked_processor(path: str, revision: str | None, option: str) -> Any:
    """The processor of a model. Raises UserError for one that cannot be loaded, has no tokenizer or a damaged chat
    template."""
    name = path if revision is None else f"{path} at {revision}"
    with _load_errors(option, name):
        processor = load_processor(path, revision)
    if getattr(processor, "tokenizer", None) is None:
        raise UserError(f"{option} {name} has no tokenizer in its processor; name a complete model.")
    try:
        _question_text(processor, QUESTION)
    except Exception as error:  # a template is a program of the model's
        raise UserError(
            f"{option} {name} has a chat template that cannot be filled in ({reason_of(error)}); copy the model's"
            " chat_template.jinja again, or name another model."
        ) from error
    return processor


def check_model(path: str, option: str, revision: str | None = None) -> None:
    """Checks a model's processor, chat template, config and weight files without loading the weights.

    Raises UserError for the first that is missing, damaged or of another kind of model. The weights of a hub id are
    not checked: they may not be downloaded yet.
    """
    load_checked_processor(path, revision, option)
    with _load_errors(option, path):
        config = AutoConfig.from_pretrained(path, revision=revision)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ValueError(f"it is a {config.model_type}")
        if Path(path).is_dir():
            for file in _weights_of(Path(path)):
                with safe_open(file, framework="pt"):
                    pass


def _weights_of(folder: Path) -> Sequence[Path]:
    """The weight files of a model in safetensors; empty if they are in another format.

    Raises FileNotFoundError where there are none at all.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    if not any(folder.glob("pytorch_model*.bin*")):
        raise FileNotFoundError(f"there are no weights (model.safetensors) in {folder}")
    return []


def load_processor(path: str, revision: str | None) -> Any:
    """The processor of a model; without torchvision, it lacks the part that reads videos.

    transformers has every image processor for Pillow, but video processors for torchvision only, and without it loads
    no processor at all for Qwen2-VL, SmolVLM or InternVL. Raises whatever transformers raises.
    """
    try:
        return AutoProcessor.from_pretrained(path, revision=revision)
    except ImportError as error:
        if "torchvision" not in str(error).lower():
            raise
        processor_class = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(path, revision=revision))]
    images_only: Any = type(
        processor_class.__name__, (_ImagesOnly, processor_class), {"video_processor_class": NoVideos.__name__}
    )
    return images_only.from_pretrained(path, revision=revision)


class NoVideos(PushToHubMixin):  # so that a processor asks for its options
    """Takes the place of a video processor."""

    model_input_names: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> NoVideos:
        return cls()


class _ImagesOnly:
    """Mixin for a processor: every video processor class that it looks up is `NoVideos`."""

    @staticmethod
    def get_possibly_dynamic_module(name: str) -> Any:
        return NoVideos if "Video" in name else ProcessorMixin.get_possibly_dynamic_module(name)


def instruction(strings: tuple[str, ...]) -> str:
    """The instruction for a caption, with the recognised text quoted."""
    text = QUOTING.format(strings=", ".join(f'"{string}"' for string in strings)) if strings else SILENT
    return f"{INSTRUCTION} {text}"


def first_paragraph(answer: str) -> str:
    """The first paragraph of the answer, on one line."""
    return " ".join(answer.strip().split("\n\n")[0].split())
