"""Memory plan: an estimate of a stage's memory on the device before it starts, and options that make it fit.

    weights      everything that a stage moves to the device, in the precision in which it is stored
    gradients    of trained parameters, float32
    optimiser    AdamW's two moments of each
    averages     EMA of trained parameters, unless it is kept in main memory
    activations  what the UNet's forward and backward pass need beside all that (memory_trace.py), and what the text
                 side keeps for its own, measured on one prompt

The first four are counted, the fifth is traced on the UNet's own operations. A GPU's context is assumed. Ranks that
share a run's weights hold a part each of what is sharded; the blocks that one gathers for a moment are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vlad.config.schema import Config
from vlad.config.training import OptimOptions
from vlad.models.autoencoder import spatial_factor
from vlad.models.text_encoder.base_encoders import context_tokens
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.training.build import needs_vision_tower
from vlad.training.build_stage import trains_text
from vlad.training.fsdp import sharded_parameters
from vlad.training.memory_trace import StepShape, saved_bytes, traced_encoding_bytes, traced_step_bytes
from vlad.training.parts import Parts
from vlad.training.trainable import parameters_read, trained_names

GB = 1e9
CONTEXT_BYTES = 600_000_000  # CUDA's context and its libraries' workspaces: assumed
TOKENS = 96  # of t, the CCM's and the letters': what a prompt with a few strings has
PROMPT = 'a hand-painted shop sign that says "FRESH BREAD" in white letters above a door, and "OPEN" below it'
NOTHING_TO_PLAN = 100_000_000  # parameters of a UNet: smaller models fit anywhere, and a plan would cost them seconds


@dataclass(frozen=True)
class MemoryOptions:
    """The options that change the memory of a stage and not its model."""

    batch: int
    accumulate: int
    autocast: torch.dtype | None
    frozen: torch.dtype | None
    recompute: bool
    moment_bytes: int  # of both of AdamW's moments, a trained value
    average_on_cpu: bool
    base_bits: int | None
    ranks: int = 1  # that share what is sharded

    @staticmethod
    def of(config: Config, name: str, ranks: int = 1, precision: str | None = None) -> MemoryOptions:
        """Those of a config's stage; `precision`: the one that the stage runs in here, None: the config's."""
        optim: OptimOptions = getattr(config.train, name)
        precision = str(precision or optim.precision or config.trainer.precision)
        autocast = {"bf16": torch.bfloat16, "16-m": torch.float16}.get(precision[:4])
        recompute = config.trainer.activation_checkpointing in ("unets", "all")
        return MemoryOptions(
            config.data.batch_size,
            optim.accumulate_batches,
            autocast,
            torch.bfloat16 if precision == "bf16-true" else None,
            recompute,
            _moment_bytes(optim),
            optim.ema_on_cpu,
            getattr(config.lora, "base_bits", None),
            ranks,
        )


@dataclass(frozen=True)
class StagePlan:
    """Bytes of a stage on the device."""

    name: str
    weights: int
    gradients: int
    optimiser: int
    averages: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.averages + self.activations


@dataclass(frozen=True)
class PlanRow:
    """A row of the table: the options that make a stage smaller, and its plan with them."""

    options: str
    plan: StagePlan


class Traces:
    """Traced bytes of a stage: each shape is traced once, however many plans need it."""

    def __init__(self) -> None:
        self._bytes: dict[Hashable, int] = {}

    def of(self, shape: Hashable, trace: Callable[[], int]) -> int:
        """The bytes of a shape, traced at its first call."""
        if shape not in self._bytes:
            self._bytes[shape] = trace()
        return self._bytes[shape]


def is_packed(parts: Parts) -> bool:
    """Whether a UNet's matrices are quantised: their operations run on a GPU alone and cannot be traced."""
    unets = [unet for unet in (parts.layout_unet, parts.refine_unet) if unet is not None]
    return any(not parameter.is_floating_point() for unet in unets for parameter in unet.parameters())


