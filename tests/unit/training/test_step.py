"""What a step minimises: which parameters it moves, and what its minimum is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from infra.metrics import Metric
from supir_model.encoder import copy_encoder, encode_mode, moments
from supir_model.network import SupirAdaptor
from supir_model.presets import get_network
from training.batches import Sample
from training.engines import clip_scale, ema_decay
from training.loop import learning_rate
from training.recipes import OptimizerOptions, ValidationOptions, adaptor_tiny, encoder_tiny
from training.stages import FIXED_TIMESTEPS, AdaptorStage, EncoderStage
from training.step import AdaptorStep, EncoderStep

PRESET = get_network("tiny")
B, CROP = 2, 32


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"vae": PRESET.build_vae().eval(), "unet": PRESET.build_unet().eval()}


def pair() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x_BCHW = torch.rand(B, 3, CROP, CROP, generator=g) * 2 - 1
    return {"x_gt_BCHW": x_BCHW, "x_lq_BCHW": (x_BCHW + 0.3 * torch.randn(x_BCHW.shape, generator=g)).clamp(-1, 1)}


def encoder_step(networks: dict[str, Any], loss: str) -> EncoderStep:
    vae = networks["vae"]
    return EncoderStep(vae, copy_encoder(vae), loss=loss, latent_weight=1.0, bf16=False)  # type: ignore[arg-type]


def test_stage_1_moves_the_encoder_alone(networks: dict[str, Any]) -> None:
    step = encoder_step(networks, "frozen_encoder")
    loss, parts = step(pair())
    loss.backward()
    assert all(name.startswith("encoder.") for name, _ in step.named_parameters())
    assert all(p.grad is not None for p in step.parameters())
    assert all(p.grad is None for p in networks["vae"].parameters())
    assert loss.item() == pytest.approx(parts["loss_B"].mean().item())
    assert set(parts) == {"loss_B", "image_B", "latent_B", "decoded_mean_B", "decoded_variance_B", "target_mean_B", "target_variance_B"}


def test_the_anchored_loss_is_zero_where_the_encoder_sees_through_the_degradation(networks: dict[str, Any]) -> None:
    clean = {**pair(), "x_lq_BCHW": pair()["x_gt_BCHW"]}
    assert encoder_step(networks, "frozen_encoder")(clean)[0].item() < 1e-10


def test_a_constant_encoder_minimises_the_printed_loss_and_not_the_anchored_one(networks: dict[str, Any]) -> None:
    losses = {}
    for name in ("paper", "frozen_encoder"):
        step = encoder_step(networks, name)
        with torch.no_grad():
            step.encoder.conv_out.weight.zero_()
        losses[name] = step(pair())[0].item()
    assert losses["paper"] == 0
    assert losses["frozen_encoder"] > 1e-3


def test_the_printed_loss_trains_both_sides(networks: dict[str, Any]) -> None:
    step, batch = encoder_step(networks, "paper"), pair()
    batch["x_gt_BCHW"].requires_grad_(True)
    step(batch)[0].backward()
    assert batch["x_gt_BCHW"].grad is not None


def adaptor_step(networks: dict[str, Any]) -> tuple[AdaptorStep, dict[str, Any]]:
    vae, unet = networks["vae"], networks["unet"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        adaptor = SupirAdaptor.from_unet(unet, PRESET)
        text = torch.randn(B, 77, PRESET.context_dim), torch.randn(B, PRESET.pooled_dim)
        noise_BCHW = torch.randn(B, 4, CROP // PRESET.vae_factor, CROP // PRESET.vae_factor)
    step = AdaptorStep(
        unet=unet, adaptor=adaptor, vae=vae, encoder=vae.encoder, encode_text=lambda _: text, conditioning_size_px=128, bf16=False
    )
    return step, {**pair(), "prompts": ["", "a photograph"], "timestep_B": torch.tensor([100, 900]), "noise_BCHW": noise_BCHW}


def test_stage_2_moves_trunk_and_connectors_alone(networks: dict[str, Any]) -> None:
    step, batch = adaptor_step(networks)
    loss, _ = step(batch)
    loss.backward()
    assert {name.split(".")[2] for name, _ in step.named_parameters()} == {"trunk", "connectors"}
    assert any(bool(p.grad.any()) for name, p in step.named_parameters() if "connectors" in name and p.grad is not None)
    assert all(p.grad is None for frozen in (networks["vae"], networks["unet"]) for p in frozen.parameters())


def test_stage_2_is_noise_prediction_on_sdxls_schedule(networks: dict[str, Any]) -> None:
    """eps_theta(sqrt(abar) z + sqrt(1 - abar) eps, t), from SDXL's own betas."""
    step, batch = adaptor_step(networks)
    beta_T = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar_B111 = torch.cumprod(1 - beta_T, 0)[batch["timestep_B"]].float().view(-1, 1, 1, 1)
    vae, seen = networks["vae"], {}
    z_BCHW = encode_mode(vae, vae.encoder, batch["x_gt_BCHW"])
    step.supir.register_forward_pre_hook(lambda _, args: seen.update(x=args[0], z_lq=args[4]))
    with torch.no_grad():
        step(batch)
    expected = abar_B111.sqrt() * z_BCHW + (1 - abar_B111).sqrt() * batch["noise_BCHW"]
    assert torch.allclose(seen["x"], expected, atol=1e-5)  # fp32, two ways of writing the same sum
    assert torch.equal(seen["z_lq"], encode_mode(vae, vae.encoder, batch["x_lq_BCHW"]))


