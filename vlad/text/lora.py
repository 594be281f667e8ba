"""LoRA adapters through peft, on the LVLM and on the UNets. The only room that imports peft."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn

from vlad.errors import UserError

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

    Raises UserError when no module matches.
    """
    names = [name for name, child in module.named_modules() if isinstance(child, nn.Linear | nn.Conv2d)]
    if not any(name == target or name.endswith(f".{target}") for name in names for target in targets):
        candidates = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise UserError(f"lora: no module matches {', '.join(targets)}; this model has {', '.join(candidates)}.")
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(targets),
        base_model_name_or_path=base_id,
    )
    return get_peft_model(module, config)


def save_adapter(model: PeftModel, directory: Path) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, reads them back and compares.

    A round trip that is not exact, or an adapter whose B matrices are all zero, is a bug of ours and raises.
    """
    model.save_pretrained(str(directory))
    trained = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    with safe_open(str(directory / "adapter_model.safetensors"), framework="pt") as stored:
        keys = {key.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): key for key in stored.keys()}  # noqa: SIM118
        assert keys.keys() == trained.keys(), "the adapter on disk has other keys than the trained one"
        for name, key in keys.items():
            assert torch.equal(stored.get_tensor(key), trained[name].cpu()), f"{name} differs on disk"
    assert any(value.abs().max() > 0 for name, value in trained.items() if "lora_B" in name), "nothing was trained"


def load_adapter(module: nn.Module, directory: Path) -> nn.Module:
    """The module with the adapter of `directory` merged into its weights.

    Raises UserError when the folder holds no adapter, or one made for other shapes.
    """
    if not (directory / "adapter_config.json").is_file():
        raise UserError(f"There is no adapter in {directory}; give the adapter folder of a LoRA run.")
    try:
        model = PeftModel.from_pretrained(module, str(directory))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The adapter in {directory} does not fit this model ({str(error).splitlines()[0]}); load it onto the"
            f" base it was trained on: {adapter_base(directory)}."
        ) from error
    return model.merge_and_unload()


def adapter_base(directory: Path) -> str:
    """The id of the model that the adapter was trained on."""
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    return str(config.get("base_model_name_or_path"))
