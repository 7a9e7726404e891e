"""MFU against its closed form: images a second x counted FLOPs of an image / nominal FLOP/s of all devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from training import flops, loop
from training.loop import Clock, Place
from training.recipes import ComputeOptions, RunConfig, adaptor_paper, encoder_tiny
from training.utilisation import full_images_per_s, nominal_tflop_s

TERA = 1e12
TWO = Place(rank=0, world=2, device=torch.device("cpu"))
WORK = flops.Work(encoding=2 * TERA, text=1 * TERA, forward=3 * TERA, backward=4 * TERA, recomputed=5 * TERA)


def given(config: RunConfig, tflop_s: float) -> RunConfig:
    return replace(config, compute=ComputeOptions(nominal_tflop_s=tflop_s))


def test_it_is_counted_from_the_run_and_what_is_recomputed_is_no_useful_work(monkeypatch: pytest.MonkeyPatch) -> None:
    config, counted = given(encoder_tiny(), 50.0), []
    monkeypatch.setattr(flops, "count", lambda config: counted.append(config) or WORK)
    assert full_images_per_s(config, TWO) == pytest.approx(2 * 50 / (2 + 1 + 3 + 4))
    assert counted == [config]


def test_images_a_second_over_those_at_full_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 102.0, 103.0])
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(now))
    said: list[str] = []
    clock = Clock(said.append, full_images_per_s=10.0)
    assert clock.tick(1, 9, 8, 0.5, 1.0) == pytest.approx(rates(images_per_s=4.0, mfu=0.4, data_wait_share=0.25))
    assert clock.tick(2, 9, 8, 0.5, 1.0) == pytest.approx(rates(images_per_s=8.0, mfu=0.8, data_wait_share=0.5))
    assert "25% of it waiting for data, MFU 40.0%" in said[0]


def rates(**values: float) -> Any:
    return {**values, "memory_mb": pytest.approx(loop.memory_mb(), rel=0.5)}


def test_without_a_nominal_speed_none_is_logged() -> None:
    assert full_images_per_s(encoder_tiny(), TWO) is None
    assert "mfu" not in Clock(lambda _: None).tick(1, 9, 8, 0.5, 1.0)


def test_a_gpu_is_known_by_its_name_in_bf16_and_a_given_speed_goes_first() -> None:
    bf16, fp32 = adaptor_paper(), replace(adaptor_paper(), precision="fp32")
    assert nominal_tflop_s(bf16, "NVIDIA H200") == nominal_tflop_s(bf16, "NVIDIA H100 80GB HBM3") == 989.0
    assert nominal_tflop_s(bf16, "NVIDIA RTX A6000") == 154.8
    assert nominal_tflop_s(bf16, "NVIDIA H100 PCIe") is None, "a slower model under a similar name"
    assert nominal_tflop_s(fp32, "NVIDIA H200") is None
    assert nominal_tflop_s(given(bf16, 700.0), "NVIDIA H200") == 700.0
