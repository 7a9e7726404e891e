"""The engines agree, and take over each other's state, on one, two and three gloo workers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine_runs import Case, loss_gap, results_in, run, spawn

pytestmark = pytest.mark.integration

HALF, END = 8, 16
# fp32 sums of a dozen numbers in another order: some units in the last place of each gradient, which Adam passes on
BAND = 3e-6
SHORT = {"step": "adaptor", "last": 5, "lr": 1e-3}
# of stage 2's own step: the same, through forty layers, and Adam divides tiny gradients by their own size in the first steps
STEP_BAND = 1e-4
# results are rounded to 8 bits of mantissa wherever kernels round: half of 2^-8 once, and no drift
BF16_BAND = 2e-3


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("engines")
    spawn(
        2, folder,
        Case("plain", "plain"), Case("zero2", "zero"), Case("zero1", "zero", stage=1),
        Case("plain in passes", "plain", passes=2), Case("zero2 in passes", "zero", passes=2),
        Case("half zero2", "zero", last=HALF), Case("half plain", "plain", last=HALF),
        Case("zero2 -> zero2", "zero", first=HALF, start="half zero2"),
        Case("zero2 -> plain", "plain", first=HALF, start="half zero2"),
        Case("plain -> zero1", "zero", stage=1, first=HALF, start="half plain"),
        Case("half, offload", "zero", offload=True, last=HALF), Case("zero2, offload", "zero", offload=True),
        Case("zero2, offload -> plain", "plain", first=HALF, start="half, offload"),
        Case("zero3", "zero", stage=3, last=HALF),
        Case("step plain", "plain", **SHORT), Case("step zero2 in passes", "zero", passes=2, **SHORT),
        Case("step bf16 plain", "plain", bf16=True, **SHORT), Case("step bf16 zero2 in passes", "zero", passes=2, bf16=True, **SHORT),
    )  # fmt: skip
    spawn(3, folder, Case("zero2 on 2 -> zero2 on 3", "zero", first=HALF, start="half zero2"))
    run(Case("zero2 on 2 -> plain alone", "plain", first=HALF, start="half zero2"), str(folder), 0, 1)
    return results_in(folder)


def differs(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest relative difference of losses and norms, or absolute difference of any tensor of the state."""
    assert found["optimizer_step"] == expected["optimizer_step"]
    last = expected["losses"][-len(found["losses"]) :]
    scalars = [abs(a - b) / abs(b) for mine, other in zip(found["losses"], last, strict=True) for a, b in zip(mine, other, strict=True)]
    tensors = [float((t - expected["parts"][p][n]).abs().max()) for p, named in found["parts"].items() for n, t in named.items()]
    return max(scalars + tensors)


@pytest.mark.parametrize("name", ["zero2", "zero1", "plain in passes", "zero2 in passes", "zero2, offload"])
def test_zero_gives_the_losses_and_the_state_of_the_oracle(results: dict[str, Any], name: str) -> None:
    assert differs(results[name], results["plain"]) < BAND


def test_zero_3_gives_the_losses_and_the_weights_of_the_oracle(results: dict[str, Any]) -> None:
    """A smoke test: recipes offer stages 1 and 2."""
    assert set(results["zero3"]["parts"]) == {"weights", "exp_avg", "exp_avg_sq"}
    assert differs(results["zero3"], results["half plain"]) < BAND


def test_a_resumed_run_is_the_uninterrupted_run_bit_by_bit(results: dict[str, Any]) -> None:
    assert differs(results["zero2 -> zero2"], results["zero2"]) == 0


@pytest.mark.parametrize(
    "name", ["zero2 -> plain", "plain -> zero1", "zero2 on 2 -> zero2 on 3", "zero2 on 2 -> plain alone", "zero2, offload -> plain"]
)
def test_any_engine_on_any_number_of_workers_goes_on_from_the_state_of_another(results: dict[str, Any], name: str) -> None:
    assert differs(results[name], results["plain"]) < BAND


@pytest.mark.parametrize(("precision", "band"), [("", STEP_BAND), ("bf16 ", BF16_BAND)], ids=["fp32", "bf16"])
def test_stage_2_has_the_same_losses_with_zero_and_accumulation(results: dict[str, Any], precision: str, band: float) -> None:
    """Short form; tests/integration/test_engine_losses.py has 50 steps on 1, 2 and 4 workers."""
    assert loss_gap(results[f"step {precision}zero2 in passes"], results[f"step {precision}plain"]) < band
