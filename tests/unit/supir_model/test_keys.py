"""Official names by rule, against the full-size table."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from supir_model import keys
from supir_model.network import SupirAdaptor
from supir_model.presets import get_network
from supir_model.weights import official_tensors

GOLDEN = Path(__file__).parents[2] / "golden"


def table(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(gzip.decompress((GOLDEN / name).read_bytes()))
    return data


def test_every_name_of_the_full_size_checkpoint() -> None:
    golden = table("key_map_full.json.gz")
    with torch.device("meta"):
        preset = get_network("sdxl_release")
        unet, vae, adaptor = preset.build_unet(), preset.build_vae(), SupirAdaptor(preset)
    trunk = {n: o for n, o in keys.unet_keys(adaptor.trunk.state_dict(), preset).items() if not n.startswith("hint.")}
    found = {
        **{keys.UNET + o: f"unet.{n}" for n, o in keys.unet_keys(unet.state_dict(), preset).items()},
        **{keys.TRUNK + o: f"control.{n}" for n, o in trunk.items()},
        **{keys.VAE + o: f"vae.{n}" for n, o in keys.vae_keys(vae.state_dict()).items()},
        **{keys.ENCODER + o: f"vae_denoise.encoder.{n}" for n, o in keys.vae_keys(vae.encoder.state_dict()).items()},
    }
    assert found == golden["map"]
    alone = {keys.CONNECTORS + name for name in adaptor.connectors.state_dict()}
    alone |= {keys.TRUNK + f"input_hint_block.0.{leaf}" for leaf in ("weight", "bias")}
    assert alone == set(golden["no_diffusers_counterpart"])


def test_names_and_shapes_of_what_supir_adds() -> None:
    with torch.device("meta"):
        preset = get_network("sdxl_release")
        vae, adaptor = preset.build_vae(), SupirAdaptor(preset)
    found = {name: list(tensor.shape) for name, tensor in official_tensors(adaptor=adaptor, encoder=vae.encoder, device="meta").items()}
    expected = table("supir_only_shapes.json.gz")
    assert expected.pop("model.control_model.mask_LQ") == [1, 4, 64, 64]  # in the file, used by nothing
    assert found == expected


def test_a_foreign_name_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to no SDXL-shaped network"):
        keys.unet_keys(["class_embedding.weight"], get_network("tiny"))
