"""Remote code: run only when trusted and pinned, in training and in the pipeline that it makes."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlad.config.load import load_config
from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.models.text_encoder.lvlm_loading import load_lvlm
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.models.text_encoder.remote_code import TRUSTED, code_hash
from vlad.models.text_encoder.tiny_qwen import build_byte_tokenizer
from vlad.pipeline.folders import read_pipeline
from vlad.training.build import build_pipeline, new_parts
from vlad.utils.errors import UserError

TOKENIZER = build_byte_tokenizer()
COMMIT = "0123456789" * 4


def test_code_from_the_hub_needs_a_commit_that_cannot_change() -> None:
    for revision in (None, "main", "0123abc", "g" * 40):
        with pytest.raises(UserError, match=r"needs lvlm\.revision, the 40 digits of the commit"):
            LVLMOptions(path="some/model", trust_remote_code=True, revision=revision)
    assert LVLMOptions(path="some/model", trust_remote_code=True, revision=COMMIT).trust_remote_code


CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class OwnConfig(PreTrainedConfig):
    model_type = "own"
    hidden_size = 8

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(1024, 8)
        self.post_init()
    def forward(self, input_ids, attention_mask=None, use_cache=None, output_hidden_states=None):
        return BaseModelOutput(last_hidden_state=self.words(input_ids))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model with remote code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.py").write_text(CODE, encoding="utf-8")
    classes = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": classes, "architectures": ["OwnModel"]}), encoding="utf-8"
    )
    save_file({"words.weight": torch.randn(1024, 8)}, folder / "model.safetensors", metadata={"format": "pt"})
    TOKENIZER.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_remote_code_runs_only_when_it_is_trusted(own: Path, tmp_path: Path) -> None:
    folder = own
    with pytest.raises(UserError, match=r"needs remote code; read it, then set lvlm\.trust_remote_code=true"):
        load_lvlm(LVLMOptions(path=str(folder)), with_vision=False)
    assert not (tmp_path / "cache").exists()

    options = LVLMOptions(path=str(folder), trust_remote_code=True, revision=COMMIT)
    encoder = LVLMEncoder(*load_lvlm(options, with_vision=False), options)

    states = encoder([parse_prompt("a blue sign")])
    ids = TOKENIZER("a blue sign", return_tensors="pt")["input_ids"]
    assert torch.equal(states.tokens, load_file(folder / "model.safetensors")["words.weight"][ids])


@torch.no_grad()
def test_a_pipeline_runs_remote_code_only_if_its_hash_is_trusted(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = "data.image_pixels=32 composition.width=32 composition.layers=1 composition.heads=2"
    tiny += " composition.output_width=32 autoencoder.latent_channels=8 autoencoder.decoder_width=16"
    tiny += " layout.unet.block_channels=[32] refine.unet.block_channels=[32] losses.align_weight=0"
    lvlm = [f"lvlm.path={own}", f"lvlm.revision={COMMIT}", "lvlm.trust_remote_code=true"]
    config = load_config("configs/tiny.yaml", [*tiny.split(), *lvlm])
    pipeline = build_pipeline(config, new_parts(config))
    pipeline.save_pretrained(tmp_path / "pipeline")
    prompts = [parse_prompt('a sign that says "日本"')]
    before = pipeline.text_side(prompts).pooled
    shutil.rmtree(own)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)  # another process has not run it yet

    code = tmp_path / "pipeline" / "lvlm"
    monkeypatch.delenv(TRUSTED, raising=False)
    with pytest.raises(UserError, match=rf"needs remote code \(own\.py\); .* variable {TRUSTED}={code_hash(code)} to"):
        read_pipeline(tmp_path / "pipeline", "run")
    assert not any(name.startswith("transformers_modules") for name in sys.modules)

    monkeypatch.setenv(TRUSTED, code_hash(code))
    loaded = read_pipeline(tmp_path / "pipeline", "run").text_side(prompts).pooled
    torch.testing.assert_close(loaded, before, atol=1e-5, rtol=1e-5)

    (code / "own.py").write_text((code / "own.py").read_text() + "\n# changed\n")
    with pytest.raises(UserError, match=r"The LVLM in .* needs remote code"):
        read_pipeline(tmp_path / "pipeline", "run")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_repository_that_the_revision_does_not_pin_is_refused(file: str, tmp_path: Path) -> None:
    classes: dict[str, object] = {"AutoConfig": "own.OwnConfig"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": classes}))
    elsewhere = {"config.json": {"AutoModel": "some/other--own.OwnModel"}, "tokenizer_config.json": {}}
    elsewhere["tokenizer_config.json"]["AutoTokenizer"] = [None, "some/other--own.OwnTokenizer"]  # type: ignore[assignment]
    (tmp_path / file).write_text(json.dumps({"model_type": "own", "auto_map": elsewhere[file]}))
    options = LVLMOptions(path=str(tmp_path), trust_remote_code=True, revision=COMMIT)
    with pytest.raises(UserError, match=rf"the {file} of .* takes its code from some/other, which lvlm.revision does"):
        load_lvlm(options, with_vision=False)


def test_a_missing_package_of_remote_code_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.py").write_text("import a_package_that_nobody_has\n")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}})
    )
    options = LVLMOptions(path=str(tmp_path), trust_remote_code=True, revision=COMMIT)
    with pytest.raises(UserError, match=r"holds no model .*ImportError.*a_package_that_nobody_has"):
        load_lvlm(options, with_vision=False)
