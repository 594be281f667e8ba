"""A published pipeline with another average (EMA) of the weights of one of its stages."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from vlad.pipeline.folders import read_pipeline
from vlad.pipeline.vlad_pipeline import VLADPipeline
from vlad.training.callbacks.ema import AVERAGES
from vlad.utils.errors import UserError
from vlad.utils.failures import user_errors


def stored_average(stage: Path, name: str) -> dict[str, Tensor]:
    """An average that a stage keeps beside the published one. Raises UserError when there is none of that name."""
    path = stage / AVERAGES / f"{name}.safetensors"
    known = sorted(found.stem for found in (stage / AVERAGES).glob("*.safetensors"))
    if name not in known:
        raise UserError(f"There is no average {name!r} in {stage / AVERAGES}; there are: {', '.join(known) or 'none'}.")
    with user_errors(f"The average {path}", unreadable="remove it"):
        return load_file(path)


def averaged_pipeline(folder: Path, stage: str, average: dict[str, Tensor]) -> VLADPipeline:
    """The pipeline in `folder` with the average in place of the weights that `stage` (layout, refine) has trained.

    Raises UserError when the names are not those of the pipeline: after LoRA training of the LVLM, whose adapters have
    been merged, or for another run's average.
    """
    pipeline = read_pipeline(folder, str(folder))
    unet = pipeline.layout_unet if stage == "layout" else pipeline.refine_unet
    places: dict[str, nn.Module | None] = {"unet": unet, "text_side": pipeline.text_side}
    state = {
        f"{prefix}.{name}": value
        for prefix, module in places.items()
        if module is not None
        for name, value in module.state_dict().items()
    }
    # L_align's head and the vision tower only serve training; a pipeline may be without them.
    used = {name: value for name, value in average.items() if not name.startswith("alignment.")}
    wrong = sorted(name for name in used if name not in state or state[name].shape != used[name].shape)
    if wrong:
        raise UserError(
            f"The average does not fit the pipeline {folder}: {len(wrong)} tensors differ, the first is {wrong[0]}."
        )
    for name, value in used.items():
        state[name].copy_(value)
    return pipeline
