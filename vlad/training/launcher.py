"""The launcher of a run's processes: torchrun, srun, or Lightning itself."""

from __future__ import annotations

import os

from vlad.utils.errors import UserError


def started_by() -> str | None:
    """The launcher that started this process as one of several; None where the run starts them itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    return "srun" if (_number("SLURM_STEP_NUM_TASKS") or 1) > 1 else None


def check_launch(nodes: int, devices: int) -> None:
    """Raises UserError where a launcher's variables do not agree with `nodes` machines of `devices` processes.

    Without a launcher several nodes would wait for each other for ever.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher, started = "torchrun", (_number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE"))
    elif (tasks := _number("SLURM_STEP_NUM_TASKS") or 1) > 1:
        # Each would train alone, and all would write into one directory. A batch script itself is no step of its job.
        launcher, started = "srun", (tasks, tasks // (_number("SLURM_STEP_NUM_NODES") or 1))
    elif nodes == 1:
        return
    elif "SLURM_PROCID" in os.environ and "SLURM_NTASKS" in os.environ:
        machines = _number("SLURM_NNODES") or nodes
        launcher, started = "srun", (_number("SLURM_NTASKS"), (_number("SLURM_NTASKS") or 0) // machines)
    else:
        raise UserError(
            f"trainer.nodes is {nodes}, but nothing has started processes on other machines; start the same command on"
            " every node with torchrun or srun (docs/training.md), or set trainer.nodes=1."
        )
    if started != (nodes * devices, devices):
        raise UserError(
            f"trainer.nodes x trainer.devices is {nodes} x {devices}, but {launcher} has started {started[0]}"
            f" processes, {started[1]} on this machine; make the two agree."
        )


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else None
