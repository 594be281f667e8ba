"""Injecting LoRA adapters into a module through peft (arXiv 2106.09685).

peft is imported inside the functions: a run or a pipeline without adapters does not load it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from vlad.lora.fingerprint import module_fingerprint
from vlad.lora.options import LoraOptions
from vlad.lora.quantise import quantise
from vlad.utils.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

SAMPLED_WEIGHTS_PER_LAYER = 16


@dataclass(frozen=True)
class BaseModel:
    """The module that an adapter is trained on, as it was before quantisation."""

    id: str
    revision: str | None
    fingerprint: str
    # A few weights of every layer that could be adapted, by its name.
    sampled_weights: dict[str, list[float]]


def add_adapter(
    module: nn.Module,
    options: LoraOptions,
    targets: tuple[str, ...],
    base_id: str,
    revision: str | None = None,
    allowed: Collection[str] | None = None,
    extra: Collection[str] = (),
) -> PeftModel:
    """The module with new adapters on its `targets`, everything else frozen. B starts at zero: outputs do not change.

    `allowed`: the names of the modules that may be adapted; None for all. `extra`: modules to adapt besides the
    targets. Raises UserError for a target that matches no module.
    """
    from peft import LoraConfig, get_peft_model

    modules = dict(module.named_modules())
    names = [
        name
        for name, child in modules.items()
        if isinstance(child, nn.Linear | nn.Conv2d) and (allowed is None or name in allowed)
    ]
    if targets or not extra:
        match_targets(names, targets)
    sampled = {name: sample_weights(modules[name].weight) for name in (*names, *extra)}
    base = BaseModel(base_id, revision, module_fingerprint(module), sampled)
    if options.base_bits is not None:
        quantise(module, options.base_bits)
    chosen = [name for name in names if any(_matches(name, target) for target in targets)] + sorted(extra)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        use_dora=options.dora,
        target_modules=list(targets) if allowed is None and not extra else chosen,
        revision=revision,
    )
    model = get_peft_model(module, config)
    config.base_model_name_or_path = base_id  # only now: get_peft_model has just set the module's own name
    model.trained_on = base
    return model


def base_of(model: PeftModel) -> BaseModel:
    """The base of a model that `add_adapter` made."""
    base: BaseModel = model.trained_on
    return base


def has_adapter(module: nn.Module | None) -> TypeGuard[PeftModel]:
    """Whether the module carries adapters."""
    peft = sys.modules.get("peft")  # as long as peft is not loaded, nothing can
    return peft is not None and isinstance(module, peft.PeftModel)


def adapted_layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    """The layers with adapters, by their names in the base."""
    from peft.tuners.lora import LoraLayer

    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def untrained_targets(model: PeftModel) -> list[str]:
    """The targets, by the last part of their names, whose B matrices are all zero."""
    trained: dict[str, bool] = {}
    for name, value in model.state_dict().items():
        if ".lora_B." in name:
            target = name.split(".lora_B.")[0].rpartition(".")[2]
            trained[target] = trained.get(target, False) or bool(value.any())
    return [target for target, is_trained in trained.items() if not is_trained]


def match_targets(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The names that some target matches. Raises UserError, listing the candidates, for a target that matches none."""
    wrong = [target for target in targets if not any(_matches(name, target) for name in names)]
    if wrong or not targets:
        candidates = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise UserError(
            f"lora: no module matches {', '.join(wrong) or 'an empty list'}; this model has {', '.join(candidates)}."
        )
    return [name for name in names if any(_matches(name, target) for target in targets)]


def _matches(name: str, target: str) -> bool:
    """Whether a module's name is a target's, or ends with it."""
    return name == target or name.endswith(f".{target}")


def sample_weights(weight: Tensor) -> list[float]:
    """SAMPLED_WEIGHTS_PER_LAYER values at equal distances in a weight matrix."""
    weight = weight.detach().flatten()
    places = torch.linspace(0, weight.numel() - 1, SAMPLED_WEIGHTS_PER_LAYER, dtype=torch.float64).long()
    return weight[places.to(weight.device)].float().tolist()
