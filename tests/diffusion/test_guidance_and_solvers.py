"""Classifier-free guidance against its formula with one UNet call per term; solvers that have to reach x_0."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from vlad.diffusion.guidance import Predict, guided_prediction
from vlad.diffusion.noise_schedule import Scheduler, build_scheduler
from vlad.diffusion.options import NoiseOptions
from vlad.diffusion.solvers import SOLVERS, build_solver, check_scheduler, sample_latents
from vlad.models.options import UNetOptions
from vlad.models.unet import build_unet, denoise
from vlad.types import Conditioning
from vlad.utils.errors import UserError

WIDTH, CELLS, CHANNELS = 16, 4, 4
X_T = torch.randn(2, CHANNELS, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
Z = torch.randn(2, CHANNELS, CELLS, CELLS, generator=torch.Generator().manual_seed(1))
TIMESTEP = torch.tensor(400)


def build(with_z: bool) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_unet(UNetOptions((32,), 1, 2), CHANNELS, CHANNELS if with_z else 0, WIDTH, CELLS).eval()


def condition() -> Conditioning:
    generator = torch.Generator().manual_seed(2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    return Conditioning(torch.randn(2, 3, WIDTH, generator=generator), mask, torch.randn(2, WIDTH, generator=generator))


def count_rows(unet: UNet2DConditionModel) -> list[int]:
    """Grows by the batch rows of every call of the UNet."""
    rows: list[int] = []
    unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    return rows


@pytest.mark.parametrize("scales", [(1.0, 1.0), (3.0, 3.0), (4.0, 1.0), (1.0, 2.5), (5.0, 2.0), (0.0, 0.0), (0.0, 1.5)])
@torch.no_grad()
def test_guidance_is_its_formula(scales: tuple[float, float]) -> None:
    text_scale, layout_scale = scales
    unet, t = build(with_z=True), condition()
    nothing = t.unconditional_unless(torch.tensor([False, False]))
    steps = TIMESTEP.expand(2)
    e_00 = denoise(unet, X_T, steps, nothing, torch.zeros_like(Z))
    e_0z = denoise(unet, X_T, steps, nothing, Z)
    e_tz = denoise(unet, X_T, steps, t, Z)
    wanted = e_00 + layout_scale * (e_0z - e_00) + text_scale * (e_tz - e_0z)
    assert min((first - second).abs().max() for first, second in pairwise((e_00, e_0z, e_tz))) > 1e-3

    result = guided_prediction(partial(denoise, unet), unet.dtype, t, Z, text_scale, layout_scale)(X_T, TIMESTEP)

    torch.testing.assert_close(result, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text_scale", [1.0, 3.0, 0.0])
@torch.no_grad()
def test_without_a_layout_guidance_is_plain_classifier_free_guidance(text_scale: float) -> None:
    unet, t = build(with_z=False), condition()
    steps = TIMESTEP.expand(2)
    e_0 = denoise(unet, X_T, steps, t.unconditional_unless(torch.tensor([False, False])))
    e_t = denoise(unet, X_T, steps, t)

    result = guided_prediction(partial(denoise, unet), unet.dtype, t, None, text_scale, layout_scale=7.0)(X_T, TIMESTEP)

    torch.testing.assert_close(result, e_0 + text_scale * (e_t - e_0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("with_z", "text_scale", "layout_scale", "branches"),
    [
        (True, 1.0, 1.0, 1),
        (True, 3.0, 3.0, 2),
        (True, 3.0, 1.0, 2),
        (True, 0.0, 0.0, 1),
        (True, 3.0, 2.0, 3),
        (False, 1.0, 5.0, 1),
        (False, 3.0, 5.0, 2),
    ],
)
@torch.no_grad()
def test_branches_that_add_nothing_are_not_computed(
    with_z: bool, text_scale: float, layout_scale: float, branches: int
) -> None:
    unet = build(with_z)
    rows = count_rows(unet)

    guided_prediction(partial(denoise, unet), unet.dtype, condition(), Z if with_z else None, text_scale, layout_scale)(
        X_T, TIMESTEP
    )

    assert rows == [branches * len(X_T)]


def perfect(scheduler: Scheduler, kind: str, x_0: Tensor) -> Predict:
    """The exact prediction at x_t for a known x_0, solved from the forward process."""

    def predict(x_t: Tensor, timestep: Tensor) -> Tensor:
        if kind == "sample":
            return x_0
        if kind == "flow":
            return (x_t - x_0) / (timestep / 1000)
        kept = scheduler.alphas_cumprod[timestep]
        epsilon = (x_t - kept.sqrt() * x_0) / (1 - kept).sqrt()
        return epsilon if kind == "epsilon" else kept.sqrt() * epsilon - (1 - kept).sqrt() * x_0

    return predict


@pytest.mark.parametrize("steps", [1, 7, 20])
@pytest.mark.parametrize(
    ("kind", "zero_terminal_snr"),
    [
        ("epsilon", False),
        ("v_prediction", False),
        ("v_prediction", True),
        ("sample", False),
        ("sample", True),
        ("flow", False),
    ],
)
def test_a_perfect_prediction_reaches_x_0(kind: str, zero_terminal_snr: bool, steps: int) -> None:
    scheduler = build_scheduler(NoiseOptions(prediction=kind, zero_terminal_snr=zero_terminal_snr))
    x_0 = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(5)) / 2
    noise = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(6))
    seen: list[int] = []

    def on_step(number: int, timestep: Tensor, x_t: Tensor) -> Tensor:
        seen.append(number)
        return x_t

    result = sample_latents(perfect(scheduler, kind, x_0), scheduler, noise, steps, on_step)

    # epsilon's first step divides by sqrt(alpha_bar_T), about 1/20000: float32 keeps three digits of it. And the
    # library's DDIM steps by 1000 // steps: where that has a remainder, the noise of timestep 0 (0.6 %) stays in.
    exact = kind == "flow" or (kind != "epsilon" and 1000 % steps == 0)
    torch.testing.assert_close(result, x_0, atol=1e-4 if exact else 0.02, rtol=0)
    assert seen == list(range(steps))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_every_fitting_solver_reaches_x_0_and_the_others_are_refused(name: str, kind: str) -> None:
    process = NoiseOptions(prediction=kind)
    if name in (("ddim", "euler") if kind == "flow" else ("flow-euler",)):
        with pytest.raises(UserError, match=f"solver {name} does not fit.*predicts {kind}"):
            build_solver(name, process)
        return
    scheduler = build_solver(name, process)
    check_scheduler(scheduler, process, "refine")
    x_0 = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(5)) / 2
    noise = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(6))

    def predict(x_t: Tensor, timestep: Tensor) -> Tensor:
        if kind == "sample":
            return x_0
        if kind == "flow":
            return (x_t - x_0) / (timestep / 1000)
        # Solvers of continuous time ask between two training steps: alpha_bar is interpolated there.
        bars = torch.cat([scheduler.alphas_cumprod, scheduler.alphas_cumprod[-1:]])
        low, share = int(timestep), float(timestep) - int(timestep)
        kept = (bars[low].log() * (1 - share) + bars[low + 1].log() * share).exp()
        epsilon = (x_t - kept.sqrt() * x_0) / (1 - kept).sqrt()
        return epsilon if kind == "epsilon" else kept.sqrt() * epsilon - (1 - kept).sqrt() * x_0

    result = sample_latents(predict, scheduler, noise, 20)

    torch.testing.assert_close(result, x_0, atol=0.05, rtol=0)


def test_a_scheduler_of_another_process_is_refused() -> None:
    process = NoiseOptions(prediction="v_prediction")
    for other, said in (
        (NoiseOptions(prediction="epsilon"), "prediction is 'epsilon'"),
        (NoiseOptions(prediction="v_prediction", beta_schedule="linear"), "beta_schedule is 'linear'"),
        (NoiseOptions(prediction="v_prediction", train_timesteps=500), "train_timesteps is 500"),
        (NoiseOptions(prediction="v_prediction", zero_terminal_snr=True), "zero_terminal_snr is True"),
    ):
        with pytest.raises(UserError, match=f"refine scheduler EulerDiscreteScheduler does not fit: its {said}"):
            check_scheduler(build_solver("euler", other), process, "refine")
    with pytest.raises(UserError, match="prediction is 'flow'"):
        check_scheduler(build_solver("flow-euler", NoiseOptions(prediction="flow")), process, "refine")


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++", "unipc"])
def test_a_model_of_zero_terminal_snr_takes_trailing_timesteps_alone(name: str) -> None:
    process = NoiseOptions(prediction="v_prediction", zero_terminal_snr=True)
    solver = build_solver(name, process)
    check_scheduler(solver, process, "refine")
    for spacing in ("leading", "linspace"):
        other = type(solver).from_config(solver.config, timestep_spacing=spacing)
        with pytest.raises(UserError, match=f"timestep_spacing is '{spacing}'.*needs 'trailing'"):
            check_scheduler(other, process, "refine")
    with pytest.raises(UserError, match="Did you mean 'euler'"):
        build_solver("eular", process)


@torch.no_grad()
def test_a_negative_prompt_takes_the_place_of_no_prompt() -> None:
    unet, t = build(with_z=True), condition()
    negative = Conditioning(torch.ones(2, 3, WIDTH), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, WIDTH))
    steps = TIMESTEP.expand(2)
    e_n0 = denoise(unet, X_T, steps, negative, torch.zeros_like(Z))
    e_nz = denoise(unet, X_T, steps, negative, Z)
    e_tz = denoise(unet, X_T, steps, t, Z)
    result = guided_prediction(partial(denoise, unet), unet.dtype, t, Z, 4.0, 2.0, negative=negative)(X_T, TIMESTEP)
    torch.testing.assert_close(result, e_n0 + 2 * (e_nz - e_n0) + 4 * (e_tz - e_nz), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_rescaled_guidance_has_the_deviation_of_the_conditional_prediction() -> None:
    unet, t = build(with_z=True), condition()
    wanted = denoise(unet, X_T, TIMESTEP.expand(2), t, Z).std(dim=(1, 2, 3))
    plain = guided_prediction(partial(denoise, unet), unet.dtype, t, Z, 6.0, 3.0)(X_T, TIMESTEP)
    whole = guided_prediction(partial(denoise, unet), unet.dtype, t, Z, 6.0, 3.0, rescale=1.0)(X_T, TIMESTEP)
    half = guided_prediction(partial(denoise, unet), unet.dtype, t, Z, 6.0, 3.0, rescale=0.5)(X_T, TIMESTEP)
    assert (plain.std(dim=(1, 2, 3)) - wanted).abs().min() > 1e-3
    torch.testing.assert_close(whole.std(dim=(1, 2, 3)), wanted)
    torch.testing.assert_close(half, (plain + whole) / 2)


def test_sampling_is_deterministic_and_depends_on_the_noise() -> None:
    scheduler = build_scheduler(NoiseOptions(prediction="sample"))
    noise = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(6))

    def halve(x_t: Tensor, _: Tensor) -> Tensor:
        return x_t / 2

    first, again = sample_latents(halve, scheduler, noise, 5), sample_latents(halve, scheduler, noise, 5)

    assert torch.equal(first, again)
    assert not torch.allclose(first, sample_latents(halve, scheduler, -noise, 5))
