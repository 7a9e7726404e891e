"""The whole restoration: an image's result depends on its own row alone; sizes, colours and errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from supir_model import colour
from supir_model.encoder import copy_encoder, decode, encode_mode, encode_sample
from supir_model.preprocess import Sizes, from_network, plan_sizes, to_network
from supir_model.presets import NetworkPreset, SamplingPreset, get_sampling
from supir_model.restore import Restored, restore, stage1, tiles
from supir_model.tiled_vae import tiled_decoder, tiled_encoder
from supir_model.weights import Restorer, load_restorer
from tests.unit.supir_model.conftest import build

FAST = dataclasses.replace(get_sampling("tiny"), steps=2, s_churn=5.0, colour_fix="wavelet")


@pytest.fixture(scope="module")
def restorer(prior_folder: Path, tiny: NetworkPreset) -> Restorer:
    _, _, adaptor = build(tiny)
    return dataclasses.replace(load_restorer(prior_folder), adaptor=adaptor.requires_grad_(False))


def pictures(batch: int, height: int = 48, width: int = 32) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def run(restorer: Restorer, x: Tensor, rows: list[int], settings: SamplingPreset = FAST) -> Restored:
    texts = [f"a photograph of {i} things" for i in rows]
    return restore(restorer, x[rows], texts, ["blurry"] * len(rows), settings, [100 + i for i in rows])


@pytest.mark.parametrize(
    "change", [{}, {"sampler": "dpmpp2m"}, {"tile_px": 32, "tile_stride_px": 16}], ids=["edm", "dpmpp2m", "tiled"]
)
def test_a_result_does_not_depend_on_the_batch(restorer: Restorer, change: dict[str, object]) -> None:
    settings, x = dataclasses.replace(FAST, **change), pictures(3)  # type: ignore[arg-type]
    together, alone, reversed_ = (run(restorer, x, rows, settings) for rows in ([0, 1, 2], [1], [2, 1]))
    assert together.x_BCHW.shape == x.shape
    for name in ("x_BCHW", "x_stage1_BCHW", "z_lq_BCHW"):
        first = getattr(together, name)[1]
        assert torch.equal(first, getattr(alone, name)[0])
        assert torch.equal(first, getattr(reversed_, name)[1])


def test_images_at_once_agree_closely(restorer: Restorer) -> None:
    x = pictures(2)
    both = restore(restorer, x, ["a", "b"], ["", ""], FAST, [1, 2], images_at_once=2)
    single = restore(restorer, x, ["a", "b"], ["", ""], FAST, [1, 2])
    assert torch.allclose(both.x_BCHW, single.x_BCHW, atol=1e-3)  # fp32 kernels chosen by batch size; reached: 1e-5


def test_seed_prompt_and_picture_matter(restorer: Restorer) -> None:
    x = pictures(1)
    base, seed, prompt, picture = (
        restore(restorer, image, [text], ["blurry"], FAST, [number]).x_BCHW
        for image, text, number in ((x, "a", 1), (x, "a", 2), (x, "b", 1), (-x, "a", 1))
    )
    assert all(not torch.equal(base, other) for other in (seed, prompt, picture))


def test_stage1_is_the_decoded_latent(restorer: Restorer) -> None:
    x = pictures(1)
    z_lq, x_stage1 = stage1(restorer, x, FAST)
    vae = restorer.components.vae
    with torch.no_grad():
        assert torch.equal(z_lq, encode_mode(vae, restorer.encoder, x))
        assert torch.equal(x_stage1, decode(vae, z_lq))
        assert torch.equal(encode_sample(vae, x, torch.zeros_like(z_lq)), encode_mode(vae, vae.encoder, x))
    assert torch.equal(run(restorer, x, [0]).x_stage1_BCHW, x_stage1)


def test_stage1_is_computed_once(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each autoencoder half runs as often as it must: encoder (z_lq), decoder (x_stage1), own encoder (z_center), decoder."""
    calls: list[str] = []
    vae = restorer.components.vae
    robust = copy_encoder(vae).eval()
    for name, module in (("robust", robust), ("own", vae.encoder), ("decoder", vae.decoder)):
        handle = module.register_forward_hook(lambda *_, name=name: calls.append(name))
        monkeypatch.setattr(module, "handle", handle, raising=False)
    own = dataclasses.replace(restorer, encoder=robust)
    x = pictures(2)
    first = stage1(own, x, FAST)
    given = restore(own, x, ["a", "b"], ["", ""], FAST, [1, 2], first=first)
    assert sorted(calls) == ["decoder"] * 4 + ["own"] * 2 + ["robust"] * 2
    for module in (vae.encoder, vae.decoder):
        module.handle.remove()
    computed = restore(own, x, ["a", "b"], ["", ""], FAST, [1, 2])
    assert all(torch.equal(getattr(given, name), getattr(computed, name)) for name in vars(given))


def test_long_prompts_in_a_batch(restorer: Restorer) -> None:
    x, texts = pictures(3), ["a", "cat " * 80, "b"]
    together = restore(restorer, x, texts, [""] * 3, FAST, [1, 2, 3], images_at_once=3).x_BCHW
    for row in range(3):  # neighbours' windows change nothing: each of these goes alone
        alone = restore(restorer, x[row : row + 1], texts[row : row + 1], [""], FAST, [row + 1]).x_BCHW
        assert torch.equal(together[row], alone[0])
    cut = dataclasses.replace(FAST, long_prompts="cut")
    with pytest.warns(UserWarning, match=r"82 tokens and CLIP reads 77; these words are lost: 'cat cat cat cat cat '"):
        shorter = restore(restorer, x[1:2], texts[1:2], [""], cut, [2]).x_BCHW
    assert not torch.equal(shorter[0], together[1])


