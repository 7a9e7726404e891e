"""The generative prior: SDXL from a diffusers folder or one file, or a small one of ours, its text encoders rebuilt from a seed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from supir_model import single_file
from supir_model.checkpoint_file import open_file
from supir_model.presets import NETWORKS
from supir_model.text import freeze, seeded_encoders

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLImg2ImgPipeline

PRIOR_FILE = "prior.json"  # marks a folder of ours: network preset and text seed
TOKENIZER = Path(__file__).parent / "tokenizer"  # CLIP's vocabulary, for a prior in one file, which has none
PARTS = ("unet", "vae", "tokenizer", "tokenizer_2")
SDXL_SCHEDULER = {  # SDXL base's own; released_model: beta_i, Sec. 5
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Components:
    """Everything of the prior, frozen. `network` names our preset, or is None for a folder that is not ours."""

    unet: Any
    vae: Any
    tokenizer: Any
    tokenizer_2: Any
    text_encoder: Any
    text_encoder_2: Any
    scheduler_config: dict[str, Any]
    network: str | None

    def img2img(self) -> StableDiffusionXLImg2ImgPipeline:
        """The diffusers image-to-image pipeline of these components (negative samples, App. A.4)."""
        from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

        scheduler: Any = EulerDiscreteScheduler
        pipeline: Any = StableDiffusionXLImg2ImgPipeline
        return pipeline(  # type: ignore[no-any-return]
            vae=self.vae, text_encoder=self.text_encoder, text_encoder_2=self.text_encoder_2, tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2, unet=self.unet, scheduler=scheduler.from_config(self.scheduler_config),
            force_zeros_for_empty_prompt=False, add_watermarker=False,
        )  # fmt: skip


def load_components(
    prior: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32, vae_dtype: torch.dtype | None = None
) -> Components:
    """Load a prior from a local folder, ours (prior.json) or SDXL in diffusers' layout, or from one file of an SDXL base in the
    original layout. Nothing is fetched.

    `vae_dtype` None gives the autoencoder `dtype` too.

    Raises ValueError that says what is missing if it is none of them, and what it seems to be.
    """
    root = Path(prior)
    if root.is_file():
        return _single_file(root, device, dtype, vae_dtype or dtype)
    if not root.exists():
        raise ValueError(f"no prior at {root}: expected a folder, or one file of an SDXL base")
    missing = [part for part in PARTS if not (root / part).is_dir()]
    if missing:
        raise ValueError(
            f"{root} is not a prior: folder {', '.join(missing)} is missing. Expected SDXL in diffusers' layout "
            f"({', '.join(PARTS)}, text_encoder, text_encoder_2, scheduler), one .safetensors file of an SDXL base in the original "
            "layout, or what training/train_prior.py writes"
        )
    try:
        return _folder(root, device, dtype, vae_dtype or dtype)
    except (OSError, ValueError) as error:  # diffusers says either of a file that is cut, or of a configuration that does not fit
        raise ValueError(f"prior {root} cannot be read: {error}. Copy, download or convert it again, or choose another") from error


def _folder(root: Path, device: str, dtype: torch.dtype, vae_dtype: torch.dtype) -> Components:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTokenizer

    ours = _ours(root / PRIOR_FILE)
    text_encoder, text_encoder_2 = _our_text(ours) if ours else _sdxl_text(root, dtype)
    wanted: dict[str, tuple[Any, torch.dtype]] = {"unet": (UNet2DConditionModel, dtype), "vae": (AutoencoderKL, vae_dtype)}
    unet, vae = (
        cls.from_pretrained(root / part, dtype=precision, local_files_only=True, **_variant(root / part))
        for part, (cls, precision) in wanted.items()
    )
    modules = [freeze(part.to(device)) for part in (unet, vae, text_encoder.to(dtype), text_encoder_2.to(dtype))]
    return Components(
        unet=modules[0], vae=modules[1], text_encoder=modules[2], text_encoder_2=modules[3],
        tokenizer=CLIPTokenizer.from_pretrained(root / "tokenizer", local_files_only=True),
        tokenizer_2=CLIPTokenizer.from_pretrained(root / "tokenizer_2", local_files_only=True),
        scheduler_config=_scheduler(root), network=ours["network"] if ours else None,
    )  # fmt: skip


def _single_file(path: Path, device: str, dtype: torch.dtype, vae_dtype: torch.dtype) -> Components:
    from transformers import CLIPTokenizer

    file = open_file(path)
    base = single_file.plan(file)
    return Components(
        unet=freeze(single_file.read(base.unet, file, device, dtype)),
        vae=freeze(single_file.read(base.vae, file, device, vae_dtype)),
        text_encoder=freeze(single_file.read(base.text_encoder, file, device, dtype)),
        text_encoder_2=freeze(single_file.read(base.text_encoder_2, file, device, dtype)),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True),
        tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER, local_files_only=True, pad_token="!"),  # SDXL's second pads with token 0
        scheduler_config=dict(SDXL_SCHEDULER),
        network=None,
    )


def _ours(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        return {"network": found["network"], "text_seed": found["text_seed"]}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f'{path.name} holds {error}, expected {{"network": …, "text_seed": …}}') from error


def _our_text(ours: dict[str, Any]) -> tuple[Any, Any]:
    if ours["network"] not in NETWORKS:
        raise ValueError(f"{PRIOR_FILE} names network {ours['network']!r}; known: {', '.join(NETWORKS)}")
    preset = NETWORKS[ours["network"]]
    return seeded_encoders(context_dim=preset.context_dim, pooled_dim=preset.pooled_dim, seed=ours["text_seed"])


def _sdxl_text(root: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    first, second = root / "text_encoder", root / "text_encoder_2"
    return (
        CLIPTextModel.from_pretrained(first, dtype=dtype, local_files_only=True, **_variant(first)),
        CLIPTextModelWithProjection.from_pretrained(second, dtype=dtype, local_files_only=True, **_variant(second)),
    )


def _variant(part: Path) -> dict[str, Any]:
    """SDXL is often stored as fp16 alone; then its files carry that word in their names."""
    names = [path.name for path in part.glob("*.safetensors")]
    if not names:
        raise ValueError(f"{part} holds no .safetensors file: pickled weights are not read; convert them first")
    return {"variant": "fp16"} if all(re.search(r"[.-]fp16[.-]", name) for name in names) else {}


def _scheduler(root: Path) -> dict[str, Any]:
    path = root / "scheduler" / "scheduler_config.json"
    return dict(json.loads(path.read_text())) if path.exists() else dict(SDXL_SCHEDULER)


def save_prior(folder: str | Path, *, unet: Any, vae: Any, network: str, text_seed: int, dtype: torch.dtype = torch.float16) -> None:
    """Write a prior of ours. The tokenizers' files are copied in by the caller; the text encoders are a seed."""
    root = Path(folder)
    for name, module in (("unet", unet), ("vae", vae)):
        original = next(module.parameters()).dtype
        module.to(dtype).save_pretrained(root / name)
        module.to(original)
    (root / "scheduler").mkdir(parents=True, exist_ok=True)
    (root / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "EulerDiscreteScheduler", **SDXL_SCHEDULER}, indent=1) + "\n"
    )
    (root / PRIOR_FILE).write_text(json.dumps({"network": network, "text_seed": text_seed}, indent=1) + "\n")
