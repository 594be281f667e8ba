"""`vlad.train` with callbacks and loggers of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger

import vlad
from vlad.data.options import SyntheticOptions
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.training.callbacks.checkpointing import Checkpoints
from vlad.training.callbacks.ema import EMA
from vlad.training.callbacks.stop_on_signal import StopOnSignal

CONFIG = """
name: extended
runs: {folder}/runs
data: {{shards: {folder}/shards, image_pixels: 32, batch_size: 4, workers: 0}}
lvlm: {{hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}}
composition: {{width: 32, layers: 1, heads: 2, output_width: 32}}
autoencoder: {{latent_channels: 8, decoder_width: 16, decoder_layers: 1}}
layout: {{unet: {{block_channels: [32], heads: 2}}}}
refine: {{unet: {{block_channels: [32], heads: 2}}}}
train:
  autoencoder: {{steps: 2, warmup_steps: 1}}
  layout: {{steps: 4, warmup_steps: 1}}
  refine: {{steps: 2, warmup_steps: 1}}
trainer: {{accelerator: cpu, sample_every_steps: 0, log_every_steps: 1, checkpoint_every_steps: 2}}
sample: {{steps: 2}}
"""


class CountSteps(L.Callback):
    """Counts the steps of each stage, in its state as well."""

    def __init__(self) -> None:
        self.steps: dict[str, int] = {}
        self.order: list[str] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        name = type(pl_module).__name__
        self.steps[name] = self.steps.get(name, 0) + 1
        self.order = [type(callback).__name__ for callback in trainer.callbacks]  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": dict(self.steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = dict(state_dict["steps"])


@pytest.fixture
def config(tmp_path: Path) -> Any:
    options = SyntheticOptions(size_pixels=32, count=16)
    (tmp_path / "shards").mkdir()
    entries = write_shards((render_sign(options, i) for i in range(options.count)), tmp_path / "shards", 8)
    write_manifest(tmp_path / "shards", entries, {})
    (tmp_path / "config.yaml").write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    return vlad.load_config(tmp_path / "config.yaml")


def test_own_callbacks_and_loggers_serve_every_stage_and_resume(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StopOnSignal.on_train_batch_end

    def stop(self: StopOnSignal, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
        self.stopped = self.stopped or (type(module).__name__ == "LayoutStage" and trainer.global_step == 3)
        original(self, trainer, module, *rest)

    first = CountSteps()
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_train_batch_end", stop)
        assert not vlad.train(config, callbacks=[first]).finished
    assert first.steps == {"AutoencoderStage": 2, "LayoutStage": 3}
    # After those of the run, but for the one that saves their state.
    assert first.order.index(EMA.__name__) < first.order.index("CountSteps") < first.order.index(Checkpoints.__name__)

    second, logger = CountSteps(), CSVLogger(tmp_path, name="own")
    result = vlad.train(config, callbacks=[second], loggers=[logger])
    assert result.finished and result.directory == config.directory
    assert second.steps == {"AutoencoderStage": 2, "LayoutStage": 4, "RefineStage": 2}
    assert "diffusion" in Path(logger.log_dir, "metrics.csv").read_text(encoding="utf-8")
