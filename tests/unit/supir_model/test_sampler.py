"""Closed forms of schedule, guidance, sampler and tiling."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from supir_model.conditioning import Conditions, size_time_ids
from supir_model.guidance import combine, guided
from supir_model.presets import get_sampling
from supir_model.sampler import CHURN_MAX, PerImageNoise, pull, sample_dpmpp2m, sample_edm
from supir_model.schedule import SIGMA_MAX, Ramp, karras, sdxl_schedule
from supir_model.tiling import Window, tiled, windows

MEAN, STD = 0.7, 0.4  # of the Gaussian data


def gaussian_data(x: Tensor, sigma: float, control_scale: float) -> Tensor:
    """The exact denoiser of data N(MEAN, STD^2)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def no_noise() -> Tensor:
    raise AssertionError("a sampler without churn drew noise")


def unit_noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditions(value: float, batch: int = 2) -> Conditions:
    return Conditions(
        context_BND=torch.zeros(batch, 1, 1),
        pooled_BD=torch.full((batch, 4), value),
        time_ids_B6=size_time_ids(batch, 64),
        z_lq_BCHW=torch.zeros(batch, 4, 8, 8),
    )


def by_condition(x: Tensor, sigma_B: Tensor, c: Conditions, control_scale: float) -> Tensor:
    """A denoiser that answers with its condition."""
    return c.pooled_BD[:, :, None, None].expand_as(x) + 0.1 * x


# ---- schedule


def test_levels_and_timesteps_are_inverse() -> None:
    schedule = sdxl_schedule()
    t = torch.arange(1000)
    assert torch.equal(schedule.timestep_of(schedule.sigma_of(t)), t)
    assert schedule.timestep_of(torch.tensor([100.0, 0.0])).tolist() == [999, 0]


@pytest.mark.parametrize("steps", [1, 7, 100, 999])
def test_grids_fall_from_the_largest_level_to_zero(steps: int) -> None:
    sigmas = sdxl_schedule().sigmas(steps)
    assert len(sigmas) == steps + 1
    assert sigmas[-1] == 0
    assert all(a > b for a, b in pairwise(sigmas.tolist()))
    assert math.isclose(float(sigmas[0]), SIGMA_MAX, abs_tol=1e-4)  # the constant is printed with 4 decimals


def test_karras_keeps_the_ends() -> None:
    grid = sdxl_schedule().sigmas(8)
    spaced = karras(grid)
    assert torch.allclose(spaced[[0, -2, -1]], grid[[0, -2, -1]], rtol=1e-5)  # a seventh root and a seventh power in fp32


def test_steps_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="1000 steps, expected 1 to 999"):
        sdxl_schedule().sigmas(1000)


def test_a_ramp_ends_where_it_says() -> None:
    ramp = Ramp(start=4.0, end=7.5)
    assert (ramp.at(SIGMA_MAX), ramp.at(0.0), ramp.constant) == (4.0, 7.5, False)


# ---- guidance


def test_guidance_of_one_is_the_positive_prediction() -> None:
    x, asked = torch.ones(2, 4, 8, 8), []

    def denoise(x: Tensor, sigma_B: Tensor, c: Conditions, control_scale: float) -> Tensor:
        asked.append(len(x))
        return by_condition(x, sigma_B, c, control_scale)

    one = guided(denoise, positive=conditions(1.0), negative=conditions(-3.0), weight=Ramp(start=1.0, end=1.0))
    assert torch.equal(one(x, 1.0, 1.0), by_condition(x, torch.ones(2), conditions(1.0), 1.0))
    assert asked == [2]  # the negative half is not computed
    ramp = guided(denoise, positive=conditions(1.0), negative=conditions(-3.0), weight=Ramp(start=1.0, end=5.0))
    assert torch.allclose(ramp(x, SIGMA_MAX, 1.0), one(x, SIGMA_MAX, 1.0))
    assert torch.allclose(ramp(x, 0.0, 1.0), x * 0.1 + 17.0)  # -3 + 5 (1 + 3)


def test_guidance_on_the_step_equals_guidance_on_the_prediction() -> None:
    """The paper guides z_{t-1}, we guide D: a step is affine in D."""
    x, up, down, lam, s, s_next = unit_noise(4), unit_noise(4, seed=1), unit_noise(4, seed=2), 7.5, 5.0, 3.0
    step = lambda d: x + (s_next - s) / s * (x - d)  # noqa: E731
    printed = step(up) + lam * (step(up) - step(down))
    assert torch.allclose(printed, step(combine(down, up, 1 + lam)), atol=1e-5)  # values up to 30 in fp32


# ---- sampler


@pytest.mark.parametrize("steps", [3, 50])
def test_gaussian_data_follow_the_closed_form(steps: int) -> None:
    """A step multiplies x - MEAN by 1 + (s' - s) s / (STD^2 + s^2)."""
    noise, sigmas = unit_noise(2, 4, 8, 8), sdxl_schedule().sigmas(steps)
    found = sample_edm(gaussian_data, noise, sigmas, draw=no_noise)
    levels = sigmas.tolist()
    factor = math.prod(1 + (b - a) * a / (STD**2 + a**2) for a, b in pairwise(levels))
    expected = MEAN + (noise.double() * math.sqrt(1 + levels[0] ** 2) - MEAN) * factor
    assert torch.allclose(found.double(), expected, atol=2e-5)  # fp32, values from 60


def test_many_steps_reach_the_distribution_of_the_data() -> None:
    found = sample_edm(gaussian_data, unit_noise(64, 4, 16, 16), sdxl_schedule().sigmas(999), draw=no_noise)
    assert abs(found.mean() - MEAN) < 0.03  # the start is centred at 0, not at MEAN: MEAN STD / sigma_max = 0.02 remains
    assert abs(found.std() - STD) < 0.01  # 65,536 values: three standard errors are 0.003


def test_churn_of_the_gaussian_keeps_its_variance() -> None:
    """With churn, variances obey v^ = v + s_noise^2 (s^^2 - s^2), v' = factor^2 v^."""
    batch, steps, s_noise = 256, 10, 1.0
    draw = PerImageNoise(range(batch), (4, 8, 8))
    sigmas = sdxl_schedule().sigmas(steps)
    found = sample_edm(gaussian_data, draw(), sigmas, draw=draw, s_churn=5.0, s_noise=s_noise)
    levels = sigmas.tolist()
    variance, gamma = 1 + levels[0] ** 2, min(5.0 / steps, CHURN_MAX)
    for a, b in pairwise(levels):
        hat = a * (1 + gamma)
        variance = (variance + s_noise**2 * (hat**2 - a**2)) * (1 + (b - hat) * hat / (STD**2 + hat**2)) ** 2
    assert math.isclose(found.var().item(), variance, rel_tol=0.03)  # 65,536 values: three standard errors are 1.7 %


def test_churn_only_between_its_bounds() -> None:
    drawn: list[int] = []

    def draw() -> Tensor:
        drawn.append(1)
        return torch.zeros(1, 4, 8, 8)

    sigmas = sdxl_schedule().sigmas(20)
    sample_edm(gaussian_data, unit_noise(1, 4, 8, 8), sigmas, draw=draw, s_churn=5.0, s_min=0.5, s_max=5.0)
    assert len(drawn) == sum(0.5 <= s <= 5.0 for s in sigmas.tolist())


def test_a_pull_of_one_lands_on_the_center() -> None:
    clean, center = unit_noise(1, 4, 8, 8), unit_noise(1, 4, 8, 8, seed=1)
    assert torch.allclose(pull(clean, center, 1.0), center, atol=1e-6)
    assert torch.equal(pull(clean, center, 0.0), clean)
    noise = unit_noise(1, 4, 8, 8, seed=2)
    found = sample_edm(
        gaussian_data, noise, torch.tensor([SIGMA_MAX, 0.06]), draw=no_noise, z_center_BCHW=center, restore_cfg=4.0
    )
    share = 0.06 / SIGMA_MAX
    start = noise * math.sqrt(1 + SIGMA_MAX**2)
    assert torch.allclose(found, share * start + (1 - share) * center, atol=1e-5)  # the network's answer is gone


def test_the_pull_ends_before_the_last_step_and_weakens_with_tau() -> None:
    center, noise, sigmas = torch.full((1, 4, 8, 8), 5.0), unit_noise(1, 4, 8, 8), sdxl_schedule().sigmas(20)

    def distance(restore_cfg: float) -> float:
        found = sample_edm(gaussian_data, noise, sigmas, draw=no_noise, z_center_BCHW=center, restore_cfg=restore_cfg)
        return (found - center).abs().mean().item()

    free = sample_edm(gaussian_data, noise, sigmas, draw=no_noise)
    assert distance(-1.0) == distance(0.0) == (free - center).abs().mean().item()
    assert distance(0.25) < distance(1.0) < distance(4.0) < distance(0.0)
    last = sample_edm(gaussian_data, noise, torch.tensor([1.0, 0.0]), draw=no_noise, z_center_BCHW=center, restore_cfg=1.0)
    assert torch.equal(last, sample_edm(gaussian_data, noise, torch.tensor([1.0, 0.0]), draw=no_noise))


def test_a_pull_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"restore_cfg is 4\.0, which pulls towards z_center_BCHW"):
        sample_edm(gaussian_data, torch.zeros(1, 4, 8, 8), sdxl_schedule().sigmas(2), draw=no_noise, restore_cfg=4.0)


def test_the_control_scale_follows_its_ramp() -> None:
    seen: list[float] = []

    def denoise(x: Tensor, sigma: float, control_scale: float) -> Tensor:
        seen.append(control_scale)
        return x

    sigmas, ramp = sdxl_schedule().sigmas(5), Ramp(start=0.0, end=1.0)
    draw = PerImageNoise([0], (4, 8, 8))
    sample_edm(denoise, draw(), sigmas, draw=draw, s_churn=5.0, control=ramp)
    assert seen == [ramp.at(s) for s in sigmas.tolist()[:-1]]  # the sigma before churn


def test_dpmpp2m_on_gaussian_data() -> None:
    """eta 0 integrates the same equation as EDM, to second order: 40 steps of it beat 40 of Euler."""
    noise, sigmas = unit_noise(1, 4, 8, 8), karras(sdxl_schedule().sigmas(40))
    first, last = float(sigmas[0]), float(sigmas[-2])
    start = noise * math.sqrt(1 + first**2)
    x_last = MEAN + (start - MEAN) * math.sqrt((STD**2 + last**2) / (STD**2 + first**2))
    exact = gaussian_data(x_last, last, 1.0)  # the last step of either lands on the prediction
    second = sample_dpmpp2m(gaussian_data, noise, sigmas, draw=no_noise, eta=0.0)
    euler = sample_edm(gaussian_data, noise, sigmas, draw=no_noise)
    assert (second - exact).abs().max() < 0.1 * (euler - exact).abs().max()


def closing_error(sample: Callable[..., Tensor], steps: int, **options: float) -> float:
    """Distance to the exact solution of the probability flow, on grids of one family with the same ends, in double."""
    first, last = SIGMA_MAX, 0.03
    rho = torch.linspace(first ** (1 / 7), last ** (1 / 7), steps + 1, dtype=torch.float64) ** 7
    noise = unit_noise(1, 4, 8, 8).double()
    found = sample(gaussian_data, noise, torch.cat([rho, torch.zeros(1)]), draw=no_noise, **options)
    start = noise * math.sqrt(1 + first**2)
    x_last = MEAN + (start - MEAN) * math.sqrt((STD**2 + last**2) / (STD**2 + first**2))
    return float((found - gaussian_data(x_last, last, 1.0)).abs().max())


def test_the_error_of_edm_halves_as_steps_double() -> None:
    errors = [closing_error(sample_edm, steps) for steps in (25, 50, 100, 200, 400)]
    assert all(1.9 < coarse / fine < 2.1 for coarse, fine in pairwise(errors))  # first order


def test_the_error_of_dpmpp2m_quarters_as_steps_double() -> None:
    errors = [closing_error(sample_dpmpp2m, steps, eta=0.0) for steps in (25, 50, 100, 200, 400)]
    assert all(3.7 < coarse / fine < 4.3 for coarse, fine in pairwise(errors))  # second order


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_dpmpp2m_takes_batches_and_every_eta(eta: float) -> None:
    """The released one breaks above one image and gives NaN at eta 0. Bit for bit: nothing here mixes images."""
    grid = karras(sdxl_schedule().sigmas(8))
    together, alone = PerImageNoise([3, 7], (4, 8, 8)), PerImageNoise([7], (4, 8, 8))
    both = sample_dpmpp2m(gaussian_data, together(), grid, draw=together, eta=eta)
    assert torch.isfinite(both).all()
    assert torch.equal(both[1:], sample_dpmpp2m(gaussian_data, alone(), grid, draw=alone, eta=eta))


