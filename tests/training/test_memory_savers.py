"""Memory and speed options change memory or speed and not what is learned; runs with them resume exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from trainer_process import Orders, finish, start

from vlad.config.load import load_config
from vlad.config.training import OptimOptions
from vlad.data.collate import collate
from vlad.data.dataset import first_samples
from vlad.data.shard_sets import open_sets
from vlad.diffusion.noise_schedule import build_scheduler
from vlad.training import memory_savers as switches
from vlad.training.build import new_parts
from vlad.training.memory_savers import (
    cast_frozen_weights,
    checkpoint_activations,
    compile_unets,
    remove_compilation,
    uncompiled,
)
from vlad.training.optim import build_optimizer, check_optimizer
from vlad.training.parts import Parts
from vlad.training.stages import LayoutStage, RefineStage, set_modes
from vlad.types import Batch
from vlad.utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch(signs: Path) -> Batch:
    config = load_config(signs / "config.yaml")
    return collate(first_samples(open_sets(config.data.sets, config.data.fetch), config.data.stream(0), 4))


def layout_stage(signs: Path, *overrides: str) -> LayoutStage:
    """A new layout stage that trains everything it can, with no trainer to log to."""
    torch.manual_seed(0)
    config = load_config(signs / "config.yaml", overrides)
    parts = new_parts(config)
    parts.autoencoder.requires_grad_(False)
    stage = LayoutStage(parts, build_scheduler(config.layout.noise), config.layout.noise, config.losses, OptimOptions())
    set_modes(stage)
    stage.log_losses = stage.log_temperature = lambda *_, **__: None  # type: ignore[method-assign]
    return stage


def refine_stage(signs: Path) -> RefineStage:
    """A new refine stage whose text side is frozen."""
    torch.manual_seed(0)
    config = load_config(signs / "config.yaml")
    parts: Parts = new_parts(config)
    for module in (parts.autoencoder, parts.text_side, parts.alignment):
        module.requires_grad_(False)
    noise = config.refine.noise
    stage = RefineStage(parts, build_scheduler(noise), noise, config.losses, OptimOptions(), with_layout=True)
    set_modes(stage)
    stage.log_losses = lambda *_, **__: None  # type: ignore[method-assign]
    return stage


def learned(stage: nn.Module, batch: Batch) -> tuple[float, dict[str, Tensor], int]:
    """Loss and gradients of one step, and the bytes of activations that its backward pass was kept waiting with."""
    weights = {parameter.data_ptr() for parameter in stage.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    stage.zero_grad()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = stage.training_step(batch, 0)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, sum(kept.values())


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor], rtol: float = 1e-4, atol: float = 1e-5) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol, atol), name


@pytest.mark.parametrize("what", ["unets", "lvlm"])
def test_recomputed_activations_are_not_kept_and_gradients_are_the_same(
    signs: Path, batch: Batch, what: switches.Checkpointing
) -> None:
    loss, gradients, held = learned(layout_stage(signs), batch)
    stage = layout_stage(signs)
    checkpoint_activations(what, [stage.unet], stage.text_side.lvlm.model)
    again, same, less = learned(stage, batch)
    assert again == loss
    assert_same(gradients, same, rtol=0, atol=0)
    assert less < 0.9 * held


def test_a_model_without_activation_checkpointing_is_refused() -> None:
    with pytest.raises(UserError, match="activation_checkpointing: Linear does not recompute"):
        checkpoint_activations("all", [], nn.Linear(1, 1))


@pytest.mark.parametrize("what", ["blocks", "whole"])
def test_compiled_unets_learn_the_same_and_are_published_plain(
    signs: Path, batch: Batch, what: switches.Compilation, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        traced.append(str(graph))
        return graph.forward

    monkeypatch.setattr(switches, "BACKEND", backend)
    loss, gradients, _ = learned(layout_stage(signs), batch)
    stage = layout_stage(signs)
    names = list(stage.state_dict())
    compile_unets(what, [stage.unet], CPU)
    compiled = {type(module).__name__ for module in stage.modules() if module._compiled_call_impl is not None}
    assert compiled == ({"BasicTransformerBlock"} if what == "blocks" else {"UNet2DConditionModel"})
    traced.clear()  # the trial that was made before
    with uncompiled():
        learned(stage, batch)
    assert not traced
    again, same, _ = learned(stage, batch)
    assert traced
    assert again == pytest.approx(loss, rel=1e-5)
    assert_same(gradients, same)
    remove_compilation([stage.unet])
    assert not any(module._compiled_call_impl is not None for module in stage.modules())
    assert list(stage.state_dict()) == names


@pytest.mark.long
def test_torchs_own_compiler_learns_the_same(signs: Path, batch: Batch) -> None:
    loss, gradients, _ = learned(layout_stage(signs), batch)
    stage = layout_stage(signs)
    compile_unets("blocks", [stage.unet], CPU)
    again, same, _ = learned(stage, batch)
    assert again == pytest.approx(loss, rel=1e-4)
    assert_same(gradients, same, rtol=1e-3, atol=1e-4)


def test_where_torch_cannot_compile_the_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("no compiler of C++ here\nat all")

    monkeypatch.setattr(switches, "BACKEND", broken)
    with pytest.raises(UserError, match=r"cannot compile here \(.*no compiler of C\+\+ here"):
        compile_unets("blocks", [], CPU)
    compile_unets("none", [], CPU)


def test_bf16_true_halves_frozen_weights_and_restores_them(signs: Path, batch: Batch) -> None:
    stage = refine_stage(signs)
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        mixed, gradients, _ = learned(stage, batch)
    with cast_frozen_weights(stage, stage.trained_names(), "bf16-true"):
        dtypes = {name: parameter.dtype for name, parameter in stage.named_parameters()}
        with torch.autocast("cpu", torch.bfloat16):
            loss, same, _ = learned(stage, batch)
    for name, dtype in dtypes.items():
        halved = name.startswith(("text_side.", "alignment.")) and before[name].ndim >= 2
        assert dtype == (torch.bfloat16 if halved else torch.float32), name
    assert all(gradient.dtype == torch.float32 for gradient in same.values())
    assert loss == pytest.approx(mixed, rel=5e-3)
    assert_same(gradients, same, rtol=0.1, atol=0.02)
    after = stage.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())  # to the last bit


def test_channels_last_is_another_order_in_memory_and_nothing_else(signs: Path, batch: Batch) -> None:
    last, first = (layout_stage(signs, f"trainer.channels_last={on}") for on in (True, False))
    orders = [stage.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last) for stage in (last, first)]
    assert orders == [True, False]
    (one, gradients, _), (two, same, _) = learned(last, batch), learned(first, batch)
    assert two == pytest.approx(one, rel=1e-5)
    assert_same(gradients, same)


def steps(options: OptimOptions, count: int = 20) -> tuple[torch.optim.Optimizer, Tensor]:
    """What an optimiser makes of a matrix that is to become its neighbour's transpose."""
    torch.manual_seed(0)
    module = nn.Linear(64, 64, bias=False)
    target = torch.randn(64, 64)
    optimizer = build_optimizer(module, options, fused=True)
    for _ in range(count):
        optimizer.zero_grad()
        (module.weight - target).square().mean().backward()
        optimizer.step()
    return optimizer, module.weight.detach()


