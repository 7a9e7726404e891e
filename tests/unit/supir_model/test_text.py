"""Text: the encoders of a seed are the same everywhere, captions tell themselves apart, and what CLIP cannot read is told."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from supir_model.presets import get_network
from supir_model.prompt_windows import token_windows
from supir_model.text import TOKEN_BUDGET, encode_prompts, seeded_encoders, windows_wanted
from tests.helpers import ROOT

TOKENIZERS = ROOT / "priors" / "tiny"
# recorded once: the shipped UNet was trained with these very weights, so another digest is a broken prior
DIGESTS = ("988452d406feadcc", "2d715399358eff27")
DARK = "A photograph in landscape format, dark with low contrast, mostly black."
BRIGHT = "A photograph in landscape format, bright with high contrast, mostly white."


@dataclass(frozen=True)
class Text:
    tokenizer: Any
    tokenizer_2: Any
    text_encoder: Any
    text_encoder_2: Any


@pytest.fixture(scope="module")
def text() -> Text:
    first, second = tiny_encoders(0)
    tokenizers = [CLIPTokenizer.from_pretrained(TOKENIZERS / name, local_files_only=True) for name in ("tokenizer", "tokenizer_2")]
    return Text(tokenizers[0], tokenizers[1], first, second)


def tiny_encoders(seed: int) -> tuple[Any, Any]:
    preset = get_network("tiny")
    return seeded_encoders(context_dim=preset.context_dim, pooled_dim=preset.pooled_dim, seed=seed)


def digest(module: torch.nn.Module) -> str:
    taken = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        taken.update(name.encode())
        taken.update(parameter.detach().numpy().tobytes())
    return taken.hexdigest()[:16]


def test_the_encoders_of_a_seed_are_bit_equal_everywhere() -> None:
    assert tuple(map(digest, tiny_encoders(0))) == DIGESTS
    assert digest(tiny_encoders(1)[0]) != DIGESTS[0]


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(6)
        assert tuple(map(digest, tiny_encoders(0))) == DIGESTS
    assert torch.equal(torch.get_rng_state(), before)


def test_the_vocabulary_is_clips_and_the_second_tokenizer_pads_with_zero(text: Text) -> None:
    # ids of CLIP's own tokenizer for its standard example
    wanted = [49406, 320, 1125, 539, 320, 2368, 49407]
    for tokenizer, pad in ((text.tokenizer, 49407), (text.tokenizer_2, 0)):
        ids = tokenizer("a photo of a cat", padding="max_length", max_length=TOKEN_BUDGET).input_ids
        assert ids == wanted + [pad] * (TOKEN_BUDGET - len(wanted))


def test_shapes_and_penultimate_layers(text: Text) -> None:
    preset = get_network("tiny")
    out = encode_prompts(text, [DARK, BRIGHT])
    assert out.context_BND.shape == (2, TOKEN_BUDGET, preset.context_dim)
    assert out.pooled_BD.shape == (2, preset.pooled_dim)
    ids = text.tokenizer([DARK], padding="max_length", max_length=TOKEN_BUDGET, return_tensors="pt").input_ids
    states = text.text_encoder(ids, output_hidden_states=True).hidden_states
    half = preset.context_dim // 2
    torch.testing.assert_close(out.context_BND[:1, :, :half], states[-2])  # float32, other batch size: rounding only


def test_captions_that_differ_have_clearly_different_embeddings(text: Text) -> None:
    out = encode_prompts(text, [DARK, BRIGHT, ""])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        # measured: 0.946 for the two captions, which share most of their words; the pooled text is a mean over all of them
        assert torch.cosine_similarity(out.pooled_BD[one], out.pooled_BD[other], dim=0) < 0.97
        gap = (out.context_BND[one] - out.context_BND[other]).square().mean()
        assert gap > 0.05 * out.context_BND.square().mean(), "texts must be told apart by what the UNet attends to"


def test_a_prompt_does_not_depend_on_its_batch(text: Text) -> None:
    alone, together = encode_prompts(text, [BRIGHT]), encode_prompts(text, [DARK, BRIGHT, "a cat"])
    # float32 matrix products may be cut differently for another batch size
    torch.testing.assert_close(alone.context_BND[0], together.context_BND[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone.pooled_BD[0], together.pooled_BD[1], atol=1e-5, rtol=1e-5)


def test_a_text_that_is_too_long_is_told(text: Text) -> None:
    fits, long = "cat " * (TOKEN_BUDGET - 2), "cat " * (TOKEN_BUDGET - 1)
    out = encode_prompts(text, [fits, long, ""])
    assert out.tokens == (TOKEN_BUDGET, TOKEN_BUDGET + 1, 2)
    assert out.cut == (False, True, False)
    assert torch.equal(out.context_BND[0], out.context_BND[1]), "the word past the budget cannot have been read"


# ---- prompts beyond 77 tokens


def words(count: int, last: str = "cat") -> str:
    return " ".join(["cat"] * (count - 1) + [last])


@pytest.mark.parametrize("prompt", ["", BRIGHT, words(75)])
def test_a_prompt_that_fits_is_read_alike_in_both_ways(text: Text, prompt: str) -> None:
    cut, windows = (encode_prompts(text, [prompt], long_prompts=way) for way in ("cut", "windows"))
    assert torch.equal(cut.context_BND, windows.context_BND)
    assert torch.equal(cut.pooled_BD, windows.pooled_BD)
    for tokenizer in (text.tokenizer, text.tokenizer_2):  # and both are what the tokenizer itself does
        ids = tokenizer([prompt], padding="max_length", max_length=TOKEN_BUDGET, truncation=True, return_tensors="pt").input_ids
        assert torch.equal(token_windows(tokenizer, [prompt], 1, "windows")[0], ids)


def test_the_word_behind_the_budget_is_read_in_a_window_of_its_own(text: Text) -> None:
    way = {"cut": [], "windows": []}  # type: dict[str, list[Any]]
    for last in ("cat", "dog"):
        for name, found in way.items():
            found.append(encode_prompts(text, [words(76, last)], long_prompts=name))  # type: ignore[arg-type]
    (cut, other_cut), (long, other) = way["cut"], way["windows"]
    assert torch.equal(cut.context_BND, other_cut.context_BND)
    assert (cut.lost, other_cut.lost, other.lost) == (("cat",), ("dog",), ("",))
    assert long.context_BND.shape == (1, 2 * TOKEN_BUDGET, cut.context_BND.shape[2])
    assert torch.equal(long.context_BND[:, :TOKEN_BUDGET], cut.context_BND)  # 75 words fill the first window in both ways
    assert torch.equal(long.context_BND[:, :TOKEN_BUDGET], other.context_BND[:, :TOKEN_BUDGET])
    assert not torch.equal(long.context_BND, other.context_BND)
    assert torch.equal(other.context_BND[:, TOKEN_BUDGET:], encode_prompts(text, ["dog"]).context_BND)
    assert torch.equal(long.pooled_BD, cut.pooled_BD), "pooled text is the first window's"


def test_shorter_prompts_are_followed_by_empty_windows(text: Text) -> None:
    out = encode_prompts(text, [BRIGHT, words(160)], long_prompts="windows")
    assert out.context_BND.shape[:2] == (2, 3 * TOKEN_BUDGET)
    assert windows_wanted(text, [BRIGHT, words(160)], "windows") == [1, 3]
    alone = encode_prompts(text, [BRIGHT], long_prompts="windows", windows=3).context_BND
    torch.testing.assert_close(out.context_BND[:1], alone, atol=1e-5, rtol=1e-5)  # another batch size, as above
    empty = encode_prompts(text, [""]).context_BND
    assert torch.equal(alone[:, TOKEN_BUDGET:], torch.cat([empty, empty], dim=1))


def test_windows_end_with_whole_words(text: Text) -> None:
    long_word = "Extraordinarily"  # two tokens, of which the budget ends in the middle
    prompt = f"{words(74)} {long_word} CATS."
    first, second = (window[0].tolist() for window in token_windows(text.tokenizer, [prompt], 2, "windows"))
    assert first[74 + 1] == first[76] == text.tokenizer.eos_token_id, "74 words, the end, and padding"
    assert text.tokenizer.decode(second, skip_special_tokens=True).split()[0] == long_word.lower()
    assert encode_prompts(text, [prompt]).lost == (f"{long_word} CATS.",), "words as they were written, none by halves"
    endless = token_windows(text.tokenizer, ["x1" * 100], 3, "windows")  # a word longer than a window is split
    assert endless.shape == (3, 1, TOKEN_BUDGET)
