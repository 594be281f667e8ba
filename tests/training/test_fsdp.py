"""Sharded training (FSDP2) on two gloo ranks: the losses of DDP, exact resume, whole weights at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainer_process import Orders, finish, start

from vlad.config.load import load_config
from vlad.training.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint
from vlad.training.run import train as train_here
from vlad.utils.errors import UserError

STAGES = ("layout", "refine")


def train(
    signs: Path, folder: Path, name: str, strategy: str, *more: str, stop_at: dict[str, int] | None = None
) -> Path:
    """One start of two ranks; the run directory. FOLDER/NAME.RANK records the batches."""
    overrides = [f"name={name}", f"runs={folder}", "trainer.devices=2", f"trainer.strategy={strategy}"]
    overrides += ["data.workers=0", f"base={signs}/runs/straight", *more]
    orders = Orders(stop_at or {}, folder / f"{name}.jsonl")
    processes = start(signs / "config.yaml", folder / f"{name}-words", overrides, orders, ranks=2)
    assert finish(processes) == [0, 0], (folder / f"{name}-words.0").read_text()
    return folder / name


def losses(run_directory: Path) -> list[list[float]]:
    records = [run_directory.parent / f"{run_directory.name}.{rank}" for rank in range(2)]
    return [[float.fromhex(json.loads(line)["loss"]) for line in r.read_text().splitlines()] for r in records]


def test_sharded_ranks_learn_what_ddp_learns_and_resume_exactly(signs: Path, straight: Path, tmp_path: Path) -> None:
    held_out = f"data.held_out={signs}/shards"  # measured by all ranks, where each has a part of the model
    ddp = train(signs, tmp_path, "ddp", "ddp", held_out)
    sharded = train(signs, tmp_path, "sharded", "fsdp", held_out, "trainer.sample_every_steps=4")
    for one, two in zip(losses(ddp), losses(sharded), strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    for stage in STAGES:
        wanted, found = (load_file(r / stage / "trained.safetensors") for r in (ddp, sharded))
        assert {name: value.shape for name, value in wanted.items()} == {n: v.shape for n, v in found.items()}
        assert all(torch.allclose(wanted[name], found[name], atol=2e-3) for name in wanted)
    averages = load_file(sharded / "refine" / "averages" / "half-life-2.safetensors")
    assert {n: v.shape for n, v in averages.items()} == {n: v.shape for n, v in found.items()}
    assert (sharded / "samples" / "refine" / "step-00000004.png").is_file()
    measured = [json.loads((r / "layout" / "metrics.json").read_text()) for r in (ddp, sharded)]
    figures = [name for name in measured[0] if name.startswith(("text_to_image", "image_to_text"))]
    assert figures and all(name in measured[1] for name in figures)
    assert not list(sharded.rglob("*.partial"))

    # Each rank's file holds about half of what the UNet is.
    kept = list_checkpoints(sharded / "refine" / "checkpoints")[-1]
    parts = [torch.load(kept / f"rank-0000{rank}-of-00002", weights_only=True) for rank in range(2)]
    name = "unet.mid_block.resnets.0.conv1.weight"
    halves = [part["state_dict"][name].shape[0] for part in parts]
    assert sum(halves) == found[name].shape[0]
    assert max(halves) == found[name].shape[0] // 2
    moments = [part["optimizer_states"][0]["state"] for part in parts]
    assert sum(s["exp_avg"].numel() for state in moments for s in state.values()) < 1.5 * sum(
        v.numel() for v in found.values()
    )

    train(signs, tmp_path, "resumed", "fsdp", stop_at={"layout": 4})
    resumed = train(signs, tmp_path, "resumed", "fsdp")
    assert losses(resumed) == losses(sharded)
    for stage in STAGES:
        before, after = (load_file(r / stage / "trained.safetensors") for r in (sharded, resumed))
        assert all(torch.equal(before[name], after[name]) for name in before)

    # A folder that lacks a rank's file, or holds a damaged one, is passed over as a damaged file is.
    (kept / "rank-00001-of-00002").rename(tmp_path / "part")
    with pytest.raises(UserError, match="files of some ranks are missing"):
        read_checkpoint(kept)
    content = bytearray((tmp_path / "part").read_bytes())
    content[len(content) // 2] ^= 1
    (kept / "rank-00001-of-00002").write_bytes(content)
    newest, left_out = newest_checkpoint(kept.parent)
    assert newest != kept
    assert "checksum" in left_out[0].reason


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.compile=blocks", "set trainer.compile=none"),
        ("trainer.precision=16-mixed", "no loss scaler"),
        ("train.layout.optimizer=adamw-8bit", "8-bit moments"),
        ("train.autoencoder.optimizer=adamw-8bit", "8-bit moments"),
        ("train.align.precision=16-mixed", "no loss scaler"),
        ("validation.share=0.25", "leave out validation.share"),
    ],
)
def test_options_that_cannot_be_sharded_are_refused(signs: Path, tmp_path: Path, override: str, said: str) -> None:
    overrides = ["trainer.strategy=fsdp", "trainer.devices=2", f"runs={tmp_path}", override]
    with pytest.raises(UserError, match=said):
        train_here(load_config(signs / "config.yaml", overrides))
    assert not list(tmp_path.iterdir())
