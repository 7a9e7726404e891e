"""A tiny random LLaVA through the real processor, template and generate."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.stages.asking import Decoding
from pipelines.stages.captioner import Asked, Captioned, known_picture
from pipelines.stages.llava import LlavaCaptioner, LlavaSettings, padded
from pipelines.stages.llava_decoder import nucleus
from tests.helpers import photographs
from tests.hub_server import COMMIT, Hub, hub_server, use_hub
from tests.tiny_models import tiny_llava

TOKENS = 12  # of a caption: a random model ends nowhere, and each one costs time


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("models") / "tiny-llava")


@pytest.fixture(scope="module")
def captioner(folder: Path) -> LlavaCaptioner:
    captioner = LlavaSettings(model=str(folder), max_new_tokens=TOKENS).build("abc")
    captioner.load()
    return captioner


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [np.array(Image.open(path).convert("RGB").resize((120, 80))) for path in photographs(5)]


def test_a_caption_does_not_depend_on_its_batch(captioner: LlavaCaptioner, pictures: list[np.ndarray]) -> None:
    together = captioner.describe(pictures, range(5))
    assert together[0] == captioner.describe(pictures[:1], [0])[0]
    assert together[3] == captioner.describe(pictures[3:4], [3])[0]
    assert len({said.text for said in together}) > 1, "the captions do not depend on the pictures"


def test_what_was_asked_and_how_is_in_the_answer(captioner: LlavaCaptioner, pictures: list[np.ndarray]) -> None:
    said = captioner.describe(pictures[:1], [7])[0]
    assert said.prompt.startswith("A chat between a curious user and an artificial intelligence assistant.")
    assert said.prompt.endswith("USER: <image>\nDescribe this image and its style in a very detailed manner. ASSISTANT:")
    assert (said.decoding, said.finish_reason) == ("greedy", "length")
    assert said.text == " ".join(said.text.split())
    assert captioner.identity.model == "tiny-llava"
    assert captioner.identity.revision == "abc"


def test_weights_are_bfloat16_and_attention_fused_where_asked(folder: Path, pictures: list[np.ndarray]) -> None:
    half = LlavaSettings(model=str(folder), max_new_tokens=4, dtype="bfloat16").build()
    half.load()
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert half.model.config._attn_implementation == "sdpa"
    assert half.describe(pictures[:2], [0, 1])[1] == half.describe(pictures[1:2], [1])[0]


def test_sampling_belongs_to_the_seed(folder: Path, pictures: list[np.ndarray]) -> None:
    hot = LlavaSettings(model=str(folder), max_new_tokens=TOKENS, decoding=Decoding(temperature=1.5), canary=False).build()
    hot.load()
    state = torch.random.get_rng_state()
    together = hot.describe(pictures[:3], [1, 2, 3])
    assert together[1] == hot.describe(pictures[1:2], [2])[0]
    assert together[1].text != hot.describe(pictures[1:2], [99])[0].text
    assert together[1].decoding == "temperature 1.5, top_p 1.0, seed 2"
    assert torch.equal(state, torch.random.get_rng_state()), "a global seed was touched"


def test_another_attempt_decodes_in_another_way(captioner: LlavaCaptioner, pictures: list[np.ndarray]) -> None:
    again = captioner.describe(pictures[:1], [5], attempt=1)[0]
    assert again.decoding == "temperature 0.7, top_p 0.9, seed 5"


def test_nucleus_sampling_draws_from_the_nucleus_with_its_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    ones, drawn = torch.ones(4000, 1), torch.rand(4000, 1, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(torch.tensor(nucleus(logits, ones, 0.7 * ones, drawn)), minlength=4) / 4000
    assert shares[2:].sum() == 0
    assert shares[0] == pytest.approx(0.5 / 0.8, abs=0.03)  # 4 standard deviations of 4000 draws


def plain_generate(captioner: LlavaCaptioner, picture: np.ndarray, ends: list[int], tokens: int) -> list[int]:
    inputs = captioner._on_device(captioner.prepare(picture))
    made = captioner.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=ends, pad_token_id=3)
    new = made[0, inputs["input_ids"].shape[1]:].tolist()
    return new[:new.index(next(token for token in new if token in ends))] if any(token in ends for token in new) else new


@pytest.mark.parametrize("places", [1, 3, 8])
def test_rows_that_come_and_go_say_what_generate_says(captioner: LlavaCaptioner, monkeypatch: pytest.MonkeyPatch, places: int) -> None:
    """Ends are chosen so that rows end at different steps, others join, and the cache moves under them."""
    photos = [np.array(Image.open(path).convert("RGB").resize((90 + 7 * i, 80))) for i, path in enumerate(photographs(9))]
    free = [plain_generate(captioner, photo, [2], 20) for photo in photos]
    ends = [2, free[0][3], free[1][7], free[2][12]]
    wanted = [plain_generate(captioner, photo, ends, 20) for photo in photos]
    assert len({len(one) for one in wanted}) > 2, "all rows end at once"
    monkeypatch.setattr(captioner.decoder, "ends", frozenset(ends))
    monkeypatch.setattr(captioner.decoder, "places", places)
    monkeypatch.setattr(captioner.decoder, "max_new_tokens", 20)
    asked = (Asked(place=i, picture_HWC=photo, seed=i) for i, photo in enumerate(photos))
    said = {one.place: answer for one, answer in captioner.describe_all(asked)}
    texts = [" ".join(captioner.processor.tokenizer.decode(tokens, skip_special_tokens=True).split()) for tokens in wanted]
    assert [said[i].text for i in range(9)] == texts  # type: ignore[union-attr]
    assert [said[i].tokens for i in range(9)] == [len(tokens) for tokens in wanted]  # type: ignore[union-attr]


def test_pictures_are_drawn_when_there_is_room(captioner: LlavaCaptioner, pictures: list[np.ndarray],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def asked() -> Any:
        for i, picture in enumerate(pictures):
            drawn.append(i)
            yield Asked(place=i, picture_HWC=picture, seed=i)

    monkeypatch.setattr(captioner.decoder, "places", 2)
    answers = captioner.describe_all(asked())
    assert isinstance(next(answers)[1], Captioned)
    assert drawn == [0, 1]
    assert len(list(answers)) == 4


def test_an_end_token_ends_a_caption(captioner: LlavaCaptioner, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = plain_generate(captioner, pictures[0], [2], 3)
    monkeypatch.setattr(captioner.decoder, "ends", frozenset([2, tokens[1]]))
    said = captioner.describe(pictures[:1], [0])[0]
    assert said.finish_reason == "stop"


def test_out_of_memory_halves_the_batch(captioner: LlavaCaptioner, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = captioner.describe(pictures, range(5))
    sizes: list[int] = []
    model = captioner.model

    class SmallMemory:
        config = model.config

        def __call__(self, **inputs: Any) -> Any:
            sizes.append(len(inputs["input_ids"]))
            if sizes[-1] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model(**inputs)

    monkeypatch.setattr(captioner.decoder, "model", SmallMemory())
    monkeypatch.setattr(captioner.decoder, "places", 5)
    assert captioner.describe(pictures, range(5)) == whole
    assert sizes[:2] == [5, 2]
    assert max(sizes[1:]) == 2


def test_pictures_are_padded_or_cut_to_the_square_of_the_tower(captioner: LlavaCaptioner) -> None:
    wide = np.zeros((10, 40, 3), np.uint8)
    square = padded(wide, [0.5, 0.25, 0.75])
    assert square.shape == (40, 40, 3)
    assert square[0, 0].tolist() == [127, 63, 191]
    assert not square[15:25].any()
    assert captioner.fit(wide).shape == (56, 56, 3)
    assert captioner.fit(captioner.fit(wide)).tobytes() == captioner.fit(wide).tobytes()
    prepared = captioner.prepare(wide)
    assert captioner.prepare(prepared) is prepared


def test_a_model_that_does_not_look_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    blind = shutil.copytree(folder, tmp_path / "blind")
    weights = load_file(blind / "model.safetensors")
    save_file({name: value * 0 if "projector" in name else value for name, value in weights.items()}, blind / "model.safetensors",
              metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not look at its input"):
        LlavaSettings(model=str(blind), max_new_tokens=4).build().load()
    LlavaSettings(model=str(blind), max_new_tokens=4, canary=False).build().load()


def test_a_processor_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    settings = json.loads((other / "processor_config.json").read_text())
    (other / "processor_config.json").write_text(json.dumps(settings | {"patch_size": 28}))
    with pytest.raises(ValueError, match="leaves 4 places for a picture of 168 x 168, the model fills 16"):
        LlavaSettings(model=str(other)).build().load()


def test_missing_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    partial = shutil.copytree(folder, tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "layers.1" not in name}, partial / "model.safetensors",
              metadata={"format": "pt"})
    with pytest.raises(ValueError, match="of the model's weights"):
        LlavaSettings(model=str(partial)).build().load()


def without(*names: str) -> Any:
    def damage(folder: Path) -> None:
        for path in [path for path in folder.iterdir() if any(name in path.name for name in names)]:
            path.unlink()

    return damage


@pytest.mark.parametrize(("damage", "message"), [
    (without("model.safetensors"), "no file named model.safetensors"), (without("process"), "image processor"),
    (without("token"), "tokenizer"), (without("config.json"), "model_type"), (without(""), "model_type"),
    (lambda folder: (folder / "config.json").write_text("{cut"), "not a valid JSON file"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"cut"), "SafetensorError"),
])
def test_a_folder_that_is_not_whole_is_told_and_what_it_has_to_hold(folder: Path, tmp_path: Path, damage: Any, message: str) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    damage(broken)
    expected = r"expected config\.json, \*\.safetensors, and the files of processor and tokenizer.* is the folder complete\?"
    with pytest.raises(ValueError, match=rf"broken cannot be loaded as LLaVA \(.*{message}.*{expected}"):
        LlavaSettings(model=str(broken)).build().load()


def test_a_hubs_model_says_what_its_folder_says_and_is_known_by_its_commit(folder: Path, captioner: LlavaCaptioner, tmp_path: Path,
                                                                          pictures: list[np.ndarray],
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server(Hub({path.name: path.read_bytes() for path in folder.iterdir()})) as url:
        use_hub(monkeypatch, url, tmp_path / "hub")
        settings = LlavaSettings(model="owner/name", max_new_tokens=TOKENS)
        assert settings.weights() == "owner/name@main"
        there = settings.build(settings.weights())
        there.load()
    assert (there.identity.model, there.identity.revision) == ("owner/name", COMMIT)
    assert there.describe(pictures[:1], [0]) == captioner.describe(pictures[:1], [0])


def test_a_folder_that_is_not_there_and_a_gpu_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder of weights at '/nowhere/llava' \(looked from .*\): pass the path of a folder that"):
        LlavaSettings(model="/nowhere/llava").weights()
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"captioner.device is 'cuda', but this worker sees no GPU: ask for one with --set workers"):
            LlavaSettings(model=str(folder), device="cuda").build().load()


@pytest.mark.parametrize(("change", "message"), [
    ({"question": "What is <image>?"}, "captioner.question contains '<image>', which marks the picture's place: leave it to the template"),
    ({"template": "USER: {question}"}, "contain <image> once, and {question}; found 'USER: {question}'"),
    ({"template": "USER: <image> <image> {question}"}, "contain <image> once"), ({"template": "USER: <image>"}, "found 'USER: <image>'"),
    ({"max_new_tokens": 0}, "captioner.max_new_tokens is 0, expected 1 or more"),
])
def test_settings_teach(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LlavaSettings(model="x", **change)


def test_the_known_picture_is_not_blank() -> None:
    assert known_picture(56).std() > 40
