"""Text conditioning: SDXL's two CLIP encoders, and tiny ones whose weights are a function of a seed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

TOKEN_BUDGET = 77  # CLIP reads 77 tokens, the start and the end token among them
EOT_ID = 49407  # the end token of CLIP's vocabulary
TINY_LAYERS = 2  # choice: the least for which "penultimate layer" means anything
TINY_HEADS = 2


class TextComponents(Protocol):
    """What `encode_prompts` needs: both tokenizers and both encoders."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def tokenizer_2(self) -> Any: ...
    @property
    def text_encoder(self) -> Any: ...
    @property
    def text_encoder_2(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class EncodedPrompts:
    """Text as the UNet takes it.

    `context_BND` [B, 77, D] penultimate states of both encoders side by side; `pooled_BD` the second encoder's projection;
    `tokens` how many tokens each prompt has before any cut, start and end included; `cut` whether words were pushed out.
    """

    context_BND: Tensor
    pooled_BD: Tensor
    tokens: tuple[int, ...]

    @property
    def cut(self) -> tuple[bool, ...]:
        """Whether the prompt is longer than CLIP's 77 tokens, so that its end was not read."""
        return tuple(count > TOKEN_BUDGET for count in self.tokens)


@torch.no_grad()
def encode_prompts(components: TextComponents, prompts: list[str]) -> EncodedPrompts:
    """Encode prompts as SDXL does: penultimate hidden states (no final norm) of both encoders, pooled text of the second.

    The first tokenizer pads with the end token, the second with token 0. Each row depends on its own prompt alone.
    """
    states: list[Tensor] = []
    pooled = torch.empty(0)
    pairs = ((components.tokenizer, components.text_encoder), (components.tokenizer_2, components.text_encoder_2))
    for tokenizer, encoder in pairs:
        ids = tokenizer(prompts, padding="max_length", max_length=TOKEN_BUDGET, truncation=True, return_tensors="pt").input_ids
        out = encoder(ids.to(encoder.device), output_hidden_states=True)
        states.append(out.hidden_states[-2])
        pooled = out[0]
    return EncodedPrompts(context_BND=torch.cat(states, dim=-1), pooled_BD=pooled, tokens=count_tokens(components.tokenizer, prompts))


def count_tokens(tokenizer: Any, prompts: list[str]) -> tuple[int, ...]:
    """Tokens of each prompt, start and end included, before any cut."""
    return tuple(len(tokenizer(prompt, truncation=False, verbose=False).input_ids) for prompt in prompts)


def seeded_encoders(*, context_dim: int, pooled_dim: int, seed: int) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """The tiny text encoders: CLIP's architecture and vocabulary, frozen weights rebuilt from a seed, equal on every machine."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    width = context_dim // 2
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=TINY_LAYERS, num_attention_heads=TINY_HEADS,
        projection_dim=pooled_dim, max_position_embeddings=TOKEN_BUDGET, bos_token_id=EOT_ID - 1, eos_token_id=EOT_ID,
        pad_token_id=EOT_ID,
    )  # fmt: skip
    first = _seed_weights(CLIPTextModel(config), f"text_encoder/{seed}")
    second = _seed_weights(CLIPTextModelWithProjection(config), f"text_encoder_2/{seed}")
    return first, second


def _seed_weights(module: Any, purpose: str) -> Any:
    """Fill every parameter from a counter-based generator keyed by its name."""
    for name, parameter in module.named_parameters():
        key = zlib.crc32(f"{purpose}/{name}".encode())
        values = np.random.Generator(np.random.Philox(key=key)).standard_normal(tuple(parameter.shape), dtype=np.float32)
        parameter.data = torch.from_numpy(_scaled(name, values))
        parameter.requires_grad_(False)
    return module.eval()


def _scaled(name: str, values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    if "position_embedding" in name:
        return values * np.float32(0.3)  # choice: words count for more than where they stand
    if "embedding" in name:
        return values
    if values.ndim >= 2:
        return values * np.float32(values.shape[1] ** -0.5)
    return values * np.float32(0.0) + np.float32("norm" in name and name.endswith("weight"))


def freeze(module: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients."""
    return module.eval().requires_grad_(False)
