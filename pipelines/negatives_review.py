"""Are the negatives worse than their parents? Our own measures on a sample of pairs, and a sheet of them to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from infra.dataset import Dataset, Snapshot
from pipelines.stages.captions import seed_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORSE_WHEN = {"sharpness": "lower", "cutoff": "lower", "flatness": "higher"}  # measures of detail that a bad picture loses
SHEET_PX, SHEET_PAIRS, TEXT_PX, LINE_CHARS = 256, 12, 50, 40  # a whole wording of the paper takes three lines
SHARDS_READ = 8  # choice: a sample of this many shards


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A parent as the network saw it, and what was made of it: uint8 RGB of one size."""

    parent_HWC: NDArray[Any]
    negative_HWC: NDArray[Any]
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Review:
    """Means over the pairs: measure -> (parents, negatives)."""

    pairs: int
    means: dict[str, tuple[float, float]]

    @property
    def worse(self) -> bool:
        """Whether most of the measures moved the way they do in bad pictures."""
        moved = [(after < before) == (WORSE_WHEN[name] == "lower") and after != before for name, (before, after) in self.means.items()]
        return sum(moved) * 2 > len(moved)

    def describe(self) -> str:
        """In words."""
        said = ", ".join(f"{name} {before:.3g} -> {after:.3g}" for name, (before, after) in self.means.items())
        verdict = "worse on average, as wanted" if self.worse else (
            "NOT worse on average: look at the sheet; raise negatives.strength or negatives.guidance_scale, or look at the prior")
        return f"{self.pairs} pairs of parent and negative: {said}: {verdict}"

    def metrics(self) -> dict[str, float]:
        """For the tracked run."""
        return {f"{who}/{name}": values[place] for name, values in self.means.items() for place, who in enumerate(("parents", "negatives"))}


def choose_pairs(source: Dataset, output: Dataset, made: Snapshot, fit: Callable[[Any], Any], count: int) -> Iterator[Pair]:
    """Up to `count` pairs, chosen by a hash of the parent's id. `fit` cuts a parent as the stage did."""
    from supir_model.images import decode

    images = source.snapshot("images")
    shards = sorted((shard for shard, ref in made.shards.items() if ref.rows), key=lambda shard: seed_of(shard, "review"))[:SHARDS_READ]
    for place, shard in enumerate(shards):
        share = count * (place + 1) // len(shards) - count * place // len(shards)
        rows = output.read(made.shards[shard], ["parent_image_id", "prompt", "bytes"]).to_pylist()
        chosen = {row["parent_image_id"]: row for row in sorted(rows, key=lambda row: seed_of(row["parent_image_id"], "review"))[:share]}
        table = source.read(images.shards[shard], ["image_id", "bytes"])
        for image_id, data in zip(table.column("image_id").to_pylist(), table.column("bytes"), strict=True):
            if row := chosen.pop(image_id, None):
                yield Pair(parent_HWC=fit(decode(data.as_py()).rgb_HWC), negative_HWC=decode(row["bytes"]).rgb_HWC, prompt=row["prompt"])


def review(pairs: list[Pair]) -> Review:
    """Measure both sides of every pair. Raises ValueError without pairs."""
    if not pairs:
        raise ValueError("no pair of parent and negative to measure: were negatives made?")
    sides = [[_measured(pair.parent_HWC) for pair in pairs], [_measured(pair.negative_HWC) for pair in pairs]]
    means = {name: (fmean(one[name] for one in sides[0]), fmean(one[name] for one in sides[1])) for name in WORSE_WHEN}
    return Review(pairs=len(pairs), means=means)


def _measured(rgb_HWC: NDArray[Any]) -> dict[str, float]:
    from pipelines.stages.measures import of_tiles, tiles

    return of_tiles(tiles.luma(rgb_HWC))


def sheet(pairs: list[Pair]) -> NDArray[Any]:
    """Parents above their negatives with the prompt below, six pairs a row (uint8 RGB)."""
    import textwrap

    import numpy as np
    from PIL import Image, ImageDraw

    shown, columns = pairs[:SHEET_PAIRS], min(6, len(pairs[:SHEET_PAIRS]))
    height = 2 * SHEET_PX + TEXT_PX
    page = Image.new("RGB", (columns * SHEET_PX, height * -(-len(shown) // columns)), "white")
    draw = ImageDraw.Draw(page)
    for i, pair in enumerate(shown):
        left, top = i % columns * SHEET_PX, i // columns * height
        for below, picture in enumerate((pair.parent_HWC, pair.negative_HWC)):
            page.paste(Image.fromarray(picture).resize((SHEET_PX, SHEET_PX)), (left, top + below * SHEET_PX))
        text = "\n".join(textwrap.wrap(pair.prompt, LINE_CHARS)[:3])
        draw.multiline_text((left + 4, top + 2 * SHEET_PX + 2), text, fill="black", spacing=2)
    return np.asarray(page)
