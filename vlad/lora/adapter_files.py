"""LoRA adapter files in peft's format: saving with verification, loading onto the right base, export for diffusers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from vlad.lora.fingerprint import module_fingerprint
from vlad.lora.inject import adapted_layers, base_of, sample_weights, untrained_targets
from vlad.utils.errors import UserError
from vlad.utils.json_objects import parse_object, read_object

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names
# Ours: sampled weights of the base. peft records the base's name, but a folder of that name can hold other weights.
BASE_WEIGHTS = "base_marks.json"
METADATA_KEY = "vlad"  # our entry in the metadata of a safetensors file
DIFFUSERS_WEIGHTS, DIFFUSERS_OPTIONS = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"
VERIFIED = "proof"  # the name of the adapter that is loaded again beside the trained one, "default"


def save_adapter(model: PeftModel, directory: Path, metadata: dict[str, Any] | None = None) -> None:
    """Writes the adapter in peft's format and verifies that it loads as it was trained.

    `adapter_config.json` (base model and revision inside), `adapter_model.safetensors` with the base's fingerprint and
    `metadata` (plain values) as JSON under "vlad", and `base_marks.json`, a few weights of every adapted layer. The
    files are loaded into new layers beside the trained ones: all keys, all tensors and the outputs for random input
    have to be equal. Raises RuntimeError otherwise, and when the B matrices of a target are all zero: it is untrained.
    """
    # peft would ask the hub whether the base's vocabulary has grown; embeddings are never adapted here.
    model.save_pretrained(str(directory), save_embedding_layers=False)
    base = base_of(model)
    sampled = {name: base.sampled_weights[name] for name, _ in adapted_layers(model)}
    _add_metadata(
        directory / WEIGHTS,
        {"base": base.id, "revision": base.revision, "fingerprint": base.fingerprint, **(metadata or {})},
    )
    (directory / BASE_WEIGHTS).write_text(json.dumps(sampled, indent=1), encoding="utf-8")
    trained = {name: value for name, value in model.state_dict().items() if _is_adapter_key(name)}
    keys = _keys_in_file(directory)
    if keys.keys() != trained.keys():
        raise RuntimeError(f"{directory} has other keys than the trained adapter: {_listed(keys.keys() ^ trained)}")
    with safe_open(str(directory / WEIGHTS), framework="pt") as file:
        differing = [name for name, key in keys.items() if not torch.equal(file.get_tensor(key), trained[name].cpu())]
    if differing:
        raise RuntimeError(f"{directory} does not hold what was trained: {_listed(differing)} differ")
    if untrained := untrained_targets(model):
        raise RuntimeError(f"nothing was trained: the B matrices of {_listed(untrained)} are all zero")
    _verify_outputs(model, directory)


def _add_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Adds plain values as JSON to the metadata of a safetensors file."""
    with safe_open(str(path), framework="pt") as file:
        head = file.metadata() or {}
    save_file(load_file(path), path, {**head, METADATA_KEY: json.dumps(metadata)})


def adapter_metadata(directory: Path) -> dict[str, Any]:
    """The metadata that `save_adapter` wrote into an adapter's file; empty for a file that peft alone wrote."""
    with safe_open(str(directory / WEIGHTS), framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA_KEY, "{}")
    try:
        return parse_object(text)
    except ValueError:
        return {}


