"""Pretrained encoders for metrics: damaged folders and other kinds of models."""

import shutil

import pytest
from transformers import (
    CLIPVisionModel,
    LlavaConfig,
)

from vlad.models.metric_encoders import CLIPEncoder, SentenceEncoder, VisionEncoder
from vlad.utils.errors import UserError


def test_damaged_or_other_encoders_are_refused(tiny_llava, tmp_path):
    with pytest.raises(UserError, match="holds a llava model, which takes no images alone"):
        VisionEncoder(tiny_llava)
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_llava, damaged)
    (damaged / "model.safetensors").write_bytes((tiny_llava / "model.safetensors").read_bytes()[:-10])
    for encoder in (CLIPEncoder, VisionEncoder, SentenceEncoder):
        with pytest.raises(UserError, match=r"damaged cannot be read .*; give a complete model folder"):
            encoder(damaged)
    shutil.copytree(tiny_llava, tmp_path / "images")
    CLIPVisionModel(LlavaConfig.from_pretrained(tiny_llava).vision_config).save_pretrained(tmp_path / "images")
    with pytest.raises(UserError, match="holds a clip_vision_model model that encodes no texts alone"):
        SentenceEncoder(tmp_path / "images")
