"""SupirPipeline: the same as `restore`, in diffusers' manner; saved and loaded by diffusers' own machinery."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from supir_model.encoder import copy_encoder
from supir_model.pipeline import SupirPipeline
from supir_model.preprocess import from_network, plan_sizes, to_network
from supir_model.presets import NetworkPreset, get_sampling
from supir_model.restore import restore
from supir_model.weights import Restorer, load_restorer, official_tensors, save_official
from tests.unit.supir_model.conftest import build

FAST = dataclasses.replace(get_sampling("tiny"), steps=2, min_size_px=32, s_churn=5.0)


@pytest.fixture(scope="module")
def restorer(prior_folder: Path, tiny: NetworkPreset) -> Restorer:
    _, _, adaptor = build(tiny)
    loaded = load_restorer(prior_folder)
    encoder = copy_encoder(loaded.components.vae)
    with torch.no_grad():
        encoder.conv_in.weight.mul_(1.05)
    return dataclasses.replace(loaded, adaptor=adaptor.requires_grad_(False), encoder=encoder.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def pipeline(restorer: Restorer) -> SupirPipeline:
    made = SupirPipeline.from_restorer(restorer, preset="tiny")
    made.set_progress_bar_config(disable=True)
    return made


def picture(seed: int = 0, height: int = 40, width: int = 32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def run(pipeline: SupirPipeline, image: Any, **arguments: Any) -> list[Any]:
    return pipeline(image, **{"prompt": "a cat", "generator": 7, "preset": FAST, "output_type": "pt", **arguments}).images  # type: ignore[union-attr]


def test_it_is_restore_bit_for_bit(pipeline: SupirPipeline, restorer: Restorer) -> None:
    sizes = plan_sizes(40, 32, upscale=2, min_size_px=FAST.min_size_px, multiple_px=FAST.multiple_px)
    changed = dataclasses.replace(
        FAST, steps=3, guidance_start=2.0, guidance_end=2.0, control_scale_start=0.5, control_scale_end=0.9, restore_cfg=1.5
    )
    wanted = restore(restorer, to_network(picture(), sizes), [FAST.prompts.around("a cat")], ["bad"], changed, [7])
    arguments = {"num_inference_steps": 3, "guidance_scale": 2.0, "control_scale": (0.5, 0.9), "restoration_scale": 1.5}
    common = {"prompt": "a cat", "negative_prompt": "bad", "upscale": 2, "generator": 7, "preset": FAST, **arguments}
    images, stage1 = pipeline(picture(), return_dict=False, **common)  # type: ignore[arg-type]
    assert images[0].size == (64, 80)
    assert np.array_equal(np.array(images[0]), from_network(wanted.x_BCHW, sizes)[0])
    assert np.array_equal(np.array(stage1[0]), from_network(wanted.x_stage1_BCHW, sizes)[0])
    assert torch.equal(pipeline(picture(), output_type="latent", **common).images[0], wanted.z_BCHW[0])  # type: ignore[union-attr,arg-type]
    assert pipeline.num_timesteps == 3


def test_an_image_does_not_depend_on_its_company(pipeline: SupirPipeline) -> None:
    images = [picture(0), Image.fromarray(picture(1, 32, 48)), picture(2)]
    together = run(pipeline, images, prompt=["a", "cat " * 80, "b"], generator=[1, 2, 3])
    assert [tuple(image.shape) for image in together] == [(3, 40, 32), (3, 32, 48), (3, 40, 32)]
    for image, text, seed, found in zip(images, ["a", "cat " * 80, "b"], [1, 2, 3], together, strict=True):
        assert torch.equal(run(pipeline, image, prompt=text, generator=seed)[0], found)


def test_tiles_have_prompts(pipeline: SupirPipeline, restorer: Restorer) -> None:
    settings = dataclasses.replace(FAST, tile_px=32, tile_stride_px=16, multiple_px=16)
    (width, height), boxes = pipeline.tiles(picture(), upscale=2, preset=settings)
    assert (width, height) == (64, 80)
    assert boxes[:2] == [(0, 0, 32, 32), (16, 0, 48, 32)]
    assert boxes[-1] == (32, 48, 64, 80)
    texts = [f"part {i}" for i in range(len(boxes))]
    found = run(pipeline, picture(), upscale=2, preset=settings, tile_prompts=texts, output_type="latent")[0]
    x = to_network(picture(), plan_sizes(40, 32, upscale=2, min_size_px=32, multiple_px=16))
    whole = [[settings.prompts.around(text) for text in texts]]
    wanted = restore(restorer, x, [""], [settings.prompts.negative], settings, [7], tile_prompts=whole)
    assert torch.equal(found, wanted.z_BCHW[0])
    with pytest.raises(ValueError, match="tile_prompts are those of one image, and 2 came"):
        run(pipeline, [picture(), picture()], tile_prompts=texts)


def test_forms_of_an_image(pipeline: SupirPipeline, tmp_path: Path) -> None:
    rgb_HWC = picture()
    Image.fromarray(rgb_HWC).save(tmp_path / "photo.png")
    wanted = run(pipeline, rgb_HWC)[0]
    unit_HWC = rgb_HWC.astype(np.float32) / 255
    forms = (str(tmp_path / "photo.png"), Image.fromarray(rgb_HWC), unit_HWC, torch.from_numpy(unit_HWC).permute(2, 0, 1), rgb_HWC[None])
    assert all(torch.equal(run(pipeline, form)[0], wanted) for form in forms)
    assert np.array_equal(run(pipeline, rgb_HWC, output_type="np")[0], wanted.permute(1, 2, 0).numpy())
    assert 0 <= float(wanted.min()) < float(wanted.max()) <= 1
    for bad, message in ((torch.zeros(1, 8, 8), "expected a path"), (unit_HWC * 255, r"expected \[0, 1\]"), ([], "no image"),
                         (str(tmp_path / "none.png"), "No such file")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            run(pipeline, bad)


def test_generators(pipeline: SupirPipeline) -> None:
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    first, second = run(pipeline, [picture()] * 2, generator=generator(3))
    assert not torch.equal(first, second), "each image draws its own seed"
    assert torch.equal(run(pipeline, picture(), generator=generator(3))[0], first)
    assert torch.equal(run(pipeline, [picture()] * 2, generator=[generator(4), generator(3)])[1], first)
    state = torch.get_rng_state()
    assert not torch.equal(run(pipeline, picture(), generator=None)[0], first)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="generator has 1 entries for 2 images"):
        run(pipeline, [picture()] * 2, generator=[1])
    with pytest.raises(ValueError, match="prompt has 1 entries for 2 images"):
        run(pipeline, [picture()] * 2, prompt=["a"])


def test_steps_call_back(pipeline: SupirPipeline) -> None:
    seen: list[tuple[int, int]] = []

    def zeroed(who: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert who is pipeline
        seen.append((step, int(timestep)))
        return {"latents": tensors["latents"] * 0} if step == 1 else {}

    latents = run(pipeline, picture(), callback_on_step_end=zeroed, output_type="latent")[0]
    assert seen == [(0, 999), (1, 499)], "two steps from the last of SDXL's timesteps"
    assert not latents.any()
    with pytest.raises(ValueError, match=r"names \['prompt_embeds'\]; known: \['latents'\]"):
        run(pipeline, picture(), callback_on_step_end=zeroed, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_progress_is_shown(restorer: Restorer, capsys: pytest.CaptureFixture[str]) -> None:
    loud = SupirPipeline.from_restorer(restorer, preset="tiny")
    run(loud, [picture()] * 2)
    assert "4/4" in capsys.readouterr().err, "two images of two steps"


@pytest.mark.parametrize("whole", [True, False], ids=["all parts", "prior alone"])
def test_a_saved_folder_gives_the_same_bits(pipeline: SupirPipeline, restorer: Restorer, tmp_path: Path, whole: bool) -> None:
    bare = dataclasses.replace(restorer, adaptor=None, encoder=restorer.components.vae.encoder)
    saved = pipeline if whole else SupirPipeline.from_restorer(bare, preset="tiny")
    saved.save_pretrained(tmp_path)
    loaded = SupirPipeline.from_pretrained(tmp_path)
    assert (loaded.adaptor is not None, loaded.encoder is not None, loaded.config.preset) == (whole, whole, "tiny")
    assert torch.equal(run(loaded, picture())[0], run(saved, picture())[0])
    assert all(path.suffix != ".bin" for path in tmp_path.rglob("*")), "nothing is pickled"
    if whole:
        half = {"default": torch.bfloat16, "vae": torch.float32, "encoder": torch.float32}
        mixed = SupirPipeline.from_pretrained(tmp_path, dtype=half)
        assert (mixed.unet.dtype, mixed.adaptor.dtype, mixed.vae.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        assert run(mixed, picture())[0].isfinite().all()
        swapped = SupirPipeline.from_pretrained(tmp_path, adaptor=None, encoder=None)
        assert torch.equal(run(swapped, picture())[0], run(SupirPipeline.from_restorer(bare), picture())[0])


def test_official_files_give_the_same_bits(pipeline: SupirPipeline, restorer: Restorer, prior_folder: Path, tmp_path: Path) -> None:
    tensors = official_tensors(adaptor=restorer.adaptor, encoder=restorer.encoder)
    save_official(tmp_path / "supir.safetensors", tensors)  # .ckpt and other bases: test_weights, test_single_file
    loaded = SupirPipeline.from_official(prior_folder, tmp_path / "supir.safetensors", dtype=torch.float32)
    assert torch.equal(run(loaded, picture())[0], run(pipeline, picture())[0])
    assert loaded.config.preset == "release_quality"


def test_precisions_that_cannot_work_are_refused(restorer: Restorer, prior_folder: Path, tmp_path: Path) -> None:
    half = SupirPipeline.from_weights(prior_folder, dtype=torch.float16)
    assert (half.unet.dtype, half.vae.dtype) == (torch.float16, torch.float32)
    half.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"autoencoder is in fp16, in which SDXL's overflows.*\"vae\": torch.float32"):
        SupirPipeline.from_pretrained(tmp_path, dtype=torch.float16)
    mixed = SupirPipeline.from_weights(prior_folder)
    mixed.register_modules(encoder=SupirPipeline.from_restorer(restorer).encoder.to(torch.bfloat16))
    with pytest.raises(ValueError, match=r"encoder is in torch.bfloat16 and vae in torch.float32"):
        run(mixed, picture())
    mixed.register_modules(encoder=None)
    mixed.scheduler.register_to_config(prediction_type="v_prediction")
    with pytest.raises(ValueError, match=r"predicts 'v_prediction', expected 'epsilon'"):
        run(mixed, picture())
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        SupirPipeline.from_restorer(restorer, preset="papr")


def test_offloaded_parts_come_when_they_are_needed(
    prior_folder: Path, restorer: Restorer, pipeline: SupirPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU: that every part is summoned before it is used and none is sent away between two uses; no memory is freed here."""
    from accelerate.hooks import CpuOffload, UserCpuOffloadHook

    own = dataclasses.replace(restorer, components=load_restorer(prior_folder).components)
    offloaded = SupirPipeline.from_restorer(own, preset="tiny")
    names = {id(part): name for name, part in offloaded.components.items()}
    events: list[str] = []
    arrive, leave = CpuOffload.pre_forward, UserCpuOffloadHook.offload

    def arriving(hook: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        events.append(names[id(module)])
        before = hook.prev_module_hook
        if before is not None:
            events.append("-" + names[id(before.model)])
        return arrive(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", arriving)
    monkeypatch.setattr(UserCpuOffloadHook, "offload", leave)
    offloaded.set_progress_bar_config(disable=True)
    offloaded.enable_model_cpu_offload(device="cpu")
    for _ in range(2):  # the second call finds everything as the first did
        assert torch.equal(run(offloaded, picture())[0], run(pipeline, picture())[0])
    order = [event for place, event in enumerate(events) if event not in events[:place]]
    assert order[:3] == ["vae", "-unet", "encoder"], "stage 1"
    text, sampling = events.index("text_encoder"), events.index("unet")
    assert events.index("encoder") < text < events.index("text_encoder_2") < sampling < events.index("adaptor")
    used = events[sampling : events.index("vae", sampling)]
    assert "-adaptor" not in events, "it is called in turn with the UNet"
    assert "-unet" not in used
    assert events[events.index("vae", sampling) + 1] == "-unet", "decoding sends the UNet away"