def test_a_fused_step_is_one_kernel_and_the_same_step() -> None:
    fused, one = steps(OptimOptions(learning_rate=0.01))
    plain, two = steps(OptimOptions(learning_rate=0.01, fused=False))
    assert (fused.defaults["fused"], plain.defaults["fused"]) == (True, False)
    torch.testing.assert_close(one, two)


def test_8_bit_moments_are_a_quarter_as_large_and_take_nearly_the_same_steps() -> None:
    pytest.importorskip("bitsandbytes")
    options = OptimOptions(learning_rate=0.01, optimizer="adamw-8bit")
    check_optimizer(options, CPU)
    (small, one), (_, two) = steps(options), steps(OptimOptions(learning_rate=0.01))
    (state,) = small.state.values()
    assert {state["state1"].dtype, state["state2"].dtype} == {torch.uint8}
    assert 0 < (one - two).norm() < 0.05 * (two - steps(options, 0)[1]).norm()


def test_8_bit_moments_without_their_library_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"pip install 'vlad-diffusion\[quantised\]'"):
        check_optimizer(OptimOptions(optimizer="adamw-8bit"), CPU)


SWITCHED = ["trainer.precision=bf16-true", "trainer.activation_checkpointing=all", "trainer.channels_last=false"]


@pytest.mark.parametrize("compiled", ["none", pytest.param("blocks", marks=pytest.mark.long)])
def test_a_run_with_all_memory_savers_resumes_exactly(
    signs: Path, straight: Path, tmp_path: Path, compiled: str
) -> None:
    pytest.importorskip("bitsandbytes")
    overrides = [*SWITCHED, f"trainer.compile={compiled}", f"runs={tmp_path}", f"base={straight}", "data.workers=0"]
    overrides += ["train.refine.optimizer=adamw-8bit", "train.layout.optimizer=adamw-8bit", "trainer.devices=1"]
    overrides += ["trainer.sample_every_steps=4", "refine.train_text=false"]
    for name, stops in (("through", [{}]), ("stopped", [{"refine": 3}, {}])):
        for number, stop in enumerate(stops):
            words = tmp_path / f"{name}-{number}"
            processes = start(signs / "config.yaml", words, [*overrides, f"name={name}"], Orders(stop))
            assert finish(processes, 600) == [0], words.with_suffix(".0").read_text()
    for stage in ("layout", "refine"):
        one, two = (load_file(tmp_path / name / stage / "trained.safetensors") for name in ("through", "stopped"))
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[name]) and value.dtype == torch.float32 for name, value in one.items())
    assert (tmp_path / "through" / "samples" / "refine" / "step-00000004.png").is_file()
