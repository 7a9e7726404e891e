"""Round trips of our folders and of the official layout, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from supir_model.checkpoint_file import INDEX_FILE
from supir_model.network import SupirAdaptor
from supir_model.presets import NetworkPreset, get_network
from supir_model.weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adaptor_files,
    encoder_files,
    load_adaptor,
    load_encoder,
    load_restorer,
    official_tensors,
    read_official,
    save_adaptor,
    save_encoder,
    save_official,
    write_folder,
)
from tests.unit.supir_model.conftest import build


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def models(tiny: NetworkPreset) -> tuple[Any, Any, SupirAdaptor]:
    return build(tiny)


def test_our_folders(models: tuple[Any, Any, SupirAdaptor], tmp_path: Path) -> None:
    unet, vae, adaptor = models
    write_folder(tmp_path / "encoder", encoder_files(vae.encoder, "tiny"))
    write_folder(tmp_path / "adaptor", adaptor_files(adaptor))
    assert same(load_encoder(tmp_path / "encoder", vae), vae.encoder)
    loaded = load_adaptor(tmp_path / "adaptor", unet)
    assert same(loaded, adaptor)
    assert loaded.preset == adaptor.preset
    assert all(p.requires_grad for p in loaded.parameters())  # it can be trained on


def test_zero_convolutions_travel_as_well(tiny: NetworkPreset, tmp_path: Path) -> None:
    unet, _, adaptor = build(get_network("tiny_zero_conv"))
    save_adaptor(tmp_path / "ours", adaptor)
    save_official(tmp_path / "official.safetensors", official_tensors(adaptor=adaptor))
    for path in (tmp_path / "ours", tmp_path / "official.safetensors"):
        loaded = load_adaptor(path, unet)
        assert loaded.preset == adaptor.preset
        assert same(loaded, adaptor)


@pytest.mark.parametrize("name", ["official.safetensors", "official.ckpt"])
def test_official_layout(models: tuple[Any, Any, SupirAdaptor], tmp_path: Path, name: str) -> None:
    unet, vae, adaptor = models
    tensors = official_tensors(adaptor=adaptor, encoder=vae.encoder)
    if name.endswith(".ckpt"):  # as the released file is, its stray tensor included
        torch.save({**tensors, "model.control_model.mask_LQ": torch.zeros(1, 4, 64, 64)}, tmp_path / name)
    else:
        save_official(tmp_path / name, tensors)
    with warnings.catch_warnings(record=True) as said:
        assert set(read_official(tmp_path / name)) == set(tensors)
    assert ["mask_LQ is ignored" in str(warning.message) for warning in said] == ([True] if name.endswith(".ckpt") else [])
    assert same(load_adaptor(tmp_path / name, unet), adaptor)
    assert same(load_encoder(tmp_path / name, vae), vae.encoder)
    convolutions = [t.shape[2:] for n, t in tensors.items() if ".mid.attn_1." in n and n.endswith("q.weight")]
    assert convolutions == [(1, 1)]


def test_half_precision_is_kept(models: tuple[Any, Any, SupirAdaptor], tmp_path: Path) -> None:
    unet, _, adaptor = models
    save_official(tmp_path / "half.safetensors", official_tensors(adaptor=adaptor, dtype=torch.float16))
    loaded = load_adaptor(tmp_path / "half.safetensors", unet)
    assert all(torch.equal(mine.half(), theirs) for mine, theirs in zip(adaptor.parameters(), loaded.parameters(), strict=True))
    assert {p.dtype for p in loaded.parameters()} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trips_are_exact(models: tuple[Any, Any, SupirAdaptor], tmp_path: Path, dtype: torch.dtype) -> None:
    unet, vae, adaptor = models
    adaptor, encoder = copy.deepcopy(adaptor).to(dtype), copy.deepcopy(vae.encoder).to(dtype)
    save_official(tmp_path / "there.safetensors", official_tensors(adaptor=adaptor, encoder=encoder, dtype=dtype))
    back, back_encoder = load_adaptor(tmp_path / "there.safetensors", unet), load_encoder(tmp_path / "there.safetensors", vae)
    assert same(back, adaptor)
    assert same(back_encoder, encoder)
    save_adaptor(tmp_path / "adaptor", back, max_shard_bytes=1_000_000)
    save_encoder(tmp_path / "encoder", back_encoder, "tiny", max_shard_bytes=100_000)
    assert (tmp_path / "adaptor" / INDEX_FILE).exists()
    ours, ours_encoder = load_adaptor(tmp_path / "adaptor", unet), load_encoder(tmp_path / "encoder", vae)
    save_official(tmp_path / "again.safetensors", official_tensors(adaptor=ours, encoder=ours_encoder, dtype=dtype))
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "there.safetensors").read_bytes()


def test_what_is_written_replaces_what_was_there(models: tuple[Any, Any, SupirAdaptor], tmp_path: Path) -> None:
    unet, _, adaptor = models
    save_adaptor(tmp_path, adaptor, max_shard_bytes=1_000_000)
    half = copy.deepcopy(adaptor).half()
    write_folder(tmp_path, adaptor_files(half))
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert same(load_adaptor(tmp_path, unet), half)
    assert same(load_adaptor(tmp_path, unet, dtype=torch.float32), half.float())


def test_load_restorer(prior_folder: Path, models: tuple[Any, Any, SupirAdaptor], tmp_path: Path) -> None:
    _, vae, adaptor = models
    write_folder(tmp_path / "encoder", encoder_files(vae.encoder, "tiny"))
    save_official(tmp_path / "all.safetensors", official_tensors(adaptor=adaptor, encoder=vae.encoder))
    full = load_restorer(prior_folder, encoder=tmp_path / "encoder", adaptor=tmp_path / "all.safetensors")
    assert full.adaptor is not None
    assert not any(p.requires_grad for module in (full.encoder, full.adaptor) for p in module.parameters())
    bare = load_restorer(prior_folder)
    assert bare.adaptor is None
    assert same(bare.encoder, bare.components.vae.encoder)
    assert bare.vae_factor == 4


def test_what_belongs_to_another_network_is_refused(
    tiny: NetworkPreset, models: tuple[Any, Any, SupirAdaptor], tmp_path: Path
) -> None:
    unet, vae, adaptor = models
    write_folder(tmp_path / "adaptor", adaptor_files(adaptor))
    write_folder(tmp_path / "encoder", encoder_files(vae.encoder, "tiny"))
    with torch.device("meta"):
        other = dataclasses.replace(tiny, context_dim=96, vae_block_out_channels=(32, 64, 128), vae_norm_groups=8)
        other_unet, other_vae = other.build_unet(), other.build_vae()
    with pytest.raises(ValueError, match=r"adaptor of network 'tiny', but .* cross_attention_dim is 96, expected 128"):
        load_adaptor(tmp_path / "adaptor", other_unet)
    with pytest.raises(ValueError, match=r"does not hold an encoder of the prior's .* 63 tensors of another shape \(conv_in.*Choose"):
        load_encoder(tmp_path / "encoder", other_vae)
    save_official(tmp_path / "few.safetensors", dict(list(official_tensors(adaptor=adaptor).items())[5:]))
    with pytest.raises(ValueError, match=r"no known network .* the nearest one, 'tiny', it differs by: 5 tensors missing \("):
        load_adaptor(tmp_path / "few.safetensors", unet)


def test_swapped_folders_are_refused(models: tuple[Any, Any, SupirAdaptor], tmp_path: Path) -> None:
    unet, vae, _ = models
    write_folder(tmp_path / "encoder", encoder_files(vae.encoder, "tiny"))
    with pytest.raises(ValueError, match="holds 'encoder', expected 'adaptor'"):
        load_adaptor(tmp_path / "encoder", unet)


def test_missing_and_damaged_files_are_refused(models: tuple[Any, Any, SupirAdaptor], tmp_path: Path) -> None:
    unet, vae, adaptor = models
    with pytest.raises(ValueError, match="is not there"):
        load_adaptor(tmp_path / "nowhere", unet)
    with pytest.raises(ValueError, match=f"has no {CONFIG_FILE}"):
        load_adaptor(tmp_path, unet)
    files = encoder_files(vae.encoder, "tiny")
    write_folder(tmp_path, {**files, WEIGHTS_FILE: files[WEIGHTS_FILE][:1000]})
    with pytest.raises(ValueError, match="is damaged"):
        load_encoder(tmp_path, vae)
    safetensors.torch.save_file({"something.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"it has no adaptor. It seems to be no kind of file known here"):
        load_adaptor(tmp_path / "other.safetensors", unet)
    save_official(tmp_path / "adaptor.safetensors", official_tensors(adaptor=adaptor))
    with pytest.raises(ValueError, match=r"it has no encoder. It seems to be a SUPIR checkpoint for network 'tiny': pass it as adaptor="):
        load_encoder(tmp_path / "adaptor.safetensors", vae)
    with pytest.raises(ValueError, match=r"is no SDXL base .* a SUPIR checkpoint for network 'tiny': pass it as adaptor="):
        load_restorer(tmp_path / "adaptor.safetensors")
    with pytest.raises(ValueError, match="choose that ending"):
        save_official(tmp_path / "out.ckpt", official_tensors(adaptor=adaptor))


class Runs:
    """Pickled, this runs code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def test_a_checkpoint_that_would_execute_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile: dict[str, Tensor | Runs] = {"a": torch.zeros(1), "b": Runs()}
    torch.save(hostile, tmp_path / "hostile.ckpt")
    with pytest.raises(ValueError, match="would execute code"):
        read_official(tmp_path / "hostile.ckpt")
    assert "executed" not in capsys.readouterr().out
