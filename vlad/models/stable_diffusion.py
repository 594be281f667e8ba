"""Loading Stable Diffusion (1, 2, XL): UNet, autoencoder, noise schedule, text encoders.

    folder or hub id in diffusers' format     model_index.json, unet/, vae/, scheduler/, text_encoder/, tokenizer/, ...
    one .safetensors file                     through diffusers' converter; `config`, a folder in diffusers' format,
                                              has the configs of the parts and the tokenizer

Prediction type, schedule, channels, scales and widths are read from the model's configs.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel

from vlad.models.options import OPTION, BaseTextOptions, StableDiffusionOptions
from vlad.models.text_encoder.base_encoders import ENCODERS, context_tokens
from vlad.models.unet_surgery import check_plain_unet
from vlad.models.weight_files import load_complete
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors
from vlad.utils.hub import check_reachable
from vlad.utils.json_objects import read_object

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
REQUIRED = ("unet", "vae", "scheduler")
LOAD_REMEDY = (
    "give a folder with safetensors in diffusers' format, a hub id that can be reached"
    " (stable_diffusion.variant names its weights, such as fp16), or a .safetensors file"
)
XL = "StableDiffusionXL"  # its pipeline classes begin with this


@dataclass(frozen=True)
class StableDiffusion:
    """The loaded parts. `scheduler` is its config; `base_text` is None if the text encoders are not loaded."""

    unet: UNet2DConditionModel
    autoencoder: AutoencoderKL
    scheduler: Mapping[str, Any]
    encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    base_text: BaseTextOptions | None


def load_stable_diffusion(options: StableDiffusionOptions) -> StableDiffusion:
    """Loads the model in float32. Raises UserError for another kind of model, or parts that do not fit each other."""
    path = Path(options.path)
    if path.suffix.lower() in PICKLES:
        raise UserError(
            f"{OPTION}: {path} is a pickle, which can run code when it is loaded; give the .safetensors file or the"
            " diffusers folder of the same model."
        )
    single = path.suffix.lower() == ".safetensors"
    found = _from_single_file(path, options) if single else _from_folder(options)
    _check(found, options.path)
    return found


# --- loading -------------------------------------------------------------------------------------------------------


def _from_folder(options: StableDiffusionOptions) -> StableDiffusion:
    index = _model_index(options.path, options.revision)
    _check_index(index, options.path)
    source: dict[str, Any] = {"revision": options.revision}
    weights = {**source, "variant": options.variant, "use_safetensors": True}
    unet = _load(UNet2DConditionModel, options.path, "unet", weights)
    autoencoder = _load(AutoencoderKL, options.path, "vae", weights)
    with _load_errors(options.path, "scheduler"):
        scheduler = DDIMScheduler.load_config(options.path, subfolder="scheduler", **source)
    names = _text_encoders(index) if options.own_text else []
    for name in names:
        if index[name][1] not in ENCODERS:
            raise UserError(
                f"{OPTION}: the {name} of {options.path} is a {index[name][1]}; known are {' and '.join(ENCODERS)};"
                " set stable_diffusion.own_text=false to load the model without its text encoders."
            )
    loaded = []
    for name in names:
        encoder = _load(getattr(transformers, index[name][1]), options.path, name, {**weights, "dtype": torch.float32})
        with _load_errors(options.path, name):
            tokenizer = transformers.CLIPTokenizer.from_pretrained(
                options.path, subfolder=name.replace("text_encoder", "tokenizer"), revision=options.revision
            )
        loaded.append((encoder, tokenizer))
    encoders, tokenizers = tuple(x for x, _ in loaded), tuple(x for _, x in loaded)
    base_text = _base_text_options(index) if names else None
    return StableDiffusion(unet, autoencoder, scheduler, encoders, tokenizers, base_text)


def _from_single_file(path: Path, options: StableDiffusionOptions) -> StableDiffusion:
    if not path.is_file():
        raise UserError(f"{OPTION}: there is no file {path}; check the name.")
    if options.config is None:
        raise UserError(
            f"stable_diffusion.config: {path} holds weights alone; name a folder or hub id in diffusers' format of the"
            " same kind of model, for its configs and its tokenizer."
        )
    index = _model_index(options.config, options.revision)
    _check_index(index, options.config)
    pipeline_class = getattr(diffusers, str(index["_class_name"]), None)
    if not hasattr(pipeline_class, "from_single_file"):
        raise UserError(
            f"stable_diffusion.config: {options.config} is a {index['_class_name']}, not a StableDiffusion."
        )
    not_loaded = {
        name: None
        for name, value in index.items()
        if isinstance(value, list) and name.split("_")[0] not in ("unet", "vae", "scheduler", "text", "tokenizer")
    }
    assert pipeline_class is not None
    names = _text_encoders(index) if options.own_text else []
    with _load_errors(str(path), "file"):
        try:
            pipeline = pipeline_class.from_single_file(
                str(path), config=options.config, local_files_only=Path(options.config).is_dir(), **not_loaded
            )
            parts = {name: getattr(pipeline, name) for name in ("unet", "vae", *names)}
        except NotImplementedError as error:  # parameters without weights stay on the meta device
            raise _another_kind(path, options.config) from error
        if any(parameter.is_meta for part in parts.values() for parameter in part.parameters()):
            raise _another_kind(path, options.config)
    return StableDiffusion(
        parts["unet"].float(),
        parts["vae"].float(),
        pipeline.scheduler.config,
        tuple(parts[name].float() for name in names),
        tuple(getattr(pipeline, name.replace("text_encoder", "tokenizer")) for name in names),
        _base_text_options(index) if names else None,
    )


def _another_kind(path: Path, config: str) -> UserError:
    return UserError(
        f"{OPTION}: {path} holds another kind of model than stable_diffusion.config ({config}) describes (weights are"
        " missing); name a folder of the model that it was made from."
    )


def _model_index(path: str, revision: str | None) -> dict[str, Any]:
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"{OPTION}: {path} is neither a folder in diffusers' format nor a .safetensors file.")
    if folder.is_dir():
        index = folder / "model_index.json"
        if (folder / "config.yaml").is_file() and not index.is_file():
            raise UserError(f"{OPTION}: {path} is a run of vlad; train on it with configs/lora.yaml base={path}.")
        missing = [
            name for name in ("model_index.json", *(f"{part}/" for part in REQUIRED)) if not (folder / name).exists()
        ]
        if not index.is_file():
            raise UserError(
                f"{OPTION}: {path} is no pipeline in diffusers' format: {', '.join(missing)} missing; name the folder"
                " that save_pretrained or a download of the whole model made."
            )
        try:
            return read_object(index)
        except (OSError, ValueError) as error:
            raise UserError(f"{OPTION}: {index} is damaged ({error}); download the model again.") from error
    check_reachable(OPTION, path, revision, "model_index.json")
    with _load_errors(path, "model_index.json"):
        return dict(DiffusionPipeline.load_config(path, revision=revision))


def _check_index(index: Mapping[str, Any], path: str) -> None:
    """Raises UserError for a pipeline of another kind (a transformer, one of ours), or one that lacks a part."""
    parts = {name: value for name, value in index.items() if isinstance(value, list) and value[:1] not in ([], [None])}
    kind = index.get("_class_name")
    if "refine_unet" in parts:
        raise UserError(f"{OPTION}: {path} is a pipeline of vlad; train on it with configs/lora.yaml base={path}.")
    if "transformer" in parts and "unet" not in parts:
        raise UserError(
            f"{OPTION}: {path} is a {kind}, whose denoiser is a transformer ({parts['transformer'][-1]}), no UNet; name"
            " a model of the Stable Diffusion 1, 2 or XL kind."
        )
    folder = Path(path)
    missing = [
        name
        for name in dict.fromkeys((*REQUIRED, *_text_encoders(parts)))
        if name not in parts or (folder.is_dir() and not (folder / name).is_dir())
    ]
    if missing:
        raise UserError(
            f"{OPTION}: {path} is a {kind} without {', '.join(missing)}; name a complete text-to-image pipeline in"
            " diffusers' format."
        )
    for name, wanted in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        if parts[name][-1] != wanted:
            raise UserError(
                f"{OPTION}: the {name} of {path} is a {parts[name][-1]}, not a {wanted}, and cannot be used."
            )


def _text_encoders(index: Mapping[str, Any]) -> list[str]:
    return [name for name in ("text_encoder", "text_encoder_2") if index.get(name, [None])[0] is not None]


def _base_text_options(index: Mapping[str, Any]) -> BaseTextOptions:
    """SDXL uses the penultimate layer, and its index says whether no prompt is zeros."""
    if not str(index.get("_class_name")).startswith(XL):
        return BaseTextOptions()
    return BaseTextOptions("penultimate", bool(index.get("force_zeros_for_empty_prompt", True)))


def _load(model_class: Any, path: str, part: str, source: Mapping[str, Any]) -> Any:
    return load_complete(model_class, path, f"{OPTION}: the {part} of {path}", LOAD_REMEDY, subfolder=part, **source)


def _check(found: StableDiffusion, path: str) -> None:
    """Raises UserError for parts that do not fit each other, with the differing sizes."""
    check_plain_unet(found.unet)
    unet, vae = found.unet.config, found.autoencoder.config
    wrong = []
    if unet.in_channels != vae.latent_channels:
        wrong.append(f"unet conv_in takes {unet.in_channels} channels, the vae makes {vae.latent_channels}")
    if unet.out_channels != vae.latent_channels:
        wrong.append(f"unet conv_out makes {unet.out_channels} channels, the vae takes {vae.latent_channels}")
    for encoder, tokenizer in zip(found.encoders, found.tokenizers, strict=True):
        if len(tokenizer) > encoder.config.vocab_size:
            wrong.append(f"the tokenizer knows {len(tokenizer)} tokens, its text encoder {encoder.config.vocab_size}")
    contexts = sorted({context_tokens(encoder) for encoder in found.encoders})
    if len(contexts) > 1:
        wrong.append(f"the text encoders read {' and '.join(map(str, contexts))} tokens")
    if found.encoders:
        width = sum(encoder.config.hidden_size for encoder in found.encoders)
        if width != unet.cross_attention_dim:
            wrong.append(f"unet cross_attention_dim is {unet.cross_attention_dim}, the text encoders give {width}")
        if unet.addition_embed_type == "text_time":
            last = found.encoders[-1].config
            wanted = unet.projection_class_embeddings_input_dim - 6 * unet.addition_time_embed_dim
            if last.projection_dim != wanted:
                wrong.append(
                    f"unet add_embedding takes {wanted} pooled values, the last text encoder gives"
                    f" {last.projection_dim}"
                )
    if wrong:
        raise UserError(
            f"{OPTION}: the parts of {path} do not fit each other: {'; '.join(wrong)}; name a plain text-to-image model"
            " whose parts belong together (inpainting models take more channels)."
        )


def _load_errors(path: str, part: str) -> AbstractContextManager[None]:
    """Inside the block a part that diffusers or transformers cannot load raises UserError."""
    return user_errors(f"{OPTION}: the {part} of {path}", unreadable=LOAD_REMEDY)