@pytest.mark.parametrize("sampler", ["edm", "dpmpp2m"])
def test_steps_are_seen_and_may_be_changed(restorer: Restorer, sampler: Any) -> None:
    seen: list[tuple[int, float]] = []
    settings = dataclasses.replace(FAST, sampler=sampler, steps=3)

    def zero_at_the_end(step: int, sigma: float, z_BCHW: Tensor) -> Tensor:
        seen.append((step, sigma))
        return z_BCHW if step < 2 else z_BCHW * 0

    changed = restore(restorer, pictures(1), ["a"], [""], settings, [1], on_step=zero_at_the_end)
    assert [step for step, _ in seen] == [0, 1, 2]
    assert seen[0][1] > seen[1][1] > seen[2][1] > 0
    assert not changed.z_BCHW.any()


def test_without_an_adaptor_the_prior_works_alone(restorer: Restorer) -> None:
    bare = dataclasses.replace(restorer, adaptor=None)
    off = dataclasses.replace(FAST, control_scale_start=0.0, control_scale_end=0.0)
    assert torch.equal(run(bare, pictures(1), [0]).x_BCHW, run(restorer, pictures(1), [0], off).x_BCHW)


def test_every_tile_may_have_its_own_prompt(restorer: Restorer) -> None:
    settings = dataclasses.replace(FAST, steps=1, tile_px=32, tile_stride_px=16)
    x = pictures(2)
    places = tiles(restorer, settings, *x.shape[-2:])
    assert places == [(0, 0, 32, 32), (16, 0, 32, 32)]
    common = (restorer, x, ["a"] * 2, ["blurry"] * 2, settings, [1, 2])
    base = restore(*common).z_BCHW
    assert torch.equal(base, restore(*common, tile_prompts=[["a", "a"]] * 2).z_BCHW)
    mixed = restore(*common, tile_prompts=[["a", "a"], ["a", "a wall"]]).z_BCHW
    assert torch.equal(mixed[0], base[0]), "the other picture's tiles are its own"
    assert torch.equal(mixed[1, :, :4], base[1, :, :4]), "rows that the second tile does not reach"
    assert not torch.equal(mixed[1, :, 4:], base[1, :, 4:])
    with pytest.raises(ValueError, match=r"tile_prompts has \[2, 1\] prompts for 2 pictures of 2 tiles each"):
        restore(*common, tile_prompts=[["a", "a"], ["a"]])
    assert tiles(restorer, FAST, 48, 32) == [(0, 0, 48, 32)]


def test_bad_requests_are_refused(restorer: Restorer) -> None:
    with pytest.raises(ValueError, match=r"'pictures': 2, 'prompts': 1"):
        restore(restorer, pictures(2), ["a"], ["b"], FAST, [1])
    with pytest.raises(ValueError, match="66 x 32 pixels: both sides must be multiples of 4"):
        restore(restorer, pictures(1, height=66), ["a"], ["b"], FAST, [1])


# ---- sizes and colours


def test_sizes_round_trip() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
    sizes = plan_sizes(128, 192, min_size_px=128, multiple_px=64)
    assert sizes == Sizes(net_height=128, net_width=192, out_height=128, out_width=192)
    back = from_network(to_network(rgb, sizes), sizes)[0]
    assert np.abs(back.astype(int) - rgb).max() <= 1  # the released code truncates


def test_extreme_shapes_keep_a_size() -> None:
    sizes = plan_sizes(10, 4000, min_size_px=16, multiple_px=64)
    assert sizes.net_height == 64
    assert (sizes.out_height, sizes.out_width) == (10, 4000)
    with pytest.raises(ValueError, match="has no size"):
        plan_sizes(0, 5)


def test_colour_fixes_take_the_style() -> None:
    content, style = pictures(2), pictures(2) * 0.3 + 0.4
    assert torch.equal(colour.fix_colour("none", content, style), content)
    flat = torch.full_like(content, 0.25)
    assert torch.allclose(colour.wavelet(content, content), content, atol=1e-6)
    assert torch.allclose(colour.low_frequencies(flat), flat, atol=1e-6)  # the kernel sums to one, edges repeat
    fixed = colour.adain(content, style)
    assert torch.allclose(fixed.mean(dim=(2, 3)), style.mean(dim=(2, 3)), atol=1e-5)
    with pytest.raises(ValueError, match="differ in size"):
        colour.fix_colour("wavelet", content, style[:, :, :32])


def test_a_large_picture_is_coloured_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    content, style = pictures(1, 200, 24), pictures(1, 200, 24) * 0.3 + 0.4
    whole = colour.wavelet(content, style)
    monkeypatch.setattr(colour, "BAND_ROWS", 48)
    assert torch.allclose(colour.wavelet(content, style), whole, atol=1e-6)  # another size may take another kernel; reached: 0


def test_tiles_of_the_autoencoder(tiny: NetworkPreset) -> None:
    _, vae, _ = build(tiny)
    x = pictures(1, 160, 104)
    with torch.no_grad():
        whole = vae.encoder(x)
        assert torch.equal(tiled_encoder(vae.encoder, x, 512), whole)  # small enough to stay whole
        assert tiled_encoder(vae.encoder, x, 32).shape == whole.shape
        parked = tiled_encoder(vae.encoder, x, 32, park="cpu")
        assert torch.equal(parked, tiled_encoder(vae.encoder, x, 32))
        z = whole[:, :4]
        assert tiled_decoder(vae.decoder, z, 8).shape == vae.decoder(z).shape
