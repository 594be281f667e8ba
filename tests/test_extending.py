"""docs/extending.md: its blocks run, one after the other, on a small config."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from transformers import T5Config, T5EncoderModel

import vlad.training.build
from vlad.models.composition import CompositionModule
from vlad.models.text_encoder.tiny_qwen import build_byte_tokenizer

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
STEPS = {"steps": 2, "warmup_steps": 0}
CONFIG = {
    "runs": "runs",
    "data": {"image_pixels": 32, "batch_size": 4, "workers": 0},
    "lvlm": {"hidden_size": 32, "layers": 1, "heads": 2, "vision_pixels": 32},
    "composition": {"width": 32, "layers": 1, "heads": 2, "output_width": 32},
    "autoencoder": {"latent_channels": 8, "decoder_width": 16, "decoder_layers": 1},
    "layout": {"unet": {"block_channels": [32]}},
    "refine": {"unet": {"block_channels": [32]}},
    "losses": {"align_weight": 0.0},
    "train": dict.fromkeys(("autoencoder", "layout", "refine"), STEPS),
    "trainer": {"sample_every_steps": 0, "log_every_steps": 1, "accelerator": "cpu"},
}


def test_the_page_s_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vlad.training.build, "CompositionModule", CompositionModule)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    torch.manual_seed(0)
    tokenizer = build_byte_tokenizer()
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=1024, **sizes)).save_pretrained("my_encoder")
    tokenizer.save_pretrained("my_encoder")
    module = types.ModuleType("my_extensions")
    monkeypatch.setitem(sys.modules, "my_extensions", module)

    for number, block in enumerate(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)):
        exec(compile(block, f"extending.md, block {number + 1}", "exec"), module.__dict__)

    assert module.counter.steps == 6  # three stages of two steps
    for name in ("watched", "encoded", "penalised", "louder"):
        assert (tmp_path / "runs" / name / "pipeline" / "model_index.json").is_file(), name
    assert list(Path("my_logs").rglob("metrics.csv"))
    assert "penalty" in next((tmp_path / "runs" / "penalised" / "refine" / "logs").rglob("*.csv")).read_text()
    index = (tmp_path / "runs" / "louder" / "pipeline" / "model_index.json").read_text(encoding="utf-8")
    assert "LouderCCM" in index
