"""The numbers: Real-ESRGAN's two orders, StableSR's lighter ranges, and the five fixed degradations of Table 1.

Every range is uniform. Sources: the training options of Real-ESRGAN x4plus (SUPIR Sec. 4.1 names it) and of StableSR
(v2-finetune_text_T_512). SUPIR-v0F was trained with a narrower range that was never published: no preset bears its name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi

Range = tuple[float, float]
KERNEL_SIZES_PX = (7, 9, 11, 13, 15, 17, 19, 21)


@dataclass(frozen=True, kw_only=True)
class KernelRanges:
    """`mixture`: probabilities of isotropic, anisotropic, generalised iso, generalised aniso, plateau iso, plateau aniso."""

    sizes_px: tuple[int, ...] = KERNEL_SIZES_PX
    sinc_probability: float = 0.1
    sinc_cutoff_small: Range = (pi / 3, pi)  # kernels below 13 px
    sinc_cutoff_large: Range = (pi / 5, pi)
    mixture: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sigma: Range = (0.2, 3.0)
    rotation: Range = (-pi, pi)
    beta_gaussian: Range = (0.5, 4.0)  # half of the draws below 1, half above
    beta_plateau: Range = (1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class OrderRanges:
    """One order: blur, resize, noise, JPEG. `resize_split`: probabilities of up, down, keep."""

    blur_probability: float
    kernel: KernelRanges
    resize_split: tuple[float, float, float]
    resize_factor: Range
    gaussian_probability: float = 0.5
    gaussian_sigma: Range
    poisson_scale: Range
    grey_probability: float = 0.4
    jpeg_quality: Range = (30.0, 95.0)


@dataclass(frozen=True, kw_only=True)
class TwoOrders:
    """A drawn degradation. `downscale`: LQ side = GT side / downscale before it is resized back."""

    first: OrderRanges
    second: OrderRanges
    final_sinc_probability: float = 0.8
    final_sinc_sizes_px: tuple[int, ...] = KERNEL_SIZES_PX
    final_sinc_cutoff: Range = (pi / 3, pi)
    jpeg_last_probability: float = 0.5
    downscale: int = 4
    sharpen: bool = True  # choice: SUPIR does not say; Real-ESRGAN makes the LQ from the sharpened picture
    untouched_probability: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A test degradation: blur, shrink, noise, JPEG, each only where its number is not zero."""

    blur_sigma: float = 0.0
    downscale: int = 4
    noise_sigma: float = 0.0
    jpeg_quality: int = 0


REAL_ESRGAN = TwoOrders(
    first=OrderRanges(
        blur_probability=1.0,
        kernel=KernelRanges(),
        resize_split=(0.2, 0.7, 0.1),
        resize_factor=(0.15, 1.5),
        gaussian_sigma=(1.0, 30.0),
        poisson_scale=(0.05, 3.0),
    ),
    second=OrderRanges(
        blur_probability=0.8,
        kernel=KernelRanges(sigma=(0.2, 1.5)),
        resize_split=(0.3, 0.4, 0.3),
        resize_factor=(0.3, 1.2),
        gaussian_sigma=(1.0, 25.0),
        poisson_scale=(0.05, 2.5),
    ),
)

LIGHT_STABLESR = replace(
    REAL_ESRGAN,
    first=replace(
        REAL_ESRGAN.first,
        kernel=KernelRanges(sigma=(0.2, 1.5), beta_gaussian=(0.5, 2.0), beta_plateau=(1.0, 1.5)),
        resize_factor=(0.3, 1.5),
        gaussian_sigma=(1.0, 15.0),
        poisson_scale=(0.05, 2.0),
        jpeg_quality=(60.0, 95.0),
    ),
    second=replace(
        REAL_ESRGAN.second,
        blur_probability=0.5,
        kernel=KernelRanges(sigma=(0.2, 1.0), beta_gaussian=(0.5, 2.0), beta_plateau=(1.0, 1.5)),
        resize_factor=(0.6, 1.2),
        gaussian_sigma=(1.0, 12.0),
        poisson_scale=(0.05, 1.0),
        jpeg_quality=(60.0, 100.0),
    ),
    untouched_probability=0.01,
)

TABLE1: dict[str, Fixed] = {  # Table 1
    "x4": Fixed(downscale=4),
    "x8": Fixed(downscale=8),
    "blur2_x4": Fixed(blur_sigma=2.0),
    "x4_noise40": Fixed(noise_sigma=40.0),
    "blur2_x4_noise20_jpeg50": Fixed(blur_sigma=2.0, noise_sigma=20.0, jpeg_quality=50),
}
PRESETS: dict[str, TwoOrders | Fixed] = {
    "real_esrgan": REAL_ESRGAN,
    "real_esrgan_unsharpened": replace(REAL_ESRGAN, sharpen=False),
    "light_stablesr": LIGHT_STABLESR,
    **TABLE1,
}


def parse_mixture(text: str) -> dict[str, float]:
    """Presets and their probabilities: of "x4" {"x4": 1.0}, of "real_esrgan=0.7,x4=0.3" both. ValueError if they do not sum to 1."""
    if "=" not in text:
        get_preset(text)
        return {text: 1.0}
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        get_preset(name)
        try:
            found[name] = float(weight)
        except ValueError:
            raise ValueError(f"degradation mixture {text!r}: {weight!r} is no weight; write preset=weight,preset=weight") from None
    total = sum(found.values())
    if not abs(total - 1) <= 1e-6 or min(found.values()) <= 0:  # nan too
        raise ValueError(f"degradation mixture {text!r}: the weights sum to {total:g}, expected 1, and each above 0")
    return found


def get_preset(name: str) -> TwoOrders | Fixed:
    if name not in PRESETS:
        raise ValueError(f"unknown degradation {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
