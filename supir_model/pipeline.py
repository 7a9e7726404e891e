"""SUPIR as a diffusers pipeline: how Python users restore an image. A shell around `supir_model.restore.restore`.

    pipeline = SupirPipeline.from_official("sd_xl_base_1.0.safetensors", "SUPIR-v0Q.ckpt", dtype=torch.bfloat16)
    pipeline.enable_model_cpu_offload()
    restored = pipeline("photo.jpg", prompt="two dogs at a window", upscale=2, generator=7).images[0]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from supir_model.parts import StoredAdaptor, StoredEncoder
from supir_model.pipeline_arguments import Generators, Images, Output, one_each, pictures_of, seeds_of, to_output
from supir_model.preprocess import Sizes, plan_sizes, to_network
from supir_model.presets import SamplingPreset, get_sampling
from supir_model.prior import Components
from supir_model.restore import restore, tiles
from supir_model.schedule import sdxl_schedule
from supir_model.text import freeze
from supir_model.weights import Restorer, load_restorer

OnStepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
"""diffusers' convention: (pipeline, step, timestep, {"latents": …}) -> those that are changed."""


@dataclass
class SupirPipelineOutput(BaseOutput):  # type: ignore[misc]
    """One entry an image, as sizes may differ: the results, and the decoded stage-1 images (latents of both for "latent")."""

    images: list[Any]
    stage1: list[Any]


_DiffusionPipeline: Any = DiffusionPipeline  # diffusers' own annotations do not show what it sets


