"""The components of the text side, and how each is trained: frozen, through adapters or in full, phase by phase.

    vision_tower -> projector -+
                               +-> lvlm -> composition <- spelling
    (v of L_align)

A vision encoder of its own (`lvlm.vision_path`) is none of them: it is always frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import nn

from vlad.config.training import COMPONENTS, Component, Training
from vlad.models.composition import TextSide


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's matrix."""
    return ".lora_" in name


def component_of(name: str, text_side: TextSide) -> Component | None:
    """The component of a parameter of the text side, by its name there; None for what is always frozen.

    That is a vision encoder of its own, and a base's own text encoders.
    """
    name = name.replace("base_model.model.", "")  # peft's wrapper
    if name.startswith("composition."):
        return "spelling" if name.startswith("composition.spelling_encoder.") else "composition"
    if name.startswith(("lvlm.vision.", "base_encoders.")):
        return None
    inner = name.removeprefix("lvlm.model.")
    family = text_side.lvlm.family
    projectors = family.projector or family.vision[1:]
    if any(inner == module or inner.startswith(f"{module}.") for module in projectors):
        return "projector"
    if any(inner == module or inner.startswith(f"{module}.") for module in family.vision):
        return "vision_tower"
    return "lvlm"


def parameters_read(text_side: TextSide, aligned: bool) -> frozenset[str]:
    """The names of the text side's parameters that t, and with L_align v, depends on.

    Vision towers hold layers that nothing here uses.
    """
    of_lvlm = {f"lvlm.{name}" for name in text_side.lvlm.parameters_used(with_images=aligned)}
    names = (name for name, _ in text_side.named_parameters())
    return frozenset(name for name in names if not name.startswith("lvlm.") or name in of_lvlm)


def trained_names(
    text_side: TextSide, modes: Sequence[dict[Component, Training]], read: Collection[str]
) -> frozenset[str]:
    """The names of the text side's parameters that any of `modes` trains, of those that are `read`."""
    found = set()
    for name in read:
        component = component_of(name, text_side)
        if component is None:
            continue
        wanted: Training = "lora" if is_adapter(name) else "full"
        if any(mode[component] == wanted for mode in modes):
            found.add(name)
    return frozenset(found)


def linear_modules(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """The names of the linear and convolution layers that can carry adapters.

    Not those inside torch's own attention, which takes their weights and bypasses adapters.
    """
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, nn.MultiheadAttention):
            continue
        if isinstance(child, nn.Linear | nn.Conv2d):
            yield path
        else:
            yield from linear_modules(child, f"{path}.")


def component_table(
    text_side: TextSide, modes: dict[Component, Training], rates: dict[Component, float | None], read: Collection[str]
) -> list[tuple[str, str, int, int, float | None]]:
    """Rows: component, how it is trained, its parameters, how many of them are trained, its learning rate."""
    trained = trained_names(text_side, [modes], read)
    totals: dict[Component, int] = dict.fromkeys(COMPONENTS, 0)
    moving: dict[Component, int] = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in text_side.named_parameters():
        component = component_of(name, text_side)
        if component is not None:
            totals[component] += parameter.numel()
            moving[component] += parameter.numel() * (name in trained)
    return [(name, modes[name], totals[name], moving[name], rates[name]) for name in COMPONENTS if totals[name]]