def plan_stage(
    config: Config, parts: Parts, name: str, options: MemoryOptions | None = None, traces: Traces | None = None
) -> StagePlan:
    """The plan of the stage `layout` or `refine` on one rank, of parts as `build_parts` makes them.

    `traces`: of earlier plans of the same stage.
    """
    options, traces = options or MemoryOptions.of(config, name), traces or Traces()
    unet = parts.layout_unet if name == "layout" else parts.refine_unet
    assert unet is not None
    trained = _trained(config, parts, name)
    shares = {} if options.ranks == 1 else dict.fromkeys(sharded_parameters(unet, parts.text_side), options.ranks)
    gradients = sum(parameter.numel() * 4 // shares.get(key, 1) for key, parameter in trained.items())
    modules: list[nn.Module] = [parts.autoencoder, parts.text_side, parts.alignment, unet]
    weights = sum(_stored_bytes(module, options, trained.keys(), module is unet, shares) for module in modules)
    averages = 0 if options.average_on_cpu else gradients * _averages(getattr(config.train, name))
    unet_gradients = sum(parameter.numel() * 4 for parameter in unet.parameters() if parameter.requires_grad)
    width, height = _largest(config)
    shape = _step_shape(config, parts, options)
    activations = traces.of(shape, lambda: traced_step_bytes(unet, shape)) - unet_gradients
    if text := {key for key, parameter in parts.text_side.named_parameters() if id(parameter) in trained}:
        activations += options.batch * traces.of("text", lambda: _text_bytes(parts, text))
    # Not at once: encoding comes before, and AdamW's step, which makes a value for each that is trained, after.
    encoding = traces.of(
        ("encoding", options.batch),
        lambda: traced_encoding_bytes(parts.autoencoder, options.batch, height, width),
    )
    optimiser = gradients // 4 * options.moment_bytes
    return StagePlan(name, weights, gradients, optimiser, averages, max(activations, encoding, gradients))


def checkpoint_bytes(trained: int, optim: OptimOptions) -> int:
    """Bytes on disk of a checkpoint of so many trained parameters: weights, moments, averages."""
    return trained * (4 + _moment_bytes(optim) + 4 * _averages(optim))


def ways_to_fit(config: Config, parts: Parts, name: str, room_bytes: int | None, ranks: int = 1) -> list[PlanRow]:
    """The stage as configured, then with one more option that makes it smaller at a time, until it fits.

    room_bytes: of the device; None: all of them. `ranks` share what is sharded.
    """
    now, traces = MemoryOptions.of(config, name, ranks), Traces()
    rows = [PlanRow("as configured", plan_stage(config, parts, name, now, traces))]
    for options, change in _changes(config, name, now):
        if room_bytes is not None and rows[-1].plan.total + CONTEXT_BYTES <= room_bytes:
            break
        now = replace(now, **change)
        rows.append(PlanRow(f"+ {options}", plan_stage(config, parts, name, now, traces)))
    return rows


def _changes(config: Config, name: str, now: MemoryOptions) -> Iterator[tuple[str, dict[str, Any]]]:
    """Options that make a stage smaller, the cheapest first."""
    if now.autocast is None and torch.cuda.is_available():
        yield "trainer.precision=bf16-mixed", {"autocast": torch.bfloat16}
    if now.batch > 1:
        whole = now.batch * now.accumulate
        yield f"data.batch_size=1 train.{name}.accumulate_batches={whole}", {"batch": 1, "accumulate": whole}
    if not now.recompute:
        yield "trainer.activation_checkpointing=unets", {"recompute": True}
    if not now.average_on_cpu:
        yield f"train.{name}.ema_on_cpu=true", {"average_on_cpu": True}
    if now.frozen is None and now.autocast is torch.bfloat16:
        yield "trainer.precision=bf16-true", {"frozen": torch.bfloat16}
    if now.moment_bytes > 2 and now.ranks == 1:  # 8-bit moments do not know shards
        yield f"train.{name}.optimizer=adamw-8bit", {"moment_bytes": 2}
    if config.lora is not None and now.base_bits is None:
        yield "lora.base_bits=4", {"base_bits": 4}


def plan_table(rows: Sequence[PlanRow], room_bytes: int | None) -> str:
    """The rows as a table in GB; the last column says whether a plan fits."""
    heads = ("weights", "gradients", "optimiser", "averages", "activations", "all")
    width = max(len(row.options) for row in rows)
    lines = [f"{rows[0].plan.name:{width}}  " + "  ".join(f"{head:>11}" for head in heads)]
    for row in rows:
        plan = row.plan
        numbers = (plan.weights, plan.gradients, plan.optimiser, plan.averages, plan.activations, plan.total)
        line = f"{row.options:{width}}  " + "  ".join(f"{number / GB:>11.2f}" for number in numbers)
        if room_bytes is not None:
            line += "  fits" if plan.total + CONTEXT_BYTES <= room_bytes else "  does not fit"
        lines.append(line)
    return "\n".join(lines)


def device_bytes() -> int | None:
    """The memory of the GPU that would train; None without one."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def memory_line(config: Config, parts: Parts, stages: Sequence[str], ranks: int = 1) -> str | None:
    """One line on the stage that needs most memory; None for small models and for quantised ones.

    `ranks` share what is sharded.
    """
    planned = [name for name in stages if name in ("layout", "refine")]
    size = sum(p.numel() for p in parts.refine_unet.parameters())
    if not planned or size < NOTHING_TO_PLAN or is_packed(parts):
        return None
    plans = [plan_stage(config, parts, name, MemoryOptions.of(config, name, ranks)) for name in planned]
    plan = max(plans, key=lambda plan: plan.total)
    room = device_bytes()
    line = (
        f"memory: about {(plan.total + CONTEXT_BYTES * (room is not None)) / GB:.1f} GB in the stage {plan.name}"
        f" ({plan.weights / GB:.1f} weights, {(plan.gradients + plan.optimiser + plan.averages) / GB:.1f} training,"
        f" {plan.activations / GB:.1f} activations)"
    )
    if room is None:
        return line
    if plan.total + CONTEXT_BYTES <= room:
        return f"{line} of {room / GB:.1f}"
    return f"{line}, more than this GPU's {room / GB:.1f}; tools/plan.py says what would make it fit"


def _largest(config: Config) -> tuple[int, int]:
    """Width and height of the largest images, in pixels."""
    shapes = config.data.stream(0).shapes
    return max(((shape.width, shape.height) for shape in shapes), key=lambda sides: sides[0] * sides[1])


def _step_shape(config: Config, parts: Parts, options: MemoryOptions) -> StepShape:
    factor, (width, height) = spatial_factor(parts.autoencoder), _largest(config)
    own = parts.text_side.base_encoders
    return StepShape(
        options.batch,
        height // factor,
        width // factor,
        TOKENS,
        parts.text_side.composition.config.output_width,
        0 if own is None else context_tokens(own.encoders[0]),
        options.autocast,
        options.frozen,
        options.recompute,
        options.accumulate > 1,
    )


def _trained(config: Config, parts: Parts, name: str) -> dict[int, nn.Parameter]:
    """The parameters that a stage trains, by their ids."""
    unet = parts.layout_unet if name == "layout" else parts.refine_unet
    assert unet is not None
    found = {id(parameter): parameter for parameter in unet.parameters() if parameter.requires_grad}
    if not trains_text(config, parts, name):
        return found
    read = parameters_read(parts.text_side, needs_vision_tower(config))
    names = trained_names(parts.text_side, [modes for _, modes in config.text_training.phases], read)
    found |= {id(parameter): parameter for key, parameter in parts.text_side.named_parameters() if key in names}
    if needs_vision_tower(config) and not config.makes_adapter:
        found |= {id(parameter): parameter for parameter in parts.alignment.parameters()}
    return found


def _text_bytes(parts: Parts, trained: set[str]) -> int:
    """Bytes that the text side keeps of one prompt for its backward pass."""
    text_side = parts.text_side
    wanted = {name: parameter.requires_grad for name, parameter in text_side.named_parameters()}
    for name, parameter in text_side.named_parameters():
        parameter.requires_grad_(name in trained)

    def read() -> list[torch.Tensor]:
        t = text_side([parse_prompt(PROMPT)])
        return [t.tokens, t.pooled]

    kept = saved_bytes(read, text_side)
    for name, parameter in text_side.named_parameters():
        parameter.requires_grad_(wanted[name])
    return kept


def _averages(optim: OptimOptions) -> int:
    return 1 + len(optim.ema_half_lives) + len(optim.ema_power_widths)


def _moment_bytes(optim: OptimOptions) -> int:
    return 2 if optim.optimizer == "adamw-8bit" else 8


def _stored_bytes(
    module: nn.Module, options: MemoryOptions, trained: Collection[int], is_unet: bool, shares: Mapping[int, int]
) -> int:
    """Bytes of a module's weights as the options store them; `shares`: of how many ranks, by a parameter's id."""
    linear = {id(child.weight) for child in module.modules() if isinstance(child, nn.Linear)}
    quantised = options.base_bits if is_unet else None
    keeps = type(module).__name__ in ("AutoencoderKL", "PatchAutoencoder")
    total = sum(buffer.nbytes for buffer in module.buffers())
    for parameter in module.parameters():
        stored = parameter.nbytes
        if id(parameter) in trained or parameter.ndim < 2 or keeps:
            pass
        elif quantised is not None and id(parameter) in linear:
            stored = parameter.numel() * quantised // 8 + parameter.numel() * 4 // 64  # and a scale every 64 values
        elif options.frozen is not None:
            stored = parameter.numel() * min(parameter.itemsize, options.frozen.itemsize)
        total += stored // shares.get(id(parameter), 1)
    return total
