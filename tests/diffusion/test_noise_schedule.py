"""Noise schedules, prediction targets and min-SNR weights against their formulas."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vlad.diffusion.noise_schedule import (
    add_noise,
    build_scheduler,
    draw_noise,
    draw_timesteps,
    loss_weights,
    predicted_x_0,
    training_target,
)
from vlad.diffusion.options import NoiseOptions
from vlad.utils.errors import UserError

KINDS = ["epsilon", "v_prediction", "sample", "flow"]
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
TIMESTEPS = torch.tensor([0, 1, 250, 500, 990])


def latents() -> tuple[Tensor, Tensor]:
    """x_0 and epsilon, 5 2 3 3 (float64: the last steps divide by a small number)."""
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 5, 2, 3, 3, generator=generator, dtype=torch.float64)
    return x_0, noise


def alpha_bar(scheduler: object) -> Tensor:
    """prod_s (1 - beta_s) up to t, at TIMESTEPS, B 1 1 1."""
    return (1 - scheduler.betas.double()).cumprod(dim=0)[TIMESTEPS][:, None, None, None]  # type: ignore[attr-defined]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_x_0_is_recovered_from_the_target(kind: str, schedule: str) -> None:
    scheduler = build_scheduler(NoiseOptions(prediction=kind, beta_schedule=schedule))
    x_0, noise = latents()
    x_t = add_noise(scheduler, x_0, noise, TIMESTEPS)

    target = training_target(scheduler, x_0, noise, TIMESTEPS)

    torch.testing.assert_close(predicted_x_0(scheduler, target, x_t, TIMESTEPS), x_0, atol=1e-4, rtol=1e-4)
    wrong = predicted_x_0(scheduler, target + 0.1, x_t, TIMESTEPS)
    assert (wrong - x_0).abs().amax(dim=(1, 2, 3))[2:].min() > 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_diffusion_noise_is_equation_4(schedule: str) -> None:
    scheduler = build_scheduler(NoiseOptions(beta_schedule=schedule))
    x_0, noise = latents()

    kept = alpha_bar(scheduler)

    torch.testing.assert_close(
        add_noise(scheduler, x_0, noise, TIMESTEPS), kept.sqrt() * x_0 + (1 - kept).sqrt() * noise, atol=1e-5, rtol=1e-5
    )


def test_the_flow_goes_straight_from_image_to_noise() -> None:
    scheduler = build_scheduler(NoiseOptions(prediction="flow", train_timesteps=1000))
    x_0, noise = latents()
    s = (TIMESTEPS / 1000.0)[:, None, None, None].double()

    torch.testing.assert_close(add_noise(scheduler, x_0, noise, TIMESTEPS), (1 - s) * x_0 + s * noise)
    # Its derivative in s.
    torch.testing.assert_close(training_target(scheduler, x_0, noise, TIMESTEPS), noise - x_0)


def test_targets_are_those_of_the_literature() -> None:
    x_0, noise = latents()
    scheduler = build_scheduler(NoiseOptions(prediction="v_prediction"))
    kept = alpha_bar(scheduler)

    # Salimans and Ho 2022: v = alpha epsilon - sigma x_0
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * x_0
    torch.testing.assert_close(training_target(scheduler, x_0, noise, TIMESTEPS), velocity, atol=1e-5, rtol=1e-5)
    for kind, target in (("epsilon", noise), ("sample", x_0)):
        scheduler = build_scheduler(NoiseOptions(prediction=kind))
        assert torch.equal(training_target(scheduler, x_0, noise, TIMESTEPS), target)


@pytest.mark.parametrize("mistake", [{"train_timesteps": 1}, {"min_snr_gamma": 0.0}, {"min_snr_gamma": -5.0}])
def test_schedules_out_of_range_are_refused(mistake: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(mistake))):
        NoiseOptions(**mistake)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr_ends_in_pure_noise(kind: str) -> None:
    scheduler = build_scheduler(NoiseOptions(prediction=kind, zero_terminal_snr=True))
    x_0, noise = latents()
    last = torch.full((5,), 999)

    torch.testing.assert_close(add_noise(scheduler, x_0, noise, last), noise)
    target = training_target(scheduler, x_0, noise, last)
    torch.testing.assert_close(predicted_x_0(scheduler, target, noise, last), x_0)
    assert loss_weights(scheduler, last, 5.0).isfinite().all()


def test_min_snr_leaves_epsilon_of_the_noisiest_steps_its_whole_weight() -> None:
    scheduler = build_scheduler(NoiseOptions(prediction="epsilon"))
    noisiest = torch.arange(900, 1000)
    assert torch.equal(loss_weights(scheduler, noisiest, 5.0), torch.ones(100))


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        # Hang et al. 2023, section 3.4
        ("sample", lambda snr: snr.clamp(max=5.0)),
        ("epsilon", lambda snr: snr.clamp(max=5.0) / snr),
        ("v_prediction", lambda snr: snr.clamp(max=5.0) / (snr + 1)),
    ],
)
def test_min_snr_weights_are_published_and_one_error_of_x_0(kind: str, formula: Callable[[Tensor], Tensor]) -> None:
    scheduler = build_scheduler(NoiseOptions(prediction=kind, min_snr_gamma=5.0))
    kept = alpha_bar(scheduler)
    snr = (kept / (1 - kept)).flatten()

    weights = loss_weights(scheduler, TIMESTEPS, 5.0)

    torch.testing.assert_close(weights.double(), formula(snr), atol=0, rtol=1e-3)
    # Whatever is predicted, what is weighted is the same error of x_0.
    x_0, noise = latents()
    x_t = add_noise(scheduler, x_0, noise, TIMESTEPS)
    target = training_target(scheduler, x_0, noise, TIMESTEPS)
    prediction = target + 0.1 * torch.randn_like(target)
    error = (predicted_x_0(scheduler, prediction, x_t, TIMESTEPS) - x_0).square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(
        weights * (prediction - target).square().sum(dim=(1, 2, 3)), snr.clamp(max=5.0) * error, atol=0, rtol=1e-3
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_gamma_all_steps_weigh_the_same(kind: str) -> None:
    weights = loss_weights(build_scheduler(NoiseOptions(prediction=kind)), TIMESTEPS, None)
    assert torch.equal(weights, torch.ones(5))


@pytest.mark.parametrize(("bias", "mean", "upper_half"), [("uniform", 1 / 2, 1 / 2), ("high", 2 / 3, 0.5**0.5)])
def test_timesteps_fill_their_range_with_their_bias(bias: str, mean: float, upper_half: float) -> None:
    torch.manual_seed(0)
    timesteps = draw_timesteps(NoiseOptions(timestep_bias=bias, train_timesteps=50), 100_000, torch.device("cpu"))

    assert timesteps.dtype == torch.int64
    assert set(timesteps.tolist()) == set(range(50))
    # t = 1 - u^2 has the mean 2/3, and is above 1/2 with the probability of u < sqrt(1/2).
    assert (timesteps + 0.5).mean() / 50 == pytest.approx(mean, abs=0.005)
    assert (timesteps >= 25).double().mean() == pytest.approx(upper_half, abs=0.005)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction": "flow", "zero_terminal_snr": True},
        {"prediction": "flow", "min_snr_gamma": 5.0},
        {"prediction": "epsilon", "zero_terminal_snr": True},
    ],
)
def test_contradictory_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="noise: "):
        NoiseOptions(**options)


def test_offset_noise_shifts_whole_channels() -> None:
    x_0 = torch.zeros(400, 4, 8, 8)
    torch.manual_seed(0)
    means = draw_noise(x_0, 0.5).mean(dim=(2, 3))
    # The mean of 64 normal numbers has a variance of 1/64; the offset adds its square.
    assert means.var().item() == pytest.approx(1 / 64 + 0.25, rel=0.1)
    torch.manual_seed(0)
    plain = draw_noise(x_0)
    torch.manual_seed(0)
    assert torch.equal(plain, torch.randn(x_0.shape))
