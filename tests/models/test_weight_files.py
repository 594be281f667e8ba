"""Models are loaded with exactly their weights, or refused with names and shapes, whatever library they come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from vlad.models.autoencoder import build_autoencoder
from vlad.models.options import AutoencoderOptions
from vlad.models.weight_files import load_parts
from vlad.pipeline.folders import read_pipeline
from vlad.utils.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"
REMEDY = "copy it again"


@pytest.fixture
def folder(stand_ins: Path, tmp_path: Path) -> Path:
    """A stand-in for SDXL that a test may damage."""
    return Path(shutil.copytree(stand_ins / "sdxl", tmp_path / "model"))


def load(folder: Path) -> dict[str, object]:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return load_parts(folder, index, {}, "base", REMEDY, torch.float32)


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sdxl"])
def test_fitting_weights_pass(stand_ins: Path, kind: str) -> None:
    parts = load(stand_ins / kind)
    assert {"unet", "vae", "text_encoder"} <= parts.keys()
    wanted = load_file(stand_ins / kind / "vae" / WEIGHTS)
    vae = parts["vae"]
    assert isinstance(vae, AutoencoderKL)
    assert all(torch.equal(value, wanted[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_tensors_of_other_shapes_missing_or_unknown_are_listed(folder: Path, part: str) -> None:
    weights = load_file(folder / part / WEIGHTS)
    first, *others = sorted(weights)
    shape = tuple(weights[first].shape)
    spoilt = {name: weights[name] for name in others[5:]}
    spoilt |= {first: torch.zeros(3, 7), "of_another": torch.zeros(1)}
    save_file(spoilt, folder / part / WEIGHTS)
    with pytest.raises(UserError) as caught:
        load(folder)
    said = str(caught.value)
    assert said.startswith(f"base: the {part} in {folder} has weights that do not fit its config, 7 tensors differ:")
    assert f"{first} 3x7 where the config says {'x'.join(map(str, shape))}, {others[0]} missing" in said
    assert "and 3 more; copy it again" in said


def test_a_damaged_part_is_refused_with_the_reason(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"base: the unet in .* cannot be read \(.*; copy it again"):
        load(folder)
    (folder / "unet" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"base: the unet in .* cannot be read"):
        load(folder)
    (folder / "unet" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"base: the unet in .* cannot be read"):
        load(folder)


# --- what from_pretrained would pass over ----------------------------------------------------------------------------


def _missing(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(weights.items())[1:])


def _prefixed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"first_stage_model.{name}": value for name, value in weights.items()}


def _reshaped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {min(weights): torch.zeros(3, 7)}


def _of_another(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"of_another": torch.zeros(1)}


@pytest.mark.parametrize("spoil", [_missing, _prefixed, _reshaped, _of_another])
def test_an_autoencoder_of_other_weights_is_refused(
    stand_ins: Path, tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    folder = Path(shutil.copytree(stand_ins / "sd15" / "vae", tmp_path / "vae"))
    build_autoencoder(AutoencoderOptions(path=str(folder)))
    save_file(spoil(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    with pytest.raises(UserError, match=r"^autoencoder\.path: .*vae has weights that do not fit its config, \d+ "):
        build_autoencoder(AutoencoderOptions(path=str(folder)))


@pytest.mark.parametrize("config", ["", "[1]", '{"block_out_channels": "wide"}', '{"norm_num_groups": 0}'])
def test_an_autoencoder_of_a_damaged_config_is_refused(stand_ins: Path, tmp_path: Path, config: str) -> None:
    folder = Path(shutil.copytree(stand_ins / "sd15" / "vae", tmp_path / "vae"))
    path = folder / "config.json"
    changed = json.loads(config) if config else None
    if isinstance(changed, dict):
        config = json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed)
    path.write_text(config, encoding="utf-8")
    with pytest.raises(UserError, match=r"^autoencoder\.path: "):
        build_autoencoder(AutoencoderOptions(path=str(folder)))


@pytest.mark.parametrize("part", ["lvlm", "composition", "autoencoder", "layout_unet", "refine_unet"])
@pytest.mark.parametrize("spoil", [_missing, _prefixed, _reshaped])
def test_every_part_of_a_pipeline_is_checked(
    pipeline_folder: Path,
    tmp_path: Path,
    part: str,
    spoil: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> None:
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "pipeline"))
    (file,) = (folder / part).glob("*.safetensors")
    save_file(spoil(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"^run: the {part} in .* has weights that do not fit its config"):
        read_pipeline(folder, "run")