def adapter_base(directory: Path) -> str:
    """The id of the model that the adapter was trained on. Raises UserError when its config cannot be read."""
    try:
        return str(read_object(directory / CONFIG)["base_model_name_or_path"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{directory / CONFIG} is not an adapter's config; give the folder of a LoRA run.") from error


def save_for_diffusers(model: PeftModel, directory: Path) -> None:
    """Writes a saved UNet adapter again for `load_lora_weights` and `load_lora_adapter` of diffusers: keys that begin
    with "unet." in one file, the adapter's options in its metadata."""
    config = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in model.peft_config["default"].to_dict().items()
    }
    tensors = {
        f"unet.{name.removeprefix('base_model.model.')}": value
        for name, value in load_file(directory / WEIGHTS).items()
    }
    options = json.dumps({f"unet.{name}": value for name, value in config.items()}, default=str)
    save_file(tensors, directory / DIFFUSERS_WEIGHTS, {"format": "pt", DIFFUSERS_OPTIONS: options})


@torch.no_grad()
def _verify_outputs(model: PeftModel, directory: Path) -> None:
    """Loads the adapter into new layers on the same base and compares each layer's outputs; then removes them.

    Leaves the model as it was: random state, train and eval modes, requires_grad.
    """
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    with torch.random.fork_rng():
        model.load_adapter(str(directory), adapter_name=VERIFIED, torch_device=str(next(model.parameters()).device))
        model.eval()
        differing = []
        for name, layer in adapted_layers(model):
            base = layer.get_base_layer()
            shape = (2, base.in_features) if isinstance(base, nn.Linear) else (1, base.in_channels, 8, 8)
            # Quantised weights are no numbers to compute with.
            dtype = base.weight.dtype if base.weight.is_floating_point() else torch.float32
            x = torch.randn(shape, device=base.weight.device, dtype=dtype)
            outputs = []
            for adapter in ("default", VERIFIED):
                layer.set_adapter(adapter)
                outputs.append(layer(x))
            layer.set_adapter("default")
            if not torch.equal(*outputs):
                differing.append(name)
        model.delete_adapter(VERIFIED)
        model.set_adapter("default")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(requires_grad[name])
    for name, module in model.named_modules():
        module.training = modes[name]
    if differing:
        raise RuntimeError(f"the adapter in {directory} gives other outputs than the trained one: {_listed(differing)}")


def attach_adapter(module: nn.Module, directory: Path) -> PeftModel:
    """The module with the adapter of `directory` attached, not merged (`merge_adapter()`, `merge_and_unload()`).

    Raises UserError when the folder holds no adapter, or one whose tensors or whose base do not match this module
    exactly, with what differs.
    """
    from peft import PeftModel

    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise UserError(
                f"There is no adapter in {directory} ({name} is missing); give the adapter folder of a LoRA run."
            )
    remedy = f"load it onto the base it was trained on: {adapter_base(directory)}"
    fingerprint = None if (directory / BASE_WEIGHTS).is_file() else module_fingerprint(module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft still asks transformers by an older name
            model = PeftModel.from_pretrained(module, str(directory))
        found = _keys_in_file(directory).keys()
    except Exception as error:  # of torch, peft and safetensors; wrong types in the config raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()  # torch's first line is only a heading
        raise UserError(f"The adapter in {directory} does not fit this model ({reason}); {remedy}.") from error
    # peft only warns of missing keys, and ignores unknown ones.
    wanted = {name for name in model.state_dict() if _is_adapter_key(name)}
    if differing := sorted(found ^ wanted):
        model.unload()  # peft has put its layers into the module itself
        sides = [f"{name} ({'not in the adapter' if name in wanted else 'not in this model'})" for name in differing]
        raise UserError(
            f"The adapter in {directory} does not fit this model: {len(differing)} tensors differ:"
            f" {_listed(sides)}; {remedy}."
        )
    try:
        _check_base(model, directory, fingerprint, remedy)
    except UserError:
        model.unload()
        raise
    return model


def _check_base(model: PeftModel, directory: Path, fingerprint: str | None, remedy: str) -> None:
    """Raises UserError when the adapter was trained on other weights than the model's.

    Weights are other ones where they are a 64th apart: a base in half precision is the same base. `fingerprint`: the
    model's, where the adapter has lost its sampled weights.
    """
    path = directory / BASE_WEIGHTS
    if fingerprint is not None:
        # peft alone writes no fingerprint: its keys have to do.
        wanted = adapter_metadata(directory).get("fingerprint", fingerprint)
        if fingerprint != wanted:
            raise UserError(
                f"The adapter in {directory} was trained on another base than this model (fingerprint {wanted}, not"
                f" {fingerprint}), or on the same base in another precision: {BASE_WEIGHTS}, which would show that, is"
                f" missing; copy the whole folder, and {remedy}."
            )
        return
    try:
        sampled = {name: [float(value) for value in row] for name, row in read_object(path).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged; copy the adapter's folder again.") from error
    differing = []
    for name, layer in adapted_layers(model):
        now, before = torch.tensor(sample_weights(layer.get_base_layer().weight)), torch.tensor(sampled.get(name, []))
        if now.shape != before.shape or (now - before).abs().max() > before.abs().max() / 64:
            differing.append(name)
    if differing:
        raise UserError(
            f"The adapter in {directory} was trained on other weights than this model's: {len(differing)} layers"
            f" differ: {_listed(differing)}; {remedy}."
        )


def _is_adapter_key(name: str) -> bool:
    return ".lora_" in name


def _keys_in_file(directory: Path) -> dict[str, str]:
    """The model's keys of the tensors on disk, each with its key in the file (peft leaves out the adapter's name)."""
    with safe_open(str(directory / WEIGHTS), framework="pt") as file:
        keys = list(file.keys())
    return {
        key.replace(".lora_A.", ".lora_A.default.")
        .replace(".lora_B.", ".lora_B.default.")
        .replace(".lora_magnitude_vector", ".lora_magnitude_vector.default.weight"): key
        for key in keys
    }


def _listed(names: Iterable[str], most: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
