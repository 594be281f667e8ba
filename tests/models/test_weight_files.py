"""Weight files that do not fit their config are refused before loading, with names and shapes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlad.models.weight_files import check_weight_shapes
from vlad.utils.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(stand_ins: Path, tmp_path: Path) -> Path:
    """A stand-in for SDXL that a test may damage."""
    return Path(shutil.copytree(stand_ins / "sdxl", tmp_path / "model"))


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_fitting_weights_pass(stand_ins: Path, kind: str) -> None:
    check_weight_shapes(stand_ins / kind, "base")


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_tensors_of_other_shapes_missing_or_unknown_are_listed(folder: Path, part: str) -> None:
    weights = load_file(folder / part / WEIGHTS)
    first, *others = sorted(weights)
    shape = tuple(weights[first].shape)
    spoilt = {name: weights[name] for name in others[5:]}
    spoilt |= {first: torch.zeros(3, 7), "of_another": torch.zeros(1)}
    save_file(spoilt, folder / part / WEIGHTS)
    with pytest.raises(UserError) as caught:
        check_weight_shapes(folder, "base")
    said = str(caught.value)
    assert said.startswith(f"base: the weights in {folder / part} do not fit its config, 7 tensors differ: {first} 3x7")
    assert f"where the config says {'x'.join(map(str, shape))}, {others[0]} missing" in said
    assert "and 3 more; copy it again" in said


def test_a_damaged_part_is_refused_with_the_reason(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"base: .*unet is damaged \(.*; copy it again"):
        check_weight_shapes(folder, "base")
    (folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"it holds no \.safetensors file"):
        check_weight_shapes(folder, "base")
    (folder / "unet" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="unet is damaged"):
        check_weight_shapes(folder, "base")
