"""A file of the released checkpoint's size, read into the released network: memory stays near the network's own."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.checkpoints import BF16_BYTES, write_sparse
from tests.helpers import ROOT

pytestmark = pytest.mark.integration

MARGIN_BYTES = 160 * 2**20  # measured: 83 MiB; the largest tensor has 28, and the C library keeps some that were freed
CKPT_MARGIN_BYTES = 400 * 2**20  # measured: 101 MiB; pages of the mapped file go once 256 MiB were read
READ = """
import resource, sys
import torch
from supir_model.presets import get_network
from supir_model.weights import load_adaptor, load_encoder
preset = get_network("sdxl_release")
with torch.device("meta"):
    unet, vae = preset.build_unet(), preset.build_vae()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
adaptor, encoder = load_adaptor(sys.argv[1], unet), load_encoder(sys.argv[1], vae)
print(before, peak(), sum(p.nbytes for m in (adaptor, encoder) for p in m.parameters()))
"""


def shapes() -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads(gzip.decompress((ROOT / "tests/golden/supir_only_shapes.json.gz").read_bytes()))
    return found


def write_sparse_ckpt(path: Path) -> None:
    """As `write_sparse`, in torch's archive."""
    with FakeTensorMode():
        tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes().items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tensors, path)


@pytest.mark.parametrize(("name", "margin_bytes"), [("SUPIR-v0Q.safetensors", MARGIN_BYTES), ("SUPIR-v0Q.ckpt", CKPT_MARGIN_BYTES)])
def test_the_released_size_is_read_tensor_by_tensor(tmp_path: Path, name: str, margin_bytes: int) -> None:
    path = tmp_path / name
    if path.suffix == ".ckpt":
        write_sparse_ckpt(path)
    else:
        write_sparse(path, shapes())
    assert path.stat().st_blocks * 512 < 2**24  # a hole, not bytes
    ended = subprocess.run([sys.executable, "-c", READ, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert ended.returncode == 0, ended.stderr
    before_bytes, peak_bytes, network_bytes = map(int, ended.stdout.split())
    read = {name: shape for name, shape in shapes().items() if "mask_LQ" not in name}
    assert network_bytes == BF16_BYTES * sum(math.prod(shape) for shape in read.values())
    print(f"{name}: network {network_bytes / 2**20:.0f} MiB, beyond it {(peak_bytes - before_bytes - network_bytes) / 2**20:.0f} MiB")
    assert peak_bytes - before_bytes < network_bytes + margin_bytes
