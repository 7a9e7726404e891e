"""Tiles of the autoencoder that change nothing: against the untiled one, over sizes, tiles and what is held in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from supir_model import exact_vae
from supir_model.encoder import decode, encode_mode, encode_sample
from supir_model.exact_vae import Moments, boxes, exact_decoder, exact_encoder
from supir_model.presets import NetworkPreset, get_sampling
from supir_model.tiled_vae import tiled_decoder, tiled_encoder
from tests.unit.supir_model.conftest import build

EXACT = 1e-5  # of the largest value: fp32 sums in another order through 20 layers, statistics in double; reached: 4e-6
NOTHING, SOME, ALL = 0, 200_000, exact_vae.HOLD_BYTES  # bytes held: recomputed, mixed, layer by layer


@pytest.fixture(scope="module")
def vae(tiny: NetworkPreset) -> Any:
    """With one residual block more than tiny has, so that levels repeat."""
    return build(dataclasses.replace(tiny, vae_layers_per_block=2))[1]


def picture(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width)) * 2 - 1


def off(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape, f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("hold_bytes", [NOTHING, SOME, ALL])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 36), (33, 70), (20, 132)])
@torch.no_grad()
def test_tiles_equal_the_whole(vae: Any, height: int, width: int, hold_bytes: int) -> None:
    """Square, not a multiple of the tile, odd, and a strip of one tile by many."""
    x = picture(height, width, batch=2)
    latent = vae.encoder(x)
    assert off(exact_encoder(vae.encoder, x, 32, hold_bytes=hold_bytes), latent) < EXACT
    z = latent[:, :4]
    assert off(exact_decoder(vae.decoder, z, 7, hold_bytes=hold_bytes), vae.decoder(z)) < EXACT


@torch.no_grad()
def test_one_tile_is_the_untiled_computation(vae: Any) -> None:
    x = picture(40, 24)
    assert torch.equal(exact_encoder(vae.encoder, x, 40), vae.encoder(x))
    z = vae.encoder(x)[:, :4]
    assert torch.equal(exact_decoder(vae.decoder, z, 10), vae.decoder(z))


@torch.no_grad()
def test_where_activations_wait_changes_nothing(vae: Any) -> None:
    x = picture(72, 56)
    held = exact_encoder(vae.encoder, x, 32)
    assert torch.equal(exact_encoder(vae.encoder, x, 32, park="cpu"), held)
    assert off(exact_encoder(vae.encoder, x, 32, hold_bytes=NOTHING), held) < EXACT  # tiles with other rims, other kernels


@torch.no_grad()
def test_seams_carry_no_more_error_than_the_rest(vae: Any) -> None:
    z = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    error = (exact_decoder(vae.decoder, z, 8) - vae.decoder(z)).abs().amax(dim=(0, 1))
    seams = torch.zeros_like(error, dtype=torch.bool)
    for edge in (32, 64):  # tiles of 8 latent pixels are 32 pixels wide
        seams[edge - 2 : edge + 2] = seams[:, edge - 2 : edge + 2] = True
    assert error[seams].mean() < 2 * error[~seams].mean()


@torch.no_grad()
def test_the_other_methods_differ(vae: Any) -> None:
    """Else equality would prove nothing: averaged statistics and attention within tiles are both seen."""
    x = picture(160, 104)
    whole, z = vae.encoder(x), torch.randn(1, 4, 40, 48, generator=torch.Generator().manual_seed(0))
    assert off(tiled_encoder(vae.encoder, x, 32), whole) > 1e-2
    assert off(exact_encoder(vae.encoder, x, 32, attention="tile"), whole) > 1e-3
    assert off(tiled_decoder(vae.decoder, z, 8), vae.decoder(z)) > 1e-2
    assert off(exact_decoder(vae.decoder, z, 8, attention="tile"), vae.decoder(z)) > 1e-3


@torch.no_grad()
def test_tile_attention_alone_is_what_exact_norms_leaves_out(vae: Any) -> None:
    """With an attention that answers zero both are the untiled net: every group norm is exact."""
    x, blind = picture(72, 56), build_blind(vae)
    assert off(exact_encoder(blind.encoder, x, 32, attention="tile"), blind.encoder(x)) < EXACT
    z = torch.randn(1, 4, 20, 24, generator=torch.Generator().manual_seed(0))
    assert off(exact_decoder(blind.decoder, z, 8, attention="tile"), blind.decoder(z)) < EXACT


def build_blind(vae: Any) -> Any:
    import copy

    blind = copy.deepcopy(vae)
    for half in (blind.encoder, blind.decoder):
        out = half.mid_block.attentions[0].to_out[0]
        torch.nn.init.zeros_(out.weight)
        torch.nn.init.zeros_(out.bias)
    return blind


@torch.no_grad()
def test_held_activations_keep_within_their_budget(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the latent's grid, whole activations take what they may and no more."""
    largest: dict[int, int] = {}
    real = exact_vae.Sweeps._empty

    def watched(self: exact_vae.Sweeps, index: int, device: torch.device) -> Tensor:
        out = real(self, index, device)
        if index < len(self.steps) and self.sizes[index][0] * self.sizes[index][1] > self.grid:
            before = self.held_BCHW.nbytes if self.first else 0
            largest[budget] = max(largest.get(budget, 0), out.nbytes + before)
        return out

    monkeypatch.setattr(exact_vae.Sweeps, "_empty", watched)
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for budget in (NOTHING, SOME, ALL):
        exact_decoder(vae.decoder, z, 8, hold_bytes=budget)
    assert NOTHING not in largest
    assert 0 < largest[SOME] <= SOME < largest[ALL]


def test_moments_of_parts_are_those_of_the_whole() -> None:
    x = torch.randn(2, 8, 30, 17, generator=torch.Generator().manual_seed(0)) * 3 + 50  # a mean that plain sums would feel
    parts, norm = Moments(), torch.nn.GroupNorm(4, 8)
    torch.nn.init.normal_(norm.weight)
    for box in boxes((30, 17), 7):
        parts.add(box.crop(x), groups=4)
    assert parts.count == 2 * 30 * 17
    assert torch.allclose(parts.normalise(norm, x), norm(x), atol=2e-5)  # fp32 at values of 50: 50 eps / std


def test_a_tile_without_pixels_is_refused(vae: Any) -> None:
    with pytest.raises(ValueError, match="a tile of 0 latent pixels"):
        exact_decoder(vae.decoder, torch.zeros(1, 4, 8, 8), 0)


@torch.no_grad()
def test_presets_choose_the_method(vae: Any) -> None:
    assert [get_sampling(name).vae_tiling for name in ("paper", "tiny", "release_quality", "release_fidelity")] == [
        "exact", "exact", "released", "released"
    ]  # fmt: skip
    x = picture(160, 104)
    z = encode_mode(vae, vae.encoder, x)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    for tiling, limit in (("exact", EXACT), ("exact_norms", None), ("released", None)):
        pairs = (
            (encode_mode(vae, vae.encoder, x, tile_px=32, tiling=tiling), z),  # type: ignore[arg-type]
            (encode_sample(vae, x, noise, tile_px=32, tiling=tiling), encode_sample(vae, x, noise)),  # type: ignore[arg-type]
            (decode(vae, z, tile_px=32, tiling=tiling), decode(vae, z)),  # type: ignore[arg-type]
        )
        for found, expected in pairs:
            assert off(found, expected) < limit if limit else off(found, expected) > 1e-3
