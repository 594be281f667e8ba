"""Adapters merged with weights, stacked and removed again."""

import shutil
from pathlib import Path

import pytest
import torch

from vlad.inference.load_pipeline import load_pipeline
from vlad.lora.adapter_files import save_adapter
from vlad.lora.inject import add_adapter
from vlad.lora.options import LoraOptions
from vlad.lora.weighted_adapters import set_adapters
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.utils.errors import UserError

PROMPT = 'a blue sign that says "HOUSE"'


@pytest.fixture(scope="module")
def adapters(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of random weights on the pipeline's UNets."""
    found = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp(f"adapter{seed}")
        base = VLADPipeline.from_pretrained(pipeline_folder)
        for part in ("layout_unet", "refine_unet"):
            model = add_adapter(getattr(base, part), LoraOptions(rank=2), ("to_q", "to_v"), str(pipeline_folder))
            torch.manual_seed(seed)
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    torch.nn.init.normal_(parameter, std=0.2)
            save_adapter(model, folder / "adapter" / part)
        found.append(folder)
    return found


def weights(pipeline: VLADPipeline) -> torch.Tensor:
    state = pipeline.refine_unet.state_dict()
    return torch.cat([value.flatten().double() for name, value in sorted(state.items()) if "to_q" in name])


def test_adapters_add_up_and_are_removed_again(pipeline_folder: Path, adapters: list[Path]) -> None:
    pipeline = load_pipeline(pipeline_folder)
    plain, image = weights(pipeline), pipeline(PROMPT).images[0].tobytes()
    changes = []
    for adapter in adapters:
        set_adapters(pipeline, [str(adapter)])
        changes.append(weights(pipeline) - plain)
        assert pipeline(PROMPT).images[0].tobytes() != image
    assert (changes[0] - changes[1]).abs().max() > 1e-2
    pipeline.load_adapters([f"{adapters[0]}:0.5", f"{adapters[1]}=-2"])
    torch.testing.assert_close(weights(pipeline) - plain, 0.5 * changes[0] - 2 * changes[1], atol=1e-5, rtol=1e-4)
    pipeline.unload_adapters()
    assert torch.equal(weights(pipeline), plain)
    assert pipeline(PROMPT).images[0].tobytes() == image
    # The keys of a plain module: nothing is left of the adapters.
    assert not [name for name in pipeline.refine_unet.state_dict() if "lora" in name or "base_layer" in name]


def test_a_weight_of_zero_is_the_base(pipeline_folder: Path, adapters: list[Path]) -> None:
    pipeline = load_pipeline(pipeline_folder, [f"{adapters[0]}=0"])
    assert torch.equal(weights(pipeline), weights(load_pipeline(pipeline_folder)))


def test_an_adapter_of_another_base_is_refused_and_nothing_is_merged(
    pipeline_folder: Path, adapters: list[Path], tmp_path: Path
) -> None:
    pipeline = load_pipeline(pipeline_folder)
    plain = weights(pipeline)
    with torch.no_grad():
        for parameter in pipeline.refine_unet.parameters():
            parameter.add_(0.5)
    changed = weights(pipeline)
    # The layout UNet's part would fit.
    with pytest.raises(UserError, match="trained on other weights"):
        set_adapters(pipeline, [str(adapters[0])])
    assert torch.equal(weights(pipeline), changed)
    assert not torch.equal(changed, plain)
    shutil.copytree(pipeline_folder, tmp_path / "copy")
    unchanged = load_pipeline(tmp_path / "copy")
    assert all(
        torch.equal(value, unchanged.layout_unet.state_dict()[name])
        for name, value in pipeline.layout_unet.state_dict().items()
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "no adapter in nowhere"),
        ("{0}=nan", "finite number"),
        ("{0}:nan", "finite number"),
        ("{0}:half", "'half' is no weight; write a number"),
    ],
)
def test_a_wrong_adapter_raises_user_error(
    pipeline_folder: Path, adapters: list[Path], given: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_pipeline(pipeline_folder, [given.format(adapters[0])])