def test_edm_treats_images_of_a_batch_alone() -> None:
    grid = sdxl_schedule().sigmas(8)
    together, alone = PerImageNoise([3, 7], (4, 8, 8)), PerImageNoise([7], (4, 8, 8))
    center = unit_noise(2, 4, 8, 8)
    both = sample_edm(gaussian_data, together(), grid, draw=together, s_churn=5.0, z_center_BCHW=center, restore_cfg=1.0)
    one = sample_edm(gaussian_data, alone(), grid, draw=alone, s_churn=5.0, z_center_BCHW=center[1:], restore_cfg=1.0)
    assert torch.equal(both[1:], one)


@pytest.mark.parametrize("tau", [0.25, 1.0, 4.0])
def test_the_first_prediction_is_pulled_onto_the_center(tau: float) -> None:
    """At sigma max k is 1, whatever tau_r is: the first step heads for z_center, not for what the network says."""
    center, noise = unit_noise(1, 4, 8, 8, seed=1), unit_noise(1, 4, 8, 8)
    steps: list[Tensor] = []

    def denoise(x: Tensor, sigma: float, control_scale: float) -> Tensor:
        steps.append(x)
        return torch.full_like(x, 1000.0)

    sample_edm(denoise, noise, torch.tensor([SIGMA_MAX, 2.0, 0.0]), draw=no_noise, z_center_BCHW=center, restore_cfg=tau)
    expected = center + (2.0 / SIGMA_MAX) * (steps[0] - center)
    assert torch.allclose(steps[1], expected, atol=1e-3)  # 1000 times the fp32 roundings of k


def test_the_number_of_steps_of_the_presets() -> None:
    assert {name: get_sampling(name).steps for name in ("paper", "release_quality", "release_fidelity")} == {
        "paper": 100, "release_quality": 50, "release_fidelity": 50
    }  # fmt: skip
    assert [get_sampling(name).restore_cfg for name in ("paper", "release_quality", "release_fidelity")] == [4.0, -1.0, -1.0]
    ends = [(p.guidance_start, p.guidance_end) for p in map(get_sampling, ("paper", "release_quality", "release_fidelity"))]
    assert ends == [(8.5, 8.5), (4.0, 7.5), (1.0, 4.0)]


# ---- noise and tiling


def test_an_images_noise_does_not_depend_on_its_company() -> None:
    alone, together = PerImageNoise([7], (4, 8, 8)), PerImageNoise([3, 7], (4, 8, 8))
    for _ in range(3):
        assert torch.equal(alone()[0], together()[1])


def test_tiles_change_nothing_for_a_denoiser_that_looks_at_one_pixel() -> None:
    noise, sigmas = unit_noise(1, 4, 20, 27), sdxl_schedule().sigmas(10)
    places = windows(20, 27, tile=8, stride=5)
    by_tiles = sample_edm(tiled(lambda place: gaussian_data, places), noise, sigmas, draw=no_noise)
    assert torch.allclose(by_tiles, sample_edm(gaussian_data, noise, sigmas, draw=no_noise), atol=1e-5)  # fp32 averages


@pytest.mark.parametrize(("height", "width"), [(8, 8), (20, 27), (5, 30), (3, 4)])
def test_windows_cover_everything_and_stay_inside(height: int, width: int) -> None:
    covered = torch.zeros(1, 1, height, width)
    for place in windows(height, width, tile=8, stride=5):
        view = place.crop(covered)
        assert view.shape[-2:] == (min(8, height), min(8, width))
        view += 1
    assert covered.min() >= 1


def test_every_window_has_its_own_conditions() -> None:
    places = [Window(0, 0, 8, 4), Window(0, 4, 8, 4)]
    denoise = tiled(lambda place: lambda x, sigma, w: torch.full_like(x, float(place.left)), places)
    assert denoise(torch.zeros(1, 4, 8, 8), 1.0, 1.0)[0, 0, 0].tolist() == [0.0] * 4 + [4.0] * 4


def test_gaps_between_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match="leaves gaps"):
        windows(32, 32, tile=8, stride=9)


def test_conditions_of_different_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="different batch sizes"):
        Conditions(
            context_BND=torch.zeros(1, 1, 1), pooled_BD=torch.zeros(2, 1), time_ids_B6=torch.zeros(1, 6), z_lq_BCHW=torch.zeros(1, 4, 8, 8)
        )
