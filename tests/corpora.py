"""Small corpora for training tests: photographs, captions, negatives, committed as the jobs commit them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa

from tests.helpers import commit_table, images_dataset, photographs

ROOT = Path(__file__).resolve().parents[1]
NEGATIVE = "oil painting, blurring, low quality"


def corpus(folder: Path | str, photos: int = 9, per_shard: int = 3, side_px: int = 160) -> str:
    """A dataset with images, selections (one rejected) and captions; returns its address."""
    dataset, snapshot = images_dataset(str(folder), photographs(photos), per_shard=per_shard, side_px=side_px)
    selections, captions = [], []
    for i, ref in enumerate(snapshot.shards.values()):
        rows = dataset.read(ref, ["image_id", "source_id"]).to_pylist()
        chosen = [{**row, "accepted": not (i == 0 and k == 0), "reason": "", "value": ""} for k, row in enumerate(rows)]
        selections.append(pa.Table.from_pylist(chosen))
        said = [{"image_id": row["image_id"], "caption": f"A photograph, number {k}."} for k, row in enumerate(rows)]
        captions.append(pa.Table.from_pylist(said))
    commit_table(dataset, "selections", selections)
    commit_table(dataset, "captions", captions)
    return dataset.store.url


def negatives(folder: Path, photos: int = 4) -> str:
    """A dataset of bad pictures, whose captions are negative words; returns its address."""
    dataset, snapshot = images_dataset(str(folder), photographs(photos), per_shard=photos, side_px=144)
    rows = [dataset.read(ref, ["image_id"]).to_pylist() for ref in snapshot.shards.values()]
    commit_table(dataset, "captions", [pa.Table.from_pylist([{**row, "caption": NEGATIVE} for row in shard]) for shard in rows])
    return dataset.store.url


def random_prior(folder: Path, network: str = "tiny") -> str:
    """A prior of random weights in the shape of a network preset; returns its folder."""
    import torch

    from supir_model.presets import get_network
    from supir_model.prior import save_prior

    preset = get_network(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_prior(folder, unet=preset.build_unet(), vae=preset.build_vae(), network=network, text_seed=0)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(ROOT / "priors" / "tiny" / name, folder / name)
    return str(folder)
