"""Named sizes of the networks and named settings of the sampler. Imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

UNet = Any  # diffusers' UNet2DConditionModel, whose own annotations do not show its modules
Vae = Any  # diffusers' AutoencoderKL, likewise

LongPrompts = Literal["windows", "cut"]
Connector = Literal["zero_sft", "zero_conv"]
VaeTiling = Literal["exact", "exact_norms", "released"]

TIME_IDS = 6  # original (h, w), crop (top, left), target (h, w); SDXL report, Sec. 2.2


@dataclass(frozen=True, kw_only=True)
class NetworkPreset:
    """Widths and depths of prior, adaptor and autoencoder.

    `transformer_depth[l]` is the number of transformer blocks after each residual block of level l of the UNet (0: the level
    has no attention); `trunk_depth` the same for the adaptor's trunk. The middle block takes the last entry.
    `context_dim` is the width of the text tokens (both text encoders side by side), `pooled_dim` that of the pooled text.
    `connector` "zero_sft" is SUPIR's, "zero_conv" the ablation of Table 2c.
    """

    name: str
    block_out_channels: tuple[int, ...]
    transformer_depth: tuple[int, ...]
    trunk_depth: tuple[int, ...]
    connector: Connector = "zero_sft"
    layers_per_block: int = 2
    norm_groups: int = 32  # of the UNet and the trunk; the connectors' norms always have 32
    head_width: int
    context_dim: int
    pooled_dim: int
    addition_time_embed_dim: int
    latent_channels: int = 4
    vae_block_out_channels: tuple[int, ...]
    vae_layers_per_block: int = 2
    vae_norm_groups: int = 32
    vae_scaling_factor: float
    sample_size_px: int

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for field in ("transformer_depth", "trunk_depth"):
            depth = getattr(self, field)
            if len(depth) != levels:
                raise ValueError(f"{self.name}: {field} has {len(depth)} entries, expected {levels} (one a level)")
            if depth[-1] < 1:
                raise ValueError(f"{self.name}: the last entry of {field} is {depth[-1]}; the middle block needs 1 or more")

    @property
    def vae_factor(self) -> int:
        """How many pixels of the image are one pixel of the latent, per axis."""
        return int(2 ** (len(self.vae_block_out_channels) - 1))

    @property
    def vector_dim(self) -> int:
        """Width of the vector condition: pooled text and six embedded scalars (SDXL: 2816)."""
        return self.pooled_dim + TIME_IDS * self.addition_time_embed_dim

    def unet_config(self) -> dict[str, object]:
        """The configuration of the prior as diffusers' UNet2DConditionModel takes it."""
        attended = [depth > 0 for depth in self.transformer_depth]
        return {
            "sample_size": self.sample_size_px // self.vae_factor,
            "in_channels": self.latent_channels,
            "out_channels": self.latent_channels,
            "block_out_channels": self.block_out_channels,
            "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended),
            "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
            "layers_per_block": self.layers_per_block,
            "norm_num_groups": self.norm_groups,
            "transformer_layers_per_block": tuple(max(depth, 1) for depth in self.transformer_depth),
            # diffusers calls the number of heads attention_head_dim
            "attention_head_dim": tuple(width // self.head_width for width in self.block_out_channels),
            "cross_attention_dim": self.context_dim,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": self.addition_time_embed_dim,
            "projection_class_embeddings_input_dim": self.vector_dim,
        }

    def vae_config(self) -> dict[str, object]:
        """The configuration of the autoencoder as diffusers' AutoencoderKL takes it."""
        levels = len(self.vae_block_out_channels)
        return {
            "sample_size": self.sample_size_px,
            "block_out_channels": self.vae_block_out_channels,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "layers_per_block": self.vae_layers_per_block,
            "latent_channels": self.latent_channels,
            "norm_num_groups": self.vae_norm_groups,
            "scaling_factor": self.vae_scaling_factor,
        }

    def build_unet(self) -> UNet:
        """A fresh prior with random weights, on the current default device."""
        from diffusers import UNet2DConditionModel

        unet: UNet = UNet2DConditionModel
        return unet(**self.unet_config())

    def build_vae(self) -> Vae:
        """A fresh autoencoder with random weights, on the current default device."""
        from diffusers import AutoencoderKL

        vae: Vae = AutoencoderKL
        return vae(**self.vae_config())


def _with_zero_conv(preset: NetworkPreset) -> NetworkPreset:
    return replace(preset, name=f"{preset.name}_zero_conv", connector="zero_conv")


def _sdxl(name: str, trunk_depth: tuple[int, ...]) -> NetworkPreset:
    return NetworkPreset(
        name=name,
        block_out_channels=(320, 640, 1280),
        transformer_depth=(0, 2, 10),
        trunk_depth=trunk_depth,
        head_width=64,
        context_dim=2048,
        pooled_dim=1280,
        addition_time_embed_dim=256,
        vae_block_out_channels=(128, 256, 512, 512),
        vae_scaling_factor=0.13025,
        sample_size_px=1024,
    )


SDXL_PAPER = _sdxl("sdxl_paper", (0, 1, 5))  # Sec. 3.1: half of the transformer blocks of each encoder block
TINY = NetworkPreset(  # choice: the same code, small enough for a laptop
    name="tiny",
    block_out_channels=(32, 64, 128),
    transformer_depth=(0, 1, 1),
    trunk_depth=(0, 1, 1),
    head_width=32,
    norm_groups=8,  # choice: with one channel a group, a group norm forgets the colour of the whole picture
    context_dim=128,
    pooled_dim=64,
    addition_time_embed_dim=16,
    vae_block_out_channels=(16, 32, 64),
    vae_layers_per_block=1,
    vae_norm_groups=2,
    vae_scaling_factor=1.0,
    sample_size_px=128,
)

NETWORKS: Mapping[str, NetworkPreset] = {
    preset.name: preset
    for preset in (
        SDXL_PAPER,
        _with_zero_conv(SDXL_PAPER),  # Table 2c
        _sdxl("sdxl_release", (0, 2, 10)),  # the released checkpoints keep them all
        TINY,
        _with_zero_conv(TINY),
    )
}


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Texts put around the caption. Positive text = caption + `positive`, joined as they are; negative text = `negative`."""

    positive: str
    negative: str
    source: str

    def around(self, caption: str) -> str:
        """The positive text for a caption. Released code joins the two with nothing between."""
        return caption + self.positive


# The released inference code's texts.
RELEASED_PROMPTS = Prompts(
    positive=(
        "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - realistic "
        "maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, skin pore detailing, hyper sharpness, "
        "perfect without deformations."
    ),
    negative=(
        "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, 3D render, "
        "unreal engine, blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts, "
        "deformed, lowres, over-smooth"
    ),
    source="released code",
)
PAPER_PROMPTS = Prompts(
    positive=(  # App. A.2
        "cinematic, High Contrast, highly detailed, unreal engine, taken using a Canon EOS R camera, hyper detailed "
        "photo-realistic maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, skin pore detailing, "
        "hyper sharpness, perfect without deformations, Unreal Engine 5, 4k render"
    ),
    negative="oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, over-smooth",  # Sec. 3.2
    source="paper",
)


@dataclass(frozen=True, kw_only=True)
class SamplingPreset:
    """Settings of one restoration. `*_start` holds at sigma max, `*_end` at sigma 0, linear in sigma between them.

    `restore_cfg` is tau_r of Algorithm 1 (0 or less: no pull to the input); `guidance_*` the weight g of u + g (c - u);
    `s_churn`, `s_noise` the stochasticity of Algorithm 1; `min_size_px` the shortest side that the network works at and
    `multiple_px` what both sides are rounded to. `tile_px` and `vae_tile_px` of 0 let sampler and autoencoder work on the whole
    image at once; where the released code tiles, it takes 1024 with a stride of 512, and 512. `vae_tiling` says how the
    autoencoder's tiles agree: "exact" equals the untiled result, and its attention's time grows with the square of the image;
    "exact_norms" has attention within tiles; "released" averages statistics too. `long_prompts` says what becomes of
    a prompt beyond CLIP's 77 tokens: "windows" of 77 side by side, or "cut" with a warning, as released.
    """

    name: str
    steps: int
    restore_cfg: float
    s_churn: float
    s_noise: float
    guidance_start: float
    guidance_end: float
    control_scale_start: float = 1.0
    control_scale_end: float = 1.0
    sampler: Literal["edm", "dpmpp2m"] = "edm"
    eta: float = 1.0
    colour_fix: Literal["wavelet", "adain", "none"] = "wavelet"
    prompts: Prompts = RELEASED_PROMPTS
    min_size_px: int = 1024
    multiple_px: int = 64
    tile_px: int = 0
    tile_stride_px: int = 0
    vae_tile_px: int = 0
    vae_tiling: VaeTiling = "exact"
    conditioning_size_px: int = 1024
    long_prompts: LongPrompts = "windows"

    def __post_init__(self) -> None:
        if not 1 <= self.steps < 1000:  # the schedule has 1000 timesteps, and its last is not followed by another
            raise ValueError(f"{self.name}: steps is {self.steps}, expected 1 to 999")
        if self.tile_px and not 0 < self.tile_stride_px <= self.tile_px:
            raise ValueError(
                f"{self.name}: tile_stride_px is {self.tile_stride_px}, expected 1 to tile_px ({self.tile_px}): "
                "a wider stride leaves gaps between the tiles"
            )


SAMPLINGS: Mapping[str, SamplingPreset] = {
    "paper": SamplingPreset(
        name="paper",
        steps=100,  # Sec. 4.1
        restore_cfg=4.0,  # Sec. 4.1
        s_churn=0.0,  # released YAML; the paper names no value
        s_noise=1.003,  # released YAML; the paper names no value
        guidance_start=8.5,  # Sec. 4.1: lambda 7.5 in z_pos + lambda (z_pos - z_neg) is the weight 8.5 in u + g (c - u)
        guidance_end=8.5,
        colour_fix="none",
        prompts=PAPER_PROMPTS,
    ),
    "release_quality": SamplingPreset(  # the released demo's "Quality"
        name="release_quality", steps=50, restore_cfg=-1.0, s_churn=5.0, s_noise=1.003, guidance_start=4.0, guidance_end=7.5,
        vae_tiling="released",
    ),
    "release_fidelity": SamplingPreset(  # the released demo's "Fidelity"
        name="release_fidelity", steps=50, restore_cfg=-1.0, s_churn=5.0, s_noise=1.003, guidance_start=1.0, guidance_end=4.0,
        vae_tiling="released",
    ),
    "tiny": SamplingPreset(  # choice: what the tiny network does in seconds; few steps, a strong pull to the input
        name="tiny",
        steps=12,
        restore_cfg=0.2,
        s_churn=0.0,
        s_noise=1.003,
        guidance_start=1.0,
        guidance_end=2.0,
        min_size_px=128,
        multiple_px=16,
        conditioning_size_px=128,
    ),
}


def get_network(name: str) -> NetworkPreset:
    """The network preset of this name; ValueError that names the nearest one."""
    return _get(NETWORKS, name, "network preset")


def get_sampling(name: str) -> SamplingPreset:
    """The sampling preset of this name; ValueError that names the nearest one."""
    return _get(SAMPLINGS, name, "sampling preset")


T = TypeVar("T")


def _get(table: Mapping[str, T], name: str, what: str) -> T:
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown {what} {name!r}{hint} Known: {', '.join(table)}")
