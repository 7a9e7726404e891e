"""Prompts as CLIP reads them: 77 tokens at a time, a start and an end token among them. Released code: the rest is cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from supir_model.presets import LongPrompts

TOKEN_BUDGET = 77  # CLIP reads 77 tokens, the start and the end token among them
WORDS = TOKEN_BUDGET - 2  # tokens of a window that carry words
END_OF_WORD = "</w>"  # CLIP's vocabulary


def token_windows(tokenizer: Any, prompts: Sequence[str], count: int, long_prompts: LongPrompts) -> Tensor:
    """The first `count` windows of each prompt as ids [W, B, 77]; missing ones are those of the empty prompt."""
    rows = [_pieces(tokenizer, prompt, long_prompts)[:count] for prompt in prompts]
    padded = [row + [[]] * (count - len(row)) for row in rows]
    return torch.tensor([[_framed(tokenizer, row[window]) for row in padded] for window in range(count)])


def windows_needed(tokenizer: Any, prompt: str, long_prompts: LongPrompts) -> int:
    """Windows of a prompt; 1 for an empty one."""
    return len(_pieces(tokenizer, prompt, long_prompts))


def lost_words(tokenizer: Any, prompt: str) -> str:
    """The end of the prompt that the first window does not hold, from the beginning of the first word that is not read whole."""
    offsets = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False).offset_mapping
    if len(offsets) <= WORDS:
        return ""
    start = int(offsets[WORDS][0])
    while start and prompt[start - 1].isalnum() and prompt[start : start + 1].isalnum():
        start -= 1
    return prompt[start:]


def _pieces(tokenizer: Any, prompt: str, long_prompts: LongPrompts) -> list[list[int]]:
    """Ids of the prompt in parts of at most 75. Windows end with a whole word; a cut does not ask for words."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    if long_prompts == "cut" or len(ids) <= WORDS:
        return [ids[:WORDS]]
    ends = [place for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids), start=1) if token.endswith(END_OF_WORD)]
    pieces, start = [], 0
    while start < len(ids):
        limit = min(start + WORDS, len(ids))
        stop = max((end for end in ends if start < end <= limit), default=limit)
        pieces.append(ids[start:stop])
        start = stop
    return pieces


def _framed(tokenizer: Any, piece: list[int]) -> list[int]:
    padding = [tokenizer.pad_token_id] * (WORDS - len(piece))
    return [tokenizer.bos_token_id, *piece, tokenizer.eos_token_id, *padding]
