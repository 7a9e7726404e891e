"""What kind of file names and shapes of tensors belong to, for the errors about files that were passed in the wrong place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from supir_model.presets import NETWORKS

FAMILY_OF_CONTEXT_DIM = {768: "SD 1.x", 1024: "SD 2.x", 1280: "the SDXL refiner", 2048: "SDXL"}
WHOLE_SDXL = "the prior is a whole SDXL base, one .safetensors file or a folder in diffusers' layout"


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name, patterns that must all be found at the start of some name, and what to do with it."""

    name: str
    needs: tuple[str, ...]
    advice: str


KINDS = (  # the first that fits; the more particular ones come first
    Kind("a LoRA", (r".*(lora_|\.lora\.)",), "merge it into an SDXL base first, and pass that as the prior"),
    Kind("a SUPIR checkpoint", (r"model\.control_model\.",), "pass it as adaptor= and encoder=, and an SDXL base as the prior"),
    Kind("a degradation-robust encoder in the official layout", (r"first_stage_model\.denoise_encoder\.",), "pass it as encoder="),
    Kind("an adaptor of ours", (r"trunk\.", r"connectors\."), "pass the folder that holds it as adaptor="),
    Kind("an SD3 model", (r"model\.diffusion_model\.joint_blocks\.",), f"SUPIR steers SDXL; {WHOLE_SDXL}"),
    Kind("a Flux model", (r"(model\.diffusion_model\.)?double_blocks\.",), f"SUPIR steers SDXL; {WHOLE_SDXL}"),
    Kind(
        "an SDXL base in the original layout",
        (r"model\.diffusion_model\.", r"conditioner\.embedders\.0\.transformer\.", r"conditioner\.embedders\.1\.model\."),
        "pass it as the prior, and a SUPIR checkpoint or a folder that training wrote as adaptor= and encoder=",
    ),
    Kind("the SDXL refiner", (r"conditioner\.embedders\.0\.model\.",), "pass SDXL's base as the prior"),
    Kind("an SD 1.x model", (r"cond_stage_model\.transformer\.",), f"SUPIR steers SDXL; {WHOLE_SDXL}"),
    Kind("an SD 2.x model", (r"cond_stage_model\.model\.",), f"SUPIR steers SDXL; {WHOLE_SDXL}"),
    Kind("a ControlNet", (r"(control_model\.|controlnet_)",), "SUPIR's adaptor is none; pass a SUPIR checkpoint as adaptor="),
    Kind("a UNet alone in the original layout", (r"(model\.diffusion_model\.)?input_blocks\.",), WHOLE_SDXL),
    Kind("a UNet in diffusers' layout", (r"time_embedding\.",), "pass the folder that holds the one named unet as the prior"),
    Kind(
        "an autoencoder in diffusers' layout",
        (r"encoder\.down_blocks\.", r"decoder\."),
        "pass the folder that holds the one named vae as the prior",
    ),
    Kind("an autoencoder in the original layout", (r"(first_stage_model\.)?encoder\.down\.",), WHOLE_SDXL),
    Kind("an autoencoder's encoder", (r"down_blocks\.", r"conv_norm_out\."), "pass the folder that holds it as encoder="),
    Kind("a text encoder", (r"(.*\.)?(text_model\.|transformer\.resblocks\.|embeddings\.token_embedding)",), WHOLE_SDXL),
)
UNKNOWN = Kind("no kind of file known here", (), f"{WHOLE_SDXL}; the adaptor is a SUPIR checkpoint or a folder that training wrote")


def recognise(tensors: Mapping[str, Tensor]) -> Kind:
    """The kind of a file with these tensors (on any device), named as closely as shapes tell."""
    names = "\n".join(tensors)
    for kind in KINDS:
        if all(re.search(f"^{pattern}", names, re.MULTILINE) for pattern in kind.needs):
            return replace(kind, name=kind.name + _details(kind.name, tensors))
    return UNKNOWN


def _details(kind: str, tensors: Mapping[str, Tensor]) -> str:
    if "SUPIR" in kind:
        return _trunk(tensors)
    if "UNet" in kind:
        width = next((tensor.shape[-1] for name, tensor in tensors.items() if name.endswith("attn2.to_k.weight")), 0)
        return f" of {FAMILY_OF_CONTEXT_DIM[width]}" if width in FAMILY_OF_CONTEXT_DIM else ""
    return ""


def _trunk(tensors: Mapping[str, Tensor]) -> str:
    """The preset whose trunk has this width and depth."""
    head = "model.control_model."
    depth = count(tensors, re.escape(head) + r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    conv_in = tensors.get(f"{head}input_blocks.0.0.weight")
    for preset in NETWORKS.values():
        if conv_in is not None and conv_in.shape[0] == preset.block_out_channels[0] and depth == preset.trunk_depth[-1]:
            return f" for network {preset.name!r}"
    return " of no known network"


def count(names: Iterable[str], pattern: str) -> int:
    """How many numbers the group of `pattern` takes at the start of the names."""
    return len({found[1] for name in names if (found := re.match(pattern, name))})
