"""The text side trained by component and by phase: what moves, what the optimiser holds, what is saved."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file

from vlad.config.load import load_config
from vlad.config.schema import Config
from vlad.config.training import COMPONENTS
from vlad.data.options import SyntheticOptions
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.inference.load_pipeline import load_pipeline
from vlad.training.callbacks.phases import TextPhases
from vlad.training.fit_stage import _strategy
from vlad.training.publish import is_finished
from vlad.training.run import train
from vlad.training.trainable import component_of
from vlad.utils.errors import UserError

CONFIG = """
name: phased
runs: {folder}/runs
data: {{shards: {folder}/shards, held_out: {folder}/shards, image_pixels: 32, batch_size: 4, workers: 0}}
lvlm: {{hidden_size: 32, layers: 1, heads: 2, vision_hidden_size: 32, vision_layers: 1, vision_pixels: 32}}
lora: {{rank: 2, lvlm_targets: [q_proj]}}
composition: {{width: 32, layers: 1, heads: 2, output_width: 32}}
autoencoder: {{latent_channels: 8, decoder_width: 16, decoder_layers: 1}}
layout: {{unet: {{block_channels: [32], heads: 2}}, noise: {{prediction: sample}}}}
refine: {{unet: {{block_channels: [32], heads: 2}}, noise: {{prediction: sample}}}}
losses: {{alignment: symmetric, region_weight: 0.1, matching_weight: 0.1, captioning_weight: 0.1}}
train:
  align: {{steps: 6, warmup_steps: 1, learning_rate: 1.0e-2, weight_decay: 0.0}}
  autoencoder: {{steps: 1, warmup_steps: 1}}
  layout: {{steps: 2, warmup_steps: 1}}
  refine: {{steps: 1, warmup_steps: 1}}
