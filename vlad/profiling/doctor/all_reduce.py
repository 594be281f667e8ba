"""All-reduce between the processes of a launch: its sum is checked and its bandwidth measured."""

from __future__ import annotations

import socket
import time
from datetime import timedelta

import torch
from torch import distributed as dist
from torch import multiprocessing

from vlad.utils.errors import UserError
from vlad.utils.launcher import current_launch

MEGABYTES = 64
SECONDS = 60.0


def all_reduce_rate(ranks: int, device: str) -> float:
    """Bytes per second of an all-reduce over `ranks` new processes of this machine, or those that torchrun started.

    Raises UserError where it fails, hangs for a minute, or returns a wrong sum.
    """
    try:
        launch = current_launch()
        if launch.launcher == "torchrun":
            return _reduce(launch.rank, launch.processes, device, "env://")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        context = multiprocessing.get_context("spawn")
        rates = context.SimpleQueue()
        multiprocessing.spawn(_in_process, (ranks, device, address, rates), nprocs=ranks)
        return rates.get()
    except Exception as error:  # of gloo, NCCL, the store and the spawned processes: they share no class
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(f"the processes cannot communicate: {lines[-1] if lines else type(error).__name__}") from error


def _in_process(rank: int, ranks: int, device: str, address: str, rates: object) -> None:
    rate = _reduce(rank, ranks, device, address)
    if rank == 0:
        rates.put(rate)  # type: ignore[attr-defined]


def _reduce(rank: int, ranks: int, device: str, address: str) -> float:
    here = torch.device(device, rank % torch.cuda.device_count()) if device == "cuda" else torch.device("cpu")
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, address, timedelta(seconds=SECONDS), world_size=ranks, rank=rank)
    try:
        values = torch.full((MEGABYTES * 250_000,), float(rank + 1), device=here)
        dist.all_reduce(values)
        if float(values.min()) != ranks * (ranks + 1) / 2 or float(values.max()) != float(values.min()):
            raise RuntimeError(f"the sum over the ranks came back as {float(values.max()):g}")
        values.zero_()
        started = time.perf_counter()
        dist.all_reduce(values)
        if device == "cuda":
            torch.cuda.synchronize(here)
        return values.nbytes / (time.perf_counter() - started)
    finally:
        dist.destroy_process_group()
