"""Contradictions of options are refused without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vlad.cli.train import CACHE
from vlad.config.checks import check_config
from vlad.config.load import load_config
from vlad.utils.errors import UserError

TINY = "configs/tiny.yaml"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["base=runs/a", "stable_diffusion={path: b}"], "stable_diffusion: the base brings UNets"),
        (["base=runs/a", "text_base=runs/b"], "text_base: the base brings"),
        (["align_stage=first", "losses.align_weight=0"], "align_stage: first has nothing to train with"),
        (["align_stage=only", "base=runs/a"], "align_stage: only makes a text side"),
        (["lora={rank: 2}"], "lora: adapters need a base"),
        (["trainable.composition=lora"], r"trainable\.composition: lora adapts what is trained"),
        (
            ["base=runs/a", "lora={rank: 2}", "trainable.lvlm=full"],
            r"trainable\.vision_tower: full does not go with lora",
        ),
        (["train.refine.steps=0"], r"train\.refine\.steps must be at least 1"),
        (["prior.images=64"], r"prior\.images: there is no base"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(load_config(TINY, overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["base=runs/a", "data.repeats=2"], r"data\.repeats does not go with data\.cache"),
        (["base=runs/a", "validation.share=0.1"], r"validation\.share does not go with data\.cache"),
        (["base=runs/a", "data.trigger_word=vlad"], r"data\.trigger_word does not go with data\.cache"),
        (["base=runs/a", "lora={decoder: true}"], r"lora\.decoder: a cache holds no images"),
        ([], r"data\.cache: this run trains its own autoencoder"),
        (["base=runs/a", "refine.editing_share=0.5"], r"refine\.editing_share: a cache holds no"),
        (["base=runs/a", "losses.align_weight=1"], r"L_align needs them"),
    ],
)
def test_what_a_cache_cannot_serve_is_refused_when_it_is_read_and_when_it_is_made(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        check_config(load_config(TINY, [*overrides, "data.cache=c"]))
    with pytest.raises(UserError, match=message):
        CACHE([TINY, *overrides, "--out", str(tmp_path / "cache")])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configs_that_come_with_the_code_are_consistent(path: Path) -> None:
    config = load_config(path)
    makes_adapter = config.lora is not None and config.stable_diffusion is None
    check_config(load_config(path, ["base=runs/base"]) if makes_adapter else config)


def test_checks_need_no_heavy_library() -> None:
    code = (
        "import sys; from vlad.config.checks import check_config; from vlad.config.load import load_config;"
        f"check_config(load_config({TINY!r}));"
        "print(sorted({'torch', 'diffusers', 'transformers', 'lightning', 'peft'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
