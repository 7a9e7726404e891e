"""DeepSpeed's dictionary is derived from the recipe: nothing in it is stated twice."""

from __future__ import annotations

import torch

from training.recipes import EngineOptions, OptimizerOptions


def test_the_dictionary_follows_the_recipe_and_leaves_the_total_batch_out() -> None:
    from training.engines.zero import deepspeed_config

    options, optimizer = EngineOptions(zero_stage=1, offload_optimizer=True), OptimizerOptions(lr=1e-5, grad_clip=0.7)
    found = deepspeed_config(options, optimizer, micro_batch=3, accumulation=5, device=torch.device("cuda"))
    assert found["train_micro_batch_size_per_gpu"] == 3
    assert found["gradient_accumulation_steps"] == 5
    assert "train_batch_size" not in found, "it would be checked against a world that may read as 1"
    assert found["gradient_clipping"] == 0.7
    assert found["zero_optimization"]["stage"] == 1
    assert found["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert not {"fp16", "bf16", "optimizer", "scheduler"} & set(found), "precision, optimizer and schedule are ours"
    assert "reduce_bucket_size" not in found["zero_optimization"], "DeepSpeed's own on a GPU"
    plain = deepspeed_config(EngineOptions(), optimizer, micro_batch=1, accumulation=1, device=torch.device("cpu"))
    assert "offload_optimizer" not in plain["zero_optimization"]
