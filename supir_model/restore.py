"""One call from degraded pictures to restored ones (Fig. 2, test time)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from supir_model.colour import fix_colour
from supir_model.conditioning import Conditions, size_time_ids
from supir_model.denoiser import Denoise, Denoiser, NoisePredictor
from supir_model.encoder import decode, encode_mode, encode_sample
from supir_model.guidance import guided
from supir_model.network import SupirUNet
from supir_model.offload import summon
from supir_model.presets import SamplingPreset
from supir_model.sampler import OnStep, PerImageNoise, sample_dpmpp2m, sample_edm
from supir_model.schedule import Ramp, karras, sdxl_schedule
from supir_model.text import TOKEN_BUDGET, encode_prompts, windows_wanted
from supir_model.tiling import Window, tiled, windows
from supir_model.weights import Restorer

FIELDS = ("x_BCHW", "x_stage1_BCHW", "z_BCHW", "z_lq_BCHW")


class Stage1(NamedTuple):
    """`z_lq_BCHW` the scaled latent by the degradation-robust encoder, and the picture that it decodes to, in about [-1, 1]."""

    z_lq_BCHW: Tensor
    x_BCHW: Tensor


@dataclass(frozen=True, kw_only=True)
class Restored:
    """`x_BCHW` the result and `x_stage1_BCHW` the decoded z_lq, in about [-1, 1], not clipped.

    `z_BCHW` is the sampled latent and `z_lq_BCHW` that of the input, both scaled.
    """

    x_BCHW: Tensor
    x_stage1_BCHW: Tensor
    z_BCHW: Tensor
    z_lq_BCHW: Tensor


@torch.no_grad()
def restore(
    restorer: Restorer,
    x_lq_BCHW: Tensor,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    settings: SamplingPreset,
    seeds: Sequence[int],
    *,
    tile_prompts: Sequence[Sequence[str]] | None = None,
    first: Stage1 | None = None,
    images_at_once: int | None = None,
    on_step: OnStep | None = None,
) -> Restored:
    """Restore pictures of one size, in [-1, 1], with a prompt, a negative prompt and a seed each.

    `prompts` are whole texts: see `Prompts.around`. `tile_prompts` are others for the tiles of each picture, in the order of
    `tiles`; None: every tile has its picture's prompt. `first` is what `stage1` gave for these very pictures, None to compute it.
    `on_step` sees the latents of the pictures that go together after each step, and says what to go on with.

    The result of a picture depends on its own row alone: bit for bit on the CPU, where pictures go one by one unless
    `images_at_once` says otherwise; elsewhere they go together, as far as their prompts fill the same number of windows, and
    kernels chosen by batch size may change last bits.
    """
    _check(restorer, x_lq_BCHW, prompts, negative_prompts, seeds)
    texts_of = [list(texts) for texts in tile_prompts] if tile_prompts is not None else [[prompt] for prompt in prompts]
    if tile_prompts is not None:
        _check_tile_prompts(texts_of, tiles(restorer, settings, *x_lq_BCHW.shape[-2:]), len(seeds))
    windows = [
        max(windows_wanted(restorer.components, [*texts, negative], settings.long_prompts))
        for texts, negative in zip(texts_of, negative_prompts, strict=True)
    ]
    parts = []
    for rows in _together(restorer, windows, images_at_once):
        made = Stage1(*(part[rows] for part in first)) if first else _stage1(restorer, x_lq_BCHW[rows], settings)
        texts = [list(texts) for texts in zip(*texts_of[rows], strict=True)], list(negative_prompts[rows])
        parts.append(_restore_together(restorer, made, *texts, settings, list(seeds[rows]), windows[rows.start], on_step))
    return parts[0] if len(parts) == 1 else Restored(**{name: torch.cat([getattr(p, name) for p in parts]) for name in FIELDS})


@torch.no_grad()
def stage1(restorer: Restorer, x_lq_BCHW: Tensor, settings: SamplingPreset) -> Stage1:
    """What happens before any text: encoded by the degradation-robust encoder and decoded, which is what captioners see.

    A picture's result is its own, as in `restore`.
    """
    parts = [_stage1(restorer, x_lq_BCHW[rows], settings) for rows in _together(restorer, [1] * len(x_lq_BCHW), None)]
    return parts[0] if len(parts) == 1 else Stage1(*(torch.cat(part) for part in zip(*parts)))


def tiles(restorer: Restorer, settings: SamplingPreset, height: int, width: int) -> list[Window]:
    """The windows in which a picture of `height` x `width` pixels, as the network works at it, is sampled; one where nothing tiles.

    In pixels of that picture, row by row from the upper left corner.
    """
    factor = restorer.vae_factor
    return [Window(*(factor * side for side in window)) for window in _windows(restorer, settings, height // factor, width // factor)]


def _windows(restorer: Restorer, settings: SamplingPreset, height: int, width: int) -> list[Window]:
    if not settings.tile_px:
        return [Window(0, 0, height, width)]
    tile, stride = (px // restorer.vae_factor for px in (settings.tile_px, settings.tile_stride_px))
    return windows(height, width, tile=tile, stride=stride)


def _together(restorer: Restorer, windows: Sequence[int], images_at_once: int | None) -> Iterator[slice]:
    """Rows that go together: neighbours that need the same number of windows."""
    most = images_at_once or (1 if restorer.device.type == "cpu" else len(windows))
    start = 0
    for stop in range(1, len(windows) + 1):
        if stop == len(windows) or stop - start == most or windows[stop] != windows[start]:
            yield slice(start, stop)
            start = stop


def _stage1(restorer: Restorer, x_lq_BCHW: Tensor, settings: SamplingPreset) -> Stage1:
    vae = summon(restorer.components.vae)
    tile_px, tiling = settings.vae_tile_px, settings.vae_tiling
    x_BCHW = x_lq_BCHW.to(restorer.device, vae.dtype)
    z_lq_BCHW = encode_mode(vae, summon(restorer.encoder), x_BCHW, tile_px=tile_px, tiling=tiling)
    return Stage1(z_lq_BCHW.float(), decode(vae, z_lq_BCHW, tile_px=tile_px, tiling=tiling).float())


def _restore_together(
    restorer: Restorer,
    first: Stage1,
    prompts: list[list[str]],
    negatives: list[str],
    settings: SamplingPreset,
    seeds: list[int],
    windows: int,
    on_step: OnStep | None,
) -> Restored:
    z_lq_BCHW, x_stage1_BCHW = first
    vae = summon(restorer.components.vae)
    draw = PerImageNoise(seeds, z_lq_BCHW.shape[1:], restorer.device)
    tile_px, tiling = settings.vae_tile_px, settings.vae_tiling
    z_center_BCHW = encode_sample(vae, x_stage1_BCHW.to(vae.dtype), draw(), tile_px=tile_px, tiling=tiling).float()
    *positives, negative = (_conditions(restorer, texts, z_lq_BCHW, settings, windows) for texts in (*prompts, negatives))
    denoise = _denoise(restorer, positives, negative, settings)
    z_BCHW = _sample(denoise, draw, z_center_BCHW, settings, on_step)
    x_BCHW = decode(summon(vae), z_BCHW.to(vae.dtype), tile_px=tile_px, tiling=tiling).float()
    x_BCHW = fix_colour(settings.colour_fix, x_BCHW, x_stage1_BCHW)
    return Restored(x_BCHW=x_BCHW, x_stage1_BCHW=x_stage1_BCHW, z_BCHW=z_BCHW, z_lq_BCHW=z_lq_BCHW)


def _sample(denoise: Denoise, draw: PerImageNoise, z_center_BCHW: Tensor, settings: SamplingPreset, on_step: OnStep | None) -> Tensor:
    sigmas = sdxl_schedule().sigmas(settings.steps)
    if settings.sampler == "dpmpp2m":
        scale, s_noise = settings.control_scale_end, settings.s_noise
        return sample_dpmpp2m(
            denoise, draw(), karras(sigmas), draw=draw, eta=settings.eta, s_noise=s_noise, control_scale=scale, on_step=on_step
        )
    return sample_edm(
        denoise,
        draw(),
        sigmas,
        draw=draw,
        z_center_BCHW=z_center_BCHW,
        restore_cfg=settings.restore_cfg,
        s_churn=settings.s_churn,
        s_noise=settings.s_noise,
        control=Ramp(start=settings.control_scale_start, end=settings.control_scale_end),
        on_step=on_step,
    )


def _denoise(restorer: Restorer, positives: Sequence[Conditions], negative: Conditions, settings: SamplingPreset) -> Denoise:
    """`positives`: one for all windows, or one each."""
    denoiser = Denoiser(eps=_noise_predictor(restorer), schedule=sdxl_schedule())
    weight = Ramp(start=settings.guidance_start, end=settings.guidance_end)
    places = _windows(restorer, settings, *negative.z_lq_BCHW.shape[-2:])
    positive_at = dict(zip(places, positives if len(positives) > 1 else [*positives] * len(places), strict=True))

    def denoiser_for(place: Window) -> Denoise:
        return guided(denoiser, positive=positive_at[place].crop(*place), negative=negative.crop(*place), weight=weight)

    return tiled(denoiser_for, places) if settings.tile_px else denoiser_for(places[0])


def _noise_predictor(restorer: Restorer) -> NoisePredictor:
    """The network as the denoiser asks for it: in its own precision, answers in fp32."""
    unet, adaptor = summon(restorer.components.unet), restorer.adaptor and summon(restorer.adaptor)
    supir = SupirUNet(unet, adaptor).eval() if adaptor is not None else None

    def eps(x_BCHW: Tensor, timestep_B: Tensor, conditions: Conditions, control_scale: float) -> Tensor:
        x_BCHW = x_BCHW.to(unet.dtype)
        if supir is None:
            output = unet(x_BCHW, timestep_B, conditions.context_BND, added_cond_kwargs=conditions.added, return_dict=False)[0]
        else:
            z_lq_BCHW = conditions.z_lq_BCHW.to(unet.dtype)
            output = supir(x_BCHW, timestep_B, conditions.context_BND, conditions.added, z_lq_BCHW, control_scale)
        return torch.as_tensor(output).float()

    return eps


def _conditions(
    restorer: Restorer, texts: list[str], z_lq_BCHW: Tensor, settings: SamplingPreset, windows: int
) -> Conditions:
    encoded = encode_prompts(restorer.components, texts, long_prompts=settings.long_prompts, windows=windows)
    for tokens, words in zip(encoded.tokens, encoded.lost, strict=True):
        if words:
            warnings.warn(
                f"a prompt has {tokens} tokens and CLIP reads {TOKEN_BUDGET}; these words are lost: {words!r}. "
                'long_prompts="windows" reads them all',
                stacklevel=2,
            )
    dtype = restorer.components.unet.dtype
    return Conditions(
        context_BND=encoded.context_BND.to(restorer.device, dtype),
        pooled_BD=encoded.pooled_BD.to(restorer.device, dtype),
        time_ids_B6=size_time_ids(len(texts), settings.conditioning_size_px, restorer.device),
        z_lq_BCHW=z_lq_BCHW,
    )


def _check(
    restorer: Restorer, x_lq_BCHW: Tensor, prompts: Sequence[str], negatives: Sequence[str], seeds: Sequence[int]
) -> None:
    counts = {"pictures": len(x_lq_BCHW), "prompts": len(prompts), "negative prompts": len(negatives), "seeds": len(seeds)}
    if len(set(counts.values())) != 1 or not len(seeds):
        raise ValueError(f"one prompt, negative prompt and seed a picture is wanted, found {counts}")
    sides = x_lq_BCHW.shape[-2:]
    if any(side % restorer.vae_factor for side in sides):
        raise ValueError(
            f"pictures of {sides[0]} x {sides[1]} pixels: both sides must be multiples of {restorer.vae_factor}; "
            "plan_sizes in supir_model.preprocess chooses such a size"
        )


def _check_tile_prompts(texts_of: Sequence[Sequence[str]], places: Sequence[Window], pictures: int) -> None:
    counts = [len(texts) for texts in texts_of]
    if counts != [len(places)] * pictures:
        raise ValueError(
            f"tile_prompts has {counts} prompts for {pictures} pictures of {len(places)} tiles each: give every tile of every picture one, "
            "in the order of supir_model.restore.tiles; tile_px and tile_stride_px of the settings decide the tiles"
        )
