"""Recipes: the paper's numbers, and arithmetic that teaches."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from infra.config import override
from training import sequence
from training.recipes import (
    ADAPTOR_RECIPES,
    ENCODER_RECIPES,
    QUALITY_WORDS,
    RunConfig,
    adaptor_paper,
    adaptor_tiny,
    batch_arithmetic,
    encoder_tiny,
)


def test_the_paper_recipe_has_the_papers_numbers() -> None:
    config = adaptor_paper()
    assert (config.launch.workers, config.batch.global_batch, config.batch.crop_px) == (64, 256, 512)
    assert (config.optimizer.lr, config.network, config.batch.lanes) == (1e-5, "sdxl_paper", 64)
    negatives = next(source for source in config.sources if source.name == "negatives")
    assert negatives.weight == pytest.approx(100_000 / 20_170_000, rel=0.02)
    assert negatives.negative


@pytest.mark.parametrize("recipe", [*ENCODER_RECIPES.values(), *ADAPTOR_RECIPES.values()])
def test_every_recipe_can_be_cut_and_drawn(recipe) -> None:  # type: ignore[no-untyped-def]
    config = recipe()
    cut = batch_arithmetic(config.batch, config.launch.workers)
    assert cut.micro_batch * cut.accumulation * cut.world == config.batch.global_batch
    assert sum(sequence.shares([source.weight for source in config.sources])) == sequence.BLOCK_TURNS
    assert config.batch.quality_words in QUALITY_WORDS


@pytest.mark.parametrize(
    ("changes", "world", "words"),
    [
        ({"micro_batch": 3}, 64, "global batch 256 does not divide into 64 workers x micro batch 3 \\(192 a pass\\).*\\[1, 2, 4\\]"),
        ({"global_batch": 250}, 64, "does not divide into 64 workers"),
        ({}, 48, "64 lanes do not divide into 48 workers"),
        ({"micro_batch": 0}, 64, "must all be 1 or more"),
    ],
)
def test_a_batch_that_does_not_divide_teaches(changes: dict[str, int], world: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        batch_arithmetic(replace(adaptor_paper().batch, **changes), world)


def test_mixture_weights_teach() -> None:
    with pytest.raises(ValueError, match=r"leave -0\.1 for"):
        _ = replace(adaptor_tiny(), negatives_weight=1.1).sources
    with pytest.raises(ValueError, match="negatives is not given"):
        _ = replace(adaptor_tiny(), negatives=None).sources
    with pytest.raises(ValueError, match="never drawn"):
        sequence.shares([1.0, 1e-5])


def test_ablations_differ_from_the_paper_in_one_thing() -> None:
    paper = vars(adaptor_paper())
    changed = {
        name: {key for key, value in vars(ADAPTOR_RECIPES[name]()).items() if value != paper[key]} - {"output"}
        for name in ("zero_conv", "no_negatives", "no_captions", "data_85k", "data_800")
    }
    negatives, batch = {"negatives", "negatives_weight"}, {"batch"}
    assert changed == {"zero_conv": {"network"}, "no_negatives": negatives, "no_captions": batch, "data_85k": batch, "data_800": batch}
    assert ADAPTOR_RECIPES["no_captions"]().batch.caption_dropout == 1.0
    assert ADAPTOR_RECIPES["data_800"]().batch.fraction * 20_000_000 == pytest.approx(800)
    with pytest.raises(ValueError, match=r"batch\.fraction is 0, expected a share"):
        replace(adaptor_paper().batch, fraction=0.0)


OUT_OF_RANGE = {
    "steps": "0", "batch.window_shards": "0", "batch.caption_dropout": "1.1", "batch.decode_ahead": "0", "batch.decode_threads": "0",
    "batch.cache_mb": "-1", "batch.timestep.std": "nan", "batch.timestep.shift": "0", "optimizer.lr": "-1e-5", "optimizer.beta1": "1",
    "optimizer.beta2": "-0.1", "optimizer.eps": "0", "optimizer.weight_decay": "-1", "optimizer.grad_clip": "nan",
    "optimizer.warmup_steps": "-1", "optimizer.lr_end_fraction": "2", "optimizer.ema_half_life_images": "-1", "launch.workers": "0",
    "launch.threads": "0", "launch.restarts": "-1", "launch.gpus_per_worker": "-1", "launch.cpus_per_worker": "inf", "checkpoint.keep": "0",
    "checkpoint.every_steps": "0", "validation.every_steps": "0", "validation.images": "-1", "compute.nominal_tflop_s": "-1",
}  # fmt: skip
OF_STAGE_1 = {"latent_weight": "nan", "kl_weight": "-1", "perceptual_weight": "-1", "alarm_mean": "nan", "alarm_variance": "-1"}
OF_STAGE_2 = {"min_snr_gamma": "-1", "conditioning_size_px": "0", "validation.restore_steps": "-1"}


@pytest.mark.parametrize(("recipe", "values"), [(encoder_tiny, OUT_OF_RANGE | OF_STAGE_1), (adaptor_tiny, OUT_OF_RANGE | OF_STAGE_2)])
def test_a_value_out_of_its_range_is_refused_where_it_is_set(recipe: Callable[[], RunConfig], values: dict[str, str]) -> None:
    """Before anything is read: a learning rate of nan would else be met after the data, the networks and the first step."""
    for name, text in values.items():
        with pytest.raises(ValueError, match=rf"^{re.escape(name)} is \S+, expected "):
            override(recipe(), name, text)
