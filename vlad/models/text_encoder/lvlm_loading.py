"""Loading LVLMs, vision encoders and LM heads from a folder or the hub: only the modules that are used."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.families import (
    FAMILIES,
    VISION_FAMILIES,
    EncoderInfo,
    Family,
    store_encoder_info,
    text_tower,
)
from vlad.models.text_encoder.tiny_qwen import build_byte_tokenizer, build_tiny_qwen
from vlad.models.weight_files import load_complete
from vlad.utils.errors import UserError, did_you_mean, reason_of
from vlad.utils.hub import NOT_FOUND, check_reachable

CONFIG = "config.json"
SAFE_WEIGHTS, SAFE_INDEX, HEAD_KEY = "model.safetensors", "model.safetensors.index.json", "lm_head.weight"


def load_lvlm(
    options: LVLMOptions, with_vision: bool = True, full: bool = True
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The model and its tokenizer; without `with_vision`, or with a `vision_path`, only the text path's weights.

    In float32 if its weights are to be trained (`full`), else in the stored precision. Raises UserError when the path
    holds no model, its family is not supported, it lacks a vision tower that is needed, or the hub is out of reach.
    """
    if options.path is None:
        return build_tiny_qwen(options), build_byte_tokenizer()
    path, source = options.path, _source(options)
    check_reachable("lvlm.path", path, options.revision, CONFIG)
    with report_load_errors("lvlm.path", path):
        if options.trust_remote_code:
            check_code_is_pinned(path, options.revision)
        stored, _ = PreTrainedConfig.get_config_dict(path, revision=options.revision)
        if "auto_map" not in stored and (kind := stored.get("model_type")) and kind not in CONFIG_MAPPING:
            raise _unknown_family(options, kind)
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
        model = _load_complete(model_class, "lvlm.path", path, dtype=dtype, **source)
        if not own_vision and family.text:
            tower = text_tower(model, family)
            if hasattr(
                transformers, type(tower).__name__
            ):  # a pipeline can only save classes that transformers can load
                model = tower
        mean, std = _normalisation(path, source, config, (family.mean, family.std))
        store_encoder_info(model, EncoderInfo(family.model_type, mean, std))
    with report_load_errors("lvlm.path", path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, **source)
        # Without its files transformers silently builds some tokenizers with an empty vocabulary.
        if set(tokenizer("a sign", add_special_tokens=False)["input_ids"]) <= {tokenizer.unk_token_id}:
            raise OSError(f"the tokenizer of {path} is empty")
    return model, tokenizer


def check_same_lvlm(options: LVLMOptions, model: Any) -> None:
    """Raises UserError if `path` names another LVLM than the base's, judged by the sizes of their text models."""
    if options.path is None:
        return
    check_reachable("lvlm.path", options.path, options.revision, CONFIG)
    with report_load_errors("lvlm.path", options.path):
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
            f" ({'; '.join(differing)}); leave lvlm.path out to use the base's."
        )


def load_vision_encoder(options: LVLMOptions) -> nn.Module | None:
    """The separate, frozen vision encoder of `vision_path`, if given. Raises UserError as `load_lvlm` does."""
    path = options.vision_path
    if path is None:
        return None
    source: dict[str, Any] = {"revision": options.vision_revision}
    check_reachable("lvlm.vision_path", path, options.vision_revision, CONFIG)
    with report_load_errors("lvlm.vision_path", path):
        config = AutoConfig.from_pretrained(path, **source)
        family = VISION_FAMILIES.get(config.model_type)
        if family is None:
            raise UserError(
                f"lvlm.vision_path: {path} is a {config.model_type} model; supported: {', '.join(VISION_FAMILIES)}."
            )
        model_class = _without(getattr(transformers, family.model_class), lambda name: name in family.unread)
        model = _load_complete(model_class, "lvlm.vision_path", path, **source)
        mean, std = _normalisation(path, source, config, (family.mean, family.std))
        store_encoder_info(model, EncoderInfo(config.model_type, mean, std))
    return model.requires_grad_(False).eval()


