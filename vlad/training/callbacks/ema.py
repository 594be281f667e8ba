"""EMA: exponential moving averages of the trained parameters, stepped with the optimiser.

One of them is what sampling, evaluation and the published weights use. Beside it may run others of other half-lives,
and power-function averages (Karras et al. 2024, arXiv 2312.02696), whose snapshots give an average of any width
afterwards (posthoc_ema.py). All are float32; of a sharded parameter each rank averages its part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from vlad.training.posthoc_ema import exponent_of_width, snapshot_path
from vlad.utils.atomic_files import save_tensors
from vlad.utils.distributed import gather_shards, is_main_process, is_sharded, local_shard, reshard, shard_like

MAIN = "main"
AVERAGES = "averages"  # folder of a stage with the averages beside the published one


@dataclass(frozen=True)
class Exponential:
    """ema <- decay ema + (1 - decay) p. The first steps use (1 + n) / (10 + n): the random start is soon forgotten."""

    decay: float

    def decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))


@dataclass(frozen=True)
class Power:
    """Weights that grow with a power of the step, so that the width is a share of the training so far.

    Eq. 127 of the paper: beta(t) = (1 - 1/t)^(gamma + 1); step 1 replaces whatever stood there before.
    """

    width: float  # sigma_rel

    def decay_at(self, step: int) -> float:
        return (1 - 1 / step) ** (exponent_of_width(self.width) + 1)


class EMA(L.Callback):
    """Moves the averages after every optimiser step; `average` is the one that is used.

    half_lives: of further averages, in steps. widths: of the power-function ones; their snapshots go to
    `directory`/snapshots every `snapshot_every_steps` steps. on_cpu: the averages stay in main memory.
    """

    def __init__(
        self,
        decay: float,
        half_lives: tuple[float, ...] = (),
        widths: tuple[float, ...] = (),
        snapshot_every_steps: int = 0,
        directory: Path | None = None,
        on_cpu: bool = False,
    ) -> None:
        self.profiles: dict[str, Exponential | Power] = {MAIN: Exponential(decay)}
        self.profiles |= {f"half-life-{steps:g}": Exponential(0.5 ** (1 / steps)) for steps in half_lives}
        self.profiles |= {f"width-{width:.3f}": Power(width) for width in widths}
        self.snapshot_every_steps, self.directory, self.on_cpu = snapshot_every_steps, directory, on_cpu
        self.averages: dict[str, dict[str, Tensor]] = {}
        self.steps = 0

    @property
    def state_key(self) -> str:
        """As in checkpoints of version 0.1."""
        return "ExponentialAverage"

    @property
    def average(self) -> dict[str, Tensor]:
        """The average that is used, by parameter names."""
        return self.averages.get(MAIN, {})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = torch.device("cpu") if self.on_cpu else pl_module.device
        current = _trainable(pl_module)
        for profile in self.profiles:
            kept = self.averages.get(profile) or {name: _values(p).clone() for name, p in current.items()}
            self.averages[profile] = {name: value.to(device) for name, value in kept.items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.steps:
            return  # an accumulated micro-batch: the parameters have not moved
        self.steps = trainer.global_step
        current = dict(pl_module.named_parameters())  # a phase may have frozen some of them
        values = [_values(current[name]) for name in self.average]
        if self.on_cpu:
            values = [value.cpu() for value in values]  # once for all averages
        with torch.no_grad():
            for name, profile in self.profiles.items():
                torch._foreach_lerp_(list(self.averages[name].values()), values, 1 - profile.decay_at(self.steps))
        if self.snapshot_every_steps and self.steps % self.snapshot_every_steps == 0:
            assert self.directory is not None
            for name, profile in self.profiles.items():
                if isinstance(profile, Power):
                    self._save(name, pl_module, snapshot_path(self.directory, self.steps, profile.width))

    def _save(self, profile: str, module: nn.Module, path: Path) -> None:
        """Rank 0 writes an average; where it is sharded all ranks come here."""
        average = gathered(self.averages[profile], module)
        if is_main_process():
            save_tensors(average, path)

    @contextmanager
    def swapped_in(self, module: nn.Module) -> Iterator[None]:
        """Inside the block the module's trainable parameters are the averages."""
        reshard(module)
        current = dict(module.named_parameters())
        kept = {name: local_shard(current[name]).detach().clone() for name in self.average}
        with torch.no_grad():
            for name, value in self.average.items():
                local_shard(current[name]).copy_(value)
        try:
            yield
        finally:
            reshard(module)
            with torch.no_grad():
                for name, value in kept.items():
                    local_shard(current[name]).copy_(value)

    def copy_to(self, module: nn.Module) -> None:
        """Makes the averages the module's parameters, for good."""
        current = dict(module.named_parameters())
        with torch.no_grad():
            for name, value in self.average.items():
                local_shard(current[name]).copy_(value)

    def publish(self, module: nn.Module, directory: Path) -> None:
        """Writes the averages beside the used one to `directory`/averages/NAME.safetensors. All ranks come here."""
        for name in self.averages:
            if name != MAIN:
                self._save(name, module, directory / AVERAGES / f"{name}.safetensors")

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self.averages, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.averages, self.steps = state_dict["averages"], state_dict["steps"]


def gathered(average: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """An average of a module's parameters, whole and in main memory on rank 0; where it is sharded all ranks call."""
    current = dict(module.named_parameters())
    found = {}
    for name, value in average.items():
        parameter = current[name]
        tensor = gather_shards(shard_like(value.to(parameter.device), parameter)) if is_sharded(parameter) else value
        if is_main_process():
            found[name] = tensor.cpu()
    return found


def _values(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a parameter, in float32: a small step would be lost in the average of a bf16 one."""
    return local_shard(parameter).detach().float()


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
