"""Refuses a restoration that will not fit into memory, before it starts, and says what would."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from infra import machine
from infra.dataset import Dataset, ShardRef
from pipelines.recipes.restore import RestoreConfig
from pipelines.stages.restorer import Weights

TILES_PX = (2048, 1024, 512, 256, 128)
UPRIGHT = (1, 2, 3, 4)  # EXIF orientations that keep width and height where they are
GIB = 2**30
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def check(config: RestoreConfig, weights: Weights, source: Dataset, pending: Iterable[ShardRef]) -> None:
    """Raise ValueError if the largest picture of some shards does not fit. Workers elsewhere (RAY_ADDRESS) are not checked."""
    sizes = [] if os.environ.get("RAY_ADDRESS") else list(working_sizes(config, source, pending))
    if not sizes:
        return
    height, width, workers = *max(sizes, key=lambda size: size[0] * size[1]), min(max(1, config.workers.workers), len(sizes))
    need, there = _total(config, weights, height, width), available_bytes(weights.device)
    if there is None or need.total * workers <= there:
        return
    shares = f"weights {_gib(need.weights)}, whole pictures {_gib(need.images)}, networks at work {_gib(need.network)}"
    raise ValueError(
        f"the largest picture is worked at {width} x {height} pixels and needs about {_gib(need.total)} GiB ({shares}) for each of "
        f"{workers} workers; {_gib(there)} GiB are available. {_advice(config, weights, height, width, workers, there)}"
    )


def working_sizes(config: RestoreConfig, source: Dataset, shards: Iterable[ShardRef]) -> Iterator[tuple[int, int]]:
    """(height, width) at which the network works on each picture."""
    from supir_model.preprocess import plan_sizes

    sampling = config.sampling
    for ref in shards:
        for row in source.read(ref, ["width", "height", "orientation"]).to_pylist():
            turned = row["orientation"] not in UPRIGHT
            height, width = (row["width"], row["height"]) if turned else (row["height"], row["width"])
            shrink = min(1.0, config.longest_px / max(height, width)) if config.longest_px else 1.0
            size = plan_sizes(
                max(1, round(height * shrink)), max(1, round(width * shrink)), upscale=config.upscale, min_size_px=sampling.min_size_px,
                multiple_px=sampling.multiple_px,
            )  # fmt: skip
            yield size.net_height, size.net_width


def available_bytes(device: str) -> int | None:
    """Memory that a new process may take: of the GPU, or of this machine and its control group. None where nothing tells."""
    if device != "cpu":
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.mem_get_info()[0])
    return machine.available_bytes()


def _advice(config: RestoreConfig, weights: Weights, height: int, width: int, workers: int, there: int) -> str:
    fitting = [tile for tile in TILES_PX if tile < max(height, width) and _fits(config, weights, height, width, workers, there, tile)]
    if fitting:
        tile = fitting[0]
        sizes = " or ".join(str(one) for one in fitting)
        flags = {"tile_stride_px": tile // 2, "tile_px": tile, "vae_tile_px": tile}
        return f"Tiles of {sizes} px would fit: " + " ".join(f"--set sampling.{name}={value}" for name, value in flags.items())
    if workers > 1:
        return "No tile size fits: try --set workers.workers=1"
    return "No tile size fits: shrink pictures (--set longest_px=…), upscale less (--set upscale=1), or use --set precision=bf16"


def _fits(config: RestoreConfig, weights: Weights, height: int, width: int, workers: int, there: int, tile_px: int) -> bool:
    sampling = replace(config.sampling, tile_stride_px=tile_px // 2, tile_px=tile_px, vae_tile_px=tile_px)
    return _total(replace(config, sampling=sampling), weights, height, width).total * workers <= there


def _total(config: RestoreConfig, weights: Weights, height: int, width: int) -> Any:
    from supir_model.memory import estimate

    return estimate(
        weights.prior, encoder=weights.encoder, adaptor=weights.adaptor, height=height, width=width, settings=config.sampling,
        element_bytes=ELEMENT_BYTES[config.precision],
    )  # fmt: skip


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f}"
