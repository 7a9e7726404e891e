"""Golden tensors: outputs of the officially released code. Folder: environment variable SUPIR_GOLDEN, else tests/golden."""

from __future__ import annotations

import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

GOLDEN = Path(os.environ.get("SUPIR_GOLDEN") or Path(__file__).parents[1] / "golden")


def cases(pattern: str) -> list[Path]:
    """The golden files or folders of a pattern, sorted; never none, so that a wrong folder does not pass as a success."""
    found = sorted(GOLDEN.glob(pattern))
    assert found, f"no {pattern} in {GOLDEN}: set SUPIR_GOLDEN to a folder of golden tensors"
    return found


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A case: its JSON and the tensors beside it."""
    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


def formula_weight(official_name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that the golden networks have under an official key name (tests/golden/README.md)."""
    rng = np.random.Generator(np.random.Philox(key=zlib.crc32(official_name.encode())))
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        values = values * np.float32(0.8 / math.sqrt(int(np.prod(shape[1:]))))
    else:
        values = values * np.float32(0.1) + np.float32(1.0 if official_name.endswith("weight") else 0.0)
    return torch.from_numpy(values.astype(np.float16).astype(np.float32))


def fill_by_formula(module: nn.Module, official_names: dict[str, str]) -> None:
    """Give `module` the golden weights; `official_names` maps its tensor names to official keys."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    module.load_state_dict({name: formula_weight(official_names[name], shape) for name, shape in shapes.items()})


def worst(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference."""
    assert found.shape == expected.shape, f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    return (found.double() - expected.double()).abs().max().item()