trainer: {{checkpoint_every_steps: 3, sample_every_steps: 3, accelerator: cpu, log_every_steps: 1}}
sample: {{steps: 2, batch_size: 2}}
"""

FROZEN = "{lvlm: frozen, composition: frozen, spelling: frozen}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of 16 signs, a config, and a finished run of L_align alone."""
    folder = tmp_path_factory.mktemp("phases")
    options = SyntheticOptions(size_pixels=32, count=16)
    (folder / "shards").mkdir()
    entries = write_shards((render_sign(options, i) for i in range(options.count)), folder / "shards", 8)
    write_manifest(folder / "shards", entries, {})
    (folder / "phased.yaml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    assert train(load(folder, "name=aligned", "align_stage=only", "lora=null")).finished
    return folder


def load(world: Path, *overrides: str) -> Config:
    return load_config(world / "phased.yaml", overrides)


def test_an_alignment_run_publishes_its_text_side_and_what_it_measured(world: Path) -> None:
    config = load(world, "name=aligned", "align_stage=only", "lora=null")
    assert is_finished(config)
    metrics = (config.directory / "align" / "metrics.json").read_text(encoding="utf-8")
    for name in ("text_to_image_recall_at_1", "similarity_gap", "region", "match", "caption"):
        assert f'"{name}"' in metrics
    assert (config.directory / "samples" / "align" / "shared-space" / "step-00000003.png").is_file()
    assert (config.directory / "samples" / "align" / "shared-space" / "final.png").is_file()
    curves = next((config.directory / "align" / "logs").glob("*/metrics.csv")).read_text(encoding="utf-8")
    assert "temperature" in curves
    assert "image_to_text_recall_at_10" in curves
    heads = load_file(config.directory / "text" / "alignment.safetensors")
    assert {name.split(".")[0] for name in heads} == {"contrast", "regions", "matching"}


def phased(world: Path, name: str) -> Config:
    """A run on the aligned text side whose LVLM is first frozen, then adapted, then trained in full."""
    return load(
        world,
        f"name={name}",
        f"text_base={world / 'runs' / 'aligned'}",
        "align_stage=first",
        "trainable={spelling: frozen, composition: frozen, projector: full,"
        " learning_rates: {projector: 3.0e-3},"
        " phases: [{until_step: 2, lvlm: frozen}, {until_step: 4, lvlm: lora}, {lvlm: full}]}",
    )


def test_each_phase_trains_its_components_and_the_optimiser_holds_all(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved: list[set[str]] = []
    held: list[set[str]] = []
    rates: set[tuple[str, float]] = set()
    owners: dict[str, str | None] = {}
    original = TextPhases.on_train_batch_start
    before: dict[str, torch.Tensor] = {}

    def watch(self: TextPhases, trainer, module, *rest) -> None:  # type: ignore[no-untyped-def]
        names = {id(p): name for name, p in self.text_side.named_parameters()}
        parameters = dict(self.text_side.named_parameters())
        if before:
            moved.append({name for name, value in before.items() if not torch.equal(value, parameters[name])})
        before.update({name: value.detach().clone() for name, value in parameters.items()})
        owners.update({name: component_of(name, self.text_side) for name in parameters})
        groups = trainer.optimizers[0].param_groups
        held.append({names[id(p)] for group in groups for p in group["params"] if id(p) in names})
        for group in groups:
            of_group = {component_of(names[id(p)], self.text_side) for p in group["params"] if id(p) in names}
            rates.update((str(owner), group["initial_lr"]) for owner in of_group)
        original(self, trainer, module, *rest)

    monkeypatch.setattr(TextPhases, "on_train_batch_start", watch)
    config = phased(world, "phased")
    assert train(config).finished

    of_align = moved[:5]  # the sixth step's movement is seen in the next stage, which has the averaged weights

    def kinds(names: set[str]) -> set[str]:
        side = ("visual.merger", "projector"), (".lora_", "adapter"), ("language_model", "lvlm"), ("visual", "tower")
        return {next(kind for mark, kind in side if mark in name) for name in names}

    assert [kinds(names) for names in of_align] == [
        {"projector"},
        {"projector"},
        {"projector", "adapter"},
        {"projector", "adapter"},
        {"projector", "lvlm", "tower"},
    ]
    assert all(names == held[0] for names in held[:6])
    assert held[0] == set().union(*of_align)
    assert {rate for owner, rate in rates if owner == "projector"} == {3.0e-3}
    assert 1.0e-2 in {rate for owner, rate in rates if owner == "lvlm"}
    told = capsys.readouterr().err
    assert "phase 1 of 3, until step 2" in told
    assert "phase 3 of 3" in told
    # The layout stage goes on in the last phase: six steps are behind it.
    assert told.count("phase 1 of 3") == 1
    # Each table's numbers are those of the parameters that its phase has moved.
    rows = re.findall(r"^  (\w+) +(\w+) +([\d,]+) of +[\d,]+ parameters", told, re.MULTILINE)
    for number, steps in enumerate((of_align[:2], of_align[2:4], of_align[4:])):
        table = {component: int(count.replace(",", "")) for component, _, count in rows[5 * number : 5 * number + 5]}
        sizes = dict.fromkeys(COMPONENTS, 0)
        for name in set().union(*steps):
            sizes[owners[name]] += before[name].numel()
        assert table == sizes


def test_phases_resume_where_a_stopped_run_left_them(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlad.training.callbacks.stop_on_signal import StopOnSignal

    original = StopOnSignal.on_train_batch_end

    def stop(self, trainer, module, *rest) -> None:  # type: ignore[no-untyped-def]
        self.stopped = self.stopped or trainer.global_step == 3
        original(self, trainer, module, *rest)

    config = phased(world, "resumed")
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_train_batch_end", stop)
        assert not train(config).finished
    assert train(config).finished
    straight = load_file(world / "runs" / "phased" / "align" / "trained.safetensors")
    resumed = load_file(config.directory / "align" / "trained.safetensors")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


def test_adapters_on_any_component_are_published_and_merged(world: Path) -> None:
    base = world / "runs" / "phased"
    config = load(
        world,
        "name=adapted",
        f"base={base}",
        "trainable={vision_tower: lora, projector: lora, composition: lora, spelling: lora}",
        "losses.region_weight=0",
        "losses.matching_weight=0",
        "train.layout.learning_rate=1.0e-2",
        "trainer.checkpoint_every_steps=2",
    )
    assert train(config).finished
    adapter = config.directory / "adapter"
    on_the_way = config.directory / "layout" / "adapter"  # at a checkpoint of the layout stage
    assert {path.parent.name for path in on_the_way.glob("*/*.json")} == {"lvlm", "composition", "layout_unet"}
    parts = {path.parent.name for path in adapter.glob("*/*.json")}
    assert parts == {"lvlm", "composition", "layout_unet", "refine_unet"}
    of_lvlm = load_file(adapter / "lvlm" / "adapter_model.safetensors")
    for part in ("visual.merger", "visual.blocks", "language_model"):
        assert any(part in name and value.any() for name, value in of_lvlm.items() if "lora_B" in name)
    plain, adapted = load_pipeline(base), load_pipeline(base, config.directory)
    prompt = [adapted.check_prompt('a red sign that says "CAB"')]
    with torch.no_grad():
        assert not torch.equal(plain.text_side(prompt).pooled, adapted.text_side(prompt).pooled)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["align_stage=only", "losses.align_weight=0", "losses.matching_weight=0"], "has nothing to train with"),
        (["align_stage=first", "lora=null", f"trainable={FROZEN}"], "freezes"),
        (["text_base=nowhere", "lora=null"], "there is no text side at nowhere"),
        (["lora=null", "trainable.lvlm=lora"], "lora adapts what is trained already"),
        ([], "adapters need a base"),
    ],
)
def test_contradictions_are_refused_before_training(world: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        train(load(world, "name=wrong", *overrides))
    assert not (world / "runs" / "wrong").exists() or not any((world / "runs" / "wrong").glob("*.yaml"))


def test_two_processes_share_phases_and_the_alignment_stage(world: Path) -> None:
    assert _strategy(phased(world, "x"), "align") == "auto"
    two = load(world, "trainer.devices=2", "lora=null")
    for stage, unused in (("layout", False), ("align", True)):
        strategy = _strategy(two, stage)
        assert isinstance(strategy, DDPStrategy)
        assert strategy._ddp_kwargs["find_unused_parameters"] is unused