def test_min_snr_weights_nearly_clean_samples_less(networks: dict[str, Any]) -> None:
    """min(SNR, 5) / SNR with SNR = abar / (1 - abar), from SDXL's own betas."""
    step, batch = adaptor_step(networks)
    plain = step(batch)[1]["loss_B"]
    step._min_snr_gamma = 5.0
    loss, parts = step(batch)
    beta_T = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar_B = torch.cumprod(1 - beta_T, 0)[batch["timestep_B"]]
    snr_B = abar_B / (1 - abar_B)
    weight_B = (snr_B.clamp(max=5.0) / snr_B).float()
    assert weight_B[0] < 1 == weight_B[1], "timesteps 100 and 900"
    assert torch.equal(parts["error_B"], plain)
    assert torch.allclose(parts["loss_B"], weight_B * plain, rtol=1e-5)  # sigma in fp32 there, abar in double here
    assert torch.equal(loss.detach(), parts["loss_B"].mean())


def test_bf16_computes_near_fp32_and_leaves_what_is_trained_in_fp32(networks: dict[str, Any]) -> None:
    step, batch = adaptor_step(networks)
    fp32 = step(batch)[0].item()
    step._bf16 = True
    loss = step(batch)[0]
    loss.backward()
    assert loss.item() == pytest.approx(fp32, rel=0.03)  # 8 bits of mantissa through some forty layers
    assert {p.grad.dtype for p in step.parameters() if p.grad is not None} == {torch.float32}


def test_the_learning_rate_warms_up_and_ends_where_it_should() -> None:
    options = OptimizerOptions(lr=1.0, warmup_steps=4, lr_end_fraction=0.1)
    rates = [learning_rate(options, step, 20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[4:]))
    constant = OptimizerOptions(lr=1e-5)
    assert {learning_rate(constant, step, 20) for step in range(20)} == {1e-5}


def test_clipping_and_averaging_are_their_formulas() -> None:
    assert clip_scale(2.0, 1.0) == pytest.approx(0.5, rel=1e-5)
    assert clip_scale(0.5, 1.0) == clip_scale(9.0, 0.0) == 1.0
    assert ema_decay(half_life_images=256, batch=64) ** 4 == pytest.approx(0.5)


def test_the_optional_terms_of_stage_1_are_their_formulas_and_are_told_apart(networks: dict[str, Any]) -> None:
    vae, batch = networks["vae"], pair()

    class Distance(torch.nn.Module):
        def forward(self, a_BCHW: torch.Tensor, b_BCHW: torch.Tensor) -> torch.Tensor:
            return (a_BCHW - b_BCHW).abs().flatten(1).mean(dim=1)

    plain = encoder_step(networks, "frozen_encoder")
    step = EncoderStep(
        vae, plain.encoder, loss="frozen_encoder", latent_weight=1.0, bf16=False,
        kl_weight=0.5, perceptual_weight=2.0, perceptual=Distance(),
    )  # fmt: skip
    (before, _), (loss, parts) = plain(batch), step(batch)
    mean_BCHW, std_BCHW = moments(vae, plain.encoder, batch["x_lq_BCHW"])
    posterior, unit = torch.distributions.Normal(mean_BCHW, std_BCHW), torch.distributions.Normal(0.0, 1.0)
    expected_B = torch.distributions.kl_divergence(posterior, unit).flatten(1).mean(dim=1)
    assert torch.allclose(parts["kl_B"], expected_B, rtol=1e-4)  # torch takes the logarithm of another ratio
    assert loss.item() == pytest.approx((before + 0.5 * parts["kl_B"].mean() + 2 * parts["perceptual_B"].mean()).item(), rel=1e-5)
    loss.backward()
    assert all(name.startswith("encoder.") for name, _ in step.named_parameters()), "nothing of the distance is trained"


