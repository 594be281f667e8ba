"""Joint encoders of texts and images: a run's own towers as L_align trained them (Eq. 3), or a CLIP's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlad.config.load import load_config
from vlad.config.training import TrainableOptions
from vlad.eval.alignment.alignment_scores import JointEncoder
from vlad.models.metric_encoders import CLIPEncoder
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.pipeline.folders import ALIGNMENT_FILE, vlad_pipeline_folder
from vlad.training.build import TEXT, new_text_side, parts_of_base
from vlad.utils.errors import UserError
from vlad.utils.hardware import best_device
from vlad.utils.json_objects import read_object


class RunEncoder:
    """The text side and the vision tower of a finished run, with the heads through which L_align compares them (Eq. 3).

    Raises UserError for a run without them.
    """

    def __init__(self, run: Path) -> None:
        self.name = run.resolve().name
        config = load_config(run / "config.yaml")
        if not config.losses.align_weight:
            raise UserError(
                f"{run} was trained with losses.align_weight: 0, so its towers were not aligned; name another run."
            )
        if config.makes_adapter:
            raise UserError(f"{run} is an adapter without towers of its own; name its base, {config.base}.")
        # The towers' own options alone: nothing is trained here.
        config = replace(config, lora=None, stable_diffusion=None, trainable=TrainableOptions(), text_base=None)
        if (run / TEXT / ALIGNMENT_FILE).is_file():
            text_side, heads = new_text_side(replace(config, base=None, text_base=str(run)))
        else:
            if not (vlad_pipeline_folder(run) / ALIGNMENT_FILE).is_file():
                raise UserError(f"{run} comes without its alignment heads ({ALIGNMENT_FILE}); copy the whole run here.")
            parts, _ = parts_of_base(replace(config, base=str(run), align_stage="none"))
            text_side, heads = parts.text_side, parts.alignment
        self.device = best_device()
        self.text_side = text_side.requires_grad_(False).eval().to(self.device)
        self.heads = heads.requires_grad_(False).eval().to(self.device)
        self.side = config.data.image_pixels

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Prompts -> B D, unit vectors."""
        t = self.text_side([parse_prompt(text, strict=False) for text in texts])
        return self.heads.contrast.embed_texts(self.heads.t(t)).cpu()

    @torch.no_grad()
    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """Images (H W 3, uint8, of any sizes) -> B D, unit vectors; scaled to the size that was trained on."""
        rows = []
        for image in images:
            features = self.text_side.lvlm.image_features(self._pixels(image).to(self.device))
            rows.append(self.heads.contrast.embed_images(self.heads.v(features)))
        return torch.cat(rows).cpu()

    def _pixels(self, image: np.ndarray) -> Tensor:
        """1 3 H W in [-1, 1], the shorter side as long as a training image's."""
        height, width = image.shape[:2]
        scale = self.side / min(height, width)
        size = max(self.side, round(width * scale)), max(self.side, round(height * scale))
        scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        return torch.from_numpy(scaled / 127.5 - 1).permute(2, 0, 1)[None]


def joint_encoder(target: Path) -> JointEncoder:
    """The encoder of a run directory, or of a folder with a CLIP. Raises UserError for anything else."""
    if (target / "config.yaml").is_file():
        return RunEncoder(target)
    config_file = target / "config.json"
    try:
        if config_file.is_file() and "model_type" in read_object(config_file):
            return CLIPEncoder(target)
    except UserError:  # of damaged weights
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"{config_file} is no config of a model ({error}); copy the folder here again.") from error
    raise UserError(
        f"There is no encoder of texts and images at {target}; name a run that train.py made, or a CLIP's folder."
    )
