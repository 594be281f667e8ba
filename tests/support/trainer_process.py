"""A trainer in processes of its own, to be recorded, stopped and killed.

They are forked from a server that has imported everything once: a start takes a part of a second. Ranks find each other
as under torchrun.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# The last two are what Lightning imports to log a run.
CONTEXT.set_forkserver_preload(["vlad.cli.train", "vlad.training.run", "torch.utils.tensorboard", "s3fs"])

CONFIG = """
name: base
runs: {folder}/runs
data: {{shards: {folder}/shards, image_pixels: 32, batch_size: 4, workers: 2, shuffle_window: 8}}
lvlm: {{hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}}
composition: {{width: 32, layers: 1, heads: 2, output_width: 32}}
autoencoder: {{latent_channels: 8, decoder_width: 16, decoder_layers: 1}}
layout: {{unet: {{block_channels: [32], heads: 2}}, noise: {{prediction: sample}}}}
refine: {{unet: {{block_channels: [32], heads: 2}}, noise: {{prediction: v_prediction}}, train_text: true}}
losses: {{text_dropout: 0.5, layout_dropout: 0.5}}
train:
  autoencoder: {{steps: 4, warmup_steps: 1, ema_decay: 0.9}}
  layout: {{steps: 4, warmup_steps: 2, accumulate_batches: 2, ema_decay: 0.9}}
  refine:
    {{steps: 4, warmup_steps: 1, accumulate_batches: 2, ema_decay: 0.9, ema_half_lives: [2], ema_power_widths: [0.1],
    ema_snapshot_every_steps: 2, ema_on_cpu: true}}
trainer:
  checkpoint_every_steps: 2
  keep_every_steps: 4
  sample_every_steps: 0
  accelerator: cpu
  log_every_steps: 1
sample: {{steps: 2, batch_size: 2}}
"""


@dataclass(frozen=True)
class Orders:
    """What happens to a trainer on purpose."""

    # Stops, as a signal would, at this batch of a stage; in the midst of a step, the step is ended before.
    stop_at: dict[str, int] = field(default_factory=dict)
    # Gets one line a batch: stage, number, keys, loss.
    record: Path | None = None
    # Sends itself SIGKILL at the n-th call (from 1) of a function that saving goes through: "fsync", "replace".
    kill_at: tuple[str, int] | None = None
    # A signal that a rank sends itself after a step: (stage, step, rank, signal).
    send: tuple[str, int, int, int] | None = None
    # The loss of this batch of this rank and stage is not a number: (stage, batch number, rank).
    nan_at: tuple[str, int, int] | None = None
    # Every step trains on the next so many samples, all ranks together, with draws that do not depend on their number.
    whole_batch: int | None = None


def train(config: Path, overrides: list[str], orders: Orders, environment: dict[str, str], output: Path) -> None:
    """Runs a config as train.py does, its words in a file; exits like it."""
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    with output.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        stream.reconfigure(line_buffering=True)
        sys.argv = ["train.py", str(config), *overrides]
        _follow(orders)
        from vlad.cli.train import TRAIN

        try:
            TRAIN.run_script()
        except Exception:  # told, not passed over: a forked process would end without a word
            traceback.print_exc()
            sys.exit(1)


def _follow(orders: Orders) -> None:
    from vlad.training.callbacks.stop_on_signal import StopOnSignal

    original = StopOnSignal.on_train_batch_end

    def after_batch(self: Any, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        stage = type(module).__name__.removesuffix("Stage").lower()
        if orders.record is not None:
            line = {"stage": stage, "batch": trainer.fit_loop.epoch_loop.total_batch_idx, "keys": batch.keys}
            line["loss"] = float(outputs["loss"]).hex()
            path = orders.record.with_suffix(f".{trainer.global_rank}")
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        if orders.send is not None and (stage, trainer.global_step, trainer.global_rank) == orders.send[:3]:
            os.kill(os.getpid(), orders.send[3])
        self.stopped = self.stopped or trainer.fit_loop.epoch_loop.total_batch_idx == orders.stop_at.get(stage)
        original(self, trainer, module, outputs, batch, number)

    StopOnSignal.on_train_batch_end = after_batch  # type: ignore[method-assign]
    if orders.kill_at is not None:
        name, at = orders.kill_at
        owner: Any = {"fsync": os, "replace": Path}[name]
        setattr(owner, name, _deadly(getattr(owner, name), at))
    if orders.nan_at is not None:
        _spoil(*orders.nan_at)
    if orders.whole_batch is not None:
        _share_batches(orders.whole_batch)


def _share_batches(size: int) -> None:
    """Rows r B to (r + 1) B of one batch and of its draws are those of rank r."""
    import torch

    from vlad.data.collate import collate
    from vlad.data.dataset import first_samples
    from vlad.training import stages
    from vlad.training.callbacks import seeding
    from vlad.training.datamodule import ShardDataModule
    from vlad.utils import distributed

    def mine() -> slice:
        own = size // distributed.world_size()
        return slice(own * distributed.rank(), own * (distributed.rank() + 1))

    def loader(self: ShardDataModule) -> Any:
        samples = first_samples(self.sets, self.options, 10**6)
        starts = [size * number % (len(samples) - size + 1) for number in range(self.batches)]
        batches: Any = [collate(samples[start : start + size][mine()]) for start in starts]
        return torch.utils.data.DataLoader(batches, batch_size=None)

    def whole(draw: Callable[..., Any]) -> Callable[..., Any]:
        def drawn(*shape: Any, **options: Any) -> Any:
            rows, *rest = shape[0] if isinstance(shape[0], torch.Size) else shape
            assert rows == size // distributed.world_size()
            return draw(size, *rest, **options)[mine()]

        return drawn

    original = stages.LayoutStage.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        rand, randn = torch.rand, torch.randn
        torch.rand, torch.randn = whole(rand), whole(randn)  # type: ignore[assignment]
        try:
            return original(self, batch, batch_idx)
        finally:
            torch.rand, torch.randn = rand, randn

    ShardDataModule.train_dataloader = loader  # type: ignore[assignment, method-assign]
    stages.LayoutStage.training_step = training_step  # type: ignore[method-assign]
    seed = seeding.derived_seed
    seeding.derived_seed = lambda *parts: seed(*parts[:-1])  # type: ignore[assignment] # not of the rank


def _deadly(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    calls = iter(range(1, sys.maxsize))

    def call(*arguments: Any) -> Any:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    return call


def _spoil(stage: str, number: int, rank: int) -> None:
    from vlad.training import stages

    owner = getattr(stages, f"{stage.capitalize()}Stage")
    original = owner.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = original(self, batch, batch_idx)
        here = (self.trainer.fit_loop.epoch_loop.total_batch_idx, self.trainer.global_rank)
        return loss * float("nan") if here == (number, rank) else loss

    owner.training_step = training_step


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(config: Path, output: Path, overrides: list[str], orders: Orders, ranks: int = 1) -> list[Any]:
    """Starts the ranks of a run; their words go to OUTPUT.RANK."""
    port = str(free_port())
    processes = []
    for rank in range(ranks):
        environment = {"OMP_NUM_THREADS": "1"}
        if ranks > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(ranks)}
            environment |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment |= {"TORCHELASTIC_RUN_ID": "test"}
        words = output.with_suffix(f".{rank}")
        # Its loader forks workers of its own, so no daemon.
        process = CONTEXT.Process(target=train, args=(config, overrides, orders, environment, words))
        process.start()
        processes.append(process)
    return processes


def finish(processes: list[Any], seconds: float = 120) -> list[int | None]:
    """Waits for the ranks; their exit codes, None for one that hangs."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes
