"""From a preset's ranges to one picture's numbers; every value from (seed, purpose, position)."""

from __future__ import annotations

from math import floor

import numpy as np

from supir_model.degradation.presets import Fixed, KernelRanges, OrderRanges, Range, TwoOrders, get_preset, parse_mixture
from supir_model.degradation.steps import (
    Blur,
    DegradationParams,
    Gaussian,
    Jpeg,
    Mode,
    Poisson,
    Resize,
    Round,
    Sharpen,
    Sinc,
    Step,
)
from supir_model.degradation.streams import stream

RESIZE_MODES: tuple[Mode, ...] = ("area", "bilinear", "bicubic")
SMALL_KERNEL_PX = 13
SHARPEN = Sharpen(weight=0.5, radius_px=50, threshold=10.0)  # Real-ESRGAN's unsharp mask
TABLE1_KERNEL_PX = 21  # choice: covers 5 sigma of the blur of Table 1
SMALLEST_PX = 4  # choice: no intermediate picture is smaller


def draw(preset: str, seed: int, position: int, size_px: int) -> DegradationParams:
    """Draws the degradation of the picture at `position` of the global sequence, for a crop of `size_px`.

    `preset` may be a mixture, "real_esrgan=0.7,x4=0.3": which one it is, is drawn first, and the result bears its name. The presets share
    their streams: one (seed, position) gives the same quantiles in each.
    """
    preset = _one_of(parse_mixture(preset), seed, position)
    ranges = get_preset(preset)
    if size_px < 8 * SMALLEST_PX:
        raise ValueError(f"size_px is {size_px}: degradations shrink up to 8 times and need {8 * SMALLEST_PX} px or more")
    steps = _fixed_steps(ranges, size_px) if isinstance(ranges, Fixed) else _drawn_steps(ranges, seed, position, size_px)
    return DegradationParams(preset=preset, seed=seed, position=position, size_px=size_px, steps=tuple(steps))


def _one_of(mixture: dict[str, float], seed: int, position: int) -> str:
    """The preset whose part of [0, 1) the draw falls into."""
    u, reached = stream(seed, "mixture", position).random() if len(mixture) > 1 else 0.0, 0.0
    for name, weight in mixture.items():
        reached += weight
        if u < reached:
            return name
    return name


def _fixed_steps(fixed: Fixed, size_px: int) -> list[Step]:
    small = size_px // fixed.downscale
    steps: list[Step] = []
    if fixed.blur_sigma:
        sigma = fixed.blur_sigma
        steps.append(Blur(family="gaussian", size_px=TABLE1_KERNEL_PX, sigma_x=sigma, sigma_y=sigma, rotation=0.0, beta=1.0))
    # choice: antialiased bicubic, as benchmarks of super-resolution shrink; the paper does not say
    steps.append(Resize(height=small, width=small, mode="bicubic_antialiased"))
    if fixed.noise_sigma:
        steps.append(Gaussian(sigma=fixed.noise_sigma, grey=False, purpose="table1/noise pixels"))
    steps.append(Jpeg(quality=fixed.jpeg_quality) if fixed.jpeg_quality else Round())
    return steps + _back(size_px)


def _drawn_steps(ranges: TwoOrders, seed: int, position: int, size_px: int) -> list[Step]:
    if stream(seed, "untouched", position).random() < ranges.untouched_probability:
        return [Round()]
    lq_px = size_px // ranges.downscale
    steps: list[Step] = [SHARPEN] if ranges.sharpen else []
    steps += _order(ranges.first, "order 1", seed, position, size_px)
    quality_1 = _quality(ranges.first.jpeg_quality, stream(seed, "order 1/jpeg", position))
    steps.append(Jpeg(quality=quality_1))
    steps += _order(ranges.second, "order 2", seed, position, lq_px)
    return steps + _last_steps(ranges, seed, position, lq_px) + _back(size_px)


def _order(ranges: OrderRanges, name: str, seed: int, position: int, base_px: int) -> list[Step]:
    """Blur, resize relative to `base_px`, noise."""
    rng = stream(seed, f"{name}/blur", position)
    steps: list[Step] = [_kernel(ranges.kernel, rng)] if rng.random() < ranges.blur_probability else []
    steps.append(_resize(ranges, stream(seed, f"{name}/resize", position), base_px))
    rng, pixels = stream(seed, f"{name}/noise", position), f"{name}/noise pixels"
    grey, gaussian = bool(rng.random() < ranges.grey_probability), rng.random() < ranges.gaussian_probability
    if gaussian:
        steps.append(Gaussian(sigma=_uniform(rng, ranges.gaussian_sigma), grey=grey, purpose=pixels))
    else:
        steps.append(Poisson(scale=_uniform(rng, ranges.poisson_scale), grey=grey, purpose=pixels))
    return steps


def _last_steps(ranges: TwoOrders, seed: int, position: int, lq_px: int) -> list[Step]:
    """[resize, final sinc] and JPEG, in either order, then 8 bits."""
    quality = _quality(ranges.second.jpeg_quality, stream(seed, "order 2/jpeg", position))
    rng = stream(seed, "last", position)
    jpeg_last = rng.random() < ranges.jpeg_last_probability
    shrink: list[Step] = [Resize(height=lq_px, width=lq_px, mode=RESIZE_MODES[rng.integers(len(RESIZE_MODES))])]
    if rng.random() < ranges.final_sinc_probability:
        sizes = ranges.final_sinc_sizes_px
        shrink.append(Sinc(size_px=sizes[rng.integers(len(sizes))], cutoff=_uniform(rng, ranges.final_sinc_cutoff)))
    jpeg: list[Step] = [Jpeg(quality=quality)]
    return [*shrink, *jpeg] if jpeg_last else [*jpeg, *shrink, Round()]


def _back(size_px: int) -> list[Step]:
    """SUPIR Sec. 4.1: the LQ picture is resized back. choice: bicubic, and 8 bits again, like a file that a user enlarged."""
    return [Resize(height=size_px, width=size_px, mode="bicubic"), Round()]


def _kernel(ranges: KernelRanges, rng: np.random.Generator) -> Blur | Sinc:
    size_px = ranges.sizes_px[rng.integers(len(ranges.sizes_px))]
    if rng.random() < ranges.sinc_probability:
        cutoff = ranges.sinc_cutoff_small if size_px < SMALL_KERNEL_PX else ranges.sinc_cutoff_large
        return Sinc(size_px=size_px, cutoff=_uniform(rng, cutoff))
    kind = int(rng.choice(6, p=ranges.mixture))
    plateau, generalised, anisotropic = kind >= 4, kind in (2, 3), kind % 2 == 1
    sigma_x, sigma_y, rotation = (_uniform(rng, r) for r in (ranges.sigma, ranges.sigma, ranges.rotation))
    beta = 1.0
    if plateau or generalised:
        beta = _beta(rng, ranges.beta_plateau if plateau else ranges.beta_gaussian)
    return Blur(
        family="plateau" if plateau else "gaussian",
        size_px=size_px,
        sigma_x=sigma_x,
        sigma_y=sigma_y if anisotropic else sigma_x,
        rotation=rotation if anisotropic else 0.0,
        beta=beta,
    )


def _beta(rng: np.random.Generator, low_high: Range) -> float:
    """Half of the draws from the part below 1 (which is the point 1 for a plateau), half from the part above."""
    low, high = low_high
    return _uniform(rng, (low, 1.0)) if rng.random() < 0.5 else _uniform(rng, (1.0, high))


def _resize(ranges: OrderRanges, rng: np.random.Generator, base_px: int) -> Resize:
    low, high = ranges.resize_factor
    part = ((1.0, high), (low, 1.0), (1.0, 1.0))[rng.choice(3, p=ranges.resize_split)]
    px = max(SMALLEST_PX, floor(base_px * _uniform(rng, part)))
    return Resize(height=px, width=px, mode=RESIZE_MODES[rng.integers(len(RESIZE_MODES))])


def _quality(low_high: Range, rng: np.random.Generator) -> int:
    return round(_uniform(rng, low_high))  # choice: a real encoder takes whole qualities


def _uniform(rng: np.random.Generator, low_high: Range) -> float:
    low, high = low_high
    return float(low + (high - low) * rng.random())
