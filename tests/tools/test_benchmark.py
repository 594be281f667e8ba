"""What the benchmark measures: memory that can be counted, on one model in three ways."""

import importlib
from pathlib import Path

import pytest
import torch

from vlad.text.lvlm import LVLMOptions, build_byte_tokenizer, build_tiny_qwen

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.mark.filterwarnings("ignore")
def test_adapters_take_at_most_a_tenth_of_the_memory_of_full_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    benchmark = importlib.import_module("benchmark")
    torch.manual_seed(0)
    model = build_tiny_qwen(LVLMOptions())
    model.save_pretrained(tmp_path)
    build_byte_tokenizer().save_pretrained(tmp_path)

    frozen, lora, full = (benchmark.measure_text(mode, 8, str(tmp_path), 4) for mode in ("frozen", "lora", "full"))

    text = sum(parameter.numel() for parameter in model.language_model.parameters())
    assert full.trained_parameters == text
    # A gradient and Adam's two moments, 4 bytes each; and its count of steps, a number a tensor.
    tensors = sum(1 for _ in model.language_model.parameters())
    assert full.training == text * 3 * 4 + tensors * 4
    assert lora.trained_parameters == 2 * 4 * 2 * 8 * 128  # layers, matrices, A and B, rank, width
    assert 0 < lora.training <= full.training / 10
    assert (frozen.trained_parameters, frozen.training) == (0, 0)
    assert frozen.weights == full.weights == text * 4


@pytest.mark.filterwarnings("ignore")
def test_every_part_of_sampling_is_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    benchmark = importlib.import_module("benchmark")
    figures = benchmark.measure_sample(None, steps=1, batch=1, rounds=1)
    assert all(seconds > 0 for seconds in figures.seconds.values())
    assert figures.seconds["stage two"] > 0
    assert figures.peak > 0
    monkeypatch.setattr(benchmark, "measure_sample", lambda *_: figures)
    benchmark.sample(None, 1, 1)
    said = capsys.readouterr().out
    assert all(part in said for part in figures.seconds)