def test_a_sampled_ground_truth_is_mean_and_noise(networks: dict[str, Any]) -> None:
    step, batch = adaptor_step(networks)
    vae, seen = networks["vae"], []
    step.supir.register_forward_pre_hook(lambda _, args: seen.append((args[0], args[3]["time_ids"])))
    noise_BCHW = torch.randn(batch["noise_BCHW"].shape, generator=torch.Generator().manual_seed(5))
    sizes_B6 = torch.tensor([[700.0, 900, 10, 20, 32, 32], [640, 480, 0, 3, 32, 32]])
    with torch.no_grad():
        step(batch)
        step({**batch, "posterior_noise_BCHW": noise_BCHW, "time_ids_B6": sizes_B6})
    (mode, fixed_B6), (sample, own_B6) = seen
    _, std_BCHW = moments(vae, vae.encoder, batch["x_gt_BCHW"])
    beta_T = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar_B111 = torch.cumprod(1 - beta_T, 0)[batch["timestep_B"]].float().view(-1, 1, 1, 1)
    expected = abar_B111.sqrt() * std_BCHW * noise_BCHW * vae.config.scaling_factor
    assert torch.allclose(sample - mode, expected, atol=1e-5)  # a difference of fp32 numbers of size 1
    assert fixed_B6.tolist() == [[128, 128, 0, 0, 128, 128]] * 2
    assert torch.equal(own_B6, sizes_B6)


def test_every_part_of_a_step_is_a_metric(networks: dict[str, Any]) -> None:
    """The loop logs means of all parts, and `Metric` refuses a name that it does not know."""
    vae = networks["vae"]
    stage1 = EncoderStep(vae, copy_encoder(vae), loss="frozen_encoder", latent_weight=1.0, bf16=False, kl_weight=1.0)
    stage2, batch = adaptor_step(networks)
    stage2._min_snr_gamma = 5.0
    parts = {*stage1(pair())[1], *stage2(batch)[1], "perceptual_B"}
    assert {"kl_B", "error_B"} <= parts
    assert all(Metric(name.removesuffix("_B")) for name in parts)


def test_alarms_of_a_collapsing_encoder(networks: dict[str, Any]) -> None:
    config = replace(encoder_tiny(), loss="paper")
    stage = EncoderStage(config=config, step=encoder_step(networks, "paper"), fixed=[], device=torch.device("cpu"))
    healthy = {"decoded_mean": 0.1, "target_mean": 0.12, "decoded_variance": 0.2, "target_variance": 0.25}
    assert stage.alarms(healthy) == []
    dark, flat = stage.alarms({**healthy, "decoded_mean": -0.4}) + stage.alarms({**healthy, "decoded_variance": 0.01})
    assert "decoded mean -0.40, the ground truth has 0.12" in dark
    assert "decoded variance 0.010" in flat
    assert "use loss=frozen_encoder" in flat


def test_validation_is_the_same_whenever_it_is_asked_for(networks: dict[str, Any]) -> None:
    """Eight timesteps and one noise for each picture, whatever was drawn meanwhile; what is trained stays in its mode, and torch's
    generator where it was."""
    step, _ = adaptor_step(networks)
    step._encode_text = lambda prompts: (torch.ones(len(prompts), 77, PRESET.context_dim), torch.ones(len(prompts), PRESET.pooled_dim))
    batch = replace(adaptor_tiny().batch, crop_px=CROP, micro_batch=B)
    config = replace(adaptor_tiny(), validation=ValidationOptions(every_steps=1), batch=batch)
    picture_HWC = np.random.default_rng(0).integers(0, 256, (CROP, CROP, 3)).astype(np.uint8)
    fixed = [Sample(position=i, source="photographs", image_id=f"{i}", gt_HWC=picture_HWC, lq_HWC=picture_HWC[:, ::-1].copy(),
                    prompt="", timestep=0, noise_seed=i) for i in range(B + 1)]  # fmt: skip
    stage = AdaptorStage(config=config, step=step, fixed=fixed, device=torch.device("cpu"), restoration=None)  # type: ignore[arg-type]
    before = torch.get_rng_state()
    with torch.no_grad():
        first = stage.validate()
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(7)
        again = stage.validate()
    assert first.metrics == again.metrics
    assert len([name for name in first.metrics if name.startswith("validation/loss/t")]) == 8
    assert len(set(first.metrics.values())) == 9, "each timestep its own, and their mean"
    with torch.no_grad():
        one, two = (replace(stage, fixed=part)._fixed_loss(FIXED_TIMESTEPS[0]) for part in (fixed[B:], fixed[:B]))
    assert first.metrics["validation/loss/t062"] == (B * two + one) / (B + 1), "no more at a time than a step has"
    assert step.supir.adaptor.training == SupirAdaptor(PRESET).training
