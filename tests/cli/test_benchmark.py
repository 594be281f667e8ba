"""What the benchmark measures: memory that can be counted, on one model in three ways."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from vlad.cli.benchmarks import BENCHMARK
from vlad.cli.benchmarks import SOLVERS as SOLVER_VERB
from vlad.eval.held_out_words import solver_comparison
from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.tiny_qwen import build_byte_tokenizer, build_tiny_qwen
from vlad.profiling import sampling_time as sampling
from vlad.profiling.text_encoder_cost import measure_text
from vlad.utils.errors import UserError


@pytest.mark.filterwarnings("ignore")
def test_adapters_take_at_most_a_tenth_of_the_memory_of_full_training(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model = build_tiny_qwen(LVLMOptions())
    model.save_pretrained(tmp_path)
    build_byte_tokenizer().save_pretrained(tmp_path)

    frozen, lora, full = (measure_text(mode, 8, str(tmp_path), 4) for mode in ("frozen", "lora", "full"))

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
    compiled: list[str] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__))
    ways = ("channels last", "compiled")
    figures = sampling.measure_sample(sampling.random_pipeline(), steps=1, batch=1, rounds=1, faster=ways)
    assert compiled == ["UNet2DConditionModel"]
    assert all(seconds > 0 for seconds in figures.seconds.values())
    assert {"stage two", *(f"{sampling.STAGE_TWO}, {way}" for way in ways)} <= figures.seconds.keys()
    assert figures.ratio == pytest.approx(
        figures.seconds[sampling.STAGE_TWO] / figures.seconds[sampling.STABLE_DIFFUSION]
    )
    assert figures.peak > 0
    monkeypatch.setattr(sampling, "measure_sample", lambda *_, **__: figures)
    BENCHMARK(["sample", "--steps", "1", "--batch-size", "1"])
    said = capsys.readouterr().out
    assert all(part in said for part in figures.seconds)


RUN = """
name: untrained
data: {image_pixels: 32}
lvlm: {hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}
composition: {width: 32, layers: 1, heads: 2, output_width: 32}
autoencoder: {latent_channels: 8, decoder_width: 16, decoder_layers: 1}
layout: {unet: {block_channels: [32], heads: 2}, noise: {prediction: sample}}
refine: {unet: {block_channels: [32], heads: 2}, noise: {prediction: sample}}
"""


def test_solvers_are_compared_by_the_words_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlad.config.load import load_config
    from vlad.data.signs import held_out_signs
    from vlad.diffusion.solvers import SOLVERS
    from vlad.training.build import build_pipeline, new_parts

    (tmp_path / "config.yaml").write_text(RUN, encoding="utf-8")
    config = load_config(tmp_path / "config.yaml")
    parts = new_parts(config)
    parts.autoencoder.fit(torch.rand(64, 3, 32, 32) * 2 - 1)
    build_pipeline(config, parts).save_pretrained(tmp_path / "pipeline")
    monkeypatch.setattr(solver_comparison, "SOLVER_STEPS", (1, 2))
    some = {name: SOLVERS[name] for name in ("flow-euler", "ddim", "unipc")}  # the first is for flows
    monkeypatch.setattr(solver_comparison, "SOLVERS", some)
    # An engine that reads the first of two words in every image, and finds no other word.
    first = held_out_signs(config.data.synthetic, 2)[0].layout.lines
    seen = []
    monkeypatch.setattr(solver_comparison, "run_ocr", lambda _, images: [seen.append(p.shape) or first for p in images])
    SOLVER_VERB.run(Namespace(run=str(tmp_path), count=2, engine="rapidocr"))
    said = capsys.readouterr().out.splitlines()
    assert seen == [(32, 32, 3)] * 8
    assert [line.split()[0] for line in said[2:]] == ["ddim", "unipc"]
    assert all(line.count("50.0%") == 2 for line in said[2:]), said


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (["render", "--count", "99"], "--count must be a whole number of at least 100"),
        (["data", "configs/tiny.yaml"], "benchmark data takes no 'configs/tiny.yaml'; .*benchmark data --help"),
        (["text", "--engine", "rapidocr"], "benchmark text has no option --engine"),
        (["sample", "--steps", "0"], "--steps must be a whole number of at least 1"),
        (["train", "lora=null"], "required: config"),
        (["train", "configs/tiny.yaml", "--warmup", "0"], "--warmup must be a whole number of at least 1"),
        (["train", "configs/tiny.yaml", "--count", "100"], "benchmark train has no option --count"),
    ],
)
def test_a_verb_takes_its_own_options_and_no_others(call: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        BENCHMARK(call, "benchmark")


@pytest.mark.parametrize(
    "call",
    [
        ["configs/tiny.yaml", "data.workers=1", "--stage", "layout", "--switches", "plain", "batch"],
        ["--stage", "layout", "configs/tiny.yaml", "data.workers=1", "--switches", "plain", "batch"],
        ["configs/tiny.yaml", "--stage", "layout", "data.workers=1", "--switches", "plain", "batch"],
    ],
)
def test_train_takes_config_and_overrides_between_its_options(
    call: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlad.profiling import switch_comparison as comparison

    asked: list[tuple] = []

    def compare(*given: Any) -> None:
        asked.append(given[:5])
        given[5](comparison.ComparisonRow("plain", reason="not measured"))

    monkeypatch.setattr(comparison, "compare", compare)
    assert BENCHMARK(["train", *call]) == 1  # no row has figures
    wanted = comparison.StageCall("configs/tiny.yaml", ("data.workers=1",), "layout")
    assert asked == [(wanted, ["plain", "batch"], 20, 5, None)]
    assert "stage layout, 20 steps after 5" in capsys.readouterr().out
