"""train_prior: a run that is stopped and started again takes the same steps; what it writes is a prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from infra.dataset import Dataset
from infra.tracking import open_tracker
from supir_model.presets import get_network
from supir_model.prior import load_components
from tests.helpers import ROOT, commit_table, images_dataset
from training import prior_loop, prior_output, train_prior
from training.prior_data import Picture, crop_of, load_pool, prior_crop
from training.recipes_prior import PriorConfig, smoke

TOKENIZERS = str(ROOT / "priors" / "tiny")
SHORT_SIDE_PX = 96


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """Sums are cut by the number of threads; exact equality needs it fixed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ten_steps(output: Path) -> PriorConfig:
    config = smoke()
    return replace(config, output=str(output), tokenizers=TOKENIZERS, checkpoint_every=5, vae=replace(config.vae, steps=10))


def pool() -> list[Picture]:
    rng = np.random.default_rng(0)
    return [Picture(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), "noise") for _ in range(3)]


def train_vae(config: PriorConfig, wrap: Callable[[prior_loop.Loss], prior_loop.Loss] = lambda loss: loss) -> dict[str, Tensor]:
    with prior_output.seeded(config.seed):
        vae = get_network("tiny").build_vae()
    loss = wrap(prior_loop.vae_loss(vae, pool(), config))
    prior_loop.train_phase("vae", vae, loss, config.vae, config, open_tracker(None, "t", "t"), config.ema_half_life_images)
    return dict(vae.state_dict())


def test_ten_steps_are_five_and_five(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stopping(loss: prior_loop.Loss) -> prior_loop.Loss:
        def until(step: int) -> Tensor:
            if step == 7:  # two steps after the checkpoint: they are lost and must be taken again
                raise Stopped
            return loss(step)

        return until

    through = train_vae(ten_steps(tmp_path / "through"))
    with pytest.raises(Stopped):
        train_vae(ten_steps(tmp_path / "stopped"), stopping)
    taken: list[int] = []

    def noting(loss: prior_loop.Loss) -> prior_loop.Loss:
        def note(step: int) -> Tensor:
            taken.append(step)
            return loss(step)

        return note

    resumed = train_vae(ten_steps(tmp_path / "stopped"), noting)
    assert taken == [5, 6, 7, 8, 9]
    assert all(torch.equal(through[name], resumed[name]) for name in through), "the same steps must give the same bits"


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    config = ten_steps(tmp_path)
    train_vae(config)
    with pytest.raises(ValueError, match="belongs to another configuration"):
        train_vae(replace(config, seed=1))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loss at step 0 is nan"):
        train_vae(ten_steps(tmp_path), lambda loss: lambda step: loss(step) * float("nan"))


def test_a_crop_is_a_function_of_its_number() -> None:
    pictures, config = pool(), smoke()
    forwards = [crop_of(pictures, 0, "t", number, 16) for number in range(5)]
    backwards = [crop_of(pictures, 0, "t", number, 16) for number in reversed(range(5))]
    assert all(np.array_equal(a.rgb_HWC, b.rgb_HWC) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not np.array_equal(forwards[0].rgb_HWC, crop_of(pictures, 1, "t", 0, 16).rgb_HWC)
    shuffled = [crop_of(pictures, 0, "t", number, 16, shuffled=1.0) for number in range(5)]
    pairs = [(one.rgb_HWC, other.rgb_HWC) for one, other in zip(forwards, shuffled, strict=True)]
    orders = {next(order for order in permutations(range(3)) if np.array_equal(a[:, :, order], b)) for a, b in pairs}
    assert len(orders) > 1, "the same crops, their channels in drawn orders"
    texts = {prior_crop(pictures, config, number).text for number in range(30)}
    assert len(texts) == 2, "captions, and the negative words with what is degraded"


def corpus(url: Path) -> Dataset:
    dataset, images = images_dataset(str(url), per_shard=3, side_px=144)
    tables = []
    for ref in images.shards.values():
        ids = dataset.read(ref, ["image_id"]).column("image_id").to_pylist()
        tables.append(pa.table({"image_id": ids, "caption": [f"A photograph, number {i}." for i in range(len(ids))]}))
    commit_table(dataset, "captions", tables)
    commit_table(dataset, "inputs", [inputs_of(dataset, ref) for ref in images.shards.values()])
    return dataset


def inputs_of(dataset: Dataset, ref: Any) -> pa.Table:
    rows = dataset.read(ref, ["source_id", "source_url"])
    return pa.table({"source_id": rows.column("source_id"), "position": rows.column("source_url")})


def test_the_pool_leaves_out_what_was_taken_down(tmp_path: Path) -> None:
    dataset = corpus(tmp_path / "corpus")
    config = replace(smoke(), input=str(tmp_path / "corpus"), short_sides_px=(SHORT_SIDE_PX // 2, SHORT_SIDE_PX // 3))
    before = load_pool(config)
    first = next(iter(dataset.snapshot("images").shards.values()))
    dataset.add_takedown([dataset.read(first, ["image_id"]).column("image_id")[0].as_py()], "its owner asked")
    assert len(load_pool(config)) == len(before) - 2  # at each of two sizes


def test_the_entry_writes_a_prior_with_a_card(tmp_path: Path) -> None:
    corpus(tmp_path / "corpus")
    command = ["--recipe", "smoke", "--input", str(tmp_path / "corpus"), "--output", str(tmp_path / "prior"), "--set",
               f"tokenizers={TOKENIZERS}", "--set", "short_sides_px=[48]"]
    assert train_prior.main([*command, "--dry-run"]) == 0
    assert not (tmp_path / "prior" / "unet").exists()
    assert train_prior.main(command) == 0
    components = load_components(tmp_path / "prior")
    assert components.network == "tiny"
    assert "CC0-1.0" in (tmp_path / "prior" / "README.md").read_text()
