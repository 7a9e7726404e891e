"""LLaVA's families through transformers: model and processor from a folder, and whether they belong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from pipelines.stages.asking import IMAGE_MARK
from pipelines.stages.captioner import known_picture

FAMILIES = ("llava", "llava_next", "llava_onevision")
FULL_PRECISION = [".*vision_tower", ".*multi_modal_projector", "lm_head"]  # patterns; choice: what it sees, a fortieth of 13B
# The conversation template vicuna_v1, which LLaVA-1.5 was trained with.
VICUNA_V1 = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
             "answers to the user's questions. USER: <image>\n{question} ASSISTANT:")
Quantized = Literal["none", "8bit", "4bit"]


def load_llava(address: str, folder: str, device: str, dtype: Any, quantized: Quantized = "none") -> tuple[Any, Any]:
    """(processor, model) from a folder; `address` is where it came from, for messages.

    Raises ValueError that teaches for another kind of model, missing or damaged weights.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    how = quantization(quantized, device, dtype)
    with _complete(address):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type not in FAMILIES:
        raise ValueError(f"{address} is a model of type {config.model_type!r}, expected {', '.join(map(repr, FAMILIES))}: a model that "
                         "reads text alone sees no picture, and other families were not tried; serve those behind recipe endpoint")
    with _complete(address):
        processor = processor_class(config.model_type).from_pretrained(folder, local_files_only=True, backend="pil")  # one set of pixels
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, **how)
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{address} lacks {len(missing)} of the model's weights (first: {missing[0]}): it would speak at random; use a "
                         "complete folder")
    processor.tokenizer.padding_side = "left"  # a decoder continues at the right end
    return processor, (model if how else model.to(device)).eval()


@contextmanager
def _complete(address: str) -> Iterator[None]:
    """What transformers raises for missing, foreign or cut files, as one ValueError that says what a folder has to hold."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, TypeError, LookupError, SafetensorError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{address} cannot be loaded as LLaVA ({type(error).__name__}: {said}): expected config.json, *.safetensors, and "
                         "the files of processor and tokenizer, as save_pretrained writes them; is the folder complete?") from error


def processor_class(family: str) -> Any:
    """The processor of a family; LLaVA-OneVision's is read without the part for videos, which wants torchvision."""
    from transformers import LlavaNextProcessor, LlavaOnevisionProcessor, LlavaProcessor, ProcessorMixin

    class PicturesOnly(LlavaOnevisionProcessor):
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, num_image_tokens: int | None = None,
                     vision_feature_select_strategy: str | None = None, chat_template: str | None = None,
                     image_token: str = IMAGE_MARK, vision_aspect_ratio: str = "anyres_max_9", **_: Any) -> None:
            self.num_image_tokens, self.vision_feature_select_strategy = num_image_tokens, vision_feature_select_strategy
            self.vision_aspect_ratio = vision_aspect_ratio
            self.image_token = getattr(tokenizer, "image_token", image_token)
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    return {"llava": LlavaProcessor, "llava_next": LlavaNextProcessor, "llava_onevision": PicturesOnly}[family]


def quantization(quantized: Quantized, device: str, dtype: Any) -> dict[str, Any]:
    """What from_pretrained is told for weights of 8 bits (LLM.int8) or 4 (NF4); nothing for whole ones. The vision tower stays whole.

    Raises ValueError without a GPU or without bitsandbytes.
    """
    if quantized == "none":
        return {}
    from importlib.util import find_spec

    if not device.startswith("cuda"):
        raise ValueError(f"captioner.quantized is {quantized!r}, which needs a CUDA GPU; this worker is on {device!r}: set "
                         "workers.gpus=1, or captioner.quantized=none")
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"captioner.quantized is {quantized!r}, which needs the package bitsandbytes: install the extra `quantized` "
                         "(pip install '.[quantized]') into the image of the GPU nodes, or set captioner.quantized=none")
    from transformers import BitsAndBytesConfig

    bits = {"load_in_8bit": True} if quantized == "8bit" else {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(**bits, llm_int8_skip_modules=FULL_PRECISION), "device_map": {"": device}}


def prompt_of(address: str, template: str, question: str, model: Any, processor: Any) -> str:
    """The whole text that the model reads, with the mark where the picture goes.

    Template `auto` is that of the paper's captioner for LLaVA-1.5, and the processor's own conversation for the other families.
    """
    mark = processor.image_token
    if template == "auto" and model.config.model_type == "llava" and model.config.get_text_config().model_type == "llama":
        template = VICUNA_V1
    if template != "auto":
        return template.replace(IMAGE_MARK, mark).replace("{question}", question)
    if not processor.chat_template:
        raise ValueError(f"{address} brings no chat template: set captioner.template to the conversation that it was trained with, "
                         "with <image> and {question} in it")
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    if prompt.count(mark) != 1:
        raise ValueError(f"the chat template of {address} marks {prompt.count(mark)} pictures with {mark!r}, expected one: set "
                         "captioner.template")
    begin = processor.tokenizer.bos_token
    return prompt.removeprefix(begin) if begin else prompt  # the tokenizer puts it there


def check_image_tokens(address: str, inputs_of: Any, model: Any, side_px: int) -> None:
    """The places that the processor leaves for a square, a wide and a tall picture are as many as the model fills.

    Raises ValueError for a processor of another model.
    """
    import torch

    square_HWC = known_picture(3 * side_px)  # of several tiles, where a model cuts pictures into them
    for picture_HWC in (square_HWC, square_HWC[:side_px], square_HWC[:, :side_px]):
        try:
            inputs = inputs_of(picture_HWC)
            marks = int((inputs["input_ids"] == model.config.image_token_id).sum())
            with torch.inference_mode():
                given = _features(model, {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")})
        except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"the model {address} cannot read what its processor makes of a picture ({type(error).__name__}: {error}): "
                             "they do not belong together; use the processor that was saved with the model") from error
        if marks != given:
            height, width = picture_HWC.shape[:2]
            raise ValueError(f"the processor of {address} leaves {marks} places for a picture of {width} x {height}, the model fills "
                             f"{given}: they do not belong together; use the processor that was saved with the model")


def _features(model: Any, pictures: Mapping[str, Any]) -> int:
    """How many places of text one picture fills."""
    features = model.get_image_features(**pictures)
    made = features.pooler_output if hasattr(features, "pooler_output") else features
    return int(made[0].reshape(-1, made[0].shape[-1]).shape[0])
