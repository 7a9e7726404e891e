"""Every draw against its stated range and probability. 4,000 draws: a proportion is judged at 4.5 standard errors (0.036 at most)."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from math import floor, pi, sqrt

import pytest

from supir_model.degradation import PRESETS, TABLE1, DegradationParams, draw
from supir_model.degradation.presets import KERNEL_SIZES_PX, get_preset
from supir_model.degradation.steps import Blur, Gaussian, Jpeg, Poisson, Resize, Round, Sharpen, Sinc

COUNT, SIZE = 4000, 512
GOLDEN = [
    ("Sharpen", 0.5, 50, 10.0),
    ("Blur", "gaussian", 15, 2.183287, 2.183287, 0.0, 1.0),
    ("Resize", 123, 123, "area"),
    ("Gaussian", 23.397814, False, "order 1/noise pixels"),
    ("Jpeg", 37),
    ("Blur", "plateau", 15, 1.135784, 1.135784, 0.0, 1.0),
    ("Resize", 150, 150, "bicubic"),
    ("Gaussian", 23.916383, False, "order 2/noise pixels"),
    ("Resize", 128, 128, "area"),
    ("Sinc", 9, 2.039488),
    ("Jpeg", 31),
    ("Resize", 512, 512, "bicubic"),
    ("Round",),
]


@cache
def sample(preset: str) -> tuple[DegradationParams, ...]:
    return tuple(draw(preset, 11, position, SIZE) for position in range(COUNT))


def close(found: int, expected: float, of: int) -> bool:
    return abs(found / of - expected) < 4.5 * sqrt(expected * (1 - expected) / of) + 1e-12


def inside(values: list[float], low: float, high: float) -> None:
    """All within, and reaching to within 3 % of either end, with the mean of a uniform draw."""
    reach = 0.03 * (high - low)
    assert low <= min(values) <= low + reach
    assert high - reach <= max(values) <= high
    assert abs(sum(values) / len(values) - (low + high) / 2) < 4.5 * (high - low) / sqrt(12 * len(values))


def order_of(params: DegradationParams, index: int) -> list[object]:
    """The steps of order 1 (up to the first JPEG) or of order 2 (up to its noise)."""
    steps = [step for step in params.steps if not isinstance(step, Sharpen)]
    first_jpeg = next(i for i, step in enumerate(steps) if isinstance(step, Jpeg))
    part = steps[: first_jpeg + 1] if index == 1 else steps[first_jpeg + 1 :]
    noise = next(i for i, step in enumerate(part) if isinstance(step, Gaussian | Poisson))
    return list(part[: noise + 1])


def drawn(preset: str) -> list[DegradationParams]:
    return [params for params in sample(preset) if len(params.steps) > 1]


ORDERS = {  # preset, order: blur probability, (up, down, keep), factor range, base side, Gaussian range, Poisson range
    ("real_esrgan", 1): (1.0, (0.2, 0.7, 0.1), (0.15, 1.5), 512, (1, 30), (0.05, 3)),
    ("real_esrgan", 2): (0.8, (0.3, 0.4, 0.3), (0.3, 1.2), 128, (1, 25), (0.05, 2.5)),
    ("light_stablesr", 1): (1.0, (0.2, 0.7, 0.1), (0.3, 1.5), 512, (1, 15), (0.05, 2)),
    ("light_stablesr", 2): (0.5, (0.3, 0.4, 0.3), (0.6, 1.2), 128, (1, 12), (0.05, 1)),
}


@pytest.mark.parametrize(("preset", "order"), ORDERS)
def test_blur_resize_and_noise(preset: str, order: int) -> None:
    blur_p, split, (low, high), base_px, sigma, scale = ORDERS[preset, order]
    parts = [order_of(params, order) for params in drawn(preset)]
    count = len(parts)
    assert close(sum(isinstance(part[0], Blur | Sinc) for part in parts), blur_p, count)
    sizes = [next(step for step in part if isinstance(step, Resize)) for part in parts]
    kinds = Counter("up" if s.height > base_px else "down" if s.height < base_px else "keep" for s in sizes)
    # a factor that leaves the side unchanged after rounding down counts as keep: 1 px of the range's span
    slack = 1 / base_px / min(high - 1, 1 - low)
    for kind, p in zip(("up", "down", "keep"), split, strict=True):
        assert abs(kinds[kind] / count - p) < 4.5 * sqrt(p * (1 - p) / count) + slack, kind
    assert floor(low * base_px) <= min(s.height for s in sizes)
    assert max(s.height for s in sizes) <= high * base_px
    assert all(s.height == s.width for s in sizes)
    modes = Counter(s.mode for s in sizes)
    assert all(close(modes[mode], 1 / 3, count) for mode in ("area", "bilinear", "bicubic"))
    noises = [part[-1] for part in parts]
    gaussian = [n for n in noises if isinstance(n, Gaussian)]
    assert close(len(gaussian), 0.5, count)
    assert close(sum(n.grey for n in noises), 0.4, count)
    inside([n.sigma for n in gaussian], *sigma)
    inside([n.scale for n in noises if isinstance(n, Poisson)], *scale)


KERNELS = {  # preset, order: sigma, beta of generalised Gaussians, beta of plateaus
    ("real_esrgan", 1): ((0.2, 3.0), (0.5, 4.0), (1.0, 2.0)),
    ("real_esrgan", 2): ((0.2, 1.5), (0.5, 4.0), (1.0, 2.0)),
    ("light_stablesr", 1): ((0.2, 1.5), (0.5, 2.0), (1.0, 1.5)),
    ("light_stablesr", 2): ((0.2, 1.0), (0.5, 2.0), (1.0, 1.5)),
}


@pytest.mark.parametrize(("preset", "order"), KERNELS)
def test_kernels(preset: str, order: int) -> None:
    sigma, beta_gaussian, beta_plateau = KERNELS[preset, order]
    blurs = [s for params in drawn(preset) if isinstance(s := order_of(params, order)[0], Blur | Sinc)]
    sincs, bumps = [b for b in blurs if isinstance(b, Sinc)], [b for b in blurs if isinstance(b, Blur)]
    assert close(len(sincs), 0.1, len(blurs))
    assert all(close(sum(b.size_px == px for b in blurs), 1 / 8, len(blurs)) for px in KERNEL_SIZES_PX)
    assert all((pi / 3 if b.size_px < 13 else pi / 5) <= b.cutoff <= pi for b in sincs)

    def kind(b: Blur) -> tuple[str, bool]:
        form = "plateau" if b.family == "plateau" else "plain" if b.beta == 1.0 else "generalised"
        return form, b.rotation != 0.0

    kinds = Counter(kind(b) for b in bumps)
    mixture = {("plain", False): 0.45, ("plain", True): 0.25, ("generalised", False): 0.12,
               ("generalised", True): 0.03, ("plateau", False): 0.12, ("plateau", True): 0.03}  # fmt: skip
    assert all(close(kinds[k], p, len(bumps)) for k, p in mixture.items())
    assert all(b.sigma_x == b.sigma_y for b in bumps if b.rotation == 0.0)
    inside([b.sigma_x for b in bumps], *sigma)
    inside([b.sigma_y for b in bumps if b.rotation != 0.0], *sigma)
    inside([b.rotation for b in bumps if b.rotation != 0.0], -pi, pi)
    generalised = [b.beta for b in bumps if kind(b)[0] == "generalised"]
    assert close(sum(beta < 1 for beta in generalised), 0.5, len(generalised))
    assert beta_gaussian[0] <= min(generalised) <= max(generalised) <= beta_gaussian[1]
    plateaus = [b.beta for b in bumps if b.family == "plateau"]
    assert close(sum(beta == 1.0 for beta in plateaus), 0.5, len(plateaus))  # the part below 1 is the point 1
    assert min(plateaus) >= beta_plateau[0]
    assert max(plateaus) <= beta_plateau[1]


@pytest.mark.parametrize(("preset", "first", "second"), [("real_esrgan", (30, 95), (30, 95)), ("light_stablesr", (60, 95), (60, 100))])
def test_jpeg_and_the_last_steps(preset: str, first: tuple[int, int], second: tuple[int, int]) -> None:
    all_params = drawn(preset)
    jpegs = [[s.quality for s in params.steps if isinstance(s, Jpeg)] for params in all_params]
    assert all(len(qualities) == 2 for qualities in jpegs)
    inside([q[0] for q in jpegs], *first)
    inside([q[1] for q in jpegs], *second)
    tails = [params.steps[params.steps.index(order_of(params, 2)[-1]) + 1 :] for params in all_params]  # type: ignore[arg-type]
    count = len(tails)
    assert close(sum(isinstance(tail[0], Resize) for tail in tails), 0.5, count)  # JPEG last
    sincs = [s for tail in tails for s in tail if isinstance(s, Sinc)]
    assert close(len(sincs), 0.8, count)
    inside([s.cutoff for s in sincs], pi / 3, pi)
    for tail in tails:
        shrink = next(s for s in tail if isinstance(s, Resize))
        assert (shrink.height, shrink.width) == (SIZE // 4, SIZE // 4)
        assert tail[-2:] == (Resize(height=SIZE, width=SIZE, mode="bicubic"), Round())


def test_untouched_and_sharpened() -> None:
    assert close(sum(len(p.steps) == 1 for p in sample("light_stablesr")), 0.01, COUNT)
    assert all(isinstance(p.steps[0], Sharpen) for p in sample("real_esrgan"))


def test_a_mixture_draws_each_preset_in_its_share_and_as_it_would_be_alone() -> None:
    mixture = "real_esrgan=0.6,light_stablesr=0.3,x4=0.1"
    found = [draw(mixture, 11, position, SIZE) for position in range(COUNT)]
    shares = Counter(params.preset for params in found)
    assert all(close(shares[name], p, COUNT) for name, p in (("real_esrgan", 0.6), ("light_stablesr", 0.3), ("x4", 0.1)))
    assert all(params == draw(params.preset, 11, params.position, SIZE) for params in found[:100])


def test_without_the_unsharp_mask_all_else_is_the_same() -> None:
    plain, sharp = draw("real_esrgan_unsharpened", 11, 3, SIZE), sample("real_esrgan")[3]
    assert plain.steps == sharp.steps[1:]


def test_table_1() -> None:
    """Table 1: x4; x8; blur 2 + x4; x4 + noise 40; blur 2 + x4 + noise 20 + JPEG 50."""
    assert list(TABLE1) == ["x4", "x8", "blur2_x4", "x4_noise40", "blur2_x4_noise20_jpeg50"]
    steps = draw("blur2_x4_noise20_jpeg50", 0, 0, SIZE).steps
    assert [type(s) for s in steps] == [Blur, Resize, Gaussian, Jpeg, Resize, Round]
    blur, small, noise, jpeg = steps[:4]
    assert isinstance(blur, Blur) and (blur.sigma_x, blur.sigma_y, blur.beta) == (2.0, 2.0, 1.0)  # noqa: PT018
    assert small == Resize(height=128, width=128, mode="bicubic_antialiased")
    assert isinstance(noise, Gaussian) and (noise.sigma, noise.grey) == (20.0, False)  # noqa: PT018
    assert jpeg == Jpeg(quality=50)
    assert [type(s) for s in draw("x4", 0, 0, SIZE).steps] == [Resize, Round, Resize, Round]
    assert draw("x8", 0, 0, SIZE).steps[0] == Resize(height=64, width=64, mode="bicubic_antialiased")
    assert draw("x4_noise40", 0, 0, SIZE).steps[1].sigma == 40.0  # type: ignore[union-attr]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_draw_is_a_function_of_its_arguments_and_survives_json(preset: str) -> None:
    params = draw(preset, 5, 9, 128)
    draw(preset, 5, 10, 128)
    assert draw(preset, 5, 9, 128) == params
    assert DegradationParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params
    assert hash(params) == hash(draw(preset, 5, 9, 128))


def test_positions_and_seeds_differ() -> None:
    assert len({draw("real_esrgan", seed, position, 128).steps for seed in range(10) for position in range(10)}) == 100


def test_draws_never_change() -> None:
    """Golden: numpy promises its bit generators, not `choice` and `integers`; a change would alter runs that are resumed."""
    steps = draw("real_esrgan", 0, 0, 512).to_dict()["steps"]
    found = [tuple(round(v, 6) if isinstance(v, float) else v for v in step.values()) for step in steps]
    assert found == GOLDEN


def test_errors_teach() -> None:
    with pytest.raises(ValueError, match="choose one of real_esrgan"):
        get_preset("v0F")
    with pytest.raises(ValueError, match=r"the weights sum to 0\.9, expected 1"):
        draw("real_esrgan=0.7,x4=0.2", 0, 0, SIZE)
    with pytest.raises(ValueError, match="'much' is no weight"):
        draw("real_esrgan=much", 0, 0, SIZE)
    with pytest.raises(ValueError, match="need 32 px"):
        draw("x4", 0, 0, 16)
    with pytest.raises(ValueError, match="unknown degradation step"):
        DegradationParams.from_dict({"preset": "x4", "seed": 0, "position": 0, "size_px": 64, "steps": [{"step": "Smear"}]})