def load_lm_head(options: LVLMOptions, model: Any) -> nn.Linear | None:
    """The LM head of a pretrained LVLM, frozen; None if it is tied to the input embeddings.

    Raises UserError when the folder or repository has none.
    """
    path = options.path
    if model.config.get_text_config().tie_word_embeddings:
        return None
    if path is None:
        raise UserError(
            "losses.captioning_weight needs the LM head; name the folder of the base's LVLM with lvlm.path."
        )
    with report_load_errors("lvlm.path", path):
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
def report_load_errors(option: str, path: str, what: str = "model") -> Iterator[None]:
    """Inside the block an error of transformers becomes a UserError; warnings of the hub's retries are silenced."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # wrong names and configs, damaged files, remote code: they share no class
        if "trust_remote_code" in str(error):
            sentence = (
                "needs remote code; read it, then set lvlm.trust_remote_code=true and lvlm.revision to the commit that"
                " you have read"
            )
        elif isinstance(error, OSError) and not Path(path).exists():
            sentence = NOT_FOUND
        else:
            sentence = (
                f"holds no {what} that transformers can load ({reason_of(error)}); give a folder made by"
                " save_pretrained or a hub id"
            )
        raise UserError(f"{option}: {path} {sentence}.") from error
    finally:
        hub.setLevel(level)


def _source(options: LVLMOptions) -> dict[str, Any]:
    return {"revision": options.revision, "trust_remote_code": options.trust_remote_code}


def check_code_is_pinned(path: str, revision: str | None) -> None:
    """Raises UserError if a model's code is in another repository: transformers would take its newest version."""
    for name in (CONFIG, "tokenizer_config.json"):
        found = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        if found is None:
            continue
        classes = json.loads(Path(found).read_text(encoding="utf-8")).get("auto_map") or {}
        named = classes.values() if isinstance(classes, dict) else [classes]
        parts = [part for entry in named for part in (entry if isinstance(entry, list) else [entry]) if part]
        others = sorted({part.partition("--")[0] for part in parts if "--" in part} - {path})
        if others:
            raise UserError(
                f"lvlm.path: the {name} of {path} takes its code from {others[0]}, which lvlm.revision does not pin;"
                f" download both into one folder and name the code there without '{others[0]}--'."
            )


def _family_of(config: Any, options: LVLMOptions) -> Family:
    """The family of a config: a listed one, or the generic one of a causal language model or of remote code."""
    kind = config.model_type
    if kind in FAMILIES:
        return FAMILIES[kind]
    if options.trust_remote_code or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return Family(kind, text="", vision=(), features=None)
    raise _unknown_family(options, kind)


def _unknown_family(options: LVLMOptions, kind: str) -> UserError:
    return UserError(
        f"lvlm.path: {options.path} is a {kind} model; supported: {', '.join(sorted(FAMILIES))} and any causal language"
        f" model.{did_you_mean(kind, FAMILIES)}"
    )


def _model_class(config: Any, family: Family, with_vision: bool) -> Any:
    name = family.model_class if with_vision or family.text_class is None else family.text_class
    if name is None:
        return MODEL_MAPPING.get(type(config), AutoModel)
    stored = config.architectures or [name]
    if family.text_class is not None and not {family.model_class, family.text_class} & set(stored):
        raise UserError(
            f"lvlm.path: text is encoded by the Q-Former of a {family.model_type} model, and {stored[0]} has none for"
            " text; give an image-text retrieval model such as Salesforce/blip2-itm-vit-g."
        )
    return getattr(transformers, name)


def _without(model_class: Any, dropped: Callable[[str], bool]) -> Any:
    """A subclass of the model's class without the parts whose names are dropped: their weights are never loaded.

    It keeps the class's name and module, by which transformers finds the key renamings of older checkpoints.
    """

    def build(self: Any, config: Any, *rest: Any, **options: Any) -> None:
        model_class.__init__(self, config, *rest, **options)
        for name, _ in (*self.named_children(), *self.named_parameters(recurse=False)):
            if dropped(name):
                delattr(self, name)

    def initialise(self: Any, module: nn.Module) -> None:
        if module is not self:  # the parts that the class itself would initialise are gone
            model_class._init_weights(self, module)

    body = {"__init__": build, "_init_weights": initialise, "_keys_to_ignore_on_load_unexpected": [".*"]}
    return type(model_class.__name__, (model_class,), {**body, "__module__": model_class.__module__})


def _load_complete(model_class: Any, option: str, path: str, **arguments: Any) -> Any:
    remedy = "give a folder that holds the whole model, or download it again"
    return load_complete(model_class, path, f"{option}: {path}", remedy, heads_allowed=True, pass_on=True, **arguments)


def _normalisation(
    path: str, source: dict[str, Any], config: Any, default: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The image normalisation of a model: of its EncoderInfo, else of its processor's config, else `default`."""
    info = getattr(config, "vlad_reading", None)
    if info is not None:
        return tuple(info["mean"]), tuple(info["std"])
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
