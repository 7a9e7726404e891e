"""The plan: work and memory counted from the network, checked against closed forms, DeepSpeed's estimator and a real step."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.config import ConfigError
from supir_model.presets import get_network
from supir_model.schedule import sdxl_schedule
from tests.helpers import ROOT, entry_env
from training import flops, memory, plan, planned
from training.recipes import Arithmetic, ComputeOptions, EngineOptions, adaptor_paper, adaptor_tiny, batch_arithmetic, encoder_tiny
from training.recipes_plan import GPUS, RECIPES, Figures, PlanConfig, Prices, encoder_64xa6000, paper_64xa6000, release_64xa6000

TERA = 1e12


def by_hand(step: Any, batch: dict[str, Any]) -> float:
    """FLOPs of a forward pass from the shapes of every convolution, linear layer and attention."""
    total = [0.0]

    def dense(module: Any, inputs: Any, output: Any) -> None:
        weight = module.weight
        each = weight[0].numel()  # multiply-adds for one number of the output
        total[0] += 2 * output.numel() * each

    def attend(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        queries = args[0] if args else kwargs["hidden_states"]
        queries = queries.flatten(2).transpose(1, 2) if queries.ndim == 4 else queries
        keys = kwargs.get("encoder_hidden_states")
        keys = queries if keys is None else keys
        total[0] += 2 * 2 * len(queries) * queries.shape[1] * keys.shape[1] * module.inner_dim

    from diffusers.models.attention_processor import Attention

    modules = {id(m): m for root in (step, step.supir.unet, *step._frozen) for m in root.modules()}.values()
    hooks = [m.register_forward_hook(dense) for m in modules if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks += [m.register_forward_hook(attend, with_kwargs=True) for m in modules if isinstance(m, Attention)]
    with torch.no_grad():
        step(batch)
    for hook in hooks:
        hook.remove()
    return total[0]


def test_the_counter_counts_what_the_shapes_say() -> None:
    config = adaptor_tiny()
    from torch._subclasses.fake_tensor import FakeTensorMode

    sdxl_schedule()  # made once per process: not of fake tensors
    with FakeTensorMode(allow_non_fake_inputs=True):
        step, _, batch = memory.build_fake_step(config, get_network("tiny"), 1)
        expected = by_hand(step, batch)
    work = flops.count(config)
    # ZeroCrossAttn calls its attention without a module of diffusers: 16 x 16 and 32 x 32 positions at most, under one per cent
    assert work.encoding + work.forward == pytest.approx(expected, rel=0.01)
    assert work.text == 0


@pytest.mark.integration  # seconds each
@pytest.mark.parametrize(("network", "forward", "total"), [("sdxl_release", 2.381, 7.18), ("sdxl_paper", 2.100, 6.35)])
def test_work_of_a_sample_at_full_size(network: str, forward: float, total: float) -> None:
    """SDXL at 512 px: UNet 1.589, adaptor 0.690 (half 0.408), connectors 0.102, two encodings of 1.12, text 0.11 TFLOP."""
    work = flops.count(replace(adaptor_paper(), network=network))
    assert work.forward / TERA == pytest.approx(forward, rel=2e-3)
    assert work.encoding / TERA == pytest.approx(2.233, rel=2e-3)
    assert work.text / TERA == pytest.approx(0.111, rel=5e-3)
    assert work.total / TERA == pytest.approx(total, rel=2e-3)


def test_text_encoders_are_sdxls() -> None:
    with torch.device("meta"):
        counts = [sum(p.numel() for p in encoder.parameters()) for encoder in flops.sdxl_text_encoders()]
    assert counts == [123_060_480, 694_659_840]  # published, but for one scale of the similarity that SDXL never reads
    assert sum(counts) == memory.SDXL_TEXT_PARAMETERS


def test_model_states_are_those_of_deepspeeds_estimator() -> None:
    """It counts 16-bit weights and gradients; ours are fp32, which replaces 2 P + 2 P / N by 4 P."""
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    config = adaptor_tiny()
    parts = memory.estimate(config, batch_arithmetic(config.batch, 2))
    trained = parts["gradients"] * 2 / 4
    _, theirs = estimate_zero2_model_states_mem_needs(int(trained), num_gpus_per_node=2, num_nodes=1, cpu_offload=False)
    ours = parts["trained"] + parts["gradients"] + parts["moments"]
    assert ours == pytest.approx(theirs - 2 * trained - 2 * trained / 2 + 4 * trained, rel=1e-6)


REAL_STEP = """
import sys
from pathlib import Path
import torch
from tests.unit.training.test_plan import bench_config
from training import memory
from training.computing import prepare
from training.recipes import ComputeOptions
from training.step import AdaptorStep
from supir_model.network import SupirAdaptor

