"""LoRA adapters through peft, on the LVLM and on the UNets. The only room that imports peft."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import nn

from vlad.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # the names that peft gives them
# The matrices that are adapted where the options name none: attention, in the LVLM's and in diffusers' spelling.
LVLM_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters W + (alpha / rank) B A."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    lvlm_targets: tuple[str, ...] = LVLM_TARGETS
    unet_targets: tuple[str, ...] = UNET_TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise UserError("lora: rank must be at least 1, alpha positive and dropout in [0, 1).")


def add_adapter(module: nn.Module, options: LoraOptions, targets: tuple[str, ...], base_id: str) -> PeftModel:
    """The module with fresh adapters on its `targets`; all else is frozen. B starts at zero: nothing changes yet.

    Raises UserError when a target matches no module.
    """
    names = [name for name, child in module.named_modules() if isinstance(child, nn.Linear | nn.Conv2d)]
    wrong = [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in names)]
    if wrong or not targets:
        candidates = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise UserError(
            f"lora: no module matches {', '.join(wrong) or 'an empty list'}; this model has {', '.join(candidates)}."
        )
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
        lora_dropout=options.dropout,
        target_modules=list(targets),
    )
    model = get_peft_model(module, config)
    config.base_model_name_or_path = base_id  # only now: peft has just put the module's own name there
    return model


def save_adapter(model: PeftModel, directory: Path) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, reads them back and compares.

    A round trip that is not exact, or an adapter whose B matrices are all zero, is a bug of ours and raises.
    """
    # peft would ask the hub whether the base's vocabulary has grown; embeddings are never adapted here.
    model.save_pretrained(str(directory), save_embedding_layers=False)
    trained = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    keys = _stored_names(directory)
    with safe_open(str(directory / WEIGHTS), framework="pt") as stored:
        assert keys.keys() == trained.keys(), "the adapter on disk has other keys than the trained one"
        for name, key in keys.items():
            assert torch.equal(stored.get_tensor(key), trained[name].cpu()), f"{name} differs on disk"
    assert any(value.abs().max() > 0 for name, value in trained.items() if "lora_B" in name), "nothing was trained"


def load_adapter(module: nn.Module, directory: Path) -> nn.Module:
    """The module with the adapter of `directory` merged into its weights.

    Raises UserError when the folder holds no adapter, or one whose tensors are not exactly those that fit.
    """
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise UserError(
                f"There is no adapter in {directory} ({name} is missing); give the adapter folder of a LoRA run."
            )
    remedy = f"load it onto the base it was trained on: {adapter_base(directory)}"
    try:
        model = PeftModel.from_pretrained(module, str(directory))
        stored = _stored_names(directory).keys()
    except (RuntimeError, ValueError, TypeError, SafetensorError) as error:
        reason = str(error).splitlines()[-1].strip()  # torch's first line is only a head
        raise UserError(f"The adapter in {directory} does not fit this model ({reason}); {remedy}.") from error
    # peft only warns of what is missing, and leaves out what it does not know.
    wanted = {name for name in model.state_dict() if "lora_" in name}
    if differing := sorted(stored ^ wanted):
        side = "not in the adapter" if differing[0] in wanted else "not in this model"
        raise UserError(
            f"The adapter in {directory} does not fit this model: {len(differing)} tensors differ, the first is"
            f" {differing[0]} ({side}); {remedy}."
        )
    return model.merge_and_unload()


def merged(module: nn.Module) -> nn.Module:
    """The module with its adapters merged into a copy of its weights; without adapters, the module itself."""
    return copy.deepcopy(module).merge_and_unload() if isinstance(module, PeftModel) else module


def adapter_base(directory: Path) -> str:
    """The id of the model that the adapter was trained on. Raises UserError when its config cannot be read."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{directory / CONFIG} is not an adapter's config; give the folder of a LoRA run.") from error


def _stored_names(directory: Path) -> dict[str, str]:
    """The model's names of the tensors on disk, each with its name in the file (peft leaves the adapter's own out)."""
    with safe_open(str(directory / WEIGHTS), framework="pt") as stored:
        names = list(stored.keys())
    return {
        name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): name for name in names
    }
