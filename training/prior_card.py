"""The card of a prior: what it was made from and how, with its curves and what it can do, as README.md and two pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.dataset import Dataset
from infra.tracking import read_metrics
from supir_model.images import encode_png, model_to_rgb, rgb_to_model
from training.prior_data import Picture, as_rows, crop_of
from training.recipes_prior import PriorConfig

SHOWN = 8  # pictures a row of the sheet
SMOOTH_STEPS = 50  # choice: a loss at one step depends mostly on the timesteps that were drawn

CARD = """# Prior `{network}`

A small SDXL-shaped prior: autoencoder (factor {factor}, {vae_parameters:,} parameters) and text-conditioned UNet
({unet_parameters:,} parameters), trained by `training/train_prior.py` on {photographs} photographs. It stands in for SDXL where
SDXL's weights are not at hand, so that every job runs anywhere. It has seen little and can do little: its pictures are soft, and
nobody should judge SUPIR by them.

The text encoders are not in this folder: their weights are a function of the seed in `prior.json`. The vocabulary is CLIP's
(MIT, from open_clip). Our part in the weights is under Apache-2.0; the photographs that they learned from keep the licences listed below.

    python training/train_prior.py --recipe tiny --input CORPUS --output priors/tiny

With seed {seed}: {vae_steps} steps of {vae_crop}-pixel crops, then {unet_steps} of {unet_crop}-pixel crops,
one thread of a CPU. On crops of its own photographs the autoencoder reaches {psnr:.1f} dB.

![Loss curves](curves.png)

From above: crops; the same through the autoencoder; what the UNet draws from noise for the captions of the crops (25 steps, guidance
scale 3); what it draws from the same noise without a text.

![What it can do](sheet.png)

## Photographs

Photographs that the repository's examples show or score are not among them.

| file | licence, as its source states it | attribution |
| --- | --- | --- |
{rows}
"""


def write_card(config: PriorConfig, components: Any, pool: list[Picture], tracking: str | None, run_id: str) -> None:
    """Write README.md, curves.png and sheet.png into the prior's folder."""
    root = Path(config.output)
    psnr, sheet = _sheet(config, components, pool)
    (root / "sheet.png").write_bytes(encode_png(sheet))
    metrics = read_metrics(tracking, run_id) if tracking else {}
    (root / "curves.png").write_bytes(_curves({name: metrics[name] for name in ("vae/loss", "unet/loss") if name in metrics}))
    rows = _sources(config)
    (root / "README.md").write_text(CARD.format(
        network=config.network, factor=2 ** (len(components.vae.config.block_out_channels) - 1), photographs=len(rows),
        vae_parameters=_count(components.vae), unet_parameters=_count(components.unet), seed=config.seed,
        vae_steps=config.vae.steps, vae_crop=config.vae.crop_px, unet_steps=config.unet.steps, unet_crop=config.unet.crop_px, psnr=psnr,
        rows="\n".join(rows)))  # fmt: skip


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _sources(config: PriorConfig) -> list[str]:
    dataset = Dataset(config.input)
    positions = {row["source_id"]: row["position"] for ref in dataset.snapshot("inputs").shards.values()
                 for row in dataset.read(ref, ["source_id", "position"]).to_pylist()}
    rows = [row for ref in dataset.snapshot("images").shards.values()
            for row in dataset.read(ref, ["source_id", "licence", "attribution"]).to_pylist()]
    return [f"| {positions[row['source_id']]} | {row['licence'] or 'not stated'} | {row['attribution'] or ''} |" for row in rows]


@torch.no_grad()
def _sheet(config: PriorConfig, components: Any, pool: list[Picture]) -> tuple[float, Any]:
    crops = [crop_of(pool, config.seed, "prior/card", number, config.unet.crop_px) for number in range(SHOWN)]
    x_BCHW = rgb_to_model(as_rows(crops))
    vae = components.vae
    y_BCHW = vae.decode(vae.encode(x_BCHW).latent_dist.mode()).sample.clamp(-1, 1)
    psnr = float(10 * torch.log10(4 / (x_BCHW - y_BCHW).square().mean((1, 2, 3))).mean())
    texts = [crop.text for crop in crops]
    drawn = [_draw(config, components, prompts) for prompts in (texts, [""] * len(texts))]
    rows = [*map(model_to_rgb, (x_BCHW, y_BCHW)), *drawn]
    return psnr, np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def _draw(config: PriorConfig, components: Any, texts: list[str]) -> Any:
    """Pictures from noise, uint8 [N, S, S, 3]: image-to-image of diffusers at strength 1, from the mean of all latents (zero)."""
    pipe = components.img2img()
    pipe.set_progress_bar_config(disable=True)
    side = config.unet.crop_px // 2 ** (len(components.vae.config.block_out_channels) - 1)
    # not from a picture: SDXL's schedule ends with 7 % of it left, and a black start draws dark pictures
    start = torch.zeros(len(texts), components.vae.config.latent_channels, side, side)
    generators = [torch.Generator().manual_seed(number) for number in range(len(texts))]
    out = pipe(prompt=texts, negative_prompt=[""] * len(texts), image=start, strength=1.0, num_inference_steps=25, guidance_scale=3.0,
               generator=generators, output_type="np").images
    return (np.asarray(out) * 255).round().astype(np.uint8)


def _curves(metrics: dict[str, list[tuple[int, float]]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots(1, max(len(metrics), 1), squeeze=False)[0]
    for axis, (name, points) in zip(axes, metrics.items()):
        steps, values = np.array(points).T
        kernel = np.ones(min(SMOOTH_STEPS, len(values))) / min(SMOOTH_STEPS, len(values))
        axis.plot(steps, values, color="0.8", linewidth=0.5)
        axis.plot(steps[len(kernel) - 1 :], np.convolve(values, kernel, "valid"), color="#1f5fbf")
        axis.set(title=f"{name} (mean of {len(kernel)} steps)", xlabel="step", yscale="log")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=100)
    return sink.getvalue()
