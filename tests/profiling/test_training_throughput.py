"""Training benchmarks: step times, counted operations, the matrix rate and the table of switches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_world import write_small_world

from vlad.config.load import load_config
from vlad.config.schema import Config
from vlad.profiling import switch_comparison as comparison
from vlad.profiling.switch_comparison import HEAD, ComparisonRow, StageCall, compare, overrides_of, text_row
from vlad.profiling.training_throughput import StageFigures, count_flops, matrix_rate, measure_stage
from vlad.utils.errors import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_world(tmp_path_factory.mktemp("speed"))


def config_of(world: Path, *overrides: str) -> Config:
    return load_config(world / "config.yaml", overrides)


def test_steps_are_timed_with_the_runs_trainer_and_leave_no_files(world: Path) -> None:
    figures = measure_stage(config_of(world), "refine", steps=3, warmup=1)
    assert figures.images_per_second * figures.step_seconds == pytest.approx(4)
    assert 0 <= figures.data_wait <= 1
    assert figures.peak_bytes > 50_000_000
    assert figures.attention.startswith("torch SDPA")
    assert not (world / "runs").exists()
    with pytest.raises(UserError, match="there is no stage 'refined'"):
        measure_stage(config_of(world), "refined", 1, 1)
    with pytest.raises(UserError, match=r"data\.cache: this run trains its own autoencoder"):
        measure_stage(config_of(world, "data.cache=nowhere"), "refine", 1, 1)


def test_flops_of_a_step_are_counted(world: Path) -> None:
    one = count_flops(config_of(world), "refine")
    # The decoder of the autoencoder alone, by hand: its convolutions' products, three times (forward, two backward) for
    # what is trained, less the first layer's input, which wants no gradient.
    small = count_flops(config_of(world, "refine.unet.position_frequencies=0"), "refine")
    cells, channels = 16, 24  # 4 x 4 cells; 4 channels a frequency, 6 frequencies
    assert one - small == 2 * 2 * cells * channels * 32 * 9  # conv_in, forward and its weights' gradient
    assert count_flops(config_of(world, "trainer.activation_checkpointing=unets"), "refine") == one


def test_the_matrix_rate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlad.profiling.training_throughput.MATRIX_ROWS", {"cpu": 128})
    monkeypatch.setattr("vlad.profiling.training_throughput.MATRIX_SECONDS", 0.05)
    assert matrix_rate(torch.device("cpu"), torch.float32) > 1e8


def test_each_row_keeps_the_switches_above_it(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, ...]] = []

    def figures(call: StageCall, steps: int, warmup: int) -> StageFigures:
        tried.append(call.overrides)
        if "trainer.compile=blocks" in call.overrides:
            raise UserError("torch cannot compile here.")
        return StageFigures(10.0 * len(tried), 0.1, 0.05, 2_000_000_000, "")

    monkeypatch.setattr(comparison, "_new_processes", _here)
    monkeypatch.setattr(comparison, "_figures", figures)
    monkeypatch.setattr(comparison, "_rate", lambda call: 1e9)
    monkeypatch.setattr(comparison, "_flops", lambda call: 1e7)
    shown: list[ComparisonRow] = []
    call = StageCall(str(world / "config.yaml"), ("seed=3",), "refine")
    rows = compare(call, ["plain", "compile", "cache", "batch"], 2, 1, None, shown.append)
    assert rows == shown
    assert all(overrides[0] == "seed=3" for overrides in tried)
    assert tried[-1][1:] == (*overrides_of("plain", call.config(), None)[1], "data.batch_size=8")  # not compiled
    assert [row.label for row in rows] == ["plain", "compiled blocks", "cache", "batch 8"]
    assert rows[0].mfu == pytest.approx(1e7 * 10 / 1e9)
    lines = [text_row(row, rows[0]) for row in rows]
    assert lines[1].endswith("left out: torch cannot compile here.")
    assert "vlad cache" in lines[2]
    assert lines[3].split()[2:4] == ["30.0", "3.00"]
    assert len(lines[0]) == len(HEAD)
    with pytest.raises(UserError, match="there is no switch 'warp'"):
        compare(call, ["warp"], 1, 1, None, shown.append)


class _here:  # noqa: N801 - replaces a function
    """Calls functions in this process."""

    def __enter__(self):  # type: ignore[no-untyped-def]
        return lambda function, *arguments: function(*arguments)

    def __exit__(self, *_: object) -> None:
        return None


def test_a_switch_that_runs_out_of_memory_is_left_out(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> StageFigures:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(comparison, "_new_processes", _here)
    monkeypatch.setattr(comparison, "measure_stage", full)
    monkeypatch.setattr(comparison, "_rate", lambda call: 1e9)
    monkeypatch.setattr(comparison, "_flops", lambda call: 1e7)
    (row,) = compare(StageCall(str(world / "config.yaml"), (), "refine"), ["batch"], 1, 1, None, lambda row: None)
    assert text_row(row, None) == f"{'batch 8':20}left out: out of memory"
