"""Freezes and unfreezes components of the text side, phase by phase (`trainable.phases`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import lightning as L

from vlad.config.training import TextTraining
from vlad.models.composition import TextSide
from vlad.training.trainable import component_of, component_table, parameters_read, trained_names


class TextPhases(L.Callback):
    """Exactly the parameters that the phase at hand trains require gradients.

    The optimiser holds what any phase trains: it leaves a parameter without a gradient, and its moments, as they are.
    `first_step` is the number of steps that earlier stages have trained the text side for.
    """

    def __init__(self, text_side: TextSide, training: TextTraining, aligned: bool, label: str, first_step: int = 0):
        self.text_side, self.training, self.label, self.first_step = text_side, training, label, first_step
        self.read = parameters_read(text_side, aligned)
        self.phase: int | None = None

    def unfreeze_all(self) -> None:
        """Unfreezes what any phase trains, for the optimiser and for what is published."""
        self._unfreeze(trained_names(self.text_side, [modes for _, modes in self.training.phases], self.read))

    def learning_rates(self, prefix: str) -> Mapping[str, float]:
        """The rates of components that have one of their own, by the names of their parameters below `prefix`."""
        rates = self.training.learning_rates
        found = {}
        for name, _ in self.text_side.named_parameters():
            component = component_of(name, self.text_side)
            if component is not None and (rate := rates[component]) is not None:
                found[f"{prefix}{name}"] = rate
        return found

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        step = self.first_step + trainer.global_step
        phase = self.training.phase_at(step)
        if phase == self.phase:
            return
        self.phase = phase
        modes = self.training.phases[phase][1]
        self._unfreeze(trained_names(self.text_side, [modes], self.read))
        self.text_side.train()
        if trainer.is_global_zero:
            print(self.table(phase), file=sys.stderr)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.unfreeze_all()

    def table(self, phase: int) -> str:
        """How each component is trained in a phase, as a table."""
        until, modes = self.training.phases[phase]
        rows = component_table(self.text_side, modes, self.training.learning_rates, self.read)
        several = len(self.training.phases) > 1
        head = f"{self.label} trained of the text side" + (
            f", phase {phase + 1} of {len(self.training.phases)}{'' if until is None else f', until step {until}'}"
            if several
            else ""
        )
        lines = [f"{head}:"]
        for component, mode, total, moving, rate in rows:
            own = "" if rate is None or not moving else f"  learning rate {rate:g}"
            lines.append(f"  {component:13}{mode:8}{moving:>13,} of {total:>13,} parameters{own}")
        return "\n".join(lines)

    def _unfreeze(self, names: frozenset[str]) -> None:
        for name, parameter in self.text_side.named_parameters():
            parameter.requires_grad_(name in names)
