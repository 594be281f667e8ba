"""Files from strangers: code in them is not run, and the error names the file."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from vlad.config.load import load_config
from vlad.config.schema import Config
from vlad.lora.adapter_files import attach_adapter, save_adapter
from vlad.lora.inject import add_adapter
from vlad.lora.options import LoraOptions
from vlad.pipeline.folders import ALIGNMENT_FILE
from vlad.training.averaged_pipeline import stored_average
from vlad.training.build import build_pipeline, new_parts, parts_of_base
from vlad.training.callbacks.ema import AVERAGES
from vlad.training.checkpoint import read_checkpoint
from vlad.training.parts import TRAINED
from vlad.training.posthoc_ema import reconstruct, snapshot_path
from vlad.training.publish import load_published_stage, publish_text_side
from vlad.utils.errors import UserError

CONFIG = """
data: {image_pixels: 32, batch_size: 4}
lvlm: {hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}
composition: {width: 32, layers: 1, heads: 2, output_width: 32}
autoencoder: {latent_channels: 8, decoder_width: 16, decoder_layers: 1}
layout: {unet: {block_channels: [32], heads: 2}}
refine: {unet: {block_channels: [32], heads: 2}}
"""


class Code:
    """Leaves a trace where it is unpickled by something that trusts it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.mkdir, ("was-run",))


def spoil(path: Path, plain: bool = False) -> None:
    """A file with code in it, as torch writes pickles (in a zip), or a plain one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if plain:
        path.write_bytes(pickle.dumps({"weight": Code()}))
    else:
        torch.save({"weight": Code(), "state_dict": {}}, path)


def spoil_model(folder: Path, name: str = "diffusion_pytorch_model") -> None:
    """In the place of a model's safetensors the older file that libraries still read."""
    safe = folder / f"{name}.safetensors"
    safe.unlink()
    spoil(folder / f"{'pytorch_model' if name == 'model' else name}.bin")


def adaptable() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pipeline, a text side, an AutoencoderKL and an adapter, all sound."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    config = load_config(folder / "config.yaml")
    torch.manual_seed(0)
    parts = new_parts(config)
    build_pipeline(config, parts).save_pretrained(folder / "pipeline")
    publish_text_side(parts, folder / "text")
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=2).save_pretrained(folder / "kl")
    adapted = add_adapter(adaptable(), LoraOptions(rank=2), ("0",), "runs/base")
    with torch.no_grad():  # an adapter that nothing has trained is not saved
        for name, parameter in adapted.named_parameters():
            parameter.add_(1.0 if "lora_B" in name else 0.0)
    save_adapter(adapted, folder / "adapter")
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to be spoilt; the trace would be left in the folder beside."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world, tmp_path / "copy")
    return tmp_path / "copy"


def options(folder: Path, *overrides: str) -> Config:
    return load_config(folder / "config.yaml", overrides)


def a_checkpoint(folder: Path) -> None:
    spoil(folder / "step-00000001.ckpt")
    read_checkpoint(folder / "step-00000001.ckpt")


def a_rank_s_part(folder: Path) -> None:
    spoil(folder / "step-00000001.ckpt" / "rank-00000-of-00001")
    read_checkpoint(folder / "step-00000001.ckpt")


def what_a_stage_trained(folder: Path) -> None:
    spoil(folder / TRAINED)
    load_published_stage(nn.Linear(2, 2), folder)  # type: ignore[arg-type]


def an_average(folder: Path) -> None:
    spoil(folder / AVERAGES / "half-life-2.safetensors")
    stored_average(folder, "half-life-2")


def a_snapshot(folder: Path) -> None:
    spoil(snapshot_path(folder, 10, 0.1), plain=True)
    reconstruct(folder, 0.1)


def the_unet_of_a_base(folder: Path) -> None:
    spoil_model(folder / "pipeline" / "refine_unet")
    parts_of_base(options(folder, f"base={folder}"))


def the_lvlm_of_a_base(folder: Path) -> None:
    spoil_model(folder / "pipeline" / "lvlm", "model")
    parts_of_base(options(folder, f"base={folder}"))


def the_heads_of_a_base(folder: Path) -> None:
    spoil(folder / "pipeline" / ALIGNMENT_FILE)
    parts_of_base(options(folder, f"base={folder}"))


def the_ccm_of_a_text_base(folder: Path) -> None:
    spoil_model(folder / "text" / "composition")
    new_parts(options(folder, f"text_base={folder}"))


def the_heads_of_a_text_base(folder: Path) -> None:
    spoil(folder / "text" / ALIGNMENT_FILE, plain=True)
    new_parts(options(folder, f"text_base={folder}"))


def an_autoencoder(folder: Path) -> None:
    spoil_model(folder / "kl")
    new_parts(options(folder, f"autoencoder.path={folder / 'kl'}"))


def an_lvlm(folder: Path) -> None:
    spoil_model(folder / "text" / "lvlm", "model")
    new_parts(options(folder, f"lvlm.path={folder / 'text' / 'lvlm'}"))


def an_adapter(folder: Path) -> None:
    spoil(folder / "adapter" / "adapter_model.safetensors")
    attach_adapter(adaptable(), folder / "adapter")


@pytest.mark.parametrize(
    "read",
    [
        a_checkpoint,
        a_rank_s_part,
        what_a_stage_trained,
        an_average,
        a_snapshot,
        the_unet_of_a_base,
        the_lvlm_of_a_base,
        the_heads_of_a_base,
        the_ccm_of_a_text_base,
        the_heads_of_a_text_base,
        an_autoencoder,
        an_lvlm,
        an_adapter,
    ],
)
def test_code_in_a_file_is_refused_and_not_run(copy: Path, read: Callable[[Path], None]) -> None:
    with pytest.raises(UserError, match=str(copy)):
        read(copy)
    assert not Path("was-run").exists()


def test_the_trap_would_leave_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert Path("was-run").is_dir()


def test_sound_files_are_read(copy: Path) -> None:
    parts_of_base(options(copy, f"base={copy}"))
    new_parts(options(copy, f"text_base={copy}"))
    new_parts(options(copy, f"autoencoder.path={copy / 'kl'}"))
    new_parts(options(copy, f"lvlm.path={copy / 'text' / 'lvlm'}"))
    attach_adapter(adaptable(), copy / "adapter")