class SupirPipeline(_DiffusionPipeline):  # type: ignore[misc]
    """SDXL, a degradation-robust encoder (None: the autoencoder's own) and an adaptor (None: the prior alone).

    `preset` names the sampling settings of calls that name none. The autoencoder and the encoder share one precision, UNet and
    adaptor another; fp16 is refused for the first two, ValueError says why. The scheduler is stored for the sake of SDXL's layout;
    sampling is Algorithm 1 on SDXL's noise levels.
    """

    # the encoder stands outside, as it is called in turn with the autoencoder; so does the adaptor, with the UNet
    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components: ClassVar[list[str]] = ["encoder", "adaptor"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: EulerDiscreteScheduler,
        encoder: StoredEncoder | None = None,
        adaptor: StoredAdaptor | None = None,
        preset: str = "release_quality",
    ) -> None:
        super().__init__()
        get_sampling(preset)
        self.register_modules(
            vae=vae, text_encoder=text_encoder, text_encoder_2=text_encoder_2, tokenizer=tokenizer, tokenizer_2=tokenizer_2,
            unet=unet, scheduler=scheduler, encoder=encoder, adaptor=adaptor,
        )  # fmt: skip
        self.register_to_config(preset=preset)
        for part in self.components.values():
            if isinstance(part, torch.nn.Module):
                freeze(part)  # torch multiplies weights that want gradients in another order, even without autograd: other last bits
        self._check_parts()

    @classmethod
    def from_official(
        cls,
        base: str | Path,
        supir_checkpoint: str | Path,
        *,
        preset: str = "release_quality",
        device: str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
    ) -> Self:
        """An SDXL base (a folder in diffusers' layout, or one .safetensors file) and a SUPIR checkpoint in the official layout
        (SUPIR-v0Q or v0F, .ckpt or .safetensors), which has both encoder and adaptor. Nothing is fetched, no pickled code runs.

        The autoencoder stays in fp32 where `dtype` is fp16. ValueError that teaches if a file is missing or another one.
        """
        return cls.from_weights(base, encoder=supir_checkpoint, adaptor=supir_checkpoint, preset=preset, device=device, dtype=dtype)

    @classmethod
    def from_weights(
        cls,
        prior: str | Path,
        *,
        encoder: str | Path | None = None,
        adaptor: str | Path | None = None,
        preset: str = "release_quality",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """A prior and what was trained on it, as `supir_model.weights.load_restorer` reads them."""
        return cls.from_restorer(load_restorer(prior, encoder=encoder, adaptor=adaptor, device=device, dtype=dtype), preset=preset)

    @classmethod
    def from_restorer(cls, restorer: Restorer, *, preset: str = "release_quality") -> Self:
        """The pipeline of loaded networks, whose tensors it shares."""
        parts, scheduler = restorer.components, EulerDiscreteScheduler.from_config(restorer.components.scheduler_config)
        own_encoder = restorer.encoder is parts.vae.encoder
        return cls(
            vae=parts.vae, text_encoder=parts.text_encoder, text_encoder_2=parts.text_encoder_2, tokenizer=parts.tokenizer,
            tokenizer_2=parts.tokenizer_2, unet=parts.unet, scheduler=scheduler,
            encoder=None if own_encoder else StoredEncoder.of(restorer.encoder, parts.vae),
            adaptor=None if restorer.adaptor is None else StoredAdaptor.of(restorer.adaptor),
            preset=preset,
        )  # fmt: skip

    @property
    def restorer(self) -> Restorer:
        """The same networks, as `restore` takes them."""
        components = Components(
            unet=self.unet, vae=self.vae, tokenizer=self.tokenizer, tokenizer_2=self.tokenizer_2, text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2, scheduler_config=dict(self.scheduler.config), network=None,
        )  # fmt: skip
        return Restorer(components=components, encoder=self.encoder or self.vae.encoder, adaptor=self.adaptor)

    @torch.no_grad()
    def __call__(
        self,
        image: Images,
        prompt: str | Sequence[str] = "",
        negative_prompt: str | Sequence[str] | None = None,
        *,
        upscale: float = 1.0,
        num_inference_steps: int | None = None,
        guidance_scale: float | tuple[float, float] | None = None,
        control_scale: float | tuple[float, float] | None = None,
        restoration_scale: float | None = None,
        generator: Generators = None,
        preset: str | SamplingPreset | None = None,
        tile_prompts: Sequence[str] | None = None,
        quality_words: bool = True,
        output_type: Output = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> SupirPipelineOutput | tuple[list[Any], list[Any]]:
        """Restore one image or several, of any sizes, each `upscale` times as large. They go one by one: a result depends on its own
        image, prompt and seed.

        `image`: a path, a PIL image, uint8 pixels [H, W, 3], floats in [0, 1] [3, H, W]; a list of those, or a batch.
        `prompt`: what is in the image, one for all or one each; unless `quality_words` is False the preset's words follow it.
        `negative_prompt`: None for the preset's.
        `tile_prompts`: for one image, instead of `prompt`, what is in each of its tiles, in the order of `tiles`.
        `preset`: a name or whole settings; None for the pipeline's own. Arguments that are None are as it says:
        `num_inference_steps`; `guidance_scale`, the weight g of u + g (c - u), and `control_scale` of the adaptor, constant or (at the
        first noise level, at the end); `restoration_scale`, tau_r of Algorithm 1: the smaller, the stronger the pull to the input; 0 or
        less turns it off.
        `generator`: seeds (int, the one that `restore` takes) or torch generators, one for all or one each; of a generator one seed an
        image is drawn. None draws fresh ones.
        `output_type`: "pil", "np" (floats in [0, 1], [H, W, 3]), "pt" (the same, [3, H, W]) or "latent" (scaled, [C, h, w]).
        `callback_on_step_end`: called after each step of each image; may return other latents. To stop, raise.
        """
        self._check_parts()
        settings = self._settings(preset, num_inference_steps, guidance_scale, control_scale, restoration_scale)
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs names {sorted(unknown)}; known: {self._callback_tensor_inputs}")
        pictures = pictures_of(image)
        prompts = one_each(prompt, len(pictures), "prompt")
        words = settings.prompts.around if quality_words else str
        texts, of_tiles = [words(text) for text in prompts], _of_tiles(tile_prompts, len(pictures), words)
        negatives = one_each(settings.prompts.negative if negative_prompt is None else negative_prompt, len(pictures), "negative_prompt")
        seeds = seeds_of(generator, len(pictures))
        self._num_timesteps = settings.steps
        found = []
        with self.progress_bar(total=len(pictures) * settings.steps) as bar:

            def on_step(step: int, sigma: float, z_BCHW: Tensor) -> Tensor:
                bar.update()
                return self._step_ended(callback_on_step_end, step, sigma, z_BCHW)

            for rgb_HWC, text, negative, seed in zip(pictures, texts, negatives, seeds, strict=True):
                found.append(self._restore(rgb_HWC, text, of_tiles, negative, seed, settings, upscale, output_type, on_step))
        self.maybe_free_model_hooks()
        output = SupirPipelineOutput(images=[result for result, _ in found], stage1=[first for _, first in found])
        return output if return_dict else (output.images, output.stage1)

    def tiles(
        self, image: Images, *, upscale: float = 1.0, preset: str | SamplingPreset | None = None
    ) -> tuple[tuple[int, int], list[tuple[int, int, int, int]]]:
        """(width, height) at which one image is worked, and the boxes (left, upper, right, lower) of its tiles in that size."""
        settings = self._settings(preset, None, None, None, None)
        [rgb_HWC] = pictures_of(image)
        sizes = _sizes(rgb_HWC, settings, upscale)
        places = tiles(self.restorer, settings, sizes.net_height, sizes.net_width)
        return (sizes.net_width, sizes.net_height), [(p.left, p.top, p.left + p.width, p.top + p.height) for p in places]

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    def _restore(
        self,
        rgb_HWC: Any,
        text: str,
        of_tiles: list[str] | None,
        negative: str,
        seed: int,
        settings: SamplingPreset,
        upscale: float,
        output_type: Output,
        on_step: Callable[[int, float, Tensor], Tensor],
    ) -> tuple[Any, Any]:
        sizes = _sizes(rgb_HWC, settings, upscale)
        tile_prompts = None if of_tiles is None else [of_tiles]
        made = restore(
            self.restorer, to_network(rgb_HWC, sizes), [text], [negative], settings, [seed], tile_prompts=tile_prompts, on_step=on_step
        )
        if output_type == "latent":
            return made.z_BCHW[0], made.z_lq_BCHW[0]
        return to_output(made.x_BCHW, sizes, output_type), to_output(made.x_stage1_BCHW, sizes, output_type)

    def _step_ended(self, callback: OnStepEnd | None, step: int, sigma: float, z_BCHW: Tensor) -> Tensor:
        if callback is None:
            return z_BCHW
        timestep = sdxl_schedule().timestep_of(torch.tensor([sigma]))[0]
        changed = callback(self, step, timestep, {"latents": z_BCHW}) or {}
        return changed.get("latents", z_BCHW)

    def _settings(
        self,
        preset: str | SamplingPreset | None,
        steps: int | None,
        guidance: float | tuple[float, float] | None,
        control: float | tuple[float, float] | None,
        restoration: float | None,
    ) -> SamplingPreset:
        given = self.config.preset if preset is None else preset
        settings = get_sampling(given) if isinstance(given, str) else given
        changes: dict[str, Any] = {}
        for name, value in (("guidance", guidance), ("control_scale", control)):
            if value is not None:
                ends = value if isinstance(value, tuple) else (value, value)
                changes |= {f"{name}_start": float(ends[0]), f"{name}_end": float(ends[1])}
        changes |= {} if steps is None else {"steps": steps}
        changes |= {} if restoration is None else {"restore_cfg": float(restoration)}
        return replace(settings, **changes)

    def _check_parts(self) -> None:
        """ValueError unless precisions and prediction type are such that a result can be trusted."""
        pairs = (("encoder", self.encoder, "vae", self.vae), ("adaptor", self.adaptor, "unet", self.unet))
        if torch.float16 in (self.vae.dtype, getattr(self.encoder, "dtype", None)):
            raise ValueError(
                "the autoencoder is in fp16, in which SDXL's overflows (values beyond 65504) and gives black images: load with "
                'dtype={"default": torch.float16, "vae": torch.float32, "encoder": torch.float32}, or dtype=torch.bfloat16'
            )
        for name, part, other_name, other in pairs:
            if part is not None and part.dtype != other.dtype:
                raise ValueError(f"{name} is in {part.dtype} and {other_name} in {other.dtype}: load both in the same precision")
        if self.scheduler.config.prediction_type != "epsilon":
            raise ValueError(
                f"the prior predicts {self.scheduler.config.prediction_type!r}, expected 'epsilon': SUPIR was trained on SDXL base"
            )


def _sizes(rgb_HWC: Any, settings: SamplingPreset, upscale: float) -> Sizes:
    height, width = rgb_HWC.shape[:2]
    return plan_sizes(height, width, upscale=upscale, min_size_px=settings.min_size_px, multiple_px=settings.multiple_px)


def _of_tiles(tile_prompts: Sequence[str] | None, pictures: int, words: Callable[[str], str]) -> list[str] | None:
    if tile_prompts is None:
        return None
    if pictures != 1:
        raise ValueError(f"tile_prompts are those of one image, and {pictures} came: call the pipeline once an image")
    return [words(text) for text in tile_prompts]
