"""Schedule, denoiser, guidance, size condition, colour, preprocessing and autoencoder against the released code.

Every misc/*.json has a check of its own name; a case without one fails.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import Timesteps
from PIL import Image
from torch import Tensor

from supir_model import colour, encoder, keys, tiled_vae
from supir_model.conditioning import Conditions
from supir_model.denoiser import Denoiser
from supir_model.guidance import combine
from supir_model.preprocess import Sizes, from_network, plan_sizes, to_network
from supir_model.presets import NetworkPreset
from supir_model.schedule import Ramp, sdxl_schedule
from tests.parity.golden import GOLDEN, cases, read, worst

VAE = 2e-5  # two fp32 implementations that sum in another order
CLOSE = 1e-5  # a few fp32 operations

Golden = dict[str, Tensor]


def check_denoiser(case: dict[str, Any], golden: Golden) -> None:
    schedule, seen = sdxl_schedule(), {}
    scale = float(re.search(r"w=([\d.]+)", case["net"])[1])  # type: ignore[index]

    def eps(x: Tensor, t_B: Tensor, conditions: Conditions, control_scale: float) -> Tensor:
        seen.update(x=x, t=t_B)
        return torch.tanh(x) * scale + 0.001 * t_B.view(-1, 1, 1, 1)

    batch = len(golden["x"])
    nothing = torch.zeros(batch, 1)
    conditions = Conditions(context_BND=nothing, pooled_BD=nothing, time_ids_B6=nothing, z_lq_BCHW=nothing)
    found = Denoiser(eps=eps, schedule=schedule)(golden["x"], golden["sigma"], conditions, 1.0)
    assert seen["t"].tolist() == golden["net_t"].tolist() == golden["c_noise_idx"].tolist()
    assert worst(seen["x"], golden["net_input"]) < CLOSE * golden["net_input"].abs().max()
    assert worst(found, golden["denoised"]) < CLOSE * golden["denoised"].abs().max()
    assert worst(schedule.sigma_of(golden["c_noise_idx"]), golden["sigma_quantised"]) < CLOSE
    assert worst(schedule.sigma_T, golden["sigmas_1000_ascending"]) < CLOSE
    for name in (name for name in golden if name.startswith("sigmas_n")):
        assert worst(schedule.sigmas(int(name.removeprefix("sigmas_n"))), golden[name]) < CLOSE, name


def check_guider(case: dict[str, Any], golden: Golden) -> None:
    for name in (name for name in golden if name.startswith("out_")):
        start, end = map(float, name.removeprefix("out_").split("_"))
        weights = [Ramp(start=start, end=end).at(sigma) for sigma in golden["sigma"].tolist()]
        rows = [combine(u, c, g) for u, c, g in zip(golden["uncond"], golden["cond"], weights, strict=True)]
        assert worst(torch.stack(rows), golden[name]) < CLOSE, name


def check_size_cond(case: dict[str, Any], golden: Golden) -> None:
    width = golden["vector_1536"].shape[1] // 6
    embed = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
    found = embed(golden["ids"].flatten()).reshape(len(golden["ids"]), -1)
    assert worst(found, golden["vector_1536"]) < 1e-4  # cos of up to 1024 rad: fp32 holds the angle to 6e-5


def check_colorfix(case: dict[str, Any], golden: Golden) -> None:
    for i in sorted({name.split(".")[0] for name in golden}):
        content, style = golden[f"{i}.content"], golden[f"{i}.style"]
        low = colour.low_frequencies(content)
        assert worst(colour.blur(content, 4), golden[f"{i}.blur_r4"]) < CLOSE
        assert worst(low, golden[f"{i}.content_low"]) < CLOSE
        assert worst(content - low, golden[f"{i}.content_high"]) < CLOSE
        assert worst(colour.wavelet(content, style), golden[f"{i}.wavelet"]) < CLOSE
        assert worst(colour.adain(content, style), golden[f"{i}.adain"]) < CLOSE


def check_preprocess(case: dict[str, Any], golden: Golden) -> None:
    def plan(c: dict[str, Any]) -> Sizes:
        width, height = c["in_wh"]
        return plan_sizes(height, width, upscale=c["upscale"], min_size_px=c["min_size"], fixed_side_px=c["fix_resize"])

    for c in case["size_only"]:
        sizes = plan(c)
        assert [sizes.net_height, sizes.net_width] == c["net_hw"], c
        assert [sizes.out_height, sizes.out_width] == c["h0_w0"], c
    for name, c in case["cases"].items():
        sizes, expected = plan(c), golden[f"{name}.tensor"]
        rgb = golden[f"{name}.input_u8"].numpy()
        # Pillow 13 made the golden pictures: when it shrinks it may take the columns first, so this order counts too
        columns = Image.fromarray(rgb).resize((rgb.shape[1], sizes.net_height), Image.Resampling.BICUBIC)
        found = min(worst(to_network(picture, sizes)[0], expected) for picture in (rgb, np.array(columns)))
        assert found < 2e-7, name  # the same levels; one rounding on the way to [-1, 1]
        given = Sizes(net_height=0, net_width=0, out_height=c["h0"], out_width=c["w0"])
        assert np.array_equal(from_network(expected[None], given)[0], golden[f"{name}.tensor2pil_u8"].numpy()), name


def golden_vae() -> tuple[Any, Any]:
    """The tiny autoencoder of misc/vae_weights and its degradation-robust encoder, from the official layout."""
    case, official = read(GOLDEN / "misc" / "vae_weights.json")
    dd = case["ddconfig"]
    preset = NetworkPreset(
        name="golden",
        block_out_channels=(32,),
        transformer_depth=(1,),
        trunk_depth=(1,),
        head_width=32,
        context_dim=32,
        pooled_dim=32,
        addition_time_embed_dim=32,
        latent_channels=case["embed_dim"],
        vae_block_out_channels=tuple(dd["ch"] * m for m in dd["ch_mult"]),
        vae_layers_per_block=dd["num_res_blocks"],
        vae_scaling_factor=case["scale_factor"],
        sample_size_px=dd["resolution"],
    )
    vae = preset.build_vae().eval()
    robust = encoder.copy_encoder(vae)
    for module, prefix in ((vae, keys.VAE), (robust, keys.ENCODER)):
        names = keys.vae_keys(module.state_dict())
        tensors = {name: official[prefix + theirs].float() for name, theirs in names.items()}
        module.load_state_dict({k: v.view(module.state_dict()[k].shape) for k, v in tensors.items()})
    return vae, robust


def check_vae_weights(case: dict[str, Any], golden: Golden) -> None:
    golden_vae()  # every tensor of ours is there, in our shape


@torch.no_grad()
def check_vae_stage1(case: dict[str, Any], golden: Golden) -> None:
    vae, robust = golden_vae()
    z_lq = encoder.encode_mode(vae, robust, golden["x"])
    x_stage1 = encoder.decode(vae, z_lq)
    assert worst(vae.quant_conv(robust(golden["x"])), golden["moments_denoise_encoder"]) < VAE
    assert worst(z_lq, golden["z_lq"]) < VAE
    assert worst(x_stage1, golden["x_stage1"]) < VAE
    assert worst(vae.quant_conv(vae.encoder(golden["x"])), golden["moments_encoder"]) < VAE
    assert worst(encoder.encode_sample(vae, golden["x_stage1"], golden["eps"]), golden["z_center"]) < VAE


@torch.no_grad()
def check_vae_tiled(case: dict[str, Any], golden: Golden) -> None:
    sizes = re.search(r"encoder tile (\d+) pad (\d+), decoder tile (\d+) pad (\d+)", case["note"])
    assert sizes, "the note says how the tiles were cut"
    tile_px, pad_px, tile, pad = map(int, sizes.groups())
    assert (pad_px, pad) == (tiled_vae.ENCODER_PAD_PX, tiled_vae.DECODER_PAD)
    vae, robust = golden_vae()
    assert worst(robust(golden["enc_in"]), golden["enc_full"]) < VAE
    assert worst(vae.decoder(golden["dec_in"]), golden["dec_full"]) < VAE
    assert worst(tiled_vae.tiled_encoder(robust, golden["enc_in"], tile_px), golden["enc_tiled"]) < VAE
    assert worst(tiled_vae.tiled_decoder(vae.decoder, golden["dec_in"], tile), golden["dec_tiled"]) < VAE
    down: Callable[[int], int] = lambda n: n // 8  # noqa: E731
    up: Callable[[int], int] = lambda n: n * 8  # noqa: E731
    assert_boxes(case["enc_boxes"], tile_px, pad_px, down)
    assert_boxes(case["dec_boxes"], tile, pad, up)
    assert_boxes(case["boxes_1024_enc512"], 512, pad_px, down)
    assert_boxes(case["boxes_128_dec64"], 64, pad, up)


def assert_boxes(expected: list[list[list[int]]], tile: int, pad: int, scale: Callable[[int], int]) -> None:
    """`expected`: boxes [x1, x2, y1, y2] of input and output."""
    width, height = (max(box[axis] for box in expected[0]) for axis in (1, 3))
    found = [
        (h, v) for v in tiled_vae.spans(height, tile, pad, scale) for h in tiled_vae.spans(width, tile, pad, scale)
    ]
    assert [[h.start, h.stop, v.start, v.stop] for h, v in found] == expected[0]
    assert [[h.out_start, h.out_stop, v.out_start, v.out_stop] for h, v in found] == expected[1]


@pytest.mark.parametrize("path", cases("misc/*.json"), ids=lambda path: path.stem)
def test_misc(path: Any) -> None:
    case, golden = read(path)
    name = f"check_{path.stem}"
    assert name in globals(), f"{path} has no check: write {name}"
    globals()[name](case, golden)


def test_boxes_cover_every_pixel_once() -> None:
    for length in range(40, 400, 7):
        found = tiled_vae.spans(length, 64, 11, lambda n: n)
        assert found[0].out_start == 0
        assert found[-1].out_stop == length
        assert all(a.out_stop == b.out_start for a, b in pairwise(found))
        assert math.isclose(sum(s.out_stop - s.out_start for s in found), length)