def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024

torch.set_num_threads(1)
torch.nn.Conv2d(3, 8, 3)(torch.randn(1, 3, 64, 64)).sum().backward()  # libraries load the rest of themselves
config, cut, net = bench_config()
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
B, crop = cut.micro_batch, config.batch.crop_px
text = torch.randn(B, 77, net.context_dim), torch.randn(B, net.pooled_dim)
step = AdaptorStep(unet=net.build_unet(), adaptor=SupirAdaptor(net), vae=net.build_vae(), encoder=net.build_vae().encoder,
                   encode_text=lambda prompts: text, conditioning_size_px=crop, bf16=False)
prepare(step, ComputeOptions(activation_checkpointing=RECOMPUTE))
optimizer = torch.optim.AdamW([p for p in step.parameters() if p.requires_grad])
x, side = torch.randn(B, 3, crop, crop), crop // net.vae_factor
batch = {"x_gt_BCHW": x, "x_lq_BCHW": x, "prompts": [""] * B, "timestep_B": torch.zeros(B, dtype=torch.long),
         "noise_BCHW": torch.randn(B, net.latent_channels, side, side)}
for _ in range(2):
    step(batch)[0].backward()
    optimizer.step()
    optimizer.zero_grad()
print(status("VmHWM") - before)
"""


def bench_config() -> tuple[Any, Arithmetic, Any]:
    """SDXL's layout at a fifth of its widths, one worker, four crops of 256."""
    import supir_model.presets as presets

    net = replace(
        get_network("sdxl_release"), name="bench", block_out_channels=(64, 128, 256), transformer_depth=(0, 1, 2), trunk_depth=(0, 1, 2),
        context_dim=256, pooled_dim=128, addition_time_embed_dim=32, vae_block_out_channels=(32, 64, 64, 64),
    )  # fmt: skip
    presets.NETWORKS = {**presets.NETWORKS, "bench": net}
    tiny = adaptor_tiny()
    batch = replace(tiny.batch, crop_px=256, short_side_px=None, micro_batch=4, global_batch=4)
    config = replace(tiny, network="bench", batch=batch, engine=EngineOptions(kind="plain"))
    return config, Arithmetic(world=1, per_worker=4, micro_batch=4, accumulation=1), net


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.chaos)], ids=["kept", "recomputed"])
def test_memory_is_what_a_real_step_takes(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import supir_model.presets as presets

    monkeypatch.setattr(presets, "NETWORKS", presets.NETWORKS)  # restored afterwards
    config, cut, _ = bench_config()
    config = replace(config, compute=ComputeOptions(activation_checkpointing=recompute))
    expected = memory.peak(memory.estimate(config, cut), config, cut)
    env = entry_env(PYTHONPATH=str(ROOT), MALLOC_MMAP_THRESHOLD_="65536", OMP_NUM_THREADS="1")  # freed tensors go back to the system
    code = f"RECOMPUTE = {recompute}{REAL_STEP}"
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert expected == pytest.approx(int(done.stdout), rel=0.1)  # reached: 2 % kept, 8 % recomputed


# ---- arithmetic


def test_step_time_is_compute_and_the_slowest_link() -> None:
    took = planned_on(64, passes=1).time()
    assert took.compute_s == pytest.approx(4 * 4 / (154.8 * 0.3))
    assert took.exchange_s == pytest.approx(2 * TRAINED * 63 / 64 / 12.5e9)
    assert planned_on(8, passes=1).time().exchange_s == pytest.approx(2 * TRAINED * 7 / 8 / 25e9)
    assert planned_on(1, passes=64).time().exchange_s == 0


@pytest.mark.parametrize(("change", "moves"), [({"zero_stage": 2}, 9), ({"zero_stage": 1}, 2), ({"kind": "plain"}, 2)])
def test_zero_2_reduces_gradients_in_every_pass(change: dict[str, Any], moves: int) -> None:
    """DeepSpeed 0.19.8, stage_1_and_2.py: a partitioned gradient is reduced whether or not the pass is the last."""
    assert planned_on(8, passes=8, **change).time().exchange_s == pytest.approx(moves * TRAINED * 7 / 8 / 25e9)


def test_a_validation_holds_up_all_the_others() -> None:
    """16 pictures: eight losses (encoding, text and forward), 20 sampling steps with and without the text."""
    took = planned_on(64, passes=1).time()
    assert took.validation_s == pytest.approx(16 * (8 * (2 + 1) + 2 * 20 * 1) / (154.8 * 0.3))
    assert took.validations == 1 + 92, "before the first step, and every 500"
    assert took.total_s == pytest.approx(46_000 * took.step_s + 93 * took.validation_s)
    stage_1 = replace(planned_on(64, passes=1), training=plan.training_of(encoder_64xa6000()))
    assert stage_1.time().validation_s == pytest.approx(16 * 1 / (154.8 * 0.3)), "a forward pass"


TRAINED = 3e9  # bytes


def planned_on(gpus: int, *, passes: int, **engine: Any) -> planned.Planned:
    """The paper's recipe, of a network that takes 4 TFLOP a sample."""
    config = replace(paper_64xa6000(), gpus=gpus)
    training = plan.training_of(config)
    training = replace(training, engine=replace(training.engine, **engine))
    sharded = training.engine.kind == "zero" and training.engine.zero_stage == 2
    return planned.Planned(
        config=config, training=training, gpu=GPUS["a6000"], cut=Arithmetic(world=gpus, per_worker=4, micro_batch=4, accumulation=passes),
        parts={"gradients": TRAINED / (gpus if sharded else 1)}, together=0.0,
        work=flops.Work(encoding=2 * TERA, text=0.0, forward=1 * TERA, backward=1 * TERA),
    )  # fmt: skip


def test_the_printed_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "plan.md"
    small = ["--set", "training=tiny", "--gpus", "2", "--set", "prices.gpu_hour=2", "--set", "prices.date=2026-11-01"]
    assert plan.main([*small, "--output", str(page)]) == 0
    out = capsys.readouterr().out
    assert "It fits" in out
    assert "days if the GPUs reach 30% of their nominal speed while they compute" in out
    assert "2 an hour, as of 2026-11-01" in out
    assert "| work a sample: together |" in page.read_text()
    flags = "--set training=tiny --set gpus=2 --set prices.gpu_hour=2.0 --set prices.date=2026-11-01"
    assert f"python training/plan.py --recipe paper_64xa6000 {flags} --output {page}" in page.read_text(), "the command that was given"
    origins = [line.rsplit("  ", 1) for line in out.split("\n}\n")[1].split("\n\n")[0].splitlines()]
    assert all(len(origin) == 2 for origin in origins), f"a number without an origin: {origins}"
    assert plan.main(["--gpu", "h10"]) == 2
    assert "did you mean 'h100'?" in capsys.readouterr().err


def test_a_gpu_that_is_not_known_is_given_by_its_figures() -> None:
    with pytest.raises(ConfigError, match=r"known of a GPU 'b200': .*--set figures\.memory_gib=… --set figures\.bf16_tflop_s=…"):
        plan.gpu_of(PlanConfig(gpu="b200"))
    config = PlanConfig(gpu="b200", figures=Figures(memory_gib=180, bf16_tflop_s=2250))
    own = replace(planned_on(1, passes=64), config=config, gpu=plan.gpu_of(config))
    told = {line.what: line.origin for line in [*planned.memory_lines(own), *planned.time_lines(own, own.time())]}
    assert told["memory: room"] == "180 GiB of b200 (given) less 10% (choice)"
    assert told["step: compute"] == "2250 TFLOP/s (given) x 0.3 (given)"
    assert told["step: exchange"] == "one GPU"
    slow = plan.gpu_of(PlanConfig(gpu="h100", figures=Figures(between_gb_s=3)))
    assert slow == replace(GPUS["h100"], between_gb_s=3), "what is known, but for what is given"


@pytest.mark.integration  # it counts several cuts of a batch
def test_what_does_not_fit_gets_a_cure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = plan.training_of(PlanConfig(training="tiny", gpus=2))
    cut = batch_arithmetic(tiny.batch, 2)
    need = memory.peak(memory.estimate(tiny, cut), tiny, cut)
    small = replace(GPUS["a6000"], name="toy", memory_gib=0.85 * need / 2**30)
    monkeypatch.setitem(GPUS, "toy", small)
    arguments = ["--set", "training=tiny", "--gpus", "2", "--gpu", "toy", "--set", "memory_reserve=0"]
    assert plan.main(arguments) == 1
    out = capsys.readouterr().out
    assert "This would fit: --set micro_batch=2 (" in out
    assert "The training is told by --set batch.micro_batch=2" in out
    monkeypatch.setitem(GPUS, "toy", replace(small, memory_gib=0.001))
    assert plan.main(arguments) == 1
    assert "take a larger GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stage": "decoder"}, "expected one of: encoder, adaptor"),
        ({"training": "papr"}, "no recipe of train_adaptor: known are"),
        ({"gpus": 48}, "64 lanes and a batch of 256 do not divide into 48 workers: plan for --gpus 32 or 64"),
        ({"gpus": 7}, "plan for --gpus 4 or 8"),
        ({"gpus": 100}, "plan for --gpus 64"),
        ({"gpus": 0}, "gpus is 0, expected 1 or more"),
        ({"micro_batch": 3}, "each of 64 GPUs has 4 samples: choose from [1, 2, 4]"),
        ({"zero_stage": 3}, "zero_stage=3"),
        ({"utilisation": 0.0}, "above 0 and up to 1"),
        ({"memory_reserve": 1.0}, "memory_reserve is 1.0, expected 0 or more and below 1"),
        ({"prices.gpu_hour": -1}, "prices.gpu_hour is -1.0, expected 0 or more"),
        ({"figures.memory_gib": "nan"}, "figures.memory_gib is nan"),
        ({"output": "s3://plans/a.md"}, "written to a local path"),
    ],
)
def test_bad_questions_teach(change: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([word for key, value in change.items() for word in ("--set", f"{key}={value}")]) == 2
    assert words in capsys.readouterr().err


def test_recipes_and_prices() -> None:
    assert all(plan.training_of(recipe()) for recipe in RECIPES.values())
    assert plan.training_of(release_64xa6000()).network == "sdxl_release"
    config = replace(paper_64xa6000(), prices=Prices(gpu_hour=1.0, storage_gb_month=0.02, traffic_gb=0.01))
    took = planned.Time(compute_s=1.0, exchange_s=0.0, validation_s=0.0, steps=46_000, validations=0)
    lines = {line.what: line.value for line in planned.money_lines(config, plan.training_of(config), took)}
    assert lines["cost: GPUs"] == f"{46_000 / 3600 * 64:,.0f}"
    assert lines["cost: traffic"] == f"{46_000 * 256 * 0.0005 * 0.01:,.0f}"
    assert lines["cost: together"] == f"{46_000 / 3600 * 64 + 46_000 * 256 * 0.0005 * 0.01 + 10_000 * 46_000 / 86_400 / 30 * 0.02:,.0f}"
    assert lines["cost: storage"] == f"{10_000 * 46_000 / 86_400 / 30 * 0.02:,.0f}"


def test_stage_one_is_counted_too() -> None:
    work = flops.count(encoder_tiny())
    assert work.encoding == work.text == 0
    assert 0 < work.backward < 3 * work.forward


VGG_FLOP = 2 * 15.3466e9  # convolutions of VGG-16 at 224 x 224, as published


def test_the_optional_terms_of_stage_one_are_counted_too() -> None:
    """VGG reads two pictures, and its gradient goes back to one; the divergence is no matrix product, and holds some latents."""
    config = replace(encoder_tiny(), loss="frozen_encoder")
    other = replace(config, perceptual_weight=0.1, kl_weight=1e-6)
    work, more = flops.count(config), flops.count(other)
    share = (config.batch.crop_px / 224) ** 2
    assert more.forward - work.forward == pytest.approx(2 * VGG_FLOP * share, rel=1e-3)
    assert more.backward - work.backward == pytest.approx(VGG_FLOP * share, rel=1e-3)
    cut = batch_arithmetic(config.batch, 2)
    without, with_them = memory.estimate(config, cut), memory.estimate(other, cut)
    assert with_them["frozen"] - without["frozen"] == pytest.approx(4 * 14_714_688, rel=1e-3)  # VGG-16's convolutions, fp32
    features = sum(channels * blocks / 4**i for i, (channels, blocks) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))))
    outputs = 4 * features * config.batch.crop_px**2 * cut.micro_batch  # of every convolution, of one picture
    assert outputs < with_them["activations"] - without["activations"] < 4 * outputs


def test_recomputation_trades_work_for_memory() -> None:
    config = encoder_tiny()
    cut = batch_arithmetic(config.batch, 2)
    other = replace(config, compute=ComputeOptions(activation_checkpointing=True))
    kept, recomputed = memory.estimate(config, cut), memory.estimate(other, cut)
    assert recomputed["activations"] < 0.5 * kept["activations"]
    assert {k: v for k, v in recomputed.items() if k != "activations"} == {k: v for k, v in kept.items() if k != "activations"}
    work, more = flops.count(config), flops.count(other)
    assert more.useful == work.total
    assert 0.2 * work.forward < more.recomputed < work.forward, "blocks once more; the target's half of the forward pass is not kept"


def test_storages_are_followed_from_birth_to_death() -> None:
    from training.liveness import Alive

    before = torch.ones(1000)
    with Alive() as alive:
        a = before * 2  # 4000 bytes
        b = a.view(10, 100) + 1  # 8000: a view is no storage of its own
        del a
        c = b * 3  # the first is gone
        before.add_(1)
        del b, c
    assert alive.most == 8000
