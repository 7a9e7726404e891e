"""Text conditioning: SDXL's two CLIP encoders, and tiny ones whose weights are a function of a seed.

N is 77 tokens, or 77 for each window of a long prompt.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from supir_model.presets import LongPrompts
from supir_model.prompt_windows import TOKEN_BUDGET as TOKEN_BUDGET
from supir_model.prompt_windows import lost_words, token_windows, windows_needed

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

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

    `context_BND` [B, N, D] penultimate states of both encoders side by side; `pooled_BD` the second encoder's projection;
    `tokens` how many tokens each prompt has before any cut, start and end included; `lost` the words of each prompt that no
    encoder read, empty where all were.
    """

    context_BND: Tensor
    pooled_BD: Tensor
    tokens: tuple[int, ...]
    lost: tuple[str, ...]

    @property
    def cut(self) -> tuple[bool, ...]:
        """Whether the prompt is longer than CLIP's 77 tokens and its end was not read."""
        return tuple(bool(words) for words in self.lost)


@torch.no_grad()
def encode_prompts(
    components: TextComponents, prompts: list[str], *, long_prompts: LongPrompts = "cut", windows: int = 1
) -> EncodedPrompts:
    """Encode prompts as SDXL does: penultimate hidden states (no final norm) of both encoders, pooled text of the second.

    "cut" reads 77 tokens. "windows" reads all, 77 at a time, each window between a start and an end token; their states stand one
    after the other along the token axis, at least `windows` of them, and the pooled text is the first window's. Prompts that need
    fewer are followed by empty windows. The first tokenizer pads with the end token, the second with token 0. Each row depends on
    its own prompt and the number of windows alone.
    """
    states: list[Tensor] = []
    pooled = torch.empty(0)
    count = max([windows, *windows_wanted(components, prompts, long_prompts)])
    pairs = ((components.tokenizer, components.text_encoder), (components.tokenizer_2, components.text_encoder_2))
    for tokenizer, encoder in pairs:
        ids_WBN = token_windows(tokenizer, prompts, count, long_prompts)
        outs = [encoder(ids_BN.to(encoder.device), output_hidden_states=True) for ids_BN in ids_WBN]
        states.append(torch.cat([out.hidden_states[-2] for out in outs], dim=1))
        pooled = outs[0][0]
    return EncodedPrompts(
        context_BND=torch.cat([state.to(pooled.device) for state in states], dim=-1),
        pooled_BD=pooled,
        tokens=count_tokens(components.tokenizer, prompts),
        lost=tuple(lost_words(components.tokenizer, prompt) if long_prompts == "cut" else "" for prompt in prompts),
    )


def windows_wanted(components: TextComponents, prompts: Sequence[str], long_prompts: LongPrompts) -> list[int]:
    """Windows that each prompt fills, the greater number of the two tokenizers; 1 where prompts are cut."""
    tokenizers = (components.tokenizer, components.tokenizer_2)
    return [max(windows_needed(tokenizer, prompt, long_prompts) for tokenizer in tokenizers) for prompt in prompts]


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
