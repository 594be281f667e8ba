"""The components of the text side, and how each is trained: frozen, through adapters or in full, phase by phase.

    vision_tower -> projector -+
                               +-> lvlm -> composition <- spelling
    (v of L_align)

A vision encoder of its own (`lvlm.vision_path`) is none of them: it is always frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from torch import nn

from vlad.errors import UserError
from vlad.text.composition import TextSide

Component = Literal["vision_tower", "projector", "lvlm", "composition", "spelling"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
Training = Literal["frozen", "lora", "full"]


@dataclass(frozen=True)
class ComponentRates:
    """A learning rate of a component's own; None: the stage's."""

    vision_tower: float | None = None
    projector: float | None = None
    lvlm: float | None = None
    composition: float | None = None
    spelling: float | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            rate = getattr(self, entry.name)
            if rate is not None and not rate > 0:
                raise UserError(f"trainable.learning_rates.{entry.name} must be positive, not {rate}.")


@dataclass(frozen=True)
class Phase:
    """What is trained until a step; a component that is not named is trained as outside of phases.

    Steps are counted over all stages that train the text side. Only the last phase has no `until_step`.
    """

    until_step: int | None = None
    vision_tower: Training | None = None
    projector: Training | None = None
    lvlm: Training | None = None
    composition: Training | None = None
    spelling: Training | None = None


@dataclass(frozen=True)
class TrainableOptions:
    """How each component of the text side is trained.

    None is `full`, for the vision tower and the projector only where the LVLM is `full`, too, else `frozen`. In a run
    that makes an adapter (`base` with `lora`) it is `lora` for the LVLM and `frozen` for the rest.
    """

    vision_tower: Training | None = None
    projector: Training | None = None
    lvlm: Training | None = None
    composition: Training | None = None
    spelling: Training | None = None
    learning_rates: ComponentRates = field(default_factory=ComponentRates)
    phases: list[Phase] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", tuple(self.phases))
        ends = [phase.until_step for phase in self.phases]
        steps = [step for step in ends[:-1] if step is not None]
        if len(steps) < len(ends[:-1]) or (ends and ends[-1] is not None):
            raise UserError("trainable.phases: every phase but the last needs until_step, and the last has none.")
        if steps != sorted(set(steps)) or (steps and steps[0] < 1):
            raise UserError(f"trainable.phases: until_step must rise from phase to phase, from 1 on, not {steps}.")

    def resolved(self, makes_adapter: bool) -> TextTraining:
        """The options as they hold for a run. Raises UserError for `full` in a run that makes an adapter."""
        phases = [(phase.until_step, self._modes(phase, makes_adapter)) for phase in self.phases or [Phase()]]
        training = TextTraining(tuple(phases), {name: getattr(self.learning_rates, name) for name in COMPONENTS})
        if makes_adapter and (full := training.components("full")):
            raise UserError(
                f"trainable.{full[0]}: full does not go with lora on a base, whose result is an adapter; set it to lora"
                " or frozen, or leave lora out."
            )
        return training

    def _modes(self, phase: Phase, makes_adapter: bool) -> dict[Component, Training]:
        asked = {name: getattr(phase, name) or getattr(self, name) for name in COMPONENTS}
        lvlm: Training = asked["lvlm"] or ("lora" if makes_adapter else "full")
        eyes: Training = "full" if lvlm == "full" else "frozen"
        rest: Training = "frozen" if makes_adapter else "full"
        defaults = {"lvlm": lvlm, "vision_tower": eyes, "projector": eyes}
        return {name: asked[name] or defaults.get(name, rest) for name in COMPONENTS}


@dataclass(frozen=True)
class TextTraining:
    """The phases of a run, each with its last step (None: to the end) and what it does with each component."""

    phases: tuple[tuple[int | None, dict[Component, Training]], ...]
    learning_rates: dict[Component, float | None]

    def phase_at(self, step: int) -> int:
        """The number of the phase that an optimiser step (from 0) falls into."""
        return next(n for n, (until, _) in enumerate(self.phases) if until is None or step < until)

    def components(self, how: Training) -> list[Component]:
        """The components that are trained so in some phase."""
        return [name for name in COMPONENTS if any(modes[name] == how for _, modes in self.phases)]

    @property
    def is_frozen(self) -> bool:
        """Whether nothing is ever trained."""
        return not self.components("full") and not self.components("lora")


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
    if name.startswith(("lvlm.vision.", "own.")):
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
    """The names of the text side's parameters that t, and with L_align v, depends on: towers hold layers that nobody
    reads here."""
    of_lvlm = {f"lvlm.{name}" for name in text_side.lvlm.parameters_read(with_pictures=aligned)}
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
    """The names of the linear and convolution layers that adapters can go on.

    Not those inside torch's own attention: it takes their weights and passes adapters by.
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
    """Rows for a person: component, how it is trained, its parameters, how many of them are, its learning rate."""
    trained = trained_names(text_side, [modes], read)
    totals: dict[Component, int] = dict.fromkeys(COMPONENTS, 0)
    moving: dict[Component, int] = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in text_side.named_parameters():
        component = component_of(name, text_side)
        if component is not None:
            totals[component] += parameter.numel()
            moving[component] += parameter.numel() * (name in trained)
    return [(name, modes[name], totals[name], moving[name], rates[name]) for name in COMPONENTS if totals[name]]
