"""LLaVA-NeXT and LLaVA-OneVision: tiny random models through the real processors, whose pictures take places by their shape."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.stages.llava import LlavaCaptioner, LlavaSettings
from pipelines.stages.llava_loading import FULL_PRECISION, quantization
from tests.helpers import photographs
from tests.tiny_models import tiny_llava, tiny_llava_next, tiny_llava_onevision, tiny_tokenizer

TOKENS = 12
SHAPES = ((90, 90), (60, 180), (200, 70), (120, 110), (64, 64), (56, 170))  # height, width
BUILDERS = {"llava_next": tiny_llava_next, "llava_onevision": tiny_llava_onevision}


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def captioner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LlavaCaptioner:
    folder = BUILDERS[request.param](tmp_path_factory.mktemp(request.param) / request.param)
    captioner = LlavaSettings(model=str(folder), max_new_tokens=TOKENS).build("abc", 3)
    captioner.load()
    return captioner


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    found = photographs(len(SHAPES))
    return [np.array(Image.open(path).convert("RGB").resize((width, height))) for path, (height, width) in zip(found, SHAPES, strict=True)]


def generated(captioner: LlavaCaptioner, picture: np.ndarray, ends: list[int]) -> str:
    inputs = captioner._on_device(captioner.prepare(picture))
    made = captioner.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=3)
    new = [token for token in made[0, inputs["input_ids"].shape[1]:].tolist() if token not in (*ends, 3)]
    return " ".join(captioner.processor.tokenizer.decode(new, skip_special_tokens=True).split())


def test_pictures_of_any_shape_come_and_go_and_say_what_generate_says(captioner: LlavaCaptioner, pictures: list[np.ndarray],
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = captioner._on_device(captioner.prepare(pictures[0]))
    free = captioner.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=[2], pad_token_id=3)
    ends = [2, int(free[0, inputs["input_ids"].shape[1] + 4])]  # so that one row ends early, and another takes its place
    monkeypatch.setattr(captioner.decoder, "ends", frozenset(ends))
    lengths = {captioner.prepare(picture).inputs["input_ids"].shape[1] for picture in pictures}
    assert len(lengths) > 1, "the places of a picture belong to its shape"
    said = captioner.describe(pictures, range(len(pictures)))
    assert [one.text for one in said] == [generated(captioner, picture, ends) for picture in pictures]
    assert len({one.text for one in said}) > 1
    assert said[0].tokens == 4


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (1, 200), (200, 3)])
def test_pictures_of_a_few_rows_are_not_taken_for_channels(captioner: LlavaCaptioner, shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    made = captioner.prepare(picture).inputs["pixel_values"]
    wanted = captioner.processor(images=[Image.fromarray(picture)], text=[captioner.prompt], return_tensors="pt")["pixel_values"]
    assert torch.equal(made, wanted)


def test_the_conversation_is_the_processors_own(captioner: LlavaCaptioner, pictures: list[np.ndarray]) -> None:
    said = captioner.describe(pictures[:1], [0])[0]
    assert said.prompt == "USER: <image>\nDescribe this image and its style in a very detailed manner. ASSISTANT:"
    ids = captioner.prepare(pictures[0]).inputs["input_ids"][0].tolist()
    assert ids.count(captioner.processor.tokenizer.bos_token_id) == 1


def test_out_of_memory_halves_a_batch_of_many_shapes(captioner: LlavaCaptioner, pictures: list[np.ndarray],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    whole = captioner.describe(pictures, range(len(pictures)))
    model = captioner.model

    class SmallMemory:
        def __call__(self, **inputs: Any) -> Any:
            if len(inputs["input_ids"]) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model(**inputs)

    monkeypatch.setattr(captioner.decoder, "model", SmallMemory())
    monkeypatch.setattr(captioner.decoder, "places", 3)
    assert captioner.describe(pictures, range(len(pictures))) == whole
    assert captioner.decoder.places == 1


def changed(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "processor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def of_llava(folder: Path) -> None:
    """The processor of LLaVA-1.5 in a folder of another family."""
    other = tiny_llava(folder.parent / "other", image_px=28)
    shutil.copy(other / "processor_config.json", folder)


@pytest.mark.parametrize(("family", "damage"), [
    ("llava_next", changed(patch_size=28)), ("llava_next", changed(num_additional_image_tokens=4)), ("llava_next", of_llava),
    ("llava_onevision", changed(num_image_tokens=4)), ("llava_onevision", changed(vision_aspect_ratio="anyres_max_1")),
])
def test_a_processor_that_does_not_match_is_refused(tmp_path: Path, family: str, damage: Callable[[Path], None]) -> None:
    folder = BUILDERS[family](tmp_path / family)
    damage(folder)
    with pytest.raises(ValueError, match="use the processor that was saved with the model"):
        LlavaSettings(model=str(folder), max_new_tokens=4).build().load()


def test_a_model_of_text_alone_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
                     ).save_pretrained(tmp_path / "text")
    tiny_tokenizer().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match=r"type 'llama', expected 'llava', 'llava_next', 'llava_onevision': a model that reads text alone"):
        LlavaSettings(model=str(tmp_path / "text")).build().load()


def test_without_a_chat_template_one_is_asked_for(tmp_path: Path) -> None:
    folder = tiny_llava_next(tmp_path / "next")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"brings no chat template: set captioner\.template"):
        LlavaSettings(model=str(folder)).build().load()
    own = LlavaSettings(model=str(folder), template="[INST] <image> {question} [/INST]", question="What?", max_new_tokens=4).build()
    own.load()
    assert own.prompt == "[INST] <image> What? [/INST]"


def test_quantized_weights_say_what_they_need() -> None:
    assert quantization("none", "cpu", torch.float32) == {}
    with pytest.raises(ValueError, match=r"needs a CUDA GPU; this worker is on 'cpu'"):
        quantization("4bit", "cpu", torch.bfloat16)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="needs the package bitsandbytes: install the extra `quantized`"):
            quantization("8bit", "cuda:0", torch.bfloat16)


def test_the_vision_tower_stays_whole(captioner: LlavaCaptioner) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module  # what decides it, with or without bitsandbytes

    layers = [name for name, module in captioner.model.named_modules() if isinstance(module, torch.nn.Linear)]
    converted = [name for name in layers if should_convert_module(name, FULL_PRECISION)]
    assert converted
    assert all(name.startswith("model.language_model.layers") for name in converted)


def test_what_is_quantized_is_in_the_version() -> None:
    from pipelines.runtime.stage import version_of
    from pipelines.stages.caption_checks import CheckSettings
    from pipelines.stages.captions import CaptionStage

    stages = [CaptionStage(captioner=LlavaSettings(model="m/x", quantized=how), checks=CheckSettings()) for how in ("none", "4bit", "8bit")]
    assert len({version_of(stage) for stage in stages}) == 3
