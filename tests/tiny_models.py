"""Small random models, built by the tests and saved as the real ones are: what runs on them is the code that runs on those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXT = ("a photograph of the sky and green grass with some trees under bright light in front of an old wooden house near water "
        "user assistant chat between curious artificial intelligence gives helpful detailed polite answers to questions describe this "
        "image its style very manner")
CHAT = ("{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}ASSISTANT:")  # as LLaVA-1.5's own, for servers


def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer that was trained on a few words, with the special tokens of LLaVA."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    core.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=special,
                                                          initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                                        extra_special_tokens={"image_token": "<image>"})
    tokenizer.padding_side = "left"
    return tokenizer


GRID = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1)]  # tiles: rows and columns of the resolutions that a picture may take


def tiny_llava(folder: Path, seed: int = 0, image_px: int = 56) -> Path:
    """A LLaVA-1.5 of some thousand parameters with its processor: CLIP tower of 14 px patches, two Llama layers."""
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaProcessor
    from transformers import LlavaForConditionalGeneration as Llava

    tokenizer = tiny_tokenizer()
    config = LlavaConfig(vision_config=_clip_tower(image_px), text_config=_llama(tokenizer), vision_feature_layer=-2,
                         image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_select_strategy="default")
    _save_random(Llava, config, folder, seed)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": image_px}, crop_size={"height": image_px, "width": image_px})
    LlavaProcessor(image_processor=pictures, tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default",
                   num_additional_image_tokens=1, chat_template=CHAT).save_pretrained(folder)
    return folder


def tiny_llava_next(folder: Path, seed: int = 0, image_px: int = 56) -> Path:
    """A LLaVA-NeXT (1.6): the same tower over the whole picture and over tiles of it, as many as its shape takes."""
    from transformers import LlavaNextConfig, LlavaNextProcessor
    from transformers import LlavaNextForConditionalGeneration as Next
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokenizer, grid = tiny_tokenizer(), [[rows * image_px, columns * image_px] for rows, columns in GRID]
    config = LlavaNextConfig(vision_config=_clip_tower(image_px), text_config=_llama(tokenizer), image_grid_pinpoints=grid,
                             image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    _save_random(Next, config, folder, seed)
    pictures = LlavaNextImageProcessorPil(size={"shortest_edge": image_px}, crop_size={"height": image_px, "width": image_px},
                                          image_grid_pinpoints=grid)
    LlavaNextProcessor(image_processor=pictures, tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default",
                       num_additional_image_tokens=1, chat_template=CHAT).save_pretrained(folder)
    return folder


def tiny_llava_onevision(folder: Path, seed: int = 0, image_px: int = 56) -> Path:
    """A LLaVA-OneVision: SigLIP tower, Qwen2 with grouped heads, tiles that are shrunk when there are many (anyres_max_2)."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig
    from transformers import LlavaOnevisionForConditionalGeneration as OneVision
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    from pipelines.stages.llava_loading import processor_class

    tokenizer, grid = tiny_tokenizer(), [[rows * image_px, columns * image_px] for rows, columns in GRID]
    vision = SiglipVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=image_px,
                                patch_size=14, vision_use_head=False)
    text = Qwen2Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                       num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    config = LlavaOnevisionConfig(vision_config=vision, text_config=text, image_grid_pinpoints=grid, vision_aspect_ratio="anyres_max_2",
                                  image_token_index=tokenizer.convert_tokens_to_ids("<image>"), video_token_index=len(tokenizer) - 1)
    _save_random(OneVision, config, folder, seed)
    pictures = LlavaOnevisionImageProcessorPil(size={"height": image_px, "width": image_px}, image_grid_pinpoints=grid)
    processor_class("llava_onevision")(
        image_processor=pictures, tokenizer=tokenizer, num_image_tokens=(image_px // 14) ** 2, vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2", chat_template=CHAT).save_pretrained(folder)
    return folder


def _clip_tower(image_px: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=image_px,
                            patch_size=14)


def _llama(tokenizer: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                       num_key_value_heads=4, bos_token_id=1, eos_token_id=2, pad_token_id=3)


def _save_random(kind: Any, config: Any, folder: Path, seed: int) -> None:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0)  # the usual start is so small that the picture would not change a word
    if model.can_generate():
        model.generation_config.pad_token_id = 3
    model.save_pretrained(folder)


def tiny_clip(folder: Path) -> Path:
    """A CLIP of some thousand parameters with its processor."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    tokenizer = tiny_tokenizer()
    config = CLIPConfig(
        text_config={"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                     "num_attention_heads": 4, "max_position_embeddings": 77, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
                       "patch_size": 14}, projection_dim=16)
    _save_random(CLIPModel, config, folder, 0)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder
